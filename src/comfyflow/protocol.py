"""ComfyUI's wire format, both ways: the only module that knows the server's JSON. Pure: bytes in, values out.

Sources: ComfyUI `server.py`, `execution.py`, `comfy_execution/progress.py` and `jobs.py` of 0.27.0, and the
recordings of 0.27.0 and 0.3.64 that the tests replay (cited as [nn], the scenario's number).

Frames never raise: what is not understood becomes `Unknown`. Answers to requests raise `Malformed`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from .events import (
    Announced,
    Blocked,
    Cached,
    Event,
    Flags,
    NodeOutput,
    NodesSeen,
    NodeStarted,
    NodeText,
    Previewed,
    Progressed,
    SeenPending,
    SeenRunning,
    Settled,
    Started,
    Status,
    Unknown,
)
from .models import JobFailure, JobResult, JobState, Preview, Submission
from .outputs import find_outputs

T = TypeVar("T")
MAX_STAMP = 1e16  # ms; a larger integer may not even fit into a float

PROGRESS = '{"type": "progress'  # how json.dumps begins "progress" and "progress_state"
# How it begins what tells only details of a running job. `"node": null` is no detail: it is the end.
DETAILS = ('{"type": "executing", "data": {"node": "', '{"type": "executed"', '{"type": "execution_cached"')


class Malformed(ValueError):
    """An answer that does not have ComfyUI's shape."""


# --- JSON --------------------------------------------------------------------------------------


def parse_json(body: bytes | str) -> Any:
    """Any JSON, ComfyUI's bare NaN and Infinity included [38]. Raises Malformed."""
    return _lenient(body, _ANY)


