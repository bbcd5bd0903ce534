"""Ending one job and no other: which requests are made on which server."""

from __future__ import annotations

import aiohttp
import pytest
from graphs import image

from comfyflow.api import Api, Server
from comfyflow.cancel import ask_to_end
from comfyflow.errors import NotSupported, UsageError
from comfyflow.models import Timeouts
from comfyflow.sim import Sim, answer


async def two_jobs(sim: Sim) -> tuple[str, str]:
    await sim.hold()
    ids = []
    async with aiohttp.ClientSession() as http:
        for _ in range(2):
            async with http.post(sim.url + "/prompt", json={"prompt": image()}) as posted:
                ids.append(str((await posted.json())["prompt_id"]))
    await sim.wait_running(ids[0])
    sim.requests.clear()
    return ids[0], ids[1]


def posts(sim: Sim) -> list[str]:
    return [path for method, path in sim.requests if method == "POST"]


async def test_a_new_server_is_told_the_id() -> None:
    async with Sim() as sim:
        api, (running, _) = Api(Server.at(sim.url), Timeouts()), await two_jobs(sim)
        await ask_to_end(api, running)
        assert posts(sim) == [f"/api/jobs/{running}/cancel"]
        await api.close()


@pytest.mark.parametrize("which", [0, 1])
async def test_an_older_one_is_told_to_dequeue_and_then_to_interrupt_that_id(which: int) -> None:
    async with Sim(profile="0.3.64") as sim:
        api, jobs = Api(Server.at(sim.url), Timeouts()), await two_jobs(sim)
        await ask_to_end(api, jobs[which])
        assert posts(sim)[1:] == [["/queue", "/interrupt"], ["/queue"]][which]
        assert (await api.queue()).find(jobs[1 - which]) is not None
        await api.close()


async def test_a_server_that_cannot_aim_is_asked_only_by_force() -> None:
    async with Sim(profile="0.3.40") as sim:
        api, (running, pending) = Api(Server.at(sim.url), Timeouts()), await two_jobs(sim)
        with pytest.raises(NotSupported, match=r"0\.3\.57"):
            await ask_to_end(api, running)
        sim.faults.add("GET", "/system_stats", answer(200, b'{"system": 1}', content_type="application/json"))
        with pytest.raises(NotSupported):
            await ask_to_end(api, running)
        assert "/interrupt" not in posts(sim)
        await ask_to_end(api, running, force=True)
        assert posts(sim)[-1] == "/interrupt"
        await ask_to_end(api, pending)  # a waiting one needs no aim
        assert (await api.queue()).find(pending) is None
        await api.close()


async def test_no_id_is_not_taken_for_whatever_runs() -> None:
    async with Sim(profile="0.3.64") as sim:
        api, _ = Api(Server.at(sim.url), Timeouts()), await two_jobs(sim)
        with pytest.raises(UsageError):
            await ask_to_end(api, "", force=True)
        assert posts(sim) == []
        await api.close()
