"""The template `generate`, played in plain Node against recorded and hand-made answers: every case of its
contract has one answer, and what it does on the way is right."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from documented import assert_documented
from n8n_cases import BAD_CALLS, CASES, GOOD_CALLS, HOSTILE, MEDIA, PARTIAL, REJECTED
from n8n_mimic import GRAPH, Played, exchanges, play

from comfyflow.protocol import parse_history

ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[45][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def played() -> dict[str, Played]:
    """All cases, in one Node process."""
    return generated()


@cache
def generated() -> dict[str, Played]:
    """The same, for other files too."""
    return play(CASES)


@pytest.mark.parametrize("name", CASES)
def test_every_call_gets_exactly_one_answer(name: str, played: dict[str, Played]) -> None:
    assert played[name].broken is None
    statuses = [answer["status"] for answer in played[name].answers]
    # behind a 202 the job goes on, and n8n drops what is answered then
    assert len(statuses) == (2 if statuses[0] == 202 and "key" not in name else 1)


@pytest.mark.parametrize("name", CASES)
def test_the_error_workflow_hears_of_what_is_nobody_s_fault(name: str, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    if status == 202 or name in {"a key of a job that failed"}:
        return
    assert (played[name].failed is not None) == (status >= 500 or "warning" in body), played[name].failed


@pytest.mark.parametrize("name", CASES)
def test_every_answer_is_documented(name: str, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    assert_documented("POST", "/comfyflow/generate", status, "application/json", body)


@pytest.mark.parametrize("name", CASES)
def test_an_error_has_a_code_and_a_sentence(name: str, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    if status < 400:
        assert "error" not in body
        return
    assert re.fullmatch(r"[a-z_]+", body["error"]["code"])
    assert len(body["error"]["message"]) > 10
    assert {"prompt_id", "state", "recorded"} <= set(body)
    assert ("status_url" in body) == (status >= 500 and body["prompt_id"] is not None)


# --- what comes in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused_and_nothing_is_sent(name: str, played: dict[str, Played]) -> None:
    case = played[f"bad: {name}"]
    status, body = case.answer
    assert (status, body["error"]["code"], body["recorded"]) == (400, "invalid_input", False)
    assert BAD_CALLS[name][2] in body["error"]["message"]
    assert case.calls == {}


@pytest.mark.parametrize("name", GOOD_CALLS)
def test_a_workflow_may_come_in_several_ways(name: str, played: dict[str, Played]) -> None:
    case = played[f"good: {name}"]
    assert case.answer[0] == 200
    assert json.loads(case.posted()[0])["prompt"] == GRAPH


def test_numbers_arrive_as_they_were_written(played: dict[str, Played]) -> None:
    (body,) = played["one image"].posted()
    assert '"seed":18446744073709551615' in body
    assert '"cfg":1.0' in body
    [[prepared]] = played["one image"].outputs["Prepare job"]
    assert '"seed":18446744073709551615' in prepared["json"]["graph_text"]


def test_what_is_sent_has_an_id_of_its_own(played: dict[str, Played]) -> None:
    sent = [
        json.loads(case.posted()[0])
        for case in played.values()
        if case.posted() and "key" not in case.answer[1]
    ]
    ids = [body["prompt_id"] for body in sent]
    assert all(re.fullmatch(ID, id) for id in ids)
    assert len({body["client_id"] for body in sent}) == len(sent)
    assert all(re.fullmatch(r"n8n-7-[0-9a-f]{8}", body["client_id"]) for body in sent)


def test_half_a_character_does_not_reach_postgresql(played: dict[str, Played]) -> None:
    case = played["NUL in the workflow"]
    assert case.answer[0] == 200
    (graph_text,) = [item["json"]["graph_text"] for item in case.outputs["Prepare job"][0]]
    assert "\\u0000" not in graph_text and "\\ud800" not in graph_text
    assert json.loads(case.posted()[0])["prompt"]["5"]["inputs"]["text"] == "a\0b\ud800"


# --- the end of a job -----------------------------------------------------------------------------------


def events(case: Played) -> list[str]:
    """The kinds of events that are written, in order; each one once."""
    batches = [batch for node in ("Submitted", "Downloading", "End") for batch in case.batches(node)]
    found = {event["event_id"]: event["kind"] for batch in batches for event in batch["events"]}
    return list(found.values())


def assets(case: Played) -> list[dict[str, Any]]:
    status, body = case.answer
    assert (status, body["state"]) == (200, "succeeded")
    found: list[dict[str, Any]] = body["assets"]
    return found


def test_one_image_is_fetched_kept_and_told(played: dict[str, Played]) -> None:
    case = played["one image"]
    (asset,) = assets(case)
    (view,) = case.calls["GET /view"]
    told = {row["name"]: row["value"] for row in view["queryParameters"]["parameters"]}
    assert told == {name: asset[name] for name in ("filename", "subfolder", "type")}
    assert [call["fileName"] for call in case.calls["Write file"]] == [asset["path"]]
    assert asset["path"] == f"/data/shared/{asset['output_path']}"
    assert asset["output_path"].startswith(case.answer[1]["prompt_id"])
    assert asset["sha256"] == "ab" * 32
    (batch,) = case.batches("End")
    assert [(row["output_path"], row["metadata"]["sha256"]) for row in batch["assets"]] == [
        (asset["output_path"], "ab" * 32)
    ]
    assert [row["state"] for row in batch["runs"]] == ["succeeded"]
    assert events(case) == ["submitted", "download_started", "finished"]


def test_all_rows_are_comfyflow_s_own(played: dict[str, Played]) -> None:
    names = {"runs", "assets", "events", "renames", "contents", "workers"}
    nodes = ["Submitted", "Downloading", "End"]
    batches = [batch for case in played.values() for node in nodes for batch in case.batches(node)]
    assert len(batches) > 100
    assert {frozenset(batch) for batch in batches} == {frozenset(names)}
    kinds = {event["kind"] for batch in batches for event in batch["events"]}
    assert kinds <= {
        "submitted",
        "download_started",
        "finished",
        "failed",
        "cancelled",
        "lost",
        "download_failed",
    }


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("three images", 3),
        ("two nodes, one of them temporary", 2),
        ("temporary files too", 3),
        ("all from the cache", 1),
        ("NaN in the outputs", 1),
        ("no file at all", 0),
        ("only a text", 0),
        ("an old server", 1),
    ],
)
def test_every_file_that_is_meant_is_told(name: str, count: int, played: dict[str, Played]) -> None:
    found = assets(played[name])
    assert len(found) == len({row["path"] for row in found}) == count
    assert len(played[name].batches("End")[0]["assets"]) == count


@pytest.mark.parametrize("number", MEDIA)
def test_files_of_every_kind_have_their_type(number: int, played: dict[str, Played]) -> None:
    line = exchanges("0.27.0/18_media_outputs", "GET", "/history/.+")[number]
    id = line["path"].removeprefix("/history/")
    seen = parse_history(json.dumps(line["response_json"]).encode(), id)
    assert seen is not None
    found = assets(played[f"media {number}"])
    wanted = [(ref.filename, ref.subfolder, ref.node_id) for ref in seen.outputs if ref.type == "output"]
    assert [(row["filename"], row["subfolder"], row["node_id"]) for row in found] == wanted
    types = {row["filename"].rpartition(".")[2]: row["media_type"].partition("/")[0] for row in found}
    known = {
        "webm": "video",
        "mp4": "video",
        "webp": "image",
        "png": "image",
        "gif": "image",
        "flac": "audio",
        "mp3": "audio",
        "wav": "audio",
        "glb": "model",
    }
    assert {name: kind for name, kind in types.items() if name in known} == {
        name: known[name] for name in types if name in known
    }


def test_texts_are_told(played: dict[str, Played]) -> None:
    (text,) = played["only a text"].answer[1]["texts"]
    assert set(text) == {"node_id", "key", "text"}


@pytest.mark.parametrize("name", ["an execution error", "an execution error of an old server"])
def test_an_execution_error_names_its_node(name: str, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    assert (status, body["error"]["code"], body["state"]) == (502, "execution_failed", "failed")
    told = {key: body["error"][key] for key in ("node_id", "node_type", "exception_type")}
    assert told == {"node_id": "5", "node_type": "RecFail", "exception_type": "ValueError"}
    assert "deliberate failure" in body["error"]["message"]
    assert events(played[name]) == ["submitted", "failed"]


@pytest.mark.parametrize(
    ("name", "code", "state"),
    [
        ("interrupted", "cancelled", "cancelled"),
        ("lost", "lost", "lost"),
        ("lost after a while", "lost", "lost"),
    ],
)
def test_a_job_without_a_result_says_why(name: str, code: str, state: str, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    assert (status, body["error"]["code"], body["state"]) == (502, code, state)
    assert [row["state"] for row in played[name].batches("End")[0]["runs"]] == [state]
    assert played[name].batches("End")[0]["events"][-1]["kind"] == state


def test_a_job_is_lost_only_after_two_looks(played: dict[str, Played]) -> None:
    assert played["lost"].steps.count("GET /history") >= 2
    assert played["lost"].steps.index("GET /queue") < played["lost"].steps.index("GET /history")


@pytest.mark.parametrize(
    "name", ["one look misses it", "two looks miss it, not in a row", "a server that is slow to queue"]
)
def test_a_job_is_not_given_up_too_early(name: str, played: dict[str, Played]) -> None:
    assert len(assets(played[name])) == 1
    assert len(played[name].posted()) == 1


# --- waiting ------------------------------------------------------------------------------------------


def test_the_pauses_grow_and_end_with_the_patience(played: dict[str, Played]) -> None:
    case = played["a long job"]
    status, body = case.answer
    assert (status, body["error"]["code"], body["recorded"]) == (504, "timeout", True)
    assert case.waits[:5] == [5, 10, 20, 20, 20]
    assert 860 < sum(case.waits) <= 900
    assert body["status_url"] == f"/webhook/comfyflow/status?prompt_id={body['prompt_id']}"
    assert [batch["runs"] for batch in case.batches("End")] == [[]]  # the job stays open


@pytest.mark.parametrize(("name", "limit"), [("a short patience", 30), ("more patience than allowed", 900)])
def test_a_caller_may_have_less_patience_not_more(name: str, limit: float, played: dict[str, Played]) -> None:
    assert played[name].answer[0] == 504
    assert sum(played[name].waits) <= limit


@pytest.mark.parametrize(
    ("name", "waits"), [("another schedule", [1, 2, 2, 2, 2]), ("a schedule in words", [5, 10, 20])]
)
def test_the_schedule_is_a_parameter(name: str, waits: list[float], played: dict[str, Played]) -> None:
    assert played[name].answer[0] == 200
    assert played[name].waits == pytest.approx(waits)


def test_a_job_is_followed_through_the_queue(played: dict[str, Played]) -> None:
    case = played["the queue, then the history"]
    assert case.answer[1]["attempts"] == 3
    states = [item["json"]["state"] for run in case.outputs["Evaluate"] for item in run]
    assert states[:2] == ["queued", "running"]


@pytest.mark.parametrize(
    "name", ["no waiting", "no waiting by header", "no waiting by default", "no database, no waiting"]
)
def test_who_does_not_wait_is_answered_at_once_and_the_job_goes_on(
    name: str, played: dict[str, Played]
) -> None:
    status, body = played[name].answer
    assert (status, body["state"], body["recorded"]) == (202, "queued", "database" not in name)
    assert body["status_url"].endswith(body["prompt_id"])
    steps = played[name].steps
    assert steps.index("Answer 202") < steps.index("GET /history") < steps.index("Record end")


def test_wait_in_the_body_is_stronger_than_the_header(played: dict[str, Played]) -> None:
    assert played["waiting in spite of the header"].answer[0] == 200


def test_addresses_may_end_with_a_slash(played: dict[str, Played]) -> None:
    case = played["a slash at the end"]
    assert {call["url"] for call in case.calls["POST /prompt"]} == {"http://gpu:1/prompt"}
    assert case.answer[1]["status_url"].startswith("https://a.example/webhook/comfyflow/status?prompt_id=")


# --- a server that refuses, is away, or is another ------------------------------------------------------


@pytest.mark.parametrize("number", range(len(REJECTED)))
def test_what_comfyui_refuses_is_told_with_its_errors(number: int, played: dict[str, Played]) -> None:
    told = REJECTED[number]["response_json"]
    status, body = played[f"rejected {number}"].answer
    assert (status, body["error"]["code"], body["error"]["comfyui_status"]) == (422, "workflow_refused", 400)
    assert body["error"]["node_errors"] == (told.get("node_errors") or {})
    if isinstance(told.get("error"), dict):
        assert body["error"]["message"] == told["error"]["message"]


def test_there_are_recorded_refusals() -> None:
    assert len(REJECTED) > 10


@pytest.mark.parametrize("name", ["refused in part", "refused in part, cancel unknown"])
def test_a_part_of_a_workflow_is_taken_back(name: str, played: dict[str, Played]) -> None:
    case = played[name]
    status, body = case.answer
    assert (status, body["error"]["code"], body["error"]["comfyui_status"]) == (422, "workflow_refused", 200)
    assert body["error"]["node_errors"] == PARTIAL["node_errors"]
    assert json.loads(case.calls["Take back"][0]["body"]) == {"delete": [body["prompt_id"]]}
    assert case.calls["Cancel"][0]["url"].endswith(f"/api/jobs/{body['prompt_id']}/cancel")


def test_a_part_may_be_enough(played: dict[str, Played]) -> None:
    assert played["a part is enough"].answer[0] == 200


@pytest.mark.parametrize(
    ("name", "sends"),
    [
        ("nobody there", 4),
        ("no such host", 4),
        ("the request got lost", 1),
        ("a page for an answer", 1),
        ("a proxy without a server", 1),
        ("a proxy that is not ready", 1),
        ("null for an answer", 1),
        ("away for ever", 1),
        ("another program", 1),
    ],
)
def test_a_server_that_cannot_be_reached_is_said_to_be(
    name: str, sends: int, played: dict[str, Played]
) -> None:
    status, body = played[name].answer
    assert (status, body["error"]["code"]) == (503, "comfyui_unreachable")
    assert len(played[name].posted()) == sends
    assert "ECONNREFUSED" not in (played[name].failed or "")  # Stop And Error would replace the text


@pytest.mark.parametrize(
    ("name", "sends"),
    [
        ("there at the third time", 3),
        ("the answer got lost", 1),
        ("no answer in time", 1),
        ("a server in trouble, job queued", 1),
        ("away for a minute", 1),
        ("a page for the queue", 1),
        ("a page for the history", 1),
    ],
)
def test_a_job_is_sent_once_whatever_happens_to_the_answers(
    name: str, sends: int, played: dict[str, Played]
) -> None:
    assert played[name].answer[0] == 200
    assert len(played[name].posted()) == sends


def test_a_server_may_be_away_for_a_while_and_no_longer(played: dict[str, Played]) -> None:
    assert 120 <= sum(played["away for ever"].waits) < 140
    assert played["away for ever"].answer[1]["recorded"] is True


def test_another_answer_of_a_server_is_no_success(played: dict[str, Played]) -> None:
    status, body = played["forbidden"].answer
    assert (status, body["error"]["comfyui_status"], body["error"]["message"]) == (
        422,
        403,
        "not allowed here",
    )


def test_the_id_that_a_server_gives_is_followed(played: dict[str, Played]) -> None:
    case = played["another id"]
    assert case.answer[1]["prompt_id"] == "srv-1"
    assert {call["url"].rpartition("/")[2] for call in case.calls["GET /history"]} == {"srv-1"}


# --- keys and the database ------------------------------------------------------------------------------


def test_a_key_makes_the_id(played: dict[str, Played]) -> None:
    first = played["a key for the first time"]
    assert first.answer[0] == 200
    (asked,) = [json.loads(item["json"]["begin"]) for item in first.outputs["Prepare job"][0]]
    assert asked["key"] == "order 7"
    assert asked["ids"][0] == first.answer[1]["prompt_id"]
    assert len(set(asked["ids"])) == 50
    (again,) = [
        json.loads(item["json"]["begin"]) for item in played["a key that was used"].outputs["Prepare job"][0]
    ]
    assert again["ids"] == asked["ids"]


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("a key of another workflow", 409, "key_conflict"),
        ("a key on another server", 409, "key_conflict"),
        ("a key of a job that failed", 502, "execution_failed"),
        ("a key without the database", 503, "database_unreachable"),
    ],
)
def test_a_key_that_cannot_be_used_sends_nothing(
    name: str, status: int, code: str, played: dict[str, Played]
) -> None:
    assert (played[name].answer[0], played[name].answer[1]["error"]["code"]) == (status, code)
    assert played[name].posted() == []


@pytest.mark.parametrize("name", ["a key that was used", "a key that another execution follows"])
def test_a_key_has_one_job(name: str, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    assert (status, body["replayed"], body["recorded"], body["assets"][0]["id"]) == (200, True, True, 5)
    assert played[name].posted() == []
    assert "GET /history" not in played[name].calls


def test_a_key_of_a_job_that_runs_has_its_status(played: dict[str, Played]) -> None:
    case = played["a key that another execution follows, no waiting"]
    assert (case.answer[0], case.answer[1]["state"], case.posted()) == (202, "running", [])


def test_without_a_database_the_files_are_kept_and_the_answer_says_so(played: dict[str, Played]) -> None:
    case = played["no database"]
    status, body = case.answer
    assert (status, body["recorded"], len(body["assets"]), body["assets"][0]["id"]) == (200, False, 1, None)
    assert "database" in body["warning"]
    assert len(case.calls["Write file"]) == 1


@pytest.mark.parametrize("name", ["the database is away at the end", "the record refuses a file"])
def test_a_record_that_fails_at_the_end_is_no_record(name: str, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    assert (status, body["recorded"]) == (200, False)
    assert "warning" in body


def test_without_a_database_a_lost_job_is_lost(played: dict[str, Played]) -> None:
    status, body = played["no database, and lost"].answer
    assert (status, body["error"]["code"], body["recorded"]) == (502, "lost", False)


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tries"),
    [
        ("one file is gone", 3),
        ("a file is always short", 3),
        ("one file is gone, another short", 3),
        ("a page instead of a file", 3),
        ("no answer for a file", 3),
    ],
)
def test_a_file_that_does_not_come_is_named(name: str, tries: int, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    assert (status, body["error"]["code"]) == (502, "download_failed")
    assert {frozenset(one) for one in body["error"]["files"]} == {frozenset({"filename", "reason"})}
    assert played[name].steps.count("GET /view") == tries


def test_only_a_file_that_is_gone_for_good_ends_the_job(played: dict[str, Played]) -> None:
    assert played["one file is gone"].batches("End")[-1]["runs"][0]["state"] == "failed"
    assert played["a file is always short"].batches("End")[-1]["runs"] == []
    assert played["one file is gone, another short"].batches("End")[-1]["runs"] == []


def test_a_file_is_asked_for_again(played: dict[str, Played]) -> None:
    (asset,) = assets(played["a file is short, then whole"])
    assert asset["bytes"] == 4
    assert len(played["a file is short, then whole"].calls["Write file"]) == 1


@pytest.mark.parametrize("name", ["a folder that is closed", "a file that cannot be read back"])
def test_a_file_that_cannot_be_kept_leaves_the_job_open(name: str, played: dict[str, Played]) -> None:
    status, body = played[name].answer
    assert (status, body["error"]["code"]) == (500, "storage_failed")
    assert "/data/shared/" in body["error"]["message"]
    (batch,) = played[name].batches("End")
    assert (batch["runs"], batch["assets"]) == ([], [])


@pytest.mark.parametrize("name", ["files of one name", "hostile names", "hostile node ids"])
def test_no_name_leaves_the_folder_or_hits_another(name: str, played: dict[str, Played]) -> None:
    case = played[name]
    paths = [call["fileName"] for call in case.calls["Write file"]]
    assert len(set(paths)) == len(paths) == len(assets(case))
    assert all(re.fullmatch(r"/data/shared/[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}", path) for path in paths)


def test_a_file_keeps_its_suffix_and_is_asked_for_by_its_own_name(played: dict[str, Played]) -> None:
    case = played["hostile names"]
    asked = [
        {row["name"]: row["value"] for row in call["queryParameters"]["parameters"]}["filename"]
        for call in case.calls["GET /view"]
    ]
    assert asked == HOSTILE
    ends = [row["path"].rpartition(".")[2] for row in assets(case) if row["filename"].endswith(".png")]
    assert ends == ["png"] * 5
