"""What can be set: names, types, ranges, choices; as a table and as a JSON Schema."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from graphs import classic, node
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from comfyflow.errors import WorkflowInvalid
from comfyflow.listing import Settable, json_schema, range_text, settable
from comfyflow.reference import input_named
from comfyflow.workflow import MAX_SEED, Workflow

GOLDEN = Path(__file__).parent / "recordings" / "golden"
WIDTH = {
    "options": [{"key": "to width", "inputs": {"required": {"width": ["INT", {"min": 1, "max": 8192}]}}}]
}
CLASSES: dict[str, Any] = {
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}],
                "steps": ["INT", {"default": 20, "min": 1, "max": 10000}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 100.0, "step": 0.1}],
            }
        }
    },
    "LoadImage": {"input": {"required": {"image": [["a.png", "b.png"], {"image_upload": True}]}}},
    "LoadAudio": {"input": {"required": {"audio": ["COMBO", {"options": [], "audio_upload": True}]}}},
    "Resize": {"input": {"required": {"how": ["COMFY_DYNAMICCOMBO_V3", WIDTH]}}},
    "Odd": {
        "input": {"required": {"how": ["COMFY_DYNAMICCOMBO_V3", {}], "x": ["A,B", {}], "on": ["BOOLEAN"]}}
    },
    "Tags": {"input": {"required": {"tags": ["COMBO", {"options": ["a", "b"], "multiselect": True}]}}},
}


def _one(given_node: dict[str, Any], classes: Any = CLASSES) -> Settable:
    (one,) = settable(Workflow.load({"1": given_node}), classes)
    return one


def _target(graph: dict[str, Any]) -> list[str]:
    return [one.target for one in settable(Workflow.load(graph))]


# what is listed


def test_values_are_listed_in_the_order_of_the_file_and_links_are_not() -> None:
    assert [(one.node_id, one.input) for one in settable(Workflow.load(classic()))] == [
        ("3", "seed"),
        ("3", "steps"),
        ("3", "cfg"),
        ("4", "ckpt_name"),
        *(("5", name) for name in ("width", "height", "batch_size")),
        ("6", "text"),
        ("7", "text"),
        ("9", "filename_prefix"),
    ]


def test_the_class_tells_type_and_range() -> None:
    seed, cfg = settable(Workflow.load({"1": node("KSampler", "Main", seed=5, cfg=7.0)}), CLASSES)
    assert seed == Settable(
        "KSampler.seed", "1", "Main", "KSampler", "seed", "INT", 5, minimum=0, maximum=MAX_SEED
    )
    assert (cfg.type, cfg.minimum, cfg.maximum, cfg.step, cfg.choices) == ("FLOAT", 0.0, 100.0, 0.1, None)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, "BOOLEAN"), (5, "INT"), (5.0, "FLOAT"), ("x", "STRING"), (None, "*"), ({}, "*")],
)
def test_without_the_class_the_type_is_that_of_the_value(value: Any, kind: str) -> None:
    assert _one(node("Unheard", x=value)).type == kind
    assert _one(node("KSampler", x=value)).type == kind  # an input that its class does not have
    assert _one(node("KSampler", steps=value), None).type == kind


def test_an_infinite_limit_is_none() -> None:
    classes = {"A": {"input": {"required": {"x": ["FLOAT", {"min": float("-inf"), "max": float("inf")}]}}}}
    one = _one(node("A", x=1.5), classes)
    assert (one.minimum, one.maximum) == (None, None)
    json.dumps(json_schema([one]), allow_nan=False)


def test_a_list_that_the_page_wrapped_is_shown_as_it_is() -> None:
    assert _one(node("Tags", tags={"__value__": ["a"]})).value == ["a"]
    assert _one(node("Unheard", x={"__value__": ["a"]})).value == ["a"]


def test_choices_are_told_also_those_of_a_dynamic_combo_and_its_inputs() -> None:
    how, width = settable(Workflow.load({"1": node("Resize", how="to width", **{"how.width": 64})}), CLASSES)
    assert (how.type, how.choices) == ("COMBO", ("to width",))
    assert (width.target, width.type, width.minimum, width.maximum) == ("Resize.how.width", "INT", 1, 8192)
    assert _one(node("Odd", how="x")).type == "STRING"  # a choice that the server does not have


@pytest.mark.parametrize(
    ("found", "upload"),
    [
        (node("LoadImage", image="a.png"), "image"),
        (node("LoadAudio", audio=""), "audio"),
        (node("KSampler", steps=5), None),
    ],
)
def test_inputs_that_take_files_are_told(found: dict[str, Any], upload: str | None) -> None:
    assert _one(found).upload == upload


@pytest.mark.parametrize(
    ("options", "upload"),
    [
        ({"video_upload": True}, "video"),
        ({"file_upload": True}, "file"),
        ({"animated_image_upload": True}, "image"),
        ({"image_upload": False}, None),
        ({"model_upload": True}, None),
    ],
)
def test_every_kind_of_upload_is_known(options: dict[str, Any], upload: str | None) -> None:
    classes = {"A": {"input": {"required": {"x": ["STRING", options]}}}}
    assert _one(node("A", x=""), classes).upload == upload


# targets


def test_the_class_names_an_input_that_one_node_alone_has() -> None:
    assert _target({"1": node("A", "T", x=1), "2": node("B", "T", x=1)}) == ["A.x", "B.x"]


def test_else_the_title_does_and_else_the_id() -> None:
    graph = {"1": node("A", "First", x=1), "2": node("A", "Twin", x=1), "3": node("A", "Twin", x=1)}
    assert _target(graph) == ['"First".x', "2.x", "3.x"]


def test_a_link_of_the_same_name_counts() -> None:
    graph = {"0": node("N", y=1), "1": node("A", x=1), "2": node("A", x=["0", 0])}
    assert _target(graph) == ["N.y", "1.x"]


def test_a_title_that_looks_like_a_class_goes_before_it() -> None:
    assert _target({"1": node("A", "B", x=1), "2": node("B", x=2)}) == ["A.x", "2.x"]


def test_a_title_with_quotes_is_not_written_in_quotes() -> None:
    graph = {"1": node("A", 'the "best"', x=1), "2": node("A", x=1)}
    assert _target(graph) == ["1.x", "2.x"]


NAMES = st.text(st.sampled_from('ab."'), min_size=1, max_size=3)


@given(st.dictionaries(NAMES, st.tuples(NAMES, NAMES, st.lists(NAMES, max_size=3)), min_size=1, max_size=4))
def test_a_target_means_its_input_to_set_whatever_the_names(
    named: dict[str, tuple[str, str, list[str]]],
) -> None:
    graph = {key: node(kind, title, **dict.fromkeys(names, 1)) for key, (kind, title, names) in named.items()}
    workflow = Workflow.load(graph)
    for one in settable(workflow):
        try:
            assert input_named(workflow.nodes, one.target) == (one.node_id, one.input)
        except WorkflowInvalid:  # an id with a dot in it: "a" with "b.c", and "a.b" with "c"
            assert one.target == f"{one.node_id}.{one.input}"


# the schema


def _properties(graph: dict[str, Any], classes: Any = CLASSES) -> dict[str, Any]:
    properties: dict[str, Any] = json_schema(settable(Workflow.load(graph), classes))["properties"]
    return properties


def _checked(graph: dict[str, Any], classes: Any = CLASSES) -> Draft202012Validator:
    schema = json_schema(settable(Workflow.load(graph), classes))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(json.loads(json.dumps(schema)))


def test_the_schema_says_what_may_be_given() -> None:
    schema = json_schema(settable(Workflow.load({"1": node("KSampler", "Main", seed=5)}), CLASSES), "a file")
    assert schema == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a file",
        "type": "object",
        "properties": {
            "KSampler.seed": {
                "title": "Main: seed",
                "default": 5,
                "type": "integer",
                "minimum": 0,
                "maximum": MAX_SEED,
            }
        },
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("found", "right", "wrong"),
    [
        (node("KSampler", steps=5), [1, 10000], [0, 10001, 1.5, "5"]),
        (node("KSampler", cfg=5.0), [0, 7.5, 100], [-0.1, 101, "x"]),
        (node("Unheard", x="text"), ["", "y"], [5]),
        (node("Odd", on=True), [True, False], ["true", 1]),
        (node("Odd", x="y"), ["z", 5, None], []),
        (node("Resize", how="to width"), ["to width"], ["to height", 5]),
        (node("Tags", tags={"__value__": ["a"]}), [[], ["a", "b"]], [["c"], "a"]),
        (node("Tags", tags="a"), ["a", "b"], ["c"]),
        (node("LoadImage", image="a.png"), ["b.png", "./my cat.png", "https://a.example/b.png"], [5]),
    ],
)
def test_the_schema_takes_what_fits_and_nothing_else(
    found: dict[str, Any], right: list[Any], wrong: list[Any]
) -> None:
    schema = _checked({"1": found})
    (target,) = _properties({"1": found})
    assert [value for value in right if not schema.is_valid({target: value})] == []
    assert [value for value in wrong if schema.is_valid({target: value})] == []
    assert not schema.is_valid({"another": 1})


def test_a_file_is_marked_and_long_lists_of_choices_are_left_out() -> None:
    (image,) = _properties({"1": node("LoadImage", image="a.png")}).values()
    assert image == {"title": "LoadImage: image", "default": "a.png", "type": "string", "x-upload": "image"}
    for choices in ([], [str(number) for number in range(201)]):
        classes = {"A": {"input": {"required": {"x": [choices, {}]}}}}
        assert _checked({"1": node("A", x="y")}, classes).is_valid({"A.x": "z"})


# the table


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (node("KSampler", seed=5), f"0..{MAX_SEED}"),
        (node("KSampler", cfg=5.0), "0..100"),
        (node("Resize", how="to width"), "to width"),
        (node("LoadImage", image="a.png"), "image file"),
        (node("Unheard", x=5), ""),
    ],
)
def test_the_range_is_told_in_a_few_words(found: dict[str, Any], text: str) -> None:
    assert range_text(_one(found)) == text


def test_open_ranges_and_many_choices_are_told_in_short() -> None:
    entries = {"low": ["INT", {"min": -1048576}], "high": ["FLOAT", {"max": 0.25}], "one": [list("abcdefgh")]}
    classes = {"A": {"input": {"required": entries}}}
    found = settable(Workflow.load({"1": node("A", low=1, high=0.1, one="a")}), classes)
    assert [range_text(one) for one in found] == ["-1048576..", "..0.25", "a, b, c, d, e, f and 2 more"]


# real ones


def test_every_target_of_real_workflows_means_its_input_and_each_schema_is_one() -> None:
    with lzma.open(GOLDEN / "object_info_0.27.0.json.xz") as file:
        classes = json.load(file)
    with lzma.open(GOLDEN / "api_by_frontend_1.45.20.json.xz") as file:
        graphs = list(json.load(file).values())[1::4]  # one of the others holds a NaN
    listed = 0
    for graph in graphs:
        workflow = Workflow.load(graph)
        found = settable(workflow, classes)
        assert [input_named(workflow.nodes, one.target) for one in found] == [
            (one.node_id, one.input) for one in found
        ]
        Draft202012Validator.check_schema(json_schema(found))
        listed += len(found)
    assert listed > 900
