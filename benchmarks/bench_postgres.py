"""What a job costs the database: round trips, counted at the socket, and finished jobs a second beside the
least that a program could send by hand."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from harness import HERE, Row, show, simulator

from comfyflow import ComfyClient, Job, JobEvent, JobResult, JobState, OutputFile, Runner, SavedFile, Workflow
from comfyflow.embedded import Embedded
from comfyflow.journal import Journal
from comfyflow.postgres import PostgresStore
from comfyflow.store import Accepted, Advanced, ending

sys.path.append(str(HERE.parent / "tests"))
from database_road import Road

JOBS, WARM_UP, ROUNDS = 200, 20, 7
RUNS, MANY, AT_ONCE = 10, 1000, 64

Work = Callable[[int], Awaitable[None]]

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "steps": 20, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat in a hat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "bench"}},
}
FLOW = Workflow.load(GRAPH)
OUTPUT = OutputFile("9", "bench_00001_.png")
OUT = Path("/out")
FILE = SavedFile(OUTPUT, OUT / "bench_00001_.png", 1_400_000, "0" * 64, "image/png", 1024, 1024)
_numbers, _colors = itertools.count(time.time_ns()), itertools.count()


def fresh() -> Job:
    return Job(f"job-{next(_numbers)}", FLOW, "client", "http://127.0.0.1:8188", time.time())


def result_of(job: Job) -> JobResult:
    return JobResult(job.prompt_id, JobState.SUCCEEDED, (OUTPUT,), started_at=1.0, ended_at=4.5)


async def recorded(store: PostgresStore, *, running: bool) -> None:
    """One job's writes."""
    job = fresh()
    await store.add(job)
    await store.write(Accepted(job, job.prompt_id), JobEvent(job.prompt_id, "submitted"))
    if running:
        started = Advanced(job.prompt_id, JobState.RUNNING), JobEvent(job.prompt_id, "started")
        await store.write(*started, lazily=True)
    await store.write(*ending(job, result_of(job), (FILE,), root=OUT))


# -- round trips --------------------------------------------------------------------------------------------


async def trips_of_the_store(dsn: str) -> float:
    async with Road(dsn) as road, await PostgresStore.open(road.dsn, journal=None) as store:
        await recorded(store, running=True)
        road.round_trips = 0
        for _ in range(RUNS):
            await recorded(store, running=True)
        return road.round_trips / RUNS


@asynccontextmanager
async def runner_over(dsn: str, url: str, folder: Path) -> AsyncIterator[tuple[Road, Runner]]:
    """A runner whose round trips are counted."""
    async with (
        Road(dsn) as road,
        await PostgresStore.open(road.dsn, journal=Journal(folder / "journal")) as store,
        ComfyClient(url) as client,
        Runner(client, store, folder) as runner,
    ):
        yield road, runner


