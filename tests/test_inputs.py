"""Local files that jobs take in: one name for one content, put onto a server once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from graphs import alone, image

from comfyflow import ComfyClient, ServerUnreachable, UsageError, Workflow, inputs
from comfyflow.inputs import Brought, InputFile, Inputs
from comfyflow.sim import Sim, reset


def naming(name: str) -> Workflow:
    return Workflow.load(alone("LoadImage", image=name))


class Folder:
    """The input folder of a server, which calls a file `renamed` if that is set."""

    def __init__(self, renamed: str | None = None) -> None:
        self.files: list[str] = []
        self._renamed = renamed

    async def put(self, data: bytes, name: str) -> str:
        self.files.append(name)
        return self._renamed or name


async def test_the_name_is_made_of_the_content_and_the_suffix(tmp_path: Path) -> None:
    known = Inputs()
    (tmp_path / "a.PNG").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    (tmp_path / "c.png").write_bytes(b"two")
    names = [await known.add(tmp_path / name) for name in ("a.PNG", "b.png", "c.png")]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("comfyflow-")
    assert names[0].endswith(".png")
    assert await known.add(b"one") == names[0]
    assert (await known.add(b"one", "a.mp4")).endswith(".mp4")


async def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.png cannot be read"):
        await Inputs().add(tmp_path / "no.png")


async def test_a_file_that_is_another_by_now_is_not_put_under_the_old_name(tmp_path: Path) -> None:
    path, known, folder = tmp_path / "a.png", Inputs(), Folder()
    path.write_bytes(b"one")
    name = await known.add(path)
    path.write_bytes(b"two")
    with pytest.raises(UsageError, match="has changed since"):
        await Brought(known, folder.put).bring(naming(name))
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        await Brought(known, folder.put).bring(naming(name))
    assert folder.files == []


async def test_what_a_workflow_names_is_put_there_once(tmp_path: Path) -> None:
    known, folder = Inputs(), Folder()
    name, brought = await known.add(b"one"), Brought(known, folder.put)
    await asyncio.gather(*(brought.bring(naming(name)) for _ in range(5)))
    await brought.bring(Workflow.load(image()))
    assert folder.files == [name]
    brought.forget()
    await brought.bring(naming(name))
    assert folder.files == [name, name]


async def test_a_name_that_another_file_has_there_is_not_used() -> None:
    known, folder = Inputs(), Folder(renamed="comfyflow-1 (1).png")
    with pytest.raises(UsageError, match="has another file called comfyflow-"):
        await Brought(known, folder.put).bring(naming(await known.add(b"one")))


async def test_only_so_many_files_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "KEPT", 2)
    known, folder = Inputs(), Folder()
    brought = Brought(known, folder.put)
    names = []
    for number in range(3):
        names.append(await known.add(str(number).encode()))
        await brought.bring(naming(names[-1]))
    assert [[*known.named_in(naming(name))] != [] for name in names] == [False, True, True]
    await known.add(b"0")
    await brought.bring(naming(names[0]))
    assert folder.files == [*names, names[0]]


def test_bytes_are_their_own_content() -> None:
    assert InputFile("a.png", b"one", "of no matter").read() == b"one"


async def test_a_client_puts_it_there_before_the_first_job(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url) as client:
        name = await client.input_file(b"not even a picture")
        comfyui.faults.add("POST", "/upload/image", reset())
        graph = {**image(), "7": {"class_type": "SimText", "inputs": {"text": name}}}
        with pytest.raises(ServerUnreachable) as raised:
            await client.submit_workflow(graph)
        assert not raised.value.sent
        await client.wait(await client.submit_workflow(graph))
        await client.wait(await client.submit_workflow({**graph, **image()}))
    assert comfyui.requests.count(("POST", "/upload/image")) == 2
    assert sum(comfyui.executed.values()) == 2
