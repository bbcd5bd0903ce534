"""What the storm finds when all is quiet: it reads rows, files and the servers' own logs, and believes
nobody's word.

lost        a row without a success, a success that no server ran, an execution that nobody recorded, a job
            that is called lost while its server lived, or failed or cancelled though it was sent
duplicated  an execution too many: each but the last of a row must have died with its server, before the next
            one began; two successes of a row
damaged     a file that is not what its server has, that cannot be read to its end, that is another row's or
            has the content of another one; not one file for a row
leaked      a `.part`, a job without an outcome, a lease of a program that was not killed, a record that
            stayed in the journal

A file that no job has is no fault where it is whole: a program that is killed may have saved it and not yet
recorded it, and the job may be lost with its server then.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from PIL import Image

RUNS = """
    SELECT prompt_id, key, server, replaces, state, finished_at IS NOT NULL AS ended,
        submitted_at IS NOT NULL AS submitted, extract(epoch FROM created_at)::float8 AS created,
        extract(epoch FROM finished_at)::float8 AS finished
    FROM workflow_runs"""
ASSETS = """
    SELECT prompt_id, output_path AS path, metadata ->> 'sha256' AS sha256,
        concat_ws('/', nullif(metadata ->> 'subfolder', ''), metadata ->> 'filename') AS there
    FROM generated_assets"""
LEASES = "SELECT pid FROM run_workers"


@dataclass(frozen=True, slots=True)
class Run:
    """One row of workflow_runs. Moments are seconds since the Unix epoch."""

    prompt_id: str
    key: str
    server: str
    replaces: str | None
    state: str
    ended: bool
    submitted: bool
    created: float
    finished: float | None


@dataclass(frozen=True, slots=True)
class Asset:
    """One row of generated_assets; `there` is its name in the server's output folder."""

    prompt_id: str
    path: str
    sha256: str
    there: str


@dataclass(frozen=True, slots=True)
class Life:
    """One process of a server: what it began to execute and when. `died` is when it was killed; moments are
    seconds since the Unix epoch."""

    server: str
    executed: tuple[tuple[float, str], ...]
    died: float = inf

    @classmethod
    def of(cls, server: str, log: Path, died: float = inf) -> Life:
        """Read the simulator's log. A line that a dying process has not written to its end counts not."""
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return cls(server, tuple((line["at"], line["prompt_id"]) for line in lines), died)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that there is to judge by. `seeds` tells what each key's picture is made from, `outputs` is the
    folder of each server's files."""

    seeds: Mapping[str, int]
    runs: Sequence[Run]
    assets: Sequence[Asset]
    lives: Sequence[Life]
    outputs: Mapping[str, Path]


@dataclass(slots=True)
class Findings:
    """What is wrong, each with a line that says where; and how it went."""

    done: int = 0
    files: int = 0  # distinct ones, that are whole
    executions: int = 0
    lost_with_server: int = 0  # of the executions
    resent: int = 0  # jobs that took the place of lost ones
    spare: int = 0  # whole files that no job has
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not any(self.lists().values())

    def lists(self) -> dict[str, list[str]]:
        """In the order of the table."""
        return {
            "lost": self.lost,
            "duplicated": self.duplicated,
            "damaged": self.damaged,
            "leaked": self.leaked,
        }


def judge(evidence: Evidence) -> Findings:
    """What rows and logs say; files are for `check_files`."""
    found = Findings(resent=sum(run.replaces is not None for run in evidence.runs))
    runs = {run.prompt_id: run for run in evidence.runs}
    begun: dict[str, list[tuple[float, str, Life]]] = {key: [] for key in evidence.seeds}
    for life in evidence.lives:
        for at, prompt_id in life.executed:
            found.executions += 1
            run = runs.get(prompt_id)
            if run is None or run.key not in begun:
                found.lost.append(f"{prompt_id} was executed on {life.server} and is not recorded")
            else:
                begun[run.key].append((at, prompt_id, life))
    for key, executions in begun.items():
        mine = [run for run in evidence.runs if run.key == key]
        _judge_row(key, mine, sorted(executions, key=lambda one: one[0]), found)
    for run in evidence.runs:
        _judge_verdict(run, evidence.lives, found)
    return found


