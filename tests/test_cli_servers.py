"""What each of several servers is and has, by the command."""

from __future__ import annotations

import pytest
from commands import Cli

from comfyflow.cli import servers as module
from comfyflow.sim import Sim, login_page, stall

AWAY = "http://127.0.0.1:9"


async def test_each_server_is_told_with_what_it_has(cli: Cli, server: Sim) -> None:
    async with Sim(profile="0.3.64") as other:
        ended = await cli("servers", "--server", server.url, "--server", f"{other.url}#weight=2")
        assert ended.code == 0
        header, first, second = ended.out.splitlines()
        assert header.split()[:3] == ["SERVER", "HEALTH", "VERSION"]
        assert first.split()[:3] == [server.url, "up", "0.27.0"]
        assert second.split()[:3] == [other.url, "up", "0.3.64"]
        one, two = (
            await cli("servers", "--server", server.url, "--server", f"{other.url}#weight=2", "--json")
        ).document["servers"]
    assert (one["weight"], two["weight"], one["running"], one["error"]) == (1.0, 2.0, 0, None)
    assert one["node_classes"] > 20
    assert one["model_files"] == 3
    assert one["devices"][0]["vram_total"] > 0
    assert sum(one["model_counts"].values()) >= one["model_files"]
    assert one["seconds"] > 0


async def test_model_files_are_named_on_request(cli: Cli, server: Sim) -> None:
    ended = await cli("servers", "--models")
    assert f"{server.url} CheckpointLoaderSimple.ckpt_name: " in ended.out
    document = (await cli("servers", "--models", "--json")).document
    assert "sim.safetensors" in document["servers"][0]["models"]["CheckpointLoaderSimple.ckpt_name"]


async def test_one_that_does_not_answer_is_told_beside_the_others(
    cli: Cli, server: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT", 0.5)
    ended = await cli("servers", "--server", AWAY, "--server", server.url)
    assert ended.code == 4
    assert [line.split()[1] for line in ended.out.splitlines()[1:3]] == ["away", "up"]
    assert f"{AWAY}: {AWAY} does not answer (connection refused)" in ended.out
    server.faults.add("GET", "/queue", stall())
    ended = await cli("servers", "--server", server.url, "--json")
    assert ended.code == 4
    assert "does not answer in 0.5 s" in ended.document["servers"][0]["error"]["message"]
    server.faults.add("GET", "/object_info", login_page())
    assert (await cli("servers")).code == 4


async def test_health_is_for_one(cli: Cli, server: Sim) -> None:
    ended = await cli("health", "--server", AWAY, "--server", server.url)
    assert ended.code == 2
    assert "`comfyflow servers`" in ended.err


async def test_the_environment_names_several(cli: Cli, server: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Sim() as other:
        monkeypatch.setenv("COMFYFLOW_SERVERS", f"{server.url}, {other.url}#ahead=1")
        told = (await cli("servers", "--json")).document["servers"]
        assert [one["server"] for one in told] == [server.url, other.url]
        ended = await cli(
            "run", cli.file({"1": {"class_type": "SimText", "inputs": {"text": "a"}}}), "--wait", "--json"
        )
        assert ended.code == 0
        assert ended.document["server"] in {server.url, other.url}
        assert (await cli("wait", ended.document["prompt_id"])).code == 0
        assert (await cli("status", ended.document["prompt_id"])).code == 0


@pytest.mark.parametrize(
    "text",
    [
        "http://a:1#weight=-1",
        "http://a:1#wait=2",
        "http://a:1#ahead=x",
        "http://a:1 http://a:1",
    ],
)
async def test_servers_that_cannot_be_used_are_told(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("COMFYFLOW_SERVERS", text)
    ended = await cli("servers")
    assert ended.code == 2
    assert "COMFYFLOW_SERVERS: " in ended.err
