"""The template `status`, played in plain Node: how a job stands, and the end of those that nobody follows."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from documented import assert_documented
from n8n_mimic import (
    ASSET,
    AWAY,
    GRAPH,
    Played,
    done,
    file,
    got,
    image,
    no_answer,
    play,
    queue,
    recorded_history,
    row,
    status,
    tick,
)

ID = "4f9f6a5e-7b7e-4f0e-9a53-0c4f4d5f7f11"
OTHER_ID = "5f9f6a5e-7b7e-4f0e-9a53-0c4f4d5f7f11"
NOTHING = got({})
REFUSED = no_answer("ECONNREFUSED")
GRAPH_TEXT = json.dumps(GRAPH)
ASSETS = json.dumps([ASSET])
NOBODY = row(prompt_id=None, state=None, mine=None, digest=None)


def job(**fields: Any) -> dict[str, Any]:
    """A row about the job in question."""
    known = {"prompt_id": ID, "client_id": "n8n-7-0", "server": "http://comfyui:8188", "digest": "0" * 64}
    return row(**known | {"state": "queued", "sent": True, "graph": GRAPH_TEXT} | fields)


def entry(turn: dict[str, Any], id: str = ID) -> dict[str, Any]:
    """The same answer about this job."""
    return json.loads(json.dumps(turn).replace("%prompt_id%", id))  # type: ignore[no-any-return]  # JSON


FOUND = entry(done({"9": {"images": [image()]}}))
FOUND_OTHER = entry(done({"9": {"images": [image()]}}), OTHER_ID)
SUCCESS = {"state": "succeeded", "mine": False, "assets": ASSETS, "execution_seconds": 1.5}
FAILURE = json.dumps(
    {"message": "out of memory", "node_id": "3", "node_type": "KSampler", "exception_type": "E"}
)
FORGOTTEN = {"json": {"recorded": True, "prompt_id": ID}}
OTHER = {"json": {"recorded": True, "prompt_id": OTHER_ID}}
NONE_FORGOTTEN: dict[str, Any] = {"json": {}}

CASES: dict[str, dict[str, Any]] = {
    "no id": status(None),
    "an empty id": status("  "),
    "an id without end": status("x" * 501),
    "two ids": status(["a", "b"]),  # type: ignore[arg-type] # what n8n makes of ?prompt_id=a&prompt_id=b
    "unknown": status(ID, turn=NOBODY, history=NOTHING),
    "unknown, and the database is away": status(ID, turn=AWAY, history=NOTHING),
    "succeeded on record": status(ID, turn=job(**SUCCESS)),
    "failed on record": status(ID, turn=job(state="failed", mine=False, error=FAILURE)),
    "cancelled on record": status(
        ID, turn=job(state="cancelled", mine=False, error=json.dumps({"message": "it was cancelled"}))
    ),
    "lost on record": status(
        ID, turn=job(state="lost", mine=False, error=json.dumps({"message": "the server forgot it"}))
    ),
    "somebody follows it": status(ID, turn=job(state="running", mine=False)),
    "it waits": status(ID, turn=job(), queue=queue(["a"], ["b", ID]), history=NOTHING),
    "it runs": status(ID, turn=job(), queue=queue([ID]), history=NOTHING),
    "nobody has fetched it": status(ID, turn=job(), history=FOUND),
    "not on record, on the server": status(ID, turn=NOBODY, history=FOUND),
    "the database is away": status(ID, turn=AWAY, history=FOUND, download=AWAY, end=AWAY),
    "an execution error": status(
        ID, turn=job(), history=entry(recorded_history("0.27.0/08_execution_error"))
    ),
    "lost": status(ID, turn=job(), history=NOTHING),
    "it never came": status(ID, turn=job(state="created", sent=False), history=NOTHING),
    "the server is away": status(ID, turn=job(), queue=REFUSED, history=REFUSED),
    "a file does not come": status(ID, turn=job(), history=FOUND, view=file(3, told=4)),
    "no forgotten job": tick(forgotten=NONE_FORGOTTEN),
    "no forgotten job: the database is away": tick(forgotten=AWAY),
    "a forgotten job that has ended": tick(forgotten=[FORGOTTEN, NONE_FORGOTTEN], turn=job(), history=FOUND),
    "a forgotten job that runs": tick(
        forgotten=[FORGOTTEN, NONE_FORGOTTEN], turn=job(), queue=queue([ID]), history=NOTHING
    ),
    "a forgotten job that was just taken": tick(forgotten=[FORGOTTEN, NONE_FORGOTTEN], turn=job(mine=False)),
    "two forgotten jobs": tick(
        forgotten=[FORGOTTEN, OTHER, NONE_FORGOTTEN],
        turn=[job(), job(prompt_id=OTHER_ID)],
        history=[FOUND, FOUND_OTHER],
    ),
    "a forgotten job that is lost": tick(forgotten=FORGOTTEN, turn=job(), history=NOTHING),
}
ASKED = [name for name in CASES if "forgotten" not in name]


@pytest.fixture(scope="module")
def played() -> dict[str, Played]:
    """All cases, in one Node process."""
    return told_of()


@cache
def told_of() -> dict[str, Played]:
    """The same, for other files too."""
    return play(CASES)


@pytest.mark.parametrize("name", CASES)
def test_nothing_breaks_and_nobody_sends_a_job(name: str, played: dict[str, Played]) -> None:
    assert played[name].broken is None
    assert played[name].posted() == []


@pytest.mark.parametrize("name", ASKED)
def test_every_question_gets_one_answer_as_documented(name: str, played: dict[str, Played]) -> None:
    assert len(played[name].answers) == 1
    code, body = played[name].answer
    assert_documented("GET", "/comfyflow/status", code, "application/json", body)


@pytest.mark.parametrize(
    ("name", "code", "error"),
    [
        ("no id", 400, "invalid_input"),
        ("an empty id", 400, "invalid_input"),
        ("an id without end", 400, "invalid_input"),
        ("two ids", 400, "invalid_input"),
        ("unknown", 404, "unknown"),
        ("unknown, and the database is away", 503, "database_unreachable"),
        ("failed on record", 502, "execution_failed"),
        ("cancelled on record", 502, "cancelled"),
        ("lost on record", 502, "lost"),
        ("an execution error", 502, "execution_failed"),
        ("lost", 502, "lost"),
        ("it never came", 503, "comfyui_unreachable"),
        ("the server is away", 503, "comfyui_unreachable"),
        ("a file does not come", 502, "download_failed"),
    ],
)
def test_what_is_wrong_is_told(name: str, code: int, error: str, played: dict[str, Played]) -> None:
    assert (played[name].answer[0], played[name].answer[1]["error"]["code"]) == (code, error)


@pytest.mark.parametrize(
    ("name", "state", "place"),
    [("somebody follows it", "running", None), ("it waits", "queued", 2), ("it runs", "running", None)],
)
def test_a_job_under_way_is_told_at_once(
    name: str, state: str, place: int | None, played: dict[str, Played]
) -> None:
    code, body = played[name].answer
    assert (code, body["state"], body.get("queue_position"), body["recorded"]) == (202, state, place, True)
    assert played[name].waits == []


def test_what_is_on_record_is_told_without_asking_the_server(played: dict[str, Played]) -> None:
    case = played["succeeded on record"]
    code, body = case.answer
    assert (code, body["recorded"], body["execution_seconds"]) == (200, True, 1.5)
    assert [(row["id"], row["path"], row["bytes"]) for row in body["assets"]] == [
        (5, "/data/shared/x.png", 7)
    ]
    assert [name for name in case.calls if name.startswith("GET")] == []


def test_a_job_that_nobody_fetched_is_fetched_and_recorded(played: dict[str, Played]) -> None:
    case = played["nobody has fetched it"]
    code, body = case.answer
    assert (code, body["recorded"], len(body["assets"])) == (200, True, 1)
    (batch,) = case.batches("End")
    assert [row["metadata"]["seed"] for row in batch["assets"]] == [2**64 - 1]


@pytest.mark.parametrize("name", ["not on record, on the server", "the database is away"])
def test_a_job_that_only_the_server_knows_is_told(name: str, played: dict[str, Played]) -> None:
    code, body = played[name].answer
    assert (code, body["prompt_id"], len(body["assets"])) == (200, ID, 1)


@pytest.mark.parametrize("name", ["no forgotten job", "no forgotten job: the database is away"])
def test_without_a_forgotten_job_nothing_happens(name: str, played: dict[str, Played]) -> None:
    case = played[name]
    assert (case.steps[-1], case.failed, case.answers) == ("Prepare job", None, [])


def test_a_forgotten_job_is_finished(played: dict[str, Played]) -> None:
    case = played["a forgotten job that has ended"]
    assert [row["state"] for row in case.batches("End")[0]["runs"]] == ["succeeded"]
    assert len(case.calls["Write file"]) == 1
    assert case.failed is None


def test_one_forgotten_job_after_the_other_is_finished(played: dict[str, Played]) -> None:
    case = played["two forgotten jobs"]
    runs = [row for batch in case.batches("End") for row in batch["runs"]]
    assert [row["state"] for row in runs] == ["succeeded", "succeeded"]
    assert len({row["prompt_id"] for row in runs}) == 2
    assert case.failed is None


@pytest.mark.parametrize("name", ["a forgotten job that runs", "a forgotten job that was just taken"])
def test_a_job_that_is_not_over_is_left_alone(name: str, played: dict[str, Played]) -> None:
    assert [batch["runs"] for batch in played[name].batches("End")] == [[]]
    assert played[name].failed is None


def test_somebody_hears_of_a_forgotten_job_that_is_lost(played: dict[str, Played]) -> None:
    case = played["a forgotten job that is lost"]
    assert [row["state"] for row in case.batches("End")[0]["runs"]] == ["lost"]
    assert "lost" in (case.failed or "")
