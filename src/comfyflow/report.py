"""What people and scripts are told: lines for a terminal, documents for `--json`. Pure.

Texts of a server (titles, messages, texts made by nodes) may hold anything, so what goes to a terminal passes
`printable`. The keys of the documents are a contract.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

from . import errors
from .exits import exit_code
from .models import JobResult, JobState, JobView, OutputText, SavedFile
from .workflow import Workflow

if TYPE_CHECKING:
    from .faults import Fault, Undecided

MAX_DEPTH = 100  # levels of a document; what a server nests deeper is left out
MAX_DETAIL = 300  # characters of one complaint of the server; a list of models can be long
_SAID_IN_DETAILS = {"value_not_in_list", "custom_validation_failed"}  # their message adds nothing
STATES = {
    JobState.CREATED: "sending",
    JobState.SUBMITTED: "accepted",
    JobState.QUEUED: "waiting",
    JobState.RUNNING: "running",
    JobState.FINISHING: "finishing",
    JobState.SUCCEEDED: "done",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.LOST: "lost",
}


def printable(text: object) -> str:
    """One line of visible characters; control characters cannot steer the terminal."""
    flat = " ".join(str(text).split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in flat)


def dump(document: Mapping[str, Any], *, in_line: bool = False) -> str:
    """A document as strict JSON in ASCII: NaN and infinities (ComfyUI writes them) become null."""
    return json.dumps(_strict(document), indent=None if in_line else 2, allow_nan=False, default=str)


# views


def view_line(view: JobView, *, steps: bool = True) -> str:
    """Where a job stands, in a few words; `steps` adds the numbers that change many times a second."""
    words = [STATES[view.state]]
    if view.state is JobState.QUEUED and view.queue_position:
        words.append(f"{view.queue_position} ahead")
    if view.state is JobState.RUNNING and (view.node_title or view.node_id):
        words.append(printable(view.node_title or view.node_id))
    if steps and view.state is JobState.RUNNING and view.step is not None and view.steps:
        words.append(f"step {view.step:g}/{view.steps:g}")
    if view.note:
        words.append(printable(view.note))
    return ", ".join(words)


def fraction(view: JobView) -> float | None:
    """How much of the job is done, 0 to 1; None when the server has not told."""
    if view.state.terminal or view.state is JobState.FINISHING:
        return 1.0
    if not view.nodes_total:
        return None
    part = (view.step or 0.0) / view.steps if view.steps else 0.0
    return max(0.0, min(1.0, ((view.nodes_done or 0) + min(part, 1.0)) / view.nodes_total))


def view_document(view: JobView) -> dict[str, Any]:
    """A view as `status --json` tells it."""
    return {
        "prompt_id": view.prompt_id,
        "state": view.state.value,
        "queue_position": view.queue_position,
        "node_id": view.node_id,
        "node_title": view.node_title,
        "step": view.step,
        "steps": view.steps,
        "nodes_done": view.nodes_done,
        "nodes_total": view.nodes_total,
        "note": view.note,
    }


# results


def text_lines(texts: Iterable[OutputText], workflow: Workflow | None = None) -> Iterator[str]:
    """Texts that nodes made, each line behind `# "title" (id): `, so that it cannot pass for a path."""
    for text in texts:
        head = f"# {_label(text.node_id, workflow)}: "
        for line in text.text.splitlines() or [""]:
            yield head + printable(line)


def file_document(saved: SavedFile, workflow: Workflow | None = None) -> dict[str, Any]:
    """A saved file as the documents tell it: `path` absolute, `size` in bytes, `duration` in seconds."""
    output = saved.output
    return {
        "path": str(saved.path),
        "node_id": output.node_id,
        "node_title": workflow.title(output.node_id) if workflow else None,
        "filename": output.filename,
        "subfolder": output.subfolder,
        "type": output.type,
        "sha256": saved.sha256,
        "size": saved.size,
        "media_type": saved.media_type,
        "width": saved.width,
        "height": saved.height,
        "duration": saved.duration,
        "reused": output.reused,
    }


def result_document(
    result: JobResult, files: Iterable[SavedFile], workflow: Workflow | None = None
) -> dict[str, Any]:
    """The end of a job: its state, its files and its texts."""
    return {
        "prompt_id": result.prompt_id,
        "state": result.state.value,
        "files": [file_document(saved, workflow) for saved in files],
        "texts": [_text_document(text, workflow) for text in result.texts],
        "error": None,
    }


def execution_seconds(result: JobResult) -> float | None:
    """How long the server worked on the job, by its own clock, in seconds; None when it has not told."""
    if result.started_at is None or result.ended_at is None:
        return None
    return round(result.ended_at - result.started_at, 3)


def _text_document(text: OutputText, workflow: Workflow | None) -> dict[str, Any]:
    title = workflow.title(text.node_id) if workflow else None
    parts = {"node_id": text.node_id, "node_title": title, "key": text.key}
    return {**parts, "text": text.text, "reused": text.reused}


# errors


def error_lines(
    error: BaseException, workflow: Workflow | None = None, *, verbose: bool = False
) -> list[str]:
    """One sentence that says what to do, then where; `verbose` adds causes and the server's traceback."""
    lines = [printable(error) or type(error).__name__]
    match error:
        case errors.WorkflowFaulty():
            lines += [printable(line) for line in _fault_lines(error)]
        case errors.WorkflowRejected():
            lines += node_error_lines(error.node_errors, workflow)
        case errors.JobFailed():
            lines += _traceback_lines(error.traceback, verbose=verbose)
    return lines + ([f"  caused by {cause}" for cause in _causes(error)] if verbose else [])


