"""One job onto a server, seen from the record: what is written before it leaves, and who sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from graphs import image
from waiting import until

from comfyflow import (
    Ambiguous,
    ComfyClient,
    Job,
    JobState,
    KeyConflict,
    MemoryStore,
    PollSchedule,
    ServerPool,
    ServerUnreachable,
    StoreError,
    Workflow,
    sending,
)
from comfyflow.lease import Lease
from comfyflow.member import Health
from comfyflow.sending import Sender, written
from comfyflow.sim import Sim, stall
from comfyflow.store import Added, Entry, Moved

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)


class Watched(MemoryStore):
    """A record that can be read as it was written."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        await super().write(*entries, lazily=lazily)
        self.entries += entries


def sender(client: ComfyClient | ServerPool, store: MemoryStore, jobs: list[Job] | None = None) -> Sender:
    told = [] if jobs is None else jobs
    lease = Lease(store, 30.0)
    return Sender(client, store, lease, folder=Path("out"), on_job=told.append, allow_partial=False)


@pytest.fixture
async def pool(comfyui: Sim) -> AsyncIterator[ServerPool]:
    async with Sim() as other, ServerPool([comfyui.url, other.url], poll=QUICK) as made:
        yield made


async def test_a_job_is_recorded_where_it_goes_before_it_leaves(pool: ServerPool, comfyui: Sim) -> None:
    store, told = Watched(), list[Job]()
    sending_it = sender(pool, store, told)
    made = sending_it.made(Workflow.load(image()))
    assert (made.server, made.client_id, made.folder) == ("", "", str(Path("out").absolute()))
    job = await sending_it.submit(made)
    [added] = [entry for entry in store.entries if isinstance(entry, Added)]
    assert (added.job.server, added.job.client_id) == (job.server, job.client_id)
    assert job.server in pool.addresses
    assert [one.server for one in told] == [job.server, job.server]


async def test_a_server_that_ended_while_the_job_was_on_its_way_is_left_for_another(
    pool: ServerPool, comfyui: Sim
) -> None:
    store = Watched()
    held = comfyui.faults.add("POST", "/prompt", stall())
    pool.drain(pool.addresses[1])
    going = asyncio.create_task(sender(pool, store).submit(sender(pool, store).made(Workflow.load(image()))))
    await held.met()
    pool.undrain(pool.addresses[1])
    await comfyui.kill()
    pool.bury(comfyui.url)
    job = await going
    assert job.server == pool.addresses[1]
    [moved] = [entry for entry in store.entries if isinstance(entry, Moved)]
    assert moved.job.server == job.server
    record = await store.get(job.prompt_id)
    assert record is not None
    assert (record.job.server, record.state) == (job.server, JobState.QUEUED)
    await comfyui.start()


async def recorded_at(url: str, store: Watched) -> Job:
    """A job that a program which has ended since may have sent."""
    job = Job(str(uuid4()), Workflow.load(image()), "earlier", url, 1.0)
    await store.write(Added(job))
    return job


async def test_a_job_that_may_have_been_sent_stays_with_its_server_while_that_is_only_away(
    comfyui: Sim,
) -> None:
    store = Watched()
    async with Sim() as other, ServerPool([comfyui.url, other.url], poll=QUICK, lost_after=None) as pool:
        job = await recorded_at(comfyui.url, store)
        await comfyui.kill()
        with pytest.raises(ServerUnreachable):
            await sender(pool, store).late(job)
    assert not [entry for entry in store.entries if isinstance(entry, Moved)]
    record = await store.get(job.prompt_id)
    assert record is not None
    assert record.state is JobState.CREATED
    await comfyui.start()


async def is_away(pool: ServerPool, url: str) -> None:
    """Wait until the pool has found out."""
    await until(lambda: Health.AWAY in (one.health for one in pool.servers if one.url == url))


async def test_a_server_that_refuses_is_waited_for_until_it_is_back(pool: ServerPool, comfyui: Sim) -> None:
    store = Watched()
    job = await recorded_at(comfyui.url, store)
    await pool.ready()
    await comfyui.kill()
    sending_it = asyncio.create_task(sender(pool, store).late(job))
    await is_away(pool, comfyui.url)
    await comfyui.start()
    sent = await sending_it
    assert (sent.prompt_id, sent.server) == (job.prompt_id, comfyui.url)
    await pool.wait(sent.prompt_id)
    assert comfyui.executed[sent.prompt_id] == 1


