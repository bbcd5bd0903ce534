"""The table of exit codes is complete."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfyflow import errors
from comfyflow.exits import ExitCode, code_of, exit_code


def _family(kind: type[errors.ComfyflowError]) -> Iterator[type[errors.ComfyflowError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _family(child)


@pytest.mark.parametrize("kind", list(_family(errors.ComfyflowError)), ids=lambda kind: kind.__name__)
def test_every_error_that_we_raise_has_chosen_a_code(kind: type[errors.ComfyflowError]) -> None:
    assert code_of(kind) not in (None, ExitCode.OK)


@pytest.mark.parametrize("code", ExitCode)
def test_every_code_says_what_it_means_in_one_line(code: ExitCode) -> None:
    assert code.meaning
    assert "\n" not in code.meaning


def test_the_numbers_are_the_published_ones() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "REJECTED": 3,
        "UNREACHABLE": 4,
        "LOST": 5,
        "CANCELLED": 6,
        "DOWNLOAD": 7,
        "DATABASE": 8,
        "TIMEOUT": 124,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.WorkflowInvalid, 3),
        (errors.ServerUnreachable, 4),
        (errors.BadAnswer, 4),
        (errors.NotSupported, 4),
        (errors.WorkflowRejected, 3),
        (errors.JobFailed, 1),
        (errors.JobCancelled, 6),
        (errors.JobLost, 5),
        (errors.JobTimeout, 124),
        (errors.OutputUnavailable, 7),
        (errors.StoreError, 8),
        (errors.UsageError, 2),
        (KeyboardInterrupt, 130),
    ],
)
def test_an_error_has_the_code_of_its_nearest_listed_ancestor(kind: type[BaseException], code: int) -> None:
    assert code_of(kind) == code


def test_an_error_that_nobody_foresaw_has_no_code_of_its_own_and_ends_in_failure() -> None:
    assert code_of(ZeroDivisionError) is None
    assert exit_code(ZeroDivisionError()) is ExitCode.FAILED
    assert exit_code(errors.UsageError("x")) is ExitCode.USAGE
