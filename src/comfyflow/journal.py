"""What a database could not take yet, kept on disk until it can.

One file for each database, one line for each transaction: checksum, when and for which database, the rows. A
line is on the disk before `append` returns. Everything here blocks: call it from a thread.

Two locks keep processes apart, both freed by the kernel however a process ends: "append" is held for moments,
whenever a file changes; "flush" as long as somebody takes lines out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import quote
from uuid import uuid4

import platformdirs

from .errors import StoreError
from .rows import Batch

log = logging.getLogger(__name__)

ANYWHERE = "none"  # the target of what belongs to no database yet: the first one gets it
DAMAGED = "damaged, or written by another version of comfyflow"
_BLOCK = 1 << 20  # bytes read at once


@dataclass(frozen=True, slots=True)
class JournalSummary:
    """What waits: `bytes` on disk, `oldest` as seconds since the Unix epoch (None for an empty journal),
    `targets` as lines for each database.

    `set_aside` counts the files of what no database can take; a person has to look at them.
    """

    records: int = 0
    bytes: int = 0
    oldest: float | None = None
    targets: Mapping[str, int] = field(default_factory=dict)
    set_aside: int = 0


class Journal:
    """The journal in `folder`: by default below COMFYFLOW_STATE, else where programs of this user keep state.

    Making one touches nothing. Every method raises StoreError when the folder cannot be read or written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else _usual_folder()

    def append(self, batch: Batch, target: str) -> None:
        """Keep a batch for the database `target` (`Database.target`, or ANYWHERE)."""
        line = _line_of(batch, target)
        path = self.folder / _file_name(target)
        with self._writing(), self._locked("append"):
            new = not path.exists()
            with _opened(path) as file:
                self._mend(path, file)
                _write_whole(file, line)
            if new:
                _sync(self.folder)

    def check(self) -> None:
        """Find out whether anything could be written here, before it is promised. Raises StoreError."""
        with self._writing(), self._locked("append"), TemporaryFile(dir=self.folder) as probe:
            probe.write(b"comfyflow")

    def put_aside(self, batch: Batch, target: str, reason: str) -> None:
        """Keep a batch that `target` refused where people find it: it is not written by itself any more."""
        with self._writing(), self._locked("append"):
            self._put_aside(self.folder / _file_name(target), _line_of(batch, target), reason)

    def summary(self) -> JournalSummary:
        """What is waiting. Reads the whole journal, in pieces."""
        targets: dict[str, int] = {}
        size, ages = 0, []
        with self._writing():
            for path in self._files(None):
                with suppress(FileNotFoundError), path.open("rb") as file:  # just written to a database
                    header = _header_of(file.readline())
                    targets[header.get("target", path.stem)] = _lines(file)
                    ages += [header["at"]] if "at" in header else []
                    size += file.tell()
            aside = len(list(self.folder.glob("*.aside")))
        return JournalSummary(sum(targets.values()), size, min(ages, default=None), targets, aside)

    def waits_for(self, target: str | None) -> bool:
        """Whether there is anything that the database `target` would get; None means any."""
        with self._writing():
            return bool(self._files(target))

    def draining(self, target: str | None, *, wait: bool = True) -> Draining:
        """Take out, in order, what waits for `target` and for no database in particular; None: everything.

        Only one at a time may do so, in all processes. Without `wait` a second one gets nothing, and is told
        by `busy`.
        """
        return Draining(self, target, wait)

    def _files(self, target: str | None) -> list[Path]:
        if target is None:
            return sorted(self.folder.glob("*.journal"))
        names = dict.fromkeys([_file_name(ANYWHERE), _file_name(target)])
        return [path for path in map(self.folder.joinpath, names) if path.exists()]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the journal in {self.folder} cannot be used: {error.strerror or error}; make room or "
                "rights there, or let COMFYFLOW_STATE name another folder"
            ) from error

    @contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Raises BlockingIOError without `wait`."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _opened(self.folder / f"{name}.lock") as file:
            _lock(file.fileno(), wait=wait)
            yield

    def _mend(self, path: Path, file: FileIO) -> None:
        """Under the lock, a line without its end is one that a dying process left: it is put away."""
        whole, end = _end_of_lines(file), file.seek(0, os.SEEK_END)
        if whole == end:
            return
        file.seek(whole)
        self._put_aside(path, file.read(), "the line was not written to its end")
        file.truncate(whole)

    def _put_aside(self, path: Path, line: bytes, reason: str) -> None:
        """Into a file of its own."""
        with closing(_Aside(path, reason)) as aside:
            aside.add(line)
            aside.finish()


class _Aside:
    """A file of lines that cannot be used, beside the journal's file that they stood in; its first line says
    why. Nobody reads it but people. The lines are safe once `finish` has returned."""

    def __init__(self, source: Path, reason: str) -> None:
        name = f"{source.stem}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid4().hex[:6]}.aside"
        self._path, self._reason, self._lines = source.with_name(name), " ".join(reason.split()), 0
        self._file = _opened(self._path)

    def add(self, line: bytes) -> None:
        head = b"" if self._lines else f"# {self._reason}\n".encode()
        _write_whole(self._file, head + line, synced=False)
        self._lines += 1

    def finish(self) -> None:
        os.fsync(self._file.fileno())
        _sync(self._path.parent)
        lines = "a line" if self._lines == 1 else f"{self._lines} lines"
        log.warning("%s of the journal cannot be used (%s): kept in %s", lines, self._reason, self._path)

    def close(self) -> None:
        self._file.close()
        if not self._lines:  # a full disk: there must not be one more empty file at every attempt
            self._path.unlink(missing_ok=True)


