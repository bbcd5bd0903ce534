"""Local files and files from the web for inputs: uploaded under names made of their content."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from graphs import node

from comfyflow.client import ComfyClient
from comfyflow.errors import InputUnavailable, UsageError
from comfyflow.given import candidates, with_files
from comfyflow.sim import Sim
from comfyflow.sim.pictures import Picture, png
from comfyflow.workflow import Workflow

RED, BLUE = png(Picture(8, 4, color=0xFF0000)), png(Picture(8, 4, color=0xFF))
CLASSES: dict[str, Any] = {
    "LoadImage": {"input": {"required": {"image": [[], {"image_upload": True}]}}},
    "Write": {"input": {"required": {"text": ["STRING", {}]}}},
}


def name_of(content: bytes, suffix: str = ".png") -> str:
    return f"comfyflow-{hashlib.sha256(content).hexdigest()[:32]}{suffix}"


@pytest.fixture
async def client(comfyui: Sim) -> AsyncIterator[ComfyClient]:
    async with ComfyClient(comfyui.url, websocket=False) as client:
        yield client


@pytest.fixture
def red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture in the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "red.png"
    path.write_bytes(RED)
    return path


@pytest.fixture
async def online(comfyui: Sim) -> str:
    """Where two pictures of one name are in the web, but for the folder (`subfolder=`)."""
    async with aiohttp.ClientSession() as session:
        for folder, content in (("red", RED), ("blue", BLUE)):
            form = aiohttp.FormData({"subfolder": folder})
            form.add_field("image", content, filename="picture.png")
            (await session.post(f"{comfyui.url}/upload/image", data=form)).raise_for_status()
    return f"{comfyui.url}/view?filename=picture.png&type=input&subfolder="


def _workflow(**titles: str) -> Workflow:
    return Workflow.load({key: node("LoadImage", key, image=value) for key, value in titles.items()})


def _images(workflow: Workflow) -> list[str]:
    return [one["inputs"]["image"] for one in workflow.nodes.values()]


def test_what_may_name_a_file_is_told_from_what_cannot(red: Path) -> None:
    files = [
        "red.png",
        str(red),
        "./gone.png",
        "../x",
        "~/x.png",
        "/x",
        ".\\x",
        "https://a.example/x",
        "http://a",
    ]
    others = ["blue.png", "a red fox", "", "x" * 5000, "a\0b", "ftp://a/b", "@red.png", "5"]
    places = {(str(place), "image"): text for place, text in enumerate([*files, *others])}
    assert list(candidates(places).values()) == files


@pytest.mark.parametrize("text", ["red.png", "./red.png"])
async def test_a_local_file_gets_a_name_made_of_its_content(
    client: ComfyClient, red: Path, tmp_path: Path, text: str
) -> None:
    made = await with_files(_workflow(a="x"), {("a", "image"): text}, client, CLASSES, tmp_path)
    assert _images(made) == [name_of(RED)]


async def test_a_file_of_the_home_folder_is_found(
    client: ComfyClient, red: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    made = await with_files(_workflow(a="x"), {("a", "image"): "~/red.png"}, client, CLASSES, tmp_path)
    assert _images(made) == [name_of(RED)]


async def test_files_from_the_web_of_one_name_stay_apart_until_they_are_sent(
    client: ComfyClient, comfyui: Sim, online: str, tmp_path: Path
) -> None:
    places = {(title, "image"): f"{online}{title}" for title in ("red", "blue")}
    made = await with_files(_workflow(red="x", blue="x"), places, client, CLASSES, tmp_path, private=True)
    names = [name_of(RED, ""), name_of(BLUE, "")]
    assert [Path(name).stem for name in _images(made)] == names
    prompt_id = await client.submit_workflow({**made.to_dict(), "9": node("PreviewImage", images=["red", 0])})
    await comfyui.wait_done(prompt_id)
    assert [await client.has_file(name) for name in _images(made)] == [True, True]


async def test_an_address_inside_of_a_network_is_refused(
    client: ComfyClient, online: str, tmp_path: Path
) -> None:
    with pytest.raises(InputUnavailable, match="--allow-private"):
        await with_files(_workflow(red="x"), {("red", "image"): f"{online}red"}, client, CLASSES, tmp_path)
    assert list(tmp_path.glob("**/*.png")) == []


async def test_inputs_that_take_no_files_stay_as_they_are(
    client: ComfyClient, red: Path, tmp_path: Path
) -> None:
    graph = {
        "1": node("Write", text="red.png"),
        "2": node("Unheard", image="red.png"),
        "3": node("LoadImage", x="y"),
    }
    workflow = Workflow.load(graph)
    places = {
        ("1", "text"): "red.png",
        ("2", "image"): "red.png",
        ("3", "x"): "red.png",
        ("9", "a"): "red.png",
    }
    assert await with_files(workflow, places, client, CLASSES, tmp_path) == workflow


async def test_a_file_that_is_not_there_is_named_with_its_node(client: ComfyClient, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'^node "photo" \(photo\): gone\.png cannot be read') as caught:
        await with_files(_workflow(photo="x"), {("photo", "image"): "./gone.png"}, client, CLASSES, tmp_path)
    assert str(caught.value).count("\n") == 0
