"""Messages, documents, exit codes and signals of the commands."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import sys
from typing import Any

import pytest

from comfyflow.console import Call, Interrupted, attended, tell
from comfyflow.errors import JobLost, ServerUnreachable, UsageError
from comfyflow.models import JobState, JobView

Captured = pytest.CaptureFixture[str]


def _end(call: Call, error: BaseException) -> int:
    """The exit code of a command that raises `error`."""
    with pytest.raises(SystemExit) as caught, call.guarded():
        raise error
    return int(str(caught.value.code))


def test_a_foreseen_error_is_one_line_and_its_exit_code(capsys: Captured) -> None:
    assert _end(Call(), UsageError("do it\nlike this")) == 2
    assert capsys.readouterr() == ("", "comfyflow: do it like this\n")


def test_an_interruption_says_what_became_of_the_job(capsys: Captured) -> None:
    assert _end(Call(), KeyboardInterrupt("stopped; job x was cancelled")) == 130
    assert capsys.readouterr().err == "comfyflow: stopped; job x was cancelled\n"
    assert _end(Call(), KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "comfyflow: stopped\n"


def test_an_error_that_nobody_foresaw_is_one_line_that_asks_for_a_report(capsys: Captured) -> None:
    assert _end(Call(), ZeroDivisionError("oh")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: oh" in line
    assert "report" in line


def test_verbose_shows_the_traceback_of_what_nobody_foresaw(capsys: Captured) -> None:
    assert _end(Call(verbose=True), ZeroDivisionError("oh")) == 1
    assert "  Traceback (most recent call last):" in capsys.readouterr().err.splitlines()


def test_a_document_is_written_for_every_error(capsys: Captured) -> None:
    call = Call(as_json=True, known={"prompt_id": "id"})
    assert _end(call, JobLost("job id is lost", view=JobView("id", JobState.LOST))) == 5
    document = json.loads(capsys.readouterr().out)
    assert (document["prompt_id"], document["state"], document["error"]["type"]) == ("id", "lost", "JobLost")


def test_the_id_of_an_accepted_job_is_told_with_any_later_error(capsys: Captured) -> None:
    _end(Call(known={"prompt_id": "id-1"}), UsageError("later"))
    assert capsys.readouterr().err.splitlines() == ["comfyflow: later", "  the job's id is id-1"]
    _end(Call(known={"prompt_id": "id-1"}), UsageError("job id-1 has a fault"))
    assert capsys.readouterr().err == "comfyflow: job id-1 has a fault\n"


@pytest.mark.parametrize(("sent", "lines"), [(True, 2), (False, 1)])
def test_the_id_of_a_job_that_may_have_been_sent_is_told(sent: bool, lines: int, capsys: Captured) -> None:
    error = ServerUnreachable("no answer", method="POST", url="http://x/prompt", sent=sent)
    error.prompt_id = "id-2"
    assert _end(Call(), error) == 4
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_an_exit_on_purpose_passes(capsys: Captured) -> None:
    assert _end(Call(as_json=True), SystemExit(5)) == 5
    assert capsys.readouterr() == ("", "")


# stdout and stderr


def test_an_answer_is_lines_or_one_document(capsys: Captured) -> None:
    Call().answer({"a": 1}, ["one", "two"])
    assert capsys.readouterr().out == "one\ntwo\n"
    Call(as_json=True).answer({"a": 1}, ["one", "two"])
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def _stdout(monkeypatch: pytest.MonkeyPatch, **options: Any) -> io.BytesIO:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, **options))
    return raw


@pytest.mark.parametrize(
    ("line", "encoding", "written"),
    [
        (os.fsdecode(b"/out/\xff.png"), "utf-8", b"/out/\xff.png\n"),
        ("ü", "ascii", b"\\xfc\n"),
        ("\ud800", "utf-8", b"\\ud800\n"),
    ],
)
def test_names_of_files_come_out_as_they_are_on_disk(
    line: str, encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = _stdout(monkeypatch, encoding=encoding)
    Call().emit([line])
    assert raw.getvalue() == written


def test_a_stand_in_without_bytes_gets_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stand_in)
    Call().emit(["one"])
    assert stand_in.getvalue() == "one\n"


def _closed_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_a_reader_of_stdout_that_went_away_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with _closed_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        Call().emit(["one"])
        Call().emit(["two"])
        monkeypatch.undo()


def test_a_reader_of_stderr_that_went_away_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    tell(["one", "two"])


@pytest.mark.parametrize(("verbose", "usual"), [(False, logging.ERROR), (True, logging.INFO)])
def test_warnings_about_the_record_are_told_even_without_asking(verbose: bool, usual: int) -> None:
    with Call(verbose=verbose).guarded():
        assert logging.getLogger("comfyflow.journal").isEnabledFor(logging.WARNING)
        assert logging.getLogger("comfyflow.journal").isEnabledFor(logging.INFO) == (usual == logging.INFO)


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


ROWS = [("one", "[red]not markup[/red]"), ("two", "x")]


def test_a_list_is_drawn_on_a_terminal_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    Call().table({}, ("NAME", "TEXT"), ROWS)
    assert "[red]not markup[/red]" in terminal.getvalue()
    assert "\u2500" in terminal.getvalue()


def test_a_list_is_plain_columns_elsewhere_and_a_document_when_asked(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    Call().table({}, ("NAME", "TEXT"), ROWS)
    assert capsys.readouterr().out == "NAME  TEXT\none   [red]not markup[/red]\ntwo   x\n"
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    Call(as_json=True).table({"rows": 2}, ("NAME", "TEXT"), ROWS)
    assert json.loads(terminal.getvalue()) == {"rows": 2}


def test_a_long_result_is_utf_8_with_the_line_ends_that_were_written(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(1, "w", encoding="ascii", newline="\r\n", closefd=False) as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        Call().emit(["first"])
        with Call().stream() as stream:
            stream.write("r\u00f6d\n")
        Call().emit(["last"])
        monkeypatch.undo()
    assert capfdbinary.readouterr().out == b"first\nr\xc3\xb6d\nlast\n"


def test_a_long_result_that_nobody_reads_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with _closed_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with Call().stream() as stream:
            stream.write("x" * 1_000_000)
        monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", None)
    with Call().stream() as stream:
        stream.write("to nobody")


# signals


def test_work_that_ends_gives_its_result() -> None:
    async def work() -> int:
        return 7

    assert attended(work()) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_work_and_is_told(number: signal.Signals) -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    with pytest.raises(KeyboardInterrupt, match="stopped"):
        attended(work())
    assert ended == ["cleaned up"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_work_may_say_what_became_of_it() -> None:
    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Interrupted("stopped; the job was cancelled") from None

    with pytest.raises(KeyboardInterrupt, match="the job was cancelled"):
        attended(work())


def test_a_cancellation_without_a_signal_is_none_of_ours() -> None:
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        attended(work())


def test_in_a_thread_there_are_no_signals_and_the_work_is_done() -> None:
    async def work() -> str:
        return "done"

    async def outside() -> str:
        return await asyncio.to_thread(lambda: attended(work()))

    assert asyncio.run(outside()) == "done"
