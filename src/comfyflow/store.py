"""What is remembered about jobs: the `Store` protocol, and `MemoryStore`, which forgets with the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .errors import StoreError
from .models import JobResult, JobState, SavedFile
from .workflow import Workflow


@dataclass(frozen=True, slots=True)
class Job:
    """One workflow that was, or will be, sent. `created_at` in seconds since the Unix epoch."""

    prompt_id: str
    workflow: Workflow
    client_id: str
    server: str
    created_at: float


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A line of a job's log: "submitted", "download_started", "finished", "failed", ..."""

    prompt_id: str
    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """All that a store knows of a job. `result` and `files` are set by its one outcome."""

    job: Job
    state: JobState = JobState.CREATED
    result: JobResult | None = None
    files: tuple[SavedFile, ...] = ()
    events: tuple[JobEvent, ...] = ()


class Store(Protocol):
    """Where jobs are recorded. Every method may raise StoreError; states only move forward; writing twice
    changes nothing."""

    async def add(self, job: Job) -> None:
        """Know a job before it is sent."""

    async def accepted(self, job: Job, prompt_id: str) -> None:
        """The server took the job, under this id (servers before 0.3.45 choose another one than we did)."""

    async def advance(self, prompt_id: str, state: JobState) -> None:
        """The job has got to `state`; an earlier or equal one than recorded is ignored."""

    async def log(self, event: JobEvent) -> None:
        """Add a line to the job's log."""

    async def finish(self, prompt_id: str, result: JobResult, files: tuple[SavedFile, ...]) -> None:
        """The job's one outcome, with its files. A second outcome is ignored."""

    async def get(self, prompt_id: str) -> JobRecord | None:
        """What is known of a job."""

    def unfinished(self) -> AsyncIterator[Job]:
        """Every job without an outcome, oldest first."""


class MemoryStore:
    """A store that lives as long as this object. Keeps every record, so give long programs a real one."""

    def __init__(self) -> None:
        self._records: dict[str, JobRecord] = {}

    async def add(self, job: Job) -> None:
        """See Store. Raises StoreError when the id is taken by another job."""
        if self._records.setdefault(job.prompt_id, JobRecord(job)).job != job:
            raise StoreError(f"there is already another job {job.prompt_id}: use a new prompt id")

    async def accepted(self, job: Job, prompt_id: str) -> None:
        """See Store."""
        if prompt_id not in self._records:
            record = self._record(job.prompt_id)
            del self._records[job.prompt_id]
            self._records[prompt_id] = replace(record, job=replace(job, prompt_id=prompt_id))
        await self.advance(prompt_id, JobState.QUEUED)

    async def advance(self, prompt_id: str, state: JobState) -> None:
        """See Store."""
        record = self._record(prompt_id)
        if state.rank > record.state.rank:
            self._records[prompt_id] = replace(record, state=state)

    async def log(self, event: JobEvent) -> None:
        """See Store."""
        record = self._record(event.prompt_id)
        self._records[event.prompt_id] = replace(record, events=(*record.events, event))

    async def finish(self, prompt_id: str, result: JobResult, files: tuple[SavedFile, ...]) -> None:
        """See Store."""
        record = self._record(prompt_id)
        if record.result is None:
            self._records[prompt_id] = replace(record, state=result.state, result=result, files=files)

    async def get(self, prompt_id: str) -> JobRecord | None:
        """See Store."""
        return self._records.get(prompt_id)

    async def unfinished(self) -> AsyncIterator[Job]:
        """See Store."""
        for record in list(self._records.values()):
            if record.result is None:
                yield record.job

    def _record(self, prompt_id: str) -> JobRecord:
        if (record := self._records.get(prompt_id)) is None:
            raise StoreError(f"no job {prompt_id} is recorded")
        return record
