"""Values that flow through the library: frozen, no I/O, no clock.

Times are float seconds, sizes int bytes. Moments (`*_at`) are seconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class JobState(StrEnum):
    """Where a job stands. A state only ever climbs; the four last ones are ends."""

    CREATED = "created"  # known here, not yet accepted by a server
    SUBMITTED = "submitted"  # accepted (or on its way)
    QUEUED = "queued"  # seen waiting in the server's queue
    RUNNING = "running"
    FINISHING = "finishing"  # an end was announced, the history does not tell it yet
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # the server knows nothing of it any more

    @property
    def rank(self) -> int:
        """Height on the ladder; every end has the same, highest one."""
        return _RANKS[self]

    @property
    def terminal(self) -> bool:
        """Whether this is an end."""
        return self in TERMINAL


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.LOST})
_RANKS = {state: min(rank, 5) for rank, state in enumerate(JobState)}


class Ambiguous(StrEnum):
    """What to do about a job of which nobody can tell whether the server has read it.

    Each looks for the job first, and waits while the server does not answer.
    """

    WAIT = "wait"  # send again only when the server can neither have it nor still be about to read it
    RESEND = "resend"  # send again also when that cannot be known: maybe twice
    FAIL = "fail"  # never send again: maybe not at all


class OnLost(StrEnum):
    """What to do about a job that was accepted and that the server has forgotten."""

    FAIL = "fail"
    RESUBMIT = "resubmit"  # send it again under a new prompt id


class OnCached(StrEnum):
    """What to do about files that ComfyUI did not make anew, but took from its cache of an earlier job."""

    ACCEPT = "accept"
    FORCE = "force"  # have the nodes that give files run again
    ERROR = "error"


class MediaKind(StrEnum):
    """What a person would call a file."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    MODEL = "3d"
    OTHER = "other"


_KINDS = {
    MediaKind.IMAGE: "png jpg jpeg webp gif apng bmp tif tiff exr hdr avif jxl svg",
    MediaKind.VIDEO: "mp4 webm mkv mov avi m4v",
    MediaKind.AUDIO: "flac mp3 opus ogg wav m4a aac",
    MediaKind.MODEL: "glb gltf obj fbx stl ply splat spz ksplat usdz",
}
_KIND_BY_SUFFIX = {suffix: kind for kind, names in _KINDS.items() for suffix in names.split()}


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file that a node reports. `type` is ComfyUI's folder: "output", "temp" or "input"."""

    node_id: str
    filename: str
    subfolder: str = ""
    type: str = "output"
    key: str = "images"  # the list it stood in; community nodes use any name
    reused: bool | None = False  # an earlier job made it, ComfyUI took it from its cache; None: not known
    server: str | None = field(default=None, compare=False, repr=False)  # whose it is, from a pool

    @property
    def kind(self) -> MediaKind:
        """Kind by the name's suffix, as ComfyUI itself decides it for /view."""
        return _KIND_BY_SUFFIX.get(self.filename.rpartition(".")[2].lower(), MediaKind.OTHER)


@dataclass(frozen=True, slots=True)
class OutputText:
    """A text that a node reports as a value, without a file."""

    node_id: str
    key: str
    text: str
    reused: bool | None = False


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job did not succeed, as the server told it."""

    message: str
    node_id: str | None = None
    node_type: str | None = None
    exception_type: str | None = None
    traceback: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended. `source` is "history", or "events" when the history was gone but the socket had told
    the end."""

    prompt_id: str
    state: JobState
    outputs: tuple[OutputFile, ...] = ()
    texts: tuple[OutputText, ...] = ()
    failure: JobFailure | None = None
    started_at: float | None = None  # by the server's clock
    ended_at: float | None = None  # by the server's clock
    reused_nodes: tuple[str, ...] = ()
    source: str = "history"


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture of the work so far, as the server sent it (JPEG or PNG bytes)."""

    data: bytes
    media_type: str
    node_id: str | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """One job as it is known now. Only the latest view matters: views are never queued up."""

    prompt_id: str
    state: JobState
    queue_position: int | None = None  # jobs ahead of it on the server, the running one included
    node_id: str | None = None  # as the submitted graph names it
    node_title: str | None = None
    step: float | None = None  # of `steps`, within the node
    steps: float | None = None
    nodes_done: int | None = None
    nodes_total: int | None = None
    note: str | None = None  # what a person should know, e.g. that the server does not answer
    preview: Preview | None = None
    result: JobResult | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """The server's answer to POST /prompt. `number` is its place in the order (lowest runs first)."""

    prompt_id: str
    number: float = 0.0
    node_errors: Mapping[str, Any] = field(default_factory=dict)
    answered: bool = True  # False: the answer was lost, and the job found by a look


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A verified file on this machine. `path` is absolute; `size` in bytes; `duration` in seconds."""

    output: OutputFile
    path: Path
    size: int
    sha256: str
    media_type: str
    width: int | None = None
    height: int | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file in a folder of the server. Use `reference` as the value of an input such as LoadImage's
    `image`."""

    name: str
    subfolder: str = ""
    type: str = "input"

    @property
    def reference(self) -> str:
        """The spelling that ComfyUI's nodes take: `subfolder/name [type]`, without the default parts."""
        path = f"{self.subfolder}/{self.name}" if self.subfolder else self.name
        return path if self.type == "input" else f"{path} [{self.type}]"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Four budgets in seconds, each on its own; None switches one off.

    connect: to open a connection. answer: without a byte of a request's answer.
    silence: while following a job, without any sign that the server moves on (a dead worker, a dead server).
    total: for one job from the call of `wait` to its end.
    """

    connect: float | None = 10.0
    answer: float | None = 60.0
    silence: float | None = 1800.0
    total: float | None = None


@dataclass(frozen=True, slots=True)
class PoolServer:
    """A server of a pool. It gets a share of the jobs by its `weight`, none with weight 0, and at most
    `ahead` of ours wait in its own queue (None: as many as the pool says)."""

    url: str = field(repr=False)  # may hold a password
    weight: float = 1.0
    ahead: int | None = None


@dataclass(frozen=True, slots=True)
class PollSchedule:
    """When to look at a server, in seconds.

    Without a socket the waits are `first`, then times `factor`, up to `ceiling`; they start again when
    something moves. With a talking socket the server is looked at only `stall_after` seconds after its last
    sign of life, and a socket that says nothing for `deaf_after` seconds after a submit is replaced.
    """

    first: float = 0.25
    factor: float = 2.0
    ceiling: float = 20.0
    stall_after: float = 15.0
    deaf_after: float = 10.0
