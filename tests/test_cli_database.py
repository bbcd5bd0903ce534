"""The commands about the database itself, and what every command does when it cannot be used."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Cluster, connected, execute, restricted, with_database, with_user
from commands import Cli, command, picture

import comfyflow
from comfyflow.dsn import Database, DatabaseKind
from comfyflow.embedded import Embedded
from comfyflow.journal import ANYWHERE, Journal
from comfyflow.migrations import roles, scripts
from comfyflow.rows import Batch, batch_of
from comfyflow.sim import Sim
from comfyflow.store import Added, Job, JobEvent

SECRET = "pa55word"
NEWEST = len(scripts())
AWAY = f"postgresql://me:{SECRET}@127.0.0.1:1/jobs"  # nothing listens on port 1


def added(name: str) -> Batch:
    """A job that waits in the journal."""
    return batch_of([Added(Job(name, None, "client", "http://gpu:8188", 1.0))])


async def refuses(cli: Cli, dsn: str, words: list[str], part: str) -> None:
    """The command ends with this in its one sentence, and shows the password nowhere."""
    for more in ([], ["--json"], ["-v"], ["-v", "--json"]):
        ended = await cli("db", *words, "--database", dsn, *more)
        said = [line for line in ended.err.splitlines() if line.startswith("comfyflow: ")]
        assert (ended.code, len(said)) == (8, 1), ended
        assert part in said[0]
        assert SECRET not in ended.out + ended.err
        if "--json" in more:
            assert part in ended.document["error"]["message"]


def later_program(folder: Path, name: str) -> Path:
    """A comfyflow that comes with one SQL file more, `name`; the folder to import it from."""
    package, source = folder / "comfyflow", Path(comfyflow.__file__).parent
    package.mkdir(parents=True)
    for entry in source.iterdir():
        (package / entry.name).symlink_to(entry)
    (package / "sql").mkdir()
    for script in scripts():
        (package / "sql" / script.name).write_text(script.text, encoding="utf-8")
    number = int(name.partition("_")[0])
    insert = f"INSERT INTO comfyflow_schema (version, name) VALUES ({number}, '{name}');"
    (package / "sql" / name).write_text(f"BEGIN;\n{insert}\nCOMMIT;\n")
    return folder


async def program_ran(program: Path, *arguments: str) -> tuple[int | None, str, str]:
    """A command of that program: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(program), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


# upgrade, sql, where


async def test_upgrade_makes_the_tables_once(cli: Cli, empty_database: str) -> None:
    cli.record_in(empty_database)
    names = [script.name for script in scripts()]
    assert (await cli("db", "upgrade")).lines == [f"applied: {name}" for name in names]
    assert (await cli("db", "upgrade")).lines == [f"the tables are at version {NEWEST} already"]
    assert (await cli("db", "upgrade", "--json")).document == {"applied": [], "version": NEWEST}


async def test_the_printed_sql_makes_the_tables_by_hand(cli: Cli, empty_database: str) -> None:
    async with connected(empty_database) as connection:
        await connection.execute((await cli("db", "sql")).out)
        await connection.execute((await cli("db", "sql", "--roles")).out)
    cli.record_in(empty_database)
    assert (await cli("runs", "--json")).document == {"runs": []}


