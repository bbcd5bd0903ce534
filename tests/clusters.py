"""Real PostgreSQL servers for tests: throw-away clusters, and databases copied from a migrated template."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import asyncpg

from comfyflow.database import Connections
from comfyflow.embedded import Embedded
from comfyflow.migrations import upgrade

T = TypeVar("T")
# What a schema is made of, as the catalog tells it: no client programs are needed to compare two.
CATALOG = {
    "columns": """
        SELECT c.relname, c.relkind, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               a.attidentity, a.attstorage, pg_get_expr(d.adbin, d.adrelid),
               col_description(c.oid, a.attnum), obj_description(c.oid)
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    "functions": """
        SELECT proname, pg_get_functiondef(oid), obj_description(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace""",
    "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "rights": "SELECT relname, relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace",
}


def elsewhere(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on a loop of another thread: a fixture must not touch the loop of the test."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()


def migrate(dsn: str) -> None:
    """Give the database our tables."""

    async def work() -> None:
        async with await Connections.open(dsn) as connections:
            await upgrade(connections)

    elsewhere(work())


def execute(dsn: str, *statements: str) -> list[list[Any]]:
    """Run statements one after the other, each in a transaction of its own; their rows."""

    async def work() -> list[list[Any]]:
        async with connected(dsn) as connection:
            return [await connection.fetch(statement) for statement in statements]

    return elsewhere(work())


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Any]:
    """A bare connection, without anything of comfyflow."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def with_database(dsn: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


def with_options(dsn: str, **options: object) -> str:
    """The same database, with more in the DSN's query."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, urlencode(options)]))))


def with_user(dsn: str, user: str, password: str) -> str:
    """The same database, as somebody else."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}"))


def schema(dsn: str) -> dict[str, list[str]]:
    """All that the schema "public" of a database is made of, to be compared."""
    return {
        name: sorted(map(repr, rows))
        for name, rows in zip(CATALOG, execute(dsn, *CATALOG.values()), strict=True)
    }


@contextmanager
def restricted(dsn: str, options: str = "LOGIN", password: str | None = None) -> Iterator[str]:
    """Somebody who may do nothing but log in, for as long as it takes; the DSN for them."""
    name, password = f"comfyflow_test_{secrets.token_hex(6)}", password or secrets.token_hex(8)
    execute(dsn, f"CREATE ROLE {name} {options} PASSWORD '{password}'")
    try:
        yield with_user(dsn, name, password)
    finally:
        execute(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


class Cluster:
    """A PostgreSQL that is alone on its own folder: the embedded one, without the care for the disk.

    `dsn` is its database. `stop` cuts everybody off, `start` brings it back with its data; all of it blocks.
    """

    def __init__(self) -> None:
        # not in pytest's folder: only its owner can enter that, and root's servers run as somebody else
        self.home = Path(tempfile.mkdtemp(prefix="comfyflow-", dir="/tmp"))
        self._server = Embedded(self.home, durable=False)
        self.start()
        self.dsn = self._server.dsn

    @property
    def binaries(self) -> Path:
        """The folder of the server's programs; those of clients may be there too."""
        return self._server.binaries

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.home)


class Databases:
    """Databases on one server, each with a name of its own, the migrated ones copied from a template."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._prefix = f"comfyflow_test_{os.getpid()}_{secrets.token_hex(3)}"
        self._numbers = itertools.count(1)
        self._template: str | None = None

    def make(self, *, migrated: bool) -> str:
        name = f"{self._prefix}_{next(self._numbers)}"
        execute(self.server, f"CREATE DATABASE {name}{self._copied() if migrated else ''}")
        return with_database(self.server, name)

    def drop(self, dsn: str) -> None:
        execute(self.server, f"DROP DATABASE IF EXISTS {urlsplit(dsn).path[1:]} WITH (FORCE)")

    def close(self) -> None:
        if self._template is not None:
            execute(self.server, f"DROP DATABASE {self._template} WITH (FORCE)")

    def _copied(self) -> str:
        if self._template is None:
            self._template = f"{self._prefix}_template"
            execute(self.server, f"CREATE DATABASE {self._template}")
            migrate(with_database(self.server, self._template))
            [[row]] = execute(self.server, "SELECT current_setting('server_version_num')::int")
            # three times as fast as the default of PostgreSQL 15 and newer, when nothing waits for the disk
            self._strategy = " STRATEGY file_copy" if row[0] >= 150000 else ""
        return f" TEMPLATE {self._template}{self._strategy}"
