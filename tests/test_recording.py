"""Which store a command writes to: a database, the journal, or nothing, and it is told which."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from clusters import Cluster, execute, restricted, with_database, with_user
from graphs import image

from comfyflow import (
    Archive,
    Job,
    JobState,
    Journal,
    MemoryStore,
    OutputFile,
    PostgresMissing,
    PostgresStore,
    RunFilter,
    SavedFile,
    StoreError,
    StoreUnavailable,
    UsageError,
    Workflow,
)
from comfyflow.journal import ANYWHERE
from comfyflow.recording import NO_ADDRESS, reading, recording
from comfyflow.rows import batch_of
from comfyflow.store import Added, Alive, IdTaken, Kept, Worker


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def own_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of the test's own, which root's server may enter."""
    folder = Path(tempfile.mkdtemp(prefix="comfyflow-", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("COMFYFLOW_DATA", str(folder))
    yield folder
    shutil.rmtree(folder)


def job(prompt_id: str = "a") -> Job:
    return Job(prompt_id, Workflow.load(image()), "client", "http://server", 1.0)


def by(dsn: str) -> Mapping[str, str]:
    return {"COMFYFLOW_DATABASE_URL": dsn}


async def test_a_database_that_is_named_is_used_and_read(database: str, journal: Journal) -> None:
    async with recording(by(database), journal=journal) as record:
        await record.store.add(job())
        assert (record.where, record.fault) == ("postgresql", None)
    async with reading({}, database, journal=journal) as store:
        assert await store.get("a") is not None


async def test_an_id_that_another_job_has_is_told_to_whoever_would_send_it(
    database: str, journal: Journal
) -> None:
    """Nothing is lost by that: the other job's record is whole."""
    other = replace(job(), workflow=Workflow.load(image()))
    async with recording(by(database), journal=journal) as record:
        await record.store.add(job())
        with pytest.raises(IdTaken, match="there is already another job a"):
            await record.store.add(other)
        with pytest.raises(IdTaken):
            await record.store.write_new(Added(other))
        assert await record.store.write_new(Added(replace(other, prompt_id="b")))
        assert (record.where, record.lost) == ("postgresql", None)


async def test_reading_does_not_wait_for_a_process_that_hangs_while_it_writes_the_journal(
    database: str, journal: Journal
) -> None:
    journal.append(batch_of([Added(job())]), ANYWHERE)
    with journal.draining(None):
        async with asyncio.timeout(30), reading({}, database, journal=journal) as store:
            assert await store.get("a") is None
    async with reading({}, database, journal=journal) as store:
        assert await store.get("a") is not None


MINE, THEIRS = Worker("mine", "host", 1), Worker("theirs", "host", 2)


async def test_who_works_on_what_is_asked_of_the_database(database: str, journal: Journal) -> None:
    async with recording(by(database), journal=journal) as record:
        store, first = record.store, job()
        again = replace(first, prompt_id="b", replaces="a", attempt=2)
        await store.write(Alive(THEIRS, 30.0), Added(first, THEIRS.id), Added(again, THEIRS.id))
        await store.renew(MINE, 30.0)
        assert not await store.take("a", MINE)
        assert await store.claim(MINE, first.server, limit=9) == []
        assert [(held.worker, held.jobs) for held in await store.holders(first.server)] == [(THEIRS, 2)]
        found = await store.claim(MINE, first.server, limit=9, busy=["a"], dead=[THEIRS.id])
        assert [one.job for one in found] == [again]
        await store.retire(THEIRS)
        assert await store.take("a", MINE)
        found_last = await store.successor("a")
        assert found_last is not None
        assert found_last.job == again


async def test_that_nobody_can_tell_who_works_on_what_is_told(cluster: Cluster, journal: Journal) -> None:
    """What is written goes to the journal; but a job that another one may hold is not taken for free."""
    async with recording(by(cluster.dsn), journal=journal) as record:
        store = record.store
        await asyncio.to_thread(cluster.stop)
        await store.write(Alive(MINE, 30.0), Added(job(), MINE.id))
        for question in (
            store.renew(MINE, 30.0),
            store.retire(MINE),
            store.take("a", MINE),
            store.claim(MINE, "http://server", limit=9),
            store.holders("http://server"),
            store.successor("a"),
        ):
            with pytest.raises(StoreUnavailable):
                await question
        assert record.lost is None
    assert journal.summary().records == 1


async def test_without_a_database_what_this_program_added_is_its_own(journal: Journal) -> None:
    async with recording({}, "mysql://host/db", journal=journal) as record:
        store, first = record.store, job()
        again = replace(first, prompt_id="b", replaces="a", attempt=2)
        await store.write(Alive(MINE, 30.0), Added(first, MINE.id), Added(again, MINE.id))
        await store.renew(MINE, 30.0)
        assert await store.take("a", MINE)
        assert [one.job for one in await store.claim(MINE, first.server, limit=9)] == [first, again]
        found = await store.successor("a")
        assert found is not None
        assert found.job == again
        assert await store.holders(first.server) == []
        await store.retire(MINE)
        assert record.where == "journal"
    assert journal.summary().records == 1


async def test_none_means_that_nothing_is_recorded(journal: Journal) -> None:
    async with recording(by("none"), journal=journal) as record:
        await record.store.add(job())
        assert (record.where, record.fault, type(record.store.inner)) == ("none", None, MemoryStore)
    assert journal.summary().records == 0
    with pytest.raises(StoreError, match=r"--database says that nothing is recorded"):
        async with reading(by("x"), "none", journal=journal):
            pass


async def test_without_any_database_one_of_our_own_is_started(own_data: Path, journal: Journal) -> None:
    async with recording({}, journal=journal) as record:
        await record.store.add(job())
        assert (record.where, record.fault) == ("embedded", None)
    async with reading({}, journal=journal) as store:
        assert await store.get("a") is not None
    assert [path.name[:2] for path in own_data.iterdir()] == ["pg"]


async def test_a_command_that_is_stopped_while_ours_starts_leaves_no_server_behind(
    own_data: Path, journal: Journal
) -> None:
    async def work() -> None:
        async with recording({}, journal=journal):
            raise AssertionError("it was not cancelled in time")

    task = asyncio.create_task(work())
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(list, own_data.glob("pg*/making-*")):
            pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list(own_data.glob("pg*/data/postmaster.pid"))
    assert list(own_data.glob("pg*/data"))


async def test_without_any_postgresql_the_journal_takes_it_and_the_first_database_gets_it(
    database: str, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYFLOW_PG_BIN", str(tmp_path))
    async with recording({}, journal=journal) as record:
        await record.store.add(job())
        assert await record.store.get("a") is not None
        assert record.where == "journal"
        assert isinstance(record.fault, PostgresMissing)
    assert journal.summary().targets == {ANYWHERE: 1}
    with pytest.raises(PostgresMissing):
        async with reading({}, journal=journal):
            pass
    async with reading({}, database, journal=journal) as store:
        assert await store.get("a") is not None
    assert journal.summary().records == 0


@pytest.mark.parametrize("flag", ["mysql://host/db", "what is this"])
async def test_what_is_no_address_is_told_and_the_journal_takes_the_record(
    journal: Journal, database: str, flag: str
) -> None:
    async with recording({}, flag, journal=journal) as record:
        await record.store.add(job())
        assert record.where == "journal"
        assert isinstance(record.fault, StoreError)
        assert not isinstance(record.fault, StoreUnavailable)
    assert journal.summary().targets == {NO_ADDRESS: 1}
    async with reading({}, database, journal=journal) as store:
        assert await store.get("a") is None  # nobody knows whether it was meant for this one
        assert await store.flush(everything=True) == 1
        assert await store.get("a") is not None


async def test_a_database_that_is_away_gets_its_record_when_it_is_back(
    cluster: Cluster, journal: Journal
) -> None:
    async with reading({}, cluster.dsn, journal=journal):
        pass  # there are tables now, whoever made them
    cluster.stop()
    async with recording({}, cluster.dsn, journal=journal) as record:
        await record.store.add(job())
        assert record.where == "journal"
        assert isinstance(record.fault, StoreUnavailable)
        assert isinstance(record.store.inner, PostgresStore)
    cluster.start()
    async with reading({}, cluster.dsn, journal=journal) as store:
        assert await store.get("a") is not None


async def test_a_database_that_refuses_is_told_without_the_password(database: str, journal: Journal) -> None:
    missing = with_user(with_database(database, "not_there"), "nobody_here", "very secret")
    async with recording(by(missing), journal=journal) as record:
        await record.store.add(job())
        assert record.where == "journal"
        assert isinstance(record.fault, StoreError)
        assert not isinstance(record.fault, StoreUnavailable)
        assert "secret" not in f"{record.fault!r}{record!r}"
    assert journal.summary().records == 1


async def test_the_password_may_stand_in_a_file(database: str, journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("wrong\n")
    stack = {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": "1",
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "secret"),
    }
    async with recording(stack, journal=journal) as record:
        assert record.database is not None
        assert ":wrong@" in record.database.dsn


async def test_files_above_the_limit_are_not_kept(database: str, journal: Journal, tmp_path: Path) -> None:
    kept = []
    for size in (2048, 2049):
        path = tmp_path / f"{size}.bin"
        path.write_bytes(b"x" * size)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        kept.append(Kept(SavedFile(OutputFile("1", path.name), path, size, digest, "image/png")))
    async with recording({"COMFYFLOW_CONTENT_LIMIT": "2k"}, database, journal=journal) as record:
        await record.store.write(*kept)
    assert [row["bytes"] for [row] in [execute(database, "SELECT bytes FROM asset_contents")[0]]] == [2048]


async def test_a_limit_that_is_none_is_wrong_use(journal: Journal) -> None:
    with pytest.raises(UsageError, match="COMFYFLOW_CONTENT_LIMIT"):
        async with recording({"COMFYFLOW_CONTENT_LIMIT": "much"}, "none", journal=journal):
            pass


async def test_a_record_that_nothing_can_take_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lost = Journal(tmp_path / "file" / "journal")
    async with recording(by("postgresql://u@127.0.0.1:1/d"), journal=lost) as record:
        assert record.where == "none"  # told before a job is sent
        assert not await record.store.write_new(Added(job()))
        await record.store.advance("a", JobState.RUNNING)
        assert "journal" in str(record.lost)
        assert record.fault is record.lost


async def test_a_database_is_read_although_the_journal_cannot_be(
    database: str, journal: Journal, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with recording(by(database), journal=journal) as record:
        await record.store.add(job())
    async with reading(by(database), journal=Journal(tmp_path / "file" / "journal")) as store:
        assert await store.get("a") is not None


async def test_who_may_only_read_reads_although_the_journal_waits(
    database: str, journal: Journal, tmp_path: Path
) -> None:
    with restricted(database) as reader:
        name = urlsplit(reader).username
        execute(database, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
        async with recording(by(reader), journal=journal) as record:
            await record.store.add(job())
            assert record.where == "journal"
        async with reading(by(reader), journal=journal) as store:
            assert await Archive(store.connections).runs(RunFilter()) == []
    assert journal.summary().records == 1


async def test_each_data_folder_has_a_journal_of_its_own(
    own_data: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recording({}, journal=journal):
        pass
    (home,) = own_data.iterdir()
    settings = home / "data" / "postgresql.conf"
    whole = settings.read_text()
    settings.write_text("this is no setting")
    async with recording({}, journal=journal) as record:
        await record.store.add(job())
        assert record.where == "journal"
    settings.write_text(whole)
    monkeypatch.setenv("COMFYFLOW_DATA", str(own_data / "other"))
    async with reading({}, journal=journal) as other:
        assert await other.get("a") is None
    monkeypatch.setenv("COMFYFLOW_DATA", str(own_data))
    async with reading({}, journal=journal) as store:
        assert await store.get("a") is not None
