"""The record in PostgreSQL: one statement for each write, and the journal for what cannot be written now."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from datetime import UTC, datetime
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar

from anyio import to_thread

from . import migrations
from .commit import NOBODY, Committer, Replaced
from .database import Connections
from .dsn import Database
from .errors import StoreError, StoreUnavailable
from .gather import Ids, Refused
from .journal import Draining, Journal
from .rows import Batch, Row, batch_of, cleaned, job_of, record_of
from .shield import to_the_end
from .statements import (
    FORGET,
    FREE,
    GET,
    HOLD,
    HOLDERS,
    LATEST,
    ONE,
    RENEW,
    RETIRE,
    SUCCEEDED,
    SUCCESSOR,
    TURN,
    UNFINISHED,
)
from .store import Added, Advanced, Entry, Holding, Job, JobEvent, JobRecord, Store, Worker

T = TypeVar("T")
log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # s between two attempts to reach a database that is away
DISK = 60.0  # s that the journal's disk gets


class PostgresStore(Store):
    """Records jobs in PostgreSQL. Make one with `open`; use it in `async with`, or close it.

    Where there is a journal, no write raises because of the database: what it cannot take now goes to the
    journal, `fault` says why, and a later write tries again. Only what no database could take is raised: an
    unknown job, an id that another job has; an outcome among that is set aside beside the journal.
    """

    def __init__(
        self,
        connections: Connections,
        journal: Journal | None,
        *,
        migrate: bool = False,
        patience: float = 10.0,
        linger: float = 1.0,
        content_limit: int = 100 * 2**20,
    ) -> None:
        """`patience` and `linger` in seconds, `content_limit` in bytes: see `open`."""
        self.connections = connections
        self.fault: StoreError | None = None
        self._journal, self._target = journal, connections.database.target
        self._migrate, self._patience, self._linger = migrate, patience, linger
        self._committer = Committer(connections, content_limit=content_limit)
        self._ready = self._closed = False
        self._preparing, self._draining = asyncio.Lock(), asyncio.Lock()
        self._held: list[Entry] = []
        self._timer: asyncio.Task[None] | None = None
        # While the journal holds something of ours, whatever follows goes there too: the order stays.
        self._behind = False
        self._appended = 0
        self._catching: asyncio.Task[None] | None = None
        self._pause, self._again_at = FIRST_PAUSE, 0.0

    @classmethod
    async def open(
        cls,
        source: str | Database,
        *,
        migrate: bool = False,
        journal: Journal | EllipsisType | None = ...,
        required: bool = True,
        patience: float = 10.0,
        linger: float = 1.0,
        content_limit: int = 100 * 2**20,
        min_size: int = 0,
        max_size: int = 10,
        connect_timeout: float = 10.0,
        statement_timeout: float = 60.0,
        lock_timeout: float = 10.0,
    ) -> Self:
        """A store on the database of a DSN. `migrate` brings its tables up to date first.

        `journal` is the user's own unless another one is given; with None every fault is raised. What waits
        in it for this database is written now. Unless `required`, a database that cannot be used raises
        nothing here: see `fault`.

        All times are seconds. A write that takes longer than `patience` goes to the journal; what is written
        lazily waits for `linger` at most. `content_limit`: the bytes of larger files are not kept. Sizes are
        numbers of connections; they and the timeouts are those of `Connections.open`. Raises StoreError.
        """
        connections = await Connections.open(
            source,
            min_size=min_size,
            max_size=max_size,
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            lock_timeout=lock_timeout,
        )
        chosen = Journal() if isinstance(journal, EllipsisType) else journal
        store = cls(
            connections,
            chosen,
            migrate=migrate,
            patience=patience,
            linger=linger,
            content_limit=content_limit,
        )
        try:
            await store._begin(required)
        except BaseException:
            await connections.close()
            raise
        return store

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- writing --

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        """See Store. Raises StoreError for what no database could take; without a journal, for every fault.

        A cancelled write has happened or not. An outcome is not lost by that, nor are bytes that are to be
        kept: they go to the journal.
        """
        self._check_open()
        if lazily and all(isinstance(entry, Advanced | JobEvent) for entry in entries):
            self._held += entries
            if self._timer is None or self._timer.done():
                self._timer = asyncio.create_task(self._write_later())
        else:
            await self._write(entries)

    async def write_new(self, *entries: Entry) -> bool:
        """See Store. False also when it went to the journal. Raises StoreError, and may be cancelled, as
        `write`."""
        self._check_open()
        added = {cleaned(entry.job.prompt_id) for entry in entries if isinstance(entry, Added)}
        return added <= await self._write(entries)

    async def flush(self, *, everything: bool = False, wait: float = 60.0) -> int:
        """Write what waits in the journal for this database; how many transactions that were.

        `everything`: also what was meant for other databases. Raises StoreError when the database cannot be
        used, and StoreUnavailable when another process is at it for more than `wait` seconds. What the
        database can never take is set aside, with a warning in the log.
        """
        await self._write(())
        if self._journal is None:
            return 0
        return await self._drain(None if everything else self._target, wait=wait)

    async def settle(self, *, wait: float | None = None) -> None:
        """Write what is held back, and what waits in the journal for this database.

        Another process that is just doing that is left to it; with `wait` it is waited for, so many seconds,
        and what others left in the journal is written too. Raises StoreError when the database cannot be
        used, and StoreUnavailable when that took too long.
        """
        await self._write(())
        behind = self._behind if wait is None else self._behind or await self._something_waits()
        if behind and self._journal is not None:
            await self._drain(self._target, wait=wait)
        await self._prepare()

    async def close(self) -> None:
        """Write what is still held back, to the database or the journal, and close the connections. May be
        called twice. Raises StoreError when there is no journal and the database cannot be used."""
        self._closed = True
        try:
            await self._end(self._timer)
            await self._write(())
            await self._caught_up()
            if self._catching is not None:
                await asyncio.wait([self._catching], timeout=self._patience)
        finally:
            await self._end(self._catching)
            await self.connections.close()

    async def _begin(self, required: bool) -> None:
        try:
            if required:
                await self._prepare()
            else:
                await self._patiently(self._prepare)
        except StoreError as error:
            if required:
                raise
            self._note(error)
        if await self._something_waits():
            self._behind = True
            await self._caught_up()

    async def _something_waits(self) -> bool:
        try:
            return self._journal is not None and await self._on_disk(self._journal.waits_for, self._target)
        except StoreError as error:
            log.warning("%s", error)
            return False

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed: open it again")

    async def _write(self, entries: tuple[Entry, ...]) -> Ids:
        """Write what was held back together with this; the jobs that are certainly new by that."""
        held, self._held = self._held, []
        try:
            if held and (new := await self._written_together([*held, *entries])) is not None:
                held = []
                return new
            await self._write_each(held)
            return await self._record_or_put_aside(batch_of(entries))
        finally:
            self._held[:0] = held  # cancelled, or without a journal: the next write takes it along

    async def _record_or_put_aside(self, batch: Batch) -> Ids:
        """An outcome that is refused is raised, and yet not thrown away: nobody can tell it again."""
        try:
            return await self._record(batch)
        except Replaced:
            raise
        except Refused as error:
            if self._journal is not None and batch.ends:
                await self._on_disk(self._journal.put_aside, batch, self._target, str(error))
            raise

    async def _written_together(self, entries: list[Entry]) -> Ids | None:
        """None when something of it is wrong."""
        try:
            return await self._record(batch_of(entries))
        except Refused:
            return None

    async def _write_each(self, held: list[Entry]) -> None:
        """One of them is wrong; whoever held it back is gone, and the others must not suffer."""
        while held:
            try:
                await self._record(batch_of(held[:1]))
            except Refused as error:
                log.warning("not recorded: %s", error)
            del held[0]

    async def _write_later(self) -> None:
        try:
            while self._held:  # also what came while this was writing
                await asyncio.sleep(self._linger)
                await self._write(())
        except StoreError as error:
            log.warning("not recorded yet: %s", error)

    async def _record(self, batch: Batch) -> Ids:
        """To the database, else to the journal."""
        if not batch:
            return NOBODY
        if self._journal is None:
            return await self._commit(batch)
        if (new := await self._tried(batch)) is None:
            await self._keep(batch)
        return new or NOBODY

    async def _tried(self, batch: Batch) -> Ids | None:
        """None when the database does not take it now."""
        try:
            return await self._attempt(batch) if await self._caught_up() else None
        except Refused:
            raise
        except StoreError as error:
            self._note(error)
            return None
        except asyncio.CancelledError:
            if batch.ends or batch.contents:
                await self._keep(batch)
            raise

    async def _keep(self, batch: Batch) -> None:
        assert self._journal is not None
        try:
            await self._on_disk(self._journal.append, batch, self._target)
        finally:
            self._appended += 1
            self._behind = True

    # -- the database --

    async def _prepare(self) -> None:
        """Nothing is written before the tables were seen to be those of this program."""
        async with self._preparing:
            if not self._ready and self._migrate:
                await migrations.upgrade(self.connections)
            elif not self._ready:
                await migrations.check(self.connections)
            self._ready = True

    async def _attempt(self, batch: Batch) -> Ids:
        new = await self._patiently(lambda: self._commit_rows(batch))
        await self._committer.contents(batch)
        if not self._behind:
            self.fault, self._pause = None, FIRST_PAUSE
        return new

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """A job must not stand still because its database does."""
        try:
            async with asyncio.timeout(self._patience):
                return await work()
        except TimeoutError as error:
            where = self.connections.database.shown
            raise StoreUnavailable(
                f"{where} did not answer within {self._patience:g} s: try again later"
            ) from error

    async def _commit(self, batch: Batch) -> Ids:
        new = await self._commit_rows(batch)
        await self._committer.contents(batch)
        return new

    async def _commit_rows(self, batch: Batch) -> Ids:
        if not self._ready:
            await self._prepare()
        return await self._committer.rows(batch)

    # -- the journal --

    def _note(self, fault: StoreError) -> None:
        """The database is left alone for a while, longer each time."""
        self.fault, self._behind = fault, True
        if time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def _caught_up(self) -> bool:
        """Whether the next write may go to the database: nothing of ours waits in the journal any more.

        When it is time to try, one caller waits for that, for a while; all others go on with the journal.
        """
        if not self._behind or self._journal is None:
            return True
        if time.monotonic() < self._again_at or not (self._catching is None or self._catching.done()):
            return False
        self._catching = asyncio.create_task(self._catch_up())
        await asyncio.wait([self._catching], timeout=self._patience)
        return not self._behind

    async def _catch_up(self) -> None:
        try:
            await self._drain(self._target)
        except StoreError as error:
            self._note(error)

    async def _drain(self, target: str | None, *, wait: float | None = None) -> int:
        """Until nothing has been added meanwhile. `wait`: seconds for another process that is at it; without
        that its work is left to it."""
        count, begun = 0, time.monotonic()
        async with self._draining:
            while True:
                appended = self._appended
                more = await self._drain_once(target)
                count += more or 0
                if more is None and wait is None:
                    return count
                if more is None:
                    self._bear(begun + (wait or 0))
                    await asyncio.sleep(0.1)
                elif appended == self._appended:
                    self._behind, self.fault, self._pause = False, None, FIRST_PAUSE
                    return count

    def _bear(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            assert self._journal is not None
            raise StoreUnavailable(
                f"another process has been writing what is in {self._journal.folder} for too long: look"
                " whether it hangs, or try again later"
            )

    async def _drain_once(self, target: str | None) -> int | None:
        """How many batches were written; None when another process is just doing that."""
        assert self._journal is not None
        draining = self._journal.draining(target, wait=False)
        await self._on_disk(draining.__enter__)
        try:
            return None if draining.busy else await self._write_all(draining)
        finally:
            await self._on_disk(draining.__exit__, None, None, None)

    async def _write_all(self, draining: Draining) -> int:
        count = 0
        while (batch := await self._on_disk(next, draining, None)) is not None:
            try:
                await self._attempt(batch)
                count += 1
            except Replaced as error:
                log.info("not written: %s", error)
            except Refused as error:
                await self._on_disk(draining.refuse, str(error))
        return count

    async def _on_disk(self, work: Callable[..., T], *arguments: Any) -> T:
        """In a thread, and to its end: nobody else may go on with the file before."""
        try:
            return await to_the_end(to_thread.run_sync(work, *arguments), DISK)
        except TimeoutError as error:
            raise StoreError(f"the disk of the journal did not answer in {DISK:g} s") from error

    async def _end(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # -- reading --

    @property
    def lasting(self) -> bool:
        """See Store."""
        return True

    async def get(self, prompt_id: str) -> JobRecord | None:
        """See Store. What waits in the journal for this database is written first. Raises StoreError."""
        await self.settle()
        return await self._asked(GET, prompt_id)

    async def succeeded(self, digest: str, limit: int = 5) -> list[JobRecord]:
        """See Store. Raises StoreError."""
        await self.settle()
        rows = await self.connections.fetch(SUCCEEDED, digest, limit)
        found = [await self._asked(GET, row["prompt_id"]) for row in rows]
        return [record for record in found if record is not None]

    async def _asked(self, question: str, prompt_id: str) -> JobRecord | None:
        rows = await self.connections.fetch(question, cleaned(prompt_id))
        if not rows:
            return None
        (row,) = rows
        return record_of(_decoded(row), _json(row["assets"]) or [], _json(row["events"]) or [])

    # -- who works on what --

    async def renew(self, worker: Worker, seconds: float) -> None:
        """See Store. Also forgets workers that died long ago."""
        await self._prepare()
        row = (worker.id, worker.host, worker.pid, worker.place)
        await self.connections.execute(RENEW, *row, seconds)
        await self.connections.execute(FORGET)

    async def retire(self, worker: Worker) -> None:
        """See Store."""
        await self.connections.execute(RETIRE, worker.id)

    async def take(self, prompt_id: str, worker: Worker, *, dead: Collection[str] = ()) -> bool:
        """See Store. What waits in the journal for this database is written first: the job may be there."""
        await self.settle(wait=self._patience)
        return bool(await self._hold(worker, dead, ONE, cleaned(prompt_id)))

    async def claim(
        self,
        worker: Worker,
        server: str,
        *,
        limit: int,
        busy: Collection[str] = (),
        dead: Collection[str] = (),
    ) -> list[JobRecord]:
        """See Store. What waits in the journal for this database is written first."""
        await self.settle()
        free = worker.id, list(dead), cleaned(server), [*map(cleaned, busy)], limit
        rows = await self._hold(worker, dead, FREE, *free)
        return [record_of(_decoded(row), [], []) for row in rows]

    async def holders(self, server: str) -> list[Holding]:
        """See Store."""
        rows = await self.connections.fetch(HOLDERS, cleaned(server))
        return [
            Holding(Worker(row["worker"], row["host"], row["pid"], row["place"]), row["jobs"], row["left"])
            for row in rows
        ]

    async def successor(self, prompt_id: str) -> JobRecord | None:
        """See Store. What waits in the journal for this database is written first."""
        await self.settle(wait=self._patience)
        return await self._asked(SUCCESSOR, prompt_id)

    async def latest(self, prompt_id: str) -> JobRecord | None:
        """See Store. What waits in the journal for this database is written first. One round trip."""
        await self.settle(wait=self._patience)
        return await self._asked(LATEST, prompt_id)

    async def _hold(
        self, worker: Worker, dead: Collection[str], choose: str, *arguments: object
    ) -> list[Any]:
        """Lock what `choose` finds, and hold what is free of that.

        One caller after the other; and each statement has to see what was committed before it began, which
        is what READ COMMITTED says, whatever the default of the database is.
        """

        async def work(connection: Any) -> list[Any]:
            async with connection.transaction(isolation="read_committed"):
                await connection.execute(TURN)
                found = [row["prompt_id"] for row in await connection.fetch(choose, *arguments)]
                if not found:
                    return []
                return list(await connection.fetch(HOLD, worker.id, list(dead), found))

        return await self.connections.run(work)

    async def unfinished(self) -> AsyncIterator[Job]:
        """See Store. They are read in pages. Raises StoreError."""
        await self.settle()
        last = (datetime.min.replace(tzinfo=UTC), "")
        while rows := await self.connections.fetch(UNFINISHED, *last):
            for row in rows:
                yield job_of({**row, "graph": _json(row["graph"])})
            last = (rows[-1]["place"], rows[-1]["prompt_id"])


def _decoded(row: Any) -> Row:
    return {**row, **{name: _json(row[name]) for name in ("graph", "outcome", "error")}}


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)
