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
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import anyio

from .errors import (
    BadAnswer,
    DownloadError,
    OutputUnavailable,
    ReusedOutputGone,
    ServerError,
    ServerUnreachable,
)
from .media import Damaged
from .models import OutputFile, SavedFile
from .part import BLOCK_SIZE, Blocks, Part

log = logging.getLogger(__name__)

MAX_SIZE = 64 << 30
"""Bytes that a file may have unless the caller says otherwise."""

PROGRESS = 64 << 10  # bytes an attempt has to get farther than any before it, to renew the budget of attempts
# What proxies say while the server behind them starts; from 520 on they are Cloudflare's.
_AWAY = frozenset({502, 503, 504, 520, 521, 522, 523, 524, 530})
_TRY_AGAIN = frozenset({408, 425, 429, 500}) | _AWAY

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

    `attempts` in a row without progress end it. A server that is away (it does not answer, or a proxy answers
    for it) has a budget of its own, as many attempts and `patience` seconds: ComfyUI takes 7 to 60 s to
    start, and after that the file is there as before. `damaged` is how often a file that arrived damaged is
    read again, `missing` how often one that is not there is asked for again. The waits are `first`, then
    times `factor`, up to `ceiling`, each shortened by chance by up to a half.
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
    budget = _Budget(retries, _Presence())
    async with _turn(limiter) if limiter else nullcontext():
        return await _save(source, Part(destination, output), budget, on_bytes, max_size)


