"""What can be set in a workflow: every input that holds a value, with its type, range and choices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import isfinite
from typing import Any

from .reference import own_title
from .schema import DYNAMIC_COMBO
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
    names = _Names(workflow)
    listed = _listed(workflow, object_info or {})
    return tuple(replace(one, target=names.shortest(one)) for one in listed)


class _Names:
    """Which input a target means, as `Workflow.set` takes it: an id before a title before a class."""

    def __init__(self, workflow: Workflow) -> None:
        self._meant: tuple[dict[str, set[tuple[str, str]]], ...] = ({}, {}, {})
        for node_id, node in workflow.nodes.items():
            title = own_title(node)
            titles = () if title is None else (title, f'"{title}"')
            for meant, names in zip(self._meant, ((node_id,), titles, (node["class_type"],)), strict=True):
                for target, name in product(names, node["inputs"]):
                    meant.setdefault(f"{target}.{name}", set()).add((node_id, name))

    def shortest(self, one: Settable) -> str:
        """`Class.input` where that fits one node alone, else its title, else its id."""
        title = () if '"' in one.title else (f'"{one.title}".{one.input}',)
        named = (f"{one.class_type}.{one.input}", *title)
        return next((target for target in named if self._fits(target, one)), f"{one.node_id}.{one.input}")

    def _fits(self, target: str, one: Settable) -> bool:
        first = next((meant[target] for meant in self._meant if target in meant), set())
        return first == {(one.node_id, one.input)}


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
    choices = _choices(given)
    return replace(
        found,
        type="COMBO" if choices is not None else str(given.type),
        value=value,
        minimum=_number(given.options.get("min")),
        maximum=_number(given.options.get("max")),
        step=_number(given.options.get("step")),
        choices=choices,
        upload=upload_of(given),
    )


def _choices(given: Entry) -> tuple[Any, ...] | None:
    """What an input takes; of a dynamic combo the keys of its options. None for anything."""
    if given.type == DYNAMIC_COMBO:
        options = given.options.get("options")
        return tuple(one.get("key") for one in options) if isinstance(options, list) else ()
    return tuple(given.choices) if given.is_choice and isinstance(given.choices, list) else None


def upload_of(given: Entry) -> str | None:
    """The kind of file that may be uploaded for an input: image, audio, video or file; else None."""
    asked = (key for key, on in given.options.items() if on and key.endswith("_upload"))
    kinds = (key.removesuffix("_upload").rpartition("_")[2] for key in asked)
    return next((kind for kind in kinds if kind in UPLOADS), None)


def json_schema(found: Iterable[Settable], title: str = "workflow") -> dict[str, Any]:
    """A JSON Schema (2020-12) of an object whose keys are the targets, with the values of now as defaults.

    An input that takes a file has the keyword `x-upload` with its kind: a path or a URL may stand there.
    """
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
    if one.upload is not None:
        return {**made, "type": "string", "x-upload": one.upload}
    if one.choices is not None:
        kind = {"enum": list(one.choices)} if 0 < len(one.choices) <= _MOST else {}
        return made | ({"type": "array", "items": kind} if isinstance(one.value, list) else kind)
    known = _JSON_TYPES.get(one.type)
    if known is None:
        return made
    bounds = {"minimum": one.minimum, "maximum": one.maximum} if known in ("integer", "number") else {}
    return made | {"type": known} | {key: bound for key, bound in bounds.items() if bound is not None}


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
    return f"{_told(one.minimum)}..{_told(one.maximum)}"


def _told(number: float | None) -> str:
    """A whole number is told in full: a seed's largest has 20 digits."""
    if number is None:
        return ""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _type_of(value: Any) -> str:
    kinds = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}
    return kinds.get(type(value), "*")


def _is_boxed(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"__value__"}


def _number(value: Any) -> float | None:
    if isinstance(value, float) and not isfinite(value):
        return None  # "max": Infinity is no limit
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