def node_error_lines(node_errors: Mapping[str, Any], workflow: Workflow | None = None) -> list[str]:
    """ComfyUI's `node_errors` for people: `Node "Load Checkpoint" (4): ckpt_name: 'x' not in ['y']`.

    The shape is that of recording 07 (0.27.0); what has another shape is told as it is.
    """
    lines = []
    for node_id, entry in node_errors.items():
        known = entry if isinstance(entry, Mapping) else {}
        label = _label(node_id, workflow, known.get("class_type"))
        complaints = known.get("errors")
        for complaint in complaints if isinstance(complaints, list) else [entry]:
            lines.append(f"Node {label}: {_complaint(complaint)}")
    return list(dict.fromkeys(lines))


def error_document(error: BaseException, workflow: Workflow | None = None) -> dict[str, Any]:
    """An error as `--json` tells it: its class, its sentence, the exit code, and what it knows besides."""
    document: dict[str, Any] = {
        "type": type(error).__name__,
        "message": str(error),
        "exit_code": int(exit_code(error)),
    }
    match error:
        case errors.WorkflowInvalid():
            document |= {"path": error.path, "reason": error.reason}
            if isinstance(error, errors.WorkflowFaulty):
                document |= _faults_document(error)
        case errors.ServerError():
            document |= {"method": error.method, "url": error.url} | _answer_document(error, workflow)
        case errors.JobError():
            document |= {"prompt_id": error.prompt_id} | _failure_document(error, workflow)
        case errors.DownloadError():
            document |= {"filename": error.output.filename, "node_id": error.output.node_id}
    causes = list(_causes(error))
    return document | ({"causes": causes} if causes else {})


def finding_document(found: Fault | Undecided) -> dict[str, Any]:
    """One fault, or one thing that only the server can decide, as `--json` tells it."""
    return {key: value for key, value in asdict(found).items() if value is not None}


def _fault_lines(error: errors.WorkflowFaulty) -> Iterator[str]:
    """Each fault once; what is wrong on some of the servers only, with these."""
    servers = error.servers or {"": error.faults}
    where: dict[str, list[str]] = {}
    for url, faults in servers.items():
        for message in dict.fromkeys(fault.message for fault in faults):
            where.setdefault(message, []).append(url)
    for message, urls in where.items():
        yield _upper(message) if len(urls) == len(servers) else f"{', '.join(urls)}: {message}"


def _faults_document(error: errors.WorkflowFaulty) -> dict[str, Any]:
    """The faults, and those of each server where several were asked."""
    servers = {url: [finding_document(fault) for fault in faults] for url, faults in error.servers.items()}
    faults = {"faults": [finding_document(fault) for fault in error.faults]}
    return faults | ({"servers": servers} if servers else {})


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _answer_document(error: errors.ServerError, workflow: Workflow | None) -> dict[str, Any]:
    match error:
        case errors.BadAnswer():
            return {"status": error.status, "body": error.body}
        case errors.WorkflowRejected():
            lines = node_error_lines(error.node_errors, workflow)
            missing = {"missing": error.missing} if isinstance(error, errors.NotRunnable) else {}
            told = {"error": error.error, "node_errors": error.node_errors, "node_messages": lines}
            return told | missing
    return {}


