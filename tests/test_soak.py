"""The soak's judgement: draws that repeat, and an audit that finds whatever is wrong. A measure of zeros that
cannot show anything else would be worth nothing."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from soak_audit import (
    Asset,
    Evidence,
    Findings,
    Run,
    check_files,
    check_leases,
    judge,
    sha256,
)
from soak_faults import DAMAGES, EFFECTS, Kind, Span, draws, effect_of
from soak_worker import Order, Task

KEYED, FREE = Task("with key", 1, 1, "key"), Task("without", 2, 2)
DEATH = Span(5.0, 6.0)
RUNS = (
    Run("k", "with key", "key", None, "succeeded", True, 1.0, 1.1, 2.0),
    Run("f", "without", None, None, "succeeded", True, 1.0, 1.1, 2.0),
)
ASSETS = (Asset("k", "a", "", "a"), Asset("f", "b", "", "b"), Asset("f", "c", "", "c"))
GOOD = Evidence((KEYED, FREE), RUNS, ASSETS, (Counter(k=1, f=1),), ())
RESENT = (
    Run("k", "with key", "key", None, "lost", True, 1.0, 1.1, 6.5),
    Run("k2", "with key", "key", "k", "succeeded", True, 6.5, 6.6, 7.0),
)


def run(prompt_id: str, **changed: object) -> Run:
    (one,) = (one for one in RUNS if one.prompt_id == prompt_id)
    return replace(one, **changed)  # type: ignore[arg-type] # each caller names fields of Run


def resent(*rows: Run, lives: tuple[Counter[str], ...], deaths: tuple[Span, ...] = (DEATH,)) -> Evidence:
    """The job with a key in several rows, the other one as it should be."""
    assets = (Asset(rows[-1].prompt_id, "a", "", "a"), *ASSETS[1:])
    return Evidence(GOOD.tasks, (*rows, RUNS[1]), assets, lives, deaths)


def test_jobs_that_ended_well_are_found_so() -> None:
    found = judge(GOOD)
    assert (found.good, found.figures) == (True, ["2", "2", "0", "0", "0", "0"])


def test_a_job_that_died_with_its_server_may_be_sent_again() -> None:
    lives = Counter(k=1, f=1), Counter(k2=1)
    assert judge(resent(*RESENT, lives=lives)).good


def test_a_job_whose_acceptance_nobody_heard_of_may_run_again_under_its_id_after_a_death() -> None:
    late = replace(RUNS[0], submitted=6.1, finished=7.0)
    assert judge(resent(late, lives=(Counter(k=1, f=1), Counter(k=1)))).good


def test_what_was_refused_at_once_may_be_sent_again() -> None:
    refused = replace(RUNS[0], state="failed", submitted=None)
    again = replace(RESENT[1], replaces="k")
    assert judge(resent(refused, again, lives=(Counter(k2=1, f=1),), deaths=())).good


LOST = {
    "no row": replace(GOOD, runs=RUNS[:1], lives=(Counter(k=1),)),
    "failed": replace(GOOD, runs=(run("k", state="failed", submitted=None), RUNS[1]), lives=(Counter(f=1),)),
    "called lost without a reason": resent(*RESENT, lives=(Counter(k=1, f=1), Counter(k2=1)), deaths=()),
    "called lost before the server died": resent(
        replace(RESENT[0], finished=4.0), RESENT[1], lives=(Counter(k=1, f=1), Counter(k2=1))
    ),
    "failed though it was sent": resent(
        replace(RESENT[0], state="failed"), RESENT[1], lives=(Counter(k=1, f=1), Counter(k2=1))
    ),
    "executed and not recorded": replace(GOOD, lives=(Counter(k=1, f=1, x=1),)),
    "succeeded and never ran": replace(GOOD, lives=(Counter(k=1),)),
}


@pytest.mark.parametrize("evidence", LOST.values(), ids=LOST)
def test_what_was_lost_is_found(evidence: Evidence) -> None:
    assert judge(evidence).lost


DUPLICATED = {
    "the same id": replace(GOOD, lives=(Counter(k=2, f=1),)),
    "another id of the same job": resent(*RESENT, lives=(Counter(f=1), Counter(k=1, k2=1))),
    "the same id in a later life, though its acceptance was known": replace(
        GOOD, lives=(Counter(k=1, f=1), Counter(k=1)), deaths=(DEATH,)
    ),
    "two successes": resent(RUNS[0], RESENT[1], lives=(Counter(k=1, f=1), Counter(k2=1))),
    "two chains for one key": resent(
        RESENT[0], replace(RESENT[1], replaces=None), lives=(Counter(k=1, f=1), Counter(k2=1))
    ),
}


@pytest.mark.parametrize("evidence", DUPLICATED.values(), ids=DUPLICATED)
def test_what_ran_twice_is_found(evidence: Evidence) -> None:
    assert judge(evidence).duplicated


def test_a_row_without_an_outcome_is_a_leak() -> None:
    assert judge(replace(GOOD, runs=(run("k", ended=False, finished=None), RUNS[1]))).leaked


def test_too_few_files_are_damage() -> None:
    assert judge(replace(GOOD, assets=ASSETS[:2])).damaged


def checked(folder: Path, there: bytes, recorded: bytes) -> Findings:
    """One recorded file `a` here, beside what the server has and what the record says."""
    for name, content in (("server", there), ("record", recorded)):
        (folder / name).write_bytes(content)
    digest = sha256(folder / "record")
    found = Findings(1)
    evidence = replace(GOOD, assets=(Asset("k", "a", digest, "a"),))
    check_files(evidence, folder / "out", {"a": sha256(folder / "server")}, found)
    return found


@pytest.mark.parametrize(
    ("here", "there", "recorded", "good"),
    [
        (b"whole", b"whole", b"whole", True),
        (b"who", b"whole", b"whole", False),
        (b"whole", b"whole", b"other", False),
        (b"other", b"whole", b"other", False),
        (None, b"whole", b"whole", False),
    ],
)
def test_a_file_that_is_not_what_the_server_has_is_found(
    tmp_path: Path, here: bytes | None, there: bytes, recorded: bytes, good: bool
) -> None:
    (tmp_path / "out").mkdir()
    if here is not None:
        (tmp_path / "out" / "a").write_bytes(here)
    assert checked(tmp_path, there, recorded).damaged == [] or not good
    assert bool(checked(tmp_path, there, recorded).damaged) is not good


def test_files_that_nobody_recorded_have_to_be_whole_and_none_is_half_done(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name, content in (("a", b"whole"), ("b", b"whole"), ("c", b"half"), (".d.part", b"")):
        (tmp_path / "out" / name).write_bytes(content)
    found = checked(tmp_path, b"whole", b"whole")
    assert [len(found.damaged), len(found.leaked)] == [1, 1]


def test_a_lease_of_a_program_that_was_not_killed_is_a_leak() -> None:
    found = Findings(1)
    check_leases([{"pid": 1}, {"pid": 2}], {1}, found)
    assert found.leaked == ["a lease of 2"]


def test_a_seed_draws_the_same_trouble_each_time_and_all_of_it_comes_up() -> None:
    first = list(islice(draws(7, 4), 2000))
    assert first == list(islice(draws(7, 4), 2000))
    assert first != list(islice(draws(8, 4), 2000))
    assert {draw.kind for draw in first} == set(Kind)
    assert {draw.effect for draw in first} == {*EFFECTS, *DAMAGES}
    assert all(effect_of(draw) for draw in first)
    assert Kind.RESTART not in {draw.kind for draw in islice(draws(7, 4, server_dies=False), 2000)}


def test_an_order_reaches_its_worker_as_it_was_given() -> None:
    order = Order("http://here", "postgresql://x", "/out", "/state", (KEYED, FREE), life=2)
    assert Order.from_json(order.to_json()) == order
