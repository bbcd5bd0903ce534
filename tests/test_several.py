"""Several tasks at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from comfyflow.several import end, ended, iterated


async def numbers() -> AsyncIterator[int]:
    yield 1
    yield 2


async def test_a_source_may_be_of_either_kind() -> None:
    assert [item async for item in iterated([1, 2])] == [item async for item in iterated(numbers())] == [1, 2]


async def test_results_come_as_tasks_end_and_the_rest_is_left_at_work() -> None:
    gate = asyncio.Event()

    async def now() -> str:
        return "now"

    async def later() -> str:
        await gate.wait()
        return "later"

    tasks = {asyncio.create_task(now()), asyncio.create_task(later())}
    assert await ended(tasks, leave=2) == []
    assert await ended(tasks, leave=1) == ["now"]
    assert await ended(tasks, leave=1) == []
    gate.set()
    assert await ended(tasks, leave=0) == ["later"]
    assert tasks == set()


async def test_what_is_left_is_cancelled_and_waited_for() -> None:
    left: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append("ended")

    tasks = {asyncio.create_task(work()), asyncio.create_task(work())}
    await asyncio.wait(tasks, timeout=0)
    await end(tasks)
    assert left == ["ended", "ended"]
    await end(set())
