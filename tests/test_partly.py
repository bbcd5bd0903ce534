"""A job of which a server would run only a part: what it leaves out, and taking the job back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from graphs import Graph, image, partly_valid

from comfyflow.api import Api, Server
from comfyflow.look import Looker
from comfyflow.models import Submission, Timeouts
from comfyflow.partly import left_out, taken_back
from comfyflow.sim import Sim, answer


@pytest.fixture
async def api(comfyui: Sim) -> AsyncIterator[Api]:
    opened = Api(Server.at(comfyui.url), Timeouts())
    yield opened
    await opened.close()


async def posted(api: Api, graph: Graph) -> Submission:
    return await api.prompt({"prompt": graph, "prompt_id": "0" * 8 + "-1111-4111-8111-111111111111"})


@pytest.mark.parametrize("profile", ["0.27", "0.3.64"])
async def test_outputs_that_will_not_run_are_found_without_the_answer(profile: str) -> None:
    async with Sim(profile=profile) as sim:
        api = Api(Server.at(sim.url), Timeouts())
        await sim.hold()
        sent = await posted(api, partly_valid())
        assert await left_out(api, sent.prompt_id) == {"3": {"class_type": "SaveImage", "errors": []}}
        await api.close()


async def test_of_a_whole_job_nothing_is_left_out(api: Api, comfyui: Sim) -> None:
    await comfyui.hold()
    assert await left_out(api, (await posted(api, image())).prompt_id) == {}
    assert await left_out(api, "nobody's") == {}


async def test_what_cannot_be_found_out_is_no_error(api: Api, comfyui: Sim) -> None:
    await comfyui.hold()
    sent = await posted(api, partly_valid())
    comfyui.faults.add("GET", "/object_info/*", answer(503))
    assert await left_out(api, sent.prompt_id) == {}


async def test_a_job_that_waits_is_taken_back(api: Api, comfyui: Sim) -> None:
    await comfyui.hold()
    sent = await posted(api, partly_valid())
    error = await taken_back(api, Looker(api), sent)
    assert "only a part of the workflow, so it was taken back" in str(error)
    assert (error.accepted, list(error.node_errors), error.prompt_id) == (True, ["3"], sent.prompt_id)
    await comfyui.release()
    await comfyui.wait_idle()
    assert (await api.queue()).pending == ()
    assert not (await api.histories(sent.prompt_id, None) or {}).get(sent.prompt_id, {}).get("outputs")


async def test_a_part_that_has_run_already_is_not_said_to_be_taken_back(api: Api, comfyui: Sim) -> None:
    sent = await posted(api, partly_valid())
    await comfyui.wait_idle()
    assert "that part has already run" in str(await taken_back(api, Looker(api), sent))


async def test_a_server_that_cannot_be_asked_leaves_the_job_named(api: Api, comfyui: Sim) -> None:
    await comfyui.hold()
    sent = await posted(api, partly_valid())
    comfyui.faults.add("POST", "/jobs/*", answer(503), times=None)
    error = await taken_back(api, Looker(api), sent)
    assert f"job {sent.prompt_id} could not be taken back" in str(error)
