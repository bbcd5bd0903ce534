"""1 to 16 simulated servers whose jobs take 50 ms: how much of n times one server's throughput is left.

The servers are on this machine too and need more of it than the client. Where its loop has no idle time left,
because it works or because it waits for a core that a server has, the figures say nothing more of the client;
jobs of 200 ms then show what many servers cost it, apart from many jobs.
"""

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

SERVERS = (1, 2, 4, 8, 12, 16)
SECONDS = 0.05  # that a job takes
JOBS = 80  # for each server
LONG, FEW = 0.2, 40  # the same for jobs that leave the machine time for 16 servers
WARM_UP = 4  # for each server
TARGET = 0.9
FULL = 0.9  # of the time: then the client can do no more here

_colors = itertools.count()


@dataclass(frozen=True, slots=True)
class Run:
    """Jobs a second, the cores that the client and the servers used meanwhile, and how much of the time the
    client's loop worked, and waited for a core."""

    rate: float
    client: float
    servers: float
    works: float
    waits: float

    @property
    def full(self) -> bool:
        """Whether the client's loop has no idle time left."""
        return self.works + self.waits >= FULL


def graph(seconds: float) -> dict[str, Any]:
    """Never twice the same."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": next(_colors)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SimSleep", "inputs": {"seconds": seconds, "image": ["1", 0]}},
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


def waited() -> float:
    """Seconds that the loop's thread could have worked, and had no core (Linux: schedstat)."""
    return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


def of_children() -> float:
    """Seconds that the children of this process have worked: the servers."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    stats = [Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2] for pid in pids]
    return sum(sum(map(int, stat.split()[11:13])) for stat in stats) / os.sysconf("SC_CLK_TCK")


def spent() -> tuple[float, ...]:
    """The clock, and the seconds of a `Run`."""
    return time.perf_counter(), time.process_time(), of_children(), time.thread_time(), waited()


async def measured(urls: Sequence[str], folder: Path, seconds: float, jobs: int) -> Run:
    servers = len(urls)
    async with runner_of(urls, folder) as runner:
        await done(runner, (graph(seconds) for _ in range(WARM_UP * servers)), servers)
        before = spent()
        count = await done(runner, (graph(seconds) for _ in range(jobs * servers)), servers)
        wall, *used = (after - start for after, start in zip(spent(), before, strict=True))
    return Run(count / wall, *(seconds / wall for seconds in used))


def series(urls: Sequence[str], sizes: Sequence[int], folder: Path, seconds: float, jobs: int) -> list[Run]:
    """Measure it on so many servers, and print it."""
    runs = [asyncio.run(measured(urls[:size], folder, seconds, jobs)) for size in sizes]
    rows = [row(size, run, runs[0]) for size, run in zip(sizes, runs, strict=True)]
    columns = [
        "jobs/s",
        "of n x one",
        "cores of the client",
        "of the servers",
        "its loop works",
        "and waits for a core",
    ]
    show(f"jobs of {seconds * 1000:g} ms on n servers ({os.cpu_count()} cores here)", columns, rows)
    return runs


def main() -> None:
    with ExitStack() as stack, tempfile.TemporaryDirectory() as text:
        urls, folder = [stack.enter_context(simulator()) for _ in range(max(SERVERS))], Path(text)
        runs = series(urls, SERVERS, folder, SECONDS, JOBS)
        series(urls, (1, max(SERVERS)), folder, LONG, FEW)
    cheapest = min(run.client / run.rate for run in runs[1:])
    print(
        f"A job costs the client {cheapest * 1000:.1f} ms of CPU: one core would be full at "
        f"{1 / cheapest:.0f} jobs/s, which {1 / cheapest / runs[0].rate:.0f} such servers do."
    )


def row(servers: int, run: Run, one: Run) -> Row:
    share = run.rate / (servers * one.rate)
    cores = [f"{used:.2f}" for used in (run.client, run.servers, run.works, run.waits)]
    good = None if run.full and share < TARGET else share >= TARGET
    what = f"{servers} server{'s'[: servers != 1]}{' (full)' if run.full else ''}"
    return Row(what, [f"{run.rate:.1f}", f"{share:.2f}", *cores], f">= {TARGET}", good)


if __name__ == "__main__":
    main()
