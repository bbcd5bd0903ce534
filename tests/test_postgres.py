"""PostgresStore on a real server: what one write does, and what becomes of it when the server is away."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from clusters import Cluster, connected
from database_road import Road
from graphs import image

from comfyflow import (
    Job,
    JobEvent,
    JobFailure,
    JobRecord,
    JobResult,
    JobState,
    OutputFile,
    SavedFile,
    StoreError,
    StoreUnavailable,
    Workflow,
    contents,
)
from comfyflow.gather import LANES, LOAD
from comfyflow.journal import ANYWHERE, Journal
from comfyflow.postgres import PostgresStore
from comfyflow.rows import batch_of
from comfyflow.store import Accepted, Added, Advanced, Alive, Entry, Kept, Worker, ending

Opener = Callable[..., Coroutine[Any, Any, PostgresStore]]

FILE = SavedFile(OutputFile("2", "x.png"), Path("/out/x.png"), 3, "0" * 64, "image/png")
OTHER = replace(FILE, path=Path("/out/y.png"), sha256="1" * 64)
ROOT = Path("/out")
WORKER = Worker("worker", "host", 7)

_names = itertools.count(1)


def job(prompt_id: str | None = None) -> Job:
    return Job(prompt_id or f"job {next(_names)}", Workflow.load(image()), "client", "http://server", 1.0)


def done(one: Job) -> JobResult:
    return JobResult(one.prompt_id, JobState.SUCCEEDED, (FILE.output,), started_at=1.0, ended_at=2.0)


def failed(one: Job) -> JobResult:
    return JobResult(one.prompt_id, JobState.FAILED, failure=JobFailure("no memory"))


def road_of(one: Job) -> list[tuple[Entry, ...]]:
    """The writes of a job, as the Runner does them."""
    events = [JobEvent(one.prompt_id, kind) for kind in ("submitted", "started", "download_started")]
    return [
        (Added(one),),
        (Accepted(one, one.prompt_id), events[0]),
        (Advanced(one.prompt_id, JobState.RUNNING), events[1], events[2]),
        ending(one, done(one), (FILE,), root=ROOT),
    ]


KINDS = ["submitted", "started", "download_started", "finished"]


async def whole(store: PostgresStore, one: Job) -> bool:
    """Whether all of the road is there, once and in order."""
    record = await store.get(one.prompt_id)
    assert record is not None
    assert (record.job, record.result, record.files) == (one, done(one), (FILE,))
    assert [event.kind for event in record.events] == KINDS
    return True


async def known(store: PostgresStore, one: Job) -> JobRecord:
    record = await store.get(one.prompt_id)
    assert record is not None
    return record


async def everything(store: PostgresStore) -> list[Any]:
    """Every row with the transaction that wrote it: a row that is written again is another one."""
    tables = ("workflow_runs", "run_events", "generated_assets")
    found = [await store.connections.fetch(f"SELECT xmin::text, t.* FROM {name} AS t") for name in tables]
    return [sorted(tuple(map(str, row.values())) for row in rows) for rows in found]


async def execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def locked(dsn: str) -> AsyncIterator[None]:
    """Somebody else has locked the table of runs."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE workflow_runs")
            yield
    finally:
        await connection.close()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
async def road(database: str) -> AsyncIterator[Road]:
    """A way to the database that can be closed."""
    async with Road(database) as opened:
        yield opened


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    """Without a journal: every fault is raised."""
    async with await PostgresStore.open(database, journal=None) as opened:
        yield opened


@pytest.fixture
async def journalled(road: Road, journal: Journal) -> AsyncIterator[PostgresStore]:
    """Over a road that can be closed, and with a journal."""
    async with await PostgresStore.open(road.dsn, journal=journal) as opened:
        yield opened


# -- one write ----------------------------------------------------------------------------------------------


async def test_a_job_is_four_round_trips(road: Road) -> None:
    async with await PostgresStore.open(road.dsn, journal=None) as store:
        for one in (job(), job()):
            road.round_trips = 0  # the first job prepares the statement
            add, accepted, running, end = road_of(one)
            await store.write(Alive(WORKER, 30.0), *add)  # the worker comes along
            await store.write(*accepted)
            for entry in running:
                await store.write(entry, lazily=True)
            await store.write(*end)
    assert road.round_trips <= 4


async def test_a_new_job_is_told_by_the_round_trip_that_adds_it(road: Road, store: PostgresStore) -> None:
    async with await PostgresStore.open(road.dsn, journal=None) as over_the_road:
        assert await over_the_road.write_new(Added(job()))
        before, mine = road.round_trips, job()
        assert await over_the_road.write_new(Added(mine))
        assert road.round_trips == before + 1
        road.cut_at = road.round_trips + 1  # the answer is lost, and asked for again
        lost = job()
        assert not await over_the_road.write_new(Added(lost))
    assert {await store.get(one.prompt_id) is None for one in (mine, lost)} == {False}


