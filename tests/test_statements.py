"""Which parts a write has. That they are right is tested on a real server: test_postgres, test_store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from comfyflow import Job, JobEvent, JobResult, JobState, OutputFile, SavedFile
from comfyflow.rows import batch_of
from comfyflow.statements import statement_for
from comfyflow.store import Added, Advanced, Alive, Entry, Moved, Worker, ending

JOB = Job("a", None, "client", "http://server", 1.0)
FILE = SavedFile(OutputFile("2", "x.png"), Path("/out/x.png"), 3, "0" * 64, "image/png")
DONE = JobResult("a", JobState.SUCCEEDED, (FILE.output,))
RUNNING = Advanced("a", JobState.RUNNING)

ALIVE = Alive(Worker("w", "host", 7), 30.0)

INSERT, UPDATE = "INSERT INTO workflow_runs", "UPDATE workflow_runs"
FILED, LOGGED = "INSERT INTO generated_assets", "INSERT INTO run_events"
WORKING = "INSERT INTO run_workers"


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([Added(JOB)], {INSERT}),
        ([ALIVE, Added(JOB, "w")], {WORKING, INSERT}),
        ([RUNNING], {UPDATE}),
        ([RUNNING, Advanced("b", JobState.RUNNING)], {INSERT}),
        ([Moved(JOB)], {UPDATE}),
        ([JobEvent("a", "note")], {LOGGED}),
        ([RUNNING, JobEvent("a", "note")], {UPDATE, LOGGED}),
        (ending(JOB, DONE), {UPDATE, LOGGED}),
        (ending(JOB, DONE, (FILE,)), {UPDATE, FILED, LOGGED}),
    ],
)
def test_a_statement_has_the_parts_that_its_batch_needs(entries: Sequence[Entry], wanted: set[str]) -> None:
    statement = statement_for(batch_of(entries))
    assert {part for part in (INSERT, UPDATE, FILED, LOGGED, WORKING) if part in statement} == wanted
    assert statement.endswith("SELECT prompt_id, unknown FROM wrong")
    added = any(isinstance(entry, Added) for entry in entries)
    assert (statement_for(batch_of(entries), news=True) == statement) is not added


def test_the_longest_statement_is_one_that_asyncpg_keeps() -> None:
    """asyncpg 0.32 keeps prepared statements of up to 15 KiB (max_cacheable_statement_size)."""
    other = replace(JOB, prompt_id="b")
    batch = batch_of([ALIVE, Added(JOB), Moved(other), *ending(JOB, DONE, (FILE,))])
    assert len(statement_for(batch, news=True).encode()) < 15 * 1024
