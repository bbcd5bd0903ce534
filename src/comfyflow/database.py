"""The pool of connections to PostgreSQL, and what its faults mean.

The one place that knows asyncpg's pool and asyncpg's errors. Everything else hands its work to
`Connections.run` and sees StoreError or StoreUnavailable.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from errno import ECONNREFUSED
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import anyio
import asyncpg

from .dsn import Database, DatabaseKind, choose
from .errors import StoreError, StoreUnavailable

T = TypeVar("T")

OLDEST = 13  # major version of PostgreSQL
PAUSES = (0.05, 0.1, 0.2)  # s before work is done again
GRACE = 5.0  # s that a server gets to tell that it gave up, before we stop listening

# While asyncpg connects, parsing the DSN, and later (asyncpg 0.32, connect_utils.py)
_ASYNCPG = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
CONNECTING = (*_ASYNCPG, OSError, ValueError, LookupError)
WORKING = (*_ASYNCPG, ConnectionError, TimeoutError)

CLOSED = "the connections to the database are closed: open them again"
NO_TABLES = "{where} has not the tables of this version of comfyflow: run `comfyflow db upgrade`"
GONE = "{where} is going down or starting up ({said}): try again later"
LOST = "the connection to {where} broke ({said}): try again later"
UNFORESEEN = "{where} could not do this ({said}): please report it as a fault of comfyflow"

# By SQLSTATE, or by its class, the first two characters: the longer one counts (PostgreSQL, appendix A).
REFUSALS: Mapping[str, str] = {
    "53100": "{where} has no space left on its disk: make room, then try again",
    "22": "{where} cannot hold a value ({said}): please report it as a fault of comfyflow",
    "22001": "{where} has a column that is too short ({said}): give it the type text",
    "23": "{where} refused a row that breaks {rule_broken} ({said})",
    "28": "{where} does not let this user in ({said}): check {rule}, and pg_hba.conf on the server",
    "28P01": "{where} refused the user name or the password: check {rule}",
    "3D": "{where} is not there ({said}): create the database, or change {rule}",
    "3F": NO_TABLES,
    "42501": "{where} gives this user too few rights ({said}): grant more, as sql/roles.sql does",
    "42703": NO_TABLES,
    "42883": NO_TABLES,
    "42P01": NO_TABLES,
    "55000": "{where} is not set to take this ({said}): let its owner allow it (ALTER DATABASE ..."
    " ALLOW_CONNECTIONS true where it takes no connections), or change {rule}",
    "57P04": "{where} has been dropped: create the database, or change {rule}",
}
# Before there is a session, the same codes are about what the DSN asks of it.
SETTING = "{where} does not take a setting of the connection ({said}): check the options in {rule}"
UNSETTLED: Mapping[str, str] = {"22": SETTING, "42704": SETTING}
ABSENCES: Mapping[str, str] = {
    "08": LOST,
    "25006": "{where} takes no changes now, it is a standby or read-only: change {rule}, or try again later",
    "25P": "{where} gave up on a transaction that took too long ({said}): try again later",
    "40": "{where} is busy with others that want the same rows ({said}): try again later",
    "53": "{where} has come to a limit ({said}): try again when there is room",
    "53300": "{where} takes no more connections: close some, raise max_connections, or try again later",
    "55P03": "{where} kept a table or a row locked for too long: try again later",
    "57014": "{where} took longer than allowed: try again when it has less to do",
    "57P": GONE,
    "58": "{where} has trouble with its disk or its system ({said}): look into its log",
}

# pgbouncer refuses everything by 08P01, "protocol violation": what its words mean (1.18, src/client.c). It
# passes on PostgreSQL's own in the same way: 'database "x" does not exist'.
POOLER = (
    ("authentication failed", "28P01"),
    ("no such user", "28P01"),
    ("no such database", "3D000"),
    ("not currently accepting connections", "55000"),
    ('database "', "3D000"),
    ("unsupported startup parameter", "28000"),
    ("no more connections", "53300"),
)

# Below PostgreSQL's own protocol, by the kind of error: the first that fits.
FAILURES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (asyncpg.TargetServerAttributeNotMatched, "{where} has no server such as target_session_attrs asks for"),
    (socket.gaierror, "the host of {where} is not known: check its name in {rule}, and the network"),
    (ssl.SSLError, "no safe connection to {where}: check TLS and certificates there, and sslmode in {rule}"),
    (TimeoutError, "{where} did not answer in time: check host and port in {rule}, or try again later"),
    (
        (ConnectionRefusedError, FileNotFoundError),
        "{where} is not running, or not at this address: start it, or check host and port in {rule}",
    ),
    (ConnectionError, LOST),
    (OSError, "{where} cannot be reached ({said}): check host and port in {rule}"),
)

# A PostgreSQL of our own is started by each command, and nobody chose its address, its user or its limits:
# what is said of it instead, by the same keys.
AGAIN = "run the command again, which starts it; what it said is in {log}"
ANEW = "move its folder away to begin with an empty one; what it said is in {log}"
OWN: Mapping[str, str] = {
    "08": "the connection to {where} broke ({said}): " + AGAIN,
    "25006": "{where} takes no changes now ({said}): undo default_transaction_read_only in it",
    "28": "{where} does not let comfyflow in ({said}): put password and pg_hba.conf back as they were, or "
    + ANEW,
    "28P01": "{where} refused its own password: put the file 'password' in its folder back as it was, or "
    + ANEW,
    "3D": "{where} has lost its tables ({said}): put a copy of its folder back, or " + ANEW,
    "53300": "{where} takes no more connections: end some of the programs that use it, or try again later",
    "55000": "{where} is not set to take this ({said}): undo what was changed in it, or " + ANEW,
    "57P": "{where} is stopping or starting ({said}): " + AGAIN,
    "57P04": "{where} has been dropped: put a copy of its folder back, or " + ANEW,
    "58": "{where} has trouble with its disk or its system ({said}): look into {log}",
}
SLOW = "{where} did not answer in time: try again when this machine has less to do; what it said is in {log}"
STOPPED = "{where} has stopped: " + AGAIN

# The transaction did not happen: it may be done again at once. (Lost connections are told by the connection.)
ROLLED_BACK = frozenset({"40001", "40P01"})
# Nobody was let in: nothing was done.
TURNED_AWAY = frozenset({"53300", "57P03"})


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the pool in connections; timeouts in seconds, 0 means none for the last two."""

    min_size: int = 0
    max_size: int = 10
    connect_timeout: float = 10.0
    statement_timeout: float = 60.0
    lock_timeout: float = 10.0


