"""docs/database.md is true: each column is there, each statement runs, and those for n8n use indexes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from filled import fill

from comfyflow.database import Connections
from comfyflow.models import JobResult, JobState, OutputFile, SavedFile
from comfyflow.postgres import PostgresStore
from comfyflow.rows import batch_of
from comfyflow.statements import TURN
from comfyflow.store import Added, Entry, Finished, Job, JobEvent, ending
from comfyflow.workflow import Workflow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "database.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = [
    (name, block)
    for name, text in SECTIONS.items()
    for block in re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
BIG = {"workflow_runs", "run_events", "generated_assets"}
MONTHS = next(block for _, block in BLOCKS if "PARTITION BY" in block)


@pytest.fixture
async def connections(database: str) -> AsyncIterator[Connections]:
    async with await Connections.open(database) as opened:
        yield opened


def labelled(block: tuple[str, str]) -> str:
    """Its first line of SQL."""
    return next(line for line in block[1].splitlines() if not line.startswith("--"))


def runnable(block: str, verb: str = "EXECUTE") -> str:
    """The statement with the example values of its first line, as PREPARE and `verb`."""
    values = re.findall(r"\$\d (.+?)(?=  \$\d|$)", block.splitlines()[0]) if block.startswith("-- $1") else []
    if not values:
        return f"EXPLAIN (FORMAT JSON) {block}" if verb != "EXECUTE" else block
    return f"PREPARE example AS {block}; {verb} example ({', '.join(values)})"


async def run(connections: Connections, *statements: str) -> list[list[Any]]:
    """Run them on one connection, which forgets what was prepared; the rows of each one's last statement."""

    async def work(connection: Any) -> list[list[Any]]:
        found = []
        for statement in statements:
            *before, last = re.split(r";\s*(?=EX)", statement) if "PREPARE" in statement else [statement]
            for first in before:
                await connection.execute(first)
            # several statements in one text have no parameters, and give no rows
            several = last.count(";") > 1
            found.append(await connection.execute(last) if several else await connection.fetch(last))
            if before:
                await connection.execute("DEALLOCATE example")
        return found

    connection_rows = await connections.run(work, repeat=False)
    return list(connection_rows)


def test_the_page_has_statements_in_all_its_parts() -> None:
    assert [name for name, _ in BLOCKS].count("For n8n") >= 8
    assert {"For dashboards", "Who may do what", "Millions of events: a part for each month"} <= {
        name for name, _ in BLOCKS
    }


async def test_every_column_of_every_table_is_in_the_page(connections: Connections) -> None:
    rows = await connections.fetch(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " JOIN information_schema.tables USING (table_schema, table_name)"
        " WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'"
    )
    types = {"timestamp with time zone": "timestamptz"}
    missing = []
    for row in rows:
        (table,) = re.findall(
            rf"^`{row['table_name']}`: .*?(?=^`\w+`: |^Views)", PAGE, re.MULTILINE | re.DOTALL
        )
        kind = types.get(row["data_type"], row["data_type"])
        told = f"| `{row['column_name']}` | {kind} |" in table
        told |= row["table_name"] == "comfyflow_schema" and f"`{row['column_name']}`" in table
        missing += [] if told else [f"{row['table_name']}.{row['column_name']} {kind}"]
    assert missing == []
    assert len(rows) > 30


def test_who_takes_jobs_by_hand_takes_the_same_lock() -> None:
    (called,) = re.findall(r"pg_advisory_xact_lock\(\d+\)", TURN)
    assert f"`{called}`" in PAGE


async def test_every_view_is_in_the_page(connections: Connections) -> None:
    rows = await connections.fetch("SELECT viewname FROM pg_views WHERE schemaname = current_schema()")
    assert [row["viewname"] for row in rows if f"`{row['viewname']}`" not in PAGE] == []


def test_every_key_of_the_metadata_is_in_the_page() -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
        "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "lora_name": "b.safetensors"}},
        "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "seed": 1}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}, "_meta": {"title": "Save"}},
    }
    job = Job("p", Workflow.load(graph), "c", "http://s", 0.0)
    output = OutputFile("9", "a.png")
    file = SavedFile(output, Path("/data/a.png"), 1, "0" * 64, "video/mp4", 1, 2, 3.0)
    batch = batch_of([Added(job), Finished(job, JobResult("p", JobState.SUCCEEDED), (file,), Path("/data"))])
    (asset,) = batch.assets
    table = PAGE.partition("Keys of `metadata`")[2].partition("`workflow_runs`: ")[0]
    assert set(asset["metadata"]) == set(re.findall(r"`(\w+)`", re.sub(r"\| [^|]* \|\n", "|\n", table)))


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b[1] != MONTHS and b[0] != "Who may do what"], ids=labelled
)
async def test_every_statement_of_the_page_runs(connections: Connections, block: tuple[str, str]) -> None:
    await fill(connections, 20)
    await connections.execute("UPDATE workflow_runs SET state = 'succeeded' WHERE prompt_id = 'job-11'")
    await connections.execute("INSERT INTO workflow_runs (prompt_id, server) VALUES ('job-x', 's')")
    await run(connections, runnable(block[1].replace("'job-1'", "'job-x'")))


