"""The files and texts that nodes have shown, found by shape: packs call their keys as they like. Pure.

Sources: server.py (`executed`, history), nodes_load_3d.py, 0.27.0 and 0.3.64; recordings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .models import MediaKind, OutputFile, OutputText

MAX_DEPTH = 8  # of nested values inside a node's output; real ones have two levels
MODEL_KEYS = frozenset({"result", "model_file"})  # Preview3D, now and in its first versions: a bare path
MAX_FOUND = 100_000  # files and texts of one job


def find_outputs(
    outputs: Mapping[str, Any], cached: Collection[str] | None = None
) -> tuple[tuple[OutputFile, ...], tuple[OutputText, ...]]:
    """Every file and text of `{node id: {key: values}}`, whatever the keys are called.

    A file is a dict with a `filename`; Preview3D names its model as a bare string in `result`; a list of
    strings alone is text. The same file listed twice is one file. `cached` are the nodes that were answered
    from ComfyUI's cache, None where that was not told.
    """
    files: dict[tuple[str, str, str], OutputFile] = {}
    texts: list[OutputText] = []
    for node_id, ui in outputs.items():
        for key, value in ui.items() if isinstance(ui, dict) else ():
            reused = is_reused(node_id, cached)
            for file in _files(node_id, key, value, reused):
                files.setdefault((file.type, file.subfolder, file.filename), file)
            texts.extend(OutputText(node_id, key, text, reused) for text in _texts(key, value))
    return tuple(files.values())[:MAX_FOUND], tuple(texts[:MAX_FOUND])


def is_reused(node_id: str, cached: Collection[str] | None) -> bool | None:
    """Whether a node's output is that of an earlier job, by the nodes of `execution_cached` (socket, and the
    messages in the history; 0.3.64 and 0.27.0 tell the same in both). None where that does not tell.

    It lists nodes of the sent graph alone (execution.py, `prompt.keys()`). A node that came up at run time,
    "5.0.0.2", has a cache of its own: 0.3.64 takes its old file from there although "5" ran again.
    """
    if cached is None:
        return None
    root, inner, _ = node_id.partition(".")
    return True if node_id in cached or root in cached else None if inner else False


def _files(node_id: str, key: str, value: Any, reused: bool | None, depth: int = 0) -> Iterator[OutputFile]:
    if isinstance(value, dict) and isinstance(value.get("filename"), str):
        folder, subfolder = value.get("type"), value.get("subfolder")
        yield OutputFile(
            node_id,
            value["filename"],
            subfolder if isinstance(subfolder, str) else "",
            folder if isinstance(folder, str) and folder else "output",
            key,
            reused,
        )
    elif isinstance(value, dict | list) and depth < MAX_DEPTH:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _files(node_id, key, inner, reused, depth + 1)
    elif key in MODEL_KEYS and depth == 1 and isinstance(value, str):
        yield from _model(node_id, key, value, reused)


def _model(node_id: str, key: str, value: str, reused: bool | None) -> Iterator[OutputFile]:
    """Preview3D: `result: [model, camera, background]`, a path in the output folder (nodes_load_3d.py)."""
    path, _, folder = value.removesuffix("]").partition(" [")
    subfolder, _, name = path.replace("\\", "/").rpartition("/")
    file = OutputFile(node_id, name, subfolder, folder or "output", key, reused)
    if name and file.kind is MediaKind.MODEL:
        yield file


def _texts(key: str, value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if not all(isinstance(item, str) for item in found):
        return []
    return [item for item in found if key not in MODEL_KEYS or not any(_model("", key, item, False))]
