"""Which server of a pool gets a job, and who waits for a place: first come, first served.

The pool holds the backlog, not ComfyUI's memory: a server gets a few jobs ahead of the one that it runs, and
whoever wants to send more waits for room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import anyio

from .errors import NoServer, NotRunnable
from .inventory import Inventory
from .member import Health, Member
from .several import each
from .workflow import Workflow

LOST_AFTER = 60.0  # s
PATROL_EVERY = 1.0  # s between looks at those who wait for a server that nobody hears of
USUAL = 1.0  # s that a job takes, before any was measured
GRACE = 5.0  # s for which a server that has never answered is waited for


class _Waiter:
    """Somebody with a workflow and no place for it."""

    def __init__(self, workflow: Workflow, besides: Collection[str], now: float) -> None:
        self.workflow, self.besides, self.since = workflow, besides, now
        self.place: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._judged: dict[Inventory, tuple[bool, int]] = {}  # servers that have the same share one

    def fits(self, member: Member) -> bool:
        """Whether the server has all that the workflow names, and was not tried in vain just now."""
        return self.can(member) and member.url not in self.besides

    def can(self, member: Member) -> bool:
        """Whether the server has all that the workflow names, as far as it tells."""
        return self._judgement(member)[0]

    def strange(self, member: Member) -> int:
        """How many choices of the workflow it does not list."""
        return self._judgement(member)[1]

    def _judgement(self, member: Member) -> tuple[bool, int]:
        has = member.inventory
        if has is None:
            return True, 0
        if (known := self._judged.get(has)) is None:
            known = self._judged[has] = not has.missing(self.workflow), has.strange(self.workflow)
        return known


class Placing:
    """Places on servers. `members` are all of them, at any time; where one of them has answered, and none
    does now, that is borne for `lost_after` seconds (None: the usual time)."""

    def __init__(self, members: Sequence[Member], lost_after: float | None) -> None:
        self._members, self._patience = members, lost_after or LOST_AFTER
        self._waiters: dict[_Waiter, None] = {}

    async def take(self, workflow: Workflow, besides: Collection[str] = ()) -> Member:
        """The server that would have done a workflow first, as soon as it has room, which is kept until it is
        given `back`. `besides` are addresses that were tried in vain.

        Raises NotRunnable, and NoServer when none of those that could run it has answered for long (at once,
        where none ever did). Cancelling keeps nothing.
        """
        waiter = _Waiter(workflow, besides, anyio.current_time())
        await self._check_runnable(waiter)
        self._waiters[waiter] = None
        try:
            self.serve()
            self._despair(waiter)
            return await waiter.place
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
                waiter.place.result().reserved -= 1  # it came in the same moment
            raise
        finally:
            self._waiters.pop(waiter, None)

    def back(self, member: Member) -> None:
        """A place is not needed any more: the job is on the server, or will never be."""
        member.reserved -= 1
        self.serve()

    def serve(self) -> None:
        """Give places to those who wait, the first who came first, as far as there is room."""
        if not self._waiters:
            return
        free = [member for member in self._members if member.has_room]
        for waiter in list(self._waiters):
            if not free:
                return
            if waiter.place.done():
                continue
            member = self._best(waiter, free)
            if member is None:
                continue
            member.reserved += 1
            del self._waiters[waiter]
            waiter.place.set_result(member)
            if not member.has_room:
                free.remove(member)

    def survey(self) -> None:
        """Give places, and tell those who wait in vain."""
        self.serve()
        for waiter in list(self._waiters):
            self._despair(waiter)

    async def patrol(self) -> None:
        """Time changes things too: rests end, patience does. Until cancelled."""
        while True:
            await anyio.sleep(PATROL_EVERY)
            self.survey()

    def nobody(self, able: Sequence[Member]) -> NoServer:
        """The error when none of `able` takes a job."""
        drained = all(member.drained for member in self._members)
        told = "; ".join(one.note or f"{one.url} takes no jobs" for one in able or self._members)
        text = (
            "every server is drained: let one take jobs again"
            if drained
            else f"no server can take the job: {told}"
        )
        up = any(member.health is Health.UP for member in self._members)
        return NoServer(text, url=self._members[0].url, any_up=up)

    def _best(self, waiter: _Waiter, free: Sequence[Member]) -> Member | None:
        """The server that would have done it first; None when one that has no room now would."""
        fitting = [member for member in free if waiter.fits(member)]
        if not fitting:
            return None
        usual = self._usual()
        best = min(fitting, key=lambda one: (waiter.strange(one), one.delay(usual), one.succeeded))
        full = [one for one in self._members if one.health is Health.UP and one not in free]
        behind = len(self._waiters)
        quicker = any(
            waiter.fits(one) and one.delay_behind(behind, usual) < best.delay(usual) for one in full
        )
        return None if quicker else best

    def _usual(self) -> float:
        measured = [member.seconds for member in self._members if member.seconds is not None]
        return sum(measured) / len(measured) if measured else USUAL

    async def _check_runnable(self, waiter: _Waiter) -> None:
        """Raises NotRunnable when each server says that it lacks something, asked anew."""
        if self._could(waiter):
            return
        await each(self._members, Member.refresh)
        if self._could(waiter):
            return
        raise self._not_runnable(waiter)

    def _not_runnable(self, waiter: _Waiter) -> NotRunnable:
        missing = {member.url: member.lacks(waiter.workflow) for member in self._members}
        told = "; ".join(f"{url} lacks {', '.join(names)}" for url, names in missing.items())
        text = f"no server can run this workflow: {told}"
        return NotRunnable(text, url=self._members[0].url, missing=missing)

    def _could(self, waiter: _Waiter) -> bool:
        return any(waiter.can(member) for member in self._members)

    def _despair(self, waiter: _Waiter) -> None:
        """Tell somebody who waits that nobody who could run it answers."""
        able = [member for member in self._members if waiter.fits(member)]
        now = anyio.current_time()
        if any(member.health.answers and not member.drained for member in able):
            waiter.since = now
            return
        asked = all(member.health is not Health.UNKNOWN for member in able)
        ever = any(member.ever for member in able)
        patience = self._patience if ever else 0.0 if asked else GRACE
        if waiter.place.done():
            return
        if not self._could(waiter):
            waiter.place.set_exception(self._not_runnable(waiter))
        elif now - waiter.since >= patience or all(member.drained for member in self._members):
            waiter.place.set_exception(self.nobody(able))
