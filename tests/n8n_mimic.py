"""Plays a template of n8n/ in plain Node (n8n_mimic.js): its wires, expressions and Code nodes are real, what
is outside answers as a test says, and time passes only while it waits."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from n8n_lint import parser
from plain_node import node_program

TESTS = Path(__file__).parent
_PATIENCE = 120  # seconds

# Answers of what is outside: a list of turns, of which the last one goes on. A turn is one item for each that
# came in, or a list of items, or AWAY. "%name%" stands for that field of the job.
Script = dict[str, Sequence[Any]]
AWAY = "away"  # what n8n does when a node fails outside of its own handling: it hands on the input

RECORD = {
    "recorded": True,
    "prompt_id": "%prompt_id%",
    "client_id": "%client_id%",
    "server": "%server%",
    "state": "created",
    "digest": "%digest%",
    "attempt": 1,
    "mine": True,
    "sent": False,
    "error": None,
    "outcome": None,
    "execution_seconds": None,
    "assets": None,
}

# A file as generated_assets has it: its metadata with the id and the path.
ASSET = {
    "id": 5,
    "output_path": "x.png",
    "node_id": "9",
    "filename": "x.png",
    "subfolder": "",
    "type": "output",
    "key": "images",
    "bytes": 7,
    "media_type": "image/png",
    "sha256": "cd" * 32,
    "folder": "/data/shared",
}


@dataclass(frozen=True, slots=True)
class Played:
    """What happened: `answers` are {status, body}, `failed` is the text of Stop And Error, `waits` are
    seconds, `calls` the evaluated parameters of nodes that go outside, `outputs` the items of each run."""

    answers: list[dict[str, Any]]
    failed: str | None
    waits: list[float]
    calls: dict[str, list[dict[str, Any]]]
    outputs: dict[str, list[list[dict[str, Any]]]]
    steps: list[str]
    statics: dict[str, Any]
    broken: str | None

    @property
    def answer(self) -> tuple[int, dict[str, Any]]:
        """What the caller gets: status and body. n8n drops what is answered later."""
        assert self.broken is None, self.broken
        return self.answers[0]["status"], self.answers[0]["body"]

    def batches(self, node: str) -> list[dict[str, Any]]:
        """What a node gave PostgreSQL to write."""
        return [json.loads(item["json"]["batch"]) for run in self.outputs.get(node, []) for item in run]

    def posted(self) -> list[str]:
        """The bodies of POST /prompt, as text."""
        return [call["body"] for call in self.calls.get("POST /prompt", [])]


def play(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Played]:
    """Play them all, in one Node process."""
    folder = TESTS.parent / "n8n"
    names = {str(case["template"]) for case in cases.values()}
    templates = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    given = {"modules": str(parser()), "templates": templates, "cases": list(cases.values())}
    done = subprocess.run(
        [node_program(), TESTS / "n8n_mimic.js"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: Played(**told) for name, told in zip(cases, json.loads(done.stdout), strict=True)}


# --- what is outside ----------------------------------------------------------------------------------


def row(**fields: Any) -> dict[str, Any]:
    """A row that says how the job stands."""
    return {"json": RECORD | fields}


def got(value: Any, status: int = 200) -> dict[str, Any]:
    """The answer to a GET: JSON text, or the text that is given."""
    text = value if isinstance(value, str) else json.dumps(value)
    return {"json": {"statusCode": status, "headers": {}, "data": text}}


def took(value: Any, status: int = 200) -> dict[str, Any]:
    """The answer to a POST: n8n reads JSON, and hands on other text as `data`."""
    what = {"data": value} if isinstance(value, str) else {"body": value}
    return {"json": {"statusCode": status, "headers": {}, **what}}


def no_answer(code: str, message: str = "") -> dict[str, Any]:
    """What comes out of a request without an answer."""
    return {"json": {"error": {"message": message or code, "code": code, "name": "NodeApiError"}}}


def file(
    size: int = 4, *, told: int | None = None, status: int = 200, mime: str = "image/png"
) -> dict[str, Any]:
    """A file that came, of `size` bytes; the server said that it has `told` bytes."""
    headers = {"content-length": str(size if told is None else told), "content-type": mime}
    binary = {"data": {"mimeType": mime, "bytes": size, "data": "filesystem-v2"}}
    return {"json": {"statusCode": status, "headers": headers}, "binary": binary}


def done(outputs: Any, *messages: Any, status: str = "success", graph: Any = None) -> dict[str, Any]:
    """The answer of GET /history about a job that has ended."""
    entry = {
        "prompt": [1, "%prompt_id%", graph or {}, {}, []],
        "outputs": outputs,
        "status": {"status_str": status, "completed": status == "success", "messages": list(messages)},
        "meta": {},
    }
    return got({"%prompt_id%": entry})


def queue(running: Sequence[str] = (), pending: Sequence[str] = ()) -> dict[str, Any]:
    """The answer of GET /queue."""

    def items(ids: Sequence[str]) -> list[Any]:
        return [[number, id, {}, {}, []] for number, id in enumerate(ids, 1)]

    return got({"queue_running": items(running), "queue_pending": items(pending)})


def image(name: str = "a.png", **more: str) -> dict[str, str]:
    """One file of an output."""
    return {"filename": name, "subfolder": "", "type": "output"} | more


# --- recordings ---------------------------------------------------------------------------------------


@cache
def _lines(scenario: str) -> list[dict[str, Any]]:
    path = TESTS / "recordings" / scenario / "http.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def exchanges(scenario: str, method: str, path: str) -> list[dict[str, Any]]:
    """The recorded requests of that kind, with their answers; `path` is a pattern."""
    lines = [line for line in _lines(scenario) if "status" in line]
    return [line for line in lines if line["method"] == method and re.fullmatch(path, line["path"])]


def recorded_history(scenario: str, number: int = 0) -> dict[str, Any]:
    """What a real server says of a job that has ended; the id is that of the job in play."""
    line = exchanges(scenario, "GET", "/history/.+")[number]
    id = line["path"].removeprefix("/history/")
    text = json.dumps(line["response_json"]) if "response_json" in line else line["response_text"]
    return got(text.replace(id, "%prompt_id%"))


# --- calls ----------------------------------------------------------------------------------------------


def call(body: Any, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A request to the webhook `generate`; a text goes as it is."""
    text = body if isinstance(body, str) else json.dumps(body)
    data = {"data": base64.b64encode(text.encode()).decode(), "mimeType": "application/json"}
    return {"json": {"headers": dict(headers or {}), "query": {}, "body": {}}, "binary": {"data": data}}


GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 2**64 - 1, "model": ["4", 0], "cfg": 1.0}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd.safetensors"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}, "_meta": {"title": "Keep"}},
}

GENERATE: Script = {
    "Begin": [row()],
    "POST /prompt": [took({"prompt_id": "%prompt_id%", "number": 1, "node_errors": {}})],
    "Record submitted": [row(state="queued")],
    "Turn": [row(state="queued", sent=True)],
    "GET /queue": [queue()],
    "GET /history": [done({"9": {"images": [image()]}})],
    "Record download": [row(state="finishing")],
    "GET /view": [file()],
    "Write file": [{"pass": {}}],
    "Hash file": [{"pass": {"sha256": "ab" * 32}}],
    "Record end": [row(state="succeeded", assets="[]")],
}


def generate(
    body: Any = None, headers: Mapping[str, str] | None = None, *, config: Any = None, **script: Any
) -> dict[str, Any]:
    """A call of `generate`; the script's keys have underscores for spaces: a turn or a list of turns."""
    given = {"workflow": GRAPH} if body is None else body
    return {
        "template": "comfyui-generate",
        "start": "Webhook",
        "item": call(given, headers),
        "config": config or {},
        "script": GENERATE | _turns(script),
    }


STATUS: Script = {name: turns for name, turns in GENERATE.items() if name not in {"Begin", "POST /prompt"}}


def status(id: str | None, *, config: Any = None, **script: Any) -> dict[str, Any]:
    """A call of `status`."""
    query = {} if id is None else {"prompt_id": id}
    return {
        "template": "comfyui-status",
        "start": "Webhook",
        "item": {"json": {"headers": {}, "query": query, "body": {}}},
        "config": config or {},
        "script": STATUS | _turns(script),
    }


def tick(**script: Any) -> dict[str, Any]:
    """The minute's look of `status` for a forgotten job."""
    return status(None, **script) | {"start": "Every minute", "item": {"json": {"timestamp": "2026"}}}


_NODES = {
    "post": "POST /prompt",
    "queue": "GET /queue",
    "history": "GET /history",
    "view": "GET /view",
    "begin": "Begin",
    "turn": "Turn",
    "submitted": "Record submitted",
    "download": "Record download",
    "write": "Write file",
    "hash": "Hash file",
    "end": "Record end",
    "forgotten": "Forgotten job",
    "take_back": "Take back",
    "cancel": "Cancel",
}


def _turns(script: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    return {_NODES[name]: turns if isinstance(turns, list) else [turns] for name, turns in script.items()}
