"""1 to 16 simulated servers whose jobs take 50 ms: how much of n times one server's throughput is left."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Row, show, simulator

from comfyflow import MemoryStore, Runner, ServerPool

SERVERS = (1, 2, 4, 8, 16)
SECONDS = 0.05  # that a job takes
JOBS = 80  # for each server
WARM_UP = 4  # for each server
TARGET = 0.9
FULL = 0.9  # of a core: then it is the client that is the limit

_colors = itertools.count()


@dataclass(frozen=True, slots=True)
class Run:
    """Jobs a second, and the cores that the client and the machine used meanwhile."""

    rate: float
    client: float
    machine: float


def graph() -> dict[str, Any]:
    """Never twice the same."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": next(_colors)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SimSleep", "inputs": {"seconds": SECONDS, "image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "scale"}},
    }


@asynccontextmanager
async def runner_of(urls: Sequence[str], folder: Path) -> AsyncIterator[Runner]:
    async with ServerPool(urls) as pool, Runner(pool, MemoryStore(), folder) as runner:
        await pool.ready()
        yield runner


async def done(runner: Runner, jobs: Iterator[Mapping[str, Any]], servers: int) -> int:
    """Run them all; 8 rows a server, as `comfyflow batch` does."""
    count = 0
    async for result in runner.run_many(jobs, concurrency=8 * servers):
        assert result.error is None, result.error
        count += 1
    return count


def busy() -> float:
    """Seconds that all cores together have worked since the machine was started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


async def measured(urls: Sequence[str], folder: Path) -> Run:
    servers = len(urls)
    async with runner_of(urls, folder) as runner:
        await done(runner, (graph() for _ in range(WARM_UP * servers)), servers)
        wall, cpu, machine = time.perf_counter(), time.process_time(), busy()
        count = await done(runner, (graph() for _ in range(JOBS * servers)), servers)
        wall = time.perf_counter() - wall
        return Run(count / wall, (time.process_time() - cpu) / wall, (busy() - machine) / wall)


def main() -> None:
    runs: dict[int, Run] = {}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        urls = [stack.enter_context(simulator()) for _ in range(max(SERVERS))]
        for servers in SERVERS:
            runs[servers] = asyncio.run(measured(urls[:servers], Path(folder)))
    rows = [row(servers, run, runs[1]) for servers, run in runs.items()]
    columns = ["jobs/s", "of n x one", "cores of the client", "of the machine"]
    show(f"jobs of {SECONDS * 1000:g} ms on n servers ({os.cpu_count()} cores here)", columns, rows)


def row(servers: int, run: Run, one: Run) -> Row:
    share = run.rate / (servers * one.rate)
    figures = [f"{run.rate:.1f}", f"{share:.2f}", f"{run.client:.2f}", f"{run.machine:.2f}"]
    limited = run.client >= FULL or run.machine >= FULL * (os.cpu_count() or 1)
    return Row(
        f"{servers} server{'s'[: servers != 1]}",
        figures,
        f">= {TARGET}",
        None if limited and share < TARGET else share >= TARGET,
    )


if __name__ == "__main__":
    main()
