"""Applying the files of sql/: once, whoever does it, and never over what is somebody else's."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from clusters import connected, execute, restricted, schema, with_options
from filled import fill

from comfyflow import Job, JobState, PostgresStore, migrations
from comfyflow.database import Connections
from comfyflow.errors import StoreError, StoreUnavailable
from comfyflow.store import Added, Advanced, Worker

ROOT = Path(__file__).parent.parent
SCRIPTS = migrations.scripts()
FIRST, LAST = SCRIPTS[0], SCRIPTS[-1]
NAMES = tuple(script.name for script in SCRIPTS)


async def refused(dsn: str) -> StoreError:
    async with await Connections.open(dsn) as connections:
        with pytest.raises(StoreError) as caught:
            await migrations.upgrade(connections)
    assert not isinstance(caught.value, StoreUnavailable)
    assert "\n" not in str(caught.value)
    return caught.value


# --- the files ----------------------------------------------------------------------------------------


def test_the_files_are_numbered_from_one_without_a_gap() -> None:
    found = migrations.scripts()
    assert [script.version for script in found] == list(range(1, len(found) + 1))
    assert found[0].name == "0001_record.sql"
    assert [script.text for script in found] == [
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "sql").glob("[0-9]*.sql"))
    ]


def test_a_file_is_known_by_the_checksum_that_people_get() -> None:
    tool = subprocess.run(
        ["sha256sum", ROOT / "sql" / FIRST.name], check=True, capture_output=True, text=True
    )
    assert tool.stdout.split()[0] == FIRST.sha256


@pytest.mark.parametrize("name", ["roles.sql", "1_x.sql", "0001_x.sql.bak", "0001.sql"])
def test_only_numbered_files_are_steps(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        migrations.script(name, "")


def test_the_roles_come_along() -> None:
    assert "CREATE ROLE comfyflow_reader" in migrations.roles()


def test_the_files_go_into_the_wheel_and_the_sdist() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert targets["targets"]["wheel"]["force-include"] == {"sql": "comfyflow/sql"}
    assert "/sql" in targets["targets"]["sdist"]["include"]


def test_a_package_that_brings_its_own_files_uses_them(tmp_path: Path) -> None:
    """As a wheel does: .ci/run installs a real one."""
    shutil.copytree(ROOT / "src" / "comfyflow", tmp_path / "comfyflow")
    (tmp_path / "comfyflow" / "sql").mkdir()
    (tmp_path / "comfyflow" / "sql" / "0001_own.sql").write_text("BEGIN;\nCOMMIT;\n", encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from comfyflow import migrations\n"
        "print(*[file.name for file in migrations.scripts()])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0001_own.sql"]


# --- applying them ------------------------------------------------------------------------------------


async def test_an_empty_database_gets_the_tables_once(empty_database: str) -> None:
    async with await Connections.open(empty_database) as connections:
        before = await migrations.status(connections)
        assert before == migrations.SchemaStatus(None, LAST.version, NAMES)
        with pytest.raises(StoreError, match="has no tables of comfyflow: run `comfyflow db upgrade`"):
            await migrations.check(connections)
        assert await migrations.upgrade(connections) == NAMES
        assert await migrations.upgrade(connections) == ()
        assert await migrations.status(connections) == migrations.SchemaStatus(LAST.version, LAST.version, ())
        await migrations.check(connections)
        rows = await connections.fetch("SELECT version, name, sha256 FROM comfyflow_schema ORDER BY version")
        assert [tuple(row) for row in rows] == [(one.version, one.name, one.sha256) for one in SCRIPTS]


async def test_four_upgrades_at_once_apply_each_file_once(empty_database: str) -> None:
    async def one() -> tuple[str, ...]:
        async with await Connections.open(empty_database) as connections:
            return await migrations.upgrade(connections)

    applied = await asyncio.gather(*(one() for _ in range(4)))
    assert sorted(name for names in applied for name in names) == [*NAMES]  # whoever had its turn


def test_four_processes_at_once_apply_each_file_once(empty_database: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from comfyflow import migrations\n"
        "from comfyflow.database import Connections\n"
        "async def main():\n"
        "    async with await Connections.open(sys.argv[1]) as connections:\n"
        "        print(*await migrations.upgrade(connections))\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, empty_database]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert sorted(" ".join(process.communicate()[0] for process in started).split()) == [*NAMES]


async def test_an_upgrade_waits_for_another_however_short_its_own_patience_is(empty_database: str) -> None:
    impatient = await Connections.open(empty_database, lock_timeout=0.02, statement_timeout=0.02)
    async with connected(empty_database) as other, impatient:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT pg_advisory_xact_lock($1)", migrations.LOCK)
        task = asyncio.create_task(migrations.upgrade(impatient))
        while not await other.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        ):
            pass
        await other.execute("SELECT pg_sleep(0.05)")
        await transaction.rollback()
        assert await task == NAMES


async def test_a_file_that_fails_leaves_those_before_it_and_nothing_of_itself(empty_database: str) -> None:
    good = migrations.script("0002_more.sql", "BEGIN;\nCREATE TABLE more (a int);\nCOMMIT;\n")
    bad = migrations.script("0003_bad.sql", "BEGIN;\nCREATE TABLE bad (a int);\nSELECT 1/0;\nCOMMIT;\n")
    async with await Connections.open(empty_database) as connections:
        with pytest.raises(StoreError, match="division by zero"):
            await migrations.upgrade(connections, (FIRST, recording(good), bad))
        [row] = await connections.fetch("SELECT to_regclass('more') AS more, to_regclass('bad') AS bad")
        assert (row["more"], row["bad"]) == ("more", None)


def recording(file: migrations.Script) -> migrations.Script:
    """With the line that each file ends with."""
    line = f"INSERT INTO comfyflow_schema (version, name) VALUES ({file.version}, '{file.name}');\nCOMMIT;"
    return migrations.script(file.name, file.text.replace("COMMIT;", line))


async def test_a_database_behind_the_program_is_told_the_command(database: str) -> None:
    newer = (*SCRIPTS, migrations.script(f"{LAST.version + 1:04}_more.sql", ""))
    async with await Connections.open(database) as connections:
        found = await migrations.status(connections, newer)
        assert found == migrations.SchemaStatus(LAST.version, LAST.version + 1, (newer[-1].name,))
        versions = f"are of version {LAST.version}, comfyflow needs {LAST.version + 1}"
        with pytest.raises(StoreError, match=f"{versions}: run `comfyflow db upgrade`"):
            await migrations.check(connections, newer)


async def test_a_database_ahead_of_the_program_is_refused_with_both_versions(database: str) -> None:
    execute(database, "INSERT INTO comfyflow_schema (version, name) VALUES (7, '0007_later.sql')")
    async with await Connections.open(database) as connections:
        for step in (migrations.check, migrations.upgrade):
            known = f"of version 7, and this comfyflow knows only version {LAST.version}"
            with pytest.raises(StoreError, match=known):
                await step(connections)


async def test_an_edited_file_is_refused_by_its_name(database: str) -> None:
    execute(database, f"UPDATE comfyflow_schema SET sha256 = '{'0' * 64}'")
    assert "sql/0001_record.sql is not what was applied" in str(await refused(database))


async def test_who_may_not_create_tables_is_told_what_to_do(empty_database: str) -> None:
    execute(empty_database, "REVOKE CREATE ON SCHEMA public FROM public")  # as it is since PostgreSQL 15
    with restricted(empty_database) as dsn:
        error = await refused(dsn)
    assert "this user may not create tables" in str(error)
    assert "permission denied for schema public" in str(error)


async def test_a_schema_that_is_not_there_is_told(empty_database: str) -> None:
    error = await refused(with_options(empty_database, search_path="elsewhere"))
    assert "no schema has been selected to create in" in str(error)


async def test_who_may_only_use_the_tables_can_upgrade_when_nothing_is_to_be_done(database: str) -> None:
    execute(database, "UPDATE comfyflow_schema SET sha256 = NULL")
    with restricted(database) as dsn:
        name = dsn.partition("//")[2].partition(":")[0]
        execute(database, f"GRANT SELECT ON comfyflow_schema TO {name}")
        async with await Connections.open(dsn) as connections:
            assert await migrations.upgrade(connections) == ()
            await migrations.check(connections)


# --- by hand ------------------------------------------------------------------------------------------


async def test_by_hand_and_by_command_give_the_same_schema(database: str, empty_database: str) -> None:
    async with connected(empty_database) as connection:
        for file in migrations.scripts():
            await connection.execute(file.text)  # with its BEGIN and COMMIT: what psql sends
    assert schema(empty_database) == schema(database)
    assert len(schema(database)["columns"]) > 40


async def test_a_file_that_was_run_by_hand_is_adopted(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        await connection.execute(FIRST.text)
        assert await connection.fetchval("SELECT sha256 FROM comfyflow_schema") is None
        async with await Connections.open(empty_database) as connections:
            assert await migrations.upgrade(connections) == NAMES[1:]
        first = "SELECT sha256 FROM comfyflow_schema WHERE version = 1"
        assert await connection.fetchval(first) == FIRST.sha256


async def test_a_database_of_version_1_keeps_its_jobs(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        await connection.execute(FIRST.text)
        async with await Connections.open(empty_database) as connections:
            await fill(connections, 200)
            before = await rows_of(connection, "workflow_runs", "run_events", "generated_assets")
            assert await migrations.upgrade(connections) == NAMES[1:]
        after = await rows_of(connection, "workflow_runs", "run_events", "generated_assets")
    new = {"key": None, "worker": None, "replaces": None, "attempt": 1, "folder": None}
    assert after == [[row | new for row in before[0]], *before[1:]]


async def rows_of(connection: Any, *tables: str) -> list[list[dict[str, Any]]]:
    """All rows, each with the place on disk where it lies: a row that is written anew lies elsewhere."""
    wanted = "SELECT pg_relation_filenode('{0}') AS file, ctid::text, xmin::text, * FROM {0} ORDER BY ctid"
    return [[dict(row) for row in await connection.fetch(wanted.format(name))] for name in tables]


async def test_jobs_of_version_1_can_be_taken_over(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        await connection.execute(FIRST.text)
        await connection.execute("INSERT INTO workflow_runs (prompt_id, server) VALUES ('old', 'http://c')")
    worker = Worker("w", "host", 1)
    async with await PostgresStore.open(empty_database, journal=None, migrate=True) as store:
        [found] = await store.claim(worker, "http://c", limit=9)
        assert (found.job.prompt_id, found.job.attempt, found.job.key) == ("old", 1, None)
        again = Job("new", None, "c", "http://c", 1.0, key="k", replaces="old", attempt=2)
        await store.write(Advanced("old", JobState.LOST), Added(again, "w"))
        assert [job async for job in store.unfinished()] == [again]


@pytest.mark.parametrize("size", [1, 2])
async def test_an_upgrade_that_was_cut_short_is_made_again(empty_database: str, size: int) -> None:
    """The file is one transaction: cut anywhere in it, there is nothing of it."""
    second = SCRIPTS[1].text
    async with connected(empty_database) as connection:
        await connection.execute(FIRST.text)
    whole = schema(empty_database)
    async with connected(empty_database) as connection:
        await connection.execute(second[: second.rindex(";", 0, len(second) * size // 3) + 1])
    assert schema(empty_database) == whole
    async with await Connections.open(empty_database) as connections:
        assert await migrations.upgrade(connections) == NAMES[1:]


# --- a table that is there already --------------------------------------------------------------------

SIX = (
    "id serial PRIMARY KEY, prompt_id varchar(80), prompt_text text, output_path text, metadata jsonb,"
    " created_at timestamp DEFAULT now()"
)


async def test_a_table_with_the_six_columns_is_used_and_keeps_its_rows(empty_database: str) -> None:
    execute(
        empty_database,
        f"CREATE TABLE generated_assets ({SIX})",
        "INSERT INTO generated_assets (prompt_id, output_path) VALUES ('old', 'old.png')",
    )
    async with await Connections.open(empty_database) as connections:
        assert await migrations.upgrade(connections) == NAMES
        rows = await connections.fetch("SELECT prompt_id, output_path FROM recent_assets")
    assert [tuple(row) for row in rows] == [("old", "old.png")]


@pytest.mark.parametrize(
    ("columns", "difference"),
    [
        (SIX.replace("metadata jsonb", "metadata json"), "column metadata is json, not jsonb"),
        (SIX.replace("metadata jsonb,", ""), "column metadata is missing"),
        (f'{SIX}, "Url" text', 'column "Url" is not one of the six'),
        (SIX.replace("serial", "int"), "column id has no default"),
        ("id serial, path text", "column path is not one of the six; column prompt_id is missing"),
    ],
)
async def test_a_table_of_another_kind_is_refused_with_the_difference(
    empty_database: str, columns: str, difference: str
) -> None:
    execute(empty_database, f"CREATE TABLE generated_assets ({columns})")
    error = await refused(empty_database)
    assert "the table generated_assets that is here is not comfyflow's" in str(error)
    assert difference in str(error)
    assert "give comfyflow a database or schema of its own" in str(error)
    assert execute(empty_database, "SELECT to_regclass('workflow_runs')") == [[(None,)]]


async def test_a_view_of_that_name_is_refused(empty_database: str) -> None:
    execute(empty_database, f"CREATE TABLE t ({SIX})", "CREATE VIEW generated_assets AS SELECT * FROM t")
    assert "it is no ordinary table" in str(await refused(empty_database))


async def test_rows_that_are_there_twice_are_refused(empty_database: str) -> None:
    execute(
        empty_database,
        f"CREATE TABLE generated_assets ({SIX})",
        "INSERT INTO generated_assets (prompt_id, output_path) SELECT 'a', 'b' FROM generate_series(1, 2)",
    )
    error = await refused(empty_database)
    assert "holds some (prompt_id, output_path) twice: delete the older rows" in str(error)
