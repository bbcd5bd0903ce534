"""One job's whole road: recorded, sent, followed, downloaded, recorded. The only module that knows server,
disk and store."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from contextlib import aclosing, suppress
from dataclasses import replace
from math import inf, isinf
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import anyio
from anyio import to_thread

from . import download
from .client import ComfyClient
from .errors import (
    ComfyflowError,
    DownloadError,
    JobError,
    JobLost,
    JobTimeout,
    OutputReused,
    OutputUnavailable,
    ServerError,
    ServerUnreachable,
    StoreError,
    WorkflowInvalid,
    error_of,
)
from .lease import Lease
from .models import JobFailure, JobResult, JobState, JobView, OnCached, OnLost, SavedFile
from .outcome import RunResult, are_here, are_whole, named, root_of, seconds_left
from .pool import ServerPool
from .sending import ASK_EVERY, Sender, written
from .several import end, ended, worked
from .store import Advanced, Holding, Job, JobEvent, JobRecord, Kept, Store, ending
from .sweep import sweep
from .workflow import Workflow

OnView = Callable[[JobView], None]
CANCEL = "cancel_requested"  # the kind of an event


class Runner:
    """Run workflows on a server, or a pool of them, keep their files in `output_dir`, and record everything
    in `store`.

    `downloads` files are fetched at once from each server. Where ComfyUI's own output folder is mounted here,
    `comfyui_output` names it and files are taken from there. Paths are recorded relative to `shared`, a
    folder that others mount too, where `output_dir` is inside it, else relative to `output_dir`.
    `keep_content` puts the bytes of files into the store as well. The client and the store are used, not
    opened or closed.

    A job that the server has accepted and forgotten is lost: an error, or with `on_lost="resubmit"` (which is
    the default with a pool) it is sent again under a new id, up to `resubmits` times. Nobody else's `resume`
    takes a job of this runner before it has been silent for `lease` seconds; inside `async with` it never is
    while it lives. With `in_place` files go to the folder that their job was recorded with, where it is
    there. `on_job` is told of each job before it is sent, and again when the server has taken it: its id may
    be another one then. `check` is asked before a job is sent for the first time, and raises WorkflowInvalid
    for what is not to be sent: `comfyflow.Checker(client)` asks whether a server would take it. `on_cached`
    is about files that ComfyUI takes from its cache of an earlier job: accept them, "force" new ones, or take
    them for an "error" (OutputReused; the job is recorded as failed).
    """

    def __init__(
        self,
        client: ComfyClient | ServerPool,
        store: Store,
        output_dir: Path | str,
        *,
        downloads: int = 4,
        comfyui_output: Path | str | None = None,
        allow_partial: bool = False,
        shared: Path | str | None = None,
        keep_content: bool = False,
        on_lost: OnLost | str | None = None,
        resubmits: int = 1,
        lease: float = 30.0,
        in_place: bool = False,
        on_job: Callable[[Job], None] | None = None,
        check: Callable[[Workflow], Awaitable[None]] | None = None,
        on_cached: OnCached | str = OnCached.ACCEPT,
    ) -> None:
        self.client, self.store, self.output_dir = client, store, Path(output_dir)
        self._shared, self._in_place = shared, in_place
        self._made: set[Path] = set()
        if on_lost is None:
            on_lost = OnLost.FAIL if len(client.addresses) == 1 else OnLost.RESUBMIT
        self._resubmits = resubmits if OnLost(on_lost) is OnLost.RESUBMIT else 0
        self._lease = Lease(store, lease)
        self._sender = Sender(
            client,
            store,
            self._lease,
            folder=self.output_dir,
            on_job=on_job or (lambda job: None),
            allow_partial=allow_partial,
            check=check,
            fresh=OnCached(on_cached) is OnCached.FORCE,
        )
        self._refuse_reused = OnCached(on_cached) is OnCached.ERROR
        self._keep_content = keep_content
        self._mounted = None if comfyui_output is None else Path(comfyui_output)
        self._limiters = defaultdict[str, anyio.CapacityLimiter](lambda: anyio.CapacityLimiter(downloads))

    async def __aenter__(self) -> Self:
        self._lease.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiters.clear()
        await self._lease.stop()

    async def submit(
        self,
        workflow: Workflow | Mapping[str, Any],
        *,
        key: str | None = None,
        redo: Collection[JobState] = (),
    ) -> Job:
        """Record a job, send it, and return it; do not wait. Raises what `submit_workflow` raises, and
        StoreError.

        The record is there before the request leaves. A refused job is recorded as failed. With a `key` that
        the record or the server knows nothing is sent, and the job that is there is returned, ended or not;
        one that never came to the server is sent again. KeyConflict is raised when it has another graph, and
        StoreError when the record cannot be asked: it may have been sent before (`Ambiguous.RESEND` sends).
        A job of the key that has ended in one of the states `redo` is sent again under a new id.
        """
        return await self._sender.submit(self._sender.made(Workflow.load(workflow), key), redo)

    async def complete(
        self, job: Job, *, on_view: OnView | None = None, timeout: float | None = None
    ) -> RunResult:
        """Follow a sent job to its end, save its files, record the outcome.

        `on_view` gets each change. After `timeout` seconds JobTimeout is raised and the job goes on; so it
        does when the caller is cancelled. Raises JobError, DownloadError, ServerError, StoreError, each with
        its `prompt_id`. A file that the server no longer has makes the job a failed one; after any other
        DownloadError it has no outcome yet, and `resume` tries again. The job of the result is another one
        where it was sent again.
        """
        started = time.monotonic()
        new = job.key is None or self._sender.just_sent(job.prompt_id)
        record = None if new else await self._sender.latest(job.prompt_id)
        if record is not None:
            job = record.job
            if (files := await self._ended_before(record)) is not None:
                return RunResult(job, record.result, files, time.monotonic() - started, again=True)
        budget = self.client.timeout.total if timeout is None else timeout  # as in `ComfyClient.wait`
        deadline = inf if budget is None else started + budget
        while True:
            job, result = await self._end_of(job, on_view, deadline)
            try:
                with named(job):
                    files = await self._save(job, result)
            except (DownloadError, ServerUnreachable):
                if not self.client.departed(job.server):
                    raise
            else:
                return RunResult(job, result, files, time.monotonic() - started)

    async def follow(
        self, job: Job, *, on_view: OnView | None = None, timeout: float | None = None
    ) -> JobResult:
        """Like `complete` (`timeout` in seconds), but its files stay on the server: only the outcome is
        recorded."""
        budget = self.client.timeout.total if timeout is None else timeout
        deadline = inf if budget is None else time.monotonic() + budget
        job, result = await self._end_of(job, on_view, deadline)
        with named(job):
            await self._record(job, result)
        return result

    async def cancel(self, job: Job | str, *, timeout: float | None = None, force: bool = False) -> bool:
        """End a job (or a prompt id), wait at most `timeout` seconds for its end, and record that: see
        `ComfyClient.cancel`.

        One that another program is about to send is waited for first. What the record does not know stays
        unrecorded. Raises ServerError, JobTimeout, StoreError, and JobLost for a job of another server.
        """
        prompt_id = job if isinstance(job, str) else job.prompt_id
        known = None
        with suppress(StoreError):
            known = await self.store.get(prompt_id)
        if known is not None and known.result is None:
            known = await self._ready_to_cancel(known, timeout)
        told = known.job if known is not None else None if isinstance(job, str) else job
        async with self._sender.lock(prompt_id):
            there = await self.client.of(prompt_id, None if told is None else told.server)
            ended = await there.cancel(prompt_id, timeout=timeout, force=force)
            if told is not None and (known is None or known.result is None):
                sent = known is not None and known.state is not JobState.CREATED
                await self._record_stop(told, ended=ended, sent=sent)
        return ended

    async def _ready_to_cancel(self, record: JobRecord, timeout: float | None) -> JobRecord:
        """Say in the log that it is asked for, once nobody else is about to send it."""
        prompt_id = record.job.prompt_id
        try:
            with anyio.fail_after(timeout):
                while record.state is JobState.CREATED and not await self._lease.take(record.job):
                    await anyio.sleep(ASK_EVERY)
                    record = await self.store.get(prompt_id) or record
        except TimeoutError:
            text = f"job {prompt_id} is about to be sent by another program: try again in a while"
            raise JobTimeout(text, view=JobView(prompt_id, record.state)) from None
        view = await (await self.client.of(prompt_id, record.job.server)).poll_status(prompt_id)
        if view.state is JobState.LOST and not self._sender.is_here(record.job):
            text = f"job {prompt_id} was sent to {record.job.server}: ask there"
            raise JobLost(text, view=replace(view, result=None))
        if record.result is None:
            await self.store.log(JobEvent(prompt_id, CANCEL))  # who follows it must not take it for lost
        return record

    async def adopt(self, prompt_id: str) -> Job:
        """A job by its id: as the store knows it, else as the server does; it is recorded then.

        For jobs that somebody else sent. Its `workflow` is None when the server no longer tells the graph.
        Raises ServerError, StoreError, and JobLost for an id that neither of them knows: nothing is recorded
        then.
        """
        known = None
        with suppress(StoreError):  # a record that cannot be read: the server may still know the job
            known = await self.store.get(prompt_id)
        if known is not None and known.state is JobState.CREATED:
            await self._check_sent(known.job)
        if known is not None and known.job.workflow is not None and known.job.client_id:
            return known.job
        job = await self._told(prompt_id, None if known is None else known.job)
        await self.store.write(*self._lease.added(job), Advanced(prompt_id, JobState.SUBMITTED))
        return job

    async def run(
        self,
        workflow: Workflow | Mapping[str, Any],
        *,
        key: str | None = None,
        redo: Collection[JobState] = (),
        on_view: OnView | None = None,
        timeout: float | None = None,
    ) -> RunResult:
        """`submit` and `complete` in one; `timeout` in seconds counts from the acceptance."""
        job = await self.submit(workflow, key=key, redo=redo)
        return await self.complete(job, on_view=on_view, timeout=timeout)

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
        async with aclosing(worked(workflows, self._outcome, concurrency=concurrency)) as results:
            async for result in results:
                yield result

    async def resume(self, *, concurrency: int = 100) -> AsyncGenerator[RunResult, None]:
        """Finish every job of this server that the store has without an outcome, `concurrency` at a time, and
        yield each result as it comes: send what the server has never seen, follow and download the rest.

        Several programs may do so at once: each job is worked on by one. What another living program holds is
        left to it; whether it lives is waited for, one lease at most. A job that was accepted and is gone is
        lost, or sent again, as `on_lost` says. One that still has no outcome afterwards (the server is away,
        the disk full) has an `error` and is left for the next time. Leaving the loop stops following; jobs on
        the server go on. Raises StoreError when the record cannot be read.
        """
        servers, tried, free = self.client.addresses, set[str](), True
        running: set[asyncio.Task[RunResult]] = set()
        try:
            while True:
                room = concurrency - len(running) if free or not running else 0
                found = await self._lease.claim(servers, room, besides=tried) if room else []
                free = len(found) == room if room else free
                tried.update(record.job.prompt_id for record in found)
                running.update(asyncio.create_task(self._resumed(record)) for record in found)
                if not running and not await self._lease.more(servers):
                    return
                for result in await ended(running, leave=max(0, len(running) - 1)):
                    yield result
        finally:
            await end(running)

    async def others(self) -> list[Holding]:
        """Who else works on jobs of this server that have no outcome. Raises StoreError."""
        return await self._lease.others(self.client.addresses)

    # -- inside --

    async def _check_sent(self, job: Job) -> None:
        """A job that is recorded and has not come to the server is not lost."""
        view = await (await self.client.of(job.prompt_id, job.server)).poll_status(job.prompt_id)
        if view.state is JobState.LOST and self._sender.is_here(job):
            text = f"job {job.prompt_id} is recorded, but has not come to the server"
            raise JobLost(f"{text}: `comfyflow resume` sends it", view=replace(view, result=None))

    async def _told(self, prompt_id: str, known: Job | None) -> Job:
        """A job as the server tells it; what is recorded already (n8n writes bare rows) stays."""
        there = await self.client.of(prompt_id, None if known is None else known.server)
        sent = await there.sent(prompt_id)
        if sent is None and known is None:
            view = await there.poll_status(prompt_id)
            if view.state is JobState.LOST:
                raise JobLost(f"job {prompt_id} is known neither to the server nor to the record", view=view)
        workflow, client_id = None, "" if sent is None else sent.client_id
        with suppress(WorkflowInvalid):
            workflow = None if sent is None else Workflow.load(sent.graph, links=False)
        if known is None:
            return Job(prompt_id, workflow, client_id, str(there.server), time.time())
        return replace(known, workflow=known.workflow or workflow, client_id=known.client_id or client_id)

    async def _outcome(self, workflow: Workflow | Mapping[str, Any]) -> RunResult:
        return await self._guarded(self._sender.made(Workflow.load(workflow)), self._new)

    async def _new(self, job: Job) -> RunResult:
        with self._lease.busy(job.prompt_id):
            return await self.complete(await self._sender.submit(job))

    async def _resumed(self, record: JobRecord) -> RunResult:
        unsent = record.state is JobState.CREATED
        return await self._guarded(record.job, self._sent_late if unsent else self.complete)

    async def _sent_late(self, job: Job) -> RunResult:
        with self._lease.busy(job.prompt_id):
            return await self.complete(await self._sender.late(job))

    async def _guarded(self, job: Job, road: Callable[[Job], Awaitable[RunResult]]) -> RunResult:
        """A job's error as a value, so that one failure does not stop the others."""
        started = time.monotonic()
        try:
            return await road(job)
        except ComfyflowError as error:
            error.prompt_id = error.prompt_id or job.prompt_id
            record = await self._sender.latest(job.prompt_id)  # which says where it was sent
            told = job if record is None else record.job
            return RunResult(told, None, (), time.monotonic() - started, error)

    # -- following --

    async def _end_of(self, job: Job, on_view: OnView | None, deadline: float) -> tuple[Job, JobResult]:
        """Follow a job, and what it is replaced by, to the end."""
        while True:
            try:
                with named(job), self._lease.busy(job.prompt_id):
                    left = None if isinf(deadline) else max(0.0, deadline - time.monotonic())
                    return job, await self._followed(job, on_view, left)
            except JobLost as lost:
                before, job = job, await self._after_loss(job, lost)
                if job is before and time.monotonic() >= deadline:
                    raise

    async def _followed(self, job: Job, on_view: OnView | None, timeout: float | None) -> JobResult:
        try:
            with anyio.move_on_after(timeout) as spent:
                there = await self.client.of(job.prompt_id, job.server)
                await self._show(job, there, on_view)
                return await there.wait(job.prompt_id, timeout=seconds_left(spent))
            there = await self.client.of(job.prompt_id, job.server)
            return await there.wait(job.prompt_id, timeout=0)  # raises the error that belongs here
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
            if record is not None and any(event.kind == CANCEL for event in record.events):
                await self._was_cancelled(job)
            if not self._sender.is_here(job):
                text = f"job {job.prompt_id} was sent to {job.server}, its end is not known here: ask there"
                raise JobLost(text, view=replace(lost.view, result=None)) from lost
            raise lost
        view = JobView(job.prompt_id, record.state, result=record.result)
        if (error := error_of(view)) is not None:
            raise error
        return record.result

    async def _was_cancelled(self, job: Job) -> NoReturn:
        """A job that was taken out of the queue is forgotten by the server, but was asked for."""
        result = JobResult(job.prompt_id, JobState.CANCELLED, source="events")
        await self._record(job, result)
        error = error_of(JobView(job.prompt_id, JobState.CANCELLED, result=result))
        assert error is not None
        raise error

    async def _after_loss(self, job: Job, lost: JobLost) -> Job:
        """The job that takes the place of a lost one. Raises `lost` when there is none."""
        with self._lease.busy(job.prompt_id):
            return await self._found_after(job, lost)

    async def _found_after(self, job: Job, lost: JobLost) -> Job:
        later = await self._sender.latest(job.prompt_id)
        if later is not None and later.job.prompt_id != job.prompt_id:
            return later.job
        if later is not None and later.result is None:
            if not await self._lease.take(job):
                await anyio.sleep(ASK_EVERY)
                return job  # whoever holds it sends it, or finds out that it is lost
            if later.state is JobState.CREATED:
                return await self._sender.late(job)
        if await self._is_there(job):
            return job
        result = lost.view.result
        if result is not None and job.workflow is not None and job.attempt <= self._resubmits:
            return await self._sender.replace(job, result)
        if result is not None:
            await self._record(job, result)
        raise lost

    async def _is_there(self, job: Job) -> bool:
        """A last look: an old answer may have said that the server does not know what it was sent since."""
        with suppress(ServerError):
            there = await self.client.of(job.prompt_id, job.server)
            return (await there.poll_status(job.prompt_id)).state is not JobState.LOST
        return False

    async def _show(self, job: Job, there: ComfyClient, on_view: OnView | None) -> None:
        """Show each view, and write down that the job runs. Nobody looks: that is all there is to see."""
        if on_view is None:
            await self._runs(await there.until_running(job.prompt_id, timeout=inf))
            return
        running = False
        async with aclosing(there.watch(job.prompt_id)) as views:
            async for view in views:
                on_view(view)
                running = running or await self._runs(view)

    async def _runs(self, view: JobView) -> bool:
        if view.state is not JobState.RUNNING:
            return False
        started = Advanced(view.prompt_id, JobState.RUNNING), JobEvent(view.prompt_id, "started")
        await self.store.write(*started, lazily=True)
        return True

    async def _save(self, job: Job, result: JobResult) -> tuple[SavedFile, ...]:
        if result.outputs:
            begun = JobEvent(job.prompt_id, "download_started", {"files": len(result.outputs)})
            await self.store.write(Advanced(job.prompt_id, JobState.FINISHING), begun, lazily=True)
        folder = await self._folder_of(job)
        try:
            self._check_new(result, folder)
            there = await self.client.of(job.prompt_id, job.server)
            with self.client.while_there(job.server):
                files = await download.save_all(
                    there.source,
                    result.outputs,
                    folder,
                    limiter=self._limiters[str(there.server)],
                    mounted=self._mounted,
                )
        except DownloadError as error:
            self._made.discard(folder)
            await self.store.log(JobEvent(job.prompt_id, "download_failed", {"reason": str(error)}))
            if isinstance(error, OutputUnavailable | OutputReused):  # nobody will ever have it
                failure = JobFailure(str(error), error.output.node_id, exception_type=type(error).__name__)
                failed = replace(result, state=JobState.FAILED, failure=failure)
                await self._record(job, failed, error.saved)
            raise
        await self._record(job, result, tuple(files))
        return tuple(files)

    def _check_new(self, result: JobResult, folder: Path) -> None:
        for output in result.outputs if self._refuse_reused else ():
            if output.reused:
                reason = "ComfyUI took it from its cache of an earlier job: run it with --on-cached force"
                raise OutputReused(reason, output=output, destination=folder)

    async def earlier(self, workflow: Workflow | Mapping[str, Any]) -> RunResult | None:
        """What an earlier run of the same workflow (its digest) made, when all files of it are still there,
        byte for byte; None otherwise. No server is asked, nothing is recorded. Raises StoreError."""
        started = time.monotonic()
        for record in await self.store.succeeded(Workflow.load(workflow).digest):
            result, files = record.result, record.files
            if result is None or not files or len(files) != len(result.outputs):
                continue
            if await to_thread.run_sync(are_whole, files):
                return RunResult(record.job, result, files, time.monotonic() - started, again=True)
        return None

    async def _folder_of(self, job: Job) -> Path:
        """Where its files go; made, and rid of what killed programs left, before the first one comes. Where
        that cannot be done saving into it says why."""
        folder = self.output_dir
        if self._in_place and job.folder is not None and await anyio.Path(job.folder).is_dir():
            folder = Path(job.folder)
        if folder not in self._made:
            with suppress(OSError):
                await anyio.Path(folder).mkdir(parents=True, exist_ok=True)
            await to_thread.run_sync(sweep, folder)
            self._made.add(folder)
        return folder

    async def _ended_before(self, record: JobRecord) -> tuple[SavedFile, ...] | None:
        """The files of a job that has an outcome, if they are all still here. Raises its error."""
        result, files = record.result, record.files
        if result is None or record.state is JobState.LOST:
            return None
        if (error := error_of(JobView(record.job.prompt_id, record.state, result=result))) is not None:
            error.again = True
            raise error
        here = len(files) == len(result.outputs) and await to_thread.run_sync(are_here, files)
        return files if here else None

    # -- recording --

    async def _record(self, job: Job, result: JobResult, files: tuple[SavedFile, ...] = ()) -> None:
        """The outcome is written even when the caller has just been cancelled."""
        root = root_of(await self._folder_of(job), self._shared) if files else None
        await written(job, self.store.write(*ending(job, result, files, root=root)))
        if self._keep_content and files:
            await self.store.write(*map(Kept, files))

    async def _record_stop(self, job: Job, *, ended: bool, sent: bool) -> None:
        """Write down how a job ended that was asked to. One that never came to the server must not be sent
        later on; one that was taken out of the queue is forgotten by the server."""
        view = await (await self.client.of(job.prompt_id, job.server)).poll_status(job.prompt_id)
        result = view.result
        if view.state is JobState.LOST and (ended or not sent):
            failure = None if ended else JobFailure("it was stopped before the server had it")
            result = JobResult(job.prompt_id, JobState.CANCELLED, failure=failure, source="events")
        if result is not None and (ended or result.state is not JobState.SUCCEEDED):
            await self._record(job, result)