class Connections:
    """A pool of connections to one database, made at its first use, for the event loop that uses it. Make it
    with `open`; close it, or use it in `async with`.

    `direct` and `server_version` are known after the first connection: whether we talk to PostgreSQL itself
    and not to a pooler such as pgbouncer, and a text like "18.1".
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self.database, self.limits = database, limits
        self.direct = False
        self.server_version = ""
        self._pool: asyncpg.Pool | None = None
        self._closed = False
        self._opening = asyncio.Lock()
        self._failed = 0  # how often the first connection failed
        self._failure: Exception | None = None  # the last time
        self._first: asyncpg.Connection | None = None

    @classmethod
    async def open(
        cls,
        source: str | Database,
        *,
        min_size: int = 0,
        max_size: int = 10,
        connect_timeout: float = 10.0,
        statement_timeout: float = 60.0,
        lock_timeout: float = 10.0,
    ) -> Connections:
        """A pool for a DSN or a Database; nothing is connected yet, so the server may be away.

        Sizes are numbers of connections, not bytes; timeouts are seconds: to get a connection, for one
        statement, and to wait for the locks of others (0 means no limit for the last two). A
        `statement_timeout` or `lock_timeout` in the DSN goes before ours. Raises StoreError for what is no
        DSN, and for a database that has none.
        """
        if isinstance(source, str):
            source = replace(choose(os.environ, source), rule="the DSN")
        if not source.dsn:
            raise StoreError(_without_dsn(source.kind))
        limits = Limits(min_size, max_size, connect_timeout, statement_timeout, lock_timeout)
        return cls(source, limits)

    async def run(self, work: Callable[[Any], Awaitable[T]], *, repeat: bool = True) -> T:
        """`await work(connection)` with an asyncpg connection, and return what it returns.

        With `repeat`, work is done again, a few times within a second, after a deadlock, a serialization
        failure or a lost connection. A lost connection leaves open whether a commit happened: `work` must do
        no harm when it is done twice. It must leave nothing behind in the session (SET, LISTEN, temporary
        tables, session locks): the next one gets the connection as it is. Raises StoreUnavailable when the
        database cannot be reached or cannot take anything now, StoreError for all else. Errors that `work`
        raises for reasons of its own pass through. Cancelling rolls back and gives the connection back.
        """
        for pause in (*PAUSES, None):
            try:
                pool = await self._opened()
                connection = await pool.acquire(timeout=self.limits.connect_timeout)
            except CONNECTING as error:
                fault, again = error, _state(error) in TURNED_AWAY
            else:
                try:
                    return await work(connection)
                except WORKING as error:
                    fault, passing = await _judged(error, connection, pool)
                    again = repeat and passing
                finally:
                    await _give_back(connection, pool)
            if self._closed:
                raise StoreError(CLOSED) from _shown(fault)
            if pause is None or not again:
                raise translated(fault, self.database) from _shown(fault)
            await anyio.sleep(pause * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    async def execute(self, sql: str, *arguments: object) -> str:
        """Run one statement, or several without arguments; its tag, such as "DELETE 3". Repeats and raises as
        `run` does."""

        async def work(connection: Any) -> str:
            return str(await connection.execute(sql, *arguments))

        return await self.run(work)

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        """Run one statement; its rows (asyncpg.Record; jsonb comes as text). Repeats and raises as `run`
        does."""

        async def work(connection: Any) -> list[Any]:
            return list(await connection.fetch(sql, *arguments))

        return await self.run(work)

    async def close(self) -> None:
        """Close all connections, once what is under way has ended or `connect_timeout` seconds have passed.
        May be called twice."""
        self._closed = True
        if self._first is not None:
            self._first.terminate()
        if self._pool is not None:
            with suppress(*WORKING):
                async with asyncio.timeout(self.limits.connect_timeout):
                    await self._pool.close()  # terminates all of them when it is cut short

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- the pool -------------------------------------------------------------------------------------

    async def _opened(self) -> Any:
        """The pool. Those who wait while somebody else fails to connect get that failure, not their turn."""
        if self._closed:
            raise StoreError(CLOSED)
        failed = self._failed
        async with self._opening:
            if self._failure is not None and self._failed != failed:
                raise self._failure
            if self._pool is None:
                self._pool = await self._make_pool()
            return self._pool

    async def _make_pool(self) -> Any:
        try:
            self._first = await self._look()
            pool = await self._pool_of()
        except (*CONNECTING, StoreError) as error:
            self._failed += 1
            self._failure = error
            raise
        self._failure = None
        return pool

    async def _look(self) -> Any:
        """Connect once and see who answers; the connection, when it can be kept."""
        limit = self.limits.connect_timeout
        connection = await asyncpg.connect(self.database.dsn, timeout=limit, **self._options(direct=True))
        with ExitStack() as undo:
            undo.callback(connection.terminate)
            self.server_version = _version(connection.get_settings().server_version, self.database)
            # A pooler gives away a process id of its own making. Sent without parameters, this leaves no
            # prepared statement behind on a connection that the pooler gives to others next.
            look = f"SELECT WHERE pg_backend_pid() = {connection.get_server_pid()}"
            self.direct = await connection.execute(look, timeout=limit) == "SELECT 1"
            if self.direct:
                undo.pop_all()
                return connection
            await connection.close(timeout=limit)
        return None

    async def _pool_of(self) -> Any:
        return await asyncpg.create_pool(
            self.database.dsn,
            min_size=self.limits.min_size,
            max_size=self.limits.max_size,
            timeout=self.limits.connect_timeout,
            connect=self._connect,
            init=self._settle if self.direct else None,
            reset=_keep_as_it_is,
            **self._options(direct=self.direct),
        )

    def _options(self, *, direct: bool) -> dict[str, Any]:
        statement = self.limits.statement_timeout
        named = {"application_name": "comfyflow"} if self._leaves("application_name") else {}
        return {
            "command_timeout": (statement + (GRACE if direct else 0.0)) if statement else None,
            # Kept, a statement is one round trip, else two; but a pooler's next connection does not know it.
            "statement_cache_size": 100 if direct else 0,
            "server_settings": named,
        }

    async def _connect(self, *arguments: Any, **options: Any) -> Any:
        """What the pool gets its connections by: the one that was looked at is the first."""
        connection, self._first = self._first, None
        if connection is not None and not connection.is_closed():
            return connection
        return await asyncpg.connect(*arguments, **options)

    async def _settle(self, connection: Any) -> None:
        """Give a new session its timeouts. Not at its start: pgbouncer refuses to pass them on."""
        wanted = {
            "statement_timeout": self.limits.statement_timeout,
            "lock_timeout": self.limits.lock_timeout,
            # a process that was frozen in a transaction must not keep its locks
            "idle_in_transaction_session_timeout": self.limits.statement_timeout,
        }
        lines = [
            f"SET {name} = {round(value * 1000)}" for name, value in wanted.items() if self._leaves(name)
        ]
        await connection.execute("; ".join(lines))

    def _leaves(self, setting: str) -> bool:
        """Whether the DSN says nothing about this setting, neither by its name nor in `options`."""
        return setting not in unquote(urlsplit(self.database.dsn).query)


async def _judged(error: Exception, connection: Any, pool: Any) -> tuple[Exception, bool]:
    """What went wrong with some work, and whether the same work may well succeed at once."""
    if _is_lost(connection):
        await pool.expire_connections()  # what cut this one has most likely cut the others
        misused = isinstance(error, asyncpg.InterfaceError)  # asyncpg's word for using it after that
        return (asyncpg.ConnectionDoesNotExistError("it was cut") if misused else error), True
    # the tables were changed under a statement that was kept
    stale = isinstance(error, asyncpg.InvalidCachedStatementError | asyncpg.OutdatedSchemaCacheError)
    return error, stale or _state(error) in ROLLED_BACK


def _is_lost(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has taken it back by itself
        return True


async def _give_back(connection: Any, pool: Any) -> None:
    with suppress(*WORKING):  # then it is broken, and gone; the work is done all the same
        await pool.release(connection)


async def _keep_as_it_is(connection: Any) -> None:
    """Instead of asyncpg's reset, which is a round trip each time. (It still rolls back a transaction.)"""


