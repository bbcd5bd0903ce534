"""A batch: each row is one job under a key of its own, so that running it again runs only what is not done.

It talks to a `Runner` alone; where its jobs run is no matter of the batch.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio

from . import errors as e
from .batch import Row, key_of, with_uploads, workflow_of
from .exits import ExitCode, exit_code
from .member import Health, ServerView
from .models import JobState, SavedFile
from .outcome import RunResult
from .pool import ServerPool
from .runner import Runner
from .several import iterated, worked
from .workflow import Workflow

log = logging.getLogger(__name__)

T = TypeVar("T")
SHUFFLED = 10_000  # rows that are held to be drawn from, where the order is to be random
PAUSE_FACTOR, PAUSE_CEILING = 3.0, 120.0  # waits between attempts grow so, up to seconds
GATEWAYS = frozenset({502, 503, 504, 521, 522, 523, 524})  # a proxy whose server is away
CLOSED = frozenset({401, 403, 407})
# The first of these that any row ended with is the exit code of the batch.
WORST_FIRST = (
    ExitCode.DATABASE,
    ExitCode.UNREACHABLE,
    ExitCode.USAGE,
    ExitCode.REJECTED,
    ExitCode.FAILED,
    ExitCode.LOST,
    ExitCode.DOWNLOAD,
    ExitCode.TIMEOUT,
    ExitCode.CANCELLED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to go about a batch: `concurrency` rows at a time, each tried again up to `retries` times where
    that may help (the server or the database was away, the job was lost, a file did not come whole).

    `retry_failed`: also what has failed on the server, now or when the batch ran before. After
    `max_failures` failed rows no further one is begun. `timeout` for one job and `pause` before the first
    retry are in seconds.
    """

    concurrency: int = 8
    retries: int = 2
    retry_failed: bool = False
    max_failures: int | None = None
    timeout: float | None = None
    pause: float = 5.0

    @property
    def redo(self) -> frozenset[JobState]:
        """How a row may have ended before without being done."""
        lost = {JobState.LOST} if self.retries else set()
        return frozenset(lost | ({JobState.FAILED, JobState.CANCELLED} if self.retry_failed else set()))

    def may_help(self, error: e.ComfyflowError) -> bool:
        """Whether trying again may bring another end."""
        match error:
            case e.JobFailed():
                return self.retry_failed
            case e.JobLost():
                return error.view.result is not None  # not when it belongs to another server
            case e.ServerUnreachable() | e.StoreUnavailable() | e.DownloadError():
                return not isinstance(error, e.PostgresMissing)
            case e.BadAnswer():
                return error.status in GATEWAYS
        return False


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of a row. `row` is None where it could not even be read, `run` where it did not succeed."""

    row: Row | None
    key: str | None = None
    workflow: Workflow | None = None
    run: RunResult | None = None
    error: e.ComfyflowError | None = None
    attempts: int = 0

    @property
    def again(self) -> bool:
        """Whether this was on record already: nothing was done."""
        if self.run is not None:
            return self.run.again
        return isinstance(self.error, e.JobError) and self.error.again

    @property
    def prompt_id(self) -> str | None:
        """The id of its (latest) job, None where there is none."""
        known = self.run or self.error
        return None if known is None else known.prompt_id

    @property
    def state(self) -> JobState | None:
        """How its job stands, None where that is not known."""
        if isinstance(self.error, e.JobError):
            return self.error.view.state
        return self.run.result.state if self.run is not None and self.run.result is not None else None

    @property
    def files(self) -> tuple[SavedFile, ...]:
        """What of it is saved here."""
        if isinstance(self.error, e.DownloadError):
            return self.error.saved
        return () if self.run is None else self.run.files


@dataclass(slots=True)
class Tally:
    """What has become of the rows so far. `begun` and the others count rows; `started` by `time.monotonic`,
    in seconds."""

    begun: int = 0
    succeeded: int = 0
    before: int = 0  # succeeded when the batch ran before
    resent: int = 0  # those of them whose job was lost with its server, or its files, and sent again
    files: int = 0
    failed: Counter[ExitCode] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    @property
    def failures(self) -> int:
        """How many rows have failed."""
        return self.failed.total()

    @property
    def ended(self) -> int:
        """How many rows have an end."""
        return self.succeeded + self.before + self.failures

    @property
    def running(self) -> int:
        """How many rows are under way."""
        return self.begun - self.ended

    @property
    def seconds(self) -> float:
        """The time since the batch was started."""
        return time.monotonic() - self.started

    @property
    def exit_code(self) -> ExitCode:
        """That of the worst failure, OK without one."""
        return next((code for code in WORST_FIRST if self.failed[code]), ExitCode.OK)

    def count(self, one: RowResult) -> None:
        """Take in a row that has ended."""
        if one.error is not None:
            self.failed[exit_code(one.error)] += 1
        elif one.again:
            self.before += 1
        else:
            self.succeeded += 1
            self.resent += one.run is not None and one.run.job.replaces is not None
        self.files += len(one.files)

    def document(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {
            "rows": self.ended,
            "succeeded": self.succeeded,
            "done_before": self.before,
            "sent_again": self.resent,
            "failed": {code.name.lower(): self.failed[code] for code in WORST_FIRST if self.failed[code]},
            "files": self.files,
            "seconds": round(self.seconds, 3),
        }


class Batch:
    """Rows to jobs. Those with a `base` workflow change its inputs, the others bring their own.

    `name` is part of every row's key: under the same name a row runs once. Files of rows in UI format are
    converted with the node classes `object_info`.
    """

    def __init__(
        self,
        runner: Runner,
        name: str,
        base: Workflow | None = None,
        policy: Policy | None = None,
        *,
        object_info: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.tally = name, Tally()
        self.stopped: str | None = None  # why no further row is begun
        self._runner, self._base, self._policy = runner, base, policy or Policy()
        self._object_info = object_info

    def servers(self) -> tuple[ServerView, ...]:
        """How the servers of a pool are now; nothing where there is one server."""
        client = self._runner.client
        return client.servers if isinstance(client, ServerPool) else ()

    async def run(
        self, rows: Iterable[Row | e.ComfyflowError] | AsyncIterable[Row | e.ComfyflowError]
    ) -> AsyncGenerator[RowResult, None]:
        """Run the rows and yield what became of each as it ends, those that failed with their `error`.

        They are read only as fast as jobs end. A row that cannot be read (the source gives or raises a
        ComfyflowError) is a failed one. Leaving the loop stops following; sent jobs go on, and the next run
        of the batch finds them.
        """
        source = iterated(readable(rows) if isinstance(rows, Iterable) else rows)
        ending = worked(self._taken(source), self._row, concurrency=self._policy.concurrency)
        told = 0
        async with aclosing(source), aclosing(ending) as results:
            async for one in results:
                yield one
                told += 1
                if self.stopped is not None and told == self.tally.begun:
                    return  # without waiting for the next row of a slow source

    async def _taken(
        self, source: AsyncIterator[Row | e.ComfyflowError]
    ) -> AsyncIterator[Row | e.ComfyflowError]:
        async for row in source:
            if self.stopped is not None:
                return
            self.tally.begun += 1
            yield row

    async def _row(self, row: Row | e.ComfyflowError) -> RowResult:
        one = RowResult(None, error=row) if isinstance(row, e.ComfyflowError) else await self._ended(row)
        self.tally.count(one)
        if one.error is not None and self.stopped is None:
            self.stopped = self._reason(one.error)
        return one

    async def _ended(self, row: Row) -> RowResult:
        try:
            workflow = await self._workflow(row)
            key = key_of(self.name, row, workflow)
        except e.ComfyflowError as error:
            return RowResult(row, error=error)
        policy, attempt = self._policy, 0
        while True:
            attempt += 1
            try:
                run = await self._runner.run(workflow, key=key, redo=policy.redo, timeout=policy.timeout)
                return RowResult(row, key, workflow, run, attempts=attempt)
            except e.ComfyflowError as error:
                if attempt > policy.retries or not policy.may_help(error):
                    return RowResult(row, key, workflow, error=error, attempts=attempt)
                pause = min(policy.pause * PAUSE_FACTOR ** (attempt - 1), PAUSE_CEILING)
                log.info("%s is tried again in %g s: %s", row.place, pause, error)
            await anyio.sleep(pause)

    async def _workflow(self, row: Row) -> Workflow:
        workflow = workflow_of(row, self._base, self._object_info)
        if not row.uploads:
            return workflow
        client = self._runner.client
        names = {target: await client.input_file(path) for target, path in row.uploads.items()}
        return with_uploads(workflow, row, names)

    def _others_work(self) -> bool:
        return any(server.health is Health.UP for server in self.servers())

    def _reason(self, error: e.ComfyflowError) -> str | None:
        """Why no further row is begun after this one."""
        if _concerns_all(error) and not (_of_one(error) and self._others_work()):
            return "the next rows would end like this one"
        most = self._policy.max_failures
        if most is not None and self.tally.failures >= most:
            return f"{most} row{'s have' if most != 1 else ' has'} failed"
        return None


def shuffled(rows: Iterable[T], *, held: int = SHUFFLED) -> Iterator[T]:
    """The items in a random order, drawn from `held` of them at a time, so that any number may come."""
    hand: list[T] = []
    for row in rows:
        if len(hand) < held:
            hand.append(row)
            continue
        place = random.randrange(held)
        drawn, hand[place] = hand[place], row
        yield drawn
    random.shuffle(hand)
    yield from hand


def readable(rows: Iterable[T | e.ComfyflowError]) -> Iterator[T | e.ComfyflowError]:
    """The items, and in the place of one that cannot be read the error."""
    source = iter(rows)
    while True:
        try:
            row = next(source)
        except StopIteration:
            return
        except e.ComfyflowError as error:
            row = error
        yield row


def _of_one(error: e.ComfyflowError) -> bool:
    """Whether one server of several does not answer."""
    return isinstance(error, e.ServerUnreachable) and not isinstance(error, e.NoServer)


def _concerns_all(error: e.ComfyflowError) -> bool:
    """Whether it lies with the server or the database, and no row would end otherwise."""
    match error:
        case e.BadAnswer():
            return error.status in GATEWAYS | CLOSED
        case e.NoServer():
            return not error.any_up  # the others run what they can
    return isinstance(error, e.ServerUnreachable | e.NotSupported | e.StoreUnavailable)
