"""Which store a command writes to, and which database it reads: from the environment to something open.

What writes never fails for want of a database: the journal takes the record then, and `Recording.fault` says
why. What reads raises.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from anyio import to_thread

from .dsn import Database, DatabaseKind, choose
from .embedded import Embedded
from .errors import PostgresMissing, StoreError, StoreUnavailable
from .journal import ANYWHERE, Journal
from .postgres import PostgresStore
from .rows import batch_of
from .settings import content_limit
from .shield import to_the_end
from .store import Entry, Holding, IdTaken, Job, JobRecord, MemoryStore, Store, Worker

T = TypeVar("T")
log = logging.getLogger(__name__)

PATIENCE = 5.0  # s that a write may take before the journal gets it
START = 300.0  # s to make, start or stop a PostgreSQL of our own; it gives up by itself sooner
NO_ADDRESS = (
    "an address that cannot be read"  # `db flush --all` writes it, once somebody knows where it belongs
)


class JournalStore(MemoryStore):
    """Where there is no database: the journal takes everything, and the first database gets it."""

    def __init__(self, journal: Journal, target: str) -> None:
        super().__init__()
        self._journal, self._target = journal, target

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        """See Store. Raises StoreError when the journal cannot be written either."""
        await super().write(*entries, lazily=lazily)
        await to_thread.run_sync(self._journal.append, batch_of(entries), self._target)


class Forgiving(Store):
    """Passes everything on. What neither the database nor the journal takes is told by `lost`; it stops no
    job."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.lost: StoreError | None = None

    @property
    def lasting(self) -> bool:
        """See Store."""
        return self.inner.lasting

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        """See Store; raises only IdTaken, for a job that was not sent yet."""
        await self._forgiven(self.inner.write(*entries, lazily=lazily))

    async def write_new(self, *entries: Entry) -> bool:
        """See Store; raises only IdTaken."""
        return bool(await self._forgiven(self.inner.write_new(*entries)))

    async def _forgiven(self, writing: Awaitable[T]) -> T | None:
        try:
            return await writing
        except IdTaken:
            raise
        except StoreError as error:
            self.lost = error
            return None

    async def get(self, prompt_id: str) -> JobRecord | None:
        """See Store."""
        return await self.inner.get(prompt_id)

    def unfinished(self) -> AsyncIterator[Job]:
        """See Store."""
        return self.inner.unfinished()

    async def renew(self, worker: Worker, seconds: float) -> None:
        """See Store."""
        await self.inner.renew(worker, seconds)

    async def retire(self, worker: Worker) -> None:
        """See Store."""
        await self.inner.retire(worker)

    async def take(self, prompt_id: str, worker: Worker, *, dead: Collection[str] = ()) -> bool:
        """See Store."""
        return await self.inner.take(prompt_id, worker, dead=dead)

    async def claim(
        self,
        worker: Worker,
        server: str,
        *,
        limit: int,
        busy: Collection[str] = (),
        dead: Collection[str] = (),
    ) -> list[JobRecord]:
        """See Store."""
        return await self.inner.claim(worker, server, limit=limit, busy=busy, dead=dead)

    async def holders(self, server: str) -> list[Holding]:
        """See Store."""
        return await self.inner.holders(server)

    async def successor(self, prompt_id: str) -> JobRecord | None:
        """See Store."""
        return await self.inner.successor(prompt_id)

    async def succeeded(self, digest: str, limit: int = 5) -> list[JobRecord]:
        """See Store."""
        return await self.inner.succeeded(digest, limit)

    async def latest(self, prompt_id: str) -> JobRecord | None:
        """See Store."""
        return await self.inner.latest(prompt_id)

    async def close(self) -> None:
        """Write what was held back, and close what has to be closed."""
        if isinstance(self.inner, PostgresStore):
            try:
                await self.inner.close()
            except StoreError as error:
                self.lost = error


@dataclass(frozen=True, slots=True)
class Recording:
    """An open store. `name` says what it is: "postgresql", "embedded", "journal" or "none"."""

    store: Forgiving
    name: str
    database: Database | None = None
    unopened: StoreError | None = None

    @property
    def lost(self) -> StoreError | None:
        """Why something is recorded nowhere, not even in the journal."""
        return self.store.lost

    @property
    def fault(self) -> StoreError | None:
        """Why what was to be written is not in the database; None when it is."""
        inner = self.store.inner
        return self.lost or (inner.fault if isinstance(inner, PostgresStore) else self.unopened)

    @property
    def where(self) -> str:
        """Where the record has gone."""
        if self.lost is not None:
            return "none"
        return self.name if self.fault is None else "journal"


