"""The SQL of the templates that watch: one message a cause and interval, and a row of what was measured."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
from clusters import connected, execute
from n8n_host import node, template


def query(name: str, of: str) -> str:
    return str(node(template(name, {}), of)["parameters"]["query"])


COUNT, FORGET = query("comfyui-error-alert", "Count"), query("comfyui-error-alert", "Forget")
RECORD = query("comfyui-healthcheck", "Record check")


async def happened(connection: Any, seconds: float = 3600.0, cause: str = "c") -> asyncpg.Record:
    """Something failed; messages about it are `seconds` apart."""
    return await connection.fetchrow(COUNT, json.dumps({"cause": cause, "repeat_seconds": seconds}))


async def test_of_many_failures_at_once_one_is_told(database: str) -> None:
    async def one() -> bool:
        async with connected(database) as connection:
            return bool((await happened(connection))["send"])

    assert sum(await asyncio.gather(*(one() for _ in range(12)))) == 1
    [[row]] = execute(database, "SELECT times, suppressed FROM alerts")
    assert tuple(row) == (12, 11)


async def test_when_the_time_is_over_the_next_message_counts_the_others(database: str) -> None:
    async with connected(database) as connection:
        told = [await happened(connection) for _ in range(3)]
        assert [(row["send"], row["count"]) for row in told] == [(True, 1), (False, 1), (False, 2)]
        await connection.execute("UPDATE alerts SET sent_at = sent_at - interval '61 minutes'")
        before = await connection.fetchval("SELECT extract(epoch FROM sent_at)::float8 FROM alerts")
        again = await happened(connection)
        assert (again["send"], again["count"], again["since"]) == (True, 3, before)
        assert not (await happened(connection))["send"]


async def test_another_cause_has_its_own_time_and_without_an_interval_each_is_told(database: str) -> None:
    async with connected(database) as connection:
        assert (await happened(connection))["send"]
        assert (await happened(connection, cause="another"))["send"]
        assert [(await happened(connection, 0.0))["send"] for _ in range(2)] == [True, True]


async def test_a_message_that_was_not_delivered_does_not_keep_back_the_next(database: str) -> None:
    async with connected(database) as connection:
        first = await happened(connection)
        lost = json.dumps({"cause": "c", "sent_at": first["sent_at"], "times": 1})
        assert await connection.fetchval(FORGET, lost)
        again = await happened(connection)
        assert (again["send"], again["count"]) == (True, 2)
        assert await connection.fetchval(FORGET, lost)  # but that one was delivered
        assert not (await happened(connection))["send"]


async def test_a_check_is_recorded_with_the_mean_time_of_the_last_hour(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute(
            "INSERT INTO workflow_runs (prompt_id, server, state, execution_seconds, finished_at)"
            " SELECT 'job-' || n, CASE n WHEN 5 THEN 'other' ELSE 'http://c' END,"
            " CASE n WHEN 4 THEN 'failed' ELSE 'succeeded' END, n,"
            " now() - CASE n WHEN 3 THEN interval '2 hours' ELSE '1 minute' END"
            " FROM generate_series(1, 5) AS n"
        )
        check = {"server": "http://c", "ok": True, "error": None, "vram_free": 1 << 40, "keep_days": 30}
        told = await connection.fetchrow(RECORD, json.dumps(check))
        row = await connection.fetchrow("SELECT * FROM server_checks")
    assert (told["recorded"], told["mean_seconds"]) == (True, 1.5)
    assert (row["server"], row["ok"], row["vram_free"], row["queue_running"]) == (
        "http://c",
        True,
        1 << 40,
        None,
    )
    assert row["mean_seconds"] == 1.5


async def test_a_check_takes_the_old_ones_of_its_server_away(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute(
            "INSERT INTO server_checks (server, ok, checked_at)"
            " SELECT server, true, now() - days * interval '1 day'"
            " FROM unnest(ARRAY['http://c', 'other']) AS server, unnest(ARRAY[29, 31]) AS days"
        )
        for keep_days in (0, 30):
            await connection.fetchrow(
                RECORD, json.dumps({"server": "http://c", "ok": True, "keep_days": keep_days})
            )
            ages = "SELECT server, (now() - checked_at) > interval '30 days' AS old FROM server_checks"
            old = [row["server"] for row in await connection.fetch(ages) if row["old"]]
            assert old == (["other"] if keep_days else ["http://c", "other"])
