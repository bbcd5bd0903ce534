"""The disk's side of a download: blocks on their way to one thread, and a hidden file that gets its name at
the end."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyflow import part as module
from comfyflow.errors import DownloadError
from comfyflow.media import Damaged
from comfyflow.models import OutputFile
from comfyflow.part import BLOCKS, Blocks, Part, _Names, _renameat2
from comfyflow.sweep import sweep


@pytest.fixture(autouse=True, params=["unnamed", "named"])
def beginning(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How small files begin: without any name, where the system can do that, or with a hidden one."""
    if request.param == "named":
        named(monkeypatch)
    return str(request.param)


def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNNAMED", 0)


def picture(color: int = 0) -> bytes:
    data = io.BytesIO()
    Image.new("L", (8, 6), color).save(data, "PNG")
    return data.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def saved(folder: Path, data: bytes, name: str = "a.png") -> Path:
    part = Part(folder, OutputFile("1", name))
    try:
        return (await part.finish([data])).path
    finally:
        await part.leave()


async def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    part, data = Part(tmp_path, OutputFile("1", "a.png")), picture()
    await part.on_disk(part.write, [data[:20]])
    assert [name.endswith(".part") for name in names(tmp_path)] == [True]
    file = await part.finish([data[20:]])
    assert names(tmp_path) == ["a.png"]
    assert (file.size, file.sha256, file.width, file.height) == (
        len(data),
        hashlib.sha256(data).hexdigest(),
        8,
        6,
    )
    await part.leave()
    assert names(tmp_path) == ["a.png"]


async def test_what_is_left_unfinished_is_removed(tmp_path: Path) -> None:
    part = Part(tmp_path, OutputFile("1", "a.png"))
    await part.on_disk(part.write, [picture()[:20]])
    with pytest.raises(Damaged):
        await part.finish([])
    await part.leave()
    assert names(tmp_path) == []


async def test_a_restart_forgets_what_was_written(tmp_path: Path) -> None:
    part = Part(tmp_path, OutputFile("1", "a.png"))
    await part.on_disk(part.write, [picture(1)[:20]])
    await part.on_disk(part.restart)
    assert (await part.finish([picture(2)])).path.read_bytes() == picture(2)


async def test_other_content_gets_another_name_and_the_same_content_the_same(tmp_path: Path) -> None:
    paths = [await saved(tmp_path, picture(color)) for color in (1, 2, 1, 2)]
    assert [path.name for path in paths] == ["a.png", "a (1).png", "a.png", "a (1).png"]
    assert names(tmp_path) == ["a (1).png", "a.png"]


async def test_what_the_system_refuses_is_a_download_error(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="does not exist"):
        await saved(tmp_path / "missing", picture())


async def test_one_thread_writes_all_blocks_in_order(tmp_path: Path) -> None:
    part, blocks, data = (
        Part(tmp_path, OutputFile("1", "a.bin")),
        Blocks(),
        [bytes([n]) * 1000 for n in range(50)],
    )
    writing = asyncio.create_task(part.on_disk(part.drain, blocks))
    for piece in data:
        await blocks.put([piece])
    blocks.end()
    await writing
    assert (await part.finish([])).path.read_bytes() == b"".join(data)


async def test_blocks_wait_for_the_thread(tmp_path: Path) -> None:
    blocks = Blocks()
    for _ in range(BLOCKS - 1):
        await blocks.put([b"x"])
    waiting = asyncio.create_task(blocks.put([b"x"]))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    taken = blocks.taken()
    await asyncio.to_thread(next, taken)
    await asyncio.to_thread(next, taken)  # asking for the next one says that the first was written
    await waiting
    blocks.end()
    assert await asyncio.to_thread(lambda: len(list(taken))) == BLOCKS - 2


async def test_nobody_waits_for_a_thread_that_has_stopped(tmp_path: Path) -> None:
    part, blocks = Part(tmp_path, OutputFile("1", "a.png")), Blocks()
    writing = asyncio.create_task(part.on_disk(part.drain, blocks))
    for _ in range(BLOCKS * 3):
        await blocks.put([b"<html>this is no picture</html>" * 100])
    with pytest.raises(Damaged):
        await writing
    await part.leave()
    assert names(tmp_path) == []


