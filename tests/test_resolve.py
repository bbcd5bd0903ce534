"""What really feeds an input."""

from __future__ import annotations

from typing import Any

import golden
import pytest

from comfyflow import resolve
from comfyflow.convert import convert
from comfyflow.errors import WorkflowInvalid
from comfyflow.resolve import Links, Value, bypassed, connects
from comfyflow.ui import Slot, read
from comfyflow.widgets import Classes

INFO: dict[str, Any] = {
    "Make": {"input": {"required": {"n": ["INT"]}}, "output": ["A", "B"]},
    "Take": {"input": {"required": {"a": ["A"], "n": ["INT"]}}, "output": ["A"], "output_node": True},
}


def slot(name: str, kind: str = "A", link: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, **more}


def widget(name: str, link: Any = None) -> dict[str, Any]:
    return slot(name, "INT", link, widget={"name": name})


def node(node_id: Any, kind: str, *inputs: dict[str, Any], outputs: Any = (), **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": kind, "inputs": list(inputs), "outputs": list(outputs), **more}


def link(key: int, origin: Any, target: Any, origin_slot: int = 0, target_slot: int = 0) -> list[Any]:
    return [key, origin, origin_slot, target, target_slot, "A"]


def sub(name: str, nodes: list[Any], links: list[Any], inputs: Any = (), outputs: Any = ()) -> dict[str, Any]:
    return {"id": name, "nodes": nodes, "links": links, "inputs": list(inputs), "outputs": list(outputs)}


def fed(nodes: list[Any], links: Any = (), subgraphs: Any = (), name: str = "a") -> dict[str, Any]:
    """What feeds the input `name` of each node that has it."""
    ui = {"nodes": nodes, "links": list(links), "definitions": {"subgraphs": list(subgraphs)}}
    graph = convert(ui, INFO).graph
    return {key: one["inputs"].get(name) for key, one in graph.items() if one["class_type"] == "Take"}


TAKE = node(9, "Take", slot("a", link=1))


def test_the_official_page_resolves_its_templates_the_same() -> None:
    for ui, api in list(golden.templates().values())[::5]:
        saved = read(ui)
        links = Links(saved, Classes(golden.object_info()))
        assert {place.id for place in links.places.values() if links.runs(place)} >= set(api)


def test_reroutes_and_set_and_get_nodes_are_followed() -> None:
    nodes = [
        node(1, "Make"),
        node(2, "Reroute", slot("", "*", 2)),
        node(3, "SetNode", slot("A", "A", 3), widgets_values=["x"]),
        node(4, "GetNode", widgets_values=["x"]),
        TAKE,
    ]
    links = [link(1, 4, 9), link(2, 1, 2, 1), link(3, 2, 3)]
    assert fed(nodes, links) == {"9": ["1", 1]}


@pytest.mark.parametrize(
    "nodes",
    [
        [node(4, "GetNode", widgets_values=["nobody"])],
        [node(4, "GetNode", widgets_values=["x"]), node(3, "SetNode", widgets_values=["x"])],
        [node(4, "Reroute")],
        [node(4, "Reroute", slot("", "*"))],
        [node(4, "Reroute", slot("", "*", 2), mode=2), node(1, "Make")],
        [node(4, "Make", mode=2)],
        [node(4, "Make", mode=4, outputs=[slot("A")])],
    ],
)
def test_nothing_comes_from_what_has_nothing(nodes: list[Any]) -> None:
    assert fed([*nodes, TAKE], [link(1, 4, 9), link(2, 1, 4)]) == {"9": None}


def test_a_chain_of_a_hundred_thousand_reroutes_is_followed() -> None:
    count = 100_000
    nodes = [
        node(0, "Make"),
        *(node(n, "Reroute", slot("", "*", n)) for n in range(1, count)),
        TAKE | {"id": -1},
    ]
    nodes[-1]["inputs"][0]["link"] = count
    links = [link(n, n - 1, n) for n in range(1, count)]
    try:
        assert fed(nodes, [*links, link(count, count - 1, -1)]) == {"-1": ["0", 0]}
    finally:
        TAKE["inputs"][0]["link"] = 1


def test_links_in_a_circle_are_one_sentence() -> None:
    nodes = [node(1, "Reroute", slot("", "*", 2)), node(2, "Reroute", slot("", "*", 3)), TAKE]
    with pytest.raises(WorkflowInvalid, match="links lead back to itself"):
        fed(nodes, [link(1, 1, 9), link(2, 2, 1), link(3, 1, 2)])


@pytest.mark.parametrize("links", [[], [link(1, 77, 9)]])
def test_a_link_to_nowhere_is_one_sentence(links: list[Any]) -> None:
    with pytest.raises(WorkflowInvalid, match=r"input 'a': .* does not hold.*; connect it anew"):
        fed([TAKE], links)


def test_a_primitive_writes_into_the_widget_at_its_links_end_alone() -> None:
    primitive = node(1, "PrimitiveNode", widgets_values=[7, "fixed"])
    direct = node(9, "Take", slot("a"), widget("n", 1))
    links = [link(1, 1, 9, 0, 1)]
    assert fed([primitive, direct], links, name="n") == {"9": 7}
    reroute = node(2, "Reroute", slot("", "*", 2))
    through = [link(1, 2, 9, 0, 1), link(2, 1, 2)]
    assert fed([primitive, reroute, direct], through, name="n") == {"9": 0}
    assert fed([node(1, "PrimitiveNode"), direct], links, name="n") == {"9": 0}


def inner(*more: Any, outputs: Any = ()) -> dict[str, Any]:
    nodes = [node(5, "Take", slot("a", link=1), widget("n", 2), outputs=[slot("A")], widgets_values=[3])]
    links = [link(1, -10, 5), link(2, -10, 5, 1, 1), link(3, 5, -20), *more]
    return sub("S", nodes, links, [slot("a"), slot("n", "INT")], [slot("A"), *outputs])


def test_a_subgraph_takes_from_outside_and_gives_to_outside() -> None:
    instance = node(2, "S", slot("a", link=7), widget("n", 8))
    nodes = [node(1, "Make"), instance, node(9, "Take", slot("a", link=1))]
    links = [link(1, 2, 9), link(7, 1, 2), link(8, 1, 2, 0, 1)]
    assert fed(nodes, links, [inner()]) == {"9": ["2:5", 0], "2:5": ["1", 0]}
    assert fed(nodes, links, [inner()], "n") == {"9": 0, "2:5": ["1", 0]}


def test_an_input_that_nothing_is_linked_to_shows_the_inner_widget() -> None:
    assert fed([node(2, "S", slot("a"), widget("n"))], (), [inner()], "n") == {"2:5": 3}
    outer = sub("O", [node(6, "S", slot("a"), widget("n", 1))], [link(1, -10, 6, 0, 1)], [slot("n", "INT")])
    assert fed([node(2, "O", widget("n"))], (), [inner(), outer], "n") == {"2:6:5": 3}
    renamed = sub("O", [node(6, "S", slot("a"), widget("m", 1))], [link(1, -10, 6, 0, 1)], [slot("n", "INT")])
    assert fed([node(2, "O", widget("n"))], (), [inner(), renamed], "n") == {"2:6:5": 3}


def test_an_input_without_a_widget_behind_it_is_empty() -> None:
    take = node(5, "Take", slot("a", link=1))
    links = [link(1, -10, 5), link(2, -10, 5, 0, 9), link(3, -10, 77)]
    assert fed([node(2, "S", slot("a"))], (), [sub("S", [take], links, [slot("a")])]) == {"2:5": None}
    odd = node(5, "Take", slot("a", link=1, widget={"name": "gone"}))
    assert fed([node(2, "S", slot("a"))], (), [sub("S", [odd], [link(1, -10, 5)], [slot("a")])]) == {
        "2:5": None
    }


def test_an_output_may_come_straight_from_an_input() -> None:
    straight = inner(link(4, -10, -20, 0, 1), outputs=[slot("B")])
    nodes = [node(1, "Make"), node(2, "S", slot("a", link=7)), TAKE]
    links = [link(1, 2, 9, 1), link(7, 1, 2)]
    assert fed(nodes, links, [straight])["9"] == ["1", 0]
    assert fed([node(2, "S"), TAKE], [link(1, 2, 9, 1)], [straight])["9"] is None
    far = inner(link(4, -10, -20, 8, 1), outputs=[slot("B")])
    assert fed([node(2, "S", slot("a")), TAKE], [link(1, 2, 9, 1)], [far])["9"] is None


def test_an_output_that_nothing_leads_to_gives_nothing() -> None:
    assert fed([node(2, "S", slot("a")), TAKE], [link(1, 2, 9, 1)], [inner()])["9"] is None
    lost = inner(link(4, 77, -20, 0, 1), outputs=[slot("B")])
    assert fed([node(2, "S", slot("a")), TAKE], [link(1, 2, 9, 1)], [lost])["9"] is None


@pytest.mark.parametrize("mode", [2, 4])
def test_a_subgraph_that_is_off_is_not_expanded(mode: int) -> None:
    nodes = [node(1, "Make"), node(2, "S", slot("a", link=7), outputs=[slot("A")], mode=mode), TAKE]
    found = fed(nodes, [link(1, 2, 9), link(7, 1, 2)], [inner()])
    assert found == {"9": ["1", 0] if mode == 4 else None}


def test_an_input_of_a_graph_that_it_does_not_have_is_one_sentence() -> None:
    with pytest.raises(WorkflowInvalid, match="its graph has no such input"):
        fed([node(9, "Take", slot("a", link=1))], [link(1, -10, 9)])
    broken = sub("S", [node(5, "Take", slot("a", link=1))], [link(1, -10, 5, 4)])
    with pytest.raises(WorkflowInvalid, match="its graph has no such input"):
        fed([node(2, "S")], (), [broken])


def test_a_subgraph_that_contains_itself_is_refused() -> None:
    with pytest.raises(WorkflowInvalid, match=r'subgraph "S" \(\d+\) contains itself'):
        fed([node(1, "S")], (), [sub("S", [node(5, "T")], []), sub("T", [node(6, "S")], [])])


def test_subgraphs_that_multiply_end_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "MAX_NODES", 100)
    many = [sub(f"S{n}", [node(n * 10 + k, f"S{n + 1}") for k in range(4)], []) for n in range(8)]
    with pytest.raises(WorkflowInvalid, match="more than 100 nodes"):
        fed([node(900, "S0")], (), [*many, sub("S8", [node(999, "Make")], [])])


