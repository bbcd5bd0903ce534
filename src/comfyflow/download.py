"""A file from the server onto this disk, whole or not at all: /view -> `.part` -> verified -> published.

Everything that blocks (disk, hashing, looking into the file) runs in worker threads, at the same time as
reading from the server; a file of up to 2 MiB takes one hop to a thread in all. At most about 8 MiB of a file
are in memory.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import random
import shutil
import stat
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
from anyio.to_thread import run_sync

from .errors import BadAnswer, DownloadError, OutputUnavailable, ServerError, ServerUnreachable
from .media import Damaged, Inspector, MediaInfo
from .models import OutputFile, SavedFile
from .names import numbered, safe_name

log = logging.getLogger(__name__)

MAX_SIZE = 64 << 30
"""Bytes that a file may have unless the caller says otherwise."""

BLOCK_SIZE = 2 << 20  # bytes that go to the disk at once
PROGRESS = 64 << 10  # bytes an attempt has to get farther than any before it, to renew the budget of attempts
DISK_RESERVE = 64 << 20  # bytes that stay free when nobody knows how long the file will be
FLUSH_EVERY = 8 << 20  # bytes after which the system is asked to start writing to the disk itself
MAX_NUMBER = 9999
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_LINKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
)
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

T = TypeVar("T")
OnBytes = Callable[[int, int | None], None]
"""Called on the event loop with the bytes that are here and the bytes there will be, None while nobody knows.
The first number falls back to 0 when the file has to be read again."""


class ViewAnswer(Protocol):
    """An open answer of /view: 200, 206, 404, 412 or 416. Sizes in bytes."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def etag(self) -> str | None:
        """What tells this version of the file from others."""

    @property
    def length(self) -> int | None:
        """Content-Length: what this answer will bring."""

    @property
    def total(self) -> int | None:
        """The whole file's size, from Content-Range (a 416 has it too)."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body. Raises ServerUnreachable when the connection breaks or stalls."""


class Source(Protocol):
    """Where files come from; `comfyflow.api.Api` is one."""

    def open_view(
        self, output: OutputFile, *, offset: int = 0, etag: str | None = None
    ) -> AbstractAsyncContextManager[ViewAnswer]:
        """From `offset` bytes on, with Range and If-Match. Raises ServerUnreachable, BadAnswer."""

    async def view_size(self, output: OutputFile) -> int | None:
        """The file's size in bytes, None when the server does not tell or does not have it."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often to try, and how long to wait in between, in seconds.

    `attempts` in a row without progress end it; `damaged` is how often a file that arrived damaged is read
    again. The waits are `first`, then times `factor`, up to `ceiling`, each shortened by chance by up to a
    half.
    """

    attempts: int = 5
    damaged: int = 2
    first: float = 0.25
    factor: float = 2.0
    ceiling: float = 10.0

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self.ceiling, self.first * self.factor ** (failures - 1)) * random.uniform(0.5, 1.0)


_RETRIES = Retries()


async def save(
    source: Source,
    output: OutputFile,
    destination: Path,
    *,
    retries: Retries = _RETRIES,
    limiter: anyio.CapacityLimiter | None = None,
    on_bytes: OnBytes | None = None,
    max_size: int = MAX_SIZE,
) -> SavedFile:
    """Bring one file into the existing folder `destination`, verified by its length and by its own structure.

    A broken download goes on where it stopped (Range with If-Match, as ComfyUI ignores If-Range with an ETag:
    recording 20). A file that is there already with the same content is left alone and its path returned; a
    different one of that name is never touched: the new one becomes `name (1).png`. The name is made safe
    first; links are never followed. `limiter` bounds how many downloads run at once, over as many calls as
    share it. `max_size` is in bytes.

    Raises OutputUnavailable when the server no longer has the file, else DownloadError (also for a server
    that stays unreachable, and for a full or missing disk). Cancelling removes the `.part`; a file is
    published whole or not at all.
    """
    if limiter is not None:
        async with limiter:
            return await save(
                source, output, destination, retries=retries, on_bytes=on_bytes, max_size=max_size
            )
    part = _Part(destination, output)
    try:
        return await _Download(source, part, retries, on_bytes, max_size).run()
    finally:
        await part.leave()