async def test_a_server_that_refuses_is_waited_for_until_it_is_gone(pool: ServerPool, comfyui: Sim) -> None:
    store = Watched()
    job = await recorded_at(comfyui.url, store)
    await pool.ready()
    await comfyui.kill()
    sending_it = asyncio.create_task(sender(pool, store).late(job))
    await is_away(pool, comfyui.url)
    pool.bury(comfyui.url)
    sent = await sending_it
    assert (sent.prompt_id, sent.server) == (job.prompt_id, pool.addresses[1])
    await comfyui.start()


async def test_a_server_that_dies_while_it_takes_a_job_is_waited_for_too(
    pool: ServerPool, comfyui: Sim
) -> None:
    store = Watched()
    await pool.ready()
    pool.drain(pool.addresses[1])
    held = comfyui.faults.add("POST", "/prompt", stall())
    one = sender(pool, store)
    going = asyncio.create_task(one.submit(one.made(Workflow.load(image()))))
    await held.met()
    await comfyui.kill()
    await is_away(pool, comfyui.url)
    await comfyui.start()
    job = await going
    assert job.server == comfyui.url
    await pool.wait(job.prompt_id)
    assert comfyui.executed.total() == 1


async def test_a_job_of_a_server_that_is_not_ours_is_not_sent(pool: ServerPool) -> None:
    job = Job("a", Workflow.load(image()), "client", "http://elsewhere:8188", 1.0)
    with pytest.raises(KeyConflict, match="run it there"):
        await sender(pool, MemoryStore()).late(job)


async def test_another_workflow_that_takes_the_key_in_the_same_moment_is_a_conflict(comfyui: Sim) -> None:
    class Late(Watched):
        async def write(self, *entries: Entry, lazily: bool = False) -> None:
            if any(isinstance(entry, Added) for entry in entries) and not self.entries:
                theirs = Job(made.prompt_id, Workflow.load(image()), "they", comfyui.url, 1.0, "k")
                await super().write(Added(theirs))
            await super().write(*entries, lazily=lazily)

    async with ComfyClient(comfyui.url, poll=QUICK) as client:
        one = sender(client, Late())
        made = one.made(Workflow.load(image()), "k")
        with pytest.raises(KeyConflict, match="has another workflow: use a new key"):
            await one.submit(made)
    assert not comfyui.executed


async def test_a_key_that_another_program_has_added_for_another_server_stays_there(
    pool: ServerPool, comfyui: Sim
) -> None:
    store, other = Watched(), pool.addresses[1]
    one = sender(pool, store)
    made = one.made(Workflow.load(image()), "k")
    pool.drain(other)

    class Late(Watched):
        """Somebody adds the job between our look and our writing."""

        async def write(self, *entries: Entry, lazily: bool = False) -> None:
            if any(isinstance(entry, Added) for entry in entries) and not self.entries:
                await super().write(Added(Job(made.prompt_id, made.workflow, "they", other, 1.0, "k")))
            await super().write(*entries, lazily=lazily)

    job = await sender(pool, late := Late()).submit(made)
    assert job.server == other
    assert not [entry for entry in late.entries if isinstance(entry, Moved)]
    assert not comfyui.executed


async def test_an_outcome_that_takes_too_long_to_write_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "LAST_WORDS", 0.01)
    with pytest.raises(StoreError, match=r"could not be recorded in 0\.01 s"):
        await written(Job("a", None, "", "", 1.0), asyncio.Event().wait())  # type: ignore[arg-type] # never ends


async def test_a_replacement_is_sent_without_a_search_where_doubt_is_no_option(
    comfyui: Sim,
) -> None:
    store = Watched()
    async with ComfyClient(comfyui.url, poll=QUICK, ambiguous=Ambiguous.FAIL) as client:
        one = sender(client, store)
        first = await one.submit(one.made(Workflow.load(image())))
        again = await one.replace(first)
        assert (again.replaces, again.attempt) == (first.prompt_id, 2)
        await client.wait(again.prompt_id)
