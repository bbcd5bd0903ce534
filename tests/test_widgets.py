"""Values of saved nodes by the names of their inputs."""

from __future__ import annotations

from typing import Any

import golden
import pytest

from comfyflow.errors import WorkflowInvalid
from comfyflow.schema import AUTOGROW, DYNAMIC_COMBO
from comfyflow.ui import Node, Slot
from comfyflow.widgets import Classes

SAMPLED = {"seed": 5, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1}


TWO = Slot("s", "INT", None, "s"), Slot("t", "X", None, "t")


def node(kind: str, values: Any = None, *inputs: Slot, named: Any = None) -> Node:
    return Node("1", kind, None, 0, inputs, (), values, {}, named)


def values(info: dict[str, Any], values_: Any, *inputs: Slot, kind: str = "A") -> dict[str, Any]:
    return dict(Classes({kind: info}).filled(node(kind, values_, *inputs)).values)


def required(**inputs: Any) -> dict[str, Any]:
    return {"input": {"required": inputs}}


@pytest.mark.parametrize(
    "given",
    [
        [5, "randomize", 20, 8, "euler", "normal", 1],
        [5, True, 20, 8, "sample_euler", "normal", 1, "more", 7],
        [5, "fixed", 20, 8, None, "normal", 1],
        {**SAMPLED, "control_after_generate": "fixed"},
    ],
)
def test_values_of_a_sampler_by_place_and_by_name(given: Any) -> None:
    info = golden.object_info()["KSampler"]
    found = values(info, given, kind="KSampler")
    assert found == {**SAMPLED, "scheduler": "normal"}


def test_values_that_are_missing_are_those_of_a_fresh_node() -> None:
    info = required(a=["INT", {"default": 3}], b=["STRING"], model=["MODEL"])
    assert values(info, [9]) == {"a": 9, "b": ""}
    assert values(info, None) == values(info, {}) == {"a": 3, "b": ""}


def test_a_choice_brings_the_values_behind_it() -> None:
    options = [{"key": "x", "inputs": {"required": {"n": ["INT"]}}}, {"key": "y"}]
    info = required(mode=[DYNAMIC_COMBO, {"options": options}], last=["INT"])
    assert values(info, ["x", 5, 6]) == {"mode": "x", "mode.n": 5, "last": 6}
    assert values(info, ["y", 6]) == {"mode": "y", "last": 6}
    assert values(info, {"mode": "x", "mode.n": 5}) == {"mode": "x", "mode.n": 5, "last": 0}


@pytest.mark.parametrize("given", [["z", 6], {"mode": "z", "last": 6}])
def test_a_choice_that_there_is_not_is_told_and_leaves_its_inputs_out(given: Any) -> None:
    options = [{"key": "x", "inputs": {"required": {"n": ["INT"]}}}]
    classes = Classes({"A": required(mode=[DYNAMIC_COMBO, {"options": options}], last=["INT"])})
    one = node("A", given, Slot("mode.n", "INT", 4), Slot("more", "INT", 5))
    (warning,) = classes.filled(one).warnings
    assert "no choice mode = 'z'" in warning
    assert [slot.name for slot in classes.slots(one)] == ["mode", "last", "more"]


def test_sockets_that_were_widgets_once_take_no_value() -> None:
    info = required(a=["INT", {"forceInput": True}], b=["INT", {"control_after_generate": True}], c=["INT"])
    assert values(info, [1, 2, "fixed", 3]) == {"b": 2, "c": 3}
    assert values(info, [2, "fixed", 3]) == {"b": 2, "c": 3}


def test_a_custom_combo_is_sent_with_all_its_options() -> None:
    info = required(choice=["COMBO", {"options": []}])
    assert values(info, ["b", 1, "a", "b"], kind="CustomCombo") == {
        "choice": "b",
        "index": 1,
        "option1": "a",
        "option2": "b",
        "option3": "",
    }
    assert values(info, ["b", 1, "a", ""], kind="CustomCombo")["option2"] == ""
    assert values(info, ["b"], kind="CustomCombo") == {"choice": "b"}


def test_buttons_of_the_page_are_sent_too() -> None:
    info = required(model_file=[["a.glb"]], width=["INT"])
    found = values(info, ["a.glb", "u", "v", "w", 9], kind="Load3D")
    assert found == {
        "model_file": "a.glb",
        "upload 3d model": "u",
        "upload extra resources": "v",
        "clear": "w",
        "width": 9,
    }


def test_slots_stand_in_the_order_of_the_page() -> None:
    info = required(text=["STRING"], many=[AUTOGROW, {}], model=["MODEL"], any=["COMFY_MATCHTYPE_V3", {}])
    one = node(
        "A",
        ["x"],
        Slot("more", "INT", 1),
        Slot("many.b", "IMAGE", 2),
        Slot("any", "INT", 3),
        Slot("model", "*", 4),
        Slot("gone", "INT", 5, "gone"),
        Slot("text", "STRING", 6, "text"),
    )
    assert [(slot.name, slot.type) for slot in Classes({"A": info}).slots(one)] == [
        ("many.b", "IMAGE"),
        ("model", "MODEL"),
        ("any", "INT"),
        ("text", "STRING"),
        ("more", "INT"),
    ]


def test_a_node_of_the_page_and_one_of_an_unknown_class_keep_their_own_slots() -> None:
    classes = Classes({"Note": required(x=["INT"])})
    slot = Slot("a", "X")
    assert classes.slots(node("Note", None, slot)) == classes.slots(node("B", None, slot)) == (slot,)
    assert classes.slots(kept := node("B", None, slot)) is classes.slots(kept)


@pytest.mark.parametrize(
    ("one", "found"),
    [
        (node("B", {"a": 1, "control_after_generate": "fixed"}), {"a": 1}),
        (node("B", [9], named={"a": 1, "upload": "image"}), {"a": 1}),
        (node("B", [9, "image"], named={"a": 1, "upload": "image"}), {"a": 9}),
        (node("B", [5, "fixed"], named={"a": 5, "fixed": "fixed"}), {"a": 5}),
        (node("B", ["b"], named={"fixed": "b"}), {"fixed": "b"}),
        (
            node("B", [7, "fixed", "x"], Slot("s", "INT", None, "s"), Slot("t", "X", None, "t")),
            {"s": 7, "t": "x"},
        ),
        (
            node("B", [True, "fixed"], Slot("s", "X", None, "s"), Slot("t", "X", None, "t")),
            {"s": True, "t": "fixed"},
        ),
        (node("B"), {}),
    ],
)
def test_an_unknown_class_is_taken_by_its_own_names_with_a_warning(one: Node, found: dict[str, Any]) -> None:
    filled = Classes({"B": 5}).filled(one)
    assert filled.values == found
    assert "class 'B' is unknown" in filled.warnings[0]


def test_values_without_names_are_refused() -> None:
    with pytest.raises(WorkflowInvalid, match="holds 1 values for 0 named inputs"):
        Classes({}).filled(node("B", [1]))
