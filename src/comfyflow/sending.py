"""One job onto a server: recorded before it leaves, once under a key, and on to the next server while it is
certain that this one does not have it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5
from weakref import WeakValueDictionary

import anyio

from .client import ComfyClient
from .errors import (
    BadAnswer,
    ComfyflowError,
    KeyConflict,
    NoServer,
    OutputUnavailable,
    ReusedOutputGone,
    ServerUnreachable,
    StoreError,
    UsageError,
    WorkflowRejected,
)
from .lease import Lease
from .models import Ambiguous, JobFailure, JobResult, JobState
from .outcome import never_ran
from .pool import ServerPool
from .shield import to_the_end
from .store import RESUBMITTED, Accepted, IdTaken, Job, JobEvent, JobRecord, Moved, Store, ending
from .submit import key_id
from .workflow import Workflow

ASK_EVERY = 0.25  # s between looks at a job that another program is about to send
FRESH = 10_000  # jobs of which it is remembered that they have just been sent
LAST_WORDS = 30.0  # s for writing down an outcome although the caller was cancelled; stores give up sooner


async def written(job: Job, writing: Coroutine[Any, Any, None]) -> None:
    """Write something down to the end, also when the caller has just been cancelled. Raises StoreError."""
    try:
        await to_the_end(writing, LAST_WORDS)
    except TimeoutError as error:
        text = f"the outcome of job {job.prompt_id} could not be recorded in {LAST_WORDS:g} s"
        raise StoreError(text) from error


@dataclass(slots=True)
class _Way:
    """How far a job has come: whether it is recorded, for the server in `job`, where it was in vain, and what
    the last of these said."""

    job: Job
    tried: set[str]
    recorded: bool
    answer: BadAnswer | None = None


class Sender:
    """Record jobs and send them. `folder` is where their files are to go; `on_job` is told of each job before
    it is sent, and again when a server has taken it."""

    def __init__(
        self,
        client: ComfyClient | ServerPool,
        store: Store,
        lease: Lease,
        *,
        folder: Path,
        on_job: Callable[[Job], None],
        allow_partial: bool,
        check: Callable[[Workflow], Awaitable[None]] | None = None,
        fresh: bool = False,
    ) -> None:
        self._client, self._store, self._lease = client, store, lease
        self._folder, self._on_job, self._allow_partial = str(folder.absolute()), on_job, allow_partial
        self._check, self._fresh_files = check, fresh
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._one = client.addresses[0] if len(client.addresses) == 1 else ""
        self._fresh: dict[str, None] = {}

    def made(self, workflow: Workflow, key: str | None = None) -> Job:
        """A new job. Which server of several it goes to is not known yet."""
        prompt_id = str(uuid4()) if key is None else key_id(key)
        return Job(prompt_id, workflow, "", self._one, time.time(), key, folder=self._folder)

    def just_sent(self, prompt_id: str) -> bool:
        """Whether we have sent a job a moment ago, so that the record tells nothing new. Told once."""
        return prompt_id in self._fresh and self._fresh.pop(prompt_id) is None

    def lock(self, prompt_id: str) -> asyncio.Lock:
        """Held while a job is being sent, or cancelled."""
        return self._locks.setdefault(prompt_id, asyncio.Lock())

    def is_here(self, job: Job) -> bool:
        """Whether what its server says of a job, or does not say any more, is the truth."""
        return job.server in self._client.addresses

    async def latest(self, prompt_id: str) -> JobRecord | None:
        """The record of a job, or of what replaced it; None also when it cannot be read."""
        with suppress(StoreError):
            return await self._latest(prompt_id)
        return None

    # -- new jobs --

    async def submit(self, job: Job, redo: Collection[JobState] = ()) -> Job:
        """Record a job and send it; see `Runner.submit`."""
        with self._lease.busy(job.prompt_id):
            if job.key is None:
                return await self._dispatch(job)
            return await self._once(job, redo)

    async def _once(self, job: Job, redo: Collection[JobState]) -> Job:
        """The job of a key: whoever writes its row first sends it."""
        try:
            record = await self._of_key(job)
            # Of several servers all would have to be asked, for each job: a record that lasts is enough.
            certain = record is None and self._store.lasting and not self._one
            if not certain and (record is None or never_ran(record)):
                await self._ask_for_key(job, record)
            if record is not None and (never_ran(record) or _to_redo(record, redo)):
                return await self.replace(record.job)
        except StoreError as error:
            self._check_risk(job, error)
            return await self._dispatch(job, doubt=True)
        return await self._dispatch(job) if record is None else await self._known(job, record)

    async def _dispatch(self, job: Job, *, doubt: bool = False, tried: Collection[str] = ()) -> Job:
        """Find a server for a job, record it there, and send it. With `doubt` it may have been sent there
        before. A recorded one that was `tried` elsewhere is moved."""
        way, first = _Way(job, set(tried), recorded=bool(tried)), not (doubt or tried)
        if first and self._check is not None and job.workflow is not None:
            await self._check(job.workflow)  # nothing is recorded yet of what is refused here
        found: Job | JobRecord | None = None
        while found is None:
            found = await self._on_the_way(way, doubt=doubt, first=first)
        return found if isinstance(found, Job) else await self._known(way.job, found)

    async def _on_the_way(self, way: _Way, *, doubt: bool, first: bool) -> Job | JobRecord | None:
        """Try the next server; None when that certainly does not have the job."""
        try:
            return await self._go(way, doubt=doubt)
        except ComfyflowError as error:
            if not self._may_move(way.job, error, doubt=doubt):
                return await self._unmoved(way, error, first=first)
            way.answer = error if isinstance(error, BadAnswer) else way.answer
            self._client.suspect(way.job.server, answered=isinstance(error, BadAnswer))
        way.tried.add(way.job.server)
        return None

    async def _unmoved(self, way: _Way, error: ComfyflowError, *, first: bool) -> Job:
        """A job that goes nowhere else: raises `error`, unless that can be mended now."""
        if way.answer is not None and isinstance(error, NoServer):
            error = way.answer  # that says more than that there is no other server
        if way.recorded:
            await self._give_up(way.job, error, first=first)
            if await self._is_decided(way.job, error):
                return await self._again(way.job)
        raise error

    async def _go(self, way: _Way, *, doubt: bool) -> Job | JobRecord:
        """Once to the next server. Gives what is recorded when somebody else was quicker."""
        assert way.job.workflow is not None
        async with self._client.placed(way.job.workflow, besides=way.tried) as there:
            way.job = job = replace(way.job, server=str(there.server), client_id=there.client_id)
            if way.recorded:
                await self._store.write(Moved(job))
            elif (record := await self._added(job, doubt=doubt)) is not None:
                return record
            way.recorded = True
            return await self._send(job, there, maybe_sent=doubt)

    async def _added(self, job: Job, *, doubt: bool) -> JobRecord | None:
        """Record a new job, held by us. Gives what is recorded when somebody else was quicker."""
        if job.key is None or doubt:
            await self._store.write(*self._lease.added(job))
            return None
        try:
            with suppress(IdTaken):  # by another workflow with this key, a moment ago: the record tells
                if await self._store.write_new(*self._lease.added(job)):
                    return None
            record = await self._of_key(job)
        except StoreError as error:
            self._check_risk(job, error)
            await self._store.write(*self._lease.added(job))
            return None
        # Another program may have added it, or another task, for another server of the pool.
        mine = record is None or (self._lease.has(record) and record.job.server == job.server)
        return None if mine else record

    async def _known(self, job: Job, record: JobRecord) -> Job:
        """A job that is recorded: sent by us if nobody else does."""
        try:
            while not (mine := await self._may_send(record)) and record.state is JobState.CREATED:
                await anyio.sleep(ASK_EVERY)  # another program is about to send it, or dies
                record = await self._of_key(job) or record
        except StoreError as error:
            self._check_risk(job, error)
            mine = True
        return await self.late(record.job) if mine else record.job

    def _check_risk(self, job: Job, error: StoreError) -> None:
        """Without the record a job may be sent twice: only where that was asked for."""
        if job.key is None or self._client.ambiguous is Ambiguous.RESEND:
            return
        text = f"{error}; nothing was sent, for the key {job.key!r} may have been used before"
        raise type(error)(text) from error

    async def _ask_for_key(self, job: Job, record: JobRecord | None) -> None:
        """Before anything is written: a server may know the key from a time without this record."""
        assert job.workflow is not None and job.key is not None
        if await self._client.remembers(job.workflow, job.key) and record is not None:
            text = f"the key {job.key!r} belongs to job {job.prompt_id}, which ran without this record"
            raise KeyConflict(f"{text}: `comfyflow download {job.prompt_id} DIR` gets its files")

    async def _may_send(self, record: JobRecord) -> bool:
        if record.state is JobState.CREATED and not self.is_here(record.job):
            job = record.job
            text = f"the key {job.key!r} belongs to job {job.prompt_id}, which {job.server} may have"
            raise KeyConflict(f"{text}: run it there")
        return record.state is JobState.CREATED and await self._lease.take(record.job)

    async def _of_key(self, job: Job) -> JobRecord | None:
        """What is recorded under the key of `job`, or in place of that. Raises KeyConflict, StoreError."""
        record = await self._latest(job.prompt_id)
        there = None if record is None else record.job.workflow
        if there is not None and job.workflow is not None and there.digest != job.workflow.digest:
            text = f"the key {job.key!r} belongs to job {job.prompt_id}, which has another workflow"
            raise KeyConflict(f"{text}: use a new key")
        return record

    async def _latest(self, prompt_id: str) -> JobRecord | None:
        return await self._store.latest(prompt_id)

    # -- jobs that are recorded --

    async def late(self, job: Job) -> Job:
        """Send a job that is recorded, and that a program may have sent before it stopped. Raises what
        `Runner.submit` raises; where its server is away, and does not refuse connections, it is left open for
        later."""
        if not self.is_here(job):
            raise KeyConflict(
                f"job {job.prompt_id} is recorded for {job.server}, which may have it: run it there"
            )
        with self._lease.busy(job.prompt_id):
            try:
                return await self._again(job)
            except ServerUnreachable as error:
                if not await self._is_decided(job, error):
                    raise
            return await self._again(job)

    async def _is_decided(self, job: Job, error: ComfyflowError) -> bool:
        """Whether its server, which gave no answer, is back by now, or gone. Where that will come out soon it
        is waited for."""
        unheard = isinstance(error, ServerUnreachable) and not isinstance(error, NoServer)
        return unheard and await self._client.decided(job.server)

    async def _again(self, job: Job) -> Job:
        """Send a recorded job to its server, or, when that is gone, to another one."""
        try:
            if not self._client.departed(job.server):
                there = await self._client.of(job.prompt_id, job.server)
                return await self._send(job, there, maybe_sent=True)
        except ComfyflowError as error:
            if not self._may_move(job, error, doubt=True):
                await self._give_up(job, error, first=False)
                raise
        return await self._dispatch(job, tried={job.server})

    async def replace(self, job: Job, lost: JobResult | None = None) -> Job:
        """Send a job again under a new id, which all programs would choose; its outcome `lost` is written
        together with the new row."""
        assert job.workflow is not None
        again = str(uuid5(NAMESPACE_URL, f"comfyflow:again:{job.prompt_id}"))
        new = replace(self.made(job.workflow), prompt_id=again, key=job.key)
        new = replace(new, replaces=job.prompt_id, attempt=job.attempt + 1)
        with self._lease.busy(new.prompt_id):
            if (sent := await self._replaced(job, new, lost)) is not None:
                return sent
        later = await self.latest(job.prompt_id)
        if later is None or (later.job.prompt_id == job.prompt_id and later.result is None):
            raise StoreError(f"job {job.prompt_id} is not sent again: that could not be recorded")
        return later.job

    async def _replaced(self, job: Job, new: Job, lost: JobResult | None) -> Job | None:
        """The new job, sent; None when somebody else has it."""
        assert new.workflow is not None
        told = JobEvent(job.prompt_id, RESUBMITTED, {"as": new.prompt_id})
        outcome = () if lost is None else ending(job, lost)
        async with self._client.placed(new.workflow) as there:
            new = replace(new, server=str(there.server), client_id=there.client_id)
            with suppress(StoreError):  # somebody else was quicker: then it is not ours
                await written(job, self._store.write(*outcome, *self._lease.added(new), told))
            # Where that cannot be asked the new row waits in the journal, and `resume` sends it.
            if not await self._lease.take(new):
                return None
            record = None if self._one else await self._store.get(new.prompt_id)
            new = new if record is None else record.job
        if self._client.ambiguous is Ambiguous.FAIL:  # a search would be doubt already
            there = await self._client.of(new.prompt_id, new.server)
            return await self._send_or_give_up(new, there)
        return await self.late(new)

    async def _send_or_give_up(self, job: Job, there: ComfyClient) -> Job:
        try:
            return await self._send(job, there, maybe_sent=False)
        except ComfyflowError as error:
            await self._give_up(job, error, first=False)
            raise

    # -- one request --

    async def _send(self, job: Job, there: ComfyClient, *, maybe_sent: bool) -> Job:
        """`maybe_sent`: somebody may have tried before."""
        if job.workflow is None:
            raise StoreError(f"job {job.prompt_id} cannot be sent: its graph was never recorded")
        lock = self.lock(job.prompt_id)
        contended = lock.locked()  # another task of this program: a `resume` beside a `run` of the same key
        async with lock:
            record = await self._store.get(job.prompt_id) if contended else None
            if record is not None and record.state is not JobState.CREATED:
                return record.job
            return await self._send_now(job, job.workflow, there, maybe_sent=maybe_sent)

    async def _send_now(self, job: Job, workflow: Workflow, there: ComfyClient, *, maybe_sent: bool) -> Job:
        key = job.key if job.key is not None and job.prompt_id == key_id(job.key) else None
        self._on_job(job)
        prompt_id = await there.submit_workflow(
            workflow,
            prompt_id=None if key else job.prompt_id,
            idempotency_key=key,  # where the record is away the server is asked for it
            allow_partial=self._allow_partial,
            # What takes the place of a lost job, or of files that are gone, must not be cached again.
            fresh=self._fresh_files or job.replaces is not None,
            maybe_sent=maybe_sent,
            before_send=partial(self._check_held, job),
        )
        told = JobEvent(prompt_id, "submitted", {"server": job.server})
        await self._store.write(Accepted(job, prompt_id), told)
        accepted = replace(job, prompt_id=prompt_id)
        if job.key is not None:
            self._remember(prompt_id)
        self._on_job(accepted)
        return accepted

    def _remember(self, prompt_id: str) -> None:
        self._fresh[prompt_id] = None
        if len(self._fresh) > FRESH:
            del self._fresh[next(iter(self._fresh))]

    async def _check_held(self, job: Job) -> None:
        if not await self._lease.holds(job):
            raise StoreError(f"job {job.prompt_id} is not sent: another program has taken it over meanwhile")

    def _may_move(self, job: Job, error: ComfyflowError, *, doubt: bool) -> bool:
        """Whether another server may get the job: this one cannot have it, or has ended and lost it."""
        if self._one or isinstance(error, NoServer):
            return False
        if isinstance(error, BadAnswer):
            return not doubt  # `send_once` raises that where the server surely has not got it
        if not isinstance(error, ServerUnreachable):
            return False
        return not (error.sent or doubt) or self._client.departed(job.server)

    async def _give_up(self, job: Job, error: ComfyflowError, *, first: bool) -> None:
        """Only on the `first` attempt is a server that is away an outcome; else the job is left open for
        later."""
        error.prompt_id = error.prompt_id or job.prompt_id
        if isinstance(error, StoreError):
            return  # another program sends it
        unsure = isinstance(error, ServerUnreachable) and error.sent
        if isinstance(error, WorkflowRejected | UsageError) or (first and not unsure):
            failure = JobFailure(str(error), exception_type=type(error).__name__)
            failed = JobResult(job.prompt_id, JobState.FAILED, failure=failure)
            await written(job, self._store.write(*ending(job, failed)))


_GONE = (OutputUnavailable.__name__, ReusedOutputGone.__name__)


def _to_redo(record: JobRecord, redo: Collection[JobState]) -> bool:
    """Whether a job ended in a way that is not to stay so. What its server has lost of it, and be it the
    files, is lost."""
    failure = None if record.result is None else record.result.failure
    gone = failure is not None and failure.exception_type in _GONE
    return record.state in redo or (gone and JobState.LOST in redo)
