"""The command line as a whole, and the commands about the server and the workflow file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from commands import EXAMPLE, Cli, command, picture, with_node

from comfyflow.sim import Sim

HEAVY = {"aiohttp", "anyio", "asyncpg", "msgspec", "pydantic", "rich", "stamina", "websockets"}


async def test_cancel_ends_a_waiting_job_and_only_once(cli: Cli, server: Sim) -> None:
    await server.hold()
    first = (await cli("run", cli.file(picture("one")))).lines[0]
    second = (await cli("run", cli.file(picture("two")))).lines[0]
    assert (await cli("cancel", second)).code in (0, 1)
    again = await cli("cancel", second, "--json")
    assert (again.code, again.document["cancelled"]) == (1, False)
    await server.release()
    assert (await cli("wait", first, "--quiet")).code == 0
    assert list(server.executed) == [first]


async def test_cancel_ends_a_running_job(cli: Cli, server: Sim) -> None:
    file = cli.file(with_node("3", "SimSleep", seconds=30.0))
    prompt_id = (await cli("run", file)).lines[0]
    await server.wait_for(lambda: prompt_id in server.executed)
    ended = await cli("cancel", prompt_id)
    assert (ended.code, ended.lines) == (0, [f"{prompt_id}: cancelled"])
    assert (await cli("wait", prompt_id, "--quiet")).code == 6
    assert (await cli("status", prompt_id)).lines == [f"{prompt_id}: cancelled"]


async def test_validate_tells_what_it_found(cli: Cli) -> None:
    ended = await cli("validate", cli.file(picture()), "--offline")
    assert (ended.code, ended.lines) == (0, [f"{cli.folder}/workflow.json: a workflow of 2 nodes"])
    document = (await cli("validate", EXAMPLE, "--json", "--offline")).document
    assert (document["valid"], document["nodes"]) == (True, 7)
    assert document["prompt_text"].startswith("a red fox")
    bad = await cli("validate", cli.file("{}"), "--json")
    assert (bad.code, bad.document["valid"]) == (3, False)


async def test_health_tells_version_device_and_queue(cli: Cli, server: Sim) -> None:
    ended = await cli("health")
    assert ended.code == 0
    assert ended.lines[0] == f"server: {server.url}"
    assert ended.lines[1].startswith("version: ComfyUI 0.")
    assert ended.lines[-1] == "queue: 0 running, 0 waiting"
    document = (await cli("health", "--json")).document
    assert (document["running"], document["waiting"]) == (0, 0)


async def test_a_page_that_is_no_comfyui_is_told(cli: Cli, server: Sim) -> None:
    ended = await cli("health", "--server", f"{server.url}/no/such/base")
    assert (ended.code, ended.out) == (4, "")
    assert len(ended.err.splitlines()) == 1


async def test_a_simulator_that_cannot_start_is_wrong_use(cli: Cli, server: Sim) -> None:
    taken = await cli("sim", "--port", server.port)
    assert taken.code == 2
    unknown = await cli("sim", "--port", "0", "--profile", "9.9")
    assert unknown.code == 2
    assert taken.err.startswith("comfyflow: the simulator cannot listen on ")
    assert unknown.err.startswith("comfyflow: --profile: ")


async def test_an_unknown_option_is_wrong_use(cli: Cli) -> None:
    ended = await cli("run", "--no-such-option")
    assert ended.code == 2
    assert "no-such-option" in ended.err


async def test_the_version_is_told(cli: Cli) -> None:
    ended = await cli("--version")
    assert (ended.code, ended.out.split()[0]) == (0, "comfyflow")


# as a process


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "comfyflow", option]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "comfyflow" in imported
    assert imported & HEAVY == set()
    assert "comfyflow" in done.stdout


def test_completion_is_offered() -> None:
    environment = {
        **os.environ,
        "_COMFYFLOW_COMPLETE": "complete_bash",
        "COMP_WORDS": "comfyflow va",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(command(), capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert "validate" in done.stdout.split()


async def test_sim_prints_its_address_and_ends_when_told(cli: Cli) -> None:
    process = await asyncio.create_subprocess_exec(
        *command("sim", "--port", "0"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    assert (await cli("health", "--server", url)).code == 0
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