async def test_what_only_the_journal_knows_is_not_called_new(
    road: Road, journalled: PostgresStore, journal: Journal
) -> None:
    await road.close()
    assert not await journalled.write_new(Added(job()))
    assert journal.summary().records == 1
    await road.open()


async def test_writing_everything_again_changes_nothing(store: PostgresStore) -> None:
    writes = road_of(job())
    for entries in writes:
        await store.write(*entries)
    before = await everything(store)
    for entries in [*writes, *itertools.chain(*zip(writes)), tuple(itertools.chain(*writes))]:
        await store.write(*entries)
    assert await everything(store) == before


async def test_a_second_outcome_changes_nothing(store: PostgresStore) -> None:
    one = job()
    await store.write(Added(one), *ending(one, done(one), (FILE,)))
    before = await everything(store)
    await store.write(*ending(one, failed(one), (OTHER,)))
    assert await everything(store) == before


async def test_the_same_outcome_may_bring_files_later(store: PostgresStore) -> None:
    one = job()
    await store.write(Added(one), *ending(one, done(one)))
    await store.write(*ending(one, done(one), (FILE, OTHER), root=ROOT))
    record = await known(store, one)
    assert (record.files, len(record.events)) == ((FILE, OTHER), 1)


async def test_a_line_that_comes_with_a_second_outcome_is_not_written(store: PostgresStore) -> None:
    one = job()
    await store.add(one)
    await store.connections.execute("UPDATE workflow_runs SET state = 'succeeded'")
    await store.write(*ending(one, failed(one), (FILE,)))
    record = await known(store, one)
    assert (record.state, record.events, record.files) == (JobState.SUCCEEDED, (), ())


async def test_what_others_left_open_is_filled_in(store: PostgresStore) -> None:
    one = job()
    insert = "INSERT INTO workflow_runs (prompt_id, server, state) VALUES ($1, 'theirs', 'succeeded')"
    await store.connections.execute(insert, one.prompt_id)
    for entries in road_of(one):
        await store.write(*entries)
    record = await known(store, one)
    assert (record.job.workflow, record.job.client_id, record.job.server) == (
        one.workflow,
        "client",
        "theirs",
    )
    assert (record.state, record.result, record.files) == (JobState.SUCCEEDED, done(one), (FILE,))
    [row] = await store.connections.fetch("SELECT * FROM workflow_runs")
    empty = {name for name, value in row.items() if value is None}
    assert empty == {"prompt_text", "error", "key", "worker", "replaces", "folder"}


async def test_a_success_takes_the_place_of_an_error_that_others_noted_on_the_way(
    store: PostgresStore,
) -> None:
    one = job()
    await store.add(one)
    await store.connections.execute("UPDATE workflow_runs SET error = '{}', state = 'running'")
    await store.finish(one, done(one))
    assert (await known(store, one)).result == done(one)


async def test_a_file_that_others_have_listed_gets_our_metadata_too(store: PostgresStore) -> None:
    one = job()
    insert = "INSERT INTO generated_assets (prompt_id, output_path, metadata) VALUES ($1, 'x.png', $2)"
    await store.connections.execute(insert, one.prompt_id, '{"mood": "blue", "bytes": 1}')
    await store.write(Added(one), *ending(one, done(one), (FILE,), root=ROOT))
    [row] = await store.connections.fetch(
        "SELECT metadata ->> 'mood', metadata ->> 'bytes' FROM generated_assets"
    )
    assert tuple(row) == ("blue", "3")


async def test_a_table_of_assets_of_someone_elses_making_is_used(empty_database: str) -> None:
    await execute(
        empty_database,
        "CREATE TABLE generated_assets (id serial PRIMARY KEY, prompt_id varchar(100), prompt_text varchar,"
        " output_path varchar(500), metadata jsonb, created_at timestamp)",
        "INSERT INTO generated_assets (prompt_id, output_path, metadata) VALUES ('a', 'x.png', '[1]')",
    )
    one = job("a")
    async with await PostgresStore.open(empty_database, migrate=True, journal=None) as store:
        for _ in range(2):
            await store.write(Added(one), *ending(one, done(one), (FILE, OTHER), root=ROOT))
        assert (await known(store, one)).files == (FILE, OTHER)


