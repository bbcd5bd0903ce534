"""The expanded graph of a saved workflow, and what really feeds an input of it.

Subgraphs are expanded (ids as the page makes them: `19:3`); reroutes, Get and Set nodes, bypassed nodes and
the borders of subgraphs are followed. Sources: ExecutableNodeDTO.ts and executionUtil.ts of the official
frontend, 1.45.20. Nothing recurses on the length of a chain: 100,000 reroutes are followed like one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import WorkflowInvalid
from .ui import BYPASSED, INPUT_NODE, MUTED, OUTPUT_NODE, Graph, Link, Node, Saved, Slot
from .virtual import is_primitive, is_virtual, setters
from .widgets import Classes

MAX_NODES = 200_000  # after expansion: subgraphs inside of subgraphs multiply
MAX_DEPTH = 50  # subgraphs inside of subgraphs


@dataclass(frozen=True, slots=True)
class Place:
    """One node of the expanded graph: where it stands, and the instance of the subgraph around it."""

    id: str
    node: Node
    graph: Graph
    around: Place | None


@dataclass(frozen=True, slots=True)
class Value:
    """A value that takes the place of a link: a promoted widget's, or a primitive's."""

    value: Any


@dataclass(frozen=True, slots=True)
class _Step:
    """One step upstream: into the input, or back from the output, `index` of a place.

    `kind` is the type of the input where the way began, for the choice that a bypassed node makes.
    """

    place: Place
    side: str
    index: int
    kind: str | None

    @property
    def key(self) -> tuple[str, str, int, str | None]:
        return self.place.id, self.side, self.index, self.kind


Source = tuple[str, int] | Value | None


class Links:
    """Every place of a saved workflow, and the source of each of their inputs."""

    def __init__(self, saved: Saved, classes: Classes) -> None:
        self._saved = saved
        self._classes = classes
        self._found: dict[tuple[str, str, int, str | None], Source] = {}
        self._setters: dict[int, Mapping[tuple[str, Any], Node]] = {}
        self._from: dict[int, Mapping[tuple[str, int], list[Link]]] = {}
        self._into: dict[int, Mapping[tuple[str, int], Link]] = {}
        self.places: dict[str, Place] = {}
        for place in self._expanded(saved.root, "", None, ()):
            self.places[place.id] = place
            if len(self.places) > MAX_NODES:
                raise WorkflowInvalid(f"this has more than {MAX_NODES:,} nodes with its subgraphs expanded")

    def _expanded(
        self, graph: Graph, prefix: str, around: Place | None, inside: tuple[str, ...]
    ) -> Iterator[Place]:
        for node in graph.nodes.values():
            place = Place(prefix + node.id, node, graph, around)
            inner = self._saved.subgraphs.get(node.type)
            # The page looks at the mode of an instance in the root graph only.
            if inner is not None and (around or node.mode not in (MUTED, BYPASSED)):
                if node.type in inside:
                    raise WorkflowInvalid(f"subgraph {node.label} contains itself: it cannot be expanded")
                if len(inside) >= MAX_DEPTH:
                    raise WorkflowInvalid(f"subgraph {node.label} is more than {MAX_DEPTH} subgraphs deep")
                yield from self._expanded(inner, f"{place.id}:", place, (*inside, node.type))
            yield place

    def runs(self, place: Place) -> bool:
        """Whether the page sends this node."""
        node = place.node
        off = node.mode in (MUTED, BYPASSED)
        return not (off or node.type in self._saved.subgraphs or is_virtual(node.type))

    def source(self, place: Place, index: int) -> Source:
        """What feeds input `index`: a node that runs and its output, a value, or None for nothing.

        Raises WorkflowInvalid for links in a circle and for links to what the file does not hold.
        """
        step: _Step | Source = _Step(place, "in", index, None)
        made: dict[tuple[str, str, int, str | None], None] = {}
        while isinstance(step, _Step):
            if step.key in self._found:
                step = self._found[step.key]
                break
            if step.key in made:
                raise WorkflowInvalid(f"node {step.place.node.label}: its links lead back to itself")
            made[step.key] = None
            step = self._input(step) if step.side == "in" else self._output(step)
        self._found |= dict.fromkeys(made, step)
        return step

    def _input(self, step: _Step) -> _Step | Source:
        place = step.place
        slot = self._classes.slots(place.node)[step.index]
        if slot.link is None:
            return None
        link = place.graph.links.get(slot.link)
        kind = step.kind or slot.type
        if link is None:
            raise _lost(place, slot.name, "the file does not hold the link to it")
        if link.origin == INPUT_NODE:
            return self._outside(place, link.origin_slot, kind)
        origin = place.graph.nodes.get(link.origin)
        if origin is None:
            raise _lost(place, slot.name, f"it is linked to node {link.origin}, which the file does not hold")
        if is_primitive(origin.type):  # it writes into the widget at its link's end, through nothing else
            values = origin.values
            carried = isinstance(values, list) and values and slot.widget and not is_virtual(place.node.type)
            return Value(values[0]) if carried else None
        return _Step(self._beside(place, origin), "out", link.origin_slot, kind)

    def _beside(self, place: Place, node: Node) -> Place:
        return self.places[place.id.removesuffix(place.node.id) + node.id]

    def _outside(self, place: Place, index: int, kind: str) -> _Step | Source:
        """What comes into the subgraph around: a link, or the value that its instance shows as a widget."""
        instance = place.around
        if instance is None or index >= len(place.graph.inputs):
            raise _lost(place, str(index), "its graph has no such input")
        name = place.graph.inputs[index].name
        for position, slot in enumerate(instance.node.inputs):
            if slot.name == name and slot.link is not None:
                return _Step(instance, "in", position, None)
        return self._shown(place.graph, index)

    def _shown(self, graph: Graph, index: int) -> Value | None:
        """What an instance shows for an input that nothing is linked to: the first widget behind it.

        The page keeps one value for it, the inner widget's: what an instance has saved is not read (1.45.20).
        """
        for _ in range(MAX_DEPTH):
            found = self._first_widget(graph, index)
            if found is None:
                return None
            target, name, widget = found
            inner = self._saved.subgraphs.get(target.type)
            if inner is None:
                values = self._classes.filled(target).values
                return Value(values[widget]) if widget in values else None
            names = [given.name for given in inner.inputs]
            if name not in names:
                return None
            graph, index = inner, names.index(name)
        return None

    def _first_widget(self, graph: Graph, index: int) -> tuple[Node, str, str] | None:
        for link in self._leaving(graph).get((INPUT_NODE, index), ()):
            target = graph.nodes.get(link.target)
            slots = target.inputs if target is not None else ()
            slot = slots[link.target_slot] if link.target_slot < len(slots) else None
            if target is not None and slot is not None and slot.widget is not None:
                return target, slot.name, slot.widget
        return None

    def _leaving(self, graph: Graph) -> Mapping[tuple[str, int], list[Link]]:
        if id(graph) not in self._from:
            found: dict[tuple[str, int], list[Link]] = {}
            for link in graph.links.values():
                found.setdefault((link.origin, link.origin_slot), []).append(link)
            self._from[id(graph)] = found
        return self._from[id(graph)]

    def _output(self, step: _Step) -> _Step | Source:
        place, node = step.place, step.place.node
        if node.mode == MUTED:
            return None
        if node.mode == BYPASSED:
            match = bypassed(self._classes.slots(node), node.outputs, step.index, step.kind or "*")
            return None if match is None else _Step(place, "in", match, None)
        inner = self._saved.subgraphs.get(node.type)
        if inner is not None:
            return self._inside(step, inner)
        if not is_virtual(node.type):
            return place.id, step.index
        setter = self._setter(place)
        if setter is not None:
            return _Step(self._beside(place, setter), "in", 0, step.kind) if setter.inputs else None
        return _Step(place, "in", step.index, step.kind) if step.index < len(node.inputs) else None

    def _setter(self, place: Place) -> Node | None:
        graph = place.graph
        if id(graph) not in self._setters:
            self._setters[id(graph)] = setters(graph)
        return self._setters[id(graph)].get((place.node.type, place.node.name))

    def _inside(self, step: _Step, inner: Graph) -> _Step | Source:
        place = step.place
        link = self._arriving(inner).get((OUTPUT_NODE, step.index))
        if link is None:
            return None
        if link.origin != INPUT_NODE:
            origin = self.places.get(f"{place.id}:{link.origin}")
            return None if origin is None else _Step(origin, "out", link.origin_slot, step.kind)
        # Straight through.
        names = [slot.name for slot in place.node.inputs]
        given = inner.inputs[link.origin_slot].name if link.origin_slot < len(inner.inputs) else None
        return _Step(place, "in", names.index(given), step.kind) if given in names else None

    def _arriving(self, graph: Graph) -> Mapping[tuple[str, int], Link]:
        if id(graph) not in self._into:
            links = graph.links.values()
            self._into[id(graph)] = {(link.target, link.target_slot): link for link in reversed([*links])}
        return self._into[id(graph)]


def bypassed(inputs: Sequence[Slot], outputs: Sequence[Slot], index: int, kind: str) -> int | None:
    """Which input stands in for output `index` of a bypassed node (#getBypassSlotIndex, 1.45.20).

    `kind` is the type that is wanted; None when no input fits.
    """
    produced = outputs[index].type if index < len(outputs) else "*"
    if kind in ("*", ""):
        return (index if index < len(inputs) else 0) if inputs else None
    fits = [connects(slot.type, produced) and connects(slot.type, kind) for slot in inputs]
    if index < len(inputs) and fits[index]:
        return index
    exact = [position for position, slot in enumerate(inputs) if slot.type == kind]
    return next(iter([*exact, *(position for position, fit in enumerate(fits) if fit)]), None)


def connects(one: str, other: str) -> bool:
    """LiteGraph.isValidConnection: the same type, any type, or one of a list; case does not count."""
    if one in ("", "*") or other in ("", "*") or one.lower() == other.lower():
        return True
    return not {part.strip() for part in one.lower().split(",")}.isdisjoint(
        part.strip() for part in other.lower().split(",")
    )


def _lost(place: Place, name: str, why: str) -> WorkflowInvalid:
    return WorkflowInvalid(f"node {place.node.label}, input {name!r}: {why}; connect it anew and save again")
