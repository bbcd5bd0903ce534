"""Following many jobs: one look each with a healthy socket, one a server and interval without; nobody waits
for ever."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import cast

import pytest
from graphs import image, steps

from comfyflow import (
    ComfyClient,
    JobState,
    JobTimeout,
    PollSchedule,
    ServerUnreachable,
    Timeouts,
    follow,
    link,
)
from comfyflow.events import Absent, JobEvent, Recorded
from comfyflow.look import Looker
from comfyflow.models import JobResult, OutputFile
from comfyflow.sim import FaultProxy, Sim, answer, stall
from comfyflow.tracker import Tracker

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


async def test_the_end_of_another_sockets_job_is_found_beside_a_healthy_socket(comfyui: Sim) -> None:
    async with (
        ComfyClient(comfyui.url) as owner,
        ComfyClient(comfyui.url, poll=CALM) as other,
    ):
        await comfyui.hold()
        await owner.submit_workflow(image())
        job = await owner.submit_workflow(image())
        waiting = asyncio.create_task(other.wait(job, timeout=20.0))  # CALM trusts a live socket for 60 s
        await comfyui.wait_for(lambda: comfyui.looks() >= 3)
        await comfyui.release()
        assert (await waiting).state is JobState.SUCCEEDED


# --- trouble on the way there
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [True, False])
async def test_a_half_open_connection_does_not_hide_the_end(
    comfyui: Sim, comfyui_proxy: FaultProxy, lost: bool
) -> None:
    """Nobody gets a FIN, the socket looks alive, requests on kept connections get no answer; new ones do."""
    async with ComfyClient(comfyui_proxy.url, poll=QUICK, timeout=Timeouts(answer=0.2)) as client:
        await comfyui.hold()
        job = await client.submit_workflow(steps())
        await comfyui.wait_running(job)
        comfyui_proxy.freeze(lost=lost, new=False)
        await comfyui.release()
        assert (await client.wait(job)).state is JobState.SUCCEEDED
        await comfyui_proxy.wait_for(lambda: comfyui_proxy.sockets_opened == 2)
        assert (await client.wait(await client.submit_workflow(image()))).state is JobState.SUCCEEDED


async def test_a_proxy_that_cuts_idle_connections_is_lived_with(
    comfyui: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RETRY_FIRST", 0.01)
    async with (
        FaultProxy(comfyui.url, idle_cut=0.1) as proxy,
        ComfyClient(proxy.url, poll=QUICK) as client,
    ):
        await comfyui.hold()
        job = await client.submit_workflow(image())
        await proxy.wait_for(lambda: proxy.cuts >= 3 and proxy.sockets_opened >= 3)
        await comfyui.release()
        assert (await client.wait(job)).state is JobState.SUCCEEDED


async def test_a_server_that_freezes_for_a_moment_keeps_its_socket(
    comfyui: Sim, comfyui_proxy: FaultProxy
) -> None:
    """1.5 s of it is a habit of ComfyUI's: nothing of ours is as impatient."""
    ours = PollSchedule()
    assert min(ours.stall_after, ours.deaf_after, link.PING_TIMEOUT, Timeouts().answer or 0) > 5
    async with ComfyClient(comfyui_proxy.url) as client:
        await comfyui.hold()
        job = await client.submit_workflow(image())
        await comfyui.wait_running(job)
        comfyui_proxy.freeze(lost=False)
        await comfyui.release()
        await comfyui.wait_done(job)
        comfyui_proxy.thaw()
        assert (await client.wait(job)).state is JobState.SUCCEEDED
        assert comfyui_proxy.sockets_opened == 1


async def test_a_server_that_freezes_for_longer_than_our_patience_costs_no_job(
    comfyui: Sim, comfyui_proxy: FaultProxy
) -> None:
    impatient = Timeouts(connect=0.1, answer=0.1)
    async with ComfyClient(comfyui_proxy.url, poll=QUICK, timeout=impatient) as client:
        await comfyui.hold()
        job = await client.submit_workflow(image())
        comfyui_proxy.freeze(lost=False)
        views = client.watch(job)
        async for view in views:
            if view.note is not None:  # a look has failed, and is no verdict
                comfyui_proxy.thaw()
                await comfyui.release()
        assert view.state is JobState.SUCCEEDED


async def test_every_wait_for_a_silent_server_ends(comfyui: Sim, comfyui_proxy: FaultProxy) -> None:
    """By silence, and by the time in total."""
    short = Timeouts(connect=0.1, answer=0.1, silence=0.5)
    async with ComfyClient(comfyui_proxy.url, poll=QUICK, timeout=short) as client:
        await comfyui.hold()
        job = await client.submit_workflow(image())
        comfyui_proxy.freeze(new=True)
        with pytest.raises(JobTimeout):
            await client.wait(job, timeout=0.05)
        with pytest.raises(ServerUnreachable, match="timed out"):
            await client.wait(job)
        with pytest.raises(ServerUnreachable):
            async for _ in client.watch(job):
                pass


