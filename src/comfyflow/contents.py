"""The bytes of files in the database (asset_contents): for stacks without a shared folder.

Once for each content, in parts of 1 MiB: neither side ever holds more than a part.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import anyio
from anyio.to_thread import run_sync

from .database import Connections
from .errors import StoreError
from .models import SavedFile
from .names import numbered
from .part import MAX_NUMBER
from .verify import sha256_of

PART = 1 << 20  # bytes; the table takes no longer ones

_log = logging.getLogger(__name__)


class _Changed(Exception):
    """The file is not what was recorded."""


async def keep(connections: Connections, file: SavedFile, *, limit_bytes: int) -> bool:
    """Store the bytes of a file, all or none; True when they are in the database now.

    False, and nothing stored, for a file of more than `limit_bytes`, and for one that is gone or has other
    bytes than were recorded (that is logged). Call it after the file's row was written: what no row names may
    be pruned. Raises StoreError. Cancelling it stores nothing.
    """
    if file.size > limit_bytes:
        return False

    async def work(connection: Any) -> None:
        async with connection.transaction():
            # Another one may be storing the same bytes: wait for that instead of sending them as well.
            await connection.execute("SELECT set_config('lock_timeout', '0', true)")
            await take_lock(connection, file.sha256)
            if not await connection.fetchval(_IS_THERE, file.sha256):
                await _store(connection, file)

    try:
        await connections.run(work)
    except (_Changed, OSError) as error:
        _log.warning("the content of %s is not kept in the database: %s", file.path, error)
        return False
    return True


async def restore(connections: Connections, sha256: str, destination: Path) -> Path:
    """Write the bytes back into the file `destination`, which is there only when it is whole and identical;
    returns its path.

    Folders are made. What is there already is left alone: a file with the same bytes is a success, and beside
    anything else the new one becomes `name (1).png`, as with downloads. Raises StoreError when the content is
    not there, not complete, not what its name says, or when the disk refuses; then nothing is left behind.
    """
    part = destination.with_name(f".comfyflow-{uuid4().hex}.part")
    try:
        if await run_sync(_is_same, destination, sha256):
            return destination
        size = await _size(connections, sha256)
        if (found := await run_sync(_found, destination, sha256, size)) is not None:
            return found
        await run_sync(_make_folder, destination.parent)
        await _receive(connections, sha256, part)
        return await run_sync(_publish, part, destination, sha256)
    except OSError as error:
        raise StoreError(f"{destination} cannot be written: {error.strerror or error}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(_discard, part)


async def take_lock(connection: Any, sha256: str, *, wait: bool = True) -> bool:
    """Own this content until the end of the transaction, towards everybody else who stores or prunes it.

    Without `wait` False when another one owns it.
    """
    function = "pg_advisory_xact_lock" if wait else "pg_try_advisory_xact_lock"
    taken = await connection.fetchval(f"SELECT {function}(hashtextextended($1, 0))", f"comfyflow:{sha256}")
    return taken is not False


_IS_THERE = "SELECT EXISTS (SELECT FROM asset_contents WHERE sha256 = $1)"
_STORE = "INSERT INTO asset_contents (sha256, part, bytes, data) VALUES ($1, $2, $3, $4)"
_SIZE = "SELECT bytes FROM asset_contents WHERE sha256 = $1 LIMIT 1"
_LOAD = "SELECT part, bytes, data FROM asset_contents WHERE sha256 = $1 AND part >= $2 ORDER BY part LIMIT 1"


async def _store(connection: Any, file: SavedFile) -> None:
    digest, sent, number = hashlib.sha256(), 0, 0
    source = await run_sync(_open, file.path)
    try:
        while (data := await run_sync(source.read, PART)) or number == 0:
            digest.update(data)
            sent += len(data)
            if sent > file.size:  # it grows while it is read
                raise _Changed("it has more bytes than were recorded")
            await connection.execute(_STORE, file.sha256, number, file.size, data)
            number += 1
    finally:
        source.close()
    if digest.hexdigest() != file.sha256:
        raise _Changed("its bytes are not those that were recorded")


def _open(path: Path) -> BinaryIO:
    return open(path, "rb", buffering=PART)


async def _receive(connections: Connections, sha256: str, part: Path) -> None:
    digest = hashlib.sha256()
    target = await run_sync(_create, part)
    try:
        async with aclosing(_parts(connections, sha256)) as parts:
            async for data in parts:
                digest.update(data)
                await run_sync(target.write, data)
        await run_sync(_flush, target)
    finally:
        target.close()
    if digest.hexdigest() != sha256:
        raise StoreError(
            f"the content {sha256} in the database is damaged: restore the database, or make the file again"
        )


async def _size(connections: Connections, sha256: str) -> int:
    rows = await connections.fetch(_SIZE, sha256)
    if not rows:
        raise StoreError(f"the database holds no content {sha256}: it was recorded without --keep-content")
    size: int = rows[0]["bytes"]
    return size


async def _parts(connections: Connections, sha256: str) -> AsyncGenerator[bytes]:
    number = size = told = 0
    while rows := await connections.fetch(_LOAD, sha256, number):
        (row,) = rows
        if row["part"] != number:
            break
        yield row["data"]
        number, size, told = number + 1, size + len(row["data"]), row["bytes"]
    if size < told or rows:
        raise StoreError(f"the content {sha256} in the database is not complete: part {number} is missing")


# -- on disk, in threads --


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _create(part: Path) -> BinaryIO:
    return open(part, "xb", buffering=PART)


def _flush(target: BinaryIO) -> None:
    target.flush()
    os.fsync(target.fileno())


def _choices(destination: Path) -> Iterator[Path]:
    yield destination
    for number in range(1, MAX_NUMBER + 1):
        yield destination.with_name(numbered(destination.name, number))


def _found(destination: Path, sha256: str, size: int) -> Path | None:
    """Where these bytes were written the last time, beside others of that name. The size goes first: it saves
    reading all of them."""
    for path in _choices(destination):
        try:
            there = path.lstat().st_size
        except FileNotFoundError:
            return None
        if there == size and _is_same(path, sha256):
            return path
    return None


def _is_same(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:  # nothing, a folder, a link, a file that may not be read
        return False


def _publish(part: Path, destination: Path, sha256: str) -> Path:
    """Give the file the first name that is free. Never replaces anything."""
    for path in _choices(destination):
        try:
            _name(part, path)
        except FileExistsError:
            if not _is_same(path, sha256):
                continue
        return path
    raise FileExistsError(errno.EEXIST, "there are too many files of this name")


def _name(part: Path, path: Path) -> None:
    """Raises FileExistsError when the name is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (exFAT, some network drives): take the name, then move onto it
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(part, path)


def _discard(part: Path) -> None:
    with suppress(OSError):
        part.unlink()
