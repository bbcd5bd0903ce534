"""Which values a server takes for an input."""

from __future__ import annotations

from typing import Any

import pytest

from comfyflow.choices import Finding, Judge, of_other_makers
from comfyflow.faults import FaultKind, Rule
from comfyflow.served import Entry, ServedClass

K = FaultKind


def found(
    value: Any,
    kind: Any,
    class_name: str = "Any",
    input_name: str = "x",
    *,
    judge: Judge | None = None,
    module: str = "nodes",
    **options: Any,
) -> Finding | None:
    served = ServedClass(class_name, {"python_module": module})
    entry = Entry(True, kind, options)
    findings = list((judge or Judge(True)).findings(served, input_name, entry, value))
    assert len(findings) <= 1
    return findings[0] if findings else None


def kind_of(finding: Finding | None) -> tuple[FaultKind | None, Rule | None] | None:
    return (finding.kind, finding.rule) if finding else None


@pytest.mark.parametrize(
    ("kind", "value", "fault"),
    [
        ("INT", "64", None),
        ("INT", " 64 ", None),
        ("INT", 1.9, None),
        ("INT", True, None),
        ("INT", "1.5", K.INVALID_INPUT_TYPE),
        ("INT", "", K.INVALID_INPUT_TYPE),
        ("INT", None, K.INVALID_INPUT_TYPE),
        ("INT", float("nan"), K.INVALID_INPUT_TYPE),
        ("INT", float("inf"), K.INVALID_INPUT_TYPE),
        ("INT", 10**400, K.VALUE_BIGGER_THAN_MAX),
        ("INT", {"__value__": "7"}, None),
        ("INT", {"value": 7}, K.INVALID_INPUT_TYPE),
        ("INT", {"__value__": [1]}, K.INVALID_INPUT_TYPE),
        ("INT", -1, K.VALUE_SMALLER_THAN_MIN),
        ("INT", 101, K.VALUE_BIGGER_THAN_MAX),
        ("FLOAT", "1e2", None),
        ("FLOAT", float("nan"), None),
        ("FLOAT", float("inf"), K.VALUE_BIGGER_THAN_MAX),
        ("FLOAT", 10**400, K.INVALID_INPUT_TYPE),
        ("FLOAT", "many", K.INVALID_INPUT_TYPE),
        ("BOOLEAN", "no", None),
        ("BOOLEAN", None, None),
        ("STRING", 5, K.INCOMPARABLE_VALUE),
        pytest.param("STRING", 10**5000, K.INVALID_INPUT_TYPE, id="more digits than Python writes"),
        ("MODEL", 50, None),
        ("MODEL", "text", K.INCOMPARABLE_VALUE),
        ("COMBO", None, K.INCOMPARABLE_VALUE),
    ],
)
def test_conversion_and_range(kind: str, value: Any, fault: FaultKind | None) -> None:
    finding = found(value, kind, min=0, max=100)
    assert (finding.kind if finding else None) == fault


@pytest.mark.parametrize("value", ["any", 5, None, {"a": 1}, {"__value__": []}])
def test_texts_and_links_without_limits_take_anything(value: Any) -> None:
    assert found(value, "STRING") is None
    assert found(value, "MODEL") is None


def test_what_is_said_of_a_range() -> None:
    finding = found(0, "INT", input_name="steps", min=1)
    assert finding is not None
    assert finding.message == "steps is 0, below its least value 1"


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        ("euler", {}, None),
        ({"__value__": "euler"}, {}, None),
        ("eulr", {}, (K.VALUE_NOT_IN_LIST, None)),
        (None, {}, (K.VALUE_NOT_IN_LIST, None)),
        ({"__value__": ["euler"]}, {}, (K.VALUE_NOT_IN_LIST, None)),
        ({"__value__": ["euler", "heun"]}, {"multiselect": True}, None),
        ({"__value__": ["euler", "odd"]}, {"multiselect": True}, (K.VALUE_NOT_IN_LIST, None)),
        ("odd", {"remote": {"route": "/x"}}, (K.VALUE_NOT_IN_LIST, Rule.LIST)),
    ],
)
def test_choices(value: Any, options: dict[str, Any], expected: Any) -> None:
    assert kind_of(found(value, ["euler", "heun"], **options)) == expected
    assert kind_of(found(value, "COMBO", **{**options, "options": ["euler", "heun"]})) == expected


def test_a_near_choice_is_named() -> None:
    finding = found("eulr", ["euler", "heun"], input_name="sampler_name")
    assert finding is not None
    assert finding.near == ("euler",)
    assert finding.message == (
        "sampler_name is 'eulr', which is not one of its 2 choices; did you mean 'euler'?"
    )


