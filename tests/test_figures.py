"""Figures as people read them."""

from __future__ import annotations

import pytest

from comfyflow.figures import clock, counted, rate_text, size_text


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows")])
def test_one_is_no_plural(number: int, text: str) -> None:
    assert counted(number, "row") == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 40, "3.0 TiB"),
    ],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert size_text(size) == text


def test_rates_and_spans_of_time_for_people() -> None:
    assert (rate_text(12.34), rate_text(0.25)) == ("12.3/s", "15.0/min")
    assert (clock(59.6), clock(3 * 3600 + 125)) == ("0:01:00", "3:02:05")
