"""Lists of files as CSV and JSON Lines."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest

from comfyflow.export import COLUMNS, write_csv, write_jsonl
from comfyflow.queries import AssetRow, Stored

ROWS = [
    AssetRow(1, "p", 'a "cat",\nor two', "out/a.png", {"seed": 2**64 - 1, "node_title": "Sänger"}, 1.5),
    AssetRow(UUID(int=7), "q", None, "https://cdn/b.png", {}, 0.0),
]


async def given(*rows: AssetRow) -> AsyncIterator[AssetRow]:
    for row in rows:
        yield row


async def test_csv_can_be_read_back() -> None:
    stream = io.StringIO(newline="")
    assert await write_csv(given(*ROWS), stream) == 2
    head, first, second = csv.reader(io.StringIO(stream.getvalue(), newline=""))
    assert tuple(head) == COLUMNS
    assert first[:4] == ["1", "p", 'a "cat",\nor two', "out/a.png"]
    assert json.loads(first[4]) == {"seed": 2**64 - 1, "node_title": "Sänger"}
    assert first[5] == "1970-01-01T00:00:01.500000+00:00"
    assert second[:4] == [str(UUID(int=7)), "q", "", "https://cdn/b.png"]


async def test_json_lines_can_be_read_back() -> None:
    stream = io.StringIO()
    assert await write_jsonl(given(*ROWS), stream) == 2
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert tuple(first) == COLUMNS
    assert first["metadata"] == {"seed": 2**64 - 1, "node_title": "Sänger"}
    assert (second["id"], second["prompt_text"]) == (str(UUID(int=7)), None)


NULLS = AssetRow(3, "", None, "", {}, 0.0, Stored(None, None, None, None))
LETTERS = f'{{"bytes": 1{"0" * 400}, "a": 1.10, "b": "ä\\n"}}'
ODD = AssetRow(4, "p", "x", "a.png", {}, float("inf"), Stored("p", "a.png", LETTERS, "infinity"))


async def test_json_lines_are_the_table_to_the_letter() -> None:
    stream = io.StringIO()
    scalar = AssetRow(5, "p", None, "b", {}, 1.0, Stored("p", "b", "[1]", "1970-01-01T00:00:01+00:00"))
    await write_jsonl(given(NULLS, ODD, scalar), stream)
    nulls, odd, other = stream.getvalue().splitlines()
    assert json.loads(nulls) == {**dict.fromkeys(COLUMNS), "id": 3}
    assert f'"metadata": {LETTERS}, "created_at": "infinity"}}' in odd
    assert json.loads(odd)["metadata"]["bytes"] == 10**400
    assert (json.loads(other)["metadata"], json.loads(other)["created_at"]) == (
        [1],
        "1970-01-01T00:00:01+00:00",
    )


async def test_csv_has_empty_cells_for_null_and_metadata_as_it_is() -> None:
    stream = io.StringIO(newline="")
    await write_csv(given(NULLS, ODD), stream)
    _, nulls, odd = csv.reader(io.StringIO(stream.getvalue(), newline=""))
    assert nulls == ["3", "", "", "", "", ""]
    assert odd[4:] == [LETTERS, "infinity"]


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://x")', "+1", "-1girl", "@SUM(A1)", "\tx", "\rx", "\nx", "\uff1d1"]
)
async def test_a_spreadsheet_runs_no_prompt(text: str) -> None:
    row = AssetRow(1, "p", text, "a.png")
    guarded, exact = io.StringIO(newline=""), io.StringIO(newline="")
    await write_csv(given(row), guarded)
    await write_csv(given(row), exact, guard=False)
    cells = [list(csv.reader(io.StringIO(s.getvalue(), newline="")))[1][2] for s in (guarded, exact)]
    assert cells == [f"'{text}", text]


async def test_no_files_leave_the_head_alone() -> None:
    stream = io.StringIO(newline="")
    assert await write_csv(given(), stream) == 0
    assert stream.getvalue() == ",".join(COLUMNS) + "\r\n"


class Nowhere(io.StringIO):
    """Takes everything and keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
async def test_memory_does_not_grow_with_the_number_of_rows(
    write: Callable[[AsyncIterator[AssetRow], Nowhere], Awaitable[int]],
) -> None:
    async def many() -> AsyncIterator[AssetRow]:
        for number in range(5000):
            yield AssetRow(number, "p", "x" * 1000, "a.png", {"number": number})

    tracemalloc.start()
    await write(many(), Nowhere())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 300_000
