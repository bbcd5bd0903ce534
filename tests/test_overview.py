"""A batch as a whole: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io

import pytest

from comfyflow.errors import UsageError
from comfyflow.many import RowResult, Tally
from comfyflow.member import Health, ServerView
from comfyflow.overview import Bar, Lines, overview_on, server_line, status_line


class Terminal(io.StringIO):
    """A stream at which a person looks."""

    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def tally(begun: int = 0, succeeded: int = 0, before: int = 0) -> Tally:
    """Numbers of a batch that has run for about 100 s."""
    made = Tally(begun, succeeded, before)
    made.started -= 100.0
    return made


def test_the_stream_decides_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(overview_on(Terminal(), Tally()), Bar)
    assert isinstance(overview_on(io.StringIO(), Tally()), Lines)
    assert isinstance(overview_on(Terminal(), Tally(), quiet=True), Lines)
    assert isinstance(overview_on(None, Tally()), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(overview_on(Terminal(), Tally()), Lines)


def test_the_line_tells_rate_and_time_left_by_what_was_worked_on() -> None:
    assert status_line(tally(begun=8)) == "0 rows, 8 running"
    assert status_line(tally(begun=1), 1) == "0 of 1 row, 1 running"
    assert status_line(tally(begun=8), 50) == "0 of 50 rows, 8 running"
    busy = tally(begun=408, succeeded=199, before=200)
    busy.count(RowResult(None, error=UsageError("bad")))
    assert status_line(busy, 600) == "400 of 600 rows, 8 running, 1 failed, 2.0/s, 0:01:40 left"
    assert status_line(busy) == "400 rows, 8 running, 1 failed, 2.0/s"
    assert status_line(tally(begun=10, before=10), 10) == "10 of 10 rows, 0 running"
    assert status_line(tally(begun=10, succeeded=10), 10) == "10 of 10 rows, 0 running, 6.0/min"


def test_a_line_is_written_when_it_is_time() -> None:
    stream = io.StringIO()
    with Lines(stream, tally(begun=3), 5, every=0.0) as lines:
        lines.show()
    assert stream.getvalue() == "comfyflow: 0 of 5 rows, 3 running\n"
    with Lines(stream, tally(), 5, every=3600.0) as lines:
        lines.show()
        lines.show()
    with Lines(stream, tally(), 5, every=None) as lines:
        lines.show()
    assert len(stream.getvalue().splitlines()) == 1


def test_what_is_said_is_written_whatever_else_is_shown() -> None:
    stream = io.StringIO()
    with overview_on(stream, Tally(), quiet=True) as overview:
        overview.say(["one", "two"])
        with overview.aside():
            stream.write("between\n")
    assert stream.getvalue() == "one\ntwo\nbetween\n"
    for nobody in (None, Broken()):
        with overview_on(nobody, Tally()) as overview:
            overview.say(["one"])


def test_a_bar_shows_the_numbers_of_the_moment_and_makes_room() -> None:
    stream, numbers = Terminal(), tally(begun=8)
    with overview_on(stream, numbers, 20) as overview:
        overview.say(["rows.csv, line 7: no [bold]input[/] \x1b[31m"])
        numbers.succeeded = 5
        overview.show()
        with overview.aside():
            stream.write("/a/path.png\n")
    drawn = stream.getvalue()
    assert "rows.csv, line 7: no [bold]input[/] \ufffd[31m" in drawn
    assert "5 of 20 rows, 3 running" in drawn
    before, _, after = drawn.partition("/a/path.png\n")
    assert "20 rows" in before
    assert "20 rows" in after


def two() -> tuple[ServerView, ServerView]:
    """A pool's servers."""
    busy = ServerView("http://a:8188", Health.UP, True, 1.0, 3, 5, 2.04, 120, 1)
    return busy, ServerView("http://b:8188", Health.AWAY, False, 1.0, 0, None, None, 7, 0)


def test_servers_of_a_pool_have_a_line_each() -> None:
    assert [server_line(view) for view in two()] == [
        "http://a:8188: up, 1 running, 2 queued, 120 done, 1 failed, 2.0 s each",
        "http://b:8188: away, 0 running, 0 queued, 7 done",
    ]


def test_they_stand_below_the_numbers_and_below_the_bar() -> None:
    plain, terminal = io.StringIO(), Terminal()
    with Lines(plain, tally(), None, two, every=0.0) as lines:
        lines.show()
    with overview_on(terminal, tally(), 10, servers=two) as bar:
        bar.show()
    assert plain.getvalue().splitlines()[1:] == [f"  {server_line(view)}" for view in two()]
    assert all(server_line(view)[:40] in terminal.getvalue() for view in two())