@asynccontextmanager
async def recording(
    env: Mapping[str, str], flag: str | None = None, *, journal: Journal | None = None
) -> AsyncIterator[Recording]:
    """A store for a command that runs jobs: the database that flag and environment name, or the journal.

    Raises UsageError for a COMFYFLOW_CONTENT_LIMIT that is no size.
    """
    limit, kept = content_limit(env), journal or Journal()
    async with AsyncExitStack() as stack:
        record = await _recording(stack, env, flag, kept, limit)
        stack.push_async_callback(record.store.close)
        if record.fault is not None:
            record.store.lost = await to_thread.run_sync(_unusable, kept)
        yield record


async def _recording(
    stack: AsyncExitStack, env: Mapping[str, str], flag: str | None, journal: Journal, limit: int
) -> Recording:
    database: Database | None = None
    try:
        database = chosen(env, flag)
        if database.kind is DatabaseKind.NONE:
            return Recording(Forgiving(MemoryStore()), "none", database)
        store = await _store(stack, database, journal, required=False, content_limit=limit)
        name = "embedded" if database.kind is DatabaseKind.EMBEDDED else "postgresql"
        return Recording(Forgiving(store), name, database)
    except StoreError as error:
        kept = JournalStore(journal, _target(database, error))
        return Recording(Forgiving(kept), "journal", database, error)


def _target(database: Database | None, error: StoreError) -> str:
    """For whom the journal keeps a record when there is nothing to connect to: where there was no database at
    all the first one gets it, else only the one that was meant."""
    if database is None:
        return NO_ADDRESS
    if isinstance(error, PostgresMissing):
        return ANYWHERE
    with suppress(StoreError):  # the folder may be what is wrong
        if database.kind is DatabaseKind.EMBEDDED:
            return _placed(database, Embedded()).target
    return database.target


def _unusable(journal: Journal) -> StoreError | None:
    """Why the journal cannot be written."""
    try:
        journal.check()
    except StoreError as error:
        return error
    return None


def chosen(env: Mapping[str, str], flag: str | None = None) -> Database:
    """The database that flag and environment name, see `dsn.choose`; POSTGRES_PASSWORD_FILE is read. Raises
    StoreError."""
    return choose(env, flag, read=lambda path: Path(path).read_text(encoding="utf-8"))


@asynccontextmanager
async def reading(
    env: Mapping[str, str], flag: str | None = None, *, journal: Journal | None = None
) -> AsyncIterator[PostgresStore]:
    """The database for a command that reads, once what waits in the journal is written. Raises StoreError."""
    database = chosen(env, flag)
    if database.kind is DatabaseKind.NONE:
        raise StoreError(f"there is nothing to read: {database.rule} says that nothing is recorded")
    async with AsyncExitStack() as stack:
        store = await _store(stack, database, journal or Journal(), required=True)
        stack.push_async_callback(store.close)
        try:
            await store.settle()
        except (
            StoreError
        ) as error:  # a reader may not write, a journal may be out of reach: that is no answer
            log.warning("what waits in the journal is not written now: %s", error)
        yield store


async def _store(
    stack: AsyncExitStack, database: Database, journal: Journal, *, required: bool, **limits: int
) -> PostgresStore:
    """An open store, not yet to be closed by the stack; a server of our own is."""
    embedded = database.kind is DatabaseKind.EMBEDDED
    if embedded:
        database = await started(stack, database)
    return await PostgresStore.open(
        database, migrate=embedded, journal=journal, required=required, patience=PATIENCE, **limits
    )


async def started(stack: AsyncExitStack, database: Database, server: Embedded | None = None) -> Database:
    """The embedded PostgreSQL, which is stopped at the end of `stack`. Cancelling takes effect once it has
    started, or it would stay behind. Raises StoreError."""
    server = server or Embedded()
    stack.push_async_callback(_to_the_end, server.stop)
    await _to_the_end(server.start)
    return replace(_placed(database, server), dsn=server.dsn)


async def _to_the_end(work: Callable[[], None]) -> None:
    try:
        await to_the_end(to_thread.run_sync(work), START)
    except TimeoutError as error:
        text = f"the embedded PostgreSQL did not start or stop in {START:g} s: try again later"
        raise StoreUnavailable(text) from error


def _placed(database: Database, server: Embedded) -> Database:
    """A database of our own is another one in each data folder."""
    return replace(database, folder=str(server.home))
