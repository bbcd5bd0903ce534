"""POST /prompt exactly once: what is sent again, what is not, and what is left open."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from graphs import image

from comfyflow import submit
from comfyflow.api import Api, Server
from comfyflow.errors import BadAnswer, ServerError, ServerUnreachable, WorkflowRejected
from comfyflow.look import Looker
from comfyflow.models import Timeouts
from comfyflow.sim import Sim, answer, reset, reset_after, stall


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "SETTLE", 0.02)
    monkeypatch.setattr(submit, "GIVE_UP", 1.0)


@pytest.fixture
async def api(comfyui: Sim) -> AsyncIterator[Api]:
    made = Api(Server.at(comfyui.url), Timeouts(answer=0.2))
    yield made
    await made.close()


def body(**more: Any) -> dict[str, Any]:
    return {"prompt": image(), "prompt_id": str(uuid.uuid4()), "client_id": "c", **more}


async def test_a_job_that_was_taken_is_not_sent_again(comfyui: Sim, api: Api) -> None:
    for effect in (reset_after(), answer(504, after=True), answer(500, after=True)):
        comfyui.faults.add("POST", "/prompt", effect)
        sent = body()
        assert (await submit.send_once(api, Looker(api), sent)).prompt_id == sent["prompt_id"]
        await comfyui.wait_idle()
        assert comfyui.executed[sent["prompt_id"]] == 1


async def test_a_job_that_waits_keeps_its_number(comfyui: Sim, api: Api) -> None:
    await comfyui.hold()
    comfyui.faults.add("POST", "/prompt", reset_after(), times=1)
    assert (await submit.send_once(api, Looker(api), body(number=7))).number == 7


async def test_a_job_that_was_not_taken_is_sent_again(comfyui: Sim, api: Api) -> None:
    for effect in (reset(), answer(502)):
        fault = comfyui.faults.add("POST", "/prompt", effect, times=2)
        sent = body()
        await submit.send_once(api, Looker(api), sent)
        await comfyui.wait_idle()
        assert (fault.hits, comfyui.executed[sent["prompt_id"]]) == (2, 1)


async def test_it_is_sent_only_so_often(comfyui: Sim, api: Api) -> None:
    fault = comfyui.faults.add("POST", "/prompt", reset(), times=None)
    with pytest.raises(ServerUnreachable):
        await submit.send_once(api, Looker(api), body())
    assert fault.hits == submit.SENDS


async def test_a_stalled_server_is_waited_out(comfyui: Sim, api: Api) -> None:
    post = comfyui.faults.add("POST", "/prompt", stall(after=True))
    looks = comfyui.faults.add("GET", "/jobs/*", answer(503), times=3)
    sent = body()
    await submit.send_once(api, Looker(api), sent)
    post.release()
    await comfyui.wait_idle()
    assert (looks.hits, comfyui.executed[sent["prompt_id"]]) == (3, 1)


async def test_what_cannot_be_found_out_is_said(comfyui: Sim, api: Api) -> None:
    comfyui.faults.add("POST", "/prompt", reset_after(), times=None)
    comfyui.faults.add("GET", "*", answer(503), times=None)
    with pytest.raises(ServerUnreachable, match="comfyflow status") as caught:
        await submit.send_once(api, Looker(api), body())
    assert caught.value.sent


async def test_clear_answers_are_final(comfyui: Sim, api: Api) -> None:
    cases: list[tuple[Any, type[ServerError]]] = [(answer(401), BadAnswer), (answer(500), BadAnswer)]
    for effect, kind in cases:
        fault = comfyui.faults.add("POST", "/prompt", effect, times=None)
        with pytest.raises(kind):
            await submit.send_once(api, Looker(api), body())
        assert fault.hits == 1
        comfyui.faults.clear()
    with pytest.raises(WorkflowRejected):
        await submit.send_once(api, Looker(api), body(prompt={}))


async def test_a_server_that_makes_its_own_ids_gets_nothing_twice() -> None:
    async with Sim(profile="0.3.40") as old:
        api = Api(Server.at(old.url), Timeouts())
        fault = old.faults.add("POST", "/prompt", reset_after(), times=None)
        with pytest.raises(ServerUnreachable):
            await submit.send_once(api, Looker(api), body())
        assert fault.hits == 1
        await api.close()


async def test_a_server_that_was_never_reached_is_not_asked_again(api: Api, comfyui: Sim) -> None:
    await comfyui.kill()
    with pytest.raises(ServerUnreachable) as caught:
        await submit.send_once(api, Looker(api), body())
    assert not caught.value.sent
