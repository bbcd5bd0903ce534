"""The ends of small files, brought onto the disk many at once.

A file of its own thread costs more than the file: two threads that wait for one another, and two fsync. Here
one thread takes all that are there: their bytes are on the way to the disk before the first fsync waits for
them, and one fsync of the folder makes all their names durable. Each is as durable as alone, when it is told.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any, Protocol

GROUP = 32  # files that one thread takes at once
SLOW = 0.1  # s after which one more thread takes what has come since: this disk, or this folder, is slow
THREADS = 8
OFTEN, PAUSE = 0.01, 0.002  # s: where files come as often as that, the next ones are waited for so long


class File(Protocol):
    """What can be finished so. Every method is called in the thread, and may raise."""

    def prepare(self) -> None:
        """Write what is left, and let the system begin with it."""

    def publish(self) -> Any:
        """Verify, make the bytes durable, and give the file its name. What it returns is told."""

    def names(self) -> Callable[[], None]:
        """What makes the names in its folder durable: the same for all of a folder."""


@dataclass(slots=True)
class _Asked:
    file: File
    told: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: BaseException | None = None


class Finisher:
    """Its threads are started when they are needed, and end with the process."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._lock = Lock()
        self._threads = self._idle = 0
        self._begun = 0.0  # when a thread last took something
        self._asked_at, self._often = 0.0, False

    async def finish(self, file: File) -> Any:
        """Finish a file. Raises what its methods raise. Cancelling leaves the thread at work on it."""
        loop = asyncio.get_running_loop()
        asked = _Asked(file, loop.create_future(), loop)
        now = time.monotonic()
        self._often, self._asked_at = now - self._asked_at < OFTEN, now
        self._asked.put(asked)
        self._staff()
        return await asked.told

    def _staff(self) -> None:
        """One more thread, if none is free, and those that there are have been held up."""
        with self._lock:
            held_up = not self._threads or time.monotonic() - self._begun > SLOW
            if self._idle or not held_up or self._threads == THREADS:
                return
            self._threads += 1
        Thread(target=self._work, daemon=True, name="comfyflow finisher").start()

    def _work(self) -> None:
        while True:
            group = [self._next()]
            if self._often:
                time.sleep(PAUSE)
            with suppress(queue.Empty):
                while len(group) < GROUP:
                    group.append(self._asked.get_nowait())
            _finish(group)

    def _next(self) -> _Asked:
        with self._lock:
            self._idle += 1
        try:
            return self._asked.get()
        finally:
            with self._lock:
                self._idle -= 1
                self._begun = time.monotonic()


def _finish(group: list[_Asked]) -> None:
    for one in group:
        _try(one, one.file.prepare)
    going = [one for one in group if one.error is None]
    for one in going:
        _try(one, one.file.publish)
    for sync in {one.file.names(): None for one in going if one.error is None}:
        sync()
    for loop in {one.loop for one in group}:
        with suppress(RuntimeError):  # it is closed: nobody waits any more
            loop.call_soon_threadsafe(_tell, [one for one in group if one.loop is loop])


def _try(one: _Asked, step: Callable[[], Any]) -> None:
    try:
        one.result = step()
    except BaseException as error:  # the edge of the thread: whoever asked gets it
        one.error = error


def _tell(group: list[_Asked]) -> None:
    for one in group:
        if one.told.done():
            continue  # whoever asked was cancelled
        if one.error is not None:
            one.told.set_exception(one.error)
        else:
            one.told.set_result(one.result)
