"""Several tasks at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from waiting import until

from comfyflow.several import aside, each, end, ended, iterated, worked


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


# questions to several


async def test_answers_come_in_the_order_of_the_questions_some_at_once() -> None:
    gates = [asyncio.Event() for _ in range(3)]
    asked: list[int] = []

    async def ask(number: int) -> int:
        asked.append(number)
        await gates[number].wait()
        return number * 10

    asking = asyncio.create_task(each(range(3), ask, limit=2))
    await asyncio.wait([asking], timeout=0)
    gates[1].set()
    gates[2].set()
    await until(lambda: len(asked) == 3)
    assert asked[:2] == [0, 1]
    gates[0].set()
    assert await asking == [0, 10, 20]


async def test_one_that_fails_ends_the_other_questions() -> None:
    left: list[str] = []

    async def ask(number: int) -> None:
        if number == 0:
            raise ValueError("no")
        try:
            await asyncio.Event().wait()
        finally:
            left.append("ended")

    with pytest.raises(ValueError, match="no"):
        await each(range(2), ask)
    assert left == ["ended"]


# work on a source


async def same(number: int) -> int:
    return number


async def test_a_source_is_read_only_as_fast_as_work_ends() -> None:
    read: list[int] = []
    gates = [asyncio.Event() for _ in range(6)]

    def source() -> Iterator[int]:
        for number in range(6):
            read.append(number)
            yield number

    async def gated(number: int) -> int:
        await gates[number].wait()
        return number

    results: list[int] = []
    async with aclosing(worked(source(), gated, concurrency=2)) as going:
        for number in (1, 0, 2, 3, 5, 4):
            gates[number].set()
            results.append(await anext(going))
            assert len(read) <= len(results) + 2
        assert [left async for left in going] == []
    assert results == [1, 0, 2, 3, 5, 4]


async def test_results_come_while_the_source_lets_one_wait() -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        await more.wait()
        yield 2

    async with aclosing(worked(source(), same, concurrency=5)) as going:
        assert await anext(going) == 1
        more.set()
        assert [number async for number in going] == [2]


async def test_whoever_leaves_takes_the_work_along() -> None:
    cancelled: list[int] = []

    async def endless(number: int) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(number)
        return number

    async with aclosing(worked([1, 2, 3], endless, concurrency=2)) as going:
        await asyncio.wait([asyncio.ensure_future(asyncio.wait_for(anext(going), 0.05))])
    assert sorted(cancelled) == [1, 2]


async def test_what_source_or_work_raises_ends_everything() -> None:
    async def broken(number: int) -> int:
        raise ValueError(number)

    def source() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    with pytest.raises(ValueError, match="1"):
        [number async for number in worked([1, 2], broken, concurrency=1)]
    with pytest.raises(KeyError, match="source"):
        [number async for number in worked(source(), same, concurrency=1)]


# a source in a thread


async def test_a_source_aside_is_read_in_a_thread_one_item_at_a_time() -> None:
    read: list[str] = []

    def source() -> Iterator[int]:
        for number in range(3):
            read.append(threading.current_thread().name)
            yield number

    async with aclosing(aside(source())) as items:
        assert await anext(items) == 0
        assert len(read) == 1
        assert [number async for number in items] == [1, 2]
    assert set(read) == {"comfyflow source"}


async def test_what_a_source_aside_raises_comes_to_whoever_reads() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        [number async for number in aside(source())]


async def test_a_source_aside_that_lets_one_wait_may_be_left() -> None:
    gate, ended = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        gate.wait()
        yield 1
        ended.set()

    items = aside(source())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(items)
    gate.set()
    await items.aclose()
    assert not ended.is_set()
