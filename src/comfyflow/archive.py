"""Reading the record, and keeping house in it: what n8n and people ask for, from Python.

Lists are newest first, moments are seconds since the Unix epoch. Every method may raise StoreError; none
writes, except `prune`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import prune, queries
from .database import Connections
from .prune import Pruned
from .queries import PAGE, AssetFilter, AssetRow, Query, RunFilter, RunRow
from .rows import cleaned
from .store import JobEvent
from .verify import Checked, Verdict, verified

__all__ = [
    "Archive", "AssetFilter", "AssetRow", "Checked", "Pruned", "RunFilter", "RunRow", "TableSize", "Verdict",
]  # fmt: skip

TABLES = ("workflow_runs", "run_events", "generated_assets", "asset_contents")


@dataclass(frozen=True, slots=True)
class TableSize:
    """`rows` is PostgreSQL's estimate for a big table; `bytes` with indexes."""

    table: str
    rows: int
    bytes: int


class Archive:
    """The record of jobs behind these connections, which are used, not opened or closed."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def runs(self, wanted: RunFilter | None = None) -> list[RunRow]:
        """Jobs, newest first. Raises UsageError for a digest that cannot be one."""
        rows = await self.rows(queries.runs_query(wanted or RunFilter()))
        return [queries.run_of(row) for row in rows]

    async def run(self, prompt_id: str) -> RunRow | None:
        """One job."""
        rows = await self.rows(queries.run_query(prompt_id))
        return queries.run_of(rows[0]) if rows else None

    async def assets(self, wanted: AssetFilter | None = None) -> list[AssetRow]:
        """Files, newest first."""
        return [asset async for asset in self.every_asset(wanted or AssetFilter())]

    async def every_asset(self, wanted: AssetFilter | None = None) -> AsyncGenerator[AssetRow]:
        """Files, newest first, in pages: memory does not grow with their number. Without a filter all.

        Files that come while this runs are left out; it holds no lock and no transaction.
        """
        wanted = wanted or AssetFilter(limit=None)
        left, after = wanted.limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            rows = await self.rows(queries.assets_query(replace(wanted, limit=size), after=after))
            for row in rows:
                yield queries.asset_of(row)
            if len(rows) < size:
                return
            after = rows[-1]["page_at"], rows[-1]["id"]
            left = None if left is None else left - size

    async def events(self, prompt_id: str) -> list[JobEvent]:
        """The log of a job, in order."""
        return [queries.event_of(row) for row in await self.rows(queries.events_query(prompt_id))]

    async def graph(self, prompt_id: str) -> dict[str, Any] | None:
        """The workflow of a job as it was sent, to run it again; None when it is not recorded."""
        rows = await self.rows(queries.graph_query(prompt_id))
        return queries.graph_of(rows[0]) if rows else None

    async def verify(
        self, root: Path | None = None, wanted: AssetFilter | None = None
    ) -> AsyncIterator[Checked]:
        """Compare files on disk with their rows: missing, changed, orphaned (under `root`, no row names it).

        `root` is the shared folder as it is mounted here; without it the folders that the writers named are
        used, and orphans are not looked for, nor with a filter. Hashes in threads. Raises UsageError when
        `root` is no folder.
        """
        async with aclosing(self.every_asset(wanted)) as assets:
            async for checked in verified(assets, self._named if wanted is None else None, root):
                yield checked

    async def prune(
        self, before: float, *, files: bool = False, dry_run: bool = False, root: Path | None = None
    ) -> Pruned:
        """Delete what is older than the moment `before`: see `comfyflow.prune.prune`."""
        return await prune.prune(self._connections, before, files=files, dry_run=dry_run, root=root)

    async def sizes(self) -> list[TableSize]:
        """How much room the tables take; a table that somebody has dropped is left out."""
        rows = await self._connections.fetch(_SIZES, list(TABLES))
        found = {row["name"]: (row["rows"], row["bytes"]) for row in rows}
        return [
            TableSize(name, await self._count(name, found[name][0]), found[name][1])
            for name in TABLES
            if name in found
        ]

    async def _count(self, table: str, estimate: float) -> int:
        """PostgreSQL has no estimate for a table that was never analysed: a small one, as a rule."""
        if estimate > 0:
            return round(estimate)
        (row,) = await self._connections.fetch(f"SELECT count(*) AS rows FROM {table}")
        count: int = row["rows"]
        return count

    async def rows(self, query: Query) -> list[Any]:
        """The rows of a query, as asyncpg gives them.

        A statement that asyncpg keeps has one plan for all values after the fifth time. Where a value may be
        everywhere or nowhere (`query.skewed`) that is the wrong plan for one of both (measured: 70 times
        slower), so such a statement is not kept: one more round trip, and a plan for this value.
        """
        if not query.skewed:
            return await self._connections.fetch(query.sql, *query.args)

        async def work(connection: Any) -> list[Any]:
            if not self._connections.direct:  # nothing is ever kept there
                return list(await connection.fetch(query.sql, *query.args))
            statement = await connection.prepare(query.sql, name="")
            return list(await statement.fetch(*query.args))

        return await self._connections.run(work)

    async def _named(self, paths: list[str]) -> set[str]:
        found = {row["path"] for row in await self.rows(queries.named_query(paths))}
        return {path for path in paths if cleaned(path) in found}


# A partitioned table (docs/database.md, run_events) holds nothing itself: its parts do.
_SIZES = """
    SELECT name,
        greatest(sum(c.reltuples) FILTER (WHERE c.relkind = 'r'), 0)::float8 AS rows,
        sum(pg_total_relation_size(c.oid))::bigint AS bytes
    FROM unnest($1::text[]) AS name
    JOIN pg_class AS c ON c.oid = to_regclass(name)
        OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(name)))
    GROUP BY name"""
