"""What /object_info says of a node class, as the page shows it."""

from __future__ import annotations

from typing import Any

import golden
import pytest

from comfyflow.schema import DYNAMIC_COMBO, InputSpec, node_spec


def spec(kind: str, **inputs: Any) -> InputSpec:
    """The one input of a class that has it."""
    (found,) = node_spec("A", {"input": {kind: inputs}}).inputs
    return found


def test_a_real_class_is_read_in_the_order_of_the_page() -> None:
    found = node_spec("KSampler", golden.object_info()["KSampler"])
    assert [one.name for one in found.inputs] == [
        "model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image",
        "denoise",
    ]  # fmt: skip
    assert [one.name for one in found.inputs if not one.is_widget] == [
        "model", "positive", "negative", "latent_image",
    ]  # fmt: skip
    assert (found.outputs, found.output_node, found.display_name) == (("LATENT",), False, "KSampler")
    seed, sampler = found.input("seed"), found.input("sampler_name")
    assert seed is not None and sampler is not None
    assert (seed.type, seed.required, seed.controls, seed.default) == ("INT", True, 1, 0)
    assert sampler.choices is not None
    assert (sampler.type, sampler.choices[0], sampler.default) == ("COMBO", "euler", "euler")
    assert found.input("nothing") is None


def test_required_inputs_come_first_and_the_given_order_counts() -> None:
    info = {
        "input": {"optional": {"o": ["INT"]}, "required": {"b": ["INT"], "a": ["INT"], "c": ["INT"]}},
        "input_order": {"required": ["a", "b", "gone", 5], "optional": "junk"},
    }
    assert [one.name for one in node_spec("A", info).inputs] == ["a", "b", "c", "o"]


@pytest.mark.parametrize(
    ("entry", "default"),
    [
        (["INT", {"default": 7}], 7),
        (["INT"], 0),
        (["FLOAT"], 0),
        (["BOOLEAN"], False),
        (["STRING"], ""),
        ([["x", "y"]], "x"),
        ([[]], None),
        (["COMBO", {"options": ["p", "q"]}], "p"),
        (["COMBO"], None),
        (["MODEL"], None),
    ],
)
def test_what_a_fresh_node_holds(entry: list[Any], default: Any) -> None:
    assert spec("required", x=entry).default == default


@pytest.mark.parametrize(
    ("entry", "widget"),
    [
        (["INT"], True),
        (["INT", {"forceInput": True}], False),
        (["MODEL"], False),
        (["MODEL,INT", {"widgetType": "STRING"}], True),
        ([["a"]], True),
        ("junk", False),
        (None, False),
        (["INT", "junk"], True),
    ],
)
def test_which_inputs_a_person_types(entry: Any, widget: bool) -> None:
    assert spec("optional", x=entry).is_widget is widget


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"image_upload": True}, "image"),
        ({"animated_image_upload": True}, "image"),
        ({"video_upload": True}, "video"),
        ({"audio_upload": True}, "audio"),
        ({"file_upload": True}, "file"),
        ({"image_upload": False}, None),
    ],
)
def test_which_files_may_be_uploaded(options: dict[str, bool], kind: str | None) -> None:
    assert spec("required", x=[["a.png"], options]).upload == kind


@pytest.mark.parametrize(
    ("name", "entry", "count"),
    [
        ("seed", ["INT"], 1),
        ("noise_seed", ["INT"], 1),
        ("seed", ["INT", {"control_after_generate": False}], 0),
        ("steps", ["INT"], 0),
        ("steps", ["INT", {"control_after_generate": True}], 1),
        ("model", [["a"], {"control_after_generate": True}], 2),
        ("model", [["a"]], 0),
        ("seed", ["FLOAT"], 0),
    ],
)
def test_how_many_widgets_that_are_never_sent_follow(name: str, entry: list[Any], count: int) -> None:
    assert spec("required", **{name: entry}).controls == count


def test_a_choice_of_a_dynamic_combo_brings_inputs() -> None:
    options = [
        "junk",
        {"key": "a", "inputs": {"required": {"n": ["INT"]}, "optional": {"m": ["STRING"]}}},
        {"key": "b"},
    ]
    combo = spec("required", mode=[DYNAMIC_COMBO, {"options": options}])
    assert combo.choices == ("a", "b")
    assert [(one.name, one.required) for one in combo.chosen("a")] == [("mode.n", True), ("mode.m", False)]
    assert combo.chosen("b") == combo.chosen("nothing") == ()
    assert spec("required", x=["INT"]).chosen("a") == ()


def test_the_page_adds_its_own_inputs_behind_the_required_ones() -> None:
    info = {"input": {"required": {"audio": ["AUDIO"]}, "optional": {"more": ["INT"]}}}
    assert [one.name for one in node_spec("SaveAudio", info).inputs] == ["audio", "audioUI", "more"]


@pytest.mark.parametrize("info", [{}, {"input": 5}, {"input": {"required": []}}, {"output": "x"}])
def test_what_is_malformed_counts_as_empty(info: dict[str, Any]) -> None:
    found = node_spec("A", info)
    assert (found.inputs, found.outputs, found.display_name) == ((), (), "A")


def test_outputs_are_types_and_lists_are_combos() -> None:
    assert node_spec("A", {"output": ["IMAGE", ["a", "b"]]}).outputs == ("IMAGE", "COMBO")
