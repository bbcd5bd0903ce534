"""Several tasks at once: results as they come, none left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, suppress
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
ALL = 8  # that are asked something at once


async def iterated(source: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """The items of either kind of source."""
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


async def ended(tasks: set[asyncio.Task[T]], *, leave: int) -> list[T]:
    """Wait until no more than `leave` tasks are left at work, and take out those that have ended."""
    if len(tasks) <= leave:
        return []
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return _taken(tasks)


async def worked(
    source: Iterable[S] | AsyncIterable[S], work: Callable[[S], Coroutine[Any, Any, T]], *, concurrency: int
) -> AsyncGenerator[T, None]:
    """Do `work` on each item, `concurrency` at a time, and yield the results as they come.

    The source is read only as fast as work ends, and while it lets one wait results come all the same. What
    source or work raises ends everything; so does leaving the loop.
    """
    async with aclosing(iterated(source)) as items, aclosing(_worked(items, work, concurrency)) as results:
        async for result in results:
            yield result


async def _worked(
    items: AsyncGenerator[S, None], work: Callable[[S], Coroutine[Any, Any, T]], concurrency: int
) -> AsyncGenerator[T, None]:
    running: set[asyncio.Task[T]] = set()
    reading: set[asyncio.Task[tuple[S, ...]]] = set()
    more = True
    try:
        while more or running:
            if more and not reading and len(running) < concurrency:
                reading.add(asyncio.create_task(_read(items)))
            await asyncio.wait(running | reading, return_when=asyncio.FIRST_COMPLETED)
            for item in _taken(reading):
                more = bool(item)
                running.update(asyncio.create_task(work(one)) for one in item)
            for result in _taken(running):
                yield result
    finally:
        await end(reading)
        await end(running)


def _taken(tasks: set[asyncio.Task[T]]) -> list[T]:
    """The results of the tasks that have ended, which are taken out."""
    done = {task for task in tasks if task.done()}
    tasks -= done
    return [task.result() for task in done]


async def _read(items: AsyncGenerator[S, None]) -> tuple[S, ...]:
    """The next item, nothing at the end."""
    async for item in items:
        return (item,)
    return ()


async def aside(source: Iterable[S]) -> AsyncGenerator[S, None]:
    """The items of a source that may let one wait (a pipe), each read when it is asked for, in a thread.

    A thread that still waits for an item keeps nobody from leaving, nor the program from ending.
    """
    asked: SimpleQueue[asyncio.Future[tuple[S, ...]] | None] = SimpleQueue()
    loop = asyncio.get_running_loop()
    Thread(target=_serve, args=(iter(source), asked, loop), daemon=True, name="comfyflow source").start()
    try:
        while True:
            asked.put(found := loop.create_future())
            if not (item := await found):
                return
            yield item[0]
    finally:
        asked.put(None)


def _serve(
    items: Iterator[S],
    asked: SimpleQueue[asyncio.Future[tuple[S, ...]] | None],
    loop: asyncio.AbstractEventLoop,
) -> None:
    while (answer := asked.get()) is not None:
        item: tuple[S, ...] = ()
        fault: BaseException | None = None
        try:
            item = tuple(islice(items, 1))
        except BaseException as error:  # the edge of the thread: whoever asked gets it
            fault = error
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(_settle, answer, item, fault)


def _settle(answer: asyncio.Future[T], item: T, fault: BaseException | None) -> None:
    if answer.done():  # nobody waits any more
        return
    if fault is None:
        answer.set_result(item)
    else:
        answer.set_exception(fault)


async def each(items: Iterable[S], ask: Callable[[S], Awaitable[T]], *, limit: int = ALL) -> list[T]:
    """Ask about all items at once, but for more than `limit`; the answers in their order. Raises what the
    first of them that fails raises, and leaves the others then, as when it is cancelled."""
    room = asyncio.Semaphore(limit)

    async def asked(item: S) -> T:
        async with room:
            return await ask(item)

    tasks = [asyncio.create_task(asked(item)) for item in items]
    try:
        return [await task for task in tasks]
    finally:
        await end(set(tasks))


async def end(tasks: set[asyncio.Task[T]]) -> None:
    """Cancel what is left, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
