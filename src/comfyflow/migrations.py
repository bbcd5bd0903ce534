"""The tables: which files of sql/ a database has, and applying those that it lacks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import asyncpg

from .database import Connections
from .errors import StoreError

_NAME = re.compile(r"(\d{4})_\w+\.sql")
_TRANSACTION = re.compile(r"^(?:BEGIN|COMMIT);$", re.MULTILINE)  # psql needs these lines, we have our own
LOCK = int.from_bytes(b"comfyflo")  # the advisory lock of whoever applies files to a database
PATIENCE = 3600.0  # s for one file: an index on a table of millions takes its time
DO = "run `comfyflow db upgrade`"


@dataclass(frozen=True, slots=True)
class Script:
    """A numbered file of sql/. `sha256` is that of `text` in UTF-8, with plain line ends."""

    version: int
    name: str
    text: str
    sha256: str


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """The highest version in the database (None: no tables of ours), the one that this program needs, and the
    names of the files in between."""

    version: int | None
    wanted: int
    pending: tuple[str, ...]


def scripts() -> tuple[Script, ...]:
    """The numbered files that this version of comfyflow comes with, in their order."""
    names = sorted(entry.name for entry in _folder().iterdir() if _NAME.fullmatch(entry.name))
    return tuple(script(name, _read(name)) for name in names)


def script(name: str, text: str) -> Script:
    """A file by its name, NNNN_words.sql, and its text. Raises ValueError for another name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no name of a numbered SQL file")
    return Script(int(match[1]), name, text, hashlib.sha256(text.encode()).hexdigest())


def roles() -> str:
    """The text of sql/roles.sql, which makes the roles comfyflow_reader and comfyflow_writer."""
    return _read("roles.sql")


async def status(connections: Connections, wanted: Sequence[Script] | None = None) -> SchemaStatus:
    """What the database has and lacks of `wanted`: all files, unless given. Raises StoreError."""
    wanted = scripts() if wanted is None else wanted
    known = await connections.run(_recorded)
    pending = tuple(file.name for file in wanted if file.version not in known)
    return SchemaStatus(max(known, default=None), wanted[-1].version, pending)


async def check(connections: Connections, wanted: Sequence[Script] | None = None) -> None:
    """Raises StoreError when the tables are not those of this version of comfyflow, or of `wanted`."""
    found = await status(connections, wanted)
    where = connections.database.shown
    if found.version is None:
        raise StoreError(f"the database {where} has no tables of comfyflow: {DO}")
    _refuse_newer(found.version, found.wanted, connections)
    if found.pending:
        version = f"version {found.version}, comfyflow needs {found.wanted}"
        raise StoreError(f"the tables in the database {where} are of {version}: {DO}")


async def upgrade(connections: Connections, wanted: Sequence[Script] | None = None) -> tuple[str, ...]:
    """Apply what the database lacks of `wanted` (all files, unless given); the names of what was applied now.

    Each file is one transaction under a lock, so upgrades at the same time apply each file once; when one
    fails, those before it stay. A file that was run by hand is taken for applied. Raises StoreError when
    there are no rights to create tables, when a file was edited after it was applied, when the tables are
    newer than this program, and when a table generated_assets of somebody else is in the way. Cancelling
    leaves out the file that is being applied.
    """
    wanted, applied = scripts() if wanted is None else wanted, []
    for file in wanted:

        async def work(connection: Any, file: Script = file) -> bool:
            async with connection.transaction():
                return await _ensure(connection, file, wanted[-1].version, connections)

        if await connections.run(work):
            applied.append(file.name)
    return tuple(applied)


async def _ensure(connection: Any, file: Script, newest: int, connections: Connections) -> bool:
    """Apply the file unless it was; inside a transaction."""
    # whoever waits for another upgrade waits for as long as that takes
    await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK, timeout=PATIENCE)
    known: Mapping[int, str | None] = {}
    if await connection.fetchval("SELECT to_regclass('comfyflow_schema') IS NOT NULL"):
        known = await _recorded(connection)
    _refuse_newer(max(known, default=0), newest, connections)
    if file.version not in known:
        await _apply(connection, file, connections)
        return True
    if known[file.version] is None:
        await _adopt(connection, file)
    elif known[file.version] != file.sha256:
        raise StoreError(
            f"sql/{file.name} is not what was applied to the database {connections.database.shown}:"
            " put the file back as it was, changes to the tables belong into a new file"
        )
    return False


async def _recorded(connection: Any) -> dict[int, str | None]:
    """Version and checksum of each file that was applied."""
    try:
        rows = await connection.fetch("SELECT version, sha256 FROM comfyflow_schema ORDER BY version")
    except asyncpg.UndefinedTableError:
        return {}
    return {row["version"]: row["sha256"] for row in rows}


async def _apply(connection: Any, file: Script, connections: Connections) -> None:
    try:
        await connection.execute(_TRANSACTION.sub("", file.text), timeout=PATIENCE)
        await _adopt(connection, file)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError) as error:
        raise StoreError(
            f"this user may not create tables in the database {connections.database.shown}"
            f" ({error.args[0]}): let its owner run `comfyflow db upgrade`, or GRANT CREATE ON SCHEMA"
        ) from error
    except asyncpg.PostgresError as error:
        if not error.hint:
            raise
        hint = f"{error.hint[0].lower()}{error.hint[1:]}".rstrip(".")  # our own files' words
        raise StoreError(f"{error.args[0]}: {hint}") from error


async def _adopt(connection: Any, file: Script) -> None:
    """Remember the checksum. Who may only use the tables leaves that to their owner."""
    if await connection.fetchval("SELECT has_table_privilege('comfyflow_schema', 'UPDATE')"):
        await connection.execute(
            "UPDATE comfyflow_schema SET sha256 = $2 WHERE version = $1 AND sha256 IS NULL",
            file.version,
            file.sha256,
        )


def _refuse_newer(found: int, wanted: int, connections: Connections) -> None:
    if found > wanted:
        raise StoreError(
            f"the tables in the database {connections.database.shown} are of version {found}, and this"
            f" comfyflow knows only version {wanted}: upgrade comfyflow"
        )


def _folder() -> Traversable:
    """sql/ of the wheel; in a checkout, and where it is installed for editing, the checkout's own."""
    packed = files("comfyflow") / "sql"
    return packed if packed.is_dir() else Path(__file__).parent.parent.parent / "sql"


def _read(name: str) -> str:
    return (_folder() / name).read_text(encoding="utf-8")
