"""What the official page made of UI graphs: templates, and small cases (tests/recordings/golden)."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recordings" / "golden"


@cache
def read(name: str) -> Any:
    """One file of the folder."""
    return json.loads(lzma.decompress((FOLDER / f"{name}.json.xz").read_bytes()))


def object_info() -> dict[str, Any]:
    """The node classes of ComfyUI 0.27.0 with API nodes, without prose."""
    found: dict[str, Any] = read("object_info_0.27.0")
    return found


def templates() -> dict[str, tuple[Any, Any]]:
    """Name -> (UI graph, API graph)."""
    ui = read("ui_templates_0.1.123")
    return {name: (ui[name], api) for name, api in read("api_by_frontend_1.45.20").items()}


def cases() -> dict[str, tuple[Any, Any]]:
    """Name -> (UI graph, {"ok": API graph} or {"err": text})."""
    found: dict[str, tuple[Any, Any]] = {
        name: (one[0], one[1]) for name, one in read("cases_1.45.20").items()
    }
    return found
