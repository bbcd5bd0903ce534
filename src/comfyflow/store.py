"""What is remembered about jobs: the entries that are written, the `Store` protocol, and `MemoryStore`,
which forgets with the process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, assert_never
from uuid import NAMESPACE_URL, uuid4, uuid5

from .errors import StoreError
from .models import JobResult, JobState, SavedFile
from .workflow import Workflow


@dataclass(frozen=True, slots=True)
class Job:
    """One workflow that was, or will be, sent. `created_at` in seconds since the Unix epoch.

    `workflow` is None for a job that somebody else sent and whose graph the server no longer tells. `key` is
    the caller's idempotency key. A job that was lost and sent again is `replaces`d by a new one, whose
    `attempt` is one higher. `folder` is where its files were to go on the machine that sent it.
    """

    prompt_id: str
    workflow: Workflow | None
    client_id: str
    server: str
    created_at: float
    key: str | None = None
    replaces: str | None = None
    attempt: int = 1
    folder: str | None = None

    @property
    def prompt_text(self) -> str | None:
        """The positive prompt of its workflow, one text a line; None where there is none, or no workflow."""
        return None if self.workflow is None else self.workflow.prompt_text


@dataclass(frozen=True, slots=True)
class Worker:
    """A program at work on jobs. While it lives it renews its lease, and nobody else takes its jobs.

    `host` and `pid` are for people. `place` lets others on the same machine see whether its process still
    runs; None where that cannot be told.
    """

    id: str
    host: str
    pid: int
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """How many jobs without an outcome a worker holds. `left`: seconds until its lease ends, 0 when it has
    ended."""

    worker: Worker
    jobs: int
    left: float


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A line of a job's log: "submitted", "download_started", "finished", "failed", ...

    `at` (seconds since the Unix epoch) and `event_id` come by themselves; an event that is written twice is
    there once.
    """

    prompt_id: str
    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time, compare=False)
    event_id: str = field(default_factory=lambda: str(uuid4()), compare=False)


class IdTaken(StoreError):
    """Another job has this prompt id. Nothing of the new one was recorded."""


RESUBMITTED = "resubmitted"  # the event of a lost job that was sent again


@dataclass(frozen=True, slots=True)
class Alive:
    """The worker holds its jobs for `seconds` more, from the moment in which this is written."""

    worker: Worker
    seconds: float


