"""UI format -> API format, beside the official page's own conversions."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

import golden
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyflow.convert import convert
from comfyflow.errors import WorkflowInvalid

NOW = datetime(2026, 11, 23, 9, 8, 7)
# What the page makes while it runs, by class and input: it cannot be derived from a file.
RUN_TIME = {
    ("LoadAudio", "audioUI"): "a URL with a random number",
    ("Load3D", "image"): "a snapshot of the page's own 3D view",
    ("ImageCompare", "compare_view"): "previews of what ran last",
}
# The page of 1.45.20 takes lists of choices for sockets in group nodes, and so mixes up their inputs.
BY_MEANING = {"group", "group_slash"}


def bare(graph: dict[str, Any], *, run_time: bool = False) -> dict[str, Any]:
    """Classes and inputs alone; without what the page makes while it runs unless `run_time`."""
    return {
        node_id: {
            "class_type": node["class_type"],
            "inputs": {
                name: value
                for name, value in node["inputs"].items()
                if run_time or (node["class_type"], name) not in RUN_TIME
            },
        }
        for node_id, node in graph.items()
    }


TEMPLATES = golden.templates()
CASES = golden.cases()
RIGHT = [name for name, (_, answer) in CASES.items() if "ok" in answer and name not in BY_MEANING]
WRONG = [name for name, (_, answer) in CASES.items() if "err" in answer]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_becomes_what_the_official_page_makes_of_it(name: str) -> None:
    ui, api = TEMPLATES[name]
    assert bare(convert(ui, golden.object_info()).graph) == bare(api)


def test_nearly_all_are_the_same_even_in_what_the_page_makes_while_it_runs() -> None:
    info = golden.object_info()
    same = [
        bare(convert(ui, info).graph, run_time=True) == bare(api, run_time=True)
        for ui, api in TEMPLATES.values()
    ]
    assert len(same) == 212
    assert sum(same) >= 204


@pytest.mark.parametrize("name", RIGHT)
def test_a_case_becomes_what_the_official_page_makes_of_it(name: str) -> None:
    ui, answer = CASES[name]
    found = convert(ui, golden.object_info(), now=NOW).graph  # the page's clock showed the same day
    assert bare(found) == bare(answer["ok"])


@pytest.mark.parametrize("name", WRONG)
def test_what_the_page_fails_at_is_one_sentence(name: str) -> None:
    with pytest.raises(WorkflowInvalid, match=r'^node "KSampler" \(3\), input \'model\': .* save again$'):
        convert(CASES[name][0], golden.object_info())


def test_a_group_node_means_what_it_says() -> None:
    for name in BY_MEANING:
        graph = convert(CASES[name][0], golden.object_info()).graph
        assert graph["31:3"]["inputs"] == {
            "seed": 7,
            "steps": 11,
            "cfg": 3.5,
            "sampler_name": "euler",
            "scheduler": "karras",
            "denoise": 0.5,
            "model": ["31:0", 0],
            "positive": ["31:1", 0],
            "negative": ["31:2", 0],
            "latent_image": ["30", 0],
        }
        assert graph["31:0"]["inputs"] == {"ckpt_name": "i.safetensors"}
        assert (graph["31:1"]["inputs"]["text"], graph["31:2"]["inputs"]["text"]) == ("P", "N")
        assert graph["32"]["inputs"] == {"samples": ["31:3", 0], "vae": ["31:0", 2]}


# what else is told


def node(node_id: int, kind: str, values: Any = None, inputs: Any = (), **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": kind, "widgets_values": values, "inputs": list(inputs), "mode": 0, **more}


def ui_of(*nodes: dict[str, Any], links: Any = (), **more: Any) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": list(links), "version": 0.4, **more}


def test_a_node_of_an_unknown_class_is_taken_by_its_own_inputs_with_a_warning() -> None:
    ui = ui_of(
        node(1, "MyLoader", ["a.bin", 3], [{"name": n, "type": "X", "widget": {"name": n}} for n in "ab"]),
        node(2, "MySaver", None, [{"name": "model", "type": "M", "link": 9}], title="Keep it"),
        links=[[9, 1, 0, 2, 0, "M"]],
    )
    found = convert(ui, {})
    assert found.graph == {
        "1": {"class_type": "MyLoader", "inputs": {"a": "a.bin", "b": 3}, "_meta": {"title": "MyLoader"}},
        "2": {"class_type": "MySaver", "inputs": {"model": ["1", 0]}, "_meta": {"title": "Keep it"}},
    }
    assert [warning.split(":")[0] for warning in found.warnings] == [
        'node "MyLoader" (1)',
        'node "Keep it" (2)',
    ]


def test_an_unknown_class_whose_values_have_no_names_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        WorkflowInvalid, match=r'node "MyLoader" \(1\): .*2 values for 0 named inputs.*object_info'
    ):
        convert(ui_of(node(1, "MyLoader", ["a", "b"])), {})


def test_all_nodes_that_cannot_be_converted_are_told_at_once() -> None:
    lost = [
        node(number, f"Lost{number}", ["a", "b"], properties={"cnr_id": "pack"}) for number in range(1, 12)
    ]
    with pytest.raises(WorkflowInvalid) as caught:
        convert(ui_of(*lost[:1], node(20, "Anything Everywhere")), {})
    assert caught.value.reason.startswith("2 nodes cannot be converted: ")
    assert "'Lost1' of the pack 'pack' is unknown" in caught.value.reason
    with pytest.raises(WorkflowInvalid, match=r"11 nodes cannot be converted: .*; and 3 more$"):
        convert(ui_of(*lost), {})


def test_an_unknown_class_that_does_not_run_is_nobodys_concern() -> None:
    ui = ui_of(node(1, "MyLoader", ["a", "b"], mode=2), node(2, "SaveMine"))
    assert list(convert(ui, {}).graph) == ["2"]


def test_the_pack_of_a_node_is_told_for_messages() -> None:
    ui = ui_of(
        node(1, "A", properties={"cnr_id": "comfyui-kjnodes"}),
        node(2, "B", properties={"aux_id": "me/mine"}),
        node(3, "C"),
    )
    assert convert(ui, {}).packs == {"1": "comfyui-kjnodes", "2": "me/mine"}


def test_everything_muted_leaves_nothing_to_run() -> None:
    with pytest.raises(WorkflowInvalid, match="no node of this workflow runs"):
        convert(ui_of(node(1, "A", mode=2), node(2, "Note", ["hello"])), {})


def test_links_that_are_made_while_the_page_runs_are_refused() -> None:
    with pytest.raises(WorkflowInvalid, match="Convert all UEs to real links"):
        convert(ui_of(node(1, "Anything Everywhere")), {})


def test_a_group_node_without_its_definition_is_refused() -> None:
    with pytest.raises(WorkflowInvalid, match="definition of this group node"):
        convert(ui_of(node(1, "workflow>Lost")), {})


TEXTS = {
    "CLIPTextEncode": {
        "input": {"required": {"text": ["STRING", {"dynamicPrompts": True}]}},
        "output": ["CONDITIONING"],
    },
    "SaveImage": {"input": {"required": {"filename_prefix": ["STRING", {}]}}, "output_node": True},
    "Other": {"input": {"required": {"filename_prefix": ["STRING", {}], "list": ["LIST", {}]}}},
}


def test_one_of_several_texts_is_picked_with_a_warning_and_always_the_same() -> None:
    ui = ui_of(node(1, "CLIPTextEncode", ["{red|blue|green} car"]))
    found = convert(ui, TEXTS)
    assert found.graph["1"]["inputs"]["text"] in {"red car", "blue car", "green car"}
    assert convert(ui, TEXTS) == found
    assert "always the same one" in found.warnings[0]


def test_dates_in_file_names_are_those_of_now_where_the_class_saves() -> None:
    ui = ui_of(node(1, "SaveImage", ["%date:yyyy-MM-dd%/x"]), node(2, "Other", ["%date:yyyy%"]))
    graph = convert(ui, TEXTS, now=NOW).graph
    assert graph["1"]["inputs"]["filename_prefix"] == "2026-11-23/x"
    assert graph["2"]["inputs"]["filename_prefix"] == "%date:yyyy%"
    assert convert(ui, TEXTS).graph["1"]["inputs"]["filename_prefix"] == "%date:yyyy-MM-dd%/x"


def test_what_is_nested_too_deeply_is_one_sentence() -> None:
    options: dict[str, Any] = {"key": "a"}
    for _ in range(1_000):
        required = {"x": ["COMFY_DYNAMICCOMBO_V3", {"options": [options]}]}
        options = {"key": "a", "inputs": {"required": required}}
    with pytest.raises(WorkflowInvalid, match="nested too deeply"):
        convert(ui_of(node(1, "A", ["a"] * 1_000)), {"A": {"input": options["inputs"]}})


# whatever a file holds: a graph, or one sentence

SMALL = [name for name in CASES if not name.startswith(("mut", "inst"))]
ODD: list[Any] = [
    "--5",
    "9" * 5000,
    "\ud800",
    "{\ud800|a}",
    "%A.b%",
    "-10",
    "Reroute",
    "SetNode",
    "KSampler",
    [[]],
]
JUNK: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(ODD).map(copy.deepcopy),  # a value of its own, so that none is put into itself
    st.integers(-9, -1),
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 9), max_size=6),
    st.dictionaries(st.sampled_from(["id", "name", "type", "nodes", "links"]), st.integers(0, 9), max_size=3),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    found = [path] if path else []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        found += places(part, (*path, key))
    return found


@settings(deadline=None, max_examples=300)
@given(data=st.data(), name=st.sampled_from(SMALL))
def test_any_damage_to_a_file_is_converted_or_refused(data: st.DataObject, name: str) -> None:
    ui = copy.deepcopy(CASES[name][0])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(ui)))
        inside = ui
        for key in place[:-1]:
            inside = inside[key] if _has(inside, key) else {}
        if _has(inside, place[-1]):
            inside[place[-1]] = data.draw(JUNK)
    try:
        convert(ui, golden.object_info())
    except WorkflowInvalid as error:
        assert error.reason


def _has(value: Any, key: Any) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list) and isinstance(key, int) and key < len(value)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), name=st.sampled_from(SMALL))
def test_any_damage_to_the_classes_is_converted_or_refused(data: st.DataObject, name: str) -> None:
    ui = CASES[name][0]
    kinds = {one["type"] for one in ui["nodes"]} & set(golden.object_info())
    info = {kind: copy.deepcopy(golden.object_info()[kind]) for kind in sorted(kinds)}
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(info) or [("KSampler",)]))
        inside: Any = info
        for key in place[:-1]:
            inside = inside[key] if _has(inside, key) else {}
        if _has(inside, place[-1]):
            inside[place[-1]] = data.draw(JUNK)
    try:
        convert(ui, info)
    except WorkflowInvalid as error:
        assert error.reason
