"""What people call nodes and inputs, and what they are told when that fits nothing, or too much."""

from __future__ import annotations

import pytest
from graphs import Graph, classic, node
from hypothesis import given
from hypothesis import strategies as st

from comfyflow.errors import WorkflowInvalid
from comfyflow.reference import assigned, input_named, label_of, no_input, node_named, own_title, title_of

TWO_OF_A_KIND: Graph = {
    "1": node("LoadImage", "Photo", image="a.png"),
    "2": node("LoadImage", "Photo", image="b.png"),
    "3": node("Photo", image="c.png"),
}


@pytest.mark.parametrize(
    ("reference", "node_id"),
    [
        ("6", "6"),
        ("Positive", "6"),
        ('"Positive"', "6"),
        ("KSampler", "3"),
        ("Load Checkpoint", "4"),
    ],
)
def test_a_node_is_called_by_id_title_or_class(reference: str, node_id: str) -> None:
    assert node_named(classic(), reference) == node_id


def test_a_title_may_have_quotes_of_its_own() -> None:
    graph = {"1": node("A", '"Best"', x=1), "2": node("A", '"', x=2)}
    assert [node_named(graph, name) for name in ('"Best"', '""Best""', '"')] == ["1", "1", "2"]


def test_a_title_goes_before_a_class_and_an_id_before_both() -> None:
    graph = {"A": node("B"), "2": node("X", "A"), "3": node("C", "B")}
    assert [node_named(graph, name) for name in ("A", "B", "C")] == ["A", "3", "3"]


def test_a_name_that_fits_several_nodes_is_answered_with_all_of_them() -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        node_named(TWO_OF_A_KIND, "Photo")
    assert caught.value.reason == '\'Photo\' fits more than one node; use an id: "Photo" (1), "Photo" (2)'
    with pytest.raises(WorkflowInvalid, match=r"1\.image \(Photo\), 2\.image \(Photo\)"):
        input_named(TWO_OF_A_KIND, '"Photo".image')


def test_a_name_that_fits_nothing_is_answered_with_the_nearest_first() -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        node_named(classic(), "ksampler")
    assert caught.value.reason.startswith("there is no node 'ksampler'; there are: \"KSampler\" (3), ")
    with pytest.raises(WorkflowInvalid, match="there is no node 'Positiv'"):
        input_named(classic(), "Positiv.text")
    with pytest.raises(WorkflowInvalid, match="and 2 more"):
        node_named({str(number): node("A") for number in range(10)}, "B")


def test_a_title_that_several_nodes_have_fits_the_one_with_that_input() -> None:
    graph = {"1": node("A", "Same", x=1), "2": node("B", "Same", y=1)}
    assert input_named(graph, "Same.y") == ("2", "y")


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("v1.5.model.prompt", ("7", "model.prompt")),
        ('"v1.5".model.prompt', ("7", "model.prompt")),
        ("19:3.text", ("19:3", "text")),
        ("5.0.resize_type.width", ("5.0", "resize_type.width")),
    ],
)
def test_ids_titles_and_inputs_may_hold_dots(target: str, place: tuple[str, str]) -> None:
    graph = {
        "7": node("A", "v1.5", **{"model.prompt": ""}),
        "19:3": node("B", text=""),
        "5.0": node("C", **{"resize_type": "", "resize_type.width": 1}),
    }
    assert input_named(graph, target) == place


@pytest.mark.parametrize("target", ["text", ".text", ""])
def test_a_target_has_a_node_and_an_input(target: str) -> None:
    with pytest.raises(WorkflowInvalid, match=r"NODE\.INPUT"):
        input_named(classic(), target)


def test_an_unknown_input_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        input_named(classic(), "Positive.txt")
    assert caught.value.reason == no_input(classic(), "6", "txt")
    assert caught.value.reason == "node \"Positive\" (6) has no input 'txt'; its inputs are: text, clip"
    assert no_input({"1": node("A")}, "1", "x").endswith("its inputs are: none")


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("6.text=a=b.c", ("6", "text", "a=b.c")),
        ("6.text=", ("6", "text", "")),
        ("cfg=8.scale=2", ("8", "scale", "2")),
        ('"cfg=8".scale=2', ("8", "scale", "2")),
    ],
)
def test_an_assignment_ends_its_target_where_a_known_one_ends(
    assignment: str, found: tuple[str, str, str]
) -> None:
    assert assigned({**classic(), "8": node("A", "cfg=8", scale=1.0)}, assignment) == found


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("6.text", "must be NODE.INPUT=VALUE"),
        ("=5", "must be NODE.INPUT=VALUE"),
        ("text=5", "must be written NODE.INPUT"),
        ("3.step=5=6", "no input 'step'"),
    ],
)
def test_an_assignment_without_a_target_is_refused(assignment: str, part: str) -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        assigned(classic(), assignment)
    assert part in caught.value.reason


def test_a_node_without_a_title_is_called_by_its_class() -> None:
    assert (own_title(node("A", "My A")), title_of(node("A", "My A"))) == ("My A", "My A")
    for bare in (
        node("A"),
        node("A", "  "),
        {**node("A"), "_meta": None},
        {**node("A"), "_meta": {"title": 5}},
    ):
        assert (own_title(bare), title_of(bare)) == (None, "A")
    assert label_of(classic(), "4") == '"Load Checkpoint" (4)'


NAMES = st.text(st.sampled_from('ab."=: '), min_size=1, max_size=4)


@given(st.dictionaries(NAMES, st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=4), st.text())
def test_what_is_called_by_its_id_is_found_whatever_names_there_are(
    named: dict[str, tuple[str, str, str]], text: str
) -> None:
    graph = {key: node(kind, title, **{name: 1}) for key, (kind, title, name) in named.items()}
    for node_id, given_node in graph.items():
        assert node_named(graph, node_id) == node_id
        (name,) = given_node["inputs"]
        splits_elsewhere = [
            (key, inner)
            for key in graph
            for inner in graph[key]["inputs"]
            if f"{key}.{inner}" == f"{node_id}.{name}"
        ]
        if splits_elsewhere == [(node_id, name)]:
            assert input_named(graph, f"{node_id}.{name}") == (node_id, name)