def test_older_servers_do_not_check_every_list() -> None:
    old = Judge(False)
    assert kind_of(found("odd", ["a"], judge=old)) == (K.VALUE_NOT_IN_LIST, None)
    assert kind_of(found("odd", "COMBO", judge=old, options=["a"])) == (K.VALUE_NOT_IN_LIST, Rule.VERSION)
    assert kind_of(found("odd", ["a"], "LoraSave", "lora_type", judge=old)) == (
        K.VALUE_NOT_IN_LIST,
        Rule.VERSION,
    )


def test_choices_that_are_no_list_are_not_judged() -> None:
    assert found("odd", "COMBO", options={"a": 1}) is None


@pytest.mark.parametrize(
    ("class_name", "input_name", "value", "folder"),
    [
        ("CheckpointLoaderSimple", "ckpt_name", "b.safetensors", "checkpoints"),
        ("CLIPVisionLoader", "clip_name", "b.safetensors", "clip_vision"),
        ("CLIPLoader", "clip_name", "b", "text_encoders"),
        ("Other", "file", "B.CKPT", None),
    ],
)
def test_a_missing_model_is_told_apart(
    class_name: str, input_name: str, value: str, folder: str | None
) -> None:
    finding = found(value, ["xl/b.safetensors"], class_name, input_name)
    assert finding is not None
    assert (finding.kind, finding.folder, finding.value) == (K.MISSING_MODEL, folder, value)
    assert (f"models/{folder}" in finding.message) is (folder is not None)


def test_the_same_model_in_another_folder_is_near() -> None:
    finding = found("b.safetensors", ["a.safetensors", "xl/b.safetensors"], input_name="ckpt_name")
    assert finding is not None
    assert finding.near == ("xl/b.safetensors",)


@pytest.mark.parametrize("kind", ["INT", "COMBO"])
def test_classes_of_others_may_see_ranges_and_choices_otherwise(kind: str) -> None:
    finding = found(-1, kind, module="custom_nodes.pack", min=0)
    assert finding is not None
    assert (finding.kind, finding.rule) == (K.VALUE_SMALLER_THAN_MIN, Rule.OWN_CHECK)
    assert "custom node pack" in finding.message


def test_classes_of_others_do_not_change_conversion_nor_another_reason() -> None:
    pack = "custom_nodes.pack"
    assert kind_of(found("x", "INT", module=pack)) == (K.INVALID_INPUT_TYPE, None)
    assert kind_of(found("x", "COMBO", module=pack, remote={})) == (K.VALUE_NOT_IN_LIST, Rule.OWN_CHECK)
    remote = found("x", "COMBO", module=pack, remote={"route": "/x"})
    assert kind_of(remote) == (K.VALUE_NOT_IN_LIST, Rule.LIST)


def test_a_finding_left_to_the_server_keeps_what_it_says() -> None:
    finding = of_other_makers(Finding(K.RETURN_TYPE_MISMATCH, "this"))
    assert finding.message.startswith("this (")


def test_inputs_that_a_class_takes_itself_are_not_judged() -> None:
    assert found("gpu:7", ["default"], "SelectModelDevice", "device") is None
    assert found(5, ["a"], "CustomCombo") is None
    assert kind_of(found("x", "INT", "CustomCombo")) == (K.INVALID_INPUT_TYPE, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", None),
        ("up.png", None),
        ("b.png", (K.MISSING_FILE, None)),
        ("A.png", (K.MISSING_FILE, Rule.FILE)),
        ("sub/b.png", (K.MISSING_FILE, Rule.FILE)),
        ("b.png [output]", (K.MISSING_FILE, Rule.FILE)),
        ("b.psd", (K.MISSING_FILE, Rule.FILE)),
        ("", (K.MISSING_FILE, Rule.FILE)),
        (" b.png", (K.MISSING_FILE, Rule.FILE)),
        (5, (K.MISSING_FILE, None)),
    ],
)
def test_files_of_comfyuis_own_loaders(value: Any, expected: Any) -> None:
    judge = Judge(True, uploads={"up.png"})
    assert (
        kind_of(found(value, ["a.png", 7], "LoadImage", "image", judge=judge, image_upload=True)) == expected
    )


def test_a_file_without_a_list_is_the_servers_word() -> None:
    assert kind_of(found("webcam/a.png", "WEBCAM", "WebcamCapture", "image")) == (K.MISSING_FILE, Rule.FILE)
    assert kind_of(found("b.glb", ["none"], "Load3D", "model_file")) == (K.MISSING_FILE, Rule.FILE)


@pytest.mark.parametrize("value", ["none", "", None])
def test_a_3d_view_needs_no_file(value: Any) -> None:
    assert found(value, ["none"], "Load3D", "model_file") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a.psd", None), ("up.psd", None), ("b.psd", (K.MISSING_FILE, None)), (5, (K.MISSING_FILE, None))],
)
def test_uploads_of_classes_that_check_the_list(value: Any, expected: Any) -> None:
    judge = Judge(True, uploads=["up.psd"])
    assert kind_of(found(value, ["a.psd"], judge=judge, file_upload=True)) == expected
