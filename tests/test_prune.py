"""What retention takes and what it leaves: in the tables, on disk, and while others write."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from clusters import connected
from filled import DAY, NOW, fill

from comfyflow import prune as module
from comfyflow.archive import Archive
from comfyflow.contents import keep, restore, take_lock
from comfyflow.database import Connections
from comfyflow.errors import StoreError, UsageError
from comfyflow.models import OutputFile, SavedFile
from comfyflow.prune import Pruned, prune

TABLES = ("workflow_runs", "run_events", "generated_assets", "asset_contents")


@pytest.fixture
async def connections(database: str) -> AsyncIterator[Connections]:
    async with await Connections.open(database) as opened:
        yield opened


async def counts(connections: Connections) -> list[int]:
    return [(await connections.fetch(f"SELECT count(*) FROM {table}"))[0][0] for table in TABLES]


async def record(
    connections: Connections, path: str, data: bytes, *, days: float = 100, job: str = "", run: bool = True
) -> None:
    """A finished job of that age (in days) with one file."""
    job = job or path
    if run:
        await connections.execute(
            "INSERT INTO workflow_runs (prompt_id, server, state, created_at, finished_at)"
            " VALUES ($1, 's', 'succeeded', to_timestamp($2), to_timestamp($2)) ON CONFLICT DO NOTHING",
            job, NOW - days * DAY,
        )  # fmt: skip
    await connections.execute(
        "INSERT INTO generated_assets (prompt_id, output_path, metadata, created_at)"
        " VALUES ($1, $2, jsonb_build_object('sha256', $3::text), to_timestamp($4))",
        job, path, hashlib.sha256(data).hexdigest(), NOW - days * DAY,
    )  # fmt: skip


async def both(connections: Connections, before: float, root: Path | None = None) -> Pruned:
    """Rehearse, see that nothing changed, then do it: both tell the same."""
    then = await counts(connections)
    files = sorted(root.rglob("*")) if root is not None else []
    told = await prune(connections, before, files=root is not None, root=root, dry_run=True)
    assert await counts(connections) == then
    assert root is None or sorted(root.rglob("*")) == files
    done = await prune(connections, before, files=root is not None, root=root)
    assert done == told
    return done


async def test_an_empty_record_has_nothing_to_prune(connections: Connections) -> None:
    assert await both(connections, NOW) == Pruned()


async def test_old_jobs_go_with_all_that_is_theirs_and_unfinished_ones_stay(connections: Connections) -> None:
    await fill(connections, 300, files=2)
    done = await both(connections, NOW - 99 * 60)  # those that ended before: job-101 and older
    assert done == Pruned(runs=197, events=3 * 197, assets=2 * 197)
    left = await connections.fetch(
        "SELECT prompt_id FROM workflow_runs WHERE created_at < to_timestamp($1)", NOW - 100 * 60
    )
    assert sorted(row["prompt_id"] for row in left) == ["job-111", "job-211"]
    assert await counts(connections) == [103, 3 * 103 - 3, 2 * 103, 0]


async def test_more_than_one_batch_goes(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 7)
    await fill(connections, 40)
    await connections.execute("UPDATE generated_assets SET prompt_id = 'n8n-' || id WHERE id % 2 = 0")
    done = await both(connections, NOW + DAY)
    assert (done.runs, done.assets) == (39, 40)
    assert await counts(connections) == [1, 2, 0, 0]


async def test_a_job_stays_while_one_of_its_files_is_young(connections: Connections) -> None:
    await record(connections, "a.png", b"a")
    await record(connections, "b.png", b"b", days=1, job="a.png")
    assert await both(connections, NOW - 30 * DAY) == Pruned()
    assert (await both(connections, NOW)).assets == 2


async def test_old_rows_of_others_go_and_those_of_unfinished_jobs_stay(connections: Connections) -> None:
    await record(connections, "n8n.png", b"a", run=False)
    await record(connections, "young.png", b"a", run=False, days=1)
    await connections.execute("INSERT INTO workflow_runs (prompt_id, server) VALUES ('open', 's')")
    await record(connections, "open.png", b"a", job="open", run=False)
    assert await both(connections, NOW - 30 * DAY) == Pruned(assets=1)


async def test_many_rows_that_stay_do_not_hide_those_that_go(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    await connections.execute("INSERT INTO workflow_runs (prompt_id, server) VALUES ('open', 's')")
    for number in range(6):
        await record(connections, f"stays-{number}", b"", job="open", run=False)
        await record(connections, f"goes-{number}", b"", run=False)
    assert await both(connections, NOW) == Pruned(assets=6)


async def test_a_job_that_somebody_else_has_locked_is_left_for_the_next_time(
    connections: Connections,
) -> None:
    await record(connections, "a.png", b"a")
    await record(connections, "b.png", b"b")

    async def work(connection: Any) -> Pruned:
        async with connection.transaction():
            await connection.execute("SELECT FROM workflow_runs WHERE prompt_id = 'a.png' FOR UPDATE")
            return await prune(connections, NOW)

    assert (await connections.run(work, repeat=False)).runs == 1
    assert (await prune(connections, NOW)).runs == 1


async def chain_of(connections: Connections, *days: float | None) -> list[str]:
    """Jobs of these ages in days (None: without an end), each sent in place of the one before."""
    names = [f"attempt-{number}" for number in range(len(days))]
    for name, before, age in zip(names, [None, *names], days, strict=False):
        await connections.execute(
            "INSERT INTO workflow_runs (prompt_id, server, replaces, state, finished_at)"
            " VALUES ($1, 's', $2, CASE WHEN $3::float8 IS NULL THEN 'running' ELSE 'lost' END,"
            " to_timestamp($3))",
            name, before, None if age is None else NOW - age * DAY,
        )  # fmt: skip
    return names


@pytest.mark.parametrize("page", [1, 1000])
async def test_a_job_that_was_sent_again_goes_with_the_one_in_its_place(
    connections: Connections, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(module, "PAGE", page)
    await chain_of(connections, 100, 90, 80)
    await record(connections, "attempt-0/a.png", b"a", job="attempt-0", run=False)
    assert await both(connections, NOW - 85 * DAY) == Pruned()
    assert await both(connections, NOW - 30 * DAY) == Pruned(runs=3, assets=1)


@pytest.mark.parametrize("last", [1.0, None])
async def test_a_job_that_was_sent_again_stays_as_long_as_its_key_leads_to_a_job_that_stays(
    connections: Connections, last: float | None
) -> None:
    names = await chain_of(connections, 100, 90, last)
    await record(connections, "a.png", b"a", job=names[0], run=False)
    assert await both(connections, NOW - 30 * DAY) == Pruned()
    rows = await connections.fetch("SELECT replaces FROM workflow_runs ORDER BY prompt_id")
    assert [row["replaces"] for row in rows] == [None, *names[:-1]]


async def test_a_young_file_of_a_later_attempt_keeps_all_of_them(connections: Connections) -> None:
    await chain_of(connections, 100, 90)
    await record(connections, "young.png", b"a", job="attempt-1", run=False, days=1)
    assert await both(connections, NOW - 30 * DAY) == Pruned()


async def test_nobody_is_waited_for_who_has_locked_a_later_attempt(
    connections: Connections, database: str
) -> None:
    await chain_of(connections, 100, 90)
    async with connected(database) as other, other.transaction():
        await other.execute("SELECT FROM workflow_runs WHERE prompt_id = 'attempt-1' FOR NO KEY UPDATE")
        async with asyncio.timeout(5):
            assert await prune(connections, NOW - 30 * DAY) == Pruned()
    assert (await prune(connections, NOW - 30 * DAY)).runs == 2


async def test_writers_go_on_while_it_works(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 20)
    await fill(connections, 2000)
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            await record(connections, f"new-{written}.png", b"x", days=0)
            await connections.execute(
                "UPDATE workflow_runs SET prompt_text = 'x' WHERE prompt_id = $1", f"job-{1999 - written}"
            )
            written += 1

    writer = asyncio.create_task(write())
    done = await prune(connections, NOW - 0.5 * DAY)
    writer.cancel()
    await asyncio.wait([writer])
    assert written > 10
    done += await prune(connections, NOW - 0.5 * DAY)  # what the writer had locked just then
    assert done.runs == done.assets == 1266  # of 1278 that old 12 have no end
    names = await connections.fetch("SELECT prompt_id FROM generated_assets WHERE prompt_id LIKE 'new-%'")
    assert len(names) >= written


# -- files --


async def test_files_go_with_their_rows(connections: Connections, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for path, days in (("sub/old.png", 100), ("young.png", 1)):
        (tmp_path / path).write_bytes(b"12345")
        await record(connections, path, b"12345", days=days)
    done = await both(connections, NOW - 30 * DAY, tmp_path)
    assert (done.files, done.bytes) == (1, 5)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["young.png"]


async def test_without_being_asked_no_file_goes(connections: Connections, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    await record(connections, "a.png", b"a")
    assert await both(connections, NOW) == Pruned(runs=1, assets=1)
    assert (tmp_path / "a.png").exists()


async def test_a_file_with_other_bytes_stays(connections: Connections, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"worked on by hand")
    await record(connections, "a.png", b"a")
    assert (await both(connections, NOW, tmp_path)).files == 0
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("how", ["dots", "absolute", "link", "folder link", "root is a link"])
async def test_only_files_inside_the_folder_go(connections: Connections, tmp_path: Path, how: str) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "a.png").write_bytes(b"a")
    (root / "link.png").symlink_to(other / "a.png")
    (root / "out").symlink_to(other)
    (root / "in.png").write_bytes(b"a")
    (tmp_path / "same").symlink_to(root)
    path = {
        "dots": "../other/a.png", "absolute": str(other / "a.png"), "link": "link.png",
        "folder link": "out/a.png", "root is a link": "in.png",
    }[how]  # fmt: skip
    await record(connections, path, b"a")
    folder = tmp_path / "same" if how == "root is a link" else root
    assert (await prune(connections, NOW, files=True, root=folder)).files == (how == "root is a link")
    assert (other / "a.png").exists()
    assert (root / "link.png").is_symlink()


@pytest.mark.parametrize("name", ["a.png", "absolute", "below/a.png"])
async def test_a_file_that_another_row_names_stays(
    connections: Connections, tmp_path: Path, name: str
) -> None:
    """The same path; the absolute one; or the same bytes and name, seen from another folder."""
    (tmp_path / "a.png").write_bytes(b"a")
    await record(connections, "a.png", b"a", job="first")
    name = str(tmp_path / "a.png") if name == "absolute" else name
    await record(connections, name, b"a", job="second", days=1)
    done = await both(connections, NOW - 30 * DAY, tmp_path)
    assert (done.runs, done.files) == (1, 0)
    assert (tmp_path / "a.png").exists()


async def test_a_file_that_two_old_rows_name_goes_once(
    connections: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 1)  # each row in a batch of its own
    (tmp_path / "a.png").write_bytes(b"a")
    await record(connections, "a.png", b"a", job="first")
    await record(connections, "a.png", b"a", job="second", days=99)
    await record(connections, "a.png", b"a", job="third", days=98, run=False)
    done = await both(connections, NOW, tmp_path)
    assert (done.runs, done.assets, done.files, done.bytes) == (2, 3, 1, 1)


async def test_a_file_that_may_not_be_deleted_is_not_counted(
    connections: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    (tmp_path / "a.png").write_bytes(b"a")
    await record(connections, "a.png", b"a")
    monkeypatch.setattr(Path, "unlink", refused)
    assert (await prune(connections, NOW, files=True, root=tmp_path)).files == 0


@pytest.mark.parametrize("root", [None, Path("/no/such/folder")])
async def test_files_need_the_folder_that_they_are_in(connections: Connections, root: Path | None) -> None:
    await record(connections, "a.png", b"a")
    with pytest.raises(UsageError, match="name the folder"):
        await prune(connections, NOW, files=True, root=root)
    assert (await counts(connections))[0] == 1


# -- contents --


async def kept(connections: Connections, path: Path, data: bytes, *, days: float) -> SavedFile:
    path.write_bytes(data)
    file = SavedFile(OutputFile("9", path.name), path, len(data), hashlib.sha256(data).hexdigest(), "x/y")
    assert await keep(connections, file, limit_bytes=1 << 30)
    await connections.execute(
        "UPDATE asset_contents SET created_at = to_timestamp($1) WHERE sha256 = $2",
        NOW - days * DAY, file.sha256,
    )  # fmt: skip
    return file


async def test_contents_go_when_no_row_names_them(connections: Connections, tmp_path: Path) -> None:
    old = await kept(connections, tmp_path / "old.png", b"o" * (1 << 20) + b"ld", days=100)
    shared = await kept(connections, tmp_path / "shared.png", b"shared", days=100)
    await kept(connections, tmp_path / "young.png", b"young", days=1)  # its row is yet to be written
    await record(connections, "old.png", old.path.read_bytes())
    await record(connections, "shared.png", b"shared")
    await record(connections, "again.png", b"shared", days=1)
    done = await both(connections, NOW - 30 * DAY)
    assert (done.contents, done.bytes) == (1, (1 << 20) + 2)
    with pytest.raises(StoreError, match="holds no content"):
        await restore(connections, old.sha256, tmp_path / "back.png")
    back = await restore(connections, shared.sha256, tmp_path / "back.png")
    assert back.read_bytes() == b"shared"


async def test_many_contents_go_in_batches(
    connections: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONTENTS", 3)
    for number in range(10):
        await kept(connections, tmp_path / f"{number}.png", bytes([number]), days=100)
    assert await both(connections, NOW) == Pruned(contents=10, bytes=10)


async def test_a_content_that_is_being_stored_again_stays(connections: Connections, tmp_path: Path) -> None:
    file = await kept(connections, tmp_path / "a.png", b"a", days=100)

    async def work(connection: Any) -> Pruned:
        async with connection.transaction():
            await take_lock(connection, file.sha256)
            return await prune(connections, NOW)

    assert await connections.run(work, repeat=False) == Pruned()
    assert await prune(connections, NOW) == Pruned(contents=1, bytes=1)


# -- checks of servers, alerts --


async def test_old_checks_and_forgotten_alerts_go_in_batches(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    await connections.execute(
        "INSERT INTO server_checks (server, ok, checked_at)"
        " SELECT 's', true, to_timestamp($1) - n * interval '1 day' FROM generate_series(1, 10) AS n",
        NOW,
    )
    await connections.execute(
        "INSERT INTO alerts (cause, first_at, last_at)"
        " SELECT 'cause ' || n, to_timestamp($1), to_timestamp($1) - n * interval '1 day'"
        " FROM generate_series(1, 10) AS n",
        NOW,
    )
    assert await both(connections, NOW - 3.5 * DAY) == Pruned(checks=7, alerts=7)
    left = "SELECT (SELECT count(*) FROM server_checks) AS checks, (SELECT count(*) FROM alerts) AS alerts"
    assert [tuple(row) for row in await connections.fetch(left)] == [(3, 3)]


async def test_an_alert_that_is_being_counted_is_left_for_the_next_time(
    connections: Connections, database: str
) -> None:
    await connections.execute("INSERT INTO alerts (cause, last_at) VALUES ('c', to_timestamp($1))", NOW - DAY)
    async with connected(database) as other, other.transaction():
        await other.execute("SELECT FROM alerts FOR UPDATE")
        async with asyncio.timeout(5):
            assert await prune(connections, NOW) == Pruned()
    assert await prune(connections, NOW) == Pruned(alerts=1)


async def test_the_archive_prunes_as_well(connections: Connections) -> None:
    await record(connections, "a.png", b"a")
    assert (await Archive(connections).prune(NOW, dry_run=True)).runs == 1
    assert (await Archive(connections).prune(NOW)).runs == 1
