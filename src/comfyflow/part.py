"""The disk's side of a download: a hidden file that is hashed and looked into while it grows, then published
whole.

Everything that blocks runs in worker threads. A file of more than a block gets one thread for its whole way,
fed through `Blocks`: a thread for each block costs a third of the speed.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import hashlib
import os
import queue
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from .errors import DownloadError
from .finisher import Finisher
from .media import Damaged, Inspector, MediaInfo
from .models import OutputFile, SavedFile
from .names import numbered, safe_name
from .sweep import hold, part_name

BLOCK_SIZE = 1 << 20  # bytes that go to the disk at once
BLOCKS = 3  # that may wait for the disk; the reader of the socket waits then
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_HERE, _RENAME_NOREPLACE = -100, 1  # AT_FDCWD of fcntl.h, linux/fs.h
DISK_RESERVE = 64 << 20  # bytes that stay free when nobody knows how long the file will be
FLUSH_EVERY = 8 << 20  # bytes after which the system is asked to write to the disk: fsync finds little to do
MAX_NUMBER = 9999
_NO_LINKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
)
_FINISHER = Finisher()
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_UNNAMED = getattr(os, "O_TMPFILE", 0) and os.O_TMPFILE | os.O_RDWR
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

T = TypeVar("T")


class Blocks:
    """Blocks of bytes on their way from the event loop to the one thread that writes them."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._waiting, self._left = 0, False

    async def put(self, block: list[bytes]) -> None:
        """Hand a block over, and wait until there is room for another one, or nobody takes them any more."""
        self._queue.put(block)
        self._waiting += 1
        if self._waiting >= BLOCKS and not self._left:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """No more blocks will come."""
        self._queue.put(None)

    def taken(self) -> Iterator[list[bytes]]:
        """The blocks, for the thread. Whoever stops iterating, for whatever reason, frees the other side."""
        try:
            while (block := self._queue.get()) is not None:
                yield block
                self._tell(self._make_room)
        finally:
            self._tell(self._leave)

    def _tell(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call)

    def _make_room(self) -> None:
        self._waiting -= 1
        self._room.set()

    def _leave(self) -> None:
        self._left = True
        self._room.set()


class _Abandoned(Exception):
    """Nobody waits for this thread any more. Nobody sees this error either."""


