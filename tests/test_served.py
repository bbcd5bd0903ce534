"""Which inputs of a node the server looks at, and which rules are the class's own."""

from __future__ import annotations

from typing import Any

import pytest

from comfyflow.served import Entry, ServedClass, fits


def made(name: str = "Any", **info: Any) -> ServedClass:
    return ServedClass(name, info)


def autogrow(section: str = "required", entry: Any = ("IMAGE", {}), **template: Any) -> list[Any]:
    return ["COMFY_AUTOGROW_V3", {"template": {"input": {section: {"x": list(entry)}}, **template}}]


def combo(*options: Any) -> list[Any]:
    return ["COMFY_DYNAMICCOMBO_V3", {"options": list(options)}]


def names(served: ServedClass, **given: Any) -> dict[str, bool]:
    return {name: entry.required for name, entry in served.inputs(given).items()}


@pytest.mark.parametrize(
    ("received", "wanted", "fit"),
    [
        ("IMAGE", "IMAGE", True),
        ("IMAGE", "MASK", False),
        ("IMAGE", "MASK, IMAGE", True),
        ("*", "MASK", True),
        ("IMAGE", "*", True),
        ("IMAGE", "MASK,*", True),
        ("COMFY_MATCHTYPE_V3", "MASK", True),
        (["a", "b"], ["a", "b"], True),
        (["a"], ["b"], False),
        (["a"], "COMBO", True),
        (["a"], "IMAGE", False),
        (["a"], "*", True),
        ("COMBO", ["a"], False),
    ],
)
def test_types_of_links(received: Any, wanted: Any, fit: bool) -> None:
    assert fits(received, wanted) is fit


@pytest.mark.parametrize(
    ("kind", "unheard_of"),
    [
        ("COMFY_NEWKIND_V3", True),
        ("COMFY_DYNAMICSLOT_V3", True),
        ("COMFY_AUTOGROW_V3", False),
        ("COMFY_MATCHTYPE_V3", False),
        ("IMAGE", False),
        (["a"], False),
    ],
)
def test_dynamic_inputs_of_a_later_kind_are_known_as_such(kind: Any, unheard_of: bool) -> None:
    assert Entry(True, kind, {}).unheard_of is unheard_of


@pytest.mark.parametrize(
    ("kind", "options", "choices"),
    [
        (["a", "b"], {}, ["a", "b"]),
        ("COMBO", {"options": ["a"]}, ["a"]),
        ("COMBO", {}, []),
    ],
)
def test_choices_stand_in_two_places(kind: Any, options: dict[str, Any], choices: list[str]) -> None:
    entry = Entry(True, kind, options)
    assert entry.is_choice
    assert entry.choices == choices


@pytest.mark.parametrize(
    ("value", "listed"), [("a", True), ("b", False), (1.0, True), (True, True), (None, False), ([2], True)]
)
def test_a_choice_is_found_by_equality(value: Any, listed: bool) -> None:
    served, entry = made(), Entry(True, ["a", 1, [2]], {})
    assert served.listed(entry, value) is listed
    assert served.listed(entry, value) is listed


def test_what_is_malformed_counts_as_empty() -> None:
    for served in (
        ServedClass("Any", None),
        made(input=5, output=5),
        made(input={"required": 5, "optional": {}}),
    ):
        assert (names(served), list(served.outputs), served.output_node) == ({}, [], False)
    odd = made(input={"required": {"a": [], "b": ["INT", 5], "c": 7, "d": "IMAGE"}}).inputs({})
    assert {name: (entry.type, entry.options) for name, entry in odd.items()} == {
        "a": (None, {}),
        "b": ("INT", {}),
        "c": (None, {}),
        "d": ("I", {}),  # as on the server: the first letter
    }


def test_a_required_input_counts_before_an_optional_one_of_its_name() -> None:
    assert names(made(input={"required": {"a": ["INT"]}, "optional": {"a": ["INT"], "b": ["INT"]}})) == {
        "a": True,
        "b": False,
    }


def test_the_outputs_and_whether_it_is_one() -> None:
    served = made(output=["IMAGE", ["a"]], output_node=True)
    assert (served.outputs, served.output_node) == (["IMAGE", ["a"]], True)


def test_a_growing_input_has_its_first_names_required() -> None:
    served = made(input={"required": {"images": autogrow(prefix="image", min=1, max=3)}})
    assert served.dynamic
    assert names(served) == {"images.image0": True, "images.image1": False, "images.image2": False}