async def save_local(
    folder: Path, output: OutputFile, destination: Path, *, expected_size: int | None = None
) -> SavedFile | None:
    """Take a file from ComfyUI's output `folder`, mounted here: a hard link where possible, else a copy.

    Verified and published as by `save`. None when there is no such file inside `folder` (links resolved),
    when it has not `expected_size` bytes, or is damaged: then the server has to be asked. Only files of type
    "output" live there. A hard link shares its content with ComfyUI's file: a node that rewrites its file in
    place changes both. Raises DownloadError when `destination` cannot take it.
    """
    if output.type != "output":
        return None
    part = _Part(destination, output)
    try:
        return await part.on_disk(part.take, folder, expected_size)
    except Damaged as damage:
        log.info("%s in %s: %s", output.filename, folder, damage.reason)
        return None
    finally:
        await part.leave()


async def save_all(
    source: Source,
    outputs: Iterable[OutputFile],
    destination: Path,
    *,
    downloads: int = 4,
    limiter: anyio.CapacityLimiter | None = None,
    mounted: Path | None = None,
    retries: Retries = _RETRIES,
    on_bytes: Callable[[OutputFile, int, int | None], None] | None = None,
    max_size: int = MAX_SIZE,
) -> list[SavedFile]:
    """Bring many files, `downloads` at a time (or as a shared `limiter` allows), and return them in order.

    Where ComfyUI's output folder is `mounted` here files are taken from there, and over HTTP when that does
    not work. When one fails the others are still brought; then the first error (in the order of `outputs`) is
    raised.
    """
    wanted = list(outputs)
    limit = limiter or anyio.CapacityLimiter(downloads)
    done: list[SavedFile | DownloadError | None] = [None] * len(wanted)

    async def bring(place: int, output: OutputFile) -> None:
        report = None if on_bytes is None else lambda here, total: on_bytes(output, here, total)
        try:
            async with limit:
                done[place] = (await _from_mount(source, mounted, output, destination)) or await save(
                    source, output, destination, retries=retries, on_bytes=report, max_size=max_size
                )
        except DownloadError as error:
            done[place] = error

    if len(wanted) == 1:  # the ordinary job; a task of its own would cost more than it brings
        await bring(0, wanted[0])
    else:
        async with anyio.create_task_group() as group:
            for place, output in enumerate(wanted):
                group.start_soon(bring, place, output)
    errors = [result for result in done if isinstance(result, DownloadError)]
    if errors:
        raise errors[0]
    return [result for result in done if isinstance(result, SavedFile)]


async def _from_mount(
    source: Source, mounted: Path | None, output: OutputFile, destination: Path
) -> SavedFile | None:
    if mounted is None or output.type != "output":
        return None
    try:  # the size tells a file of the same name in another server's folder from ours
        size = await source.view_size(output)
    except ServerError:
        size = None
    return await save_local(mounted, output, destination, expected_size=size)


class _Interrupted(Exception):
    """This attempt came to nothing, another one may do better."""


