"""A job's whole road: what is recorded, what is kept, what is raised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import AsyncMock

import aiohttp
import pytest
from clusters import execute
from graphs import Graph, alone, image, partly_valid, steps

from comfyflow import (
    ComfyClient,
    JobCancelled,
    JobEvent,
    JobFailed,
    JobLost,
    JobState,
    JobTimeout,
    JobView,
    MemoryStore,
    OutputUnavailable,
    PollSchedule,
    PostgresStore,
    Runner,
    ServerUnreachable,
    StoreError,
    Timeouts,
    Workflow,
    WorkflowInvalid,
    WorkflowRejected,
)
from comfyflow.sim import Sim, gone, reset, stall
from comfyflow.store import Entry, Finished, Job, JobRecord, Kept

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)


@pytest.fixture
async def client(comfyui: Sim) -> AsyncIterator[ComfyClient]:
    async with ComfyClient(comfyui.url, poll=QUICK) as made:
        yield made


@pytest.fixture
async def runner(client: ComfyClient, tmp_path: Path) -> AsyncIterator[Runner]:
    async with Runner(client, MemoryStore(), tmp_path / "out") as made:
        yield made


async def recorded(runner: Runner, prompt_id: str | None) -> JobRecord:
    record = await runner.store.get(str(prompt_id))
    assert record is not None
    return record


async def test_a_run_saves_files_and_records_its_outcome(runner: Runner) -> None:
    views: list[JobView] = []
    done = await runner.run(steps(), on_view=views.append)
    assert [file.path.parent for file in done.files] == [runner.output_dir]
    assert views[-1].state is JobState.SUCCEEDED
    assert done.elapsed > 0
    record = await recorded(runner, done.prompt_id)
    assert (record.state, record.result, record.files) == (JobState.SUCCEEDED, done.result, done.files)
    assert [event.kind for event in record.events] == ["submitted", "started", "download_started", "finished"]


class Diary(MemoryStore):
    """A store that also keeps what it was given, as it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        await super().write(*entries, lazily=lazily)
        self.entries.extend(entries)


@pytest.mark.parametrize("inside", [True, False])
async def test_paths_are_recorded_relative_to_the_shared_folder_where_they_are_in_it(
    client: ComfyClient, tmp_path: Path, inside: bool
) -> None:
    diary, shared = Diary(), tmp_path / ("shared" if inside else "other")
    async with Runner(client, diary, tmp_path / "shared" / "out", shared=shared) as runner:
        await runner.run(image())
    (ended,) = [entry for entry in diary.entries if isinstance(entry, Finished)]
    assert ended.root == (shared if inside else tmp_path / "shared" / "out")
    assert not [entry for entry in diary.entries if isinstance(entry, Kept)]


async def test_content_is_kept_after_the_outcome_is_written(client: ComfyClient, tmp_path: Path) -> None:
    diary = Diary()
    async with Runner(client, diary, tmp_path, keep_content=True) as runner:
        done = await runner.run(image())
    assert [type(entry) for entry in diary.entries[-3:]] == [Finished, JobEvent, Kept]
    assert diary.entries[-1] == Kept(done.files[0])


@pytest.mark.parametrize("ended", [True, False])
async def test_a_job_of_somebody_else_is_adopted_with_its_graph(
    runner: Runner, client: ComfyClient, comfyui: Sim, ended: bool
) -> None:
    async with ComfyClient(comfyui.url, client_id="them") as other:
        graph = image()
        prompt_id = await other.submit_workflow(graph)
        if ended:
            await other.wait(prompt_id)
        job = await runner.adopt(prompt_id)
    assert (job.workflow, job.client_id) == (Workflow.load(graph), "them")
    result = await runner.follow(job)
    assert (await recorded(runner, prompt_id)).result == result
    assert (await recorded(runner, prompt_id)).files == ()
    again = await runner.adopt(prompt_id)
    assert again == job


async def test_a_bare_row_that_n8n_wrote_is_filled_when_its_job_is_adopted(
    client: ComfyClient, comfyui: Sim, database: str, tmp_path: Path
) -> None:
    graph = image()
    async with ComfyClient(comfyui.url, client_id="n8n") as other:
        prompt_id = await other.submit_workflow(graph)
        await other.wait(prompt_id)
    execute(
        database,
        "INSERT INTO workflow_runs (prompt_id, server, graph)"
        f" VALUES ('{prompt_id}', 'http://comfyui', '{json.dumps(graph)}')",
    )
    async with (
        await PostgresStore.open(database, journal=None) as store,
        Runner(client, store, tmp_path) as runner,
    ):
        await runner.complete(await runner.adopt(prompt_id))
    [told] = execute(
        database,
        "SELECT state, client_id, server, digest, graph IS NOT NULL FROM workflow_runs",
    )
    assert [tuple(run) for run in told] == [
        ("succeeded", "n8n", "http://comfyui", Workflow.load(graph).digest, True)
    ]


