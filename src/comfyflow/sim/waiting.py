"""Waiting for something to happen, without sleeping and without asking again and again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Waiting:
    """Conditions that somebody waits for; they are asked again at each `notify`."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], bool], asyncio.Future[None]]] = deque()

    async def until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until `condition` holds. TimeoutError after `timeout` seconds."""
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        async with asyncio.timeout(timeout):
            await future

    def notify(self) -> None:
        """Something has happened."""
        for entry in list(self._waiting):
            condition, future = entry
            if future.done() or condition():
                self._waiting.remove(entry)
                if not future.done():
                    future.set_result(None)
