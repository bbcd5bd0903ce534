"""What the tables promise to everybody who writes them: comfyflow, n8n, a person with psql."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from clusters import Cluster, connected, execute, schema, with_user

from comfyflow import Job, JobState, PostgresStore
from comfyflow.store import Added, Advanced, Alive, Worker

SQL = Path(__file__).parent.parent / "sql"
FILES = sorted(SQL.glob("*.sql"))
NUMBERED = [path for path in FILES if path.name != "roles.sql"]
STATES = ["created", "submitted", "queued", "running", "finishing"]
ENDS = ["succeeded", "failed", "cancelled", "lost"]
ADD_RUN = "INSERT INTO workflow_runs (prompt_id, server) VALUES ('a', 's')"
ADD_ASSET = "INSERT INTO generated_assets (prompt_id, output_path) VALUES"
ADD_PART = "INSERT INTO asset_contents (sha256, part, bytes, data) VALUES"
ADD_CHECK = "INSERT INTO server_checks (server, ok) VALUES"
ADD_MEASURED = "INSERT INTO server_checks (server, ok, {}) VALUES ('s', true, -1)"
ADD_ALERT = "INSERT INTO alerts (cause) VALUES"
MEASURED = [
    "queue_running",
    "queue_pending",
    "vram_total",
    "vram_free",
    "ram_total",
    "ram_free",
    "mean_seconds",
]
HASH = "0" * 64


def short(path: Path) -> str:
    return path.name


# --- the files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_file_is_one_transaction(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:BEGIN|COMMIT|ROLLBACK)\b.*$", text, re.MULTILINE)
    assert [line for line in lines if line != "BEGIN"] == [
        "BEGIN;",
        "COMMIT;",
    ]  # bodies of functions begin too
    code = [line for line in text.splitlines() if line and not line.startswith("--")]
    assert (code[0], code[-1]) == ("BEGIN;", "COMMIT;")


@pytest.mark.parametrize("path", NUMBERED, ids=short)
def test_a_file_records_itself(path: Path) -> None:
    line = f"INSERT INTO comfyflow_schema (version, name) VALUES ({int(path.name[:4])}, '{path.name}')"
    assert line in path.read_text(encoding="utf-8")


async def test_running_the_files_again_changes_nothing(database: str) -> None:
    before = schema(database)
    execute(database, ADD_RUN, f"{ADD_ASSET} ('a', 'b')")
    async with connected(database) as connection:
        for path in NUMBERED * 2:
            await connection.execute(path.read_text(encoding="utf-8"))
    assert schema(database) == before
    assert execute(database, "SELECT count(*) FROM generated_assets, workflow_runs") == [[(1,)]]


def test_every_table_column_view_and_function_says_what_it_is(database: str) -> None:
    silent = execute(
        database,
        """
        SELECT relname AS name FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND obj_description(oid) IS NULL
        UNION ALL
        SELECT c.relname || '.' || a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
            AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL
        UNION ALL
        SELECT proname FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND obj_description(oid) IS NULL
        """,
        "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public'",
    )
    assert silent[0] == []
    assert silent[1][0][0] > 40


# --- generated_assets ---------------------------------------------------------------------------------


def test_the_table_of_assets_has_exactly_the_six_columns(database: str) -> None:
    [rows] = execute(
        database,
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'generated_assets'"
        " ORDER BY ordinal_position",
    )
    names = [row[0] for row in rows]
    assert names == ["id", "prompt_id", "prompt_text", "output_path", "metadata", "created_at"]


def test_an_asset_needs_no_run_and_fills_in_the_rest(database: str) -> None:
    [_, rows] = execute(
        database,
        f"{ADD_ASSET} ('n8n-1', 'https://example.org/a.png')",
        "SELECT id, prompt_text, metadata, created_at <= now() FROM generated_assets",
    )
    assert rows == [(1, None, "{}", True)]


def test_long_prompts_and_paths_fit(database: str) -> None:
    execute(
        database,
        f"{ADD_ASSET} ('a', repeat('x', 2000))",
        "UPDATE generated_assets SET prompt_text = repeat('wörter ', 150000)",
        "INSERT INTO workflow_runs (prompt_id, server, prompt_text) VALUES ('a', 's', repeat('x', 1000000))",
    )


def test_an_asset_is_there_once_for_each_job_and_path(database: str) -> None:
    with pytest.raises(asyncpg.UniqueViolationError, match="generated_assets_once"):
        execute(database, f"{ADD_ASSET} ('a', 'x'), ('b', 'x')", f"{ADD_ASSET} ('a', 'x')")


# --- states -------------------------------------------------------------------------------------------


def state_of(dsn: str, *states: str) -> list[Any]:
    """A run that goes through the states: its last one, and whether it has an end."""
    steps = [f"UPDATE workflow_runs SET state = '{state}'" for state in states]
    return execute(dsn, ADD_RUN, *steps, "SELECT state, finished_at IS NOT NULL FROM workflow_runs")[-1]


@pytest.mark.parametrize("end", ENDS)
def test_a_run_goes_forward_to_one_end(database: str, end: str) -> None:
    assert state_of(database, *STATES, end, end) == [(end, True)]


def test_a_run_may_leave_out_states(database: str) -> None:
    assert state_of(database, "running") == [("running", False)]


@pytest.mark.parametrize(
    ("before", "after"),
    [(after, before) for before, after in pairwise(STATES)]
    + [(end, "finishing") for end in ENDS]
    + [("succeeded", "failed"), ("lost", "succeeded"), ("cancelled", "created")],
)
def test_a_run_never_goes_back_and_has_no_second_end(database: str, before: str, after: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match=f"run a is {before}: it cannot become {after}"):
        state_of(database, before, after)


def test_a_row_tells_when_it_was_changed(database: str) -> None:
    old = "UPDATE workflow_runs SET updated_at = '2000-01-01', prompt_text = 'x'"
    [_, _, rows] = execute(database, ADD_RUN, old, "SELECT updated_at > '2001-01-01' FROM workflow_runs")
    assert rows == [(True,)]


# --- wrong data ---------------------------------------------------------------------------------------

WRONG = {
    "workflow_runs_prompt_id_check": "UPDATE workflow_runs SET prompt_id = ''",
    "workflow_runs_state_check": "UPDATE workflow_runs SET state = 'done'",
    "workflow_runs_graph_check": "UPDATE workflow_runs SET graph = '[]'",
    "workflow_runs_digest_check": "UPDATE workflow_runs SET digest = 'abc'",
    "workflow_runs_error_check": "UPDATE workflow_runs SET error = '\"x\"'",
    "workflow_runs_outcome_check": "UPDATE workflow_runs SET outcome = '1'",
    "workflow_runs_execution_seconds_check": "UPDATE workflow_runs SET execution_seconds = -1",
    "workflow_runs_finished_at_belongs_to_an_end": "UPDATE workflow_runs SET finished_at = now()",
    "workflow_runs_attempt_counts_from_one": "UPDATE workflow_runs SET attempt = 0",
    "run_workers_worker_check": (
        "INSERT INTO run_workers (worker, host, pid, alive_until) VALUES ('', 'h', 1, now())"
    ),
    "workflow_runs_success_has_no_error": "UPDATE workflow_runs SET state = 'succeeded', error = '{}'",
    "run_events_kind_check": "INSERT INTO run_events (prompt_id, kind) VALUES ('a', '')",
    "run_events_detail_check": "INSERT INTO run_events (prompt_id, kind, detail) VALUES ('a', 'x', '[]')",
    "generated_assets_prompt_id_check": f"{ADD_ASSET} ('', 'x')",
    "generated_assets_output_path_check": f"{ADD_ASSET} ('a', '')",
    "generated_assets_metadata_check": (
        "INSERT INTO generated_assets (prompt_id, output_path, metadata) VALUES ('a', 'x', '[]')"
    ),
    "generated_assets_path_fits_its_index": f"{ADD_ASSET} ('a', repeat('x', 2500))",
    "asset_contents_sha256_check": f"{ADD_PART} ('abc', 0, 1, 'x')",
    "asset_contents_part_check": f"{ADD_PART} ('{HASH}', -1, 1, 'x')",
    "asset_contents_bytes_check": f"{ADD_PART} ('{HASH}', 0, -1, 'x')",
    "asset_contents_data_check": f"{ADD_PART} ('{HASH}', 0, 1, repeat('x', 1048577)::bytea)",
    "server_checks_server_check": f"{ADD_CHECK} ('', true)",
    "server_checks_error_says_why_not_ok": f"{ADD_CHECK} ('s', false)",
    **{f"server_checks_{name}_check": ADD_MEASURED.format(name) for name in MEASURED},
    "alerts_cause_check": f"{ADD_ALERT} ('')",
    "alerts_times_check": "INSERT INTO alerts (cause, times) VALUES ('c', 0)",
    "alerts_suppressed_check": "INSERT INTO alerts (cause, suppressed) VALUES ('c', -1)",
    "alerts_counts_what_it_kept_back": "INSERT INTO alerts (cause, suppressed) VALUES ('c', 2)",
    "comfyflow_schema_version_check": "INSERT INTO comfyflow_schema (version, name) VALUES (0, 'x')",
    "comfyflow_schema_sha256_check": "UPDATE comfyflow_schema SET sha256 = 'x'",
}


@pytest.mark.parametrize("constraint", WRONG)
def test_wrong_data_is_refused(database: str, constraint: str) -> None:
    execute(database, ADD_RUN)
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        execute(database, WRONG[constraint])
    assert caught.value.constraint_name == constraint


def test_every_constraint_is_tried(database: str) -> None:
    [rows] = execute(
        database,
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace",
    )
    assert {row[0] for row in rows} == set(WRONG)


def test_an_event_belongs_to_a_run_and_goes_with_it(database: str) -> None:
    add = "INSERT INTO run_events (prompt_id, kind) VALUES ('a', 'x')"
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        execute(database, add)
    told = execute(
        database,
        ADD_RUN,
        add,
        "UPDATE workflow_runs SET prompt_id = 'b'",  # servers before 0.3.45 choose the id
        "SELECT prompt_id FROM run_events",
        "DELETE FROM workflow_runs",
        "SELECT count(*) FROM run_events",
    )
    assert (told[3], told[5]) == ([("b",)], [(0,)])


def test_a_job_is_replaced_once_and_by_a_job_that_is_there(database: str) -> None:
    again = "INSERT INTO workflow_runs (prompt_id, server, replaces) VALUES"
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        execute(database, f"{again} ('b', 's', 'a')")
    with pytest.raises(asyncpg.UniqueViolationError, match="workflow_runs_replaced_once"):
        execute(database, ADD_RUN, f"{again} ('b', 's', 'a')", f"{again} ('c', 's', 'a')")
    told = execute(
        database,
        "UPDATE workflow_runs SET prompt_id = 'renamed' WHERE prompt_id = 'a'",
        "SELECT replaces FROM workflow_runs WHERE prompt_id = 'b'",
        "DELETE FROM workflow_runs WHERE prompt_id = 'renamed'",
        "SELECT replaces FROM workflow_runs WHERE prompt_id = 'b'",
    )
    assert (told[1], told[3]) == ([("renamed",)], [(None,)])


# --- views --------------------------------------------------------------------------------------------


def test_recent_assets_bears_whatever_others_put_into_metadata(database: str) -> None:
    add = "INSERT INTO generated_assets (prompt_id, output_path, metadata) VALUES"
    wild = '{"width": "wide", "height": [1], "bytes": null, "seed": {"a": 1}, "model": 5}'
    told = execute(
        database,
        "INSERT INTO workflow_runs (prompt_id, server) VALUES ('a', 'http://gpu')",
        f"""{add} ('a', 'good', '{{"width": 512, "seed": 18446744073709551615, "model": "m.ckpt"}}')""",
        f"{add} ('z', 'wild', '{wild}')",
        "SELECT output_path, width, height, bytes, seed, model, server FROM recent_assets",
    )
    assert told[-1] == [
        ("wild", None, None, None, None, "5", None),
        ("good", 512, None, None, 18446744073709551615, "m.ckpt", "http://gpu"),
    ]


def test_run_summary_counts_ends_and_times_successes_only(database: str) -> None:
    told = execute(
        database,
        f"""
        INSERT INTO workflow_runs (prompt_id, server, digest, state, execution_seconds)
        SELECT 'ok' || n, 's', '{HASH}', 'succeeded', n FROM generate_series(1, 21) AS n
        UNION ALL SELECT 'bad', 's', '{HASH}', 'failed', 1000
        UNION ALL SELECT 'now', 's', '{HASH}', 'running', NULL
        """,
        "SELECT runs, succeeded, failed, cancelled, lost, unfinished FROM run_summary",
        "SELECT mean_seconds, p95_seconds FROM run_summary",
    )
    assert told[1:] == [[(23, 21, 1, 0, 0, 1)], [(11.0, 20.0)]]


def test_asset_files_puts_the_parts_together_in_order(database: str) -> None:
    told = execute(
        database,
        f"{ADD_PART} ('{HASH}', 1, 4, 'cd'), ('{HASH}', 0, 4, 'ab')",
        "SELECT sha256, bytes, data FROM asset_files",
    )
    assert told[-1] == [(HASH, 4, b"abcd")]


# --- roles --------------------------------------------------------------------------------------------

TABLES = ["workflow_runs", "run_events", "generated_assets", "asset_contents", "comfyflow_schema", "alerts"]
VIEWS = ["recent_assets", "run_summary", "asset_files"]


async def test_the_roles_have_the_least_rights(cluster: Cluster) -> None:
    async with connected(cluster.dsn) as connection:
        for _ in range(2):
            await connection.execute((SQL / "roles.sql").read_text(encoding="utf-8"))
    reader, writer = member(cluster, "comfyflow_reader"), member(cluster, "comfyflow_writer")
    for dsn in (reader, writer):
        execute(dsn, *(f"SELECT * FROM {name}" for name in [*TABLES, *VIEWS, "run_workers", "server_checks"]))
        for sql in [f"DELETE FROM {name}" for name in TABLES] + [
            "CREATE TABLE mine (a int)",
            "DROP TABLE run_events",
        ]:
            assert_refused(dsn, sql)
    add_worker = "INSERT INTO run_workers (worker, host, pid, alive_until) VALUES ('w', 'h', 1, now())"
    additions = [
        ADD_RUN,
        add_worker,
        "UPDATE run_workers SET alive_until = now()",
        "DELETE FROM run_workers",
        "UPDATE workflow_runs SET worker = 'w'",
        "UPDATE workflow_runs SET state = 'running'",
        "INSERT INTO run_events (prompt_id, kind) VALUES ('a', 'x')",
        f"{ADD_ASSET} ('a', 'x')",
        "UPDATE generated_assets SET prompt_text = 'x'",
        f"{ADD_PART} ('{HASH}', 0, 1, 'x')",
        f"{ADD_CHECK} ('s', true)",
        "DELETE FROM server_checks",
        f"{ADD_ALERT} ('c')",
        "UPDATE alerts SET times = 2",
    ]
    execute(writer, *additions)
    for sql in additions:
        assert_refused(reader, sql)
    for sql in (
        "UPDATE run_events SET kind = 'y'",
        "UPDATE server_checks SET error = NULL",
        "UPDATE comfyflow_schema SET name = 'y'",
    ):
        assert_refused(writer, sql)


async def test_a_writer_may_work_on_jobs(cluster: Cluster) -> None:
    execute(cluster.dsn, ADD_RUN)
    async with connected(cluster.dsn) as connection:
        await connection.execute((SQL / "roles.sql").read_text(encoding="utf-8"))
    mine, theirs = Worker("mine", "host", 1), Worker("theirs", "host", 2)
    async with await PostgresStore.open(member(cluster, "comfyflow_writer"), journal=None) as store:
        await store.write(Alive(theirs, 30.0), Added(Job("b", None, "c", "s", 1.0), "theirs"))
        await store.renew(mine, 30.0)
        assert [record.job.prompt_id for record in await store.claim(mine, "s", limit=9)] == ["a"]
        assert not await store.take("b", mine)
        await store.retire(theirs)
        assert await store.take("b", mine)
        again = Job("c", None, "c", "s", 2.0, replaces="b", attempt=2)
        await store.write(Advanced("b", JobState.LOST), Added(again, "mine"))
        found = await store.successor("b")
    assert found is not None
    assert found.job == again


def member(cluster: Cluster, role: str) -> str:
    """The DSN of somebody in the role."""
    execute(cluster.dsn, f"CREATE ROLE of_{role} LOGIN PASSWORD 'x' IN ROLE {role}")
    if role.endswith("reader"):
        execute(cluster.dsn, "REVOKE CREATE ON SCHEMA public FROM public")  # as it is since PostgreSQL 15
    return with_user(cluster.dsn, f"of_{role}", "x")


def assert_refused(dsn: str, sql: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        execute(dsn, sql)