def _lenient(body: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode; on bare NaN/Infinity (which are not JSON, but ComfyUI writes them) go through the slow,
    tolerant parser."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Malformed(str(error)) from error
    except msgspec.DecodeError as error:
        return _tolerant(body, decoder, error)
    except (RecursionError, UnicodeError) as error:
        raise Malformed("nested too deeply" if isinstance(error, RecursionError) else "not UTF-8") from error


def _tolerant(body: bytes | str, decoder: msgspec.json.Decoder[T], strict: Exception) -> T:
    try:
        found = json.loads(body, parse_constant=_constant)
        # Lone surrogates are legal for ComfyUI's json module and for nobody else: they become "?".
        return decoder.decode(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise Malformed(str(strict)) from error


def _constant(token: str) -> None:
    """NaN and the infinities become null: no rule of ours depends on such a value."""


class _Envelope(msgspec.Struct):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _ExecInfo(msgspec.Struct):
    queue_remaining: int


class _StatusInfo(msgspec.Struct):
    exec_info: _ExecInfo


class _Status(msgspec.Struct):
    status: _StatusInfo
    sid: str | None = None


class _Job(msgspec.Struct):
    prompt_id: str


class _Cached(msgspec.Struct):
    prompt_id: str
    nodes: list[str] = []


class _Executing(msgspec.Struct):
    node: str | int | None
    display_node: str | int | None = None
    prompt_id: str = ""


class _Progress(msgspec.Struct):
    value: float
    max: float
    node: str | int | None = None
    prompt_id: str = ""


class _NodeState(msgspec.Struct):
    state: str
    value: float | None = None
    max: float | None = None
    display_node_id: str | int | None = None


class _ProgressState(msgspec.Struct):
    prompt_id: str
    nodes: dict[str, _NodeState]


class _Executed(msgspec.Struct):
    prompt_id: str
    node: str | int
    output: dict[str, Any] | None = None


class _End(msgspec.Struct):
    prompt_id: str
    node_id: str | int | None = None
    node_type: str | None = None
    exception_message: str | None = None
    exception_type: str | None = None
    traceback: list[str] | str | None = None
    timestamp: float | None = None


class _PreviewInfo(msgspec.Struct):
    prompt_id: str = ""
    node_id: str | int | None = None
    display_node_id: str | int | None = None
    image_type: str = "image/jpeg"


class _Item(msgspec.Struct, array_like=True):
    """The first two of five cells; the rest, which holds the whole graph, is skipped."""

    number: float
    prompt_id: str


class _Queue(msgspec.Struct):
    queue_running: list[_Item]
    queue_pending: list[_Item]


class _HistoryEntry(msgspec.Struct):
    """The prompt itself, which may be large, is left undecoded. Anything may stand in a value: nodes write
    there."""

    outputs: Any = None
    status: Any = None


class _JobDetail(msgspec.Struct):
    status: str
    priority: float | None = None


class _JobUnknown(msgspec.Struct):
    error: str


class _Submission(msgspec.Struct):
    prompt_id: str
    number: float = 0.0
    node_errors: dict[str, Any] | list[Any] | None = None


class _Refusal(msgspec.Struct):
    error: dict[str, Any] | str
    node_errors: dict[str, Any] | list[Any] | None = None


class _Uploaded(msgspec.Struct):
    name: str
    subfolder: str = ""
    type: str = "input"


_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_QUEUE = msgspec.json.Decoder(_Queue)
_HISTORY = msgspec.json.Decoder(dict[str, _HistoryEntry])
_JOB_DETAIL = msgspec.json.Decoder(_JobDetail)
_JOB_UNKNOWN = msgspec.json.Decoder(_JobUnknown)
_SUBMISSION = msgspec.json.Decoder(_Submission)
_REFUSAL = msgspec.json.Decoder(_Refusal)
_UPLOADED = msgspec.json.Decoder(_Uploaded)


# --- socket frames -----------------------------------------------------------------------------


def parse_frame(frame: bytes | str) -> Event:
    """One WebSocket frame, text or binary, as an event. Never raises: nothing a server sends may stop the
    reader."""
    if not isinstance(frame, str):
        return _binary(bytes(frame))
    try:
        envelope = _lenient(frame, _ENVELOPE)
    except Malformed:
        return Unknown("")
    reader = _READERS.get(envelope.type)
    if reader is None:
        return Unknown(envelope.type)
    try:
        return reader(bytes(envelope.data))
    except Malformed:
        return Unknown(envelope.type)


def feature_flags() -> str:
    """The first message of a connection: asks for previews that name their prompt (server.py, since
    0.3.45)."""
    return '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'


def _status(data: bytes) -> Event:
    found = _lenient(data, _STATUS)
    return Status(found.status.exec_info.queue_remaining, found.sid)


def _started(data: bytes) -> Event:
    return Started(_lenient(data, _JOB).prompt_id)


def _cached(data: bytes) -> Event:
    found = _lenient(data, _CACHED)
    return Cached(found.prompt_id, tuple(found.nodes))


def _executing(data: bytes) -> Event:
    found = _lenient(data, _EXECUTING)
    if found.node is None:
        return Settled(found.prompt_id)
    node = found.node if found.display_node is None else found.display_node
    itself = str(found.node) if found.prompt_id else None  # else it may be of another job
    return NodeStarted(found.prompt_id, str(node), itself)


def _progress(data: bytes) -> Event:
    found = _lenient(data, _PROGRESS)
    return Progressed(found.prompt_id, "" if found.node is None else str(found.node), found.value, found.max)


def _progress_state(data: bytes) -> Event:
    found = _lenient(data, _PROGRESS_STATE)
    done = sum(node.state == "finished" for node in found.nodes.values())
    running = next(((k, n) for k, n in reversed(found.nodes.items()) if n.state == "running"), None)
    if running is None:
        return NodesSeen(found.prompt_id, done)
    key, node = running
    shown = key if node.display_node_id is None else str(node.display_node_id)
    return NodesSeen(found.prompt_id, done, shown, node.value, node.max)


def _executed(data: bytes) -> Event:
    found = _lenient(data, _EXECUTED)
    files, texts = find_outputs({str(found.node): found.output})
    return NodeOutput(found.prompt_id, files, texts)


def _end(state: JobState) -> Callable[[bytes], Event]:
    def read(data: bytes) -> Event:
        found = _lenient(data, _END)
        at = None if found.timestamp is None else found.timestamp / 1000
        if state is JobState.SUCCEEDED:
            return Announced(found.prompt_id, state, at=at)
        failure = _failure(found)
        if failure.exception_type == "ExecutionBlocked":
            return Blocked(found.prompt_id, failure.node_id, failure.message)
        return Announced(found.prompt_id, state, failure, at)

    return read


def _failure(found: _End) -> JobFailure:
    trace = [found.traceback] if isinstance(found.traceback, str) else found.traceback or []
    return JobFailure(
        message=(found.exception_message or "interrupted").strip(),
        node_id=None if found.node_id is None else str(found.node_id),
        node_type=found.node_type,
        exception_type=found.exception_type,
        traceback=tuple(trace),
    )


def _flags(data: bytes) -> Event:
    return Flags()


_STATUS = msgspec.json.Decoder(_Status)
_STATUS_INFO = msgspec.json.Decoder(_StatusInfo)
_JOB = msgspec.json.Decoder(_Job)
_CACHED = msgspec.json.Decoder(_Cached)
_EXECUTING = msgspec.json.Decoder(_Executing)
_PROGRESS = msgspec.json.Decoder(_Progress)
_PROGRESS_STATE = msgspec.json.Decoder(_ProgressState)
_EXECUTED = msgspec.json.Decoder(_Executed)
_END = msgspec.json.Decoder(_End)
_PREVIEW_INFO = msgspec.json.Decoder(_PreviewInfo)

_READERS: dict[str, Callable[[bytes], Event]] = {
    "status": _status,
    "feature_flags": _flags,
    "execution_start": _started,
    "execution_cached": _cached,
    "executing": _executing,
    "progress": _progress,
    "progress_state": _progress_state,
    "executed": _executed,
    "execution_success": _end(JobState.SUCCEEDED),
    "execution_error": _end(JobState.FAILED),
    "execution_interrupted": _end(JobState.CANCELLED),
}


_IMAGE_FORMATS = {1: "image/jpeg", 2: "image/png"}


def _binary(frame: bytes) -> Event:
    """All integers are unsigned, 32 bits, big-endian (server.py `encode_bytes`, protocol.py
    `BinaryEventTypes`)."""
    try:
        kind, second = struct.unpack_from(">II", frame)
    except struct.error:
        return Unknown("binary")
    if kind == 1 and second in _IMAGE_FORMATS:
        return Previewed("", Preview(frame[8:], _IMAGE_FORMATS[second]))
    if kind == 3 and 8 + second <= len(frame):
        parts = frame[8 : 8 + second], frame[8 + second :]
        return NodeText(*(part.decode("utf-8", "replace") for part in parts))
    if kind == 4 and 8 + second <= len(frame):
        return _preview_with_metadata(frame[8 : 8 + second], frame[8 + second :])
    return Unknown("binary")


def _preview_with_metadata(header: bytes, image: bytes) -> Event:
    try:
        info = _lenient(header, _PREVIEW_INFO)
    except Malformed:
        return Unknown("binary")
    node = info.node_id if info.display_node_id is None else info.display_node_id
    return Previewed(info.prompt_id, Preview(image, info.image_type, None if node is None else str(node)))


# --- answers -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueItem:
    """One job of anybody in the server's queue."""

    prompt_id: str
    number: float


@dataclass(frozen=True, slots=True)
class QueueView:
    """The queue in the order in which the server will run it. At most one job is running."""

    running: tuple[QueueItem, ...]
    pending: tuple[QueueItem, ...]

    def find(self, prompt_id: str) -> SeenRunning | SeenPending | None:
        """Where the job stands, or None."""
        for item in self.running:
            if item.prompt_id == prompt_id:
                return SeenRunning(prompt_id, item.number)
        for ahead, item in enumerate(self.pending, len(self.running)):
            if item.prompt_id == prompt_id:
                return SeenPending(prompt_id, item.number, ahead)
        return None


def parse_queue(body: bytes) -> QueueView:
    """GET /queue. Pending items come in heap order: the server runs them by (number, prompt id)."""
    found = _lenient(body, _QUEUE)
    pending = sorted(_items(found.queue_pending), key=lambda item: (item.number, item.prompt_id))
    return QueueView(tuple(_items(found.queue_running)), tuple(pending))


def _items(rows: list[_Item]) -> Iterator[QueueItem]:
    return (QueueItem(row.prompt_id, row.number) for row in rows)


EXTRA = "comfyflow"  # our own place in extra_data, which comes back in queue and history


@dataclass(frozen=True, slots=True)
class SentPrompt:
    """What somebody sent, as the server keeps it: the graph, and the client that was named with it.

    `digest` is that of the workflow as we sent it, under an idempotency key: the server rewrites the graph.
    `outputs` are the ids of the output nodes that it runs: those that were found valid.
    """

    graph: Mapping[str, Any]
    client_id: str = ""
    digest: str | None = None
    outputs: tuple[str, ...] | None = None


def parse_sent(body: bytes, prompt_id: str) -> SentPrompt | None:
    """A job's own prompt, from GET /history/{id} or from GET /queue; None when it is not in there.

    Both hold rows of number, id, graph, extra data and outputs (execution.py, 0.3.64 and 0.27.0; recordings
    01 and 05).
    """
    found = _mapping(parse_json(body))
    queued = [*_rows(found.get("queue_running")), *_rows(found.get("queue_pending"))]
    for row in [_mapping(found.get(prompt_id)).get("prompt"), *queued]:
        match row:
            case [_, str(known), dict(graph), extra, *rest] if known == prompt_id:
                more = _mapping(extra)
                digest = _mapping(more.get(EXTRA)).get("digest")
                outputs = tuple(map(str, rest[0])) if rest and isinstance(rest[0], list) else None
                return SentPrompt(graph, str(more.get("client_id") or ""), digest or None, outputs)
    return None


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def parse_remaining(body: bytes) -> int:
    """GET /prompt: how many jobs the server has, the running one included."""
    return _lenient(body, _STATUS_INFO).exec_info.queue_remaining


def parse_submission(body: bytes) -> Submission:
    """POST /prompt, status 200. `node_errors` may be there all the same: that part of the graph will not run
    [07]."""
    found = _lenient(body, _SUBMISSION)
    return Submission(found.prompt_id, found.number, _mapping(found.node_errors))


def parse_refusal(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """POST /prompt, status 400: (error, node_errors)."""
    found = _lenient(body, _REFUSAL)
    error = {"type": "", "message": found.error} if isinstance(found.error, str) else found.error
    return error, _mapping(found.node_errors)


def _mapping(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def parse_upload(body: bytes) -> tuple[str, str, str]:
    """POST /upload/image: (name, subfolder, type). The name may differ from the one that was sent [19]."""
    found = _lenient(body, _UPLOADED)
    return found.name, found.subfolder, found.type


def parse_job(body: bytes, prompt_id: str) -> SeenPending | SeenRunning | None:
    """GET /api/jobs/{id}, status 200: where a living job stands, None once it ended (the history tells
    how). A word that we do not know means that it lives: words differ between servers."""
    found = _lenient(body, _JOB_DETAIL)
    if found.status in _JOB_ENDS:
        return None
    kind = SeenRunning if found.status == "in_progress" else SeenPending
    return kind(prompt_id, found.priority)


_JOB_ENDS = frozenset({"completed", "failed", "cancelled"})


def is_unknown_job(body: bytes) -> bool:
    """GET /api/jobs/{id}, status 404: whether ComfyUI itself says so, `{"error": "Job not found"}` [23]; a
    gateway whose server is away may answer 404 with JSON of its own."""
    try:
        return _JOB_UNKNOWN.decode(body).error == "Job not found"
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def parse_history(body: bytes, prompt_id: str) -> JobResult | None:
    """GET /history/{id}: how the job ended, None while it has not (the answer is then `200 {}`)."""
    entry = _lenient(body, _HISTORY).get(prompt_id)
    return None if entry is None else _result(prompt_id, entry)


def _result(prompt_id: str, entry: _HistoryEntry) -> JobResult:
    status = _mapping(entry.status)
    messages = {item[0]: item[1] for item in _list(status.get("messages")) if _is_message(item)}
    state, failure = _verdict(status.get("status_str"), messages)
    told = messages.get("execution_cached")
    cached = None if told is None else frozenset(str(node) for node in _list(told.get("nodes")))
    files, texts = find_outputs(_mapping(entry.outputs), cached)
    return JobResult(
        prompt_id,
        state,
        files,
        texts,
        failure,
        started_at=_moment(messages.get("execution_start")),
        ended_at=next((_moment(messages[name]) for name in _ENDS if name in messages), None),
        reused_nodes=tuple(sorted(cached or ())),
    )


def _is_message(item: Any) -> bool:
    return (
        isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], dict)
    )


_ENDS = ("execution_interrupted", "execution_error", "execution_success")


def _verdict(status: Any, messages: Mapping[str, dict[str, Any]]) -> tuple[JobState, JobFailure | None]:
    """The messages decide: an interrupted job says `status_str` "error" too, and a late cycle says
    "success"."""
    for name, state in (("execution_interrupted", JobState.CANCELLED), ("execution_error", JobState.FAILED)):
        if (data := messages.get(name)) is not None and data.get("exception_type") != "ExecutionBlocked":
            return state, _failure_of(data)
    if status == "error":
        return JobState.FAILED, JobFailure("the server recorded an error without saying which")
    return JobState.SUCCEEDED, None


def _failure_of(data: Mapping[str, Any]) -> JobFailure:
    """From a history message, whose parts may have any shape."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    node = data.get("node_id")
    return JobFailure(
        message=texts.get("exception_message", "interrupted").strip(),
        node_id=str(node) if isinstance(node, str | int) else None,
        node_type=texts.get("node_type"),
        exception_type=texts.get("exception_type"),
        traceback=tuple(str(line) for line in _list(data.get("traceback"))),
    )


def _moment(data: Mapping[str, Any] | None) -> float | None:
    stamp = (data or {}).get("timestamp")
    return stamp / 1000 if isinstance(stamp, int | float) and abs(stamp) < MAX_STAMP else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
