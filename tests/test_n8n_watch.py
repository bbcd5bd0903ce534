"""The templates `healthcheck` and `error-alert`, played in plain Node: when they speak, and what they say."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from n8n_mimic import AWAY, Played, exchanges, got, no_answer, play, queue, took

SLACK = {"slack_webhook_url": "https://slack.example/hook"}
MAIL = {"mail_to": "ops@example.com", "mail_from": ""}
BOTH = SLACK | MAIL
SILENT = {"slack_webhook_url": "", "mail_to": "", "mail_from": ""}
REFUSED = no_answer("ECONNREFUSED", "connect ECONNREFUSED 10.0.0.1:8188")
(STATS,) = [
    line["response_json"]
    for line in exchanges("0.27.0/22_system_and_features", "GET", "/system_stats")
    if line["status"] == 200
][:1]
SAVED = {"json": {"recorded": True, "id": "1", "mean_seconds": None}}
SENT = {"json": {"accepted": ["ops@example.com"], "messageId": "<1@a>"}}


def health(config: Any = BOTH, statics: Any = None, **script: Any) -> dict[str, Any]:
    """One look of the health check."""
    names = {
        "stats": "GET /system_stats",
        "queue": "GET /queue",
        "saved": "Record check",
        "slack": "Slack",
        "mail": "E-mail",
    }
    usual: dict[str, Any] = {
        "GET /system_stats": [got(STATS)],
        "GET /queue": [queue(["a"], ["b", "c"])],
        "Record check": [SAVED],
        "Slack": [took("ok")],
        "E-mail": [SENT],
    }
    return {
        "template": "comfyui-healthcheck",
        "start": "Every 5 minutes",
        "item": {"json": {"timestamp": "2026"}},
        "config": SILENT | {"comfyui_url": "http://gpu:8188/"} | config,
        "statics": statics or {},
        "script": usual | {names[name]: [turn] for name, turn in script.items()},
    }


LOOKS = {
    "well": health(),
    "away once": health(stats=REFUSED, queue=REFUSED),
    "another program": health(stats=got("<html>"), config=BOTH | {"failures_before_alert": 1}),
    "a list": health(stats=got([]), config=BOTH | {"failures_before_alert": 1}),
    "an error of the server": health(queue=got("no", 500), config=BOTH | {"failures_before_alert": 1}),
    "little memory": health(config=BOTH | {"min_vram_free_bytes": 2**60, "failures_before_alert": 1}),
    "the database is away": health(saved=AWAY, config=BOTH | {"failures_before_alert": 1}),
    "only Slack": health(stats=REFUSED, config=SLACK | {"failures_before_alert": 1}),
    "only mail": health(stats=REFUSED, config=MAIL | {"failures_before_alert": 1}),
    "nobody named": health(stats=REFUSED, config={"failures_before_alert": 1}),
    "Slack refuses": health(
        stats=REFUSED, config=SLACK | {"failures_before_alert": 1}, slack=took("no_service", 404)
    ),
    "Slack refuses, mail goes": health(
        stats=REFUSED, config=BOTH | {"failures_before_alert": 1}, slack=took("no_service", 404)
    ),
    "mail refuses": health(
        stats=REFUSED,
        config=MAIL | {"failures_before_alert": 1},
        mail=no_answer("ESOCKET", "greeting never received"),
    ),
}


@pytest.fixture(scope="module")
def looks() -> dict[str, Played]:
    """Looks without a past."""
    return watched()


@cache
def watched() -> dict[str, Played]:
    """Looks and alerts, in one Node process, for other files too."""
    return play(LOOKS | {f"alert: {name}": case for name, case in ALERTS.items()})


def texts(played: Played) -> list[str]:
    """What Slack was told."""
    return [json.loads(call["body"])["text"] for call in played.calls.get("Slack", [])]


def letters(played: Played) -> list[tuple[str, str]]:
    """To whom went what by mail."""
    return [(call["toEmail"], call["text"]) for call in played.calls.get("E-mail", [])]


def checked(played: Played) -> dict[str, Any]:
    """The row for server_checks."""
    found: dict[str, Any] = json.loads(played.outputs["Check"][0][0]["json"]["check"])
    return found


@pytest.mark.parametrize("name", LOOKS)
def test_nothing_breaks(name: str, looks: dict[str, Played]) -> None:
    assert looks[name].broken is None


def test_a_look_becomes_a_row(looks: dict[str, Played]) -> None:
    row = checked(looks["well"])
    assert (row["server"], row["ok"], row["error"]) == ("http://gpu:8188", True, None)
    assert (row["queue_running"], row["queue_pending"]) == (1, 2)
    assert row["ram_total"] == STATS["system"]["ram_total"]
    assert row["vram_free"] == sum(device["vram_free"] for device in STATS["devices"])
    assert row["version"] == STATS["system"]["comfyui_version"]
    assert (texts(looks["well"]), letters(looks["well"]), looks["well"].failed) == ([], [], None)


@pytest.mark.parametrize(
    ("name", "ok", "said"),
    [
        ("another program", False, "as ComfyUI does"),
        ("a list", False, "as ComfyUI does"),
        ("an error of the server", False, "500"),
        ("little memory", True, "video memory"),
        ("the database is away", True, "database"),
    ],
)
def test_each_trouble_has_its_message(name: str, ok: bool, said: str, looks: dict[str, Played]) -> None:
    assert checked(looks[name])["ok"] is ok
    (text,) = texts(looks[name])
    assert said in text
    assert letters(looks[name]) == [("ops@example.com", text)]


@pytest.mark.parametrize(
    ("name", "slack", "mail"), [("only Slack", 1, 0), ("only mail", 0, 1), ("nobody named", 0, 0)]
)
def test_only_who_is_named_is_told(name: str, slack: int, mail: int, looks: dict[str, Played]) -> None:
    assert (len(texts(looks[name])), len(letters(looks[name]))) == (slack, mail)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("Slack refuses", "Slack"),
        ("Slack refuses, mail goes", "Slack"),
        ("mail refuses", "e-mail"),
        ("nobody named", "Config"),
    ],
)
def test_a_message_that_does_not_arrive_fails_the_execution(
    name: str, way: str, looks: dict[str, Played]
) -> None:
    assert way in (looks[name].failed or "")
    assert SLACK["slack_webhook_url"] not in (looks[name].failed or "")


def test_a_mail_without_a_sender_comes_from_its_receiver(looks: dict[str, Played]) -> None:
    (mail,) = looks["only mail"].calls["E-mail"]
    assert mail["fromEmail"] == "ops@example.com"


def follow(looks: list[dict[str, Any]]) -> list[Played]:
    """Looks one after the other: each one remembers those before it."""
    told: list[Played] = []
    for look in looks:
        statics = told[-1].statics if told else {}
        told.append(play({"look": look | {"statics": statics}})["look"])
        assert told[-1].broken is None
    return told


def test_an_alert_comes_after_some_failures_once_and_again_when_all_is_well() -> None:
    away = health(stats=REFUSED, queue=REFUSED)
    told = follow([away, away, away, away, health(), health()])
    assert [len(texts(one)) for one in told] == [0, 0, 1, 0, 1, 0]
    assert "3 checks in a row" in texts(told[2])[0]
    assert "connection refused" in texts(told[2])[0]
    assert "answers again" in texts(told[4])[0]


def test_a_failure_that_passes_is_no_news() -> None:
    away = health(stats=REFUSED)
    assert [texts(one) for one in follow([away, away, health(), away, away])] == [[]] * 5


def test_what_nobody_got_is_told_with_the_next_look() -> None:
    config = SLACK | {"failures_before_alert": 1}
    told = follow([health(config, stats=REFUSED, slack=took("", 500)), health(config), health(config)])
    assert [len(texts(one)) for one in told] == [1, 1, 0]
    assert [line.split(" ")[-1] != "" for line in texts(told[1])[0].splitlines()] == [True, True]
    assert texts(told[0])[0] in texts(told[1])[0]
    assert "answers again" in texts(told[1])[0]


# --- the error workflow ---------------------------------------------------------------------------------


def error(
    message: Any = "boom", config: Any = BOTH, statics: Any = None, count: Any = None, **script: Any
) -> dict[str, Any]:
    """An execution that failed, as n8n tells the error workflow."""
    names = {"forget": "Forget", "slack": "Slack", "mail": "E-mail"}
    counted = {
        "json": {"recorded": True, "send": True, "sent_at": "2026-11-23", "count": 1, "since": 1795435200.0}
    }
    usual: dict[str, Any] = {
        "Count": [counted if count is None else count],
        "Slack": [took("ok")],
        "E-mail": [SENT],
        "Forget": [{"json": {"recorded": True}}],
    }
    execution = {
        "id": "231",
        "url": "http://n8n/execution/231",
        "error": {"message": message},
        "lastNodeExecuted": "Fail",
        "mode": "webhook",
    }
    return {
        "template": "comfyui-error-alert",
        "start": "Error Trigger",
        "item": {"json": {"execution": execution, "workflow": {"id": "w", "name": "comfyflow: generate"}}},
        "config": SILENT | config,
        "statics": statics or {},
        "script": usual | {names[name]: [turn] for name, turn in script.items()},
    }


def quiet() -> dict[str, Any]:
    return {
        "json": {"recorded": True, "send": False, "sent_at": "2026-11-23", "count": 2, "since": 1795435200.0}
    }


TRIGGER = {
    "json": {
        "trigger": {"error": {"message": "no host"}, "mode": "trigger"},
        "workflow": {"id": "w", "name": "mine"},
    }
}
ALERTS = {
    "an error": error("comfyflow: lost: gone (prompt 4f9f6a5e-7b7e-4f0e-9a53-0c4f4d5f7f11)"),
    "the same, another job": error("comfyflow: lost: gone (prompt 00000000-7b7e-4f0e-9a53-0c4f4d5f7f12)"),
    "another error": error("comfyflow: timeout: 900 s"),
    "told already": error(count=quiet()),
    "told five times": error(
        count={"json": {"recorded": True, "send": True, "sent_at": "x", "count": 5, "since": 1795435200.0}}
    ),
    "without a message": error(None),
    "an endless message": error("x" * 99999),
    "a secret": error(
        "cannot reach postgresql://me:hunter22@db/x with token=abcdefgh and Bearer abcdefghijkl"
    ),
    "commands for Slack": error("<!channel> & <http://evil|click>"),
    "a trigger": error() | {"item": TRIGGER},
    "nothing known": error() | {"item": {"json": {}}},
    "the database is away": error(count=AWAY),
    "Slack refuses": error(config=SLACK, slack=took("", 404)),
    "Slack refuses, no database": error(config=SLACK, slack=took("", 404), count=AWAY, forget=AWAY),
    "nobody named": error(config={}),
}


@pytest.fixture(scope="module")
def alerts() -> dict[str, Played]:
    """Alerts without a past."""
    return {name: watched()[f"alert: {name}"] for name in ALERTS}


@pytest.mark.parametrize("name", ALERTS)
def test_no_alert_breaks(name: str, alerts: dict[str, Played]) -> None:
    assert alerts[name].broken is None


@pytest.mark.parametrize("name", sorted(ALERTS.keys() - {"told already", "nobody named"}))
def test_an_error_is_told_in_few_words(name: str, alerts: dict[str, Played]) -> None:
    (text,) = texts(alerts[name])
    assert 20 < len(text) < 1000
    assert "undefined" not in text and "[object" not in text


def test_the_message_says_what_failed_where_and_how_often(alerts: dict[str, Played]) -> None:
    (text,) = texts(alerts["an error"])
    assert "comfyflow: generate" in text and "comfyflow: lost: gone" in text
    assert "http://n8n/execution/231" in text
    assert "5 times" in texts(alerts["told five times"])[0]
    assert [mail[0] for mail in letters(alerts["an error"])] == ["ops@example.com"]


def cause(played: Played) -> str:
    return str(json.loads(played.outputs["Cause"][0][0]["json"]["asked"])["cause"])


def test_jobs_differ_and_causes_do_not(alerts: dict[str, Played]) -> None:
    assert cause(alerts["an error"]) == cause(alerts["the same, another job"])
    assert cause(alerts["an error"]) != cause(alerts["another error"])


def test_what_was_told_is_not_told_again(alerts: dict[str, Played]) -> None:
    assert (texts(alerts["told already"]), letters(alerts["told already"])) == ([], [])


def test_no_secret_is_told(alerts: dict[str, Played]) -> None:
    told = texts(alerts["a secret"])[0] + cause(alerts["a secret"])
    assert not any(word in told for word in ("hunter22", "abcdefgh"))


def test_slack_takes_no_commands_from_others(alerts: dict[str, Played]) -> None:
    assert "<" not in texts(alerts["commands for Slack"])[0]
    assert "<!channel>" in letters(alerts["commands for Slack"])[0][1]


@pytest.mark.parametrize("name", ["Slack refuses", "Slack refuses, no database"])
def test_an_alert_that_did_not_arrive_is_told_again(name: str, alerts: dict[str, Played]) -> None:
    assert "Slack" in (alerts[name].failed or "")
    assert "Forget" in alerts[name].calls


def test_without_the_database_n8n_itself_counts() -> None:
    away = error(count=AWAY, config=BOTH | {"repeat_minutes": 60})
    told = follow([away, away, away, away | {"config": away["config"] | {"repeat_minutes": 0}}])
    assert [len(texts(one)) for one in told] == [1, 0, 0, 1]
    assert "database is away" in texts(told[0])[0]
    assert "3 times" in texts(told[3])[0]