@dataclass(frozen=True, slots=True)
class Added:
    """A job is known before it is sent. It is held by `worker` unless somebody else knew it before.

    One that `replaces` a job which has just turned out to have another end than the one that is written here
    is not added.
    """

    job: Job
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server took the job, under the id `prompt_id` (servers before 0.3.45 choose another one)."""

    job: Job
    prompt_id: str
    at: float = field(default_factory=time.time, compare=False)


@dataclass(frozen=True, slots=True)
class Moved:
    """A job that has not been sent is to go to another server: `server` and `client_id` of `job` take the
    place of those recorded. Nothing changes once it has been sent. What says that it was is another write."""

    job: Job


@dataclass(frozen=True, slots=True)
class Advanced:
    """The job has got to `state`."""

    prompt_id: str
    state: JobState
    at: float = field(default_factory=time.time, compare=False)


@dataclass(frozen=True, slots=True)
class Finished:
    """The job's one outcome, with its files.

    `root` is the folder that paths are told relative to, so that others who mount it find them; None means
    the folder of each file.
    """

    job: Job
    result: JobResult
    files: tuple[SavedFile, ...] = ()
    root: Path | None = None
    at: float = field(default_factory=time.time, compare=False)


@dataclass(frozen=True, slots=True)
class Kept:
    """The bytes of this file are to be in the database too."""

    file: SavedFile


Entry = Alive | Added | Moved | Accepted | Advanced | JobEvent | Finished | Kept


@dataclass(frozen=True, slots=True)
class JobRecord:
    """All that a store knows of a job. `result` and `files` are set by its one outcome. `worker` is the id of
    who was the last to hold it."""

    job: Job
    state: JobState = JobState.CREATED
    result: JobResult | None = None
    files: tuple[SavedFile, ...] = ()
    events: tuple[JobEvent, ...] = ()
    worker: str | None = None


class Store(Protocol):
    """Where jobs are recorded. Every method may raise StoreError; states only move forward; writing twice
    changes nothing. To make one, subclass it and give it `write`, `get` and `unfinished`.

    One that is `lasting` knows every job of every program that uses it, from before too."""

    @property
    def lasting(self) -> bool:
        """Whether it outlives this process."""
        return False

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        """Write entries, in this order, all or none. `lazily`: soon is enough, together with what comes
        next. Raises StoreError for a job that was never added."""

    async def write_new(self, *entries: Entry) -> bool:
        """Write entries, one of which is Added; whether it is certain that nobody knew that job before, and
        that all who ask hear of it from now on. Where nobody can tell, False. Raises what `write` does."""
        await self.write(*entries)
        return False

    async def get(self, prompt_id: str) -> JobRecord | None:
        """What is known of a job."""

    def unfinished(self) -> AsyncIterator[Job]:
        """Every job without an outcome, oldest first."""

    # Who works on what. These are for stores that several programs share; the others need not bother.

    async def renew(self, worker: Worker, seconds: float) -> None:
        """The worker lives: it holds its jobs for `seconds` more. Raises StoreError; is never journalled."""
        assert seconds > 0

    async def retire(self, worker: Worker) -> None:
        """The worker has stopped: whatever it held is free. Raises StoreError."""
        assert worker.id

    async def take(self, prompt_id: str, worker: Worker, *, dead: Collection[str] = ()) -> bool:
        """Hold one job that has no outcome, unless a living worker other than this one does (`dead`: ids of
        those who are known not to live). False when it is held, has ended, or is not known. Raises
        StoreError."""
        record = await self.get(prompt_id)
        return record is not None and record.result is None

    async def claim(
        self,
        worker: Worker,
        server: str,
        *,
        limit: int,
        busy: Collection[str] = (),
        dead: Collection[str] = (),
    ) -> list[JobRecord]:
        """Hold up to `limit` jobs of this server that have no outcome and no living worker but this one,
        oldest first, except those in `busy`, and return them with their states (not their files and events).

        Of several who do so at once only one gets a job. Raises StoreError.
        """
        found: list[JobRecord] = []
        async for job in self.unfinished():
            if len(found) == limit:
                break
            record = await self.get(job.prompt_id)
            if record is not None and job.server == server and job.prompt_id not in busy:
                found.append(record)
        return found

    async def holders(self, server: str) -> list[Holding]:
        """Who holds jobs of this server that have no outcome. Raises StoreError."""
        return []

    async def successor(self, prompt_id: str) -> JobRecord | None:
        """The job that replaces this one, at the end of the chain; None when there is none. Raises
        StoreError."""
        return None

    async def succeeded(self, digest: str, limit: int = 5) -> list[JobRecord]:
        """Jobs with this workflow that ended in success, newest first, at most `limit`. Raises StoreError."""
        return []

    async def latest(self, prompt_id: str) -> JobRecord | None:
        """The job that replaces this one, at the end of the chain, or where nothing does, this one; None when
        it is not known. Raises StoreError."""
        return await self.successor(prompt_id) or await self.get(prompt_id)

    async def add(self, job: Job) -> None:
        """Know a job before it is sent. Raises StoreError when the id is taken by another job."""
        await self.write(Added(job))

    async def accepted(self, job: Job, prompt_id: str) -> None:
        """The server took the job, under this id (servers before 0.3.45 choose another one than we did)."""
        await self.write(Accepted(job, prompt_id))

    async def advance(self, prompt_id: str, state: JobState) -> None:
        """The job has got to `state`; an earlier or equal one than recorded is ignored."""
        await self.write(Advanced(prompt_id, state))

    async def log(self, event: JobEvent) -> None:
        """Add a line to the job's log."""
        await self.write(event)

    async def finish(
        self, job: Job, result: JobResult, files: tuple[SavedFile, ...] = (), *, root: Path | None = None
    ) -> None:
        """The job's one outcome, with its files and a line in its log; a second outcome is ignored."""
        await self.write(*ending(job, result, files, root=root))


def ending(
    job: Job, result: JobResult, files: tuple[SavedFile, ...] = (), *, root: Path | None = None
) -> tuple[Finished, JobEvent]:
    """An outcome and its line in the log: what `Store.finish` writes in one transaction."""
    kind = "finished" if result.state is JobState.SUCCEEDED else result.state.value
    told = result.failure
    detail: dict[str, Any] = {"files": len(files)} if told is None else {"reason": told.message}
    line = JobEvent(job.prompt_id, kind, detail, event_id=outcome_id(job.prompt_id))
    return Finished(job, result, files, root), line


@lru_cache(maxsize=1024)  # a job's is asked for several times
def outcome_id(prompt_id: str) -> str:
    """The `event_id` of a job's outcome: always the same, so that there is one line, whoever writes it."""
    return str(uuid5(NAMESPACE_URL, f"comfyflow:outcome:{prompt_id}"))


def _ids(entry: Entry) -> tuple[str, ...]:
    """The jobs that an entry is about."""
    match entry:
        case Accepted(job, prompt_id):
            return job.prompt_id, prompt_id
        case Added(job) | Moved(job) | Finished(job):
            return (job.prompt_id,)
        case Advanced(prompt_id) | JobEvent(prompt_id):
            return (prompt_id,)
        case Alive() | Kept():
            return ()
        case _:
            assert_never(entry)


def _falls_with(entry: Entry, late: Collection[str]) -> bool:
    """Whether an entry goes without saying once the outcome of one of the jobs `late` has come too late."""
    match entry:
        case Added(job):
            return job.replaces in late
        case JobEvent(prompt_id, kind):
            told = kind == RESUBMITTED or entry.event_id == outcome_id(prompt_id)
            return told and prompt_id in late
    return False


