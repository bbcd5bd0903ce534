"""The values of a saved node by the names of its inputs, and its input slots in the page's order.

The page saves `widgets_values` by position, with widgets that are never sent in between; some packs save a
mapping. Source: LGraphNode.configure of the official frontend, 1.45.20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import WorkflowInvalid
from .schema import AUTOGROW, DYNAMIC_COMBO, PAGE_TYPES, InputSpec, NodeSpec, node_spec
from .ui import Node, Slot, brief
from .virtual import is_virtual

# Buttons of the page that are sent like values (extension Comfy.Load3D, 1.45.20).
_BUTTONS = {("Load3D", "model_file"): ("upload 3d model", "upload extra resources", "clear")}
_CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
_NEVER_SENT = frozenset({"control_after_generate", "control_filter_list", "upload", "videopreview"})
_MISSING = object()
# Files of the first months have `sample_euler` for `euler` (app.ts, loadGraphData).
_SAMPLERS = ("KSampler", "KSamplerAdvanced")


@dataclass(frozen=True, slots=True)
class Filled:
    """What the widgets of a node hold, and what the reader should know."""

    values: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


class Classes:
    """The classes of one `/object_info`, and the saved nodes beside them; each node is looked at once."""

    def __init__(self, object_info: Mapping[str, Any]) -> None:
        self._info = object_info
        self._specs: dict[str, NodeSpec | None] = {}
        # The nodes are kept beside the answers, so that their id() stays their own.
        self._filled: dict[int, tuple[Node, Filled]] = {}
        self._slots: dict[int, tuple[Node, tuple[Slot, ...]]] = {}

    def spec(self, class_type: str) -> NodeSpec | None:
        """The class as `/object_info` tells it; None when it does not."""
        if class_type not in self._specs:
            info = self._info.get(class_type)
            self._specs[class_type] = node_spec(class_type, info) if isinstance(info, Mapping) else None
        return self._specs[class_type]

    def filled(self, node: Node) -> Filled:
        """The values of `node`. Raises WorkflowInvalid when they have no names at all."""
        if id(node) not in self._filled:
            self._filled[id(node)] = node, filled(node, self.spec(node.type))
        return self._filled[id(node)][1]

    def slots(self, node: Node) -> tuple[Slot, ...]:
        """The input slots of `node` in the page's order; those of the file when the class is unknown."""
        if id(node) not in self._slots:
            spec = self.spec(node.type)
            ordered = spec is not None and not is_virtual(node.type)
            slots = tuple(_ordered(node, spec, self.filled(node))) if spec and ordered else node.inputs
            self._slots[id(node)] = node, slots
        return self._slots[id(node)][1]


def _ordered(node: Node, spec: NodeSpec, values: Filled) -> Iterator[Slot]:
    """The slots in the page's order: the class's sockets, its widgets, then what else was saved.

    What hangs on a choice that the class does not have is left out, as by the page.
    """
    lost = tuple(f"{given.name}." for given in _unknown_choices(spec, values.values))
    saved = {slot.name: slot for slot in node.inputs}
    dotted = [name for name in saved if "." in name]
    for given in sorted(spec.inputs, key=lambda given: given.is_widget):
        slot = saved.pop(given.name, None)
        if slot is not None:  # the page gives a type of its own to an input that takes that of its link
            yield replace(slot, type=slot.type if given.type.startswith("COMFY_") else given.type)
        elif given.type != AUTOGROW:  # it has no socket of its own, only those that it grew
            yield Slot(given.name, given.type)
        grown = [name for name in dotted if name in saved and name.startswith(f"{given.name}.")]
        yield from (slot for slot in map(saved.pop, grown) if _stays(slot, lost, values))
    yield from (slot for slot in saved.values() if _stays(slot, lost, values))


def _stays(slot: Slot, lost: tuple[str, ...], values: Filled) -> bool:
    return (slot.widget is None or slot.widget in values.values) and not slot.name.startswith(lost)


def filled(node: Node, spec: NodeSpec | None) -> Filled:
    """The values of `node`. Without a `spec` its own list of inputs names them, with a warning.

    Raises WorkflowInvalid when values have no names at all.
    """
    if spec is None:
        return _unknown(node)
    if isinstance(node.values, Mapping):
        found = dict(_by_name(spec.inputs, node.values))
        return Filled(found, tuple(_warnings(node, spec, found)))
    values = iter(_without_sockets(spec.inputs, node.values if isinstance(node.values, list) else []))
    found = dict(_by_place(spec.class_type, spec.inputs, values))
    if spec.class_type == "CustomCombo":
        found |= _options(list(values))
    return Filled(found, tuple(_warnings(node, spec, found)))


