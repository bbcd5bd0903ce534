"""Which server gets a job, and who waits for a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from graphs import alone, image
from waiting import until

from comfyflow import ComfyClient, NoServer, NotRunnable, PollSchedule, PoolServer, Workflow
from comfyflow import placing as module
from comfyflow.inventory import Inventory
from comfyflow.member import Health, Member
from comfyflow.placing import Placing
from comfyflow.sim import Sim

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)
PICTURE = Workflow.load(image())


@pytest.fixture
async def sims() -> AsyncIterator[list[Sim]]:
    async with Sim() as first, Sim() as second:
        yield [first, second]


@asynccontextmanager
async def members_of(sims: list[Sim], *, ahead: int = 2, asked: bool = True) -> AsyncIterator[list[Member]]:
    """They are asked how they are when they are told to, not by themselves."""
    async with AsyncExitStack() as stack:
        members = [
            Member(
                await stack.enter_async_context(ComfyClient(sim.url, poll=QUICK)),
                PoolServer(sim.url),
                ahead=ahead,
                lost_after=60.0,
                changed=lambda: None,
                asked=lambda: None,
                successes=lambda: 0,
            )
            for sim in sims
        ]
        for member in members if asked else ():
            await member.ask()
        yield members


async def waiting_for(placing: Placing, workflow: Workflow = PICTURE) -> asyncio.Task[Member]:
    """A task that waits for a place."""
    before = len(placing._waiters)
    task = asyncio.create_task(placing.take(workflow))
    await until(lambda: len(placing._waiters) > before)
    return task


async def test_servers_get_a_few_ahead_in_turn(sims: list[Sim]) -> None:
    async with members_of(sims, ahead=1) as members:
        placing = Placing(members, None)
        taken = [await placing.take(PICTURE) for _ in range(4)]
    assert [taken.count(member) for member in members] == [2, 2]


async def test_the_quicker_server_gets_more(sims: list[Sim]) -> None:
    async with members_of(sims) as members:
        first, second = members
        first.seconds, second.seconds = 1.0, 5.0
        placing = Placing(members, None)
        assert [await placing.take(PICTURE) for _ in range(4)] == [first, first, first, second]


async def test_a_quick_server_is_waited_for_where_another_would_still_be_later(sims: list[Sim]) -> None:
    async with members_of(sims) as members:
        first, second = members
        first.seconds, second.seconds = 1.0, 500.0
        placing = Placing(members, None)
        for _ in range(3):
            assert await placing.take(PICTURE) is first
        waiting = await waiting_for(placing)
        assert not waiting.done()
        placing.back(first)
        assert await waiting is first


async def test_what_was_not_measured_counts_as_the_others(sims: list[Sim]) -> None:
    async with members_of(sims) as members:
        members[0].seconds = 300.0
        placing = Placing(members, None)
        taken = [await placing.take(PICTURE) for _ in range(4)]
    assert [taken.count(member) for member in members] == [2, 2]


async def test_who_came_first_is_served_first(sims: list[Sim]) -> None:
    async with members_of(sims[:1], ahead=0) as members:
        placing = Placing(members, None)
        member = await placing.take(PICTURE)
        early, late = await waiting_for(placing), await waiting_for(placing)
        placing.back(member)
        assert await early is member
        assert not late.done()
        placing.back(member)
        assert (await late, member.reserved) == (member, 1)


async def test_who_cannot_use_the_room_lets_the_next_one_have_it(sims: list[Sim]) -> None:
    async with members_of(sims, ahead=0) as members:
        _only_first(members)
        placing = Placing(members, None)
        first, second = [await placing.take(PICTURE) for _ in range(2)]
        assert [first, second] == members
        text = await waiting_for(placing, Workflow.load(alone("SimText", text="a")))
        picture = await waiting_for(placing)
        placing.back(second)
        assert await picture is second
        assert not text.done()
        placing.back(first)
        assert await text is first


def _only_first(members: list[Member]) -> None:
    """The second one lacks a node class."""
    has = members[1].inventory
    assert has is not None
    members[1].inventory = Inventory(has.node_classes - {"SimText"}, {})


async def test_a_job_goes_where_its_nodes_are(sims: list[Sim]) -> None:
    async with members_of(sims) as members:
        _only_first(members)
        placing = Placing(members, None)
        workflow = Workflow.load(alone("SimText", text="a"))
        assert [await placing.take(workflow) for _ in range(3)] == [members[0]] * 3


async def test_a_server_that_was_tried_in_vain_is_passed_over(sims: list[Sim]) -> None:
    async with members_of(sims) as members:
        placing = Placing(members, None)
        assert [await placing.take(PICTURE, [sims[0].url]) for _ in range(2)] == [members[1]] * 2


async def test_what_no_server_has_is_told_with_all_of_them_after_they_were_asked_anew(
    sims: list[Sim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyflow.member.STALE", -1.0)
    async with members_of(sims) as members:
        with pytest.raises(NotRunnable) as raised:
            await Placing(members, None).take(Workflow.load(alone("Nowhere")))
        _only_first(members)
        members[0].inventory = members[1].inventory
        workflow = Workflow.load(alone("SimText", text="a"))
        assert await Placing(members, None).take(workflow) in members  # they have it by now
    assert raised.value.missing == {sim.url: ("the node class 'Nowhere'",) for sim in sims}
    assert [sim.requests.count(("GET", "/object_info")) for sim in sims] == [3, 3]


async def test_a_cancelled_wait_keeps_no_place_not_even_one_of_that_moment(sims: list[Sim]) -> None:
    async with members_of(sims[:1], ahead=0) as members:
        placing = Placing(members, None)
        member = await placing.take(PICTURE)
        for came in (False, True):
            waiting = await waiting_for(placing)
            if came:
                placing.back(member)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (member.reserved, placing._waiters) == (0 if came else 1, {})


async def test_a_server_that_nobody_has_heard_of_is_waited_for_a_moment(
    sims: list[Sim], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with members_of(sims[:1], asked=False) as members:
        placing = Placing(members, None)
        waiting = await waiting_for(placing)
        monkeypatch.setattr(module, "GRACE", 0.0)
        placing.survey()
        with pytest.raises(NoServer, match="takes no jobs"):
            await waiting


async def test_who_waits_is_told_when_nobody_answers_for_long_and_those_that_did_are_borne(
    sims: list[Sim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATROL_EVERY", 0.01)
    async with members_of(sims) as members:
        for sim, member in zip(sims, members, strict=True):
            await sim.kill()
            await member.ask()
        assert {member.health for member in members} == {Health.AWAY}
        patient, impatient = Placing(members, 60.0), Placing(members, 0.05)
        borne = await waiting_for(patient)
        patrol = asyncio.create_task(impatient.patrol())
        with pytest.raises(NoServer, match="connection refused"):
            await impatient.take(PICTURE)
        patient.survey()
        assert not borne.done()
        for task in (patrol, borne):
            task.cancel()
        await asyncio.wait([patrol, borne])


async def test_where_all_are_drained_that_is_told_at_once(sims: list[Sim]) -> None:
    async with members_of(sims) as members:
        placing = Placing(members, None)
        for member in members:
            member.drained = True
        with pytest.raises(NoServer, match="every server is drained") as raised:
            await placing.take(PICTURE)
        assert not raised.value.any_up
        members[0].drained = False
        assert await placing.take(PICTURE) is members[0]


async def test_the_last_server_that_could_is_drained_and_another_takes_other_jobs(
    sims: list[Sim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATROL_EVERY", 0.01)
    async with members_of(sims) as members:
        _only_first(members)
        members[0].drained = True
        placing = Placing(members, 0.05)
        patrol = asyncio.create_task(placing.patrol())
        with pytest.raises(NoServer, match="takes no jobs") as raised:
            await placing.take(Workflow.load(alone("SimText", text="a")))
        patrol.cancel()
        await asyncio.wait([patrol])
        assert raised.value.any_up
