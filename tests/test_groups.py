"""Group nodes become subgraphs."""

from __future__ import annotations

from typing import Any

import pytest

from comfyflow import groups
from comfyflow.convert import convert
from comfyflow.errors import WorkflowInvalid
from comfyflow.groups import opened
from comfyflow.ui import read
from comfyflow.widgets import Classes

INFO: dict[str, Any] = {
    "Load": {"input": {"required": {"name": [["a", "b"]]}}, "output": ["MODEL", "CLIP"]},
    "Text": {"input": {"required": {"clip": ["CLIP"], "text": ["STRING"]}}, "output": ["COND"]},
    "Sample": {
        "input": {"required": {"model": ["MODEL"], "cond": ["COND"], "seed": ["INT"], "steps": ["INT"]}},
        "output": ["LATENT"],
    },
    "Save": {"input": {"required": {"latent": ["LATENT"]}}, "output_node": True},
}


def slot(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


def group(nodes: list[Any], links: Any = (), **more: Any) -> dict[str, Any]:
    return {"nodes": nodes, "links": list(links), **more}


def made(definition: Any, node: dict[str, Any], *others: dict[str, Any], links: Any = ()) -> dict[str, Any]:
    """The API graph of a file with one group node, 9, and others."""
    nodes = [{"id": 9, "type": "workflow>G", **node}, *others]
    ui = {"nodes": nodes, "links": list(links), "extra": {"groupNodes": {"G": definition}}}
    return {key: one["inputs"] for key, one in convert(ui, INFO).graph.items()}


TEXTS = [
    {"type": "Load", "widgets_values": ["a"], "outputs": []},
    {"type": "Text", "title": "One", "widgets_values": ["p"], "inputs": [slot("clip", "CLIP")]},
    {"type": "Text", "title": "Two", "widgets_values": ["q"], "inputs": [slot("clip", "CLIP")]},
]


def test_inner_nodes_keep_their_values_where_the_group_has_none() -> None:
    links = [[0, 1, 1, 0, 1, "CLIP"], [0, 1, 2, 0, 2, "CLIP"]]
    assert made(group(TEXTS, links), {"widgets_values": ["b", "P"]}) == {
        "9:0": {"name": "b"},
        "9:1": {"text": "P", "clip": ["9:0", 1]},
        "9:2": {"text": "q", "clip": ["9:0", 1]},
    }
    assert made(group(TEXTS, links), {})["9:1"]["text"] == "p"


def test_inputs_have_the_names_that_the_page_gives_them() -> None:
    inputs = [slot("clip", "CLIP", link=1), slot("Two clip", "CLIP", link=2)]
    others = (
        {"id": 1, "type": "Load", "widgets_values": ["a"]},
        {"id": 2, "type": "Load", "widgets_values": ["b"]},
    )
    links = [[1, 1, 1, 9, 0, "CLIP"], [2, 2, 1, 9, 1, "CLIP"]]
    found = made(group(TEXTS[1:]), {"inputs": inputs}, *others, links=links)
    assert (found["9:0"]["clip"], found["9:1"]["clip"]) == (["1", 1], ["2", 1])


def test_names_may_be_labels_or_chosen_and_inputs_may_be_hidden() -> None:
    nodes = [
        {"type": "Text", "inputs": [slot("clip", "CLIP", label="words")]},
        {"type": "Text", "inputs": [slot("clip", "CLIP")]},
        {"type": "Text", "title": "T", "inputs": [slot("clip", "CLIP")]},
        {"type": "Text", "title": "T", "inputs": [slot("clip", "CLIP")]},
    ]
    config = {"1": {"input": {"clip": {"visible": False}}}, "0": "junk"}
    inputs = [slot(name, "CLIP", link=1) for name in ("words", "T clip", "T 2 clip")]
    load = {"id": 1, "type": "Load", "widgets_values": ["a"]}
    found = made(group(nodes, config=config), {"inputs": inputs}, load, links=[[1, 1, 1, 9, 0, "CLIP"]])
    linked = {key: "clip" in inputs for key, inputs in found.items() if key != "1"}
    assert linked["9:0"] and not linked["9:1"] and linked["9:2"]
    renamed = group(nodes[:1], config={"0": {"input": {"clip": {"name": "mine"}}}})
    found = made(renamed, {"inputs": [slot("mine", "CLIP", link=1)]}, load, links=[[1, 1, 1, 9, 0, "CLIP"]])
    assert found["9:0"]["clip"] == ["1", 1]


def test_outputs_are_those_that_leave_the_group() -> None:
    nodes = [
        {"type": "Load", "widgets_values": ["a"]},
        {"type": "Sample", "inputs": [slot("model", "MODEL")], "widgets_values": [1, "fixed", 2]},
    ]
    links = [[0, 0, 1, 0, 1, "MODEL"], [None, 0, 1, 1, 2, "COND"]]
    save = {"id": 2, "type": "Save", "inputs": [slot("latent", "LATENT", link=5)]}
    # outputs: 0 is the loader's CLIP, 1 the sampler's LATENT; the loader's MODEL stays inside
    found = made(
        group(nodes, links), {"widgets_values": ["b", 7, "fixed", 8]}, save, links=[[5, 9, 1, 2, 0, "L"]]
    )
    assert found["2"] == {"latent": ["9:1", 0]}
    assert found["9:1"] == {"seed": 7, "steps": 8, "model": ["9:0", 0]}
    shown = group(
        nodes, links, config={"0": {"output": {"1": {"visible": False}}}}, external=[[0, 0, "MODEL"], 5]
    )
    found = made(shown, {}, save, links=[[5, 9, 1, 2, 0, "L"]])
    assert found["2"] == {"latent": ["9:1", 0]}


def test_converted_widgets_come_last_and_are_inputs() -> None:
    seed = slot("seed", "INT", widget={"name": "seed"})
    nodes = [{"type": "Sample", "inputs": [slot("model", "MODEL"), seed], "widgets_values": [1, "fixed", 2]}]
    number = {"id": 1, "type": "Load", "widgets_values": ["a"]}
    inputs = [slot("model", "MODEL"), slot("seed", "INT", link=3)]
    node = {"inputs": inputs, "widgets_values": [6]}
    found = made(group(nodes), node, number, links=[[3, 1, 0, 9, 1, "INT"]])
    assert found["9:0"] == {"seed": ["1", 0], "steps": 6}


def test_a_converted_widget_keeps_its_value_behind_those_of_all_others() -> None:
    """As in files of 2025, where each widget has an input, too (hidream_e1 of ComfyUI_examples)."""
    steps, text = (slot(name, "X", widget={"name": name}) for name in ("steps", "text"))
    nodes = [
        {"type": "Sample", "inputs": [slot("model", "MODEL"), steps], "widgets_values": [1, "fixed", 2]},
        {"type": "Text", "inputs": [slot("clip", "CLIP"), text], "widgets_values": ["p"]},
    ]
    found = made(group(nodes), {"widgets_values": [6, "randomize", 7, "q"]})
    assert found == {"9:0": {"seed": 6, "steps": 7}, "9:1": {"text": "q"}}


def test_what_a_class_has_got_since_has_no_value_in_a_group() -> None:
    nodes = [
        {"type": "Sample", "inputs": [slot("model", "MODEL")], "widgets_values": [1, "fixed"]},
        {"type": "Text", "inputs": [slot("clip", "CLIP")], "widgets_values": ["p"]},
    ]
    found = made(group(nodes), {"widgets_values": [6, "randomize", "q"]})
    assert found == {"9:0": {"seed": 6, "steps": 0}, "9:1": {"text": "q"}}


def test_an_inner_reroute_is_called_by_the_type_it_carries() -> None:
    reroute = {"type": "Reroute", "inputs": [slot("", "*")]}
    sample = {"type": "Sample", "inputs": [slot("model", "MODEL")], "widgets_values": [1, "fixed", 2]}
    load = {"id": 1, "type": "Load", "widgets_values": ["a"]}
    config = {"0": {"input": {"MODEL": {"name": "mine"}}}}
    definition = group([reroute, sample], [[None, 0, 0, 0, 3, "X"], [0, 0, 1, 0, 2, "MODEL"]], config=config)
    node = {"inputs": [slot("mine", "MODEL", link=4)]}
    assert made(definition, node, load, links=[[4, 1, 0, 9, 0, "MODEL"]])["9:1"]["model"] == ["1", 0]
    save = {"id": 2, "type": "Save", "inputs": [slot("latent", "LATENT", link=5)]}
    told = [None, 0, 0, 0, 3, "LATENT"]
    for carried, kind, name in (([told], "X", "LATENT"), ([], "X", "X"), ([told[:4]], "*", "*")):
        node = {"inputs": [slot(name, name, link=4)]}
        links = [[4, 1, 0, 9, 0, "*"], [5, 9, 0, 2, 0, "*"]]
        pipe = group([reroute], carried, external=[[0, 0, kind]])
        assert made(pipe, node, load, save, links=links)["2"]["latent"] == ["1", 0]


def test_primitives_reroutes_and_notes_inside() -> None:
    seed = slot("seed", "INT", widget={"name": "seed"})
    nodes = [
        {"type": "PrimitiveNode", "widgets_values": [1, "fixed"], "title": "Seed"},
        {"type": "Sample", "inputs": [slot("model", "MODEL"), seed], "widgets_values": [1, "fixed", 2]},
        {"type": "Reroute", "inputs": [slot("", "*")]},
        {"type": "Note", "widgets_values": ["hi"]},
        {"type": "Reroute", "inputs": [slot("", "*")]},
    ]
    links = [[0, 0, 1, 1, 1, "INT"], [2, 0, 1, 0, 2, "MODEL"]]
    load = {"id": 1, "type": "Load", "widgets_values": ["a"]}
    node = {"inputs": [slot("MODEL", "MODEL", link=4)], "widgets_values": [55, "fixed", 3]}
    found = made(group(nodes, links), node, load, links=[[4, 1, 0, 9, 0, "MODEL"]])
    assert found["9:1"] == {"seed": 55, "steps": 3, "model": ["1", 0]}
    inner = [{"type": "Load"}, {"type": "Reroute", "inputs": [slot("", "*")]}, nodes[1]]
    through = group(inner, [[0, 0, 1, 0, 1, "MODEL"], [1, 0, 2, 0, 2, "MODEL"]])
    assert made(through, {})["9:2"]["model"] == ["9:0", 0]
    alone = group([{"type": "PrimitiveNode"}, {"type": "Load"}])
    assert made(alone, {"widgets_values": ["b"]}) == {"9:1": {"name": "b"}}


@pytest.mark.parametrize(
    ("definition", "part"),
    [
        ({"nodes": 5}, "no list of nodes"),
        ({"nodes": [5]}, "no list of nodes"),
        (group([{"type": "Load"}], [5]), "malformed link"),
        (group([{"type": "Strange"}]), "unknown class, 'Strange'"),
    ],
)
def test_a_malformed_group_is_one_sentence(definition: Any, part: str) -> None:
    with pytest.raises(WorkflowInvalid, match=rf'group node "workflow>G" \(9\): .*{part}.*save again'):
        made(definition, {})


def test_group_nodes_that_multiply_end_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MAX_NODES", 5)
    assert len(made(group([{"type": "Load"}] * 5), {})) == 5
    with pytest.raises(WorkflowInvalid, match="group nodes hold more than 5 nodes and links"):
        made(group([{"type": "Load"}] * 3), {}, {"id": 10, "type": "workflow>G"})


@pytest.mark.parametrize("kind", ["workflow/G", "KSampler", "workflow>Other"])
def test_only_nodes_with_a_definition_are_opened(kind: str) -> None:
    ui = {"nodes": [{"id": 1, "type": kind}], "extra": {"groupNodes": {"G": {"nodes": [], "links": 5}}}}
    saved = read(ui)
    assert (opened(saved, Classes(INFO)).root != saved.root) is (kind == "workflow/G")
