"""One job's state machine. Pure: events and the time go in, the state and the moment of the next look come
out.

Two rules keep it simple, whatever is lost, repeated or out of order: a state only climbs, and what the
history records overrules everything. All moments are seconds of one monotonic clock that the caller reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from . import events as e
from .models import (
    JobFailure,
    JobResult,
    JobState,
    JobView,
    OutputFile,
    OutputText,
    PollSchedule,
    Preview,
)
from .outputs import is_reused

Output = TypeVar("Output", OutputFile, OutputText)

CLIMBS: dict[type[e.JobEvent], JobState] = {
    e.Accepted: JobState.QUEUED,  # POST /prompt answers only after the job is in the queue
    e.SeenPending: JobState.QUEUED,
    e.Started: JobState.RUNNING,
    e.Cached: JobState.RUNNING,
    e.NodeStarted: JobState.RUNNING,
    e.Progressed: JobState.RUNNING,
    e.NodesSeen: JobState.RUNNING,
    e.NodeOutput: JobState.RUNNING,
    e.Previewed: JobState.RUNNING,
    e.Blocked: JobState.RUNNING,
    e.SeenRunning: JobState.RUNNING,
    e.Announced: JobState.FINISHING,
    e.Settled: JobState.FINISHING,
}
"""Event -> the state that it proves. `Recorded` ends a job and `Absent` may end it, so they are not here."""

ABSENCES = 2  # looks in a row that must find a job nowhere before it is lost: no single look is a verdict
GRACE = 2.0  # s from an announced end to the look, for when the last frame of all (`Settled`) does not come
RETRY_FIRST, RETRY_CEILING = 0.05, 5.0  # s between looks for a history entry that must come any moment


class Tracker:
    """Follow one job. `titles` maps node ids of its graph to what a person calls them."""

    __slots__ = (
        "_absences", "_announced", "_at", "_cached", "_done", "_found", "_poll", "_preview", "_ran", "_retry",
        "_step", "_steps", "ahead", "floor", "node_id", "note", "number", "prompt_id", "result", "sockets",
        "state", "stopping", "titles",
    )  # fmt: skip

    def __init__(self, prompt_id: str, poll: PollSchedule, titles: Mapping[str, str] | None = None) -> None:
        self.prompt_id, self.state, self._poll = prompt_id, JobState.SUBMITTED, poll
        self.number: float | None = None  # place in the server's order: lowest runs first
        self.floor = float("-inf")  # highest number known when it was sent; one below that tells of a restart
        self.sockets = 0  # how many sockets there had been when it was sent
        self.ahead: int | None = None  # jobs before it
        self.result: JobResult | None = None
        self.node_id: str | None = None
        self.note: str | None = None
        self.stopping = False
        self.titles: Mapping[str, str] = titles or {}
        self._at: float | None = None
        self._absences, self._retry = 0, RETRY_FIRST
        self._announced: e.Announced | None = None
        self._found: tuple[e.NodeOutput, ...] = ()
        self._cached: frozenset[str] | None = None  # nodes that the server has answered from its cache
        self._ran: set[str] = set()
        self._step: float | None = None
        self._steps: float | None = None
        self._done: int | None = None
        self._preview: Preview | None = None

    def due(self) -> float | None:
        """When a look at this very job is due, None while it may wait for its turn among the others."""
        return None if self.result else self._at

    @property
    def announced(self) -> bool:
        """The socket told of an end, so the history is the place to ask."""
        return self.state is JobState.FINISHING

    def look_at(self, moment: float) -> None:
        """Ask for a look no later than `moment`."""
        self._at = moment if self._at is None else min(self._at, moment)

    def put_off(self, moment: float) -> None:
        """Look at `moment`, not before: the last look brought no answer."""
        self._at = moment

    def stop(self, now: float) -> None:
        """We asked the server to end it: a job that then leaves no trace was cancelled, not lost."""
        self.stopping = True
        self.look_at(now)

    def forsake(self) -> None:
        """Its server's process has ended: files that were not fetched ended with it, so that a success is
        none."""
        told = self._announced is not None and self._announced.state is JobState.SUCCEEDED
        if told and any(found.outputs for found in self._found):
            self._announced = None

    def at_most(self, remaining: int) -> bool:
        """The server has `remaining` jobs. One that waits has at most the others ahead; True when that is
        news."""
        waits = self.state is JobState.QUEUED
        if not waits or (self.ahead is not None and self.ahead < remaining):
            return False
        self.ahead = max(remaining - 1, 0)
        return True

    def feed(self, event: e.JobEvent, now: float) -> bool:
        """Take in one event. False when it changes nothing, because the end is known."""
        if self.result is not None:
            return False
        if isinstance(event, e.Recorded):
            self._settle(event.result)
        elif isinstance(event, e.Absent):
            self._absent(now)
        else:
            self._climb(event, now)
        return True

    def view(self) -> JobView:
        """What is known now."""
        node = self.node_id or ""
        root = node.partition(".")[0]  # a node that was expanded at run time: "5.0.0.1" came from "5" [27]
        titled = self.titles.get(node) or self.titles.get(root)
        return JobView(
            self.prompt_id,
            self.state,
            queue_position=self.ahead,
            node_id=self.node_id,
            node_title=titled,
            step=self._step,
            steps=self._steps,
            nodes_done=self._done,
            nodes_total=len(self.titles) or None,
            note=self.note,
            preview=self._preview,
            result=self.result,
        )

    def _climb(self, event: e.JobEvent, now: float) -> None:
        self._absences, self.note = 0, None
        proven = CLIMBS[type(event)]
        if proven.rank > self.state.rank:
            self.state = proven
        if proven.rank > JobState.QUEUED.rank:
            self.ahead = None
        if detail := _DETAILS.get(type(event)):
            detail(self, event)
        if proven is JobState.FINISHING:
            self.look_at(now if isinstance(event, e.Settled) else now + GRACE)
        elif isinstance(event, e.SeenPending | e.SeenRunning):
            self._looked(now)

    def _looked(self, now: float) -> None:
        """A look found it alive. After an announced end the history must follow: look again, ever less
        often. So it is for a job whose place in the order nobody told: it has no turn to wait for."""
        if self.state is JobState.FINISHING or self.stopping or self.number is None:
            self._at = now + self._retry
            self._retry = min(self._retry * 2, RETRY_CEILING)
        else:
            self._at = None

    def _absent(self, now: float) -> None:
        self._absences += 1
        if self._absences < ABSENCES:
            self._at = now + self._poll.first
        else:
            self._settle(self._vanished())

    def _vanished(self) -> JobResult:
        """The verdict on a job that is nowhere: what the socket told of its end counts, else it is lost."""
        if self._announced is not None:
            files = self._judged(file for found in self._found for file in found.outputs)
            texts = self._judged(text for found in self._found for text in found.texts)
            end = self._announced
            return JobResult(
                self.prompt_id, end.state, files, texts, end.failure, ended_at=end.at, source="events"
            )
        if self.stopping:
            return JobResult(self.prompt_id, JobState.CANCELLED, failure=JobFailure("cancelled on request"))
        return JobResult(self.prompt_id, JobState.LOST, failure=JobFailure(LOST))

    def _judged(self, outputs: Iterable[Output]) -> tuple[Output, ...]:
        """Outputs that the socket told of, with what it told of the cache."""
        return tuple(replace(output, reused=is_reused(output.node_id, self._cached)) for output in outputs)

    def _corrected(self, outputs: tuple[Output, ...]) -> tuple[Output, ...]:
        """A node that was seen to run has not given an old result. It may be listed as cached all the same:
        0.27.0 drops results from its cache while a job runs, when memory is short (`--cache-ram`)."""
        return tuple(
            replace(one, reused=False) if one.reused is not False and one.node_id in self._ran else one
            for one in outputs
        )

    def _settle(self, result: JobResult) -> None:
        outputs, texts = self._corrected(result.outputs), self._corrected(result.texts)
        if outputs != result.outputs or texts != result.texts:
            result = replace(result, outputs=outputs, texts=texts)
        self.state, self.result = result.state, result
        self.ahead = self.node_id = self.note = self._preview = self._announced = self._at = None
        self._step = self._steps = None
        self._found = ()
        self._ran.clear()

    def _place(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.Accepted | e.SeenPending | e.SeenRunning)
        self.number = self.number if event.number is None else event.number
        waits = self.state.rank <= JobState.QUEUED.rank  # an old look may tell of the queue later on
        if waits and isinstance(event, e.SeenPending) and event.ahead is not None:
            self.ahead = event.ahead

    def _on_node(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.NodeStarted)
        self._enter(event.node_id)
        if event.itself is not None:
            self._ran.add(event.itself)

    def _on_progress(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.Progressed)
        self._enter(event.node_id or self.node_id)
        self._step, self._steps = event.step, event.steps

    def _on_nodes(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.NodesSeen)
        self._done = max(event.done, self._done or 0)
        if event.node_id is not None:
            self._enter(event.node_id)
            self._step, self._steps = event.step, event.steps

    def _on_cached(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.Cached)
        self._done = max(len(event.nodes), self._done or 0)
        self._cached = frozenset(event.nodes)

    def _on_output(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.NodeOutput)
        if event not in self._found:
            self._found = (*self._found, event)

    def _on_preview(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.Previewed)
        self._preview = event.preview

    def _on_blocked(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.Blocked)
        self.note = f"node {self.titles.get(event.node_id or '', event.node_id)} was blocked: {event.message}"

    def _on_end(self, event: e.JobEvent) -> None:
        assert isinstance(event, e.Announced)
        self._announced = self._announced or event

    def _enter(self, node_id: str | None) -> None:
        if node_id != self.node_id:
            self.node_id, self._step, self._steps = node_id, None, None


LOST = "the server does not know it: it was restarted, or someone removed the job or cleared the history"

_DETAILS: dict[type[e.JobEvent], Callable[[Tracker, e.JobEvent], None]] = {
    e.Accepted: Tracker._place,
    e.SeenPending: Tracker._place,
    e.SeenRunning: Tracker._place,
    e.Cached: Tracker._on_cached,
    e.NodeStarted: Tracker._on_node,
    e.Progressed: Tracker._on_progress,
    e.NodesSeen: Tracker._on_nodes,
    e.NodeOutput: Tracker._on_output,
    e.Previewed: Tracker._on_preview,
    e.Blocked: Tracker._on_blocked,
    e.Announced: Tracker._on_end,
}