def _unknown_choices(spec: NodeSpec, values: Mapping[str, Any]) -> Iterator[InputSpec]:
    for given in spec.inputs:
        if given.type == DYNAMIC_COMBO and values.get(given.name) not in (given.choices or ()):
            yield given


def _warnings(node: Node, spec: NodeSpec, values: Mapping[str, Any]) -> Iterator[str]:
    for given in _unknown_choices(spec, values):
        choice = f"{given.name} = {brief(values.get(given.name))}"
        yield f"node {node.label}: there is no choice {choice}; its inputs are left out"


def _without_sockets(specs: tuple[InputSpec, ...], values: list[Any]) -> list[Any]:
    """Leave out values of inputs that were widgets once and are sockets now (migrateWidgetsValues)."""
    places: list[bool] = []
    for spec in specs:
        forced = bool(spec.options.get("forceInput"))
        if spec.is_widget or forced:
            places += [forced, False] if spec.options.get("control_after_generate") else [forced]
    if len(places) != len(values):
        return values
    return [value for value, forced in zip(values, places, strict=True) if not forced]


def _by_place(
    class_type: str, specs: tuple[InputSpec, ...], values: Iterator[Any]
) -> Iterator[tuple[str, Any]]:
    for spec in specs:
        if not spec.is_widget:
            continue
        value = next(values, _MISSING)
        # The page puts its own value in the place of none (loadGraphData: combos).
        empty = value is None and (spec.type == "IMAGECOMPARE" or spec.choices is not None)
        if value is _MISSING or empty or spec.type in PAGE_TYPES:
            value = spec.default
        if class_type in _SAMPLERS and spec.name == "sampler_name" and isinstance(value, str):
            value = value.removeprefix("sample_")
        yield spec.name, value
        for button in _BUTTONS.get((class_type, spec.name), ()):
            yield button, next(values, "")
        for _ in range(spec.controls):
            next(values, None)
        yield from _by_place(class_type, spec.chosen(value), values)


def _options(rest: list[Any]) -> dict[str, Any]:
    """The choices of a CustomCombo: the place of the chosen one, then all (customWidgets.ts)."""
    if not rest:
        return {}
    options = [*rest[1:], ""] if rest[-1] else rest[1:]  # the page keeps an empty one at the end
    return {"index": rest[0], **{f"option{place}": value for place, value in enumerate(options, 1)}}


def _by_name(specs: tuple[InputSpec, ...], values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for spec in specs:
        if spec.is_widget:
            value = values.get(spec.name, spec.default)
            yield spec.name, value
            yield from _by_name(spec.chosen(value), values)


def _unknown(node: Node) -> Filled:
    """The values of a node without a class, under the names that the file gives them itself."""
    kind = brief(node.type)
    warning = f"node {node.label}: class {kind} is unknown; its inputs are taken as they were saved"
    by_name = node.values if isinstance(node.values, Mapping) else _named(node)
    if by_name is not None:
        sent = {name: value for name, value in by_name.items() if not _is_control(name, value)}
        return Filled(sent, (warning,))
    names = [slot.widget for slot in node.inputs if slot.widget]
    values = _without_controls(node.values if isinstance(node.values, list) else [])
    if len(values) != len(names):
        pack = f" of the pack {brief(node.pack)}" if node.pack else ""
        raise WorkflowInvalid(
            f"node {node.label}: class {kind}{pack} is unknown, and the file holds {len(values)} values "
            f"for {len(names)} named inputs: give the /object_info of a server that has this class"
        )
    return Filled(dict(zip(names, values, strict=True)), (warning,))


def _named(node: Node) -> Mapping[str, Any] | None:
    """The values under the names that were saved beside them; where the two differ the page takes those in
    `widgets_values`."""
    if node.named is None or not isinstance(node.values, list) or len(node.values) != len(node.named):
        return node.named
    return dict(zip(node.named, node.values, strict=True))


def _is_control(name: str, value: Any) -> bool:
    """Whether this is the page's own; control_after_generate may have the name of its first value."""
    return name in _NEVER_SENT or (name in _CONTROLS and value in _CONTROLS)


def _without_controls(values: list[Any]) -> list[Any]:
    """Leave out what follows a seed: the page's control_after_generate is never sent."""
    kept: list[Any] = []
    for value in values:
        after_number = bool(kept) and isinstance(kept[-1], int) and not isinstance(kept[-1], bool)
        if not (after_number and value in _CONTROLS):
            kept.append(value)
    return kept
