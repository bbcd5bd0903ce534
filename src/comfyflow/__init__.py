"""Run ComfyUI workflows from anywhere, dependably: `ComfyClient` for one server, `ServerPool` for several,
`Runner` for a job's whole road.

Nothing is imported before it is used: `comfyflow --help` needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .archive import Archive, AssetFilter, RunFilter
    from .checking import Checker
    from .client import ComfyClient
    from .embedded import Embedded
    from .errors import (
        BadAnswer,
        ComfyflowError,
        DownloadError,
        InputUnavailable,
        JobCancelled,
        JobError,
        JobFailed,
        JobLost,
        JobTimeout,
        KeyConflict,
        NoServer,
        NotRunnable,
        NotSupported,
        OutputReused,
        OutputUnavailable,
        PostgresMissing,
        ReusedOutputGone,
        ServerError,
        ServerUnreachable,
        StoreError,
        StoreUnavailable,
        UsageError,
        WorkflowFaulty,
        WorkflowInvalid,
        WorkflowRejected,
    )
    from .journal import Journal
    from .member import Health, ServerView
    from .models import (
        Ambiguous,
        JobFailure,
        JobResult,
        JobState,
        JobView,
        MediaKind,
        OnCached,
        OnLost,
        OutputFile,
        OutputText,
        PollSchedule,
        PoolServer,
        Preview,
        SavedFile,
        Timeouts,
        UploadedFile,
    )
    from .outcome import RunResult
    from .pool import ServerPool
    from .postgres import PostgresStore
    from .runner import Runner
    from .store import Holding, Job, JobEvent, JobRecord, MemoryStore, Store, Worker
    from .workflow import Workflow

__version__ = "0.1.0"

__all__ = [
    "Ambiguous",
    "Archive",
    "AssetFilter",
    "BadAnswer",
    "Checker",
    "ComfyClient",
    "ComfyflowError",
    "DownloadError",
    "Embedded",
    "Health",
    "Holding",
    "InputUnavailable",
    "Job",
    "JobCancelled",
    "JobError",
    "JobEvent",
    "JobFailed",
    "JobFailure",
    "JobLost",
    "JobRecord",
    "JobResult",
    "JobState",
    "JobTimeout",
    "JobView",
    "Journal",
    "KeyConflict",
    "MediaKind",
    "MemoryStore",
    "NoServer",
    "NotRunnable",
    "NotSupported",
    "OnCached",
    "OnLost",
    "OutputFile",
    "OutputReused",
    "OutputText",
    "OutputUnavailable",
    "PollSchedule",
    "PoolServer",
    "PostgresMissing",
    "PostgresStore",
    "Preview",
    "ReusedOutputGone",
    "RunFilter",
    "RunResult",
    "Runner",
    "SavedFile",
    "ServerError",
    "ServerPool",
    "ServerUnreachable",
    "ServerView",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Timeouts",
    "UploadedFile",
    "UsageError",
    "Worker",
    "Workflow",
    "WorkflowFaulty",
    "WorkflowInvalid",
    "WorkflowRejected",
    "__version__",
]

_HOME = {
    "Ambiguous": "models",
    "Archive": "archive",
    "AssetFilter": "archive",
    "BadAnswer": "errors",
    "Checker": "checking",
    "ComfyClient": "client",
    "ComfyflowError": "errors",
    "DownloadError": "errors",
    "Embedded": "embedded",
    "Health": "member",
    "Holding": "store",
    "Job": "store",
    "JobCancelled": "errors",
    "JobError": "errors",
    "JobEvent": "store",
    "JobFailed": "errors",
    "JobFailure": "models",
    "JobLost": "errors",
    "JobRecord": "store",
    "JobResult": "models",
    "JobState": "models",
    "JobTimeout": "errors",
    "JobView": "models",
    "Journal": "journal",
    "InputUnavailable": "errors",
    "KeyConflict": "errors",
    "MediaKind": "models",
    "MemoryStore": "store",
    "NoServer": "errors",
    "NotRunnable": "errors",
    "NotSupported": "errors",
    "OnCached": "models",
    "OnLost": "models",
    "OutputFile": "models",
    "OutputText": "models",
    "OutputReused": "errors",
    "OutputUnavailable": "errors",
    "PollSchedule": "models",
    "PoolServer": "models",
    "PostgresMissing": "errors",
    "PostgresStore": "postgres",
    "Preview": "models",
    "ReusedOutputGone": "errors",
    "RunFilter": "archive",
    "RunResult": "outcome",
    "Runner": "runner",
    "SavedFile": "models",
    "ServerError": "errors",
    "ServerPool": "pool",
    "ServerUnreachable": "errors",
    "ServerView": "member",
    "Store": "store",
    "StoreError": "errors",
    "StoreUnavailable": "errors",
    "Timeouts": "models",
    "UploadedFile": "models",
    "UsageError": "errors",
    "Worker": "store",
    "Workflow": "workflow",
    "WorkflowFaulty": "errors",
    "WorkflowInvalid": "errors",
    "WorkflowRejected": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
