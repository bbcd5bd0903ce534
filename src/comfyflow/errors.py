"""Every error that comfyflow raises on purpose.

ComfyflowError
├─ WorkflowInvalid            .path .reason                 a fault seen without a server
│  └─ WorkflowFaulty          .faults                     a server would refuse it: all that is wrong
├─ ServerError                .method .url
│  ├─ ServerUnreachable       refused, timed out, reset
│  │  └─ NoServer             .any_up                     nobody in the pool that could run it
│  ├─ BadAnswer               .status .body                 it answered, but not as ComfyUI does
│  ├─ NotSupported            this server cannot do that
│  └─ WorkflowRejected        .error .node_errors
│     └─ NotRunnable          .missing                    no server of the pool has what it needs
├─ JobError                   .prompt_id .view
│  ├─ JobFailed               .node_id .node_type .message .traceback
│  ├─ JobCancelled
│  ├─ JobLost
│  └─ JobTimeout              also a TimeoutError
├─ DownloadError              .output .reason .saved
│  ├─ OutputReused            an earlier job's file, and a new one was asked for
│  └─ OutputUnavailable       listed by the server, but gone
│     └─ ReusedOutputGone    an earlier job's file, which ComfyUI's cache still names
├─ StoreError                                        the database refuses, or the record is wrong
│  └─ StoreUnavailable       it cannot be reached now; later it may
│     └─ PostgresMissing     there is none on this machine
└─ UsageError                a flag, a variable or a file name that cannot be used
   ├─ InputUnavailable       a file from the web that cannot be had
   └─ KeyConflict            an idempotency key that belongs to another workflow

The text of an error is one sentence that says what happened and what to do. Errors carry data, nobody has to
parse text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .models import JobFailure, JobState, JobView, OutputFile, SavedFile


class ComfyflowError(Exception):
    """Root of the tree: catch it to catch everything that comfyflow foresees.

    `prompt_id` names the job that it belongs to, where there is one.
    """

    prompt_id: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross the borders of processes, whatever their constructors want."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[ComfyflowError], args: tuple[Any, ...], state: dict[str, Any]) -> ComfyflowError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class WorkflowInvalid(ComfyflowError):
    """The workflow cannot be sent. `path` names the file or the place in the graph, `reason` says what is
    wrong."""

    def __init__(self, reason: str, *, path: str | None = None) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason, self.path = reason, path


class WorkflowFaulty(WorkflowInvalid):
    """A server would refuse the workflow. `faults` are all that is wrong with it, each with a `message`.

    Where several servers were asked, `servers` has what is wrong on each, by its URL, and `faults` are those
    of the one with the fewest.
    """

    def __init__(
        self,
        reason: str,
        *,
        faults: Sequence[Any],
        servers: Mapping[str, Sequence[Any]] | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(reason, path=path)
        self.faults, self.servers = faults, servers or {}


class ServerError(ComfyflowError):
    """A request did not do what it should. `url` carries no credentials."""

    def __init__(self, message: str, *, method: str, url: str) -> None:
        super().__init__(message)
        self.method, self.url = method, url


class ServerUnreachable(ServerError):
    """No answer. `sent` tells whether the server may have read the request all the same."""

    refused: bool = False  # the machine answered that nobody listens there: the process has ended

    def __init__(self, message: str, *, method: str, url: str, sent: bool = False) -> None:
        super().__init__(message, method=method, url=url)
        self.sent = sent


class NoServer(ServerUnreachable):
    """No server of the pool that could run the workflow answers. `any_up`: another one does."""

    def __init__(self, message: str, *, url: str, any_up: bool) -> None:
        super().__init__(message, method="POST", url=url)
        self.any_up = any_up


class BadAnswer(ServerError):
    """An answer that ComfyUI would not give, or a refusal: `status` and the first 200 characters of the
    `body`."""

    def __init__(self, message: str, *, method: str, url: str, status: int, body: str = "") -> None:
        super().__init__(message, method=method, url=url)
        self.status, self.body = status, body[:200]


class NotSupported(ServerError):
    """This server is too old for what was asked, and doing it another way would do harm."""


class WorkflowRejected(ServerError):
    """The server refused the workflow, or (`accepted`) would have run only a part of it.

    `error` is ComfyUI's own error object, `node_errors` its map from node id to what is wrong there.
    """

    def __init__(
        self,
        message: str,
        *,
        method: str,
        url: str,
        error: Mapping[str, Any],
        node_errors: Mapping[str, Any],
        accepted: bool = False,
    ) -> None:
        super().__init__(message, method=method, url=url)
        self.error, self.node_errors, self.accepted = error, node_errors, accepted


class NotRunnable(WorkflowRejected):
    """No server of the pool has what the workflow names. `missing` tells for each server what that is."""

    def __init__(self, message: str, *, url: str, missing: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message, method="POST", url=url, error={}, node_errors={})
        self.missing = missing


class JobError(ComfyflowError):
    """A job did not end in success. `view` is the last one seen. `again`: that was on record already."""

    again: bool = False

    def __init__(self, message: str, *, view: JobView) -> None:
        super().__init__(message)
        self.view, self.prompt_id = view, view.prompt_id


class JobFailed(JobError):
    """A node raised. The parts are None or empty where the server did not tell them."""

    def __init__(self, message: str, *, view: JobView, failure: JobFailure) -> None:
        super().__init__(message, view=view)
        self.node_id, self.node_type = failure.node_id, failure.node_type
        self.message, self.traceback = failure.message, failure.traceback


class JobCancelled(JobError):
    """The job was interrupted, or taken out of the queue on request."""


class JobLost(JobError):
    """The server knows nothing of the job: restarted, removed from the queue, or its history was cleared."""


class JobTimeout(JobError, TimeoutError):
    """We stopped waiting; the job itself goes on unless it is cancelled."""


def error_of(view: JobView, titles: Mapping[str, str] | None = None) -> JobError | None:
    """The error that belongs to the end of a job, None for success and for a job that has not ended."""
    if view.result is None or view.state is JobState.SUCCEEDED:
        return None
    failure = view.result.failure or JobFailure("the server gave no reason")
    if view.state is JobState.LOST:
        return JobLost(f"job {view.prompt_id} is lost: {failure.message}", view=view)
    where = _where(failure, titles or {})
    if view.state is JobState.CANCELLED:
        return JobCancelled(f"job {view.prompt_id} was cancelled{where}", view=view)
    said = next(iter(failure.message.splitlines()), "")
    said = said if failure.exception_type is None else f"{failure.exception_type}: {said}"
    return JobFailed(f"job {view.prompt_id} failed{where}: {said}", view=view, failure=failure)


def _where(failure: JobFailure, titles: Mapping[str, str]) -> str:
    if failure.node_id is None:
        return ""
    root = failure.node_id.partition(".")[0]  # a node that was expanded at run time: "5.0.0.1" came from "5"
    title = titles.get(failure.node_id) or titles.get(root) or failure.node_type or "?"
    kind = f" {failure.node_type}" if failure.node_type and failure.node_type != title else ""
    return f' at node "{title}" ({failure.node_id}{kind})'


class DownloadError(ComfyflowError):
    """A file could not be brought here whole; nothing was left under its final name. `saved` are the files of
    the same job that could."""

    saved: tuple[SavedFile, ...] = ()

    def __init__(self, reason: str, *, output: OutputFile, destination: Path | None = None) -> None:
        super().__init__(f"{output.filename!r} could not be saved: {reason}")
        self.output, self.reason, self.destination = output, reason, destination


class OutputUnavailable(DownloadError):
    """The server lists the file but no longer has it (its folder was cleaned, or a cached result is
    stale)."""


class OutputReused(DownloadError):
    """ComfyUI took the file from its cache of an earlier job, and a new one was asked for."""


class ReusedOutputGone(OutputUnavailable):
    """ComfyUI's cache names a file of an earlier job that is gone from its disk."""


class StoreError(ComfyflowError):
    """The record of jobs could not be read or written, and trying again will not help by itself."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, or cannot take anything now. What was to be written waits in the
    journal."""


class PostgresMissing(StoreUnavailable):
    """No database was named, and this machine has no PostgreSQL that could be started."""


class UsageError(ComfyflowError):
    """A setting or an argument cannot be used. Nothing was sent."""


class InputUnavailable(UsageError):
    """A file for an input cannot be had from the web: not there, too large, or inside of a network."""


class KeyConflict(UsageError):
    """The idempotency key belongs to a job with another workflow."""