async def test_the_statements_for_n8n_use_indexes(connections: Connections) -> None:
    await fill(connections, 5000)
    blocks = [block for name, block in BLOCKS if name == "For n8n"]
    for block in blocks:
        ((row,),) = await run(connections, runnable(block, "EXPLAIN (FORMAT JSON) EXECUTE"))
        whole = re.findall(r'"Node Type": "Seq Scan".*?"Relation Name": "(\w+)"', row[0], re.DOTALL)
        assert (block, set(whole) & BIG) == (block, set())


async def test_n8n_may_write_everything_twice(connections: Connections) -> None:
    writing = [
        block for name, block in BLOCKS if name == "For n8n" and re.search("^(INSERT|UPDATE)", block, re.M)
    ]
    job, *_ = [block for block in writing if "INTO workflow_runs" in block]
    asset, *_ = [block for block in writing if "INTO generated_assets" in block]
    state, *_ = [block for block in writing if block.count("UPDATE workflow_runs")]
    event, *_ = [block for block in writing if "INTO run_events" in block]
    for _ in range(2):
        await run(connections, *map(runnable, (job, asset, event)))
    (first,), second = await run(connections, runnable(state), runnable(state))
    assert (first["state"], second) == ("running", [])
    counts = [len(await connections.fetch(f"SELECT FROM {table}")) for table in sorted(BIG)]
    assert counts == [1, 1, 1]
    (kept,) = await connections.fetch("SELECT metadata ->> 'seed' AS seed FROM generated_assets")
    assert kept["seed"] == "42"


async def test_the_roles_of_the_page_can_do_their_work(connections: Connections) -> None:
    (made,) = [block for name, block in BLOCKS if name == "Who may do what"]
    roles = (ROOT / "sql" / "roles.sql").read_text(encoding="utf-8")

    async def work(connection: Any) -> None:
        transaction = connection.transaction()
        await transaction.start()  # roles belong to the whole server, so they are taken back
        await connection.execute(re.sub("^(BEGIN|COMMIT);", "", roles, flags=re.MULTILINE))
        await connection.execute(made)
        await connection.execute("SET ROLE n8n")
        await connection.execute("INSERT INTO generated_assets (prompt_id, output_path) VALUES ('a', 'b')")
        await connection.execute("SET ROLE dashboards")
        assert await connection.fetchval("SELECT count(*) FROM recent_assets") == 1
        await transaction.rollback()

    await connections.run(work, repeat=False)


async def test_events_in_monthly_parts_take_everything_that_one_table_took(
    connections: Connections, database: str
) -> None:
    await fill(connections, 2000)
    before = await connections.fetch("SELECT * FROM run_events ORDER BY id")
    await connections.execute(MONTHS)
    assert await connections.fetch("SELECT * FROM run_events ORDER BY id") == before
    await fill_again(connections)
    parts = await connections.fetch(
        "SELECT tableoid::regclass::text AS part, count(*) AS n FROM run_events GROUP BY part ORDER BY part"
    )
    assert len(parts) > 1
    (ids,) = await connections.fetch("SELECT count(*) = count(DISTINCT id) AS different FROM run_events")
    assert ids["different"]
    plan = await connections.fetch(
        "EXPLAIN SELECT * FROM run_events WHERE prompt_id = 'job-3' ORDER BY created_at, id"
    )
    assert "run_events_before_of_a_run" in "".join(row[0] for row in plan)


async def fill_again(connections: Connections) -> None:
    """Events of the next months, each written twice."""
    for _ in range(2):
        await connections.execute(
            "INSERT INTO run_events (event_id, prompt_id, kind, created_at)"
            " SELECT md5(n::text)::uuid, 'job-3', 'later',"
            " date_trunc('month', now()) + n * interval '1 month'"
            " FROM generate_series(1, 30) AS n ON CONFLICT DO NOTHING"
        )
    (row,) = await connections.fetch("SELECT count(*) AS n FROM run_events WHERE kind = 'later'")
    assert row["n"] == 30


async def test_a_job_is_recorded_in_monthly_parts_as_well(connections: Connections, database: str) -> None:
    await connections.execute(MONTHS)
    job = Job("p", Workflow.load({"1": {"class_type": "X", "inputs": {}}}), "c", "http://s", 1.0)
    entries: list[Entry] = [
        Added(job),
        JobEvent("p", "started", event_id="6f1c9a50-6c1e-4f6d-8a64-0f9f3f5f0b11"),
    ]
    async with await PostgresStore.open(database, journal=None) as store:
        for _ in range(2):
            await store.write(*entries)
            await store.write(*ending(job, JobResult("p", JobState.SUCCEEDED)))
        record = await store.get("p")
    assert record is not None
    assert sorted(event.kind for event in record.events) == ["finished", "started"]
    await connections.execute("DELETE FROM workflow_runs")
    assert await connections.fetch("SELECT FROM run_events") == []
