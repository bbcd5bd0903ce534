"""The start of the program: a password on the command line does not stay where everybody can read it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from commands import Cli, command

SCRIPT = [str(Path(sys.executable).with_name("comfyflow"))]
MODULE = command()
SECRET = "hush:h@sh"  # as people write it, not encoded


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(tmp_path, capsys, monkeypatch)


class Deaf:
    """A port where a database might be: it takes connections and says nothing."""

    def __init__(self, port: int) -> None:
        self.port, self.met = port, asyncio.Event()


@pytest.fixture
async def deaf() -> AsyncIterator[Deaf]:
    writers = []

    def meet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        place.met.set()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        place = Deaf(server.sockets[0].getsockname()[1])
        yield place
        for writer in writers:
            writer.close()


def arguments(form: str, port: int) -> list[str]:
    url = f"postgresql://me:{SECRET}@127.0.0.1:{port}/x"
    return {
        "apart": ["--database", url],
        "joined": [f"--database={url}"],
        "query": ["--database", f"postgresql://127.0.0.1:{port}/x?user=me&password={SECRET}"],
        "keywords": ["--database", f"host=127.0.0.1 port={port} user=me password = '{SECRET}'"],
        "twice": ["--database", f"postgresql://me:{SECRET}@nowhere/x", "--database", url],
    }[form]


@pytest.mark.parametrize("program", [SCRIPT, MODULE, [sys.executable, "-X", "dev", "-u", *MODULE[1:]]])
@pytest.mark.parametrize("form", ["apart", "joined", "query", "keywords", "twice"])
async def test_nobody_reads_the_password_in_the_list_of_processes(
    form: str, program: list[str], cli: Cli, deaf: Deaf
) -> None:
    process = await asyncio.create_subprocess_exec(
        *program, "runs", *arguments(form, deaf.port), "--limit", "7", stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        await deaf.met.wait()  # the whole value has arrived where it is used, in the same process
    seen = psutil.Process(process.pid).cmdline()
    assert "hush" not in " ".join(seen)
    assert seen[-2:] == ["--limit", "7"]
    assert ("dev" in seen) == ("dev" in program)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert b"hush" not in err


async def answered(*words: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


@pytest.mark.parametrize("left", [None, "junk", "[1]", "{}", '{"9": 1}', '{"3": "x"}'])
async def test_the_value_counts_as_the_flag_whatever_stands_in_the_variable(
    left: str | None, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left is not None:
        monkeypatch.setenv("COMFYFLOW_DATABASE_FLAG", left)
    told = await answered(*SCRIPT, "db", "where", "--database", "postgresql://me:hush@nowhere/x")
    assert told == (0, "postgresql://me@nowhere/x (--database)\n")


async def test_what_the_program_starts_does_not_inherit_the_password(cli: Cli) -> None:
    code = (
        "import os, sys, comfyflow.__main__ as start;"
        "start._put_back(); print(sys.argv[2:], 'COMFYFLOW_DATABASE_FLAG' in os.environ)"
    )
    os.environ["COMFYFLOW_DATABASE_FLAG"] = '{"1": "postgresql://me:hush@h/x"}'
    try:
        told = await answered(sys.executable, "-c", code, "--database", "***")
    finally:
        del os.environ["COMFYFLOW_DATABASE_FLAG"]
    assert told == (0, "['postgresql://me:hush@h/x'] False\n")


@pytest.mark.parametrize(
    "value",
    ["none", "postgresql://me@h:5432/x?passfile=/home/me/.pgpass", "host=h user=me", "postgresql://[::1]/x"],
)
async def test_without_a_password_the_program_starts_once(value: str, cli: Cli) -> None:
    told = await answered(
        sys.executable, "-X", "importtime", "-m", "comfyflow", "db", "where", "--database", value
    )
    assert told[0] == 0
    assert told[1].count("| site") == 1


async def test_somebody_else_s_program_is_not_started_over(cli: Cli) -> None:
    code = "print('once', flush=True); from comfyflow.__main__ import main; main()"
    url = "postgresql://me:hush@nowhere/x"
    told = await answered(sys.executable, "-c", code, "db", "where", "--database", url)
    assert told == (0, "once\npostgresql://me@nowhere/x (--database)\n")


async def test_the_exit_code_is_that_of_the_command(cli: Cli) -> None:
    code, told = await answered(*MODULE, "runs", "--database", "mysql://me:hush@h/x")
    assert (code, "hush" in told) == (8, False)
    assert "--database: a mysql:// address" in told
