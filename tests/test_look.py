"""One look: which requests it costs, on servers with and without /api/jobs."""

from __future__ import annotations

import aiohttp
import pytest
from graphs import image

from comfyflow import events as e
from comfyflow.api import Api, Server
from comfyflow.look import Looker
from comfyflow.models import Timeouts
from comfyflow.sim import Sim


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
