"""ComfyClient over real sockets: what an embedder calls, against the simulator."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
import trustme
from aiohttp import web
from graphs import alone, image, partly_valid, steps

from comfyflow import (
    BadAnswer,
    ComfyClient,
    DownloadError,
    JobCancelled,
    JobFailed,
    JobLost,
    JobResult,
    JobState,
    JobTimeout,
    NotSupported,
    OutputUnavailable,
    PollSchedule,
    ServerUnreachable,
    Timeouts,
    UsageError,
    WorkflowInvalid,
    WorkflowRejected,
)
from comfyflow import client as module
from comfyflow.errors import KeyConflict
from comfyflow.models import Ambiguous
from comfyflow.sim import (
    Effect,
    Fault,
    Sim,
    answer,
    gone,
    login_page,
    redirect,
    reset,
    reset_after,
    stall,
)
from comfyflow.workflow import Workflow

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)


@pytest.fixture
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server, and for a client that trusts it."""
    authority = trustme.CA()
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(trusting)
    return serving, trusting


@pytest.fixture(params=[True, False], ids=["socket", "polling"])
async def client(request: pytest.FixtureRequest, comfyui: Sim) -> AsyncIterator[ComfyClient]:
    async with ComfyClient(comfyui.url, websocket=request.param, poll=QUICK) as made:
        yield made


async def test_a_workflow_goes_in_and_verified_files_come_out(client: ComfyClient, tmp_path: Path) -> None:
    prompt_id = await client.submit_workflow(image(batch=2))
    files = await client.download_images(prompt_id, tmp_path / "made" / "on demand")
    assert [file.path.read_bytes()[:4] for file in files] == [b"\x89PNG"] * 2
    assert {(file.media_type, file.width, file.height) for file in files} == {("image/png", 64, 64)}
    assert sorted(path.name for path in (tmp_path / "made" / "on demand").iterdir()) == sorted(
        f.path.name for f in files
    )


async def test_the_prompt_id_is_ours(client: ComfyClient) -> None:
    wanted = str(uuid.uuid4())
    assert await client.submit_workflow(image(), prompt_id=wanted) == wanted
    assert (await client.wait(wanted)).prompt_id == wanted


async def test_an_old_server_chooses_the_id(tmp_path: Path) -> None:
    async with Sim(profile="0.3.40") as old, ComfyClient(old.url, poll=QUICK) as client:
        wanted = str(uuid.uuid4())
        prompt_id = await client.submit_workflow(image(), prompt_id=wanted)
        assert prompt_id != wanted
        assert len(await client.download_images(prompt_id, tmp_path)) == 1


@pytest.mark.parametrize("websocket", [True, False])
async def test_a_server_without_jobs_routes_is_followed_by_queue_and_history(
    websocket: bool, tmp_path: Path
) -> None:
    async with Sim(profile="0.3.64") as old, ComfyClient(old.url, websocket=websocket, poll=QUICK) as client:
        assert len(await client.download_images(await client.submit_workflow(image()), tmp_path)) == 1
        await old.hold()
        running, waiting = await client.submit_workflow(image()), await client.submit_workflow(image())
        await old.wait_running(running)
        assert (await client.poll_status(running)).state is JobState.RUNNING
        view = await client.poll_status(waiting)
        assert (view.state, view.queue_position) == (JobState.QUEUED, 1)


async def test_views_tell_node_step_and_end(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, previews=True) as client:
        await comfyui.hold()
        prompt_id = await client.submit_workflow(steps(2))
        seen = []
        async with aclosing(client.watch(prompt_id)) as views:
            async for view in views:
                seen.append(view)
                await comfyui.release(1)
    assert [view.state.rank for view in seen] == sorted(view.state.rank for view in seen)
    assert {(view.node_title, view.steps) for view in seen} >= {("Stand-in sampler", 2.0)}
    assert any(view.preview and view.preview.data.startswith(b"\x89PNG") for view in seen)
    assert seen[-1].state is JobState.SUCCEEDED
    assert isinstance(seen[-1].result, JobResult)


async def test_a_waiting_job_knows_its_place(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url) as client:
        await comfyui.hold()
        first = await client.submit_workflow(image())
        await comfyui.wait_running(first)
        second = await client.submit_workflow(image())
        places = []
        async with aclosing(client.watch(second)) as views:
            async for view in views:
                places.append(view.queue_position)
                if view.queue_position == 1:
                    await comfyui.release()
        assert 1 in places


