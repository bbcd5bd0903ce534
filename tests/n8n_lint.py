"""What is wrong with a template of n8n/, without running it: `findings` for many at once."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from plain_node import node_program
from platformdirs import user_cache_path

Node = Mapping[str, Any]

# n8n's own parser of expressions (of n8n 2.41.1), and what it stands on.
TOURNAMENT = "1.13.0"
_PACKAGES = {
    "@n8n/tournament": TOURNAMENT,
    "ast-types": "0.16.1",
    "esprima-next": "5.8.4",
    "recast": "0.22.0",
}
_PATIENCE = 120  # seconds; two are usual

# The newest version of each kind that n8n 1.123 has: 2.x has them as well. Other kinds are not for templates
# (executeCommand and localFileTrigger are off in 2.x).
NEWEST = {
    "code": 2,
    "crypto": 1,
    "emailSend": 2.1,
    "errorTrigger": 1,
    "httpRequest": 4.3,
    "if": 2.3,
    "noOp": 1,
    "postgres": 2.6,
    "readWriteFile": 1,
    "respondToWebhook": 1.5,
    "scheduleTrigger": 1.3,
    "set": 3.4,
    "stickyNote": 1,
    "stopAndError": 1,
    "switch": 3.4,
    "wait": 1.1,
    "webhook": 2.1,
}
TRIGGERS = {"webhook", "scheduleTrigger", "errorTrigger"}
CREDENTIALS = {
    "postgres": {"id": "comfyflowPg00001", "name": "comfyflow PostgreSQL"},
    "smtp": {"id": "comfyflowSmtp001", "name": "comfyflow SMTP"},
    "httpHeaderAuth": {"id": "comfyflowKey0001", "name": "comfyflow webhook key"},
}
NEEDED = {"postgres": "postgres", "emailSend": "smtp", "webhook": "httpHeaderAuth"}
OUTSIDE = {
    "crypto",
    "emailSend",
    "httpRequest",
    "postgres",
    "readWriteFile",
}  # what fails for others' reasons
GOES_ON = {"continueRegularOutput", "continueErrorOutput"}
UNCHECKED = {"Record download"}  # the end is recorded as well, and that is looked at
ALERT = "comfyflowAlert01"
NAMES = {
    "comfyflowGener01": "comfyflow: generate",
    "comfyflowStatus1": "comfyflow: status",
    "comfyflowHealth1": "comfyflow: health check",
    ALERT: "comfyflow: error alert",
}
SECRETS = {
    "a password in a URL": r"://[^/\s:@'\"`]+:[^/\s@'\"`]+@",
    "a Slack URL": r"hooks\.slack\.com|/services/T\w+/B\w+",
    "a Slack token": r"\bxox[a-z]-",
    "a key of a service": r"\b(?:sk|pk|ghp|gho|glpat|AKIA|AIza)[-_]?\w{16,}",
    "a bearer token": r"(?i)\b(?:bearer|basic)\s+[\w+/=.-]{8,}",
    "a private key": r"-----BEGIN",
    "a password or key": (
        r"(?i)\b\w*(?:password|passwd|secret|token|api_?key)\w*['\"]?\s*[:=]\s*['\"][^'\"\s$={]{3,}"
    ),
    "a long random text": r"\b(?=\w*\d)(?=\w*[a-z])(?=\w*[A-Z])[A-Za-z0-9]{28,}\b",
}
_SECRET_NAMES = re.compile(r"(?i)password|passwd|secret|token|api_?key|webhook_url|credential")
LITERALS = {
    "a URL": r"https?://\w",
    "a folder": r"(?<![\w./])/(?:data|files|home|mnt|opt|root|srv|tmp|usr|var)\b",
    "a mail address": r"\b[\w.+-]+@[\w-]+\.\w{2,}",
}


class InstallFailed(Exception):
    """npm could not install n8n's parser. The text has the end of what it said."""


def kind(node: Node) -> str:
    """`code`, `if`, ...: the type without its package."""
    return str(node["type"]).removeprefix("n8n-nodes-base.")


