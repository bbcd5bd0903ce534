"""Are the files still what the record says? Reads, never writes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from .errors import UsageError
from .queries import AssetRow

BLOCK_SIZE = 1 << 20  # bytes
_THREADS = 4
_CHUNK = 64  # files that are looked at before the first of them is told
_NAMES = 500  # files that are looked for in the record with one statement
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

T = TypeVar("T")
Named = Callable[[list[str]], Awaitable[Collection[str]]]


class Verdict(StrEnum):
    """What is to be said of a file."""

    OK = "ok"
    MISSING = "missing"
    CHANGED = "changed"  # there, with other bytes than were recorded
    ORPHANED = "orphaned"  # there, and no row names it
    UNVERIFIABLE = "unverifiable"  # `reason` says why


@dataclass(frozen=True, slots=True)
class Checked:
    """One file: its row, if there is one, and its place, if it is not a URL."""

    asset: AssetRow | None
    path: Path | None
    verdict: Verdict
    reason: str | None = None


async def verified(
    assets: AsyncIterable[AssetRow], named: Named | None, root: Path | None
) -> AsyncIterator[Checked]:
    """Check every asset, then look for files under `root` that no row names.

    `named` answers which of some paths a row has; without it orphans are not looked for. Memory does not grow
    with the number of files or their size. Raises UsageError when `root` is no folder.
    """
    root = None if root is None else await run_sync(_folder, root)
    async for chunk in _chunks(assets):
        for checked in await _all_checked(chunk, root):
            yield checked
    if root is not None and named is not None:
        async for checked in _orphans(root, named):
            yield checked


def check(asset: AssetRow, root: Path | None) -> Checked:
    """Look at one file, blocking. A link that leads out of the folder is not followed."""
    if asset.is_url:
        return Checked(asset, None, Verdict.UNVERIFIABLE, "it is kept at a URL")
    if not asset.output_path:
        return Checked(asset, None, Verdict.UNVERIFIABLE, "its row names no file")
    path = asset.find(root)
    try:
        if not _stays_inside(asset, path, root):
            return Checked(asset, path, Verdict.UNVERIFIABLE, "its path leads out of the folder")
        verdict, reason = _compared(asset, path)
    except (FileNotFoundError, NotADirectoryError):
        return Checked(asset, path, Verdict.MISSING)
    # RuntimeError: Path.resolve, links in a circle, Python < 3.13; ValueError: a name that no file can have.
    except (OSError, RuntimeError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        return Checked(asset, path, Verdict.UNVERIFIABLE, f"it cannot be read: {told}")
    return Checked(asset, path, verdict, reason)


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, blocking; a link is not followed. Raises OSError."""
    file = os.open(path, _READ)
    try:
        digest = hashlib.sha256()
        while block := os.read(file, BLOCK_SIZE):
            digest.update(block)
        return digest.hexdigest()
    finally:
        os.close(file)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether the path, with all links followed, stays in the folder. Raises OSError, RuntimeError."""
    return path.resolve().is_relative_to(folder.resolve())


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder: give the one that the files were saved in")
    return Path(os.path.abspath(root))


def _stays_inside(asset: AssetRow, path: Path, root: Path | None) -> bool:
    if os.path.isabs(asset.output_path):  # the writer itself saw the file outside of its folder
        return path.resolve() == path.parent.resolve() / path.name
    return any(path == base / asset.output_path and is_inside(path, base) for base in asset.bases(root))


def _compared(asset: AssetRow, path: Path) -> tuple[Verdict, str | None]:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return Verdict.CHANGED, "it is not an ordinary file"
    if asset.size not in {None, status.st_size}:
        return Verdict.CHANGED, f"it has {status.st_size} bytes instead of {asset.size}"
    if asset.sha256 is None:
        return Verdict.UNVERIFIABLE, "its row has no sha256"
    if sha256_of(path) != asset.sha256:
        return Verdict.CHANGED, "its bytes are others"
    return Verdict.OK, None


async def _all_checked(assets: list[AssetRow], root: Path | None) -> list[Checked]:
    found: dict[int, Checked] = {}
    limiter = anyio.CapacityLimiter(_THREADS)

    async def look(number: int, asset: AssetRow) -> None:
        found[number] = await run_sync(check, asset, root, limiter=limiter, abandon_on_cancel=True)

    async with anyio.create_task_group() as tasks:
        for number, asset in enumerate(assets):
            tasks.start_soon(look, number, asset)
    return [found[number] for number in range(len(assets))]


async def _orphans(root: Path, named: Named) -> AsyncIterator[Checked]:
    walk = _files_under(root)
    while chunk := await run_sync(_next, walk):
        names = {checked: _names(checked.path, root) for checked in chunk if checked.path is not None}
        known = await named([name for both in names.values() for name in both])
        for checked, both in names.items():
            if checked.verdict is not Verdict.ORPHANED or not any(name in known for name in both):
                yield checked


def _next(walk: Iterator[Checked]) -> list[Checked]:
    return list(islice(walk, _NAMES))


def _names(path: Path, root: Path) -> tuple[str, str]:
    """How a row may name this file."""
    return path.relative_to(root).as_posix(), str(path)


def _files_under(folder: Path) -> Iterator[Checked]:
    """Ordinary files that are not hidden, links not followed; and folders that may not be read."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield from _entry(entry)
    except OSError as error:
        yield Checked(None, folder, Verdict.UNVERIFIABLE, f"the folder cannot be read: {error.strerror}")


def _entry(entry: os.DirEntry[str]) -> Iterator[Checked]:
    if entry.name.startswith(".") or entry.name.endswith(".part"):
        return
    if entry.is_dir(follow_symlinks=False):
        yield from _files_under(Path(entry.path))
    elif entry.is_file(follow_symlinks=False):
        yield Checked(None, Path(entry.path), Verdict.ORPHANED)


async def _chunks(source: AsyncIterable[T]) -> AsyncIterator[list[T]]:
    chunk: list[T] = []
    async for item in source:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
