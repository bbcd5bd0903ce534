"""Bypass, mute and only: on small graphs, and as the conversion does it for files with nodes switched off."""

from __future__ import annotations

import copy
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs import Graph, classic, node

from comfyflow.convert import convert
from comfyflow.errors import WorkflowInvalid
from comfyflow.parts import bypass, mute, only
from comfyflow.ui import BYPASSED, MUTED
from comfyflow.workflow import Workflow

GOLDEN = Path(__file__).parent / "recordings" / "golden"
BLEND = {"one": ["IMAGE"], "mask": ["MASK"], "two": ["IMAGE"]}
LIKE = {"options": [{"key": "like", "inputs": {"required": {"image": ["IMAGE"]}}}]}
GROWN = {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 1, "max": 9}}
CLASSES: dict[str, Any] = {
    "Load": {"input": {"required": {"file": [["a.png"], {}]}}, "output": ["IMAGE", "MASK"]},
    "Blur": {"input": {"required": {"size": ["INT", {}], "image": ["IMAGE", {}]}}, "output": ["IMAGE"]},
    "Blend": {"input": {"required": BLEND}, "output": ["IMAGE"]},
    "Swap": {"input": {"required": {"image": ["IMAGE"], "mask": ["MASK"]}}, "output": ["MASK", "IMAGE"]},
    "ToMask": {"input": {"required": {"image": ["IMAGE"]}}, "output": ["MASK"]},
    "Either": {"input": {"required": {"mask": ["MASK"], "any": ["IMAGE,MASK"]}}, "output": ["IMAGE"]},
    "Batch": {"input": {"required": {"images": ["COMFY_AUTOGROW_V3", GROWN]}}, "output": ["IMAGE"]},
    "Resize": {
        "input": {"required": {"what": ["COMFY_MATCHTYPE_V3", {}], "size": ["INT", {}]}},
        "output": ["COMFY_MATCHTYPE_V3"],
    },
    "Fit": {"input": {"required": {"how": ["COMFY_DYNAMICCOMBO_V3", LIKE]}}, "output": ["IMAGE"]},
    "Pick": {"input": {"required": {"file": [["a.png"]]}}, "output": [["a.png"]]},
    "Show": {"input": {"required": {"anything": ["*", {}]}}, "output": []},
    "Save": {"input": {"required": {"images": ["IMAGE", {}]}}, "output": []},
}


def _bypassed(graph: Graph, *chosen: str) -> dict[str, Any]:
    return bypass(graph, chosen, CLASSES, {node_id: f"node {node_id}" for node_id in graph})


def _after(graph: Graph, *chosen: str, end: str = "9") -> Any:
    """The inputs of the last node, with these bypassed."""
    made = _bypassed(graph, *chosen)
    assert set(made) == set(graph) - set(chosen)
    return made[end]["inputs"]


# bypass


def test_what_went_through_goes_straight_on() -> None:
    graph = {
        "1": node("Load", file="a.png"),
        "2": node("Blur", size=3, image=["1", 0]),
        "9": node("Save", "Keep", images=["2", 0], prefix="x"),
    }
    before = copy.deepcopy(graph)
    assert _bypassed(graph, "2") == {
        "1": graph["1"],
        "9": node("Save", "Keep", images=["1", 0], prefix="x"),
    }
    assert graph == before


def test_several_in_a_row_are_gone_through() -> None:
    graph = {"1": node("Load"), "9": node("Save", images=["5", 0])}
    graph |= {str(place): node("Blur", image=[str(place - 1), 0]) for place in range(2, 6)}
    assert _after(graph, "2", "3", "4", "5") == {"images": ["1", 0]}
    assert _after(graph, "3", "5") == {"images": ["4", 0]}


def test_the_input_at_the_place_of_the_output_goes_first_if_it_fits() -> None:
    graph = {
        "1": node("Load"),
        "2": node("Load"),
        "3": node("Blend", one=["1", 0], mask=["1", 1], two=["2", 0]),
        "4": node("Swap", image=["1", 0], mask=["2", 1]),
        "9": node("Save", images=["3", 0], more=["4", 1]),
    }
    assert _after(graph, "3") == {"images": ["1", 0], "more": ["4", 1]}
    assert _after(graph, "4")["more"] == ["1", 0]  # at place 1 is a mask: the first image counts


