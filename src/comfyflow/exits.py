"""Exit codes of the command line: one table, from the class of an error to a number for scripts."""

from __future__ import annotations

from enum import IntEnum

from . import errors


class ExitCode(IntEnum):
    """What the command's exit code says. The numbers are a contract: they do not change."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    UNREACHABLE = 4
    LOST = 5
    CANCELLED = 6
    DOWNLOAD = 7
    DATABASE = 8
    TIMEOUT = 124
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the job failed on the server (or comfyflow itself did, which it says)",
    ExitCode.USAGE: "wrong use: an unknown option, a missing file, a bad --set, --seed or --server",
    ExitCode.REJECTED: "the workflow cannot be run: found before sending, or refused by the server",
    ExitCode.UNREACHABLE: "the server does not answer, does not let us in, is not ComfyUI, or is too old",
    ExitCode.LOST: "the server does not know the job any more",
    ExitCode.CANCELLED: "the job was cancelled",
    ExitCode.DOWNLOAD: "a file could not be saved whole, or the output folder cannot be written",
    ExitCode.DATABASE: "the record of jobs could not be read or written",
    ExitCode.TIMEOUT: "the time given with --timeout or --silence is over; the job may still run",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C or SIGTERM",
}

# Subclasses take the code of their nearest listed ancestor. ComfyflowError itself is not listed on purpose:
# a new branch of the tree has to choose its code (tests/test_exits.py).
_CODES: dict[type[BaseException], ExitCode] = {
    errors.WorkflowInvalid: ExitCode.REJECTED,
    errors.ServerError: ExitCode.UNREACHABLE,
    errors.WorkflowRejected: ExitCode.REJECTED,
    errors.JobError: ExitCode.FAILED,
    errors.JobCancelled: ExitCode.CANCELLED,
    errors.JobLost: ExitCode.LOST,
    errors.JobTimeout: ExitCode.TIMEOUT,
    errors.DownloadError: ExitCode.DOWNLOAD,
    errors.StoreError: ExitCode.DATABASE,
    errors.UsageError: ExitCode.USAGE,
    KeyboardInterrupt: ExitCode.INTERRUPTED,
}


def code_of(kind: type[BaseException]) -> ExitCode | None:
    """The code for a class of errors; None for one that nobody foresaw."""
    return next((_CODES[parent] for parent in kind.__mro__ if parent in _CODES), None)


def exit_code(error: BaseException) -> ExitCode:
    """The code for an error; FAILED for one that nobody foresaw."""
    return code_of(type(error)) or ExitCode.FAILED
