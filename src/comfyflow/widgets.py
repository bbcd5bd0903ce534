"""The values of a saved node by the names of its inputs.

The page saves `widgets_values` by position, with widgets that are never sent in between; some packs save a
mapping. Source: LGraphNode.configure of the official frontend, 1.45.20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import WorkflowInvalid
from .schema import PAGE_TYPES, InputSpec, NodeSpec
from .ui import Node

# Buttons of the page that are sent like values (extension Comfy.Load3D, 1.45.20).
_BUTTONS = {("Load3D", "model_file"): ("upload 3d model", "upload extra resources", "clear")}
_CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Filled:
    """What the widgets of a node hold, and what the reader should know."""

    values: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def filled(node: Node, spec: NodeSpec | None) -> Filled:
    """The values of `node`. Without a `spec` its own list of inputs names them, with a warning.

    Raises WorkflowInvalid when values have no names at all.
    """
    if spec is None:
        return _unknown(node)
    if isinstance(node.values, Mapping):
        return Filled(dict(_by_name(spec.inputs, node.values)))
    values = iter(node.values if isinstance(node.values, list) else ())
    found = dict(_by_place(spec.class_type, spec.inputs, values))
    if spec.class_type == "CustomCombo":
        found |= _options(list(values))
    return Filled(found)


def _by_place(
    class_type: str, specs: tuple[InputSpec, ...], values: Iterator[Any]
) -> Iterator[tuple[str, Any]]:
    for spec in specs:
        if not spec.is_widget:
            continue
        value = next(values, _MISSING)
        if value is _MISSING or spec.type in PAGE_TYPES or (value is None and spec.type == "IMAGECOMPARE"):
            value = spec.default
        yield spec.name, value
        for button in _BUTTONS.get((class_type, spec.name), ()):
            yield button, next(values, "")
        for _ in range(spec.controls):
            next(values, None)
        yield from _by_place(class_type, spec.chosen(value), values)


def _options(rest: list[Any]) -> dict[str, Any]:
    """The choices of a CustomCombo: the place of the chosen one, then all (customWidgets.ts)."""
    named = {f"option{place}": value for place, value in enumerate(rest[1:], 1)}
    return {"index": rest[0], **named} if rest else {}


def _by_name(specs: tuple[InputSpec, ...], values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for spec in specs:
        if spec.is_widget:
            value = values.get(spec.name, spec.default)
            yield spec.name, value
            yield from _by_name(spec.chosen(value), values)


def _unknown(node: Node) -> Filled:
    warning = f"node {node.label}: class {node.type!r} is unknown; its inputs are taken as they were saved"
    if isinstance(node.values, Mapping):
        return Filled(dict(node.values), (warning,))
    names = [slot.widget for slot in node.inputs if slot.widget]
    values = _without_controls(node.values if isinstance(node.values, list) else [])
    if len(values) != len(names):
        raise WorkflowInvalid(
            f"node {node.label}: class {node.type!r} is unknown, and the file holds {len(values)} values "
            f"for {len(names)} named inputs: give the /object_info of a server that has this class"
        )
    return Filled(dict(zip(names, values, strict=True)), (warning,))


def _without_controls(values: list[Any]) -> list[Any]:
    """Leave out what follows a seed: the page's control_after_generate is never sent."""
    kept: list[Any] = []
    for value in values:
        after_number = bool(kept) and isinstance(kept[-1], int) and not isinstance(kept[-1], bool)
        if not (after_number and value in _CONTROLS):
            kept.append(value)
    return kept
