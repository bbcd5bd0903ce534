"""The templates of n8n/ before any n8n sees them: they are what their source makes, n8n's parser takes every
expression, PostgreSQL every statement, and each rule finds the fault that it is there for."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import n8n_lint
import pytest
from clusters import connected
from n8n_lint import findings, kind
from n8n_sql import numbered, statements

FOLDER = Path(__file__).parent.parent / "n8n"
NAMES = sorted(path.stem for path in FOLDER.glob("comfyui-*.json"))
Template = dict[str, Any]
Fault = Callable[[Template], None]


@cache
def _text(name: str) -> str:
    return (FOLDER / f"{name}.json").read_text(encoding="utf-8")


def template(name: str) -> Template:
    """A copy of one of the files."""
    value: Template = json.loads(_text(name))
    return value


def node(whole: Template, name: str) -> dict[str, Any]:
    """One of its nodes."""
    return next(one for one in whole["nodes"] if one["name"] == name)


# --- the files ----------------------------------------------------------------------------------------


def test_the_files_are_what_their_source_makes() -> None:
    command = [sys.executable, str(FOLDER / "source" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_these_are_all_the_templates() -> None:
    assert NAMES == ["comfyui-error-alert", "comfyui-generate", "comfyui-healthcheck", "comfyui-status"]
    assert {template(name)["id"] for name in NAMES} == set(n8n_lint.NAMES)


def test_the_credentials_to_fill_in_are_those_that_the_templates_name() -> None:
    examples = json.loads((FOLDER / "credentials" / "example.json").read_text(encoding="utf-8"))
    named = {row["type"]: {"id": row["id"], "name": row["name"]} for row in examples}
    assert named == n8n_lint.CREDENTIALS


# --- every rule, over every file and over every fault ---------------------------------------------------


def change(name: str, path: str, value: Any) -> Fault:
    """Set something of a node; `path` is like "parameters.options.timeout"; None removes it."""
    *way, last = path.split(".")

    def fault(whole: Template) -> None:
        place = node(whole, name)
        for step in way:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return fault


def replace(name: str, path: str, old: str, new: str) -> Fault:
    """Change a text of a node where it says `old`."""

    def fault(whole: Template) -> None:
        *way, last = path.split(".")
        place = node(whole, name)
        for step in way:
            place = place[step]
        assert old in place[last]
        change(name, path, place[last].replace(old, new))(whole)

    return fault


def rewire(name: str, *outputs: list[str]) -> Fault:
    """Give a node other wires."""

    def fault(whole: Template) -> None:
        main = [[{"node": target, "type": "main", "index": 0} for target in targets] for targets in outputs]
        whole["connections"][name] = {"main": main}

    return fault


def code(name: str, line: str) -> Fault:
    """Put a line in front of a Code node's own."""

    def fault(whole: Template) -> None:
        parameters = node(whole, name)["parameters"]
        parameters["jsCode"] = f"{line}\n{parameters['jsCode']}"

    return fault


def setting(key: str, value: Any) -> Fault:
    """Change the workflow itself."""

    def fault(whole: Template) -> None:
        place = whole if key in whole else whole["settings"]
        place[key] = value

    return fault


def config(name: str, value: str | None) -> Fault:
    """Another value for a parameter (a new one, if need be), or none of that name."""

    def fault(whole: Template) -> None:
        rows = node(whole, "Config")["parameters"]["assignments"]["assignments"]
        rows[:] = [row for row in rows if row["name"] != name]
        if value is not None:
            rows.append({"id": name, "name": name, "value": value, "type": "string"})

    return fault


def extra(name: str, type_: str) -> Fault:
    """One more node behind Config."""

    def fault(whole: Template) -> None:
        more = {
            "name": name,
            "id": name,
            "type": f"n8n-nodes-base.{type_}",
            "typeVersion": 1,
            "parameters": {},
        }
        whole["nodes"].append(more)
        wire = {"node": name, "type": "main", "index": 0}
        whole["connections"]["Config"]["main"][0].append(wire)

    return fault


def both(*faults: Fault) -> Fault:
    def fault(whole: Template) -> None:
        for one in faults:
            one(whole)

    return fault