def test_nothing_that_fits_takes_the_link_away() -> None:
    graph = {
        "1": node("Load"),
        "2": node("ToMask", image=["1", 0]),
        "3": node("Blur", size=5),
        "9": node("Blend", one=["3", 0], mask=["2", 0], two=["1", 0]),
    }
    assert _after(graph, "2") == {"one": ["3", 0], "two": ["1", 0]}
    assert _after(graph, "3") == {"mask": ["2", 0], "two": ["1", 0]}  # it fits, and holds no link


def test_an_input_that_takes_anything_gets_the_input_at_the_same_place() -> None:
    graph = {
        "1": node("Load"),
        "4": node("Swap", image=["1", 0], mask=["1", 1]),
        "5": node("Pick", file="a.png"),
    }
    assert _after({**graph, "9": node("Show", anything=["4", 1])}, "4") == {"anything": ["1", 1]}
    assert _after({**graph, "9": node("Show", anything=["4", 5])}, "4") == {"anything": ["1", 0]}
    assert _after({**graph, "9": node("Show", anything=["5", 0])}, "5") == {}


def test_further_on_the_type_is_that_of_the_input_that_was_found() -> None:
    graph = {
        "1": node("Load"),
        "2": node("Swap", image=["1", 0], mask=["1", 1]),
        "3": node("Either", mask=["1", 1], any=["2", 0]),
        "9": node("Save", images=["3", 0]),
    }
    # `any` takes IMAGE,MASK and gets Swap's mask: not its image, though an image is wanted at the end.
    assert _after(graph, "2", "3") == {"images": ["1", 1]}


def test_inputs_that_grew_stand_where_they_grew() -> None:
    batch = {f"images.image{place}": [str(place + 1), 0] for place in range(2)}
    graph = {"1": node("Load"), "2": node("Load"), "3": node("Batch", **batch)}
    assert _after({**graph, "9": node("Save", images=["3", 0])}, "3") == {"images": ["1", 0]}
    assert _after({**graph, "9": node("Show", anything=["3", 1])}, "3") == {"anything": ["2", 0]}
    assert _after({**graph, "9": node("Show", anything=["3", 2])}, "3") == {}  # the page's free one more


def test_inputs_of_a_choice_count() -> None:
    graph = {
        "1": node("Load"),
        "2": node("Fit", how="like", **{"how.image": ["1", 0]}),
        "9": node("Save", images=["2", 0]),
    }
    assert _after(graph, "2") == {"images": ["1", 0]}


def test_a_type_that_follows_the_link_is_that_of_the_link() -> None:
    graph = {
        "1": node("Load"),
        "2": node("Blend", one=["1", 0], mask=["1", 1], two=["1", 0]),
        "3": node("Resize", what=["2", 0], size=5),
        "9": node("Resize", what=["3", 0], size=7),
    }
    assert _after(graph, "3") == {"what": ["2", 0], "size": 7}
    assert _after(graph, "2", "3") == {"what": ["1", 0], "size": 7}
    assert _after({**graph, "3": node("Resize", size=5)}, "3") == {"size": 7}


def test_a_list_of_choices_is_a_type_too() -> None:
    graph = {
        "1": node("Pick", file="a.png"),
        "2": node("Pick", file=["1", 0]),
        "9": node("Load", file=["2", 0]),
    }
    assert _after(graph, "2") == {"file": ["1", 0]}


def test_whoever_takes_from_it_may_be_of_an_unknown_class() -> None:
    graph = {"1": node("Load"), "2": node("Blend", one=["1", 1], two=["1", 0]), "9": node("New", x=["2", 0])}
    assert _after(graph, "2") == {"x": ["1", 1]}  # by the type that the bypassed node gives


def test_links_that_lead_nowhere_are_left_to_the_check() -> None:
    graph = {
        "2": node("Blur", image=["3", 0]),
        "3": node("Blur", image=["2", 0]),
        "9": node("Save", images=["2", 7]),
    }
    assert _after(graph, "2", "3") == {}
    lost = {"2": node("Resize", what=["7", 0]), "9": node("Save", images=["2", 0])}
    assert _after(lost, "2") == {"images": ["7", 0]}


def test_a_node_of_an_unknown_class_cannot_be_bypassed() -> None:
    graph = {"1": node("New"), "9": node("Save", images=["1", 0])}
    with pytest.raises(WorkflowInvalid, match="node 1 cannot be bypassed: its class 'New' is unknown"):
        _bypassed(graph, "1")


