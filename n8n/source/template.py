"""The words that the templates are written in: nodes, wires, parameters -> the JSON that n8n imports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from javascript import with_needed

SOURCE = Path(__file__).parent
ALERT = "comfyflowAlert01"  # the error workflow of the others
RETRY_AT_ONCE: Mapping[str, Any] = {"retryOnFail": True, "maxTries": 3, "waitBetweenTries": 2000}
GO_ON: Mapping[str, Any] = {"onError": "continueRegularOutput"}  # what comes out has to be looked at

# The newest versions of nodes that n8n 1.123 and 2.x both have, or older ones that do the same.
VERSIONS: Mapping[str, float] = {
    "code": 2,
    "crypto": 1,
    "emailSend": 2.1,
    "errorTrigger": 1,
    "httpRequest": 4.2,
    "if": 2.2,
    "noOp": 1,
    "postgres": 2.6,
    "readWriteFile": 1,
    "respondToWebhook": 1.1,
    "scheduleTrigger": 1.2,
    "set": 3.4,
    "stickyNote": 1,
    "stopAndError": 1,
    "switch": 3.2,
    "wait": 1.1,
    "webhook": 2,
}
# Named and empty: whoever imports a template makes them (n8n/credentials/example.json).
POSTGRES = {"postgres": {"id": "comfyflowPg00001", "name": "comfyflow PostgreSQL"}}
SMTP = {"smtp": {"id": "comfyflowSmtp001", "name": "comfyflow SMTP"}}
KEY = {"httpHeaderAuth": {"id": "comfyflowKey0001", "name": "comfyflow webhook key"}}

_STEP = 220  # pixels between two nodes


class Template:
    """One workflow in the making. Places are (column, row); `id` and the names make all ids, so the same
    source gives the same file."""

    def __init__(self, id: str, name: str, **settings: Any) -> None:
        self.id, self.name = id, name
        self._settings = {"executionOrder": "v1", "saveDataErrorExecution": "all", **settings}
        self._nodes: list[dict[str, Any]] = []
        self._wires: dict[str, dict[str, list[list[dict[str, Any]]]]] = {}

    def node(
        self, name: str, kind: str, place: tuple[float, float], parameters: Mapping[str, Any], **more: Any
    ) -> str:
        """Add a node; `more` are keys of the node itself, such as `credentials` or `onError`. Its name."""
        column, row = place
        at = [int(column * _STEP), int(row * _STEP)]
        base = {
            "parameters": dict(parameters),
            "id": self.unique(name),
            "name": name,
            "type": f"n8n-nodes-base.{kind}",
            "typeVersion": VERSIONS[kind],
            "position": at,
        }
        self._nodes.append(base | more)
        return name

    def link(self, *names: str, out: int = 0) -> None:
        """Wire nodes one after the other: the first from its output `out`, the others from their first."""
        for source, target in pairwise(names):
            outputs = self._wires.setdefault(source, {"main": []})["main"]
            outputs.extend([] for _ in range(out + 1 - len(outputs)))
            outputs[out].append({"node": target, "type": "main", "index": 0})
            out = 0

    def unique(self, word: str) -> str:
        """An id that is always the same for this word of this template."""
        return str(uuid5(NAMESPACE_URL, f"comfyflow:n8n:{self.id}:{word}"))

    def to_json(self) -> str:
        """The file, as n8n imports it and exports it again."""
        whole = {
            "id": self.id,
            "name": self.name,
            "active": False,
            "nodes": self._nodes,
            "connections": self._wires,
            "settings": self._settings,
            "pinData": {},
            "tags": [],
        }
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"

    # kinds of nodes that several templates have

    def config(self, place: tuple[float, float], **values: Any) -> str:
        """All parameters of a template. The item that came in goes on beside them, its binary data too."""
        kinds = {bool: "boolean", int: "number", float: "number", str: "string"}
        rows = [
            {"id": self.unique(f"Config.{name}"), "name": name, "value": value, "type": kinds[type(value)]}
            for name, value in values.items()
        ]
        more = {"includeOtherFields": True, "options": {"stripBinary": False}}
        return self.node("Config", "set", place, {"assignments": {"assignments": rows}, **more})

    def code(self, name: str, place: tuple[float, float], *files: str) -> str:
        """A Code node that runs once for all items: the last of these files of n8n/source, with what it needs
        of the others."""
        *shared, own = [(SOURCE / file).read_text(encoding="utf-8").strip() for file in files]
        return self.node(name, "code", place, {"jsCode": with_needed(own, "\n".join(shared))})

    def sql(self, name: str, place: tuple[float, float], query: str, *values: str) -> str:
        """A statement with parameters: expressions. An error goes on as an item, or, when PostgreSQL is away,
        the input does: so every statement gives `recorded: true`, and the next node looks for it."""
        options = {"queryReplacement": f"={{{{ [{', '.join(values)}] }}}}"}
        parameters = {"operation": "executeQuery", "query": query.strip(), "options": options}
        more = {"alwaysOutputData": True, "executeOnce": True, "credentials": POSTGRES, **GO_ON}
        return self.node(name, "postgres", place, parameters, **more)

    def get(self, name: str, place: tuple[float, float], url: str, seconds: int) -> str:
        """A request whose answer goes on as {statusCode, headers, data: text}, whatever the status; where
        there is none, as {error}. Text, because ComfyUI writes NaN and integers that JavaScript rounds."""
        return self._http(name, place, {"url": url}, seconds, responseFormat="text")

    def post(self, name: str, place: tuple[float, float], url: str, seconds: int, body: str) -> str:
        """The same with a body of JSON text. Then n8n hands on JSON as `body`, other text as `data`: asked
        for text it would give the stream itself."""
        sent = {"sendBody": True, "contentType": "raw", "rawContentType": "application/json", "body": body}
        return self._http(name, place, {"method": "POST", "url": url, **sent}, seconds)

    def _http(
        self, name: str, place: tuple[float, float], what: Mapping[str, Any], seconds: int, **more: str
    ) -> str:
        answer = {"response": {"fullResponse": True, "neverError": True, **more}}
        options = {"timeout": seconds * 1000, "response": answer}
        return self.node(name, "httpRequest", place, {**what, "options": options}, **GO_ON)

    def either(self, name: str, place: tuple[float, float], condition: str) -> str:
        """A node with two outputs: the expression is true, or it is not."""
        rules = self._rule(name, condition)
        return self.node(name, "if", place, {"conditions": rules, "options": {}})

    def switch(self, name: str, place: tuple[float, float], value: str, *ways: str) -> str:
        """A node with an output for each value that the expression may have, in this order."""
        rows = [
            {"conditions": self._rule(way, f"{value} === '{way}'"), "renameOutput": True, "outputKey": way}
            for way in ways
        ]
        return self.node(name, "switch", place, {"mode": "rules", "rules": {"values": rows}, "options": {}})

    def note(self, name: str, place: tuple[float, float], text: str) -> None:
        """A note on the canvas."""
        self.node(name, "stickyNote", place, {"content": text, "width": 420, "height": 200})

    def _rule(self, word: str, condition: str) -> dict[str, Any]:
        options = {"caseSensitive": True, "leftValue": "", "typeValidation": "loose", "version": 2}
        operator = {"type": "boolean", "operation": "true", "singleValue": True}
        row = {
            "id": self.unique(f"rule {word}"),
            "leftValue": f"={{{{ {condition} }}}}",
            "rightValue": "",
            "operator": operator,
        }
        return {"options": options, "conditions": [row], "combinator": "and"}
