"""Rows of a batch, from every source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from comfyflow.batch import (
    Row,
    csv_rows,
    folder_rows,
    jsonl_rows,
    key_of,
    key_start,
    matrix_rows,
    ranges_apart,
    upload_name,
    with_uploads,
    workflow_of,
)
from comfyflow.errors import UsageError, WorkflowInvalid
from comfyflow.workflow import Workflow

GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "cfg": 8.0, "positive": ["6", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
}
BASE = Workflow.load(GRAPH)


def nothing(path: str) -> Iterable[str]:
    raise AssertionError(f"{path} is not asked for")


def refusals(rows: Iterator[Row]) -> list[str]:
    """What is wrong with each row, "" where nothing is."""
    told: list[str] = []
    while True:
        try:
            next(rows)
        except StopIteration:
            return told
        except UsageError as error:
            told.append(str(error))
        else:
            told.append("")


# JSON Lines


def test_each_line_of_json_is_a_row() -> None:
    first, second = jsonl_rows(['{"key": "a", "6.text": "owl"}\n', "\n", '{"3.cfg": 7.5}'], "r.jsonl")
    assert (first.number, first.key, first.values, first.place) == (
        1,
        "a",
        {"6.text": "owl"},
        "r.jsonl, line 1",
    )
    assert (second.number, second.key, second.values, second.place) == (
        2,
        None,
        {"3.cfg": 7.5},
        "r.jsonl, line 3",
    )


def test_a_key_may_be_a_number() -> None:
    assert [row.key for row in jsonl_rows(['{"key": 17}'], "r")] == ["17"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: this is not JSON"),
        ("[" * 100_000, "line 1: this is not JSON"),
        ("[1]", "line 1: a row is a JSON object"),
        ('{"key": true}', "line 1: the key of a row is a text or a whole number, not true"),
        ('{"key": 1.5}', "not 1.5"),
        ('{"key": ""}', 'not ""'),
    ],
)
def test_a_bad_line_is_named_and_the_next_one_is_read(line: str, words: str) -> None:
    first, second = refusals(jsonl_rows([line, '{"6.text": "owl"}'], "r.jsonl"))
    assert words in first
    assert second == ""


def test_a_seed_of_64_bits_stays_what_it_is() -> None:
    (row,) = jsonl_rows([json.dumps({"seed": 2**64 - 1})], "r")
    assert workflow_of(row, BASE).nodes["3"]["inputs"]["seed"] == 2**64 - 1


# CSV


def test_the_first_line_of_csv_names_the_inputs() -> None:
    lines = ["\ufeffkey,6.text,3.cfg", 'a,"an owl, a hill",7', "", "b,,6.5"]
    first, second = csv_rows(lines, "r.csv")
    assert (first.key, first.values, first.place) == (
        "a",
        {"6.text": "an owl, a hill", "3.cfg": "7"},
        "r.csv, line 2",
    )
    assert (second.number, second.key, second.values, second.place) == (
        2,
        "b",
        {"3.cfg": "6.5"},
        "r.csv, line 4",
    )
    assert workflow_of(first, BASE).nodes["3"]["inputs"]["cfg"] == 7
    assert workflow_of(second, BASE).nodes["6"]["inputs"]["text"] == "a fox"  # an empty cell


def test_a_cell_may_have_several_lines() -> None:
    (row,) = csv_rows(["6.text", '"one', 'two"'], "r.csv")
    assert row.values == {"6.text": "one\ntwo"}
    assert row.place == "r.csv, line 3"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "the first line names the inputs"),
        (["a,,b"], "the first line names the inputs"),
        (["a,b,a"], "the column a is there twice"),
        (["6.text;3.seed"], "; stands between its columns: save it with commas"),
        (["6.text\t3.seed"], "a tab stands between its columns"),
        (['"a'], "this is no CSV"),
    ],
)
def test_a_table_without_a_header_is_refused(lines: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        csv_rows(lines, "r.csv")


def test_a_bad_record_is_named_and_the_next_one_is_read() -> None:
    told = refusals(csv_rows(["6.text", "a,b", '"x"y', "owl"], "r.csv"))
    assert "line 2: there are 2 cells under 1 names" in told[0]
    assert "line 3: this is no CSV" in told[1]
    assert told[2:] == [""]


# a folder


def test_a_folder_is_a_row_for_each_workflow(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(GRAPH))
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "c.txt").write_text("no")
    first, second = folder_rows(tmp_path)
    assert first.place == str(tmp_path / "a.json")
    with pytest.raises(WorkflowInvalid, match="not JSON"):
        workflow_of(first, None)
    assert workflow_of(second, None) == BASE


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no workflow in it"):
        folder_rows(tmp_path)


# every combination


def test_the_last_side_of_a_matrix_changes_fastest() -> None:
    rows = list(
        matrix_rows(["seed=1..2", "6.text=@p.txt"], {"p.txt": ["owl\n", "\n", "a, fox\r\n"]}.__getitem__)
    )
    assert [row.values for row in rows] == [
        {"seed": seed, "6.text": text} for seed in (1, 2) for text in ("owl", "a, fox")
    ]
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert rows[1].place == "seed=1, 6.text=a, fox"
    assert workflow_of(rows[3], BASE).nodes["3"]["inputs"]["seed"] == 2


@pytest.mark.parametrize(
    ("assignment", "values"),
    [
        ("seed=5..1", [5, 4, 3, 2, 1]),
        ("seed=1..10..4", [1, 5, 9]),
        ("seed=3..-3..-3", [3, 0, -3]),
        ("3.cfg=6,7.5,,8", ["6", "7.5", "8"]),
        ("9.filename_prefix=a=b", ["a=b"]),
    ],
)
def test_values_are_a_range_or_a_list(assignment: str, values: list[Any]) -> None:
    found = [next(iter(row.values.values())) for row in matrix_rows([assignment], nothing)]
    assert found == values


def test_a_matrix_of_nothing_is_one_row() -> None:
    assert [row.values for row in matrix_rows([], nothing)] == [{}]


def test_a_large_range_is_not_made_beforehand() -> None:
    rows = matrix_rows(["seed=1..1000000000000", "3.cfg=1..1000000000000"], nothing)
    assert [row.values["3.cfg"] for row in islice(rows, 2)] == [1, 2]


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["seed"], "no list of values"),
        (["=1"], "no list of values"),
        (["seed="], "no list of values"),
        (["seed=,"], "has no value in it"),
        (["seed=1..5..0"], "a step is not 0"),
        (["seed=1..5..-1"], "has no value in it"),
        (["seed=1", "seed=2"], "seed has two lists of values"),
    ],
)
def test_a_matrix_that_says_nothing_is_refused(assignments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        matrix_rows(assignments, nothing)


# workflows and keys


def row(values: dict[str, Any], **more: Any) -> Row:
    return Row(1, None, values, None, "r, line 1", **more)


def test_json_values_keep_their_kind_and_texts_take_that_of_the_input() -> None:
    assert workflow_of(row({"3.cfg": 7}), BASE) == workflow_of(row({"3.cfg": "7"}, texts=True), BASE)
    with pytest.raises(WorkflowInvalid, match="takes a number"):
        workflow_of(row({"3.cfg": "7"}), BASE)


@pytest.mark.parametrize("target", ["seed", "3.seed", "KSampler.seed", "3.noise_seed"])
def test_a_random_seed_would_make_another_job_each_time(target: str) -> None:
    with pytest.raises(WorkflowInvalid, match="r, line 1: a random seed makes another job"):
        workflow_of(row({target: "random"}, texts=True), BASE)


def test_a_text_may_be_random() -> None:
    assert workflow_of(row({"6.text": "random"}), BASE).nodes["6"]["inputs"]["text"] == "random"


def test_a_seed_may_be_a_text() -> None:
    assert workflow_of(row({"seed": " 5 "}, texts=True), BASE).nodes["3"]["inputs"]["seed"] == 5


def test_a_value_that_does_not_fit_names_the_row() -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        workflow_of(row({"6.texd": "owl"}), BASE)
    assert caught.value.path == "r, line 1"
    assert "text" in str(caught.value)


def test_a_row_may_have_a_workflow_of_its_own() -> None:
    own = Row(1, None, {"6.text": "owl"}, BASE, "here")
    assert workflow_of(own, None).nodes["6"]["inputs"]["text"] == "owl"
    with pytest.raises(UsageError, match="there is no workflow"):
        workflow_of(row({}), None)


def test_a_row_is_known_by_its_key_else_by_what_it_computes() -> None:
    named = Row(1, "a", {}, None, "here")
    assert key_of("foxes", named, BASE) == "batch:foxes:a"
    assert key_of("foxes", row({}), BASE) == f"batch:foxes:{BASE.digest}"


def test_rows_of_two_batches_are_never_one_job() -> None:
    names, keys = ["a", "a:b", "a%3Ab", "a%", "", ":"], ["1", "b:1", ":1", "%3Ab:1"]
    made = [key_of(name, Row(1, key, {}, None, "here"), BASE) for name in names for key in keys]
    assert len(set(made)) == len(made)
    assert [name for name in names if made[1].startswith(key_start(name))] == ["a"]


# local files


def test_a_column_may_hold_paths_which_are_relative_to_the_rows() -> None:
    (one,) = csv_rows(["6.text,10.image:file\n", "owl,in/a.png\n"], "r", Path("rows"))
    (two,) = jsonl_rows([json.dumps({"10.image:file": "/in/a.png", "6.text": "owl"})], "r", Path("rows"))
    (three,) = matrix_rows(["10.image:file=a.png"], nothing)
    uploads = [dict(row.uploads) for row in (one, two, three)]
    assert uploads == [{"10.image": Path(path)} for path in ("rows/in/a.png", "/in/a.png", "a.png")]
    assert one.values == two.values == {"6.text": "owl"}


@pytest.mark.parametrize("path", [7, None, ""])
def test_what_is_no_path_is_told(path: object) -> None:
    with pytest.raises(UsageError, match=r"10\.image:file wants the path of a file"):
        next(jsonl_rows([json.dumps({"10.image:file": path})], "r"))


@pytest.mark.parametrize("target", ["6.image", "3.seed", "9.text", ""])
def test_a_file_for_an_input_that_takes_none_is_told_before_it_is_read(target: str) -> None:
    (one,) = csv_rows([f"{target}:file\n", "in/a.png\n"], "r", Path("rows"))
    with pytest.raises(WorkflowInvalid) as caught:
        workflow_of(one, BASE)
    assert caught.value.path == "r, line 2"


def test_a_workflow_stays_as_it_is_until_the_server_has_the_file() -> None:
    (one,) = csv_rows(["6.text:file\n", "in/a.txt\n"], "r")
    assert workflow_of(one, BASE) == BASE


def test_an_input_names_the_file_as_the_server_does() -> None:
    one = row({})
    assert with_uploads(BASE, one, {"6.text": "a.png"}).nodes["6"]["inputs"]["text"] == "a.png"
    with pytest.raises(WorkflowInvalid) as caught:
        with_uploads(BASE, one, {"6.image": "a.png"})
    assert caught.value.path == "r, line 1"


@pytest.mark.parametrize(
    ("path", "suffix"), [("a.PNG", ".png"), ("a", ""), ("a.tar.gz", ".gz"), ("a.p ng\u00e9", ".png")]
)
def test_a_file_is_called_by_its_content_on_a_server(path: str, suffix: str) -> None:
    assert upload_name("0" * 64, Path(path)) == f"comfyflow-{'0' * 32}{suffix}"


def test_ranges_are_told_from_values() -> None:
    values = ["6.text=a 1..3", "3.seed=5", "3.cfg=1..x", "3.seed", "6.text=a=1..3"]
    ranges = ["3.seed=1..100", "3.steps=30..10..-5", "Main.cfg=-3..3"]
    assert ranges_apart([*values, *ranges]) == (values, ranges)
    assert ranges_apart([]) == ([], [])
