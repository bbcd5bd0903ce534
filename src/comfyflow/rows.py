"""What is written about jobs <-> rows of the tables in sql/: pure.

A `Batch` is what one transaction writes. It is plain JSON, for the database and for the journal alike.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, assert_never
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from .errors import WorkflowInvalid
from .models import JobFailure, JobResult, JobState, OutputFile, OutputText, SavedFile
from .store import (
    RESUBMITTED,
    Accepted,
    Added,
    Advanced,
    Alive,
    Entry,
    Finished,
    Job,
    JobEvent,
    JobRecord,
    Kept,
    Moved,
    Worker,
    outcome_id,
)
from .traits import Traits, traits
from .workflow import Workflow

Row = Mapping[str, Any]

_CANONICAL = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # as uuid makes them
_UNSTORABLE = {0: "\ufffd"} | dict.fromkeys(
    range(0xD800, 0xE000), "\ufffd"
)  # by text and jsonb of PostgreSQL


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one transaction: at most one of `runs` for each job, in the order of their ids, so that two
    writers never wait for each other crosswise; `assets` and `events` in the order in which they came.

    `renames` are {"old", "new"} ids, `contents` files whose bytes are to be kept, `workers` those who live.
    """

    runs: tuple[Row, ...] = ()
    assets: tuple[Row, ...] = ()
    events: tuple[Row, ...] = ()
    renames: tuple[Row, ...] = ()
    contents: tuple[Row, ...] = ()
    workers: tuple[Row, ...] = ()

    def to_json(self) -> str:
        """One line of JSON that PostgreSQL takes as jsonb: no NUL, no lone surrogate, no NaN."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        try:
            text = _dumped(parts)
        except (ValueError, TypeError):  # a lone surrogate, or a key that is no text
            return _dumped(_storable(parts))
        # Looking at every value is for the few with a NUL; an escaped backslash may look like one.
        return _dumped(_storable(parts)) if "\\u0000" in text else text

    @classmethod
    def from_json(cls, text: str) -> Batch:
        """The batch again. Raises ValueError for what is none."""
        parts = json.loads(text)  # which keeps integers of any size
        try:
            return msgspec.convert(parts, cls)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error

    @property
    def ends(self) -> bool:
        """Whether the one outcome of a job is in it."""
        return any("outcome" in run for run in self.runs)

    def __bool__(self) -> bool:
        return bool(self.runs or self.contents or self.workers)


def batch_of(entries: Iterable[Entry]) -> Batch:
    """Fold entries, in their order, into rows: of states the highest stays, of outcomes the first."""
    fold = _Fold()
    for entry in entries:
        fold.take(entry)
    return Batch(
        tuple(fold.runs[prompt_id] for prompt_id in sorted(fold.runs)),
        tuple(fold.assets.values()),
        tuple(fold.events),
        tuple(fold.renames),
        tuple(fold.contents),
        tuple(fold.workers),
    )


def cleaned(text: str) -> str:
    """The text as PostgreSQL can hold it: NUL and lone surrogates become U+FFFD."""
    return text if text.isascii() and "\0" not in text else text.translate(_UNSTORABLE)


def output_path(path: PurePath, root: PurePath | None) -> tuple[str, str | None]:
    """How a file is named in generated_assets, and the folder that this is relative to.

    Relative with "/" where it lies inside `root` (an absolute path; None: its own folder), else as it is.
    """
    folder = path.parent if root is None else root
    try:
        return cleaned(path.relative_to(folder).as_posix()), cleaned(str(folder))
    except ValueError:
        return cleaned(path.as_posix()), None


def record_of(run: Row, assets: Sequence[Row], events: Sequence[Row]) -> JobRecord:
    """What the store's `get` gives, from rows with decoded JSON; `created_at` and `at` are seconds since the
    Unix epoch. Assets that others wrote, without size and sha256, are no files of the record."""
    state = JobState(run["state"])
    return JobRecord(
        job_of(run),
        state,
        _result_of(run, state) if state.terminal else None,
        tuple(saved for asset in assets if (saved := _saved_of(asset)) is not None),
        tuple(
            JobEvent(run["prompt_id"], event["kind"], event["detail"], float(event["at"]), event["event_id"])
            for event in events
        ),
        run.get("worker"),
    )


def job_of(run: Row) -> Job:
    """The job of a row of workflow_runs. A graph that no server would take is left out."""
    try:
        workflow = None if run["graph"] is None else Workflow.load(run["graph"], links=False)
    except WorkflowInvalid:
        workflow = None
    return Job(
        run["prompt_id"],
        workflow,
        run["client_id"] or "",
        run["server"],
        float(run["created_at"]),
        key=run.get("key"),
        replaces=run.get("replaces"),
        attempt=run.get("attempt") or 1,
        folder=run.get("folder"),
    )


def worker_row(worker: Worker, seconds: float) -> dict[str, Any]:
    """The row of run_workers; `seconds` from the moment of writing."""
    row = {"worker": worker.id, "host": worker.host, "pid": worker.pid, "place": worker.place}
    return row | {"seconds": seconds}


def kept_file(content: Row) -> SavedFile:
    """The file that one of `Batch.contents` stands for."""
    return msgspec.convert(content, SavedFile, dec_hook=_decoded)


@dataclass(slots=True)
class _Fold:
    """Rows in the making. The keys of `runs` are clean prompt ids, those of `assets` what is unique there."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    assets: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    renames: list[dict[str, str]] = field(default_factory=list)
    contents: list[dict[str, Any]] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)

    def take(self, entry: Entry) -> None:
        match entry:
            case Alive(worker, seconds):
                self.workers.append(worker_row(worker, seconds))
            case Added(job, worker):
                self._add(job, worker)
            case Moved(job):
                self._move(job)
            case Accepted(job, prompt_id, at):
                self._accept(cleaned(job.prompt_id), cleaned(prompt_id), at)
            case Advanced(prompt_id, state, at):
                self._advance(self._run(prompt_id), state, at)
            case JobEvent():
                self._log(entry)
            case Finished():
                self._finish(entry)
            case Kept(file):
                self.contents.append(msgspec.to_builtins(file, enc_hook=str))
            case _:
                assert_never(entry)

    def _move(self, job: Job) -> None:
        run = self._run(job.prompt_id)
        run |= {"moves": True, "client_id": job.client_id, "server": job.server}

    def _run(self, prompt_id: str) -> dict[str, Any]:
        key = cleaned(prompt_id)
        return self.runs.setdefault(key, {"prompt_id": key})

    def _add(self, job: Job, worker: str | None) -> None:
        run = self._run(job.prompt_id)
        run |= {"added": True, "client_id": job.client_id, "server": job.server, "created_at": job.created_at}
        more = {"worker": worker, "key": job.key, "replaces": job.replaces, "folder": job.folder}
        run |= {name: value for name, value in more.items() if value is not None}
        if job.attempt > 1:
            run["attempt"] = job.attempt
        if job.workflow is not None:
            graph, text = job.workflow.nodes, job.workflow.prompt_text
            run |= {"graph": graph, "digest": job.workflow.digest, "prompt_text": text}
        self._advance(run, JobState.CREATED, job.created_at)

    def _accept(self, old: str, new: str, at: float) -> None:
        if old != new:
            self._rename(old, new)
        run = self._run(new)
        run.setdefault("submitted_at", at)
        self._advance(run, JobState.QUEUED, at)

    def _rename(self, old: str, new: str) -> None:
        known = self.runs.pop(old, {})
        if not known.get("added"):  # else the database need never hear of the old id
            self.renames.append({"old": old, "new": new})
        self.runs[new] = {**known, **self.runs.get(new, {}), "prompt_id": new}
        for event in self.events:
            event["prompt_id"] = new if event["prompt_id"] == old else event["prompt_id"]

    def _advance(self, run: dict[str, Any], state: JobState, at: float) -> None:
        if state is JobState.RUNNING:
            run.setdefault("started_at", at)
        if "state" in run and state.rank <= JobState(run["state"]).rank:
            return
        run["state"] = state.value
        if state.terminal:
            run["finished_at"] = at

    def _log(self, event: JobEvent) -> None:
        run = self._run(event.prompt_id)
        row = {"event_id": _uuid(event.event_id), "prompt_id": run["prompt_id"], "kind": event.kind}
        row |= {"detail": dict(event.detail), "at": event.at}
        if event.kind == RESUBMITTED or event.event_id == outcome_id(event.prompt_id):
            row["ends"] = True  # it stands and falls with the outcome
        self.events.append(row)

    def _finish(self, finished: Finished) -> None:
        run, result = self._run(finished.job.prompt_id), finished.result
        self._advance(run, result.state, finished.at)
        if run["state"] != result.state:
            return
        if "outcome" not in run:
            run |= _outcome_of(result)
        for row in _asset_rows(finished):
            self.assets.setdefault((row["prompt_id"], row["output_path"]), row)


