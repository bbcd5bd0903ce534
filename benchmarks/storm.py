"""A batch over several servers while they die: every row done once, after one re-run.

    python benchmarks/storm.py [--rows 1000] [--seed 1] [--seeds 1] [--servers 3] [--keep DIR]

`comfyflow batch` works on a table of rows with as many simulated servers as processes of their own. In the
middle, as chance draws it, one of them is killed for good, one is killed and comes back on its port, and
comfyflow itself is killed with -9 and run once more with the same command. The same seed draws the same
trouble. Ends with 1 unless every row is done, each prompt was executed once or provably died with its server,
and the summary says so: storm_audit.py tells what is looked for.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Row, show
from storm_audit import ASSETS, LEASES, RUNS, Asset, Evidence, Findings, Life, Run, check_files, judge

from comfyflow.database import Connections
from comfyflow.embedded import Embedded
from comfyflow.journal import Journal
from comfyflow.migrations import upgrade

NAME = "storm"  # of the batch
STEPS = 4
LOOK_EVERY = 0.05  # s between two looks at how far it is
MARGIN = 0.15  # of the rows, before the first trouble and after the last
SHOWN = 20  # lines of what is wrong
TRIES = 20  # to start a server on a port that somebody else has just now
COLUMNS = ["rows", "done", "files", "executed", "died with a server", "sent again", "4 faults", "exit", "s"]
PICTURE: dict[str, Any] = {
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sim.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 0, "steps": STEPS, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal",
            "denoise": 1.0, "model": ["4", 0], "positive": ["6", 0], "negative": ["6", 0],
            "latent_image": ["5", 0],
        },
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": NAME}},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be played. `seconds` a job takes on a server; a server that refuses connections for
    `lost_after` seconds is gone; all of it takes at most `patience` seconds."""

    rows: int = 1000
    seed: int = 1
    servers: int = 3
    seconds: float = 0.06
    lost_after: float = 5.0
    patience: float = 600.0
    database: str | None = None

    def keys(self) -> dict[str, int]:
        """What the rows are called, and the seed of each."""
        return {f"row-{number}": 1 + number for number in range(self.rows)}


class Server:
    """A simulated server in a process of its own, and what its processes so far have left."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.url = folder, ""
        self._seconds, self._port = seconds, 0
        self._deaths: list[float] = []
        self._process: asyncio.subprocess.Process | None = None

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def log(self, life: int) -> Path:
        """Where one of its processes writes what it executes."""
        return self.folder / f"executed-{life}.jsonl"

    async def start(self) -> None:
        """Be there, on the same port as before. RuntimeError where that cannot be had."""
        self.folder.mkdir(exist_ok=True)
        options = ["--root", str(self.folder), "--log", str(self.log(len(self._deaths)))]
        options += ["--port", str(self._port), "--step-delay", str(self._seconds / STEPS)]
        for _ in range(TRIES):
            with (self.folder / "server.log").open("ab") as said:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "comfyflow.sim",
                    *options,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=said,
                )
            assert self._process.stdout is not None
            url = (await self._process.stdout.readline()).decode().strip()
            if url.startswith("http"):
                self.url, self._port = url, int(url.rpartition(":")[2])
                return
            await self._process.wait()
        raise RuntimeError(f"no simulator on port {self._port}: see {self.folder / 'server.log'}")

    async def kill(self) -> None:
        """Die as by a power cut."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        self._deaths.append(time.time())

    async def end(self) -> None:
        """Be gone, when all is over."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    def executed(self) -> int:
        """How many prompts all its processes have begun to execute."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("executed-*.jsonl"))

    def lives(self) -> list[Life]:
        """What each of its processes did."""
        began = [Life.of(self.url, self.log(life), died) for life, died in enumerate(self._deaths)]
        return [*began, Life.of(self.url, self.log(len(self._deaths)))]


