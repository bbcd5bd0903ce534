"""/api/jobs: queue and history told in one shape (ComfyUI comfy_execution/jobs.py, 0.27.0; recordings 08,
23)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .engine import Engine, Item

STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
_PREVIEWABLE = ("images", "video", "audio", "3d")
_MODELS = (".glb", ".gltf", ".obj", ".fbx", ".stl", ".ply", ".splat", ".usdz")

Job = dict[str, Any]


class BadQuery(Exception):
    """A parameter that the list refuses with 400."""


def find(engine: Engine, prompt_id: str) -> Job | None:
    """One job in full: history is asked first, then what runs, then what waits (recording 17)."""
    entry = engine.history.get(prompt_id)
    if entry is not None:
        return _finished(prompt_id, entry) | _details(entry)
    if engine.running is not None and engine.running[1] == prompt_id:
        return _waiting(engine.running, "in_progress")
    return next((_waiting(item, "pending") for item in engine.pending if item[1] == prompt_id), None)


def listing(engine: Engine, query: Mapping[str, str]) -> dict[str, Any]:
    """One page of all jobs. BadQuery for a parameter it does not take."""
    jobs = [job for job in _all(engine) if _wanted(job, query)]
    _sort(jobs, query)
    offset = max(0, _number(query, "offset", 0, 0) or 0)
    limit = _number(query, "limit", None, 1)
    page = jobs[offset:] if limit is None else jobs[offset : offset + limit]
    more = offset + len(page) < len(jobs)
    return {
        "jobs": page,
        "pagination": {"offset": offset, "limit": limit, "total": len(jobs), "has_more": more},
    }


def _all(engine: Engine) -> Iterable[Job]:
    if engine.running is not None:
        yield _waiting(engine.running, "in_progress")
    yield from (_waiting(item, "pending") for item in sorted(engine.pending, key=lambda item: item[:2]))
    for prompt_id, entry in engine.history.items():
        yield _finished(prompt_id, entry)


def _wanted(job: Job, query: Mapping[str, str]) -> bool:
    states = [state.strip() for state in query.get("status", "").split(",") if state.strip()]
    unknown = [state for state in states if state not in STATES]
    if unknown:
        raise BadQuery(f"Invalid status value(s): {', '.join(unknown)}. Valid values: {', '.join(STATES)}")
    workflow_id = query.get("workflow_id")
    return (not states or job["status"] in states) and (
        not workflow_id or job.get("workflow_id") == workflow_id
    )


def _sort(jobs: list[Job], query: Mapping[str, str]) -> None:
    by, order = query.get("sort_by", "created_at"), query.get("sort_order", "desc")
    if by not in ("created_at", "execution_duration"):
        raise BadQuery("sort_by must be one of: created_at, execution_duration")
    if order not in ("asc", "desc"):
        raise BadQuery("sort_order must be one of: asc, desc")
    key = _created if by == "created_at" else _duration
    jobs.sort(key=key, reverse=order == "desc")


def _created(job: Job) -> tuple[int, float]:
    return job.get("create_time", 0), job["priority"]


def _duration(job: Job) -> float:
    return float(job.get("execution_end_time", 0) - job.get("execution_start_time", 0))


def _number(query: Mapping[str, str], name: str, default: int | None, least: int) -> int | None:
    text = query.get(name)
    if text is None:
        return default
    if not text.lstrip("-").isdigit():
        raise BadQuery(f"{name} must be an integer")
    if int(text) < least and name == "limit":
        raise BadQuery("limit must be a positive integer")
    return int(text)


def _known(job: Job) -> Job:
    return {key: value for key, value in job.items() if value is not None}


def _waiting(item: Item, status: str) -> Job:
    number, prompt_id, _, extra = item[:4]
    job = {
        "id": prompt_id,
        "status": status,
        "priority": number,
        "create_time": extra.get("create_time"),
        "outputs_count": 0,
        "workflow_id": _workflow_id(extra),
    }
    return _known(job)


def _workflow_id(extra: Mapping[str, Any]) -> Any:
    info = extra.get("extra_pnginfo")
    workflow = info.get("workflow") if isinstance(info, dict) else None
    return workflow.get("id") if isinstance(workflow, dict) else None


def _finished(prompt_id: str, entry: Mapping[str, Any]) -> Job:
    number, _, _, extra = entry["prompt"][:4]
    messages = dict(entry["status"]["messages"])
    ends = [
        messages[kind]
        for kind in ("execution_success", "execution_error", "execution_interrupted")
        if kind in messages
    ]
    count, preview = _summary(entry["outputs"])
    failed = "cancelled" if "execution_interrupted" in messages else "failed"
    return _known({
        "id": prompt_id,
        "status": "completed" if entry["status"]["status_str"] == "success" else failed,
        "priority": number,
        "create_time": extra.get("create_time"),
        "execution_start_time": messages.get("execution_start", {}).get("timestamp"),
        "execution_end_time": ends[0]["timestamp"] if ends else None,
        "execution_error": messages.get("execution_error"),
        "outputs_count": count,
        "preview_output": preview,
        "workflow_id": _workflow_id(extra),
    })  # fmt: skip


def _details(entry: Mapping[str, Any]) -> Job:
    outputs = {
        node_id: {key: _tidy(items) for key, items in ui.items()} for node_id, ui in entry["outputs"].items()
    }
    workflow = {"prompt": entry["prompt"][2], "extra_data": entry["prompt"][3]}
    return {"outputs": outputs, "execution_status": entry["status"], "workflow": workflow}


def _tidy(items: Any) -> Any:
    """Names of 3D files become entries, nulls are dropped."""
    if not isinstance(items, list | tuple):
        return items
    return [_as_file(item) for item in items if item is not None]


def _as_file(item: Any) -> Any:
    if not isinstance(item, str) or not item.lower().endswith(_MODELS):
        return item
    return {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}


def _summary(outputs: Mapping[str, Mapping[str, Any]]) -> tuple[int, Job | None]:
    """How many results there are, and the one to show: a saved file before a temporary one."""
    results = list(_results(outputs))
    shown = [
        {**entry, "nodeId": node_id, "mediaType": kind}
        for node_id, kind, entry in results
        if _previewable(kind, entry)
    ]
    saved = [entry for entry in shown if entry.get("type") == "output"]
    return len(results), next(iter(saved + shown), None)


def _results(outputs: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for node_id, ui in outputs.items():
        for kind, items in ui.items():
            listed = items if isinstance(items, list | tuple) and kind != "animated" else ()
            yield from ((node_id, kind, _as_file(item)) for item in listed if isinstance(item, dict | str))


def _previewable(kind: str, entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    name, form = str(entry.get("filename", "")).lower(), str(entry.get("format", ""))
    return kind in _PREVIEWABLE or form.startswith(("video/", "audio/")) or name.endswith(_MODELS)
