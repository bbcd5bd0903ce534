"""The error tree: what each carries, and the sentences about a job's end."""

from __future__ import annotations

import pickle

import pytest

from comfyflow import errors
from comfyflow.models import JobFailure, JobResult, JobState, JobView, OutputFile


def view(state: JobState, failure: JobFailure | None = None) -> JobView:
    result = JobResult("j", state, failure=failure) if state.terminal else None
    return JobView("j", state, result=result)


def test_every_error_hangs_in_the_one_tree_and_is_drawn_there() -> None:
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, BaseException):
            assert issubclass(found, errors.ComfyflowError)
            assert name in (errors.__doc__ or "")


def test_errors_carry_data() -> None:
    assert str(errors.WorkflowInvalid("is empty", path="a.json")) == "a.json: is empty"
    assert errors.WorkflowInvalid("is empty").path is None
    bad = errors.BadAnswer("no", method="GET", url="u", status=500, body="x" * 999)
    assert (bad.status, len(bad.body)) == (500, 200)
    assert errors.ServerUnreachable("no", method="GET", url="u", sent=True).sent
    rejected = errors.WorkflowRejected("no", method="POST", url="u", error={"a": 1}, node_errors={"2": {}})
    assert (rejected.error, rejected.node_errors, rejected.accepted) == ({"a": 1}, {"2": {}}, False)
    lacking = errors.NotRunnable("no", url="u", missing={"a": ["x"]})
    assert (lacking.method, lacking.missing, lacking.error) == ("POST", {"a": ["x"]}, {})
    nobody = errors.NoServer("no", url="u", any_up=True)
    assert (nobody.any_up, nobody.sent, nobody.refused) == (True, False, False)
    gone = errors.OutputUnavailable("it is gone", output=OutputFile("1", "a.png"))
    assert isinstance(gone, errors.DownloadError)
    assert "a.png" in str(gone)
    assert isinstance(errors.JobTimeout("late", view=view(JobState.RUNNING)), TimeoutError)
    assert errors.JobTimeout("late", view=view(JobState.RUNNING)).prompt_id == "j"


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.RUNNING])
def test_success_and_unfinished_jobs_have_no_error(state: JobState) -> None:
    assert errors.error_of(view(state)) is None


FAILURE = JobFailure("bad\nworse", "5.0.1", "KSampler", "ValueError", ("line",))


@pytest.mark.parametrize(
    ("state", "failure", "titles", "kind", "text"),
    [
        (
            JobState.FAILED,
            FAILURE,
            {"5": "Nice"},
            errors.JobFailed,
            'job j failed at node "Nice" (5.0.1 KSampler): ValueError: bad',
        ),
        (
            JobState.FAILED,
            FAILURE,
            {},
            errors.JobFailed,
            'job j failed at node "KSampler" (5.0.1): ValueError: bad',
        ),
        (JobState.FAILED, JobFailure("x", "7"), {}, errors.JobFailed, 'job j failed at node "?" (7): x'),
        (JobState.FAILED, None, {}, errors.JobFailed, "job j failed: the server gave no reason"),
        (
            JobState.CANCELLED,
            JobFailure("i", "3"),
            {"3": "S"},
            errors.JobCancelled,
            'job j was cancelled at node "S" (3)',
        ),
        (JobState.LOST, JobFailure("gone"), {}, errors.JobLost, "job j is lost: gone"),
    ],
)
def test_an_end_has_its_error_and_one_sentence(
    state: JobState,
    failure: JobFailure | None,
    titles: dict[str, str],
    kind: type[errors.JobError],
    text: str,
) -> None:
    error = errors.error_of(view(state, failure), titles)
    assert type(error) is kind
    assert str(error) == text


def test_a_failed_job_tells_node_and_traceback() -> None:
    error = errors.error_of(view(JobState.FAILED, FAILURE))
    assert isinstance(error, errors.JobFailed)
    assert (error.node_id, error.node_type, error.message, error.traceback) == (
        "5.0.1",
        "KSampler",
        "bad\nworse",
        ("line",),
    )


@pytest.mark.parametrize(
    "error",
    [
        errors.WorkflowInvalid("is empty", path="a.json"),
        errors.WorkflowFaulty("would be refused", faults=["one"], path="a.json"),
        errors.ServerUnreachable("no", method="GET", url="u", sent=True),
        errors.JobTimeout("late", view=view(JobState.RUNNING)),
        errors.OutputUnavailable("it is gone", output=OutputFile("1", "a.png")),
    ],
)
def test_errors_cross_the_border_of_a_process(error: errors.ComfyflowError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