async def test_a_job_of_another_server_is_neither_lost_nor_sent_again_here(
    runner: Runner, tmp_path: Path
) -> None:
    """A store may be shared by many servers: what this one does not know may run well on that one."""
    queued, unsent = await runner.submit(steps()), runner._sender.made(Workflow.load(image()))
    await runner.store.add(unsent)
    async with Sim() as sim, ComfyClient(sim.url, poll=QUICK) as other:
        elsewhere = Runner(other, runner.store, tmp_path / "elsewhere")
        with pytest.raises(JobLost, match=f"was sent to {runner.client.addresses[0]}"):
            await elsewhere.follow(await elsewhere.adopt(queued.prompt_id))
        assert [done async for done in elsewhere.resume()] == []
        assert ("POST", "/prompt") not in sim.requests
    await runner.complete(queued)
    assert (await recorded(runner, queued.prompt_id)).state is JobState.SUCCEEDED


async def test_a_job_that_nobody_knows_is_not_adopted(runner: Runner) -> None:
    with pytest.raises(JobLost, match="nobody"):
        await runner.adopt("nobody")
    assert await runner.store.get("nobody") is None


async def test_a_job_may_be_adopted_without_its_graph(
    runner: Runner, comfyui: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may know a job and not tell its graph: so it is between the queue and the history."""
    prompt_id = await runner.client.submit_workflow(image())
    await runner.client.wait(prompt_id)
    told = AsyncMock(return_value=None)
    monkeypatch.setattr(runner.client, "sent", told)
    assert (await runner.adopt(prompt_id)).workflow is None


@pytest.mark.parametrize("fails", [True, False])
async def test_what_the_server_has_forgotten_the_record_still_tells(
    runner: Runner, comfyui: Sim, fails: bool
) -> None:
    graph = alone("SimFail", message="no", exception="ValueError") if fails else image()
    ended = pytest.raises(JobFailed, match="no") if fails else nullcontext()
    job = await runner.submit(graph)
    with ended:
        await runner.follow(job)
    async with aiohttp.ClientSession() as session:
        await session.post(f"{comfyui.url}/history", json={"clear": True})
    async with (
        ComfyClient(comfyui.url, poll=QUICK) as later,
        Runner(later, runner.store, runner.output_dir) as other,
    ):
        with ended:
            done = await other.complete(await other.adopt(job.prompt_id))
            assert [saved.path.parent for saved in done.files] == [runner.output_dir]


async def test_a_job_whose_graph_was_never_recorded_is_not_sent(runner: Runner, comfyui: Sim) -> None:
    await runner.store.add(Job("bare", None, "", comfyui.url, 1.0))
    (resumed,) = [done async for done in runner.resume()]
    assert isinstance(resumed.error, StoreError)
    assert ("POST", "/prompt") not in comfyui.requests


async def test_a_run_without_a_watcher_and_without_files(runner: Runner) -> None:
    done = await runner.run(alone("SimText", text="hi"))
    assert done.files == ()
    assert done.result is not None
    assert done.result.texts[0].text == "hi"


async def test_a_job_is_recorded_before_it_is_sent(runner: Runner, comfyui: Sim) -> None:
    held = comfyui.faults.add("POST", "/prompt", stall())
    sending = asyncio.create_task(runner.submit(image()))
    await held.met()
    assert [job async for job in runner.store.unfinished()]
    held.release()
    job = await sending
    assert (await recorded(runner, job.prompt_id)).state is JobState.QUEUED


@pytest.mark.parametrize("watched", [True, False])
async def test_a_failed_job_is_recorded_with_its_reason(runner: Runner, watched: bool) -> None:
    with pytest.raises(JobFailed) as caught:
        await runner.run(
            alone("SimFail", message="no", exception="ValueError"), on_view=print if watched else None
        )
    record = await recorded(runner, caught.value.prompt_id)
    assert record.state is JobState.FAILED
    assert record.events[-1].detail == {"reason": "no"}


async def test_a_refused_job_is_recorded_as_failed(runner: Runner, comfyui: Sim) -> None:
    for graph in (alone("SaveImage", filename_prefix="x"), partly_valid()):
        with pytest.raises(WorkflowRejected) as caught:
            await runner.run(graph)
        assert (await recorded(runner, caught.value.prompt_id)).state is JobState.FAILED
    await comfyui.kill()
    with pytest.raises(ServerUnreachable):
        await runner.client.queue()  # now the connections of before are known to be gone
    with pytest.raises(ServerUnreachable) as unsent:
        await runner.run(image())
    assert (await recorded(runner, unsent.value.prompt_id)).state is JobState.FAILED


async def test_a_part_may_be_allowed(client: ComfyClient, tmp_path: Path) -> None:
    async with Runner(client, MemoryStore(), tmp_path, allow_partial=True) as runner:
        assert len((await runner.run(partly_valid())).files) == 1


@pytest.mark.parametrize("watched", [True, False])
async def test_a_timeout_leaves_the_job_unfinished_and_resumable(
    runner: Runner, comfyui: Sim, watched: bool
) -> None:
    await comfyui.hold()
    with pytest.raises(JobTimeout) as caught:
        await runner.run(image(), timeout=0.1, on_view=print if watched else None)
    assert [job.prompt_id async for job in runner.store.unfinished()] == [caught.value.prompt_id]
    await comfyui.release()
    results = [result async for result in runner.resume()]
    assert [(result.prompt_id, len(result.files), result.error) for result in results] == [
        (caught.value.prompt_id, 1, None)
    ]
    assert [result async for result in runner.resume()] == []


async def test_what_was_never_sent_is_sent_by_resume_and_what_was_is_not(
    runner: Runner, comfyui: Sim, client: ComfyClient
) -> None:
    await comfyui.hold()
    sent = await runner.submit(image())
    assert sent.workflow is not None
    unsent = runner._sender.made(sent.workflow)
    await runner.store.add(unsent)
    await comfyui.release()
    results = {result.prompt_id: result.error async for result in runner.resume()}
    assert results == {sent.prompt_id: None, unsent.prompt_id: None}
    assert set(comfyui.executed.values()) == {1}


async def test_a_file_that_is_gone_makes_the_job_a_failed_one(runner: Runner, comfyui: Sim) -> None:
    comfyui.faults.add("GET", "/view", gone(), times=None)
    with pytest.raises(OutputUnavailable) as caught:
        await runner.run(image())
    record = await recorded(runner, caught.value.prompt_id)
    assert record.state is JobState.FAILED
    assert [event.kind for event in record.events[-2:]] == ["download_failed", "failed"]


async def test_cancelling_the_caller_leaves_the_job_running(runner: Runner, comfyui: Sim) -> None:
    await comfyui.hold()
    task = asyncio.create_task(runner.run(image()))
    await comfyui.wait_running()
    task.cancel()
    await asyncio.wait([task])
    await comfyui.release()
    assert [result.error async for result in runner.resume()] == [None]


async def test_a_cancelled_job_is_recorded_as_cancelled(
    runner: Runner, client: ComfyClient, comfyui: Sim
) -> None:
    await comfyui.hold()
    first, second = await runner.submit(image()), await runner.submit(image())
    await comfyui.wait_running(first.prompt_id)
    await client.cancel(second.prompt_id)
    with pytest.raises(JobCancelled):
        await runner.complete(second)
    assert (await recorded(runner, second.prompt_id)).state is JobState.CANCELLED


async def test_many_run_side_by_side_and_one_failure_stops_nobody(runner: Runner, comfyui: Sim) -> None:
    taken = 0

    def source() -> Iterator[Graph]:
        nonlocal taken
        for number in range(9):
            taken += 1
            yield image() if number != 4 else alone("SimFail", message="no", exception="ValueError")

    results, most = [], 0
    async for result in runner.run_many(source(), concurrency=3):
        results.append(result)
        most = max(most, taken - len(results))
    assert most <= 3
    assert len({result.prompt_id for result in results}) == 9
    assert [type(result.error) for result in results if result.error] == [JobFailed]
    assert len(list(runner.output_dir.iterdir())) == 8


async def test_many_may_come_from_an_async_source_and_be_left_early(runner: Runner, comfyui: Sim) -> None:
    async def source() -> AsyncIterator[Graph]:
        while True:
            yield image()

    results = runner.run_many(source(), concurrency=2)
    assert (await anext(results)).error is None
    await results.aclose()
    await comfyui.wait_idle()
    assert set(comfyui.executed.values()) == {1}


async def test_an_invalid_workflow_is_nothing_to_run(runner: Runner) -> None:
    with pytest.raises(WorkflowInvalid):
        await runner.run({})


async def test_files_may_be_taken_from_comfyuis_own_folder(
    client: ComfyClient, comfyui: Sim, tmp_path: Path
) -> None:
    mounted = comfyui.folders.base("output")
    async with Runner(client, MemoryStore(), tmp_path, comfyui_output=mounted) as runner:
        done = await runner.run(image(prefix="deep/name"))
    assert [method for method, path in comfyui.requests if path == "/view"] == ["HEAD"]
    assert done.files[0].path.read_bytes() == (mounted / "deep" / done.files[0].output.filename).read_bytes()


async def test_a_send_without_an_answer_stays_open(runner: Runner, comfyui: Sim) -> None:
    comfyui.faults.add("POST", "/prompt", reset(), times=None)
    with pytest.raises(ServerUnreachable) as caught:
        await runner.submit(image())
    assert [job.prompt_id async for job in runner.store.unfinished()] == [caught.value.prompt_id]


async def test_the_clients_total_bounds_a_watched_run_too(comfyui: Sim, tmp_path: Path) -> None:
    await comfyui.hold()
    async with (
        ComfyClient(comfyui.url, timeout=Timeouts(total=0.1)) as client,
        Runner(client, MemoryStore(), tmp_path) as runner,
    ):
        with pytest.raises(JobTimeout):
            await runner.run(image(), on_view=print)
