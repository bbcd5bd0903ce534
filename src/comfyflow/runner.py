"""One job's whole road: recorded, sent, followed, downloaded, recorded. The only module that knows server,
disk and store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from math import isinf
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import anyio

from . import download
from .client import ComfyClient
from .errors import (
    ComfyflowError,
    DownloadError,
    JobError,
    JobLost,
    ServerUnreachable,
    StoreError,
    WorkflowInvalid,
    error_of,
)
from .models import JobFailure, JobResult, JobState, JobView, SavedFile
from .shield import to_the_end
from .store import Accepted, Added, Advanced, Job, JobEvent, Kept, Store, ending
from .workflow import Workflow

T = TypeVar("T")
OnView = Callable[[JobView], None]
LAST_WORDS = 30.0  # s for writing down an outcome although the caller was cancelled; stores give up sooner


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a job. `error` is None for success; `elapsed` in seconds from the call to the last
    file."""

    job: Job
    result: JobResult | None
    files: tuple[SavedFile, ...] = ()
    elapsed: float = 0.0
    error: ComfyflowError | None = None

    @property
    def prompt_id(self) -> str:
        """The job's id on the server."""
        return self.job.prompt_id


class Runner:
    """Run workflows on one server, keep their files in `output_dir`, and record everything in `store`.

    `downloads` files are fetched at once. Where ComfyUI's own output folder is mounted here, `comfyui_output`
    names it and files are taken from there. Paths are recorded relative to `shared`, a folder that others
    mount too, where `output_dir` is inside it, else relative to `output_dir`. `keep_content` puts the bytes
    of files into the store as well. The client and the store are used, not opened or closed.
    """

    def __init__(
        self,
        client: ComfyClient,
        store: Store,
        output_dir: Path | str,
        *,
        downloads: int = 4,
        comfyui_output: Path | str | None = None,
        allow_partial: bool = False,
        shared: Path | str | None = None,
        keep_content: bool = False,
    ) -> None:
        self.client, self.store, self.output_dir = client, store, Path(output_dir)
        self._root = _root(self.output_dir, shared)
        self._keep_content = keep_content
        self._mounted = None if comfyui_output is None else Path(comfyui_output)
        self._allow_partial = allow_partial
        self._downloads = downloads
        self._limiter: anyio.CapacityLimiter | None = None

    async def __aenter__(self) -> Self:
        with suppress(OSError):  # where that cannot be done, saving into it says why
            await anyio.Path(self.output_dir).mkdir(parents=True, exist_ok=True)
        self._limiter = anyio.CapacityLimiter(self._downloads)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiter = None

    async def submit(self, workflow: Workflow | Mapping[str, Any]) -> Job:
        """Record a job, send it, and return it; do not wait. Raises what `submit_workflow` raises, and
        StoreError.

        The record is there before the request leaves. A refused job is recorded as failed.
        """
        job = self._job(Workflow.load(workflow))
        await self.store.add(job)
        return await self._send(job)

    async def complete(
        self, job: Job, *, on_view: OnView | None = None, timeout: float | None = None
    ) -> RunResult:
        """Follow a sent job to its end, save its files, record the outcome.

        `on_view` gets each change. After `timeout` seconds JobTimeout is raised and the job goes on; so it
        does when the caller is cancelled. Raises JobError, DownloadError, ServerError, StoreError, each with
        its `prompt_id`.
        """
        started = time.monotonic()
        with _named(job):
            result = await self._followed(job, on_view, timeout)
            files = await self._save(job, result)
        return RunResult(job, result, files, time.monotonic() - started)

    async def follow(
        self, job: Job, *, on_view: OnView | None = None, timeout: float | None = None
    ) -> JobResult:
        """Like `complete` (`timeout` in seconds), but its files stay on the server: only the outcome is
        recorded."""
        with _named(job):
            result = await self._followed(job, on_view, timeout)
            await self._record(job, result)
        return result

    async def adopt(self, prompt_id: str) -> Job:
        """A job by its id: as the store knows it, else as the server does; it is recorded then.

        For jobs that somebody else sent. Its `workflow` is None when the server no longer tells the graph.
        Raises ServerError, StoreError, and JobLost for an id that neither of them knows: nothing is recorded
        then.
        """
        known = None
        with suppress(StoreError):  # a record that cannot be read: the server may still know the job
            known = await self.store.get(prompt_id)
        if known is not None and known.job.workflow is not None and known.job.client_id:
            return known.job
        job = await self._told(prompt_id, None if known is None else known.job)
        await self.store.write(Added(job), Advanced(prompt_id, JobState.SUBMITTED))
        return job

    async def run(
        self,
        workflow: Workflow | Mapping[str, Any],
        *,
        on_view: OnView | None = None,
        timeout: float | None = None,
    ) -> RunResult:
        """`submit` and `complete` in one; `timeout` in seconds counts from the acceptance."""
        return await self.complete(await self.submit(workflow), on_view=on_view, timeout=timeout)

    async def run_many(
        self,
        workflows: Iterable[Workflow | Mapping[str, Any]] | AsyncIterable[Workflow | Mapping[str, Any]],
        *,
        concurrency: int,
    ) -> AsyncGenerator[RunResult, None]:
        """Run workflows, `concurrency` at a time, and yield each result as it comes, failed ones with their
        `error`.

        The source is read only as fast as jobs end. Leaving the loop stops following; sent jobs go on. So
        does WorkflowInvalid, for an item that is no workflow: `Workflow.load` them first where that may
        happen.
        """
        source = _iterated(workflows)
        running: set[asyncio.Task[RunResult]] = set()
        try:
            async for workflow in source:
                running.add(asyncio.create_task(self._outcome(Workflow.load(workflow))))
                for result in await _ended(running, leave=concurrency - 1):
                    yield result
            while running:
                for result in await _ended(running, leave=0):
                    yield result
        finally:
            await _end(running)

    async def resume(self) -> AsyncGenerator[RunResult, None]:
        """Finish every job of this server that the store has without an outcome, one after the other: send
        what the server has never seen, follow and download the rest. A job that was accepted and is gone is
        lost, not sent again. Jobs of other servers are left to those who work with them."""
        for job in [job async for job in self.store.unfinished() if self._is_here(job)]:
            yield await self._guarded(job, self._resumed)

    # -- inside --

    def _is_here(self, job: Job) -> bool:
        return job.server == str(self.client.server)

    async def _told(self, prompt_id: str, known: Job | None) -> Job:
        """A job as the server tells it; what is recorded already (n8n writes bare rows) stays."""
        sent = await self.client.sent(prompt_id)
        if sent is None and known is None:
            view = await self.client.poll_status(prompt_id)
            if view.state is JobState.LOST:
                raise JobLost(f"job {prompt_id} is known neither to the server nor to the record", view=view)
        workflow, client_id = None, "" if sent is None else sent.client_id
        with suppress(WorkflowInvalid):
            workflow = None if sent is None else Workflow.load(sent.graph)
        if known is None:
            return Job(prompt_id, workflow, client_id, str(self.client.server), time.time())
        return replace(known, workflow=known.workflow or workflow, client_id=known.client_id or client_id)

    def _job(self, workflow: Workflow) -> Job:
        client = self.client
        return Job(str(uuid4()), workflow, client.client_id, str(client.server), time.time())

    async def _outcome(self, workflow: Workflow) -> RunResult:
        return await self._guarded(self._job(workflow), self._added)

    async def _added(self, job: Job) -> RunResult:
        await self.store.add(job)
        return await self._sent(job)

    async def _sent(self, job: Job) -> RunResult:
        return await self.complete(await self._send(job))

    async def _resumed(self, job: Job) -> RunResult:
        record = await self.store.get(job.prompt_id)
        unsent = record is not None and record.state is JobState.CREATED
        if unsent and (await self.client.poll_status(job.prompt_id)).state is JobState.LOST:
            return await self._sent(job)
        return await self.complete(job)

    async def _guarded(self, job: Job, road: Callable[[Job], Awaitable[RunResult]]) -> RunResult:
        """A job's error as a value, so that one failure does not stop the others."""
        started = time.monotonic()
        try:
            return await road(job)
        except ComfyflowError as error:
            error.prompt_id = error.prompt_id or job.prompt_id
            return RunResult(job, None, (), time.monotonic() - started, error)

    async def _send(self, job: Job) -> Job:
        if job.workflow is None:
            raise StoreError(f"job {job.prompt_id} cannot be sent: its graph was never recorded")
        try:
            prompt_id = await self.client.submit_workflow(
                job.workflow, prompt_id=job.prompt_id, allow_partial=self._allow_partial
            )
        except ComfyflowError as error:
            error.prompt_id = error.prompt_id or job.prompt_id
            maybe_queued = isinstance(error, ServerUnreachable) and error.sent
            if not maybe_queued:
                failure = JobFailure(str(error), exception_type=type(error).__name__)
                await self._record(job, JobResult(job.prompt_id, JobState.FAILED, failure=failure))
            raise
        told = JobEvent(prompt_id, "submitted", {"server": job.server})
        await self.store.write(Accepted(job, prompt_id), told)
        return replace(job, prompt_id=prompt_id)

    async def _followed(self, job: Job, on_view: OnView | None, timeout: float | None) -> JobResult:
        budget = self.client.timeout.total if timeout is None else timeout  # as in `ComfyClient.wait`
        try:
            with anyio.move_on_after(budget) as spent:
                await self._show(job, on_view)
                return await self.client.wait(job.prompt_id, timeout=_left(spent))
            return await self.client.wait(job.prompt_id, timeout=0)  # raises the error that belongs here
        except JobLost as error:
            return await self._remembered(job, error)
        except JobError as error:
            if error.view.result is not None:
                await self._record(job, error.view.result)
            raise

    async def _remembered(self, job: Job, lost: JobLost) -> JobResult:
        """What the server has forgotten since, the record may still tell; else the job is lost, unless it was
        never here."""
        record = None
        with suppress(StoreError):
            record = await self.store.get(job.prompt_id)
        if record is None or record.result is None:
            if not self._is_here(job):
                text = f"job {job.prompt_id} was sent to {job.server}, its end is not known here: ask there"
                raise JobLost(text, view=lost.view) from lost
            assert lost.view.result is not None
            await self._record(job, lost.view.result)
            raise lost
        if (error := error_of(JobView(job.prompt_id, record.state, result=record.result))) is not None:
            raise error
        return record.result

    async def _show(self, job: Job, on_view: OnView | None) -> None:
        """Show each view, and write down that the job runs. Nobody looks: that is all there is to see."""
        running = False
        async with aclosing(self.client.watch(job.prompt_id)) as views:
            async for view in views:
                if on_view is not None:
                    on_view(view)
                if not running and view.state is JobState.RUNNING:
                    running = True
                    started = Advanced(job.prompt_id, JobState.RUNNING), JobEvent(job.prompt_id, "started")
                    await self.store.write(*started, lazily=True)
                if on_view is None and view.state.rank >= JobState.RUNNING.rank:
                    return

    async def _save(self, job: Job, result: JobResult) -> tuple[SavedFile, ...]:
        if result.outputs:
            begun = JobEvent(job.prompt_id, "download_started", {"files": len(result.outputs)})
            await self.store.write(Advanced(job.prompt_id, JobState.FINISHING), begun, lazily=True)
        try:
            files = await download.save_all(
                self.client.source,
                result.outputs,
                self.output_dir,
                limiter=self._limiter,
                mounted=self._mounted,
            )
        except DownloadError as error:
            await self.store.log(JobEvent(job.prompt_id, "download_failed", {"reason": str(error)}))
            raise
        await self._record(job, result, tuple(files))
        return tuple(files)

    async def _record(self, job: Job, result: JobResult, files: tuple[SavedFile, ...] = ()) -> None:
        """The outcome is written even when the caller has just been cancelled."""
        written = self.store.write(*ending(job, result, files, root=self._root))
        try:
            await to_the_end(written, LAST_WORDS)
        except TimeoutError as error:
            text = f"the outcome of job {job.prompt_id} could not be recorded in {LAST_WORDS:g} s"
            raise StoreError(text) from error
        if self._keep_content and files:
            await self.store.write(*map(Kept, files))


def _root(output_dir: Path, shared: Path | str | None) -> Path:
    """What recorded paths are relative to."""
    inside = shared is not None and output_dir.absolute().is_relative_to(Path(shared).absolute())
    return Path(shared).absolute() if shared is not None and inside else output_dir.absolute()


def _left(scope: anyio.CancelScope) -> float | None:
    """Seconds until the scope's deadline, None without one."""
    return None if isinf(scope.deadline) else max(0.0, scope.deadline - anyio.current_time())


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """An error that passes through tells which job it belongs to."""
    try:
        yield
    except ComfyflowError as error:
        error.prompt_id = job.prompt_id
        raise


async def _iterated(source: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


async def _ended(tasks: set[asyncio.Task[RunResult]], *, leave: int) -> list[RunResult]:
    """Wait until no more than `leave` tasks are left at work, and take out those that have ended."""
    if len(tasks) <= leave:
        return []
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    tasks -= done
    return [task.result() for task in done]


async def _end(tasks: set[asyncio.Task[RunResult]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