async def test_sql_prints_each_file_byte_by_byte(cli: Cli) -> None:
    names = (await cli("db", "sql", "--list")).lines
    assert names == [*(script.name for script in scripts()), "roles.sql"]
    assert (await cli("db", "sql", "--list", "--json")).document == {"files": names}
    for script in scripts():
        assert (await cli("db", "sql", "--file", script.name)).out == script.text
    assert (await cli("db", "sql", "--file", "roles.sql")).out == roles()
    documents = (await cli("db", "sql", "--json")).document["files"]
    assert documents == [{"name": script.name, "text": script.text} for script in scripts()]
    assert (await cli("db", "sql", "--roles", "--json")).document["files"][0]["text"] == roles()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--file", "0000_nothing.sql"], "there are: 0001_record.sql"),
        (["--roles", "--list"], "give one of them"),
        (["--file", "roles.sql", "--list"], "give one of them"),
    ],
)
async def test_sql_that_is_not_there_is_wrong_use(arguments: list[str], part: str, cli: Cli) -> None:
    ended = await cli("db", "sql", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert part in ended.err


async def test_where_tells_the_rule_without_connecting_and_without_the_password(cli: Cli) -> None:
    ended = await cli("db", "where", "--database", AWAY)
    assert (ended.code, ended.out) == (0, "postgresql://me@127.0.0.1:1/jobs (--database)\n")
    (cli.folder / "stack.env").write_text(f"POSTGRES_HOST=db\nPOSTGRES_PASSWORD={SECRET}\n")
    cli.record_in("")
    document = (await cli("db", "where", "--env-file", "stack.env", "--json")).document
    assert (document["rule"], document["kind"], document["data"]) == ("POSTGRES_*", "server", None)
    assert SECRET not in json.dumps(document)


async def test_where_tells_the_folder_of_a_database_of_our_own_and_does_not_make_it(cli: Cli) -> None:
    data = cli.folder / "data"
    cli.variable("COMFYFLOW_DATA", str(data))
    ended = await cli("db", "where", "--database", "embedded")
    assert ended.out.startswith(f"embedded, in {data}/pg")
    assert not data.exists()


# status


async def test_status_tells_version_tables_and_journal(cli: Cli, database: str) -> None:
    cli.record_in(database)
    ended = await cli("db", "status")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines[1] == "chosen by: COMFYFLOW_DATABASE_URL"
    assert ended.lines[2].startswith("connected: PostgreSQL 1")
    assert ended.lines[3] == f"tables: version {NEWEST}"
    assert any(line.startswith("table generated_assets: 0 rows, ") for line in ended.lines)
    assert ended.lines[-1] == f"journal: empty, in {cli.folder / 'state' / 'journal'}"
    document = (await cli("db", "status", "--json")).document
    assert document["schema"] == {"version": NEWEST, "wanted": NEWEST, "pending": []}
    assert {table["table"] for table in document["tables"]} >= {"workflow_runs", "generated_assets"}
    assert (document["connected"], document["error"], document["embedded"]) == (True, None, None)


async def test_status_of_a_database_that_is_away_tells_the_rest(cli: Cli) -> None:
    ended = await cli("db", "status", "--database", AWAY)
    assert (ended.code, len(ended.err.splitlines())) == (8, 1)
    assert ended.lines[:3] == [
        "database: postgresql://me@127.0.0.1:1/jobs", "chosen by: --database", "connected: no"
    ]  # fmt: skip
    document = (await cli("db", "status", "--database", AWAY, "--json")).document
    assert (document["error"]["type"], document["journal"]["records"]) == ("StoreUnavailable", 0)
    assert (document["connected"], document["version"], document["schema"]) == (False, None, None)


async def test_status_answers_where_nothing_is_recorded(cli: Cli) -> None:
    ended = await cli("db", "status", "--database", "none")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines[:2] == ["database: none", "chosen by: --database"]
    assert ended.lines[2].startswith("journal: empty")


async def test_status_tells_what_waits_in_the_journal_and_leaves_it_there(cli: Cli, database: str) -> None:
    journal = Journal(cli.folder / "state" / "journal")
    known = Database(DatabaseKind.SERVER, "a test", database).target
    for name, target in (("first", known), ("second", known), ("third", "db:5432/other")):
        journal.append(added(name), target)
    (journal.folder / "torn.aside").write_bytes(b"# a reason\n")
    ended = await cli("db", "status", "--database", database)
    assert ended.code == 0
    (line,) = [line for line in ended.lines if line.startswith("journal: ")]
    assert line.startswith("journal: 3 records since 20")
    assert {f"journal for {known}: 2 records", "journal for db:5432/other: 1 record"} < set(ended.lines)
    assert ended.lines[-1] == "set aside, since no database can take it: 1 file *.aside"
    told = (await cli("db", "status", "--database", database, "--json")).document["journal"]
    assert (told["records"], told["targets"], told["set_aside"]) == (
        3, {known: 2, "db:5432/other": 1}, 1
    )  # fmt: skip


async def test_status_tells_of_a_journal_that_cannot_be_read(cli: Cli, database: str) -> None:
    (cli.folder / "state" / "journal" / "x.journal").mkdir(parents=True)
    ended = await cli("db", "status", "--database", database)
    assert (ended.code, ended.lines[-1]) == (8, f"journal: {cli.folder / 'state' / 'journal'}")
    assert "COMFYFLOW_STATE" in ended.err
    assert f"tables: version {NEWEST}" in ended.lines


async def test_status_of_a_database_of_our_own_tells_folder_and_programs(cli: Cli, reachable: Path) -> None:
    cli.variable("COMFYFLOW_DATA", str(reachable))
    server = Embedded()
    ended = await cli("db", "status", "--database", "embedded")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines[2:4] == [f"data: {server.home}", f"programs: {server.binaries}"]
    assert ended.lines[4] == f"connected: PostgreSQL {server.version}, started for this"
    assert ended.lines[5] == f"tables: version {NEWEST}"  # it upgrades itself
    with server:
        running = await cli("db", "status", "--database", "embedded")
        document = (await cli("db", "status", "--database", "embedded", "--json")).document
    assert running.lines[4].endswith(", which was running")
    assert (await cli("db", "flush", "--database", "embedded")).lines == ["0 records written"]
    assert document["embedded"] == {
        "data": str(server.home), "binaries": str(server.binaries), "was_running": True
    }  # fmt: skip


async def test_without_any_postgresql_status_and_where_say_how_to_get_one(cli: Cli) -> None:
    (cli.folder / "nothing").mkdir()
    cli.variable("COMFYFLOW_PG_BIN", str(cli.folder / "nothing"))
    ended = await cli("db", "status", "--database", "embedded")
    assert (ended.code, ended.lines[0], ended.lines[2]) == (8, "database: embedded", "connected: no")
    assert "pip install" in ended.err
    for name in ("status", "where"):
        document = (await cli("db", name, "--database", "embedded", "--json")).document
        assert (document["rule"], document["error"]["type"]) == ("--database", "PostgresMissing")


# a database that cannot be used: one sentence, exit code 8, no password


async def test_a_wrong_password_is_told_and_never_shown(cli: Cli, cluster: Cluster) -> None:
    wrong = with_user(cluster.dsn, "comfyflow", SECRET)
    for words in (["upgrade"], ["status"], ["flush"], ["prune", "--older-than", "1d"]):
        await refuses(cli, wrong, words, "refused the user name or the password: check --database")


async def test_an_unknown_database_is_named(cli: Cli, database: str) -> None:
    unknown = with_database(database, "no_such")
    for name in ("upgrade", "status", "flush"):
        await refuses(cli, unknown, [name], 'database "no_such" does not exist): create the database')


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"me:{SECRET}@db/jobs", "this is no database address"),
        (f"mysql://me:{SECRET}@db/jobs", "a mysql:// address is not one of PostgreSQL"),
        (f"postgresql://me:{SECRET}/@db/jobs", "there is a '/' before the '@'"),
        (f"postgresql://me:{SECRET}@db:99999/jobs", "the port of the database address must be a number"),
        (f"host=db password='{SECRET}", "this is no database address"),
    ],
)
async def test_what_is_no_address_of_a_database_is_told_by_every_command(
    text: str, part: str, cli: Cli
) -> None:
    for name in ("upgrade", "status", "where", "flush"):
        await refuses(cli, text, [name], part)
    assert (await cli("db", "status", "--database", text)).lines[0] == "database: unknown"


