"""A batch: each row once, again where that may help, and an end to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs import alone

from comfyflow import (
    Ambiguous,
    BadAnswer,
    ComfyClient,
    ComfyflowError,
    DownloadError,
    JobCancelled,
    JobError,
    JobFailed,
    JobFailure,
    JobLost,
    JobResult,
    JobState,
    JobTimeout,
    JobView,
    KeyConflict,
    MemoryStore,
    NotSupported,
    OutputFile,
    OutputUnavailable,
    PollSchedule,
    PostgresMissing,
    Runner,
    ServerPool,
    ServerUnreachable,
    StoreError,
    StoreUnavailable,
    Timeouts,
    UsageError,
    Workflow,
    WorkflowInvalid,
    submit,
)
from comfyflow.batch import Row
from comfyflow.exits import ExitCode
from comfyflow.many import WORST_FIRST, Batch, Policy, RowResult, Tally, readable, shuffled
from comfyflow.sim import Sim, answer, gone, stall

QUICK = PollSchedule(first=0.02, factor=1.5, ceiling=0.1, stall_after=0.3, deaf_after=0.3)
BASE = Workflow.load(
    {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0},
            "_meta": {"title": "Canvas"},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "many"}},
    }
)
FAILING = Workflow.load(alone("SimFail", message="no", exception="ValueError"))


@pytest.fixture
async def runner(comfyui: Sim, tmp_path: Path) -> AsyncIterator[Runner]:
    async with (
        ComfyClient(comfyui.url, poll=QUICK) as client,
        Runner(client, MemoryStore(), tmp_path / "out") as made,
    ):
        yield made


def row(number: int, values: dict[str, Any] | None = None) -> Row:
    return Row(number, None, values or {"Canvas.color": number}, None, f"rows, line {number}")


def failing(number: int) -> Row:
    return Row(number, None, {}, FAILING, f"rows, line {number}")


def batch(runner: Runner, **policy: Any) -> Batch:
    return Batch(runner, "test", BASE, Policy(**{"pause": 0.01, **policy}))


async def outcome(batch: Batch, *rows: Row) -> list[RowResult]:
    return [one async for one in batch.run(rows)]


async def test_each_row_is_a_job_and_runs_once_however_often_the_batch_does(
    runner: Runner, comfyui: Sim
) -> None:
    rows = [row(number) for number in range(5)]
    first = await outcome(batch(runner), *rows)
    assert {one.row.number for one in first if one.row} == set(range(5))
    told = [(one.error, one.again, one.attempts, len(one.files)) for one in first]
    assert told == [(None, False, 1, 1)] * 5
    again = batch(runner)
    second = await outcome(again, *rows, row(9))
    assert {one.prompt_id for one in second} > {one.prompt_id for one in first}
    assert sum(one.again for one in second) == 5
    assert (again.tally.before, again.tally.succeeded, again.tally.files) == (5, 1, 6)
    assert sorted(comfyui.executed.values()) == [1] * 6


async def test_rows_are_read_only_as_jobs_end(runner: Runner) -> None:
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        while True:
            read += 1
            yield row(read)

    going, seen = batch(runner, concurrency=3).run(rows()), 0
    async for _ in going:
        seen += 1
        assert read <= seen + 3
        if seen == 12:
            break
    await going.aclose()


async def test_a_row_that_makes_no_workflow_fails_and_the_others_do_not(runner: Runner, comfyui: Sim) -> None:
    class Broken:
        """A reader that goes on after a bad line."""

        def __init__(self) -> None:
            self.line = 0

        def __iter__(self) -> Iterator[Row]:
            return self

        def __next__(self) -> Row:
            self.line += 1
            if self.line == 2:
                raise UsageError("rows, line 2: bad")
            if self.line == 5:
                raise StopIteration
            return row(self.line, {"Canvas.colour": 1} if self.line == 3 else None)

    one = batch(runner)
    results = [result async for result in one.run(Broken())]
    failed = [result for result in results if result.error]
    assert {result.row.number if result.row else None for result in failed} == {None, 3}
    assert all(result.attempts == 0 and result.prompt_id is None for result in failed)
    assert (one.tally.succeeded, one.tally.failures, one.tally.running) == (2, 2, 0)


async def test_rows_may_come_from_an_async_source_that_gives_errors_as_values(runner: Runner) -> None:
    async def rows() -> AsyncIterator[Row | ComfyflowError]:
        yield UsageError("bad")
        yield row(1)

    results = [one async for one in batch(runner).run(rows())]
    assert sorted(type(one.error).__name__ for one in results) == ["NoneType", "UsageError"]


# trying again


async def test_a_lost_job_is_sent_again_as_often_as_allowed_and_in_the_next_run(
    runner: Runner, comfyui: Sim
) -> None:
    results: list[RowResult] = []
    for retries, restarts in ((0, 1), (0, 0), (1, 1)):
        await comfyui.hold()
        going = asyncio.create_task(outcome(batch(runner, retries=retries), row(1)))
        for _ in range(restarts):
            await comfyui.wait_running()
            await comfyui.restart()
        await comfyui.release()
        results += await going
    assert [one.state for one in results] == [JobState.LOST, JobState.LOST, JobState.SUCCEEDED]
    assert results[-1].attempts == 2
    assert results[-1].run is not None and results[-1].run.job.attempt == 3


async def test_what_failed_is_sent_again_only_on_request(runner: Runner, comfyui: Sim) -> None:
    for policy, again, attempts in (
        ({}, False, 1),
        ({}, True, 1),
        ({"retry_failed": True, "retries": 0}, False, 1),
        ({"retry_failed": True, "retries": 1}, False, 2),
    ):
        before = sum(comfyui.executed.values())
        [one] = await outcome(batch(runner, **policy), failing(1))
        assert isinstance(one.error, JobFailed)
        assert (one.again, one.attempts, one.state) == (again, attempts, JobState.FAILED)
        assert sum(comfyui.executed.values()) - before == (0 if again else attempts)


async def test_a_server_that_comes_back_is_waited_for(runner: Runner, comfyui: Sim) -> None:
    comfyui.faults.add("POST", "/prompt", answer(503), times=3)  # as often as one submit tries
    [one] = await outcome(batch(runner), row(1))
    assert (one.error, one.attempts) == (None, 2)


async def test_a_job_whose_file_has_vanished_is_run_again(runner: Runner, comfyui: Sim) -> None:
    comfyui.faults.add("GET", "/view", gone(), times=2)  # as often as one download asks
    [one] = await outcome(batch(runner), row(1))
    assert (one.error, one.attempts, len(one.files)) == (None, 2, 1)
    comfyui.faults.add("GET", "/view", gone(), times=None)
    [one] = await outcome(batch(runner, retries=0), row(2))
    assert isinstance(one.error, OutputUnavailable)
    assert (one.attempts, one.files) == (1, ())
    comfyui.faults.clear()
    [one] = await outcome(batch(runner), row(2))
    assert (one.error, len(one.files)) == (None, 1)


async def test_local_files_are_put_onto_the_server_and_make_the_key(
    runner: Runner, comfyui: Sim, tmp_path: Path
) -> None:
    base = Workflow.load({**alone("LoadImage", image="x.png"), "2": BASE.nodes["2"]})
    picture = (await runner.run(BASE)).files[0].path

    def taking(number: int) -> Row:
        return Row(number, None, {}, None, "rows, line 1", uploads={"LoadImage.image": picture})

    going = Batch(runner, "files", base, Policy(pause=0.01))
    [one, two] = await outcome(going, taking(1), taking(2))
    assert (one.error, two.error, one.key == two.key) == (None, None, True)
    assert comfyui.requests.count(("POST", "/upload/image")) == 1
    [missing] = await outcome(
        going, Row(3, None, {}, None, "rows, line 3", uploads={"LoadImage.image": tmp_path / "no.png"})
    )
    assert "no.png cannot be read" in str(missing.error)


def made(kind: type[ComfyflowError], **more: Any) -> ComfyflowError:
    """An error of this class, whatever else it wants to know."""
    ended = JobResult("1", JobState.LOST, failure=JobFailure("gone"))
    known: dict[type[ComfyflowError], dict[str, Any]] = {
        BadAnswer: {"method": "POST", "url": "http://x", "status": 502},
        ServerUnreachable: {"method": "POST", "url": "http://x"},
        NotSupported: {"method": "POST", "url": "http://x"},
        JobLost: {"view": JobView("1", JobState.LOST, result=ended)},
        JobFailed: {"view": JobView("1", JobState.FAILED), "failure": JobFailure("no")},
        JobCancelled: {"view": JobView("1", JobState.CANCELLED)},
        JobTimeout: {"view": JobView("1", JobState.RUNNING)},
        DownloadError: {"output": OutputFile("1", "a.png")},
        OutputUnavailable: {"output": OutputFile("1", "a.png")},
    }
    return kind("no", **{**known.get(kind, {}), **more})


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (made(ServerUnreachable), True),
        (made(BadAnswer), True),
        (made(BadAnswer, status=500), False),
        (made(NotSupported), False),
        (made(JobLost), True),
        (made(JobLost, view=JobView("1", JobState.LOST)), False),
        (made(JobFailed), False),
        (made(JobCancelled), False),
        (made(JobTimeout), False),
        (made(DownloadError), True),
        (made(OutputUnavailable), True),
        (made(StoreUnavailable), True),
        (made(PostgresMissing), False),
        (made(StoreError), False),
        (made(KeyConflict), False),
        (made(WorkflowInvalid), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_trying_again_is_for_what_may_pass(error: ComfyflowError, helps: bool) -> None:
    assert Policy().may_help(error) is helps
    on_request = isinstance(error, JobFailed)
    assert Policy(retry_failed=True).may_help(error) is (helps or on_request)


# an end to it


@pytest.mark.parametrize(("most", "told"), [(1, "1 row has failed"), (2, "2 rows have failed")])
async def test_no_row_is_begun_after_too_many_failures(runner: Runner, most: int, told: str) -> None:
    bad = [row(number, {"Canvas.no": 1}) for number in range(2, 2 + most)]
    one = batch(runner, concurrency=1, max_failures=most)
    results = await outcome(one, row(1), *bad, row(8), row(9))
    assert [result.error is None for result in results] == [True] + [False] * most
    assert one.stopped == told


async def test_every_row_that_was_begun_is_told_although_several_end_the_batch_at_once(
    runner: Runner,
) -> None:
    one = batch(runner, concurrency=4, max_failures=1)
    results = await outcome(one, *(row(number, {"Canvas.no": 1}) for number in range(9)))
    assert len(results) == one.tally.begun == one.tally.failures < 9


async def test_a_server_that_is_away_ends_the_batch_and_the_next_run_does_it_all(
    runner: Runner, comfyui: Sim
) -> None:
    await comfyui.kill()
    one = batch(runner, concurrency=2, retries=1)
    results = await outcome(one, *map(row, range(20)))
    assert len(results) <= 3
    assert {type(result.error) for result in results} == {ServerUnreachable}
    assert (one.tally.exit_code, one.stopped is not None) == (ExitCode.UNREACHABLE, True)
    await comfyui.start()
    assert [result.error for result in await outcome(batch(runner), *map(row, range(20)))] == [None] * 20
    assert set(comfyui.executed.values()) == {1}


async def test_a_server_of_several_that_is_silent_ends_no_batch(
    comfyui: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row fails, as nobody knows whether it will get it; the others go on."""
    monkeypatch.setattr(submit, "SETTLE_LATE", 0.05)
    monkeypatch.setattr(submit, "SETTLE", 0.05)
    async with Sim() as other:
        options: dict[str, Any] = {
            "poll": QUICK,
            "timeout": Timeouts(answer=0.3),
            "ambiguous": Ambiguous.FAIL,
        }
        async with (
            ServerPool([comfyui.url, other.url], **options) as pool,
            Runner(pool, MemoryStore(), tmp_path) as runner,
        ):
            await pool.ready()
            comfyui.faults.add("POST", "/prompt", stall(), times=1)
            one = batch(runner, concurrency=2, retries=0)
            results = await outcome(one, *map(row, range(12)))
    assert Counter(type(result.error) for result in results) == {type(None): 11, ServerUnreachable: 1}
    assert one.stopped is None


