"""Follow the jobs of one server: feed the trackers from the socket and from looks, and wake who waits for
them.

One background task a client. The socket's reader feeds trackers in place and never waits for a consumer,
because ComfyUI sends to all sockets from one loop and one slow reader stops everybody's events [35].
Consumers pull views.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

import anyio

from . import protocol
from .errors import BadAnswer, JobTimeout, ServerError, ServerUnreachable
from .events import Absent, JobEvent, Recorded, Started, Status
from .link import Link
from .look import Looker
from .models import JobState, JobView, PollSchedule, Timeouts
from .roster import Roster
from .tracker import ABSENCES, Tracker

MAX_LOOKS = 8  # at once; ComfyUI answers them one after another anyway
KEPT = 1000  # ended jobs that are remembered for a later `wait`; after that a look asks the server again
Waiters = dict[str, list[asyncio.Event]]


class Follower:
    """Everything that is known about the jobs in flight on one server."""

    def __init__(
        self, looker: Looker, link: Callable[[Follower], Link] | None, poll: PollSchedule, timeouts: Timeouts,
        *, previews: bool,
    ) -> None:  # fmt: skip
        """`link` makes the socket, None does without one."""
        self.clock = asyncio.get_running_loop().time
        self.roster = Roster(poll, self.clock())
        self._looker, self._poll, self._timeouts, self._previews = looker, poll, timeouts, previews
        self._link = link(self) if link else None
        self._views: Waiters = {}  # who wants every change
        self._starts: Waiters = {}  # who wants the start only
        self._ends: Waiters = {}  # who wants the end only
        self._ended: OrderedDict[str, Tracker] = OrderedDict()
        self._unread: dict[str, list[str]] = {}  # frames with details of a running job
        self._attached: set[str] = set()  # jobs that we did not send: followed only while somebody waits
        self._looks, self._until = 0, math.inf
        self._kicked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._unreachable: ServerError | None = None
        self._gone = False
        self.on_change: Callable[[], None] = lambda: None  # a job less, the socket, the queue's length
        self.on_end: Callable[[Tracker], None] = lambda tracker: None

    # -- life --

    def start(self) -> None:
        """Begin to connect and to look."""
        self._task = asyncio.create_task(self._run(), name="comfyflow follower")
        self._task.add_done_callback(lambda task: self._wake_all())

    async def stop(self) -> None:
        """End the background task and close the socket."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def connected(self) -> None:
        """Wait for the first connection attempt, so that a job's events are not missed for being too
        quick."""
        if self._link is not None:
            await self._link.tried.wait()

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            if self._link is not None:
                group.start_soon(self._link.run)
            group.start_soon(self._look_on)

    # -- what the socket brings --

    def on_frame(self, frame: str | bytes) -> None:
        """One frame. Called by the reader, so it must be quick and must not raise."""
        now = self.clock()
        self.roster.frame()
        if self._nobody_watches(frame) or self._can_wait(frame):
            self.roster.working(now, frame if isinstance(frame, str) else "")
            return
        event = protocol.parse_frame(frame)
        tracker = self.roster.feed(event, now)
        if tracker is not None:
            self._changed(tracker)
        elif isinstance(event, Status):
            self._count(event.queue_remaining)
            self.on_change()
        if isinstance(event, Started):  # a later job that starts may show that an earlier one has ended
            self._kick()

    def _nobody_watches(self, frame: str | bytes) -> bool:
        """Half of all frames tell of progress and pictures: not worth a look while nobody watches the job."""
        if isinstance(frame, str):
            return frame.startswith(protocol.PROGRESS) and self._unwatched(frame) is not None
        return not self._previews

    def _can_wait(self, frame: str | bytes) -> bool:
        """What a running job does is kept, and read when somebody asks: nobody asks for most jobs."""
        if not isinstance(frame, str) or not frame.startswith(protocol.DETAILS):
            return False
        if (prompt_id := self._unwatched(frame)) is not None:
            self._unread.setdefault(prompt_id, []).append(frame)
        return prompt_id is not None

    def _unwatched(self, frame: str) -> str | None:
        """The running job that an unread frame tells of, if nobody wants to see every change of it."""
        prompt_id = self.roster.about(frame)
        return None if prompt_id in self._views else prompt_id

    def _catch_up(self, prompt_id: str) -> None:
        """Read what was kept. That the worker got on was noted when it came."""
        for frame in self._unread.pop(prompt_id, ()):
            event = protocol.parse_frame(frame)
            tracker = self.roster.get(event.prompt_id) if isinstance(event, JobEvent) else None
            if tracker is not None and isinstance(event, JobEvent):
                tracker.feed(event, self.clock())

    def on_live(self, live: bool) -> None:
        """The socket opened or was lost."""
        self.roster.socket(live, self.clock())
        self._kick()
        self.on_change()

    def _count(self, remaining: int) -> None:
        for prompt_id in self._views:
            tracker = self.roster.get(prompt_id)
            if tracker is not None and tracker.at_most(remaining):
                self._changed(tracker)

    # -- looks --

    async def _look_on(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._group:  # anyio's takes longer to begin a task
                await self._look_around()
        finally:
            self._group = None

    async def _look_around(self) -> None:
        while True:
            self._set_out()
            if self.roster.deaf(self.clock()) and self._link is not None:
                self._link.replace()
            self._until = self.roster.wake_at() if self._looks < MAX_LOOKS else math.inf
            self._kicked.clear()
            await _set_by(self._kicked, self._until)

    def _set_out(self) -> None:
        """Begin the looks that are due, unless the background task has not begun, or has ended."""
        group = self._group
        while group and self._looks < MAX_LOOKS and (found := self.roster.due(self.clock())) is not None:
            self._looks += 1
            group.create_task(self._look(found))

    async def _look(self, prompt_id: str) -> None:
        tracker = self.roster.get(prompt_id)
        try:
            ended = tracker is not None and tracker.announced
            event = await self._looker.look(prompt_id, ended=ended)
        except ServerError as error:
            self._unreachable = error
            changed = self.roster.failed(prompt_id, str(error), self.clock())
        else:
            self._unreachable = None
            if not _tells_all(event):
                self._catch_up(prompt_id)
            changed = self.roster.looked(prompt_id, event, self.clock())
        finally:
            self._looks -= 1
        if changed is not None:
            self._changed(changed)
        self._kicked.set()

    # -- who follows --

    def known(self, prompt_id: str) -> Tracker | None:
        """The tracker of a job that is followed, or has ended not long ago."""
        self._catch_up(prompt_id)
        return self.roster.get(prompt_id) or self._ended.get(prompt_id)

    def found_again(self, prompt_id: str) -> None:
        """The server knows this job: if it was called lost, that was wrong."""
        ended = self._ended.get(prompt_id)
        if ended is not None and ended.state is JobState.LOST:
            del self._ended[prompt_id]

    def attach(self, prompt_id: str) -> Tracker:
        """The tracker of a job; one that we do not know is looked at at once."""
        tracker = self.known(prompt_id)
        if tracker is None:
            tracker = Tracker(prompt_id, self._poll)
            tracker.look_at(self.clock())
            self.add(tracker)
            self._attached.add(prompt_id)
            self.roster.stranger(prompt_id)
            self._kick()
            if self._gone:
                self._lose(tracker)
        return tracker

    def is_gone(self) -> bool:
        """Whether the server's process has ended."""
        return self._gone

    def gone(self, gone: bool) -> None:
        """The server's process has ended, and with it its queue, which it keeps in memory: whatever it had of
        ours is lost, files that were not fetched too. Or it is back."""
        self._gone = gone
        if gone:
            self._ended.clear()
            for tracker in self.roster.trackers():
                on_its_way = tracker.state is JobState.SUBMITTED and tracker.prompt_id not in self._attached
                if not on_its_way:
                    self._lose(tracker)

    def _lose(self, tracker: Tracker) -> None:
        self._catch_up(tracker.prompt_id)
        tracker.forsake()
        for _ in range(ABSENCES):
            self.roster.feed(Absent(tracker.prompt_id), self.clock())
        self._changed(tracker)

    @contextmanager
    def holding(self, prompt_id: str) -> Iterator[None]:
        """Follow a job while the block lasts, also when nobody waits for it for a moment."""
        self.attach(prompt_id)
        with self._waiting(prompt_id, self._ends):
            yield

    def forget(self, prompt_id: str) -> None:
        """Follow a job no longer. Who still waits for it asks the server anew."""
        self.roster.drop(prompt_id)
        self._attached.discard(prompt_id)
        self._unread.pop(prompt_id, None)
        self._wake(prompt_id)
        self.on_change()

    def add(self, tracker: Tracker) -> None:
        """Follow a job."""
        self._ended.pop(tracker.prompt_id, None)
        self._attached.discard(tracker.prompt_id)
        self.roster.add(tracker, self.clock())
        self._kick()

    def accepted(self, tracker: Tracker, number: float, *, counted: bool) -> None:
        """The server took the job; `counted`: the number is from its own counter, no priority of ours."""
        self.roster.accepted(tracker, number, self.clock(), counted=counted)
        self._kick()

    def found(self, tracker: Tracker, number: float) -> None:
        """The server has the job, as a look told: it may have got anywhere since, so look again at once."""
        tracker.look_at(self.clock())
        self.accepted(tracker, number, counted=False)

    def learn(self, tracker: Tracker, event: JobEvent) -> None:
        """Take in what a look of somebody else found."""
        self.roster.feed(event, self.clock())
        self._changed(tracker)

    def stopping(self, tracker: Tracker) -> None:
        """The server was asked to end the job: look until it has."""
        tracker.stop(self.clock())
        self.roster.plan(tracker)
        self._kick()

    async def until_running(self, prompt_id: str, timeout: float | None) -> Tracker:
        """Wait until it runs, or has ended, at most `timeout` seconds. Raises like `until_end`."""
        return await self._reached(prompt_id, JobState.RUNNING, self._starts, timeout)

    async def until_end(self, prompt_id: str, timeout: float | None) -> Tracker:
        """Wait for the end, at most `timeout` seconds. Raises JobTimeout, or ServerUnreachable after a long
        silence."""
        return await self._reached(prompt_id, None, self._ends, timeout)

    async def _reached(
        self, prompt_id: str, state: JobState | None, waiters: Waiters, timeout: float | None
    ) -> Tracker:
        """Wait until it has got to a `state`, None for the end."""
        tracker = self.attach(prompt_id)
        deadline = math.inf if timeout is None else self.clock() + timeout
        with self._waiting(prompt_id, waiters) as woken:
            while tracker.result is None and (state is None or tracker.state.rank < state.rank):
                await self._pause(woken, tracker, deadline)
                tracker = self.attach(prompt_id)  # it may have been sent, or refused, since
        return tracker

    async def views(self, prompt_id: str) -> AsyncGenerator[JobView, None]:
        """The latest view at each change, the terminal one last. Raises like `until_end`, by silence only."""
        tracker = self.attach(prompt_id)
        last: JobView | None = None
        with self._waiting(prompt_id, self._views) as woken:
            while last is None or last.result is None:
                tracker = self.attach(prompt_id)
                if (view := tracker.view()) != last:
                    last = view
                    yield view
                else:
                    await self._pause(woken, tracker, math.inf)

    @contextmanager
    def _waiting(self, prompt_id: str, waiters: Waiters) -> Iterator[asyncio.Event]:
        woken = asyncio.Event()
        waiters.setdefault(prompt_id, []).append(woken)
        try:
            yield woken
        finally:
            mine = waiters[prompt_id]
            mine.remove(woken)
            if not mine:
                del waiters[prompt_id]
            if prompt_id in self._attached and not self._watched(prompt_id):
                self.forget(prompt_id)

    def _watched(self, prompt_id: str) -> bool:
        return any(prompt_id in waiters for waiters in (self._views, self._starts, self._ends))

    async def _pause(self, woken: asyncio.Event, tracker: Tracker, deadline: float) -> None:
        """Until something changed. Raises when the deadline or the silence has passed, or the follower has
        died."""
        if self._task is not None and not self._task.done():
            await _set_by(woken, min(deadline, self._silence_ends()))
            woken.clear()
        if self._task is None or self._task.done():
            raise self._broken()
        now = self.clock()
        if tracker.result is None and now >= deadline:
            raise JobTimeout(
                f"job {tracker.prompt_id} has not ended in time; it goes on", view=tracker.view()
            )
        if tracker.result is None and now >= self._silence_ends():
            raise self._silent(tracker)

    def _broken(self) -> BaseException:
        failed = None if self._task is None or self._task.cancelled() else self._task.exception()
        if failed is None:
            return RuntimeError("the client was closed while a job was being followed")
        broken = RuntimeError("jobs are no longer followed, by a fault of comfyflow: open a new client")
        broken.__cause__ = failed
        return broken

    def _silence_ends(self) -> float:
        return math.inf if self._timeouts.silence is None else self.roster.moved + self._timeouts.silence

    def _silent(self, tracker: Tracker) -> Exception:
        error = self._unreachable  # a new error for each caller: the runner writes the job's id into it
        if isinstance(error, ServerUnreachable):
            return ServerUnreachable(str(error), method=error.method, url=error.url, sent=error.sent)
        if isinstance(error, BadAnswer):
            return BadAnswer(
                str(error), method=error.method, url=error.url, status=error.status, body=error.body
            )
        text = (
            f"job {tracker.prompt_id}: nothing has moved on the server for {self._timeouts.silence:g} s; "
            "unless a node, or somebody else's job before it, takes that long, its worker has died: "
            "restart ComfyUI"
        )
        return JobTimeout(text, view=tracker.view())

    # -- waking --

    def _changed(self, tracker: Tracker) -> None:
        prompt_id = tracker.prompt_id
        if tracker.result is not None:
            self.forget(prompt_id)
            self._ended[prompt_id] = tracker
            self.on_end(tracker)
            if len(self._ended) > KEPT:
                self._ended.popitem(last=False)
        elif tracker.state.rank >= JobState.RUNNING.rank:
            for woken in self._starts.get(prompt_id, ()):
                woken.set()
        for woken in self._views.get(prompt_id, ()):
            woken.set()
        if tracker.result is not None or tracker.due() is not None:
            self._kick()

    def _kick(self) -> None:
        """Wake the looker if it sleeps longer than it now should."""
        if self._looks >= MAX_LOOKS or self.roster.wake_at() >= self._until:
            return
        self._set_out()  # at once: somebody waits for the end that was just announced
        self._kicked.set()

    def _wake(self, prompt_id: str) -> None:
        for waiters in (self._views, self._starts, self._ends):
            for woken in waiters.get(prompt_id, ()):
                woken.set()

    def _wake_all(self) -> None:
        for prompt_id in {*self._views, *self._starts, *self._ends}:
            self._wake(prompt_id)


def _tells_all(event: JobEvent) -> bool:
    """Whether the history leaves nothing open: of what the cache gave, the socket may know more."""
    if not isinstance(event, Recorded):
        return False
    files, texts = event.result.outputs, event.result.texts
    return all(one.reused is False for one in files) and all(one.reused is False for one in texts)


async def _set_by(event: asyncio.Event, moment: float) -> None:
    """Wait for an event, which is set at that moment of the loop's clock, if not before. A cancel scope with
    a deadline takes several times as long, and every job needs some."""
    timer = None if math.isinf(moment) else asyncio.get_running_loop().call_at(moment, event.set)
    try:
        await event.wait()
    finally:
        if timer is not None:
            timer.cancel()
