"""What nodes have shown, found by shape."""

from __future__ import annotations

from typing import Any

import pytest

from comfyflow import outputs as o
from comfyflow.outputs import find_outputs, is_reused


def test_files_are_found_by_shape_wherever_they_stand() -> None:
    outputs = {
        "1": {
            "gifs": [
                {
                    "filename": "a.mp4",
                    "subfolder": "x",
                    "type": "temp",
                    "format": "video/h264",
                    "fullpath": "/x",
                }
            ]
        },
        "2": {
            "deep": [{"more": [[{"filename": "b.bin", "subfolder": None, "type": ""}]]}],
            "n": 5,
            "z": None,
        },
        "3": {"result": ["3d\\c.glb [temp]", {"camera": 1}, None]},
        "4": {"result": ["d.glb"], "text": ["one", "two"], "mixed": ["x", 1]},
        "5": {"3d": [{"filename": "d.glb", "subfolder": "", "type": "output"}]},
        "6": None,
        "7": {"result": ["just text"], "model_file": ["e.glb"]},
    }
    files, texts = find_outputs(outputs)
    assert [(f.node_id, f.filename, f.subfolder, f.type) for f in files] == [
        ("1", "a.mp4", "x", "temp"),
        ("2", "b.bin", "", "output"),
        ("3", "c.glb", "3d", "temp"),
        ("4", "d.glb", "", "output"),
        ("7", "e.glb", "", "output"),
    ]
    assert [text.text for text in texts] == ["one", "two", "just text"]


def test_endless_nesting_is_left_alone() -> None:
    value: Any = {"filename": "deep.png"}
    for _ in range(20):
        value = [value]
    assert find_outputs({"1": {"images": value}}) == ((), ())


def test_the_same_file_is_one_and_no_job_has_more_than_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [{"filename": name} for name in ("a.png", "b.png", "a.png", "c.png")]
    shown = {"1": {"images": files, "text": ["x", "y", "z"], "more": "w"}}
    found, texts = find_outputs(shown)
    assert [file.filename for file in found] == ["a.png", "b.png", "c.png"]
    assert [text.text for text in texts] == ["x", "y", "z", "w"]
    monkeypatch.setattr(o, "MAX_FOUND", 2)
    assert [len(part) for part in find_outputs(shown)] == [2, 2]


@pytest.mark.parametrize(
    ("node_id", "cached", "reused"),
    [
        ("5", None, None),
        ("5.0.1", None, None),
        ("5", ["5"], True),
        ("5", ["6"], False),
        ("5.0.1", ["5"], True),
        ("5.0.1", ["5.0.1"], True),
        ("5.0.1", [], None),
    ],
)
def test_what_comes_from_the_cache_is_told_as_far_as_it_is_known(
    node_id: str, cached: list[str] | None, reused: bool | None
) -> None:
    assert is_reused(node_id, cached) is reused
    files, texts = find_outputs({node_id: {"images": [{"filename": "a.png"}], "text": ["x"]}}, cached)
    assert (files[0].reused, texts[0].reused) == (reused, reused)
