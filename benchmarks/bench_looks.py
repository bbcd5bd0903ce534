"""How often comfyflow asks the server how its jobs are: with a socket that talks, and without one."""

from __future__ import annotations

import asyncio
import itertools

from bench_client import graphs
from harness import Row, show

from comfyflow import ComfyClient, PollSchedule
from comfyflow.sim import Sim

HEALTHY = 100
DEAD = [1, 10, 100, 1000]
SECONDS, INTERVAL = 4.0, 0.25


async def healthy() -> Row:
    """All jobs run to their end under a socket that talks: one look each, for the result."""
    async with Sim() as sim, ComfyClient(sim.url) as client:
        ids = [await client.submit_workflow(graph) for graph in itertools.islice(graphs(), HEALTHY)]
        await asyncio.gather(*(client.wait(prompt_id) for prompt_id in ids))
        each = sim.looks() / HEALTHY
    return Row(f"socket talks, {HEALTHY} jobs", [f"{each:.2f} a job"], "1 a job", each <= 1)


async def dead(jobs: int) -> float:
    """No socket, nothing moves, `jobs` in flight: looks in an interval."""
    poll = PollSchedule(first=INTERVAL, ceiling=INTERVAL)
    async with Sim() as sim, ComfyClient(sim.url, websocket=False, poll=poll) as client:
        await sim.hold()
        ids = [await client.submit_workflow(graph) for graph in itertools.islice(graphs(), jobs)]
        waiting = [asyncio.create_task(client.wait(prompt_id)) for prompt_id in ids]
        await asyncio.sleep(INTERVAL * 4)  # the first looks find out what is ahead of what
        before = sim.looks()
        await asyncio.sleep(SECONDS)
        looks = sim.looks() - before
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return looks / (SECONDS / INTERVAL)


async def table() -> list[Row]:
    rows = [await healthy()]
    for jobs in DEAD:
        each = await dead(jobs)
        rows.append(
            Row(f"no socket, {jobs} jobs", [f"{each:.2f} an interval"], "<= 1 an interval", each <= 1.1)
        )
    return rows


def main() -> None:
    show("looks at the server", ["looks"], asyncio.run(table()))


if __name__ == "__main__":
    main()
