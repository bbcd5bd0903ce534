"""500 jobs in flight that end one after the other: from the server's last event to the coroutine that has the
result, beside the least that a program can do."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from floor import Floor
from harness import HERE, Row, server, show

from comfyflow import ComfyClient

JOBS, ROUNDS = 500, 8
EVERY = 0.004  # s between two ends
AT_ONCE = 32  # that are sent
MOST = 1.3

GRAPH: dict[str, Any] = {"1": {"class_type": "SaveImage", "inputs": {"images": []}}}
Send = Callable[[], Awaitable[str]]
Wait = Callable[[str], Awaitable[object]]


async def latencies(url: str, session: aiohttp.ClientSession, send: Send, wait: Wait) -> list[float]:
    """Seconds for each job, from the stamp of the server to ours."""
    limit, got = asyncio.Semaphore(AT_ONCE), dict[str, float]()

    async def sent() -> str:
        async with limit:
            return await send()

    async def followed(job: str) -> None:
        await wait(job)
        got[job] = time.monotonic()

    jobs = await asyncio.gather(*(sent() for _ in range(JOBS)))
    waiting = [asyncio.create_task(followed(job)) for job in jobs]
    async with session.post(f"{url}/end", params={"every": str(EVERY)}):
        pass
    await asyncio.gather(*waiting)
    async with session.get(f"{url}/stamps") as answer:
        stamps = await answer.json()
    return [got[job] - stamps[job] for job in jobs]


async def rounds(url: str) -> list[tuple[list[float], list[float]]]:
    """(floor, comfyflow), after one that warms both up."""
    async with (
        aiohttp.ClientSession() as session,
        Floor.opened(url) as floor,
        ComfyClient(url) as client,
    ):

        async def least() -> str:
            prompt_id = str(uuid.uuid4())
            floor.ended[prompt_id] = asyncio.Event()
            body = {"prompt": GRAPH, "prompt_id": prompt_id, "client_id": floor.client_id}
            async with floor.session.post(f"{url}/prompt", json=body) as answer:
                await answer.json()
            return prompt_id

        async def result(prompt_id: str) -> object:
            await floor.ended[prompt_id].wait()
            async with floor.session.get(f"{url}/history/{prompt_id}") as answer:
                return (await answer.json())[prompt_id]["outputs"]

        async def ours() -> str:
            return await client.submit_workflow(GRAPH)

        found = []
        for _ in range(ROUNDS + 1):
            by_hand = await latencies(url, session, least, result)
            found.append((by_hand, await latencies(url, session, ours, client.wait)))
    return found[1:]


def main() -> None:
    with server(str(HERE / "ending_server.py")) as url:
        found = asyncio.run(rounds(url))
    rows = [
        row("median", [(statistics.median(floor), statistics.median(ours)) for floor, ours in found], MOST),
        row("95 of 100", [(slow(floor), slow(ours)) for floor, ours in found], None),
    ]
    columns = ["floor, ms", "comfyflow, ms", "ratio", "all rounds"]
    show(f"from the last event to the result, {JOBS} jobs in flight", columns, rows)


def slow(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def row(what: str, pairs: list[tuple[float, float]], most: float | None) -> Row:
    floor, ours = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
    ratios = sorted(ours / floor for floor, ours in pairs)
    ratio = statistics.median(ratios)
    figures = [f"{floor:.2f}", f"{ours:.2f}", f"{ratio:.2f}", f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"]
    return Row(what, figures, f"<= {most}" if most else "", None if most is None else ratio <= most)


if __name__ == "__main__":
    main()
