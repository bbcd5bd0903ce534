"""Have nodes run again that ComfyUI would answer from its cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .upstream import is_link

# An input that no class has: ComfyUI passes it over when a node runs, but it is part of what the cache
# compares (comfy_execution/caching.py, get_immediate_node_signature, 0.3.64 and 0.27.0).
FRESH = "comfyflow_fresh"


def fresh_nodes(nodes: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """The graph, whose last nodes differ by `mark` from all that ran before.

    Nothing is linked to them, so they are what gives the files; a server does not have them in its cache.
    """
    used = {value[0] for node in nodes.values() for value in node["inputs"].values() if is_link(value)}
    return {
        node_id: node if node_id in used else {**node, "inputs": {**node["inputs"], FRESH: mark}}
        for node_id, node in nodes.items()
    }
