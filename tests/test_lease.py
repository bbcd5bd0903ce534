"""A runner's hold on its jobs, in a real PostgreSQL: who may work on what, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from clusters import Cluster, execute
from graphs import image

from comfyflow import JobState, PostgresStore, StoreUnavailable, Workflow
from comfyflow.lease import Lease
from comfyflow.store import Alive, Job, MemoryStore

SERVER = "http://comfyui:8188"


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    async with await PostgresStore.open(database, journal=None) as made:
        yield made


def job(prompt_id: str) -> Job:
    return Job(prompt_id, Workflow.load(image()), "client", SERVER, time.time())


async def claimed(lease: Lease, *, limit: int = 10, besides: tuple[str, ...] = ()) -> list[str]:
    return [record.job.prompt_id for record in await lease.claim([SERVER], limit, besides=besides)]


async def test_the_first_job_brings_the_worker_along_and_the_next_ones_do_not() -> None:
    lease = Lease(MemoryStore(), 30.0)
    first, second = lease.added(job("a")), lease.added(job("b"))
    assert [type(entry).__name__ for entry in first] == ["Alive", "Added"]
    assert first[0] == Alive(lease.worker, 30.0)
    assert [type(entry).__name__ for entry in second] == ["Added"]


async def test_a_living_worker_keeps_its_jobs_and_a_stopped_one_gives_them_up(store: PostgresStore) -> None:
    mine, theirs = Lease(store, 30.0), Lease(store, 30.0)
    await store.write(*mine.added(job("a")))
    assert await claimed(theirs) == []
    assert not await theirs.take(job("a"))
    assert [(held.jobs, held.worker) for held in await theirs.others([SERVER])] == [(1, mine.worker)]
    await mine.stop()
    assert await theirs.others([SERVER]) == []
    assert await claimed(theirs) == ["a"]
    assert await claimed(mine) == []


async def test_what_is_in_hand_is_not_given_out_a_second_time(store: PostgresStore) -> None:
    lease = Lease(store, 30.0)
    await store.write(*lease.added(job("a")))
    await store.write(*lease.added(job("b")))
    with lease.busy("a"), lease.busy("a"):
        assert await claimed(lease) == ["b"]
    assert await claimed(lease, besides=("b",)) == ["a"]


async def test_a_dead_process_of_this_machine_holds_nothing(store: PostgresStore) -> None:
    dead, lease = Lease(store, 3600.0), Lease(store, 30.0)
    dead.worker = replace(dead.worker, place=f"{dead.worker.place}0")  # another process had this id
    await store.write(*dead.added(job("a")))
    assert await lease.more([SERVER])
    assert await lease.take(job("a"))
    assert await claimed(lease) == ["a"]


async def test_a_lease_is_renewed_in_the_background(store: PostgresStore, database: str) -> None:
    lease, other = Lease(store, 0.6), Lease(store, 30.0)
    lease.start()
    await store.write(*lease.added(job("a")))
    assert not await other.more([SERVER])  # it waits until the other one has shown that it lives
    await lease.stop()
    assert execute(database, "SELECT worker FROM run_workers") == [[]]


async def test_who_does_not_renew_is_waited_for_until_the_lease_has_ended(store: PostgresStore) -> None:
    silent, lease = Lease(store, 0.3), Lease(store, 30.0)
    silent.worker = replace(silent.worker, place=None)  # on another machine
    await store.write(*silent.added(job("a")))
    assert await lease.more([SERVER])
    assert await claimed(lease) == ["a"]
    assert not await lease.more([SERVER])


@pytest.mark.parametrize("clock", ["time", "monotonic"])
async def test_who_stood_still_asks_whether_the_job_is_still_theirs(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    slept, other = Lease(store, 30.0), Lease(store, 30.0)
    mine, taken = job("mine"), job("taken")
    await store.write(*slept.added(mine))
    await store.write(*slept.added(taken))
    assert await slept.holds(taken)
    execute(store_dsn(store), "UPDATE run_workers SET alive_until = now()")
    assert await other.take(taken)
    assert await slept.holds(taken)  # it cannot know better: for it no time has passed
    real = getattr(time, clock)
    monkeypatch.setattr(f"comfyflow.lease.time.{clock}", lambda: real() + 31.0)
    assert not await slept.holds(taken)
    assert await slept.holds(mine)


async def test_a_lease_that_lapsed_and_was_renewed_is_no_proof(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, other = Lease(store, 30.0), Lease(store, 30.0)
    taken, mine = job("taken"), job("mine")
    await store.write(*slept.added(taken))
    await store.write(*slept.added(mine))
    execute(store_dsn(store), "UPDATE run_workers SET alive_until = now()")
    assert await other.take(taken)
    real = time.time
    monkeypatch.setattr("comfyflow.lease.time.time", lambda: real() + 31.0)
    await slept._renew()  # what goes on in the background comes first after a sleep
    assert not await slept.holds(taken)
    assert await slept.holds(mine)


def store_dsn(store: PostgresStore) -> str:
    return store.connections.database.dsn


async def test_without_a_database_only_a_lease_that_lasts_is_a_proof(cluster: Cluster) -> None:
    store = await PostgresStore.open(cluster.dsn, journal=None)
    lease = Lease(store, 30.0)
    lease.added(job("mine"))
    await asyncio.to_thread(cluster.stop)
    assert await lease.holds(job("mine"))
    with pytest.raises(StoreUnavailable):
        await lease.holds(job("a"))
    with pytest.raises(StoreUnavailable):
        await lease.take(job("a"))
    await lease.stop()
    await store.close()


async def test_a_store_of_one_program_gives_out_what_is_open() -> None:
    store = MemoryStore()
    lease = Lease(store, 30.0)
    await store.write(*lease.added(job("a")))
    await store.advance("a", JobState.RUNNING)
    [record] = await lease.claim([SERVER], 5, besides=())
    assert (record.job.prompt_id, record.state) == ("a", JobState.RUNNING)
    assert await lease.claim([SERVER], 5, besides=("a",)) == []
    assert not await lease.more([SERVER])
    await lease.stop()