async def test_a_renamed_job_keeps_its_events_and_its_road(store: PostgresStore) -> None:
    one, theirs = job(), "an id of theirs"
    await store.add(one)
    await store.log(JobEvent(one.prompt_id, "note"))
    for _ in range(2):
        await store.write(Accepted(one, theirs), JobEvent(theirs, "submitted", event_id="1"))
    record = await known(store, replace(one, prompt_id=theirs))
    assert [event.kind for event in record.events] == ["note", "submitted"]
    assert await store.get(one.prompt_id) is None


@pytest.mark.parametrize(
    ("entry", "said"),
    [(JobEvent("a", "k" * 201), "breaks"), (Advanced("a", JobState.RUNNING, at=1e30), "value")],
)
async def test_what_no_table_holds_is_refused_and_not_journalled(
    journalled: PostgresStore, journal: Journal, entry: Entry, said: str
) -> None:
    await journalled.add(job("a"))
    with pytest.raises(StoreError, match=said):
        await journalled.write(entry)
    assert journal.summary().records == 0


async def test_long_and_strange_texts_are_stored(store: PostgresStore) -> None:
    graph: Any = image()
    graph["7"] = {"class_type": "CLIPTextEncode", "inputs": {"prompt": "word " * 200_000 + "\0\ud800 é😀"}}
    graph["8"] = {"class_type": "Note", "inputs": {f"input {n}": "x" * 1000 for n in range(5000)}}
    one = replace(job(), workflow=Workflow.load(graph))
    result = JobResult(one.prompt_id, JobState.FAILED, failure=JobFailure("\0\udfff", traceback=("\0",)))
    await store.write(Added(one), *ending(one, result, (FILE,)))
    record = await known(store, one)
    assert record.result is not None
    assert record.result.failure == JobFailure("\ufffd\ufffd", traceback=("\ufffd",))
    assert record.job.workflow is not None
    assert record.job.workflow.nodes["8"] == graph["8"]
    [row] = await store.connections.fetch("SELECT prompt_text FROM generated_assets")
    assert (len(row[0]), row[0][-5:]) == (1_000_005, "\ufffd\ufffd é😀")


async def test_an_id_with_a_nul_is_found_again(store: PostgresStore) -> None:
    await store.add(job("a\0b"))
    record = await store.get("a\0b")
    assert record is not None
    assert record.job.prompt_id == "a\ufffdb"


async def test_unfinished_jobs_come_in_pages(store: PostgresStore) -> None:
    jobs = [job(f"{number:04}") for number in range(450)]
    await store.write(*map(Added, jobs))
    assert [one.prompt_id async for one in store.unfinished()] == [one.prompt_id for one in jobs]


