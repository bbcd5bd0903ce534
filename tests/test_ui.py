"""Saved workflows, read and checked."""

from __future__ import annotations

from typing import Any

import pytest

from comfyflow.errors import WorkflowInvalid
from comfyflow.ui import Link, Slot, brief, is_ui, node_from, read


def node(node_id: Any = 1, kind: Any = "A", **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": kind, **more}


@pytest.mark.parametrize(
    ("data", "yes"),
    [({"nodes": []}, True), ({"nodes": {}}, False), ({"1": {}}, False), ([], False), (None, False)],
)
def test_a_list_of_nodes_makes_the_ui_format(data: Any, yes: bool) -> None:
    assert is_ui(data) is yes


def test_a_node_keeps_what_matters() -> None:
    found = node_from(
        node(
            7,
            "KSampler",
            title=" My\nsampler ",
            mode=4,
            inputs=[
                {"name": "seed", "type": "INT", "link": 3, "widget": {"name": "seed"}, "label": "Seed"},
                {"name": "list", "type": ["a", "b"], "link": {}},
                {},
            ],
            outputs=[{"name": "LATENT", "type": "LATENT"}],
            widgets_values=["one", 2],
            widgets_values_named={"seed": 2},
            properties={"aux_id": "me/pack"},
        )
    )
    assert (found.id, found.type, found.mode, found.values) == ("7", "KSampler", 4, ["one", 2])
    assert found.inputs == (
        Slot("seed", "INT", 3, "seed", "Seed"),
        Slot("list", "COMBO"),
        Slot("", "*"),
    )
    assert found.outputs == (Slot("LATENT", "LATENT"),)
    assert (found.name, found.named, found.pack) == ("one", {"seed": 2}, "me/pack")
    assert found.label == '"My sampler" (7)'


def test_what_a_node_does_not_have_is_empty() -> None:
    found = node_from(node("x", properties=5, title="", widgets_values=[3]))
    assert (found.title, found.properties, found.name, found.named, found.pack) == (
        None,
        {},
        None,
        None,
        None,
    )
    assert (found.inputs, found.outputs, found.label) == ((), (), '"A" (x)')
    assert node_from(node(widgets_values={"a": 1})).name is None


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        (5, "a node has no type: 5"),
        ({"id": 1}, "a node has no type"),
        (node(None), "has no id"),
        (node(True), "has no id"),
        (node(1.5), "has no id"),
        (node("x" * 101), "has no id"),
        (node(2**300), "has no id"),
        (node(1, mode="x"), "'mode' must be a number"),
        (node(1, inputs=[5]), "an input or output of a node is malformed: 5"),
    ],
)
def test_a_malformed_node_is_one_sentence(entry: Any, part: str) -> None:
    with pytest.raises(WorkflowInvalid, match=part):
        node_from(entry)


def deep() -> Any:
    value: Any = 1
    for _ in range(5_000):
        value = {"name": [value]}
    return value


@pytest.mark.parametrize("value", [deep(), "x" * 10**6, ["y" * 90] * 90, {n: "z" * 90 for n in range(90)}])
def test_what_a_message_quotes_fits_into_a_line(value: Any) -> None:
    assert len(brief(value)) <= 100
    with pytest.raises(WorkflowInvalid) as caught:
        node_from(node(1, mode=value))
    assert len(caught.value.reason) < 200
    assert len(node_from(node(1, title=str(value) if isinstance(value, str) else "t" * 999)).label) < 100


def test_names_that_are_no_texts_have_a_text() -> None:
    (found,) = node_from(node(1, inputs=[{"name": deep(), "type": 5, "widget": {"name": None}}])).inputs
    assert (found.name, found.type, found.widget) == ("{'name': [{...}]}", "5", "None")


LINK = Link("1", 0, "2", 3, "MODEL")


@pytest.mark.parametrize(
    "links",
    [
        [[5, 1, 0, 2, 3, "MODEL"]],
        [None, [5, "1", "0", "2", "3", "MODEL"]],
        [{"id": 5, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 3, "type": "MODEL"}],
        {"5": [5, 1, 0, 2, 3, "MODEL"]},
    ],
)
def test_links_are_lists_objects_or_a_mapping(links: Any) -> None:
    assert read({"nodes": [], "links": links}).root.links == {5: LINK}


