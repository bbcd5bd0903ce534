"""A part of a workflow: nodes that are bypassed, muted, or the only ones to run. On graphs in API format.

Bypass follows the official page: an output of a bypassed node becomes what feeds its first input of a fitting
type (ExecutableNodeDTO.ts, #getBypassSlotIndex, 1.45.20). Mute takes the node and the links to it away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .errors import WorkflowInvalid
from .resolve import bypassed
from .schema import AUTOGROW, InputSpec, NodeSpec, node_spec
from .served import Entry, ServedClass
from .ui import Slot
from .upstream import is_link

Graph = Mapping[str, Any]


def only(nodes: Graph, chosen: Iterable[str]) -> dict[str, Any]:
    """The chosen nodes, and all that they need. Raises WorkflowInvalid when none is chosen."""
    waiting = list(chosen)
    if not waiting:
        raise WorkflowInvalid("with no node chosen nothing is left of this workflow")
    kept: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id not in kept and node_id in nodes:
            kept.add(node_id)
            waiting += [source for source, _ in _links(nodes[node_id]).values()]
    return {node_id: node for node_id, node in nodes.items() if node_id in kept}


def mute(nodes: Graph, muted: Iterable[str]) -> dict[str, Any]:
    """The graph without these nodes; inputs that were linked to them are gone.

    Raises WorkflowInvalid when nothing is left.
    """
    gone = set(muted)
    kept = {node_id: node for node_id, node in nodes.items() if node_id not in gone}
    if not kept:
        raise WorkflowInvalid("with all of its nodes muted nothing is left of this workflow")
    return {
        node_id: _with(node, {name: None for name, (source, _) in _links(node).items() if source in gone})
        for node_id, node in kept.items()
    }


def bypass(
    nodes: Graph, chosen: Iterable[str], object_info: Mapping[str, Any], labels: Mapping[str, str]
) -> dict[str, Any]:
    """The graph without these nodes; what they got goes straight to who took from them.

    `object_info` tells the types, `labels` what a person calls the nodes. Raises WorkflowInvalid for a node
    whose class is unknown, and when nothing is left. An input that nothing fits loses its link, as on the
    page.
    """
    types = _Types(nodes, object_info)
    out = set(chosen)
    for node_id in out:
        if types.spec(node_id) is None:
            kind = nodes[node_id]["class_type"]
            raise WorkflowInvalid(f"node {labels[node_id]} cannot be bypassed: its class {kind!r} is unknown")
    made = {
        node_id: _with(
            node,
            {
                name: _through(types, out, link, types.wanted(node_id, name, link))
                for name, link in _links(node).items()
                if link[0] in out
            },
        )
        for node_id, node in nodes.items()
        if node_id not in out
    }
    if not made:
        raise WorkflowInvalid("with all of its nodes bypassed nothing is left of this workflow")
    return made


def _through(types: _Types, out: set[str], link: tuple[str, int], kind: str) -> list[Any] | None:
    """What feeds an input of type `kind` through bypassed nodes; None for nothing, also in a circle."""
    for _ in range(len(out) + 1):
        node_id, output = link
        if node_id not in out:
            return [node_id, output]
        slots = types.slots(node_id)
        match = bypassed(slots, types.outputs(node_id), output, kind)
        sources = _links(types.nodes[node_id])
        if match is None or slots[match].name not in sources:
            return None
        # From here on the type is that of the input found, not of the one at the end (resolveOutput).
        link, kind = sources[slots[match].name], slots[match].type
    return None


@dataclass(frozen=True, slots=True)
class _Types:
    """The types of the inputs and outputs of the nodes of a graph."""

    nodes: Graph
    object_info: Mapping[str, Any]

    def spec(self, node_id: str) -> NodeSpec | None:
        """The class of a node; None when nobody knows it."""
        kind = self.nodes[node_id]["class_type"]
        info = self.object_info.get(kind)
        return node_spec(kind, info) if isinstance(info, Mapping) else None

    def outputs(self, node_id: str) -> list[Slot]:
        spec = self.spec(node_id)
        kinds = () if spec is None else spec.outputs
        return [Slot("", "*" if kind.startswith("COMFY_") else kind) for kind in kinds]

    def slots(self, node_id: str) -> list[Slot]:
        """The inputs of a node in the page's order: sockets, then widgets, each with what it grew."""
        spec = self.spec(node_id)
        given = () if spec is None else sorted(spec.inputs, key=lambda one: one.is_widget)
        names = [name for one in given for name in self._shown(node_id, one)]
        return [Slot(name, self._kind(node_id, name)) for name in names]

    def _shown(self, node_id: str, given: InputSpec) -> Iterator[str]:
        """An input, and those that hang on it; one that grows has no socket itself, but a free one more."""
        held = self.nodes[node_id]["inputs"]
        if given.type != AUTOGROW:
            yield given.name
        yield from (name for name in held if name.startswith(f"{given.name}."))
        if given.type == AUTOGROW:
            more = (name for name in self._served(node_id) if name.startswith(f"{given.name}."))
            yield from islice((name for name in more if name not in held), 1)

    def wanted(self, node_id: str, name: str, link: tuple[str, int]) -> str:
        """The type of an input; where its class does not tell, that of what is linked to it."""
        return self._told(node_id, name) or self._made(link)

    def _kind(self, node_id: str, name: str) -> str:
        told = self._told(node_id, name)
        if told is not None:
            return told
        link = _links(self.nodes[node_id]).get(name)
        return "*" if link is None else self._made(link)

    def _told(self, node_id: str, name: str) -> str | None:
        """As `/object_info` has it; None for a type that follows the link (COMFY_MATCHTYPE_V3)."""
        entry = self._served(node_id).get(name)
        if entry is None or str(entry.type).startswith("COMFY_MATCH"):
            return None
        return "COMBO" if isinstance(entry.type, list) else str(entry.type)

    def _served(self, node_id: str) -> Mapping[str, Entry]:
        node = self.nodes[node_id]
        kind = node["class_type"]
        return ServedClass(kind, self.object_info.get(kind)).inputs(node["inputs"])

    def _made(self, link: tuple[str, int]) -> str:
        node_id, index = link
        outputs = self.outputs(node_id) if node_id in self.nodes else []
        return outputs[index].type if index < len(outputs) else "*"


def _links(node: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    inputs = node["inputs"].items()
    return {name: (value[0], value[1]) for name, value in inputs if is_link(value)}


def _with(node: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The node with these inputs; None takes one away."""
    inputs = {**node["inputs"], **changes}
    gone = {name for name, value in changes.items() if value is None}
    return {**node, "inputs": {name: value for name, value in inputs.items() if name not in gone}}