async def test_texts_come_as_values(client: ComfyClient) -> None:
    result = await client.wait(await client.submit_workflow(alone("SimText", text="hello")))
    assert [text.text for text in result.texts] == ["hello"]
    assert result.outputs == ()


async def test_nan_in_an_output_does_not_stop_anything(client: ComfyClient) -> None:
    assert (await client.wait(await client.submit_workflow(alone("SimNaN")))).state is JobState.SUCCEEDED


async def test_what_comfyui_reuses_is_marked(client: ComfyClient, tmp_path: Path) -> None:
    graph = image()
    first = await client.download_images(await client.submit_workflow(graph), tmp_path)
    again = await client.download_images(await client.submit_workflow(graph), tmp_path)
    assert [file.output.reused for file in first + again] == [False, True]
    assert [file.path for file in first] == [file.path for file in again]


async def test_a_failing_node_is_named(client: ComfyClient) -> None:
    prompt_id = await client.submit_workflow(alone("SimFail", message="no luck", exception="ValueError"))
    with pytest.raises(JobFailed, match='node "my SimFail"') as caught:
        await client.wait(prompt_id)
    assert (caught.value.node_id, caught.value.node_type, caught.value.message) == ("1", "SimFail", "no luck")
    assert caught.value.traceback
    assert (await client.result(prompt_id)).state is JobState.FAILED


@pytest.mark.parametrize("allow", [True, False])
async def test_a_partly_valid_workflow_is_an_error_unless_allowed(
    client: ComfyClient, comfyui: Sim, allow: bool
) -> None:
    await comfyui.hold()
    if allow:
        prompt_id = await client.submit_workflow(partly_valid(), allow_partial=True)
        await comfyui.release()
        assert len((await client.wait(prompt_id)).outputs) == 1
    else:
        with pytest.raises(WorkflowRejected) as caught:
            await client.submit_workflow(partly_valid())
        assert (caught.value.accepted, list(caught.value.node_errors)) == (True, ["3"])
        assert caught.value.prompt_id is not None
        await comfyui.release()
        assert (await client.poll_status(caught.value.prompt_id)).state is not JobState.SUCCEEDED


async def test_a_refused_workflow_is_never_followed(client: ComfyClient, comfyui: Sim) -> None:
    with pytest.raises(WorkflowRejected, match="failed validation") as caught:
        await client.submit_workflow(alone("SaveImage", filename_prefix="x"))
    assert list(caught.value.node_errors) == ["1"]
    assert not comfyui.executed


async def test_a_workflow_that_is_none_is_not_sent(client: ComfyClient, comfyui: Sim) -> None:
    with pytest.raises(WorkflowInvalid):
        await client.submit_workflow({"nodes": [], "links": []})
    assert ("POST", "/prompt") not in comfyui.requests


