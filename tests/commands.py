"""Runs commands of comfyflow for tests, in this process and as processes of their own; small workflows."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import comfyflow
from comfyflow.cli import app
from comfyflow.sim import Sim

EXAMPLE = Path(__file__).parent.parent / "examples" / "text_to_image.json"


def picture(prefix: str = "cli", **inputs: Any) -> dict[str, Any]:
    """The smallest workflow that makes a file."""
    size = {"width": 64, "height": 32, "batch_size": 1, "color": 255}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size | inputs, "_meta": {"title": "Canvas"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def with_node(node_id: str, class_type: str, **inputs: Any) -> dict[str, Any]:
    return {**picture(), node_id: {"class_type": class_type, "inputs": inputs}}


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Cli:
    """Runs a command in a thread, as a program of its own loop would. It records nothing, unless told to."""

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.folder, self._capsys, self._monkeypatch = folder, capsys, monkeypatch
        for name in ("COMFYFLOW_URL", "COMFYUI_URL", "COMFYUI_HOST", "COMFYFLOW_API_KEY", "COMFYFLOW_OUTPUT"):
            monkeypatch.delenv(name, raising=False)
        for name in ("COMFYFLOW_SHARED", "COMFYFLOW_KEEP_CONTENT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("COMFYFLOW_STATE", str(folder / "state"))
        monkeypatch.setenv("COMFYFLOW_CACHE", str(folder / "cache"))
        monkeypatch.setenv("COMFYFLOW_CONFIG", str(folder / "config"))
        monkeypatch.setenv("PYTHONPATH", str(Path(comfyflow.__file__).parent.parent))  # for `process`
        monkeypatch.chdir(folder)
        self.record_in("none")

    def record_in(self, database: str) -> None:
        """Which database the commands use from now on."""
        self.variable("COMFYFLOW_DATABASE_URL", database)

    def variable(self, name: str, value: str) -> None:
        self._monkeypatch.setenv(name, value)

    def file(self, graph: Any, name: str = "workflow.json") -> str:
        path = self.folder / name
        path.write_text(graph if isinstance(graph, str) else json.dumps(graph))
        return str(path)

    def stdin(self, text: str) -> None:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    async def __call__(self, *arguments: object) -> Ended:
        code = await asyncio.to_thread(self._run, [str(argument) for argument in arguments])
        said = self._capsys.readouterr()
        return Ended(code, said.out, said.err)

    @staticmethod
    def _run(arguments: list[str]) -> int:
        try:
            app(arguments, prog_name="comfyflow")
        except SystemExit as end:
            return int(end.code or 0)
        return 0


def command(*arguments: str) -> list[str]:
    """The same as a process of its own."""
    return [sys.executable, "-m", "comfyflow", *arguments]


@asynccontextmanager
async def serving(cli: Cli) -> AsyncIterator[Sim]:
    """A simulated server that the commands find by themselves."""
    async with Sim() as sim:
        cli.variable("COMFYFLOW_URL", sim.url)
        yield sim
