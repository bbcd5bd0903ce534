"""2,000 short jobs, 64 at a time: what comfyflow costs beside the least that a program can do."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import operator
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from floor import Floor
from harness import Row, show, simulator

from comfyflow import ComfyClient

JOBS, AT_ONCE, ROUNDS = 2000, 64, 3
SLICES = 8  # of a round: the sides take turns, so that a slow moment of the machine meets all of them

Graph = Mapping[str, Any]
Run = Callable[[Graph, Path], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds for so many jobs: on the wall, and of this process's cores with all its threads."""

    wall: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)


def graphs() -> Iterator[Graph]:
    """Never twice the same, so that the server has to run each."""
    for color in itertools.count():
        image = {"width": 64, "height": 64, "batch_size": 1, "color": color}
        yield {
            "1": {"class_type": "EmptyImage", "inputs": image},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench"}},
        }


def a_folder(base: Path) -> Path:
    """A new one for each slice, which stays: ext4 passes over the inodes of files that were just removed, one
    by one, so whoever comes next would pay for that."""
    return Path(tempfile.mkdtemp(dir=base))


async def measured(run: Run, jobs: Iterator[Graph], folder: Path) -> Cost:
    """One slice of a round, into an empty folder; AT_ONCE workers share the jobs."""
    todo = list(itertools.islice(jobs, JOBS // SLICES))
    several = iter(todo)

    async def worker() -> None:
        for graph in several:
            await run(graph, folder)

    gc.collect()
    os.sync()  # nobody pays for what another one left unflushed
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
    assert len(list(folder.iterdir())) == len(todo)
    return cost


@contextmanager
def no_fsync() -> Iterator[None]:
    """Files are not made durable: what is left is our own work."""
    fsync, os.fsync = os.fsync, lambda file: None  # type: ignore[assignment] # which takes a descriptor too
    try:
        yield
    finally:
        os.fsync = fsync


async def compare(url: str, base: Path) -> list[tuple[Cost, Cost, Cost]]:
    """(floor, comfyflow, comfyflow without fsync) for each round, after a slice that warms all up."""
    jobs = graphs()
    async with Floor.opened(url) as floor, ComfyClient(url) as client:

        async def run(graph: Graph, folder: Path) -> None:
            prompt_id = await client.submit_workflow(graph)
            await client.wait(prompt_id)
            await client.download_images(prompt_id, folder)

        async def slices() -> tuple[Cost, Cost, Cost]:
            by_hand = await measured(floor.run, jobs, a_folder(base))
            ours = await measured(run, jobs, a_folder(base))
            with no_fsync():
                return by_hand, ours, await measured(run, jobs, a_folder(base))

        await slices()
        rounds = [[await slices() for _ in range(SLICES)] for _ in range(ROUNDS)]
    sides = (zip(*one, strict=True) for one in rounds)
    return [(total(floor), total(ours), total(bare)) for floor, ours, bare in sides]


def total(slices: Iterable[Cost]) -> Cost:
    """A round from its slices."""
    return functools.reduce(operator.add, slices)


def row(what: str, pairs: list[tuple[float, float]], most: float | None) -> Row:
    """The median of the rounds' ratios, not of the medians: both halves of a round saw the same machine."""
    floor, ours = (statistics.median(side) / JOBS * 1000 for side in zip(*pairs, strict=True))
    ratios = sorted(ours / floor for floor, ours in pairs)
    ratio = statistics.median(ratios)
    figures = [f"{floor:.2f}", f"{ours:.2f}", f"{ratio:.2f}", f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"]
    return Row(what, figures, f"<= {most}" if most else "", None if most is None else ratio <= most)


def main() -> None:
    with simulator() as url, tempfile.TemporaryDirectory() as folder:
        rounds = asyncio.run(compare(url, Path(folder)))
    rows = [
        row("CPU", [(floor.cpu, ours.cpu) for floor, ours, _ in rounds], 1.5),
        row(
            "CPU without fsync, which the floor has not",
            [(floor.cpu, bare.cpu) for floor, _, bare in rounds],
            1.5,
        ),
        row("wall", [(floor.wall, ours.wall) for floor, ours, _ in rounds], 1.5),
    ]
    columns = ["floor, ms/job", "comfyflow, ms/job", "ratio", "all rounds"]
    show(f"{JOBS} jobs, {AT_ONCE} at a time, median of {ROUNDS} rounds", columns, rows)


if __name__ == "__main__":
    main()