async def test_one_look_tells_where_a_job_stands(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    prompt_id = await client.submit_workflow(image())
    await comfyui.wait_running(prompt_id)
    assert (await client.poll_status(prompt_id)).state is JobState.RUNNING
    await comfyui.release()
    await client.wait(prompt_id)
    assert (await client.poll_status(prompt_id)).state is JobState.SUCCEEDED
    assert (await client.poll_status(str(uuid.uuid4()))).state is JobState.LOST


async def test_a_job_of_another_client_can_be_followed(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    async with ComfyClient(comfyui.url) as other:
        prompt_id = await other.submit_workflow(image())
        waiting = asyncio.create_task(client.wait(prompt_id))
        await comfyui.wait_running(prompt_id)
        await comfyui.release()
        assert (await waiting).state is JobState.SUCCEEDED


async def test_a_timeout_leaves_the_job_running(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    prompt_id = await client.submit_workflow(image())
    with pytest.raises(JobTimeout):
        await client.wait(prompt_id, timeout=0.05)
    await comfyui.release()
    assert (await client.wait(prompt_id)).state is JobState.SUCCEEDED


async def test_a_removed_job_is_lost(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    await client.submit_workflow(image())
    prompt_id = await client.submit_workflow(image())
    async with (
        aiohttp.ClientSession() as somebody,
        somebody.post(comfyui.url + "/queue", json={"delete": [prompt_id]}),
    ):
        await comfyui.release()
    with pytest.raises(JobLost):
        await client.wait(prompt_id)


async def test_a_restart_loses_what_was_in_the_queue(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    jobs = [await client.submit_workflow(image()) for _ in range(3)]
    waits = [asyncio.create_task(client.wait(job)) for job in jobs]
    await comfyui.wait_running()
    await comfyui.restart()
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(end) for end in ends] == [JobLost] * 3


async def test_a_dead_worker_is_noticed_by_its_silence(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, poll=QUICK, timeout=Timeouts(silence=0.6)) as client:
        prompt_id = await client.submit_workflow(alone("SimDie"))
        with pytest.raises(JobTimeout, match="worker has died"):
            await client.wait(prompt_id)


async def test_a_dead_server_is_noticed_by_its_silence(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, poll=QUICK, timeout=Timeouts(silence=0.6)) as client:
        await comfyui.hold()
        prompt_id = await client.submit_workflow(image())
        await comfyui.kill()
        with pytest.raises(ServerUnreachable):
            await client.wait(prompt_id)


# --- cancelling
# -----------------------------------------------------------------------------------------------


async def test_a_waiting_and_a_running_job_are_cancelled(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    running, waiting, kept = [await client.submit_workflow(steps()) for _ in range(3)]
    await comfyui.wait_running(running)
    assert await client.cancel(waiting)
    ending = asyncio.create_task(client.cancel(running))
    await comfyui.wait_for(lambda: any(path.endswith(f"{running}/cancel") for _, path in comfyui.requests))
    await comfyui.release()
    assert await ending
    with pytest.raises(JobCancelled):
        await client.wait(running)
    assert (await client.wait(kept)).state is JobState.SUCCEEDED
    assert not await client.cancel(kept)
    assert not await client.cancel(str(uuid.uuid4()))


async def test_a_server_that_cannot_aim_is_not_asked_to_interrupt() -> None:
    async with Sim(profile="0.3.40") as old, ComfyClient(old.url, poll=QUICK) as client:
        await old.hold()
        prompt_id = await client.submit_workflow(steps())
        await old.wait_running(prompt_id)
        with pytest.raises(NotSupported):
            await client.cancel(prompt_id)
        assert ("POST", "/interrupt") not in old.requests
        ending = asyncio.create_task(client.cancel(prompt_id, force=True))
        await old.wait_for(lambda: ("POST", "/interrupt") in old.requests)
        await old.release()
        assert await ending


async def test_cancelling_has_a_deadline(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    prompt_id = await client.submit_workflow(image())
    await comfyui.wait_running(prompt_id)
    with pytest.raises(JobTimeout):
        await client.cancel(prompt_id, timeout=0.1)


# --- files
# ----------------------------------------------------------------------------------------------------


async def test_a_listed_file_that_is_gone_is_its_own_error(
    client: ComfyClient, comfyui: Sim, tmp_path: Path
) -> None:
    comfyui.faults.add("GET", "/view", gone(), times=None)
    result = await client.wait(await client.submit_workflow(image()))
    with pytest.raises(OutputUnavailable):
        await client.download_output(result.outputs[0], tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_an_upload_can_be_used_in_a_workflow(client: ComfyClient, tmp_path: Path) -> None:
    made = await client.download_images(await client.submit_workflow(image()), tmp_path)
    up = await client.upload_image(made[0].path, name="Ünï %20 name.png")
    assert up.name == "Ünï %20 name.png"
    graph = image()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": up.reference}}
    assert len((await client.wait(await client.submit_workflow(graph))).outputs) == 1
    named = await client.upload_image(b"bytes", subfolder="sub", type="temp")
    assert (named.subfolder, named.type) == ("sub", "temp")
    assert named == await client.upload_image(b"bytes", subfolder="sub", type="temp")


# --- the way there
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/", "/api", "/api/"])
async def test_base_paths_and_the_api_prefix_work(suffix: str, tmp_path: Path) -> None:
    async with Sim(base_path="/deep/comfy") as sim, ComfyClient(sim.url + suffix) as client:
        assert len(await client.download_images(await client.submit_workflow(image()), tmp_path)) == 1
        assert sim.sockets == 1


@pytest.mark.parametrize(
    ("auth", "url", "options"),
    [
        ("Basic dXM6cEAvc3M=", "us:p%40%2Fss@", {}),
        ("Bearer key", "", {"api_key": "key"}),
        ("Special", "", {"headers": {"Authorization": "Special"}}),
    ],
)
async def test_credentials_go_with_requests_and_with_the_socket(
    auth: str, url: str, options: dict[str, Any]
) -> None:
    async with Sim(auth=auth) as sim:
        async with ComfyClient(sim.url.replace("http://", f"http://{url}"), **options) as client:
            await client.wait(await client.submit_workflow(image()))
            assert sim.sockets == 1
            assert "us" not in str(client.server)
        async with ComfyClient(sim.url) as stranger:
            with pytest.raises(BadAnswer, match="credentials") as caught:
                await stranger.submit_workflow(image())
            assert caught.value.status == 401


async def test_tls_is_verified_unless_told_otherwise(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    serving, trusting = tls
    async with Sim(ssl_context=serving) as sim:
        async with ComfyClient(sim.url, ssl=trusting) as client:
            await client.wait(await client.submit_workflow(image()))
            assert sim.sockets == 1
        async with ComfyClient(sim.url) as client:
            with pytest.raises(ServerUnreachable, match="TLS"):
                await client.submit_workflow(image())


async def test_credentials_never_go_to_another_origin(comfyui: Sim, tmp_path: Path) -> None:
    """Neither with a redirect of /view, nor with one of the socket, nor from the defaults of a session given
    to us."""
    seen: list[dict[str, str]] = []

    async def elsewhere(request: web.BaseRequest) -> web.Response:
        seen.append(dict(request.headers))
        return web.Response(body=b"not a picture")

    server = web.ServerRunner(web.Server(elsewhere))
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    other = f"http://localhost:{server.addresses[0][1]}/x"
    comfyui.faults.add("GET", "/view", redirect(other), times=None)
    comfyui.faults.add("GET", "/ws", redirect(other), times=None)
    async with aiohttp.ClientSession(headers={"X-Api-Key": "secret"}) as session:
        async with ComfyClient(
            comfyui.url, headers={"X-Api-Key": "secret"}, api_key="secret", session=session
        ) as client:
            result = await client.wait(await client.submit_workflow(alone("SimText", text="x")))
            assert result.state is JobState.SUCCEEDED
            found = await client.wait(await client.submit_workflow(image()))
            with pytest.raises(Exception, match="could not be saved"):
                await client.download_output(found.outputs[0], tmp_path)
        assert not session.closed
    await server.cleanup()
    assert seen
    assert "secret" not in str(seen)


async def test_a_login_page_is_named(comfyui: Sim) -> None:
    comfyui.faults.add("*", "*", login_page(), times=None)
    async with ComfyClient(comfyui.url) as client:
        with pytest.raises(BadAnswer, match="HTML"):
            await client.submit_workflow(image())


async def test_an_address_that_is_none_is_named() -> None:
    for url in ("comfyui:8188", "ftp://host", "http://", "", "http://host:port"):
        with pytest.raises(UsageError):
            ComfyClient(url)


async def test_a_client_must_be_entered(comfyui: Sim) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await ComfyClient(comfyui.url).submit_workflow(image())


async def test_nothing_stays_behind(comfyui: Sim) -> None:
    before = asyncio.all_tasks()
    async with ComfyClient(comfyui.url) as client:
        waiting = asyncio.create_task(client.wait(await client.submit_workflow(image())))
        await waiting
        await comfyui.hold()
        stopped = asyncio.create_task(client.wait(await client.submit_workflow(image())))
        await comfyui.wait_running()
        stopped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopped
    await comfyui.wait_for(lambda: comfyui.sockets == 0)
    assert {
        task.get_name() for task in asyncio.all_tasks() - before if "comfyflow" in task.get_name()
    } == set()


async def test_what_the_server_has(client: ComfyClient, comfyui: Sim) -> None:
    assert "comfyui_version" in (await client.system_stats())["system"]
    assert list(await client.object_info("SaveImage")) == ["SaveImage"]
    assert len(await client.object_info()) > 10
    await client.free()
    assert ("POST", "/free") in comfyui.requests
    await comfyui.hold()
    prompt_id = await client.submit_workflow(image())
    await comfyui.wait_running(prompt_id)
    assert [item.prompt_id for item in (await client.queue()).running] == [prompt_id]
    await comfyui.release()
    await client.wait(prompt_id)
    assert list(await client.history(max_items=1)) == [prompt_id]
    assert list(await client.history(prompt_id)) == [prompt_id]


async def test_front_number_and_extra_data_reach_the_server(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    await client.submit_workflow(image())
    late = await client.submit_workflow(image(), number=7.5, extra_data={"mine": 1})
    first = await client.submit_workflow(image(), front=True)
    pending = [item.prompt_id for item in (await client.queue()).pending]
    assert pending == [first, late]
    await comfyui.release()
    await client.wait(late)
    entry = (await client.history())[late]
    assert entry["prompt"][3]["mine"] == 1


# --- exactly once
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [reset(), reset_after(), answer(502), answer(504, after=True)])
async def test_an_ambiguous_submit_runs_exactly_once(client: ComfyClient, comfyui: Sim, effect: Any) -> None:
    fault = comfyui.faults.add("POST", "/prompt", effect)
    prompt_id = await client.submit_workflow(image())
    await client.wait(prompt_id)
    assert fault.hits == 1
    assert comfyui.executed == {prompt_id: 1}


async def test_a_client_of_a_closed_loop_says_so(comfyui: Sim) -> None:
    await comfyui.hold()
    async with ComfyClient(comfyui.url) as client:
        prompt_id = await client.submit_workflow(image())
        waiting = asyncio.create_task(client.wait(prompt_id))
        await comfyui.wait_running(prompt_id)
    with pytest.raises(RuntimeError, match="closed"):
        with anyio.fail_after(5):
            await waiting


async def test_cancelling_a_job_of_somebody_else_asks_once_a_second(comfyui: Sim) -> None:
    async with (
        ComfyClient(comfyui.url) as owner,
        ComfyClient(comfyui.url, websocket=False, poll=QUICK) as other,
    ):
        await comfyui.hold()
        job = await owner.submit_workflow(image())
        await comfyui.wait_running(job)
        with pytest.raises(JobTimeout):
            await other.cancel(job, timeout=0.3)
        assert sum(path.endswith("/cancel") for _, path in comfyui.requests) == 1
        with pytest.raises(JobTimeout):
            await other.cancel(job, timeout=0)


async def test_who_waits_before_the_job_is_sent_gets_its_end(client: ComfyClient) -> None:
    job = str(uuid.uuid4())
    waiting = asyncio.create_task(client.wait(job))
    await asyncio.sleep(0)
    await client.submit_workflow(image(), prompt_id=job)
    assert (await waiting).state is JobState.SUCCEEDED


async def test_a_look_tells_the_place_and_remembers_an_end(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    first, second = await client.submit_workflow(image()), await client.submit_workflow(image())
    await comfyui.wait_running(first)
    assert (await client.poll_status(second)).queue_position == 1
    await client.cancel(second)
    assert (await client.poll_status(second)).state is JobState.CANCELLED


async def test_a_folder_that_has_gone_is_made_again(client: ComfyClient, tmp_path: Path) -> None:
    for _ in range(2):
        (file,) = await client.download_images(await client.submit_workflow(image()), tmp_path / "new")
        file.path.unlink()
        file.path.parent.rmdir()
        with suppress(DownloadError):
            await client.download_images(await client.submit_workflow(image()), tmp_path / "new")


async def test_a_client_can_be_entered_again(comfyui: Sim) -> None:
    client = ComfyClient(comfyui.url)
    for _ in range(2):
        async with client:
            await client.wait(await client.submit_workflow(image()))


@pytest.mark.parametrize("websocket", [True, False])
async def test_a_gateway_without_comfyui_is_told_at_once(comfyui: Sim, websocket: bool) -> None:
    comfyui.faults.add("*", "*", answer(502), times=None)
    async with ComfyClient(comfyui.url, websocket=websocket) as client:
        with anyio.fail_after(5), pytest.raises(BadAnswer, match="proxy"):
            await client.submit_workflow(image())
    assert ("POST", "/prompt") not in comfyui.requests


async def test_a_server_that_was_never_met_has_taken_nothing(comfyui: Sim) -> None:
    comfyui.faults.add("GET", "/prompt", reset(), times=None)
    comfyui.faults.add("GET", "/ws", answer(503), times=None)
    async with ComfyClient(comfyui.url) as client:
        with pytest.raises(ServerUnreachable) as caught:
            await client.submit_workflow(image())
    assert not caught.value.sent


async def test_who_asks_a_closed_client_is_told_so(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url) as client:
        await comfyui.hold()
        job = await client.submit_workflow(image())
    with anyio.fail_after(5), pytest.raises(RuntimeError, match="closed"):
        await client.wait(job)


async def test_a_job_that_had_ended_when_it_was_found_is_told_at_once(comfyui: Sim) -> None:
    never = PollSchedule(first=1e6, stall_after=1e6, deaf_after=1e6)
    async with ComfyClient(comfyui.url, websocket=False, poll=never) as client:
        comfyui.faults.add("POST", "/prompt", run_then_cut(comfyui))
        prompt_id = await client.submit_workflow(image())
        assert (await client.wait(prompt_id)).state is JobState.SUCCEEDED


def run_then_cut(sim: Sim) -> Effect:
    """The connection is cut when the job that came over it has run already."""
    cut = reset_after()

    async def effect(request: web.Request, handler: Any, fault: Fault) -> web.StreamResponse:
        async def to_its_end(same: web.Request) -> web.StreamResponse:
            response: web.StreamResponse = await handler(same)
            await sim.wait_idle()
            return response

        return await cut(request, to_its_end, fault)

    return effect


@pytest.mark.parametrize("profile", ["0.27", "0.3.64"])
async def test_a_part_of_a_workflow_is_noticed_although_the_answer_was_lost(profile: str) -> None:
    async with Sim(profile=profile) as sim, ComfyClient(sim.url, poll=QUICK) as client:
        await sim.hold()
        sim.faults.add("POST", "/prompt", reset_after())
        with pytest.raises(WorkflowRejected, match="taken back") as caught:
            await client.submit_workflow(partly_valid())
        assert list(caught.value.node_errors) == ["3"]
        assert caught.value.node_errors["3"]["class_type"] == "SaveImage"
        await sim.release()
        sim.faults.add("POST", "/prompt", reset_after())
        sim.faults.add("GET", "/history/*", answer(503), skip=profile != "0.27", times=1)
        await client.submit_workflow(image())  # what it runs could not be asked: that is no error
        sim.faults.add("POST", "/prompt", reset_after())
        await client.submit_workflow(partly_valid(), allow_partial=True)


# --- keys
# ---------------------------------------------------------------------------------------------


async def test_a_key_is_sent_once_and_gives_the_same_job_again(client: ComfyClient, comfyui: Sim) -> None:
    graph = image()
    again = {key: dict(node, _meta={"title": "Other"}) for key, node in reversed(graph.items())}
    await comfyui.hold()
    job = await client.submit_workflow(graph, idempotency_key="order 17")
    assert await client.submit_workflow(again, idempotency_key="order 17") == job
    await comfyui.release()
    await client.wait(job)
    async with ComfyClient(comfyui.url) as other:
        assert await other.submit_workflow(graph, idempotency_key="order 17") == job
        assert (await other.wait(job)).state is JobState.SUCCEEDED
    assert comfyui.requests.count(("POST", "/prompt")) == 1
    assert await client.submit_workflow(graph, idempotency_key="order 18") != job


async def test_a_key_of_another_workflow_is_refused(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    await client.submit_workflow(image(), idempotency_key="a")
    with pytest.raises(KeyConflict, match="new key"):
        await client.submit_workflow(image(), idempotency_key="a")
    await comfyui.release()
    await comfyui.wait_idle()
    with pytest.raises(KeyConflict):
        await client.submit_workflow(image(), idempotency_key="a")
    assert comfyui.requests.count(("POST", "/prompt")) == 1


async def test_tasks_with_the_same_key_send_one_request(client: ComfyClient, comfyui: Sim) -> None:
    graph = image()
    jobs = await asyncio.gather(*(client.submit_workflow(graph, idempotency_key="a") for _ in range(5)))
    assert len(set(jobs)) == 1
    await client.wait(jobs[0])
    assert comfyui.executed == {jobs[0]: 1}


async def test_who_is_cancelled_lets_the_next_with_the_same_key_go_on(
    client: ComfyClient, comfyui: Sim
) -> None:
    graph = image()
    stalled = comfyui.faults.add("GET", "/jobs/*", stall())
    first, second = (
        asyncio.create_task(client.submit_workflow(graph, idempotency_key="a")) for _ in range(2)
    )
    await stalled.met()
    first.cancel()
    await client.wait(await second)
    assert comfyui.requests.count(("POST", "/prompt")) == 1
    stalled.release()


async def test_a_key_keeps_what_the_caller_says_of_it(client: ComfyClient, comfyui: Sim) -> None:
    graph = image()
    job = await client.submit_workflow(graph, idempotency_key="a", extra_data={"mine": 1})
    sent = await client.sent(job)
    assert sent is not None
    assert sent.digest == Workflow.load(graph).digest
    other = await client.submit_workflow(
        image(), idempotency_key="b", extra_data={"comfyflow": {"digest": "x"}}
    )
    await client.wait(other)
    history = await client.history()
    assert history[job]["prompt"][3]["mine"] == 1
    assert history[other]["prompt"][3]["comfyflow"] == {"digest": "x"}


async def test_a_key_and_an_id_exclude_each_other(client: ComfyClient, comfyui: Sim) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        await client.submit_workflow(image(), prompt_id=str(uuid.uuid4()), idempotency_key="a")
    with pytest.raises(UsageError, match="empty"):
        await client.submit_workflow(image(), idempotency_key="")
    assert ("POST", "/prompt") not in comfyui.requests


async def test_a_key_needs_a_server_that_keeps_ids() -> None:
    async with Sim(profile="0.3.40") as old, ComfyClient(old.url) as client:
        with pytest.raises(NotSupported, match=r"0\.3\.45"):
            await client.submit_workflow(image(), idempotency_key="a")
        assert ("POST", "/prompt") not in old.requests


async def test_a_key_that_could_not_be_looked_for_has_sent_nothing(client: ComfyClient, comfyui: Sim) -> None:
    comfyui.faults.add("GET", "/jobs/*", reset(), times=None)
    with pytest.raises(ServerUnreachable) as caught:
        await client.submit_workflow(image(), idempotency_key="a")
    assert not caught.value.sent
    assert ("POST", "/prompt") not in comfyui.requests


async def test_what_an_earlier_program_has_sent_is_followed(client: ComfyClient, comfyui: Sim) -> None:
    graph, job = image(), str(uuid.uuid4())
    async with ComfyClient(comfyui.url) as killed:
        await killed.submit_workflow(graph, prompt_id=job)
    assert await client.submit_workflow(graph, prompt_id=job, maybe_sent=True) == job
    assert (await client.wait(job)).state is JobState.SUCCEEDED
    assert comfyui.executed == {job: 1}


async def test_the_client_decides_what_becomes_of_doubts(comfyui: Sim) -> None:
    async with ComfyClient(comfyui.url, ambiguous=Ambiguous.FAIL) as client:
        fault = comfyui.faults.add("POST", "/prompt", reset(), times=None)
        with pytest.raises(ServerUnreachable, match="not sent again"):
            await client.submit_workflow(image())
        assert fault.hits == 1


# --- cancelling through trouble
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [reset(), reset_after(), answer(502)])
async def test_a_request_to_end_a_job_that_got_lost_is_made_again(
    client: ComfyClient, comfyui: Sim, monkeypatch: pytest.MonkeyPatch, effect: Effect
) -> None:
    monkeypatch.setattr(module, "ASK_EVERY", 0.05)
    await comfyui.hold()
    running, waiting = await client.submit_workflow(steps()), await client.submit_workflow(image())
    await comfyui.wait_running(running)
    for job in (waiting, running):
        fault = comfyui.faults.add("POST", "/jobs/*", effect)
        ending = asyncio.create_task(client.cancel(job))
        if job == running:
            await comfyui.wait_for(lambda: comfyui.engine.interrupted)
            await comfyui.release()
        assert await ending
        assert fault.hits == 1


async def test_a_server_that_never_hears_the_request_is_an_error(
    client: ComfyClient, comfyui: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_EVERY", 0.01)
    await comfyui.hold()
    job = await client.submit_workflow(image())
    fault = comfyui.faults.add("POST", "/jobs/*", answer(503), times=None)
    with pytest.raises(BadAnswer, match="proxy"):
        await client.cancel(job)
    assert fault.hits == module.ASKS


async def test_a_refusal_to_end_a_job_is_told_at_once(client: ComfyClient, comfyui: Sim) -> None:
    await comfyui.hold()
    job = await client.submit_workflow(image())
    fault = comfyui.faults.add("POST", "/jobs/*", answer(403), times=None)
    with pytest.raises(BadAnswer, match="credentials"):
        await client.cancel(job)
    assert fault.hits == 1
    await comfyui.restart()
    with pytest.raises(JobLost):  # it was not us who ended it
        await client.wait(job)


async def test_a_job_that_is_gone_before_the_answer_is_here_was_cancelled() -> None:
    async with (
        Sim(profile="0.3.64") as sim,
        ComfyClient(sim.url) as other,
        ComfyClient(sim.url, websocket=False, poll=QUICK) as client,
    ):
        await sim.hold()
        await other.submit_workflow(image())
        job = await client.submit_workflow(image())
        waiting = asyncio.create_task(client.result(job))
        taken_out = sim.faults.add("POST", "/queue", stall(after=True))
        ending = asyncio.create_task(client.cancel(job))
        await taken_out.met()
        assert (await waiting).state is JobState.CANCELLED
        taken_out.release()
        assert await ending


@pytest.mark.parametrize(
    ("profile", "method", "path"),
    [
        ("0.27", "GET", "/jobs/*"),
        ("0.27", "POST", "/jobs/*"),
        ("0.3.64", "GET", "/queue"),
        ("0.3.64", "POST", "/jobs/*"),
        ("0.3.64", "POST", "/queue"),
        ("0.3.64", "GET", "/system_stats"),
        ("0.3.64", "POST", "/interrupt"),
    ],
)
async def test_who_is_cancelled_while_cancelling_leaves_nothing_behind(
    profile: str, method: str, path: str
) -> None:
    async with Sim(profile=profile) as sim, ComfyClient(sim.url, websocket=False, poll=QUICK) as owner:
        await sim.hold()
        job = await owner.submit_workflow(image())
        await sim.wait_running(job)
        async with ComfyClient(sim.url, websocket=False, poll=QUICK) as client:
            await client.queue()  # its own tasks have begun
            before = tasks()
            stalled = sim.faults.add(method, path, stall())
            ending = asyncio.create_task(client.cancel(job))
            await stalled.met()
            ending.cancel()
            await asyncio.wait([ending])
            stalled.release()
            await asyncio.gather(*(client.queue() for _ in range(3)))  # what was in flight has come back
            assert tasks() <= before
        await sim.release()
        await owner.result(job)


@pytest.mark.parametrize("when", ["asked", "waiting"])
async def test_who_is_cancelled_while_submitting_leaves_nothing_behind(comfyui: Sim, when: str) -> None:
    async with ComfyClient(comfyui.url, poll=QUICK) as client:
        await client.wait(await client.submit_workflow(image()))
        before = tasks()
        post = comfyui.faults.add("POST", "/prompt", stall() if when == "asked" else reset_after())
        looks = comfyui.faults.add("GET", "/jobs/*", stall(), times=None)
        sending = asyncio.create_task(client.submit_workflow(image()))
        await (post if when == "asked" else looks).met()
        sending.cancel()
        await asyncio.wait([sending])
        comfyui.faults.clear()
        await asyncio.gather(*(client.queue() for _ in range(3)))
        assert tasks() <= before


def tasks() -> set[asyncio.Task[Any]]:
    """Those that are not of the simulator's connections."""
    return {task for task in asyncio.all_tasks() if "RequestHandler" not in repr(task)}


async def test_a_job_that_was_called_lost_is_followed_again_when_the_server_knows_it(
    client: ComfyClient, comfyui: Sim
) -> None:
    prompt_id = str(uuid.uuid4())
    async with ComfyClient(comfyui.url, poll=QUICK) as other:
        with pytest.raises(JobLost):
            await client.wait(prompt_id)
        await other.submit_workflow(image(), prompt_id=prompt_id)
        await other.wait(prompt_id)
        assert (await client.poll_status(prompt_id)).state is JobState.SUCCEEDED
        assert (await client.wait(prompt_id)).state is JobState.SUCCEEDED
