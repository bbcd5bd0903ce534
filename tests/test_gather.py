"""Writes gather while statements are on their way. With a real server: test_postgres.py."""

from __future__ import annotations

import asyncio

import pytest
from graphs import image

from comfyflow import Job, JobEvent, JobResult, JobState, StoreError, StoreUnavailable, Workflow, gather
from comfyflow.gather import GROUP, HEAVY, LANES, LOAD, Gathering, Ids, Refused
from comfyflow.rows import Batch, batch_of
from comfyflow.store import Accepted, Added, Advanced, Alive, Entry, Moved, Worker, ending


class Road:
    """Takes what is sent, and holds it up until `opened`; all lanes are then `full`. What is about a job of
    `wrong` is refused."""

    def __init__(self) -> None:
        self.sent: list[Batch] = []
        self.opened, self.busy, self.full = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.wrong: set[str] = set()
        self.fault: StoreError | None = None

    async def send(self, batch: Batch) -> Ids:
        self.sent.append(batch)
        self.busy.set()
        if len(self.sent) == LANES:
            self.full.set()
        await self.opened.wait()
        if self.fault is not None:
            raise self.fault
        if self.wrong & set(ids(batch)):
            raise Refused("wrong")
        return frozenset(run["prompt_id"] for run in batch.runs if "added" in run)


@pytest.fixture
async def road() -> Road:
    return Road()


def ids(batch: Batch) -> list[str]:
    return [run["prompt_id"] for run in batch.runs]


def job(prompt_id: str) -> Job:
    return Job(prompt_id, Workflow.load(image()), "client", "http://server", 1.0)


def running(prompt_id: str) -> Batch:
    return batch_of([Advanced(prompt_id, JobState.RUNNING, at=2.0)])


async def gathered(road: Road, *batches: Batch) -> list[Ids | BaseException]:
    """Commit `batches` while a statement is on its way; how each ended."""
    gathering = Gathering(road.send)
    tasks = [asyncio.create_task(gathering.commit(batch)) for batch in (running("first"), *batches)]
    await road.busy.wait()
    road.opened.set()
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    del road.sent[0]
    return ends[1:]


async def test_who_comes_while_nothing_is_on_its_way_does_not_wait(road: Road) -> None:
    road.opened.set()
    gathering = Gathering(road.send)
    for name in ("a", "b"):
        await gathering.commit(running(name))
    assert [ids(batch) for batch in road.sent] == [["a"], ["b"]]


async def test_what_comes_meanwhile_goes_as_one_in_the_order_of_the_ids(road: Road) -> None:
    alive = batch_of([Alive(Worker("w", "host", 1), 30.0), Added(job("b")), JobEvent("b", "note")])
    assert (
        await gathered(road, running("c"), alive, batch_of([JobEvent("a", "note")])) == [frozenset("b")] * 3
    )
    [batch] = road.sent
    assert ids(batch) == ["a", "b", "c"]
    assert [event["prompt_id"] for event in batch.events] == ["b", "a"]
    assert len(batch.workers) == 1


async def test_a_group_is_not_larger_than_it_may_be(road: Road) -> None:
    await gathered(road, *(running(f"{number}") for number in range(GROUP + 1)))
    assert sorted(len(batch.runs) for batch in road.sent) == [1, GROUP]


async def test_large_graphs_go_alone(road: Road) -> None:
    node = {"class_type": "EmptyImage", "inputs": {}}
    large = Workflow.load({str(number): node for number in range(LOAD)})
    jobs = [Job(name, large, "client", "http://server", 1.0) for name in "ab"]
    await gathered(road, *(batch_of([Added(one)]) for one in jobs))
    assert [ids(batch) for batch in road.sent] == [["a"], ["b"]]


async def test_each_caller_gets_its_own_error(road: Road) -> None:
    road.wrong = {"b"}
    ends = await gathered(road, running("a"), running("b"), running("c"))
    assert [type(end) for end in ends] == [frozenset, Refused, frozenset]
    assert [ids(batch) for batch in road.sent[:1]] == [["a", "b", "c"]]
    assert sorted(ids(batch) for batch in road.sent[1:]) == [["a"], ["b"], ["c"]]


async def test_a_wrong_one_that_is_alone_is_sent_once(road: Road) -> None:
    road.wrong = {"a"}
    [end] = await gathered(road, running("a"))
    assert isinstance(end, Refused)
    assert len(road.sent) == 1


async def test_a_database_that_is_away_is_told_to_everybody(road: Road) -> None:
    road.fault = StoreUnavailable("away")
    assert [type(end) for end in await gathered(road, running("a"), running("b"))] == [StoreUnavailable] * 2