# -- swept and killed in the middle --


def also(call: Callable[..., Any], extra: Callable[[], object], *, first: bool) -> Callable[..., Any]:
    """The same system call, with something else before or after it."""

    def both(*args: Any, **options: Any) -> Any:
        if first:
            extra()
        try:
            return call(*args, **options)
        finally:
            if not first:
                extra()

    return both


STEPS = ["write", "fsync", "link", "unlink"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_part_in_work_is_never_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    swept: list[Path] = []
    monkeypatch.setattr(os, step, also(getattr(os, step), lambda: swept.extend(sweep(tmp_path)), first=True))
    path = await saved(tmp_path, picture())
    assert swept == []
    assert (names(tmp_path), path.read_bytes()) == (["a.png"], picture())


class Quicker:
    """Sweeps right after a part has come to be, before anybody can hold it."""

    def __init__(self, folder: Path, call: Callable[..., Any], at: int) -> None:
        self.folder, self.call, self.at = folder, call, at
        self.swept: list[Path] = []

    def __call__(self, *args: Any, **options: Any) -> Any:
        result = self.call(*args, **options)
        if str(args[self.at]).endswith(".part") and not self.swept:
            self.swept = [Path("under way")]  # it opens files itself
            self.swept = sweep(self.folder)
        return result


async def test_a_sweep_that_was_quicker_costs_nothing_but_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch)
    quicker = Quicker(tmp_path, os.open, 0)
    monkeypatch.setattr(os, "open", quicker)
    path = await saved(tmp_path, picture())
    assert len(quicker.swept) == 1
    assert (names(tmp_path), path.read_bytes()) == (["a.png"], picture())


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """ComfyUI's own folder, with a.png in it."""
    folder = tmp_path / "comfyui"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    return folder


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir()
    return folder


async def taken(theirs: Path, ours: Path) -> Path:
    part = Part(ours, OutputFile("1", "a.png"))
    try:
        found = await part.on_disk(part.take, theirs, None)
        assert found is not None
        return found.path
    finally:
        await part.leave()


@pytest.mark.parametrize(("call", "at"), [("link", 1), ("open", 0)])
async def test_a_link_that_was_swept_at_once_becomes_a_copy(
    theirs: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, call: str, at: int
) -> None:
    quicker = Quicker(ours, getattr(os, call), at)
    monkeypatch.setattr(os, call, quicker)
    path = await taken(theirs, ours)
    assert len(quicker.swept) == 1
    assert path.read_bytes() == picture()
    assert not path.samefile(theirs / "a.png")
    assert names(ours) == ["a.png"]


async def test_a_file_that_somebody_has_locked_is_copied(theirs: Path, ours: Path) -> None:
    with (theirs / "a.png").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        path = await taken(theirs, ours)
    assert path.read_bytes() == picture()
    assert names(ours) == ["a.png"]


async def test_many_links_to_one_file_at_once(theirs: Path, ours: Path) -> None:
    paths = await asyncio.gather(*(taken(theirs, ours) for _ in range(20)))
    assert {path.name for path in paths} == {"a.png"}
    assert paths[0].samefile(theirs / "a.png")
    assert names(ours) == ["a.png"]


