"""One server of a pool: how it is, what it has, and what of ours is on it.

A server is away while it does not answer: it gets no job, and what it has stays its own, because nobody can
tell. It is gone when its machine has refused connections for `lost_after` seconds, all the time: ComfyUI
listens as long as it lives and keeps its queue in memory (execution.py, `PromptQueue`), so what it held is
lost. That conclusion needs a direct way: a proxy or a balancer between may refuse by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from math import inf

import anyio

from .client import ComfyClient
from .errors import ServerError, ServerUnreachable
from .inventory import Inventory
from .models import JobState, PoolServer
from .tracker import Tracker
from .workflow import Workflow

ASK_LIMIT = 10.0  # s for the answer to "how are you?"
INVENTORY_LIMIT = 60.0  # s: importing the nodes' choices takes a server with many models its time
ASK_FIRST, ASK_CEILING = 0.25, 5.0  # s between questions to a server that is away; without a socket, to any
REFRESH = 300.0  # s after which what a server has is asked anew
STALE = 10.0  # s: what was asked so long ago is asked anew before a workflow is refused
SHARE = 0.2  # of the newest job in the measured seconds a job
TRIP = 3  # jobs that fail in a row, while they succeed elsewhere: then a server rests
REST, LONGEST_REST = 30.0, 480.0  # s


class Health(StrEnum):
    """How a server is."""

    UNKNOWN = "unknown"  # not yet asked
    UP = "up"
    AWAY = "away"  # it does not answer
    GONE = "gone"  # its process has ended
    RESTING = "resting"  # its jobs fail while those of others succeed
    DRAINING = "draining"  # it answers, and gets no more jobs

    @property
    def answers(self) -> bool:
        """Whether it is there."""
        return self in (Health.UP, Health.RESTING, Health.DRAINING)


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server of a pool as it is now. `ours` are our jobs on it, `remaining` is everybody's as it was last
    told (None: not told), `seconds` what a job takes there (None: not measured), `note` says why it is
    away."""

    url: str
    health: Health
    socket: bool
    weight: float
    ours: int
    remaining: int | None
    seconds: float | None
    succeeded: int
    failed: int
    note: str | None = None


