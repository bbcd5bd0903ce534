"""Stores: the same bodies for every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from clusters import connected
from graphs import image

from comfyflow import (
    Job,
    JobEvent,
    JobFailure,
    JobRecord,
    JobResult,
    JobState,
    MemoryStore,
    OutputFile,
    SavedFile,
    Store,
    StoreError,
    Workflow,
)
from comfyflow.postgres import PostgresStore
from comfyflow.rows import batch_of
from comfyflow.statements import statement_for
from comfyflow.store import RESUBMITTED, Accepted, Added, Advanced, Alive, IdTaken, Moved, Worker, ending


@pytest.fixture(params=["memory", "postgresql"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with await PostgresStore.open(request.getfixturevalue("database"), journal=None) as opened:
            yield opened


def job(prompt_id: str = "a", created_at: float = 1.0) -> Job:
    return Job(prompt_id, Workflow.load(image()), "client", "http://server", created_at)


async def known(store: Store, prompt_id: str = "a") -> JobRecord:
    record = await store.get(prompt_id)
    assert record is not None
    return record


FILE = SavedFile(OutputFile("2", "x.png"), Path("/x.png"), 3, "0" * 64, "image/png")
DONE = JobResult("a", JobState.SUCCEEDED, (FILE.output,))
FAILED = JobResult("a", JobState.FAILED, failure=JobFailure("no memory"))


async def test_a_job_is_known_before_it_is_sent(store: Store) -> None:
    mine = job()
    await store.add(mine)
    await store.add(mine)
    record = await known(store)
    assert (record.job, record.state, record.result) == (mine, JobState.CREATED, None)
    assert await store.get("b") is None


async def test_a_job_may_be_known_by_its_id_alone(store: Store) -> None:
    mine = replace(job(), workflow=None)
    await store.add(mine)
    assert (await known(store)).job == mine


async def test_an_id_belongs_to_one_job(store: Store) -> None:
    await store.add(job())
    with pytest.raises(StoreError, match="new prompt id"):
        await store.add(job(created_at=2.0))


async def test_states_only_climb(store: Store) -> None:
    await store.add(job())
    for state in (JobState.RUNNING, JobState.QUEUED):
        await store.advance("a", state)
        assert (await known(store)).state is JobState.RUNNING


async def test_a_server_may_give_another_id(store: Store) -> None:
    mine = job()
    await store.add(mine)
    await store.log(JobEvent("a", "note"))
    for _ in range(2):
        await store.accepted(mine, "theirs")
    record = await known(store, "theirs")
    assert (record.state, record.job.prompt_id) == (JobState.QUEUED, "theirs")
    assert [event.kind for event in record.events] == ["note"]
    assert await store.get("a") is None


async def test_there_is_one_outcome(store: Store) -> None:
    mine = job()
    await store.add(mine)
    await store.finish(mine, DONE, (FILE,))
    await store.finish(mine, FAILED)
    await store.advance("a", JobState.LOST)
    record = await known(store)
    assert (record.state, record.result, record.files) == (JobState.SUCCEEDED, DONE, (FILE,))
    assert [(event.kind, event.detail) for event in record.events] == [("finished", {"files": 1})]


async def test_a_failure_is_recorded_with_its_reason(store: Store) -> None:
    mine = job()
    await store.add(mine)
    await store.finish(mine, FAILED)
    record = await known(store)
    assert record.result == FAILED
    assert [(event.kind, event.detail) for event in record.events] == [("failed", {"reason": "no memory"})]


async def test_an_outcome_that_is_told_twice_is_there_once(store: Store) -> None:
    mine = job()
    await store.add(mine)
    for _ in range(2):
        await store.finish(mine, DONE, (FILE,))
    record = await known(store)
    assert (record.result, record.files, len(record.events)) == (DONE, (FILE,), 1)


async def test_an_event_that_is_written_twice_is_there_once(store: Store) -> None:
    await store.add(job())
    first, second = JobEvent("a", "one", {"n": 2**70}), JobEvent("a", "two")
    for event in (first, second, first):
        await store.log(event)
    assert (await known(store)).events == (first, second)


async def test_unfinished_jobs_are_listed_oldest_first(store: Store) -> None:
    jobs = [job(name, at) for name, at in (("c", 1.0), ("b", 2.0), ("a", 3.0))]
    for one in reversed(jobs):
        await store.add(one)
    await store.finish(jobs[1], replace(DONE, prompt_id="b"))
    assert [one async for one in store.unfinished()] == [jobs[0], jobs[2]]


async def test_an_unknown_job_is_an_error(store: Store) -> None:
    for entry in (Advanced("x", JobState.RUNNING), JobEvent("x", "note"), *ending(job("x"), DONE)):
        with pytest.raises(StoreError, match="no job x"):
            await store.write(entry)


async def test_of_entries_that_belong_together_all_are_written_or_none(store: Store) -> None:
    mine = job()
    with pytest.raises(StoreError, match="no job x"):
        await store.write(Added(mine), JobEvent("a", "note"), JobEvent("x", "note"))
    assert await store.get("a") is None
    await store.write(Added(mine), *ending(mine, DONE, (FILE,)))
    assert (await known(store)).result == DONE


async def test_what_is_written_lazily_can_be_read(store: Store) -> None:
    await store.add(job())
    await store.write(Advanced("a", JobState.RUNNING), JobEvent("a", "started"), lazily=True)
    record = await known(store)
    assert (record.state, [event.kind for event in record.events]) == (JobState.RUNNING, ["started"])


# who works on what


HERE, MINE, THEIRS = "http://server", Worker("mine", "host", 1), Worker("theirs", "host", 2)


def ids(records: list[JobRecord]) -> list[str]:
    return [record.job.prompt_id for record in records]


async def test_jobs_without_an_outcome_are_claimed_oldest_first(store: Store) -> None:
    for number, prompt_id in enumerate(["d", "c", "b", "a"]):
        await store.add(job(prompt_id, float(number)))
    await store.finish(job("c"), DONE)
    await store.add(replace(job("elsewhere"), server="http://other"))
    await store.advance("b", JobState.RUNNING)
    found = await store.claim(MINE, HERE, limit=10)
    assert [(record.job.prompt_id, record.state) for record in found] == [
        ("d", JobState.CREATED), ("b", JobState.RUNNING), ("a", JobState.CREATED),
    ]  # fmt: skip
    assert ids(await store.claim(MINE, HERE, limit=2, busy=["d"])) == ["b", "a"]
    assert ids(await store.claim(MINE, HERE, limit=1)) == ["d"]
    assert await store.take("a", MINE)
    assert not await store.take("c", MINE)
    assert not await store.take("unknown", MINE)


async def test_every_road_to_a_job_tells_its_key_and_what_it_replaces(store: Store) -> None:
    first = job("a")
    second = replace(job("b", 2.0), key="order 17", replaces="a", attempt=2, folder="/out")
    await store.write(Added(second), Added(first))  # in whatever order
    assert (await known(store, "b")).job == second
    assert [one async for one in store.unfinished()] == [first, second]
    assert [record.job for record in await store.claim(MINE, HERE, limit=2)] == [first, second]


async def test_what_was_left_open_is_filled_in_and_nothing_else_is_changed(store: Store) -> None:
    bare = job("b")
    await store.write(Added(job("a")), Added(bare))
    for key, folder in (("first", "/one"), ("second", "/two")):
        await store.add(replace(bare, key=key, folder=folder, replaces="a", attempt=7))
    assert (await known(store, "b")).job == replace(bare, key="first", folder="/one", replaces="a")


@pytest.mark.parametrize("odd", ["nul \0", "surrogate \ud800"])
async def test_a_job_in_hand_is_left_out_whatever_its_id_is_made_of(store: Store, odd: str) -> None:
    await store.add(job(odd))
    assert await store.claim(MINE, HERE, limit=9, busy=[odd]) == []
    assert len(await store.claim(MINE, HERE, limit=9)) == 1


async def test_what_replaces_a_job_is_found_at_the_end_of_the_chain(store: Store) -> None:
    await store.add(job("a"))
    second, third = [
        replace(job(name), replaces=before, attempt=attempt, key="k", folder="/out")
        for name, before, attempt in (("b", "a", 2), ("c", "b", 3))
    ]
    lost = JobResult("a", JobState.LOST, failure=JobFailure("forgotten"))
    await store.write(*ending(job("a"), lost), Added(second))
    await store.add(third)
    record = await store.successor("a")
    assert record is not None
    assert record.job == third
    assert await store.successor("c") is None
    assert await store.successor("unknown") is None


async def test_the_latest_of_a_chain_is_its_end_and_of_a_job_alone_itself(store: Store) -> None:
    assert await store.latest("a") is None
    await store.add(job("a"))
    assert await store.latest("a") == await store.get("a")
    await store.add(replace(job("b"), replaces="a", attempt=2))
    await store.add(replace(job("c"), replaces="b", attempt=3))
    await store.finish(job("c"), replace(DONE, prompt_id="c"), (FILE,))
    record = await store.latest("a")
    assert record == await store.successor("a") == await store.get("c")
    assert record is not None and record.files == (FILE,) and len(record.events) == 1
    assert await store.latest("c") == record and await store.successor("c") is None


async def test_what_replaces_a_job_is_found_under_the_id_that_its_server_gave_it(store: Store) -> None:
    await store.write(Added(job("a")), Added(replace(job("b"), replaces="a", attempt=2)))
    await store.accepted(job("b"), "c")
    record = await store.latest("a")
    assert record is not None and record.job.prompt_id == "c"


async def test_a_write_that_failed_leaves_no_trace_in_the_chain(store: Store) -> None:
    await store.add(job("a"))
    with pytest.raises(StoreError, match="no job unknown"):
        new = replace(job("b"), replaces="a", attempt=2)
        await store.write(Added(new), Accepted(new, "c"), JobEvent("unknown", "note"))
    assert await store.successor("a") is None
    assert [await store.get(prompt_id) for prompt_id in ("b", "c")] == [None, None]
    await store.add(replace(job("d"), replaces="a", attempt=2))
    assert (await store.latest("a") or job()) == await store.get("d")


async def test_a_job_that_was_not_sent_goes_to_another_server(store: Store) -> None:
    mine = job()
    await store.write(Added(mine), JobEvent("a", "note"))
    there = replace(mine, server="http://other", client_id="theirs")
    for _ in range(2):
        await store.write(Moved(there))
        record = await known(store)
        assert (record.job, record.state, len(record.events)) == (there, JobState.CREATED, 1)


async def test_a_job_that_was_sent_stays_where_it_is(store: Store) -> None:
    mine = job()
    await store.write(Added(mine), Accepted(mine, "a"))
    await store.write(Moved(replace(mine, server="http://other", client_id="theirs")), JobEvent("a", "note"))
    record = await known(store)
    assert (record.job, record.state, len(record.events)) == (mine, JobState.QUEUED, 1)


async def test_a_job_that_nobody_knows_does_not_move(store: Store) -> None:
    with pytest.raises(StoreError, match="no job a is recorded"):
        await store.write(Moved(job()))


async def test_a_job_is_added_where_it_moved_to_in_the_same_write(store: Store) -> None:
    mine = job()
    there = replace(mine, server="http://other", client_id="theirs")
    await store.write(Added(mine), Moved(there))
    assert (await known(store)).job == there


@pytest.fixture
async def shared(database: str) -> AsyncIterator[PostgresStore]:
    async with await PostgresStore.open(database, journal=None) as opened:
        yield opened


async def test_a_worker_holds_its_jobs_until_its_lease_ends_or_it_retires(shared: PostgresStore) -> None:
    await shared.write(Alive(THEIRS, 30.0), Added(job("a"), THEIRS.id))
    assert await shared.claim(MINE, HERE, limit=9) == []
    assert not await shared.take("a", MINE)
    [held] = await shared.holders(HERE)
    assert (held.worker, held.jobs, 29.0 < held.left <= 30.0) == (THEIRS, 1, True)
    assert ids(await shared.claim(MINE, HERE, limit=9, dead=[THEIRS.id])) == ["a"]
    assert await shared.take("a", THEIRS)  # MINE has never said that it lives
    await shared.renew(MINE, 30.0)
    await shared.connections.execute("UPDATE run_workers SET alive_until = now() WHERE worker = 'theirs'")
    assert [one.left for one in await shared.holders(HERE)] == [0.0]
    assert ids(await shared.claim(MINE, HERE, limit=9)) == ["a"]
    assert await shared.claim(THEIRS, HERE, limit=9) == []
    await shared.retire(MINE)
    assert ids(await shared.claim(THEIRS, HERE, limit=9)) == ["a"]


async def test_a_job_that_is_added_again_stays_with_its_first_worker(shared: PostgresStore) -> None:
    mine = job("a")
    await shared.write(Alive(THEIRS, 30.0), Added(mine, THEIRS.id))
    await shared.write(Alive(MINE, 30.0), Added(mine, MINE.id))
    assert not await shared.take("a", MINE)
    await shared.write(Added(job("b")))
    await shared.write(Added((await known(shared, "b")).job, MINE.id))  # a job that nobody held
    assert not await shared.take("b", THEIRS)


async def test_who_adds_a_job_that_nobody_knew_is_told_so(shared: PostgresStore) -> None:
    await shared.add(job("b"))
    await shared.write(Advanced("b", JobState.RUNNING), lazily=True)
    mine = job()
    assert await shared.write_new(Alive(MINE, 30.0), Added(mine, MINE.id))
    assert not await shared.write_new(Added(mine, THEIRS.id))
    assert (await known(shared)).worker == MINE.id
    assert (await known(shared, "b")).state is JobState.RUNNING
    held_by_nobody = (await known(shared, "b")).job
    assert not await shared.write_new(Added(held_by_nobody, MINE.id))  # although that changes the row


async def test_nobody_is_told_so_who_cannot_know(store: Store) -> None:
    mine = job()
    await store.add(mine)
    assert not await store.write_new(Added(mine))
    with pytest.raises(IdTaken):
        await store.write_new(Added(job(created_at=2.0)))


async def test_of_many_who_add_one_job_at_once_one_is_told_that_it_is_new(
    shared: PostgresStore, database: str
) -> None:
    mine = job()

    async def added(store: PostgresStore, number: int) -> str | None:
        worker = Worker(f"w{number}", "host", number)
        return worker.id if await store.write_new(Alive(worker, 30.0), Added(mine, worker.id)) else None

    async with await PostgresStore.open(database, journal=None) as other:
        told = await asyncio.gather(*(added(one, place) for place, one in enumerate([shared, other] * 10)))
    assert [worker for worker in told if worker] == [(await known(shared)).worker]


async def test_workers_that_died_long_ago_are_forgotten(shared: PostgresStore) -> None:
    await shared.renew(THEIRS, 30.0)
    await shared.connections.execute("UPDATE run_workers SET alive_until = now() - interval '2 days'")
    await shared.renew(MINE, 30.0)
    assert [row[0] for row in await shared.connections.fetch("SELECT worker FROM run_workers")] == ["mine"]


async def test_of_many_who_claim_at_once_each_job_goes_to_one(shared: PostgresStore, database: str) -> None:
    jobs = [job(f"{number:03}") for number in range(200)]
    await shared.write(*map(Added, jobs))

    async def claimed(store: PostgresStore, number: int) -> list[str]:
        worker, mine = Worker(f"w{number}", "host", number), list[str]()
        await store.renew(worker, 30.0)
        while found := await store.claim(worker, HERE, limit=3, busy=mine):
            mine += ids(found)
        return mine

    async with await PostgresStore.open(database, journal=None) as other:
        found = await asyncio.gather(*(claimed(one, place) for place, one in enumerate([shared, other] * 10)))
    assert sorted(chain(*found)) == [one.prompt_id for one in jobs]


async def test_of_many_who_take_one_job_at_once_one_gets_it(shared: PostgresStore, database: str) -> None:
    await shared.add(job("a"))

    async def taken(store: PostgresStore, number: int) -> bool:
        worker = Worker(f"w{number}", "host", number)
        await store.renew(worker, 30.0)
        return await store.take("a", worker)

    async with await PostgresStore.open(database, journal=None) as other:
        found = await asyncio.gather(*(taken(one, place) for place, one in enumerate([shared, other] * 10)))
    assert sum(found) == 1


async def test_who_waits_for_a_job_that_another_one_is_just_taking_hold_of_does_not_get_it(
    shared: PostgresStore, database: str
) -> None:
    """The other's row of run_workers is newer than the statement that waits for the job's row."""
    mine = job("a")
    await shared.add(mine)
    await shared.renew(MINE, 30.0)
    theirs = batch_of([Alive(THEIRS, 30.0), Added(mine, THEIRS.id)])
    async with connected(database) as other, connected(database) as watcher:
        transaction = other.transaction()
        await transaction.start()
        await other.fetch(statement_for(theirs), theirs.to_json())
        waiting = asyncio.create_task(shared.take("a", MINE))
        while not await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            assert not waiting.done()
        await transaction.commit()
        assert not await waiting
        assert await watcher.fetchval("SELECT worker FROM workflow_runs") == THEIRS.id


async def test_claiming_leaves_out_what_somebody_is_just_writing(
    shared: PostgresStore, database: str
) -> None:
    await shared.write(Added(job("a")), Added(job("b", 2.0)))
    async with connected(database) as other, other.transaction():
        await other.execute("UPDATE workflow_runs SET state = 'running' WHERE prompt_id = 'a'")
        assert ids(await shared.claim(MINE, HERE, limit=9)) == ["b"]
    assert ids(await shared.claim(MINE, HERE, limit=9, busy=["b"])) == ["a"]


async def test_the_clock_of_the_database_counts_from_the_moment_of_writing(shared: PostgresStore) -> None:
    await shared.write(Alive(MINE, 3600.0))
    await shared.write(Alive(MINE, 30.0))  # what comes late out of a journal does not shorten a lease
    rows = await shared.connections.fetch(
        "SELECT extract(epoch FROM alive_until - now()) > 3000 AS long, host, pid, place FROM run_workers"
    )
    assert [tuple(row) for row in rows] == [(True, MINE.host, MINE.pid, None)]


LOST = JobResult("a", JobState.LOST, failure=JobFailure("forgotten"))


def again(prompt_id: str) -> Job:
    return replace(job(prompt_id), replaces="a", attempt=2)


@pytest.mark.parametrize("later", ["0", "z"])
async def test_a_job_is_replaced_once_whatever_the_order_of_the_ids(store: Store, later: str) -> None:
    await store.add(job("a"))
    mine = again(later)
    for _ in range(2):
        await store.write(*ending(job("a"), LOST), Added(mine))
    with pytest.raises(StoreError, match="job a was already replaced by another one"):
        await store.write(Added(again("second")))
    assert await store.get("second") is None
    found = await store.successor("a")
    assert found is not None
    assert found.job == mine


async def test_a_job_that_nobody_knows_is_not_replaced(store: Store) -> None:
    with pytest.raises(StoreError, match="no job a is recorded"):
        await store.add(again("b"))
    assert await store.get("b") is None


@pytest.mark.parametrize("end", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
@pytest.mark.parametrize("later", ["0", "z"])
async def test_a_job_that_was_not_lost_after_all_is_not_replaced(
    store: Store, later: str, end: JobState
) -> None:
    await store.add(job("a"))
    await store.finish(job("a"), JobResult("a", end))
    events = (await known(store)).events
    told = JobEvent("a", RESUBMITTED, {"as": later})
    await store.write(*ending(job("a"), LOST), Added(again(later)), told, JobEvent("a", "note"))
    assert await store.get(later) is None
    assert await store.successor("a") is None
    record = await known(store)
    assert (record.state, [event.kind for event in record.events]) == (end, [events[0].kind, "note"])


async def test_a_job_that_has_ended_may_be_sent_again_later(store: Store) -> None:
    await store.add(job("a"))
    await store.finish(job("a"), FAILED)
    await store.write(Added(again("b")), JobEvent("a", RESUBMITTED, {"as": "b"}))
    assert (await known(store, "b")).job.replaces == "a"
    assert [event.kind for event in (await known(store)).events] == ["failed", RESUBMITTED]
