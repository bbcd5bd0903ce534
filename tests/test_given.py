"""Files that are given for inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_remote import picture, serving

from comfyflow import ComfyClient, Workflow
from comfyflow.errors import InputUnavailable, UsageError
from comfyflow.given import candidates, with_files
from comfyflow.sim import Sim

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    "2": {"class_type": "Text", "inputs": {"text": "./cat.png"}},
    "3": {"class_type": "Unknown", "inputs": {"file": "./cat.png"}},
}
INFO = {
    "LoadImage": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}},
    "Text": {"input": {"required": {"text": ["STRING"]}}},
}


def test_what_may_name_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").touch()
    texts = ["there.png", "gone.png", "./gone.png", "~/x", "https://x/y.png", "a cat", "\0", "x" * 5000]
    given = {(str(place), "x"): text for place, text in enumerate(texts)}
    assert list(candidates(given).values()) == ["there.png", "./gone.png", "~/x", "https://x/y.png"]


async def test_inputs_that_take_files_get_them_and_others_keep_their_text(
    comfyui: Sim, tmp_path: Path
) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"pixels")
    workflow = Workflow.load(GRAPH)
    places = {("1", "image"): str(path), ("2", "text"): str(path), ("3", "file"): str(path)}
    places |= {("1", "nothing"): str(path), ("9", "image"): str(path), ("2", "more"): "plain"}
    async with ComfyClient(comfyui.url) as client:
        made = await with_files(workflow, places, client, INFO, tmp_path)
        assert made["1"].inputs["image"] == await client.input_file(path)
        assert client.brings(made) == {made["1"].inputs["image"]}
    assert made["2"].inputs["text"] == "./cat.png"
    assert made["3"].inputs["file"] == "./cat.png"


async def test_a_file_from_the_web_is_fetched_first(comfyui: Sim, tmp_path: Path) -> None:
    async with serving(cat=picture) as url, ComfyClient(comfyui.url) as client:
        places = {("1", "image"): f"{url}cat/cat.png"}
        workflow = Workflow.load(GRAPH)
        made = await with_files(workflow, places, client, INFO, tmp_path, private=True)
        assert str(made["1"].inputs["image"]).endswith(".png")
        with pytest.raises(InputUnavailable, match="--allow-private"):
            await with_files(workflow, places, client, INFO, tmp_path)


async def test_a_file_that_is_not_there_names_the_node(comfyui: Sim, tmp_path: Path) -> None:
    async with ComfyClient(comfyui.url) as client:
        with pytest.raises(UsageError, match=r'node "LoadImage" \(1\): .*gone\.png cannot be read'):
            await with_files(Workflow.load(GRAPH), {("1", "image"): "./gone.png"}, client, INFO, tmp_path)
