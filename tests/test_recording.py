"""Which store a command writes to: a database, the journal, or nothing, and it is told which."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from clusters import Cluster, execute, with_database, with_user
from graphs import image

from comfyflow import (
    Job,
    Journal,
    MemoryStore,
    OutputFile,
    PostgresMissing,
    PostgresStore,
    SavedFile,
    StoreError,
    StoreUnavailable,
    UsageError,
    Workflow,
)
from comfyflow.journal import ANYWHERE
from comfyflow.recording import reading, recording
from comfyflow.store import Kept


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


async def test_none_means_that_nothing_is_recorded(journal: Journal) -> None:
    async with recording(by("none"), journal=journal) as record:
        await record.store.add(job())
        assert (record.where, record.fault, type(record.store)) == ("none", None, MemoryStore)
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
    journal: Journal, flag: str
) -> None:
    async with recording({}, flag, journal=journal) as record:
        await record.store.add(job())
        assert record.where == "journal"
        assert isinstance(record.fault, StoreError)
        assert not isinstance(record.fault, StoreUnavailable)
    assert journal.summary().targets == {ANYWHERE: 1}


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
        assert isinstance(record.store, PostgresStore)
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
