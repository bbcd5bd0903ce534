"""Questions about what became of a job."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from comfyflow import Job, JobEvent, JobLost, JobRecord, JobState, JobView, OutputFile, SavedFile, StoreError
from comfyflow.outcome import RunResult, are_here, named, never_ran, root_of, seconds_left

JOB = Job("a", None, "", "http://server", 1.0)


def test_a_result_has_the_id_of_its_job() -> None:
    assert RunResult(JOB, None).prompt_id == "a"


@pytest.mark.parametrize(
    ("state", "kinds", "never"),
    [
        (JobState.FAILED, ["failed"], True),
        (JobState.FAILED, ["submitted", "failed"], False),
        (JobState.LOST, [], False),
    ],
)
def test_a_failed_job_without_an_acceptance_never_ran(state: JobState, kinds: list[str], never: bool) -> None:
    record = JobRecord(JOB, state, events=tuple(JobEvent("a", kind) for kind in kinds))
    assert never_ran(record) is never


def test_files_are_here_when_all_have_their_size(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    saved = SavedFile(OutputFile("1", "x.png"), path, 3, "0" * 64, "image/png")
    assert not are_here([saved])
    path.write_bytes(b"abc")
    assert are_here([saved])
    path.write_bytes(b"ab")
    assert not are_here([saved])


def test_paths_are_relative_to_the_shared_folder_when_the_files_go_there(tmp_path: Path) -> None:
    assert root_of(tmp_path / "shared" / "out", tmp_path / "shared") == tmp_path / "shared"
    assert (
        root_of(tmp_path / "out", tmp_path / "shared") == root_of(tmp_path / "out", None) == tmp_path / "out"
    )


async def test_seconds_are_left_where_there_is_a_deadline() -> None:
    assert seconds_left(anyio.CancelScope()) is None
    assert seconds_left(anyio.CancelScope(deadline=anyio.current_time() - 5)) == 0
    left = seconds_left(anyio.CancelScope(deadline=anyio.current_time() + 60))
    assert left is not None
    assert 0 < left <= 60


def test_an_error_gets_the_name_of_its_job_unless_it_has_one() -> None:
    with pytest.raises(StoreError) as unnamed, named(JOB):
        raise StoreError("no")
    assert unnamed.value.prompt_id == "a"
    with pytest.raises(JobLost) as already, named(JOB):
        raise JobLost("gone", view=JobView("b", JobState.LOST))
    assert already.value.prompt_id == "b"
