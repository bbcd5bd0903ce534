"""One server of a pool: how it is judged by what it answers, and how quick it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from aiohttp import web
from graphs import alone, image
from waiting import until

from comfyflow import BadAnswer, ComfyClient, Health, PollSchedule, PoolServer, ServerUnreachable, Workflow
from comfyflow import member as module
from comfyflow.member import REST, TRIP, Member
from comfyflow.sim import Sim, answer, delay, stall

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)


class Counts:
    """What the pool would be told."""

    def __init__(self) -> None:
        self.changed = self.asked = self.elsewhere = 0

    def on_change(self) -> None:
        self.changed += 1

    def on_asked(self) -> None:
        self.asked += 1


@asynccontextmanager
async def member_of(
    comfyui: Sim, counts: Counts, *, lost_after: float | None = 60.0, weight: float = 1.0
) -> AsyncIterator[Member]:
    async with ComfyClient(comfyui.url, poll=QUICK) as client:
        yield Member(
            client,
            PoolServer(comfyui.url, weight),
            ahead=2,
            lost_after=lost_after,
            changed=counts.on_change,
            asked=counts.on_asked,
            successes=lambda: counts.elsewhere,
        )


@pytest.fixture
def counts() -> Counts:
    return Counts()


async def test_one_that_answers_is_up_and_tells_what_it_has(comfyui: Sim, counts: Counts) -> None:
    async with member_of(comfyui, counts) as member:
        assert (member.health, member.has_room, member.lacks(Workflow.load(image()))) == (
            Health.UNKNOWN,
            False,
            (),
        )
        await member.ask()
        assert (member.health, member.has_room, counts.asked) == (Health.UP, True, 1)
        assert member.lacks(Workflow.load(alone("Nowhere"))) == ("the node class 'Nowhere'",)
        await member.ask()
        await member.refresh()
        assert comfyui.requests.count(("GET", "/object_info")) == 1


async def test_one_that_does_not_tell_what_it_has_gets_whatever_comes(comfyui: Sim, counts: Counts) -> None:
    comfyui.faults.add("GET", "/object_info", answer(500, "no"))
    async with member_of(comfyui, counts) as member:
        await member.ask()
        assert (member.health, member.lacks(Workflow.load(alone("Nowhere")))) == (Health.UP, ())
        assert "500" in str(member.view().note)


async def test_what_it_told_counts_until_it_tells_something_else(
    comfyui: Sim, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALE", -1.0)
    async with member_of(comfyui, counts) as member:
        await member.ask()
        told = member.inventory
        here = asyncio.Event()

        async def hangs(*_: object) -> web.StreamResponse:
            here.set()
            await anyio.sleep_forever()
            raise AssertionError

        comfyui.faults.add("GET", "/object_info", hangs)
        asking = asyncio.create_task(member.refresh())
        await here.wait()
        assert (member.health, member.inventory) == (Health.UP, told)
        asking.cancel()
        comfyui.faults.clear()
        comfyui.faults.add("GET", "/object_info", answer(500, "no"))
        await member.refresh()
        assert (member.health, member.inventory) == (Health.UP, told)
    assert told is not None


async def test_one_that_refuses_for_long_is_gone_and_back_when_it_answers(
    comfyui: Sim, counts: Counts
) -> None:
    async with member_of(comfyui, counts, lost_after=0.0) as member:
        await member.ask()
        await comfyui.kill()
        with pytest.raises(ServerUnreachable, match="is gone"), member.while_there():
            await member.ask()
            await anyio.sleep_forever()
        assert member.health is Health.GONE
        with pytest.raises(ServerUnreachable, match="is gone"), member.while_there():
            await member.client.ready()
        await comfyui.start()
        await member.ask()
        assert member.health.answers
        with member.while_there():
            await member.client.ready()


async def test_no_answer_of_another_kind_proves_nothing(
    comfyui: Sim, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_LIMIT", 0.1)
    async with member_of(comfyui, counts, lost_after=0.0) as member:
        for effect, note in [(stall(), "does not answer in 0.1 s"), (answer(502, "away"), "502")]:
            comfyui.faults.add("GET", "/prompt", effect)
            await member.ask()
            assert member.health is Health.AWAY
            assert note in str(member.view().note)
        comfyui.faults.clear()
        await member.ask()
        assert (member.health, member.view().note) == (Health.UP, None)


async def test_whoever_needs_to_know_waits_while_it_refuses(comfyui: Sim, counts: Counts) -> None:
    async with member_of(comfyui, counts, lost_after=60.0) as member:
        assert await member.decided()
        for happens in (comfyui.start, None):
            await comfyui.kill()
            asked = asyncio.create_task(member.decided())
            await until(lambda: member.health is Health.AWAY and member.note is not None)
            if happens is None:
                member.bury()
            else:
                await happens()
                await member.ask()
            assert await asked
        assert await member.decided()  # it is gone
        await comfyui.start()


async def test_nobody_waits_for_what_may_never_be_known(
    comfyui: Sim, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_LIMIT", 0.1)
    async with member_of(comfyui, counts, lost_after=60.0) as member:
        comfyui.faults.add("GET", "/prompt", stall())
        assert not await member.decided()
        comfyui.faults.clear()
    await comfyui.kill()
    async with member_of(comfyui, counts, lost_after=None) as member:
        assert not await member.decided()
    await comfyui.start()


async def test_without_a_limit_it_is_never_gone(comfyui: Sim, counts: Counts) -> None:
    await comfyui.kill()
    async with member_of(comfyui, counts, lost_after=None) as member:
        await member.ask()
        assert member.health is Health.AWAY
        await comfyui.start()


async def test_how_long_jobs_take_is_measured(comfyui: Sim, counts: Counts) -> None:
    async with member_of(comfyui, counts, weight=2.0) as member:
        assert member.delay(3.0) == 1.5
        comfyui.faults.add("GET", "/history*", delay(0.0))
        await member.client.wait(await member.client.submit_workflow(alone("SimSleep", seconds=0.05)))
        assert member.seconds is not None
        assert member.delay(3.0) == member.seconds / 2
        assert member.delay_behind(3, 3.0) == member.seconds * 4 / 2
        assert (member.succeeded, member.view().seconds) == (1, member.seconds)


async def test_after_a_rest_it_gets_one_job_to_see(
    comfyui: Sim, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = alone("SimFail", message="no", exception="ValueError")
    async with member_of(comfyui, counts) as member:
        await member.ask()
        now = member._clock()
        monkeypatch.setattr(Member, "_clock", staticmethod(lambda: now))
        for _ in range(TRIP):
            await member.client.result(await member.client.submit_workflow(failing))
            counts.elsewhere += 1
        assert (member.health, member.failed) == (Health.RESTING, TRIP)
        now += REST
        assert (member.health, member.has_room) == (Health.UP, True)
        member.reserved = 1
        assert not member.has_room
        member.reserved = 0
        await member.client.result(await member.client.submit_workflow(failing))
        assert member.health is Health.RESTING
        now += REST
        assert member.health is Health.RESTING  # twice as long
        now += REST
        await member.client.wait(await member.client.submit_workflow(image()))
        member.reserved = 2
        assert member.has_room


def test_which_of_them_answer() -> None:
    assert {health for health in Health if health.answers} == {Health.UP, Health.RESTING, Health.DRAINING}
    assert issubclass(BadAnswer, Exception)