async def _save(
    source: Source, part: Part, budget: _Budget, on_bytes: OnBytes | None, max_size: int
) -> SavedFile:
    try:
        return await _Download(source, part, budget, on_bytes, max_size).run()
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
    presence = _Presence()

    async def bring(place: int, output: OutputFile) -> None:
        report = None if on_bytes is None else lambda here, total: on_bytes(output, here, total)
        try:
            async with _turn(limit):
                done[place] = (await _from_mount(source, mounted, output, destination)) or await _save(
                    source, Part(destination, output), _Budget(retries, presence), report, max_size
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


@asynccontextmanager
async def _turn(limiter: anyio.CapacityLimiter) -> AsyncIterator[None]:
    """A turn of the limiter, for whichever task; where it is free, at once, and not one round of the event
    loop later."""
    turn = object()
    try:
        limiter.acquire_on_behalf_of_nowait(turn)
    except anyio.WouldBlock:
        await limiter.acquire_on_behalf_of(turn)
    try:
        yield
    finally:
        limiter.release_on_behalf_of(turn)


class _Interrupted(Exception):
    """This attempt came to nothing, another one may do better."""


class _Away(_Interrupted):
    """Nobody who knows the file has answered."""


class _Missing(_Interrupted):
    """The server says that it does not have this file."""


@dataclass(slots=True)
class _Presence:
    """Since when the server has been away, None while it answers. The files of one call share it: a server
    that stays away is waited for once, not for each of a hundred files."""

    away_since: float | None = None


class _Budget:
    """What may still go wrong with one file. Each kind of trouble counts for itself, so that a server that
    was away for long does not use up what the others have."""

    def __init__(self, retries: Retries, presence: _Presence) -> None:
        self._retries, self._presence = retries, presence
        self._failures = self._absences = self._damages = self._misses = 0
        self._farthest = 0  # bytes

    def wait(self, cause: Exception, here: int) -> float | None:
        """Seconds until the next attempt, None when there is none. `here`: the bytes that there are now."""
        if here >= self._farthest + PROGRESS:
            self._farthest, self._failures = here, 0
        if isinstance(cause, _Away):
            return self._wait_for_the_server()
        if isinstance(cause, _Missing):
            self._presence.away_since = None
            self._misses += 1
            return self._retries.wait(self._misses) if self._misses <= self._retries.missing else None
        self._failures += 1
        self._damages += isinstance(cause, Damaged)
        hopeless = isinstance(cause, BadAnswer) and cause.status not in _TRY_AGAIN
        spent = self._failures >= self._retries.attempts or self._damages > self._retries.damaged
        return None if hopeless or spent else self._retries.wait(self._failures)

    def answered(self) -> None:
        """The server is there, and has the file."""
        self._absences = self._misses = 0
        self._presence.away_since = None

    def _wait_for_the_server(self) -> float | None:
        now = anyio.current_time()
        if self._presence.away_since is None:
            self._presence.away_since = now
        self._absences += 1
        spent = now - self._presence.away_since >= self._retries.patience
        if spent and self._absences >= self._retries.attempts:
            return None
        return self._retries.wait(self._absences)


async def _not_here(answer: ViewAnswer) -> _Interrupted:
    """What a 404 means. ComfyUI's own has no body (recording 20); a proxy's, or a tunnel's, has one, and says
    only that the server behind it is not there."""
    chunks = answer.chunks()
    try:
        if await anext(chunks, b""):
            return _Away("what stands in front of the server answers 404 for it: try again when ComfyUI runs")
        return _Missing("the server does not have this file")
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


class _Download:
    """The attempts for one file."""

    def __init__(
        self, source: Source, part: Part, budget: _Budget, on_bytes: OnBytes | None, max_size: int
    ) -> None:
        self._source, self._part, self._budget = source, part, budget
        self._on_bytes, self._max_size = on_bytes, max_size
        self._etag: str | None = None
        self._total: int | None = None
        self._blocks: Blocks | None = None
        self._writing: asyncio.Task[None] | None = None

    async def run(self) -> SavedFile:
        while True:
            try:
                return await self._attempt()
            except (Damaged, ServerUnreachable, BadAnswer, _Interrupted) as error:
                cause: Exception = error
            if isinstance(cause, Damaged):
                await self._restart()
            wait = self._budget.wait(cause, self._part.size)
            if wait is None:
                raise self._given_up(cause) from (cause.__cause__ if isinstance(cause, _Away) else cause)
            log.info("%s: %s; trying again", self._part.output.filename, cause)
            await anyio.sleep(wait)

    def _given_up(self, cause: Exception) -> DownloadError:
        if not isinstance(cause, _Missing):
            return self._part.error(str(cause))
        output, folder = self._part.output, self._part.folder
        if output.reused:
            reason = "an earlier job made this file, ComfyUI's cache still names it, and it is gone"
            reason = f"{reason}: run the workflow again with --on-cached force"
            return ReusedOutputGone(reason, output=output, destination=folder)
        reason = "the server no longer has this file: run the workflow again"
        return OutputUnavailable(reason, output=output, destination=folder)

    async def _attempt(self) -> SavedFile:
        if self._part.size and self._etag is None:
            await self._restart()  # nothing would tell whether the rest belongs to the same file
        offset = self._part.size
        async with self._opened(offset) as answer:
            complete = answer.status == 416 and answer.total == offset
            if not complete:
                await self._begin(answer, offset)
            rest = [] if complete else await self._pour(answer)
        return await self._part.finish(rest)

    @asynccontextmanager
    async def _opened(self, offset: int) -> AsyncIterator[ViewAnswer]:
        """The server's answer, if it is one about the file. Raises _Away, _Missing, BadAnswer."""
        opening = self._source.open_view(self._part.output, offset=offset, etag=self._etag)
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(opening)
            except ServerUnreachable as error:
                raise _Away(str(error)) from error
            except BadAnswer as error:
                if error.status in _AWAY:
                    raise _Away(str(error)) from error
                raise
            if answer.status == 404:
                raise await _not_here(answer)
            self._budget.answered()
            yield answer

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
        chunks, whole = answer.chunks(), False
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
            whole = self._blocks is None
        except (ServerUnreachable, _Interrupted):
            await self._written()
            await self._part.on_disk(self._part.write, block)  # so that the next attempt starts behind it
            raise
        finally:
            if not whole:
                await self._leave(chunks)
        return block

    async def _leave(self, chunks: AsyncIterator[bytes]) -> None:
        with anyio.CancelScope(shield=True):  # one block's write at most
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
            await self._written()

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
