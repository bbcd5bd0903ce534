"""One look: which requests it costs, on servers with and without /api/jobs."""

from __future__ import annotations

from contextlib import nullcontext

import aiohttp
import pytest
from graphs import image

from comfyflow import events as e
from comfyflow.api import Api, Server
from comfyflow.errors import BadAnswer, NotSupported
from comfyflow.look import Looker
from comfyflow.models import Timeouts
from comfyflow.sim import Sim, answer


async def submitted(sim: Sim) -> str:
    async with (
        aiohttp.ClientSession() as http,
        http.post(sim.url + "/prompt", json={"prompt": image()}) as answer,
    ):
        return str((await answer.json())["prompt_id"])


@pytest.mark.parametrize(
    ("profile", "waiting", "ended", "lost"),
    [
        ("0.27", ["/api/jobs"], ["/api/jobs", "/history"], ["/api/jobs"]),
        ("0.3.64", ["/queue"], ["/queue", "/history"], ["/queue", "/history"]),
    ],
)
async def test_a_look_asks_as_little_as_it_can(
    profile: str, waiting: list[str], ended: list[str], lost: list[str]
) -> None:
    async with Sim(profile=profile) as sim:
        api = Api(Server.at(sim.url), Timeouts())
        looker = Looker(api)
        await looker.look("first")  # finds out what the server has

        async def asked(prompt_id: str, *, announced: bool = False) -> tuple[type[e.JobEvent], list[str]]:
            sim.requests.clear()
            event = await looker.look(prompt_id, ended=announced)
            return type(event), [path.removesuffix("/" + prompt_id) for _, path in sim.requests]

        await sim.hold()
        running, pending = await submitted(sim), await submitted(sim)
        await sim.wait_running(running)
        assert await asked(running) == (e.SeenRunning, waiting)
        assert await asked(pending) == (e.SeenPending, waiting)
        assert await asked(pending, announced=True) == (e.SeenPending, ["/history", *waiting])
        await sim.release()
        await sim.wait_idle()
        assert await asked(running) == (e.Recorded, ended)
        assert await asked(running, announced=True) == (e.Recorded, ["/history"])
        assert await asked("nobody") == (e.Absent, lost)
        await api.close()


@pytest.mark.parametrize(("profile", "keeps"), [("0.27", True), ("0.3.64", True), ("0.3.40", False)])
async def test_whether_a_server_keeps_our_ids_is_found_out_once(profile: str, keeps: bool) -> None:
    async with Sim(profile=profile) as sim:
        api = Api(Server.at(sim.url), Timeouts())
        looker = Looker(api)
        sim.faults.add("GET", "/features", answer(503))
        with pytest.raises(BadAnswer):
            await looker.keeps_ids()
        assert [await looker.keeps_ids(), await looker.keeps_ids()] == [keeps] * 2
        assert sim.requests.count(("GET", "/features")) == (2 if keeps else 3)
        await api.close()


async def test_a_server_that_makes_its_own_ids_is_refused_where_ours_are_needed() -> None:
    for profile in ("0.3.64", "0.3.40"):
        async with Sim(profile=profile) as sim:
            api = Api(Server.at(sim.url), Timeouts())
            with (
                pytest.raises(NotSupported, match=r"update the server")
                if profile == "0.3.40"
                else nullcontext()
            ):
                await Looker(api).require_ids()
            await api.close()


async def test_a_server_with_jobs_keeps_our_ids(comfyui: Sim) -> None:
    api = Api(Server.at(comfyui.url), Timeouts())
    looker = Looker(api)
    await looker.look("nobody")
    assert await looker.keeps_ids()
    assert ("GET", "/features") not in comfyui.requests
    await api.close()
