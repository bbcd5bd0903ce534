"""Named sets of values, kept on this machine: one small JSON file each.

A preset holds assignments as they were typed; `@file` and `%random` are read when it is used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from .errors import UsageError
from .whole import write_whole

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._ -]{0,62}[A-Za-z0-9_-])?")


def save(name: str, assignments: Sequence[str], digest: str | None = None) -> Path:
    """Keep these assignments under a name; one that is there is replaced.

    `digest` is that of the workflow they were made for. Raises UsageError for a name that is no file's name,
    and for a folder that cannot be written.
    """
    path = _path(name)
    document = {"digest": digest, "set": list(assignments)}
    text = json.dumps(document, ensure_ascii=False, indent=2)
    try:
        # An argument need not be UTF-8: Python has lone surrogates for what is not.
        write_whole(path, text.encode("utf-8", "surrogatepass"))
    except OSError as error:
        raise UsageError(f"the preset {name!r} cannot be written: {error.strerror or error}") from error
    return path


def load(name: str) -> tuple[str, ...]:
    """The assignments of a preset. Raises UsageError, which names those that there are."""
    path = _path(name)
    try:
        found = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))["set"]
    except FileNotFoundError as error:
        there = ", ".join(names()) or "none"
        raise UsageError(f"there is no preset {name!r}; there are: {there}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"the preset {name!r} cannot be read: {path} is damaged, remove it") from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UsageError(f"the preset {name!r} cannot be read: {path} is damaged, remove it")
    return tuple(found)


def names() -> tuple[str, ...]:
    """The presets that there are, by name."""
    return tuple(sorted(path.stem for path in _folder().glob("*.json")))


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a preset: use letters, digits, '.', '-', '_' and spaces")
    return _folder() / f"{name}.json"


def _folder() -> Path:
    chosen = os.environ.get("COMFYFLOW_CONFIG")
    folder = Path(chosen) if chosen else platformdirs.user_config_path("comfyflow", appauthor=False)
    return folder / "presets"
