"""What commands that run jobs share: the open record, and how a result is told when that has a fault."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import report
from ..console import Call, tell
from ..errors import DownloadError, StoreUnavailable
from ..exits import exit_code
from ..models import OutputFile, PollSchedule

if TYPE_CHECKING:
    from ..recording import Recording

OFTEN = PollSchedule(ceiling=5.0)  # for jobs that no socket tells of


class Named(Protocol):
    """Options that name a database."""

    @property
    def database(self) -> str | None: ...

    def environment(self) -> Mapping[str, str]: ...


class OutputFolderUnusable(DownloadError):
    """The folder for results cannot be written; found before anything was sent."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(reason, output=OutputFile("", folder.name), destination=folder)
        self.args = (f"the output folder {folder} cannot be used: {reason}; name another one with --output",)


@asynccontextmanager
async def recorded(call: Call, options: Named, *, required: bool = False) -> AsyncIterator[Recording]:
    """What the jobs of a command are recorded in. When that is only the journal, a line on stderr says why.

    A database that cannot be used is no reason to stop a job (see `answer`), unless it is `required`: then
    StoreError is raised.
    """
    from ..recording import recording

    async with AsyncExitStack() as stack:
        record = await stack.enter_async_context(recording(options.environment(), options.database))
        before = record.fault
        if required and before is not None:
            raise before
        _warn(record)
        try:
            yield record
        finally:
            await stack.aclose()  # which writes what was still to be written
            call.known["recorded"] = record.where
            if before is None and isinstance(record.fault, StoreUnavailable):
                _warn(record)


def _warn(record: Recording) -> None:
    if record.lost is not None:
        tell([f"comfyflow: {report.printable(record.lost)}; until then nothing is recorded"])
    elif record.fault is not None:
        tell([f"comfyflow: {report.printable(record.fault)}; until then the journal keeps the record"])


def answer(call: Call, record: Recording, document: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Print the result. A database that refuses makes the exit code that of the refusal, although the job is
    done: trying again will not help, somebody has to look."""
    fault = None if isinstance(record.fault, StoreUnavailable) else record.fault
    error = {} if fault is None else {"error": report.error_document(fault)}
    call.answer({**document, **error, "recorded": record.where}, lines)
    if fault is not None:
        place = "anywhere" if record.lost is not None else "in the database"
        tell([f"comfyflow: the job is done, but not recorded {place}: {report.printable(fault)}"])
        raise SystemExit(int(exit_code(fault)))


def check_folder(folder: Path) -> None:
    """Make the folder and write to it, before anything is sent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"comfyflow")
    except (OSError, ValueError) as error:
        raise OutputFolderUnusable(folder, getattr(error, "strerror", None) or str(error)) from error