def _outcome_of(result: JobResult) -> dict[str, Any]:
    told = msgspec.to_builtins(result)
    failure = told.pop("failure") if result.state is not JobState.SUCCEEDED else None
    outcome = {name: told[name] for name in _OUTCOME}
    for output in outcome["outputs"]:
        del output["server"]  # that of the job
    return {"outcome": outcome, "error": failure, "execution_seconds": _seconds(result)}


_OUTCOME = ("outputs", "texts", "reused_nodes", "source", "started_at", "ended_at")


def _seconds(result: JobResult) -> float | None:
    """How long the server worked; its clock may have been set back meanwhile."""
    if result.started_at is None or result.ended_at is None or result.ended_at < result.started_at:
        return None
    return result.ended_at - result.started_at


def _asset_rows(finished: Finished) -> Iterator[dict[str, Any]]:
    job = finished.job
    if not finished.files:
        return
    text, digest = (job.workflow.prompt_text, job.workflow.digest) if job.workflow else (None, None)
    for file in finished.files:
        path, folder = output_path(file.path, finished.root)
        known = {
            "server": job.server,
            "client_id": job.client_id,
            "workflow_digest": digest,
            "folder": folder,
        }
        yield {
            "prompt_id": cleaned(job.prompt_id),
            "prompt_text": text,
            "output_path": path,
            "metadata": _metadata(file, job.workflow, known),
            "at": finished.at,
        }


