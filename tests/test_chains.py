"""Order and circles of nodes, without recursion."""

from __future__ import annotations

from comfyflow.chains import cycles, lengths, reached, users

DIAMOND = {"a": [], "b": ["a"], "c": ["a", "a"], "d": ["b", "c"]}
LOOPED = {"a": ["b"], "b": ["c"], "c": ["b", "x"], "x": [], "own": ["own"], "later": ["a", "b"]}


def test_the_users_of_a_node_are_named_once() -> None:
    assert users(DIAMOND) == {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}


def test_a_chain_is_as_long_as_its_longest_way() -> None:
    assert lengths(DIAMOND) == {"a": 1, "b": 2, "c": 2, "d": 3}


def test_what_depends_on_a_circle_has_no_length() -> None:
    assert lengths(LOOPED) == {"x": 1}


def test_circles_are_found_once_each() -> None:
    found = list(cycles(LOOPED, [node for node in LOOPED if node != "x"]))
    assert found == [["b", "c"], ["own"]]


def test_a_very_long_circle_needs_no_recursion() -> None:
    ring = {str(place): [str((place + 1) % 20_000)] for place in range(20_000)}
    assert lengths(ring) == {}
    assert [len(circle) for circle in cycles(ring, ring)] == [20_000]


def test_reached_follows_the_steps() -> None:
    assert reached(["b"], DIAMOND) == {"b", "a"}
    assert reached(["d"], DIAMOND) == set(DIAMOND)
    assert reached([], DIAMOND) == set()
