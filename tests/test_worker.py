"""Whether another process still runs: only certainty counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from comfyflow import worker
from comfyflow.store import Worker
from comfyflow.worker import is_dead, this_worker

TELL = """
import dataclasses, json, sys
from comfyflow.worker import this_worker
print(json.dumps(dataclasses.asdict(this_worker())), flush=True)
sys.stdin.read()
"""


def another() -> tuple[subprocess.Popen[str], Worker]:
    """A process of its own that lives until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Worker(**json.loads(process.stdout.readline()))


def test_a_process_knows_itself_and_each_worker_is_another_one() -> None:
    mine = this_worker()
    assert mine.pid == os.getpid()
    assert mine.host
    assert not is_dead(mine)
    assert this_worker().id != mine.id
    assert this_worker().place == mine.place


def test_a_killed_process_is_seen_as_dead_at_once_even_before_it_is_collected() -> None:
    process, theirs = another()
    with process:
        assert not is_dead(theirs)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
        assert is_dead(theirs)
    assert is_dead(theirs)


def test_a_process_id_that_was_used_again_does_not_count() -> None:
    mine = this_worker()
    assert mine.place is not None
    assert is_dead(replace(mine, place=f"{mine.place}0"))


@pytest.mark.parametrize("place", [None, "", "another machine/4026531836/17"])
def test_nothing_is_certain_about_another_machine(place: str | None) -> None:
    assert not is_dead(replace(this_worker(), place=place, pid=2**22 + 1))


def test_a_process_that_is_hidden_from_us_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = this_worker()

    def forbidden(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    monkeypatch.setattr(worker, "_began", lambda pid: None)
    assert not is_dead(mine)


def test_where_the_system_does_not_tell_only_the_lease_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = this_worker()
    monkeypatch.setattr(worker, "_machine", lambda: None)
    assert this_worker().place is None
    assert not is_dead(mine)


def test_a_worker_is_plain_data() -> None:
    assert all(isinstance(value, str | int) for value in asdict(this_worker()).values())
