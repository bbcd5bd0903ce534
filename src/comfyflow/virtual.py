"""Nodes that exist in the page only: they are never sent, and some of them carry a link or a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ui import Graph, Node

_NOTES = frozenset(
    ["Note", "MarkdownNote", "Label (rgthree)", "Bookmark (rgthree)", "NoteNode", "Note Plus (mtb)"]
)
# They change modes while the page is used; what they did is in the file.
_SWITCHES = frozenset(
    f"{name} (rgthree)"
    for name in (
        "Fast Muter",
        "Fast Bypasser",
        "Fast Groups Muter",
        "Fast Groups Bypasser",
        "Fast Actions Button",
        "Mute / Bypass Repeater",
        "Mute / Bypass Relay",
        "Random Unmuter",
        "Node Collector",
    )
)
_REROUTES = frozenset(["Reroute", "Reroute (rgthree)"])
_SETTERS = {"GetNode": "SetNode", "easy getNode": "easy setNode"}  # KJNodes; easy-use
_VIRTUAL = _NOTES | _SWITCHES | _REROUTES | {"PrimitiveNode", *_SETTERS, *_SETTERS.values()}
_EVERYWHERE = (
    "Anything Everywhere",
    "Anything Everywhere?",
    "Anything Everywhere3",
    "Prompts Everywhere",
    "Seed Everywhere",
)


def is_virtual(class_type: str) -> bool:
    """Whether the page never sends this node."""
    return class_type in _VIRTUAL


def is_primitive(class_type: str) -> bool:
    """Whether it is the page's own source of one value (widgetInputs.ts)."""
    return class_type == "PrimitiveNode"


def setter_of(node: Node, graph: Graph) -> Node | None:
    """The Set node whose name a Get node has; None for nodes of any other kind, or when there is none."""
    wanted = _SETTERS.get(node.type)
    name = _name(node)
    if wanted is None or name is None:
        return None
    return next((one for one in graph.nodes.values() if one.type == wanted and _name(one) == name), None)


def refused(node: Node, groups: Mapping[str, Any]) -> str | None:
    """Why a node cannot be converted at all, or None."""
    if node.type in _EVERYWHERE:
        return (
            "the page makes its links while it runs and the file does not hold them; "
            "in ComfyUI choose 'Convert all UEs to real links' and save again"
        )
    named = node.type.removeprefix("workflow>").removeprefix("workflow/")
    if named != node.type and named in groups:
        return "group nodes are the old kind of subgraph; in ComfyUI choose 'Convert to nodes' and save again"
    return None


def _name(node: Node) -> Any:
    values = node.values
    return values[0] if isinstance(values, list) and values else None
