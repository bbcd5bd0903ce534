"""What recording everything in PostgreSQL costs: the client's CPU for each job beside a program that records
nothing, and rows a second beside COPY by hand of the same rows into the same tables."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from bench_client import AT_ONCE, JOBS, ROUNDS, SLICES, Cost, a_folder, graphs, measured, row, total
from bench_postgres import DIGEST, FILE, GRAPH, OUT, OUTCOME, TEXT, fresh, metadata_of, result_of
from floor import Floor
from harness import Row, show, simulator

from comfyflow import ComfyClient, Job, JobEvent, Runner
from comfyflow.embedded import Embedded
from comfyflow.journal import Journal
from comfyflow.postgres import PostgresStore
from comfyflow.rows import output_path
from comfyflow.store import Accepted, Added, Entry, ending

TOGETHER = 100  # jobs in one write, where all is known beforehand
ROWS = 4  # of a job: itself, two events, one file

Work = Callable[[list[Job]], Awaitable[None]]


async def jobs_beside_the_floor(dsn: str, url: str, base: Path) -> list[Row]:
    """CPU for each job, of the floor and of comfyflow, turn about."""
    jobs = graphs()
    async with (
        Floor.opened(url) as floor,
        ComfyClient(url) as client,
        await PostgresStore.open(dsn, journal=Journal(base / "journal")) as store,
    ):

        async def slices() -> tuple[Cost, Cost]:
            by_hand, folder = await measured(floor.run, jobs, a_folder(base)), a_folder(base)
            async with Runner(client, store, folder) as runner:
                return by_hand, await measured(lambda graph, _: runner.run(graph), jobs, folder)

        await slices()
        rounds = [[await slices() for _ in range(SLICES)] for _ in range(ROUNDS)]
        assert store.fault is None
    pairs = [(total(floor), total(ours)) for floor, ours in (zip(*one, strict=True) for one in rounds)]
    return [
        row("CPU", [(floor.cpu, ours.cpu) for floor, ours in pairs], 2.5),
        row("wall", [(floor.wall, ours.wall) for floor, ours in pairs], None),
    ]


# -- rows a second ------------------------------------------------------------------------------------------

RUN_COLUMNS = (
    "prompt_id", "client_id", "server", "state", "graph", "digest", "prompt_text", "outcome",
    "execution_seconds", "created_at", "submitted_at", "finished_at",
)  # fmt: skip
EVENT_COLUMNS = ("prompt_id", "kind", "detail", "created_at")
ASSET_COLUMNS = ("prompt_id", "prompt_text", "output_path", "metadata", "created_at")


async def by_copy(connection: Any, jobs: list[Job]) -> None:
    """The rows of `jobs` by three COPYs in one transaction; their JSON is made here, as it has to be."""
    now = datetime.now(UTC)
    outcome = json.dumps(OUTCOME)
    runs = [
        (
            job.prompt_id, job.client_id, job.server, "succeeded", json.dumps(GRAPH), DIGEST, TEXT, outcome,
            3.5, now, now, now,
        )
        for job in jobs
    ]  # fmt: skip
    events = [(job.prompt_id, kind, "{}", now) for job in jobs for kind in ("submitted", "finished")]
    name = output_path(FILE.path, OUT)[0]
    assets = [(job.prompt_id, TEXT, name, json.dumps(metadata_of(job)), now) for job in jobs]
    async with connection.transaction():
        for table, columns, records in (
            ("workflow_runs", RUN_COLUMNS, runs),
            ("run_events", EVENT_COLUMNS, events),
            ("generated_assets", ASSET_COLUMNS, assets),
        ):
            await connection.copy_records_to_table(table, columns=columns, records=records)


def road(job: Job) -> Iterator[tuple[Entry, ...]]:
    """The writes of a job, as the Runner does them."""
    yield (Added(job),)
    yield Accepted(job, job.prompt_id), JobEvent(job.prompt_id, "submitted")
    yield ending(job, result_of(job), (FILE,), root=OUT)


async def as_they_happen(store: PostgresStore, jobs: list[Job]) -> None:
    """Each write by itself, AT_ONCE jobs under way: what a batch of jobs does."""
    todo = iter(jobs)

    async def worker() -> None:
        for job in todo:
            for entries in road(job):
                await store.write(*entries)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def together(store: PostgresStore, jobs: list[Job]) -> None:
    """All that is known of TOGETHER jobs in one write, two writes at once."""
    todo = iter(range(0, len(jobs), TOGETHER))

    async def worker() -> None:
        for first in todo:
            some = jobs[first : first + TOGETHER]
            await store.write(*(entry for job in some for entries in road(job) for entry in entries))

    await asyncio.gather(worker(), worker())


async def rate(work: Work, count: int) -> float:
    """Rows a second."""
    jobs = [fresh() for _ in range(count)]
    gc.collect()
    started = time.perf_counter()
    await work(jobs)
    return count * ROWS / (time.perf_counter() - started)


async def rows_beside_copy(dsn: str) -> list[Row]:
    """Rows a second of COPY by hand, and of the store in two ways, turn about."""
    connection = await asyncpg.connect(dsn)
    async with await PostgresStore.open(dsn, journal=None) as store:
        works = [partial(by_copy, connection), partial(together, store), partial(as_they_happen, store)]
        rounds = [
            [await rate(work, count) for work in works] for count in (JOBS // 10, *[JOBS] * (ROUNDS + 2))
        ][1:]
    await connection.close()
    rows = []
    names = f"{TOGETHER} jobs in a write", f"as it happens, {AT_ONCE} jobs at once: 3 writes each"
    for place, what in enumerate(names, 1):
        ratios = sorted(one[place] / one[0] for one in rounds)
        ratio = statistics.median(ratios)
        copied, ours = (statistics.median(one[part] for one in rounds) for part in (0, place))
        figures = [f"{copied:.0f}", f"{ours:.0f}", f"{ratio:.2f}", f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"]
        rows.append(Row(what, figures, ">= 0.5" if place == 1 else "", ratio >= 0.5 if place == 1 else None))
    return rows


async def measure(dsn: str, url: str, base: Path) -> None:
    await (await PostgresStore.open(dsn, migrate=True, journal=None)).close()
    columns = ["COPY, rows/s", "comfyflow, rows/s", "ratio", "all rounds"]
    show(f"rows of {JOBS} jobs", columns, await rows_beside_copy(dsn))
    columns = ["floor, no record", "comfyflow, all recorded", "ratio", "all rounds"]
    rows = await jobs_beside_the_floor(dsn, url, base)
    show(f"{JOBS} jobs, {AT_ONCE} at a time, files verified, median of {ROUNDS} rounds", columns, rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # root's PostgreSQL runs as somebody else
        with Embedded(Path(folder, "postgresql")) as server, simulator() as url:
            asyncio.run(measure(server.dsn, url, Path(folder)))


if __name__ == "__main__":
    main()