def _without_dsn(kind: DatabaseKind) -> str:
    if kind is DatabaseKind.EMBEDDED:
        return "the embedded database has to be started first: use Embedded and give its dsn"
    return "no database was chosen: give one, such as postgresql://user:password@host:5432/name"


def _version(told: str, database: Database) -> str:
    """The version without the packager's words. Raises StoreError for one that is too old."""
    version = told.partition(" ")[0]
    major = version.partition(".")[0]
    digits = "".join(letter for letter in major[:3] if letter.isdigit())  # "19devel", "18beta1"
    if digits and int(digits) < OLDEST:
        raise StoreError(
            f"the database {database.shown} is PostgreSQL {version}: comfyflow needs {OLDEST} or newer"
        )
    return version


# --- errors -------------------------------------------------------------------------------------------


def translated(error: Exception, database: Database) -> StoreError:
    """What a fault of asyncpg or of the network means, in one sentence without any password.

    StoreUnavailable where it may pass by itself or by what somebody does to the server; else StoreError.
    """
    if isinstance(error, StoreError):
        return error
    embedded = database.kind is DatabaseKind.EMBEDDED
    where = "the embedded database" if embedded else f"the database {database.shown}"
    words = {"where": where, "rule": database.rule, "said": _said(error), "log": _log_of(database)}
    words["rule_broken"] = getattr(error, "constraint_name", None) or "a rule of its table"
    kind, sentence = _told(error, own=embedded) or _failed(error, own=embedded) or (StoreError, UNFORESEEN)
    return kind(sentence.format(**words))


