"""A batch as a whole on stderr: a bar on a terminal, a plain line now and then elsewhere."""

# ruff: noqa: PLC0415 - rich takes 0.13 s to import and is needed on a terminal only

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from .figures import clock, counted, rate_text
from .report import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from .many import Tally
    from .member import ServerView

LINE_EVERY = 10.0  # s between two plain lines


class Overview(AbstractContextManager["Overview"], Protocol):
    """Shows how far a batch is while the block lasts."""

    def show(self) -> None:
        """Something has changed."""

    def say(self, lines: Iterable[str]) -> None:
        """Write lines that stay."""

    def aside(self) -> AbstractContextManager[None]:
        """While the block lasts somebody else may write to the terminal."""


Servers = Callable[[], Sequence["ServerView"]]


def overview_on(
    stream: TextIO | None,
    tally: Tally,
    total: int | None = None,
    *,
    servers: Servers = tuple,
    quiet: bool = False,
) -> Overview:
    """The overview of `tally` that fits a stream; `total` rows are known to come. `servers` gives those of a
    pool, as they are now."""
    if stream is not None and not quiet and stream.isatty() and os.environ.get("TERM") != "dumb":
        return Bar(stream, tally, total, servers)
    return Lines(stream, tally, total, servers, every=None if quiet else LINE_EVERY)


def server_line(server: ServerView) -> str:
    """One server of a pool in one line."""
    queued = max(server.ours - 1, 0)
    words = [f"{min(server.ours, 1)} running", f"{queued} queued", f"{server.succeeded} done"]
    words += [f"{server.failed} failed"] if server.failed else []
    words += [] if server.seconds is None else [f"{server.seconds:.1f} s each"]
    return f"{printable(server.url)}: {server.health.value}, {', '.join(words)}"


def status_line(tally: Tally, total: int | None = None) -> str:
    """The numbers in one line."""
    words = [
        f"{tally.ended} of {counted(total, 'row')}" if total is not None else counted(tally.ended, "row")
    ]
    words += [f"{tally.running} running", *([f"{tally.failures} failed"] if tally.failures else [])]
    # What was done before took no time, and says nothing of the rest.
    worked = tally.ended - tally.before
    if worked and tally.seconds:
        words.append(rate_text(worked / tally.seconds))
        if total is not None and tally.ended < total:
            words.append(f"{clock((total - tally.ended) * tally.seconds / worked)} left")
    return ", ".join(words)


class Lines(Overview):
    """A plain line `every` so many seconds, none with None; what is said is always written."""

    def __init__(
        self,
        stream: TextIO | None,
        tally: Tally,
        total: int | None,
        servers: Servers = tuple,
        *,
        every: float | None,
    ) -> None:
        self._stream, self._tally, self._total, self._every = stream, tally, total, every
        self._servers = servers
        self._next = time.monotonic() + (every or 0.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self) -> None:
        """Write a line if it is time."""
        if self._every is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        servers = [f"  {server_line(server)}" for server in self._servers()]
        self.say([f"comfyflow: {status_line(self._tally, self._total)}", *servers])

    def say(self, lines: Iterable[str]) -> None:
        """Write them. A reader that went away is no fault of the batch."""
        if self._stream is None:
            return
        with suppress(OSError):
            for line in lines:
                print(line, file=self._stream, flush=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing is in the way."""
        yield


class Bar(Overview):
    """One bar for all rows, the numbers beside it, and a line for each server below."""

    def __init__(self, stream: TextIO, tally: Tally, total: int | None, servers: Servers = tuple) -> None:
        self._tally = tally
        self._rich = _rich(stream, tally, total, servers)
        self._task = self._rich.add_task("", total=total)

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()

    def show(self) -> None:
        """The screen is refreshed ten times a second, with the numbers of that moment."""
        self._rich.update(self._task, completed=self._tally.ended)

    def say(self, lines: Iterable[str]) -> None:
        """Write them above the bar."""
        for line in lines:
            self._rich.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The bar is taken away and drawn anew."""
        self._rich.stop()
        yield
        self._rich.start()


def _rich(stream: TextIO, tally: Tally, total: int | None, servers: Servers) -> RichProgress:
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class Numbers(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(status_line(tally, total), no_wrap=True, overflow="ellipsis")

    class Beside(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield from super().get_renderables()
            for server in servers():
                yield Text(f"  {server_line(server)}", no_wrap=True, overflow="ellipsis")

    return Beside(
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        Numbers(table_column=Column(ratio=1, no_wrap=True)),
        console=Console(file=stream),
        expand=True,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