class Part:
    """A hidden file in the folder where it will be published.

    `on_disk` runs the methods of the lower half in a worker thread. A lock keeps them apart: a native
    cancellation (asyncio's own) leaves a thread running, and what comes after it must wait for that thread.
    """

    def __init__(self, destination: Path, output: OutputFile) -> None:
        self.output = output
        self.folder = Path(os.path.abspath(destination))
        self.size = 0
        self._name = safe_name(output.filename)
        self._lock = threading.Lock()
        self._file: int | None = None
        self._path: Path | None = None  # of the hidden file; None also while it has no name at all
        self._over = False
        self._forget()

    def error(self, reason: str) -> DownloadError:
        """A DownloadError about this file."""
        return DownloadError(reason, output=self.output, destination=self.folder)

    async def on_disk(self, call: Callable[..., T], *args: object) -> T:
        """Run a method of the lower half in a thread. Raises DownloadError for what the system refuses."""
        try:
            return await run_sync(self.locked, call, *args, abandon_on_cancel=True)
        except OSError as error:
            raise self.error(_told(error, self.folder)) from error

    async def finish(self, rest: list[bytes]) -> SavedFile:
        """Write the `rest`, verify, make it durable, publish. Raises DownloadError, Damaged."""
        try:
            saved: SavedFile = await _FINISHER.finish(_End(self, rest))
        except OSError as error:
            raise self.error(_told(error, self.folder)) from error
        return saved

    async def drained(self, blocks: Blocks) -> None:
        """Write all blocks that come, in one thread, and not one of those that the whole process shares: many
        stalled downloads would leave none for anybody else. Raises DownloadError, Damaged."""
        try:
            await run_sync(
                self.locked, self.drain, blocks, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
        except OSError as error:
            raise self.error(_told(error, self.folder)) from error

    async def leave(self) -> None:
        """Remove the file unless it was published, also when cancelled."""
        if not self._over:
            self._over = True  # a thread that is still at work stops at its next block
            with anyio.CancelScope(shield=True):
                await run_sync(self.locked, self._discard)

    def locked(self, call: Callable[..., T], *args: object) -> T:
        """Run a method of the lower half in this thread, once nobody else does."""
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

    def drain(self, blocks: Blocks) -> None:
        """Write all that comes. Raises Damaged, OSError."""
        for block in blocks.taken():
            self.write(block)

    def begin_end(self, rest: list[bytes]) -> None:
        """Write the `rest`, and let the system bring it to the disk. Raises Damaged, OSError."""
        if self._over:
            raise _Abandoned
        if self._file is None:
            self._file = _unnamed_in(self.folder)
        self.write(rest)
        _start_writing(self._open(), self._flushed, self.size - self._flushed)

    def end(self) -> SavedFile:
        """Verify, make it durable, publish. Its name is durable after `names`. Raises Damaged, OSError."""
        if self._over:
            raise _Abandoned
        return self._publish(self._inspector.finish())

    def take(self, source_folder: Path, expected_size: int | None) -> SavedFile | None:
        """Make this a link to, or a copy of, the file in ComfyUI's own folder. Raises Damaged, OSError.

        None when there is no such file, or when it has not `expected_size` bytes.
        """
        found = _inside(source_folder, self.output)
        if found is None:
            return None
        if self._link_from(found):
            for chunk in _blocks(self._open()):
                self._look_at(chunk)
        else:
            for chunk in _blocks_of(found):
                self.write([chunk])
        if expected_size not in {None, self.size}:
            return None
        saved = self._publish(self._inspector.finish())
        _names_in(self.folder).sync()
        return saved

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
        while self._file is None:
            self._keep(_CREATE)
        return self._file

    def _keep(self, flags: int) -> None:
        """Open it and show that it is in work. When a sweep was quicker it goes, for another one of a new
        name."""
        path = self._hidden()
        file = os.open(path, flags, 0o666)
        if hold(file, path, alone=flags == _CREATE):
            self._file = file
            return
        os.close(file)
        self._discard()

    def _hidden(self) -> Path:
        self._path = self._path or self.folder / part_name()
        return self._path

    def _flush(self) -> None:
        """Let the system write early what fsync would wait for at the end; notice a disk that fills up."""
        fresh = self.size - self._flushed
        if self._file is None or fresh < FLUSH_EVERY:
            return
        _start_writing(self._file, self._flushed, fresh)
        self._flushed = self.size
        if shutil.disk_usage(self.folder).free < DISK_RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _link_from(self, found: Path) -> bool:
        try:
            os.link(found, self._hidden())
            self._keep(_READ)
        except FileNotFoundError:
            return False  # a sweep was quicker; where the folder is missing copying says so
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        return self._file is not None

    def _publish(self, info: MediaInfo) -> SavedFile:
        os.fsync(self._open())
        if sys.platform == "win32":
            self._close()  # an open file cannot be moved there
        final = next((path for path in self._choices() if self._becomes(path)), None)
        if final is None:
            raise FileExistsError(errno.EEXIST, "there are too many files of this name")
        self._close()  # not before: what is closed belongs to the next sweep
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
            self._link_to(final)
        except FileExistsError:
            if not self._is_same(final):
                return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._moves(final)
        if self._path is not None:
            os.unlink(self._path)
        return True

    def _link_to(self, final: Path) -> None:
        file = self._open()
        if self._path is None:
            try:  # a path from the root takes nothing from `src_dir_fd`; Python follows links with it only
                os.link(f"/proc/self/fd/{file}", final, src_dir_fd=file, follow_symlinks=True)
            except FileExistsError:
                raise
            except OSError:  # no /proc, or no links
                self._copy_to_name(file)
        if self._path is not None:
            os.link(self._path, final)

    def _copy_to_name(self, unnamed: int) -> None:
        """A hidden file in the place of one that cannot get a name."""
        self._file = None
        try:
            os.lseek(unnamed, 0, os.SEEK_SET)
            for block in _blocks(unnamed):
                _write_all(self._open(), block)
            os.fsync(self._open())
        finally:
            os.close(unnamed)

    def _moves(self, final: Path) -> bool:
        """Without hard links (exFAT, some network drives): move onto a free name. Where the system cannot do
        that in one step the name is taken first, by an empty file, and only a kill right then leaves that."""
        path = self._hidden()
        try:
            if _move_if_free(path, final):
                return True
            os.close(os.open(final, _CREATE, 0o666))
        except FileExistsError:
            if not self._is_same(final):
                return False
            os.unlink(path)
            return True
        try:
            os.replace(path, final)
        except OSError:
            os.unlink(final)
            raise
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
        path, self._path = self._path, None
        if path is not None:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _unnamed_in(folder: Path) -> int | None:
    """A file that has no name until it is whole, and goes with its process (Linux, most file systems): fewer
    steps, and nothing to sweep."""
    try:
        return os.open(folder, _UNNAMED, 0o666) if _UNNAMED else None
    except OSError:  # not here; if it is the folder, opening a named one says so
        return None


def _start_writing(file: int, offset: int, size: int) -> None:
    """Let Linux bring these bytes to the disk while more come in, and do not wait for it. Only a hint.

    fsync alone would do it all at the end, and posix_fadvise throws the pages out of the cache as well
    (measured: a GiB then takes a third longer).
    """
    call = _sync_file_range()
    if call is not None:
        call(file, offset, size, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    found = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found


def _move_if_free(path: Path, final: Path) -> bool:
    """Rename in one step, never onto another file. False where the system cannot do that. Raises
    FileExistsError."""
    call = _renameat2()
    if call is None or not call(_HERE, os.fsencode(path), _HERE, os.fsencode(final), _RENAME_NOREPLACE):
        return call is not None
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        raise FileExistsError(number, os.strerror(number), str(final))
    return False


@functools.cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    found = getattr(library, "renameat2", None)  # glibc 2.28, musl 1.2.4
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return found


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


class _End:
    """The end of a file, for the thread that brings many of them to the disk."""

    def __init__(self, part: Part, rest: list[bytes]) -> None:
        self._part, self._rest = part, rest

    def prepare(self) -> None:
        self._part.locked(self._part.begin_end, self._rest)

    def publish(self) -> SavedFile:
        return self._part.locked(self._part.end)

    def names(self) -> Callable[[], None]:
        return _names_in(self._part.folder).sync


class _Names:
    """Makes new names in one folder durable. Who comes while that is being done waits for the next time, and
    all who wait share it: fsync is more than half of what a small file costs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun, self._turn = 0, threading.Lock()

    def sync(self) -> None:
        """Return when every name that is there now is on the disk. Windows and some network drives cannot do
        that for a folder."""
        before = self._begun
        with self._turn:
            if self._begun > before:
                return  # somebody has begun, and ended, since we came
            self._begun += 1
            with suppress(OSError):
                file = os.open(self._folder, os.O_RDONLY)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)


@functools.lru_cache(maxsize=64)
def _names_in(folder: Path) -> _Names:
    return _Names(folder)


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
