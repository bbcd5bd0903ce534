"""What one server has, from GET /object_info: node classes, and the choices of their inputs. Pure.

A list of choices stands as `[["a", "b"], {...}]` or, since 0.3.10 or so, as `["COMBO", {"options": [...]}]`
(comfy_api, 0.27.0; recording 21). What a server has no list for it is not judged by: nodes may check values
by themselves (VALIDATE_INPUTS).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .workflow import Workflow

MODEL_SUFFIXES = (
    ".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx", ".engine", ".pkl",
)  # fmt: skip
COMBO = "COMBO"  # other kinds have options too, which are no texts: COMFY_DYNAMICCOMBO_V3
UPLOADS = "_upload"  # "image_upload": true and its like: the list is a folder that jobs put files into


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that a workflow names and a server does not have: a node class, or the `value` of an
    `input` of one."""

    node_class: str
    input: str | None = None
    value: str | None = None

    def __str__(self) -> str:
        if self.input is None:
            return f"the node class {self.node_class!r}"
        return f"{self.value!r} ({self.node_class}.{self.input})"


class Inventory:
    """Node classes, and the choices that are lists: by "Class.input"."""

    def __init__(self, node_classes: frozenset[str], choices: Mapping[str, frozenset[str]]) -> None:
        self.node_classes, self._choices = node_classes, choices

    @classmethod
    def of(cls, object_info: Mapping[str, Any]) -> Inventory:
        """From the answer of /object_info; what is no description of a node counts as a node without
        lists."""
        shared: dict[frozenset[str], frozenset[str]] = {}  # many nodes choose from the same files
        choices = {
            sys.intern(f"{name}.{key}"): shared.setdefault(found, found)
            for name, info in object_info.items()
            for key, found in _choices(info)
        }
        return cls(frozenset(map(sys.intern, object_info)), choices)

    def same(self, other: Inventory) -> bool:
        """Whether both servers have the same."""
        return (self.node_classes, self._choices) == (other.node_classes, other._choices)

    @property
    def models(self) -> Mapping[str, tuple[str, ...]]:
        """The model files that a node can load, by "Class.input"."""
        found = {
            place: tuple(sorted(value for value in values if _is_model(value)))
            for place, values in self._choices.items()
        }
        return {place: names for place, names in sorted(found.items()) if names}

    def missing(self, workflow: Workflow) -> tuple[Missing, ...]:
        """Classes and model files that it does not have, in the order of the workflow, each once."""
        found: dict[Missing, None] = {}
        for node in workflow.nodes.values():
            if node["class_type"] not in self.node_classes:
                found[Missing(node["class_type"])] = None
        for one in self._unlisted(workflow):
            if _is_model(one.value or ""):
                found[one] = None
        return tuple(found)

    def strange(self, workflow: Workflow) -> int:
        """How many other choices (samplers, ...) it does not list."""
        return sum(not _is_model(one.value or "") for one in self._unlisted(workflow))

    def _unlisted(self, workflow: Workflow) -> Iterator[Missing]:
        for node in workflow.nodes.values():
            kind = node["class_type"]
            for key, value in node["inputs"].items():
                if not isinstance(value, str):
                    continue
                listed = self._choices.get(f"{kind}.{key}")
                if listed is not None and value not in listed:
                    yield Missing(kind, key, value)


def _choices(info: Any) -> Iterator[tuple[str, frozenset[str]]]:
    inputs = info.get("input") if isinstance(info, Mapping) else None
    for group in ("required", "optional"):
        part = inputs.get(group) if isinstance(inputs, Mapping) else None
        for key, spec in part.items() if isinstance(part, Mapping) else ():
            listed = _listed(spec)
            if listed is not None:
                yield key, frozenset(sys.intern(value) for value in listed if type(value) is str)


def _listed(spec: Any) -> list[Any] | None:
    """The choices of an input, None where they are no list, or one that may grow by the next upload."""
    if not isinstance(spec, list) or not spec:
        return None
    more = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    if "remote" in more or any(key.endswith(UPLOADS) and more[key] for key in more):
        return None
    listed = more.get("options") if spec[0] == COMBO else spec[0]
    return listed if isinstance(listed, list) else None


def _is_model(value: str) -> bool:
    return value.lower().endswith(MODEL_SUFFIXES)
