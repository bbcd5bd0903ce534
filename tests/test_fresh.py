"""Nodes that are to run again."""

from __future__ import annotations

import copy

from graphs import classic, node

from comfyflow import Workflow
from comfyflow.fresh import FRESH, fresh_nodes


def test_the_last_nodes_alone_are_made_to_differ() -> None:
    graph = {**classic(), "10": node("PreviewImage", images=["8", 0])}
    before = copy.deepcopy(graph)
    made = fresh_nodes(graph, "now")
    assert [node_id for node_id in made if made[node_id] != graph[node_id]] == ["9", "10"]
    assert made["10"] == node("PreviewImage", images=["8", 0], **{FRESH: "now"})
    assert graph == before


def test_what_was_sent_so_is_the_same_workflow() -> None:
    workflow = Workflow.load(classic())
    assert Workflow.load(fresh_nodes(workflow.nodes, "now")).digest == workflow.digest