PAYLOAD = "parameters.body"
QUERY = "parameters.query"
FAULTS: dict[str, tuple[str, Fault]] = {
    "an expression with a }} inside": (
        "n8n cannot read",
        change("POST /prompt", PAYLOAD, "={{ JSON.stringify({a: {b: {}}}) }}"),
    ),
    "a template literal that ends with ?.": (
        "n8n cannot read",
        change("POST /prompt", PAYLOAD, "={{ `${$json.a?.b}` }}"),
    ),
    "an expression that is no JavaScript": (
        "n8n cannot read",
        change("POST /prompt", PAYLOAD, "={{ $json. }}"),
    ),
    "an expression without its =": ("no expression", change("POST /prompt", PAYLOAD, "{{ $json.payload }}")),
    "an unknown node in an expression": (
        "$('Nobody') does not exist",
        change("POST /prompt", PAYLOAD, "={{ $('Nobody').first().json }}"),
    ),
    "a later node in an expression": (
        "never runs before it",
        change("POST /prompt", PAYLOAD, "={{ $('Answer').first().json }}"),
    ),
    "code that does not compile": ("does not compile", code("Payload", "const = 1;")),
    "code with an unknown name": ("uses fetchAll", code("Payload", "await fetchAll();")),
    "code with what the sandbox lacks": ("uses require", code("Payload", "require('crypto');")),
    "code with an unknown node": ("$('Nobody') does not exist", code("Payload", "$('Nobody').first();")),
    "code with a later node": ("$('Answer') never runs", code("Payload", "$('Answer').first();")),
    "$env in an expression": (
        "$env",
        change("POST /prompt", "parameters.url", "={{ $env.COMFYUI_URL }}/prompt"),
    ),
    "$env in code": ("$env", code("Payload", "const url = $env.COMFYUI_URL;")),
    "a parameter too many": (
        "is given 3",
        replace("Begin", "parameters.options.queryReplacement", "[", "[1, "),
    ),
    "parameters as a text": (
        "not one expression",
        change("Begin", "parameters.options.queryReplacement", "={{ $json.a }},={{ $json.b }}"),
    ),
    "SQL with an expression": ("put together", replace("Begin", QUERY, "$2", "'{{ $json.graph_text }}'")),
    "SQL that is an expression": ("put together", change("Begin", QUERY, "=SELECT $1, $2, true AS recorded")),
    "another operation of the Postgres node": (
        "executeQuery",
        change("Begin", "parameters.operation", "upsert"),
    ),
    "a result that nobody looks at": ("does not look whether", rewire("Begin", ["Wait"])),
    "a result that leads nowhere": ("does not look whether", rewire("Begin")),
    "a wire to nobody": ("does not exist", rewire("Payload", ["Nobody"])),
    "a wire from nobody": ("there is no such node", rewire("Nobody", ["Payload"])),
    "a wire from an output too many": (
        "comes out of output 3|come out of output 3",
        rewire("Valid?", ["Begin"], ["Answer"], ["Answer"]),
    ),
    "a wire into a trigger": ("an input that", rewire("Payload", ["Webhook"])),
    "a broken link": ("no trigger leads to it", rewire("Payload", [])),
    "a trigger that passes Config by": ("Config is not what comes", rewire("Webhook", ["Prepare job"])),
    "nobody answers": ("nobody answers", rewire("Config", [])),
    "an error output that leads nowhere": (
        "output for errors",
        change("GET /view", "onError", "continueErrorOutput"),
    ),
    "an error that ends the execution": ("an error ends", change("GET /view", "onError", None)),
    "a request that waits for ever": ("no timeout", change("GET /view", "parameters.options", {})),
    "more tries than n8n makes": (
        "5 times",
        both(change("GET /view", "retryOnFail", True), change("GET /view", "maxTries", 9)),
    ),
    "a webhook without its id": ("no webhookId", change("Webhook", "webhookId", None)),
    "a wait without its id": ("no webhookId", change("Wait", "webhookId", "")),
    "a webhook for everybody": ("anybody may call", change("Webhook", "parameters.authentication", "none")),
    "a node version of tomorrow": ("newer than what n8n 1.123", change("POST /prompt", "typeVersion", 4.4)),
    "a command": ("not a node for templates", extra("Command", "executeCommand")),
    "a node of a community": (
        "not a node for templates",
        change("Payload", "type", "n8n-nodes-comfyui.comfyui"),
    ),
    "a credential of somebody's own": (
        "none of ours",
        change("Begin", "credentials", {"postgres": {"id": "x7", "name": "My database"}}),
    ),
    "no credential": ("no credential postgres", change("Begin", "credentials", None)),
    "a password in a URL": ("a password in a URL", config("comfyui_url", "http://me:hunter22@comfyui:8188")),
    "a Slack URL": ("a Slack URL", config("slack_webhook_url", "https://hooks.slack.com/services/T0/B0/x")),
    "a Slack URL as the default": (
        "a value of its own",
        config("slack_webhook_url", "={{ $vars.SLACK || 'x' }}"),
    ),
    "a password": ("has a value", config("smtp_password", "hunter22")),
    "a token in code": ("a password or key", code("Payload", "const api_key = 'abcdefgh';")),
    "a key in a header": ("a bearer token", code("Payload", "const headers = { a: 'Bearer abcdefgh' };")),
    "a key of a service": ("a key of a service", code("Payload", "const a = 'ghp_abcdefghijklmnopqrstuv';")),
    "a long random text": (
        "a long random text",
        code("Payload", "const a = 'A1b2C3d4E5f6G7h8J9k0L1m2N3p4q5';"),
    ),
    "a private key": ("a private key", config("extra", "-----BEGIN RSA PRIVATE KEY-----")),
    "a URL outside of Config": (
        "a URL outside",
        change("POST /prompt", "parameters.url", "http://comfyui:8188/prompt"),
    ),
    "a folder outside of Config": ("a folder outside", code("Payload", "const folder = '/data/shared';")),
    "an address outside of Config": (
        "a mail address outside",
        code("Payload", "const to = 'ops@example.com';"),
    ),
    "a parameter that nothing uses": ("nothing uses spare", config("spare", "1")),
    "a parameter that is missing": ("comfyui_url is asked for", config("comfyui_url", None)),
    "two nodes of one name": ("same name or id", change("Payload", "name", "Sent")),
    "no error workflow": ("errorWorkflow", setting("errorWorkflow", "")),
    "the old order of execution": ("executionOrder", setting("executionOrder", "v0")),
    "a workflow that is active": ("active", setting("active", True)),
    "data of somebody": ("somebody's execution", setting("pinData", {"Webhook": [{"json": {}}]})),
    "another workflow's id": ("none of ours", setting("id", "comfyflowOther01")),
    "no Config": ("there is no Config", change("Config", "type", "n8n-nodes-base.noOp")),
}


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    """What is found in the files, and in `generate` with each of the faults: one Node process for all."""
    cases = {name: template(name) for name in NAMES}
    for name, (_, fault) in FAULTS.items():
        cases[name] = copy.deepcopy(cases["comfyui-generate"])
        fault(cases[name])
    return findings(cases)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_a_template(name: str, told: dict[str, list[str]]) -> None:
    assert told[name] == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, told: dict[str, list[str]]) -> None:
    pattern = "|".join(re.escape(part) for part in FAULTS[name][0].split("|"))
    assert [finding for finding in told[name] if re.search(pattern, finding)] != [], told[name]


