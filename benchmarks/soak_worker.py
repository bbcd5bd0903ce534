"""One worker of the soak: a program with its own client, store and runner, which may be killed at any moment.

It reads its order, one line of JSON, from its standard input, runs its share of the jobs (those with a key
one by one, the others by `run_many`), takes part in `resume`, and ends when each of its jobs has succeeded.
It says on the last line of its output what it has left behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from comfyflow import (
    ComfyClient,
    ComfyflowError,
    OnLost,
    PollSchedule,
    PostgresStore,
    Runner,
    RunResult,
    StoreError,
    Timeouts,
)
from comfyflow.journal import Journal

log = logging.getLogger("soak")

QUICK = PollSchedule(first=0.05, factor=1.5, ceiling=0.5, stall_after=1.0, deaf_after=1.0)
IMPATIENT = Timeouts(connect=2.0, answer=1.5, silence=120.0)
PAUSE = 0.25  # s before something is tried again
TRIES = 100  # of a key, before a caller gives up
PATIENCE = 15.0  # s for the record to tell of a success that the caller was told of
NAME = "w.graph -> '2' -> 'inputs' ->> 'filename_prefix'"  # which job a row is about
SUCCEEDED = f"SELECT {NAME} FROM workflow_runs AS w WHERE state = 'succeeded'"
STARTED = f"""
    SELECT {NAME} FROM workflow_runs AS w WHERE state <> 'failed'
        OR EXISTS (SELECT FROM run_events AS e WHERE e.prompt_id = w.prompt_id AND kind = 'submitted')"""


@dataclass(frozen=True, slots=True)
class Task:
    """One job of the soak. `name` is in its graph, so that rows and files tell whose they are."""

    name: str
    color: int
    files: int
    key: str | None = None

    def graph(self) -> dict[str, Any]:
        """A small picture, or several, that no other job has."""
        made = {"width": 64, "height": 64, "batch_size": self.files, "color": self.color}
        return {
            "1": {"class_type": "EmptyImage", "inputs": made},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": self.name}},
        }


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is to do. `life` counts the processes that had this share before it."""

    url: str
    dsn: str
    output: str
    state: str
    tasks: tuple[Task, ...]
    life: int = 0
    concurrency: int = 8
    lease: float = 2.0  # s
    resubmits: int = 50

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        told = json.loads(text)
        return cls(**told | {"tasks": tuple(Task(**task) for task in told["tasks"])})


@dataclass(slots=True)
class Share:
    """The worker's jobs, and what it takes to bring them to their end."""

    order: Order
    runner: Runner
    store: PostgresStore
    told: Counter[str] = field(default_factory=Counter)  # errors of comfyflow that a caller gets to see

    async def work(self) -> None:
        """Return when each job of the share has succeeded, and nothing is left that nobody works on. A job
        whose success is not recorded in time is for the audit to find."""
        begun = await self._names(STARTED)
        resuming = [self._resume()] if self.order.life else []
        await asyncio.gather(*resuming, self._with_keys(), self._without_keys(begun))
        names = {task.name for task in self.order.tasks}
        await self._resume()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while names - await self._names(SUCCEEDED):
                    await asyncio.sleep(PAUSE)
                    await self._without_keys(await self._names(STARTED))
                    await self._resume()

    async def _with_keys(self) -> None:
        waiting = deque(task for task in self.order.tasks if task.key is not None)

        async def lane() -> None:
            while waiting:
                await self._until_done(waiting.popleft())

        await asyncio.gather(*(lane() for _ in range(self.order.concurrency)))

    async def _until_done(self, task: Task) -> None:
        """As a careful caller does it: after an error the same key again. What still fails in the end is for
        the audit to find."""
        for _ in range(TRIES):
            try:
                await self.runner.run(task.graph(), key=task.key)
                return
            except ComfyflowError as error:
                self._note(task.name, error)
                await asyncio.sleep(PAUSE)

    async def _without_keys(self, begun: set[str]) -> None:
        """Without keys nobody but the caller knows what was handed over: what is recorded as begun is left to
        `resume`, what was refused is handed over once more."""
        waiting = deque(task for task in self.order.tasks if task.key is None and task.name not in begun)
        while waiting:
            given: dict[str, Task] = {}
            results = self.runner.run_many(_graphs(waiting, given), concurrency=self.order.concurrency)
            async for result in results:
                if await self._is_refused(result):
                    waiting.append(given[_name_of(result)])
                    await asyncio.sleep(PAUSE)

    async def _is_refused(self, result: RunResult) -> bool:
        if result.error is None:
            return False
        self._note(_name_of(result), result.error)
        return _name_of(result) not in await self._names(STARTED)

    async def _resume(self) -> None:
        try:
            async for result in self.runner.resume():
                if result.error is not None:
                    self._note(_name_of(result), result.error)
        except StoreError as error:
            self._note("resume", error)

    async def _names(self, query: str) -> set[str]:
        """Of the jobs of which the record says so, as soon as it can be read and is complete: what a dead
        process has left in the journal belongs to it, and somebody else may just be writing that."""
        journal = Journal(Path(self.order.state) / "journal")
        while True:
            try:
                await self.store.flush(wait=PAUSE)
                if not journal.waits_for(None):
                    return {row[0] for row in await self.store.connections.fetch(query)}
            except StoreError as error:
                self._note("the record", error)
            await asyncio.sleep(PAUSE / 5)

    def _note(self, what: str, error: ComfyflowError) -> None:
        log.info("%s: %s: %s", what, type(error).__name__, error)
        self.told[type(error).__name__] += 1


def _graphs(waiting: deque[Task], given: dict[str, Task]) -> Iterator[dict[str, Any]]:
    while waiting:
        task = waiting.popleft()
        given[task.name] = task
        yield task.graph()


def _name_of(result: RunResult) -> str:
    assert result.job.workflow is not None
    return str(result.job.workflow.nodes["2"]["inputs"]["filename_prefix"])


async def run(order: Order) -> Counter[str]:
    """The worker's life; how often it got which error."""
    journal = Journal(Path(order.state) / "journal")
    async with (
        ComfyClient(order.url, poll=QUICK, timeout=IMPATIENT) as client,
        await PostgresStore.open(order.dsn, journal=journal, required=False, patience=1.0) as store,
        Runner(
            client,
            store,
            order.output,
            on_lost=OnLost.RESUBMIT,
            resubmits=order.resubmits,
            lease=order.lease,
        ) as runner,
    ):
        share = Share(order, runner, store)
        await share.work()
        return share.told


async def left_behind(order: Order) -> tuple[dict[str, int], list[str]]:
    """Errors by name, and the tasks and connections that are there when everything has been closed."""
    told = await run(order)
    await asyncio.sleep(0)  # the loop tells the transports
    tasks = [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]
    sockets = [repr(one) for one in psutil.Process().net_connections("inet")]
    return dict(told), tasks + sockets


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    told, left = asyncio.run(left_behind(Order.from_json(sys.stdin.readline())))
    print(json.dumps({"told": told, "left": left}), flush=True)


if __name__ == "__main__":
    main()
