"""resume, cancel, and the options of run that decide what may happen twice."""

from __future__ import annotations

import asyncio
import signal

import pytest
from clusters import execute
from commands import Cli, command, picture, with_node

from comfyflow.sim import Sim, gone, reset_after, stall


@pytest.fixture
def record(cli: Cli, database: str) -> str:
    """A database that the commands of `cli` record in."""
    cli.record_in(database)
    return database


def runs(dsn: str) -> list[tuple[object, ...]]:
    [rows] = execute(dsn, "SELECT prompt_id, state, replaces FROM workflow_runs ORDER BY created_at")
    return [tuple(row) for row in rows]


async def running(file: str, *arguments: str) -> asyncio.subprocess.Process:
    """Start a command; it has told that its job runs."""
    line = command("run", file, "--wait", *arguments)
    process = await asyncio.create_subprocess_exec(*line, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    while b"running" not in await process.stderr.readline():
        continue
    return process


async def killed(server: Sim, file: str, *arguments: str) -> str:
    """Kill a command while its job runs; the job's id."""
    before = set(server.executed)
    process = await running(file, *arguments)
    process.kill()
    await process.communicate()
    [prompt_id] = set(server.executed) - before
    return prompt_id


async def test_resume_brings_the_files_of_a_killed_command_to_where_they_were_to_go(
    cli: Cli, server: Sim, record: str
) -> None:
    await server.hold()
    prompt_id = await killed(server, cli.file(picture()), "--output", str(cli.folder / "mine"))
    await server.release()
    ended = await cli("resume")
    assert (ended.code, ended.lines) == (0, [str(cli.folder / "mine" / "cli_00001_.png")])
    assert ended.err == f"comfyflow: {prompt_id}: done, 1 file\n"
    assert runs(record) == [(prompt_id, "succeeded", None)]
    assert dict(server.executed) == {prompt_id: 1}
    again = await cli("resume", "--json")
    assert (again.code, again.document["jobs"]) == (0, [])
    assert "nothing to resume on" in again.err


async def test_resume_sends_what_was_never_sent(cli: Cli, server: Sim, record: str) -> None:
    fault = server.faults.add("POST", "/prompt", stall())
    process = await asyncio.create_subprocess_exec(*command("run", cli.file(picture()), "--wait", "--quiet"))
    await fault.met()
    process.kill()
    await process.wait()
    server.faults.clear()
    await server.wait_idle()
    ended = await cli("resume", "--output", "elsewhere", "--json")
    [job] = ended.document["jobs"]
    assert (ended.code, job["state"], len(job["files"])) == (0, "succeeded", 1)
    assert runs(record) == [(job["prompt_id"], "succeeded", None)]


async def test_resume_tells_what_was_lost_and_sends_it_again_only_on_request(
    cli: Cli, server: Sim, record: str
) -> None:
    for options, code in (((), 5), (("--resubmit-lost", "1"), 0)):
        await server.hold()
        prompt_id = await killed(server, cli.file(picture(prefix=str(code))))
        await server.restart()
        await server.release()
        ended = await cli("resume", *options, "--json")
        [job] = ended.document["jobs"]
        assert (ended.code, job.get("replaces")) == (code, prompt_id if code == 0 else None)
    assert [state for _, state, _ in runs(record)] == ["lost", "lost", "succeeded"]


async def test_resume_leaves_open_what_it_cannot_finish_now(cli: Cli, server: Sim, record: str) -> None:
    await server.hold()
    await killed(server, cli.file(picture()))
    await server.release()
    await server.wait_idle()
    await server.kill()
    away = await cli("resume")
    assert away.code == 4
    assert runs(record)[0][1] not in {"lost", "failed"}


async def test_resume_names_the_server_whose_jobs_are_open(cli: Cli, server: Sim, record: str) -> None:
    execute(record, "INSERT INTO workflow_runs (prompt_id, server) VALUES ('a', 'http://other:8188')")
    ended = await cli("resume")
    assert ended.code == 0
    assert "1 unfinished on http://other:8188: name it with --server" in ended.err


async def test_resume_needs_a_record(cli: Cli, server: Sim) -> None:
    ended = await cli("resume")
    assert (ended.code, "nothing is recorded" in ended.err) == (2, True)
    cli.record_in("postgresql://nobody@127.0.0.1:1/none")
    assert (await cli("resume")).code == 8


async def test_a_key_runs_once(cli: Cli, server: Sim, record: str) -> None:
    file = cli.file(picture())
    first = await cli("run", file, "--wait", "--quiet", "--key", "17")
    again = await cli("run", file, "--wait", "--quiet", "--key", "17")
    assert (first.code, again.code, again.lines) == (0, 0, first.lines)
    assert len((await cli("run", file, "--key", "17")).lines) == 1
    other = await cli("run", cli.file(picture(prefix="other")), "--key", "17")
    assert (other.code, "use a new key" in other.err) == (2, True)
    assert (await cli("run", file, "--key", "")).code == 2
    assert sum(server.executed.values()) == 1


async def test_a_lost_job_is_sent_again_by_run_on_request(cli: Cli, server: Sim, record: str) -> None:
    await server.hold()
    line = command("run", cli.file(picture()), "--wait", "--quiet", "--resubmit-lost", "2")
    process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
    await server.wait_running()
    await server.restart()
    await server.release()
    out, _ = await process.communicate()
    assert (process.returncode, len(out.splitlines())) == (0, 1)
    old, new = runs(record)
    assert (old[1], new[1:]) == ("lost", ("succeeded", old[0]))


@pytest.mark.parametrize(("policy", "code", "posts"), [("wait", 0, 1), ("fail", 0, 1)])
async def test_a_lost_answer_is_looked_up_whatever_the_policy(
    cli: Cli, server: Sim, policy: str, code: int, posts: int
) -> None:
    server.faults.add("POST", "/prompt", reset_after())
    ended = await cli("run", cli.file(picture()), "--wait", "--quiet", "--ambiguous", policy)
    assert (ended.code, server.requests.count(("POST", "/prompt"))) == (code, posts)
    assert (await cli("run", cli.file(picture()), "--ambiguous", "maybe")).code == 2


async def test_ctrl_c_may_leave_the_job_on_the_server(cli: Cli, server: Sim, record: str) -> None:
    await server.hold()
    process = await running(cli.file(picture()), "--on-interrupt", "leave")
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    await server.release()
    assert (process.returncode, "was left on the server" in err.decode().splitlines()[-1]) == (130, True)
    ended = await cli("resume", "--quiet")
    assert (ended.code, len(ended.lines), ended.err) == (0, 1, "")


async def test_cancel_records_how_the_job_ended(cli: Cli, server: Sim, record: str) -> None:
    file = cli.file(with_node("3", "SimSleep", seconds=30.0))
    first, second = [(await cli("run", file)).lines[0] for _ in range(2)]
    await server.wait_running(first)
    for prompt_id in (second, first):
        assert (await cli("cancel", prompt_id)).lines == [f"{prompt_id}: cancelled"]
    assert {state for _, state, _ in runs(record)} == {"cancelled"}
    again = await cli("cancel", first, "--json")
    assert (again.code, again.document["cancelled"], again.document["recorded"]) == (1, False, "postgresql")


async def test_an_old_server_interrupts_whatever_runs_only_by_force(cli: Cli) -> None:
    async with Sim(profile="0.3.40") as old:
        cli.variable("COMFYFLOW_URL", old.url)
        prompt_id = (await cli("run", cli.file(with_node("3", "SimSleep", seconds=30.0)))).lines[0]
        await old.wait_running(prompt_id)
        refused = await cli("cancel", prompt_id)
        assert (refused.code, "force" in refused.err) == (4, True)
        assert ("POST", "/interrupt") not in old.requests
        assert (await cli("cancel", prompt_id, "--force")).code == 0


async def test_a_vanished_file_is_a_failure_and_stays_one(cli: Cli, server: Sim, record: str) -> None:
    server.faults.add("GET", "/view", gone(), times=None)
    ended = await cli("run", cli.file(picture()), "--wait", "--quiet")
    assert (ended.code, "no longer has this file" in ended.err) == (7, True)
    assert [state for _, state, _ in runs(record)] == ["failed"]
    assert (await cli("resume", "--json")).document["jobs"] == []
