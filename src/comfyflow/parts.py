"""A part of a workflow: nodes that are bypassed, muted, or the only ones to run. On graphs in API format.

Bypass follows the official page: an output of a bypassed node becomes what feeds its first input of a fitting
type (ExecutableNodeDTO.ts, #getBypassSlotIndex, 1.45.20). Mute takes the node and the links to it away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import WorkflowInvalid
from .resolve import bypassed
from .schema import NodeSpec, node_spec
from .ui import Slot

Graph = Mapping[str, Any]
# An input that no class has: ComfyUI passes it over when a node runs, but it is part of what the cache
# compares (comfy_execution/caching.py, get_immediate_node_signature, 0.3.64 and 0.27.0).
FRESH = "comfyflow_fresh"


def only(nodes: Graph, chosen: Iterable[str]) -> dict[str, Any]:
    """The chosen nodes, and all that they need."""
    waiting = list(chosen)
    kept: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id not in kept and node_id in nodes:
            kept.add(node_id)
            waiting += [source for source, _ in _links(nodes[node_id]).values()]
    return {node_id: node for node_id, node in nodes.items() if node_id in kept}


def mute(nodes: Graph, muted: Iterable[str]) -> dict[str, Any]:
    """The graph without these nodes; inputs that were linked to them are gone."""
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
    whose class is unknown. An input that nothing fits loses its link, as on the page.
    """
    out = set(chosen)
    specs = {node_id: _spec(nodes, node_id, object_info, labels) for node_id in out}
    made = {}
    for node_id, node in nodes.items():
        if node_id in out:
            continue
        changes = {
            name: _through(nodes, link, specs, _type_of(nodes, node_id, name, object_info))
            for name, link in _links(node).items()
            if link[0] in out
        }
        made[node_id] = _with(node, changes)
    if not made:
        raise WorkflowInvalid("with all of its nodes bypassed nothing is left of this workflow")
    return made


def _through(
    nodes: Graph, link: tuple[str, int], specs: Mapping[str, NodeSpec], kind: str
) -> list[Any] | None:
    """What feeds an input through bypassed nodes; None for nothing, also where they stand in a circle."""
    for _ in range(len(specs) + 1):
        node_id, output = link
        if node_id not in specs:
            return [node_id, output]
        spec = specs[node_id]
        slots = [Slot(one.name, one.type) for one in sorted(spec.inputs, key=lambda one: one.is_widget)]
        match = bypassed(slots, [Slot("", one) for one in spec.outputs], output, kind)
        sources = _links(nodes[node_id])
        if match is None or slots[match].name not in sources:
            return None
        link = sources[slots[match].name]
    return None


def _spec(nodes: Graph, node_id: str, object_info: Mapping[str, Any], labels: Mapping[str, str]) -> NodeSpec:
    kind = nodes[node_id]["class_type"]
    info = object_info.get(kind)
    if not isinstance(info, Mapping):
        raise WorkflowInvalid(f"node {labels[node_id]} cannot be bypassed: its class {kind!r} is unknown")
    return node_spec(kind, info)


def _type_of(nodes: Graph, node_id: str, name: str, object_info: Mapping[str, Any]) -> str:
    kind = nodes[node_id]["class_type"]
    info = object_info.get(kind)
    given = node_spec(kind, info).input(name) if isinstance(info, Mapping) else None
    return "*" if given is None or given.type.startswith("COMFY_") else given.type


def _links(node: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    return {
        name: (value[0], value[1])
        for name, value in node["inputs"].items()
        if isinstance(value, list) and len(value) == len(("node", "slot")) and isinstance(value[0], str)
    }


def _with(node: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The node with these inputs; None takes one away."""
    inputs = {**node["inputs"], **changes}
    gone = {name for name, value in changes.items() if value is None}
    return {**node, "inputs": {name: value for name, value in inputs.items() if name not in gone}}


def fresh_nodes(nodes: Graph, mark: str) -> dict[str, Any]:
    """The graph, whose last nodes differ by `mark` from all that ran before.

    Nothing is linked to them, so they are what gives the files; a server does not have them in its cache.
    """
    used = {source for node in nodes.values() for source, _ in _links(node).values()}
    return {
        node_id: node if node_id in used else {**node, "inputs": {**node["inputs"], FRESH: mark}}
        for node_id, node in nodes.items()
    }
