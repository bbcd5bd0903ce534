"""Stores: the same bodies for every one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
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
from comfyflow.store import Added, Advanced, ending


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