class Command:
    """`comfyflow batch`, as often as it is run."""

    def __init__(self, folder: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.runs, self.killed = 0, set[int]()
        self.over = False  # it has ended by itself,
        self.code: int | None = None  # with this
        self._folder, self._arguments, self._environment = folder, arguments, environment
        self._process: asyncio.subprocess.Process | None = None
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Run it (again)."""
        self.runs += 1
        command = [sys.executable, "-m", "comfyflow", *self._arguments]
        environment = {**os.environ, **self._environment}
        with self.said("out").open("wb") as out, self.said("err").open("wb") as err:
            self._process = await asyncio.create_subprocess_exec(
                *command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err
            )

    async def again(self) -> None:
        """kill -9, and the same command once more."""
        process = self._process
        assert process is not None
        async with self._changing:
            if process.returncode is None:  # else it has ended just before
                process.kill()
                await process.wait()
                self.killed.add(process.pid)
                await self.start()

    async def end(self) -> None:
        """Wait until it ends by itself."""
        while not self.over:
            process = self._process
            assert process is not None
            self.code = await process.wait()
            async with self._changing:
                self.over = process is self._process

    async def stop(self) -> None:
        """At the end of the time."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def said(self, what: str, run: int | None = None) -> Path:
        """What it said on stdout ("out") or stderr ("err"), the last time or in that run."""
        return self._folder / f"run-{self.runs if run is None else run}.{what}"

    def summary(self) -> dict[str, Any]:
        """The last line of `--json`; empty where there is none."""
        lines = self.said("out").read_text(encoding="utf-8").splitlines()
        last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return last if "summary" in last else {}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that happens when `after` prompts have been executed."""

    after: int
    what: str
    do: Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class Stage:
    """Everything that a storm takes."""

    plan: Plan
    folder: Path
    servers: list[Server]
    command: Command
    dsn: str
    story: list[str] = field(default_factory=list)  # what happened when

    def executed(self) -> int:
        return sum(server.executed() for server in self.servers)

    async def until(self, count: int) -> int:
        """Wait until so many prompts have been executed, or the command is over; how many they are."""
        while True:
            executed = self.executed()
            if executed >= count or self.command.over:
                return executed
            await asyncio.sleep(LOOK_EVERY)

    def troubles(self) -> list[Trouble]:
        """What this seed draws: which servers, in which order, and when."""
        draw = random.Random(f"storm {self.plan.seed}")
        doomed = draw.sample(self.servers, 2) if len(self.servers) > 1 else [None, *self.servers]
        away = draw.uniform(0.2, self.plan.lost_after / 2)
        both = {"comfyflow is killed and run again": self.command.again}
        for server, again in zip(doomed, (None, away), strict=True):
            if server is not None:
                end = "for good" if again is None else f"and comes back after {again:.1f} s"
                both[f"{server.url} is killed {end}"] = _death(server, again)
        parts = sorted(draw.uniform(MARGIN, 1 - MARGIN) for _ in both)
        what = draw.sample(sorted(both), len(both))
        return [
            Trouble(int(part * self.plan.rows), one, both[one]) for part, one in zip(parts, what, strict=True)
        ]


def _death(server: Server, again: float | None) -> Callable[[], Coroutine[Any, Any, None]]:
    async def die() -> None:
        await server.kill()
        if again is not None:
            await asyncio.sleep(again)
            await server.start()

    return die


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it ended. `wrong` has a line for each thing that is not as it should be."""

    found: Findings
    code: int | None
    runs: int
    summary: Mapping[str, Any]
    spoken: str
    story: list[str]
    wrong: list[str]
    seconds: float


async def storm(plan: Plan, folder: Path) -> Verdict:
    """Play it in `folder`, which is empty and others may enter, and judge."""
    began = time.monotonic()
    async with staged(plan, folder) as stage:
        try:
            async with asyncio.timeout(plan.patience):
                await play(stage)
        except TimeoutError:
            stage.story.append(f"not at its end after {plan.patience:g} s")
        await stage.command.stop()
        for server in stage.servers:
            await server.end()
        found = await audited(stage)
    return verdict(stage, found, time.monotonic() - began)


@asynccontextmanager
async def staged(plan: Plan, folder: Path) -> AsyncIterator[Stage]:
    """Servers, database and command, none of them left behind."""
    servers = [Server(folder / f"server-{letter}", plan.seconds) for letter in "abcdefgh"[: plan.servers]]
    database = None if plan.database is not None else Embedded(folder / "postgresql")
    command = None
    try:
        await asyncio.gather(*(server.start() for server in servers))
        dsn = plan.database or await made(database)
        # Not among the arguments: it has a password.
        own = {"COMFYFLOW_DATABASE_URL": dsn, "COMFYFLOW_STATE": str(folder / "state")}
        command = Command(folder, arguments(plan, folder, servers), own)
        yield Stage(plan, folder, servers, command, dsn)
    finally:
        if command is not None:
            await command.stop()
        for server in servers:
            await server.end()
        if database is not None:
            await asyncio.to_thread(database.stop)


async def made(database: Embedded | None) -> str:
    """The DSN of a database with our tables."""
    assert database is not None
    await asyncio.to_thread(database.start)
    async with await Connections.open(database.dsn) as connections:
        await upgrade(connections)
    return database.dsn


def arguments(plan: Plan, folder: Path, servers: list[Server]) -> list[str]:
    """The command, once its files are there."""
    workflow, rows = folder / "prompt.json", folder / "rows.csv"
    workflow.write_text(json.dumps(PICTURE), encoding="utf-8")
    with rows.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "KSampler.seed", "6.text"])
        table.writerows([key, seed, f"fox {seed}"] for key, seed in plan.keys().items())
    given = ["batch", "--workflow", str(workflow), str(rows), "--name", NAME, "--json"]
    given += ["--output", str(folder / "out"), "--lost-after", str(plan.lost_after)]
    return given + [word for server in servers for word in ("--server", server.url)]


