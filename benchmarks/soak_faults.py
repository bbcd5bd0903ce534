"""Trouble for the soak: drawn by chance from a seed, then done to the server, the network, the database and
the workers.

`draws` is a pure function of its seed. `Trouble` does what was drawn; it may do several things at once, but
only one of each kind to one victim. Each of them ends by itself, so that progress is possible in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Protocol

from aiohttp import web

from comfyflow.sim import (
    Effect,
    Fault,
    FaultProxy,
    Sim,
    answer,
    changed,
    corrupt,
    delay,
    ignore_range,
    lie,
    reset,
    reset_after,
    stall,
    truncate,
    zero_tail,
)
from comfyflow.sim.faults import Handler, abort

log = logging.getLogger("soak")


class Kind(StrEnum):
    """What can happen."""

    HTTP = "HTTP fault"
    VIEW = "damaged /view"
    CUT = "sockets cut"
    DEAF = "sockets deaf"
    NO_SOCKET = "sockets refused"
    STALL = "server stalls"
    FREEZE = "half-open connections"
    AWAY = "connections refused"
    RESTART = "server killed and started"
    KILL = "kill -9 of a worker"
    PAUSE = "worker stopped and continued"
    DATABASE = "PostgreSQL stopped and started"


WEIGHTS = {
    Kind.HTTP: 30, Kind.VIEW: 14, Kind.CUT: 8, Kind.DEAF: 5, Kind.NO_SOCKET: 4, Kind.STALL: 4, Kind.FREEZE: 4,
    Kind.AWAY: 4, Kind.RESTART: 4, Kind.KILL: 8, Kind.PAUSE: 8, Kind.DATABASE: 5,
}  # fmt: skip
GAP = 8  # jobs sent between two faults, at most
LONGEST = 2.5  # s that anything lasts; a paused worker stays away for less than its lease
PAUSED = 0.9  # s that a worker stands still, at most
# Where a request can be disturbed. A job is looked for with /jobs, or with /queue and then /history.
PATHS = (
    ("POST", "/prompt"), ("POST", "/prompt"), ("POST", "/prompt"), ("GET", "/prompt"), ("GET", "/queue"),
    ("GET", "/history*"), ("GET", "/jobs*"), ("GET", "/jobs*"), ("GET", "/features"), ("GET", "/view"),
    ("*", "*"),
)  # fmt: skip
EFFECTS = (
    "reset", "reset after", "502", "503", "504", "502 after", "503 after", "504 after", "delay", "stall",
    "stall after",
)  # fmt: skip
DAMAGES = ("truncate", "corrupt", "zero tail", "claim more", "claim less", "changed", "no ranges")


@dataclass(frozen=True, slots=True)
class Draw:
    """One thing to happen, `gap` jobs after the one before. What the numbers mean depends on the kind."""

    gap: int
    kind: Kind
    method: str = "*"
    path: str = "*"
    effect: str = ""
    times: int = 1
    size: int = 0  # bytes
    seconds: float = 0.0
    victim: int = 0

    def __str__(self) -> str:
        return f"{self.kind}: {self.method} {self.path} {self.effect} x{self.times}, {self.seconds:.2f} s"


def draws(seed: int, workers: int, *, server_dies: bool = True) -> Iterator[Draw]:
    """Without end, and always the same for the same arguments."""
    chance = Random(seed)
    weights = {kind: weight for kind, weight in WEIGHTS.items() if server_dies or kind is not Kind.RESTART}
    while True:
        (kind,) = chance.choices(list(weights), list(weights.values()))
        method, path = chance.choice(PATHS) if kind is Kind.HTTP else ("GET", "/view")
        longest = PAUSED if kind is Kind.PAUSE else LONGEST
        yield Draw(
            gap=chance.randint(1, GAP),
            kind=kind,
            method=method,
            path=path,
            effect=chance.choice(DAMAGES if kind is Kind.VIEW else EFFECTS),
            times=chance.randint(1, 3),
            size=chance.randint(1, 200),
            seconds=chance.uniform(0.05, longest),
            victim=chance.randrange(workers),
        )


def hang(*, after: bool) -> Effect:
    """Stand still until released; a request whose client has gone by then is dropped, as proxies do.

    Passing it on then would be the one case in which nobody can know: that is `--ambiguous`, not the soak.
    """

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        response = await handler(request) if after else None
        await fault.released()
        if request.transport is None or request.transport.is_closing():
            abort(request)
            return web.Response(status=499)
        return response or await handler(request)

    return effect


def effect_of(draw: Draw) -> Effect:
    """What a request meets."""
    status, _, after = draw.effect.partition(" ")
    if status.isdecimal():
        return answer(int(status), after=after == "after")
    makers: dict[str, Callable[[], Effect]] = {
        "reset": reset,
        "reset after": reset_after,
        "delay": lambda: delay(draw.seconds),
        "stall": lambda: hang(after=False),
        "stall after": lambda: hang(after=True),
        "truncate": lambda: truncate(draw.size),
        "corrupt": lambda: corrupt(draw.size),
        "zero tail": lambda: zero_tail(draw.size),
        "claim more": lambda: lie(draw.size),
        "claim less": lambda: lie(-min(draw.size, 50)),
        "changed": changed,
        "no ranges": ignore_range,
    }
    return makers[draw.effect]()


@dataclass(frozen=True, slots=True)
class Span:
    """When something was away, in seconds since the Unix epoch."""

    began: float
    ended: float


class Server:
    """The server behind its proxy, and how often it ran what: counted anew in each of its lives."""

    def __init__(self, proxy: FaultProxy, sim: Sim | None) -> None:
        self.proxy, self.sim = proxy, sim
        self.deaths: list[Span] = []
        self._lives: list[Counter[str]] = []
        self._counted: Counter[str] = Counter()

    @property
    def counter(self) -> Counter[str]:
        """Prompts that were started (a simulator tells), or taken by the server (the proxy sees that)."""
        return self.proxy.taken if self.sim is None else self.sim.executed

    @property
    def sent(self) -> int:
        """How many prompts it was given."""
        return self.proxy.sent.total()

    def lives(self) -> list[Counter[str]]:
        """What was run in each life so far, the present one last."""
        return [*self._lives, self.counter - self._counted]

    async def restart(self, seconds: float) -> None:
        """Die, and come back after a while."""
        if self.sim is None:
            return
        began = time.time()
        await self.sim.kill()
        self._lives = self.lives()
        self._counted = self.counter.copy()
        await asyncio.sleep(seconds)
        await self.sim.start()
        self.deaths.append(Span(began, time.time()))


class Victim(Protocol):
    """A worker, as those see it who trouble it."""

    async def kill(self) -> None:
        """kill -9, and a new one in its place."""

    async def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""


class Database(Protocol):
    """PostgreSQL, to be stopped and started; both block."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Trouble:
    """Does what is drawn, until `calm`. `done` counts it, `met` the requests that met a fault."""

    def __init__(self, server: Server, database: Database, workers: list[Victim]) -> None:
        self._server, self._database, self._workers = server, database, workers
        self.done: Counter[Kind] = Counter()
        self.met = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[tuple[Kind, int]] = set()

    def begin(self, draw: Draw) -> None:
        """Do it, beside whatever else is being done. Raises what an earlier one has raised."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            task.result()
        victim = (draw.kind, draw.victim if draw.kind in (Kind.KILL, Kind.PAUSE) else 0)
        several = draw.kind in (Kind.HTTP, Kind.VIEW)
        if several or victim not in self._busy:
            self._busy.add(victim)
            self._tasks.add(asyncio.create_task(self._do(draw, victim)))

    async def calm(self) -> None:
        """Wait until nothing is done any more."""
        if self._tasks:
            await asyncio.gather(*self._tasks)
        self._tasks.clear()

    async def _do(self, draw: Draw, victim: tuple[Kind, int]) -> None:
        log.info("begins: %s", draw)
        try:
            await self._work(draw)
        finally:
            self._busy.discard(victim)
            log.info("ends: %s", draw)
        self.done[draw.kind] += 1

    def _work(self, draw: Draw) -> Coroutine[Any, Any, None]:
        kinds: dict[Kind, Callable[[], Coroutine[Any, Any, None]]] = {
            Kind.HTTP: lambda: self._http(draw),
            Kind.VIEW: lambda: self._http(draw),
            Kind.CUT: self._cut,
            Kind.DEAF: self._deafen,
            Kind.NO_SOCKET: lambda: self._no_socket(draw.seconds),
            Kind.STALL: lambda: self._stall(draw.seconds),
            Kind.FREEZE: lambda: self._freeze(draw),
            Kind.AWAY: lambda: self._away(draw.seconds),
            Kind.RESTART: lambda: self._server.restart(draw.seconds / 2),
            Kind.KILL: self._workers[draw.victim].kill,
            Kind.PAUSE: lambda: self._workers[draw.victim].pause(draw.seconds),
            Kind.DATABASE: lambda: self._no_database(draw.seconds),
        }
        return kinds[draw.kind]()

    async def _http(self, draw: Draw) -> None:
        """An order stays until it was met, at most for a while; what it stalls goes on then."""
        order = self._server.proxy.faults.add(draw.method, draw.path, effect_of(draw), times=draw.times)
        await self._for_a_while(order, LONGEST if draw.seconds < 1 else draw.seconds)

    async def _stall(self, seconds: float) -> None:
        """The server answers nothing, then everything."""
        order = self._server.proxy.faults.add("*", "*", stall(), times=None)
        await self._for_a_while(order, seconds)

    async def _for_a_while(self, order: Fault, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST):
                await order.met()
                await asyncio.sleep(seconds)
        order.left = 0
        order.release()
        self.met += order.hits

    async def _cut(self) -> None:
        self._server.proxy.cut_sockets()

    async def _deafen(self) -> None:
        self._server.proxy.deafen()

    async def _no_socket(self, seconds: float) -> None:
        self._server.proxy.refuse_sockets = True
        self._server.proxy.cut_sockets()
        await asyncio.sleep(seconds)
        self._server.proxy.refuse_sockets = False

    async def _freeze(self, draw: Draw) -> None:
        self._server.proxy.freeze(lost=draw.times == 1, new=draw.size % 2 == 0)
        await asyncio.sleep(draw.seconds)
        self._server.proxy.thaw()

    async def _away(self, seconds: float) -> None:
        await self._server.proxy.refuse()
        await asyncio.sleep(seconds / 2)
        await self._server.proxy.accept()

    async def _no_database(self, seconds: float) -> None:
        await asyncio.to_thread(self._database.stop)
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(self._database.start)