async def test_who_may_not_create_tables_is_told_by_whom_to_have_it_done(
    cli: Cli, empty_database: str
) -> None:
    execute(empty_database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with restricted(empty_database, password=SECRET) as dsn:
        await refuses(cli, dsn, ["upgrade"], "this user may not create tables in the database")
        await refuses(cli, dsn, ["status"], "has no tables of comfyflow: run `comfyflow db upgrade`")


async def test_who_may_not_read_the_tables_is_told_what_is_missing(cli: Cli, database: str) -> None:
    with restricted(database, password=SECRET) as dsn:
        for words in (["status"], ["flush"], ["prune", "--older-than", "1d"]):
            await refuses(cli, dsn, words, "permission denied for table comfyflow_schema): grant more")


async def test_tables_of_a_newer_version_are_left_alone(cli: Cli, database: str) -> None:
    execute(database, "INSERT INTO comfyflow_schema (version, name) VALUES (99, '0099_later.sql')")
    for words in (["upgrade"], ["status"], ["flush"], ["prune", "--older-than", "1d"]):
        await refuses(cli, database, words, f"of version 99, and this comfyflow knows only version {NEWEST}")
    lines = (await cli("db", "status", "--database", database)).lines
    assert f"tables: version 99, and this comfyflow knows only version {NEWEST}" in lines


async def test_tables_of_an_older_version_are_told_with_the_command(cli: Cli, database: str) -> None:
    later = NEWEST + 1
    program = later_program(cli.folder / "later", f"{later:04}_more.sql")
    code, out, err = await program_ran(program, "db", "status", "--database", database)
    assert (code, err.count("\n")) == (8, 1)
    assert f"are of version {NEWEST}, comfyflow needs {later}: run `comfyflow db upgrade`" in err
    assert f"tables: version {NEWEST}, not applied yet: {later:04}_more.sql" in out.splitlines()
    code, out, _ = await program_ran(program, "db", "upgrade", "--database", database)
    assert (code, out) == (0, f"applied: {later:04}_more.sql\n")
    code, out, _ = await program_ran(program, "db", "status", "--json", "--database", database)
    assert (code, json.loads(out)["schema"]) == (0, {"version": later, "wanted": later, "pending": []})


async def test_tables_are_missing_until_the_upgrade(cli: Cli, empty_database: str) -> None:
    for words in (["status"], ["flush"], ["prune", "--older-than", "1d"]):
        await refuses(cli, empty_database, words, "no tables of comfyflow: run `comfyflow db upgrade`")
    told = (await cli("db", "status", "--database", empty_database)).lines
    files = "0001_record.sql, 0002_workers.sql, 0003_server_checks.sql, 0004_batches.sql"
    assert f"tables: none, not applied yet: {files}" in told


async def test_generated_assets_of_somebody_else_is_told_with_the_difference(
    cli: Cli, empty_database: str
) -> None:
    execute(empty_database, "CREATE TABLE generated_assets (id bigserial, picture text, prompt_id integer)")
    await refuses(cli, empty_database, ["upgrade"], "column picture is not one of the six")
    await refuses(cli, empty_database, ["upgrade"], "column prompt_id is integer, not text")
    await refuses(cli, empty_database, ["upgrade"], "rename it or change it")


async def test_status_and_flush_work_again_as_soon_as_the_server_is_back(cli: Cli, cluster: Cluster) -> None:
    cli.record_in(cluster.dsn)
    await asyncio.to_thread(cluster.stop)
    Journal(cli.folder / "state" / "journal").append(
        added("waiting"), Database(DatabaseKind.SERVER, "", cluster.dsn).target
    )
    for name in ("status", "flush"):
        ended = await cli("db", name)
        assert (ended.code, len(ended.err.splitlines())) == (8, 1)
        assert "is not running, or not at this address" in ended.err
    await asyncio.to_thread(cluster.start)
    assert (await cli("db", "flush")).lines == ["1 record written"]
    assert (await cli("db", "status")).code == 0


# flush


async def test_flush_writes_what_is_its_own_and_names_what_waits_for_others(cli: Cli, database: str) -> None:
    cli.record_in(database)
    journal = Journal(cli.folder / "state" / "journal")
    own = Database(DatabaseKind.SERVER, "", database).target
    for name, target in (("own", own), ("of nobody", ANYWHERE), ("of another", "db:5432/other")):
        journal.append(added(name), target)
    ended = await cli("db", "flush")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines == [
        "2 records written",
        "1 record for db:5432/other: name that database, or write them here by --all",
    ]
    flushed = await cli("db", "flush", "--all", "--json")
    assert (flushed.code, flushed.document) == (0, {"written": 1, "waiting": {}, "set_aside": []})
    assert execute(database, "SELECT count(*) FROM workflow_runs")[0][0][0] == 3


async def test_flush_names_what_no_database_can_take(cli: Cli, database: str) -> None:
    cli.record_in(database)
    journal = Journal(cli.folder / "state" / "journal")
    journal.append(batch_of([JobEvent("never added", "note")]), ANYWHERE)
    journal.append(added("good"), ANYWHERE)
    ended = await cli("db", "flush", "--json")
    assert (ended.code, ended.document["written"]) == (8, 1)
    (path,) = ended.document["set_aside"]
    assert ended.err == (
        f"comfyflow: set aside, since no database can take it (its first line says why): {path}\n"
    )
    assert b"no job never added is recorded" in Path(path).read_bytes()
    again = await cli("db", "flush", "--json")
    assert (again.code, again.document["set_aside"]) == (0, [])


# what every command does then


@pytest.mark.parametrize("command", [["runs"], ["assets"], ["events", "x"], ["show", "x"], ["db", "upgrade"]])
async def test_what_reads_says_in_one_sentence_why_it_cannot(command: list[str], cli: Cli) -> None:
    ended = await cli(*command, "--database", AWAY)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (8, "", 1)
    assert "127.0.0.1:1" in ended.err
    assert SECRET not in ended.err


async def test_a_job_ends_well_without_its_database_and_the_record_comes_later(
    cli: Cli, server: Sim, database: str
) -> None:
    file = cli.file(picture())
    ended = await cli("run", file, "--wait", "--json", "--quiet", "--database", AWAY)
    assert (ended.code, ended.document["recorded"], ended.document["error"]) == (0, "journal", None)
    (line,) = ended.err.splitlines()
    assert line.startswith("comfyflow: the database postgresql://me@127.0.0.1:1/jobs ")
    assert line.endswith("; until then the journal keeps the record")
    assert (await cli("db", "flush", "--database", database)).lines[0] == "0 records written"
    flushed = await cli("db", "flush", "--all", "--database", database, "--json")
    assert (flushed.code, flushed.document["waiting"]) == (0, {})
    assert flushed.document["written"] > 0
    (run,) = (await cli("runs", "--json", "--database", database)).document["runs"]
    assert (run["prompt_id"], run["state"]) == (ended.document["prompt_id"], "succeeded")
    assert (await cli("db", "flush", "--all", "--database", database)).lines == ["0 records written"]


async def test_a_refusing_database_is_exit_code_8_after_the_job_is_done(
    cli: Cli, server: Sim, empty_database: str
) -> None:
    cli.record_in(empty_database)
    ended = await cli("run", cli.file(picture()), "--wait", "--json", "--quiet")
    assert ended.code == 8
    assert (ended.document["state"], ended.document["recorded"]) == ("succeeded", "journal")
    assert ended.document["error"]["exit_code"] == 8
    assert Path(ended.document["files"][0]["path"]).is_file()
    first, last = ended.err.splitlines()
    assert first.endswith("; until then the journal keeps the record")
    assert last.startswith("comfyflow: the job is done, but not recorded in the database: ")
    assert "`comfyflow db upgrade`" in last
    assert (await cli("db", "upgrade")).code == 0
    assert len((await cli("runs", "--json")).document["runs"]) == 1  # written from the journal by reading


async def test_an_address_that_is_none_does_not_lose_the_job(cli: Cli, server: Sim, database: str) -> None:
    wrong = f"postgresq://me:{SECRET}@host/jobs"
    ended = await cli("run", cli.file(picture()), "--wait", "--json", "--quiet", "--database", wrong)
    assert (ended.code, ended.document["recorded"]) == (8, "journal")
    assert SECRET not in ended.err + ended.out
    assert (await cli("runs", "--json", "--database", database)).document["runs"] == []
    assert (await cli("db", "flush", "--all", "--database", database)).code == 0
    assert len((await cli("runs", "--json", "--database", database)).document["runs"]) == 1


async def test_without_any_postgresql_a_run_is_recorded_in_the_journal(
    cli: Cli, server: Sim, database: str
) -> None:
    nowhere = cli.folder / "no-postgresql"
    nowhere.mkdir()
    cli.variable("COMFYFLOW_PG_BIN", str(nowhere))
    cli.record_in("embedded")
    ended = await cli("run", cli.file(picture()), "--json")
    assert (ended.code, ended.document["recorded"]) == (0, "journal")
    assert len(ended.err.splitlines()) == 1
    assert "--database" in ended.err
    refused = await cli("runs")
    assert (refused.code, len(refused.err.splitlines())) == (8, 1)


async def test_a_database_that_goes_away_in_the_middle_stops_no_job(
    cli: Cli, server: Sim, cluster: Cluster
) -> None:
    cli.record_in(cluster.dsn)
    await server.hold()
    following = await asyncio.create_subprocess_exec(
        *command("run", cli.file(picture()), "--wait", "--quiet", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await server.wait_for(lambda: ("POST", "/prompt") in server.requests)
    await asyncio.to_thread(cluster.stop)
    await server.release()
    out, err = await following.communicate()
    assert (following.returncode, json.loads(out)["recorded"]) == (0, "journal")
    assert len(err.splitlines()) == 1
    await asyncio.to_thread(cluster.start)
    (run,) = (await cli("runs", "--json")).document["runs"]
    assert run["state"] == "succeeded"


# prune


async def test_prune_deletes_what_is_old_and_says_what_it_would_do_first(
    cli: Cli, server: Sim, database: str
) -> None:
    cli.record_in(database)
    shared = ["--shared", "shared"]
    ran = await cli("run", cli.file(picture()), "--wait", "--json", "--quiet", "--output", "shared", *shared)
    path = Path(ran.document["files"][0]["path"])
    execute(database, "UPDATE workflow_runs SET finished_at = finished_at - interval '40 days'")
    execute(database, "UPDATE generated_assets SET created_at = created_at - interval '40 days'")
    dry = await cli("db", "prune", "--older-than", "30d", "--files", "--dry-run", "--json", *shared)
    assert (dry.code, dry.document["runs"], dry.document["files"]) == (0, 1, 1)
    assert path.is_file()
    assert (await cli("db", "prune", "--older-than", "50d", "--json")).document["runs"] == 0
    done = await cli("db", "prune", "--older-than", "30d", "--files", *shared)
    assert done.lines[0].startswith("gone: 1 jobs, ")
    assert not path.exists()
    assert (await cli("runs", "--json")).document == {"runs": []}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--older-than", "soon"], "30d"), (["--older-than", "30d", "--files"], "--shared"), ([], "older-than")],
)
async def test_a_prune_that_is_not_clear_deletes_nothing(arguments: list[str], part: str, cli: Cli) -> None:
    ended = await cli("db", "prune", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert part in ended.err


# as a process, with a PostgreSQL of our own


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the server's user can get to: pytest's own are shut for others when root runs it."""
    folder = Path(tempfile.mkdtemp(prefix="comfyflow-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


async def test_with_no_database_at_all_everything_is_recorded_all_the_same(cli: Cli, reachable: Path) -> None:
    cli.record_in("")
    for name in ("DATABASE_URL", "POSTGRES_HOST", "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER"):
        cli.variable(name, "")
    cli.variable("PGSERVICE", "")
    cli.variable("COMFYFLOW_DATA", str(reachable))
    example = Path(__file__).parent.parent / "examples" / "text_to_image.json"
    arguments = [str(example), "--simulate", "--wait", "--json", "--quiet", "--set", "3.steps=1"]
    ended = await cli("run", *arguments)
    assert (ended.code, ended.document["recorded"], ended.err) == (0, "embedded", "")
    (run,) = (await cli("runs", "--json")).document["runs"]
    assert run["prompt_id"] == ended.document["prompt_id"]


async def test_the_password_is_in_no_trace(cli: Cli) -> None:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-X", "dev", *command("runs", "-v")[1:]],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "COMFYFLOW_DATABASE_URL": AWAY},
    )
    out, _ = await process.communicate()
    assert process.returncode == 8
    assert SECRET not in out.decode()