class Draining:
    """Batches of a journal, to be written one after the other: see `Journal.draining`. A context manager.

    A batch has left the journal when the next one is asked for, or the loop has ended; one that raised stays,
    with all that follow. `busy` tells that somebody else is at it.
    """

    def __init__(self, journal: Journal, target: str | None, wait: bool) -> None:
        self.busy = False
        self._journal, self._target, self._wait = journal, target, wait
        self._stack = ExitStack()
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        # Bytes of the file: dealt with, and in whole lines. Nobody changes those any more; what comes after
        # them may be taken back by whoever writes it.
        self._done = self._whole = 0
        self._current = b""
        self._aside: _Aside | None = None  # for all damaged lines of the file

    def __enter__(self) -> Self:
        with self._journal._writing():
            try:
                self._stack.enter_context(self._journal._locked("flush", wait=self._wait))
            except BlockingIOError:
                self.busy = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack, self._journal._writing():
            self._cut()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        with self._journal._writing():
            self._done += len(self._current)
            self._current = b""
            while line := self._next_line():
                if (batch := _batch_of(line)) is not None:
                    self._current = line
                    return batch
                self._pass_over(line)
        raise StopIteration

    def refuse(self, reason: str) -> None:
        """The batch given last can never be written: it is put away, and the others go on."""
        assert self._path is not None
        with self._journal._writing():
            self._journal._put_aside(self._path, self._current, reason)

    def _pass_over(self, line: bytes) -> None:
        assert self._path is not None
        if self._aside is None:
            self._aside = self._stack.enter_context(closing(_Aside(self._path, DAMAGED)))
        self._aside.add(line)
        self._done += len(line)

    def _keep_aside(self) -> None:
        """Before damaged lines leave the journal they are safe elsewhere."""
        if self._aside is not None:
            self._aside.finish()
            self._aside = None

    def _next_line(self) -> bytes:
        """The next whole line of this file, else of the next one; b"" when all of them are empty."""
        while self._path is not None or self._choose_next():
            if self._done < self._whole:
                assert self._file is not None
                self._file.seek(self._done)
                return self._file.readline()
            self._end_or_go_on()
        return b""

    def _choose_next(self) -> bool:
        files = [] if self.busy else self._journal._files(self._target)
        self._path = files[0] if files else None
        return bool(files)

    def _end_or_go_on(self) -> None:
        """At the end of what is known of a file: unless somebody has added to it, it goes."""
        assert self._path is not None
        with self._journal._locked("append"):
            with _opened(self._path) as file:
                self._journal._mend(self._path, file)
                self._whole = file.seek(0, os.SEEK_END)
            if self._whole > self._done:
                self._reopen()
            else:
                self._keep_aside()
                path = self._path
                self._close()
                path.unlink()

    def _reopen(self) -> None:
        """Without what was read ahead: it may be half a line that is not there any more."""
        assert self._path is not None
        if self._file is not None:
            self._file.close()
        self._file = self._path.open("rb")

    def _cut(self) -> None:
        """Leave in the file what was not dealt with."""
        if self._path is not None and self._done:
            with self._journal._locked("append"):
                self._keep_aside()
                self._reopen()
                assert self._file is not None
                self._file.seek(self._done)
                rest = self._path.with_suffix(".rest")
                with open(rest, "wb", opener=_private) as copy:
                    shutil.copyfileobj(self._file, copy, _BLOCK)
                    copy.flush()
                    os.fsync(copy.fileno())
                rest.replace(self._path)
                _sync(self._journal.folder)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._path, self._current = None, None, b""
        self._done = self._whole = 0


def _usual_folder() -> Path:
    chosen = os.environ.get("COMFYFLOW_STATE")
    return (
        Path(chosen) if chosen else platformdirs.user_state_path("comfyflow", appauthor=False)
    ) / "journal"


def _file_name(target: str) -> str:
    """Readable, and short enough for every file system."""
    name = quote(target, safe="")
    digest = hashlib.sha256(target.encode()).hexdigest()[:16]
    return f"{name if len(name) <= 100 else f'{name[:80]}-{digest}'}.journal"


def _line_of(batch: Batch, target: str) -> bytes:
    body = f"{json.dumps({'at': time.time(), 'target': target})}\t{batch.to_json()}".encode()
    return b"%08x\t%s\n" % (zlib.crc32(body), body)


def _parts(line: bytes) -> list[bytes]:
    """Header and rows of a whole line, else nothing."""
    checksum, _, body = line.removesuffix(b"\n").partition(b"\t")
    header, tab, rows = body.partition(b"\t")
    return [header, rows] if tab and checksum == b"%08x" % zlib.crc32(body) else []


def _header_of(line: bytes) -> dict[str, Any]:
    parts = _parts(line)
    return dict(json.loads(parts[0])) if parts else {}


def _batch_of(line: bytes) -> Batch | None:
    parts = _parts(line)
    with suppress(ValueError):  # a line of another version of this program
        return Batch.from_json(parts[1].decode()) if parts else None
    return None


def _lines(file: BinaryIO) -> int:
    file.seek(0)
    return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))


def _end_of_lines(file: FileIO) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        if (found := file.read(end - start).rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


def _write_whole(file: FileIO, data: bytes, *, synced: bool = True) -> None:
    """All of it, or nothing: a full disk must not leave half a line. On the disk at once, if `synced`."""
    before = file.seek(0, os.SEEK_END)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        if synced:
            os.fsync(file.fileno())
    except OSError:
        file.truncate(before)
        raise


def _opened(path: Path) -> FileIO:
    """For reading and appending, without a buffer."""
    return open(path, "a+b", buffering=0, opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)  # prompts are nobody else's business


def _sync(folder: Path) -> None:
    """A new name is on the disk only when its folder is; Windows has nothing of the kind."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, wait: bool) -> None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, "another process holds the lock") from error

else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
