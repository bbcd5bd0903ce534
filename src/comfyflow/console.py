"""How a command speaks and how it ends: results on stdout, messages on stderr, exit codes, signals."""

# ruff: noqa: PLC0415 - rich takes 0.13 s to import and is needed on a terminal only

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO, TypeVar

from . import report, tables
from .errors import ComfyflowError, JobError, ServerUnreachable, WorkflowRejected
from .exits import ExitCode, exit_code
from .workflow import Workflow

T = TypeVar("T")
UNBROKEN = ("ID", "JOB")  # columns that stay in one line on the narrowest terminal
# The modules whose warnings are about the record.
KEEPERS = ("contents", "embedded", "journal", "postgres", "recording")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the text says what became of the job. (A KeyboardInterrupt would break the loop.)"""


@dataclass(slots=True)
class Call:
    """One call of a command: how to speak, and what is known by now for the message of an error."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    known: dict[str, Any] = field(default_factory=dict)  # what a document says besides the error
    workflow: Workflow | None = None
    in_lines: bool = False  # documents are many, each in a line of its own

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """The outermost edge: every error becomes a message and an exit code."""
        self._log()
        try:
            yield
        except ComfyflowError as error:
            raise self._failed(error, self._lines(error)) from error
        except KeyboardInterrupt as error:
            raise self._failed(error, [str(error) or "stopped"]) from error
        except Exception as error:
            said = report.printable(f"{type(error).__name__}: {error}")
            lines = [
                f"comfyflow did not foresee this ({said}): please report it with what the option -v prints"
            ]
            raise self._failed(error, lines + _trace(error, self.verbose)) from error

    def _log(self) -> None:
        """What happens is told on request only; that a record is in danger always."""
        usual = logging.INFO if self.verbose else logging.ERROR
        logging.basicConfig(format="%(name)s: %(message)s", level=usual)
        for name in KEEPERS:
            logging.getLogger(f"comfyflow.{name}").setLevel(min(usual, logging.WARNING))

    def _lines(self, error: ComfyflowError) -> list[str]:
        lines = report.error_lines(error, self.workflow, verbose=self.verbose)
        maybe_sent = isinstance(error, ServerUnreachable) and error.sent
        prompt_id = self.known.get("prompt_id") or (error.prompt_id if maybe_sent else None)
        tell_id = prompt_id and str(prompt_id) not in lines[0]
        return [*lines, f"  the job's id is {prompt_id}"] if tell_id else lines

    def _failed(self, error: BaseException, lines: Iterable[str]) -> SystemExit:
        tell(f"comfyflow: {line}" if not line.startswith("  ") else line for line in lines)
        if self.as_json:
            state = {"state": error.view.state.value} if isinstance(error, JobError) else {}
            taken = isinstance(error, WorkflowRejected) and error.accepted
            known = {"prompt_id": error.prompt_id} if isinstance(error, ComfyflowError) and taken else {}
            document = {**self.known, **known, **state, "error": report.error_document(error, self.workflow)}
            self.emit([report.dump(document, in_line=self.in_lines)])
        return SystemExit(int(exit_code(error)))

    def answer(self, document: Mapping[str, Any], lines: Iterable[str]) -> None:
        """The result: one document with --json, else lines."""
        self.emit([report.dump(document, in_line=self.in_lines)] if self.as_json else lines)

    def table(
        self, document: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """A list: one document with --json, a drawn table on a terminal, else plain columns."""
        drawable = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        if drawable and not self.as_json:
            _draw(columns, rows)
        else:
            self.answer(document, tables.aligned(columns, rows))

    def emit(self, lines: Iterable[str]) -> None:
        """Write to stdout. A reader that has gone away (`| head -1`) is no fault."""
        text = "".join(f"{line}\n" for line in lines)
        if sys.stdout is None:  # closed by whoever called us (`>&-`)
            return
        with _written():
            sys.stdout.flush()
            with suppress(AttributeError):  # a stand-in for stdout has no buffer
                sys.stdout.buffer.write(_encoded(text))
                text = ""
            sys.stdout.write(text)

    @contextmanager
    def stream(self) -> Iterator[TextIO]:
        """stdout for what is long: UTF-8, line ends as they are written."""
        if sys.stdout is None:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                yield nowhere
            return
        with _written():
            sys.stdout.flush()
            stream = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
            try:
                yield stream
                stream.flush()
            finally:
                with suppress(OSError):  # said already
                    stream.detach()


@contextmanager
def _written() -> Iterator[None]:
    """Writing to stdout, to the end. A reader that has gone away (`| head -1`) is no fault."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more at its end and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # a full disk, say: the caller must not take it for done
            tell([f"comfyflow: the result could not be written to stdout: {error.strerror}"])
            raise SystemExit(int(ExitCode.FAILED)) from error


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:  # nothing is cut: ids and paths are there to be copied
        drawn.add_column(name, overflow="fold", no_wrap=name in UNBROKEN)
    for row in rows:
        drawn.add_row(*map(Text, row))  # as it is: brackets in a prompt are no markup
    Console().print(drawn)


def _encoded(text: str) -> bytes:
    """For stdout: names of files come out as the bytes they have on disk, even if they are not UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace")


def tell(lines: Iterable[str]) -> None:
    """Write to stderr; when nobody reads it any more there is nobody to tell."""
    if sys.stderr is None:  # closed (`2>&-`); print would turn to stdout then
        return
    with suppress(OSError):
        for line in lines:
            print(line, file=sys.stderr, flush=True)


def _trace(error: BaseException, verbose: bool) -> list[str]:
    return (
        [f"  {line}" for line in "".join(traceback.format_exception(error)).splitlines()] if verbose else []
    )


# signals


def attended(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; SIGINT and SIGTERM cancel it, and KeyboardInterrupt is raised."""
    try:
        return asyncio.run(_until_stopped(work))
    except Interrupted as error:
        raise KeyboardInterrupt(str(error)) from None


async def _until_stopped(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(work)
    stopped: list[int] = []

    def stop(number: int) -> None:
        stopped.append(number)
        task.cancel()

    with _handling(stop):
        try:
            return await task
        except asyncio.CancelledError:
            if not stopped:
                raise
            raise Interrupted("stopped") from None


@contextmanager
def _handling(stop: Callable[[int], None]) -> Iterator[None]:
    """Both signals go to `stop`. Where the loop has no signals (Windows), asyncio.run sees to Ctrl-C."""
    loop, caught = asyncio.get_running_loop(), []
    with suppress(NotImplementedError, RuntimeError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
            caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
