"""Group nodes, the kind of subgraph before subgraphs: each becomes a subgraph of its own.

A group node keeps its definition in `extra.groupNodes` and its values on itself, in the order in which its
inner nodes show their widgets. Source: groupNode.ts of the official frontend; the page of 1.45.20 still opens
them, but takes lists of choices for sockets and so mixes up their inputs: here the older pages count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf
from typing import Any

from .errors import WorkflowInvalid
from .schema import InputSpec, NodeSpec
from .ui import INPUT_NODE, MAX_NODES, OUTPUT_NODE, Graph, Link, Node, Saved, Slot, brief, node_from
from .virtual import is_primitive
from .widgets import Classes

_PREFIXES = ("workflow>", "workflow/")


def opened(saved: Saved, classes: Classes) -> Saved:
    """The workflow with a subgraph in the place of each group node.

    Raises WorkflowInvalid, naming the group node, when its definition is malformed or holds an unknown class.
    """
    subgraphs = dict(saved.subgraphs)
    nodes = dict(saved.root.nodes)
    size = 0
    for node in saved.root.nodes.values():
        definition = _definition(node, saved.groups)
        if definition is not None:
            size += sum(len(part) for part in definition.values() if isinstance(part, list))
            if size > MAX_NODES:
                raise WorkflowInvalid(f"its group nodes hold more than {MAX_NODES:,} nodes and links")
            name = f"{node.type}#{node.id}"
            subgraphs[name] = _Group(node, definition, classes).graph()
            nodes[node.id] = replace(node, type=name)
    return replace(saved, root=replace(saved.root, nodes=nodes), subgraphs=subgraphs)


def _definition(node: Node, groups: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for prefix in _PREFIXES:
        found = groups.get(node.type.removeprefix(prefix)) if node.type.startswith(prefix) else None
        if isinstance(found, Mapping):
            return found
    return None


@dataclass
class _Shown:
    """What the group node shows: its inputs (by inner node and input name), and its widgets in order."""

    inputs: dict[tuple[int, str], str] = field(default_factory=dict)
    widgets: list[tuple[int, InputSpec]] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)


class _Group:
    def __init__(self, instance: Node, definition: Mapping[str, Any], classes: Classes) -> None:
        self._instance = instance
        self._classes = classes
        entries, links = definition.get("nodes"), definition.get("links")
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise self._fault("its definition has no list of nodes")
        self._nodes = [node_from({**entry, "id": place}) for place, entry in enumerate(entries)]
        self._specs = [self._spec(node) for node in self._nodes]
        links = links if isinstance(links, list) else []
        self._links = [link for link in links if self._inner(link)]
        external = list(_lists(definition.get("external"), 2))
        self._external = {(str(entry[0]), str(entry[1])) for entry in external}
        self._carried = dict(self._carrying(links, external))
        config = definition.get("config")
        self._config: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
        self._linked = {(link[2], link[3]) for link in self._links}
        self._used = {(link[0], link[1]) for link in self._links}

    def _fault(self, why: str) -> WorkflowInvalid:
        return WorkflowInvalid(
            f"group node {self._instance.label}: {why}; in ComfyUI convert it to nodes and save again"
        )

    def _spec(self, node: Node) -> NodeSpec | None:
        if is_primitive(node.type) or node.type in ("Reroute", "Note", "MarkdownNote"):
            return None
        spec = self._classes.spec(node.type)
        if spec is None:
            raise self._fault(f"its inner node {node.label} is of an unknown class, {brief(node.type)}")
        return spec

    def _inner(self, link: Any) -> bool:
        """Whether a link runs between two inner nodes; others are left over from where the group was made."""
        if not isinstance(link, list) or len(link) < 4:
            raise self._fault("its definition has a malformed link")
        ends = link[:4]
        whole = all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends)
        return whole and max(link[0], link[2]) < len(self._nodes)

    def graph(self) -> Graph:
        """The subgraph that does what this group node does."""
        shown = self._shown()
        names = list(shown.inputs.values())
        positions = {name: at for at, name in reversed([*enumerate(names)])}
        links = [Link(str(link[0]), link[1], str(link[2]), link[3], "*") for link in self._links]
        into = {(link.target, link.target_slot): key for key, link in enumerate(links)}
        nodes: dict[str, Node] = {}
        for place, node in enumerate(self._nodes):
            slots = []
            for index, slot in enumerate(self._slots(place)):
                key = into.get((node.id, index))
                if key is None and (place, slot.name) in shown.inputs:
                    key = len(links)
                    at = positions[shown.inputs[place, slot.name]]
                    links.append(Link(INPUT_NODE, at, node.id, index, slot.type))
                slots.append(replace(slot, link=key))
            nodes[node.id] = replace(node, inputs=tuple(slots))
        for place, (source, output) in enumerate(self._outputs()):
            links.append(Link(str(source), output, OUTPUT_NODE, place, "*"))
        for place, values in self._values(shown).items():
            nodes[str(place)] = replace(nodes[str(place)], values=values)
        inputs = tuple(Slot(name, "*") for name in names)
        return Graph(nodes, dict(enumerate(links)), inputs, (), self._instance.type)

    def _slots(self, place: int) -> tuple[Slot, ...]:
        """The inner node's own inputs; those of its class when the file has none."""
        node, spec = self._nodes[place], self._specs[place]
        if node.type == "Reroute":
            return tuple(replace(slot, name=self._carried.get(place, "*")) for slot in node.inputs[:1])
        if node.inputs or spec is None:
            return node.inputs
        return tuple(Slot(given.name, given.type) for given in spec.inputs if not given.is_widget)

    def _shown(self) -> _Shown:
        shown = _Shown()
        late: list[tuple[int, int, Slot]] = []
        for place, (node, spec) in enumerate(zip(self._nodes, self._specs, strict=True)):
            slots = self._slots(place)
            converted = {slot.widget for slot in slots if slot.widget}
            for given in self._widgets(place, node, spec):
                if given.name not in converted:
                    self._named(shown, place, given.name)
                    shown.widgets.append((place, given))
            for index, slot in enumerate(slots):
                if slot.widget:
                    late.append((place, index, slot))
                else:
                    self._socket(shown, place, index, slot)
        for place, index, slot in late:
            self._socket(shown, place, index, slot)
        return shown

    def _socket(self, shown: _Shown, place: int, index: int, slot: Slot) -> None:
        spec = self._specs[place]
        internal = (place, index) in self._linked
        if internal or (spec is None and self._passes(place)):
            return
        name = self._named(shown, place, slot.name)
        if spec is not None and slot.widget:  # it keeps its widget, behind all others
            widgets = self._widgets(place, self._nodes[place], spec)
            shown.widgets += [(place, given) for given in widgets if given.name == slot.widget]
        if self._configured(place, "input", slot.name).get("visible") is not False:
            shown.inputs[place, slot.name] = name

    def _carrying(self, links: list[Any], external: list[list[Any]]) -> Iterator[tuple[int, str]]:
        """Places of inner nodes, and the type of what comes out of their first output; the last told counts.

        It is that of the first input it goes to, else of what came in when the group was made (getNodeDef).
        """
        yield from ((entry[0], entry[2]) for entry in external if _is_told(entry, 0, 2))
        yield from ((link[2], link[5]) for link in reversed(links) if _is_told(link, 2, 5))
        for link in reversed(self._links):
            inputs = self._nodes[link[2]].inputs
            if link[1] == 0 and link[3] < len(inputs) and inputs[link[3]].type != "*":
                yield link[0], inputs[link[3]].type

    def _passes(self, place: int) -> bool:
        """Whether an inner reroute only joins inner nodes."""
        return (place, 0) in self._linked and (str(place), "0") not in self._external

    def _widgets(self, place: int, node: Node, spec: NodeSpec | None) -> Iterator[InputSpec]:
        if spec is not None:
            # The group has no value for what the class has got since.
            left: float = len(node.values) if isinstance(node.values, list) and node.values else inf
            for given in spec.inputs:
                if given.is_widget and left > 0:
                    yield given
                    left -= 1 + given.controls
        elif is_primitive(node.type) and (place, 0) in self._used:
            asked = len(node.values) > 1 if isinstance(node.values, list) else False
            yield InputSpec("value", "INT", {"control_after_generate": asked}, required=True)

    def _configured(self, place: int, side: str, name: str) -> Mapping[str, Any]:
        found: Any = self._config
        for key in (str(place), side, name):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def _named(self, shown: _Shown, place: int, name: str) -> str:
        """The name an inner input has on the group node (getInputConfig)."""
        node = self._nodes[place]
        found = self._configured(place, "input", name).get("name")
        shown_as = (slot.label for slot in node.inputs if slot.name == name and slot.label)
        label = found if isinstance(found, str) else next(shown_as, name)
        key = label
        if (is_primitive(node.type) and node.title) or label in shown.names:
            prefix = f"{node.title or node.type} "
            key = label = f"{prefix}{name}"
            if label in shown.names:
                label = f"{prefix}{shown.names[label]} {name}"
        shown.names[key] = shown.names.get(key, 1) + 1
        return label

    def _outputs(self) -> Iterator[tuple[int, int]]:
        for place, (node, spec) in enumerate(zip(self._nodes, self._specs, strict=True)):
            if spec is None and (node.type != "Reroute" or self._passes(place)):
                continue
            for output in range(len(spec.outputs) if spec else 1):
                hidden = (place, output) in self._used and (str(place), str(output)) not in self._external
                if self._configured(place, "output", str(output)).get("visible", not hidden):
                    yield place, output

    def _values(self, shown: _Shown) -> dict[int, Mapping[str, Any] | list[Any]]:
        """The group node's own values, by inner node; inner nodes keep theirs where it has none."""
        rest: Iterator[Any] = iter(self._instance.values if isinstance(self._instance.values, list) else [])
        found: dict[int, dict[str, Any]] = {}
        for place, given in shown.widgets:
            for one in islice(rest, 1):
                found.setdefault(place, {})[given.name] = one
            deque(islice(rest, given.controls), maxlen=0)
        return {
            place: [named["value"]]
            if self._specs[place] is None
            else {**self._classes.filled(self._nodes[place]).values, **named}
            for place, named in found.items()
        }


def _is_told(entry: list[Any], place: int, kind: int) -> bool:
    known = len(entry) > kind and isinstance(entry[place], int)
    return known and isinstance(entry[kind], str) and entry[kind] != "*"


def _lists(entries: Any, length: int) -> Iterator[list[Any]]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, list) and len(entry) >= length:
            yield entry