# --- n8n's parser -------------------------------------------------------------------------------------


def test_a_parser_that_is_only_half_there_is_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def npm(command: list[Any], *, cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command[2])
        modules = cwd / "node_modules"
        modules.mkdir(exist_ok=True)
        packages = {f"node_modules/{name}": {"version": v} for name, v in n8n_lint._PACKAGES.items()}
        (modules / ".package-lock.json").write_text(
            json.dumps({"packages": packages if len(calls) > 1 else {}})
        )
        return subprocess.CompletedProcess(command, 0, "", "npm was stopped")

    monkeypatch.setattr(n8n_lint, "user_cache_path", lambda _: tmp_path)
    monkeypatch.setattr(subprocess, "run", npm)
    with pytest.raises(n8n_lint.InstallFailed, match="npm was stopped"):
        n8n_lint.parser()
    folder = n8n_lint.parser()
    assert n8n_lint.parser() == folder
    assert calls == ["install", "install"]


# --- PostgreSQL -----------------------------------------------------------------------------------------


def test_statements_are_cut_where_they_end() -> None:
    sql = "SELECT ';', \"a;b\" -- c;\n; DO $do$ BEGIN x; END $do$; SELECT $2, $3 /* ; */;\n"
    assert [numbered(part) for part in statements(sql)] == [
        "SELECT ';', \"a;b\"",
        "DO $do$ BEGIN x; END $do$",
        "SELECT $1, $2",
    ]


def queries() -> list[tuple[str, str]]:
    """All Postgres nodes, as (template, node)."""
    return [
        (name, one["name"]) for name in NAMES for one in template(name)["nodes"] if kind(one) == "postgres"
    ]


@pytest.mark.parametrize("name", NAMES)
async def test_postgresql_takes_every_statement_and_the_last_one_says_recorded(
    name: str, database: str
) -> None:
    nodes = [one for one in template(name)["nodes"] if kind(one) == "postgres"]
    async with connected(database) as connection:
        for one in nodes:
            columns: list[str] = []
            for statement in statements(one["parameters"]["query"]):
                prepared = await connection.prepare(numbered(statement))
                columns = [attribute.name for attribute in prepared.get_attributes()]
                if statement.startswith("DO "):  # PostgreSQL looks into a body when it runs it
                    await connection.execute(statement)
            assert "recorded" in columns, one["name"]


def test_the_templates_use_the_database() -> None:
    assert {name for name, _ in queries()} >= {"comfyui-generate", "comfyui-status", "comfyui-healthcheck"}
