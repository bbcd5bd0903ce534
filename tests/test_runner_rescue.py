"""What a runner does about keys, lost jobs, other programs and cancelling, in a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from clusters import Cluster, execute
from graphs import alone, image, steps

from comfyflow import (
    Ambiguous,
    ComfyClient,
    JobCancelled,
    JobFailed,
    JobFailure,
    JobLost,
    JobResult,
    JobState,
    JobTimeout,
    Journal,
    MemoryStore,
    PollSchedule,
    PostgresStore,
    Runner,
    ServerUnreachable,
    StoreError,
    StoreUnavailable,
    Workflow,
    WorkflowRejected,
)
from comfyflow.errors import KeyConflict
from comfyflow.models import OnLost
from comfyflow.sim import Sim, gone, reset_after, stall
from comfyflow.store import Job, JobRecord, Store

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)


@pytest.fixture
async def client(comfyui: Sim) -> AsyncIterator[ComfyClient]:
    async with ComfyClient(comfyui.url, poll=QUICK) as made:
        yield made


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    async with await PostgresStore.open(database, journal=None) as made:
        yield made


@pytest.fixture
async def runner(client: ComfyClient, store: PostgresStore, tmp_path: Path) -> AsyncIterator[Runner]:
    async with Runner(client, store, tmp_path / "out") as made:
        yield made


async def recorded(store: Store, prompt_id: str | None) -> JobRecord:
    record = await store.get(str(prompt_id))
    assert record is not None
    return record


# keys


async def test_a_known_key_sends_nothing_and_gives_back_the_same_files(runner: Runner, comfyui: Sim) -> None:
    graph = image()
    first = await runner.run(graph, key="order 17")
    again = await runner.run(graph, key="order 17")
    assert (again.prompt_id, again.files, again.result) == (first.prompt_id, first.files, first.result)
    assert comfyui.requests.count(("POST", "/prompt")) == 1
    assert (await recorded(runner.store, first.prompt_id)).job.key == "order 17"


async def test_a_result_tells_whether_it_was_there_before(runner: Runner) -> None:
    graph, failing = image(), alone("SimFail", message="no", exception="ValueError")
    assert [(await runner.run(graph, key="k")).again for _ in range(2)] == [False, True]
    for again in (False, True):
        with pytest.raises(JobFailed) as caught:
            await runner.run(failing, key="f")
        assert caught.value.again is again


async def test_a_job_of_a_key_that_has_ended_badly_is_sent_again_on_request(
    runner: Runner, comfyui: Sim
) -> None:
    failing = alone("SimFail", message="no", exception="ValueError")
    ids: list[str | None] = []
    for redo in ((), (JobState.LOST,), (JobState.FAILED,), (JobState.FAILED, JobState.LOST)):
        with pytest.raises(JobFailed) as caught:
            await runner.run(failing, key="f", redo=redo)
        ids.append(caught.value.prompt_id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    last = await recorded(runner.store, ids[-1])
    assert (last.job.replaces, last.job.attempt, last.job.key) == (ids[2], 3, "f")
    assert comfyui.requests.count(("POST", "/prompt")) == 3


async def test_files_that_are_no_longer_there_are_fetched_again(runner: Runner, comfyui: Sim) -> None:
    graph = image()
    first = await runner.run(graph, key="k")
    first.files[0].path.unlink()
    again = await runner.run(graph, key="k")
    assert again.files[0].path.read_bytes()
    assert comfyui.requests.count(("POST", "/prompt")) == 1


async def test_a_known_key_with_another_workflow_is_refused(runner: Runner, comfyui: Sim) -> None:
    titled = image()
    done = await runner.run(titled, key="k")
    with pytest.raises(KeyConflict, match="use a new key"):
        await runner.run(steps(), key="k")
    titled[next(iter(titled))]["_meta"] = {"title": "another name computes the same"}
    assert (await runner.run(titled, key="k")).prompt_id == done.prompt_id
    assert comfyui.requests.count(("POST", "/prompt")) == 1


async def test_two_programs_with_one_key_at_once_send_one_job(
    comfyui: Sim, database: str, tmp_path: Path
) -> None:
    graph = image()

    async def program(number: int) -> str:
        async with (
            ComfyClient(comfyui.url, poll=QUICK) as client,
            await PostgresStore.open(database, journal=None) as store,
            Runner(client, store, tmp_path / str(number)) as runner,
        ):
            return (await runner.run(graph, key="one")).prompt_id

    ids = await asyncio.gather(*map(program, range(6)))
    assert len(set(ids)) == 1
    assert dict(comfyui.executed) == {ids[0]: 1}
    assert [list(row) for row in execute(database, "SELECT count(*) FROM workflow_runs")[0]] == [[1]]


async def test_a_failure_is_the_outcome_of_its_key(runner: Runner, comfyui: Sim) -> None:
    for _ in range(2):
        with pytest.raises(JobFailed):
            await runner.run(alone("SimFail", message="no", exception="ValueError"), key="k")
    assert sum(comfyui.executed.values()) == 1


async def test_a_job_that_never_came_to_the_server_does_not_use_up_its_key(
    runner: Runner, comfyui: Sim
) -> None:
    graph = image()
    await comfyui.kill()
    with pytest.raises(ServerUnreachable):
        await runner.client.queue()
    with pytest.raises(ServerUnreachable):
        await runner.run(graph, key="k")
    assert [job async for job in runner.store.unfinished()] == []
    await comfyui.start()
    done = await runner.run(graph, key="k")
    assert (done.job.replaces, done.job.attempt, done.job.key) == (None, 1, "k")
    assert (await runner.run(graph, key="k")).prompt_id == done.prompt_id
    assert sum(comfyui.executed.values()) == 1


async def test_a_refused_workflow_may_be_tried_again_under_its_key(runner: Runner) -> None:
    for attempt in (1, 2):
        with pytest.raises(WorkflowRejected) as caught:
            await runner.run(alone("SaveImage", filename_prefix="x"), key="k")
        assert (await recorded(runner.store, caught.value.prompt_id)).job.attempt == attempt


async def test_a_key_whose_answer_was_lost_is_found_on_the_server(runner: Runner, comfyui: Sim) -> None:
    graph = image()
    comfyui.faults.add("POST", "/prompt", reset_after())
    first = await runner.run(graph, key="k")
    assert (await runner.run(graph, key="k")).prompt_id == first.prompt_id
    assert set(comfyui.executed.values()) == {1}


async def test_without_a_record_the_server_knows_the_key(
    comfyui: Sim, client: ComfyClient, tmp_path: Path
) -> None:
    graph = image()
    for name in ("a", "b"):
        async with Runner(client, MemoryStore(), tmp_path / name) as runner:
            assert (await runner.run(graph, key="k")).files[0].path.parent == tmp_path / name
    assert set(comfyui.executed.values()) == {1}


async def test_a_key_whose_record_is_away_sends_nothing_unless_that_is_allowed(
    comfyui: Sim, cluster: Cluster, tmp_path: Path
) -> None:
    store = await PostgresStore.open(cluster.dsn, journal=Journal(tmp_path / "journal"))
    await asyncio.to_thread(cluster.stop)
    for policy in Ambiguous:
        async with (
            ComfyClient(comfyui.url, poll=QUICK, ambiguous=policy) as client,
            Runner(client, store, tmp_path / "out") as runner,
        ):
            if policy is Ambiguous.RESEND:
                assert (await runner.submit(image(), key="k")).key == "k"
            else:
                with pytest.raises(StoreUnavailable, match="nothing was sent"):
                    await runner.submit(image(), key="k")
    await store.close()
    assert comfyui.requests.count(("POST", "/prompt")) == 1


async def test_a_key_waits_for_the_program_that_is_about_to_send_its_job(
    runner: Runner, comfyui: Sim, client: ComfyClient, database: str, tmp_path: Path
) -> None:
    graph, held = image(), comfyui.faults.add("POST", "/prompt", stall())
    first = asyncio.create_task(runner.run(graph, key="k"))
    await held.met()
    async with (
        await PostgresStore.open(database, journal=None) as store,
        Runner(client, store, tmp_path / "other") as other,
    ):
        second = asyncio.create_task(other.run(graph, key="k"))
        await asyncio.wait([second], timeout=0.3)
        assert not second.done()
        held.release()
        assert (await second).prompt_id == (await first).prompt_id
    assert set(comfyui.executed.values()) == {1}


async def test_a_recorded_job_that_has_not_come_to_the_server_is_not_lost(
    runner: Runner, store: PostgresStore
) -> None:
    job = runner._sender.made(Workflow.load(image()))
    await store.add(job)
    with pytest.raises(JobLost, match="`comfyflow resume` sends it"):
        await runner.adopt(job.prompt_id)
    assert (await recorded(store, job.prompt_id)).state is JobState.CREATED


# lost jobs


@pytest.fixture
async def stubborn(client: ComfyClient, store: PostgresStore, tmp_path: Path) -> AsyncIterator[Runner]:
    async with Runner(client, store, tmp_path / "out", on_lost="resubmit", resubmits=1) as made:
        yield made


async def lose(comfyui: Sim, task: asyncio.Task[object]) -> None:
    """Restart the server while it has a job, and let the next one run."""
    await comfyui.wait_running()
    await comfyui.restart()
    await comfyui.release()


async def test_a_lost_job_is_sent_again_under_a_new_id_that_names_the_old_one(
    stubborn: Runner, comfyui: Sim
) -> None:
    await comfyui.hold()
    task = asyncio.create_task(stubborn.run(image()))
    await lose(comfyui, task)
    done = await task
    assert done.job.replaces is not None
    old, new = (
        await recorded(stubborn.store, done.job.replaces),
        await recorded(stubborn.store, done.prompt_id),
    )
    assert (old.state, new.state, new.job.attempt) == (JobState.LOST, JobState.SUCCEEDED, 2)
    assert ("resubmitted", {"as": done.prompt_id}) in [(event.kind, event.detail) for event in old.events]
    assert len(new.files) == 1
    assert await stubborn.store.successor(done.job.replaces) == new


async def test_by_default_and_after_as_many_times_as_allowed_a_lost_job_is_lost(
    runner: Runner, stubborn: Runner, comfyui: Sim
) -> None:
    for one, count in ((runner, 1), (stubborn, 2)):
        before = comfyui.requests.count(("POST", "/prompt"))
        await comfyui.hold()
        task = asyncio.create_task(one.run(image()))
        for _ in range(count):
            await comfyui.wait_running()
            await comfyui.restart()
            await comfyui.hold()
        with pytest.raises(JobLost) as caught:
            await task
        await comfyui.release()
        assert comfyui.requests.count(("POST", "/prompt")) - before == count
        assert (await recorded(one.store, caught.value.prompt_id)).state is JobState.LOST


async def test_who_comes_late_follows_what_the_lost_job_was_replaced_by(
    stubborn: Runner, runner: Runner, comfyui: Sim
) -> None:
    await comfyui.hold()
    job = await stubborn.submit(image())
    task = asyncio.create_task(stubborn.complete(job))
    await lose(comfyui, task)
    done = await task
    late = await runner.complete(job)
    assert (late.prompt_id, [file.sha256 for file in late.files]) == (
        done.prompt_id,
        [file.sha256 for file in done.files],
    )


async def test_a_job_is_replaced_once_although_two_programs_find_it_lost(
    comfyui: Sim, stubborn: Runner, client: ComfyClient, database: str, tmp_path: Path
) -> None:
    await comfyui.hold()
    job = await stubborn.submit(image())
    async with (
        await PostgresStore.open(database, journal=None) as store,
        Runner(client, store, tmp_path / "two", on_lost=OnLost.RESUBMIT) as other,
    ):
        both = asyncio.gather(stubborn.complete(job), other.complete(job))
        await comfyui.wait_running()
        await comfyui.restart()
        await comfyui.release()
        first, second = await both
    assert first.prompt_id == second.prompt_id
    assert comfyui.executed[first.prompt_id] == 1


async def test_a_vanished_file_is_no_lost_job(stubborn: Runner, comfyui: Sim) -> None:
    comfyui.faults.add("GET", "/view", gone(), times=None)
    with pytest.raises(Exception, match="no longer has this file") as caught:
        await stubborn.run(image())
    record = await recorded(stubborn.store, getattr(caught.value, "prompt_id", None))
    assert record.state is JobState.FAILED
    assert record.result is not None and record.result.failure is not None
    assert record.result.failure.exception_type == "OutputUnavailable"
    assert comfyui.requests.count(("POST", "/prompt")) == 1


# after a crash, and beside others


async def test_programs_that_resume_at_once_share_the_work(
    comfyui: Sim, client: ComfyClient, store: PostgresStore, database: str, tmp_path: Path
) -> None:
    dead = Runner(client, store, tmp_path / "dead")
    dead._lease.worker = replace(dead._lease.worker, place=f"{dead._lease.worker.place}0")
    for _ in range(12):
        await dead.submit(image())
    for _ in range(12):
        job = dead._sender.made(Workflow.load(image()))
        await store.write(*dead._lease.added(job))

    async def program(number: int) -> list[str]:
        async with (
            ComfyClient(comfyui.url, poll=QUICK) as mine,
            await PostgresStore.open(database, journal=None) as own,
            Runner(mine, own, tmp_path / str(number)) as runner,
        ):
            results = [result async for result in runner.resume(concurrency=4)]
            assert [result.error for result in results if result.error] == []
            return [result.prompt_id for result in results]

    shares = await asyncio.gather(*map(program, range(3)))
    assert sorted(map(len, shares))[0] > 0
    assert len({one for share in shares for one in share}) == sum(map(len, shares)) == 24
    assert set(comfyui.executed.values()) == {1}


async def test_what_a_living_program_works_on_is_left_to_it(
    runner: Runner, comfyui: Sim, client: ComfyClient, database: str, tmp_path: Path
) -> None:
    held = comfyui.faults.add("POST", "/prompt", stall())
    sending = asyncio.create_task(runner.run(image()))
    await held.met()
    async with (
        await PostgresStore.open(database, journal=None) as store,
        Runner(client, store, tmp_path / "other", lease=0.5) as other,
    ):
        assert [(one.jobs, one.worker) for one in await other.others()] == [(1, runner._lease.worker)]
        resuming = asyncio.create_task(anext(other.resume(), None))
        await asyncio.wait([resuming], timeout=0.5)
        resuming.cancel()
        await asyncio.wait([resuming])
    held.release()
    assert (await sending).error is None
    assert set(comfyui.executed.values()) == {1}


async def test_a_job_that_another_program_has_taken_is_not_sent(
    runner: Runner, comfyui: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(job: Job) -> bool:
        return False

    monkeypatch.setattr(runner._lease, "holds", taken)
    with pytest.raises(StoreError, match="another program has taken it over"):
        await runner.run(image())
    assert ("POST", "/prompt") not in comfyui.requests


async def test_a_server_that_is_away_leaves_the_jobs_of_resume_open(
    runner: Runner, comfyui: Sim, store: PostgresStore
) -> None:
    await store.add(runner._sender.made(Workflow.load(image())))
    await comfyui.kill()
    [result] = [result async for result in runner.resume()]
    assert isinstance(result.error, ServerUnreachable)
    await comfyui.start()
    [again] = [result async for result in runner.resume()]
    assert (again.prompt_id, again.error, len(again.files)) == (result.prompt_id, None, 1)


@pytest.mark.parametrize("in_place", [True, False])
async def test_files_go_to_the_folder_that_their_job_was_sent_for_where_that_is_wanted(
    client: ComfyClient, store: PostgresStore, tmp_path: Path, in_place: bool
) -> None:
    (tmp_path / "first").mkdir()
    async with Runner(client, store, tmp_path / "first") as first:
        await first.submit(image())
    async with Runner(client, store, tmp_path / "second", in_place=in_place) as second:
        [result] = [result async for result in second.resume()]
    assert [file.path.parent.name for file in result.files] == ["first" if in_place else "second"]


# cancelling


async def test_a_cancelled_job_is_recorded_as_such_wherever_it_stood(runner: Runner, comfyui: Sim) -> None:
    first, second = [await runner.submit(alone("SimSleep", seconds=30.0)) for _ in range(2)]
    await comfyui.wait_running(first.prompt_id)
    assert await runner.cancel(second.prompt_id)
    assert await runner.cancel(first)
    for prompt_id in (first.prompt_id, second.prompt_id):
        record = await recorded(runner.store, prompt_id)
        assert (record.state, record.events[-1].kind) == (JobState.CANCELLED, "cancelled")
    assert not await runner.cancel(first)


async def test_who_follows_a_job_that_is_cancelled_elsewhere_does_not_take_it_for_lost(
    stubborn: Runner, comfyui: Sim, client: ComfyClient
) -> None:
    await comfyui.hold()
    await stubborn.submit(image())
    waiting = await stubborn.submit(image())
    following = asyncio.create_task(stubborn.complete(waiting))
    async with ComfyClient(comfyui.url, poll=QUICK, websocket=False) as elsewhere:
        assert await Runner(elsewhere, stubborn.store, "out").cancel(waiting.prompt_id)
        await comfyui.release()
        with pytest.raises(JobCancelled):
            await following
    assert (await recorded(stubborn.store, waiting.prompt_id)).state is JobState.CANCELLED


async def test_a_resume_beside_a_run_of_the_same_key_sends_it_once(
    runner: Runner, comfyui: Sim, database: str
) -> None:
    graph, held = image(), comfyui.faults.add("POST", "/prompt", stall())
    running = asyncio.create_task(runner.run(graph, key="k"))
    await held.met()
    [job] = [job async for job in runner.store.unfinished()]
    again = asyncio.create_task(runner._sender.late(job))
    await asyncio.wait([again], timeout=0.1)
    held.release()
    assert (await again).prompt_id == (await running).prompt_id
    assert set(comfyui.executed.values()) == {1}


async def test_a_job_that_another_living_program_holds_is_not_called_lost(
    comfyui: Sim, stubborn: Runner, client: ComfyClient, database: str, tmp_path: Path
) -> None:
    job = stubborn._sender.made(Workflow.load(image()))
    await stubborn.store.write(*stubborn._lease.added(job))
    async with (
        await PostgresStore.open(database, journal=None) as store,
        Runner(client, store, tmp_path / "two", on_lost=OnLost.RESUBMIT) as other,
    ):
        following = asyncio.create_task(other.complete(job))
        await asyncio.wait([following], timeout=2.0)
        assert not following.done()
        with pytest.raises(JobLost):
            await other.complete(job, timeout=0.5)
        assert (await recorded(store, job.prompt_id)).state is JobState.CREATED
        await stubborn._sender.late(job)
        assert (await following).prompt_id == job.prompt_id
    assert set(comfyui.executed.values()) == {1}


# servers that are mixed up, and moments that are


async def test_a_cancel_at_the_wrong_server_writes_nothing(
    runner: Runner, comfyui: Sim, tmp_path: Path
) -> None:
    await comfyui.hold()
    job = await runner.submit(image())
    async with Sim() as wrong, ComfyClient(wrong.url, poll=QUICK) as client:
        with pytest.raises(JobLost, match="ask there"):
            await Runner(client, runner.store, tmp_path).cancel(job.prompt_id)
    await comfyui.release()
    assert (await runner.complete(job)).files
    record = await recorded(runner.store, job.prompt_id)
    assert (record.state, [event.kind for event in record.events].count("cancel_requested")) == (
        JobState.SUCCEEDED,
        0,
    )


async def test_a_cancel_waits_for_who_is_about_to_send_the_job(
    runner: Runner, comfyui: Sim, client: ComfyClient, database: str, tmp_path: Path
) -> None:
    held = comfyui.faults.add("POST", "/prompt", stall())
    running = asyncio.create_task(runner.run(alone("SimSleep", seconds=30.0)))
    await held.met()
    [job] = [job async for job in runner.store.unfinished()]
    async with (
        await PostgresStore.open(database, journal=None) as store,
        Runner(client, store, tmp_path / "other") as other,
    ):
        with pytest.raises(JobTimeout, match="about to be sent"):
            await other.cancel(job.prompt_id, timeout=0.3)
        cancelling = asyncio.create_task(other.cancel(job.prompt_id))
        held.release()
        assert await cancelling
    with pytest.raises(JobCancelled):
        await running
    assert (await recorded(runner.store, job.prompt_id)).state is JobState.CANCELLED


async def test_a_key_that_another_server_may_have_is_not_sent_here(
    runner: Runner, store: PostgresStore, comfyui: Sim, tmp_path: Path
) -> None:
    graph = image()
    async with Sim() as first, ComfyClient(first.url, poll=QUICK) as client:
        job = Runner(client, store, tmp_path)._sender.made(Workflow.load(graph), "k")
        await store.add(job)
        with pytest.raises(KeyConflict, match="run it there"):
            await runner.run(graph, key="k")
    assert ("POST", "/prompt") not in comfyui.requests


async def test_a_key_that_only_the_server_knows_belongs_to_its_workflow(
    runner: Runner, client: ComfyClient, comfyui: Sim
) -> None:
    graph = image()
    await client.wait(await client.submit_workflow(graph, idempotency_key="k"))
    for _ in range(2):
        with pytest.raises(KeyConflict, match="another workflow"):
            await runner.run(image(), key="k")
    assert (await runner.run(graph, key="k")).files
    assert sum(comfyui.executed.values()) == 1


async def test_a_failed_row_is_not_replaced_while_the_server_has_its_job(
    runner: Runner, store: PostgresStore, client: ComfyClient, comfyui: Sim
) -> None:
    graph = image()
    job = runner._sender.made(Workflow.load(graph), "k")
    await store.add(job)
    failed = JobResult(job.prompt_id, JobState.FAILED, failure=JobFailure("unreachable"))
    await store.finish(job, failed)
    await client.wait(await client.submit_workflow(graph, idempotency_key="k"))
    with pytest.raises(KeyConflict, match="gets its files"):
        await runner.run(graph, key="k")
    assert sum(comfyui.executed.values()) == 1
