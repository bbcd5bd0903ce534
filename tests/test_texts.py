"""What the page replaces in texts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyflow.texts import Replacements, pick
from comfyflow.ui import Saved, read
from comfyflow.widgets import Classes


@pytest.mark.parametrize(
    ("text", "picked", "chosen"),
    [
        ("a cat", "a cat", False),
        ("a {cat|cat}", "a cat", True),
        ("{cat}", "cat", False),
        ("{a|{a|a}} b", "a b", True),
        (r"\{a|b\}", "{a|b}", False),
        ("x // gone\ny /* gone\ntoo */ z", "x \ny  z", False),
        ("{a|a", "a", True),
        ("{", "", False),
        (r"{a\|b}", "a|b", False),
        ("end\\", "end\\", False),
        ("}", "}", False),
        ("a // to the end", "a ", False),
        ("/*/ no end // gone\n/* still", "/*/ no end \n/* still", False),
        ("a/**/b /* // */c", "ab c", False),
        ("\ud800 \\{", "\ud800 {", False),
    ],
)
def test_one_of_the_choices_is_picked_and_comments_go(text: str, picked: str, chosen: bool) -> None:
    assert pick(text, "1") == (picked, chosen)


def test_every_choice_is_picked_by_some_node_and_always_by_the_same() -> None:
    found = {salt: pick("{a|b|c}", str(salt))[0] for salt in range(50)}
    assert set(found.values()) == {"a", "b", "c"}
    assert found == {salt: pick("{a|b|c}", str(salt))[0] for salt in range(50)}


def test_choices_that_are_too_deep_stay_as_they_are() -> None:
    assert pick("{" * 60 + "a" + "}" * 60, "1")[0] == "{" * 10 + "a" + "}" * 10


def test_half_a_pair_of_signs_does_not_keep_a_choice_from_being_picked() -> None:
    assert pick("{\ud800|\ud800}", "1") == ("\ud800", True)


def test_comments_without_an_end_take_no_longer_than_other_text() -> None:
    assert pick("/* " * 300_000, "1") == ("/* " * 300_000, False)


@given(st.text("{}|\\/* ab\n", max_size=40))
def test_any_text_has_an_answer(text: str) -> None:
    assert isinstance(pick(text, "1")[0], str)


NOW = datetime(2026, 3, 4, 5, 6, 7)
INFO = {
    "Empty": {
        "input": {
            "required": {
                "width": ["INT"],
                "size": ["FLOAT"],
                "on": ["BOOLEAN"],
                "name": ["STRING"],
                "no": ["X"],
            }
        }
    }
}


def saved() -> Saved:
    nodes: list[dict[str, Any]] = [
        {"id": 1, "type": "Empty", "widgets_values": [64, 2.0, True, "a/b:c"], "title": "First"},
        {
            "id": 2,
            "type": "Empty",
            "widgets_values": [8, 2.5, False, None],
            "properties": {"Node name for S&R": "Named"},
            "title": "Empty",
        },
        {"id": 3, "type": "Empty", "properties": {"Node name for S&R": ["odd"]}, "title": "Odd"},
        {"id": 4, "type": "Empty"},
    ]
    inner = {"id": "s", "nodes": [{"id": 9, "type": "Empty", "title": "Inner", "widgets_values": [5]}]}
    return read({"nodes": nodes, "definitions": {"subgraphs": [inner]}})


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("plain", "plain"),
        ("%Empty.width%", "64"),
        ("%First.width%", "64"),
        ("%Named.width%", "8"),
        ("%Inner.width%", "5"),
        ("%Odd.width% %.width%", "0 %.width%"),
        ("%Empty.size% %Named.size%", "2 2.5"),
        ("%Empty.on% %Named.on%", "true false"),
        ("%Empty.name%", "a_b_c"),
        ("%Named.name%|", "|"),
        ("%Empty.nothing% %Nobody.width%", "%Empty.nothing% %Nobody.width%"),
        ("%a.b.c% %width%", "%a.b.c% %width%"),
        ("%date:yyyy-MM-dd hh.mm.ss%", "2026-03-04 05"),  # the page reads up to the first dot
        ("%date:yyyy-MM-dd hh mm ss%", "2026-03-04 05 06 07"),
        ("%date:yy M d h m s yyy%", "26 3 4 5 6 7 yyy"),
    ],
)
def test_placeholders_are_replaced_by_what_is_known(text: str, made: str) -> None:
    assert Replacements(saved(), Classes(INFO), NOW).applied(text) == made


def test_without_a_clock_dates_stay() -> None:
    assert Replacements(saved(), Classes(INFO), None).applied("%date:yyyy%") == "%date:yyyy%"