async def test_bytes_are_kept_up_to_the_limit(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    small, large = replace(FILE, path=path, sha256=digest), replace(FILE, size=101)
    async with await PostgresStore.open(database, journal=None, content_limit=100) as store:
        await store.write(Kept(small), Kept(large))
        [row] = await store.connections.fetch("SELECT sha256, data FROM asset_contents")
    assert tuple(row) == (digest, b"abc")
    assert "larger than the limit" in caplog.text


@asynccontextmanager
async def storing(dsn: str, folder: Path) -> AsyncIterator[Kept]:
    """A file whose bytes somebody else is just storing."""
    path = folder / "x.png"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await contents.take_lock(connection, digest)
            yield Kept(replace(FILE, path=path, sha256=digest))
    finally:
        await connection.close()


async def test_bytes_that_wait_leave_connections_for_rows(
    database: str, journal: Journal, tmp_path: Path
) -> None:
    async with await PostgresStore.open(database, journal=journal, max_size=2, patience=2.0) as store:
        async with storing(database, tmp_path) as kept:
            keeping = [asyncio.create_task(store.write(kept)) for _ in range(3)]
            await blocked(database, 1)
            await store.add(job())
            assert store.fault is None
        await asyncio.gather(*keeping)
        assert not journal.waits_for(None)


async def test_bytes_are_kept_later_when_their_writer_is_cancelled(
    database: str, journal: Journal, tmp_path: Path
) -> None:
    async with await PostgresStore.open(database, journal=journal) as store:
        async with storing(database, tmp_path) as kept:
            await cancelled(store.write(kept), database)
        await store.flush()
        assert len(await store.connections.fetch("SELECT FROM asset_contents")) == 1


# -- many at once -------------------------------------------------------------------------------------------


async def test_large_graphs_are_not_gathered_into_one_statement(database: str, store: PostgresStore) -> None:
    """Making JSON of all of them at once would stop everything else in this process for too long."""
    node = {"class_type": "EmptyImage", "inputs": {}}
    graph = Workflow.load({str(number): node for number in range(LOAD // 2 + 1)})
    large = [replace(job(f"large {number}"), workflow=graph) for number in range(3)]
    async with locked(database):
        tasks = [asyncio.create_task(store.add(one)) for one in [*(job() for _ in range(LANES)), *large]]
        await blocked(database, LANES)
    await asyncio.gather(*tasks)
    rows = await store.connections.fetch(
        "SELECT DISTINCT xmin::text FROM workflow_runs WHERE prompt_id LIKE 'large%'"
    )
    assert len(rows) == 3


async def test_a_hundred_jobs_at_once(store: PostgresStore) -> None:
    jobs = [job() for _ in range(100)]

    async def run(one: Job) -> None:
        for entries in road_of(one):
            await store.write(*entries)

    await asyncio.gather(*map(run, jobs))
    assert all([await whole(store, one) for one in jobs])


async def test_writers_of_one_job_never_take_it_back(database: str, store: PostgresStore) -> None:
    """Each in its own order, two stores: the trigger of the schema has nothing to refuse."""
    one = job()
    async with await PostgresStore.open(database, journal=None) as second:
        entries = [(Added(one), *write) for write in road_of(one)] * 5
        await asyncio.gather(
            *(store.write(*some) for some in entries), *(second.write(*some) for some in reversed(entries))
        )
        record = await known(second, one)
    assert (record.state, record.result, len(record.events)) == (JobState.SUCCEEDED, done(one), 4)


async def blocked(dsn: str, writes: int) -> None:
    """Wait until that many writes stand in the queue for a lock."""
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(10):
            while await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < writes:
                pass
    finally:
        await connection.close()


async def test_writes_that_go_together_fail_apart(database: str, store: PostgresStore) -> None:
    jobs = [job() for _ in range(6)]
    await store.write(*map(Added, jobs))
    entries: list[Entry] = [Advanced(one.prompt_id, JobState.RUNNING) for one in jobs]
    entries[3] = JobEvent("nobody", "note")
    async with locked(database):
        tasks = [asyncio.create_task(store.write(entry)) for entry in entries]
        await blocked(database, LANES)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends].count(type(None)) == 5
    assert "no job nobody" in str(ends[3])
    running = [(await known(store, one)).state is JobState.RUNNING for one in jobs]
    assert running == [True, True, True, False, True, True]


async def test_a_wrong_first_of_a_group_is_alone_with_it(database: str, store: PostgresStore) -> None:
    jobs = [job() for _ in range(4)]
    await store.write(*map(Added, jobs))
    entries: list[Entry] = [Advanced(one.prompt_id, JobState.RUNNING) for one in jobs]
    entries.insert(1, JobEvent("nobody", "note"))
    async with locked(database):
        tasks = [asyncio.create_task(store.write(entry)) for entry in entries]
        await blocked(database, LANES)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [number for number, end in enumerate(ends) if end is not None] == [1]
    assert all([(await known(store, one)).state is JobState.RUNNING for one in jobs])


async def test_a_group_outlives_its_first_writer(database: str, store: PostgresStore) -> None:
    jobs = [job() for _ in range(5)]
    await store.write(*map(Added, jobs))
    async with locked(database):
        writes = (store.advance(one.prompt_id, JobState.RUNNING) for one in jobs)
        tasks = [asyncio.create_task(write) for write in writes]
        await blocked(database, LANES)
        tasks[1].cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends].count(asyncio.CancelledError) == 1
    running = [(await known(store, one)).state is JobState.RUNNING for one in jobs]
    assert running == [number != 1 for number in range(5)]


# -- lazily -------------------------------------------------------------------------------------------------


async def test_what_is_lazy_goes_along_with_the_next_write(database: str, store: PostgresStore) -> None:
    one = job()
    await store.add(one)
    await store.write(Advanced(one.prompt_id, JobState.RUNNING), lazily=True)
    async with await PostgresStore.open(database, journal=None) as second:
        assert (await known(second, one)).state is JobState.CREATED
        await store.log(JobEvent(one.prompt_id, "note"))
        assert (await known(second, one)).state is JobState.RUNNING


async def test_what_is_lazy_is_written_after_a_while(database: str) -> None:
    one = job()
    async with (
        await PostgresStore.open(database, journal=None, linger=0.01) as store,
        await PostgresStore.open(database, journal=None) as second,
    ):
        await store.add(one)
        await store.write(Advanced(one.prompt_id, JobState.RUNNING), lazily=True)
        async with asyncio.timeout(10):
            while (await known(second, one)).state is not JobState.RUNNING:
                pass


async def test_what_is_lazy_while_lazy_entries_are_written_follows_them(database: str) -> None:
    one = job()
    async with (
        await PostgresStore.open(database, journal=None, linger=0.01) as store,
        await PostgresStore.open(database, journal=None) as second,
    ):
        await store.add(one)
        async with locked(database):
            await store.write(Advanced(one.prompt_id, JobState.QUEUED), lazily=True)
            await blocked(database, 1)
            await store.write(Advanced(one.prompt_id, JobState.RUNNING), lazily=True)
        async with asyncio.timeout(5):
            while (await known(second, one)).state is not JobState.RUNNING:
                pass


async def test_closing_writes_what_is_lazy(database: str, store: PostgresStore) -> None:
    one = job()
    second = await PostgresStore.open(database, journal=None)
    await second.add(one)
    await second.write(Advanced(one.prompt_id, JobState.RUNNING), lazily=True)
    await second.close()
    await second.close()
    assert (await known(store, one)).state is JobState.RUNNING
    with pytest.raises(StoreError, match="closed"):
        await second.add(one)


async def test_a_job_is_never_added_lazily(database: str, store: PostgresStore) -> None:
    one = job()
    await store.write(Added(one), lazily=True)
    async with await PostgresStore.open(database, journal=None) as second:
        assert await second.get(one.prompt_id) is not None


async def test_a_wrong_lazy_entry_harms_no_other(
    store: PostgresStore, caplog: pytest.LogCaptureFixture
) -> None:
    one = job()
    await store.add(one)
    await store.write(JobEvent("nobody", "note"), lazily=True)
    await store.write(JobEvent(one.prompt_id, "note"), lazily=True)
    await store.advance(one.prompt_id, JobState.RUNNING)
    record = await known(store, one)
    assert (record.state, len(record.events)) == (JobState.RUNNING, 1)
    assert "no job nobody" in caplog.text


async def test_without_a_journal_what_is_lazy_waits_for_the_next_write(
    road: Road, caplog: pytest.LogCaptureFixture
) -> None:
    one = job()
    async with await PostgresStore.open(road.dsn, journal=None, linger=0.01) as store:
        await store.add(one)
        await road.close()
        await store.write(JobEvent(one.prompt_id, "note"), lazily=True)
        async with asyncio.timeout(10):
            while "not recorded yet" not in caplog.text:
                await asyncio.to_thread(lambda: None)
        with pytest.raises(StoreUnavailable):
            await store.advance(one.prompt_id, JobState.RUNNING)
        await road.open()
        await store.advance(one.prompt_id, JobState.RUNNING)
        assert len((await known(store, one)).events) == 1


# -- the server is away -------------------------------------------------------------------------------------


async def test_a_server_that_stops_at_any_of_the_writes_gets_all_of_them(
    cluster: Cluster, journal: Journal
) -> None:
    for stop in range(4):
        one = job()
        async with await PostgresStore.open(cluster.dsn, journal=journal) as store:
            for number, entries in enumerate(road_of(one)):
                if number == stop:
                    await asyncio.to_thread(cluster.stop)
                await store.write(*entries)
            assert [type(fault) for fault in [store.fault]] == [StoreUnavailable]
            assert journal.summary().records == 4 - stop
            await asyncio.to_thread(cluster.start)
            assert await store.flush() == 4 - stop
            assert store.fault is None
            assert await whole(store, one)
        assert journal.summary().records == 0


@pytest.mark.parametrize("lost", range(4))
async def test_an_answer_that_is_lost_does_not_do_anything_twice(
    road: Road, journalled: PostgresStore, journal: Journal, lost: int
) -> None:
    one = job()
    for number, entries in enumerate(road_of(one)):
        road.swallow = number == lost
        await journalled.write(*entries)
    road.swallow = False
    assert journal.summary().records == 4 - lost
    await journalled.flush()
    assert await whole(journalled, one)


async def test_without_a_journal_a_server_that_is_away_is_an_error(road: Road) -> None:
    async with await PostgresStore.open(road.dsn, journal=None) as store:
        await road.close()
        with pytest.raises(StoreUnavailable):
            await store.add(job())
        assert await store.flush() == 0


async def test_a_server_that_was_away_is_left_alone_for_a_while(
    road: Road, journalled: PostgresStore, journal: Journal
) -> None:
    first, second, *_ = road_of(job())
    await road.close()
    await journalled.write(*first)
    await road.open()
    before = road.round_trips
    await journalled.write(*second)
    assert (journal.summary().records, road.round_trips) == (2, before)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyflow.postgres.FIRST_PAUSE", 0.0)


async def test_the_next_write_after_that_catches_up(
    no_pause: None, road: Road, journalled: PostgresStore, journal: Journal
) -> None:
    one = job()
    first, second, *others = road_of(one)
    await road.close()
    await journalled.write(*first)
    await journalled.write(*second)
    await road.open()
    for number, entries in enumerate(others):
        await journalled.write(*entries)
        assert (number, journalled.fault, journal.summary().records) == (number, None, 0)
    assert await whole(journalled, one)


async def test_jobs_at_once_lose_nothing_when_the_road_comes_and_goes(
    no_pause: None, road: Road, journalled: PostgresStore, journal: Journal
) -> None:
    jobs = [job() for _ in range(60)]
    faults: list[StoreError] = []

    async def run(one: Job) -> None:
        for entries in road_of(one):
            await journalled.write(*entries)
            faults.extend(filter(None, [journalled.fault]))

    async def come_and_go() -> None:
        for _ in range(3):
            await road.close()
            while not (await asyncio.to_thread(journal.summary)).records and not faults:
                pass
            faults.extend(filter(None, [journalled.fault]))
            await road.open()

    await asyncio.gather(*map(run, jobs), come_and_go())
    await journalled.flush()
    assert faults
    assert all([await whole(journalled, one) for one in jobs])


async def test_a_locked_table_does_not_hold_a_job_up(database: str, journal: Journal) -> None:
    one = job()
    async with await PostgresStore.open(database, journal=journal, lock_timeout=0.05) as store:
        async with locked(database):
            await store.add(one)
            assert journal.summary().records == 1
            assert isinstance(store.fault, StoreUnavailable)
        await store.flush()
        assert (await known(store, one)).job == one


async def test_a_server_that_says_nothing_does_not_hold_a_job_up(database: str, journal: Journal) -> None:
    one = job()
    async with await PostgresStore.open(database, journal=journal, patience=0.1) as store:
        async with locked(database):
            await store.add(one)
            assert journal.summary().records == 1
            assert "did not answer within 0.1 s" in str(store.fault)
        await store.flush()
        assert (await known(store, one)).job == one


async def cancelled(work: Coroutine[Any, Any, None], dsn: str) -> None:
    """Cancel a write that stands in the queue for a lock."""
    task = asyncio.create_task(work)
    await blocked(dsn, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_outcome_is_not_lost_when_its_writer_is_cancelled(database: str, journal: Journal) -> None:
    one = job()
    async with await PostgresStore.open(database, journal=journal) as store:
        await store.add(one)
        await store.write(Advanced(one.prompt_id, JobState.RUNNING), lazily=True)
        async with locked(database):
            await cancelled(store.finish(one, done(one), (FILE,), root=ROOT), database)
        record = await known(store, one)
        assert (record.result, record.files) == (done(one), (FILE,))


async def test_a_cancelled_write_that_is_no_outcome_has_happened_or_not(
    database: str, journal: Journal
) -> None:
    one = job()
    async with await PostgresStore.open(database, journal=journal) as store:
        await store.add(one)
        await store.write(JobEvent(one.prompt_id, "lazy"), lazily=True)
        async with locked(database):
            await cancelled(store.log(JobEvent(one.prompt_id, "hasty")), database)
        assert journal.summary().records == 0
        assert [event.kind for event in (await known(store, one)).events] == ["lazy"]


async def test_closing_journals_what_is_lazy_when_the_server_is_away(
    database: str, road: Road, journal: Journal
) -> None:
    one = job()
    store = await PostgresStore.open(road.dsn, journal=journal)
    await store.add(one)
    await store.write(Advanced(one.prompt_id, JobState.RUNNING), lazily=True)
    await road.close()
    await store.close()
    assert journal.summary().records == 1
    async with await PostgresStore.open(database, journal=journal) as second:
        await second.flush(everything=True)
        assert (await known(second, one)).state is JobState.RUNNING


async def test_an_outcome_that_is_refused_is_raised_and_set_aside(
    empty_database: str, journal: Journal
) -> None:
    """A table generated_assets of somebody else's making is used as it is."""
    columns = (
        "prompt_id text, prompt_text text, output_path varchar(9), metadata jsonb, created_at timestamptz"
    )
    await execute(empty_database, f"CREATE TABLE generated_assets (id serial PRIMARY KEY, {columns})")
    one = job()
    long = replace(FILE, path=ROOT / "0123456789.png")
    async with await PostgresStore.open(empty_database, migrate=True, journal=journal) as store:
        await store.add(one)
        with pytest.raises(StoreError, match="too short"):
            await store.finish(one, done(one), (long,), root=ROOT)
    assert (journal.summary().records, journal.summary().set_aside) == (0, 1)
    (aside,) = journal.folder.glob("*.aside")
    assert "too short" in aside.read_text().partition("\n")[0]
    assert "0123456789.png" in aside.read_text()


# -- opening ------------------------------------------------------------------------------------------------


async def test_a_database_that_must_be_there_is_an_error_when_it_is_not(road: Road) -> None:
    await road.close()
    with pytest.raises(StoreUnavailable):
        await PostgresStore.open(road.dsn, journal=None)


async def test_a_database_that_need_not_be_there_gets_its_record_later(road: Road, journal: Journal) -> None:
    one = job()
    await road.close()
    async with await PostgresStore.open(road.dsn, journal=journal, required=False) as store:
        assert isinstance(store.fault, StoreUnavailable)
        for entries in road_of(one):
            await store.write(*entries)
        with pytest.raises(StoreUnavailable):
            await store.get(one.prompt_id)
        await road.open()
        assert await whole(store, one)


async def test_what_waits_is_written_at_the_next_opening(road: Road, journal: Journal) -> None:
    one = job()
    first, *others = road_of(one)
    journal.append(batch_of(first), ANYWHERE)
    async with await PostgresStore.open(road.dsn, journal=journal) as store:
        assert journal.summary().records == 0
        for entries in others:
            await store.write(*entries)
        assert await whole(store, one)


async def test_a_database_without_tables_refuses_and_the_journal_takes_it(
    empty_database: str, journal: Journal
) -> None:
    one = job()
    with pytest.raises(StoreError, match="db upgrade"):
        await PostgresStore.open(empty_database, journal=journal)
    async with await PostgresStore.open(empty_database, journal=journal, required=False) as store:
        assert not isinstance(store.fault, StoreUnavailable)
        await store.add(one)
        assert journal.summary().records == 1
    async with await PostgresStore.open(empty_database, journal=journal, migrate=True) as store:
        assert (await known(store, one)).job == one


async def test_a_refused_password_is_told_without_it_and_the_journal_takes_the_record(
    cluster: Cluster, journal: Journal
) -> None:
    dsn = cluster.dsn.replace("comfyflow:", "comfyflow:not-", 1)
    async with await PostgresStore.open(dsn, journal=journal, required=False) as store:
        await store.add(job())
        assert "not-" not in str(store.fault)
        assert not isinstance(store.fault, StoreUnavailable)
    assert journal.summary().records == 1


async def test_what_no_database_can_take_does_not_block_the_journal(
    database: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    one = job()
    for entries in ([JobEvent("nobody", "note")], [Added(one)], [JobEvent(one.prompt_id, "k" * 201)]):
        journal.append(batch_of(entries), ANYWHERE)
    async with await PostgresStore.open(database, journal=journal) as store:
        assert (await known(store, one)).job == one
    assert (journal.summary().records, journal.summary().set_aside) == (0, 2)
    assert caplog.text.count("cannot be used") == 2


async def test_what_waits_for_another_database_is_left_alone_until_asked(
    journalled: PostgresStore, journal: Journal
) -> None:
    one = job()
    journal.append(batch_of([Added(one)]), "elsewhere:5432/x")
    assert await journalled.flush() == 0
    assert await journalled.flush(everything=True) == 1
    assert (await known(journalled, one)).job == one


async def test_a_flush_waits_for_that_of_another_process(journalled: PostgresStore, journal: Journal) -> None:
    one = job()
    journal.append(batch_of([Added(one)]), ANYWHERE)
    with journal.draining(None):
        flush = asyncio.create_task(journalled.flush())
        done, _ = await asyncio.wait([flush], timeout=0.05)
        assert not done
    assert await flush == 1


async def test_a_flush_does_not_wait_for_ever_for_another_process(
    journalled: PostgresStore, journal: Journal
) -> None:
    journal.append(batch_of([Added(job())]), ANYWHERE)
    with journal.draining(None), pytest.raises(StoreUnavailable, match="another process"):
        await journalled.flush(wait=0.01)
    assert await journalled.flush() == 1


async def test_while_another_process_flushes_the_journal_goes_on_growing(
    database: str, journal: Journal
) -> None:
    one = job()
    journal.append(batch_of([Added(job())]), ANYWHERE)
    with journal.draining(None):
        async with await PostgresStore.open(database, journal=journal) as store:
            await store.add(one)
    assert journal.summary().records == 2


async def test_a_journal_that_cannot_be_used_matters_only_when_it_is_needed(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    journal = Journal(tmp_path / "file")
    async with await PostgresStore.open(road.dsn, journal=journal) as store:
        await store.add(job())
        await road.close()
        with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match="COMFYFLOW_STATE"):
            await store.add(job())


async def test_a_job_that_others_sent_again_is_no_case_for_people(database: str, tmp_path: Path) -> None:
    lost = JobResult("old", JobState.LOST, failure=JobFailure("forgotten"))
    old = job("old")

    def again(name: str) -> tuple[Entry, ...]:
        return (*ending(old, lost), Added(replace(old, prompt_id=name, replaces="old", attempt=2)))

    journal = Journal(tmp_path)
    async with await PostgresStore.open(database, journal=journal) as store:
        await store.add(old)
        await store.write(*again("first"))
        with pytest.raises(StoreError, match="job old was already replaced by another one"):
            await store.write(*again("second"))
        journal.append(batch_of(again("third")), store.connections.database.target)
        assert await store.flush() == 0
        assert (await known(store, old)).state is JobState.LOST
    assert (journal.summary().records, journal.summary().set_aside) == (0, 0)


# -- who works on what, while the database or the journal is out of reach ------------------------------------


async def test_what_this_program_has_in_the_journal_is_there_before_a_job_is_asked_for(
    database: str, journal: Journal
) -> None:
    """Another process is just writing it: then its answer is waited for."""
    old, new = job("old"), replace(job("new"), replaces="old", attempt=2)
    journal.append(batch_of([Added(old), Added(new, WORKER.id)]), ANYWHERE)
    draining = journal.draining(None)
    with draining:
        async with await PostgresStore.open(database, journal=journal) as store:
            taking = asyncio.create_task(store.take("new", WORKER))
            finding = asyncio.create_task(store.successor("old"))
            done, _ = await asyncio.wait([taking, finding], timeout=0.05)
            assert not done
            draining.__exit__(None, None, None)
            found = await finding
            assert (await taking, found and found.job) == (True, new)


async def test_what_another_program_left_in_the_journal_is_there_before_a_job_is_asked_for(
    database: str, journal: Journal
) -> None:
    mine = job("a")
    async with await PostgresStore.open(database, journal=journal) as store:
        journal.append(batch_of([Added(mine)]), ANYWHERE)
        assert await store.take("a", WORKER)
        assert journal.summary().records == 0
        journal.append(batch_of([Added(replace(mine, prompt_id="b", replaces="a"))]), ANYWHERE)
        assert await store.successor("a") is not None


async def test_a_process_that_hangs_with_the_journal_is_no_answer(database: str, journal: Journal) -> None:
    journal.append(batch_of([Added(job("a"))]), ANYWHERE)
    with journal.draining(None):
        async with await PostgresStore.open(database, journal=journal, patience=0.05) as store:
            for asking in (store.take("a", WORKER), store.successor("a")):
                with pytest.raises(StoreUnavailable, match="another process"):
                    await asking
            assert await store.claim(WORKER, "http://server", limit=9) == []  # others are not waited for


def questions(store: PostgresStore) -> list[Coroutine[Any, Any, Any]]:
    return [
        store.renew(WORKER, 30.0),
        store.retire(WORKER),
        store.take("a", WORKER),
        store.claim(WORKER, "http://server", limit=1),
        store.holders("http://server"),
        store.successor("a"),
    ]


@pytest.mark.parametrize("with_journal", [True, False])
async def test_who_works_on_what_is_never_journalled(
    road: Road, journal: Journal, with_journal: bool
) -> None:
    async with await PostgresStore.open(road.dsn, journal=journal if with_journal else None) as store:
        await road.close()
        for question in questions(store):
            with pytest.raises(StoreUnavailable):
                await question
        await road.open()
        assert [await question for question in questions(store)] == [None, None, False, [], [], None]
    assert journal.summary().records == 0


async def test_tables_of_an_older_comfyflow_are_told(empty_database: str, journal: Journal) -> None:
    for kept in (journal, None):
        async with await PostgresStore.open(empty_database, journal=kept, required=False) as store:
            for question in (*questions(store), store.get("a")):
                with pytest.raises(StoreError, match="run `comfyflow db upgrade`"):
                    await question


async def test_an_answer_that_is_lost_gives_no_job_away_and_none_twice(road: Road, database: str) -> None:
    async with await PostgresStore.open(road.dsn, journal=None) as store, connected(database) as watcher:
        await store.write(Added(job("a")), Added(job("b")))
        await store.renew(WORKER, 30.0)
        cuts = 0
        while road.round_trips >= road.cut_at:  # at each of its round trips, until it has no more
            cuts += 1
            road.cut_at = road.round_trips + cuts
            found = await store.claim(WORKER, "http://server", limit=1)
            held = await watcher.fetch(
                "UPDATE workflow_runs SET worker = NULL WHERE worker IS NOT NULL RETURNING prompt_id"
            )
            assert [record.job.prompt_id for record in found] == [row["prompt_id"] for row in held] == ["a"]
        assert cuts > 5


async def test_a_lease_counts_from_the_moment_in_which_the_journal_is_written(
    road: Road, journalled: PostgresStore
) -> None:
    await road.close()
    await journalled.write(Alive(WORKER, 30.0), Added(job("a"), WORKER.id))
    await road.open()
    await journalled.flush()
    [held] = await journalled.holders("http://server")
    assert (held.worker, held.jobs, 29.0 < held.left <= 30.0) == (WORKER, 1, True)
