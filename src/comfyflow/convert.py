"""UI format -> API format, as the official page's own export does it.

Subgraphs are expanded (ids as the page makes them: `19:3`), virtual nodes and bypassed nodes are followed to
what really feeds an input, muted nodes are left out with the links to them. Sources: executionUtil.ts
(graphToPrompt) and ExecutableNodeDTO.ts of the official frontend, 1.45.20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import WorkflowInvalid
from .schema import DYNAMIC_COMBO, NodeSpec, node_spec
from .ui import BYPASSED, INPUT_NODE, MUTED, OUTPUT_NODE, Graph, Node, Saved, Slot, read
from .virtual import is_primitive, is_virtual, refused, setter_of
from .widgets import Filled, filled

MAX_NODES = 200_000  # after expansion: subgraphs inside of subgraphs multiply
MAX_DEPTH = 50  # subgraphs inside of subgraphs


@dataclass(frozen=True, slots=True)
class Converted:
    """The API graph, and what the reader should know about how it was made."""

    graph: dict[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """One node of the expanded graph: where it stands, and the instance of the subgraph around it."""

    path: tuple[str, ...]
    node: Node
    graph: Graph
    around: Place | None

    @property
    def id(self) -> str:
        return ":".join((*self.path, self.node.id))


@dataclass(frozen=True, slots=True)
class Value:
    """A value that takes the place of a link: a promoted widget's, or a primitive's."""

    value: Any


Source = tuple[str, int] | Value | None


def convert(ui: Mapping[str, Any], object_info: Mapping[str, Any]) -> Converted:
    """Make the API graph of a saved workflow, with the classes that `object_info` tells.

    Raises WorkflowInvalid, naming node and title, for what cannot be converted; nothing is guessed in
    silence: a node whose class is unknown is taken by its own list of inputs, with a warning.
    """
    return _Conversion(read(ui), object_info).converted()


class _Conversion:
    def __init__(self, saved: Saved, object_info: Mapping[str, Any]) -> None:
        self._saved = saved
        self._info = object_info
        self._specs: dict[str, NodeSpec | None] = {}
        self._filled: dict[int, Filled] = {}
        self._slots: dict[int, tuple[Slot, ...]] = {}
        self._places: dict[str, Place] = {}
        self._warnings: dict[str, None] = {}

    def converted(self) -> Converted:
        for place in self._expanded(self._saved.root, (), None, ()):
            self._places[place.id] = place
            if len(self._places) > MAX_NODES:
                raise WorkflowInvalid(f"this has more than {MAX_NODES:,} nodes with its subgraphs expanded")
        graph = {place.id: self._api(place) for place in self._places.values() if self._runs(place)}
        for node in graph.values():
            gone = [name for name, value in node["inputs"].items() if _dangles(value, graph)]
            for name in gone:
                del node["inputs"][name]
        if not graph:
            raise WorkflowInvalid("no node of this workflow runs: all are muted, bypassed or notes")
        return Converted(graph, tuple(self._warnings))

    def _expanded(
        self, graph: Graph, path: tuple[str, ...], around: Place | None, inside: tuple[str, ...]
    ) -> Iterator[Place]:
        for node in graph.nodes.values():
            place = Place(path, node, graph, around)
            inner = self._saved.subgraphs.get(node.type)
            # The page looks at the mode of an instance in the root graph only.
            if inner is not None and (path or node.mode not in (MUTED, BYPASSED)):
                if node.type in inside or len(inside) >= MAX_DEPTH:
                    raise WorkflowInvalid(f"subgraph {node.label} contains itself: it cannot be expanded")
                yield from self._expanded(inner, (*path, node.id), place, (*inside, node.type))
            yield place

    def _warn(self, warning: str) -> None:
        self._warnings[warning] = None

    def _runs(self, place: Place) -> bool:
        node = place.node
        return not (
            node.mode in (MUTED, BYPASSED) or node.type in self._saved.subgraphs or self._virtual(node)
        )

    def _virtual(self, node: Node) -> bool:
        return node.type not in self._saved.subgraphs and is_virtual(node.type)

    def _api(self, place: Place) -> dict[str, Any]:
        node = place.node
        reason = refused(node, self._saved.groups)
        if reason:
            raise WorkflowInvalid(f"node {node.label}: {reason}")
        spec = self._spec(node.type)
        widgets = self._values(node)
        for warning in widgets.warnings:
            self._warn(warning)
        inputs = {name: _boxed(value) for name, value in widgets.values.items()}
        for index, slot in enumerate(self._inputs(node)):
            source = self._source(place, index, set(), None)
            if isinstance(source, Value):
                inputs[slot.name] = _boxed(source.value)
            elif source is not None:
                inputs[slot.name] = [source[0], source[1]]
        title = node.title or (spec.display_name if spec else node.type)
        return {"inputs": inputs, "class_type": node.type, "_meta": {"title": title}}

    def _spec(self, class_type: str) -> NodeSpec | None:
        if class_type not in self._specs:
            info = self._info.get(class_type)
            self._specs[class_type] = node_spec(class_type, info) if isinstance(info, Mapping) else None
        return self._specs[class_type]

    def _values(self, node: Node) -> Filled:
        found = self._filled.get(id(node))
        if found is None:
            found = self._filled[id(node)] = filled(node, self._spec(node.type))
        return found

    def _inputs(self, node: Node) -> tuple[Slot, ...]:
        """The slots in the page's order: the class's sockets, its widgets, then what else was saved."""
        found = self._slots.get(id(node))
        if found is None:
            found = self._slots[id(node)] = tuple(self._ordered(node))
        return found

    def _ordered(self, node: Node) -> Iterator[Slot]:
        spec = self._spec(node.type)
        if spec is None or is_virtual(node.type):
            yield from node.inputs
            return
        saved = {slot.name: slot for slot in node.inputs}
        known = sorted(spec.inputs, key=lambda given: given.is_widget)
        for given in known:
            slot = saved.pop(given.name, None)
            yield Slot(given.name, given.type, slot.link if slot else None, slot.widget if slot else None)
        values = self._values(node).values
        lost = [f"{name}." for name in self._unknown_choices(node, spec, values)]
        for slot in saved.values():
            if (slot.widget is None or slot.widget in values) and not slot.name.startswith(tuple(lost)):
                yield slot

    def _unknown_choices(self, node: Node, spec: NodeSpec, values: Mapping[str, Any]) -> Iterator[str]:
        """Dynamic combos whose choice the class does not have; the page leaves out what hangs on it."""
        for given in spec.inputs:
            if given.type == DYNAMIC_COMBO and values.get(given.name) not in (given.choices or ()):
                choice = f"{given.name} = {values.get(given.name)!r}"
                self._warn(f"node {node.label}: there is no choice {choice}; its inputs are left out")
                yield given.name

    # Each follows a link one step; `seen` holds the steps that were made, so that a circle ends.

    def _source(self, place: Place, index: int, seen: set[tuple[str, str, int]], kind: str | None) -> Source:
        slots = self._inputs(place.node)
        slot = slots[index]
        link = place.graph.links.get(slot.link) if slot.link is not None else None
        if link is None:
            return None
        self._step(place, "in", index, seen)
        if link.origin == INPUT_NODE:
            return self._outside(place, link.origin_slot, seen, kind or slot.type)
        origin = place.graph.nodes.get(link.origin)
        if origin is None:
            return None
        if is_primitive(origin.type):  # it writes into the widget at its link's end, through nothing else
            values = origin.values
            carried = isinstance(values, list) and values and slot.widget and not self._virtual(place.node)
            return Value(values[0]) if carried else None
        return self._output(self._at(place, origin), link.origin_slot, kind or slot.type, seen)

    def _at(self, place: Place, node: Node) -> Place:
        return self._places[":".join((*place.path, node.id))]

    def _step(self, place: Place, side: str, index: int, seen: set[tuple[str, str, int]]) -> None:
        step = (place.id, side, index)
        if step in seen:
            raise WorkflowInvalid(f"node {place.node.label}: its links lead back to itself")
        seen.add(step)

    def _outside(self, place: Place, index: int, seen: set[tuple[str, str, int]], kind: str) -> Source:
        """What comes into the subgraph around: a link, or the value that its instance shows as a widget."""
        instance = place.around
        assert instance is not None  # only a subgraph has an input node
        if index >= len(place.graph.inputs):
            raise WorkflowInvalid(f"node {place.node.label}: its subgraph has no input {index}")
        name = place.graph.inputs[index].name
        for position, slot in enumerate(instance.node.inputs):
            if slot.name == name and slot.link is not None:
                return self._source(instance, position, seen, None)
        return self._shown(place.graph, index, 0)

    def _shown(self, graph: Graph, index: int, depth: int) -> Value | None:
        """What an instance shows for an input that nothing is linked to: the first widget behind it.

        The page keeps one value for it, the inner widget's: what an instance has saved is not read (1.45.20).
        """
        for link in graph.links.values():
            target = graph.nodes.get(link.target)
            if link.origin != INPUT_NODE or link.origin_slot != index or target is None:
                continue
            slot = target.inputs[link.target_slot] if link.target_slot < len(target.inputs) else None
            if slot is None or slot.widget is None:
                continue
            inner = self._saved.subgraphs.get(target.type)
            if inner is None:
                values = self._values(target).values
                return Value(values[slot.widget]) if slot.widget in values else None
            for position, given in enumerate(inner.inputs):
                if given.name == slot.name and depth < MAX_DEPTH:
                    return self._shown(inner, position, depth + 1)
        return None

    def _output(self, place: Place, index: int, kind: str, seen: set[tuple[str, str, int]]) -> Source:
        node = place.node
        self._step(place, "out", index, seen)
        if node.mode == BYPASSED:
            match = self._bypass(node, index, kind)
            return None if match is None else self._source(place, match, seen, None)
        inner = self._saved.subgraphs.get(node.type)
        if inner is not None:
            return None if node.mode == MUTED else self._inside(place, inner, index, kind, seen)
        if not self._virtual(node):
            return place.id, index
        if node.mode == MUTED:
            return None
        setter = setter_of(node, place.graph)
        if setter is not None:
            return self._source(self._at(place, setter), 0, seen, kind) if setter.inputs else None
        return self._source(place, index, seen, kind) if index < len(node.inputs) else None

    def _inside(
        self, place: Place, inner: Graph, index: int, kind: str, seen: set[tuple[str, str, int]]
    ) -> Source:
        path = (*place.path, place.node.id)
        for link in inner.links.values():
            if link.target != OUTPUT_NODE or link.target_slot != index:
                continue
            if link.origin == INPUT_NODE:  # straight through
                name = inner.inputs[link.origin_slot].name
                for position, slot in enumerate(place.node.inputs):
                    if slot.name == name:
                        return self._source(place, position, seen, kind)
                return None
            origin = self._places.get(":".join((*path, link.origin)))
            return None if origin is None else self._output(origin, link.origin_slot, kind, seen)
        return None

    def _bypass(self, node: Node, index: int, kind: str) -> int | None:
        """Which input stands in for an output of a bypassed node (#getBypassSlotIndex, 1.45.20)."""
        inputs = self._inputs(node)
        outputs = node.outputs
        produced = outputs[index].type if index < len(outputs) else "*"
        if kind in ("*", ""):
            return (index if index < len(inputs) else 0) if inputs else None
        fits = [_connects(slot.type, produced) and _connects(slot.type, kind) for slot in inputs]
        if index < len(inputs) and fits[index]:
            return index
        exact = [position for position, slot in enumerate(inputs) if slot.type == kind]
        return next(iter([*exact, *(position for position, fit in enumerate(fits) if fit)]), None)


def _connects(one: str, other: str) -> bool:
    """LiteGraph.isValidConnection: the same type, any type, or one of a list; case does not count."""
    if one in ("", "*") or other in ("", "*") or one.lower() == other.lower():
        return True
    return not {part.strip() for part in one.lower().split(",")}.isdisjoint(
        part.strip() for part in other.lower().split(",")
    )


def _boxed(value: Any) -> Any:
    """A list is taken for a link, so the page wraps it, and the server unwraps it (executionUtil.ts)."""
    return {"__value__": value} if isinstance(value, list) else value


def _dangles(value: Any, graph: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and value[0] not in graph