def test_a_growing_input_may_name_its_names_or_be_optional() -> None:
    served = made(
        input={
            "required": {"a": autogrow(names=["x", "y"], min=1)},
            "optional": {"b": autogrow("optional", names=["z"], min=1)},
        }
    )
    assert names(served) == {"a.x": True, "a.y": False, "b.z": False}


@pytest.mark.parametrize("template", [None, {}, {"input": {"required": {}}}, {"input": 5}])
def test_a_growing_input_without_a_template_brings_nothing(template: Any) -> None:
    assert names(made(input={"required": {"a": ["COMFY_AUTOGROW_V3", {"template": template}]}})) == {}


def test_a_growing_input_never_has_more_than_a_hundred_names() -> None:
    assert len(names(made(input={"required": {"a": autogrow(prefix="i", min=0, max=10**9)}}))) == 100


def test_a_growing_input_may_hold_choices_that_bring_inputs() -> None:
    inner = combo({"key": "big", "inputs": {"required": {"size": ["INT"]}}})
    served = made(input={"required": {"parts": autogrow(entry=inner, names=["x", "y"], min=1)}})
    assert names(served, **{"parts.x": "big", "parts.y": "big"}) == {
        "parts.x": True,
        "parts.y": False,
        "parts.x.size": True,
        "parts.y.size": True,
    }


def test_a_dynamic_choice_brings_its_inputs() -> None:
    inner = combo({"key": "deep", "inputs": {"optional": {"z": ["INT"]}}})
    options = [{"key": "a", "inputs": {"required": {"x": ["INT"], "sub": inner}}}, {"key": "b"}, 5]
    served = made(input={"required": {"mode": combo(*options)}})
    assert names(served, mode="a", **{"mode.sub": "deep"}) == {
        "mode": True,
        "mode.x": True,
        "mode.sub": True,
        "mode.sub.z": False,
    }
    assert names(served, mode="b") == {"mode": True}
    assert names(served, mode="odd") == names(served) == {}


def test_a_dynamic_slot_brings_its_inputs_when_it_is_used() -> None:
    slot = ["COMFY_DYNAMICSLOT_V3", {"inputs": {"required": {"x": ["INT"]}}}]
    served = made(input={"optional": {"slot": slot}})
    assert names(served, slot=["1", 0]) == {"slot": False, "slot.x": True}
    assert names(served) == {}


def test_inputs_in_inputs_end_somewhere() -> None:
    slot: list[Any] = ["COMFY_DYNAMICSLOT_V3", {}]
    slot[1]["inputs"] = {"required": {"s": slot}}
    served = made(input={"required": {"s": slot}})
    given = {".".join("s" * depth): 1 for depth in range(1, 80)}
    assert len(served.inputs(given)) == 51


@pytest.mark.parametrize(
    ("given", "odd"),
    [
        ({"mode": "a"}, [("size", False)]),
        ({"mode": "z", "size": "m"}, [("mode", True)]),
        ({"mode": ["1", 0], "size": "m", "more": 5}, [("more", True), ("mode", True)]),
        ({"mode": "a", "size": "m"}, []),
    ],
)
def test_dynamic_choices_that_older_servers_pass_over(
    given: dict[str, Any], odd: list[tuple[str, bool]]
) -> None:
    required = {"mode": combo({"key": "a"}), "size": combo({"key": "m"}), "n": ["INT"]}
    served = made(input={"required": required, "optional": {"more": ["COMFY_DYNAMICCOMBO_V3", {}]}})
    assert list(served.odd_choices(given)) == odd


@pytest.mark.parametrize(
    ("module", "own"),
    [("nodes", True), ("comfy_extras.nodes_mask", True), ("custom_nodes.pack", False), (None, False)],
)
def test_classes_of_others_are_told_by_their_module(module: Any, own: bool) -> None:
    served = ServedClass("LoadImage", {"python_module": module})
    assert (served.own, served.takes("image"), served.file_input) == (own, own, "image" if own else None)


@pytest.mark.parametrize(
    ("name", "takes_x", "judges", "judges_types"),
    [
        ("KSampler", False, False, False),
        ("LoadImage", False, False, False),
        ("Load3D", True, False, False),
        ("CustomCombo", True, False, False),
        ("SelectModelDevice", False, False, False),
        ("FluxProUltraImageNode", False, True, False),
        ("TripoConversionNode", False, True, True),
    ],
)
def test_classes_of_comfyui_that_check_by_themselves(
    name: str, takes_x: bool, judges: bool, judges_types: bool
) -> None:
    served = made(name)
    assert (served.takes("x"), served.judges, served.judges_types) == (takes_x, judges, judges_types)
