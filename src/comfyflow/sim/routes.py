"""ComfyUI's HTTP routes (server.py, 0.27.0; recordings 07, 11, 19, 20, 22, 23, 29)."""

from __future__ import annotations

import json
import mimetypes
import platform
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from . import jobs, media
from .catalog import CATALOG, CHECKPOINTS, EXTENSIONS, MODEL_FOLDERS
from .engine import Engine
from .folders import BadName, Folders, Stored
from .pictures import Picture, jpeg, png, png_size
from .profiles import Profile
from .validation import bad_prompt_id, no_prompt, validate

Route = tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]
_TYPES = {".webp": "image/webp", ".glb": "model/gltf-binary", ".opus": "audio/ogg", ".flac": "audio/flac"}
_DANGEROUS = (
    "text/html", "text/javascript", "application/javascript", "text/css",
    "image/svg+xml", "text/xml", "application/xml",
)  # fmt: skip


class Trouble(Exception):
    """What ends in aiohttp's 500: "Server got itself in trouble"."""


def trouble() -> web.Response:
    """The 500 of a server that fell over a request. The connection closes after it."""
    response = web.Response(status=500, text="500 Internal Server Error\n\nServer got itself in trouble")
    response.force_close()
    return response


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Trouble
    return value


class Routes:
    """The handlers of one server."""

    def __init__(
        self, engine: Engine, folders: Folders, *, any_model: bool, aliases: Mapping[str, Any]
    ) -> None:
        self._engine, self._folders, self._any_model, self._aliases = engine, folders, any_model, aliases

    @property
    def _profile(self) -> Profile:
        return self._engine.profile

    def plain(self) -> list[Route]:
        """Routes that exist with and without /api."""
        return [
            ("GET", "/prompt", self._remaining),
            ("POST", "/prompt", self._submit),
            ("GET", "/queue", self._queue),
            ("POST", "/queue", self._change_queue),
            ("GET", "/history", self._history),
            ("POST", "/history", self._change_history),
            ("GET", "/history/{prompt_id}", self._history_of),
            ("POST", "/interrupt", self._interrupt),
            ("POST", "/free", self._free),
            ("GET", "/view", self._view),
            ("GET", "/view_metadata/{folder}", self._view_metadata),
            ("POST", "/upload/image", self._upload),
            ("POST", "/upload/mask", self._upload_mask),
            ("GET", "/object_info", self._object_info),
            ("GET", "/object_info/{name}", self._object_info),
            ("GET", "/system_stats", self._system_stats),
            ("GET", "/models", self._models),
            ("GET", "/models/{folder}", self._models_of),
            ("GET", "/embeddings", self._embeddings),
            ("GET", "/extensions", self._extensions),
            *([] if self._profile.features is None else [("GET", "/features", self._features)]),
        ]

    def prefixed(self) -> list[Route]:
        """Routes that exist with /api only."""
        if not self._profile.jobs:
            return []
        return [
            ("GET", "/jobs", self._jobs),
            ("POST", "/jobs/cancel", self._cancel_jobs),
            ("GET", "/jobs/{prompt_id}", self._job),
            ("POST", "/jobs/{prompt_id}/cancel", self._cancel_job),
        ]

    # Prompts

    async def _remaining(self, request: web.Request) -> web.Response:
        return web.json_response({"exec_info": {"queue_remaining": self._engine.remaining}})

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        number = self._priority(body)
        if not isinstance(body, dict) or "prompt" not in body:
            return web.json_response({"error": no_prompt(), "node_errors": {}}, status=400)
        prompt_id = self._prompt_id(body)
        if prompt_id is None:
            return web.json_response({"error": bad_prompt_id(), "node_errors": {}}, status=400)
        graph = self._graph(body["prompt"])
        targets = body.get("partial_execution_targets") if self._profile.partial_targets else None
        verdict = validate(graph, self._profile, targets, files=self._has_file, any_model=self._any_model)
        extra = body.get("extra_data", {})
        if "client_id" in body:
            extra = {**_object(extra), "client_id": body["client_id"]}
        if verdict.error is not None:
            return web.json_response({"error": verdict.error, "node_errors": verdict.node_errors}, status=400)
        item = self._engine.submission(number, prompt_id, graph, _object(extra), list(verdict.outputs))
        try:
            self._engine.put(item)
        except TypeError as error:
            raise Trouble from error
        return web.json_response(
            {"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors}
        )

    def _has_file(self, reference: str) -> bool:
        return self._folders.loaded(reference).is_file()

    def _priority(self, body: Any) -> float:
        if body is None or isinstance(body, int | float):
            raise Trouble
        if not isinstance(body, dict) or "number" not in body:
            return self._engine.next_number(isinstance(body, dict) and bool(body.get("front")))
        try:
            return float(body["number"])
        except (TypeError, ValueError) as error:
            raise Trouble from error

    def _prompt_id(self, body: Mapping[str, Any]) -> str | None:
        """The id to use, None for one that is refused."""
        rule = self._profile.prompt_ids
        if rule == "none" or "prompt_id" not in body:
            return str(uuid.uuid4())
        asked = body["prompt_id"]
        if rule == "any":
            return str(asked)
        if asked is None:
            return str(uuid.uuid4())
        return asked if isinstance(asked, str) and _is_canonical(asked) else None

    def _graph(self, prompt: Any) -> dict[str, Any]:
        """The graph, or the 500 that other values cause (07): in newer versions already while nodes are
        replaced."""
        if isinstance(prompt, dict):
            sound = all(isinstance(node, dict) for node in prompt.values())
            if sound or not self._profile.replaces_nodes:
                return prompt
        elif prompt == [] and not self._profile.replaces_nodes:
            return {}
        raise Trouble

    async def _queue(self, request: web.Request) -> web.Response:
        running = self._engine.running
        pending = [item[:5] for item in self._engine.pending]  # in the heap's order
        return web.json_response(
            {"queue_running": [running[:5]] if running else [], "queue_pending": pending}
        )

    async def _change_queue(self, request: web.Request) -> web.Response:
        body = _object(await request.json())
        if body.get("clear"):
            self._engine.wipe()
        for prompt_id in body.get("delete", []):
            self._engine.remove(prompt_id)
        return web.Response()

    async def _interrupt(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except json.JSONDecodeError:
            body = {}
        prompt_id = _object(body).get("prompt_id")
        if not prompt_id or not self._profile.targeted_interrupt or self._is_running(prompt_id):
            self._engine.interrupted = True
        return web.Response()

    def _is_running(self, prompt_id: Any) -> bool:
        return self._engine.running is not None and self._engine.running[1] == prompt_id

    async def _free(self, request: web.Request) -> web.Response:
        if _object(await request.json()).get("free_memory"):
            self._engine.free()
        return web.Response()

    # History

    async def _history(self, request: web.Request) -> web.Response:
        history = self._engine.history
        try:
            most = int(request.query["max_items"]) if "max_items" in request.query else None
            offset = int(request.query.get("offset", -1))
        except ValueError as error:
            raise Trouble from error
        if most is None:
            return web.json_response(dict(list(history.items())[max(offset, 0) :]))
        start = offset if offset >= 0 else max(0, len(history) - most)
        return web.json_response(dict(list(history.items())[start : start + most]))

    async def _history_of(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        entry = self._engine.history.get(prompt_id)
        return web.json_response({} if entry is None else {prompt_id: entry})

    async def _change_history(self, request: web.Request) -> web.Response:
        body = _object(await request.json())
        if body.get("clear"):
            self._engine.history.clear()
        for prompt_id in body.get("delete", []):
            self._engine.history.pop(prompt_id, None)
        return web.Response()

    # Jobs

    async def _jobs(self, request: web.Request) -> web.Response:
        try:
            return web.json_response(jobs.listing(self._engine, request.query))
        except jobs.BadQuery as error:
            return _error(str(error))

    async def _job(self, request: web.Request) -> web.Response:
        job = jobs.find(self._engine, request.match_info["prompt_id"])
        return _error("Job not found", 404) if job is None else web.json_response(job)

    async def _cancel_job(self, request: web.Request) -> web.Response:
        return web.json_response({"cancelled": self._cancel(request.match_info["prompt_id"])})

    async def _cancel_jobs(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except json.JSONDecodeError:
            return _error("Request body must be valid JSON")
        ids = body.get("job_ids") if isinstance(body, dict) else None
        if not isinstance(ids, list):
            return _error("job_ids must be a list")
        wrong = [each for each in ids if not (isinstance(each, str) and _is_canonical(each))]
        if wrong:
            return web.json_response(
                {"error": "job_ids contains invalid id(s)", "invalid_ids": wrong}, status=400
            )
        dequeued = [self._engine.remove(prompt_id) for prompt_id in ids]
        running = any(map(self._is_running, ids))
        if running:
            self._engine.interrupted = True
            self._engine.tell_status()  # recording 23 has one status more than prompts taken out
        return web.json_response({"cancelled": running or any(dequeued)})

    def _cancel(self, prompt_id: str) -> bool:
        if self._is_running(prompt_id):
            self._engine.interrupted = True
            return True
        return self._engine.remove(prompt_id)

    # Files

    async def _view(self, request: web.Request) -> web.StreamResponse:
        filename = request.query.get("filename", "")
        if filename.startswith("blake3:") and self._profile.jobs:
            raise Trouble  # looked up among the assets, which are switched off
        alias = self._aliases.get(filename)
        try:
            path = alias or self._folders.viewed(request.query)
        except BadName as error:
            return web.Response(status=error.status)
        headers = {
            "Content-Disposition": f'filename="{path.name}"',
            "Content-Type": _media_type(path.suffix.lower()),
        }
        if "preview" in request.query or request.query.get("channel") in ("rgb", "a"):
            return _rendered(path.read_bytes(), request.query, headers)
        if self._profile.nosniff:
            headers["X-Content-Type-Options"] = "nosniff"
        if headers["Content-Type"] in _DANGEROUS:
            headers["Content-Type"] = "application/octet-stream"
            headers["Content-Disposition"] = f'attachment; filename="{path.name}"'
        return Stored(path, headers)

    async def _view_metadata(self, request: web.Request) -> web.Response:
        return web.Response(status=404)  # there are no model files

    async def _upload(self, request: web.Request) -> web.Response:
        return self._store(await request.post())

    async def _upload_mask(self, request: web.Request) -> web.Response:
        form = await request.post()
        if not isinstance(form.get("original_ref"), str):
            raise Trouble
        return self._store(form)  # the alpha channel is not copied: there is no imaging library here

    def _store(self, form: Mapping[str, Any]) -> web.Response:
        part, kind, subfolder = (
            form.get("image"),
            str(form.get("type", "input")),
            str(form.get("subfolder", "")),
        )
        if kind not in ("input", "temp", "output"):
            raise Trouble
        if not isinstance(part, web.FileField) or not part.filename:
            return web.Response(status=400)
        try:
            name = self._folders.upload(
                part.filename,
                part.file.read(),
                kind=kind,
                subfolder=subfolder,
                overwrite=form.get("overwrite") in ("true", "1"),
            )
        except BadName as error:
            return web.Response(status=error.status)
        return web.json_response({"name": name, "subfolder": subfolder, "type": kind})

    # What the server is

    async def _object_info(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        if name is not None and name not in CATALOG:
            return web.json_response({})
        wanted = dict(CATALOG) if name is None else {name: CATALOG[name]}
        if "LoadImage" in wanted:
            image = [self._folders.uploads(), {"image_upload": True}]
            wanted["LoadImage"] = wanted["LoadImage"] | {"input": {"required": {"image": image}}}
        return web.json_response(wanted)

    async def _system_stats(self, request: web.Request) -> web.Response:
        memory = 16 << 30
        device = {"name": "cpu", "type": "cpu", "index": None, "vram_total": memory, "vram_free": memory,
                  "torch_vram_total": memory, "torch_vram_free": memory}  # fmt: skip
        system = {
            "os": platform.system().lower(),
            "ram_total": memory,
            "ram_free": memory // 2,
            "comfyui_version": self._profile.version,
            "python_version": platform.python_version(),
            "pytorch_version": "0.0.0+sim",
            "embedded_python": False,
            "argv": ["main.py", "--cpu"],
        }
        return web.json_response({"system": system, "devices": [device]})

    async def _features(self, request: web.Request) -> web.Response:
        return web.json_response(self._profile.features)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(MODEL_FOLDERS)

    async def _models_of(self, request: web.Request) -> web.Response:
        folder = request.match_info["folder"]
        if folder not in MODEL_FOLDERS:
            return web.Response(status=404)
        return web.json_response(CHECKPOINTS if folder == "checkpoints" else [])

    async def _embeddings(self, request: web.Request) -> web.Response:
        return web.json_response([])

    async def _extensions(self, request: web.Request) -> web.Response:
        return web.json_response(EXTENSIONS)


async def missing(request: web.Request) -> web.StreamResponse:
    """The answer to a GET that no route takes: an empty 404 in chunks (recording 22)."""
    response = web.StreamResponse(status=404, headers={"Content-Type": "application/octet-stream"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write_eof()
    return response


def _is_canonical(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _error(text: str, status: int = 400) -> web.Response:
    return web.json_response({"error": text}, status=status)


def _media_type(suffix: str) -> str:
    return _TYPES.get(suffix) or mimetypes.guess_type("x" + suffix)[0] or "application/octet-stream"


def _rendered(data: bytes, query: Mapping[str, str], headers: dict[str, str]) -> web.Response:
    """`preview=` and `channel=`: another picture of the same size, made on the spot: no ETag, no ranges
    (20)."""
    width, height = png_size(data) or (64, 64)
    picture = Picture(1, 1).sized(width, height)
    wanted = "png" if "preview" not in query else query["preview"].partition(";")[0]
    if wanted == "png" and "channel" in query:
        return web.Response(body=png(picture), headers=headers | {"Content-Type": "image/png"})
    if wanted == "jpeg":
        return web.Response(body=jpeg(picture), headers=headers | {"Content-Type": "image/jpeg"})
    return web.Response(body=media.webp([picture], 1), headers=headers | {"Content-Type": "image/webp"})
