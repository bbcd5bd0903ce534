"""A workflow as ComfyUI's page saves it (UI format): nodes, slots and links, read and checked.

Layouts: version 0.4 and older (links as lists of six), version 1 and subgraph definitions (links as objects).
Source: src/platform/workflow/validation/schemas/workflowSchema.ts of the official frontend, 1.45.20.
Nothing is resolved here; every fault of form is one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from reprlib import Repr
from typing import Any

from .errors import WorkflowInvalid

MUTED = 2  # LGraphEventMode.NEVER
BYPASSED = 4  # LGraphEventMode.BYPASS
INPUT_NODE = "-10"  # the subgraph's own inputs (SubgraphInputNode)
OUTPUT_NODE = "-20"
MAX_NODES = 200_000  # after expansion: subgraphs inside of subgraphs, and group nodes, multiply
_MAX_ID = 100  # signs; expansion puts ids behind each other, so that long ones would multiply too
_MAX_NUMBER = 10**9  # of a slot or a node in the file; real ones have a few digits
_SLOT = re.compile("-?[0-9]{1,9}")
_BRIEF = Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 2, 80, 80, 80
_LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


@dataclass(frozen=True, slots=True)
class Slot:
    """An input or output of a node; `link` is what comes in; `widget` names the widget behind it."""

    name: str
    type: str
    link: Any = None
    widget: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A connection inside of one graph; node ids are text."""

    origin: str
    origin_slot: int
    target: str
    target_slot: int
    type: str


@dataclass(frozen=True, slots=True)
class Node:
    """One node as it was saved.

    `values` is `widgets_values` as it stands (a list, a mapping, or None); `named` is `widgets_values_named`,
    which some pages save beside it.
    """

    id: str
    type: str
    title: str | None
    mode: int
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    values: Any
    properties: Mapping[str, Any]
    named: Mapping[str, Any] | None = None

    @property
    def name(self) -> str | None:
        """The name that a Set or Get node carries: its first value, when it is a text."""
        first = self.values[0] if isinstance(self.values, list) and self.values else None
        return first if isinstance(first, str) else None

    @property
    def pack(self) -> str | None:
        """The pack that its class came from (`cnr_id` of the registry, else `aux_id`, a repository)."""
        found = (self.properties.get(key) for key in ("cnr_id", "aux_id"))
        return next((name for name in found if isinstance(name, str) and name), None)

    @property
    def label(self) -> str:
        """Title and id, for messages: `"Load Checkpoint" (4)`."""
        title = " ".join((self.title or self.type).split())
        short = title if len(title) <= 80 else f"{title[:77]}..."
        return f'"{short}" ({self.id})'


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes and links of the root graph, or of one subgraph with its own inputs and outputs."""

    nodes: Mapping[str, Node]
    links: Mapping[Any, Link]
    inputs: tuple[Slot, ...] = ()
    outputs: tuple[Slot, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """A whole file: the root graph, the subgraphs by their id, the group nodes by their name."""

    root: Graph
    subgraphs: Mapping[str, Graph]
    groups: Mapping[str, Any]


def is_ui(data: Any) -> bool:
    """Whether this is a graph as the page saves it: a list of nodes under `nodes`."""
    return isinstance(data, Mapping) and isinstance(data.get("nodes"), list)


def brief(value: Any) -> str:
    """A value for messages: never longer than a line, however large or deep it is."""
    text = _BRIEF.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def read(data: Mapping[str, Any]) -> Saved:
    """Read a saved workflow. Raises WorkflowInvalid, naming the node or link that is malformed."""
    definitions = data.get("definitions")
    found = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    subgraphs: dict[str, Graph] = {}
    for entry in found if isinstance(found, list) else ():
        if not is_ui(entry) or not isinstance(entry.get("id"), str):
            raise WorkflowInvalid("a subgraph's definition has no id or no nodes: save the workflow again")
        if entry["id"] in subgraphs:
            raise WorkflowInvalid(f"two subgraph definitions have the id {brief(entry['id'])}")
        subgraphs[entry["id"]] = _graph(entry)
    root = _graph(data)
    last = data.get("last_node_id")
    if not isinstance(last, int) or abs(last) >= _MAX_NUMBER:
        last = 0
    subgraphs = _distinct(root, subgraphs, last)
    extra = data.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, Mapping) else None
    return Saved(root, subgraphs, groups if isinstance(groups, Mapping) else {})


def _distinct(root: Graph, subgraphs: Mapping[str, Graph], last: int) -> dict[str, Graph]:
    """Give a new id to a node in a subgraph whose id another graph has already, as the page does.

    Source: subgraphDeduplication.ts of the official frontend; the ids are part of what is sent.
    """
    used = {node_id for node_id in root.nodes if node_id.isdecimal()}
    found: dict[str, Graph] = {}
    for name, graph in subgraphs.items():
        renamed: dict[str, str] = {}
        for node_id in graph.nodes:
            if not node_id.isdecimal():
                continue
            fresh = node_id
            while fresh in used:
                last += 1
                fresh = str(last)
            if fresh != node_id:
                renamed[node_id] = fresh
            used.add(fresh)
            last = max(last, int(fresh))
        found[name] = _renamed(graph, renamed) if renamed else graph
    return found


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    nodes = (replace(node, id=names.get(node.id, node.id)) for node in graph.nodes.values())
    links = {
        key: replace(
            link, origin=names.get(link.origin, link.origin), target=names.get(link.target, link.target)
        )
        for key, link in graph.links.items()
    }
    return replace(graph, nodes={node.id: node for node in nodes}, links=links)


def _graph(data: Mapping[str, Any]) -> Graph:
    nodes: dict[str, Node] = {}
    if not is_ui(data):
        raise WorkflowInvalid("this is no graph in UI format: it has no list of nodes")
    for entry in data["nodes"]:
        node = node_from(entry)
        if node.id in nodes:
            raise WorkflowInvalid(f"two nodes have the id {node.id}: {nodes[node.id].label} and {node.label}")
        nodes[node.id] = node
    return Graph(
        nodes,
        dict(_links(data.get("links"))),
        tuple(_slots(data.get("inputs"))),
        tuple(_slots(data.get("outputs"))),
        _text(data.get("name") or ""),
    )


def node_from(entry: Any) -> Node:
    """Read one node. Raises WorkflowInvalid for one without a type or an id."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
        raise WorkflowInvalid(f"a node has no type: {brief(entry)}")
    identity = entry.get("id")
    if not _is_id(identity):
        kind = brief(entry["type"])
        raise WorkflowInvalid(
            f"a node of type {kind} has no id (a number, or a text of at most {_MAX_ID} signs)"
        )
    mode, properties = entry.get("mode", 0), entry.get("properties")
    if not isinstance(mode, int):
        raise WorkflowInvalid(f"node {identity}: 'mode' must be a number, not {brief(mode)}")
    title, named = entry.get("title"), entry.get("widgets_values_named")
    return Node(
        str(identity),
        entry["type"],
        title if isinstance(title, str) and title else None,
        mode,
        tuple(_slots(entry.get("inputs"))),
        tuple(_slots(entry.get("outputs"))),
        entry.get("widgets_values"),
        properties if isinstance(properties, Mapping) else {},
        named if isinstance(named, Mapping) else None,
    )


