"""The disk's side of a download: blocks on their way to one thread, and a hidden file that gets its name at
the end."""

from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from comfyflow.errors import DownloadError
from comfyflow.media import Damaged
from comfyflow.models import OutputFile
from comfyflow.part import BLOCKS, Blocks, Part


def picture(color: int = 0) -> bytes:
    data = io.BytesIO()
    Image.new("L", (8, 6), color).save(data, "PNG")
    return data.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def saved(folder: Path, data: bytes, name: str = "a.png") -> Path:
    part = Part(folder, OutputFile("1", name))
    try:
        return (await part.on_disk(part.finish, [data])).path
    finally:
        await part.leave()


async def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    part, data = Part(tmp_path, OutputFile("1", "a.png")), picture()
    await part.on_disk(part.write, [data[:20]])
    assert [name.endswith(".part") for name in names(tmp_path)] == [True]
    file = await part.on_disk(part.finish, [data[20:]])
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
        await part.on_disk(part.finish, [])
    await part.leave()
    assert names(tmp_path) == []


async def test_a_restart_forgets_what_was_written(tmp_path: Path) -> None:
    part = Part(tmp_path, OutputFile("1", "a.png"))
    await part.on_disk(part.write, [picture(1)[:20]])
    await part.on_disk(part.restart)
    assert (await part.on_disk(part.finish, [picture(2)])).path.read_bytes() == picture(2)


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
    assert (await part.on_disk(part.finish, [])).path.read_bytes() == b"".join(data)


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
