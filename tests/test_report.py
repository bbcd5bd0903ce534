"""What people and scripts are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyflow import report
from comfyflow.errors import (
    BadAnswer,
    DownloadError,
    JobCancelled,
    JobFailed,
    NotRunnable,
    ServerUnreachable,
    UsageError,
    WorkflowFaulty,
    WorkflowInvalid,
    WorkflowRejected,
)
from comfyflow.faults import Fault, FaultKind
from comfyflow.models import (
    JobFailure,
    JobResult,
    JobState,
    JobView,
    OutputFile,
    OutputText,
    SavedFile,
)
from comfyflow.workflow import Workflow

RECORDINGS = Path(__file__).parent / "recordings"
WORKFLOW = Workflow.load(
    {
        "4": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {},
            "_meta": {"title": "Load Checkpoint"},
        },
        "9": {"class_type": "SaveImage", "inputs": {}},
    }
)


def _recorded_node_errors() -> Iterator[dict[str, Any]]:
    for line in (RECORDINGS / "0.27.0/07_validation_errors/http.jsonl").read_text().splitlines():
        body = json.loads(line).get("response_json")
        if isinstance(body, dict) and body.get("node_errors"):
            yield body["node_errors"]


# texts for a terminal


def test_a_terminal_gets_one_line_that_cannot_steer_it() -> None:
    assert report.printable("a\n  b\tc") == "a b c"
    assert report.printable("red\x1b[31m \ud800 ünïcode") == "red\ufffd[31m \ufffd ünïcode"


@given(st.text())
def test_whatever_is_printed_is_printable(text: str) -> None:
    assert report.printable(text).isprintable()


# views


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (JobView("a", JobState.CREATED), "sending"),
        (JobView("a", JobState.QUEUED), "waiting"),
        (JobView("a", JobState.QUEUED, queue_position=2), "waiting, 2 ahead"),
        (JobView("a", JobState.RUNNING), "running"),
        (JobView("a", JobState.RUNNING, node_id="3"), "running, 3"),
        (
            JobView("a", JobState.RUNNING, node_id="3", node_title="Paint\nit", step=2.0, steps=20.0),
            "running, Paint it, step 2/20",
        ),
        (JobView("a", JobState.RUNNING, step=2.0), "running"),
        (JobView("a", JobState.FINISHING, node_id="3", step=2.0, steps=4.0), "finishing"),
        (JobView("a", JobState.LOST, note="the server\x07 is silent"), "lost, the server\ufffd is silent"),
    ],
)
def test_a_view_is_told_in_a_few_words(view: JobView, line: str) -> None:
    assert report.view_line(view) == line


def test_steps_may_be_left_out() -> None:
    view = JobView("a", JobState.RUNNING, node_id="3", step=2.0, steps=20.0)
    assert report.view_line(view, steps=False) == "running, 3"


@pytest.mark.parametrize("state", JobState)
def test_every_state_has_its_word(state: JobState) -> None:
    assert report.view_line(JobView("a", state))
    assert report.view_document(JobView("a", state))["state"] == state.value


@pytest.mark.parametrize(
    ("view", "part"),
    [
        (JobView("a", JobState.QUEUED), None),
        (JobView("a", JobState.RUNNING, nodes_total=0), None),
        (JobView("a", JobState.RUNNING, nodes_total=4), 0.0),
        (JobView("a", JobState.RUNNING, nodes_done=1, nodes_total=4), 0.25),
        (JobView("a", JobState.RUNNING, nodes_done=1, nodes_total=4, steps=4.0), 0.25),
        (JobView("a", JobState.RUNNING, nodes_done=1, nodes_total=4, step=2.0, steps=4.0), 0.375),
        (JobView("a", JobState.RUNNING, nodes_done=4, nodes_total=4, step=9.0, steps=4.0), 1.0),
        (JobView("a", JobState.FINISHING), 1.0),
        (JobView("a", JobState.FAILED), 1.0),
    ],
)
def test_the_part_that_is_done_is_between_0_and_1_or_unknown(view: JobView, part: float | None) -> None:
    assert report.fraction(view) == part


# results


def _saved() -> SavedFile:
    output = OutputFile("9", "fox.png", subfolder="sub", reused=True)
    return SavedFile(output, Path("/out/fox.png"), 12, "ab", "image/png", 64, 32)


def test_a_saved_file_is_told_with_its_node() -> None:
    document = report.file_document(_saved(), WORKFLOW)
    assert document == {
        "path": "/out/fox.png",
        "node_id": "9",
        "node_title": "SaveImage",
        "filename": "fox.png",
        "subfolder": "sub",
        "type": "output",
        "sha256": "ab",
        "size": 12,
        "media_type": "image/png",
        "width": 64,
        "height": 32,
        "duration": None,
        "reused": True,
    }
    assert report.file_document(_saved())["node_title"] is None


def test_a_result_is_told_with_files_and_texts() -> None:
    result = JobResult("id", JobState.SUCCEEDED, texts=(OutputText("9", "text", "hello"),))
    document = report.result_document(result, [_saved()], WORKFLOW)
    assert (document["prompt_id"], document["state"], document["error"]) == ("id", "succeeded", None)
    assert [file["path"] for file in document["files"]] == ["/out/fox.png"]
    assert document["texts"] == [
        {"node_id": "9", "node_title": "SaveImage", "key": "text", "text": "hello", "reused": False}
    ]
    assert report.result_document(result, [])["texts"][0]["node_title"] is None


def test_a_text_cannot_pass_for_a_path() -> None:
    texts = [OutputText("4", "text", "one\n/etc/passwd"), OutputText("7", "text", "")]
    assert list(report.text_lines(texts, WORKFLOW)) == [
        '# "Load Checkpoint" (4): one',
        '# "Load Checkpoint" (4): /etc/passwd',
        '# "7" (7): ',
    ]
    assert next(report.text_lines(texts[:1])) == "# 4: one"


def test_the_server_s_own_time_is_told_when_it_is_known() -> None:
    assert report.execution_seconds(JobResult("id", JobState.SUCCEEDED, started_at=1.0, ended_at=3.5)) == 2.5
    assert report.execution_seconds(JobResult("id", JobState.SUCCEEDED, started_at=1.0)) is None
    assert report.execution_seconds(JobResult("id", JobState.SUCCEEDED)) is None


# documents


def test_a_document_is_strict_json_whatever_the_server_sent() -> None:
    nan, infinity = float("nan"), float("inf")
    text = report.dump({"a": [nan, (infinity, 1)], "b": {3: Path("x")}, "c": "\ud800ü"})
    assert text.isascii()
    assert json.loads(text) == {"a": [None, [None, 1]], "b": {"3": "x"}, "c": "\ud800ü"}


def test_a_document_may_be_one_line_of_many() -> None:
    assert report.dump({"a": ["b\nc", {"d": 1}]}, in_line=True) == '{"a": ["b\\nc", {"d": 1}]}'


# errors


def _rejected(node_errors: Any) -> WorkflowRejected:
    return WorkflowRejected(
        "the server refused the workflow",
        method="POST",
        url="http://x/prompt",
        error={},
        node_errors=node_errors,
    )


def _complaint(node_errors: Any) -> list[str]:
    return report.node_error_lines(node_errors, WORKFLOW)


def test_a_complaint_names_the_node_by_title_and_the_input() -> None:
    complaint = {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": "ckpt_name: 'x' not in ['y']",
        "extra_info": {"input_name": "ckpt_name"},
    }
    expected = ["Node \"Load Checkpoint\" (4): ckpt_name: 'x' not in ['y']"]
    assert _complaint({"4": {"errors": [complaint, complaint]}}) == expected


@pytest.mark.parametrize(
    ("complaint", "said"),
    [
        (
            {"message": "Value 0 smaller than min of 1", "details": "w", "extra_info": {"input_name": "w"}},
            "w: Value 0",
        ),
        ({"message": "No", "details": "w, abc, bad", "extra_info": {"input_name": "w"}}, "w: No: abc, bad"),
        ({"message": "Exception", "details": "'99'", "extra_info": {}}, "Exception: '99'"),
        ({"type": "custom_validation_failed", "message": "Only this"}, "Only this"),
        ({"type": "unheard_of"}, "unheard_of"),
        ("not an object", "not an object"),
        ({"message": "x" * 1000}, "xxx..."),
    ],
)
def test_every_shape_of_complaint_becomes_one_line(complaint: Any, said: str) -> None:
    (line,) = _complaint({"9": {"errors": [complaint]}})
    assert line.startswith('Node "SaveImage" (9): ')
    assert said in line
    assert len(line) < 400


@pytest.mark.parametrize("entry", [None, "text", ["list"], {"errors": "no list"}, {"errors": None}])
def test_an_entry_of_another_shape_is_told_as_it_is(entry: Any) -> None:
    (line,) = _complaint({"4": entry})
    assert line.startswith('Node "Load Checkpoint" (4): ')


def test_without_the_workflow_a_node_is_called_by_its_class() -> None:
    entry = {"errors": [{"message": "bad"}], "class_type": "KSampler"}
    assert report.node_error_lines({"3": entry, "5": {"errors": [{"message": "bad"}]}}) == [
        'Node "KSampler" (3): bad',
        "Node 5: bad",
    ]


def test_every_recorded_refusal_is_told_in_short_lines() -> None:
    recorded = list(_recorded_node_errors())
    assert len(recorded) > 10
    for node_errors in recorded:
        lines = report.node_error_lines(node_errors)
        assert len(lines) >= len(node_errors)
        assert all(line.startswith("Node ") and line.isprintable() for line in lines)


def test_a_refusal_lists_its_complaints_and_the_document_has_both_forms() -> None:
    error = _rejected({"4": {"errors": [{"message": "bad"}]}})
    assert report.error_lines(error, WORKFLOW) == [
        "the server refused the workflow",
        'Node "Load Checkpoint" (4): bad',
    ]
    document = report.error_document(error, WORKFLOW)
    assert document["node_errors"] == {"4": {"errors": [{"message": "bad"}]}}
    assert document["node_messages"] == ['Node "Load Checkpoint" (4): bad']
    assert document["exit_code"] == 3


TRACEBACK = (
    '  File "a.py", line 1, in run\n    f()\n',
    '  File "b.py", line 2, in f\n    raise ValueError\n',
)


MODEL = Fault(FaultKind.MISSING_MODEL, "there is no model 'x'", node_id="4")
CLASS = Fault(FaultKind.MISSING_NODE_TYPE, "there is no class 'Y'", node_id="9")


def test_a_fault_is_told_once_and_where_it_is_not_everywhere() -> None:
    servers = {"http://a": [MODEL], "http://b": [CLASS, MODEL, MODEL], "http://c": [MODEL, CLASS]}
    error = WorkflowFaulty("none would", faults=[MODEL], servers=servers, path="x.json")
    assert report.error_lines(error) == [
        "x.json: none would",
        "There is no model 'x'",
        "http://b, http://c: there is no class 'Y'",
    ]
    told = report.error_document(error)
    assert [fault["kind"] for fault in told["faults"]] == ["missing_model"]
    assert [fault["node_id"] for fault in told["servers"]["http://c"]] == ["4", "9"]


def test_the_faults_of_one_server_are_told_without_it() -> None:
    error = WorkflowFaulty("http://a would not", faults=[MODEL, CLASS])
    assert report.error_lines(error)[1:] == ["There is no model 'x'", "There is no class 'Y'"]
    assert "servers" not in report.error_document(error)


def test_the_document_of_what_runs_nowhere_tells_what_is_missing_where() -> None:
    missing = {"http://a": ("x",), "http://b": ("y", "z")}
    assert report.error_document(NotRunnable("no", url="http://a", missing=missing))["missing"] == missing
    assert "missing" not in report.error_document(_rejected({}))


def _failed(traceback: tuple[str, ...] = TRACEBACK, *, result: bool = True) -> JobFailed:
    failure = JobFailure(
        "no", node_id="4", node_type="KSampler", exception_type="ValueError", traceback=traceback
    )
    told = JobResult("id", JobState.FAILED, failure=failure) if result else None
    return JobFailed("job id failed", view=JobView("id", JobState.FAILED, result=told), failure=failure)


def test_a_failure_tells_where_and_with_verbose_the_whole_way_there() -> None:
    assert report.error_lines(_failed()) == ["job id failed", '  in File "b.py", line 2, in f']
    assert report.error_lines(_failed(), verbose=True) == [
        "job id failed",
        "  the server's traceback:",
        '    File "a.py", line 1, in run',
        "      f()",
        '    File "b.py", line 2, in f',
        "      raise ValueError",
    ]


@pytest.mark.parametrize("traceback", [(), ("nothing of a file",)])
def test_a_failure_without_a_place_tells_none(traceback: tuple[str, ...]) -> None:
    assert report.error_lines(_failed(traceback)) == ["job id failed"]


def test_a_failure_without_any_traceback_is_short_even_when_verbose() -> None:
    assert report.error_lines(_failed(()), verbose=True) == ["job id failed"]


def test_the_document_of_a_failure_has_its_parts() -> None:
    document = report.error_document(_failed(), WORKFLOW)
    assert document == {
        "type": "JobFailed",
        "message": "job id failed",
        "exit_code": 1,
        "prompt_id": "id",
        "node_id": "4",
        "node_title": "Load Checkpoint",
        "node_type": "KSampler",
        "exception_type": "ValueError",
        "exception_message": "no",
        "traceback": list(TRACEBACK),
    }
    bare = report.error_document(_failed(result=False))
    assert (bare["node_title"], bare["exception_type"]) == (None, None)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (WorkflowInvalid("bad", path="x.json"), {"path": "x.json", "reason": "bad", "exit_code": 3}),
        (
            BadAnswer("no", method="GET", url="http://x", status=502, body="<html>"),
            {"method": "GET", "url": "http://x", "status": 502, "body": "<html>", "exit_code": 4},
        ),
        (JobCancelled("gone", view=JobView("id", JobState.CANCELLED)), {"prompt_id": "id", "exit_code": 6}),
        (
            DownloadError("disk full", output=OutputFile("9", "fox.png")),
            {"filename": "fox.png", "node_id": "9", "exit_code": 7},
        ),
        (ServerUnreachable("no", method="GET", url="http://x"), {"url": "http://x", "exit_code": 4}),
        (UsageError("wrong"), {"message": "wrong", "exit_code": 2}),
        (KeyboardInterrupt("stopped"), {"type": "KeyboardInterrupt", "exit_code": 130}),
    ],
)
def test_an_error_s_document_has_what_the_error_knows(error: BaseException, parts: dict[str, Any]) -> None:
    document = report.error_document(error)
    assert {key: document[key] for key in parts} == parts
    assert "causes" not in document


def test_causes_are_told_when_asked_and_always_in_the_document() -> None:
    error = UsageError("cannot\nstart")
    error.__cause__ = OSError("in use")
    error.__cause__.__cause__ = KeyError("deep")
    assert report.error_lines(error) == ["cannot start"]
    causes = ["OSError: in use", "KeyError: 'deep'"]
    assert report.error_lines(error, verbose=True)[1:] == [f"  caused by {cause}" for cause in causes]
    assert report.error_document(error)["causes"] == causes


def test_an_error_without_a_text_is_called_by_its_class() -> None:
    assert report.error_lines(UsageError()) == ["UsageError"]


# the server


def test_the_recorded_server_is_described() -> None:
    lines = (RECORDINGS / "0.27.0/22_system_and_features/http.jsonl").read_text().splitlines()
    stats = next(
        entry["response_json"] for entry in map(json.loads, lines) if entry["path"] == "/system_stats"
    )
    document = report.health_document("http://x:1", stats, 1, 2)
    assert document["version"] == "0.27.0"
    assert report.health_lines(document) == [
        "server: http://x:1",
        "version: ComfyUI 0.27.0",
        "device: cpu, 20.0 GiB of 23.5 GiB free",
        "queue: 1 running, 2 waiting",
    ]


@pytest.mark.parametrize("stats", [{}, {"system": None, "devices": None}, {"system": [], "devices": ["x"]}])
def test_a_server_that_tells_less_is_described_all_the_same(stats: dict[str, Any]) -> None:
    lines = report.health_lines(report.health_document("http://x:1", stats, 0, 0))
    assert "version: ComfyUI unknown" in lines
