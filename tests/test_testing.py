"""The pytest plugin, as a project meets it that has comfyflow installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from comfyflow.sim import Sim

USERS_TEST = """
import pytest
from comfyflow import ComfyClient

@pytest.mark.asyncio
async def test_my_bot(comfyui):
    async with ComfyClient(comfyui.url) as client:
        assert (await client.system_stats())["system"]["comfyui_version"]
"""


async def test_the_fixture_is_a_started_simulator_of_its_own(comfyui: Sim) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{comfyui.url}/queue") as answer:
        assert await answer.json() == {"queue_running": [], "queue_pending": []}


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_a_users_test_finds_the_fixture_in_both_modes(mode: str, tmp_path: Path) -> None:
    (tmp_path / "test_bot.py").write_text(USERS_TEST, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", f"asyncio_mode={mode}", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_costs_other_projects_no_heavy_import() -> None:
    check = "import sys, comfyflow.testing; print(*{'aiohttp', 'websockets'}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
