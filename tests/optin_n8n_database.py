"""The templates and PostgreSQL: away, coming and going, and shared with comfyflow (tests/optin_n8n.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from database_road import Road
from graphs import image
from n8n_stand import GENERATE, Stand, Webhooks
from optin_n8n import assert_stored

from comfyflow import ComfyClient, PostgresStore, Runner, RunResult
from comfyflow.sim import Sim

pytest_plugins = ["n8n_fixtures"]
pytestmark = pytest.mark.timeout(120, func_only=True)

HERE = f"{GENERATE}/database"  # the webhook whose record is at the end of the road


@pytest.fixture
async def road(stand: Stand, hooks: Webhooks) -> AsyncIterator[Road]:
    """The road to the record, open for this test."""
    stand.road.round_trips = 0
    stand.road.cut_at = 0
    await stand.road.open()
    yield stand.road
    await stand.road.close()


async def test_a_database_that_is_away_does_not_stop_a_job(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    told = await hooks.generate(image(), at=HERE)
    assert (told.status, told.body["recorded"]) == (200, False)
    assert "database" in told.body["warning"]
    (asset,) = told.body["assets"]
    assert asset["id"] is None
    await stand.chat.wait_for("not recorded")
    assert_stored(gpu, stand, asset)
    assert gpu.executed.total() == 1


async def test_nothing_is_sent_under_a_key_that_cannot_be_looked_up(hooks: Webhooks, gpu: Sim) -> None:
    told = await hooks.generate(image(), at=HERE, headers={"Idempotency-Key": "order 4715"})
    assert (told.status, told.code) == (503, "database_unreachable")
    assert gpu.requests == []


async def test_a_database_that_goes_away_in_the_middle_hears_of_the_job_later(
    hooks: Webhooks, gpu: Sim, stand: Stand, road: Road
) -> None:
    await gpu.hold()
    asked = asyncio.create_task(hooks.generate(image(), at=HERE))
    await gpu.wait_running()
    await road.close()
    await gpu.release()
    told = await asked
    assert (told.status, told.body["recorded"]) == (200, False)
    assert_stored(gpu, stand, told.body["assets"][0])
    prompt_id = told.body["prompt_id"]
    assert (await hooks.run(prompt_id))["finished_at"] is None
    await hooks.change("UPDATE run_workers SET alive_until = now() - interval '1 second'")  # time goes by
    later = await hooks.settled(prompt_id)
    assert (later.status, later.body["recorded"]) == (200, True)
    assert later.body["assets"][0]["path"] == told.body["assets"][0]["path"]
    assert (await hooks.run(prompt_id))["state"] == "succeeded"
    assert dict(gpu.executed) == {prompt_id: 1}


@pytest.mark.parametrize("cut_at", range(2, 9))
async def test_wherever_the_connection_breaks_off_a_job_runs_once(
    hooks: Webhooks, gpu: Sim, stand: Stand, road: Road, cut_at: int
) -> None:
    """The database has done what it was told, and nobody hears of it."""
    road.cut_at = cut_at
    graph, headers = image(), {"Idempotency-Key": f"order of {cut_at}"}
    told = await hooks.generate(graph, at=HERE, headers=headers)
    assert told.status == 200 or told.code == "database_unreachable"
    road.cut_at = 0
    await hooks.change("UPDATE run_workers SET alive_until = now() - interval '1 second'")
    again = await hooks.generate(graph, at=HERE, headers=headers)
    if again.status == 503:  # it was never sent, and says: send it again
        again = await hooks.generate(graph, at=HERE, headers=headers)
    assert (again.status, again.body["recorded"]) == (200, True)
    assert_stored(gpu, stand, again.body["assets"][0])
    assert dict(gpu.executed) == {again.body["prompt_id"]: 1}
    assert len(await hooks.rows("SELECT * FROM generated_assets")) == 1


# Together with comfyflow


async def test_a_job_of_n8n_is_the_job_of_comfyflow_under_the_same_key(
    hooks: Webhooks, gpu: Sim, stand: Stand, tmp_path: Path
) -> None:
    graph = image()
    told = await hooks.generate(graph, headers={"Idempotency-Key": "order 4716"})
    async with ComfyClient(gpu.url) as client, await PostgresStore.open(stand.record, journal=None) as store:
        runner = Runner(client, store, tmp_path)
        result = await runner.run(graph, key="order 4716")
    assert result.prompt_id == told.body["prompt_id"]
    assert gpu.executed.total() == 1


async def test_a_job_of_comfyflow_is_the_job_of_n8n_under_the_same_key(
    hooks: Webhooks, gpu: Sim, stand: Stand, tmp_path: Path
) -> None:
    graph = image()
    async with ComfyClient(gpu.url) as client, await PostgresStore.open(stand.record, journal=None) as store:
        result = await Runner(client, store, tmp_path).run(graph, key="order 4717")
    told = await hooks.generate(graph, headers={"Idempotency-Key": "order 4717"})
    assert (told.status, told.body["replayed"]) == (200, True)
    assert told.body["prompt_id"] == result.prompt_id
    (asset,) = told.body["assets"]
    assert Path(asset["path"]).is_file()
    assert gpu.executed.total() == 1


async def test_comfyflow_leaves_a_job_alone_that_n8n_follows(
    hooks: Webhooks, gpu: Sim, stand: Stand, tmp_path: Path
) -> None:
    await gpu.hold()
    asked = asyncio.create_task(hooks.generate(image()))
    await gpu.wait_running()
    async with ComfyClient(gpu.url) as client, await PostgresStore.open(stand.record, journal=None) as store:
        resuming = asyncio.create_task(_all_of(Runner(client, store, tmp_path, lease=3.0)))
        await hooks.until("SELECT * FROM run_workers WHERE pid <> 0")
        await gpu.release()
        assert (await asked).status == 200
        assert await resuming == []
    assert gpu.executed.total() == 1


async def _all_of(runner: Runner) -> list[RunResult]:
    return [result async for result in runner.resume()]
