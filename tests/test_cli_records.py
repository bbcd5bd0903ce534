"""Jobs are recorded in a real PostgreSQL, and the record is read: runs, assets, events, show."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, command, picture, with_node

from comfyflow.database import Connections
from comfyflow.sim import Sim, stall


@pytest.fixture
def cli(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, database: str
) -> Cli:
    recording = Cli(tmp_path, capsys, monkeypatch)
    recording.record_in(database)
    return recording


async def run(cli: Cli, *arguments: object, **inputs: Any) -> dict[str, Any]:
    """Run a picture to its end; its document."""
    file = cli.file(picture(**inputs))
    ended = await cli("run", file, "--wait", "--json", "--quiet", *arguments)
    assert ended.code == 0
    document: dict[str, Any] = ended.document
    assert document["recorded"] == "postgresql"
    return document


# what is recorded


async def test_a_run_leaves_its_row_its_file_and_its_log(cli: Cli, server: Sim) -> None:
    done = await run(cli)
    (recorded,) = (await cli("runs", "--json")).document["runs"]
    assert (recorded["prompt_id"], recorded["state"]) == (done["prompt_id"], "succeeded")
    assert (recorded["server"], recorded["files"]) == (server.url, 1)
    (asset,) = (await cli("assets", "--json")).document["assets"]
    assert Path(asset["path"]).stat().st_size == asset["metadata"]["bytes"]
    log = (await cli("events", done["prompt_id"], "--json")).document["events"]
    assert (log[0]["event"], log[-1]["event"]) == ("submitted", "finished")
    assert all(datetime.fromisoformat(event["at"]).tzinfo for event in log)


async def test_wait_records_the_end_of_a_job_that_was_only_sent(cli: Cli, server: Sim) -> None:
    sent = (await cli("run", cli.file(picture()), "--json")).document
    assert (await cli("runs", "--json")).document["runs"][0]["state"] != "succeeded"
    waited = await cli("wait", sent["prompt_id"], "--json", "--quiet")
    assert (waited.code, waited.document["recorded"]) == (0, "postgresql")
    assert (await cli("runs", "--json")).document["runs"][0]["state"] == "succeeded"


async def test_download_records_the_files_of_a_job_that_somebody_else_sent(cli: Cli, server: Sim) -> None:
    prompt_id = (await cli("run", cli.file(picture()), "--database", "none")).lines[0]
    assert (await cli("download", prompt_id, "got", "--quiet")).code == 0
    (asset,) = (await cli("assets", "--json")).document["assets"]
    assert (asset["prompt_id"], Path(asset["path"]).parent) == (prompt_id, cli.folder / "got")


async def test_a_failed_and_a_refused_job_are_recorded_with_their_reasons(cli: Cli, server: Sim) -> None:
    failing = cli.file(with_node("3", "SimFail", message="out of paint", exception="RuntimeError"))
    failed = await cli("run", failing, "--wait", "--json", "--quiet")
    assert (failed.code, failed.document["recorded"]) == (1, "postgresql")
    refused = await cli("run", cli.file(picture(width=0)), "--wait", "--quiet", "--no-check")
    assert refused.code == 3
    found = (await cli("runs", "--state", "failed", "--json")).document["runs"]
    assert len(found) == 2
    assert "out of paint" in found[1]["error"]["message"]


async def stopped(*arguments: str, when: Callable[[], Awaitable[object]]) -> None:
    """Ctrl-C for a command, at the right moment."""
    process = await asyncio.create_subprocess_exec(*command(*arguments), stderr=asyncio.subprocess.DEVNULL)
    await when()
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130


async def test_a_running_job_that_is_stopped_is_recorded_as_cancelled(cli: Cli, server: Sim) -> None:
    file = cli.file(with_node("3", "SimSleep", seconds=30.0))
    await stopped("run", file, "--wait", when=lambda: server.wait_for(lambda: bool(server.executed)))
    (recorded,) = (await cli("runs", "--json")).document["runs"]
    assert recorded["state"] == "cancelled"


async def test_a_waiting_job_that_is_stopped_is_recorded_as_cancelled(cli: Cli, server: Sim) -> None:
    await server.hold()
    asked = ("POST", "/prompt")
    await cli("run", cli.file(picture()))  # this one is held, the next one waits behind it
    count = server.requests.count(asked)
    await stopped(
        *("run", cli.file(picture()), "--wait"),
        when=lambda: server.wait_for(lambda: server.requests.count(asked) > count),
    )
    await server.release()
    newest, _ = (await cli("runs", "--json")).document["runs"]
    assert newest["state"] == "cancelled"


async def test_a_job_that_is_stopped_while_it_is_sent_is_not_to_be_sent_later(cli: Cli, server: Sim) -> None:
    fault = server.faults.add("POST", "/prompt", stall())
    await stopped("run", cli.file(picture()), "--wait", when=fault.met)
    (recorded,) = (await cli("runs", "--json")).document["runs"]
    assert (recorded["state"], recorded["submitted_at"]) == ("cancelled", None)
    assert recorded["error"]["message"] == "it was stopped before the server had it"


async def test_an_env_file_names_the_database_and_the_environment_wins(
    cli: Cli, server: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(cli)
    (cli.folder / ".env").write_text(f"COMFYFLOW_DATABASE_URL='{os.environ['COMFYFLOW_DATABASE_URL']}'\n")
    monkeypatch.delenv("COMFYFLOW_DATABASE_URL")
    assert len((await cli("runs", "--env-file", ".env", "--json")).document["runs"]) == 1
    cli.record_in("none")
    ended = await cli("runs", "--env-file", ".env")
    assert (ended.code, "COMFYFLOW_DATABASE_URL" in ended.err) == (8, True)
    missing = await cli("runs", "--env-file", "nowhere.env")
    assert (missing.code, missing.err.startswith("comfyflow: --env-file: nowhere.env")) == (2, True)


# reading


async def test_lists_are_aligned_columns_and_an_empty_one_is_its_head(cli: Cli, server: Sim) -> None:
    assert (await cli("runs")).lines == ["CREATED  STATE  TOOK  FILES  ID  PROMPT"]
    done = await run(cli)
    head, row = (await cli("runs")).lines
    assert row.index(str(done["prompt_id"])) == head.index("ID")
    head, row = (await cli("assets")).lines
    assert Path(row[head.index("FILE") :]).is_file()


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["--state", "succeeded"], 1),
        (["--state", "lost"], 0),
        (["--since", "1h"], 1),
        (["--until", "1h"], 0),
        (["--since", "2001-01-01", "--until", "2002-01-01"], 0),
        (["--digest", "0123"], 0),
        (["--server", "localhost"], 0),
        (["--text", "unicorn"], 0),
    ],
)
async def test_runs_are_filtered(filters: list[str], count: int, cli: Cli, server: Sim) -> None:
    await run(cli)
    assert len((await cli("runs", *filters, "--json")).document["runs"]) == count


async def test_runs_are_found_by_their_own_digest_and_server(cli: Cli, server: Sim) -> None:
    await run(cli)
    digest = (await cli("runs", "--json")).document["runs"][0]["digest"]
    mine = ["--digest", digest[:8], "--server", server.url]
    assert len((await cli("runs", *mine, "--json")).document["runs"]) == 1


async def test_assets_are_found_by_what_made_them(cli: Cli) -> None:
    example = Path(__file__).parent.parent / "examples" / "text_to_image.json"
    sampled = ["--simulate", "--wait", "--quiet", "--json", "--set", "3.steps=1", "--seed", "77"]
    done = (await cli("run", example, *sampled)).document
    (asset,) = (await cli("assets", "--json")).document["assets"]
    assert asset["metadata"]["seed"] == 77
    model = asset["metadata"]["model"]
    fitting = [["--seed", "77"], ["--model", model], ["--node", "9"], ["--text", "fox"]]
    fitting += [["--job", done["prompt_id"]], ["--sha256", asset["metadata"]["sha256"].upper()]]
    for arguments in fitting:
        assert len((await cli("assets", *arguments, "--json")).document["assets"]) == 1, arguments
    assert (await cli("assets", "--seed", "78", "--json")).document["assets"] == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["runs", "--since", "yesterday"], "--since"),
        (["runs", "--digest", "xyz"], "digest"),
        (["runs", "--server", "ftp://x"], "--server"),
        (["runs", "--state", "happy"], "happy"),
        (["assets", "--until", "3 moons"], "--until"),
        (["assets", "--sheet", "sheet.png"], "nothing to draw"),
        (["assets", "verify", "--shared", "nowhere"], "nowhere"),
        (["assets", "export", "--format", "xml"], "csv"),
        (["assets", "export", "--output", "no/such/folder.csv"], "no/such/folder.csv"),
    ],
)
async def test_wrong_use_is_one_sentence(arguments: list[str], part: str, cli: Cli) -> None:
    ended = await cli(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert part in ended.err


async def test_show_tells_everything_and_gives_the_workflow_back(cli: Cli, server: Sim) -> None:
    done = await run(cli)
    shown = await cli("show", done["prompt_id"])
    assert shown.lines[0] == f"job: {done['prompt_id']}"
    document = (await cli("show", done["prompt_id"], "--json")).document
    assert document["workflow"] == picture()
    assert len(document["assets"]) == 1
    graph = await cli("show", done["prompt_id"], "--workflow")
    assert (await cli("run", cli.file(graph.out), "--wait", "--quiet")).code == 0


@pytest.mark.parametrize("arguments", [["show"], ["show", "--workflow"], ["events"]])
async def test_a_job_that_is_not_recorded_is_unknown(arguments: list[str], cli: Cli) -> None:
    ended = await cli(*arguments, "no-such-job")
    assert (ended.code, ended.out) == (5, "")
    assert ended.err == "comfyflow: job no-such-job is not in the record\n"


# files


async def test_verify_finds_what_is_changed_missing_and_orphaned(cli: Cli, server: Sim) -> None:
    done = await run(cli, "--output", "shared/pictures", "--shared", "shared", batch_size=3)
    good = await cli("assets", "verify", "--shared", "shared")
    assert (good.code, good.lines) == (0, ["3 ok, 0 missing, 0 changed, 0 orphaned, 0 unverifiable"])
    files = [Path(file["path"]) for file in done["files"]]
    files[0].unlink()
    files[1].write_bytes(b"other")
    (cli.folder / "shared" / "new.png").write_bytes(b"x")
    bad = await cli("assets", "verify", "--shared", "shared")
    assert bad.code == 1
    assert sorted(line.partition(":")[0] for line in bad.lines[:-1]) == ["changed", "missing", "orphaned"]
    document = (await cli("assets", "verify", "--shared", "shared", "--json")).document
    assert (document["ok"], document["missing"], len(document["files"])) == (1, 1, 3)
    (cli.folder / "shared" / "new.png").unlink()


async def test_export_writes_csv_and_json_lines(cli: Cli, server: Sim) -> None:
    done = await run(cli, batch_size=2)
    rows = list(csv.DictReader(io.StringIO((await cli("assets", "export")).out)))
    assert [row["prompt_id"] for row in rows] == [done["prompt_id"]] * 2
    assert json.loads(rows[0]["metadata"])["media_type"] == "image/png"
    to_file = await cli("assets", "export", "--format", "jsonl", "--output", "all.jsonl", "--json")
    assert to_file.document == {"assets": 2, "file": "all.jsonl"}
    refused = await cli("assets", "export", "--json")
    assert (refused.code, refused.document["error"]["type"]) == (2, "UsageError")
    lines = (cli.folder / "all.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt_id"] for line in lines] == [done["prompt_id"]] * 2


async def test_a_reader_that_leaves_the_export_early_is_no_fault(cli: Cli, server: Sim) -> None:
    await run(cli)
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        *command("assets", "export"), stdout=writer, stderr=asyncio.subprocess.PIPE
    )
    os.close(writer)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


async def test_kept_files_come_back_identical_and_the_others_are_named(cli: Cli, server: Sim) -> None:
    await run(cli, prefix="lost")
    done = await run(cli, "--keep-content", prefix="kept", color=3)
    (file,) = done["files"]
    original = Path(file["path"]).read_bytes()
    back = await cli("assets", "export", "--files", "back", "--job", done["prompt_id"], "--json")
    assert back.code == 0
    assert (cli.folder / back.document["files"][0]).read_bytes() == original
    partly = await cli("assets", "export", "--files", "back")
    assert (partly.code, len(partly.lines)) == (8, 1)
    assert "lost_00001_.png" in partly.err


async def test_files_with_one_recorded_path_are_all_written_and_told_apart(cli: Cli, server: Sim) -> None:
    originals = {}
    for color in (1, 2):
        done = await run(cli, "--output", f"c{color}", "--keep-content", color=color)
        originals[done["prompt_id"]] = Path(done["files"][0]["path"]).read_bytes()
    for _ in range(2):  # once more changes nothing
        back = await cli("assets", "export", "--files", "back", "--json")
        assert (back.code, back.document["failed"]) == (0, [])
        written = {
            one["prompt_id"]: (cli.folder / one["path"]).read_bytes() for one in back.document["written"]
        }
        assert written == originals
        assert len(list((cli.folder / "back").iterdir())) == 2


# what others wrote


NULLS = "ALTER TABLE generated_assets ALTER prompt_id DROP NOT NULL, ALTER output_path DROP NOT NULL"
ODD = [
    ("a.png", '{"bytes": 1e400, "seed": 1e400}'),
    ("b.png", '{"bytes": "NaN", "seed": -1, "node_title": {"a": 1}, "width": "wide"}'),
    (None, "{}"),
]


@pytest.fixture
async def odd(cli: Cli) -> Cli:
    """A table in which others have written, and which was there before us."""
    async with await Connections.open(os.environ["COMFYFLOW_DATABASE_URL"]) as connections:
        await connections.execute(NULLS)
        for path, metadata in ODD:
            await connections.execute(
                "INSERT INTO generated_assets (prompt_id, output_path, metadata, created_at)"
                " VALUES ('p', $1, $2::jsonb, 'infinity')",
                path,
                metadata,
            )
    return cli


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--sheet", "sheet.png"]])
async def test_odd_rows_are_listed(arguments: list[str], odd: Cli) -> None:
    ended = await odd("assets", *arguments)
    assert (ended.code, ended.err) == (0, "")
    if arguments == ["--json"]:
        assert [asset["path"] is None for asset in ended.document["assets"]] == [True, False, False]


async def test_a_row_that_names_no_file_is_told_by_its_number(odd: Cli) -> None:
    (odd.folder / "shared").mkdir()
    checked = await odd("assets", "verify", "--shared", "shared")
    assert (checked.code, checked.lines[0]) == (1, "unverifiable: row 3 (its row names no file)")
    exported = await odd("assets", "export", "--files", "back")
    assert (exported.code, exported.err.splitlines()[0]) == (8, "comfyflow: row 3: its row names no file")
    assert "b.png: its row has no sha256" in exported.err
    assert not (odd.folder / "back").exists()


async def test_odd_rows_are_exported_to_the_letter(odd: Cli) -> None:
    exported = await odd("assets", "export", "--format", "jsonl")
    rows = [json.loads(line) for line in exported.lines]
    assert [(row["output_path"], row["created_at"]) for row in rows] == [
        (None, "infinity"), ("b.png", "infinity"), ("a.png", "infinity"),
    ]  # fmt: skip
    assert rows[2]["metadata"] == {"bytes": 10**400, "seed": 10**400}
    assert len(list(csv.DictReader(io.StringIO((await odd("assets", "export")).out)))) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "--limit", "99999999999999999999"],
        ["runs", "--limit", "9223372036854775808"],
        ["assets", "--limit", "99999999999999999999"],
        ["assets", "--seed", "123456789012345678901234567890"],
        ["runs", "--since", "999999999w"],
        ["assets", "--since", "999999999w"],
        ["assets", "--until", "999999999w"],
        ["runs", "--since", "9999-12-31", "--until", "0001-01-02"],
    ],
)
async def test_numbers_without_measure_find_nothing_and_are_no_fault(arguments: list[str], cli: Cli) -> None:
    ended = await cli(*arguments, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.document in ({"runs": []}, {"assets": []})


async def test_a_contact_sheet_is_drawn(cli: Cli, server: Sim) -> None:
    await run(cli, batch_size=2)
    ended = await cli("assets", "--sheet", "sheet.png")
    assert (ended.code, ended.lines) == (0, ["sheet.png"])
    assert (cli.folder / "sheet.png").read_bytes().startswith(b"\x89PNG")


async def test_what_belongs_to_a_batch_is_listed_by_its_name(cli: Cli, server: Sim) -> None:
    await run(cli, "--key", "batch:cats:1")
    done = await run(cli, "--key", "batch:dogs:1")
    (job,) = (await cli("runs", "--batch", "dogs", "--json")).document["runs"]
    (file,) = (await cli("assets", "--batch", "dogs", "--json")).document["assets"]
    assert job["prompt_id"] == file["prompt_id"] == done["prompt_id"]
    assert (await cli("runs", "--batch", "dog", "--json")).document["runs"] == []
