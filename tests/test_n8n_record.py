"""What the templates write, on a real PostgreSQL: the statements of a played execution, with its values put
into them as n8n's PostgreSQL node does it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import connected
from n8n_mimic import Played
from n8n_sql import filled, statements
from test_n8n_generate import generated
from test_n8n_status import told_of
from test_n8n_watch import watched

TEMPLATES = Path(__file__).parent.parent / "n8n"

WRITES = [
    "Begin",
    "Record submitted",
    "Turn",
    "Record download",
    "Record end",
    "Record check",
    "Count",
    "Forget",
]
NAMES = [
    "good: workflow",
    "one image",
    "three images",
    "only a text",
    "an execution error",
    "interrupted",
    "lost",
    "refused in part",
    "nobody there",
    "NUL in the workflow",
    "hostile names",
    "files of one name",
    "one file is gone",
    "a short patience",
    "a key for the first time",
]
TOLD = """
    SELECT state, error ->> 'message' AS message, worker IS NOT NULL AS has_worker, digest, key,
        (SELECT count(*) FROM generated_assets AS a WHERE a.prompt_id = w.prompt_id) AS files,
        (SELECT array_agg(kind ORDER BY e.id) FROM run_events AS e WHERE e.prompt_id = w.prompt_id) AS events
    FROM workflow_runs AS w WHERE prompt_id = $1"""


@pytest.fixture
def played() -> dict[str, Played]:
    """Executions of `generate`."""
    return generated()


@pytest.mark.parametrize(
    "template", ["comfyui-generate", "comfyui-status", "comfyui-healthcheck", "comfyui-error-alert"]
)
def test_every_node_is_played_by_some_case(template: str) -> None:
    """So no Code node, no expression of a request and no wire is left out."""
    cases = {"comfyui-generate": generated, "comfyui-status": told_of}.get(template, watched)()
    path = TEMPLATES / f"{template}.json"
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    names = {node["name"] for node in nodes if not node["type"].endswith("stickyNote")}
    assert names - {step for case in cases.values() for step in case.steps} == set()


def written(case: Played) -> Iterator[tuple[str, str]]:
    """The statements of an execution, in order, with their values."""
    seen: dict[str, int] = {}
    for name in case.steps:
        if name in WRITES:
            call = case.calls[name][seen.setdefault(name, 0)]
            seen[name] += 1
            yield name, filled(call["query"], call["options"]["queryReplacement"])


async def run(connection: Any, sql: str) -> list[dict[str, Any]]:
    """What n8n hands on: the rows of all statements; all of them are one transaction."""
    async with connection.transaction():
        rows = [await connection.fetch(statement) for statement in statements(sql)]
    return [dict(row) for row in rows[-1]]


@pytest.mark.parametrize("name", NAMES)
async def test_the_record_of_an_execution_agrees_with_its_answer(
    name: str, played: dict[str, Played], database: str
) -> None:
    case = played[name]
    status, body = case.answer
    async with connected(database) as connection:
        for node, sql in written(case):
            rows = await run(connection, sql)
            assert (rows[-1]["recorded"], rows[-1]["prompt_id"]) == (True, body["prompt_id"]), node
        told = await connection.fetchrow(TOLD, body["prompt_id"])
        workers = await connection.fetchval("SELECT count(*) FROM run_workers")
    assert told["files"] == sum(len(batch["assets"]) for batch in case.batches("End"))
    assert workers == 0
    assert told["state"] == body["state"]
    assert told["message"] == (body["error"]["message"] if status not in (200, 504) else None)
    assert len(told["events"]) == len(set(told["events"]))


async def test_the_record_is_whole(played: dict[str, Played], database: str) -> None:
    case = played["good: workflow"]
    id = case.answer[1]["prompt_id"]
    async with connected(database) as connection:
        rows = [(await run(connection, sql))[-1] for _, sql in written(case)]
        told = await connection.fetchrow(TOLD, id)
        graph = await connection.fetchval("SELECT graph::text FROM workflow_runs")
        metadata = json.loads(await connection.fetchval("SELECT metadata::text FROM generated_assets"))
    assert told["events"] == ["submitted", "download_started", "finished"]
    assert "18446744073709551615" in graph and '"cfg": 1.0' in graph
    assert [metadata[name] for name in ("seed", "model", "node_title")] == [
        2**64 - 1,
        "sd.safetensors",
        "Keep",
    ]
    assert [row["mine"] for row in rows[:-1]] == [True] * (len(rows) - 1)
    (asset,) = json.loads(rows[-1]["assets"])
    assert (asset["output_path"], asset["sha256"]) == (case.answer[1]["assets"][0]["output_path"], "ab" * 32)


async def test_writing_all_of_it_again_changes_nothing(played: dict[str, Played], database: str) -> None:
    case = played["three images"]
    id = case.answer[1]["prompt_id"]
    async with connected(database) as connection:
        told = []
        for _ in range(2):
            for _, sql in written(case):
                await run(connection, sql)
            told.append(dict(await connection.fetchrow(TOLD, id)))
    assert told[0] == told[1]
    assert (told[0]["state"], told[0]["files"]) == ("succeeded", 3)


async def test_a_key_belongs_to_who_came_first(played: dict[str, Played], database: str) -> None:
    """Two executions with the same key: one sends, the other sees the job of the first."""
    (first, *_), (second, *_) = (
        list(written(played[name])) for name in ("a key for the first time", "a key for the second time")
    )
    async with connected(database) as connection:
        rows = [(await run(connection, sql))[-1] for _, sql in (first, second)]
    assert [row["mine"] for row in rows] == [True, False]
    assert rows[0]["prompt_id"] == rows[1]["prompt_id"]
    assert rows[0]["digest"] == rows[1]["digest"]


async def test_nobody_takes_a_job_from_who_is_alive(played: dict[str, Played], database: str) -> None:
    case = played["one image"]
    queries = dict(written(case))
    (worker,) = re.findall(r'"worker":"([^"]+)"', queries["Turn"])[:1]
    other = queries["Turn"].replace(worker, "00000000-0000-4000-8000-000000000000")
    async with connected(database) as connection:
        await run(connection, queries["Begin"])
        assert (await run(connection, other))[-1]["mine"] is False
        await connection.execute("UPDATE run_workers SET alive_until = now() - interval '1 second'")
        assert (await run(connection, other))[-1]["mine"] is True
        assert (await run(connection, queries["Turn"]))[-1]["mine"] is False


async def test_a_forgotten_job_is_one_that_nobody_alive_follows(
    played: dict[str, Played], database: str
) -> None:
    queries = dict(written(played["good: workflow"]))
    (call,) = told_of()["no forgotten job"].calls["Forgotten job"]
    forgotten = filled(call["query"], call["options"]["queryReplacement"])
    async with connected(database) as connection:
        assert await run(connection, forgotten) == []
        for node in ("Begin", "Record submitted"):
            await run(connection, queries[node])
        await connection.execute("ALTER TABLE workflow_runs DISABLE TRIGGER USER")  # it sets updated_at
        await connection.execute("UPDATE workflow_runs SET updated_at = now() - interval '1 hour'")
        assert await run(connection, forgotten) == []
        await connection.execute("UPDATE run_workers SET alive_until = now() - interval '1 second'")
        (row,) = await run(connection, forgotten)
        await connection.execute("UPDATE workflow_runs SET server = 'http://another:8188'")
        assert await run(connection, forgotten) == []
    assert (row["recorded"], row["prompt_id"]) == (True, played["good: workflow"].answer[1]["prompt_id"])


async def test_looks_become_rows_and_errors_are_counted(database: str) -> None:
    played = watched()
    async with connected(database) as connection:
        for name in ("well", "away once"):
            for _, sql in written(played[name]):
                assert (await run(connection, sql))[-1]["recorded"] is True
        rows = await connection.fetch("SELECT ok, queue_pending, error FROM server_checks ORDER BY id")
        ((_, count),) = written(played["alert: an error"])
        verdicts = [(await run(connection, count))[-1] for _ in range(3)]
    assert [(row["ok"], row["queue_pending"], row["error"] is None) for row in rows] == [
        (True, 2, True),
        (False, None, False),
    ]
    assert [(row["recorded"], row["send"]) for row in verdicts] == [
        (True, True),
        (True, False),
        (True, False),
    ]