async def one_job(runner: Runner, *, keyed: bool) -> None:
    """Another one each time."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": next(_colors)}
    save = {"images": ["1", 0], "filename_prefix": "bench"}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": save},
    }
    await runner.run(graph, key=f"bench-{image['color']}" if keyed else None)


async def trips_one_by_one(road: Road, runner: Runner, *, keyed: bool) -> Row:
    """The mean, and the most that one job took; not that of the first."""
    counts = []
    for _ in range(RUNS + 1):
        before = road.round_trips
        await one_job(runner, keyed=keyed)
        counts.append(road.round_trips - before)
    mean, most = statistics.mean(counts[1:]), max(counts[1:])
    return Row(f"Runner.run{_keyed(keyed)}, one by one", [f"{mean:.1f}", f"{most}"], "<= 4", most <= 4)


async def trips_at_once(road: Road, runner: Runner, *, keyed: bool) -> Row:
    """The mean of many jobs, AT_ONCE at a time."""
    before, todo = road.round_trips, iter(range(MANY))

    async def worker() -> None:
        for _ in todo:
            await one_job(runner, keyed=keyed)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    mean = (road.round_trips - before) / MANY
    return Row(f"Runner.run{_keyed(keyed)}, {AT_ONCE} at a time", [f"{mean:.2f}", ""], "<= 4", mean <= 4)


def _keyed(keyed: bool) -> str:
    return " with a key" if keyed else ""


# -- rows a second ------------------------------------------------------------------------------------------

ADD = """
INSERT INTO workflow_runs (prompt_id, client_id, server, state, graph, digest, prompt_text, created_at)
VALUES ($1, $2, $3, 'created', $4, $5, $6, to_timestamp($7))
"""
ACCEPT = """
WITH run AS (
    UPDATE workflow_runs SET state = 'queued', submitted_at = to_timestamp($2) WHERE prompt_id = $1
) INSERT INTO run_events (prompt_id, kind, detail, created_at) VALUES ($1, 'submitted', $3, to_timestamp($2))
"""
FINISH = """
WITH run AS (
    UPDATE workflow_runs SET state = 'succeeded', outcome = $2, execution_seconds = $3,
        finished_at = to_timestamp($4)
    WHERE prompt_id = $1
), asset AS (
    INSERT INTO generated_assets (prompt_id, prompt_text, output_path, metadata, created_at)
    VALUES ($1, $5, $6, $7, to_timestamp($4))
    ON CONFLICT (prompt_id, output_path) DO UPDATE SET metadata = excluded.metadata
) INSERT INTO run_events (prompt_id, kind, detail, created_at) VALUES ($1, 'finished', $8, to_timestamp($4))
"""


def metadata_of(job: Job) -> dict[str, Any]:
    """What the floor is given for nothing: ours has to be found in the graph."""
    file = {"filename": FILE.path.name, "subfolder": "", "type": "output", "key": "images", "reused": False}
    content = {
        "sha256": FILE.sha256,
        "bytes": FILE.size,
        "media_type": "image/png",
        "width": 1024,
        "height": 1024,
    }
    made = {"node_id": "9", "node_title": "SaveImage", "seed": 1, "model": "sdxl.safetensors"}
    place = {"server": job.server, "client_id": job.client_id, "workflow_digest": DIGEST, "folder": str(OUT)}
    return file | content | made | place


DIGEST, TEXT = FLOW.digest, FLOW.prompt_text
OUTCOME = {"outputs": [{"node_id": "9", "filename": FILE.path.name}], "started_at": 1.0, "ended_at": 4.5}


async def by_hand(connection: Any) -> None:
    """The same rows by three statements, prepared, on a connection of its own: no pool, nothing checked,
    nothing to be written twice."""
    job, now = fresh(), time.time()
    graph = json.dumps(GRAPH)
    who = job.prompt_id, job.client_id, job.server
    await connection.execute(ADD, *who, graph, DIGEST, TEXT, job.created_at)
    await connection.execute(ACCEPT, job.prompt_id, now, "{}")
    file = TEXT, FILE.path.name, json.dumps(metadata_of(job))
    await connection.execute(FINISH, job.prompt_id, json.dumps(OUTCOME), 3.5, now, *file, '{"files": 1}')


async def rate(work: Work, jobs: int, at_once: int) -> float:
    """Jobs a second."""
    todo = iter(range(jobs))

    async def worker(number: int) -> None:
        for _ in todo:
            await work(number)

    started = time.perf_counter()
    await asyncio.gather(*(worker(number) for number in range(at_once)))
    return jobs / (time.perf_counter() - started)


async def compare(dsn: str, at_once: int, commit: str) -> list[tuple[float, float]]:
    """(floor, comfyflow) for each round, after one that warms both up."""
    setting = await asyncpg.connect(dsn)
    await setting.execute(f"ALTER DATABASE comfyflow SET synchronous_commit = {commit}")
    await setting.close()
    connections = [await asyncpg.connect(dsn) for _ in range(at_once)]
    async with await PostgresStore.open(dsn, journal=None, max_size=at_once) as store:

        async def floor(number: int) -> None:
            await by_hand(connections[number])

        async def ours(_: int) -> None:
            await recorded(store, running=False)

        for work in (floor, ours):
            await rate(work, WARM_UP * at_once, at_once)
        pairs = [(await rate(floor, JOBS, at_once), await rate(ours, JOBS, at_once)) for _ in range(ROUNDS)]
    for connection in connections:
        await connection.close()
    return pairs


def row(what: str, pairs: list[tuple[float, float]], least: float | None) -> Row:
    """The median of the rounds' ratios: both halves of a round saw the same machine."""
    floor, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(ours / floor for floor, ours in pairs)
    ratio = statistics.median(ratios)
    figures = [f"{floor:.0f}", f"{ours:.0f}", f"{ratio:.2f}", f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"]
    return Row(
        what, figures, "" if least is None else f">= {least}", None if least is None else ratio >= least
    )


async def measure(dsn: str, url: str, folder: Path) -> None:
    await (await PostgresStore.open(dsn, migrate=True, journal=None)).close()
    store = await trips_of_the_store(dsn)
    trips = [Row("store alone", [f"{store:.1f}", ""], "<= 4", store <= 4)]
    async with runner_over(dsn, url, folder) as (road, runner):
        for keyed in (False, True):
            trips.append(await trips_one_by_one(road, runner, keyed=keyed))
            trips.append(await trips_at_once(road, runner, keyed=keyed))
    show("round trips to the database for one job, at the socket", ["mean", "most"], trips)
    rows = [
        row(f"{at_once} at a time, {where}", await compare(dsn, at_once, commit), least)
        for commit, where, least in (("on", "commits on disk", 0.6), ("off", "disk left out", None))
        for at_once in (1, 10)
    ]
    columns = ["floor, jobs/s", "comfyflow, jobs/s", "ratio", "all rounds"]
    show(f"finished jobs a second: {JOBS} jobs, median of {ROUNDS} rounds", columns, rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # root's PostgreSQL runs as somebody else
        with Embedded(Path(folder, "postgresql")) as server, simulator() as url:
            asyncio.run(measure(server.dsn, url, Path(folder)))


if __name__ == "__main__":
    main()
