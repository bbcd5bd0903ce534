"""Loading, checking, patching and describing graphs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from graphs import classic as _classic
from graphs import node as _node
from hypothesis import given
from hypothesis import strategies as st

from comfyflow.errors import WorkflowInvalid
from comfyflow.sources import find
from comfyflow.workflow import MAX_SEED, Workflow, random_seed

BIG = 18446744073709551615123


def _classic_with(node_id: str, node: Any) -> dict[str, Any]:
    return {**_classic(), node_id: node}


def _reason(source: Any) -> str:
    with pytest.raises(WorkflowInvalid) as caught:
        Workflow.load(source)
    return caught.value.reason


# loading


def test_a_file_is_loaded_in_the_order_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "fox.json"
    file.write_text(json.dumps(_classic()))
    workflow = Workflow.load(file)
    assert workflow.to_dict() == _classic()
    assert list(workflow.nodes) == list("3456789")
    assert workflow.name == str(file)
    assert Workflow.load(str(file)) == workflow


def test_bytes_mappings_and_workflows_are_taken_as_they_are() -> None:
    workflow = Workflow.load(_classic())
    assert Workflow.load(json.dumps(_classic()).encode()) == workflow
    assert Workflow.load(workflow) is workflow


def test_a_byte_order_mark_is_no_fault() -> None:
    text = "\ufeff" + json.dumps(_classic())
    assert Workflow.parse(text) == Workflow.parse(text.encode()) == Workflow.load(_classic())


def test_the_body_of_a_request_is_unwrapped() -> None:
    assert Workflow.load({"prompt": _classic(), "client_id": "x"}) == Workflow.load(_classic())


def test_a_node_may_have_the_id_prompt() -> None:
    assert list(Workflow.load({"prompt": _node("SaveImage")}).nodes) == ["prompt"]


def test_integers_of_any_size_stay_exact() -> None:
    workflow = Workflow.parse(json.dumps({"1": _node("KSampler", seed=BIG)}))
    assert workflow.to_dict()["1"]["inputs"]["seed"] == BIG


def test_tuples_become_lists_as_json_has_them() -> None:
    graph = {"1": _node("EmptyImage"), "2": _node("SaveImage", images=("1", 0))}
    assert Workflow.load(graph).to_dict()["2"]["inputs"]["images"] == ["1", 0]


def test_nobody_outside_can_change_a_workflow() -> None:
    graph = _classic()
    workflow = Workflow.load(graph)
    graph["6"]["inputs"]["text"] = "changed"
    workflow.to_dict()["6"]["inputs"]["text"] = "changed"
    assert workflow.nodes["6"]["inputs"]["text"] == "a red fox"


def test_nan_that_comfyui_wrote_beside_the_inputs_is_dropped() -> None:
    text = json.dumps(
        {"1": {**_node("LoadImage", image="x.png"), "is_changed": [{"a": float("nan")}], "b": 1.5}}
    )
    assert "NaN" in text
    assert Workflow.parse(text).to_dict() == {"1": {**_node("LoadImage", image="x.png"), "b": 1.5}}


_PAGE: dict[str, Any] = {
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "widgets_values": [64],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "title": "Keep",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "widgets_values": ["fox"],
            "properties": {"cnr_id": "comfy-core"},
        },
        {"id": 3, "type": "Gone", "widgets_values": []},
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}
_CLASSES: dict[str, Any] = {
    "EmptyImage": {"input": {"required": {"width": ["INT", {"default": 512}]}}, "output": ["IMAGE"]},
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE", {}], "filename_prefix": ["STRING", {}]}},
        "output": [],
        "output_node": True,
    },
}


def test_the_format_of_the_page_is_converted_and_what_that_left_open_is_told() -> None:
    workflow = Workflow.load(_PAGE, object_info=_CLASSES)
    assert workflow.to_dict() == {
        "1": {**_node("EmptyImage", "EmptyImage", width=64)},
        "2": {**_node("SaveImage", "Keep", images=["1", 0], filename_prefix="fox")},
        "3": {**_node("Gone", "Gone")},
    }
    assert workflow.packs == {"2": "comfy-core"}
    assert len(workflow.warnings) == 1
    assert "class 'Gone' is unknown" in workflow.warnings[0]
    assert workflow.recognised != Workflow.load(_classic()).recognised


def test_without_the_classes_the_format_of_the_page_is_refused_with_the_way_out() -> None:
    assert "give object_info" in _reason(_PAGE)


# what cannot be loaded


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkflowInvalid, match="no such file") as caught:
        Workflow.load(tmp_path / "nothing.json")
    assert caught.value.path == str(tmp_path / "nothing.json")


def test_a_folder_is_no_workflow(tmp_path: Path) -> None:
    with pytest.raises(WorkflowInvalid, match="folder"):
        Workflow.load(tmp_path)


def test_json_text_in_place_of_a_file_name_is_recognised() -> None:
    with pytest.raises(WorkflowInvalid, match=r"Workflow\.parse"):
        Workflow.load('{"1": {}}')


def test_a_name_that_no_system_takes_is_told_so() -> None:
    with pytest.raises(WorkflowInvalid, match="cannot be read"):
        find("a\0b")


def test_a_file_without_permission_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The tests may run as root, to whom every file is open, so the system's refusal is played.
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(WorkflowInvalid, match="permissions"):
        find(tmp_path / "x.json")


def test_a_file_larger_than_comfyui_takes_is_not_read_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("comfyflow.sources.MAX_SIZE", 10)
    (tmp_path / "big.json").write_bytes(b" " * 11)
    with pytest.raises(WorkflowInvalid, match="larger"):
        Workflow.load(tmp_path / "big.json")


def test_a_fault_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(WorkflowInvalid, match=r"bad\.json: this is an empty workflow") as caught:
        Workflow.load(tmp_path / "bad.json")
    assert caught.value.path == str(tmp_path / "bad.json")
    assert caught.value.reason.startswith("this is an empty workflow")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "not JSON"),
        (b'{"1":\n  oops}', "line 2, column 3"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"\x89PNG\r\n", "PNG ends in the middle"),
        (b'{"1": ' + b"9" * 5000 + b"}", "number that cannot be read"),
        (b"[" * 100_000, "nested"),
        (b'{"1": {"class_type": "A", "inputs": {"x": ' + b"[" * 150 + b"]" * 150 + b"}}}", "nested"),
        (b'{"1": {"class_type": "A", "inputs": {}, "x": ' + b"[" * 150 + b"]" * 150 + b"}}", "nested"),
        (b"[]", "a list"),
        (b'"x"', "a text"),
        (b"null", "null"),
        (b"3", "a number"),
        (b"true", "true or false"),
        (b"{}", "empty"),
        (b'{"prompt": {}}', "empty"),
        (b'{"nodes": [], "links": [], "version": 0.4}', "no nodes"),
        (b'{"prompt": {"nodes": [], "links": []}}', "no nodes"),
        (b'{"1": {"class_type": "A", "inputs": {}}, "version": 1}', "node 'version' is a number"),
        (b'{"1": {"inputs": {}}}', "node '1' has no class_type"),
        (b'{"1": {"class_type": "", "inputs": {}}}', "no class_type"),
        (b'{"1": {"class_type": 5, "inputs": {}}}', "no class_type"),
        (b'{"1": {"class_type": "A"}}', 'node "A" (1) has no inputs object'),
        (b'{"1": {"class_type": "A", "inputs": []}}', "no inputs object"),
        (b'{"1": {"class_type": "A", "inputs": {"x": NaN}}}', "x is nan"),
        (b'{"1": {"class_type": "A", "inputs": {"x": [{"y": 1e999}]}}}', "x, y is inf"),
    ],
)
def test_a_text_that_is_no_workflow_is_refused_in_one_sentence(text: bytes, part: str) -> None:
    reason = _reason(text)
    assert part in reason
    assert "\n" not in reason


ENDLESS: dict[str, Any] = {}
ENDLESS["a"] = ENDLESS


@pytest.mark.parametrize(
    ("graph", "part"),
    [
        ({1: _node("A")}, "node id 1 must be a text"),
        ({"1": _node("A", x=object())}, "a Python object"),
        ({"1": _node("A", x={1: 2})}, "the key 1"),
        ({"1": _node("A", x=Path("a"))}, "cannot be written as JSON"),
        (
            {"1": _node("A", x=ENDLESS)},
            'inputs of node "A" (1), x, a, a, ... is nested more than 100 levels deep',
        ),
    ],
)
def test_a_python_graph_that_json_cannot_hold_is_refused(graph: Any, part: str) -> None:
    assert part in _reason(graph)


def test_a_graph_that_holds_itself_is_refused() -> None:
    node = _node("A")
    node["inputs"]["x"] = node
    assert "nested" in _reason({"1": node})


def test_a_link_to_a_missing_node_names_both_ends_and_the_input() -> None:
    reason = _reason(_classic_with("9", _node("SaveImage", "Save it", images=["88", 0])))
    assert "input 'images' of node \"Save it\" (9) is linked to node '88'" in reason


def test_links_to_nothing_may_be_left_to_the_server(tmp_path: Path) -> None:
    graph = _classic_with("9", _node("KSampler", positive=["88", 0], seed=["99", -1]))
    file = tmp_path / "a.json"
    file.write_text(json.dumps(graph))
    workflow = Workflow.load(file, links=False)
    assert workflow.to_dict() == graph
    assert isinstance(workflow.prompt_text, str)
    with pytest.raises(WorkflowInvalid, match="linked to node '88'") as caught:
        workflow.with_sound_links()
    assert caught.value.path == str(file)
    sound = Workflow.load(_classic_with("9", _node("A")), links=False)
    assert sound.with_sound_links() is sound


@pytest.mark.parametrize("slot", ["0", 0.0, True, None, -1])
def test_a_slot_is_a_whole_number(slot: Any) -> None:
    reason = _reason(_classic_with("9", _node("SaveImage", images=["4", slot])))
    assert '"Load Checkpoint" (4)' in reason
    assert "slots are 0, 1, 2" in reason


@pytest.mark.parametrize("value", [["a", "b"], ["a"], [], [1, 2], ["a", 1, 2], {"a": 1}, None])
def test_a_value_that_only_resembles_a_link_is_left_to_the_server(value: Any) -> None:
    assert Workflow.load({"1": _node("A", x=value)}).to_dict() == {"1": _node("A", x=value)}


# names and titles


def test_a_title_is_what_a_person_wrote_else_the_class_else_the_id() -> None:
    graph = {"1": _node("A", "My node"), "2": _node("B", "  "), "3": {**_node("C"), "_meta": None}}
    workflow = Workflow.load(graph)
    assert [workflow.title(node_id) for node_id in ("1", "2", "3", "5.0")] == ["My node", "B", "C", "5.0"]
    assert workflow.title("1.0.0.2") == "My node"
    assert workflow.label("1") == '"My node" (1)'


# set


@pytest.mark.parametrize("target", ["6.text", "Positive.text"])
def test_an_input_is_set_by_id_or_title(target: str) -> None:
    assert Workflow.load(_classic()).set(target, "a cat").nodes["6"]["inputs"]["text"] == "a cat"


def test_an_input_is_set_by_a_class_that_one_node_has() -> None:
    assert Workflow.load(_classic()).set("KSampler.steps", 30).nodes["3"]["inputs"]["steps"] == 30


def test_an_id_goes_before_a_title_and_a_title_before_a_class() -> None:
    graph = {"A": _node("B", x=0), "2": _node("X", "A", x=0), "3": _node("C", "B", x=0)}
    workflow = Workflow.load(graph)
    assert workflow.set("A.x", 1).nodes["A"]["inputs"]["x"] == 1
    assert workflow.set("B.x", 1).nodes["3"]["inputs"]["x"] == 1


def test_ids_titles_and_inputs_may_hold_dots() -> None:
    graph = {"5.0": _node("A", "v1.5 model", **{"model.prompt": "x"})}
    workflow = Workflow.load(graph)
    for target in ("5.0.model.prompt", "v1.5 model.model.prompt", "A.model.prompt"):
        assert workflow.set(target, "y").nodes["5.0"]["inputs"]["model.prompt"] == "y"


def test_setting_keeps_the_name_and_the_rest_of_the_graph() -> None:
    workflow = Workflow.parse(json.dumps(_classic()), name="fox.json").set("6.text", "a cat")
    assert workflow.name == "fox.json"
    expected = _classic()
    expected["6"]["inputs"]["text"] = "a cat"
    assert list(workflow.to_dict().items()) == list(expected.items())


@pytest.mark.parametrize(
    ("old", "new", "result"),
    [
        (7, 8, 8),
        (7, 8.0, 8),
        (7, 7.5, 7.5),
        (7.5, 8, 8),
        (7, BIG, BIG),
        (True, False, False),
        ("a", "", ""),
        (None, 5, 5),
        (None, "x", "x"),
        (["a", "b", "c"], ["d"], ["d"]),
        ({"a": 1}, {"b": 2}, {"b": 2}),
        ({"__value__": ["a"]}, ["b"], {"__value__": ["b"]}),
        ({"__value__": ["a"]}, {"__value__": ["b"]}, {"__value__": ["b"]}),
        (["0", 0], "text", "text"),
        (["0", 0], ["0", 1], ["0", 1]),
    ],
)
def test_a_value_takes_the_place_of_one_of_its_kind(old: Any, new: Any, result: Any) -> None:
    workflow = Workflow.load({"0": _node("A"), "1": _node("B", x=old)}).set("1.x", new)
    value = workflow.nodes["1"]["inputs"]["x"]
    assert value == result
    assert type(value) is type(result)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (7, "8", "takes a number, like 7"),
        (7, True, "takes a number"),
        (7, float("nan"), "nan"),
        (True, 1, "takes true or false"),
        ("a", 5, "takes a text"),
        ({"a": 1}, [1], "takes an object"),
        ({"__value__": ["a"]}, "b", "takes a list"),
        (["0", 0], ["9", 0], "linked to node '9'"),
        (["0", 0], object(), "cannot be written as JSON"),
        ("long " * 50, 5, "..."),
    ],
)
def test_a_value_of_another_kind_is_refused(old: Any, new: Any, part: str) -> None:
    workflow = Workflow.load({"0": _node("A"), "1": _node("B", x=old)})
    with pytest.raises(WorkflowInvalid) as caught:
        workflow.set("1.x", new)
    assert part in caught.value.reason
    assert "input 'x' of node \"B\" (1)" in caught.value.reason


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("Positiv.text", "there is no node 'Positiv'; there are: \"Positive\" (6)"),
        ("33.seed", 'there are: "KSampler" (3)'),
        ("6.txt", "node \"Positive\" (6) has no input 'txt'; its inputs are: text, clip"),
        ("CLIPTextEncode.text", "6.text (Positive), 7.text (Negative)"),
        ("text", "NODE.INPUT"),
        (".text", "NODE.INPUT"),
    ],
)
def test_an_unknown_target_is_answered_with_the_nearest_candidates(target: str, part: str) -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        Workflow.load(_classic()).set(target, "x")
    assert part in caught.value.reason


def test_a_node_without_inputs_and_a_graph_of_many_nodes_are_described_briefly() -> None:
    workflow = Workflow.load({str(number): _node("A", f"node {number}") for number in range(30)})
    with pytest.raises(WorkflowInvalid, match="its inputs are: none"):
        workflow.set("5.x", 1)
    with pytest.raises(WorkflowInvalid, match="and 22 more"):
        workflow.set("x.y", 1)


# nodes


def test_a_node_is_named_by_id_title_or_class() -> None:
    workflow = Workflow.load(_classic())
    assert [workflow.node_id(name) for name in ("6", '"Positive"', "KSampler")] == ["6", "6", "3"]
    assert workflow["Positive"].id == "6"


def test_an_input_of_a_node_by_its_id_has_to_be_there() -> None:
    workflow = Workflow.load(_classic())
    assert workflow.set_at("6", "text", "a cat") == workflow.set("Positive.text", "a cat")
    assert workflow.set_text_at("3", "steps", "5") == workflow.set("3.steps", 5)
    with pytest.raises(WorkflowInvalid, match="has no input 'txt'; its inputs are: text, clip"):
        workflow.set_at("6", "txt", "a cat")


def test_a_part_is_a_new_workflow_of_the_same_name() -> None:
    workflow = Workflow.parse(json.dumps(_classic()), name="fox.json")
    classes = {"VAEDecode": {"input": {"required": {"samples": ["LATENT"]}}, "output": ["LATENT"]}}
    parts = {
        "only": workflow.only("Positive", "VAEDecode"),
        "mute": workflow.mute("Negative"),
        "bypass": workflow.bypass("VAEDecode", object_info=classes),
    }
    assert {name: "".join(part.nodes) for name, part in parts.items()} == {
        "only": "345678",
        "mute": "345689",
        "bypass": "345679",
    }
    assert {part.name for part in parts.values()} == {"fox.json"}
    assert len({workflow.digest, *(part.digest for part in parts.values())}) == 4
    assert workflow == Workflow.load(_classic())


def test_an_edit_makes_a_new_workflow() -> None:
    workflow = Workflow.load(_classic())
    edit = workflow.edit()
    edit["KSampler"].inputs["seed"] = 7
    assert edit.done() == workflow.set("3.seed", 7)


# set_text


@pytest.mark.parametrize(
    ("old", "text", "result"),
    [
        ("a", "b=c", "b=c"),
        ("a", "5", "5"),
        ("a", "", ""),
        (7, "8", 8),
        (7, "8.0", 8),
        (7.5, "1e3", 1000.0),
        (7, str(BIG), BIG),
        (True, "False", False),
        (False, "true", True),
        (["a", "b", "c"], '["d"]', ["d"]),
        ({"__value__": ["a"]}, '["b"]', {"__value__": ["b"]}),
        (["0", 0], "12", 12),
        (["0", 0], "a cat", "a cat"),
        (["0", 0], '"quoted"', '"quoted"'),
        (["0", 0], '["0", 1]', ["0", 1]),
    ],
)
def test_a_text_is_read_as_the_kind_that_the_input_has(old: Any, text: str, result: Any) -> None:
    workflow = Workflow.load({"0": _node("A"), "1": _node("B", x=old)}).set_text(f"1.x={text}")
    assert workflow.nodes["1"]["inputs"]["x"] == result
    assert type(workflow.nodes["1"]["inputs"]["x"]) is type(result)


def test_a_title_may_hold_an_equals_sign() -> None:
    workflow = Workflow.load({"1": _node("A", "cfg=8", scale=1.0)})
    assert workflow.set_text("cfg=8.scale=2.5").nodes["1"]["inputs"]["scale"] == 2.5


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("3.steps=many", "takes a number"),
        ("3.steps=", "takes a number"),
        ("3.steps=" + "[" * 100_000, "takes a number"),
        ("3.step=5", "its inputs are: steps"),
        ("3.steps", "NODE.INPUT=VALUE"),
        ("=5", "NODE.INPUT=VALUE"),
        ("steps=5", "NODE.INPUT"),
    ],
)
def test_an_assignment_that_does_not_fit_is_refused(assignment: str, part: str) -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        Workflow.load(_classic()).set_text(assignment)
    assert part in caught.value.reason


# seeds


def test_every_seed_is_set() -> None:
    graph = {
        "1": _node("KSampler", seed=1),
        "2": _node("KSamplerAdvanced", noise_seed=2),
        "3": _node("A", x=3),
    }
    nodes = Workflow.load(graph).seed(MAX_SEED).nodes
    assert [list(node["inputs"].values()) for node in nodes.values()] == [[MAX_SEED], [MAX_SEED], [3]]


def test_a_linked_seed_is_set_where_it_is_written() -> None:
    graph = {
        "1": _node("KSampler", seed=["2", 0], steps=["4", 0]),
        "2": _node("Reroute", any=["3", 0], other="x"),
        "3": _node("PrimitiveInt", value=5, control="fixed"),
        "4": _node("PrimitiveInt", value=20),
    }
    nodes = Workflow.load(graph).seed(7).nodes
    assert (nodes["3"]["inputs"]["value"], nodes["4"]["inputs"]["value"]) == (7, 20)


def test_links_in_a_circle_end_the_search_for_a_seed() -> None:
    graph = {"1": _node("A", seed=["2", 0]), "2": _node("B", x=["1", 0], y=["2", 0])}
    with pytest.raises(WorkflowInvalid, match="no seed"):
        Workflow.load(graph).seed(7)


@pytest.mark.parametrize("value", [-1, MAX_SEED + 1, 1.5, True, "7", None])
def test_a_seed_is_a_whole_number_of_64_bits(value: Any) -> None:
    with pytest.raises(WorkflowInvalid, match="a seed is a whole number"):
        Workflow.load(_classic()).seed(value)


@pytest.mark.parametrize("value", ["fixed", True, None])
def test_an_input_named_seed_that_is_no_number_is_no_seed(value: Any) -> None:
    with pytest.raises(WorkflowInvalid, match="no seed"):
        Workflow.load({"1": _node("A", seed=value)}).seed(7)


def test_a_random_seed_is_the_same_everywhere_in_one_workflow() -> None:
    graph = {"1": _node("KSampler", seed=-1), "2": _node("KSampler", seed=-2)}
    first, second = (node["inputs"]["seed"] for node in Workflow.load(graph).seed("random").nodes.values())
    assert first == second >= 0
    assert len({random_seed() for _ in range(20)}) > 1


# digest


def _shuffled(value: Any, draw: Any) -> Any:
    if not isinstance(value, dict):
        return value
    keys = draw(st.permutations(list(value)))
    return {key: _shuffled(value[key], draw) for key in keys}


@given(st.data())
def test_the_digest_does_not_depend_on_the_order_of_keys_or_on_titles(data: st.DataObject) -> None:
    graph = _shuffled(_classic(), data.draw)
    for node in graph.values():
        node["_meta"] = {"title": data.draw(st.text())}
    assert Workflow.load(graph).digest == Workflow.load(_classic()).digest


def test_the_digest_is_a_published_value_and_changes_with_any_input() -> None:
    workflow = Workflow.load({"1": _node("A", x=1, y="ü")})
    assert workflow.digest == "1205c01a377b053c2a8767ad54ad23b304a07b00f5a63e3f0a05bc70f63a3f46"
    assert workflow.set("1.x", 2).digest != workflow.digest


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(old=_VALUES, new=_VALUES)
def test_setting_never_changes_the_original(old: Any, new: Any) -> None:
    before = Workflow.load({"0": _node("A"), "1": _node("B", x=[old])}).to_dict()
    workflow = Workflow.load(before)
    try:
        changed = workflow.set("1.x", [new])
    except WorkflowInvalid:
        changed = workflow
    assert workflow.to_dict() == before
    copy.deepcopy(changed.to_dict())["1"]["inputs"]["x"].append("more")
    assert changed.to_dict()["1"]["inputs"]["x"] in (before["1"]["inputs"]["x"], [new])


# round trips

_NAMES = st.text(min_size=1, max_size=4)
_SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_GRAPHS = st.dictionaries(
    _NAMES,
    st.fixed_dictionaries(
        {"class_type": _NAMES, "inputs": st.dictionaries(_NAMES, _SCALARS, min_size=1, max_size=3)},
        optional={"_meta": st.fixed_dictionaries({"title": st.text(max_size=4)})},
    ),
    min_size=1,
    max_size=4,
).filter(lambda graph: not (set(graph) <= {"nodes", "prompt"}))


def _place(workflow: Workflow, data: st.DataObject) -> tuple[str, str]:
    node_id = data.draw(st.sampled_from(list(workflow.nodes)))
    return node_id, data.draw(st.sampled_from(list(workflow.nodes[node_id]["inputs"])))


def _same_kind(value: Any) -> st.SearchStrategy[Any]:
    if isinstance(value, bool):
        return st.booleans()
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    return st.text() if isinstance(value, str) else numbers


@given(_GRAPHS, st.data())
def test_a_value_that_is_set_is_read_back_and_written_and_loaded_again(
    graph: dict[str, Any], data: st.DataObject
) -> None:
    workflow = Workflow.load(graph)
    node_id, name = _place(workflow, data)
    value = data.draw(_same_kind(graph[node_id]["inputs"][name]))
    changed = workflow.set_at(node_id, name, value)
    assert changed[node_id].inputs[name] == value
    again = Workflow.parse(json.dumps(changed.to_dict()))
    assert (again, again.digest) == (changed, changed.digest)
    assert workflow == Workflow.load(graph)


@given(_GRAPHS, st.data())
def test_patching_gives_one_digest_whatever_the_order_and_the_titles(
    graph: dict[str, Any], data: st.DataObject
) -> None:
    workflow = Workflow.load(graph)
    node_id, name = _place(workflow, data)
    value = data.draw(_same_kind(graph[node_id]["inputs"][name]))
    other = _shuffled(graph, data.draw)
    for shuffled in other.values():
        shuffled["_meta"] = {"title": data.draw(st.text(max_size=4)), "more": data.draw(st.integers())}
    patched = Workflow.load(other).set_at(node_id, name, value)
    assert patched.digest == workflow.set_at(node_id, name, value).digest


@given(st.integers(0, MAX_SEED))
def test_seeds_of_64_bits_stay_exact_on_every_way(seed: int) -> None:
    workflow = Workflow.load(_classic())
    ways = (
        workflow.seed(seed),
        workflow.set("3.seed", seed),
        workflow.set_text(f"3.seed={seed}"),
        workflow["KSampler"].with_inputs(seed=seed),
        Workflow.parse(json.dumps(workflow.seed(seed).to_dict())),
    )
    assert {way.nodes["3"]["inputs"]["seed"] for way in ways} == {seed}
    assert len({way.digest for way in ways}) == 1


_BAD = st.sampled_from([float("nan"), float("inf"), float("-inf")])
_HIDDEN = st.recursive(
    _BAD,
    lambda inner: inner.map(lambda bad: ["x", 1, bad]) | inner.map(lambda bad: {"a": 0, "b": bad}),
    max_leaves=4,
)


@given(_HIDDEN)
def test_nan_is_refused_in_one_sentence_wherever_it_hides(value: Any) -> None:
    graph = {"1": _node("A", "My node", x=value)}
    reasons = [_reason(graph), _reason(json.dumps(graph).encode())]
    with pytest.raises(WorkflowInvalid) as caught:
        Workflow.load({"1": _node("A", "My node", x=None)}).set("1.x", value)
    for reason in (*reasons, caught.value.reason):
        assert "My node" in reason
        assert reason.endswith("which is no JSON number: give it a value")
        assert len(reason.splitlines()) == 1


def test_a_workflow_is_not_gone_through_like_a_list() -> None:
    workflow: Any = Workflow.load(_classic())
    with pytest.raises(TypeError, match="not iterable"):
        iter(workflow)
    with pytest.raises(TypeError):
        assert "3" in workflow


# the positive prompt: see test_upstream.py


def test_the_prompt_is_worked_out_once() -> None:
    workflow = Workflow.load(_classic())
    assert workflow.prompt_text is workflow.prompt_text
    silent = Workflow.load({"1": {"class_type": "Nothing", "inputs": {}}})
    assert (silent.prompt_text, silent.prompt_text) == (None, None)