async def test_refused_sockets_are_tried_again_until_one_holds(
    comfyui: Sim, comfyui_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RETRY_FIRST", 0.01)
    async with ComfyClient(comfyui_proxy.url, poll=QUICK) as client:
        await comfyui.hold()
        job = await client.submit_workflow(image())
        comfyui_proxy.refuse_sockets = True
        comfyui_proxy.cut_sockets()
        await comfyui_proxy.wait_for(lambda: comfyui_proxy.requests["GET", "/ws"] >= 4)
        comfyui_proxy.refuse_sockets = False
        await comfyui_proxy.wait_sockets()
        await comfyui.release()
        assert (await client.wait(job)).state is JobState.SUCCEEDED


async def test_a_server_that_is_away_for_a_while_costs_no_job(
    comfyui: Sim, comfyui_proxy: FaultProxy
) -> None:
    async with ComfyClient(comfyui_proxy.url, poll=QUICK) as client:
        await comfyui.hold()
        job = await client.submit_workflow(image())
        await comfyui_proxy.refuse()
        await comfyui.release()
        async for view in client.watch(job):
            if view.note is not None:
                await comfyui_proxy.accept()
        assert view.state is JobState.SUCCEEDED


async def test_one_slow_look_is_no_verdict_and_holds_up_nobody_else(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, poll=QUICK, timeout=Timeouts(answer=0.2)) as client:
        await comfyui.hold()
        first, second = await client.submit_workflow(image()), await client.submit_workflow(image())
        slow = comfyui.faults.add("GET", "/jobs/" + first, stall())
        waiting = asyncio.create_task(client.wait(first))
        await slow.met()
        await comfyui.release()
        assert (await client.wait(second)).state is JobState.SUCCEEDED
        assert (await waiting).state is JobState.SUCCEEDED
        slow.release()


# --- who reads slowly, and what comes in large


async def test_a_slow_consumer_stops_nobody_and_gets_the_latest_view(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, poll=CALM, previews=True) as client:
        await comfyui.hold()
        slow = await client.submit_workflow(steps(500))
        async with aclosing(client.watch(slow)) as views:
            seen = [await anext(views)]
            await comfyui.release()
            other = await client.submit_workflow(image())
            assert (await client.wait(other)).state is JobState.SUCCEEDED
            seen += [view async for view in views]
        assert len(seen) == 2
        assert seen[-1].state is JobState.SUCCEEDED


async def test_a_huge_frame_passes_and_what_follows_it_is_heard(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    job = await client.submit_workflow(image())
    text = "x" * (32 * 2**20)
    output = {"prompt_id": job, "node": "9", "display_node": "9", "output": {"text": [text]}}
    comfyui.send_raw(json.dumps({"type": "executed", "data": output}), client.client_id)
    await comfyui.release()
    assert (await client.wait(job)).state is JobState.SUCCEEDED
    assert (comfyui.looks(), comfyui.sockets) == (1, 1)


# --- time


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
async def test_the_wall_clock_may_jump(comfyui: Sim, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    now, calls = time.time(), itertools.count(1)
    monkeypatch.setattr(time, "time", lambda: now + jump * next(calls))
    budgets = Timeouts(silence=20.0, total=20.0)
    for websocket in (True, False):
        async with ComfyClient(comfyui.url, poll=QUICK, timeout=budgets, websocket=websocket) as client:
            await comfyui.hold()
            job = await client.submit_workflow(image())
            waiting = asyncio.create_task(client.wait(job))
            stopped = asyncio.create_task(client.cancel(await client.submit_workflow(image())))
            assert await stopped
            assert not waiting.done()
            await comfyui.release()
            assert (await waiting).state is JobState.SUCCEEDED
    assert next(calls) > 2


# -- what a running job does, while nobody looks --


def told(kind: str, **data: object) -> str:
    return json.dumps({"type": kind, "data": data})


class Looks:
    """A server's answers to looks, to order."""

    def __init__(self, *answers: JobEvent) -> None:
        self.answers = list(answers)

    async def look(self, prompt_id: str, *, ended: bool = False) -> JobEvent:
        return self.answers.pop(0)


@pytest.fixture
def tracker() -> Tracker:
    return Tracker("a", CALM)


def running(tracker: Tracker, *answers: JobEvent) -> follow.Follower:
    """A follower of one job that has begun."""
    looker = cast("Looker", Looks(*answers))
    follower = follow.Follower(looker, None, CALM, Timeouts(), previews=False)
    follower.add(tracker)
    follower.accepted(tracker, 1, counted=True)
    follower.on_frame(told("execution_start", prompt_id="a"))
    return follower


async def test_details_are_read_when_somebody_asks(tracker: Tracker) -> None:
    follower = running(tracker)
    follower.on_frame(told("execution_cached", nodes=["1"], prompt_id="a"))
    follower.on_frame(told("executing", node="2", display_node="2", prompt_id="a"))
    assert tracker.node_id is None  # not yet read
    known = follower.known("a")
    assert known is tracker
    assert (known.view().node_id, known.view().nodes_done) == ("2", 1)


async def test_details_of_another_job_are_no_matter_of_the_one_that_runs(tracker: Tracker) -> None:
    follower = running(tracker)
    follower.on_frame(told("executing", node="2", display_node="a", prompt_id="b"))
    follower.on_frame(told("executing", node="3", display_node="3", prompt_id="b"))
    assert follower.known("a") is tracker
    assert tracker.node_id is None


async def test_somebody_who_watches_is_told_at_once(tracker: Tracker) -> None:
    follower = running(tracker)
    follower.start()
    async with aclosing(follower.views("a")) as views:
        assert (await anext(views)).node_id is None
        follower.on_frame(told("executing", node="2", display_node="2", prompt_id="a"))
        assert (await anext(views)).node_id == "2"
    await follower.stop()


@pytest.mark.parametrize(("node", "reused"), [("2", False), ("1", True)])
async def test_a_node_that_was_seen_to_run_has_not_given_an_old_file(
    tracker: Tracker, node: str, reused: bool
) -> None:
    """0.27.0 lists it as cached, having dropped its result meanwhile (`--cache-ram`)."""
    file = OutputFile(node, "x.png", reused=True)
    follower = running(tracker, Recorded("a", JobResult("a", JobState.SUCCEEDED, (file,))))
    follower.start()
    follower.on_frame(told("executing", node="2", display_node="2", prompt_id="a"))
    follower.on_frame(told("executing", node=None, prompt_id="a"))
    ended = await follower.until_end("a", 5.0)
    await follower.stop()
    assert ended.result is not None
    assert [output.reused for output in ended.result.outputs] == [reused]


async def test_files_that_only_the_socket_told_of_are_not_forgotten(tracker: Tracker) -> None:
    follower = running(tracker, Absent("a"), Absent("a"))
    follower.start()
    picture = {"filename": "x.png", "subfolder": "", "type": "output"}
    follower.on_frame(told("executed", node="2", output={"images": [picture]}, prompt_id="a"))
    follower.on_frame(told("execution_success", prompt_id="a"))
    follower.on_frame(told("executing", node=None, prompt_id="a"))
    ended = await follower.until_end("a", 5.0)
    await follower.stop()
    assert ended.result is not None
    assert [output.filename for output in ended.result.outputs] == ["x.png"]
    assert ended.state is JobState.SUCCEEDED


async def test_who_waits_for_the_start_is_woken_by_it(tracker: Tracker) -> None:
    looker = cast("Looker", Looks())
    follower = follow.Follower(looker, None, CALM, Timeouts(), previews=False)
    follower.add(tracker)
    follower.start()
    waiting = asyncio.create_task(follower.until_running("a", 5.0))
    done, _ = await asyncio.wait([waiting], timeout=0)
    assert not done
    follower.on_frame(told("execution_start", prompt_id="a"))
    assert (await waiting).state is JobState.RUNNING
    with pytest.raises(JobTimeout):
        await follower.until_end("a", 0.01)
    await follower.stop()


async def test_an_end_without_a_start_is_one_too(client: ComfyClient, comfyui: Sim) -> None:
    job = await client.submit_workflow(image())
    await client.wait(job)
    assert (await client.until_running(job)).state is JobState.SUCCEEDED


async def test_progress_is_passed_over_while_nobody_watches_that_job(tracker: Tracker) -> None:
    """However many watch other jobs."""
    follower = running(tracker)
    follower.start()
    other = Tracker("b", CALM)
    follower.add(other)
    follower.accepted(other, 2, counted=True)
    async with aclosing(follower.views("b")) as views:
        await anext(views)
        follower.on_frame(told("progress", value=1, max=2, node="5", prompt_id="a"))
        assert tracker.view().node_id is None
    async with aclosing(follower.views("a")) as views:
        await anext(views)
        follower.on_frame(told("progress", value=1, max=2, node="5", prompt_id="a"))
        assert (await anext(views)).node_id == "5"
    await follower.stop()
