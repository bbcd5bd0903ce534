"""The expanded graph of a saved workflow, and what really feeds an input of it.

Subgraphs are expanded (ids as the page makes them: `19:3`); reroutes, Get and Set nodes, bypassed nodes and
the borders of subgraphs are followed. Sources: ExecutableNodeDTO.ts and executionUtil.ts of the official
frontend, 1.45.20. Nothing recurses on the length of a chain: 100,000 reroutes are followed like one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from .errors import WorkflowInvalid
from .ui import BYPASSED, INPUT_NODE, MAX_NODES, MUTED, OUTPUT_NODE, Graph, Link, Node, Saved, Slot, brief
from .virtual import is_primitive, is_virtual, setters
from .widgets import Classes

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

    A `turn` is where the type that is wanted counts: at the output of a bypassed node, which chooses by it,
    and at the input of a subgraph's instance, whose own type is wanted from there on.
    """

    place: Place
    side: str
    index: int
    turn: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        return self.place.id, self.side, self.index


Source = tuple[str, int] | Value | None


class Links:
    """Every place of a saved workflow, and the source of each of their inputs."""

    def __init__(self, saved: Saved, classes: Classes) -> None:
        self._saved = saved
        self._classes = classes
        self._found: dict[tuple[str, str, int], Source] = {}
        self._ends: dict[tuple[str, str, int], _Step | Source] = {}
        self._shows: dict[tuple[int, int], Value | None] = {}
        self._positions: dict[int, Mapping[str, int]] = {}
        self._setters: dict[int, Mapping[tuple[str, Any], Node]] = {}
        self._from: dict[int, Mapping[tuple[str, int], list[Link]]] = {}
        self._into: dict[int, Mapping[tuple[str, int], Link]] = {}
        self.places: dict[str, Place] = {}
        for place in self._expanded(saved.root, "", None, ()):
            if place.id in self.places:
                raise WorkflowInvalid(f"two nodes have the id {place.id}, with the subgraphs expanded")
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
        step: _Step | Source = _Step(place, "in", index)
        made: dict[tuple[str, str, int], None] = {}
        while isinstance(step, _Step):
            if step.key in self._found:
                step = self._found[step.key]
                break
            _once(step, made)
            end = self._end(step)
            step = self._turned(end, self._slot(step).type) if isinstance(end, _Step) else end
        self._found |= dict.fromkeys(made, step)
        return step

    def _end(self, start: _Step) -> _Step | Source:
        """Where the way upstream ends or takes a turn: the same for every type that may be wanted."""
        step: _Step | Source = start
        made: dict[tuple[str, str, int], None] = {}
        while isinstance(step, _Step):
            if step.key in self._ends:
                step = self._ends[step.key]
                break
            _once(step, made)
            step = self._input(step) if step.side == "in" else self._output(step)
            if isinstance(step, _Step) and step.turn:
                break
        self._ends |= dict.fromkeys(made, step)
        return step

    def _turned(self, turn: _Step, kind: str) -> _Step | None:
        """The input where the way goes on when an input of type `kind` led to this turn."""
        if turn.side == "in":
            return turn
        node = turn.place.node
        match = bypassed(self._slots(node), node.outputs, turn.index, kind)
        return None if match is None else _Step(turn.place, "in", match)

    def _slots(self, node: Node) -> tuple[Slot, ...]:
        """A subgraph may have the name of a class, so that its instance is not taken for one."""
        return node.inputs if node.type in self._saved.subgraphs else self._classes.slots(node)

    def _slot(self, step: _Step) -> Slot:
        return self._slots(step.place.node)[step.index]

    def _input(self, step: _Step) -> _Step | Source:
        place, slot = step.place, self._slot(step)
        if slot.link is None:
            return None
        link = place.graph.links.get(slot.link)
        if link is None:
            raise _lost(place, slot.name, "the file does not hold the link to it")
        if link.origin_slot < 0:
            raise _lost(place, slot.name, f"it is linked to output {link.origin_slot}")
        if link.origin == INPUT_NODE:
            return self._outside(place, slot.name, link.origin_slot)
        origin = place.graph.nodes.get(link.origin)
        if origin is None:
            raise _lost(place, slot.name, f"it is linked to node {link.origin}, which the file does not hold")
        if is_primitive(origin.type):  # it writes into the widget at its link's end, through nothing else
            values = origin.values
            carried = isinstance(values, list) and values and slot.widget and not is_virtual(place.node.type)
            return Value(values[0]) if carried else None
        return _Step(self._beside(place, origin), "out", link.origin_slot)

    def _beside(self, place: Place, node: Node) -> Place:
        return self.places[place.id.removesuffix(place.node.id) + node.id]

    def _outside(self, place: Place, given: str, index: int) -> _Step | Source:
        """What comes into the subgraph around: a link, or the value that its instance shows as a widget."""
        instance = place.around
        if instance is None or index >= len(place.graph.inputs):
            raise _lost(place, given, f"it is linked to input {index} of its graph, which has none such")
        position = self._position(instance.node.inputs, place.graph.inputs[index].name)
        if position is not None and instance.node.inputs[position].link is not None:
            return _Step(instance, "in", position, turn=True)
        key = id(place.graph), index
        if key not in self._shows:
            self._shows[key] = self._shown(place.graph, index)
        return self._shows[key]

    def _position(self, slots: tuple[Slot, ...], name: str) -> int | None:
        """The place of the slot `name`; of several, of the first one that is linked."""
        if id(slots) not in self._positions:
            found: dict[str, int] = {}
            for position, slot in enumerate(slots):
                if slot.name not in found or (slots[found[slot.name]].link is None and slot.link is not None):
                    found[slot.name] = position
            self._positions[id(slots)] = found
        return self._positions[id(slots)].get(name)

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
            position = self._position(inner.inputs, name)
            if position is None:
                return None
            graph, index = inner, position
        return None

    def _first_widget(self, graph: Graph, index: int) -> tuple[Node, str, str] | None:
        for link in self._leaving(graph).get((INPUT_NODE, index), ()):
            target = graph.nodes.get(link.target)
            slots = target.inputs if target is not None else ()
            slot = slots[link.target_slot] if 0 <= link.target_slot < len(slots) else None
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
            return replace(step, turn=True)
        inner = self._saved.subgraphs.get(node.type)
        if inner is not None:
            return self._inside(step, inner)
        if not is_virtual(node.type):
            return place.id, step.index
        setter = self._setter(place)
        if setter is not None:
            return _Step(self._beside(place, setter), "in", 0) if setter.inputs else None
        return _Step(place, "in", step.index) if step.index < len(node.inputs) else None

    def _setter(self, place: Place) -> Node | None:
        graph = place.graph
        if id(graph) not in self._setters:
            self._setters[id(graph)] = setters(graph)
        return self._setters[id(graph)].get((place.node.type, place.node.name))

    def _inside(self, step: _Step, inner: Graph) -> _Step | Source:
        place = step.place
        link = self._arriving(inner).get((OUTPUT_NODE, step.index))
        if link is None or link.origin_slot < 0:
            return None
        if link.origin != INPUT_NODE:
            origin = self.places.get(f"{place.id}:{link.origin}")
            return None if origin is None else _Step(origin, "out", link.origin_slot)
        if link.origin_slot >= len(inner.inputs):
            return None
        # Straight through.
        position = self._position(place.node.inputs, inner.inputs[link.origin_slot].name)
        return None if position is None else _Step(place, "in", position)

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

    def fits(slot: Slot) -> bool:
        return connects(slot.type, produced) and connects(slot.type, kind)

    if index < len(inputs) and fits(inputs[index]):
        return index
    exact = (position for position, slot in enumerate(inputs) if slot.type == kind)
    fitting = (position for position, slot in enumerate(inputs) if fits(slot))
    return next(chain(exact, fitting), None)


def connects(one: str, other: str) -> bool:
    """LiteGraph.isValidConnection: the same type, any type, or one of a list; case does not count."""
    if one in ("", "*") or other in ("", "*") or one.lower() == other.lower():
        return True
    return not {part.strip() for part in one.lower().split(",")}.isdisjoint(
        part.strip() for part in other.lower().split(",")
    )


def _once(step: _Step, made: dict[tuple[str, str, int], None]) -> None:
    """Remember a step. Raises WorkflowInvalid when it was made before: links in a circle."""
    if step.key in made:
        raise WorkflowInvalid(f"node {step.place.node.label}: its links lead back to itself")
    made[step.key] = None


def _lost(place: Place, name: str, why: str) -> WorkflowInvalid:
    where = f"node {place.node.label}, input {brief(name)}"
    return WorkflowInvalid(f"{where}: {why}; connect it anew and save again")
