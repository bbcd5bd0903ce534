"""run, wait and download: in this process against the simulator, and as processes where that matters."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import pytest
from commands import EXAMPLE, Cli, command, picture, with_node

from comfyflow.sim import Sim, stall

# run


async def test_run_prints_the_paths_of_whole_files_and_progress_goes_to_stderr(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(picture()), "--wait")
    assert ended.code == 0
    (path,) = map(Path, ended.lines)
    assert path == cli.folder / "comfyflow-output" / path.name
    assert path.read_bytes().startswith(b"\x89PNG")
    assert ended.err.splitlines()[-1].endswith(": done")


async def test_run_json_is_one_document_with_all_that_is_known(cli: Cli, server: Sim) -> None:
    file = cli.file(with_node("3", "SimText", text="two\nlines"))
    ended = await cli("run", file, "--wait", "--json", "--quiet", "--output", "out")
    document = ended.document
    assert ended.code == 0
    assert ended.err == ""
    assert (document["state"], document["server"], document["error"]) == ("succeeded", server.url, None)
    assert list(server.executed) == [document["prompt_id"]]
    (file_document,) = document["files"]
    assert Path(file_document["path"]).stat().st_size == file_document["size"]
    assert (file_document["node_title"], file_document["media_type"]) == ("SaveImage", "image/png")
    assert (file_document["width"], file_document["height"], file_document["reused"]) == (64, 32, False)
    assert len(file_document["sha256"]) == 64
    assert document["texts"][0]["text"] == "two\nlines"
    assert set(document["timings"]) == {"total", "execution"}


async def test_texts_are_printed_apart_from_paths(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(with_node("3", "SimText", text="a poem")), "--wait")
    assert [line for line in ended.lines if line.startswith("#")] == ['# "SimText" (3): a poem']
    assert len(ended.lines) == 2


async def test_without_wait_the_id_is_printed_at_once(cli: Cli, server: Sim) -> None:
    await server.hold()
    ended = await cli("run", cli.file(picture()))
    assert ended.code == 0
    (prompt_id,) = ended.lines
    status = await cli("status", prompt_id)
    assert (status.code, status.out.split(":")[0]) == (0, prompt_id)
    await server.release()
    assert (await cli("wait", prompt_id)).lines == [f"{prompt_id}: done"]
    assert not (cli.folder / "comfyflow-output").exists()


async def test_without_wait_json_tells_id_state_server_and_seed(cli: Cli, server: Sim) -> None:
    sampler = {"steps": 1, "delay": 0.0, "seed": 5, "width": 64, "height": 64, "preview": "none"}
    file = cli.file(with_node("3", "RecSteps", **sampler))
    document = (await cli("run", file, "--json", "--seed", "7")).document
    assert document == {
        "seed": 7,
        "server": server.url,
        "prompt_id": document["prompt_id"],
        "state": "submitted",
        "recorded": "none",
    }


async def test_a_workflow_may_come_from_stdin(cli: Cli, server: Sim) -> None:
    cli.stdin(json.dumps(picture("piped")))
    ended = await cli("run", "-", "--wait", "--quiet")
    assert [Path(line).name[:5] for line in ended.lines] == ["piped"]


async def test_inputs_and_seeds_are_changed_before_sending(cli: Cli, server: Sim) -> None:
    arguments = ["--set", "Canvas.width=128", "--set", "2.filename_prefix=a=b.c", "--quiet", "--json"]
    ended = await cli("run", cli.file(picture()), "--wait", *arguments)
    (file,) = ended.document["files"]
    assert (file["width"], file["filename"][:5]) == (128, "a=b.c")


async def test_a_random_seed_is_told(cli: Cli) -> None:
    arguments = ("--simulate", "--wait", "--json", "--quiet", "--seed", "random", "--set", "3.steps=1")
    ended = await cli("run", EXAMPLE, *arguments)
    assert ended.code == 0
    assert 0 <= ended.document["seed"] < 2**32


async def test_simulate_needs_no_server(cli: Cli) -> None:
    ended = await cli("run", EXAMPLE, "--simulate", "--wait", "--set", "3.steps=2")
    assert ended.code == 0
    assert len(ended.lines) == 1
    assert "KSampler" in ended.err


@pytest.mark.parametrize("arguments", [["--simulate"], ["--simulate", "--wait", "--server", "http://x"]])
async def test_simulate_alone_or_with_a_server_is_wrong_use(arguments: list[str], cli: Cli) -> None:
    ended = await cli("run", EXAMPLE, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("comfyflow: --simulate ")


async def test_without_a_socket_the_job_is_followed_all_the_same(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(picture()), "--wait", "--no-websocket", "--quiet")
    assert (ended.code, len(ended.lines)) == (0, 1)
    assert ("GET", "/ws") not in server.requests


async def test_files_are_taken_from_a_mounted_output_folder(cli: Cli, server: Sim) -> None:
    mounted = server.folders.base("output")
    ended = await cli("run", cli.file(picture()), "--wait", "--comfyui-output", mounted, "--quiet")
    assert (ended.code, len(ended.lines)) == (0, 1)
    assert not [path for method, path in server.requests if method == "GET" and path.endswith("/view")]


async def test_headers_and_credentials_are_sent(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Sim(auth="Bearer sesame") as sim:
        file = cli.file(picture())
        assert (await cli("run", file, "--server", sim.url)).code == 4
        ended = await cli(
            "run", file, "--wait", "--server", sim.url, "--header", "Authorization: Bearer sesame"
        )
        assert ended.code == 0
        monkeypatch.setenv("COMFYFLOW_API_KEY", "sesame")
        assert (await cli("health", "--server", sim.url)).code == 0


# what is wrong with the input


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("{oops", 3, "not JSON"),
        ("[]", 3, "a list"),
        ("{}", 3, "empty"),
        ('{"nodes": [], "links": []}', 3, "no nodes"),
        ('{"1": {"inputs": {}}}', 3, "class_type"),
        ('{"1": {"class_type": "A", "inputs": {"x": ["9", 0]}}}', 3, "node '9'"),
    ],
)
@pytest.mark.parametrize("command", [["validate"], ["run"], ["run", "--wait"]])
async def test_a_bad_workflow_is_one_sentence_and_nothing_is_sent(
    command: list[str], text: str, code: int, part: str, cli: Cli
) -> None:
    ended = await cli(*command, cli.file(text, "bad.json"))
    assert (ended.code, ended.out) == (code, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("comfyflow: ")
    assert "bad.json" in line
    assert part in line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nothing.json"], "no such file"),
        (["."], "folder"),
        (["workflow.json", "--set", "9.x=1"], 'there are: "Canvas" (1)'),
        (["workflow.json", "--set", "1.widht=1"], "its inputs are: width"),
        (["workflow.json", "--set", "1.width=wide"], "takes a number"),
        (["workflow.json", "--set", "1.width"], "NODE.INPUT=VALUE"),
        (["workflow.json", "--seed", "7"], "there is no seed"),
        (["workflow.json", "--seed", "lucky"], "'lucky'"),
        (["workflow.json", "--seed", "-1"], "whole number"),
        (["workflow.json", "--server", "ftp://x"], "--server"),
        (["workflow.json", "--header", "no colon"], "--header"),
        (["workflow.json", "--timeout", "0"], "--timeout"),
        (["workflow.json", "--comfyui-output", "nowhere"], "mount it"),
    ],
)
async def test_wrong_use_is_one_sentence_and_nothing_is_sent(
    arguments: list[str], part: str, cli: Cli
) -> None:
    cli.file(picture())
    ended = await cli("run", "--wait", *arguments)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("comfyflow: ")
    assert part in line
    assert not (cli.folder / "comfyflow-output").exists()


async def test_a_bad_workflow_on_stdin_is_named_so(cli: Cli) -> None:
    cli.stdin("{oops")
    ended = await cli("run", "-")
    assert ended.code == 3
    assert ended.err.startswith("comfyflow: standard input: this is not JSON")


async def test_an_unusable_output_folder_is_found_before_anything_is_sent(cli: Cli, server: Sim) -> None:
    (cli.folder / "file").write_text("not a folder")
    ended = await cli("run", cli.file(picture()), "--wait", "--output", "file/inside")
    assert (ended.code, ended.out) == (7, "")
    assert len(ended.err.splitlines()) == 1
    assert "file/inside" in ended.err
    assert server.requests == []


async def test_errors_are_a_document_too(cli: Cli) -> None:
    ended = await cli("run", "nothing.json", "--json")
    assert ended.code == 2
    assert ended.document["error"]["type"] == "UsageError"
    assert ended.document["error"]["exit_code"] == 2


# what is wrong with the server or the job


async def test_a_server_that_is_not_there_is_told(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for command in (["run", cli.file(picture())], ["health"], ["status", "x"]):
            ended = await cli(*command, "--server", address)
            assert (ended.code, ended.out) == (4, "")
            assert address in ended.err.splitlines()[0]
            verbose = await cli(*command, "--server", address, "-v")
            assert any(line.startswith("  caused by ") for line in verbose.err.splitlines())


async def test_a_refusal_names_nodes_by_their_titles(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(picture(width=0)), "--wait", "--no-check")
    assert ended.code == 3
    assert any('Node "Canvas" (1): width: Value 0 smaller' in line for line in ended.err.splitlines())
    document = (await cli("run", cli.file(picture(width=0)), "--json", "--no-check")).document
    assert document["error"]["node_messages"][0].startswith('Node "Canvas" (1): width')
    assert server.executed.total() == 0


async def test_a_fault_is_found_before_anything_is_sent(cli: Cli, server: Sim) -> None:
    ended = await cli("run", cli.file(picture(width=0)), "--wait")
    assert (ended.code, ended.out) == (3, "")
    sentence, fault = ended.err.splitlines()
    assert "would refuse this: 1 fault" in sentence
    assert '"Canvas" (1): width is 0' in fault
    document = (await cli("run", cli.file(picture(width=0)), "--json")).document
    (told,) = document["error"]["faults"]
    assert (told["kind"], told["node_id"], told["input"]) == ("value_smaller_than_min", "1", "width")
    assert server.executed.total() == 0


async def test_what_no_server_would_take_is_told_with_what_is_missing_where(cli: Cli, server: Sim) -> None:
    nodes = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "here.png"}},
        "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nowhere.safetensors"}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["2", 2]}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["2", 2]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "x"}},
    }
    async with Sim() as other:
        (other.folders.root / "input" / "here.png").write_bytes(b"x")
        command = "run", cli.file(nodes), "--server", server.url, "--server", other.url, "--wait"
        ended = await cli(*command)
        document = (await cli(*command, "--json")).document
        unchecked = (await cli(*command, "--json", "--no-check")).document
    sentence, model, file = ended.err.splitlines()
    assert ended.code == 3
    assert f"{other.url} would refuse this: 1 fault; {server.url} would refuse this: 2 faults" in sentence
    assert "no model 'nowhere.safetensors'" in model
    assert not any(sim.url in model for sim in (server, other))
    assert file.startswith(f"comfyflow: {server.url}: ")
    assert "here.png" in file
    assert {url: len(faults) for url, faults in document["error"]["servers"].items()} == {
        other.url: 1,
        server.url: 2,
    }
    assert unchecked["error"]["missing"].keys() == {server.url, other.url}
    assert not any(sim.executed for sim in (server, other))


async def test_a_workflow_of_which_only_a_part_would_run_needs_consent(cli: Cli, server: Sim) -> None:
    file = cli.file(with_node("3", "SaveImage", filename_prefix="x"))
    refused = await cli("run", file, "--wait", "--quiet")
    assert refused.code == 3
    assert '"SaveImage" (3): the required input' in refused.err
    refused = await cli("run", file, "--wait", "--quiet", "--no-check")
    assert (refused.code, 'Node "SaveImage" (3): images' in refused.err) == (3, True)
    accepted = await cli("run", file, "--wait", "--quiet", "--allow-partial")
    assert (accepted.code, len(accepted.lines)) == (0, 1)


async def test_a_failure_tells_node_message_and_place(cli: Cli, server: Sim) -> None:
    file = cli.file(with_node("3", "SimFail", message="out of paint", exception="RuntimeError"))
    ended = await cli("run", file, "--wait", "--quiet")
    assert (ended.code, ended.out) == (1, "")
    sentence, place = ended.err.splitlines()
    assert "RuntimeError: out of paint" in sentence
    assert "(3)" in sentence
    assert place.startswith("  in File ")
    verbose = await cli("run", file, "--wait", "--quiet", "-v")
    assert "  the server's traceback:" in verbose.err.splitlines()
    document = (await cli("run", file, "--wait", "--json", "--quiet")).document
    assert (document["state"], document["error"]["node_type"]) == ("failed", "SimFail")
    assert document["error"]["prompt_id"] == document["prompt_id"]


async def test_a_timeout_leaves_the_job_and_says_which(cli: Cli, server: Sim) -> None:
    await server.hold()
    ended = await cli("run", cli.file(picture()), "--wait", "--timeout", "0.2", "--json", "--quiet")
    assert ended.code == 124
    prompt_id = ended.document["prompt_id"]
    waited = await cli("wait", prompt_id, "--timeout", "0.2")
    assert waited.code == 124
    assert prompt_id in waited.err.splitlines()[-1]
    await server.release()
    assert (await cli("wait", prompt_id, "--json")).document["state"] == "succeeded"


async def test_a_file_that_is_gone_is_told_with_the_job_s_id(cli: Cli, server: Sim) -> None:
    first = await cli("run", cli.file(picture()), "--wait", "--quiet")
    assert first.code == 0
    for file in server.folders.base("output").iterdir():
        file.unlink()
    ended = await cli("run", cli.file(picture()), "--wait", "--quiet")  # answered from the cache
    assert ended.code == 7
    assert "the job's id is " in ended.err


async def test_an_unknown_job_is_lost(cli: Cli, server: Sim) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    status = await cli("status", unknown, "--json")
    assert (status.code, status.document["state"]) == (5, "lost")
    waited = await cli("wait", unknown, "--quiet")
    assert (waited.code, unknown in waited.err) == (5, True)


async def test_download_saves_the_files_of_an_ended_job(cli: Cli, server: Sim) -> None:
    prompt_id = (await cli("run", cli.file(picture()))).lines[0]
    ended = await cli("download", prompt_id, cli.folder / "new" / "folder")
    assert ended.code == 0
    assert [Path(line).parent for line in ended.lines] == [cli.folder / "new" / "folder"]
    document = (await cli("download", prompt_id, "again", "--json")).document
    assert document["files"][0]["size"] == Path(ended.lines[0]).stat().st_size


# as a process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_job_on_the_server_too(number: signal.Signals, cli: Cli, server: Sim) -> None:
    file = cli.file(with_node("3", "SimSleep", seconds=30.0))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command("run", file, "--wait"), stdout=pipe, stderr=pipe)
    await server.wait_for(lambda: bool(server.executed))
    assert process.stderr is not None
    while b"running" not in await process.stderr.readline():
        continue
    process.send_signal(number)
    out, err = await process.communicate()
    (prompt_id,) = server.executed
    assert process.returncode == 130
    assert out == b""
    assert f"job {prompt_id} was cancelled" in err.decode().splitlines()[-1]
    assert (await cli("status", prompt_id)).lines == [f"{prompt_id}: cancelled"]


@pytest.mark.parametrize(("after", "said"), [(False, "was not on the server yet"), (True, "was cancelled")])
async def test_a_signal_while_the_job_is_being_sent_leaves_nothing_behind(
    after: bool, said: str, cli: Cli, server: Sim
) -> None:
    file = cli.file(with_node("3", "SimSleep", seconds=30.0))
    fault = server.faults.add("POST", "/prompt", stall(after=after))
    line = command("run", file, "--wait")
    process = await asyncio.create_subprocess_exec(*line, stderr=asyncio.subprocess.PIPE)
    await fault.met()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert said in err.decode().splitlines()[-1]
    document = (await cli("health", "--json")).document
    assert (document["running"], document["waiting"]) == (0, 0)


async def test_a_reader_that_leaves_after_the_first_line_is_no_fault(cli: Cli, server: Sim) -> None:
    file = cli.file(picture(batch_size=3))
    reader, writer = os.pipe()
    os.close(reader)
    line = command("run", file, "--wait", "--quiet")
    process = await asyncio.create_subprocess_exec(*line, stdout=writer, stderr=asyncio.subprocess.PIPE)
    os.close(writer)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