def findings(templates: Mapping[str, Any]) -> dict[str, list[str]]:
    """All that is wrong with each of these, as short sentences that begin with the name of the node. One Node
    process for all of them."""
    compiled = _compiled(templates)
    return {label: [*_structure(template), *compiled[label]] for label, template in templates.items()}


# --- what JavaScript tells ----------------------------------------------------------------------------


def _compiled(templates: Mapping[str, Any]) -> dict[str, list[str]]:
    script = Path(__file__).with_name("n8n_lint.js")
    given = json.dumps({"modules": str(parser()), "templates": templates})
    done = subprocess.run(
        [node_program(), script], input=given, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, list[str]] = json.loads(done.stdout)
    return told


def parser() -> Path:
    """The folder that has n8n's parser in `node_modules`: installed once, kept in the user's cache. Raises
    InstallFailed. Two that come at once follow one another; a half install is begun again."""
    folder = user_cache_path("comfyflow") / f"tournament-{TOURNAMENT}"
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it however the process ends
        if not _is_whole(folder):
            _install(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """npm writes `.package-lock.json` into node_modules when all is there."""
    whole = folder / "node_modules" / ".package-lock.json"
    if not whole.is_file():
        return False
    locked = json.loads(whole.read_text(encoding="utf-8"))["packages"]
    return all(locked.get(f"node_modules/{name}", {}).get("version") == v for name, v in _PACKAGES.items())


def _install(folder: Path) -> None:
    package = {"name": "n8n-parser-for-tests", "private": True, "dependencies": _PACKAGES}
    (folder / "package.json").write_text(json.dumps(package), encoding="utf-8")
    node = node_program()
    npm = next(node.parent.parent.rglob("npm-cli.js"))
    command = [
        str(node),
        str(npm),
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-package-lock",
    ]
    path = {"PATH": f"{node.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode != 0 or not _is_whole(folder):
        raise InstallFailed(
            f"npm could not install {_PACKAGES} (exit code {done.returncode}): {done.stderr[-4000:]}"
        )


# --- what the structure tells -------------------------------------------------------------------------


def _structure(template: Mapping[str, Any]) -> Iterator[str]:
    nodes = {node["name"]: node for node in template["nodes"]}
    if len(nodes) != len(template["nodes"]) or len({node["id"] for node in template["nodes"]}) != len(nodes):
        yield "two nodes have the same name or id"
    yield from _whole(template)
    yield from _wires(template, nodes)
    yield from _reach(template, nodes)
    for node in template["nodes"]:
        rules = (_known, _goes_on, _credentials, _postgres, _literals, _secrets)
        for rule in rules:
            yield from (f"{node['name']}: {finding}" for finding in rule(node))
    yield from _answered_errors(template, nodes)
    yield from _checked_results(template, nodes)
    yield from _parameters(template, nodes)


def _whole(template: Mapping[str, Any]) -> Iterator[str]:
    if NAMES.get(template["id"]) != template["name"]:
        yield f"the workflow is {template['id']} {template['name']!r}, which is none of ours"
    settings = template["settings"]
    if settings.get("executionOrder") != "v1":
        yield "executionOrder is not v1"
    if settings.get("errorWorkflow") != (None if template["id"] == ALERT else ALERT):
        yield f"errorWorkflow is {settings.get('errorWorkflow')!r}"
    if template["active"] or template["pinData"] or template.get("staticData"):
        yield "it is active, or has data of somebody's execution in it"


def targets(template: Mapping[str, Any], name: str) -> list[list[str]]:
    """The nodes behind each output of a node."""
    outputs = template["connections"].get(name, {}).get("main", [])
    return [[wire["node"] for wire in wires or ()] for wires in outputs]


def _outputs(node: Node) -> int:
    """How many outputs a node has, without that for errors."""
    if kind(node) == "switch":
        rules = node["parameters"]["rules"]["values"]
        fallback = node["parameters"].get("options", {}).get("fallbackOutput")
        return len(rules) + int(fallback == "extra")
    return {"if": 2, "stickyNote": 0, "stopAndError": 0}.get(kind(node), 1)


def _wires(template: Mapping[str, Any], nodes: Mapping[str, Node]) -> Iterator[str]:
    for source, kinds in template["connections"].items():
        if source not in nodes or set(kinds) != {"main"}:
            yield f"{source}: wires come out of it, and there is no such node or output"
            continue
        node = nodes[source]
        has = _outputs(node) + (node.get("onError") == "continueErrorOutput")
        if len(kinds["main"]) > has:
            yield f"{source}: wires come out of output {len(kinds['main'])}, and it has {has}"
        wires = [wire for wires in kinds["main"] for wire in wires or ()]
        yield from _ends_of(source, wires, nodes)


def _ends_of(source: str, wires: list[dict[str, Any]], nodes: Mapping[str, Node]) -> Iterator[str]:
    for wire in wires:
        target = nodes.get(wire["node"])
        if target is None:
            yield f"{source}: is wired to {wire['node']!r}, which does not exist"
        elif wire["index"] or wire["type"] != "main" or kind(target) in TRIGGERS | {"stickyNote"}:
            yield f"{source}: is wired to an input that {wire['node']} does not have"


def reached(template: Mapping[str, Any], starts: list[str]) -> set[str]:
    """These nodes and all behind them."""
    seen: set[str] = set()
    new = set(starts)
    while new:
        seen |= new
        new = {name for start in new for names in targets(template, start) for name in names} - seen
    return seen


def _reach(template: Mapping[str, Any], nodes: Mapping[str, Node]) -> Iterator[str]:
    triggers = [name for name, node in nodes.items() if kind(node) in TRIGGERS]
    there = reached(template, triggers)
    for name, node in nodes.items():
        if name not in there and kind(node) != "stickyNote":
            yield f"{name}: no trigger leads to it"
    for name in triggers:
        if targets(template, name) != [["Config"]]:
            yield f"{name}: Config is not what comes behind it"
        answers = {kind(nodes[other]) for other in reached(template, [name]) if other in nodes}
        waits = nodes[name]["parameters"].get("responseMode") == "responseNode"
        if waits and "respondToWebhook" not in answers:
            yield f"{name}: nobody answers"


def _known(node: Node) -> Iterator[str]:
    newest = NEWEST.get(kind(node))
    if newest is None:
        yield f"{node['type']} is not a node for templates"
    elif node["typeVersion"] > newest:
        yield f"version {node['typeVersion']} of {kind(node)} is newer than what n8n 1.123 has ({newest})"
    if kind(node) in {"webhook", "wait"} and not node.get("webhookId"):
        yield "it has no webhookId"
    if kind(node) == "webhook" and node["parameters"].get("authentication") != "headerAuth":
        yield "anybody may call it: authentication is not headerAuth"
    if "$env" in json.dumps(node["parameters"]):
        yield "it asks for $env, which n8n 2.x refuses"


def _goes_on(node: Node) -> Iterator[str]:
    if kind(node) in OUTSIDE and node.get("onError") not in GOES_ON:
        yield "an error ends the execution here, and nobody is told properly"
    if kind(node) == "httpRequest" and "timeout" not in node["parameters"].get("options", {}):
        yield "it has no timeout"
    if node.get("retryOnFail") and (node.get("maxTries", 3) > 5 or node.get("waitBetweenTries", 0) > 5000):
        yield "n8n tries at most 5 times, 5 s apart"


def _credentials(node: Node) -> Iterator[str]:
    given = node.get("credentials", {})
    for name, credential in given.items():
        if CREDENTIALS.get(name) != credential:
            yield f"the credential {name} is {credential}, which is none of ours"
    needed = NEEDED.get(kind(node))
    if needed and needed not in given:
        yield f"it has no credential {needed}"


def _postgres(node: Node) -> Iterator[str]:
    if kind(node) != "postgres":
        return
    query = node["parameters"].get("query", "")
    if node["parameters"].get("operation") != "executeQuery" or not query:
        yield "it does not say executeQuery"
    if query.startswith("=") or "{{" in query:
        yield "the SQL is put together from texts: use parameters"


def texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a value, each with the name of what it is the value of."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        named = str(value.get("name", "")) if "value" in value else ""
        for key, part in value.items():
            yield from texts(part, named if key == "value" and named else key)
    elif isinstance(value, list):
        for part in value:
            yield from texts(part, name)


@cache
def _looks_like(text: str, sort: str) -> tuple[tuple[str, str], ...]:
    """What is in a text, and how it begins. Kept: many templates have the same code."""
    patterns = {"literal": LITERALS, "secret": SECRETS}[sort]
    found = ((what, re.search(pattern, text)) for what, pattern in patterns.items())
    return tuple((what, match[0][:40]) for what, match in found if match)


def _literals(node: Node) -> Iterator[str]:
    if node["name"] == "Config" or kind(node) == "stickyNote":
        return
    for name, text in texts(node["parameters"]):
        yield from (
            f"{name}: {what} outside of Config: {found!r}" for what, found in _looks_like(text, "literal")
        )


def _secrets(node: Node) -> Iterator[str]:
    for name, text in texts({key: value for key, value in node.items() if key not in {"id", "webhookId"}}):
        yield from (f"{name}: looks like {what}" for what, _ in _looks_like(text, "secret"))
        plain = text not in {"", "headerAuth"} and not text.startswith("=")
        if _SECRET_NAMES.search(name) and plain and "\n" not in text:
            yield f"{name}: has a value"
        if _SECRET_NAMES.search(name) and text.startswith("=") and re.search(r"'[^']+'|\"[^\"]+\"", text):
            yield f"{name}: has a value of its own"


def _answered_errors(template: Mapping[str, Any], nodes: Mapping[str, Node]) -> Iterator[str]:
    for name, node in nodes.items():
        if node.get("onError") == "continueErrorOutput":
            behind = targets(template, name)
            if len(behind) <= _outputs(node) or not behind[_outputs(node)]:
                yield f"{name}: its output for errors leads nowhere"


def _checked_results(template: Mapping[str, Any], nodes: Mapping[str, Node]) -> Iterator[str]:
    """PostgreSQL away: n8n hands on what came in, by the output for success."""
    for name, node in nodes.items():
        if kind(node) != "postgres" or name in UNCHECKED:
            continue
        behind = [nodes[other] for outputs in targets(template, name) for other in outputs if other in nodes]
        if not behind or not all(_looks_at_record(other) for other in behind):
            yield f"{name}: the node behind it does not look whether the statement ran (recorded)"


def _looks_at_record(node: Node) -> bool:
    return kind(node) in {"code", "if"} and bool(re.search(r"\.recorded\b", json.dumps(node["parameters"])))


def _parameters(template: Mapping[str, Any], nodes: Mapping[str, Node]) -> Iterator[str]:
    config = nodes.get("Config")
    if config is None or kind(config) != "set":
        yield "there is no Config"
        return
    rows = config["parameters"]["assignments"]["assignments"]
    given = {row["name"] for row in rows}
    others = [
        text for node in template["nodes"] if node is not config for _, text in texts(node["parameters"])
    ]
    words = frozenset[str]().union(*map(_words, others))
    yield from (f"Config: nothing uses {name}" for name in sorted(given - words))
    asked = frozenset[str]().union(*map(_asked_of_config, others))
    if any(kind(node) == "errorTrigger" for node in nodes.values()):
        given |= {"execution", "trigger", "workflow"}  # what n8n tells of an error goes through Config
    yield from (f"Config: {name} is asked for, and it is not there" for name in sorted(asked - given))


@cache
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


@cache
def _asked_of_config(text: str) -> frozenset[str]:
    """The parameters that an expression or code reads."""
    names = re.findall(r"\$\('Config'\)\.(?:first\(\)|item)\.json\??\.(\w+)", text)
    if "const config = $('Config').first().json" in text:
        names += re.findall(r"\bconfig\??\.(\w+)", text)
    return frozenset(names)
