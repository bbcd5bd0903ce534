"""Group commit: while statements are on their way to the database the writes of other callers gather, and the
next statement carries them all. Who comes alone does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter

from .errors import StoreError
from .models import JobState
from .rows import Batch, Row

LANES, GROUP = 2, 64  # statements under way at once, and writes in one of them
SLOW = 0.05  # s after which a second one sets out: the first may wait for a lock of others
OFTEN, PAUSE = 0.005, 0.004  # s: where writes come as often as that, those of others are waited for so long
HEAVY = 200  # nodes of graphs in one write that is large enough: it does not wait for others
LOAD = 2000  # nodes of graphs in one of them, unless one alone has more: nothing else runs while JSON is made
_ON_THE_WAY = frozenset({"prompt_id", "state", "submitted_at", "started_at"})

Ids = frozenset[str]
Send = Callable[[Batch], Awaitable[Ids]]


class Refused(StoreError):
    """The fault is in what was to be written: no database will ever take it."""


@dataclass(slots=True)
class _Group:
    """Writes of several callers that go to the database as one. `done` says which jobs are new, or None when
    that did not work out and each has to go on its own."""

    batches: list[Batch] = field(default_factory=list)
    runs: dict[str, Row] = field(default_factory=dict)
    load: int = 0
    done: asyncio.Future[Ids | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def takes(self, batch: Batch) -> bool:
        """Whether there is room for it, and what it says of a job fits what was said before."""
        if len(self.batches) >= GROUP or self.load + _load_of(batch) > LOAD:
            return False
        return all(_fit(self.runs.get(run["prompt_id"]), run) for run in batch.runs)

    def add(self, batch: Batch) -> None:
        """Put it behind the others."""
        self.batches.append(batch)
        self.load += _load_of(batch)
        for run in batch.runs:
            known = self.runs.get(run["prompt_id"])
            self.runs[run["prompt_id"]] = run if known is None else _both(known, run)

    def merged(self) -> Batch:
        """All of them as one: each job once, in the order of the ids, so that nobody waits crosswise."""
        if len(self.batches) == 1:
            return self.batches[0]
        runs = sorted(self.runs.values(), key=itemgetter("prompt_id"))
        assets, events, workers = (
            tuple(chain.from_iterable(getattr(one, name) for one in self.batches))
            for name in ("assets", "events", "workers")
        )
        return Batch(tuple(runs), assets, events, workers=workers)


class Gathering:
    """Sends batches by `send`, which gives the ids of new jobs and raises Refused for a batch that is wrong:
    one after the other, and while one is slow a second beside it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lanes, self._idle = asyncio.Semaphore(LANES), asyncio.Event()
        self._idle.set()
        self._open: _Group | None = None
        self._asked_at, self._often = 0.0, False
        self._inside = self._most = 0  # callers now, and at once lately
        self._all_inside = asyncio.Event()

    async def commit(self, batch: Batch) -> Ids:
        """Write one caller's batch, all or nothing, alone or together with others; the ids of jobs, its own
        among them, that are new by that. Raises what `send` does, and Refused only where this very batch is
        wrong. A cancelled one has been written or not."""
        self._enter()
        try:
            return await self._join(batch)
        finally:
            self._inside -= 1

    def _enter(self) -> None:
        now = asyncio.get_running_loop().time()
        self._often, self._asked_at = now - self._asked_at < OFTEN, now
        self._inside += 1
        if self._inside >= self._most:
            self._most = self._inside
            self._all_inside.set()

    async def _join(self, batch: Batch) -> Ids:
        group = self._open
        if batch.renames:
            return await self._send(batch)
        if group is None or not group.takes(batch):
            return await self._lead(batch)
        group.add(batch)
        new = await asyncio.shield(group.done)
        return await self._send(batch) if new is None else new

    async def _lead(self, batch: Batch) -> Ids:
        """The first of a group sends it, as soon as there is a lane free."""
        group = self._open = _Group()
        group.add(batch)
        try:
            if group.load < HEAVY:
                await self._turn()
            async with self._lanes:
                self._close(group)
                new = await self._send_on(group.merged())
            group.done.set_result(new)
            return new
        except Refused:
            if len(group.batches) == 1:
                raise
            group.done.set_result(None)
            return await self._send(batch)
        finally:
            self._close(group)
            if not group.done.done():
                group.done.set_result(None)

    async def _turn(self) -> None:
        """Few large statements cost less than many: wait for the one on its way, unless it is slow."""
        if self._often:
            await self._others()
        if not self._idle.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(SLOW):
                    await self._idle.wait()

    async def _others(self) -> None:
        """Until as many are here as there were lately: who is always alone waits for nobody."""
        if self._inside >= self._most:
            return
        self._all_inside.clear()
        try:
            async with asyncio.timeout(PAUSE):
                await self._all_inside.wait()
        except TimeoutError:
            self._most = max(self._inside, self._most // 2)

    async def _send_on(self, batch: Batch) -> Ids:
        self._idle.clear()
        try:
            return await self._send(batch)
        finally:
            self._idle.set()

    def _close(self, group: _Group) -> None:
        """Nobody joins it any more."""
        if self._open is group:
            self._open = None


def _load_of(batch: Batch) -> int:
    return sum(len(run["graph"]) for run in batch.runs if "graph" in run)


def _fit(known: Row | None, run: Row) -> bool:
    """Whether two rows of one job can be one: one of them tells no more than how far it has got."""
    if known is None:
        return True
    on_the_way = known.keys() <= _ON_THE_WAY or run.keys() <= _ON_THE_WAY
    return on_the_way and "added" not in run and not (known.keys() | run.keys()) & {"moves"}


def _both(known: Row, run: Row) -> Row:
    """Two rows as one, as if they had been written one after the other: what was said first stays, of the
    states the highest."""
    row = {**run, **known}
    if "state" in known and "state" in run and JobState(run["state"]).rank > JobState(known["state"]).rank:
        row["state"] = run["state"]
    return row
