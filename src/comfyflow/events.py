"""What a server says about jobs, as values. `protocol` makes them, `tracker` lives on them.

[nn] names the recorded scenario that shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .models import JobFailure, JobResult, JobState, OutputFile, OutputText, Preview


@dataclass(frozen=True, slots=True)
class Event:
    """Something the server said."""


@dataclass(frozen=True, slots=True)
class Status(Event):
    """Broadcast to every socket: jobs on the server, the running one included. `sid` only in a socket's first
    message."""

    queue_remaining: int
    sid: str | None = None


@dataclass(frozen=True, slots=True)
class Flags(Event):
    """The server's answer to our feature flags."""


@dataclass(frozen=True, slots=True)
class Unknown(Event):
    """A frame of a kind that we do not know, or that we cannot read."""

    type: str


@dataclass(frozen=True, slots=True)
class NodeText(Event):
    """Text of a node (binary type 3). It names no prompt and core nodes send it to everybody [26]."""

    node_id: str
    text: str


@dataclass(frozen=True, slots=True)
class JobEvent(Event):
    """An event of one job. An empty `prompt_id` stands for "whichever job is running"."""

    prompt_id: str


@dataclass(frozen=True, slots=True)
class Accepted(JobEvent):
    """POST /prompt was answered with 200; the server answers only after the job is queued."""

    number: float


@dataclass(frozen=True, slots=True)
class Started(JobEvent):
    """The worker took the job."""


@dataclass(frozen=True, slots=True)
class Cached(JobEvent):
    """Nodes that are answered from ComfyUI's cache."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeStarted(JobEvent):
    """A node began. After a reconnect it comes without prompt id [14].

    `node_id` is how the submitted graph names it, `itself` the node that runs, where that is certain.
    """

    node_id: str
    itself: str | None = None


@dataclass(frozen=True, slots=True)
class Progressed(JobEvent):
    """Steps within one node."""

    node_id: str
    step: float
    steps: float


@dataclass(frozen=True, slots=True)
class NodesSeen(JobEvent):
    """How many nodes are done, and one of those that run now with its steps."""

    done: int
    node_id: str | None = None
    step: float | None = None
    steps: float | None = None


@dataclass(frozen=True, slots=True)
class NodeOutput(JobEvent):
    """A node's files and texts."""

    outputs: tuple[OutputFile, ...] = ()
    texts: tuple[OutputText, ...] = ()


@dataclass(frozen=True, slots=True)
class Previewed(JobEvent):
    """A picture of the work so far. Legacy frames (binary type 1) name neither prompt nor node."""

    preview: Preview


@dataclass(frozen=True, slots=True)
class Blocked(JobEvent):
    """A node was blocked (`exception_type` "ExecutionBlocked"). Not an end: the job goes on and succeeds
    [09]."""

    node_id: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Announced(JobEvent):
    """execution_success, _error or _interrupted. It comes BEFORE the history entry exists."""

    state: JobState
    failure: JobFailure | None = None
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Settled(JobEvent):
    """`executing` with node null: the last frame of every job, sent AFTER the history entry exists."""


@dataclass(frozen=True, slots=True)
class SeenPending(JobEvent):
    """A look found the job waiting. `ahead` counts the jobs before it, None where the look cannot tell."""

    number: float | None = None
    ahead: int | None = None


@dataclass(frozen=True, slots=True)
class SeenRunning(JobEvent):
    """A look found the job running."""

    number: float | None = None


@dataclass(frozen=True, slots=True)
class Recorded(JobEvent):
    """The history tells how the job ended. This overrules everything else."""

    result: JobResult


@dataclass(frozen=True, slots=True)
class Absent(JobEvent):
    """A look found the job neither in the queue nor, after that, in the history."""