def _failure_document(error: errors.JobError, workflow: Workflow | None) -> dict[str, Any]:
    if not isinstance(error, errors.JobFailed):
        return {}
    failure = error.view.result.failure if error.view.result else None
    return {
        "node_id": error.node_id,
        "node_title": workflow.title(error.node_id) if workflow and error.node_id else None,
        "node_type": error.node_type,
        "exception_type": failure.exception_type if failure else None,
        "exception_message": error.message,
        "traceback": list(error.traceback),
    }


def _label(node_id: str, workflow: Workflow | None, class_type: object = None) -> str:
    if workflow is not None:
        return printable(workflow.label(node_id))
    return printable(f'"{class_type}" ({node_id})' if class_type else node_id)


def _complaint(complaint: Any) -> str:
    if not isinstance(complaint, Mapping):
        return _short(complaint)
    extra = complaint.get("extra_info")
    name = str(extra.get("input_name") or "") if isinstance(extra, Mapping) else ""
    details = str(complaint.get("details") or "").strip()
    if name and details.startswith(name):
        details = details.removeprefix(name).lstrip(" :,-")
    message = str(complaint.get("message") or "")
    said = [details or message] if complaint.get("type") in _SAID_IN_DETAILS else [message, details]
    return _short(": ".join(part for part in (name, *said) if part) or complaint.get("type"))


def _short(text: object) -> str:
    line = printable(text)
    return line if len(line) <= MAX_DETAIL else f"{line[: MAX_DETAIL - 3]}..."


def _traceback_lines(traceback: tuple[str, ...], *, verbose: bool) -> list[str]:
    """Where it failed: the last frame that the server tells, or all of them."""
    frames = [line for frame in traceback for line in frame.splitlines() if line.strip()]
    if verbose:
        return ["  the server's traceback:", *(_indented(line) for line in frames)] if frames else []
    places = [line for line in frames if line.lstrip().startswith("File ")]
    return [f"  in {printable(places[-1])}"] if places else []


def _indented(line: str) -> str:
    depth = len(line) - len(line.lstrip())
    return "  " + " " * depth + printable(line)


def _causes(error: BaseException) -> Iterator[str]:
    cause = error.__cause__
    while cause is not None:
        yield printable(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__


def _strict(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        return "..."
    match value:
        case Mapping():
            return {str(key): _strict(part, depth + 1) for key, part in value.items()}
        case list() | tuple():
            return [_strict(part, depth + 1) for part in value]
        case float() if not isfinite(value):
            return None
    return value


# the server


def health_document(url: str, stats: Mapping[str, Any], running: int, waiting: int) -> dict[str, Any]:
    """What `health` tells, from GET /system_stats (recording 22) and the queue. Sizes in bytes."""
    system = _mapping(stats.get("system"))
    listed = stats.get("devices")
    devices = [_mapping(device) for device in listed] if isinstance(listed, list) else []
    keys = ("name", "type", "vram_total", "vram_free")
    return {
        "server": url,
        "version": system.get("comfyui_version"),
        "python": system.get("python_version"),
        "pytorch": system.get("pytorch_version"),
        "devices": [{key: device.get(key) for key in keys} for device in devices],
        "running": running,
        "waiting": waiting,
    }


def health_lines(document: Mapping[str, Any]) -> list[str]:
    """The same for people; memory in GiB."""
    devices = [f"device: {device['name']}, {memory_text(device)} free" for device in document["devices"]]
    lines = [
        f"server: {document['server']}",
        f"version: ComfyUI {document['version'] or 'unknown'}",
        *devices,
        f"queue: {document['running']} running, {document['waiting']} waiting",
    ]
    return [printable(line) for line in lines]


def memory_text(device: Mapping[str, Any]) -> str:
    """The memory of a device that is free, of what it has."""
    return f"{_gib(device['vram_free'])} of {_gib(device['vram_total'])}"


def _gib(size: object) -> str:
    return f"{size / 2**30:.1f} GiB" if isinstance(size, int | float) else "?"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
