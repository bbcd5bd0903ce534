"""What can be set in a workflow: every input that holds a value, with its type, range and choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .served import Entry, ServedClass
from .upstream import is_link
from .workflow import Workflow

DIALECT = "https://json-schema.org/draft/2020-12/schema"
UPLOADS = ("image", "audio", "video", "file")
_MOST = 200  # choices that are told; a list of all files of a server is no help
_JSON_TYPES = {"INT": "integer", "FLOAT": "number", "STRING": "string", "BOOLEAN": "boolean"}


@dataclass(frozen=True, slots=True)
class Settable:
    """One input: `target` is the shortest name for `--set` that fits it alone.

    `minimum`, `maximum` and `step` are those of the class; `choices` what it takes, None when anything;
    `upload` is the kind of file that may be given (image, audio, video, file), else None.
    """

    target: str
    node_id: str
    title: str
    class_type: str
    input: str
    type: str
    value: Any
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[Any, ...] | None = None
    upload: str | None = None


def settable(workflow: Workflow, object_info: Mapping[str, Any] | None = None) -> tuple[Settable, ...]:
    """Every input that holds a value, in the order of the workflow.

    Without `object_info`, or for a class that it does not tell, the type is that of the value.
    """
    found = list(_listed(workflow, object_info or {}))
    by_class = Counter((one.class_type, one.input) for one in found)
    by_title = Counter((one.title, one.input) for one in found)
    return tuple(_named(one, by_class, by_title) for one in found)


def _listed(workflow: Workflow, object_info: Mapping[str, Any]) -> Iterator[Settable]:
    for node_id, node in workflow.nodes.items():
        kind, held = node["class_type"], node["inputs"]
        info = object_info.get(kind)
        known = ServedClass(kind, info).inputs(held) if isinstance(info, Mapping) else {}
        for name, value in held.items():
            if not is_link(value):
                bare = Settable("", node_id, workflow.title(node_id), kind, name, "", value)
                yield _one(bare, known.get(name))


def _one(found: Settable, given: Entry | None) -> Settable:
    value = found.value["__value__"] if _is_boxed(found.value) else found.value
    if given is None:
        return replace(found, type=_type_of(value), value=value)
    choices = given.choices if given.is_choice and isinstance(given.choices, list) else None
    return replace(
        found,
        type="COMBO" if choices is not None else str(given.type),
        value=value,
        minimum=_number(given.options.get("min")),
        maximum=_number(given.options.get("max")),
        step=_number(given.options.get("step")),
        choices=None if choices is None else tuple(choices),
        upload=upload_of(given),
    )


def upload_of(given: Entry) -> str | None:
    """The kind of file that may be uploaded for an input: image, audio, video or file; else None."""
    asked = (key for key, on in given.options.items() if on and key.endswith("_upload"))
    kinds = (key.removesuffix("_upload").rpartition("_")[2] for key in asked)
    return next((kind for kind in kinds if kind in UPLOADS), None)


def json_schema(found: Iterable[Settable], title: str = "workflow") -> dict[str, Any]:
    """A JSON Schema (2020-12) of an object whose keys are the targets."""
    properties = {one.target: _property(one) for one in found}
    return {
        "$schema": DIALECT,
        "title": title,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _property(one: Settable) -> dict[str, Any]:
    made: dict[str, Any] = {"title": f"{one.title}: {one.input}", "default": one.value}
    kind = _JSON_TYPES.get(one.type)
    if kind is not None:
        made["type"] = kind
    if one.choices is not None and one.upload is None and len(one.choices) <= _MOST:
        made["enum"] = list(one.choices)
    bounds = {"minimum": one.minimum, "maximum": one.maximum}
    if kind in ("integer", "number"):
        made |= {key: bound for key, bound in bounds.items() if bound is not None}
    if one.upload is not None:
        made |= {"type": "string", "format": "uri-reference", "contentMediaType": f"{one.upload}/*"}
    return made


def range_text(one: Settable) -> str:
    """The range or the choices of an input, in a few words."""
    if one.upload is not None:
        return f"{one.upload} file"
    if one.choices is not None:
        shown = ", ".join(map(str, one.choices[:6]))
        more = len(one.choices) - 6
        return f"{shown} and {more} more" if more > 0 else shown
    if one.minimum is None and one.maximum is None:
        return ""
    least = "" if one.minimum is None else f"{one.minimum:g}"
    most = "" if one.maximum is None else f"{one.maximum:g}"
    return f"{least}..{most}"


def _named(one: Settable, by_class: Mapping[Any, int], by_title: Mapping[Any, int]) -> Settable:
    """`Class.input` where that fits one node alone, else the title, else the id."""
    if by_class[one.class_type, one.input] == 1:
        return replace(one, target=f"{one.class_type}.{one.input}")
    if by_title[one.title, one.input] == 1 and '"' not in one.title and one.title != one.class_type:
        return replace(one, target=f'"{one.title}".{one.input}')
    return replace(one, target=f"{one.node_id}.{one.input}")


def _type_of(value: Any) -> str:
    kinds = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}
    return kinds.get(type(value), "*")


def _is_boxed(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"__value__"}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
