"""Node classes of a server: asked, kept, read from files."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comfyflow import ComfyClient
from comfyflow.check import check
from comfyflow.errors import BadAnswer, ServerUnreachable, UsageError
from comfyflow.nodeinfo import KEPT, first_info, from_file, node_info
from comfyflow.sim import Sim

WRONG = [
    b"",
    b"<html>",
    b"[]",
    b"5",
    b"{}",
    b'{"A": 5}',
    b'{"1": {"class_type": "A", "inputs": {}}}',
    b'{"A": {"input": NaN}',
    b'{"A": {"input": NaN}} x',
    b'{"A" {"input": NaN}}',
    b'{"A": {"input": NaN} "B": 5}',
    b'{"A": {"input": "\xff"}}',
    b'{"A": {"input": ' + b"[" * 100_000 + b"}}",
]
INFO = {"A": {"input": {"required": {}}}, "B": {"input": {}}}


class Server:
    """One that tells classes and version, and counts."""

    addresses = ("http://comfyui:8188",)

    def __init__(self, text: bytes | None = None, version: str = "0.27.0") -> None:
        self.text, self.version, self.asked = json.dumps(INFO).encode() if text is None else text, version, 0

    async def system_stats(self) -> dict[str, Any]:
        return {"system": {"comfyui_version": self.version, "argv": ["main.py"]}}

    async def object_info_text(self) -> bytes:
        self.asked += 1
        return self.text


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMFYFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nodes"


async def test_an_answer_is_kept_by_server_and_version(folder: Path) -> None:
    server = Server()
    first, second = await node_info(server), await node_info(server)
    assert (dict(first.classes), first.cached, first.source) == (INFO, False, "http://comfyui:8188")
    assert (dict(second.classes), second.cached, server.asked) == (INFO, True, 1)
    assert (await node_info(Server(version="0.28.0"))).cached is False
    assert (await node_info(server, fresh=True)).cached is False
    assert len(list(folder.iterdir())) == 2
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "damaged",
    [
        lambda kept: b"",
        lambda kept: b"{",
        lambda kept: kept[:-5],
        lambda kept: kept.replace(b"required", b"requirex"),
        lambda kept: kept.partition(b"\n")[2],
    ],
)
async def test_a_damaged_file_is_replaced(damaged: Callable[[bytes], bytes], folder: Path) -> None:
    await node_info(Server())
    (kept,) = folder.iterdir()
    kept.write_bytes(damaged(kept.read_bytes()))
    assert (await node_info(Server())).cached is False
    assert (await node_info(Server())).cached is True


async def test_what_is_too_old_is_not_believed(folder: Path) -> None:
    await node_info(Server())
    (kept,) = folder.iterdir()
    then = kept.stat().st_mtime - KEPT - 60
    os.utime(kept, (then, then))
    assert (await node_info(Server())).cached is False


async def test_what_is_too_old_is_taken_away_when_another_is_kept(folder: Path) -> None:
    await node_info(Server())
    (kept,) = folder.iterdir()
    then = kept.stat().st_mtime - KEPT - 60
    os.utime(kept, (then, then))
    await node_info(Server(version="0.28.0"))
    assert kept not in folder.iterdir()


async def test_many_at_once_keep_one_whole_answer(folder: Path) -> None:
    await asyncio.gather(*(node_info(Server(), fresh=True) for _ in range(8)))
    assert len(list(folder.iterdir())) == 1
    assert (await node_info(Server())).cached is True


async def test_a_request_that_is_cancelled_leaves_what_was_kept(folder: Path) -> None:
    class Silent(Server):
        async def object_info_text(self) -> bytes:
            asked.set()
            await asyncio.Event().wait()
            return b""

    asked = asyncio.Event()
    await node_info(Server())
    task = asyncio.create_task(node_info(Silent(), fresh=True))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await node_info(Server())).cached is True


async def test_no_password_is_kept(comfyui: Sim, folder: Path) -> None:
    url = comfyui.url.replace("http://", "http://user:secret@")
    async with ComfyClient(url) as client:
        assert "secret" not in (await node_info(client)).source
    (kept,) = folder.iterdir()
    assert b"secret" not in kept.read_bytes()


async def test_a_disk_that_takes_nothing_costs_time_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMFYFLOW_CACHE", str(tmp_path / "file"))
    with caplog.at_level("INFO"):
        assert dict((await node_info(Server())).classes) == INFO
    assert "not kept" in caplog.text


async def test_nothing_half_written_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "replace", refuse)
    await node_info(Server())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "[NaN, -Infinity]", '"\\ud800"'])
async def test_what_python_alone_writes_is_read_as_python_reads_it(value: str) -> None:
    text = '{"A": {"input": {"required": {"x": ["FLOAT", {"max": VALUE}]}}} ,"B":{"input": {}}}'
    text = text.replace("VALUE", value)
    for cached in (False, True):
        found = await node_info(Server(text.encode()))
        assert found.cached is cached
        assert repr(dict(found.classes)) == repr(json.loads(text))


async def test_an_infinite_limit_refuses_nothing() -> None:
    text = b'{"A": {"input": {"required": {"x": ["INT", {"max": Infinity}]}}, "output_node": true}}'
    classes = (await node_info(Server(text))).classes
    assert check({"1": {"class_type": "A", "inputs": {"x": 5}}}, classes).accepted


@pytest.mark.parametrize("text", WRONG)
async def test_what_is_not_comfyuis_answer_is_refused(text: bytes, folder: Path) -> None:
    with pytest.raises(BadAnswer, match="no mapping of node classes"):
        await node_info(Server(text))
    assert not folder.exists()


async def test_a_class_is_decoded_when_it_is_looked_at() -> None:
    classes = (await node_info(Server())).classes
    assert classes["A"] is classes["A"]
    assert (len(classes), list(classes), "A" in classes, "C" in classes) == (2, ["A", "B"], True, False)
    assert classes.get("C") is None


async def test_the_first_server_that_answers_is_asked_anew(comfyui: Sim) -> None:
    async with ComfyClient("http://127.0.0.1:1") as gone, ComfyClient(comfyui.url) as client:
        for _ in range(2):
            found = await first_info([gone, client])
            assert (found.source, found.cached) == (comfyui.url, False)
        with pytest.raises(ServerUnreachable):
            await first_info([gone])


async def test_a_real_client_is_asked(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url) as client:
        found = await node_info(client)
        assert dict(found.classes) == await client.object_info()
        assert found.source == comfyui.url


def marked(text: bytes) -> bytes:
    """As some editors save a text."""
    return codecs.BOM_UTF8 + text


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, marked])
def test_a_saved_answer_is_read(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "info"
    path.write_bytes(pack(json.dumps(INFO).encode()))
    found = from_file(path)
    assert (dict(found.classes), found.source, found.cached) == (INFO, str(path), False)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (None, "cannot be read"),
        (b"{", "is not the JSON"),
        (b"\x1f\x8bxx", "is not the JSON"),
        (gzip.compress(b"{}" * 100)[:-4], "is not the JSON"),
        ('{"A": {"input": {}}}'.encode("utf-16"), "is not the JSON"),
        (b"\xfd7zXZ\0junk", "is not the JSON"),
        (b"[]", "a mapping of node classes"),
        (b'{"1": {"class_type": "A", "inputs": {}}}', "a mapping of node classes"),
    ],
)
def test_a_wrong_file_is_one_sentence(data: bytes | None, part: str, tmp_path: Path) -> None:
    path = tmp_path / "info"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=part):
        from_file(path)
