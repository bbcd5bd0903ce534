"""A batch over servers that die, small; and the judgement of the large one: a measure of zeros that cannot
show anything else would be worth nothing."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from storm import Plan, storm
from storm_audit import Asset, Evidence, Findings, Life, Run, check_files, judge, seed_of

A, B = "http://a", "http://b"
LOST = Run("p1", "k", A, None, "lost", True, True, 1.0, 4.0)
DONE = Run("p2", "k", B, "p1", "succeeded", True, True, 4.0, 6.0)
OTHER = Run("q", "other", B, None, "succeeded", True, True, 1.0, 3.0)
LIVES = (Life(A, ((2.0, "p1"),), died=3.0), Life(B, ((2.0, "q"), (5.0, "p2"))))
GOOD = Evidence({"k": 1, "other": 2}, (LOST, DONE, OTHER), (), LIVES, {})


@pytest.mark.timeout(120)  # four seconds are usual; whoever was killed may be waited for
async def test_after_one_run_more_every_row_is_done_once_whoever_was_killed(
    database: str, folder: Path
) -> None:
    """Three servers, of which one ends for good and one comes back, and comfyflow is killed too."""
    plan = Plan(rows=60, servers=3, seconds=0.03, lost_after=1.0, patience=100.0, database=database)
    ended = await storm(plan, folder)
    assert ended.wrong == []
    assert (ended.runs, len(ended.story), ended.found.done, ended.found.files) == (2, 3, 60, 60)
    assert ended.found.executions == 60 + ended.found.lost_with_server
    assert ended.spoken.startswith("comfyflow: storm: 60 rows, ")
    assert ended.summary["recorded"] == "postgresql"


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty one."""
    with TemporaryDirectory(prefix="comfyflow-storm-") as name:
        yield Path(name)


def test_what_died_with_its_server_may_have_been_executed_again() -> None:
    found = judge(GOOD)
    assert found.good
    assert (found.done, found.executions, found.lost_with_server, found.resent) == (2, 3, 1, 1)


def test_what_was_sent_again_before_its_server_had_died_was_executed_twice() -> None:
    early = replace(LIVES[1], executed=((2.0, "q"), (2.5, "p2")))
    found = judge(replace(GOOD, lives=(LIVES[0], early)))
    assert len(found.duplicated) == 1
    assert found.lost_with_server == 0


def test_a_second_execution_of_the_same_prompt_is_one_too_many() -> None:
    twice = replace(LIVES[1], executed=(*LIVES[1].executed, (6.0, "q")))
    assert len(judge(replace(GOOD, lives=(LIVES[0], twice))).duplicated) == 1


def test_two_successes_of_one_row_are_one_too_many() -> None:
    assert judge(replace(GOOD, runs=(replace(LOST, state="succeeded"), DONE, OTHER))).duplicated


@pytest.mark.parametrize(
    "runs",
    [
        (LOST, DONE),  # a row that nobody recorded
        (LOST, replace(DONE, state="failed"), OTHER),
        (replace(LOST, finished=2.5), DONE, OTHER),  # called lost while the server lived
        (replace(LOST, server=B), DONE, OTHER),
    ],
)
def test_what_was_lost_is_found(runs: tuple[Run, ...]) -> None:
    assert judge(replace(GOOD, runs=runs)).lost


def test_what_no_server_would_take_may_be_sent_again() -> None:
    refused = replace(LOST, state="failed", submitted=False)
    assert judge(replace(GOOD, runs=(refused, DONE, OTHER), lives=LIVES[1:])).good


def test_a_success_that_no_server_ran_is_found() -> None:
    assert judge(replace(GOOD, lives=(LIVES[0], Life(B, ((2.0, "q"),))))).lost


def test_a_job_without_an_outcome_is_a_leak() -> None:
    assert judge(replace(GOOD, runs=(replace(LOST, ended=False), DONE, OTHER))).leaked


def test_a_log_is_read_up_to_where_its_writer_died(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert Life.of(A, log) == Life(A, ())
    log.write_text(json.dumps({"at": 2.0, "prompt_id": "p1"}) + '\n{"at": 3.0, "pro')
    assert Life.of(A, log, 3.0) == LIVES[0]


def picture(path: Path, seed: int) -> Asset:
    """A picture of that seed, as a row of the record for the job of that number tells of it."""
    told = PngInfo()
    told.add_text("prompt", json.dumps({"1": {"inputs": {}}, "3": {"inputs": {"seed": seed}}}))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (seed, 0, 0)).save(path, pnginfo=told)
    return Asset("q", path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def checked(folder: Path, *assets: Asset) -> Findings:
    """What is found of the files in `out`, where the server has the one of the row "other"."""
    picture(folder / "server" / "q.png", 2)
    there = {B: folder / "server"}
    evidence = Evidence({"other": 2}, (OTHER,), assets, (), there)
    found = Findings()
    check_files(evidence, folder / "out", found)
    return found


def test_a_whole_file_is_found_so_and_one_that_no_job_has_is_counted(tmp_path: Path) -> None:
    asset = picture(tmp_path / "out" / "q.png", 2)
    picture(tmp_path / "out" / "q (1).png", 2)
    found = checked(tmp_path, asset)
    assert (found.good, found.files, found.spare) == (True, 1, 1)


def test_a_file_of_another_row_or_of_nobody_or_half_done_is_found(tmp_path: Path) -> None:
    asset = picture(tmp_path / "out" / "q.png", 3)
    picture(tmp_path / "out" / "x.png", 4)
    (tmp_path / "out" / ".y.png.part").touch()
    found = checked(tmp_path, asset)
    assert (found.files, len(found.damaged), len(found.leaked)) == (0, 2, 1)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    asset = picture(tmp_path / "elsewhere.png", 2)
    (tmp_path / "out").mkdir()
    assert len(checked(tmp_path, asset).damaged) == 1
    assert len(checked(tmp_path).damaged) == 1


def test_a_picture_that_is_cut_off_has_no_seed(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    picture(path, 2)
    assert seed_of(path) == 2
    path.write_bytes(path.read_bytes()[:-35])
    assert seed_of(path) is None
