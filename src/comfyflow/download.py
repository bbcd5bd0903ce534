"""A file from the server onto this disk, whole or not at all: /view -> `.part` -> verified -> published.

Everything that blocks (disk, hashing, looking into the file) runs in worker threads, at the same time as
reading from the server; a file of up to 1 MiB takes one hop to a thread in all. At most about 8 MiB of a file
are in memory.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import anyio

from .errors import BadAnswer, DownloadError, OutputUnavailable, ServerError, ServerUnreachable
from .media import Damaged
from .models import OutputFile, SavedFile
from .part import BLOCK_SIZE, Blocks, Part

log = logging.getLogger(__name__)

MAX_SIZE = 64 << 30
"""Bytes that a file may have unless the caller says otherwise."""

PROGRESS = 64 << 10  # bytes an attempt has to get farther than any before it, to renew the budget of attempts
_AWAY = frozenset({502, 503, 504})  # what a proxy says while the server behind it starts
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})

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

    `attempts` in a row without progress end it, but a server that is away gets `patience` seconds in any
    case: ComfyUI takes 7 to 60 s to start, and after that the file is there as before. `damaged` is how often
    a file that arrived damaged is read again, `missing` how often one that is not there is asked for again.
    The waits are `first`, then times `factor`, up to `ceiling`, each shortened by chance by up to a half.
    """

    attempts: int = 5
    damaged: int = 2
    missing: int = 1
    patience: float = 120.0
    first: float = 0.25
    factor: float = 2.0
    ceiling: float = 10.0

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        power = min(failures - 1, 32)  # after many of them a float is too small for the next
        return min(self.ceiling, self.first * self.factor**power) * random.uniform(0.5, 1.0)


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
    part = Part(destination, output)
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
    part = Part(destination, output)
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
    raised, with those in its `saved`.
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
    saved = [result for result in done if isinstance(result, SavedFile)]
    for result in done:
        if isinstance(result, DownloadError):
            result.saved = tuple(saved)
            raise result
    return saved


async def _from_mount(
    source: Source, mounted: Path | None, output: OutputFile, destination: Path
) -> SavedFile | None:
    if mounted is None or output.type != "output":
        return None
    try:  # the size tells a file of the same name in another server's folder from ours
        size = await source.view_size(output)
    except ServerError:
        return await save_local(mounted, output, destination)  # nobody else can have it now
    return None if size is None else await save_local(mounted, output, destination, expected_size=size)


class _Interrupted(Exception):
    """This attempt came to nothing, another one may do better."""


class _Download:
    """The attempts for one file."""

    def __init__(
        self, source: Source, part: Part, retries: Retries, on_bytes: OnBytes | None, max_size: int
    ) -> None:
        self._source, self._part, self._retries = source, part, retries
        self._on_bytes, self._max_size = on_bytes, max_size
        self._etag: str | None = None
        self._total: int | None = None
        self._blocks: Blocks | None = None
        self._writing: asyncio.Task[None] | None = None
        self._missed = 0
        self._since = 0.0  # when the failures in a row began

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
            if hopeless or not self._may_try_again(failures, cause):
                raise self._part.error(str(cause)) from cause
            log.info("%s: %s; trying again", self._part.output.filename, cause)
            await anyio.sleep(self._retries.wait(failures))

    def _may_try_again(self, failures: int, cause: Exception) -> bool:
        now = anyio.current_time()
        if failures == 1:
            self._since = now
        refused = isinstance(cause, ServerUnreachable) and not cause.sent
        away = refused or (isinstance(cause, BadAnswer) and cause.status in _AWAY)
        return failures < self._retries.attempts or (away and now - self._since < self._retries.patience)

    async def _attempt(self) -> SavedFile:
        if self._part.size and self._etag is None:
            await self._restart()  # nothing would tell whether the rest belongs to the same file
        offset = self._part.size
        async with self._source.open_view(self._part.output, offset=offset, etag=self._etag) as answer:
            if answer.status == 404:
                self._missed += 1
                if self._missed <= self._retries.missing:  # a server that starts, a proxy that has lost it
                    raise _Interrupted("the server does not have this file")
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
                    await self._hand_over(block)
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

    async def _hand_over(self, block: list[bytes]) -> None:
        if self._blocks is None or self._writing is None:
            self._blocks = Blocks()
            self._writing = asyncio.create_task(self._part.drained(self._blocks))
        await self._blocks.put(block)
        if self._writing.done():
            await self._written()  # it raises what stopped the thread

    async def _written(self) -> None:
        """Wait until everything that was handed over is on its way to the disk."""
        if self._blocks is not None and self._writing is not None:
            self._blocks.end()
            writing, self._blocks, self._writing = self._writing, None, None
            await writing
