"""The recordings of real servers (tests/recordings/README.md), loaded."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parent / "recordings"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One recording. `http` and `ws` are its lines as dicts, in order; `text` says what it shows."""

    version: str
    name: str
    text: str
    http: list[dict[str, Any]]
    ws: list[dict[str, Any]]

    @property
    def id(self) -> str:
        return f"{self.version}/{self.name}"

    def frames(self, conn: str | None = None) -> Iterator[str | bytes]:
        """The frames that came in, in order, as far as they are kept whole; of one connection or of all."""
        for line in self.ws:
            if line["dir"] != "in" or conn not in (None, line.get("conn")):
                continue
            if line["kind"] == "text" and "text" in line:
                yield line["text"]
            elif line["kind"] == "binary" and "base64" in line:
                yield base64.b64decode(line["base64"])


def scenario(name: str, version: str = "0.27.0") -> Scenario:
    """One recording by the start of its name, for example "07"."""
    (folder,) = (RECORDINGS / version).glob(f"{name}*")
    return _load(folder)


def scenarios(version: str = "*") -> list[Scenario]:
    """All recordings, or those of one version ("0.27.0", "0.27.0-assets", "0.3.64")."""
    return [_load(path.parent) for path in sorted(RECORDINGS.glob(f"{version}/*/scenario.md"))]


def _load(folder: Path) -> Scenario:
    text = (folder / "scenario.md").read_text(encoding="utf-8")
    http, ws = (_lines(folder / name) for name in ("http.jsonl", "ws.jsonl"))
    return Scenario(folder.parent.name, folder.name, text, http, ws)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
