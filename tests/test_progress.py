"""Bars on a terminal, lines elsewhere, silence on request."""

from __future__ import annotations

import io

import pytest

from comfyflow.models import JobState, JobView
from comfyflow.progress import Bars, Lines, Silence, progress_on


class Terminal(io.StringIO):
    """A stream at which a person looks."""

    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


RUNNING = JobView("11111111-aaaa", JobState.RUNNING, node_id="3", node_title="Paint [bold]", nodes_total=4)
STEPS = [
    JobView("11111111-aaaa", JobState.RUNNING, node_title="Paint [bold]", step=n, steps=20.0, nodes_total=4)
    for n in (1.0, 2.0)
]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_the_stream_decides_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_on(Terminal()), Bars)
    assert isinstance(progress_on(io.StringIO()), Lines)
    assert isinstance(progress_on(Terminal(), quiet=True), Silence)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_on(Terminal()), Lines)


def test_lines_tell_what_changed_and_not_each_step() -> None:
    stream = io.StringIO()
    with Lines(stream) as progress:
        progress.show(JobView("11111111-aaaa", JobState.QUEUED, queue_position=1))
        for view in (RUNNING, *STEPS):
            progress.show(view)
        progress.show(JobView("2", JobState.QUEUED))
    assert stream.getvalue().splitlines() == [
        "11111111-aaaa: waiting, 1 ahead",
        "11111111-aaaa: running, Paint [bold]",
        "2: waiting",
    ]


def test_a_reader_that_went_away_does_not_stop_the_job() -> None:
    with Lines(Broken()) as progress:
        progress.show(RUNNING)


def test_silence_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Silence() as progress:
        progress.show(RUNNING)
    assert capsys.readouterr() == ("", "")


def test_a_bar_shows_node_step_and_time_of_each_job() -> None:
    stream = Terminal()
    with Bars(stream) as progress:
        progress.show(JobView("11111111-aaaa", JobState.QUEUED, queue_position=3))
        for view in (RUNNING, *STEPS):
            progress.show(view)
        progress.show(JobView("22222222-bbbb", JobState.QUEUED, queue_position=2))
    last = stream.getvalue()
    assert "11111111" in last
    assert "running, Paint [bold], step 2/20" in last
    assert "0:00:0" in last
    assert "[progress" not in last
    assert "22222222" in last
    assert "waiting, 2 ahead" in last


def test_a_bar_that_was_never_opened_shows_nothing() -> None:
    stream = Terminal()
    bars = Bars(stream)
    bars.show(RUNNING)
    bars.__exit__(None, None, None)
    assert stream.getvalue() == ""
