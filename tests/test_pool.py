"""Several servers as one: where jobs go, what happens when one is away, and that nothing runs twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from graphs import Graph, alone, image, partly_valid
from waiting import until

from comfyflow import (
    BadAnswer,
    ComfyClient,
    JobLost,
    JobState,
    MemoryStore,
    NoServer,
    NotRunnable,
    OnLost,
    OutputFile,
    PollSchedule,
    PoolServer,
    Runner,
    ServerPool,
    UsageError,
    submit,
)
from comfyflow.member import TRIP, Health
from comfyflow.sim import Sim, answer, reset, reset_after, stall

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)


@pytest.fixture
async def sims() -> AsyncIterator[list[Sim]]:
    async with Sim() as first, Sim() as second:
        yield [first, second]


def pool_of(sims: list[Sim], **options: Any) -> ServerPool:
    return ServerPool([sim.url for sim in sims], poll=QUICK, **options)


def runs(sims: list[Sim]) -> Counter[int]:
    """How many prompts were executed how often, on all servers together."""
    return Counter(times for sim in sims for times in sim.executed.values())


# where jobs go


async def test_a_silent_server_holds_nobody_up(sims: list[Sim]) -> None:
    sims[0].faults.add("GET", "/prompt", stall())
    async with asyncio.timeout(5), pool_of(sims) as pool:
        await pool.ready()
        assert [str(client.server) for client in pool.clients] == [sims[1].url, sims[0].url]
    sims[0].faults.clear()


async def test_jobs_are_spread_and_no_server_gets_more_than_a_few_ahead(sims: list[Sim]) -> None:
    for sim in sims:
        await sim.hold()
    async with pool_of(sims, ahead=2) as pool:
        ids = [await pool.submit_workflow(image()) for _ in range(6)]
        assert [view.ours for view in pool.servers] == [3, 3]
        assert [sim.engine.remaining for sim in sims] == [3, 3]
        waiting = asyncio.create_task(pool.submit_workflow(image()))
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        for sim in sims:
            await sim.release()
        results = [await pool.wait(prompt_id) for prompt_id in [*ids, await waiting]]
    assert {output.server for result in results for output in result.outputs} == {sim.url for sim in sims}
    assert runs(sims) == {1: 7}


async def test_weights_count_and_a_server_that_is_drained_gets_nothing(sims: list[Sim]) -> None:
    servers = [PoolServer(sims[0].url, weight=0), PoolServer(sims[1].url, weight=2.0, ahead=10)]
    async with ServerPool(servers, poll=QUICK) as pool:
        await sims[1].hold()
        for _ in range(11):
            await pool.submit_workflow(image())
        assert [view.ours for view in pool.servers] == [0, 11]
        assert [view.health for view in pool.servers] == [Health.DRAINING, Health.UP]
        pool.drain(sims[1].url)
        pool.undrain(sims[0].url)
        assert (await pool.result(await pool.submit_workflow(image()))).outputs[0].server == sims[0].url
        pool.drain(sims[0].url)
        with pytest.raises(NoServer, match="every server is drained"):
            await pool.submit_workflow(image())
        await sims[1].release()


async def test_servers_that_have_the_same_share_what_is_known_of_it(sims: list[Sim]) -> None:
    async with pool_of(sims) as pool:
        await until(lambda: all(view.health is Health.UP for view in pool.servers))
        first, second = (pool._named(sim.url).inventory for sim in sims)
        assert first is not None
        assert first is second


async def test_what_no_server_has_is_told_at_once(sims: list[Sim], tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nowhere.safetensors"}},
        "2": {"class_type": "NoSuchNode", "inputs": {"model": ["1", 0]}},
    }
    async with pool_of(sims) as pool, Runner(pool, MemoryStore(), tmp_path) as runner:
        with pytest.raises(NotRunnable) as raised:
            await runner.submit(graph)
    for sim in sims:
        told = "the node class 'NoSuchNode', 'nowhere.safetensors' (CheckpointLoaderSimple.ckpt_name)"
        assert f"{sim.url} lacks {told}" in str(raised.value)
    assert raised.value.missing.keys() == {sim.url for sim in sims}
    assert not any(sim.engine.remaining for sim in sims)


async def test_a_job_that_is_partly_valid_is_refused_as_with_one_server(
    sims: list[Sim], tmp_path: Path
) -> None:
    async with pool_of(sims) as pool, Runner(pool, store := MemoryStore(), tmp_path) as runner:
        [result] = [one async for one in runner.run_many([partly_valid()], concurrency=1)]
        assert "only a part" in str(result.error)
        record = await store.get(result.prompt_id)
    assert record is not None
    assert (record.state, record.job.server) == (JobState.FAILED, result.job.server)


async def test_a_server_on_which_everything_fails_rests(sims: list[Sim]) -> None:
    async with pool_of(sims) as pool:
        bad, good = (pool._named(sim.url) for sim in sims)
        pool.drain(good.url)
        await pool.result(await pool.submit_workflow(alone("SimFail", message="no", exception="ValueError")))
        pool.undrain(good.url)
        pool.drain(bad.url)
        await pool.wait(await pool.submit_workflow(image()))
        pool.undrain(bad.url)
        pool.drain(good.url)
        for _ in range(TRIP - 1):
            await pool.result(
                await pool.submit_workflow(alone("SimFail", message="no", exception="ValueError"))
            )
        assert bad.health is Health.RESTING
        pool.undrain(good.url)
        for _ in range(4):
            await pool.wait(await pool.submit_workflow(image()))
        assert (good.succeeded, bad.succeeded) == (5, 0)


async def test_a_workflow_that_fails_everywhere_stops_no_server(sims: list[Sim]) -> None:
    async with pool_of(sims) as pool:
        for _ in range(3 * TRIP):
            await pool.result(
                await pool.submit_workflow(alone("SimFail", message="no", exception="ValueError"))
            )
        assert [view.health for view in pool.servers] == [Health.UP, Health.UP]


# servers that are away, and gone


async def test_a_server_that_is_down_is_passed_over(sims: list[Sim], tmp_path: Path) -> None:
    await sims[0].kill()
    async with pool_of(sims) as pool, Runner(pool, MemoryStore(), tmp_path) as runner:
        results = [one async for one in runner.run_many([image() for _ in range(6)], concurrency=3)]
    assert [result.error for result in results] == [None] * 6
    assert {result.job.server for result in results} == {sims[1].url}


@pytest.mark.parametrize("status", [401, 500, 502])
async def test_a_server_that_answers_what_is_not_comfyuis_is_passed_over(
    sims: list[Sim], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """A proxy, or a login page; its queue says that ComfyUI has not got the job."""
    monkeypatch.setattr(submit, "SETTLE", 0.01)
    sims[0].faults.add("POST", "/prompt", answer(status), times=None)
    store = MemoryStore()
    async with pool_of(sims, ahead=0) as pool, Runner(pool, store, tmp_path) as runner:
        await pool.ready()
        pool.drain(sims[1].url)
        sending = asyncio.create_task(runner.run(image()))
        await until(lambda: ("POST", "/prompt") in sims[0].requests)
        pool.undrain(sims[1].url)
        result = await sending
        assert (result.job.server, len(result.files)) == (sims[1].url, 1)
    record = await store.get(result.job.prompt_id)
    assert record is not None
    assert record.state is JobState.SUCCEEDED
    assert not sims[0].executed


async def test_a_server_that_goes_on_answering_so_rests(sims: list[Sim]) -> None:
    sims[0].faults.add("POST", "/prompt", answer(401), times=None)
    async with pool_of(sims) as pool:
        for _ in range(3 * TRIP):
            await pool.wait(await pool.submit_workflow(image()))
        assert [view.health for view in pool.servers] == [Health.RESTING, Health.UP]
        tried = sims[0].requests.count(("POST", "/prompt"))
        await pool.wait(await pool.submit_workflow(image()))
        assert sims[0].requests.count(("POST", "/prompt")) == tried == TRIP


async def test_what_all_servers_answer_is_told(sims: list[Sim], tmp_path: Path) -> None:
    for sim in sims:
        sim.faults.add("POST", "/prompt", answer(401), times=None)
    async with pool_of(sims) as pool, Runner(pool, MemoryStore(), tmp_path) as runner:
        with pytest.raises(BadAnswer, match="it wants credentials"):
            await pool.submit_workflow(image())
        with pytest.raises(BadAnswer, match="it wants credentials"):
            await runner.run(image())
        assert {view.health for view in pool.servers} == {Health.UP}


async def test_a_job_that_never_came_to_its_server_is_moved_to_another(
    sims: list[Sim], tmp_path: Path
) -> None:
    async with pool_of(sims) as pool, Runner(pool, store := MemoryStore(), tmp_path) as runner:
        await until(lambda: all(view.health is Health.UP for view in pool.servers))
        pool.drain(sims[1].url)
        chosen = pool.placed(image())
        async with chosen:  # it was up when it was chosen
            pass
        await sims[0].kill()
        pool._named(sims[0].url)._answers = True
        pool.undrain(sims[1].url)
        pool._named(sims[1].url).seconds = 100.0
        job = await runner.submit(image())
        record = await store.get(job.prompt_id)
        done = await runner.complete(job)
    assert record is not None
    assert (job.server, record.job.server) == (sims[1].url, sims[1].url)
    assert len(done.files) == 1


async def test_an_answer_that_was_lost_is_looked_for_on_the_same_server_and_nothing_runs_twice(
    sims: list[Sim], tmp_path: Path
) -> None:
    for sim in sims:
        sim.faults.add("POST", "/prompt", reset_after())
        sim.faults.add("POST", "/prompt", reset())
    async with pool_of(sims) as pool, Runner(pool, MemoryStore(), tmp_path) as runner:
        results = [one async for one in runner.run_many([image() for _ in range(8)], concurrency=4)]
    assert [result.error for result in results] == [None] * 8
    assert runs(sims) == {1: 8}


async def test_what_a_server_held_when_it_ended_goes_to_another_once_that_is_certain(
    sims: list[Sim], tmp_path: Path
) -> None:
    await sims[0].hold()
    async with (
        pool_of(sims, lost_after=0.5) as pool,
        Runner(pool, store := MemoryStore(), tmp_path) as runner,
    ):
        await until(lambda: all(view.health is Health.UP for view in pool.servers))
        pool.drain(sims[1].url)
        jobs = [await runner.submit(image()) for _ in range(3)]
        pool.undrain(sims[1].url)
        ending = [asyncio.create_task(runner.complete(job)) for job in jobs]
        await sims[0].kill()
        results = [await one for one in ending]
        assert [view.health for view in pool.servers] == [Health.GONE, Health.UP]
        records = [await store.get(job.prompt_id) for job in jobs]
        assert [one and one.state for one in records] == [JobState.LOST] * 3
        assert {result.job.replaces for result in results} == {job.prompt_id for job in jobs}
        assert {result.job.server for result in results} == {sims[1].url}
        await sims[0].start()
        await sims[0].release()
        await until(lambda: pool.servers[0].health is Health.UP)
        pool.drain(sims[1].url)
        assert (await runner.run(image())).job.server == sims[0].url
    assert runs(sims[1:]) == {1: 3}  # the other one had begun one of them when it ended


async def test_a_server_that_only_stands_still_keeps_its_jobs(sims: list[Sim], tmp_path: Path) -> None:
    async with (
        pool_of(sims, lost_after=0.1) as pool,
        Runner(pool, MemoryStore(), tmp_path) as runner,
    ):
        await sims[0].hold()
        pool.drain(sims[1].url)
        job = await runner.submit(image())
        pool.undrain(sims[1].url)
        held = sims[0].faults.add("GET", "/prompt", stall(), times=None)
        for sim in sims[:1]:
            await sim.close_sockets()
        await held.met()
        ending = asyncio.create_task(runner.complete(job))
        await asyncio.wait([ending], timeout=0.5)
        assert not ending.done()
        held.release()
        sims[0].faults.clear()
        await sims[0].release()
        assert (await ending).job == job
    assert runs(sims) == {1: 1}


async def test_on_request_a_lost_job_is_an_error(sims: list[Sim], tmp_path: Path) -> None:
    await sims[0].hold()
    async with (
        pool_of(sims, lost_after=0.2) as pool,
        Runner(pool, MemoryStore(), tmp_path, on_lost=OnLost.FAIL) as runner,
    ):
        pool.drain(sims[1].url)
        job = await runner.submit(image())
        pool.undrain(sims[1].url)
        await sims[0].kill()
        with pytest.raises(JobLost):
            await runner.complete(job)


async def test_files_that_went_with_their_server_are_made_again(sims: list[Sim], tmp_path: Path) -> None:
    async with (
        pool_of(sims, lost_after=0.3) as pool,
        Runner(pool, MemoryStore(), tmp_path) as runner,
    ):
        pool.drain(sims[1].url)
        job = await runner.submit(image())
        pool.undrain(sims[1].url)
        held = sims[0].faults.add("GET", "/view", stall(), times=None)
        ending = asyncio.create_task(runner.complete(job))
        await held.met()
        await sims[0].kill()
        done = await ending
    assert (done.job.server, done.job.replaces, len(done.files)) == (sims[1].url, job.prompt_id, 1)


async def test_a_success_whose_history_went_with_its_server_is_made_again(
    sims: list[Sim], tmp_path: Path
) -> None:
    for sim in sims:
        sim.faults.add("GET", "/history/*", stall(), times=None)
    async with (
        pool_of(sims, lost_after=0.3) as pool,
        Runner(pool, MemoryStore(), tmp_path) as runner,
    ):
        pool.drain(sims[1].url)
        job = await runner.submit(image())
        pool.undrain(sims[1].url)
        ending = asyncio.create_task(runner.complete(job))
        tracker = pool._named(sims[0].url).client.follower.known(job.prompt_id)
        await until(lambda: tracker is not None and tracker.announced)
        await sims[0].kill()
        for sim in sims:
            sim.faults.clear()
        done = await ending
    assert (done.job.server, done.job.replaces, len(done.files)) == (sims[1].url, job.prompt_id, 1)


async def test_a_server_that_its_operator_knows_to_be_gone_gives_up_its_jobs(
    sims: list[Sim], tmp_path: Path
) -> None:
    store = MemoryStore()
    await sims[0].hold()
    async with ComfyClient(sims[0].url) as client, Runner(client, store, tmp_path) as runner:
        job = await runner.submit(image(), key="k")
    await sims[0].kill()
    async with (
        ServerPool([sim.url for sim in sims], gone=[f"{sims[0].url}/"], poll=QUICK) as pool,
        Runner(pool, store, tmp_path) as runner,
    ):
        [done] = [one async for one in runner.resume()]
    assert done.error is None
    assert (done.job.server, done.job.replaces) == (sims[1].url, job.prompt_id)


async def test_nobody_there_is_told_at_once_and_after_a_while_where_somebody_was(sims: list[Sim]) -> None:
    for sim in sims:
        await sim.kill()
    async with pool_of(sims, lost_after=0.3) as pool:
        with pytest.raises(NoServer, match="connection refused") as raised:
            await pool.ready()
        assert not raised.value.any_up
        with pytest.raises(NoServer):
            await pool.submit_workflow(image())
        await sims[0].start()
        await until(lambda: pool.servers[0].health is Health.UP)
        await pool.ready()
        await sims[0].kill()
        await until(lambda: not pool.servers[0].health.answers)
        with pytest.raises(NoServer, match="does not answer"):
            await pool.submit_workflow(image())


# keys


async def test_a_jobs_start_is_waited_for_where_it_is(sims: list[Sim]) -> None:
    async with pool_of(sims) as pool:
        prompt_ids = [await pool.submit_workflow(image()) for _ in range(4)]
        views = [await pool.until_running(prompt_id) for prompt_id in prompt_ids]
        assert all(view.state.rank >= JobState.RUNNING.rank for view in views)
        for prompt_id in prompt_ids:
            await pool.wait(prompt_id)
        ended = [(await pool.until_running(prompt_id)).result for prompt_id in prompt_ids]
        assert {one.outputs[0].server for one in ended if one is not None} == {sim.url for sim in sims}


async def test_a_key_runs_once_wherever_it_is_called(sims: list[Sim], tmp_path: Path) -> None:
    graph, store = image(), MemoryStore()
    async with pool_of(sims) as pool, Runner(pool, store, tmp_path) as runner:
        results = await asyncio.gather(*(runner.run(graph, key="k") for _ in range(4)))
        assert len({result.prompt_id for result in results}) == 1
    async with pool_of(sims) as pool:  # without the record, of which the servers know nothing either
        assert await pool.submit_workflow(graph, idempotency_key="k") == results[0].prompt_id
    assert runs(sims) == {1: 1}


# one interface


async def test_a_job_is_found_wherever_it_is(sims: list[Sim], tmp_path: Path) -> None:
    async with ComfyClient(sims[1].url) as client:
        prompt_id = await client.submit_workflow(image())
        await client.wait(prompt_id)
    async with pool_of(sims) as pool:
        assert (await pool.poll_status(prompt_id)).state is JobState.SUCCEEDED
        [file] = await pool.download_images(prompt_id, tmp_path)
        assert file.path.is_file()
        assert (await pool.result(prompt_id)).outputs[0].server == sims[1].url
        views = [view async for view in pool.watch(prompt_id)]
        assert views[-1].result is not None
        assert await pool.sent(prompt_id) is not None
        assert await pool.history(prompt_id)
        assert not await pool.cancel(prompt_id)
        output = (await pool.wait(prompt_id)).outputs[0]
        assert (await pool.download_output(output, tmp_path)).path.is_file()
        with pytest.raises(UsageError, match="which server"):
            await pool.download_output(OutputFile("1", "a.png"), tmp_path)
        assert (await pool.poll_status("nobody")).state is JobState.LOST


async def test_what_concerns_all_servers_is_asked_of_all(sims: list[Sim]) -> None:
    async with pool_of(sims) as pool:
        for sim in sims:
            await sim.hold()
        await pool.submit_workflow(image())
        await pool.submit_workflow(image())
        view = await pool.queue()
        assert len(view.running) + len(view.pending) == 2
        assert set(await pool.system_stats()) == {sim.url for sim in sims}
        assert "SaveImage" in await pool.object_info()
        assert await pool.history() == {}
        await pool.free()
        with pytest.raises(UsageError, match="is no server of this pool"):
            pool.drain("http://elsewhere:1")


async def test_an_input_file_is_put_onto_each_server_once(sims: list[Sim], tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    async with pool_of(sims) as pool, Runner(pool, MemoryStore(), tmp_path / "out") as runner:
        made = await runner.run(image())
        source.write_bytes(made.files[0].path.read_bytes())
        name = await pool.input_file(source)
        assert (await pool.upload_image(source.read_bytes())).name == name

        def graph(number: int) -> Graph:
            return {
                "1": {"class_type": "LoadImage", "inputs": {"image": name}},
                "2": {
                    "class_type": "SaveImage",
                    "inputs": {"images": ["1", 0], "filename_prefix": f"in{number}"},
                },
            }

        graphs = [graph(number) for number in range(8)]
        results = [one async for one in runner.run_many(graphs, concurrency=8)]
    assert [result.error for result in results] == [None] * 8
    assert {result.job.server for result in results} == {sim.url for sim in sims}
    for sim in sims:
        assert sim.requests.count(("POST", "/upload/image")) == 1


@pytest.mark.parametrize(
    ("servers", "text"),
    [([], "needs a server"), (["http://a:1", "http://a:1/"], "given twice"), (["nonsense"], "no address")],
)
def test_servers_that_make_no_pool(servers: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ServerPool(servers)
