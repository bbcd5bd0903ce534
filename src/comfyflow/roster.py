"""The jobs in flight on one server, and which of them to look at next. Pure: the caller brings events and the
time.

A server runs one job at a time, in the order of (number, arrival), so among many jobs only the first can be
next: looks for the sake of looking go to that one, and when it has ended, to the one behind it. Jobs whose
end was announced, that we asked to stop, or that we know nothing of, are looked at for their own sake.
"""

from __future__ import annotations

import heapq
import math

from . import events as e
from .models import JobState, PollSchedule
from .tracker import Tracker

SOON = 1  # jobs ahead at which a waiting job counts as near, so that looks become frequent again
PATIENCE = 4  # times `stall_after` in which a talking server may say nothing of the first job
_ANSWERS = (e.Accepted, e.SeenPending, e.SeenRunning, e.Recorded, e.Absent)  # to us, not from the socket
Place = tuple[int, float, int]  # (life of the server as far as we can tell, number, arrival)


class Roster:
    """Route events to trackers, and tell when somebody must look at which job."""

    def __init__(self, poll: PollSchedule, now: float) -> None:
        self.live = False  # the socket is open
        self.moved = now  # last sign that the server's worker gets on: what `silence` is measured from
        self.remaining: int | None = None  # jobs on the server as last broadcast
        self._poll = poll
        self._heard = self._looked = self._told = now  # _told: the last event of the first job
        self._wait = poll.first
        self._deaf_at = math.inf
        self._down_until: float | None = None  # while looks fail: when to try the next one
        self._trackers: dict[str, Tracker] = {}
        self._agenda: list[tuple[float, str]] = []  # (when, prompt id), stale ones included
        self._order: list[tuple[Place, str]] = []  # stale ones included
        self._placed: set[str] = set()  # ids that are in `_order`
        self._looking: set[str] = set()
        self._strangers: set[str] = set()  # jobs of other sockets: ours has told nothing of them
        self._life, self._arrivals, self._highest = 0, 0, -math.inf
        self._sockets = 0  # how many there have been
        self._started = ""  # the last job of ours that was told to start

    def __len__(self) -> int:
        return len(self._trackers)

    def get(self, prompt_id: str) -> Tracker | None:
        """The tracker of a job in flight."""
        return self._trackers.get(prompt_id)

    def trackers(self) -> list[Tracker]:
        """All jobs in flight."""
        return list(self._trackers.values())

    def add(self, tracker: Tracker, now: float) -> None:
        """Follow a job. It is looked at only once it was accepted (or `look_at` was called on it)."""
        if not self._trackers:
            self.moved = now
        self._trackers[tracker.prompt_id] = tracker
        self._looking.discard(tracker.prompt_id)  # a look that began before it was sent says nothing of it
        self._strangers.discard(tracker.prompt_id)
        tracker.floor, tracker.sockets = self._highest, self._sockets
        self.plan(tracker)

    def stranger(self, prompt_id: str) -> None:
        """A job that somebody else sent. ComfyUI tells of a job only the socket that it was sent for
        (server.py `send_sync`, by client id), so it is looked at as if there were no socket, until ours tells
        of it."""
        self._strangers.add(prompt_id)

    def drop(self, prompt_id: str) -> None:
        """Forget a job."""
        self._trackers.pop(prompt_id, None)
        self._strangers.discard(prompt_id)
        self._looking.discard(prompt_id)
        self._placed.discard(prompt_id)

    def accepted(self, tracker: Tracker, number: float, now: float, *, counted: bool = True) -> None:
        """The server took the job. `counted`: the number is from the server's own counter.

        Such a number below one that was known when the request left tells of a restart: older jobs are
        looked at first then. A socket that opened while the request was on its way came too late for what
        the server may have told of the job already.
        """
        if self._sockets != tracker.sockets:
            tracker.look_at(now)
        self.feed(e.Accepted(tracker.prompt_id, number), now)
        if counted and number < tracker.floor:
            self._life += 1
            self._highest = number
        elif counted:
            self._highest = max(self._highest, number)
        self._enqueue(tracker)
        if self.live:
            self._deaf_at = min(self._deaf_at, now + self._poll.deaf_after)

    def feed(self, event: e.Event, now: float) -> Tracker | None:
        """Take in what the socket or a look said. Gives the tracker that it concerned."""
        if isinstance(event, e.Status):
            self._count(event, now)
            return None
        if not isinstance(event, e.JobEvent):
            return None
        if not isinstance(event, _ANSWERS):
            self._strangers.discard(event.prompt_id)
            self.working(now)  # an answer to us is no sign of life, neither of the worker nor on the socket
        tracker = self._trackers.get(event.prompt_id) if event.prompt_id else self._running()
        if tracker is None or not tracker.feed(event, now):
            return None
        if tracker.prompt_id == self._head():
            self._told = now
        if isinstance(event, e.Started):
            self._started = tracker.prompt_id
            self._overtaken(tracker, now)
        self.plan(tracker)
        return tracker

    def frame(self) -> None:
        """The socket brought something, whatever it was: it is not deaf."""
        self._deaf_at = math.inf

    def working(self, now: float, frame: str = "") -> None:
        """The server's worker gets on with something: the first job, if an unread `frame` names it."""
        self._heard = self.moved = now
        if frame and (head := self._head()) is not None and head in frame:
            self._told = now

    def about(self, frame: str) -> str | None:
        """The running job of ours that an unread frame tells of."""
        tracker = self._running()
        if tracker is None or tracker.prompt_id not in frame or tracker.prompt_id in self._strangers:
            return None
        return tracker.prompt_id

    def socket(self, live: bool, now: float) -> None:
        """The socket opened or was lost. Either way events may have been missed, so a look is due soon."""
        self.live, self._deaf_at, self._wait = live, math.inf, self._poll.first
        self._heard = self._looked = now
        if live:
            self._sockets += 1
            self._look_at_head(now)

    def deaf(self, now: float) -> bool:
        """True once when the socket must be replaced: it brought nothing although the server had something to
        say."""
        if now < self._deaf_at:
            return False
        self._deaf_at = math.inf
        return True

    def wake_at(self) -> float:
        """When `due` or `deaf` may have something to say; infinity when only an event can change that."""
        idle = math.inf if self._idle_head() is None else self._idle_due()
        own = self._agenda[0][0] if self._next_own() else math.inf
        if self._down_until is not None:
            # The same silence meets every look: one at a time finds out when it ends.
            next_look = math.inf if self._looking else max(min(own, idle), self._down_until)
            return min(next_look, self._deaf_at)
        return min(own, idle, self._deaf_at)

    def due(self, now: float) -> str | None:
        """The job to look at now, if any. It counts as being looked at until `looked` or `failed` is
        called."""
        if self._down_until is not None and (self._looking or now < self._down_until):
            return None
        if self._next_own() and self._agenda[0][0] <= now:
            prompt_id = heapq.heappop(self._agenda)[1]
        else:
            head = self._idle_head()
            if head is None or now < self._idle_due():
                return None
            prompt_id = head
        self._looking.add(prompt_id)
        return prompt_id

    def looked(self, prompt_id: str, event: e.JobEvent, now: float) -> Tracker | None:
        """A look came back. Gives the tracker when something changed for a watcher."""
        self._down_until = None  # the server answers, whatever has become of the job meanwhile
        tracker = self._trackers.get(prompt_id)
        if tracker is None or prompt_id not in self._looking:
            return None
        self._looking.discard(prompt_id)
        before, note = (tracker.state, tracker.ahead), tracker.note
        told = tracker.announced and not isinstance(event, e.Absent)  # absent: the server was restarted
        missed = not told and not tracker.stopping and prompt_id in self._placed
        self.feed(event, now)
        self._enqueue(tracker)
        changed = before != (tracker.state, tracker.ahead)
        self._after_look(tracker, changed, now)
        if missed and tracker.result is not None and self._running_head() is None:
            self._look_at_head(now)  # the socket did not tell this end: it may have missed the next too
        self.plan(tracker)
        return tracker if changed or note != tracker.note else None

    def failed(self, prompt_id: str, note: str, now: float) -> Tracker | None:
        """A look brought no answer: says nothing about the job, so it is tried again, ever less often."""
        self._looking.discard(prompt_id)
        self._looked = now
        if self._down_until is None or now >= self._down_until:  # else it left before that was known
            self._slow_down()
            self._down_until = now + self._wait
        tracker = self._trackers.get(prompt_id)
        if tracker is None or tracker.result is not None:
            return None
        changed, tracker.note = tracker.note != note, note
        if tracker.due() is not None:
            tracker.put_off(self._down_until)
            self.plan(tracker)
        return tracker if changed else None

    def plan(self, tracker: Tracker) -> None:
        """Note when the tracker wants to be looked at."""
        if (at := tracker.due()) is not None:
            heapq.heappush(self._agenda, (at, tracker.prompt_id))

    # -- inside --

    def _look_at_head(self, now: float) -> None:
        if (head := self._head()) is not None:
            self._trackers[head].look_at(now)
            self.plan(self._trackers[head])

    def _after_look(self, tracker: Tracker, changed: bool, now: float) -> None:
        self._looked = now
        if tracker.result is not None:
            self._wait = self._poll.first
            self._looked = now if self.live else -math.inf  # without a socket, on to the next one at once
        elif changed and (tracker.ahead is None or tracker.ahead <= SOON):
            self._wait = self._poll.first
        else:
            self._slow_down()
        if not changed:
            return
        self.moved = now
        told = self.live and tracker.prompt_id not in self._strangers
        if told and now - self._heard >= self._poll.stall_after:
            self._deaf_at = now  # the socket kept silent about something that it should have told

    def _slow_down(self) -> None:
        self._wait = min(self._wait * self._poll.factor, self._poll.ceiling)

    def _count(self, event: e.Status, now: float) -> None:
        self._heard = now
        if self.remaining is not None and event.queue_remaining < self.remaining:
            self.moved = now
        self.remaining = event.queue_remaining

    def _idle_head(self) -> str | None:
        """The first job, unless it is being looked at or has asked for a look of its own."""
        head = self._head()
        if head is None or head in self._looking or self._trackers[head].due() is not None:
            return None
        return head

    def _idle_due(self) -> float:
        if self.live and self._head() not in self._strangers:
            quiet = max(self._heard, self._looked) + self._poll.stall_after
            # A server that talks of other jobs only says nothing of this one: it may have been removed.
            return min(quiet, max(self._told, self._looked) + self._poll.stall_after * PATIENCE)
        return self._looked + self._wait

    def _overtaken(self, started: Tracker, now: float) -> None:
        """A later job runs, so the first in our order must have ended without our hearing of it."""
        head = self._head()
        if head is None or head == started.prompt_id:
            return
        first = self._trackers[head]
        if first.number is not None and started.number is not None and first.number < started.number:
            first.look_at(now)
            self.plan(first)

    def _running(self) -> Tracker | None:
        """The job that runs now: the last one that has started, else the first in our order. That may have
        ended a moment ago, while its result is still on its way."""
        tracker = self._trackers.get(self._started)
        return tracker if tracker and tracker.state is JobState.RUNNING else self._running_head()

    def _running_head(self) -> Tracker | None:
        head = self._head()
        tracker = None if head is None else self._trackers[head]
        return tracker if tracker and tracker.state is JobState.RUNNING else None

    def _next_own(self) -> bool:
        """Bring the next look that a job asked for itself to the top of the agenda; False when there is
        none."""
        while self._agenda:
            at, prompt_id = self._agenda[0]
            tracker = self._trackers.get(prompt_id)
            if tracker is not None and tracker.due() == at and prompt_id not in self._looking:
                return True
            heapq.heappop(self._agenda)
        return False

    def _enqueue(self, tracker: Tracker) -> None:
        if tracker.number is None or tracker.prompt_id in self._placed:
            return
        self._placed.add(tracker.prompt_id)
        self._arrivals += 1
        heapq.heappush(self._order, ((self._life, tracker.number, self._arrivals), tracker.prompt_id))

    def _head(self) -> str | None:
        """The job that can end next, as far as we know."""
        while self._order:
            prompt_id = self._order[0][1]
            tracker = self._trackers.get(prompt_id)
            if tracker is not None and tracker.result is None:
                return prompt_id
            heapq.heappop(self._order)
        return None