def test_subgraphs_that_are_too_deep_end_in_one_sentence() -> None:
    deep = [sub(f"S{n}", [node(n + 100, f"S{n + 1}")], []) for n in range(60)]
    with pytest.raises(WorkflowInvalid, match="more than 50 subgraphs deep"):
        fed([node(1, "S0")], (), deep)


def test_widgets_behind_widgets_end_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = sub("O", [node(6, "S", slot("a"), widget("n", 1))], [link(1, -10, 6, 0, 1)], [slot("n", "INT")])
    ui = {"nodes": [node(2, "O", widget("n"))], "definitions": {"subgraphs": [inner(), outer]}}
    links = Links(read(ui), Classes(INFO))
    monkeypatch.setattr(resolve, "MAX_DEPTH", 1)
    place = links.places["2:6"]
    assert links.source(links.places["2:6:5"], 1) is None
    assert links.source(place, 1) is None
    monkeypatch.setattr(resolve, "MAX_DEPTH", 50)
    assert Links(read(ui), Classes(INFO)).source(links.places["2:6:5"], 1) == Value(3)


@pytest.mark.parametrize(
    ("inputs", "outputs", "index", "kind", "match"),
    [
        ("A B", "A B", 1, "B", 1),
        ("B A", "A", 0, "A", 1),
        ("A,B B", "B", 0, "B", 0),
        ("B A,C", "C", 0, "C", 1),
        ("A", "B", 0, "B", None),
        ("A B", "A", 1, "*", 1),
        ("A", "A", 5, "*", 0),
        ("", "A", 0, "*", None),
        ("A", "", 0, "A", 0),
    ],
)
def test_which_input_stands_in_for_an_output(
    inputs: str, outputs: str, index: int, kind: str, match: int | None
) -> None:
    given = [Slot("", one) for one in inputs.split()]
    assert bypassed(given, [Slot("", one) for one in outputs.split()], index, kind) == match


@pytest.mark.parametrize(
    ("one", "other", "yes"),
    [("A", "a", True), ("A", "B", False), ("*", "B", True), ("A", "", True), ("A,B", "C, b", True)],
)
def test_what_fits_what(one: str, other: str, yes: bool) -> None:
    assert connects(one, other) is yes


def test_a_widget_of_an_instance_that_its_subgraph_does_not_have_shows_nothing() -> None:
    nodes = [node(7, "S", widget("m", 1)), node(8, "Take", slot("a"), widget("n", 2), widgets_values=[6])]
    links = [link(1, -10, 7), link(2, -10, 8, 0, 1)]
    outer = sub("O", nodes, links, [slot("n", "INT")])
    assert fed([node(2, "O", widget("n"))], (), [inner(), outer], "n")["2:8"] == 6


def test_two_nodes_take_from_one_subgraph() -> None:
    takes = [node(8, "Take", slot("a", link=1)), node(9, "Take", slot("a", link=2))]
    found = fed([node(2, "S", slot("a")), *takes], [link(1, 2, 8), link(2, 2, 9, 1)], [inner()])
    assert (found["8"], found["9"]) == (["2:5", 0], None)
