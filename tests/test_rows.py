"""Entries -> rows -> records, with literals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyflow import (
    Job,
    JobEvent,
    JobFailure,
    JobResult,
    JobState,
    OutputFile,
    OutputText,
    SavedFile,
    Workflow,
)
from comfyflow.rows import Batch, batch_of, cleaned, job_of, kept_file, output_path, record_of
from comfyflow.store import (
    Accepted,
    Added,
    Advanced,
    Alive,
    Finished,
    Kept,
    Moved,
    Worker,
    ending,
    outcome_id,
)

GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 2**63 + 1, "positive": ["6", 0], "model": ["4", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}, "_meta": {"title": "Result"}},
}
FLOW = Workflow.load(GRAPH)
JOB = Job("a", FLOW, "client", "http://server", 10.0)
OUTPUT = OutputFile("9", "x_00001_.png", "sub")
FILE = SavedFile(OUTPUT, Path("/out/sub/x_00001_.png"), 3, "0" * 64, "image/png", 64, 32)
DONE = JobResult("a", JobState.SUCCEEDED, (OUTPUT,), started_at=12.0, ended_at=14.5, reused_nodes=("4",))
FAILURE = JobFailure("no memory", "3", "KSampler", "OutOfMemory", ("line 1",))
FAILED = JobResult("a", JobState.FAILED, failure=FAILURE)


def only(rows: tuple[Mapping[str, Any], ...]) -> Mapping[str, Any]:
    (row,) = rows
    return row


def run_of(*entries: Any) -> Mapping[str, Any]:
    return only(batch_of(entries).runs)


def finished(*files: SavedFile, job: Job = JOB, root: Path | None = Path("/out")) -> Finished:
    return Finished(job, DONE, files, root, at=20.0)


# -- runs ---------------------------------------------------------------------------------------------------


def test_an_added_job_is_a_row_with_its_graph() -> None:
    assert run_of(Added(JOB)) == {
        "prompt_id": "a",
        "added": True,
        "client_id": "client",
        "server": "http://server",
        "created_at": 10.0,
        "graph": GRAPH,
        "digest": FLOW.digest,
        "prompt_text": "a cat",
        "state": "created",
    }


def test_who_works_on_a_job_is_written_with_it() -> None:
    worker = Worker("w", "host", 7, "place")
    batch = batch_of([Alive(worker, 30.0), Added(JOB, "w")])
    assert only(batch.workers) == {"worker": "w", "host": "host", "pid": 7, "place": "place", "seconds": 30.0}
    assert only(batch.runs)["worker"] == "w"
    assert Batch.from_json(batch.to_json()) == batch
    assert bool(batch_of([Alive(worker, 30.0)]))


def test_a_line_of_an_older_journal_is_still_read() -> None:
    assert Batch.from_json('{"runs":[{"prompt_id":"a"}],"assets":[],"events":[],"renames":[]}').workers == ()


def test_key_folder_and_what_it_replaces_go_there_and_back() -> None:
    again = replace(JOB, prompt_id="b", key="order 17", replaces="a", attempt=2, folder="/out")
    run = run_of(Added(again))
    assert {name: run[name] for name in ("key", "replaces", "attempt", "folder")} == {
        "key": "order 17", "replaces": "a", "attempt": 2, "folder": "/out",
    }  # fmt: skip
    assert job_of(run) == again


def test_a_job_without_a_graph_is_added_without_one() -> None:
    assert run_of(Added(replace(JOB, workflow=None))).keys().isdisjoint({"graph", "digest", "prompt_text"})


def test_entries_of_one_job_become_one_row_with_its_highest_state_and_first_times() -> None:
    entries = (
        Accepted(JOB, "a", at=11.0),
        Advanced("a", JobState.RUNNING, at=12.0),
        Advanced("a", JobState.RUNNING, at=13.0),
        Advanced("a", JobState.QUEUED, at=14.0),
        Accepted(JOB, "a", at=15.0),
    )
    wanted = {"prompt_id": "a", "state": "running", "submitted_at": 11.0, "started_at": 12.0}
    assert run_of(*entries) == wanted


def test_runs_are_in_the_order_of_their_ids() -> None:
    batch = batch_of(Advanced(name, JobState.RUNNING) for name in "cab")
    assert [run["prompt_id"] for run in batch.runs] == ["a", "b", "c"]


def test_an_event_alone_says_nothing_about_its_job() -> None:
    batch = batch_of([JobEvent("a", "note")])
    assert batch.runs == ({"prompt_id": "a"},)
    assert (bool(batch), batch.ends, bool(batch_of([]))) == (True, False, False)


def test_an_outcome_is_in_its_row() -> None:
    batch = batch_of([finished()])
    assert batch.ends
    assert only(batch.runs) == {
        "prompt_id": "a",
        "state": "succeeded",
        "finished_at": 20.0,
        "error": None,
        "execution_seconds": 2.5,
        "outcome": {
            "outputs": (
                {
                    "node_id": "9",
                    "filename": "x_00001_.png",
                    "subfolder": "sub",
                    "type": "output",
                    "key": "images",
                    "reused": False,
                },
            ),
            "texts": (),
            "reused_nodes": ("4",),
            "source": "history",
            "started_at": 12.0,
            "ended_at": 14.5,
        },
    }


def test_a_failure_is_told_and_a_success_has_none() -> None:
    assert run_of(Finished(JOB, FAILED))["error"] == {
        "message": "no memory",
        "node_id": "3",
        "node_type": "KSampler",
        "exception_type": "OutOfMemory",
        "traceback": ("line 1",),
    }
    assert run_of(Finished(JOB, replace(DONE, failure=FAILURE)))["error"] is None


@pytest.mark.parametrize(("started", "ended"), [(None, 1.0), (1.0, None), (2.0, 1.0)])
def test_a_time_that_cannot_be_told_is_left_open(started: float | None, ended: float | None) -> None:
    result = replace(DONE, started_at=started, ended_at=ended)
    assert run_of(Finished(JOB, result))["execution_seconds"] is None


def test_the_first_of_two_outcomes_stays() -> None:
    batch = batch_of([Finished(JOB, FAILED, at=1.0), finished(FILE), Advanced("a", JobState.RUNNING)])
    run = only(batch.runs)
    assert (run["state"], run["finished_at"], batch.assets) == ("failed", 1.0, ())


def test_the_same_outcome_told_again_may_bring_files() -> None:
    batch = batch_of([finished(), replace(finished(FILE), at=30.0)])
    assert (only(batch.runs)["finished_at"], len(batch.assets)) == (20.0, 1)


def test_an_end_that_was_seen_first_gets_its_outcome() -> None:
    run = run_of(Advanced("a", JobState.SUCCEEDED, at=1.0), finished())
    assert (run["finished_at"], "outcome" in run) == (1.0, True)


# -- ids that the server chose ------------------------------------------------------------------------------


def test_a_job_that_got_another_id_is_renamed() -> None:
    batch = batch_of([Accepted(JOB, "b", at=1.0), JobEvent("b", "submitted")])
    assert batch.renames == ({"old": "a", "new": "b"},)
    assert batch.runs == ({"prompt_id": "b", "submitted_at": 1.0, "state": "queued"},)


def test_a_job_that_is_new_here_never_had_the_other_id() -> None:
    batch = batch_of([Added(JOB), JobEvent("a", "one"), JobEvent("c", "two"), Accepted(JOB, "b")])
    assert batch.renames == ()
    assert [run["prompt_id"] for run in batch.runs] == ["b", "c"]
    assert (batch.runs[0]["state"], batch.runs[0]["added"]) == ("queued", True)
    assert [event["prompt_id"] for event in batch.events] == ["b", "c"]


# -- events -------------------------------------------------------------------------------------------------


def test_events_keep_their_order_and_their_ids() -> None:
    first, second = JobEvent("a", "one", {"x": 1}, at=1.0), JobEvent("a", "two", at=2.0)
    batch = batch_of([first, second])
    wanted = {"event_id": first.event_id, "prompt_id": "a", "kind": "one", "detail": {"x": 1}, "at": 1.0}
    assert batch.events[0] == wanted
    assert batch.events[1]["kind"] == "two"


def test_an_event_id_of_somebodys_own_becomes_the_same_uuid_each_time() -> None:
    ids = [only(batch_of([JobEvent("a", "x", event_id=text)]).events)["event_id"] for text in "112"]
    assert ids[0] == ids[1] != ids[2]
    assert [str(UUID(text)) for text in ids] == ids


def test_the_line_of_an_outcome_stands_and_falls_with_it() -> None:
    batch = batch_of([*ending(JOB, DONE, (FILE,), root=Path("/out")), JobEvent("a", "note")])
    assert [event.get("ends") for event in batch.events] == [True, None]
    assert batch.events[0]["event_id"] == outcome_id("a")


# -- assets -------------------------------------------------------------------------------------------------


def test_a_file_has_all_that_is_known_of_it() -> None:
    assert only(batch_of([finished(FILE)]).assets) == {
        "prompt_id": "a",
        "prompt_text": "a cat",
        "output_path": "sub/x_00001_.png",
        "at": 20.0,
        "metadata": {
            "node_id": "9",
            "node_title": "Result",
            "filename": "x_00001_.png",
            "subfolder": "sub",
            "type": "output",
            "key": "images",
            "sha256": "0" * 64,
            "bytes": 3,
            "media_type": "image/png",
            "width": 64,
            "height": 32,
            "seed": 2**63 + 1,
            "model": "sdxl.safetensors",
            "reused": False,
            "server": "http://server",
            "client_id": "client",
            "workflow_digest": FLOW.digest,
            "folder": "/out",
        },
    }


def test_loras_are_listed_where_there_are() -> None:
    lora = {"class_type": "LoraLoader", "inputs": {"lora_name": "ink.safetensors", "model": ["4", 0]}}
    sampler = {**GRAPH["3"], "inputs": {**GRAPH["3"]["inputs"], "model": ["5", 0]}}
    job = replace(JOB, workflow=Workflow.load({**GRAPH, "3": sampler, "5": lora}))
    assert only(batch_of([finished(FILE, job=job)]).assets)["metadata"]["loras"] == ["ink.safetensors"]


def test_without_a_graph_what_it_would_tell_is_left_out() -> None:
    row = only(batch_of([finished(FILE, job=replace(JOB, workflow=None))]).assets)
    assert row["prompt_text"] is None
    told = {"node_title", "seed", "model", "loras", "workflow_digest", "duration"}
    assert row["metadata"].keys().isdisjoint(told)


def test_a_file_that_two_nodes_report_is_one_row() -> None:
    again = replace(FILE, output=replace(OUTPUT, node_id="12"))
    assert only(batch_of([finished(FILE, again)]).assets)["metadata"]["node_id"] == "9"


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [
        (PurePosixPath("/out/a/b.png"), PurePosixPath("/out"), ("a/b.png", "/out")),
        (PurePosixPath("/out/a/b.png"), None, ("b.png", "/out/a")),
        (PurePosixPath("/out/b.png"), PurePosixPath("/other"), ("/out/b.png", None)),
        (PureWindowsPath("C:\\out\\a\\b.png"), PureWindowsPath("C:\\out"), ("a/b.png", "C:\\out")),
        (PurePosixPath("/out/\udcff.png"), PurePosixPath("/out"), ("\ufffd.png", "/out")),
    ],
)
def test_paths_are_told_relative_to_the_root(path: Any, root: Any, wanted: Any) -> None:
    assert output_path(path, root) == wanted


def test_a_file_to_be_kept_comes_back_from_json() -> None:
    batch = Batch.from_json(batch_of([Kept(FILE)]).to_json())
    assert bool(batch)
    assert kept_file(only(batch.contents)) == FILE


# -- JSON ---------------------------------------------------------------------------------------------------


def nested(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from nested(part)
    elif isinstance(value, list):
        for part in value:
            yield from nested(part)


def detail_of(detail: Any) -> Any:
    text = batch_of([JobEvent("a", "x", detail)]).to_json()
    return only(Batch.from_json(text).events)["detail"]


def test_a_batch_comes_back_from_json_with_its_large_numbers() -> None:
    entries = (Added(JOB), finished(FILE), JobEvent("a", "x", {"n": 10**30}), Accepted(JOB, "b"))
    batch = batch_of(entries)
    text = batch.to_json()
    assert Batch.from_json(text).to_json() == text
    assert Batch.from_json(text).runs[0]["graph"] == GRAPH
    assert detail_of({"n": 10**30}) == {"n": 10**30}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"runs": 1}', '{"runs": [1]}'])
def test_what_is_no_batch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Batch.from_json(text)


@pytest.mark.parametrize(
    ("detail", "wanted"),
    [
        ({"x": "a\0b\ud800c\udfff"}, {"x": "a\ufffdb\ufffdc\ufffd"}),
        ({"x\0": ["\0", ("\0",)]}, {"x\ufffd": ["\ufffd", ["\ufffd"]]}),
        ({"x": float("nan"), "y": [float("inf"), 1.5]}, {"x": None, "y": [None, 1.5]}),
        ({"x": "\\u0000 as text", "y": "😀é"}, {"x": "\\u0000 as text", "y": "😀é"}),
        ({("a", 1): 1}, {"('a', 1)": 1}),
        ({"path": Path("/x")}, {"path": "/x"}),
        ({"job": MappingProxyType({"a": 1})}, {"job": {"a": 1}}),
    ],
)
def test_what_postgresql_cannot_hold_is_replaced(detail: Any, wanted: Any) -> None:
    assert detail_of(detail) == wanted


@settings(deadline=None)
@given(st.recursive(st.text() | st.floats() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
def test_whatever_the_detail_is_it_can_be_stored(value: Any) -> None:
    parts = list(nested(detail_of({"x": value})))
    texts = [part for part in parts if isinstance(part, str)]
    assert [text for text in texts if "\0" in text or text != text.encode("utf-8", "replace").decode()] == []
    assert [part for part in parts if isinstance(part, float) and part - part != 0] == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("plain", "plain"), ("é😀", "é😀"), ("\0", "\ufffd"), ("\ud83d", "\ufffd"), ("é\0", "é\ufffd")],
)
def test_texts_are_cleaned(text: str, wanted: str) -> None:
    assert cleaned(text) == wanted


def test_ids_are_cleaned_wherever_they_stand() -> None:
    dirty = replace(JOB, prompt_id="a\0")
    batch = batch_of([Added(dirty), Accepted(dirty, "a\0"), *ending(dirty, DONE, (FILE,))])
    rows = (*batch.runs, *batch.assets, *batch.events)
    assert [row["prompt_id"] for row in rows] == ["a\ufffd"] * 3
    assert batch.renames == ()


# -- records ------------------------------------------------------------------------------------------------


def stored(*entries: Any) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """What the tables hold after these entries, as the store reads it."""
    batch = Batch.from_json(batch_of([Added(JOB), *entries]).to_json())
    columns = ("graph", "outcome", "error", "client_id")
    return {**dict.fromkeys(columns), **only(batch.runs)}, [*batch.assets], [*batch.events]


def test_a_record_comes_back_as_it_was_written() -> None:
    texts = (OutputText("6", "text", "hello"),)
    result = replace(DONE, texts=texts)
    event = JobEvent("a", "submitted", {"server": "http://server"})
    record = record_of(*stored(event, Finished(JOB, result, (FILE,), Path("/out"))))
    assert (record.job, record.state, record.result) == (JOB, JobState.SUCCEEDED, result)
    assert (record.files, record.events) == ((FILE,), (event,))
    assert record.events[0].event_id == event.event_id


def test_a_failure_comes_back() -> None:
    assert record_of(*stored(Finished(JOB, FAILED))).result == FAILED


def test_an_unfinished_job_has_no_result() -> None:
    record = record_of(*stored(Advanced("a", JobState.RUNNING)))
    assert (record.state, record.result, record.files) == (JobState.RUNNING, None, ())


def test_files_outside_of_the_root_come_back_too() -> None:
    files = (FILE, replace(FILE, path=Path("/elsewhere/y.png"), duration=2.5))
    assert record_of(*stored(Finished(JOB, DONE, files, Path("/out")))).files == files


def test_rows_that_others_wrote_are_read_as_far_as_they_go() -> None:
    run: dict[str, Any] = {
        "prompt_id": "a",
        "client_id": None,
        "server": "s",
        "graph": {"nodes": []},
        "created_at": 1,
    }
    run |= {"state": "failed", "outcome": {"outputs": "none", "started_at": "noon"}, "error": {"text": "x"}}
    assets: list[dict[str, Any]] = [
        {"output_path": "https://host/x.png", "metadata": {"width": 1}},
        {"output_path": "y.png", "metadata": None},
        {"output_path": "sub/z.png", "metadata": {"sha256": "1", "bytes": 2}},
    ]
    record = record_of(run, assets, [])
    assert record.job == Job("a", None, "", "s", 1.0)
    assert record.result == JobResult("a", JobState.FAILED, failure=JobFailure('{"text": "x"}'))
    assert record.files == (SavedFile(OutputFile("", "z.png", reused=None), Path("sub/z.png"), 2, "1", ""),)


@pytest.mark.parametrize(
    ("metadata", "readable"),
    [
        ({"sha256": "1", "bytes": 2, "folder": None, "node_id": None, "width": None}, True),
        ({"sha256": "1", "bytes": "2"}, False),
        ({"sha256": 1, "bytes": 2}, False),
        ({"sha256": "1", "bytes": 2, "node_id": 9}, False),
        ([{"sha256": "1"}], False),
    ],
)
def test_metadata_of_another_make_is_no_reason_to_lose_the_record(metadata: Any, readable: bool) -> None:
    run, _, _ = stored(Finished(JOB, DONE))
    record = record_of(run, [{"output_path": "z.png", "metadata": metadata}], [])
    assert record.result == DONE
    file = SavedFile(OutputFile("", "z.png", reused=None), Path("z.png"), 2, "1", "")
    assert record.files == (file,) * readable


def test_an_end_without_an_outcome_is_an_end() -> None:
    run: dict[str, Any] = {"prompt_id": "a", "client_id": None, "server": "s", "graph": None, "created_at": 1}
    run |= {"state": "succeeded", "outcome": None, "error": None}
    assert record_of(run, [], []).result == JobResult("a", JobState.SUCCEEDED)
    assert job_of(run).workflow is None


def test_a_job_that_moves_takes_its_server_along() -> None:
    elsewhere = replace(JOB, server="http://other:8188", client_id="they")
    moved = batch_of([Moved(elsewhere)])
    assert only(moved.runs) == {
        "prompt_id": "a",
        "moves": True,
        "client_id": "they",
        "server": "http://other:8188",
    }
