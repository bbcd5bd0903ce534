"""A runner's hold on its jobs: registered with its first job, renewed while it lives, given up at its end.

Without it a second program could take a job for abandoned that is about to be sent, and send it too.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import anyio

from .errors import StoreError
from .shield import to_the_end
from .store import Added, Alive, Entry, Holding, Job, JobRecord, Store
from .worker import is_dead, this_worker

GOODBYE = 5.0  # s for giving up what is held; it comes free by itself later
LOOK_EVERY = 0.25  # s between looks at whether others still live
MOVED = 0.1  # s by which the end of a lease has to move to count as renewed


class Lease:
    """The hold of one worker, for `seconds` at a time. `start` renews it in the background until `stop`."""

    def __init__(self, store: Store, seconds: float) -> None:
        self.worker = this_worker()
        self._store, self._seconds = store, seconds
        self._known = False  # the store has heard of the worker
        self._wall = self._steady = float(
            "-inf"
        )  # when it did last, by two clocks: one may jump, one may stand
        self._busy: dict[str, int] = {}  # jobs in hand, by how many callers
        self._mine: set[str] = set()  # those of them that nobody can have taken since
        self._task: asyncio.Task[None] | None = None

    # -- life --

    def start(self) -> None:
        """Renew it from now on."""
        self._task = asyncio.create_task(self._renew_on(), name="comfyflow lease")

    async def stop(self) -> None:
        """Give up what is held. Nobody has to wait then until the lease has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._known:
            with suppress(StoreError, TimeoutError):
                await to_the_end(self._store.retire(self.worker), GOODBYE)
            self._known, self._wall, self._steady = False, float("-inf"), float("-inf")

    async def _renew_on(self) -> None:
        while True:
            await anyio.sleep(self._seconds / 3)
            if self._known:
                with suppress(StoreError):  # the database is away: for the others too
                    await self._renew()

    async def _renew(self) -> None:
        moment = time.time(), time.monotonic()
        await self._store.renew(self.worker, self._seconds)
        self._live_on(*moment)

    def _live_on(self, wall: float, steady: float) -> None:
        if self._left() <= 0:  # it has ended meanwhile, and who knows what others took
            self._mine.clear()
        self._known, self._wall, self._steady = True, wall, steady

    # -- jobs --

    def added(self, job: Job) -> tuple[Entry, ...]:
        """What to write for a new job, so that it is held from the start."""
        entry = Added(job, self.worker.id)
        if self._left() > self._seconds / 2:
            self._mine.add(job.prompt_id)
            return (entry,)
        self._live_on(time.time(), time.monotonic())
        self._mine.add(job.prompt_id)
        return Alive(self.worker, self._seconds), entry

    @contextmanager
    def busy(self, prompt_id: str) -> Iterator[None]:
        """While the block lasts this job is in hand: `claim` does not give it out a second time."""
        self._busy[prompt_id] = self._busy.get(prompt_id, 0) + 1
        try:
            yield
        finally:
            self._busy[prompt_id] -= 1
            if not self._busy[prompt_id]:
                del self._busy[prompt_id]
                self._mine.discard(prompt_id)

    async def holds(self, job: Job) -> bool:
        """Whether a job may be sent: it is still ours.

        A program that stood still for longer than the lease (a closed laptop), or whose database was away for
        so long, has lost it, and maybe to somebody else. Raises StoreError when that cannot be asked.
        """
        return (self._left() > 0 and job.prompt_id in self._mine) or await self.take(job)

    def has(self, record: JobRecord) -> bool:
        """Whether the record says that we hold a job, and our lease has not ended."""
        return record.worker == self.worker.id and self._left() > 0

    async def take(self, job: Job) -> bool:
        """Hold a job that nobody alive holds. Raises StoreError."""
        await self._renew()
        dead = await self._dead(job.server)
        taken = await self._store.take(job.prompt_id, self.worker, dead=dead)
        (self._mine.add if taken else self._mine.discard)(job.prompt_id)
        return taken

    async def claim(
        self, servers: Collection[str], limit: int, *, besides: Collection[str]
    ) -> list[JobRecord]:
        """Hold up to `limit` jobs of these servers that nobody alive works on, `besides` those. Raises
        StoreError."""
        await self._renew()
        found: list[JobRecord] = []
        for server in servers:
            if len(found) == limit:
                break
            busy, dead = {*self._busy, *besides}, await self._dead(server)
            room = limit - len(found)
            found += await self._store.claim(self.worker, server, limit=room, busy=busy, dead=dead)
        self._mine.update(record.job.prompt_id for record in found)
        return found

    async def others(self, servers: Collection[str]) -> list[Holding]:
        """Who else holds jobs of these servers that have no outcome. Raises StoreError."""
        found = [held for server in servers for held in await self._store.holders(server)]
        jobs = Counter[str]()
        for held in found:
            jobs[held.worker.id] += held.jobs
        by_id = {held.worker.id: held for held in found if held.worker.id != self.worker.id}
        return [replace(held, jobs=jobs[worker]) for worker, held in by_id.items()]

    async def more(self, servers: Collection[str]) -> bool:
        """Wait until a job that somebody else holds comes free, or all of them have shown that they live.

        That takes one lease at most: whoever lives renews it three times in that time. Raises StoreError.
        """
        first: dict[str, float] = {}
        while True:
            held, now = await self.others(servers), time.monotonic()
            if any(one.left <= 0 or is_dead(one.worker) for one in held):
                return True
            ends = {one.worker.id: now + one.left for one in held}
            if all(end > first.setdefault(worker, end) + MOVED for worker, end in ends.items()):
                return False
            await anyio.sleep(LOOK_EVERY)

    async def _dead(self, server: str) -> list[str]:
        return [one.worker.id for one in await self._store.holders(server) if is_dead(one.worker)]

    def _left(self) -> float:
        gone = max(time.time() - self._wall, time.monotonic() - self._steady)
        return self._seconds - gone