class _Download:
    """The attempts for one file."""

    def __init__(
        self, source: Source, part: _Part, retries: Retries, on_bytes: OnBytes | None, max_size: int
    ) -> None:
        self._source, self._part, self._retries = source, part, retries
        self._on_bytes, self._max_size = on_bytes, max_size
        self._etag: str | None = None
        self._total: int | None = None
        self._writing: asyncio.Task[None] | None = None

    async def run(self) -> SavedFile:
        failures, damages, farthest = 0, 0, 0
        while True:
            try:
                return await self._attempt()
            except Damaged as damage:
                cause: Exception = damage
                damages += 1
                hopeless = damages > self._retries.damaged
                await self._restart()
            except (ServerUnreachable, BadAnswer, _Interrupted) as error:
                cause = error
                hopeless = isinstance(error, BadAnswer) and error.status not in _TRY_AGAIN
            if self._part.size >= farthest + PROGRESS:
                failures, farthest = 0, self._part.size
            failures += 1
            if hopeless or failures >= self._retries.attempts:
                raise self._part.error(str(cause)) from cause
            log.info("%s: %s; trying again", self._part.output.filename, cause)
            await anyio.sleep(self._retries.wait(failures))

    async def _attempt(self) -> SavedFile:
        if self._part.size and self._etag is None:
            await self._restart()  # nothing would tell whether the rest belongs to the same file
        offset = self._part.size
        async with self._source.open_view(self._part.output, offset=offset, etag=self._etag) as answer:
            if answer.status == 404:
                reason = "the server no longer has this file: run the workflow again"
                raise OutputUnavailable(reason, output=self._part.output, destination=self._part.folder)
            complete = answer.status == 416 and answer.total == offset
            if not complete:
                await self._begin(answer, offset)
            rest = [] if complete else await self._pour(answer)
        return await self._part.on_disk(self._part.finish, rest)

    async def _begin(self, answer: ViewAnswer, offset: int) -> None:
        """Take note of what the answer will bring; start again when it is not the rest of what is here."""
        if answer.status == 200:
            if offset:
                await self._restart()
            self._total = answer.length
            self._etag = answer.etag if answer.etag and not answer.etag.startswith("W/") else None
        elif not self._continues(answer, offset):
            await self._restart()
            raise _Interrupted("the file changes on the server while it is read")
        if self._total is not None and self._total > BLOCK_SIZE:
            if self._total > self._max_size:
                raise self._too_large()
            await self._part.on_disk(self._part.make_room, self._total)

    def _continues(self, answer: ViewAnswer, offset: int) -> bool:
        if answer.status != 206 or not offset or answer.etag not in {None, self._etag}:
            return False
        if self._total is None:
            self._total = answer.total
        rest = None if self._total is None else self._total - offset
        return answer.total in {None, self._total} and (rest is None or answer.length in {None, rest})

    async def _restart(self) -> None:
        self._etag = self._total = None
        await self._part.on_disk(self._part.restart)

    async def _pour(self, answer: ViewAnswer) -> list[bytes]:
        """Read the body while the block before is written; the last block comes back unwritten."""
        block: list[bytes] = []
        chunks = answer.chunks()
        try:
            block_size, here = 0, self._part.size
            async for chunk in chunks:
                block.append(chunk)
                block_size += len(chunk)
                here += len(chunk)
                self._check(here)
                if block_size >= BLOCK_SIZE:
                    await self._written()
                    self._writing = asyncio.create_task(self._part.on_disk(self._part.write, block))
                    block, block_size = [], 0
            if self._total is not None and here < self._total:
                raise _Interrupted(f"the connection ended after {here} of {self._total} bytes")
        except (ServerUnreachable, _Interrupted):
            await self._written()
            await self._part.on_disk(self._part.write, block)  # so that the next attempt starts behind it
            raise
        finally:
            with anyio.CancelScope(shield=True):  # one block's write at most
                if isinstance(chunks, AsyncGenerator):
                    await chunks.aclose()
                await self._written()
        return block

    def _check(self, here: int) -> None:
        if self._total is not None and here > self._total:
            raise Damaged(f"the server sends more than the {self._total} bytes that it announced")
        if here > self._max_size:
            raise self._too_large()
        if self._on_bytes is not None:
            self._on_bytes(here, self._total)

    def _too_large(self) -> DownloadError:
        return self._part.error(f"it has more than the {self._max_size} bytes that are allowed")

    async def _written(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing


class _Abandoned(Exception):
    """Nobody waits for this thread any more. Nobody sees this error either."""


class _Part:
    """A hidden file in the folder where it will be published.

    `on_disk` runs the methods of the lower half in a worker thread. A lock keeps them apart: a native
    cancellation (asyncio's own) leaves a thread running, and what comes after it must wait for that thread.
    """

    def __init__(self, destination: Path, output: OutputFile) -> None:
        self.output = output
        self.folder = Path(os.path.abspath(destination))
        self.size = 0
        self._name = safe_name(output.filename)
        self._path = self.folder / f".comfyflow-{uuid.uuid4().hex}.part"
        self._lock = threading.Lock()
        self._file: int | None = None
        self._over = False
        self._forget()

    def error(self, reason: str) -> DownloadError:
        """A DownloadError about this file."""
        return DownloadError(reason, output=self.output, destination=self.folder)

    async def on_disk(self, call: Callable[..., T], *args: object) -> T:
        """Run a method of the lower half in a thread. Raises DownloadError for what the system refuses."""
        try:
            return await run_sync(self._locked, call, args, abandon_on_cancel=True)
        except OSError as error:
            raise self.error(_told(error, self.folder)) from error

    async def leave(self) -> None:
        """Remove the file unless it was published, also when cancelled."""
        if not self._over:
            self._over = True  # a thread that is still at work stops at its next block
            with anyio.CancelScope(shield=True):
                await run_sync(self._locked, self._discard, ())

    def _locked(self, call: Callable[..., T], args: tuple[object, ...]) -> T:
        with self._lock:
            return call(*args)

    # -- in a worker thread --

    def write(self, chunks: list[bytes]) -> None:
        """Look at the next bytes and write them; the list is emptied. Raises Damaged, OSError."""
        data = b"".join(chunks)  # few big steps: after each of them a thread waits for the interpreter's lock
        chunks.clear()
        if data:
            self._look_at(data)
            _write_all(self._open(), data)
            self._flush()

    def finish(self, rest: list[bytes]) -> SavedFile:
        """Write the `rest`, verify, make it durable, publish. Raises Damaged, OSError."""
        self.write(rest)
        return self._publish(self._inspector.finish())

    def take(self, source_folder: Path, expected_size: int | None) -> SavedFile | None:
        """Make this a link to, or a copy of, the file in ComfyUI's own folder. Raises Damaged, OSError."""
        found = _inside(source_folder, self.output)
        if found is None:
            return None
        if self._link_from(found):
            self._file = os.open(self._path, _READ)
            for chunk in _blocks(self._file):
                self._look_at(chunk)
        else:
            for chunk in _blocks_of(found):
                self.write([chunk])
        if expected_size not in {None, self.size}:
            return None
        return self._publish(self._inspector.finish())

    def restart(self) -> None:
        """Forget everything that was written."""
        self._forget()
        if self._file is not None:
            os.lseek(self._file, 0, os.SEEK_SET)
            os.ftruncate(self._file, 0)

    def make_room(self, size: int) -> None:
        """Raise OSError now when the disk cannot take a file of `size` bytes."""
        if shutil.disk_usage(self.folder).free < size - self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _forget(self) -> None:
        self.size = self._flushed = 0
        self._sha256 = hashlib.sha256()
        self._inspector = Inspector(self._name)

    def _look_at(self, chunk: bytes) -> None:
        if self._over:
            raise _Abandoned
        self._inspector.feed(chunk)
        self._sha256.update(chunk)
        self.size += len(chunk)

    def _open(self) -> int:
        if self._file is None:
            self._file = os.open(self._path, _CREATE, 0o666)
        return self._file

    def _flush(self) -> None:
        """Let the system write early what fsync would wait for at the end; notice a disk that fills up."""
        fresh = self.size - self._flushed
        if self._file is None or fresh < FLUSH_EVERY:
            return
        if sys.platform == "linux":  # there this starts writing back and does not wait for it
            os.posix_fadvise(self._file, self._flushed, fresh, os.POSIX_FADV_DONTNEED)
        self._flushed = self.size
        if shutil.disk_usage(self.folder).free < DISK_RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _link_from(self, found: Path) -> bool:
        try:
            os.link(found, self._path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        return True

    def _publish(self, info: MediaInfo) -> SavedFile:
        os.fsync(self._open())
        self._close()
        final = next((path for path in self._choices() if self._becomes(path)), None)
        if final is None:
            raise FileExistsError(errno.EEXIST, "there are too many files of this name")
        _sync_folder(self.folder)
        self._over = True
        return SavedFile(
            self.output, final, self.size, self._sha256.hexdigest(),
            info.media_type, info.width, info.height, info.duration,
        )  # fmt: skip

    def _choices(self) -> Iterable[Path]:
        yield self.folder / self._name
        for number in range(1, MAX_NUMBER + 1):
            yield self.folder / numbered(self._name, number)

    def _becomes(self, final: Path) -> bool:
        """Publish under this name if it is free or holds the same content. Never replaces anything."""
        try:
            os.link(self._path, final)
        except FileExistsError:
            if not self._is_same(final):
                return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._moves(final)
        os.unlink(self._path)
        return True

    def _moves(self, final: Path) -> bool:
        """Without hard links (exFAT, some network drives): take the name first, then move onto it."""
        try:
            os.close(os.open(final, _CREATE, 0o666))
        except FileExistsError:
            if not self._is_same(final):
                return False
            os.unlink(self._path)
            return True
        os.replace(self._path, final)
        return True

    def _is_same(self, path: Path) -> bool:
        try:
            file = os.open(path, _READ)
        except OSError:  # a link, a file that may not be read, one that has just gone
            return False
        try:
            status = os.fstat(file)
            return (
                stat.S_ISREG(status.st_mode)
                and status.st_size == self.size
                and _sha256(file) == self._sha256.hexdigest()
            )
        finally:
            os.close(file)

    def _discard(self) -> None:
        self._close()
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._path)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write_all(file: int, data: bytes) -> None:
    written = os.write(file, data)
    while written < len(data):  # the disk is full (then the next write says so), or a signal came
        written += os.write(file, memoryview(data)[written:])


def _blocks(file: int) -> Iterator[bytes]:
    while chunk := os.read(file, BLOCK_SIZE):
        yield chunk


def _blocks_of(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as source:
            yield from _blocks(source.fileno())
    except OSError as error:  # not ours to report: the server still has the file
        raise Damaged(f"it cannot be read ({error.strerror})") from error


def _sha256(file: int) -> str:
    digest = hashlib.sha256()
    for chunk in _blocks(file):
        digest.update(chunk)
    return digest.hexdigest()


def _inside(folder: Path, output: OutputFile) -> Path | None:
    """The file in ComfyUI's folder, links resolved, if it is one and lies there."""
    try:
        base = folder.resolve(strict=True)
        path = (base / output.subfolder / output.filename).resolve(strict=True)
        return path if path.is_relative_to(base) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # not there; a NUL in the name; links in a circle
        return None


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable. Windows and some network drives cannot do that for a folder."""
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


_REASONS = {
    errno.ENOSPC: "the disk of {} is full",
    errno.EDQUOT: "your quota on the disk of {} is used up",
    errno.ENOENT: "the folder {} does not exist, create it first",
    errno.ENOTDIR: "{} is not a folder",
    errno.EACCES: "you may not write into the folder {}",
    errno.EPERM: "you may not write into the folder {}",
    errno.EROFS: "the disk of {} is read-only",
    errno.EFBIG: "the disk of {} cannot hold a file of this size",
    errno.EIO: "the disk of {} has a fault",
    errno.EEXIST: "the folder {} has too many files of this name",
}


def _told(error: OSError, folder: Path) -> str:
    """What the system refused, as half a sentence."""
    reason = _REASONS.get(error.errno or 0, "the folder {} cannot take it ({})")
    return reason.format(folder, error.strerror or error)
