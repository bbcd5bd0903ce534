"""10,000 jobs in flight in one process, each submitted and waited for: bytes a job."""

from __future__ import annotations

import asyncio
import gc
import itertools

from bench_client import graphs
from harness import Row, memory, show, simulator

from comfyflow import ComfyClient

JOBS, AT_ONCE, MOST = 10_000, 32, 10_240
# The server's only worker sleeps over this one for as long as the benchmark lasts.
PLUG = {"1": {"class_type": "SimSleep", "inputs": {"seconds": 3600.0}}}


async def held() -> int:
    """Bytes that the process holds more with all jobs in flight than with none."""
    with simulator() as url:
        async with ComfyClient(url) as client:
            waiting = [asyncio.create_task(client.wait(await client.submit_workflow(PLUG)))]
            todo = iter(list(itertools.islice(graphs(), JOBS)))
            gc.collect()
            before = memory("VmRSS")

            async def submit() -> None:
                for graph in todo:
                    prompt_id = await client.submit_workflow(graph)
                    waiting.append(asyncio.create_task(client.wait(prompt_id)))

            await asyncio.gather(*(submit() for _ in range(AT_ONCE)))
            assert not any(task.done() for task in waiting)
            gc.collect()
            grown = memory("VmRSS") - before
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    return grown


def main() -> None:
    each = asyncio.run(held()) / JOBS
    row = Row("memory", [f"{each:,.0f}"], f"< {MOST:,}", each < MOST)
    show(f"{JOBS:,} jobs in flight", ["bytes a job"], [row])


if __name__ == "__main__":
    main()
