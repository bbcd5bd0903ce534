"""What tests wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio


async def until(condition: Callable[[], bool]) -> None:
    """As soon as it holds; ten seconds at most."""
    with anyio.fail_after(10):
        while not condition():
            await asyncio.wait([asyncio.create_task(asyncio.sleep(0))])
