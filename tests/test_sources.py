"""What a workflow may be given as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyflow import sources
from comfyflow.errors import WorkflowInvalid
from comfyflow.sources import Form, find, parsed
from comfyflow.workflow import Workflow

CARRIERS = Path(__file__).parent / "recordings" / "carriers"
API = {"1": {"class_type": "A", "inputs": {"x": 1}}}
UI = {"nodes": [{"id": 1, "type": "A", "widgets_values": [5]}], "links": []}
INFO = {"A": {"input": {"required": {"x": ["INT"]}}, "output_node": True}}


def png(path: Path, **texts: str) -> Path:
    """A small picture with these texts."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    return path


def test_the_formats_are_told_apart() -> None:
    assert find(API).described == "a workflow in API format"
    assert find(json.dumps(UI).encode()).described == "a workflow in UI format"
    assert find({"prompt": UI, "client_id": "x"}).form is Form.UI
    assert find({"prompt": API}).data == API


def test_a_file_is_named_in_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{oops")
    with pytest.raises(WorkflowInvalid, match=r"bad\.json: this is not JSON") as caught:
        find(tmp_path / "bad.json")
    assert caught.value.path == str(tmp_path / "bad.json")
    with pytest.raises(WorkflowInvalid, match=r"^standard input: this is not JSON"):
        find(b"{oops", name="standard input")


def test_a_picture_gives_the_prompt_before_the_workflow(tmp_path: Path) -> None:
    both = png(tmp_path / "a.png", workflow=json.dumps(UI), prompt=json.dumps(API))
    found = find(both)
    assert (found.data, found.form, found.described) == (API, Form.API, "PNG with a workflow in API format")
    assert Workflow.load(both).recognised == "PNG with a workflow in API format"
    saved = png(tmp_path / "b.png", workflow=json.dumps(UI), prompt="{broken")
    assert Workflow.load(saved, object_info=INFO).to_dict()["1"]["inputs"] == {"x": 5}
    assert find(png(tmp_path / "c.png", prompt="[]", workflow=json.dumps(UI))).form is Form.UI


def test_a_picture_without_a_graph_says_what_may_be_the_reason(tmp_path: Path) -> None:
    with pytest.raises(WorkflowInvalid, match=r"this PNG carries no workflow: .*disable-metadata"):
        find(png(tmp_path / "a.png", other="x"))
    with pytest.raises(WorkflowInvalid, match="the graph in this PNG cannot be read: this is not JSON"):
        find(png(tmp_path / "b.png", prompt="{broken"))


def test_a_picture_that_is_cut_short_says_so(tmp_path: Path) -> None:
    whole = png(tmp_path / "a.png").read_bytes()
    with pytest.raises(WorkflowInvalid, match="this PNG ends in the middle"):
        find(whole[:30])


RECORDED = [path for path in sorted(CARRIERS.iterdir()) if path.suffix != ".md"]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_what_a_real_server_wrote_holds_a_graph(path: Path) -> None:
    found = find(path)
    assert found.carrier is not None
    assert found.data


def test_numbers_stay_as_they_were_written() -> None:
    assert parsed('{"seed": 18446744073709551615, "x": 1.50}') == {"seed": 2**64 - 1, "x": 1.5}


def test_two_nodes_of_one_id_are_refused() -> None:
    with pytest.raises(WorkflowInvalid, match="2 nodes have the id '1'"):
        parsed('{"1": {"class_type": "A"}, "1": {"class_type": "B"}}')
    assert parsed('{"a": 1, "a": 2}') == {"a": 2}


def test_what_is_larger_than_comfyui_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_SIZE", 10)
    with pytest.raises(WorkflowInvalid, match="larger than 100 MiB"):
        find(b" " * 11)


def test_the_ui_format_needs_the_classes_of_a_server(tmp_path: Path) -> None:
    with pytest.raises(WorkflowInvalid, match=r"in UI format, .* object_info"):
        Workflow.load(UI)
    (tmp_path / "ui.json").write_text(json.dumps(UI))
    loaded = Workflow.load(tmp_path / "ui.json", object_info=INFO)
    assert (loaded.recognised, loaded.warnings) == ("a workflow in UI format", ())


@pytest.mark.parametrize(
    ("ui", "part"),
    [
        ({"nodes": []}, "empty workflow"),
        ({"nodes": [5]}, "a node has no type"),
        ({"nodes": [{"id": 1, "type": "A"}, {"id": 1, "type": "B"}]}, "two nodes have the id 1"),
    ],
)
def test_faults_of_form_are_found_before_classes_are_needed(ui: Any, part: str) -> None:
    with pytest.raises(WorkflowInvalid, match=part):
        Workflow.load(ui)


def test_a_conversion_may_leave_something_to_be_known() -> None:
    ui = {"nodes": [{"id": 1, "type": "Mine", "properties": {"cnr_id": "pack"}}]}
    loaded = Workflow.load(ui, object_info=INFO)
    assert "'Mine' is unknown" in loaded.warnings[0]
    assert loaded.packs == {"1": "pack"}
