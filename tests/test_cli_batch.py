"""batch: many rows, each once, however often the command is killed and run again."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from clusters import execute
from commands import Cli, Ended, command, picture, with_node

from comfyflow.sim import Sim, gone

COUNT = 30


@pytest.fixture
def record(cli: Cli, database: str) -> str:
    """A database that the commands of `cli` record in."""
    cli.record_in(database)
    return database


@pytest.fixture
def base(cli: Cli) -> str:
    """The workflow of the batches."""
    return cli.file(picture())


def table(cli: Cli, count: int = COUNT, *more: str, name: str = "rows.csv") -> str:
    """A CSV file in which each row makes a picture of its own."""
    rows = [f"k{number},{number}" for number in range(count)]
    return cli.file("\n".join(["key,Canvas.color", *rows, *more]) + "\n", name)


def documents(ended: Ended) -> tuple[list[Any], Any]:
    """What `--json` has told: the rows, the summary."""
    *rows, last = map(json.loads, ended.lines)
    assert all("summary" not in row for row in rows)
    return rows, last["summary"]


def summary(ended: Ended) -> str:
    """The last line on stderr, without the time it took."""
    return ended.err.splitlines()[-1].rpartition(", ")[0]


def pictures(cli: Cli) -> set[Path]:
    return set((cli.folder / "comfyflow-output").glob("*.png"))


async def test_every_row_runs_once_and_again_only_tells_what_is_done(
    cli: Cli, server: Sim, record: str, base: str
) -> None:
    rows = table(cli)
    first = await cli("batch", "--workflow", base, rows)
    assert (first.code, len(first.lines), set(map(Path, first.lines))) == (0, COUNT, pictures(cli))
    assert summary(first) == "comfyflow: rows.csv: 30 rows, 30 done, 0 done before, 0 failed, 30 files"
    again = await cli("batch", "--workflow", base, rows, "--json")
    told, total = documents(again)
    assert (again.code, {Path(row["files"][0]["path"]) for row in told}) == (0, pictures(cli))
    assert {(row["again"], row["state"], row["error"]) for row in told} == {(True, "succeeded", None)}
    assert {(row["row"], row["key"]) for row in told} == {(n + 1, f"k{n}") for n in range(COUNT)}
    assert (total["rows"], total["done_before"], total["succeeded"]) == (COUNT, COUNT, 0)
    assert sorted(server.executed.values()) == [1] * COUNT
    [[count]] = [list(rows[0]) for rows in execute(record, "SELECT count(*) FROM workflow_runs")]
    assert count == COUNT


async def begun(*arguments: str) -> asyncio.subprocess.Process:
    """Start the command; some of its rows are done."""
    process = await asyncio.create_subprocess_exec(
        *command("batch", *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(5):
        assert await process.stdout.readline()
    return process


async def test_a_killed_batch_is_finished_by_the_same_command(
    cli: Cli, server: Sim, record: str, base: str
) -> None:
    arguments = ["--workflow", base, table(cli), "--concurrency", "4"]
    process = await begun(*arguments)
    process.kill()
    await process.communicate()
    assert len(server.executed) < COUNT
    ended = await cli("batch", *arguments, "--json")
    told, total = documents(ended)
    assert (ended.code, total["rows"], total["failed"]) == (0, COUNT, {})
    assert total["done_before"] >= 4
    assert {Path(row["files"][0]["path"]) for row in told} == pictures(cli)
    assert len(pictures(cli)) == COUNT
    assert sorted(server.executed.values()) == [1] * COUNT


async def test_ctrl_c_leaves_the_jobs_and_says_how_to_go_on(
    cli: Cli, server: Sim, record: str, base: str
) -> None:
    arguments = ["--workflow", base, table(cli, 12), "--concurrency", "3"]
    process = await begun(*arguments)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    *_, total, last = err.decode().splitlines()
    assert "0 failed" in total
    assert "left on the server: run the same command again to go on" in last
    assert (await cli("batch", *arguments)).code == 0
    assert sorted(server.executed.values()) == [1] * 12


# failures


async def test_failures_are_told_counted_and_make_the_exit_code(cli: Cli, server: Sim, record: str) -> None:
    graph = with_node("3", "SimFail", message="no", exception="ValueError")
    ok, bad = cli.folder / "flows" / "a.json", cli.folder / "flows" / "b.json"
    ok.parent.mkdir()
    ok.write_text(json.dumps(picture()))
    bad.write_text(json.dumps(graph))
    first = await cli("batch", "flows")
    assert (first.code, "failed at node" in first.err) == (1, True)
    assert summary(first) == "comfyflow: flows: 2 rows, 1 done, 0 done before, 1 failed (1 failed), 1 file"
    again = await cli("batch", "flows", "--quiet")
    assert (again.code, "--retry-failed sends it again" in again.err) == (1, True)
    sent = sum(server.executed.values())
    assert sent == 2
    once = await cli("batch", "flows", "--retry-failed", "--retry", "0", "--json")
    assert documents(once)[1]["failed"] == {"failed": 1}
    assert sum(server.executed.values()) == sent + 1


async def test_a_bad_first_row_is_told_before_anything_is_sent(cli: Cli, server: Sim, base: str) -> None:
    rows = cli.file("key,Canvas.colour\na,1\n", "rows.csv")
    ended = await cli("batch", "--workflow", base, rows)
    assert ended.code in {2, 3}
    assert "line 2" in ended.err
    assert "color" in ended.err
    assert server.requests == []
    as_json = await cli("batch", "--workflow", base, rows, "--json")
    assert [json.loads(line)["error"]["exit_code"] for line in as_json.lines] == [ended.code]


async def test_bad_rows_further_on_fail_and_the_others_run(
    cli: Cli, server: Sim, record: str, base: str
) -> None:
    lines = ['{"Canvas.color": 1}', '{"Canvas.color": "red"}', '{"Canvas.color": ', "[1]"]
    rows = cli.file("\n".join([*lines, '{"Canvas.color": 2}', ""]), "rows.jsonl")
    ended = await cli("batch", "--workflow", base, rows, "--json")
    told, total = documents(ended)
    assert (total["succeeded"], sum(total["failed"].values()), total["rows"]) == (2, 3, 5)
    assert ended.code in {2, 3}
    for line in (2, 3, 4):
        assert any(f"line {line}" in row["error"]["message"] for row in told if row["error"])


async def test_no_further_row_is_begun_after_the_failures_that_are_allowed(
    cli: Cli, server: Sim, record: str, base: str
) -> None:
    rows = table(cli, 1, "x,a", "y,b", "z,5")
    for options, count in ((["--fail-fast"], 2), (["--max-failures", "2"], 3), ([], 4)):
        ended = await cli("batch", "--workflow", base, rows, "--concurrency", "1", "--json", *options)
        told, total = documents(ended)
        assert (len(told), total["stopped"] is None) == (count, not options)
        assert ended.code in {2, 3}
    assert sorted(server.executed.values()) == [1, 1]


async def test_the_worst_failure_makes_the_exit_code(cli: Cli, server: Sim, record: str, base: str) -> None:
    server.faults.add("GET", "/view", gone(), times=4)
    once = ("--concurrency", "1", "--retry", "0", "--json")
    ended = await cli("batch", "--workflow", base, table(cli, 3), *once)
    assert (ended.code, documents(ended)[1]["failed"]) == (7, {"download": 2})
    other = cli.file(picture(width=80), "other.json")
    changed = await cli("batch", "--workflow", other, table(cli, 3), "--json")
    assert (changed.code, documents(changed)[1]["failed"]) == (2, {"usage": 3})
    assert (await cli("batch", "--workflow", other, table(cli, 3), "--name", "other")).code == 0


async def test_a_server_that_is_away_is_told_at_once(cli: Cli, server: Sim, record: str, base: str) -> None:
    await server.kill()
    ended = await cli("batch", "--workflow", base, table(cli, 3))
    assert (ended.code, ended.lines) == (4, [])


async def test_a_batch_needs_its_record_or_the_word_that_there_is_none(
    cli: Cli, server: Sim, base: str
) -> None:
    unrecorded = await cli("batch", "--workflow", base, table(cli, 3))
    assert (unrecorded.code, unrecorded.err.count("--database none records nothing")) == (0, 1)
    assert (await cli("batch", "--workflow", base, table(cli, 3))).code == 0
    assert sorted(server.executed.values()) == [1, 1, 1]
    cli.record_in("postgresql://nobody@127.0.0.1:1/none")
    assert (await cli("batch", "--workflow", base, table(cli, 4))).code == 8
    assert len(server.executed) == 3


# where rows come from


async def test_rows_come_from_standard_input_of_either_kind(
    cli: Cli, server: Sim, record: str, base: str
) -> None:
    cli.stdin('\n{"Canvas.color": 1}\n{"Canvas.color": 2}\n')
    assert len((await cli("batch", "--workflow", base, "-")).lines) == 2
    cli.stdin("Canvas.color\n3\n4\n2\n")
    ended = await cli("batch", "--workflow", base, "-", "--json")
    assert documents(ended)[1]["done_before"] == 1
    assert len(server.executed) == 4


async def test_rows_of_a_pipe_run_as_they_come(cli: Cli, server: Sim, record: str, base: str) -> None:
    line = command("batch", "--workflow", base, "-", "--quiet")
    process = await asyncio.create_subprocess_exec(
        *line, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    for number in range(2):
        process.stdin.write(b'{"Canvas.color": %d}\n' % number)
        assert Path((await process.stdout.readline()).decode().strip()).exists()
    process.send_signal(signal.SIGTERM)  # while the pipe is open, and nothing comes
    assert await process.wait() == 130


async def test_on_a_terminal_paths_stand_in_lines_of_their_own_beside_the_bar(
    cli: Cli, server: Sim, record: str, base: str
) -> None:
    cli.variable("TERM", "xterm")
    cli.variable("COLUMNS", "100")
    ours, theirs = pty.openpty()
    line = command("batch", "--workflow", base, table(cli, 3, "x,red"))
    process = await asyncio.create_subprocess_exec(*line, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = (await asyncio.to_thread(drawn, ours)).decode()
    assert await process.wait() in {2, 3}
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part) for part in re.split(r"[\r\n]+", text)]
    assert {Path(line) for line in lines if line.startswith("/")} == pictures(cli)
    assert any(line.startswith("comfyflow: rows.csv, line 5: ") for line in lines)
    assert "4 rows, 3 done, 0 done before, 1 failed" in lines[-2]
    assert "of 4 rows" in text


def drawn(terminal: int) -> bytes:
    """All that is written to a terminal, until nobody has it open any more."""
    found = b""
    try:
        while part := os.read(terminal, 65536):
            found += part
    except OSError:  # how Linux tells that
        pass
    os.close(terminal)
    return found


async def test_a_matrix_makes_every_combination(cli: Cli, server: Sim, record: str, base: str) -> None:
    cli.file("16\n24\n", "widths.txt")
    matrix = ["--matrix", "Canvas.color=1..3", "--matrix", "Canvas.width=@widths.txt"]
    ended = await cli("batch", "--workflow", base, *matrix)
    assert (ended.code, len(ended.lines)) == (0, 6)
    assert ended.err.startswith("comfyflow: workflow.json: 6 rows")


async def test_a_limit_takes_the_first_rows_of_either_order(
    cli: Cli, server: Sim, record: str, base: str
) -> None:
    ended = await cli("batch", "--workflow", base, table(cli), "--limit", "2", "--json")
    assert {row["key"] for row in documents(ended)[0]} == {"k0", "k1"}
    drawn = await cli("batch", "--workflow", base, table(cli), "--limit", "9", "--order", "random", "--json")
    assert len(documents(drawn)[0]) == 9
    whole = await cli("batch", "--workflow", base, table(cli), "--order", "random", "--json")
    assert (documents(whole)[1]["rows"], len(server.executed)) == (COUNT, COUNT)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there are no rows"),
        (["rows.csv", "--matrix", "seed=1"], "exclude each other"),
        (["rows.csv"], "--workflow is missing"),
        ([".", "--workflow", "workflow.json"], "leave it out"),
        (["-", "--workflow", "-"], "name a file"),
        (["none.csv", "--workflow", "workflow.json"], "none.csv cannot be read: No such file"),
        (["latin.csv", "--workflow", "workflow.json"], "latin.csv, line 2: this is not UTF-8 text"),
        (["rows.csv", "--workflow", "none.json"], "none.json"),
    ],
)
async def test_wrong_use_is_told_before_anything_is_sent(
    cli: Cli, server: Sim, base: str, arguments: list[str], said: str
) -> None:
    table(cli)
    (cli.folder / "latin.csv").write_bytes(b"Canvas.color\n\xe4\n")
    ended = await cli("batch", *arguments)
    assert (ended.code, said in ended.err) == (2, True), ended.err
    assert server.requests == []


async def test_no_rows_are_no_failure(cli: Cli, server: Sim, record: str, base: str) -> None:
    ended = await cli("batch", "--workflow", base, cli.file("", "rows.jsonl"))
    assert (ended.code, "0 rows" in ended.err) == (0, True)


async def test_a_job_may_take_only_so_long(cli: Cli, server: Sim, record: str) -> None:
    slow = cli.file(with_node("3", "SimSleep", seconds=30.0))
    ended = await cli("batch", "--workflow", slow, table(cli, 2), "--timeout", "0.3")
    assert (ended.code, "2 failed (2 timeout)" in ended.err) == (124, True)
