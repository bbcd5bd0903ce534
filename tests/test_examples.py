"""Every example runs as a reader would run it: on its own, against a running server or with --simulate."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import comfyflow
from comfyflow.sim import Sim
from comfyflow.workflow import Workflow

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
WORKFLOWS = sorted(EXAMPLES.glob("*.json"))


DATA = Path(tempfile.gettempdir()) / f"comfyflow-examples-{os.getpid()}"  # root's server has to get in


@pytest.fixture(autouse=True)
def _no_database_is_left() -> Iterator[None]:
    yield
    shutil.rmtree(DATA, ignore_errors=True)


async def _run(script: Path, folder: Path, *options: str, url: str | None = None) -> list[str]:
    """The lines that a script prints, run in an empty folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COMFY")}
    environment |= {"COMFYFLOW_DATA": str(DATA), "COMFYFLOW_STATE": str(folder / "state")}
    environment["PYTHONPATH"] = str(Path(comfyflow.__file__).parent.parent)
    if url is not None:
        environment["COMFYFLOW_URL"] = url
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *options, cwd=folder, env=environment, stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode().splitlines()


def _pictures(folder: Path) -> list[Path]:
    return sorted((folder / "comfyflow-output").glob("*.png"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
async def test_an_example_runs_with_nothing_but_the_library(script: Path, tmp_path: Path) -> None:
    lines = await _run(script, tmp_path, "--simulate")
    assert lines
    assert all(str(path) in "\n".join(lines) for path in _pictures(tmp_path))


async def test_text_to_image_saves_one_picture(tmp_path: Path) -> None:
    async with Sim() as sim:
        lines = await _run(EXAMPLES / "text_to_image.py", tmp_path, url=sim.url)
        assert sim.executed.total() == 1
    assert lines == [str(path) for path in _pictures(tmp_path)]
    assert len(lines) == 1


async def test_image_to_image_uploads_the_picture_that_it_uses(tmp_path: Path) -> None:
    async with Sim() as sim:
        await _run(EXAMPLES / "image_to_image.py", tmp_path, url=sim.url)
        assert ("POST", "/upload/image") in sim.requests
        assert [path.name for path in sim.folders.base("input").iterdir()] == ["hills.png"]
    assert len(_pictures(tmp_path)) == 1


async def test_three_jobs_are_followed_at_once_by_one_socket(tmp_path: Path) -> None:
    async with Sim() as sim:
        lines = await _run(EXAMPLES / "three_jobs.py", tmp_path, url=sim.url)
        assert sim.executed.total() == 3
        assert sim.requests.count(("GET", "/ws")) == 1
    assert sorted(line.split(":")[0] for line in lines) == ["a green frog", "a grey owl", "a red fox"]
    assert len(_pictures(tmp_path)) == 3


async def test_progress_tells_nodes_and_steps_and_ends_with_the_files(tmp_path: Path) -> None:
    lines = await _run(EXAMPLES / "watch_progress.py", tmp_path, "--simulate")
    assert any(line.startswith("running KSampler ") for line in lines)
    assert lines[-1].startswith("files: fox_")


async def test_a_recorded_job_is_found_by_its_prompt(tmp_path: Path) -> None:
    first, second = [await _run(EXAMPLES / "recorded.py", tmp_path, "--simulate") for _ in range(2)]
    assert (len(first), len(second)) == (2, 3)
    assert first[1] in second


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_is_whole_and_has_a_prompt_and_a_seed(file: Path) -> None:
    workflow = Workflow.load(file)
    assert workflow.prompt_text
    assert workflow.seed(1).digest != workflow.digest
