"""What --set takes, presets, a part of a workflow, and the list of inputs: on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from commands import Cli, picture, with_node
from jsonschema import Draft202012Validator

from comfyflow.sim import Sim
from comfyflow.sim.pictures import Picture, png
from comfyflow.workflow import MAX_SEED


def _two() -> dict[str, Any]:
    """Two branches that make a file each; the one turns its picture first."""
    return {
        **picture("first"),
        "3": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}, "_meta": {"title": "Turn"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "second"}},
    }


async def _text(cli: Cli, *arguments: str) -> str:
    """What a node says whose text is set so."""
    ended = await cli(
        "run", cli.file(with_node("3", "SimText", text="before")), "--wait", "--json", *arguments
    )
    assert (ended.code, ended.document["error"]) == (0, None)
    said: str = ended.document["texts"][0]["text"]
    return said


async def _names(cli: Cli, *arguments: str) -> list[str]:
    ended = await cli("run", cli.file(_two()), "--wait", "--quiet", *arguments)
    assert (ended.code, ended.err) == (0, "")
    return [Path(line).name.partition("_")[0] for line in ended.lines]


# --set


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a fox\n", "a fox"),
        ("\ufeffein Fuchs, schön\r\nzwei\r\n\r\n", "ein Fuchs, schön\nzwei\n"),
        ("7", "7"),
        ("", ""),
        ("@@ and %random", "@@ and %random"),
    ],
)
async def test_a_text_may_be_that_of_a_file(cli: Cli, server: Sim, content: str, text: str) -> None:
    (cli.folder / "prompt.txt").write_bytes(content.encode())
    assert await _text(cli, "--set", "SimText.text=@prompt.txt") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [("@@someone", "@someone"), ("%random", "%random"), ("", ""), ('"a"', '"a"'), ("5", "5")],
)
async def test_a_text_is_taken_as_it_stands(cli: Cli, server: Sim, value: str, text: str) -> None:
    assert await _text(cli, "--set", f"3.text={value}") == text


async def test_a_number_may_stand_in_a_file_too(cli: Cli, server: Sim) -> None:
    (cli.folder / "width.txt").write_text("96\n")
    ended = await cli("run", cli.file(picture()), "--wait", "--json", "--set", "Canvas.width=@width.txt")
    assert ended.document["files"][0]["width"] == 96


async def test_a_text_from_a_file_in_place_of_a_link_stays_a_text(cli: Cli, server: Sim) -> None:
    (cli.folder / "seven.txt").write_text("7")
    graph = with_node("3", "SimText", text=["4", 0])
    graph["4"] = {"class_type": "SimText", "inputs": {"text": "linked"}}
    arguments = ["--set", "3.text=@seven.txt", "--no-check", "--only", "3", "--json", "--wait"]
    ended = await cli("run", cli.file(graph), *arguments)
    assert [one["text"] for one in ended.document["texts"]] == ["7"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
async def test_a_file_that_cannot_be_read_is_named_with_the_way_out(
    cli: Cli, server: Sim, content: bytes | None
) -> None:
    if content is not None:
        (cli.folder / "someone").write_bytes(content)
    ended = await cli("run", cli.file(with_node("3", "SimText", text="")), "--set", "3.text=@someone")
    assert ended.code == 2
    assert ended.err.startswith("comfyflow: --set: someone cannot be read: ")
    assert "(a leading @ is written @@)" in ended.err
    assert server.requests == []


async def test_a_title_may_stand_in_quotes(cli: Cli, server: Sim) -> None:
    arguments = ["--set", '"Canvas".width=128', "--set", "EmptyImage.height=16"]
    ended = await cli("run", cli.file(picture()), "--wait", "--json", *arguments)
    (file,) = ended.document["files"]
    assert (file["width"], file["height"]) == (128, 16)


async def test_a_name_that_fits_two_nodes_is_answered_with_both(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(_two()), "--set", "SaveImage.filename_prefix=x")
    assert ended.code == 2
    assert "2.filename_prefix (SaveImage), 4.filename_prefix (SaveImage)" in ended.err
    assert server.requests == []


async def test_a_random_value_is_another_one_each_time_and_fits_31_bits(cli: Cli) -> None:
    file = cli.file(with_node("3", "PrimitiveInt", value=MAX_SEED))
    found = set()
    for _ in range(3):
        ended = await cli("inputs", file, "--offline", "--json", "--set", "3.value=%random")
        found |= {one["value"] for one in ended.document["inputs"] if one["node_id"] == "3"}
    assert len(found) == 3
    assert all(0 <= value < 2**31 for value in found)


# presets


async def test_values_are_kept_under_a_name_and_used_by_it(cli: Cli, server: Sim) -> None:
    file = cli.file(picture())
    (cli.folder / "width.txt").write_text("96")
    kept = ["--set", "Canvas.width=@width.txt", "--set", "Canvas.height=48"]
    assert (await cli("inputs", file, "--offline", *kept, "--save-preset", "small")).code == 0
    (cli.folder / "width.txt").write_text("112")  # a file is read when the preset is used
    used = await cli("run", file, "--wait", "--json", "--preset", "small", "--set", "Canvas.height=80")
    (made,) = used.document["files"]
    assert (made["width"], made["height"]) == (112, 80)


async def test_run_keeps_all_its_values(cli: Cli, server: Sim) -> None:
    file = cli.file(picture())
    await cli("run", file, "--set", "Canvas.width=96", "--save-preset", "wide")
    await cli("run", file, "--preset", "wide", "--set", "Canvas.height=80", "--save-preset", "both")
    saved = json.loads((cli.folder / "config" / "presets" / "both.json").read_text(encoding="utf-8"))
    assert saved["set"] == ["Canvas.width=96", "Canvas.height=80"]
    assert len(saved["digest"]) == 64


@pytest.mark.parametrize("command", ["run", "inputs"])
async def test_values_that_do_not_fit_are_not_kept(cli: Cli, command: str) -> None:
    ended = await cli(command, cli.file(picture()), "--set", "Canvas.width=wide", "--save-preset", "bad")
    assert ended.code == 2
    assert not (cli.folder / "config").exists()


async def test_an_unknown_preset_is_wrong_use(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(picture()), "--preset", "smal")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "comfyflow: there is no preset 'smal'; there are: none\n"
    assert server.requests == []


# a part


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["first", "second"]),
        (["--only", "4"], ["second"]),
        (["--only", "4", "--only", "2"], ["first", "second"]),
        (["--mute", "4"], ["first"]),
        (["--bypass", "Turn"], ["first", "second"]),
        (["--bypass", "ImageInvert", "--only", "4"], ["second"]),
        (["--mute", "Turn", "--only", "2"], ["first"]),
    ],
)
async def test_a_part_runs_alone(cli: Cli, server: Sim, arguments: list[str], names: list[str]) -> None:
    assert sorted(await _names(cli, *arguments)) == names


async def test_a_bypassed_node_gives_what_it_got(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(_two()), "--wait", "--json", "--only", "4", "--bypass", "Turn")
    async with aiohttp.ClientSession() as session:
        answer = await session.get(f"{server.url}/history/{ended.document['prompt_id']}")
        sent = (await answer.json())[ended.document["prompt_id"]]["prompt"][2]
    assert list(sent) == ["1", "4"]
    assert sent["4"]["inputs"]["images"] == ["1", 0]


async def test_what_a_muted_node_leaves_open_is_told_by_name(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(_two()), "--mute", "Turn")
    assert ended.code == 3
    assert '"SaveImage" (4)' in ended.err
    assert "images" in ended.err
    assert not server.executed


@pytest.mark.parametrize("option", ["--only", "--mute", "--bypass"])
async def test_a_node_that_is_not_there_is_wrong_use(cli: Cli, server: Sim, option: str) -> None:
    ended = await cli("run", cli.file(_two()), option, "Tern")
    assert ended.code == 2
    assert ended.err.startswith(f"comfyflow: {option}: there is no node 'Tern'; there are: \"Turn\" (3)")
    assert not server.executed


async def test_all_nodes_muted_is_wrong_use(cli: Cli) -> None:
    ended = await cli("run", cli.file(picture()), "--mute", "1", "--mute", "2")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "nothing is left" in ended.err


# inputs


async def test_inputs_lists_names_that_set_takes_with_types_ranges_and_values(cli: Cli, server: Sim) -> None:
    ended = await cli("inputs", cli.file(picture("fox")))
    head, *lines = ended.lines
    assert head.split() == ["INPUT", "NODE", "TYPE", "RANGE", "VALUE"]
    assert [line.split() for line in lines] == [
        ["EmptyImage.width", "Canvas", "INT", "1..16384", "64"],
        ["EmptyImage.height", "Canvas", "INT", "1..16384", "32"],
        ["EmptyImage.batch_size", "Canvas", "INT", "1..4096", "1"],
        ["EmptyImage.color", "Canvas", "INT", "0..16777215", "255"],
        ["SaveImage.filename_prefix", "SaveImage", "STRING", "fox"],
    ]


async def test_inputs_prints_a_schema_that_is_one(cli: Cli, server: Sim) -> None:
    ended = await cli("inputs", cli.file(picture("fox")), "--schema")
    schema = ended.document
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == "workflow.json"
    assert schema["properties"]["EmptyImage.width"] == {
        "title": "Canvas: width",
        "default": 64,
        "type": "integer",
        "minimum": 1,
        "maximum": 16384,
    }


async def test_without_a_server_types_are_guessed_and_that_is_said(cli: Cli) -> None:
    cli.variable("COMFYFLOW_URL", "http://127.0.0.1:9")
    ended = await cli("inputs", cli.file(picture()), "--json")
    assert ended.code == 0
    assert ended.err.startswith("comfyflow: types are guessed from values: ")
    assert {one["type"] for one in ended.document["inputs"]} == {"INT", "STRING"}
    assert (await cli("inputs", cli.file(picture()), "--offline")).err == ""


# files


def _loaded(cli: Cli) -> str:
    """A workflow that saves the picture it loads; and a picture."""
    (cli.folder / "red.png").write_bytes(png(Picture(8, 4, color=255)))
    load = {"class_type": "LoadImage", "inputs": {"image": "nothing.png"}, "_meta": {"title": "Photo"}}
    return cli.file({**picture("loaded"), "1": load})


async def test_a_local_file_is_put_onto_the_server_first(cli: Cli, server: Sim) -> None:
    ended = await cli("run", _loaded(cli), "--wait", "--json", "--set", "Photo.image=red.png")
    (file,) = ended.document["files"]
    assert (file["width"], file["height"]) == (8, 4)


async def test_a_local_file_is_put_there_for_a_batch_too(cli: Cli, server: Sim, database: str) -> None:
    cli.record_in(database)
    arguments = ["--set", "Photo.image=./red.png", "--matrix", "2.filename_prefix=one,two"]
    ended = await cli("batch", "--workflow", _loaded(cli), *arguments)
    assert (ended.code, len(ended.lines)) == (0, 2)
    assert [path for method, path in server.requests if path.endswith("/upload/image")] == ["/upload/image"]


# batches


async def test_a_range_makes_rows_and_every_row_has_the_other_changes(
    cli: Cli, server: Sim, database: str
) -> None:
    cli.record_in(database)
    await cli("inputs", cli.file(_two()), "--offline", "--set", "1.width=96", "--save-preset", "wide")
    arguments = ["--set", "Canvas.color=1..3", "--preset", "wide", "--only", "4", "--bypass", "Turn"]
    ended = await cli("batch", "--workflow", cli.file(_two()), *arguments, "--json")
    *rows, last = map(json.loads, ended.lines)
    assert (ended.code, last["summary"]["rows"]) == (0, 3)
    files = [(file["filename"][:6], file["width"]) for row in rows for file in row["files"]]
    assert files == [("second", 96)] * 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["--workflow", "workflow.json", "--matrix", "1.width=64", "--set", "1.color=%random"],
            "1.color=1..100",
        ),
        (["rows.csv", "--workflow", "workflow.json", "--set", "1.color=1..3"], "makes rows of its own"),
        (["folder", "--set", "1.color=3"], "is a folder of workflows"),
        (["folder", "--only", "2"], "is a folder of workflows"),
        (
            ["--workflow", "workflow.json", "--matrix", "1.color=1,2", "--only", "9"],
            "--only: there is no node",
        ),
    ],
)
async def test_what_a_batch_cannot_use_is_told_before_anything_is_sent(
    cli: Cli, server: Sim, database: str, arguments: list[str], part: str
) -> None:
    cli.record_in(database)
    cli.file(_two())
    cli.file("1.color\n5\n", "rows.csv")
    (cli.folder / "folder").mkdir()
    cli.file(_two(), "folder/one.json")
    ended = await cli("batch", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert part in ended.err
    assert server.requests == []
