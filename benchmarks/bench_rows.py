"""Peak memory of `Runner.run_many` over rows from a generator, each count in a process of its own: it does
not grow with their number. Takes six minutes; `bench_rows.py --few` leaves out the 100,000 rows."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from harness import MIB, Row, child, memory, show, simulator

from comfyflow import ComfyClient, Job, JobRecord, Runner
from comfyflow.store import Entry, Store

COUNTS = (1_000, 10_000, 100_000)
AT_ONCE = 64
MORE = 1.25  # times the peak of the fewest rows that the most may have


class Forgetting(Store):
    """A store for what is not to be measured: `MemoryStore` keeps every record."""

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        """See Store."""

    async def get(self, prompt_id: str) -> JobRecord | None:
        """See Store."""
        return None

    async def unfinished(self) -> AsyncIterator[Job]:
        """See Store."""
        jobs: tuple[Job, ...] = ()
        for job in jobs:
            yield job


def graphs(count: int) -> Iterator[dict[str, Any]]:
    """Never twice the same."""
    for color in range(count):
        image = {"width": 16, "height": 16, "batch_size": 1, "color": color}
        yield {
            "1": {"class_type": "EmptyImage", "inputs": image},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "row"}},
        }


async def run(url: str, count: int, folder: Path) -> dict[str, float]:
    """Peak and what is held at the end, in bytes, and the seconds that it took."""
    done, started = 0, time.perf_counter()
    async with ComfyClient(url) as client, Runner(client, Forgetting(), folder) as runner:
        async for result in runner.run_many(graphs(count), concurrency=AT_ONCE):
            assert result.error is None, result.error
            for file in result.files:
                file.path.unlink()
            done += 1
    assert done == count
    return {"peak": memory("VmHWM"), "held": memory("VmRSS"), "seconds": time.perf_counter() - started}


def part(url: str, count: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(run(url, int(count), Path(folder)))))


def main(counts: tuple[int, ...]) -> None:
    found: dict[int, dict[str, Any]] = {}
    for count in counts:
        with simulator() as url:
            found[count] = child("bench_rows.py", url, str(count))
    least = found[counts[0]]["peak"]
    rows = [row(count, figures, least) for count, figures in found.items()]
    show(f"memory of run_many, {AT_ONCE} at a time", ["peak, MiB", "at the end, MiB", "rows/s"], rows)


def row(count: int, figures: dict[str, Any], least: float) -> Row:
    texts = [
        f"{figures['peak'] / MIB:.1f}",
        f"{figures['held'] / MIB:.1f}",
        f"{count / figures['seconds']:.0f}",
    ]
    return Row(f"{count:,} rows", texts, f"<= {MORE} x the first", figures["peak"] <= MORE * least)


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--few"]):
        main(COUNTS[:2] if sys.argv[1:] else COUNTS)
    else:
        part(*sys.argv[1:])
