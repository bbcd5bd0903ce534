"""A 1 GiB file: how fast comfyflow saves it beside plain aiohttp-to-disk, and what memory that takes.

comfyflow hashes the file, walks its structure and flushes it to the disk before it gets its name. So there
are two floors: one that leaves the bytes in the page cache, as any script does, and one that brings them to
the disk. The first may be faster than the disk itself; the target is held against it all the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from harness import HERE, MIB, Row, child, forget_peak, memory, server, show

from comfyflow import ComfyClient, OutputFile

SIZE, ROUNDS, SPEED, PEAK = 2**30, 6, 0.8, 60
CHUNK = 2**18  # bytes that the floor reads at once, as comfyflow does


def glb() -> Iterator[bytes]:
    """A 3D file whose one binary chunk is all but 20 bytes."""
    yield struct.pack("<4sIIII", b"glTF", 2, SIZE, SIZE - 20, 0x004E4942)
    yield from ((bytes(MIB)) for _ in range(SIZE // MIB - 1))
    yield bytes(MIB - 20)


def png() -> Iterator[bytes]:
    """A picture of many 1 MiB chunks, each with its checksum; nobody unpacks them."""
    yield b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 16384, 16384, 8, 6, 0, 0, 0))
    data = png_chunk(b"IDAT", bytes(MIB - 12))
    yield from (data for _ in range(SIZE // MIB))
    yield png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


FILES: dict[str, Callable[[], Iterator[bytes]]] = {"big.glb": glb, "big.png": png}


def write(path: Path, parts: Iterator[bytes]) -> None:
    """Write the file to the disk itself, so that the first reader does not pay for it."""
    with path.open("wb") as file:
        file.writelines(parts)
        os.fsync(file.fileno())


async def plain(url: str, name: str, folder: Path, *, flush: bool = False) -> None:
    """What anybody writes by hand; with `flush` the bytes are on the disk when it returns."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/view", params={"filename": name}) as answer,
    ):
        with (folder / name).open("wb") as file:
            async for chunk in answer.content.iter_chunked(CHUNK):
                file.write(chunk)
            if flush:
                file.flush()
                os.fsync(file.fileno())


async def comfyflow(url: str, name: str, folder: Path) -> None:
    """Everything that download.py promises."""
    async with ComfyClient(url, websocket=False) as client:
        await client.download_output(OutputFile("1", name), folder)


WAYS: dict[str, Callable[[str, str, Path], Awaitable[None]]] = {
    "plain": plain,
    "plain + fsync": partial(plain, flush=True),
    "comfyflow": comfyflow,
}


async def measure(way: str, url: str, name: str, folder: Path) -> dict[str, float]:
    """Download once; seconds, and bytes that the peak lay above what was held before."""
    forget_peak()
    idle, began = memory("VmRSS"), time.perf_counter()
    await WAYS[way](url, name, folder)
    took = time.perf_counter() - began
    assert [path.stat().st_size for path in folder.iterdir()] == [(folder.parent / name).stat().st_size]
    return {"seconds": took, "peak": memory("VmHWM") - idle}


def one(way: str, url: str, name: str, folder: Path) -> dict[str, Any]:
    """One download in a process of its own, into an empty folder on the same disk."""
    with tempfile.TemporaryDirectory(dir=folder) as target:
        return child(Path(__file__).name, way, url, name, target)


def rows(url: str, name: str, folder: Path) -> list[Row]:
    """Each way several times in a row, the first time unseen: a disk has to get used to what is asked of it.

    Measured: after a way that leaves its bytes in memory, the next one that flushes is half as fast, once.
    """
    turns = {way: [one(way, url, name, folder) for _ in range(ROUNDS + 1)][1:] for way in WAYS}
    seconds = {way: statistics.median(turn["seconds"] for turn in found) for way, found in turns.items()}
    table = []
    for way, found in turns.items():
        ratios = [seconds[floor] / seconds[way] for floor in list(WAYS)[:2]]
        peak = max(turn["peak"] for turn in found) / MIB
        good = ratios[0] >= SPEED and peak < PEAK if way == "comfyflow" else None
        target = f">= {SPEED} of plain, < {PEAK} MiB" if way == "comfyflow" else ""
        figures = [f"{SIZE / MIB / seconds[way]:.0f}", *(f"{ratio:.2f}" for ratio in ratios), f"{peak:.0f}"]
        table.append(Row(f"{name} {way}", figures, target, good))
    return table


def main() -> None:
    disk = HERE.parent / ".cache"  # not the system's folder: that is often no disk at all
    disk.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=disk) as name:
        folder = Path(name)
        table = []
        with server(str(HERE / "static_server.py"), name) as url:
            for file, parts in FILES.items():
                write(folder / file, parts())
                table += rows(url, file, folder)
                (folder / file).unlink()
    columns = ["MiB/s", "of plain", "of plain + fsync", "peak above idle, MiB"]
    show(f"{SIZE // MIB} MiB download, median of {ROUNDS} rounds", columns, table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        way, url, name, folder = sys.argv[1:]
        print(json.dumps(asyncio.run(measure(way, url, name, Path(folder)))))
    else:
        main()
