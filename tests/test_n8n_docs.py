"""What is said about the n8n templates: the OpenAPI document, its page, the compose file, the credentials."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import api_page
import pytest
import yaml
from documented import assert_documented, document
from openapi_spec_validator import validate

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "examples" / "docker-compose.yml").read_text(encoding="utf-8"))
README = (ROOT / "n8n" / "README.md").read_text(encoding="utf-8")


def examples() -> list[tuple[str, str, str, str, Any]]:
    """Method, path, status, media type, body."""
    found = []
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                named = document()["components"]["responses"][answer["$ref"].rpartition("/")[2]]
                for kind, content in named["content"].items():
                    bodies = [one["value"] for one in content.get("examples", {}).values()]
                    bodies += [content["example"]] if "example" in content else []
                    assert bodies, f"{method} {path} {status} has no example"
                    found += [(method, path, status, kind, body) for body in bodies]
    return found


def template(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "n8n" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def test_the_api_is_described_in_openapi() -> None:
    validate(document())


@pytest.mark.parametrize("example", examples(), ids=lambda example: f"{example[1]}-{example[2]}")
def test_each_example_is_an_answer_that_the_document_allows(example: tuple[str, str, str, str, Any]) -> None:
    method, path, status, kind, body = example
    assert_documented(method, path.removeprefix("/"), int(status), kind, body)


def test_an_answer_with_more_than_is_told_is_refused() -> None:
    *place, body = examples()[0]
    method, path, status, kind = place
    with pytest.raises(AssertionError, match="surprise"):
        assert_documented(method, path.removeprefix("/"), int(status), kind, {**body, "surprise": 1})


def test_the_page_is_made_of_the_document() -> None:
    assert api_page.API.with_suffix(".md").read_text(encoding="utf-8") == api_page.page()


@pytest.mark.parametrize(
    ("name", "path"),
    [("comfyui-generate", "comfyflow/generate"), ("comfyui-status", "comfyflow/status")],
)
def test_the_documented_webhooks_are_those_of_the_templates(name: str, path: str) -> None:
    (hook,) = [node for node in template(name)["nodes"] if node["name"] == "Webhook"]
    method = hook["parameters"]["httpMethod"].lower()
    assert hook["parameters"]["path"] == path
    assert list(document()["paths"][f"/{path}"]) == [method]
    assert f"/webhook/{path}" in README


def test_the_readme_tells_each_parameter_with_its_default() -> None:
    for name in ("comfyui-generate", "comfyui-status"):
        (config,) = [node for node in template(name)["nodes"] if node["name"] == "Config"]
        for row in config["parameters"]["assignments"]["assignments"]:
            (told,) = re.findall(rf"^\| `{row['name']}` \| (.*?) \|", README, re.MULTILINE)
            value = str(row["value"]).lower() if isinstance(row["value"], bool) else str(row["value"])
            default = re.sub(r"^=.*\|\| '(.*)' }}$", r"\1", value) or "empty"
            assert told.strip("`") == default


def test_the_readme_names_each_variable_of_n8n() -> None:
    used = set()
    for name in ("generate", "status", "healthcheck", "error-alert"):
        used |= set(re.findall(r"\$vars\.(\w+)", (ROOT / "n8n" / f"comfyui-{name}.json").read_text("utf-8")))
    assert used
    assert {name for name in used if f"`{name}`" not in README} == set()


def test_the_stack_is_what_the_templates_expect() -> None:
    services = COMPOSE["services"]
    assert {"comfyui", "n8n", "postgres"} == services.keys()
    assert all(service["networks"] == ["comfyflow"] for service in services.values())
    assert services["comfyui"]["expose"] == ["8188"]
    n8n = services["n8n"]
    assert "./shared:/data/shared" in n8n["volumes"]
    assert n8n["environment"]["N8N_RESTRICT_FILE_ACCESS_TO"] == "/data/shared"
    assert n8n["environment"]["N8N_DEFAULT_BINARY_DATA_MODE"] == "filesystem"


def test_the_stack_makes_all_tables() -> None:
    mounted = [volume.split(":")[0] for volume in COMPOSE["services"]["postgres"]["volumes"][1:]]
    assert mounted == [f"../sql/{file.name}" for file in sorted((ROOT / "sql").glob("0*.sql"))]


def test_every_volume_of_the_stack_is_declared() -> None:
    named = {
        volume.split(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    }
    assert named == COMPOSE["volumes"].keys()


def test_the_stack_holds_no_password() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|KEY", name) or str(value).startswith("${"), name
