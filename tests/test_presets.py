"""Named sets of values on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from comfyflow import presets
from comfyflow.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMFYFLOW_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config" / "presets"


@pytest.mark.parametrize(
    "values",
    [
        [],
        ["6.text=a fox", '"Positive prompt".text=@prompt.txt', "KSampler.seed=%random"],
        ["6.text=ein schöner Fuchs 🦊", "6.text=two\nlines", '6.text="quoted" \\'],
        ["6.text=\udcff is no UTF-8"],
    ],
)
def test_what_is_saved_is_loaded_as_it_was_typed(values: list[str]) -> None:
    presets.save("my set", values)
    assert presets.load("my set") == tuple(values)


def test_a_preset_is_one_file_that_people_can_read(folder: Path) -> None:
    path = presets.save("draft", ["6.text=schön"], "abc")
    assert path == folder / "draft.json"
    assert json.loads(path.read_text(encoding="utf-8")) == {"digest": "abc", "set": ["6.text=schön"]}
    assert "schön" in path.read_text(encoding="utf-8")


def test_saving_again_replaces_and_leaves_nothing_behind(folder: Path) -> None:
    presets.save("draft", ["6.text=a"])
    presets.save("draft", ["6.text=b"])
    assert presets.load("draft") == ("6.text=b",)
    assert os.listdir(folder) == ["draft.json"]


def test_names_are_told_in_order() -> None:
    assert presets.names() == ()
    for name in ("v1.5", "draft", "B"):
        presets.save(name, [])
    assert presets.names() == ("B", "draft", "v1.5")


@pytest.mark.parametrize(
    "name", ["", ".", "../x", "a/b", "a\\b", "x.", "x ", " x", "-x", "ä", "x" * 65, "a\0"]
)
def test_a_name_that_is_no_name_of_a_file_is_refused(name: str) -> None:
    for use in (lambda: presets.save(name, []), lambda: presets.load(name)):
        with pytest.raises(UsageError, match="is no name for a preset"):
            use()
    assert presets.names() == ()


@pytest.mark.parametrize("name", ["x", "9", "x" * 64, "A b-c_d.e"])
def test_a_usual_name_is_taken(name: str) -> None:
    presets.save(name, ["1.x=1"])
    assert presets.load(name) == ("1.x=1",)


def test_an_unknown_preset_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="there is no preset 'draft'; there are: none"):
        presets.load("draft")
    presets.save("final", [])
    with pytest.raises(UsageError, match="there are: final"):
        presets.load("draft")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b'{"set": "6.text=a"}', b'{"set": [1]}', b"\xff\xff", b"[" * 100_000, b"null"],
)
def test_a_damaged_file_is_named(folder: Path, text: bytes) -> None:
    path = presets.save("draft", [])
    path.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        presets.load("draft")
    assert str(path) in str(caught.value)
    assert "damaged" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told_so(folder: Path) -> None:
    folder.parent.write_text("a file stands in the way")
    with pytest.raises(UsageError, match="the preset 'draft' cannot be written"):
        presets.save("draft", [])


def test_when_it_cannot_be_written_whole_the_old_one_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets.save("draft", ["6.text=a"])

    def refuse(*_: object) -> None:  # a full disk, played: the tests have none
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UsageError, match="No space left"):
        presets.save("draft", ["6.text=b"])
    assert os.listdir(folder) == ["draft.json"]
    assert presets.load("draft") == ("6.text=a",)


def test_without_the_variable_the_folder_of_this_user_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("COMFYFLOW_CONFIG")
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path / "of the user")
    assert presets.save("draft", []) == tmp_path / "of the user" / "presets" / "draft.json"