async def test_beside_a_slow_statement_another_one_sets_out(road: Road) -> None:
    gathering = Gathering(road.send)
    tasks = [asyncio.create_task(gathering.commit(running(name))) for name in "abc"]
    async with asyncio.timeout(5):
        await road.full.wait()
        assert [ids(batch) for batch in road.sent] == [["a"], ["b", "c"]]
        road.opened.set()
        await asyncio.gather(*tasks)


async def test_a_large_one_does_not_wait_for_the_one_on_its_way(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "SLOW", 60.0)
    gathering = Gathering(road.send)
    node = {"class_type": "EmptyImage", "inputs": {}}
    large = Workflow.load({str(number): node for number in range(HEAVY)})
    added = batch_of([Added(Job("large", large, "client", "http://server", 1.0))])
    tasks = [asyncio.create_task(gathering.commit(batch)) for batch in (running("first"), added)]
    async with asyncio.timeout(5):
        await road.full.wait()
        assert [ids(batch) for batch in road.sent] == [["first"], ["large"]]
        road.opened.set()
        await asyncio.gather(*tasks)


async def crowd(gathering: Gathering, road: Road) -> None:
    """Four callers at once."""
    tasks = [asyncio.create_task(gathering.commit(running(name))) for name in "wxyz"]
    await road.busy.wait()
    road.opened.set()
    await asyncio.gather(*tasks)
    road.sent.clear()


async def test_who_is_always_alone_waits_for_nobody(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "OFTEN", 60.0)
    monkeypatch.setattr(gather, "PAUSE", 60.0)
    road.opened.set()
    gathering = Gathering(road.send)
    async with asyncio.timeout(5):
        for name in "abc":
            await gathering.commit(running(name))
    assert [ids(batch) for batch in road.sent] == [["a"], ["b"], ["c"]]


async def test_where_there_were_others_they_are_waited_for(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "OFTEN", 60.0)
    monkeypatch.setattr(gather, "PAUSE", 60.0)
    gathering = Gathering(road.send)
    async with asyncio.timeout(5):
        await crowd(gathering, road)
        await asyncio.gather(*(gathering.commit(running(name)) for name in "abcd"))
    assert [ids(batch) for batch in road.sent] == [["a", "b", "c", "d"]]


async def test_who_is_alone_again_is_not_held_up_for_long(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "OFTEN", 60.0)
    monkeypatch.setattr(gather, "PAUSE", 0.0)
    gathering = Gathering(road.send)
    async with asyncio.timeout(5):
        await crowd(gathering, road)
        for name in "ab":
            await gathering.commit(running(name))
        monkeypatch.setattr(gather, "PAUSE", 60.0)
        await gathering.commit(running("c"))
    assert [ids(batch) for batch in road.sent] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("sent", [False, True])
async def test_who_is_cancelled_takes_nobody_along(road: Road, sent: bool) -> None:
    gathering = Gathering(road.send)
    tasks = [asyncio.create_task(gathering.commit(running(name))) for name in "abcd"]
    await (road.full if sent else road.busy).wait()
    tasks[1].cancel()  # the first of the group
    tasks[2].cancel()
    road.opened.set()
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(end, asyncio.CancelledError) for end in ends] == [False, True, True, False]
    assert ["d"] in [ids(batch) for batch in road.sent]


DONE = JobResult("a", JobState.SUCCEEDED)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([Advanced("a", JobState.RUNNING, at=2.0)], ending(job("a"), DONE)),
        (ending(job("a"), DONE), [Advanced("a", JobState.RUNNING, at=2.0), JobEvent("a", "started")]),
        ([Added(job("a"))], [Accepted(job("a"), "a", at=2.0), JobEvent("a", "submitted")]),
        ([JobEvent("a", "note")], [Advanced("a", JobState.FINISHING)]),
        ([Advanced("a", JobState.RUNNING)], [Advanced("a", JobState.FINISHING)]),
    ],
)
async def test_one_job_told_of_twice_is_one_row_as_if_one_caller_had_told_it(
    road: Road, first: list[Entry], second: list[Entry]
) -> None:
    new = frozenset("a" for entry in first if isinstance(entry, Added))
    assert await gathered(road, batch_of(first), batch_of(second)) == [new, new]
    assert road.sent == [batch_of([*first, *second])]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([Added(job("a"))], [Added(job("a"))]),
        ([Advanced("a", JobState.RUNNING)], [Added(job("a"))]),
        ([Moved(job("a"))], [Accepted(job("a"), "a")]),
        (ending(job("a"), DONE), ending(job("a"), JobResult("a", JobState.CANCELLED))),
        ([Advanced("b", JobState.RUNNING)], [Accepted(job("a"), "b")]),
    ],
)
async def test_what_may_contradict_itself_does_not_go_together(
    road: Road, first: list[Entry], second: list[Entry]
) -> None:
    await gathered(road, batch_of(first), batch_of(second))
    assert len(road.sent) == 2
