"""A batch into a real database: all or nothing, and what a refusal means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from graphs import image

from comfyflow import Job, JobEvent, JobFailure, JobResult, JobState, OutputFile, SavedFile, Workflow
from comfyflow.commit import Committer, Replaced, Taken
from comfyflow.database import Connections
from comfyflow.errors import StoreError
from comfyflow.gather import Refused
from comfyflow.rows import Batch, batch_of
from comfyflow.store import Accepted, Added, Advanced, Entry, Kept, ending

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc"
LOST = JobFailure("forgotten")


@pytest.fixture
async def connections(database: str) -> AsyncIterator[Connections]:
    async with await Connections.open(database) as opened:
        yield opened


@pytest.fixture
def committer(connections: Connections) -> Committer:
    return Committer(connections, content_limit=100)


def job(prompt_id: str) -> Job:
    return Job(prompt_id, Workflow.load(image()), "client", "http://server", 1.0)


def batch(*entries: Entry) -> Batch:
    return batch_of(entries)


async def runs(connections: Connections) -> dict[str, str]:
    rows = await connections.fetch("SELECT prompt_id, state FROM workflow_runs")
    return {row["prompt_id"]: row["state"] for row in rows}


async def test_what_is_new_is_told_and_what_was_there_is_not(committer: Committer) -> None:
    old = job("old")
    assert await committer.rows(batch(Added(old))) == {"old"}
    assert await committer.rows(batch(Added(old), Added(job("new")))) == {"new"}
    assert await committer.rows(batch(Advanced("old", JobState.RUNNING))) == set()


async def test_nothing_to_write_needs_no_connection() -> None:
    async with await Connections.open("postgresql://nobody@127.0.0.1:9/nothing") as nowhere:
        committer = Committer(nowhere, content_limit=100)
        assert await committer.rows(batch()) == set()
        with pytest.raises(StoreError):
            await committer.rows(batch(Added(job("a"))))


async def test_all_of_a_batch_or_nothing(committer: Committer, connections: Connections) -> None:
    with pytest.raises(Refused, match="no job nobody is recorded: add it first"):
        await committer.rows(batch(Added(job("a")), JobEvent("nobody", "note")))
    assert await runs(connections) == {}


async def test_of_those_at_once_only_the_wrong_one_is_refused(
    committer: Committer, connections: Connections
) -> None:
    good = [committer.rows(batch(Added(job(name)))) for name in "abcd"]
    wrong = committer.rows(batch(JobEvent("nobody", "note")))
    *ends, refused = await asyncio.gather(*good, wrong, return_exceptions=True)
    assert (await runs(connections)).keys() == set("abcd")
    assert isinstance(refused, Refused)
    assert not any(isinstance(end, BaseException) for end in ends)


async def test_an_id_of_another_job_is_taken(committer: Committer, connections: Connections) -> None:
    await committer.rows(batch(Added(job("a"))))
    with pytest.raises(Taken, match="already another job a"):
        await committer.rows(batch(Added(job("a"))))  # another graph
    assert await runs(connections) == {"a": "created"}


async def test_a_lost_job_is_sent_again_once(committer: Committer, connections: Connections) -> None:
    old = job("old")
    await committer.rows(batch(Added(old), *ending(old, JobResult("old", JobState.LOST, failure=LOST))))
    again = [replace(old, prompt_id=name, replaces="old", attempt=2) for name in ("first", "second")]
    await committer.rows(batch(Added(again[0])))
    with pytest.raises(Replaced, match="job old was already replaced by another one"):
        await committer.rows(batch(Added(again[1])))
    with pytest.raises(Refused, match="no job nobody is recorded"):
        await committer.rows(batch(Added(replace(again[1], replaces="nobody"))))
    assert (await runs(connections)).keys() == {"old", "first"}


async def test_a_job_with_another_id_keeps_what_is_known_of_it(
    committer: Committer, connections: Connections
) -> None:
    one = job("ours")
    await committer.rows(batch(Added(one), JobEvent("ours", "note")))
    await committer.rows(batch(Accepted(one, "theirs")))
    assert await runs(connections) == {"theirs": "queued"}
    assert await connections.fetch("SELECT FROM run_events WHERE prompt_id = 'theirs'")


async def test_a_rename_of_a_job_that_nobody_knows_writes_nothing(
    committer: Committer, connections: Connections
) -> None:
    with pytest.raises(Refused, match="no job theirs"):
        await committer.rows(batch(Accepted(job("ours"), "theirs")))
    assert await runs(connections) == {}


@pytest.mark.parametrize(
    ("entry", "said"),
    [(JobEvent("a", "k" * 201), "breaks"), (Advanced("a", JobState.RUNNING, at=1e30), "value")],
)
async def test_what_no_table_holds_is_refused(committer: Committer, entry: Entry, said: str) -> None:
    await committer.rows(batch(Added(job("a"))))
    with pytest.raises(Refused, match=said):
        await committer.rows(batch(entry))


async def test_bytes_are_kept_up_to_the_limit(
    committer: Committer, connections: Connections, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"abc")
    small = SavedFile(OutputFile("2", "x.png"), path, 3, ABC, "image/png")
    await committer.contents(batch(Kept(small), Kept(replace(small, sha256="0" * 64, size=101))))
    [row] = await connections.fetch("SELECT sha256, data FROM asset_contents")
    assert tuple(row) == (ABC, b"abc")
    assert "larger than the limit" in caplog.text