async def test_a_server_that_lets_nobody_in_ends_the_batch(runner: Runner, comfyui: Sim) -> None:
    comfyui.faults.add("POST", "/prompt", answer(401), times=None)
    comfyui.faults.add("GET", "/queue", answer(401), times=None)
    one = batch(runner, concurrency=1)
    assert len(await outcome(one, row(1), row(2))) == 1
    assert one.stopped == "the next rows would end like this one"


async def test_a_stopped_batch_does_not_wait_for_a_source_that_lets_one_wait(runner: Runner) -> None:
    async def rows() -> AsyncIterator[Row]:
        yield failing(1)
        await asyncio.Event().wait()

    async with asyncio.timeout(20):
        [one] = [one async for one in batch(runner, max_failures=1).run(rows())]
    assert isinstance(one.error, JobError)


# numbers


def test_the_exit_code_is_that_of_the_worst_failure_and_every_code_has_its_place() -> None:
    assert Tally().exit_code is ExitCode.OK
    tally = Tally()
    for kind in (JobCancelled, JobLost, StoreUnavailable):
        tally.count(RowResult(None, error=made(kind)))
    assert tally.exit_code is ExitCode.DATABASE
    assert tally.document()["failed"] == {"database": 1, "lost": 1, "cancelled": 1}
    assert set(WORST_FIRST) == set(ExitCode) - {ExitCode.OK, ExitCode.INTERRUPTED}


def test_readable_goes_on_after_what_cannot_be_read() -> None:
    assert list(readable(iter([1, 2]))) == [1, 2]


def test_a_random_order_needs_no_more_than_a_handful_in_memory() -> None:
    read = 0

    def source() -> Iterator[int]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield number

    drawn = shuffled(source(), held=10)
    first = next(drawn)
    assert (read, first < 10) == (11, True)
    whole = [first, *drawn]
    assert sorted(whole) == list(range(1000))
    assert whole != sorted(whole)
