"""Several tasks at once: results as they come, none left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")


async def iterated(source: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
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
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    tasks -= done
    return [task.result() for task in done]


async def end(tasks: set[asyncio.Task[T]]) -> None:
    """Cancel what is left, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