def test_links_of_the_first_files_have_no_type() -> None:
    assert read({"nodes": [], "links": [[5, 1, 0, 2, 3]]}).root.links[5].type == "*"
    assert read({"nodes": []}).root.links == {}


@pytest.mark.parametrize(
    ("links", "part"),
    [
        (5, "'links' must be a list"),
        ([5], "a link is malformed: 5"),
        ([[1, 2]], "a link is malformed"),
        ([[1, 2, "x", 3, 4]], "a link is malformed"),
        ([[1, 2, "--5", 3, 4]], "a link is malformed"),
        ([[1, 2, 0, 3, "9" * 5000]], "a link is malformed"),
        ([[1, 2, 0, 3, 10**9]], "a link is malformed"),
        ([[1, 2, 0, "x" * 101, 4]], "a link is malformed"),
        ([[1.5, 2, 0, 3, 4]], "a link is malformed"),
    ],
)
def test_a_malformed_link_is_one_sentence(links: Any, part: str) -> None:
    with pytest.raises(WorkflowInvalid, match=part):
        read({"nodes": [], "links": links})


def test_two_nodes_of_one_id_are_refused_by_name() -> None:
    with pytest.raises(WorkflowInvalid, match=r'two nodes have the id 1: "A" \(1\) and "Other" \(1\)'):
        read({"nodes": [node(), node(title="Other")]})


def subgraph(key: Any, *nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": key, "nodes": list(nodes), "links": [], **more}


def test_subgraphs_and_group_nodes_are_found() -> None:
    data = {
        "nodes": [node()],
        "definitions": {
            "subgraphs": [subgraph("s", node(9), inputs=[{"name": "x", "type": "INT"}], name="S")]
        },
        "extra": {"groupNodes": {"G": {}}},
    }
    found = read(data)
    assert list(found.subgraphs) == ["s"]
    assert found.subgraphs["s"].inputs == (Slot("x", "INT"),)
    assert (found.subgraphs["s"].name, list(found.groups)) == ("S", ["G"])
    assert read({"nodes": [], "definitions": 5, "extra": {"groupNodes": 5}}).groups == {}
    assert read({"nodes": [], "definitions": {"subgraphs": 5}}).subgraphs == {}


@pytest.mark.parametrize(
    ("definitions", "part"),
    [
        ([{"id": "s"}], "no id or no nodes"),
        ([subgraph(5)], "no id or no nodes"),
        ([subgraph("s"), subgraph("s")], "two subgraph definitions have the id 's'"),
    ],
)
def test_a_malformed_subgraph_is_one_sentence(definitions: Any, part: str) -> None:
    with pytest.raises(WorkflowInvalid, match=part):
        read({"nodes": [], "definitions": {"subgraphs": definitions}})


def test_what_has_no_nodes_is_no_saved_workflow() -> None:
    with pytest.raises(WorkflowInvalid, match="no list of nodes"):
        read({"1": {}})


def test_ids_that_a_subgraph_shares_are_given_anew_as_the_page_does() -> None:
    inner = subgraph("s", node(1), node(5), node("x"), links=[[1, 1, 0, 5, 0, "A"], [2, -10, 0, 1, 0, "A"]])
    other = subgraph("t", node(5), node(6))
    found = read(
        {"nodes": [node(1), node("y")], "last_node_id": 5, "definitions": {"subgraphs": [inner, other]}}
    )
    assert list(found.subgraphs["s"].nodes) == ["6", "5", "x"]
    assert found.subgraphs["s"].links[1] == Link("6", 0, "5", 0, "A")
    assert found.subgraphs["s"].links[2] == Link("-10", 0, "6", 0, "A")
    assert list(found.subgraphs["t"].nodes) == ["7", "8"]


@pytest.mark.parametrize("last", [10**4000, -(10**4000), "x", None, 1.5])
def test_the_last_id_of_the_file_need_not_make_sense(last: Any) -> None:
    data = {"nodes": [node(1)], "last_node_id": last, "definitions": {"subgraphs": [subgraph("s", node(1))]}}
    assert list(read(data).subgraphs["s"].nodes) == ["2"]