class Member:
    """A server and its client, which is opened and closed by the pool. `changed` is called when there may be
    room, `asked` when it was asked how it is; `successes` counts those of the whole pool; `shared` gives for
    an inventory that of another server where it is the same. `lost_after` is in seconds."""

    def __init__(
        self,
        client: ComfyClient,
        spec: PoolServer,
        *,
        ahead: int,
        lost_after: float | None,
        changed: Callable[[], None],
        asked: Callable[[], None],
        successes: Callable[[], int],
        shared: Callable[[Inventory], Inventory] = lambda found: found,
    ) -> None:
        self.client, self.url, self.weight = client, str(client.server), spec.weight
        self.most = 1 + (ahead if spec.ahead is None else spec.ahead)
        self.reserved = 0  # jobs that are about to be sent to it
        self.inventory: Inventory | None = None  # None also where it does not tell
        self.seconds: float | None = None
        self.succeeded = self.failed = 0
        self.drained = spec.weight <= 0
        self.note: str | None = None
        self.ever = False  # it has answered
        self._answers: bool | None = None
        self._gone = False
        self._lost_after = inf if lost_after is None else lost_after
        self._refused_since: float | None = None
        self._told_at = -inf
        self._changed, self._asked, self._successes, self._shared = changed, asked, successes, shared
        self._failures, self._elsewhere = 0, 0  # in a row; what had succeeded before the first of them
        self._rests_until, self._rest = -inf, REST
        self._wait, self._kicked, self._news = ASK_FIRST, asyncio.Event(), asyncio.Event()
        self._asking = asyncio.Lock()
        client.follower.on_change = self._on_change
        client.follower.on_end = self._on_end
        self._live = False
        self._scopes: set[anyio.CancelScope] = set()

    # -- what it is like --

    @property
    def health(self) -> Health:
        """How it is."""
        if self._gone:
            return Health.GONE
        if not self._answers:
            return Health.UNKNOWN if self._answers is None else Health.AWAY
        if self.drained:
            return Health.DRAINING
        return Health.RESTING if self.rests else Health.UP

    @property
    def rests(self) -> bool:
        """Whether it gets no job for a while, because they fail on it."""
        return self._clock() < self._rests_until

    @property
    def ours(self) -> int:
        """Our jobs on it, those on their way included."""
        return len(self.client.follower.roster) + self.reserved

    @property
    def has_room(self) -> bool:
        """Whether it may get a job now. After a rest it gets one, to see."""
        most = 1 if self._failures >= TRIP else self.most
        return self.ours < most and self.health is Health.UP

    def delay(self, usual: float) -> float:
        """Seconds until it would have done one more job; `usual` where its own were not measured."""
        return self._load(1) * (self.seconds or usual) / (self.weight or 1.0)

    def delay_behind(self, waiting: int, usual: float) -> float:
        """The same for a job that waits until `waiting` others have got their place on it."""
        return self._load(1 + waiting) * (self.seconds or usual) / (self.weight or 1.0)

    def lacks(self, workflow: Workflow) -> tuple[str, ...]:
        """What the workflow names and the server does not have, as far as it tells."""
        return () if self.inventory is None else tuple(map(str, self.inventory.missing(workflow)))

    def view(self) -> ServerView:
        """All of that for people."""
        roster = self.client.follower.roster
        return ServerView(
            self.url,
            self.health,
            roster.live,
            self.weight,
            self.ours,
            roster.remaining if roster.live else None,
            self.seconds,
            self.succeeded,
            self.failed,
            self.note,
        )

    def _load(self, more: int) -> int:
        roster = self.client.follower.roster
        told = roster.remaining or 0 if roster.live else 0
        return max(self.ours, told) + more

    # -- watching over it --

    async def watch(self) -> None:
        """Ask how it is, now and then, until cancelled."""
        while True:
            await self.ask()
            with anyio.move_on_after(self._pause()):
                await self._kicked.wait()
            self._kicked.clear()

    async def ask(self) -> None:
        """Ask how it is, now, and what it has, if that was long ago."""
        async with self._asking:
            try:
                with anyio.fail_after(ASK_LIMIT):
                    await self.client.ready()
            except (ServerError, TimeoutError) as error:
                self._no_answer(error)
            else:
                await self._answer()
        self._told()
        self._asked()

    async def refresh(self) -> None:
        """Ask what it has, unless that was a moment ago."""
        if self._clock() - self._told_at > STALE:
            self._told_at = -inf
            await self.ask()

    def suspect(self, *, answered: bool = False) -> None:
        """A request to it had no answer, or (`answered`) a wrong one, which counts like a failed job: ask how
        it is."""
        if answered:
            self._fails()
        else:
            self._answers = False
        self.kick()

    async def decided(self) -> bool:
        """Ask how it is, and while it refuses connections wait until it answers, or is gone. False when that
        cannot be told soon."""
        self.suspect()
        await self.ask()
        while not self._gone and self._refused_since is not None and self._lost_after < inf:
            await self._news.wait()
        return self._gone or self.health.answers

    def kick(self) -> None:
        """Ask soon."""
        self._wait = ASK_FIRST
        self._kicked.set()

    def _pause(self) -> float:
        if self._answers and self.client.follower.roster.live:
            return REFRESH
        if self._answers:
            return ASK_CEILING
        self._wait, wait = min(self._wait * 2, ASK_CEILING), self._wait
        if self._gone or self._refused_since is None:
            return wait
        left = self._refused_since + self._lost_after - self._clock()
        return min(wait, max(left, ASK_FIRST))  # the verdict is not late

    async def _answer(self) -> None:
        self.note = None
        if self._clock() - self._told_at > REFRESH or not self._answers:
            await self._take_stock()
        self._answers = self.ever = True
        self._refused_since, self._wait = None, ASK_FIRST
        if self._gone:
            self._gone = False
            self.client.follower.gone(False)

    async def _take_stock(self) -> None:
        """A server that has never told what it has is given whatever comes. What it told before counts until
        it tells something else: it may be at work for minutes before it answers."""
        try:
            with anyio.fail_after(INVENTORY_LIMIT):
                self.inventory = self._shared(Inventory.of(await self.client.object_info()))
        except (ServerError, TimeoutError) as error:
            self.note = str(error)
        self._told_at = self._clock()

    def _no_answer(self, error: ServerError | TimeoutError) -> None:
        self._answers, now = False, self._clock()
        self.note = str(error) or f"{self.url} does not answer in {ASK_LIMIT:g} s"
        refused = isinstance(error, ServerUnreachable) and error.refused
        if not refused:
            self._refused_since = None
            return
        self._refused_since = now if self._refused_since is None else self._refused_since
        if not self._gone and now - self._refused_since >= self._lost_after:
            self.bury()

    def bury(self) -> None:
        """Its process has ended, and what it held is lost with it."""
        self._gone, self._answers = True, False
        self._told()
        self.client.follower.gone(True)
        for scope in self._scopes:
            scope.cancel()

    def _told(self) -> None:
        """Wake those who wait for news of it."""
        self._news.set()
        self._news = asyncio.Event()

    @contextmanager
    def while_there(self) -> Iterator[None]:
        """The block ends when the server is gone. Raises ServerUnreachable then."""
        scope = anyio.CancelScope()
        if self._gone:
            scope.cancel()
        self._scopes.add(scope)
        try:
            with scope:
                yield
        finally:
            self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise ServerUnreachable(f"{self.url} is gone: {self.note}", method="GET", url=self.url)

    # -- what its socket brings --

    def _on_change(self) -> None:
        live = self.client.follower.roster.live
        if live is not self._live:
            self._live = live
            self.kick()
        self._changed()

    def _on_end(self, tracker: Tracker) -> None:
        result = tracker.result
        assert result is not None
        if result.state is JobState.SUCCEEDED:
            self.succeeded += 1
            self._failures, self._rest = 0, REST
            if result.started_at is not None and result.ended_at is not None:
                self._measured(result.ended_at - result.started_at)
        elif result.state is JobState.FAILED:
            self.failed += 1
            self._fails()

    def _measured(self, seconds: float) -> None:
        before = seconds if self.seconds is None else self.seconds
        self.seconds = before + SHARE * (max(seconds, 0.0) - before)

    def _fails(self) -> None:
        """A server on which every job fails at once would eat the whole batch. Where they fail everywhere it
        is not the server."""
        if not self._failures:
            self._elsewhere = self._successes()
        self._failures += 1
        if self._failures >= TRIP and self._successes() > self._elsewhere:
            self._rests_until = self._clock() + self._rest
            self._rest = min(self._rest * 2, LONGEST_REST)

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()
