"""How long the lists of the record take with 100,000 files in it, beside the same rows by primary key; and
how much room a thousand jobs take.

    python benchmarks/bench_archive.py [JOBS]
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import HERE, Row, show

from comfyflow import migrations, queries
from comfyflow.archive import Archive
from comfyflow.database import Connections
from comfyflow.embedded import Embedded
from comfyflow.models import JobState
from comfyflow.queries import AssetFilter, Query, RunFilter

sys.path.append(str(HERE.parent / "tests"))
from filled import DAY, NOW, PROMPT, fill

JOBS = 100_000
GRAPH = HERE.parent / "examples" / "text_to_image.json"
TIMES = (
    25  # each question; more than five, so that PostgreSQL may settle for a plan without looking at values
)
TARGET = 3.0

RUNS_BY_KEY = f"SELECT {queries.RUN_COLUMNS} FROM workflow_runs AS r WHERE r.prompt_id = ANY ($1::text[])"
ASSETS_BY_KEY = f"SELECT {queries.ASSET_COLUMNS} FROM generated_assets AS a WHERE a.id = ANY ($1::bigint[])"
EVENTS_BY_KEY = (
    "SELECT e.prompt_id, e.kind, e.detail::text AS detail, e.event_id::text AS event_id,"
    " extract(epoch FROM e.created_at)::float8 AS at FROM run_events AS e WHERE e.id = ANY ($1::bigint[])"
)
RECENT_BY_KEY = (
    "SELECT a.id, a.created_at, a.prompt_id, a.output_path, a.prompt_text, a.metadata ->> 'node_title',"
    " a.metadata ->> 'media_type', (a.metadata ->> 'width')::numeric, (a.metadata ->> 'height')::numeric,"
    " (a.metadata ->> 'bytes')::numeric, (a.metadata ->> 'seed')::numeric, a.metadata ->> 'model', r.server,"
    " r.state, r.execution_seconds FROM generated_assets AS a LEFT JOIN workflow_runs AS r USING (prompt_id)"
    " WHERE a.id = ANY ($1::bigint[])"
)

RUNS: dict[str, RunFilter] = {
    "runs": RunFilter(),
    "runs --state failed (1 %)": RunFilter(state=JobState.FAILED),
    "runs --since 2h": RunFilter(since=NOW - DAY / 12),
    "runs --until, a month ago": RunFilter(until=NOW - 30 * DAY),
    "runs --text, a rare word": RunFilter(text="number17"),
    "runs --text, in every fourth": RunFilter(text="cats"),
    "runs --text, two words": RunFilter(text="ships number18"),
    "runs --server, every fourth": RunFilter(server="http://gpu-1:8188"),
}
ASSETS: dict[str, AssetFilter] = {
    "assets": AssetFilter(),
    "assets --since 2h": AssetFilter(since=NOW - DAY / 12),
    "assets --until, a month ago": AssetFilter(until=NOW - 30 * DAY),
    "assets --text, a rare word": AssetFilter(text="number17"),
    "assets --text, in every fourth": AssetFilter(text="cats"),
    "assets --seed": AssetFilter(seed=4711),
    "assets --model, every second": AssetFilter(model="sdxl.safetensors"),
    "assets --model, the same without suffix": AssetFilter(model="sdxl"),
    "assets --model, a rare one": AssetFilter(model="rare.safetensors"),
    "assets --node, every one": AssetFilter(node="Save 0"),
    "assets of a job": AssetFilter(prompt_id="job-4711"),
    "assets --model, rare, without suffix": AssetFilter(model="rare"),
    "assets, a page of 1000": AssetFilter(limit=1000),
}


async def milliseconds(work: Callable[[], Awaitable[Any]]) -> float:
    """The median of some calls."""
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


async def beside(archive: Archive, what: str, query: Query, by_key: str, key: str) -> Row:
    """One question, and the same rows by their keys, asked in the same way."""
    rows = await archive.rows(query)
    by_keys = Query(by_key, ([row[key] for row in rows],), query.skewed)
    listed = await milliseconds(lambda: archive.rows(query))
    floor = await milliseconds(lambda: archive.rows(by_keys))
    ratio = listed / floor
    figures = [f"{len(rows)}", f"{listed:.2f} ms", f"{floor:.2f} ms", f"{ratio:.2f}"]
    return Row(what, figures, f"< {TARGET:g}", ratio < TARGET)


async def listed(archive: Archive, connections: Connections) -> list[Row]:
    """Every list, beside its rows by key."""
    (some,) = await connections.fetch("SELECT digest FROM workflow_runs WHERE prompt_id = 'job-4711'")
    digests = {
        "runs --digest (1 in 50)": RunFilter(digest=some["digest"]),
        "runs --digest, its first 8": RunFilter(digest=some["digest"][:8]),
    }
    (one,) = await connections.fetch(
        "SELECT metadata ->> 'sha256' AS it FROM generated_assets WHERE id = 4711"
    )
    hashes = {"assets by sha256": AssetFilter(sha256=one["it"])}
    table = [
        await beside(archive, what, queries.runs_query(wanted), RUNS_BY_KEY, "prompt_id")
        for what, wanted in (RUNS | digests).items()
    ]
    table += [
        await beside(archive, what, queries.assets_query(wanted), ASSETS_BY_KEY, "id")
        for what, wanted in (ASSETS | hashes).items()
    ]
    recent = Query("SELECT * FROM recent_assets LIMIT 50")
    table.append(await beside(archive, "the view recent_assets", recent, RECENT_BY_KEY, "id"))
    events = queries.events_query("job-4711")
    keys = [
        row["id"] for row in await connections.fetch("SELECT id FROM run_events WHERE prompt_id = 'job-4711'")
    ]
    taken = await milliseconds(lambda: connections.fetch(events.sql, *events.args))
    floor = await milliseconds(lambda: connections.fetch(EVENTS_BY_KEY, keys))
    figures = [f"{len(keys)}", f"{taken:.2f} ms", f"{floor:.2f} ms", f"{taken / floor:.2f}"]
    return [*table, Row("events of a job", figures, f"< {TARGET:g}", taken / floor < TARGET)]


async def whole(archive: Archive, connections: Connections) -> list[Row]:
    """What looks at every row."""
    started = time.perf_counter()
    count = 0
    async for _ in archive.every_asset():
        count += 1
    seconds = time.perf_counter() - started
    summary = await milliseconds(lambda: connections.fetch("SELECT * FROM run_summary"))
    table = [
        Row("every asset, in pages", [f"{count / seconds:,.0f} a second"]),
        Row("the view run_summary", [f"{summary:.0f} ms"]),
    ]
    started = time.perf_counter()
    pruned = await archive.prune(NOW - 30 * DAY)
    seconds = time.perf_counter() - started
    return [*table, Row(f"prune of {pruned.runs} jobs", [f"{pruned.runs / seconds:,.0f} jobs a second"])]


async def room(archive: Archive, jobs: int) -> list[Row]:
    """Bytes with indexes for a thousand of the jobs."""
    sizes = await archive.sizes()
    return [
        Row(size.table, [f"{size.rows}", f"{size.bytes / jobs * 1000 / 1024:.0f} KiB"])
        for size in sizes
        if size.rows
    ]


async def work(dsn: str, jobs: int) -> None:
    async with await Connections.open(dsn, max_size=1) as connections:
        await migrations.upgrade(connections)
        await fill(connections, jobs, graph=GRAPH.read_text(encoding="utf-8"), prompt=PROMPT)
        gc.disable()
        archive = Archive(connections)
        columns = ["rows", "the list", "by key", "ratio"]
        show(
            f"lists of a record of {jobs} jobs with a file each", columns, await listed(archive, connections)
        )
        show("a thousand jobs with a file and three events each", ["rows", "room"], await room(archive, jobs))
        show("all rows", ["figure"], await whole(archive, connections))


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else JOBS
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # root runs PostgreSQL as somebody else
        with Embedded(home=Path(folder) / "database", durable=False) as embedded:
            asyncio.run(work(embedded.dsn, jobs))


if __name__ == "__main__":
    main()
