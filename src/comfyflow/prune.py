"""Retention: delete what is old, in small transactions that stand in nobody's way.

What goes: jobs that ended before the moment, with their events and the rows of their files, unless one of
those rows is younger, or the job that was sent in their place stays; rows of files of that age that belong to
no recorded job (n8n's own); contents that no row names any more; checks of servers and alerts of that age.
What stays: jobs without an end, and what somebody else has locked just then.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from .contents import take_lock
from .database import Connections
from .errors import UsageError
from .queries import PAGE
from .rows import cleaned
from .verify import is_inside, sha256_of

CONTENTS = 100  # that go in one transaction: each may be many parts of 1 MiB
_MARGIN = 0.001  # s; a moment loses up to a microsecond on its way through a float


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much went, or would go. `bytes` are those of the files on disk and of the contents together."""

    runs: int = 0
    events: int = 0
    assets: int = 0
    contents: int = 0
    files: int = 0
    bytes: int = 0
    checks: int = 0
    alerts: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(
            self.runs + other.runs, self.events + other.events, self.assets + other.assets,
            self.contents + other.contents, self.files + other.files, self.bytes + other.bytes,
            self.checks + other.checks, self.alerts + other.alerts,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _File:
    """What a deleted row said of its file."""

    output_path: str
    sha256: str


async def prune(
    connections: Connections,
    before: float,
    *,
    files: bool = False,
    dry_run: bool = False,
    root: Path | None = None,
) -> Pruned:
    """Delete what is older than `before` (seconds since the Unix epoch), 1000 jobs or rows a transaction.

    `files` deletes the files as well: only below `root`, only where the SHA-256 still is the recorded one,
    and only when no other row names the file. They go after their rows: a crash may leave a file without a
    row (`verify` finds it), never a row without its file. `dry_run` changes nothing and tells the same
    figures.

    Raises UsageError for `files` without a folder, and StoreError. Cancelled half-way it has done a part: run
    it again. The figures may be too low after a connection was lost.
    """
    disk = await run_sync(_folder, root) if files else None
    if dry_run:
        return await _rehearsed(connections, before, disk)
    total = Pruned()
    async with aclosing(_batches(connections, before)) as batches:
        async for pruned, gone in batches:
            total += pruned
            if disk is not None:
                total += await _sweep(connections, gone, disk)
    return total + await _prune_contents(connections, before) + await _prune_watch(connections, before)


def _folder(root: Path | None) -> Path:
    if root is None or not root.is_dir():
        raise UsageError("to delete files, name the folder that they were saved in; nothing was deleted")
    return Path(os.path.abspath(root))


# $1 is the moment everywhere. OFFSET 0 keeps PostgreSQL from making joins of these questions: it would
# look at whole tables for each batch.
_OLD = """{0}.finished_at < to_timestamp($1) AND NOT EXISTS (
        SELECT FROM generated_assets AS young
        WHERE young.prompt_id = {0}.prompt_id AND young.created_at >= to_timestamp($1) OFFSET 0)"""
# What replaces a lost job is found through it: the key of both is made into the id of the first one.
_OLD_RUN = f"""{_OLD.format("r")} AND NOT EXISTS (
        WITH RECURSIVE later AS (
            SELECT s.prompt_id, s.finished_at FROM workflow_runs AS s WHERE s.replaces = r.prompt_id
            UNION SELECT s.prompt_id, s.finished_at
            FROM later JOIN workflow_runs AS s ON s.replaces = later.prompt_id
        ) SELECT FROM later WHERE ({_OLD.format("later")}) IS NOT TRUE OFFSET 0)"""
_OLD_ASSET = f"""a.created_at < to_timestamp($1) AND NOT EXISTS (
        SELECT FROM workflow_runs AS r
        WHERE r.prompt_id = a.prompt_id AND ({_OLD_RUN}) IS NOT TRUE OFFSET 0)"""
_FILE = "jsonb_build_array(a.output_path, a.metadata ->> 'sha256')"
_FILES = "(SELECT jsonb_agg(file)::text FROM assets WHERE file ->> 1 IS NOT NULL)"

# ANY (ARRAY(...)) instead of a join: it is looked up by the index whatever the planner thinks of "old".
# Of jobs that replace each other the last one goes first: a row that another one names would have to wait for
# whoever has locked that.
DELETE_RUNS = f"""
    WITH old AS MATERIALIZED (
        SELECT r.prompt_id FROM workflow_runs AS r WHERE {_OLD.format("r")}
            AND NOT EXISTS (SELECT FROM workflow_runs AS s WHERE s.replaces = r.prompt_id OFFSET 0)
        ORDER BY r.finished_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ), events AS (
        DELETE FROM run_events AS e WHERE e.prompt_id = ANY (ARRAY(SELECT prompt_id FROM old)) RETURNING 1
    ), assets AS (
        DELETE FROM generated_assets AS a WHERE a.prompt_id = ANY (ARRAY(SELECT prompt_id FROM old))
        RETURNING {_FILE} AS file
    ), runs AS (
        DELETE FROM workflow_runs AS r WHERE r.prompt_id = ANY (ARRAY(SELECT prompt_id FROM old)) RETURNING 1
    )
    SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM events) AS events,
        (SELECT count(*) FROM assets) AS assets, {_FILES} AS files"""

# $3: where the last batch ended, so that rows that stay are not looked at again and again.
DELETE_LONE_ASSETS = f"""
    WITH lone AS MATERIALIZED (
        SELECT a.id, a.created_at FROM generated_assets AS a
        WHERE a.created_at < to_timestamp($1) AND a.created_at >= to_timestamp($3)
            AND NOT EXISTS (SELECT FROM workflow_runs AS r WHERE r.prompt_id = a.prompt_id OFFSET 0)
        ORDER BY a.created_at, a.id LIMIT $2 FOR UPDATE SKIP LOCKED
    ), assets AS (
        DELETE FROM generated_assets AS a WHERE a.id = ANY (ARRAY(SELECT id FROM lone))
        RETURNING {_FILE} AS file
    )
    SELECT 0 AS runs, 0 AS events, (SELECT count(*) FROM assets) AS assets, {_FILES} AS files,
        (SELECT extract(epoch FROM max(created_at)::timestamptz)::float8 FROM lone) AS last"""

OLD_CONTENTS = """
    SELECT c.sha256 FROM asset_contents AS c
    WHERE c.part = 0 AND c.sha256 > $3 AND c.created_at < to_timestamp($1)
        AND NOT EXISTS (SELECT FROM generated_assets AS a WHERE a.metadata ->> 'sha256' = c.sha256 OFFSET 0)
    ORDER BY c.sha256 LIMIT $2"""
DELETE_CONTENTS = """
    WITH gone AS (
        DELETE FROM asset_contents AS c WHERE c.sha256 = ANY ($1::text[]) AND NOT EXISTS (
            SELECT FROM generated_assets AS a WHERE a.metadata ->> 'sha256' = c.sha256 OFFSET 0)
        RETURNING c.part, c.bytes
    )
    SELECT count(*) AS contents, coalesce(sum(bytes), 0)::bigint AS bytes FROM gone WHERE part = 0"""

DELETE_CHECKS = """
    WITH gone AS (
        DELETE FROM server_checks WHERE id = ANY (ARRAY(
            SELECT id FROM server_checks WHERE checked_at < to_timestamp($1)
            ORDER BY checked_at LIMIT $2 FOR UPDATE SKIP LOCKED))
        RETURNING 1
    ) SELECT count(*) AS gone FROM gone"""
DELETE_ALERTS = """
    WITH gone AS (
        DELETE FROM alerts WHERE cause = ANY (ARRAY(
            SELECT cause FROM alerts WHERE last_at < to_timestamp($1)
            ORDER BY last_at LIMIT $2 FOR UPDATE SKIP LOCKED))
        RETURNING 1
    ) SELECT count(*) AS gone FROM gone"""

REMAINING = """
    SELECT a.output_path, a.metadata ->> 'sha256' AS sha256 FROM generated_assets AS a
    WHERE (a.output_path = ANY ($1::text[]) OR a.metadata ->> 'sha256' = ANY ($2::text[]))"""


async def _batches(connections: Connections, before: float) -> AsyncGenerator[tuple[Pruned, list[_File]]]:
    while (row := (await connections.fetch(DELETE_RUNS, before, PAGE))[0])["runs"]:
        yield _batch(row)
    last = -float("inf")
    while (row := (await connections.fetch(DELETE_LONE_ASSETS, before, PAGE, last))[0])["assets"]:
        yield _batch(row)
        last = row["last"] - _MARGIN


def _batch(row: Any) -> tuple[Pruned, list[_File]]:
    return Pruned(row["runs"], row["events"], row["assets"]), _files(row["files"])


def _files(text: str | None) -> list[_File]:
    return [_File(path, sha256) for path, sha256 in json.loads(text or "[]") if path]


async def _prune_contents(connections: Connections, before: float) -> Pruned:
    total, last = Pruned(), ""
    while names := await connections.fetch(OLD_CONTENTS, before, CONTENTS, last):
        last = names[-1]["sha256"]
        total += await _delete_contents(connections, [row["sha256"] for row in names])
    return total


async def _delete_contents(connections: Connections, names: list[str]) -> Pruned:
    async def work(connection: Any) -> Any:
        async with connection.transaction():
            # Whoever holds the lock is storing this very content for a new file.
            free = [name for name in names if await take_lock(connection, name, wait=False)]
            # A statement of its own, so it sees the rows that were written before we had the lock.
            return await connection.fetchrow(DELETE_CONTENTS, free)

    row = await connections.run(work)
    return Pruned(contents=row["contents"], bytes=row["bytes"])


async def _prune_watch(connections: Connections, before: float) -> Pruned:
    total = Pruned()
    while gone := (await connections.fetch(DELETE_CHECKS, before, PAGE))[0]["gone"]:
        total += Pruned(checks=gone)
    while gone := (await connections.fetch(DELETE_ALERTS, before, PAGE))[0]["gone"]:
        total += Pruned(alerts=gone)
    return total


# -- without changing anything --

COUNTS = f"""
    WITH old AS MATERIALIZED (SELECT r.prompt_id FROM workflow_runs AS r WHERE {_OLD_RUN})
    SELECT (SELECT count(*) FROM old) AS runs,
        (SELECT count(*) FROM run_events AS e JOIN old USING (prompt_id)) AS events,
        (SELECT count(*) FROM generated_assets AS a WHERE {_OLD_ASSET}) AS assets,
        (SELECT count(*) FROM server_checks WHERE checked_at < to_timestamp($1)) AS checks,
        (SELECT count(*) FROM alerts WHERE last_at < to_timestamp($1)) AS alerts"""
COUNT_CONTENTS = f"""
    SELECT count(*) AS contents, coalesce(sum(c.bytes), 0)::bigint AS bytes FROM asset_contents AS c
    WHERE c.part = 0 AND c.created_at < to_timestamp($1) AND NOT EXISTS (
        SELECT FROM generated_assets AS a
        WHERE a.metadata ->> 'sha256' = c.sha256 AND ({_OLD_ASSET}) IS NOT TRUE)"""


async def _rehearsed(connections: Connections, before: float, disk: Path | None) -> Pruned:
    (rows,) = await connections.fetch(COUNTS, before)
    (kept,) = await connections.fetch(COUNT_CONTENTS, before)
    total = Pruned(
        rows["runs"], rows["events"], rows["assets"], kept["contents"], 0, kept["bytes"],
        rows["checks"], rows["alerts"],
    )  # fmt: skip
    if disk is None:
        return total
    counted: set[int] = set()  # hashes of names: the only thing here that grows with the number of files
    async with aclosing(_old_files(connections, before)) as pages:
        async for page in pages:
            fresh = [file for file in page if hash(file) not in counted]
            counted.update(map(hash, fresh))
            total += await _sweep(connections, fresh, disk, rehearsed_at=before)
    return total


async def _old_files(connections: Connections, before: float) -> AsyncGenerator[list[_File]]:
    """Pages of the rows that would go, in the order of their ids."""
    after: tuple[Any, ...] = ()
    while True:
        beyond = "AND a.id > $3" if after else ""
        sql = f"SELECT a.id, {_FILE}::text AS file FROM generated_assets AS a"
        sql = f"{sql} WHERE {_OLD_ASSET} {beyond} ORDER BY a.id LIMIT $2"
        rows = await connections.fetch(sql, before, PAGE, *after)
        if not rows:
            return
        after = (rows[-1]["id"],)
        files = [json.loads(row["file"]) for row in rows]
        yield [_File(path, sha256) for path, sha256 in files if path and sha256]


# -- on disk --


async def _sweep(
    connections: Connections, gone: list[_File], disk: Path, *, rehearsed_at: float | None = None
) -> Pruned:
    """Delete the files of these rows, as far as nobody else names them; or count them (`rehearsed_at`: the
    moment before which rows do not count any more)."""
    names = [cleaned(name) for file in gone for name in (file.output_path, str(disk / file.output_path))]
    arguments: list[Any] = [names, [file.sha256 for file in gone]]
    sql = REMAINING
    if rehearsed_at is not None:
        sql += f" AND ({_OLD_ASSET.replace('$1', '$3')}) IS NOT TRUE"
        arguments.append(rehearsed_at)
    rows = await connections.fetch(sql, *arguments)
    # The same bytes under the same last name may be this very file, seen from another folder.
    kept = {row["output_path"] for row in rows} | {(row["sha256"], _last(row["output_path"])) for row in rows}
    free = [
        file for file in dict.fromkeys(gone)
        if not kept & {file.output_path, str(disk / file.output_path), (file.sha256, _last(file.output_path))}
    ]  # fmt: skip
    return await run_sync(_delete, free, disk, rehearsed_at is None)


def _last(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _delete(files: Iterable[_File], disk: Path, really: bool) -> Pruned:
    total = Pruned()
    for file in files:
        path = disk / file.output_path
        size = _size_if_it_is(path, file.sha256, disk)
        if size is not None and (not really or _removed(path)):
            total += Pruned(files=1, bytes=size)
    return total


def _size_if_it_is(path: Path, sha256: str, disk: Path) -> int | None:
    """Bytes of the file if it is the recorded one, in this folder and no link."""
    try:
        status = path.lstat()
        is_it = stat.S_ISREG(status.st_mode) and is_inside(path, disk) and sha256_of(path) == sha256
    except (OSError, RuntimeError):  # gone, or not to be read; links in a circle (Python < 3.13)
        return None
    return status.st_size if is_it else None


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
