"""A batch into the database, all or nothing: one statement, which carries what others write at the same time,
and what it means when the database refuses."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import asyncpg

from . import contents
from .database import Connections, translated
from .dsn import Database
from .gather import Gathering, Ids, Refused
from .rows import Batch, kept_file
from .statements import RENAME, statement_for
from .store import IdTaken

NOBODY: Ids = frozenset()
log = logging.getLogger(__name__)

REPLACED_ONCE, REPLACES_A_RUN = "workflow_runs_replaced_once", "workflow_runs_replaces_a_run"  # sql/0002
_OF_THE_DATA = (  # what the database will refuse again and again
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)


class Replaced(Refused):
    """Somebody else has sent this lost job again already. Nothing is lost by that: the row is there."""


class Taken(Refused, IdTaken):
    """See IdTaken."""


class Committer:
    """Writes to one database, whose tables are those of this program. `content_limit`: the bytes of larger
    files are not kept."""

    def __init__(self, connections: Connections, *, content_limit: int) -> None:
        self._connections, self._content_limit = connections, content_limit
        self._gathering = Gathering(self._send)
        # Bytes take their time, or wait for others who store the same: most connections are for rows.
        self._loaders = asyncio.Semaphore(max(1, connections.limits.max_size // 4))

    async def rows(self, batch: Batch) -> Ids:
        """Write all but the bytes of files; what comes while statements are under way goes into the next one
        together. The jobs that are new by that.

        Raises Refused for what no database will ever take (Taken, Replaced), else StoreError. A cancelled
        write has happened or not.
        """
        if not batch.runs and not batch.workers:
            return NOBODY
        return await self._gathering.commit(batch)

    async def contents(self, batch: Batch) -> None:
        """Keep the bytes of files. Large ones take their time. Raises StoreError."""
        for file in map(kept_file, batch.contents):
            if file.size > self._content_limit:
                log.warning("the bytes of %s are not kept: it is larger than the limit", file.path)
            async with self._loaders:
                await contents.keep(self._connections, file, limit_bytes=self._content_limit)

    async def _send(self, batch: Batch) -> Ids:
        statement, text = statement_for(batch, news=True), batch.to_json()

        async def work(connection: Any) -> Ids:
            return await self._transaction(connection, batch, statement, text)

        return await self._connections.run(work)

    async def _transaction(self, connection: Any, batch: Batch, statement: str, text: str) -> Ids:
        try:
            if not batch.renames:
                return _check(await connection.fetch(statement, text))
            async with connection.transaction():
                for rename in batch.renames:
                    await connection.execute(RENAME, rename["new"], rename["old"])
                return _check(await connection.fetch(statement, text))
        except _OF_THE_DATA as error:
            raise _refusal(error, batch, self._connections.database) from None


def _check(rows: list[Any]) -> Ids:
    """The new jobs of what a statement gives."""
    for prompt_id, unknown in rows:
        if unknown:
            raise Refused(f"no job {prompt_id} is recorded: add it first")
        if unknown is not None:
            raise Taken(f"there is already another job {prompt_id}: use a new prompt id")
    return frozenset(prompt_id for prompt_id, _ in rows)


def _refusal(error: Exception, batch: Batch, database: Database) -> Refused:
    """What it means that no database will take this."""
    before = " or ".join(run["replaces"] for run in batch.runs if "replaces" in run)
    rule = getattr(error, "constraint_name", None)
    if rule == REPLACED_ONCE:
        return Replaced(f"job {before} was already replaced by another one: look at that one")
    if rule == REPLACES_A_RUN:
        return Refused(f"no job {before} is recorded: add it first")
    return Refused(str(translated(error, database)))
