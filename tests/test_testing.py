"""The pytest plugin, as a project meets it that has comfyflow installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import aiohttp
import pytest

from comfyflow import sim, testing
from comfyflow.sim import FaultProxy, Sim

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
    said = ran(tmp_path, {"test_bot.py": USERS_TEST}, mode)
    assert "1 passed" in said, said


async def test_the_proxy_stands_before_the_simulator(comfyui: Sim, comfyui_proxy: FaultProxy) -> None:
    assert comfyui_proxy.target == comfyui.url
    async with aiohttp.ClientSession() as session, session.get(f"{comfyui_proxy.url}/queue") as answer:
        assert answer.status == 200
    assert comfyui.requests == [("GET", "/queue")]


async def test_a_proxy_stands_before_any_server_and_ends_with_the_test(tmp_path: Path) -> None:
    test = """
    async def test_two(comfyui, comfyui_proxy_for):
        one, two = [await comfyui_proxy_for(comfyui.url, idle_cut=wait) for wait in (None, 60)]
        assert (one.idle_cut, two.idle_cut, one.target) == (None, 60, comfyui.url)
        proxies[:] = [one, two]

    proxies = []

    def test_they_are_closed():
        for proxy in proxies:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port), timeout=5)
        assert len(proxies) == 2
    """
    imports = "import socket\nimport pytest\nfrom urllib.parse import urlsplit\n"
    assert "2 passed" in ran(tmp_path, {"test_bot.py": imports + dedent(test)})


def test_the_recipes_of_the_page_run(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    files = {f"test_{number}.py": block for number, block in enumerate(blocks)}
    assert len(blocks) == 6
    assert "5 passed" in ran(tmp_path, {"bot.py": blocks[0], **files})  # one shows an effect, and no test


def ran(folder: Path, files: dict[str, str], mode: str = "auto") -> str:
    """What pytest says about these files."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", f"asyncio_mode={mode}", "-q"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_all_of_the_simulator_can_be_imported_from_here() -> None:
    fixtures = {"comfyui", "comfyui_proxy", "comfyui_proxy_for"}
    kit = set(testing.__all__) - fixtures
    assert kit == set(sim.__all__) - {"PROFILES", "Profile", "serve"}
    assert all(getattr(testing, name) is getattr(sim, name) for name in kit)
    with pytest.raises(AttributeError, match="no attribute 'Simm'"):
        getattr(testing, "Simm")  # noqa: B009 - mypy knows that it is not there


def test_the_plugin_costs_other_projects_no_heavy_import() -> None:
    check = "import sys, comfyflow.testing; print(*{'aiohttp', 'websockets'}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
