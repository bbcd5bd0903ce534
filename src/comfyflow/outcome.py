"""What became of a job: the value that callers get, and what can be asked about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isinf
from pathlib import Path

import anyio

from .errors import ComfyflowError
from .models import JobResult, JobState, SavedFile
from .store import Job, JobRecord
from .verify import sha256_of


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a job. `error` is None for success; `elapsed` in seconds from the call to the last
    file. `again`: it was on record already, with its files, and nothing was done."""

    job: Job
    result: JobResult | None
    files: tuple[SavedFile, ...] = ()
    elapsed: float = 0.0
    error: ComfyflowError | None = None
    again: bool = False

    @property
    def prompt_id(self) -> str:
        """The job's id on the server."""
        return self.job.prompt_id


def never_ran(record: JobRecord) -> bool:
    """Whether a job ended without ever having come to the server."""
    return record.state is JobState.FAILED and all(event.kind != "submitted" for event in record.events)


def are_here(files: Iterable[SavedFile]) -> bool:
    """Whether all of them are where they were saved, in their size. Looks at the disk."""
    try:
        return all(file.path.stat().st_size == file.size for file in files)
    except OSError:
        return False


def are_whole(files: Iterable[SavedFile]) -> bool:
    """Whether all of them are where they were saved, byte for byte (SHA-256). Reads them."""
    try:
        return all(sha256_of(file.path) == file.sha256 for file in files)
    except OSError:
        return False


def root_of(output_dir: Path, shared: Path | str | None) -> Path:
    """What recorded paths are relative to."""
    inside = shared is not None and output_dir.absolute().is_relative_to(Path(shared).absolute())
    return Path(shared).absolute() if shared is not None and inside else output_dir.absolute()


def seconds_left(scope: anyio.CancelScope) -> float | None:
    """Seconds until the scope's deadline, None without one."""
    return None if isinf(scope.deadline) else max(0.0, scope.deadline - anyio.current_time())


@contextmanager
def named(job: Job) -> Iterator[None]:
    """An error that passes through tells which job it belongs to."""
    try:
        yield
    except ComfyflowError as error:
        error.prompt_id = error.prompt_id or job.prompt_id
        raise
