"""Nodes that exist in the page only: they are never sent, and some of them carry a link or a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ui import Graph, Node

_NOTES = frozenset(
    {"Note", "MarkdownNote", "NoteNode", "Note Plus (mtb)"}
    | {"Label (rgthree)", "Bookmark (rgthree)", "easy bookmark"}
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
        "Node Combiner",
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


def setters(graph: Graph) -> Mapping[tuple[str, Any], Node]:
    """The Set node behind each kind of Get node and name; the first one of a name counts."""
    readers = {setter: getter for getter, setter in _SETTERS.items()}
    found: dict[tuple[str, Any], Node] = {}
    for node in graph.nodes.values():
        if node.type in readers and node.name is not None:
            found.setdefault((readers[node.type], node.name), node)
    return found


def refused(node: Node) -> str | None:
    """Why a node cannot be converted at all, or None."""
    if node.type in _EVERYWHERE:
        return (
            "the page makes its links while it runs and the file does not hold them; "
            "in ComfyUI choose 'Convert all UEs to real links' and save again"
        )
    if node.type.startswith(("workflow>", "workflow/")):
        return "the file does not hold the definition of this group node; convert it to nodes and save again"
    return None