def _is_id(identity: Any) -> bool:
    if isinstance(identity, str):
        return len(identity) <= _MAX_ID
    return isinstance(identity, int) and not isinstance(identity, bool) and identity.bit_length() < 300


def _slots(entries: Any) -> Iterator[Slot]:
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, Mapping):
            raise WorkflowInvalid(f"an input or output of a node is malformed: {brief(entry)}")
        widget = entry.get("widget")
        kind = entry.get("type")
        yield Slot(
            _text(entry.get("name", "")),
            "COMBO" if isinstance(kind, list) else _text(kind if kind is not None else "*"),
            entry["link"] if isinstance(entry.get("link"), int | str) else None,
            _text(widget.get("name")) if isinstance(widget, Mapping) else None,
            label if isinstance(label := entry.get("label"), str) else None,
        )


def _text(value: Any) -> str:
    """Names and types are texts; what is none gets a text of its own."""
    return value if isinstance(value, str) else brief(value)


def _links(entries: Any) -> Iterator[tuple[Any, Link]]:
    for entry in _entries(entries):
        if isinstance(entry, list | tuple):
            # Links of very old files have five fields: the type is missing.
            entry = dict(zip(_LINK, entry, strict=False))  # noqa: PLW2901 - the same link, named
        if entry is None:
            continue
        if not isinstance(entry, Mapping) or not _sound(entry):
            raise WorkflowInvalid(f"a link is malformed: {brief(entry)}")
        yield (
            entry["id"],
            Link(
                str(entry["origin_id"]),
                int(entry["origin_slot"]),
                str(entry["target_id"]),
                int(entry["target_slot"]),
                _text(entry.get("type", "*")),
            ),
        )


def _entries(entries: Any) -> Iterable[Any]:
    if entries is None:
        return ()
    if isinstance(entries, Mapping):
        return entries.values()
    if not isinstance(entries, list):
        raise WorkflowInvalid("'links' must be a list")
    return entries


def _sound(entry: Mapping[str, Any]) -> bool:
    slots = (entry.get("origin_slot"), entry.get("target_slot"))
    ends = (entry.get("origin_id"), entry.get("target_id"))
    known = isinstance(entry.get("id"), int | str) and all(_is_id(end) for end in ends)
    return known and all(_is_slot(slot) for slot in slots)


def _is_slot(slot: Any) -> bool:
    if isinstance(slot, str):
        return _SLOT.fullmatch(slot) is not None
    return isinstance(slot, int) and abs(slot) < _MAX_NUMBER
