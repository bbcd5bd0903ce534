"""How faults are told: short, by title, with the server's own names."""

from __future__ import annotations

from typing import Any

import pytest

from comfyflow.faults import FaultKind, Near, Verdict, hint, kept, title_of, told


@pytest.mark.parametrize(
    ("kind", "server_type"),
    [
        (FaultKind.VALUE_BIGGER_THAN_MAX, "value_bigger_than_max"),
        (FaultKind.MISSING_MODEL, "value_not_in_list"),
        (FaultKind.NO_SUCH_OUTPUT, "exception_during_validation"),
    ],
)
def test_a_kind_knows_what_the_server_calls_it(kind: FaultKind, server_type: str) -> None:
    assert kind.server_type == server_type


@pytest.mark.parametrize(
    ("verdict", "accepted"),
    [
        (Verdict((), (), runs=("1",), dropped=("2",), unsure=("3",)), True),
        (Verdict((), (), dropped=("2",), unsure=("3",)), None),
        (Verdict((), (), dropped=("2",)), False),
        (Verdict((), ()), False),
    ],
)
def test_one_right_output_is_enough_for_the_server(verdict: Verdict, accepted: bool | None) -> None:
    assert verdict.accepted is accepted


@pytest.mark.parametrize(
    ("value", "near"),
    [
        ("xl\\Base.safetensors", ("models/xl/base.safetensors",)),
        ("eulr", ("euler",)),
        ("zzz", ()),
        ("", ()),
        ("e" * 201, ()),
        (7, ()),
    ],
)
def test_near_matches(value: Any, near: tuple[str, ...]) -> None:
    assert Near().find(value, ["euler", 5, "models/xl/base.safetensors"], "list") == near


def test_near_matches_are_looked_for_a_bounded_number_of_times() -> None:
    near = Near()
    found = [near.find(f"eule{place}", ["euler"], "list") for place in range(60)]
    assert found == [("euler",)] * 50 + [()] * 10
    assert near.find("eule0", [], "list") == ("euler",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("a" * 90, "'" + "a" * 79 + "…'"),
        (10**400, "a whole number of 1329 bits"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object of 1"),
        (None, "None"),
        (1.5, "1.5"),
    ],
)
def test_values_are_told_in_short(value: Any, text: str) -> None:
    assert told(value) == text


@pytest.mark.parametrize("value", ["a.safetensors", 7, -(2**63), 2**64 - 1, 1.5, True])
def test_a_fault_carries_the_value(value: Any) -> None:
    assert kept(value) is value


@pytest.mark.parametrize("value", ["a" * 1001, 2**64, float("nan"), float("inf"), None, [], {"a": 1}])
def test_a_fault_carries_nothing_that_is_long_or_no_json(value: Any) -> None:
    assert kept(value) is None


def test_a_hint_names_what_is_near() -> None:
    assert hint(("a", "b")) == "; did you mean 'a' or 'b'?"
    assert hint(()) == ""


@pytest.mark.parametrize(
    ("node", "title"),
    [
        ({"class_type": "K", "_meta": {"title": "Mine"}}, "Mine"),
        ({"class_type": "K", "_meta": {"title": ""}}, "K"),
        ({"class_type": "K", "_meta": 5}, "K"),
        ({"class_type": "K" * 100}, "K" * 79 + "…"),
        ({}, "7"),
        (None, "7"),
    ],
)
def test_a_node_is_called_by_its_title_whatever_it_is(node: Any, title: str) -> None:
    assert title_of(node, "7") == title