async def play(stage: Stage) -> None:
    """Run the command to its end, through all the trouble."""
    await stage.command.start()
    running = asyncio.create_task(stage.command.end())
    began, happening = time.monotonic(), list[asyncio.Task[None]]()
    try:
        for trouble in stage.troubles():
            executed = await stage.until(trouble.after)
            if stage.command.over:
                stage.story.append(f"it had ended before this could happen: {trouble.what}")
                break
            moment = f"after {time.monotonic() - began:.1f} s, {executed} executed"
            stage.story.append(f"{moment}: {trouble.what}")
            happening.append(asyncio.create_task(trouble.do()))
        await asyncio.gather(running, *happening)
    finally:
        for task in (running, *happening):
            task.cancel()


async def audited(stage: Stage) -> Findings:
    """What is left when all is quiet."""
    async with await Connections.open(stage.dsn) as connections:
        runs = [Run(**dict(row)) for row in await connections.fetch(RUNS)]
        assets = [Asset(**dict(row)) for row in await connections.fetch(ASSETS)]
        leases = [row["pid"] for row in await connections.fetch(LEASES)]
    evidence = Evidence(
        {f"batch:{NAME}:{key}": seed for key, seed in stage.plan.keys().items()},
        runs,
        assets,
        [life for server in stage.servers for life in server.lives()],
        {server.url: server.output for server in stage.servers},
    )
    found = judge(evidence)
    await asyncio.to_thread(check_files, evidence, stage.folder / "out", found)
    found.leaked += [f"a lease of {pid}" for pid in leases if pid not in stage.command.killed]
    waiting = Journal(stage.folder / "state" / "journal").summary().records
    found.leaked += [f"{waiting} records stayed in the journal"] if waiting else []
    return found


def verdict(stage: Stage, found: Findings, seconds: float) -> Verdict:
    """Whether it all is as promised, the command's own words included."""
    command, rows = stage.command, stage.plan.rows
    told, summary = command.summary(), command.summary().get("summary", {})
    spoken = command.said("err").read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
    expected = {
        "exit code": (command.code, 0),
        "runs of the command": (command.runs, 2),
        "rows done by the record": (found.done, rows),
        "distinct whole files": (found.files, rows),
        "rows in the summary": (summary.get("rows"), rows),
        "done in the summary": (summary.get("succeeded", 0) + summary.get("done_before", 0), rows),
        "failed in the summary": (summary.get("failed"), {}),
        "files in the summary": (summary.get("files"), rows),
        "executions but those that died with a server": (found.executions - found.lost_with_server, rows),
    }
    wrong = [
        f"{what}: {is_} instead of {wanted}" for what, (is_, wanted) in expected.items() if is_ != wanted
    ]
    wrong += [f"{what}: {line}" for what, lines in found.lists().items() for line in lines]
    return Verdict(found, command.code, command.runs, told, spoken, stage.story, wrong, seconds)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.06, help="that a job takes on a server")
    parser.add_argument("--lost-after", type=float, default=5.0, help="seconds, as for `comfyflow batch`")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each seed, at most")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to keep what is left of a bad seed")
    return parser.parse_args()


def play_seed(given: argparse.Namespace, seed: int) -> Row:
    """One storm, told."""
    plan = Plan(given.rows, seed, given.servers, given.seconds, given.lost_after, patience=given.minutes * 60)
    folder = Path(tempfile.mkdtemp(prefix=f"storm-{seed}-", dir=given.keep))
    folder.chmod(0o711)  # root's PostgreSQL runs as another user
    ended = asyncio.run(storm(plan, folder))
    print(f"seed {seed}:")
    more = len(ended.wrong) - SHOWN
    wrong = [*ended.wrong[:SHOWN], *([f"{more} lines more"] if more > 0 else [])]
    for line in [*ended.story, ended.spoken, *(f"WRONG  {line}" for line in wrong)]:
        print(f"    {line}")
    found = ended.found
    if ended.wrong and given.keep is not None:
        print(f"    all of it is kept in {folder}")
    else:
        shutil.rmtree(folder)
    faults = " ".join(str(len(lines)) for lines in found.lists().values())
    counts = plan.rows, found.done, found.files, found.executions, found.lost_with_server, found.resent
    figures = [*map(str, counts), faults, str(ended.code), f"{ended.seconds:.0f}"]
    return Row(f"seed {seed}", figures, "all rows once", not ended.wrong)


def main() -> None:
    given = options()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    rows = [play_seed(given, seed) for seed in range(given.seed, given.seed + given.seeds)]
    show(f"storm: `comfyflow batch` over {given.servers} servers, killed once, run again once", COLUMNS, rows)
    print("4 faults: lost, duplicated, damaged, leaked.\n")
    sys.exit(0 if all(row.good for row in rows) else 1)


if __name__ == "__main__":
    main()
