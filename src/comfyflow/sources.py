"""What a workflow may be given as: a file, its bytes, or a graph; in API format, in UI format, or in media.

Media that ComfyUI wrote carry the graph that made them: the prompt (API format) is taken before the workflow
(UI format), as it is exactly what ran. Numbers stay exactly as they were written (a seed may need 64 bits),
so the text is read by the standard library's json, which keeps integers of any size.
"""

# ruff: noqa: PLC0415 - most workflows are in API format and need no conversion

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .carriers import Carried, carried
from .errors import WorkflowInvalid
from .ui import is_ui, read

if TYPE_CHECKING:
    from .convert import Converted

MAX_SIZE = 100 * 1024 * 1024  # bytes of JSON; ComfyUI refuses larger bodies (--max-upload-size, 0.27.0)

EXPORT = (
    "in ComfyUI choose Workflow > Export (API), or enable the dev mode options and use 'Save (API format)'"
)


class Form(StrEnum):
    """The two formats of a graph."""

    API = "API format"
    UI = "UI format"

    @property
    def described(self) -> str:
        """For one line: `a workflow in API format`."""
        return f"a workflow in {self.value}"


@dataclass(frozen=True, slots=True)
class Source:
    """A graph as it was found: `data` is not checked yet; `carrier` is the kind of media around it."""

    data: Any
    form: Form
    carrier: str | None = None
    name: str | None = None

    @property
    def described(self) -> str:
        """What was recognised, for one line: `PNG with a workflow in API format`."""
        what = self.form.described
        return f"{self.carrier} with {what}" if self.carrier else what

    def check_form(self) -> None:
        """For a graph in UI format: raises WorkflowInvalid for what is wrong whatever the classes are."""
        if not read(self.data).root.nodes:
            raise WorkflowInvalid("this is an empty workflow: it has no nodes")

    def converted(self, object_info: Mapping[str, Any]) -> Converted:
        """The API graph of a graph in UI format; dates in file names are those of now, as on the page.

        Raises WorkflowInvalid for what cannot be converted.
        """
        from .convert import convert

        return convert(self.data, object_info, now=datetime.now())


def find(source: str | os.PathLike[str] | bytes | Mapping[str, Any], *, name: str | None = None) -> Source:
    """Read a file by its path, the bytes of one, or take a graph.

    `name` is what messages call it. Raises WorkflowInvalid, whose `path` is the file's name when it has one.
    """
    if isinstance(source, Mapping):
        return _source(source, name=name)
    if isinstance(source, bytes):
        return _read(BytesIO(source), name)
    name = os.fspath(source) if name is None else name
    try:
        with Path(source).open("rb") as file:
            return _read(file, name)
    except (OSError, ValueError) as error:
        raise WorkflowInvalid(_unreadable(name, error), path=name) from error


def _read(file: BinaryIO, name: str | None) -> Source:
    try:
        found = carried(file)
        if found is not None:
            return _in_media(found, name)
        file.seek(0)
        return _source(parsed(file.read(MAX_SIZE + 1)), name=name)
    except WorkflowInvalid as error:
        raise WorkflowInvalid(error.reason, path=name) from error.__cause__


def _in_media(found: Carried, name: str | None) -> Source:
    first: WorkflowInvalid | None = None
    for key in ("prompt", "workflow"):
        if key not in found.texts:
            continue
        try:
            data = parsed(found.texts[key])
        except WorkflowInvalid as error:
            first = first or error
            continue
        if isinstance(data, Mapping) and data:
            return _source(data, found.kind, name)
    if first is not None:
        raise WorkflowInvalid(f"the graph in this {found.kind} cannot be read: {first.reason}")
    raise WorkflowInvalid(
        f"this {found.kind} carries no workflow: a server with --disable-metadata made it, or another "
        f"program has saved it since; use the workflow's JSON file"
    )


def _source(data: Any, carrier: str | None = None, name: str | None = None) -> Source:
    graph = _unwrapped(data) if isinstance(data, Mapping) else data
    return Source(graph, Form.UI if is_ui(graph) else Form.API, carrier, name)


def _unwrapped(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the graph out of a body of POST /prompt, `{"prompt": graph, ...}`."""
    inner = data.get("prompt")
    return inner if isinstance(inner, Mapping) and "class_type" not in inner else data


def parsed(text: bytes | str) -> Any:
    """Read JSON text (bytes are UTF-8, a byte order mark is fine). Raises WorkflowInvalid, saying where."""
    if len(text) > MAX_SIZE:
        raise WorkflowInvalid("this is larger than 100 MiB, which is more than ComfyUI takes")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded.removeprefix("\ufeff"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
        raise WorkflowInvalid(f"this is not UTF-8 text ({where}): save the workflow as UTF-8 JSON") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise WorkflowInvalid(f"this is not JSON: {error.msg} ({where})") from error
    except RecursionError as error:
        raise WorkflowInvalid("the file is nested more than 100 levels deep, which no workflow is") from error
    except ValueError as error:  # Python refuses to read integers of more than 4300 digits
        raise WorkflowInvalid(f"this holds a number that cannot be read: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two nodes with one id JSON would silently keep the second."""
    made = dict(pairs)
    if len(made) != len(pairs):
        counts = Counter(key for key, value in pairs if isinstance(value, dict) and "class_type" in value)
        for key, count in counts.most_common(1):
            if count > 1:
                raise WorkflowInvalid(f"{count} nodes have the id {key!r}: give each an id of its own")
    return made


def _unreadable(name: str, error: Exception) -> str:
    if name.lstrip().startswith("{"):
        return "this is JSON text where the name of a file was expected: use Workflow.parse for text"
    match error:
        case FileNotFoundError():
            return "there is no such file"
        case IsADirectoryError():
            return "this is a folder: name the workflow file in it"
        case PermissionError():
            return "this may not be read: check its permissions"
    return f"this cannot be read: {getattr(error, 'strerror', None) or error}"
