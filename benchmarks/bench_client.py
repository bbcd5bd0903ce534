"""2,000 short jobs, 64 at a time: what comfyflow costs beside the least that a program can do."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from floor import Floor
from harness import Row, show, simulator

from comfyflow import ComfyClient

JOBS, AT_ONCE, ROUNDS = 2000, 64, 3

Graph = Mapping[str, Any]
Run = Callable[[Graph, Path], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds for one round of JOBS jobs: on the wall, and of this process's cores with all its threads."""

    wall: float
    cpu: float


def graphs() -> Iterator[Graph]:
    """Never twice the same, so that the server has to run each."""
    for color in itertools.count():
        image = {"width": 64, "height": 64, "batch_size": 1, "color": color}
        yield {
            "1": {"class_type": "EmptyImage", "inputs": image},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench"}},
        }


async def measured(run: Run, jobs: Iterator[Graph], folder: Path) -> Cost:
    """Run one round; AT_ONCE workers share the jobs."""
    todo = iter(list(itertools.islice(jobs, JOBS)))

    async def worker() -> None:
        for graph in todo:
            await run(graph, folder)

    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
    assert len(list(folder.iterdir())) == JOBS
    shutil.rmtree(folder)
    folder.mkdir()
    return cost


@contextmanager
def no_fsync() -> Iterator[None]:
    """Files are not made durable: what is left is our own work."""
    fsync, os.fsync = os.fsync, lambda file: None  # type: ignore[assignment] # which takes a descriptor too
    try:
        yield
    finally:
        os.fsync = fsync


async def compare(url: str, folder: Path) -> list[tuple[Cost, Cost, Cost]]:
    """(floor, comfyflow, comfyflow without fsync) for each round, after one that warms all up."""
    jobs = graphs()
    async with Floor.opened(url) as floor, ComfyClient(url) as client:

        async def run(graph: Graph, folder: Path) -> None:
            prompt_id = await client.submit_workflow(graph)
            await client.wait(prompt_id)
            await client.download_images(prompt_id, folder)

        rounds = []
        for _ in range(ROUNDS + 1):
            pair = await measured(floor.run, jobs, folder), await measured(run, jobs, folder)
            with no_fsync():
                rounds.append((*pair, await measured(run, jobs, folder)))
    return rounds[1:]


def row(what: str, pairs: list[tuple[float, float]], most: float) -> Row:
    """The median of the rounds' ratios, not of the medians: both halves of a round saw the same machine."""
    floor, ours = (statistics.median(side) / JOBS * 1000 for side in zip(*pairs, strict=True))
    ratios = sorted(ours / floor for floor, ours in pairs)
    ratio = statistics.median(ratios)
    figures = [f"{floor:.2f}", f"{ours:.2f}", f"{ratio:.2f}", f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"]
    return Row(what, figures, f"<= {most}", ratio <= most)


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
