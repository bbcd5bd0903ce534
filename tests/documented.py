"""Whether an answer of the webhooks is one that docs/webhook-api.yaml tells of."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.jsonschema import DRAFT202012

PAGE = Path(__file__).parent.parent / "docs" / "webhook-api.yaml"
_NAME = "urn:comfyflow:webhook-api"


@cache
def document() -> Any:
    """The whole page."""
    return yaml.safe_load(PAGE.read_text(encoding="utf-8"))


def assert_documented(method: str, path: str, status: int, media_type: str, body: Any) -> None:
    """`path` is behind .../webhook; `body` is what JSON says, or the text when it is no JSON."""
    (operation,) = [
        f"#/paths/{_escaped(known)}/{method.lower()}"
        for known in document()["paths"]
        if known.endswith(path) and method.lower() in document()["paths"][known]
    ]
    responses = _at(f"{operation}/responses")
    assert str(status) in responses, f"{method} {path} may not answer {status}: {body}"
    response = _followed(f"{operation}/responses/{status}")
    content = _at(response).get("content", {})
    media_type = "*/*" if "*/*" in content else media_type
    assert media_type in content, f"{method} {path} {status} is told to be {list(content)}, not {media_type}"
    schema = {"$ref": f"{_NAME}{response}/content/{_escaped(media_type)}/schema"}
    fault = best_match(Draft202012Validator(schema, registry=_registry()).iter_errors(body))
    if fault is not None:
        raise AssertionError(f"{method} {path} {status}: {fault.message} at {fault.json_path} of {body}")


@cache
def _registry() -> Any:
    return Registry[Any]().with_resource(_NAME, DRAFT202012.create_resource(document()))


def _at(pointer: str) -> Any:
    """What a JSON pointer leads to (RFC 6901)."""
    found = document()
    for part in pointer.removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def _followed(pointer: str) -> str:
    """A pointer to the thing itself, where one to a reference was given."""
    while "$ref" in _at(pointer):
        pointer = _at(pointer)["$ref"]
    return pointer


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
