"""The wire format: literals for every shape, and every frame and answer that a real server was recorded
with."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyflow import events as e
from comfyflow import protocol as p
from comfyflow.models import JobFailure, JobState, OutputFile, OutputText, Preview

RECORDINGS = Path(__file__).parent / "recordings"
SCENARIOS = sorted(
    path.parent.relative_to(RECORDINGS).as_posix() for path in RECORDINGS.glob("*/*/scenario.md")
)
KNOWN = {
    "status",
    "feature_flags",
    "progress",
    "progress_state",
    "executing",
    "executed",
    "execution_start",
    "execution_cached",
    "execution_success",
    "execution_error",
    "execution_interrupted",
}


def lines(scenario: str, name: str) -> list[dict[str, Any]]:
    text = (RECORDINGS / scenario / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def frames(scenario: str) -> Iterator[str | bytes]:
    for line in lines(scenario, "ws.jsonl"):
        if line["dir"] == "in" and line["kind"] == "text" and "text" in line:
            yield line["text"]
        elif line["dir"] == "in" and line["kind"] == "binary" and "base64" in line:
            yield base64.b64decode(line["base64"])


def message(kind: str, **data: Any) -> str:
    return json.dumps({"type": kind, "data": data})


# --- every recording --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_recorded_frame_is_understood(scenario: str) -> None:
    for frame in frames(scenario):
        event = p.parse_frame(frame)
        kind = json.loads(frame)["type"] if isinstance(frame, str) else "binary"
        assert isinstance(event, e.Unknown) == (kind not in KNOWN and kind != "binary"), frame[:200]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_recorded_answer_is_understood(scenario: str) -> None:
    for line in lines(scenario, "http.jsonl"):
        if "response_json" not in line or line.get("response_trimmed"):
            continue
        body, path, status = json.dumps(line["response_json"]).encode(), line["path"], line["status"]
        match line["method"], path.removeprefix("/api"), status:
            case "POST", "/prompt", 200:
                assert p.parse_submission(body).prompt_id == line["response_json"]["prompt_id"]
            case "POST", "/prompt", 400:
                assert p.parse_refusal(body)[0] == line["response_json"]["error"]
            case "GET", "/queue", 200:
                view = p.parse_queue(body)
                assert len(view.running) == len(line["response_json"]["queue_running"])
            case "POST", "/upload/image" | "/upload/mask", 200:
                assert p.parse_upload(body)[0] == line["response_json"]["name"]
        prompt_id = path.rpartition("/")[2]
        if "/history/" in path and status == 200:
            found = p.parse_history(body, prompt_id)
            assert (found is not None) == (prompt_id in line["response_json"])
        if "/api/jobs/" in path and status == 200 and line["method"] == "GET":
            ended = p.parse_job(body, prompt_id) is None
            assert ended == (line["response_json"]["status"] in ("completed", "failed", "cancelled"))


def test_nan_in_a_recorded_history_is_read() -> None:
    note = next(
        line["note"]
        for line in lines("0.27.0/38_nan_in_outputs", "http.jsonl")
        if "raw body" in line.get("note", "")
    )
    body = note.partition(": ")[2].encode()
    assert b"NaN" in body
    result = p.parse_history(body, next(iter(json.loads(body))))
    assert result is not None
    assert result.state is JobState.SUCCEEDED


# --- frames by hand ---------------------------------------------------------------------------------------


def test_a_status_names_the_jobs_on_the_server() -> None:
    assert p.parse_frame(
        message("status", status={"exec_info": {"queue_remaining": 3}}, sid="s")
    ) == e.Status(3, "s")


def test_executing_shows_the_node_of_the_submitted_graph() -> None:
    assert p.parse_frame(
        message("executing", node="5.0.0.1", display_node="5", prompt_id="j")
    ) == e.NodeStarted("j", "5", "5.0.0.1")
    assert p.parse_frame(message("executing", node=7, prompt_id="j")) == e.NodeStarted("j", "7", "7")
    assert p.parse_frame(message("executing", node=None, prompt_id="j")) == e.Settled("j")
    assert p.parse_frame(message("executing", node="5")) == e.NodeStarted("", "5")  # after a reconnect


def test_progress_counts_steps() -> None:
    assert p.parse_frame(message("progress", value=1, max=2.5, node="3", prompt_id="j")) == e.Progressed(
        "j", "3", 1, 2.5
    )
    assert p.parse_frame(message("progress", value=1, max=2, prompt_id="j")) == e.Progressed("j", "", 1, 2)


def test_progress_state_counts_nodes_and_names_one_that_runs() -> None:
    nodes: dict[str, dict[str, Any]] = {
        "1": {"state": "finished", "value": 1, "max": 1},
        "2": {"state": "running", "value": 1, "max": 4, "display_node_id": "9"},
        "3": {"state": "pending"},
    }
    assert p.parse_frame(message("progress_state", prompt_id="j", nodes=nodes)) == e.NodesSeen(
        "j", 1, "9", 1, 4
    )
    del nodes["2"]["display_node_id"]
    assert p.parse_frame(message("progress_state", prompt_id="j", nodes=nodes)) == e.NodesSeen(
        "j", 1, "2", 1, 4
    )
    del nodes["2"]
    assert p.parse_frame(message("progress_state", prompt_id="j", nodes=nodes)) == e.NodesSeen("j", 1)


def test_executed_carries_files_or_nothing() -> None:
    file = {"filename": "a.png", "subfolder": "s", "type": "temp"}
    event = p.parse_frame(message("executed", node="2", output={"images": [file]}, prompt_id="j"))
    assert event == e.NodeOutput("j", (OutputFile("2", "a.png", "s", "temp", "images", reused=None),), ())
    assert p.parse_frame(message("executed", node="2", output=None, prompt_id="j")) == e.NodeOutput("j")


def test_a_blocked_node_is_not_an_end() -> None:
    blocked = message(
        "execution_error",
        prompt_id="j",
        node_id="4",
        exception_type="ExecutionBlocked",
        exception_message="no\n",
    )
    assert p.parse_frame(blocked) == e.Blocked("j", "4", "no")


def test_ends_are_announced_with_their_reason() -> None:
    assert p.parse_frame(message("execution_success", prompt_id="j", timestamp=1500)) == e.Announced(
        "j", JobState.SUCCEEDED, at=1.5
    )
    failed = message(
        "execution_error",
        prompt_id="j",
        node_id=4,
        node_type="K",
        exception_type="ValueError",
        exception_message="bad\n",
        traceback="line",
        timestamp=2000,
    )
    failure = JobFailure("bad", "4", "K", "ValueError", ("line",))
    assert p.parse_frame(failed) == e.Announced("j", JobState.FAILED, failure, 2.0)
    interrupted = p.parse_frame(message("execution_interrupted", prompt_id="j"))
    assert interrupted == e.Announced("j", JobState.CANCELLED, JobFailure("interrupted"))


def test_start_cache_and_flags() -> None:
    assert p.parse_frame(message("execution_start", prompt_id="j")) == e.Started("j")
    assert p.parse_frame(message("execution_cached", prompt_id="j", nodes=["1"])) == e.Cached("j", ("1",))
    assert p.parse_frame(message("feature_flags", anything=1)) == e.Flags()
    assert json.loads(p.feature_flags())["type"] == "feature_flags"


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "hello",
        "[]",
        "null",
        "{}",
        '{"type": 1}',
        '{"type": "status"}',
        message("progress", value="x", max=1),
        message("executing", node={}),
        "[" * 5000,
        '{"type": "executed", "data": ' + '{"a":' * 5000,
        "\ud800",
    ],
)
def test_frames_that_make_no_sense_are_unknown(frame: str) -> None:
    assert isinstance(p.parse_frame(frame), e.Unknown)


def test_previews_come_with_and_without_the_name_of_their_job() -> None:
    assert p.parse_frame(struct.pack(">II", 1, 1) + b"jpg") == e.Previewed("", Preview(b"jpg", "image/jpeg"))
    assert p.parse_frame(struct.pack(">II", 1, 2) + b"png") == e.Previewed("", Preview(b"png", "image/png"))
    header = json.dumps({"prompt_id": "j", "node_id": "3", "image_type": "image/png"}).encode()
    named = struct.pack(">II", 4, len(header)) + header + b"png"
    assert p.parse_frame(named) == e.Previewed("j", Preview(b"png", "image/png", "3"))
    header = json.dumps({"prompt_id": "j", "display_node_id": 8, "node_id": "3"}).encode()
    shown = struct.pack(">II", 4, len(header)) + header
    assert p.parse_frame(shown) == e.Previewed("j", Preview(b"", "image/jpeg", "8"))
    assert p.parse_frame(struct.pack(">II", 4, 2) + b"{}") == e.Previewed("", Preview(b"", "image/jpeg"))


def test_node_text_is_read() -> None:
    assert p.parse_frame(struct.pack(">II", 3, 2) + b"12hi\xff") == e.NodeText("12", "hi�")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\0\0\1",
        struct.pack(">II", 1, 9),
        struct.pack(">II", 2, 0),
        struct.pack(">II", 3, 99) + b"12",
        struct.pack(">II", 4, 99) + b"{}",
        struct.pack(">II", 4, 2) + b"[]",
        struct.pack(">II", 99, 1),
    ],
)
def test_binary_frames_that_make_no_sense_are_unknown(frame: bytes) -> None:
    assert p.parse_frame(frame) == e.Unknown("binary")


@given(st.one_of(st.text(), st.binary()))
def test_no_frame_raises(frame: str | bytes) -> None:
    assert isinstance(p.parse_frame(frame), e.Event)


@given(
    st.sampled_from(sorted(KNOWN)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["prompt_id", "node", "nodes", "status", "value", "max", "output", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ),
)
def test_no_shape_of_a_known_message_raises(kind: str, data: Any) -> None:
    assert isinstance(p.parse_frame(json.dumps({"type": kind, "data": data})), e.Event)


@pytest.mark.parametrize(
    ("body", "unknown"),
    [
        (b'{"error": "Job not found"}', True),
        (b'{"detail": "Not Found"}', False),
        (b"[]", False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_only_comfyui_itself_says_that_a_job_is_unknown(body: bytes, unknown: bool) -> None:
    assert p.is_unknown_job(body) is unknown


# --- answers ----------------------------------------------------------------------------------------------


def test_pending_jobs_are_sorted_as_the_server_will_run_them() -> None:
    body = json.dumps(
        {
            "queue_running": [[4, "r", {}, {}, []]],
            "queue_pending": [[7, "c", {}, {}, []], [-1.5, "a", {"x": 2**70}, {}, []], [7, "b", {}, {}, []]],
        }
    ).encode()
    view = p.parse_queue(body)
    assert [item.prompt_id for item in view.pending] == ["a", "b", "c"]
    assert view.find("r") == e.SeenRunning("r", 4)
    assert view.find("b") == e.SeenPending("b", 7, 2)
    assert view.find("x") is None


@pytest.mark.parametrize("row", [["x", "id"], [1, 2], []])
def test_a_queue_of_another_shape_is_malformed(row: list[Any]) -> None:
    with pytest.raises((p.Malformed, ValueError)):
        p.parse_queue(json.dumps({"queue_running": [row], "queue_pending": []}).encode())


@pytest.mark.parametrize("version", ["0.27.0", "0.3.64"])
def test_the_graph_of_any_job_is_in_the_history_or_in_the_queue(version: str) -> None:
    found = []
    for line in lines(f"{version}/11_delete_pending", "http.jsonl"):
        if line["path"] == "/prompt" and line["method"] == "POST":
            sent = line["request_json"]
            found.append((line["response_json"]["prompt_id"], sent["prompt"], sent.get("client_id", "")))
    answers = [
        json.dumps(line["response_json"]).encode()
        for line in lines(f"{version}/11_delete_pending", "http.jsonl")
        if line["method"] == "GET"
        and line["path"].startswith(("/queue", "/history"))
        and "response_json" in line
    ]
    for prompt_id, graph, client_id in found:
        seen = [sent for body in answers if (sent := p.parse_sent(body, prompt_id))]
        assert seen
        assert all((sent.graph, sent.client_id) == (graph, client_id) for sent in seen)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"a": {"prompt": [1, "b", {}, {}, []]}}',
        b'{"a": {"prompt": [1, "a", [], {}]}}',
        b'{"a": {"prompt": "x"}, "queue_running": 3}',
    ],
)
def test_a_prompt_that_is_not_there_is_none(body: bytes) -> None:
    assert p.parse_sent(body, "a") is None


def test_a_prompt_without_a_client_has_an_empty_one() -> None:
    assert p.parse_sent(b'{"queue_running": [[1, "a", {"1": {}}, null]]}', "a") == p.SentPrompt({"1": {}})


@pytest.mark.parametrize(
    ("extra", "digest"),
    [
        ('{"comfyflow": {"digest": "d"}}', "d"),
        ('{"comfyflow": {"digest": ""}}', None),
        ('{"comfyflow": {}}', None),
        ('{"comfyflow": 1}', None),
        ("{}", None),
    ],
)
def test_a_prompt_comes_back_with_our_digest_and_what_will_run_of_it(extra: str, digest: str | None) -> None:
    for outputs, told in (('["9", "2"]', ("9", "2")), ("[]", ()), ("null", None)):
        body = f'{{"queue_pending": [[1, "a", {{"9": {{}}}}, {extra}, {outputs}]]}}'.encode()
        assert p.parse_sent(body, "a") == p.SentPrompt({"9": {}}, "", digest, told)


def test_the_jobs_on_a_server_are_counted() -> None:
    assert p.parse_remaining(b'{"exec_info": {"queue_remaining": 3}}') == 3
    with pytest.raises(p.Malformed):
        p.parse_remaining(b"{}")


def test_a_submission_may_carry_node_errors() -> None:
    assert p.parse_submission(b'{"prompt_id": "j", "number": 3, "node_errors": {"1": {}}}').node_errors == {
        "1": {}
    }
    assert p.parse_submission(b'{"prompt_id": "j", "number": 3, "node_errors": []}').node_errors == {}


def test_a_refusal_may_be_bare_text() -> None:
    assert p.parse_refusal(b'{"error": "no"}') == ({"type": "", "message": "no"}, {})


@pytest.mark.parametrize("body", [b"<html>", b"", b"[1]", b"\xff", b"[" * 100_000, b"NaN", b'{"a": }'])
def test_answers_of_another_kind_are_malformed(body: bytes) -> None:
    for parse in (p.parse_submission, p.parse_refusal, p.parse_queue, p.parse_upload):
        with pytest.raises(p.Malformed):
            parse(body)


def test_any_json_is_read_with_bare_nan_as_null_and_exact_integers() -> None:
    assert p.parse_json(b'{"a": [NaN, Infinity, -Infinity, 18446744073709551615123]}') == {
        "a": [None, None, None, 18446744073709551615123]
    }
    assert p.parse_json('{"a": "\\ud800", "b": NaN}') == {"a": "?", "b": None}


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("pending", e.SeenPending("j", 2.0)),
        ("in_progress", e.SeenRunning("j", 2.0)),
        ("completed", None),
        ("failed", None),
    ],
)
def test_a_job_says_whether_it_lives(status: str, found: e.JobEvent | None) -> None:
    assert p.parse_job(json.dumps({"id": "j", "status": status, "priority": 2}).encode(), "j") == found


def history(outputs: Any = None, **status: Any) -> bytes:
    return json.dumps({"j": {"prompt": [1], "outputs": outputs, "status": status or None}}).encode()


def test_an_unfinished_job_has_no_history() -> None:
    assert p.parse_history(b"{}", "j") is None


def test_success_with_times_files_and_what_was_reused() -> None:
    messages = [
        ["execution_start", {"timestamp": 1000}],
        ["execution_cached", {"nodes": ["2", 5]}],
        ["execution_success", {"timestamp": 2500}],
    ]
    outputs = {"2": {"images": [{"filename": "a.png"}]}, "3": {"text": ["hi"]}, "5.0.1": {"text": "cached"}}
    result = p.parse_history(history(outputs, status_str="success", messages=messages), "j")
    assert result is not None
    assert (result.state, result.started_at, result.ended_at, result.failure) == (
        JobState.SUCCEEDED,
        1.0,
        2.5,
        None,
    )
    assert result.outputs == (OutputFile("2", "a.png", reused=True),)
    assert result.texts == (OutputText("3", "text", "hi"), OutputText("5.0.1", "text", "cached", reused=True))
    assert result.reused_nodes == ("2", "5")


def test_what_came_up_while_the_job_ran_is_not_in_the_list_of_what_is_cached() -> None:
    """Real 0.3.64: "5" runs again, as it was changed, and the old file of its "5.0.0.2" comes."""
    messages = [["execution_cached", {"nodes": ["1"]}]]
    outputs = {"5.0.0.2": {"images": [{"filename": "a.png"}], "text": ["hi"]}}
    result = p.parse_history(history(outputs, status_str="success", messages=messages), "j")
    assert result is not None
    assert [result.outputs[0].reused, result.texts[0].reused] == [None, None]


def test_without_a_word_on_the_cache_nobody_knows_what_was_reused() -> None:
    result = p.parse_history(history({"2": {"images": [{"filename": "a.png"}]}}, messages=[]), "j")
    assert result is not None
    assert [output.reused for output in result.outputs] == [None]
    assert result.reused_nodes == ()


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, JobState.SUCCEEDED),
        ({"status_str": "error"}, JobState.FAILED),
        ({"status_str": "error", "messages": [["execution_interrupted", {}]]}, JobState.CANCELLED),
        (
            {"status_str": "success", "messages": [["execution_error", {"node_id": 3, "traceback": ["x"]}]]},
            JobState.FAILED,
        ),
        (
            {
                "status_str": "success",
                "messages": [["execution_error", {"exception_type": "ExecutionBlocked"}]],
            },
            JobState.SUCCEEDED,
        ),
        (
            {
                "status_str": "error",
                "messages": [None, ["execution_error"], ["execution_error", None], [1, {}]],
            },
            JobState.FAILED,
        ),
        ({"status_str": "success", "messages": 7}, JobState.SUCCEEDED),
        (
            {"status_str": "success", "messages": [["execution_start", {"timestamp": "soon"}]]},
            JobState.SUCCEEDED,
        ),
    ],
)
def test_the_messages_decide_how_it_ended(status: dict[str, Any], state: JobState) -> None:
    result = p.parse_history(history(**status), "j")
    assert result is not None
    assert result.state is state
    assert (result.failure is None) == (state is JobState.SUCCEEDED)
