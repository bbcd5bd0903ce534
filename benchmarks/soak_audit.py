"""What the soak finds when everything has ended: it reads rows, files and the server's own count, and
believes nobody's word.

lost        a job without a success, one that is called lost or failed though nothing explains that, an
            execution that nobody recorded, a success that never ran, a record that no database would take
duplicated  an execution too many: the same id, or the same job under another id, started twice in one life of
            the server; the same id again in a later life although its acceptance had been recorded; two
            successes of one job; two chains for one key
damaged     a file that is not what the server has, that is recorded and not there, or there and whole
            nowhere; fewer files than the job makes
leaked      a `.part`, a row without an outcome, a lease of a program that said goodbye, a task or a
            connection of a worker, a socket of the server, a record that stayed in the journal
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak_faults import Span
from soak_worker import NAME, Task

RUNS = f"""
    SELECT prompt_id, {NAME} AS name, key, replaces, state, finished_at IS NOT NULL AS ended,
        extract(epoch FROM created_at)::float8 AS created,
        extract(epoch FROM submitted_at)::float8 AS submitted,
        extract(epoch FROM finished_at)::float8 AS finished
    FROM workflow_runs AS w"""
ASSETS = """
    SELECT prompt_id, output_path AS path, metadata ->> 'sha256' AS sha256,
        concat_ws('/', nullif(metadata ->> 'subfolder', ''), metadata ->> 'filename') AS there
    FROM generated_assets"""
LEASES = "SELECT pid, host FROM run_workers"


@dataclass(frozen=True, slots=True)
class Run:
    """One row of workflow_runs. Moments are seconds since the Unix epoch."""

    prompt_id: str
    name: str
    key: str | None
    replaces: str | None
    state: str
    ended: bool
    created: float
    submitted: float | None
    finished: float | None


@dataclass(frozen=True, slots=True)
class Asset:
    """One row of generated_assets; `there` is its name in the server's output folder."""

    prompt_id: str
    path: str
    sha256: str
    there: str


@dataclass(slots=True)
class Findings:
    """What is wrong, each with a line that says where."""

    jobs: int
    outcomes: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not any(self.lists().values())

    @property
    def figures(self) -> list[str]:
        return [str(self.jobs), str(self.outcomes), *(str(len(lines)) for lines in self.lists().values())]

    def lists(self) -> dict[str, list[str]]:
        """In the order of the table."""
        return {
            "lost": self.lost,
            "duplicated": self.duplicated,
            "damaged": self.damaged,
            "leaked": self.leaked,
        }


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that there is to judge by. `lives`: what the server ran, counted in each of its lives; one ends
    with each of `deaths`."""

    tasks: Sequence[Task]
    runs: Sequence[Run]
    assets: Sequence[Asset]
    lives: Sequence[Counter[str]]
    deaths: Sequence[Span]


def judge(evidence: Evidence) -> Findings:
    """What rows and counts say; files are for `check_files`."""
    found = Findings(len(evidence.tasks))
    rows: dict[str, list[Run]] = {task.name: [] for task in evidence.tasks}
    for run in evidence.runs:
        rows.setdefault(run.name, []).append(run)
    started = sum(evidence.lives, Counter[str]())
    files = Counter(asset.prompt_id for asset in evidence.assets)
    for task in evidence.tasks:
        _judge_job(task, rows[task.name], started, files, found)
    _judge_verdicts(evidence, found)
    _judge_starts(evidence, found)
    known = {run.prompt_id for run in evidence.runs}
    found.lost += [f"{job} was executed and is not recorded" for job in sorted(started.keys() - known)]
    found.leaked += [f"{run.name}: {run.prompt_id} has no outcome" for run in evidence.runs if not run.ended]
    return found


def _judge_job(
    task: Task, rows: list[Run], started: Counter[str], files: Counter[str], found: Findings
) -> None:
    """Exactly one success, and one chain for a key."""
    done = [run for run in rows if run.state == "succeeded"]
    found.outcomes += bool(done)
    if not done:
        states = ", ".join(f"{run.prompt_id} {run.state}" for run in rows) or "not recorded"
        found.lost.append(f"{task.name}: no success ({states})")
    if len(done) > 1:
        found.duplicated.append(f"{task.name}: succeeded as {', '.join(run.prompt_id for run in done)}")
    roots = [run for run in rows if run.replaces is None]
    if task.key is not None and len(roots) > 1:
        found.duplicated.append(f"{task.name}: {len(roots)} chains for one key")
    for run in done:
        if not started[run.prompt_id]:
            found.lost.append(f"{task.name}: {run.prompt_id} succeeded and never ran")
        if files[run.prompt_id] != task.files:
            found.damaged.append(f"{task.name}: {files[run.prompt_id]} of {task.files} files are recorded")


def _judge_verdicts(evidence: Evidence, found: Findings) -> None:
    """Whatever is called lost was lost with a server that died meanwhile; a failure was told at once."""
    for run in evidence.runs:
        since, until = run.created, run.finished  # its acceptance may have been heard of much later
        if run.state == "lost" and until is not None:
            if not any(death.ended >= since and death.began <= until for death in evidence.deaths):
                found.lost.append(f"{run.name}: {run.prompt_id} is called lost, and no server had died")
        elif run.state in ("failed", "cancelled") and run.submitted is not None:
            found.lost.append(f"{run.name}: {run.prompt_id} is called {run.state} though it was sent")


def _judge_starts(evidence: Evidence, found: Findings) -> None:
    """In one life of the server each job is started once, under whatever id, and a job whose acceptance was
    known in one life is not started in a later one."""
    runs = {run.prompt_id: run for run in evidence.runs}
    before: dict[str, int] = {}
    for life, counts in enumerate(evidence.lives):
        names = Counter[str]()
        for prompt_id, count in counts.items():
            run = runs.get(prompt_id)
            names[prompt_id if run is None else run.name] += count
            earlier = before.get(prompt_id)
            if earlier is not None and not _forgotten(run, evidence.deaths[earlier]):
                found.duplicated.append(f"{prompt_id} was accepted in life {earlier}, and ran in {life} too")
            before[prompt_id] = life
        found.duplicated += [
            f"{name}: started {count} times in life {life}" for name, count in names.items() if count > 1
        ]


def _forgotten(run: Run | None, death: Span) -> bool:
    """Whether the server died before anybody knew that it had taken this job."""
    return run is not None and (run.submitted is None or run.submitted >= death.began)


def check_files(evidence: Evidence, output: Path, there: Mapping[str, str], found: Findings) -> None:
    """Every recorded file is what the server has (`there`: sha256 by name), and every other one is whole."""
    here = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    found.leaked += [f"{path} stayed behind" for path in here if path.endswith(".part")]
    for asset in evidence.assets:
        path = here.get(asset.path)
        if path is None:
            found.damaged.append(f"{asset.prompt_id}: {asset.path} is recorded and not there")
        elif not sha256(path) == asset.sha256 == there.get(asset.there):
            found.damaged.append(f"{asset.prompt_id}: {asset.path} is not what the server has")
    recorded, whole = {asset.path for asset in evidence.assets}, set(there.values())
    # A program may die between saving and recording a file, and the job be lost with the server then.
    others = [path for name, path in here.items() if name not in recorded and not name.endswith(".part")]
    found.damaged += [f"{path} is whole nowhere" for path in others if sha256(path) not in whole]


def check_leases(leases: Iterable[Mapping[str, Any]], killed: set[int], found: Findings) -> None:
    """Those who were killed could not say goodbye; their rows go by themselves later."""
    found.leaked += [f"a lease of {row['pid']}" for row in leases if row["pid"] not in killed]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
