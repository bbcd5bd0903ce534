"""Following many jobs: one look each with a healthy socket, one a server and interval without; nobody waits
for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from graphs import image, steps

from comfyflow import ComfyClient, JobState, PollSchedule, follow
from comfyflow.sim import Sim, answer

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)
CALM = PollSchedule(first=0.05, factor=1.0, ceiling=0.05, stall_after=60.0, deaf_after=60.0)


@pytest.fixture
async def client(comfyui: Sim) -> AsyncIterator[ComfyClient]:
    async with ComfyClient(comfyui.url, poll=CALM) as made:
        yield made


async def test_a_healthy_socket_costs_one_look_a_job(client: ComfyClient, comfyui: Sim) -> None:
    jobs = [await client.submit_workflow(image()) for _ in range(20)]
    await asyncio.gather(*(client.wait(job) for job in jobs))
    assert comfyui.looks() == 20


async def test_without_a_socket_a_crowd_costs_as_many_looks_as_one_job(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, websocket=False, poll=CALM) as client:
        await comfyui.hold()
        jobs = [await client.submit_workflow(image()) for _ in range(50)]
        waits = [asyncio.create_task(client.wait(job)) for job in jobs]
        await comfyui.wait_for(lambda: comfyui.looks() >= 6)
        asked = {path for _, path in comfyui.requests if "/jobs/" in path}
        assert asked == {f"/api/jobs/{jobs[0]}"}  # only the first can be next
        await comfyui.release()
        assert {result.state for result in await asyncio.gather(*waits)} == {JobState.SUCCEEDED}


async def test_a_lost_socket_is_made_up_for_by_looks(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, poll=QUICK) as client:
        await comfyui.hold()
        job = await client.submit_workflow(steps())
        await comfyui.wait_running(job)
        comfyui.faults.add("GET", "/ws", answer(503), times=None)
        comfyui.drop_sockets()
        await comfyui.release()
        assert (await client.wait(job)).state is JobState.SUCCEEDED


async def test_a_deaf_socket_is_replaced(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, poll=QUICK) as client:
        await client.wait(await client.submit_workflow(image()))
        comfyui.deafen()
        await comfyui.hold()
        job = await client.submit_workflow(steps())
        await comfyui.wait_for(lambda: [path for _, path in comfyui.requests].count("/ws") == 2)
        await comfyui.release()
        assert (await client.wait(job)).state is JobState.SUCCEEDED


async def test_a_socket_that_goes_deaf_under_a_running_job_does_not_hide_its_end(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, poll=QUICK) as client:
        await comfyui.hold()
        job = await client.submit_workflow(steps())
        await comfyui.wait_running(job)
        comfyui.deafen()
        await comfyui.release()
        assert (await client.wait(job)).state is JobState.SUCCEEDED
        await comfyui.wait_for(lambda: [path for _, path in comfyui.requests].count("/ws") == 2)


async def test_failing_looks_are_no_verdict_and_are_told(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, websocket=False, poll=QUICK) as client:
        await comfyui.hold()
        job = await client.submit_workflow(image())
        fault = comfyui.faults.add("GET", "/jobs/*", answer(502), times=3)
        notes = []
        async for view in client.watch(job):
            notes.append(view.note)
            if fault.hits == 3:
                await comfyui.release()
        assert any("proxy" in (note or "") for note in notes)
        assert notes[-1] is None


async def test_history_may_come_late(comfyui: Sim) -> None:
    async with Sim(history_gap=0.2) as slow, ComfyClient(slow.url, poll=CALM) as client:
        jobs = [await client.submit_workflow(image()) for _ in range(2)]
        for job in jobs:
            assert (await client.wait(job)).source == "history"
        assert slow.looks() == 2


async def test_a_history_that_was_cleared_does_not_turn_success_into_loss(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, poll=QUICK) as client:
        comfyui.faults.add(
            "GET", "/history/*", answer(200, b"{}", content_type="application/json"), times=None
        )
        comfyui.faults.add(
            "GET",
            "/jobs/*",
            answer(404, b'{"error": "Job not found"}', content_type="application/json"),
            times=None,
        )
        result = await client.wait(await client.submit_workflow(image()))
        assert (result.state, result.source, len(result.outputs)) == (JobState.SUCCEEDED, "events", 1)


async def test_frames_that_make_no_sense_are_passed_over(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    job = await client.submit_workflow(image())
    await comfyui.wait_running(job)
    foreign = '{"type": "executing", "data": {"node": null, "prompt_id": "foreign"}}'
    for frame in (
        "garbage",
        b"\0\0",
        '{"type": "new"}',
        "[" * 3000,
        foreign,
        '{"type": "progress", "data": 1}',
    ):
        comfyui.send_raw(frame)
    await comfyui.release()
    assert (await client.wait(job)).state is JobState.SUCCEEDED


async def test_only_so_many_ended_jobs_are_remembered(
    client: ComfyClient, comfyui: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "KEPT", 2)
    jobs = [await client.submit_workflow(image()) for _ in range(4)]
    for job in jobs:
        await client.wait(job)
    before = comfyui.looks()
    await client.wait(jobs[-1])
    assert comfyui.looks() == before
    await client.wait(jobs[0])
    assert comfyui.looks() > before


async def test_who_stops_waiting_for_a_strangers_job_stops_the_looks(comfyui: Sim) -> None:
    async with (
        ComfyClient(comfyui.url) as owner,
        ComfyClient(comfyui.url, websocket=False, poll=QUICK) as other,
    ):
        await comfyui.hold()
        job = await owner.submit_workflow(image())
        waiting = asyncio.create_task(other.wait(job))
        await comfyui.wait_for(lambda: comfyui.looks() >= 2)
        waiting.cancel()
        await asyncio.wait([waiting])
        comfyui.requests.clear()
        await asyncio.gather(*(other.queue() for _ in range(20)))
        assert {path for _, path in comfyui.requests} == {"/queue"}
