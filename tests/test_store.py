"""Stores: the same bodies for every one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import image

from comfyflow import (
    Job,
    JobEvent,
    JobResult,
    JobState,
    MemoryStore,
    OutputFile,
    SavedFile,
    Store,
    StoreError,
    Workflow,
)


@pytest.fixture
def store() -> Store:
    return MemoryStore()


def job(prompt_id: str = "a", created_at: float = 1.0) -> Job:
    return Job(prompt_id, Workflow.load(image()), "client", "http://server", created_at)


FILE = SavedFile(OutputFile("2", "x.png"), Path("/x.png"), 3, "0" * 64, "image/png")
DONE = JobResult("a", JobState.SUCCEEDED, (FILE.output,))


async def test_a_job_is_known_before_it_is_sent(store: Store) -> None:
    mine = job()
    await store.add(mine)
    await store.add(mine)
    record = await store.get("a")
    assert record is not None
    assert (record.job, record.state, record.result) == (mine, JobState.CREATED, None)
    assert await store.get("b") is None


async def test_an_id_belongs_to_one_job(store: Store) -> None:
    await store.add(job())
    with pytest.raises(StoreError, match="new prompt id"):
        await store.add(job(created_at=2.0))


async def test_states_only_climb(store: Store) -> None:
    await store.add(job())
    for state in (JobState.RUNNING, JobState.QUEUED):
        await store.advance("a", state)
        record = await store.get("a")
        assert record is not None
        assert record.state is JobState.RUNNING


async def test_a_server_may_give_another_id(store: Store) -> None:
    mine = job()
    await store.add(mine)
    await store.accepted(mine, "theirs")
    record = await store.get("theirs")
    assert record is not None
    assert (record.state, record.job.prompt_id) == (JobState.QUEUED, "theirs")
    assert await store.get("a") is None


async def test_there_is_one_outcome(store: Store) -> None:
    await store.add(job())
    await store.finish("a", DONE, (FILE,))
    await store.finish("a", JobResult("a", JobState.FAILED), ())
    await store.advance("a", JobState.LOST)
    await store.log(JobEvent("a", "finished", {"files": 1}))
    record = await store.get("a")
    assert record is not None
    assert (record.state, record.result, record.files) == (JobState.SUCCEEDED, DONE, (FILE,))
    assert [event.kind for event in record.events] == ["finished"]


async def test_unfinished_jobs_are_listed_oldest_first(store: Store) -> None:
    jobs = [job(name) for name in "abc"]
    for one in jobs:
        await store.add(one)
    await store.finish("b", DONE, ())
    assert [one async for one in store.unfinished()] == [jobs[0], jobs[2]]


async def test_an_unknown_job_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match="no job x"):
        await store.advance("x", JobState.RUNNING)
