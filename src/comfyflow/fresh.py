"""Have nodes run again that ComfyUI would answer from its cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .upstream import is_link

# An input that no class has: ComfyUI passes it over when a node runs, but it is part of what the cache
# compares (comfy_execution/caching.py, get_immediate_node_signature, 0.3.64 and 0.27.0).
FRESH = "comfyflow_fresh"


def fresh_nodes(nodes: Mapping[str, Any], mark: str, giving: Collection[str] | None = ()) -> dict[str, Any]:
    """The graph, whose nodes that give files differ by `mark` from all that ran before, so that no server has
    them in its cache. What comes after them runs again too.

    They are those of the classes `giving`, and those that nothing is linked to; all nodes where it is not
    known which classes give files (None).
    """
    used = {value[0] for node in nodes.values() for value in node["inputs"].values() if is_link(value)}
    marked = {
        node_id
        for node_id, node in nodes.items()
        if giving is None or node_id not in used or node["class_type"] in giving
    }
    return {
        node_id: {**node, "inputs": {**node["inputs"], FRESH: mark}} if node_id in marked else node
        for node_id, node in nodes.items()
    }
