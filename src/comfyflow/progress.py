"""Live progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

# ruff: noqa: PLC0415 - rich takes 0.13 s to import and is needed on a terminal only

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from .models import JobView
from .report import fraction, view_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress(AbstractContextManager["Progress"], Protocol):
    """Shows the latest view of each job while the block lasts."""

    def show(self, view: JobView) -> None:
        """Take the latest view of a job; any number of jobs may be shown at once."""


def progress_on(stream: TextIO | None, *, quiet: bool = False) -> Progress:
    """The progress that fits a stream: a bar only where a person looks at a terminal that can draw one."""
    if quiet or stream is None:  # None: closed (`2>&-`)
        return Silence()
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return Bars(stream)
    return Lines(stream)


class Silence(Progress):
    """Shows nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, view: JobView) -> None:
        """Nothing."""


class Lines(Progress):
    """One line whenever a job's state, node, place in the queue or note changes; not for each step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: dict[str, str] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, view: JobView) -> None:
        """Write a line if there is something new. A reader that went away is no fault of the job."""
        line = view_line(view, steps=False)
        if self._last.get(view.prompt_id) == line:
            return
        self._last[view.prompt_id] = line
        with suppress(OSError):
            print(f"{view.prompt_id}: {line}", file=self._stream, flush=True)


class Bars(Progress):
    """One bar a job: node and step, how much of the graph is done, the time since it was first shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rich: RichProgress | None = None
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._rich = _rich(self._stream)
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def show(self, view: JobView) -> None:
        """Draw the bar of this job; the screen is refreshed ten times a second at most."""
        if self._rich is None:
            return
        if view.prompt_id not in self._bars:
            self._bars[view.prompt_id] = self._rich.add_task("", total=None, job=view.prompt_id[:8])
        done = fraction(view)
        self._rich.update(
            self._bars[view.prompt_id],
            description=view_line(view),
            total=None if done is None else 1.0,
            completed=done or 0.0,
        )


def _rich(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    def fixed(width: int) -> Column:
        return Column(width=width, min_width=width, no_wrap=True)

    return Progress(
        TextColumn("{task.fields[job]}", markup=False, table_column=fixed(8)),
        BarColumn(bar_width=24, table_column=fixed(24)),
        TaskProgressColumn(table_column=fixed(4)),
        TimeElapsedColumn(table_column=fixed(7)),
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=Console(file=stream),
        expand=True,
    )
