"""The bytes of files in the database, and back."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from comfyflow.contents import PART, keep, restore
from comfyflow.database import Connections
from comfyflow.errors import StoreError
from comfyflow.models import OutputFile, SavedFile

LIMIT = 1 << 30
LOCKED = (
    "SELECT FROM pg_locks JOIN pg_database ON database = pg_database.oid"
    " WHERE locktype = 'advisory' AND datname = current_database()"
)
NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.fixture
async def connections(database: str) -> AsyncIterator[Connections]:
    async with await Connections.open(database) as opened:
        yield opened


def saved(path: Path, size: int, *, seed: int = 1) -> SavedFile:
    """A file of this size, as a download leaves it."""
    block = hashlib.sha256(bytes([seed])).digest() * 1024
    data = (block * (size // len(block) + 1))[:size]
    path.write_bytes(data)
    return SavedFile(OutputFile("9", path.name), path, size, hashlib.sha256(data).hexdigest(), "image/png")


async def parts(connections: Connections) -> list[int]:
    rows = await connections.fetch("SELECT octet_length(data) AS n FROM asset_contents ORDER BY sha256, part")
    return [row["n"] for row in rows]


@pytest.mark.parametrize(
    ("size", "stored"),
    [(0, [0]), (1, [1]), (PART, [PART]), (PART + 1, [PART, 1]), (50 * PART, [PART] * 50)],
)
async def test_files_of_any_size_come_back_identical(
    connections: Connections, tmp_path: Path, size: int, stored: list[int]
) -> None:
    file = saved(tmp_path / "a.png", size)
    assert await keep(connections, file, limit_bytes=LIMIT)
    assert await parts(connections) == stored
    back = await restore(connections, file.sha256, tmp_path / "back" / "deep" / "b.png")
    assert back == tmp_path / "back" / "deep" / "b.png"
    assert back.read_bytes() == file.path.read_bytes()
    assert [path.name for path in back.parent.iterdir()] == ["b.png"]


async def test_neither_way_holds_the_file_in_memory(connections: Connections, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", 40 * PART)
    tracemalloc.start()
    await keep(connections, file, limit_bytes=LIMIT)
    await restore(connections, file.sha256, tmp_path / "b.png")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 * PART


async def test_the_same_bytes_are_stored_once(connections: Connections, tmp_path: Path) -> None:
    one, two = saved(tmp_path / "a.png", 10), saved(tmp_path / "b.png", 10)
    assert await keep(connections, one, limit_bytes=LIMIT)
    assert await keep(connections, two, limit_bytes=LIMIT)
    assert await parts(connections) == [10]


async def test_the_same_bytes_at_the_same_time_are_stored_once(
    connections: Connections, tmp_path: Path
) -> None:
    files = [saved(tmp_path / f"{number}.png", 3 * PART) for number in range(5)]
    kept = await asyncio.gather(*(keep(connections, file, limit_bytes=LIMIT) for file in files))
    assert kept == [True] * 5
    assert await parts(connections) == [PART] * 3


async def test_a_file_over_the_limit_is_left_out(connections: Connections, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", 11)
    assert not await keep(connections, file, limit_bytes=10)
    assert await parts(connections) == []
    assert await keep(connections, file, limit_bytes=11)


@pytest.mark.parametrize("change", ["other", "longer", "shorter", "gone"])
async def test_a_file_that_changed_is_not_stored_under_its_old_name(
    connections: Connections, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    file = saved(tmp_path / "a.png", 2 * PART)
    data = file.path.read_bytes()
    changed = {"other": b"\0" + data[1:], "longer": data + b"x", "shorter": data[:-1], "gone": b""}[change]
    file.path.write_bytes(changed)
    if change == "gone":
        file.path.unlink()
    assert not await keep(connections, file, limit_bytes=LIMIT)
    assert await parts(connections) == []
    assert "is not kept in the database" in caplog.text


async def test_a_cancelled_keep_stores_nothing(connections: Connections, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", 50 * PART)
    task = asyncio.create_task(keep(connections, file, limit_bytes=LIMIT))
    async with asyncio.timeout(30):
        while not await connections.fetch(LOCKED):
            pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await parts(connections) == []


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_a_content_with_a_missing_part_is_refused(
    connections: Connections, tmp_path: Path, part: int
) -> None:
    file = saved(tmp_path / "a.png", 2 * PART + 1)
    await keep(connections, file, limit_bytes=LIMIT)
    await connections.execute("DELETE FROM asset_contents WHERE part = $1", part)
    with pytest.raises(StoreError, match=f"not complete: part {part} is missing"):
        await restore(connections, file.sha256, tmp_path / "back.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


async def test_a_content_with_other_bytes_is_refused(connections: Connections, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", 3)
    await keep(connections, file, limit_bytes=LIMIT)
    await connections.execute("UPDATE asset_contents SET data = '\\x010203'")
    with pytest.raises(StoreError, match="is damaged"):
        await restore(connections, file.sha256, tmp_path / "back.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


async def test_a_content_that_was_never_kept_is_told(connections: Connections, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"holds no content {NOTHING}: .* --keep-content"):
        await restore(connections, NOTHING, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


async def test_a_file_with_the_same_bytes_is_left_alone(connections: Connections, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", 3)
    assert await restore(connections, file.sha256, file.path) == file.path  # without asking the database


def identity(path: Path) -> tuple[int, int, int, int]:
    """Which thing it is, and since when: without the time of access, which following a link moves."""
    told = path.lstat()
    return told.st_ino, told.st_mode, told.st_size, told.st_mtime_ns


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
async def test_nothing_else_is_ever_replaced(connections: Connections, tmp_path: Path, kind: str) -> None:
    file, there = saved(tmp_path / "a.png", 3), tmp_path / "there"
    await keep(connections, file, limit_bytes=LIMIT)
    if kind == "file":
        there.write_bytes(b"mine")
    elif kind == "folder":
        there.mkdir()
    else:
        there.symlink_to(file.path)
    before = identity(there)
    for _ in range(2):  # the second time nothing is written
        assert await restore(connections, file.sha256, there) == tmp_path / "there (1)"
    assert (tmp_path / "there (1)").read_bytes() == file.path.read_bytes()
    assert identity(there) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "there", "there (1)"]


async def test_different_files_of_one_name_are_numbered(connections: Connections, tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{seed}.png", 3, seed=seed) for seed in range(3)]
    for file in files:
        await keep(connections, file, limit_bytes=LIMIT)
    place = tmp_path / "back" / "a.png"
    written = [await restore(connections, file.sha256, place) for file in [*files, *files]]
    assert [path.name for path in written] == ["a.png", "a (1).png", "a (2).png"] * 2
    assert [path.read_bytes() for path in written[:3]] == [file.path.read_bytes() for file in files]
    assert len(list(place.parent.iterdir())) == 3


async def test_different_files_of_one_name_at_the_same_time_are_numbered(
    connections: Connections, tmp_path: Path
) -> None:
    files = [saved(tmp_path / f"{seed}.png", 3, seed=seed) for seed in range(5)]
    for file in files:
        await keep(connections, file, limit_bytes=LIMIT)
    place = tmp_path / "back" / "a.png"
    twice = [*files, *files]
    written = await asyncio.gather(*(restore(connections, file.sha256, place) for file in twice))
    assert [path.read_bytes() for path in written] == [file.path.read_bytes() for file in twice]
    assert len(list(place.parent.iterdir())) == 5


async def test_too_many_files_of_one_name_are_told(
    connections: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyflow.contents.MAX_NUMBER", 1)
    file = saved(tmp_path / "a.png", 3)
    await keep(connections, file, limit_bytes=LIMIT)
    for name in ("b.png", "b (1).png"):
        (tmp_path / name).touch()
    with pytest.raises(StoreError, match="too many files of this name"):
        await restore(connections, file.sha256, tmp_path / "b.png")
    assert len(list(tmp_path.iterdir())) == 3


async def test_a_folder_that_cannot_be_made_is_told(connections: Connections, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", 3)
    await keep(connections, file, limit_bytes=LIMIT)
    with pytest.raises(StoreError, match="cannot be written: Not a directory"):
        await restore(connections, file.sha256, file.path / "below" / "b.png")


async def test_without_hard_links_the_file_is_moved(
    connections: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    file = saved(tmp_path / "a.png", 3)
    await keep(connections, file, limit_bytes=LIMIT)
    monkeypatch.setattr("os.link", refused)
    back = await restore(connections, file.sha256, tmp_path / "b.png")
    assert back.read_bytes() == file.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
