"""Which store a command writes to, and which database it reads: from the environment to something open.

What writes never fails for want of a database: the journal takes the record then, and `Recording.fault` says
why. What reads raises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from .dsn import Database, DatabaseKind, choose
from .embedded import Embedded
from .errors import StoreError
from .journal import ANYWHERE, Journal
from .postgres import PostgresStore
from .rows import batch_of
from .settings import content_limit
from .store import Entry, MemoryStore, Store


class JournalStore(MemoryStore):
    """Where there is no database: the journal takes everything, and the first database gets it."""

    def __init__(self, journal: Journal, target: str) -> None:
        super().__init__()
        self._journal, self._target = journal, target

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        """See Store. Raises StoreError when the journal cannot be written either."""
        await super().write(*entries, lazily=lazily)
        await to_thread.run_sync(self._journal.append, batch_of(entries), self._target)


@dataclass(frozen=True, slots=True)
class Recording:
    """An open store. `name` says what it is: "postgresql", "embedded", "journal" or "none"."""

    store: Store
    name: str
    database: Database | None = None
    unopened: StoreError | None = None

    @property
    def fault(self) -> StoreError | None:
        """Why what was to be written stands in the journal; None when it is in the database."""
        return self.store.fault if isinstance(self.store, PostgresStore) else self.unopened

    @property
    def where(self) -> str:
        """Where the record has gone."""
        return self.name if self.fault is None else "journal"


@asynccontextmanager
async def recording(
    env: Mapping[str, str], flag: str | None = None, *, journal: Journal | None = None
) -> AsyncIterator[Recording]:
    """A store for a command that runs jobs: the database that flag and environment name, or the journal.

    Raises UsageError for a COMFYFLOW_CONTENT_LIMIT that is no size.
    """
    limit = content_limit(env)
    async with AsyncExitStack() as stack:
        yield await _recording(stack, env, flag, journal or Journal(), limit)


async def _recording(
    stack: AsyncExitStack, env: Mapping[str, str], flag: str | None, journal: Journal, limit: int
) -> Recording:
    database: Database | None = None
    try:
        database = chosen(env, flag)
        if database.kind is DatabaseKind.NONE:
            return Recording(MemoryStore(), "none", database)
        store = await _store(stack, database, journal, required=False, content_limit=limit)
        name = "embedded" if database.kind is DatabaseKind.EMBEDDED else "postgresql"
        return Recording(store, name, database)
    except StoreError as error:
        # "none was available" goes to any database, a chosen one that does not start keeps what is its own
        target = ANYWHERE if database is None or database.rule == "default" else database.target
        return Recording(JournalStore(journal, target), "journal", database, error)


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
        await store.flush()
        yield store


async def _store(
    stack: AsyncExitStack, database: Database, journal: Journal, *, required: bool, **limits: int
) -> PostgresStore:
    embedded = database.kind is DatabaseKind.EMBEDDED
    if embedded:
        database = await _started(stack, database)
    store = await PostgresStore.open(database, migrate=embedded, journal=journal, required=required, **limits)
    return await stack.enter_async_context(store)


async def _started(stack: AsyncExitStack, database: Database) -> Database:
    server = Embedded()
    await to_thread.run_sync(server.start)
    stack.push_async_callback(to_thread.run_sync, server.stop)
    return Database(database.kind, database.rule, server.dsn)
