"""The socket: opened, kept, replaced; the old one always gone before the new one comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from comfyflow import link as module
from comfyflow.link import MAX_FRAME_SIZE, Link
from comfyflow.sim import Sim, answer, redirect


class Heard:
    """What a link reported, to wait for."""

    def __init__(self) -> None:
        self.frames: list[str | bytes] = []
        self.lives: list[bool] = []
        self._news = asyncio.Event()

    def on_frame(self, frame: str | bytes) -> None:
        self.frames.append(frame)
        self._news.set()

    def on_live(self, live: bool) -> None:
        self.lives.append(live)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def linked(sim: Sim, heard: Heard, connect_timeout: float | None = 5.0) -> AsyncIterator[Link]:
    url = sim.url.replace("http", "ws", 1) + "/ws?clientId=me"
    made = Link(
        url,
        headers={"X-Mine": "1"},
        hello='{"type": "feature_flags", "data": {}}',
        on_frame=heard.on_frame,
        on_live=heard.on_live,
        connect_timeout=connect_timeout,
    )
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)


async def test_frames_come_in_and_flags_go_out(comfyui: Sim) -> None:
    heard = Heard()
    async with linked(comfyui, heard) as link:
        await link.tried.wait()
        await heard.until(lambda: any("feature_flags" in str(frame) for frame in heard.frames))
        assert '"sid": "me"' in str(heard.frames[0])
    assert heard.lives == [True, False]
    await comfyui.wait_for(lambda: comfyui.sockets == 0)


async def test_a_lost_socket_is_opened_again_with_new_flags(comfyui: Sim) -> None:
    heard = Heard()
    async with linked(comfyui, heard):
        await heard.until(lambda: len(heard.frames) == 2)
        comfyui.drop_sockets()
        await heard.until(lambda: len(heard.frames) == 4)
        await comfyui.close_sockets()
        await heard.until(lambda: len(heard.frames) == 6)
    assert heard.lives == [True, False] * 3
    assert sum("feature_flags" in str(frame) for frame in heard.frames) == 3


async def test_a_replaced_socket_is_gone_before_the_next_one_so_the_next_one_hears(comfyui: Sim) -> None:
    heard = Heard()
    async with linked(comfyui, heard) as link:
        link_before = link
        await heard.until(lambda: len(heard.frames) == 2)
        comfyui.deafen()
        link_before.replace()
        await heard.until(lambda: len(heard.frames) == 4)
        assert comfyui.sockets == 1
        comfyui.send_raw("hello", "me")
        await heard.until(lambda: heard.frames[-1] == "hello")
        link.replace()
    link.replace()  # nothing to replace any more


async def test_a_refused_socket_is_tried_again(comfyui: Sim) -> None:
    heard = Heard()
    fault = comfyui.faults.add("GET", "/ws", answer(503), times=2)
    async with linked(comfyui, heard) as link:
        await link.tried.wait()
        errors = [link.error]
        await heard.until(lambda: True in heard.lives)
        errors.append(link.error)
        assert [error is None for error in errors] == [False, True]
    assert fault.hits == 2


async def test_a_redirect_is_not_followed(comfyui: Sim) -> None:
    heard = Heard()
    comfyui.faults.add("GET", "/ws", redirect(comfyui.url + "/api/ws"))
    async with linked(comfyui, heard) as link:
        await link.tried.wait()
        assert link.error is not None
        assert "302" in link.error


async def test_large_frames_come_whole_and_too_large_ones_cost_the_socket_only(comfyui: Sim) -> None:
    heard = Heard()
    async with linked(comfyui, heard):
        await heard.until(lambda: len(heard.frames) == 2)
        comfyui.send_raw("x" * (32 * 2**20), "me")
        await heard.until(lambda: len(heard.frames[-1]) == 32 * 2**20)
        comfyui.send_raw("x" * (MAX_FRAME_SIZE + 1), "me")
        await heard.until(lambda: heard.lives == [True, False, True])


async def test_a_server_that_is_not_there_yet(comfyui: Sim) -> None:
    heard = Heard()
    await comfyui.kill()
    async with linked(comfyui, heard) as link:
        await link.tried.wait()
        assert link.error is not None
        await comfyui.start()
        await heard.until(lambda: True in heard.lives)