def _metadata(file: SavedFile, workflow: Workflow | None, known: dict[str, Any]) -> dict[str, Any]:
    output = file.output
    made = Traits() if workflow is None else traits(workflow, output.node_id)
    every = {
        "node_id": output.node_id,
        "node_title": workflow.title(output.node_id) if workflow else None,
        "filename": output.filename,
        "subfolder": output.subfolder,
        "type": output.type,
        "key": output.key,
        "sha256": file.sha256,
        "bytes": file.size,
        "media_type": file.media_type,
        "width": file.width,
        "height": file.height,
        "duration": file.duration,
        "seed": made.seed,
        "model": made.model,
        "loras": list(made.loras) or None,
        "reused": output.reused,
    }
    return {key: value for key, value in (every | known).items() if value is not None}


def _uuid(text: str) -> str:
    if _CANONICAL.fullmatch(text):
        return text
    try:
        return str(UUID(text))
    except ValueError:  # a caller's own id
        return str(uuid5(NAMESPACE_URL, cleaned(f"comfyflow:event:{text}")))


def _result_of(run: Row, state: JobState) -> JobResult:
    told, error = run["outcome"] or {}, run["error"]
    return JobResult(
        run["prompt_id"],
        state,
        _read(told.get("outputs"), tuple[OutputFile, ...], ()),
        _read(told.get("texts"), tuple[OutputText, ...], ()),
        None if error is None else _read(error, JobFailure, JobFailure(json.dumps(error))),
        _read(told.get("started_at"), float | None, None),
        _read(told.get("ended_at"), float | None, None),
        _read(told.get("reused_nodes"), tuple[str, ...], ()),
        _read(told.get("source"), str, "history"),
    )


def _read(value: Any, kind: Any, default: Any) -> Any:
    """Others may have written these columns in a way of their own."""
    try:
        return msgspec.convert(value, kind, dec_hook=_decoded)
    except msgspec.ValidationError:
        return default


def _decoded(_: type, value: Any) -> Path:
    return Path(value)


def _saved_of(asset: Row) -> SavedFile | None:
    """None for what somebody else wrote in a way of their own."""
    metadata, path = asset["metadata"], PurePath(asset["output_path"] or "")
    items = metadata.items() if isinstance(metadata, Mapping) else ()
    known = {key: value for key, value in items if value is not None}
    output = {"node_id": "", "filename": path.name, "reused": None, **_some(known, *_OF_OUTPUT)}
    folder = known.get("folder", "")
    file = {"media_type": "", **_some(known, "sha256", "media_type", "width", "height", "duration")}
    file |= {"output": output, "size": known.get("bytes"), "path": str(PurePath(str(folder), path))}
    saved: SavedFile | None = _read(file, SavedFile, None)
    return saved


_OF_OUTPUT = ("node_id", "filename", "subfolder", "type", "key", "reused")


def _some(known: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: known[name] for name in names if name in known}


def _dumped(parts: Any) -> str:
    """NaN and infinity become null."""
    return msgspec.json.encode(parts, enc_hook=_builtin).decode()


def _builtin(value: Any) -> Any:
    """What callers put into the detail of an event need not be JSON."""
    return dict(value) if isinstance(value, Mapping) else str(value)


def _storable(value: Any) -> Any:
    match value:
        case str():
            return cleaned(value)
        case Mapping():
            return {cleaned(str(key)): _storable(part) for key, part in value.items()}
        case list() | tuple():
            return [_storable(part) for part in value]
        case float() if not math.isfinite(value):
            return None
    return value