KILLED = """
import anyio, os, signal, sys
from pathlib import Path
from comfyflow import part
from comfyflow.models import OutputFile

folder, beginning, where, name, when = sys.argv[1:]
if beginning == "named":
    part._UNNAMED = 0
module = part if name == "_move_if_free" else os
call = getattr(module, name)

def deadly(*args, **options):
    if when == "after":
        call(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)

def refused(*args, **options):
    raise PermissionError(1, "no links here")

if where == "without links":
    os.link = refused
setattr(module, name, deadly)

async def main():
    file = part.Part(Path(folder), OutputFile("1", "a.png"))
    await file.finish([sys.stdin.buffer.read()])

anyio.run(main)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("where", "step"), [*(("", step) for step in STEPS), ("without links", "_move_if_free")]
)
async def test_a_kill_at_any_step_leaves_a_whole_file_or_none(
    tmp_path: Path, beginning: str, where: str, step: str, when: str
) -> None:
    line = [sys.executable, "-c", KILLED, str(tmp_path), beginning, where, step, when]
    process = await asyncio.create_subprocess_exec(*line, stdin=subprocess.PIPE)
    await process.communicate(picture())
    if process.returncode == 0:  # what has no name has none to remove
        assert (beginning, step, names(tmp_path)) == ("unnamed", "unlink", ["a.png"])
        return
    assert process.returncode == -signal.SIGKILL
    sweep(tmp_path)
    published = (step, when) in {
        ("link", "after"),
        ("unlink", "before"),
        ("unlink", "after"),
        ("_move_if_free", "after"),
    }
    assert names(tmp_path) == (["a.png"] if published else [])
    assert (await saved(tmp_path, picture())).read_bytes() == picture()
    assert names(tmp_path) == ["a.png"]


# -- without hard links, and full disks --


def refusing(error: int) -> Callable[..., Any]:
    def call(*_args: object, **_options: object) -> None:
        raise OSError(error, os.strerror(error))

    return call


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))


@pytest.fixture
def without_careful_moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system whose C library has no renameat2."""
    _renameat2.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: object())
    yield
    _renameat2.cache_clear()


async def test_without_proc_a_file_gets_its_name_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def without(source: Any, final: Any, **options: Any) -> None:
        if str(source).startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        link(source, final, **options)

    monkeypatch.setattr(os, "link", without)
    paths = [await saved(tmp_path, picture(color)) for color in (1, 2, 1)]
    assert [path.name for path in paths] == ["a.png", "a (1).png", "a.png"]
    assert [path.read_bytes() for path in paths] == [picture(1), picture(2), picture(1)]
    assert names(tmp_path) == ["a (1).png", "a.png"]


@pytest.mark.usefixtures("without_links")
async def test_without_hard_links_it_moves_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", refusing(errno.EIO))
    paths = [await saved(tmp_path, picture(color)) for color in (1, 2, 1)]
    assert [path.name for path in paths] == ["a.png", "a (1).png", "a.png"]
    assert [path.read_bytes() for path in paths] == [picture(1), picture(2), picture(1)]
    assert names(tmp_path) == ["a (1).png", "a.png"]


@pytest.mark.usefixtures("without_links", "without_careful_moves")
async def test_without_careful_moves_the_name_is_taken_first(tmp_path: Path) -> None:
    paths = [await saved(tmp_path, picture(color)) for color in (1, 2, 1)]
    assert [path.name for path in paths] == ["a.png", "a (1).png", "a.png"]
    assert [path.read_bytes() for path in paths] == [picture(1), picture(2), picture(1)]
    assert names(tmp_path) == ["a (1).png", "a.png"]


@pytest.mark.usefixtures("without_links", "without_careful_moves")
async def test_a_move_that_fails_leaves_no_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", refusing(errno.EIO))
    with pytest.raises(DownloadError, match="has a fault"):
        await saved(tmp_path, picture())
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", ["write", "fsync"])
@pytest.mark.parametrize(("error", "told"), [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is used up")])
async def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: int, told: str
) -> None:
    """Where space is given late (network drives) fsync is the first to know."""
    (tmp_path / "a.png").write_bytes(b"mine")
    monkeypatch.setattr(os, step, refusing(error))
    with pytest.raises(DownloadError, match=told):
        await saved(tmp_path, picture())
    assert names(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"mine"


async def test_files_that_come_while_a_name_is_made_durable_share_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, begun, go, synced = _Names(tmp_path), threading.Event(), threading.Event(), []

    def fsync(file: int) -> None:
        synced.append(file)
        begun.set()
        assert go.wait(10)

    monkeypatch.setattr(os, "fsync", fsync)
    threads = [threading.Thread(target=names.sync) for _ in range(5)]
    threads[0].start()
    assert begun.wait(10)
    waiting = threading.Barrier(5)
    real = names._turn

    class Turn:
        """Tells that somebody has looked how far it is, and waits for the turn."""

        def __enter__(self) -> None:
            waiting.wait(10)
            real.acquire()

        def __exit__(self, *error: object) -> None:
            real.release()

    names._turn = Turn()  # type: ignore[assignment] # what a lock is to `with`
    for thread in threads[1:]:
        thread.start()
    waiting.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(synced) == 2
