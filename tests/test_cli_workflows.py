"""The commands about workflow files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, picture
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyflow.sim import Sim

UI: dict[str, Any] = {
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "widgets_values": [64, 64, 1, 0],
            "outputs": [{"name": "IMAGE", "type": "IMAGE"}],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "widgets_values": ["x"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}
INFO = {
    "EmptyImage": {
        "input": {"required": {"width": ["INT", {"min": 1}], "height": ["INT"], "batch_size": ["INT"]}},
        "output": ["IMAGE"],
    },
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING"]}},
        "output": [],
        "output_node": True,
    },
}


@pytest.fixture
def info(cli: Cli) -> str:
    """A saved answer of /object_info."""
    return cli.file(json.dumps(INFO), "info.json")


async def test_the_ui_format_is_converted_with_the_classes_of_a_file(cli: Cli, info: str) -> None:
    ended = await cli("convert", cli.file(json.dumps(UI), "ui.json"), "--object-info", info)
    assert ended.code == 0
    assert json.loads(ended.out)["2"]["inputs"] == {"filename_prefix": "x", "images": ["1", 0]}
    assert ended.err.splitlines() == [f"comfyflow: {cli.folder}/ui.json: a workflow in UI format"]


async def test_the_ui_format_is_converted_with_the_classes_of_the_server(cli: Cli, server: Sim) -> None:
    out = cli.folder / "prompt.json"
    file = cli.file(json.dumps(UI), "ui.json")
    ended = await cli("convert", file, "-o", str(out))
    assert (ended.code, ended.lines) == (0, [f"{out}: 2 nodes"])
    assert json.loads(out.read_text())["1"]["class_type"] == "EmptyImage"
    document = (await cli("convert", file, "--json")).document
    assert (document["recognised"], document["warnings"]) == ("a workflow in UI format", [])
    assert list(document["workflow"]) == ["1", "2"]


async def test_a_picture_is_run_again(cli: Cli, server: Sim) -> None:
    texts = PngInfo()
    texts.add_text("prompt", json.dumps(picture()))
    Image.new("RGB", (2, 2)).save(cli.folder / "made.png", pnginfo=texts)
    ended = await cli("run", str(cli.folder / "made.png"), "--wait")
    assert (ended.code, len(ended.lines)) == (0, 1)
    assert "made.png: PNG with a workflow in API format" in ended.err.splitlines()[0]


async def test_the_ui_format_is_run_and_batched(cli: Cli, server: Sim) -> None:
    file = cli.file(json.dumps(UI), "ui.json")
    assert (await cli("run", file, "--wait", "-q")).code == 0
    ended = await cli("batch", "--workflow", file, "--matrix", "EmptyImage.width=8,16", "-q")
    assert (ended.code, len(ended.lines)) == (0, 2)
    folder = cli.folder / "many"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(UI))
    assert (await cli("batch", str(folder), "-q")).code == 0


async def test_a_workflow_without_a_server_needs_classes(cli: Cli) -> None:
    ended = await cli("convert", cli.file(json.dumps(UI), "ui.json"), "--server", "http://127.0.0.1:1")
    assert (ended.code, ended.out) == (4, "")


async def test_an_output_that_cannot_be_written_is_told(cli: Cli, info: str) -> None:
    file = cli.file(json.dumps(UI), "ui.json")
    ended = await cli("convert", file, "--object-info", info, "-o", str(cli.folder / "no" / "out.json"))
    assert ended.code == 2
    assert "--output:" in ended.err


async def test_validate_tells_what_a_server_would_say(cli: Cli, server: Sim) -> None:
    right = await cli("validate", cli.file(picture()))
    assert (right.code, right.lines) == (
        0,
        [f"{cli.folder}/workflow.json: a workflow of 2 nodes; {server.url} would run it"],
    )
    document = (await cli("validate", cli.file(picture()), "--json")).document
    assert (document["valid"], document["faults"], document["checked_by"]) == (True, [], server.url)
    wrong = await cli("validate", cli.file(picture(width=0)))
    assert (wrong.code, wrong.out) == (3, "")
    assert '"Canvas" (1): width is 0' in wrong.err
    told = await cli("validate", cli.file(picture(width=0)), "--json")
    assert (told.code, told.document["valid"], len(told.document["faults"])) == (3, False, 1)


async def test_validate_needs_no_server_with_a_saved_answer(cli: Cli, info: str) -> None:
    graph: dict[str, Any] = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 1, "batch_size": 1}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}},
    }
    ended = await cli("validate", cli.file(graph), "--object-info", info)
    assert (ended.code, len(ended.err.splitlines())) == (3, 3)
    graph["1"]["inputs"]["width"] = 5
    part = await cli("validate", cli.file(graph), "--object-info", info)
    assert part.code == 0
    assert part.lines[0].endswith("would run a part of it")
    assert "would leave out 1 output" in part.err


async def test_validate_says_when_it_could_not_check(cli: Cli) -> None:
    ended = await cli("validate", cli.file(picture()), "--server", "http://127.0.0.1:1", "--json")
    assert (ended.code, ended.document["valid"]) == (4, False)
    both = await cli("validate", cli.file(picture()), "--server", "http://127.0.0.1:1", "--offline")
    assert (both.code, "--offline asks nobody" in both.err) == (2, True)


async def test_a_link_to_nothing_counts_where_an_output_needs_it(cli: Cli, server: Sim) -> None:
    graph = picture()
    graph["7"] = {"class_type": "ImageInvert", "inputs": {"image": ["88", -1]}}
    stray = cli.file(graph, "stray.json")
    assert (await cli("validate", stray)).code == 0
    ran = await cli("run", stray, "--wait", "--output", "out")
    assert (ran.code, len(ran.lines)) == (0, 1)
    away = await cli("validate", stray, "--server", "http://127.0.0.1:1")
    offline = await cli("validate", stray, "--offline")
    assert away.code == offline.code == 3
    assert "linked to node '88', which the workflow does not have" in away.err
    assert away.err == offline.err
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}
    needed = await cli("validate", cli.file(graph, "needed.json"), "--json")
    assert needed.document["outputs"]["left_out"] == ["9"]


async def test_what_only_the_server_can_decide_is_listed(cli: Cli) -> None:
    mine = {
        "Mine": {
            "input": {"required": {"n": ["INT", {"max": 1}]}},
            "output_node": True,
            "python_module": "custom_nodes.x",
        }
    }
    info = cli.file(json.dumps(mine), "info.json")
    ended = await cli(
        "validate", cli.file({"1": {"class_type": "Mine", "inputs": {"n": 5}}}), "--object-info", info
    )
    assert ended.code == 0
    assert "only the server can decide" in ended.err


@pytest.mark.parametrize("command", ["run", "validate", "convert", "inputs"])
async def test_a_wrong_saved_answer_is_one_sentence(command: str, cli: Cli) -> None:
    ended = await cli(command, cli.file(picture()), "--object-info", cli.file("{}", "info.json"))
    assert ended.code == 2
    assert "a mapping of node classes" in ended.err


async def test_files_of_an_earlier_run_are_given_again(cli: Cli, server: Sim, database: str) -> None:
    cli.record_in(database)
    file = cli.file(picture())
    first = await cli("run", file, "--wait", "-q")
    again = await cli("run", file, "--wait", "-q", "--reuse")
    assert (again.code, again.lines, server.executed.total()) == (0, first.lines, 1)
    Path(first.lines[0]).write_bytes(b"changed")
    fresh = await cli("run", file, "--wait", "-q", "--reuse", "--on-cached", "force")
    assert (fresh.code, server.executed.total()) == (0, 2)


async def test_files_of_the_servers_cache_may_be_an_error(cli: Cli, server: Sim) -> None:
    file = cli.file(picture())
    assert (await cli("run", file, "--wait", "-q")).code == 0
    ended = await cli("run", file, "--wait", "-q", "--on-cached", "error")
    assert (ended.code, "cache of an earlier job" in ended.err) == (7, True)
    assert (await cli("run", file, "--wait", "-q", "--on-cached", "force")).code == 0


@pytest.mark.parametrize(
    ("options", "part"),
    [(["--wait", "--database", "none"], "--database none has none"), ([], "--reuse needs --wait")],
)
async def test_reuse_needs_a_record_and_files(options: list[str], part: str, cli: Cli) -> None:
    ended = await cli("run", cli.file(picture()), "--reuse", *options)
    assert (ended.code, part in ended.err) == (2, True)
