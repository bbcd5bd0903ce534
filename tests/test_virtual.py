"""Nodes of the page alone."""

from __future__ import annotations

from typing import Any

import pytest

from comfyflow.ui import Graph, Node
from comfyflow.virtual import is_primitive, is_virtual, refused, setters


def node(kind: str, values: Any = None, node_id: str = "1") -> Node:
    return Node(node_id, kind, None, 0, (), (), values, {})


@pytest.mark.parametrize(
    ("kind", "yes"),
    [
        ("Note", True),
        ("easy bookmark", True),
        ("Node Combiner (rgthree)", True),
        ("Reroute", True),
        ("PrimitiveNode", True),
        ("GetNode", True),
        ("KSampler", False),
    ],
)
def test_the_page_never_sends_some_nodes(kind: str, yes: bool) -> None:
    assert is_virtual(kind) is yes
    assert is_primitive(kind) is (kind == "PrimitiveNode")


def test_a_get_node_finds_its_set_node_by_name_and_pack() -> None:
    nodes = [
        node("SetNode", ["a"], "1"),
        node("SetNode", ["a"], "2"),
        node("easy setNode", ["a"], "3"),
        node("SetNode", [], "4"),
        node("KSampler", ["a"], "5"),
    ]
    found = setters(Graph({one.id: one for one in nodes}, {}))
    assert {key: one.id for key, one in found.items()} == {("GetNode", "a"): "1", ("easy getNode", "a"): "3"}


@pytest.mark.parametrize(
    ("kind", "part"),
    [("Seed Everywhere", "real links"), ("workflow>G", "definition"), ("workflow/G", "definition")],
)
def test_what_cannot_be_converted_says_what_to_do(kind: str, part: str) -> None:
    assert part in (refused(node(kind)) or "")
    assert refused(node("KSampler")) is None