def test_something_has_to_be_left() -> None:
    graph = {"1": node("Load")}
    with pytest.raises(WorkflowInvalid, match="nothing is left"):
        _bypassed(graph, "1")
    with pytest.raises(WorkflowInvalid, match="nothing is left"):
        mute(graph, ["1"])
    with pytest.raises(WorkflowInvalid, match="nothing is left"):
        only(graph, [])


# mute


def test_a_muted_node_goes_with_the_links_to_it() -> None:
    made = mute(classic(), ["7", "4"])
    assert set(made) == set("35689")
    assert "negative" not in made["3"]["inputs"]
    assert "model" not in made["3"]["inputs"]
    assert made["3"]["inputs"]["positive"] == ["6", 0]
    assert made["6"]["inputs"] == {"text": "a red fox"}
    assert made["9"] == classic()["9"]


# only


def test_only_keeps_what_the_chosen_need_in_the_order_of_the_file() -> None:
    graph = {**classic(), "10": node("PreviewImage", images=["8", 0]), "11": node("Alone")}
    assert list(only(graph, ["9"])) == list("3456789")
    assert list(only(graph, ["11", "6"])) == ["4", "6", "11"]


def test_links_in_a_circle_do_not_keep_it_from_ending() -> None:
    graph = {"1": node("A", x=["2", 0]), "2": node("B", x=["1", 0]), "3": node("C")}
    assert list(only(graph, ["1"])) == ["1", "2"]


# on workflows


def test_a_workflow_names_its_nodes_and_stays_as_it_was() -> None:
    workflow = Workflow.load(
        {"1": node("Load"), "2": node("Blur", "Soft", image=["1", 0]), "9": node("Save", images=["2", 0])}
    )
    before = workflow.to_dict()
    assert workflow.bypass("Soft", object_info=CLASSES)["Save"].inputs == {"images": ["1", 0]}
    assert workflow.mute("Blur")["Save"].inputs == {}
    assert list(workflow.only('"Soft"').nodes) == ["1", "2"]
    assert workflow.to_dict() == before
    with pytest.raises(WorkflowInvalid, match='"Soft" \\(2\\) cannot be bypassed'):
        workflow.bypass("Soft", object_info={})
    for cut in (workflow.mute, workflow.only):
        with pytest.raises(WorkflowInvalid, match="there is no node 'Sift'"):
            cut("Sift")


# as the page


def _golden(name: str) -> Any:
    with lzma.open(GOLDEN / name) as file:
        return json.load(file)


def _cases() -> Iterator[tuple[dict[str, Any], dict[str, Any], Any]]:
    """Every third template, and each of its nodes: the file, its conversion, the node."""
    classes = _golden("object_info_0.27.0.json.xz")
    for ui in list(_golden("ui_templates_0.1.123.json.xz").values())[::3]:
        base = convert(ui, classes).graph
        yield from ((ui, base, one) for one in ui["nodes"] if str(one["id"]) in base)


def _told_apart(page: dict[str, Any], made: dict[str, Any], base: dict[str, Any]) -> Iterator[str]:
    """What differs from the page, but for values that only the page remembers behind a link."""
    yield from set(page) ^ set(made)
    for node_id in set(page) & set(made):
        mine, theirs = made[node_id]["inputs"], page[node_id]["inputs"]
        linked = {name for name, value in base[node_id]["inputs"].items() if isinstance(value, list)}
        kept = {
            name: value for name, value in theirs.items() if name not in linked or isinstance(value, list)
        }
        if mine != kept:
            yield node_id


@pytest.mark.parametrize("mode", [BYPASSED, MUTED])
def test_templates_come_out_as_from_the_same_file_with_the_node_switched_off(mode: int) -> None:
    classes = _golden("object_info_0.27.0.json.xz")
    wrong, seen = [], 0
    for ui, base, one in _cases():
        nodes = [{**other, "mode": mode} if other is one else other for other in ui["nodes"]]
        node_id = str(one["id"])
        try:
            page = convert({**ui, "nodes": nodes}, classes).graph
        except WorkflowInvalid:
            continue  # it was the only one
        made = mute(base, [node_id]) if mode == MUTED else bypass(base, [node_id], classes, {node_id: ""})
        seen += 1
        wrong += [f"{node_id} of {one['type']}: {there}" for there in _told_apart(page, made, base)]
    assert wrong == []
    assert seen > 300