def _log_of(database: Database) -> str:
    """Where a PostgreSQL of our own writes what it has to say: see embedded.py."""
    if database.folder:
        return os.path.join(database.folder, "server.log")
    return "server.log in the folder that `comfyflow db where` tells"


def _told(error: Exception, *, own: bool) -> tuple[type[StoreError], str] | None:
    """What the server's code means; None for one that is not foreseen."""
    code = _state(error)
    unsettled = UNSETTLED if getattr(error, "severity_en", "") == "FATAL" and not own else {}
    for length in (5, 3, 2):
        key = code[:length]
        if sentence := ABSENCES.get(key):
            return StoreUnavailable, OWN.get(key, sentence) if own else sentence
        if sentence := unsettled.get(key) or REFUSALS.get(key):
            return StoreError, OWN.get(key, sentence) if own else sentence
    return None


def _failed(error: Exception, *, own: bool) -> tuple[type[StoreError], str] | None:
    """What a fault without a code means; None for one that is not foreseen."""
    if isinstance(error, OSError | asyncpg.TargetServerAttributeNotMatched):
        kind = _kind(error)
        if own:
            return StoreUnavailable, SLOW if issubclass(kind, TimeoutError) else STOPPED
        return StoreUnavailable, next(text for kinds, text in FAILURES if issubclass(kind, kinds))
    if isinstance(error, asyncpg.ClientConfigurationError | ValueError | LookupError) and not own:
        return StoreError, "{rule} cannot be used: write it as postgresql://user:password@host:5432/database"
    return None


def _kind(error: Exception) -> type[Exception]:
    """The error's class, also where only its text tells: asyncio puts several failed addresses into one text,
    and asyncpg has no class of its own for a server without TLS (asyncpg 0.32, connect_utils.py)."""
    if f"[Errno {ECONNREFUSED}]" in str(error):
        return ConnectionRefusedError
    return ssl.SSLError if "SSL upgrade" in str(error) else type(error)


def _said(error: Exception) -> str:
    """What may be told on: a server's own words, the system's, or only the kind. Never what asyncpg or Python
    say about the DSN."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.args[0]).strip().partition("\n")[0][:300]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:300]
    return type(error).__name__


def _shown(error: Exception) -> Exception | None:
    """What may be the cause of an error that people see: see _said."""
    return error if isinstance(error, asyncpg.PostgresError | OSError) else None


def _state(error: Exception) -> str:
    """The SQLSTATE that PostgreSQL gave, or asyncpg in its name; "" when there is none."""
    code = str(getattr(error, "sqlstate", None) or "")
    if code != "08P01":
        return code
    return next((meant for words, meant in POOLER if words in str(error)), code)