def _judge_row(key: str, runs: list[Run], executions: list[tuple[float, str, Life]], found: Findings) -> None:
    """One success, made by the last execution; each one before it died with its server."""
    done = [run.prompt_id for run in runs if run.state == "succeeded"]
    found.done += bool(done)
    if not done:
        states = ", ".join(f"{run.prompt_id} {run.state}" for run in runs) or "not recorded"
        found.lost.append(f"{key}: no success ({states})")
    if len(done) > 1:
        found.duplicated.append(f"{key}: succeeded as {', '.join(done)}")
    if done and (not executions or executions[-1][1] != done[-1]):
        ran = ", ".join(prompt_id for _, prompt_id, _ in executions) or "nothing"
        found.lost.append(f"{key}: succeeded as {done[-1]}, but the servers ran {ran}")
    for (_, prompt_id, life), (again, other, _) in pairwise(executions):
        if life.died < again:
            found.lost_with_server += 1
        else:
            text = f"{prompt_id} on {life.server}, which lived when {other} was executed too"
            found.duplicated.append(f"{key}: executed as {text}")


def _judge_verdict(run: Run, lives: Iterable[Life], found: Findings) -> None:
    """Whatever is called lost was lost with a process that died meanwhile."""
    if not run.ended:
        found.leaked.append(f"{run.key}: {run.prompt_id} has no outcome ({run.state})")
    if run.state in ("failed", "cancelled") and run.submitted:  # else no server would take it
        found.lost.append(f"{run.key}: {run.prompt_id} is called {run.state} though it was sent")
    if run.state == "lost":
        until = inf if run.finished is None else run.finished
        deaths = [life.died for life in lives if life.server == run.server]
        if not any(run.created <= died <= until for died in deaths):
            found.lost.append(f"{run.key}: {run.prompt_id} is called lost, and {run.server} had not died")


def check_files(evidence: Evidence, output: Path, found: Findings) -> None:
    """For each row there is one file, whole, its own, what its server has, and like no other."""
    runs = {run.prompt_id: run for run in evidence.runs}
    recorded, contents = Counter[str](), Counter[str]()
    for asset in evidence.assets:
        run = runs[asset.prompt_id]
        recorded[run.key] += 1
        fault = _fault(asset, run, evidence, output)
        if fault is not None:
            found.damaged.append(f"{run.key}: {asset.path} {fault}")
        else:
            contents[asset.sha256] += 1
    found.files = len(contents)
    found.damaged += [f"{count} files have the content {one}" for one, count in contents.items() if count > 1]
    found.damaged += [
        f"{key}: {recorded[key]} files are recorded" for key in evidence.seeds if recorded[key] != 1
    ]
    known = {asset.path for asset in evidence.assets}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name = path.relative_to(output).as_posix()
        if name not in known:
            _judge_stray(name, path, evidence, found)


def _fault(asset: Asset, run: Run, evidence: Evidence, output: Path) -> str | None:
    """What is wrong with a recorded file."""
    path, there = output / asset.path, evidence.outputs[run.server] / asset.there
    if not path.is_file():
        return "is recorded and not there"
    if sha256(path) != asset.sha256:
        return "is not what is recorded"
    if not there.is_file() or sha256(there) != asset.sha256:
        return f"is not what {run.server} has"
    seed = seed_of(path)
    return None if seed == evidence.seeds[run.key] else f"was made with the seed {seed}"


def _judge_stray(name: str, path: Path, evidence: Evidence, found: Findings) -> None:
    if name.endswith(".part"):
        found.leaked.append(f"{name} stayed behind")
        return
    digest = sha256(path)
    there = (one for folder in evidence.outputs.values() for one in folder.rglob("*.png"))
    if not any(sha256(one) == digest for one in there):
        found.damaged.append(f"{name} is whole nowhere")
    found.spare += 1


def seed_of(path: Path) -> int | None:
    """The seed in the graph that a picture carries; None where the picture is not whole."""
    try:
        with Image.open(path) as picture:
            picture.load()
            graph: dict[str, Any] = json.loads(picture.text["prompt"])  # type: ignore[attr-defined] # of PNG
    except (OSError, ValueError, KeyError, SyntaxError):
        return None
    return next((node["inputs"]["seed"] for node in graph.values() if "seed" in node["inputs"]), None)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
