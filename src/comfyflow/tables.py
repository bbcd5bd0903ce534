"""What people and scripts are told about the record: rows of tables, documents for `--json`. Pure.

Moments are seconds since the Unix epoch here, ISO dates with a time zone in what comes out: that of this
machine for people, UTC in documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import size_text
from .report import printable

if TYPE_CHECKING:
    from .prune import Pruned
    from .queries import AssetRow, RunRow
    from .store import JobEvent

RUN_COLUMNS = ("CREATED", "STATE", "TOOK", "FILES", "ID", "PROMPT")
ASSET_COLUMNS = ("CREATED", "NODE", "SEED", "MODEL", "SIZE", "JOB", "FILE")
EVENT_COLUMNS = ("AT", "EVENT", "DETAIL")
MAX_CELL = 60  # characters of a text that people wrote, in a table

Cells = tuple[str, ...]

_NO_MOMENT = (ValueError, OverflowError, OSError)  # what datetime raises for infinity and for the year 12000


def aligned(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table as plain lines, the columns under each other; the last one is never cut or padded."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns) - 1)]
    return ["  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines]


def local_time(moment: float | None) -> str:
    """A moment (seconds since the Unix epoch) by this machine's clock, to the second; "-" for none, and for
    one that only PostgreSQL knows, such as infinity."""
    try:
        at = None if moment is None else datetime.fromtimestamp(moment, UTC).astimezone()
    except _NO_MOMENT:
        return "-"
    return "-" if at is None else at.isoformat(" ", "seconds")


def utc_time(moment: float | None) -> str | None:
    """A moment (seconds since the Unix epoch) as documents tell it; None for one that Python cannot tell."""
    try:
        return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()
    except _NO_MOMENT:
        return None


def shortened(text: object) -> str:
    """One line of at most MAX_CELL characters; "-" for blanks."""
    line = printable(text) or "-"
    return line if len(line) <= MAX_CELL else f"{line[: MAX_CELL - 3]}..."


def told(value: object) -> str | None:
    """A value of metadata for people; None for nothing, and for what is neither text nor number."""
    return (str(value) or None) if isinstance(value, str | int | float) else None


def took_text(seconds: float | None) -> str:
    """How long something took, in seconds."""
    return "-" if seconds is None or not isfinite(seconds) else f"{seconds:.1f} s"


# jobs


def run_cells(run: RunRow) -> Cells:
    """A job as a row of RUN_COLUMNS; for a failed one its message stands where the prompt would."""
    took = took_text(run.execution_seconds)
    text = shortened(run.error_message or run.prompt_text or "-")
    return (local_time(run.created_at), run.state.value, took, str(run.files), printable(run.prompt_id), text)


def run_document(run: RunRow) -> dict[str, Any]:
    """A job as `runs --json` tells it; `execution_seconds` by the server's clock."""
    return {
        "prompt_id": run.prompt_id,
        "state": run.state.value,
        "server": run.server,
        "client_id": run.client_id,
        "created_at": utc_time(run.created_at),
        "submitted_at": utc_time(run.submitted_at),
        "started_at": utc_time(run.started_at),
        "finished_at": utc_time(run.finished_at),
        "execution_seconds": run.execution_seconds,
        "prompt_text": run.prompt_text,
        "digest": run.digest,
        "files": run.files,
        "key": run.key,
        "attempt": run.attempt,
        "replaces": run.replaces,
        "replaced_by": run.replaced_by,
        "error": None
        if run.error_message is None
        else {"message": run.error_message, "node_id": run.error_node},
    }


def run_lines(
    run: RunRow, assets: Iterable[tuple[AssetRow, Path | str]], events: Iterable[JobEvent]
) -> Iterator[str]:
    """All about one job, for people."""
    facts = {
        "job": run.prompt_id,
        "state": run.state.value,
        "server": run.server,
        "created": local_time(run.created_at),
        "finished": local_time(run.finished_at),
        "took": took_text(run.execution_seconds),
        "workflow": run.digest or "-",
        "prompt": run.prompt_text or "-",
        "key": run.key,
        "replaces": run.replaces,
        "replaced by": run.replaced_by,
        "error": run.error_message,
    }
    for name, fact in facts.items():
        if fact is not None:
            yield f"{name}: {printable(fact)}"
    yield from (f"file: {printable(path)}" for _, path in assets)
    yield from (f"event: {' '.join(event_cells(event)).rstrip()}" for event in events)


# files


def asset_cells(asset: AssetRow, path: Path | str) -> Cells:
    """A file as a row of ASSET_COLUMNS."""
    known = {key: told(asset.metadata.get(key)) for key in ("node_title", "node_id", "seed", "model")}
    node = known["node_title"] or known["node_id"]
    made = (shortened(text or "") for text in (node, known["seed"], known["model"]))
    where = (printable(path) if asset.output_path else "") or "-"
    return (local_time(asset.created_at), *made, size_text(asset.size), printable(asset.prompt_id), where)


def asset_document(asset: AssetRow, path: Path | str) -> dict[str, Any]:
    """A file as `assets --json` tells it; `path` is where it is on this machine, or a URL; null when
    its row names no file."""
    return {
        "id": asset.id if isinstance(asset.id, int) else str(asset.id),
        "prompt_id": asset.prompt_id,
        "prompt_text": asset.prompt_text,
        "output_path": asset.output_path,
        "path": str(path) if asset.output_path else None,
        "metadata": dict(asset.metadata),
        "created_at": utc_time(asset.created_at),
    }


def caption(asset: AssetRow) -> str:
    """What stands under a thumbnail."""
    seed = told(asset.metadata.get("seed"))
    return printable(asset.prompt_text or asset.output_path if seed is None else f"seed {seed}")


# events


def event_cells(event: JobEvent) -> Cells:
    """A line of a job's log as a row of EVENT_COLUMNS."""
    detail = json.dumps(dict(event.detail), ensure_ascii=False, default=str) if event.detail else ""
    return (local_time(event.at), printable(event.kind), printable(detail))


def event_document(event: JobEvent) -> dict[str, Any]:
    """The same as `events --json` tells it."""
    return {"event": event.kind, "at": utc_time(event.at), "detail": dict(event.detail)}


# the database


def pruned_lines(pruned: Pruned, *, dry_run: bool) -> list[str]:
    """What `db prune` did, or would do."""
    said = "would go" if dry_run else "gone"
    counts = f"{pruned.runs} jobs, {pruned.events} events, {pruned.assets} rows of files"
    stored = f"{pruned.contents} stored contents, {pruned.files} files on disk ({size_text(pruned.bytes)})"
    return [f"{said}: {counts}, {stored}, {pruned.checks} checks of servers, {pruned.alerts} alerts"]
