"""Finish what must not be left half done, whatever kind of cancellation comes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T], limit: float) -> T:
    """Run `work` to its end, for `limit` seconds at most; a cancellation is raised after that.

    anyio's shields alone do not hold against asyncio's own `task.cancel()`. Raises TimeoutError.
    """
    task = asyncio.create_task(work)
    try:
        async with asyncio.timeout(limit):
            return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=limit)
        raise
    finally:
        task.cancel()
