"""The record, told to people and to scripts."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from comfyflow.models import JobState
from comfyflow.prune import Pruned
from comfyflow.queries import AssetRow, RunRow
from comfyflow.report import dump
from comfyflow.store import JobEvent
from comfyflow.tables import (
    ASSET_COLUMNS,
    EVENT_COLUMNS,
    MAX_CELL,
    RUN_COLUMNS,
    aligned,
    asset_cells,
    asset_document,
    caption,
    event_cells,
    event_document,
    local_time,
    pruned_lines,
    run_cells,
    run_document,
    run_lines,
    utc_time,
)

AT = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


def run(**parts: Any) -> RunRow:
    known: dict[str, Any] = {
        "prompt_id": "abc",
        "server": "http://h:8188",
        "state": JobState.SUCCEEDED,
        "created_at": AT,
        "submitted_at": AT + 1,
        "started_at": AT + 2,
        "finished_at": AT + 5,
        "execution_seconds": 2.96,
        "prompt_text": "a red\nfox",
        "digest": "d" * 64,
        "client_id": "me",
        "error_message": None,
        "error_node": None,
        "files": 2,
    }
    return RunRow(**(known | parts))


def asset(**parts: Any) -> AssetRow:
    metadata = {"node_id": "9", "node_title": "Save", "seed": 0, "model": "m.ckpt", "bytes": 1536}
    known: dict[str, Any] = {
        "id": 7,
        "prompt_id": "abc",
        "prompt_text": "fox",
        "output_path": "a/b.png",
        "metadata": metadata,
        "created_at": AT,
    }
    return AssetRow(**(known | parts))


def test_columns_stand_under_each_other_and_the_last_one_is_whole() -> None:
    long = "x" * 200
    assert aligned(("A", "BB", "C"), [("1", "2", long), ("333", "4", "")]) == [
        "A    BB  C",
        f"1    2   {long}",
        "333  4",
    ]


def test_an_empty_list_is_its_head() -> None:
    assert aligned(("A", "B"), []) == ["A  B"]


def test_times_have_a_zone() -> None:
    assert utc_time(AT) == "2027-01-15T08:00:00+00:00"
    assert datetime.fromisoformat(local_time(AT + 0.4)).timestamp() == AT
    assert re.search(r"[+-]\d\d:\d\d$", local_time(AT))
    assert (utc_time(None), local_time(None)) == (None, "-")


def test_a_job_is_one_row() -> None:
    cells = run_cells(run())
    assert len(cells) == len(RUN_COLUMNS)
    assert cells[1:] == ("succeeded", "3.0 s", "2", "abc", "a red fox")


def test_a_failed_job_shows_why_and_long_texts_are_cut() -> None:
    failed = run(error_message="out of memory\x1b[2J " + "x" * 100, execution_seconds=None)
    text = run_cells(failed)[-1]
    assert (text[:13], len(text), "\x1b" in text) == ("out of memory", MAX_CELL, False)
    assert run_cells(failed)[2] == "-"
    assert run_cells(run(prompt_text=None))[-1] == "-"


def test_a_job_s_document_tells_everything() -> None:
    document = run_document(run(error_message="boom", error_node="5", finished_at=None))
    assert document["error"] == {"message": "boom", "node_id": "5"}
    assert (document["state"], document["finished_at"]) == ("succeeded", None)
    assert document["created_at"] == "2027-01-15T08:00:00+00:00"
    assert document["prompt_text"] == "a red\nfox"
    assert run_document(run())["error"] is None


def test_all_about_a_job_in_lines() -> None:
    log = [JobEvent("abc", "submitted", {"server": "s"}, AT), JobEvent("abc", "started", {}, AT)]
    lines = list(run_lines(run(), [(asset(), Path("/out/a/b.png"))], log))
    assert lines[:3] == ["job: abc", "state: succeeded", "server: http://h:8188"]
    assert "prompt: a red fox" in lines
    assert "file: /out/a/b.png" in lines
    assert lines[-2].endswith('submitted {"server": "s"}')
    assert lines[-1].endswith("started")
    bare = run(error_message="boom", digest=None, prompt_text=None, execution_seconds=None, finished_at=None)
    assert list(run_lines(bare, [], []))[-5:] == [
        "finished: -",
        "took: -",
        "workflow: -",
        "prompt: -",
        "error: boom",
    ]


def test_a_file_is_one_row_and_nothing_need_be_known_of_it() -> None:
    cells = asset_cells(asset(), Path("/out/a/b.png"))
    assert len(cells) == len(ASSET_COLUMNS)
    assert cells[1:] == ("Save", "0", "m.ckpt", "1.5 KiB", "abc", "/out/a/b.png")
    assert asset_cells(asset(metadata={}), "s3://x")[1:] == ("-", "-", "-", "-", "abc", "s3://x")
    assert asset_cells(asset(metadata={"node_id": "9"}), "x")[1] == "9"


def test_a_file_s_document_has_its_place_on_this_machine() -> None:
    document = asset_document(asset(), Path("/out/a/b.png"))
    assert (document["id"], document["path"], document["output_path"]) == (7, "/out/a/b.png", "a/b.png")
    assert document["metadata"]["seed"] == 0
    from_n8n = asset_document(asset(id=UUID(int=1)), "x")
    assert from_n8n["id"] == "00000000-0000-0000-0000-000000000001"


def test_a_caption_is_the_seed_else_the_prompt_else_the_name() -> None:
    assert caption(asset()) == "seed 0"
    assert caption(asset(metadata={})) == "fox"
    assert caption(asset(metadata={}, prompt_text=None)) == "a/b.png"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KNOWN = ("bytes", "width", "height", "seed", "duration", "node_title", "node_id", "model", "folder", "sha256")


@given(metadata=st.dictionaries(st.sampled_from(KNOWN), JSON), path=st.text(), at=st.floats())
def test_whatever_others_wrote_can_be_told(metadata: dict[str, Any], path: str, at: float) -> None:
    odd = asset(metadata=metadata, output_path=path, prompt_text=path, created_at=at)
    cells = asset_cells(odd, path)
    assert len(cells) == len(ASSET_COLUMNS)
    assert all(cells)
    assert all(len(cell) <= MAX_CELL for cell in cells[1:5])
    assert json.loads(dump(asset_document(odd, path)))["output_path"] == path
    assert isinstance(caption(odd), str)
    assert event_cells(JobEvent("abc", "odd", metadata, at))[1] == "odd"


@given(at=st.floats(), took=st.floats())
def test_every_moment_and_time_that_postgresql_holds_can_be_told(at: float, took: float) -> None:
    odd = run(created_at=at, finished_at=at, execution_seconds=took)
    assert len(run_cells(odd)) == len(RUN_COLUMNS)
    assert list(run_lines(odd, [], []))
    assert json.loads(dump(run_document(odd)))["prompt_id"] == "abc"


def test_what_is_no_text_and_no_number_is_not_told() -> None:
    odd = asset(metadata={"node_title": {"a": 1}, "node_id": 9, "seed": [], "model": "", "bytes": 10**400})
    assert asset_cells(odd, "x")[1:5] == ("9", "-", "-", "-")
    assert local_time(float("inf")) == "-"
    assert utc_time(float("nan")) is None
    assert run_cells(run(execution_seconds=float("nan")))[2] == "-"


def test_a_row_that_names_no_file_has_no_place() -> None:
    odd = asset(output_path="")
    assert (asset_cells(odd, "/shared")[-1], asset_document(odd, "/shared")["path"]) == ("-", None)


def test_an_event_is_one_row_and_a_document() -> None:
    event = JobEvent("abc", "failed", {"reason": "no\nway"}, AT)
    cells = event_cells(event)
    assert len(cells) == len(EVENT_COLUMNS)
    assert cells[1:] == ("failed", '{"reason": "no\\nway"}')
    assert event_cells(JobEvent("abc", "started", at=AT))[2] == ""
    assert event_document(event) == {"event": "failed", "at": utc_time(AT), "detail": {"reason": "no\nway"}}


def test_what_was_pruned_or_would_be() -> None:
    pruned = Pruned(runs=2, events=8, assets=3, contents=1, files=3, bytes=2048, checks=5, alerts=1)
    (line,) = pruned_lines(pruned, dry_run=False)
    assert line == (
        "gone: 2 jobs, 8 events, 3 rows of files, 1 stored contents, 3 files on disk (2.0 KiB),"
        " 5 checks of servers, 1 alerts"
    )
    assert pruned_lines(pruned, dry_run=True)[0].startswith("would go: ")


def test_a_job_that_was_sent_again_names_the_other_one() -> None:
    lost = run(key="order 17", replaced_by="def")
    assert {"key: order 17", "replaced by: def"} <= set(run_lines(lost, [], []))
    again = run(replaces="abc", attempt=2)
    assert "replaces: abc" in list(run_lines(again, [], []))
    told = run_document(again)
    assert (told["key"], told["attempt"], told["replaces"], told["replaced_by"]) == (None, 2, "abc", None)