class MemoryStore(Store):
    """A store that lives as long as this object. Keeps every record, so give long programs a real one."""

    def __init__(self) -> None:
        self._records: dict[str, JobRecord] = {}
        self._after: dict[str, set[str]] = {}  # what replaces a job; more than one only while writing

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        """See Store. `lazily` makes no difference here."""
        before = {prompt_id: self._records.get(prompt_id) for entry in entries for prompt_id in _ids(entry)}
        late = {
            entry.job.prompt_id
            for entry in entries
            if isinstance(entry, Finished) and self._has_another_end(entry)
        }
        try:
            for entry in entries:
                if not _falls_with(entry, late):
                    self._write(entry)
            for entry in entries:
                self._check_chain(entry)
        except StoreError:
            for prompt_id, record in before.items():
                self._drop(prompt_id)
                if record is not None:
                    self._put(record)
            raise

    async def get(self, prompt_id: str) -> JobRecord | None:
        """See Store."""
        return self._records.get(prompt_id)

    async def successor(self, prompt_id: str) -> JobRecord | None:
        """See Store."""
        found: JobRecord | None = None
        while following := self._after.get(prompt_id):
            (prompt_id,) = following
            found = self._records[prompt_id]
        return found

    async def succeeded(self, digest: str, limit: int = 5) -> list[JobRecord]:
        """See Store."""
        found = [
            record
            for record in reversed(self._records.values())
            if record.state is JobState.SUCCEEDED
            and record.job.workflow is not None
            and record.job.workflow.digest == digest
        ]
        return found[:limit]

    async def unfinished(self) -> AsyncIterator[Job]:
        """See Store."""
        records = sorted(self._records.values(), key=lambda record: record.job.created_at)
        for record in records:
            if record.result is None:
                yield record.job

    def _write(self, entry: Entry) -> None:
        match entry:
            case Added(job, worker):
                self._add(job, worker)
            case Moved(job):
                self._move(job)
            case Accepted(job, prompt_id):
                self._accept(job, prompt_id)
            case Advanced(prompt_id, state):
                self._advance(prompt_id, state)
            case JobEvent():
                self._log(entry)
            case Finished(job, result, files):
                self._finish(job.prompt_id, result, files)

    def _has_another_end(self, entry: Finished) -> bool:
        """Whether this is a second outcome, other than the first."""
        record = self._records.get(entry.job.prompt_id)
        return record is not None and record.state.terminal and record.state is not entry.result.state

    def _check_chain(self, entry: Entry) -> None:
        """A job is replaced once, and is there."""
        before = entry.job.replaces if isinstance(entry, Added) else None
        if before is None:
            return
        self._record(before)
        if len(self._after.get(before, ())) > 1:
            raise StoreError(f"job {before} was already replaced by another one: look at that one")

    def _add(self, job: Job, worker: str | None) -> None:
        record = self._records.get(job.prompt_id) or JobRecord(job, worker=worker)
        known = record.job
        filled = replace(
            known,
            workflow=known.workflow or job.workflow,
            client_id=known.client_id or job.client_id,
            key=known.key or job.key,
            replaces=known.replaces or job.replaces,
            folder=known.folder or job.folder,
        )
        if filled.workflow and job.workflow and filled.workflow.digest != job.workflow.digest:
            raise IdTaken(f"there is already another job {job.prompt_id}: use a new prompt id")
        self._put(replace(record, job=filled))

    def _move(self, job: Job) -> None:
        record = self._record(job.prompt_id)
        if record.state is JobState.CREATED:
            moved = replace(record.job, server=job.server, client_id=job.client_id)
            self._put(replace(record, job=moved))

    def _accept(self, job: Job, prompt_id: str) -> None:
        if prompt_id not in self._records:
            record = self._record(job.prompt_id)
            self._drop(job.prompt_id)
            self._put(replace(record, job=replace(record.job, prompt_id=prompt_id)))
        self._advance(prompt_id, JobState.QUEUED)

    def _advance(self, prompt_id: str, state: JobState) -> None:
        record = self._record(prompt_id)
        if state.rank > record.state.rank:
            self._put(replace(record, state=state))

    def _log(self, event: JobEvent) -> None:
        record = self._record(event.prompt_id)
        if event.event_id not in {known.event_id for known in record.events}:
            self._put(replace(record, events=(*record.events, event)))

    def _finish(self, prompt_id: str, result: JobResult, files: tuple[SavedFile, ...]) -> None:
        record = self._record(prompt_id)
        if record.result is None:
            self._put(replace(record, state=result.state, result=result, files=files))

    def _put(self, record: JobRecord) -> None:
        self._records[record.job.prompt_id] = record
        if record.job.replaces is not None:
            self._after.setdefault(record.job.replaces, set()).add(record.job.prompt_id)

    def _drop(self, prompt_id: str) -> None:
        record = self._records.pop(prompt_id, None)
        if record is not None and record.job.replaces is not None:
            self._after[record.job.replaces].discard(prompt_id)

    def _record(self, prompt_id: str) -> JobRecord:
        if (record := self._records.get(prompt_id)) is None:
            raise StoreError(f"no job {prompt_id} is recorded: add it first")
        return record
