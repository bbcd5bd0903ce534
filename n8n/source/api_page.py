"""docs/webhook-api.yaml for people: the text of docs/webhook-api.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

API = Path(__file__).resolve().parents[2] / "docs" / "webhook-api.yaml"
_HEAD = """# The webhooks of n8n

Made by `./dev n8n` from [webhook-api.yaml](webhook-api.yaml) (OpenAPI 3.1), which Swagger UI, code generators
and our tests read. How to set the webhooks up: [n8n/README.md](../n8n/README.md).
"""


def page() -> str:
    """The whole page."""
    api = yaml.safe_load(API.read_text(encoding="utf-8"))
    lines = [_HEAD, api["info"]["description"], "", *_security(api)]
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            lines += ["", *_operation(api, f"{method.upper()} /webhook{path}", operation)]
    lines += ["", "## Values", *_schemas(api)]
    return "\n".join(lines).rstrip() + "\n"


def _security(api: Mapping[str, Any]) -> Iterator[str]:
    for scheme in api["components"]["securitySchemes"].values():
        yield f"Every request has the header `{scheme['name']}`. {scheme['description']}"


def _operation(api: Mapping[str, Any], title: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}"
    yield f"\n{operation['summary']}. {operation['description']}"
    yield "\n| parameter | where | what |\n| --- | --- | --- |"
    for parameter in operation.get("parameters", ()):
        told = parameter.get("description") or f"such as `{parameter['example']}`"
        yield f"| `{parameter['name']}` | {parameter['in']} | {told} |"
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        yield from _properties(api, content["schema"], "body")
        yield f"\n```json\n{_json(content['example'])}\n```"
    yield "\n| answer | when |\n| --- | --- |"
    answers = {status: _followed(api, answer) for status, answer in operation["responses"].items()}
    for status, answer in answers.items():
        yield f"| {status} | {answer['description']} |"
    for status, answer in answers.items():
        yield from _examples(status, answer)


def _properties(api: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
    for name, part in _followed(api, schema)["properties"].items():
        whole = _followed(api, part)
        default = f" Default: {_json(whole['default'])}." if "default" in whole else ""
        yield f"| `{name}` | {place} | {whole.get('description', '')}{default} |"


def _examples(status: str, answer: Mapping[str, Any]) -> Iterator[str]:
    for kind in answer["content"].values():
        for example in kind.get("examples", {}).values():
            yield f"\n{status}: {example['summary']}\n\n```json\n{_json(example['value'])}\n```"


def _schemas(api: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in api["components"]["schemas"].items():
        described = [key for key, part in schema.get("properties", {}).items() if "description" in part]
        if name in ("Request", "Workflow") or not described:
            continue
        yield f"\n{name}:\n\n| key | what |\n| --- | --- |"
        yield from (f"| `{key}` | {schema['properties'][key]['description']} |" for key in described)


def _followed(api: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in part:
        found: Any = api
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        part = found
    return part


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
