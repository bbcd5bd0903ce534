"""The same short jobs by other programs' clients, on the same simulator: what each costs, and what becomes of
a job where something goes wrong.

    python benchmarks/bench_peers.py [--jobs 200] [--at-once 32] [--rounds 3]

Then with 500 jobs in flight, and on several servers, once each.

They are installed from the package index once, into a place of their own (peers_install.py).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from harness import HERE, MIB, Row, show, simulator
from peer import CLIENTS, PREFIX
from peers_install import PEERS, InstallFailed, install

from comfyflow.sim import Sim, corrupt, reset_after

OURS = ("floor", "comfyflow")
PATIENCE = 60.0  # s for a job
SERVERS, SECONDS, SHARE = (1, 2, 4), 0.05, 80  # of the series on several: jobs of seconds, so many for each
NOTICED = 0.5  # s for which a job goes on after its client's socket is gone
SHORT = 12.0  # s for one that meets trouble
NOTES = """\
None of the peers keeps a record or goes on with a batch after a crash, so the other benchmarks have no
figures of theirs; none knows of a second server, so here they are dealt the jobs in turn. Tried with these
versions: comfy-api-simplified blocks (in a program with a loop of its own it raises RuntimeError), so each
job takes a thread; it and comfykit open a socket for each job and may then wait 10 s for it to close, with a
real ComfyUI too; comfykit without a socket asks once a second, and gives addresses instead of files;
comfyui-utils asks for the whole queue whenever any job moves.
"""
Probe = Callable[[Sim], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Round:
    """What one client did in one round, in seconds; `lags` from the server's last event to the saved file."""

    wall: float
    cpu: float
    whole: int
    lags: list[float]
    memory: int
    errors: Counter[str]


@dataclass(frozen=True, slots=True)
class Load:
    """What a client is given to do: jobs of `seconds`."""

    jobs: int
    at_once: int
    seconds: float = 0.0
    servers: int = 1


IN_FLIGHT = Load(jobs=500, at_once=500, seconds=0.01)


class Bench:
    """What all rounds share."""

    def __init__(self, python: Path) -> None:
        self._python = python
        self._numbers = count(1, 100_000)

    def command(self, name: str, *arguments: object) -> list[str]:
        """A client's process."""
        python = sys.executable if name in OURS else str(self._python)
        return [python, str(HERE / "peer.py"), name, *map(str, arguments)]

    async def told(self, name: str, *arguments: object) -> dict[str, Any]:
        """What it says at its end."""
        process = await asyncio.create_subprocess_exec(
            *self.command(name, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, trouble = await process.communicate()
        if process.returncode or not said:
            raise RuntimeError(f"{name} ended with {process.returncode}: {trouble.decode()[-2000:]}")
        told: dict[str, Any] = json.loads(said.splitlines()[-1])
        return told

    def round(self, name: str, load: Load) -> Round:
        """On simulators of its own: some ask for the whole history, which grows."""
        with ExitStack() as stack:
            takes = "--no-previews", "--step-delay", str(load.seconds)
            urls = [stack.enter_context(simulator(*takes)) for _ in range(load.servers)]
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            given = next(self._numbers), load.jobs, load.at_once, load.seconds, PATIENCE
            told = asyncio.run(self.told(name, ",".join(urls), folder, *given))
            ends = {number: at for url in urls for number, at in server_ends(url).items()}
            lags = [at - ends[int(number)] for number, at in told["ended"].items()]
            files = [path.read_bytes() for path in Path(folder).iterdir() if path.is_file()]
        whole = {
            hashlib.sha256(data).digest() for data in files if data.rstrip(b"\x82").endswith(b"IEND\xaeB`")
        }
        errors = Counter(told["errors"])
        return Round(told["wall"], told["cpu"], len(whole), lags, told["memory"], errors)

    async def probe(self, name: str, probe: Probe) -> str:
        """What becomes of one job, in a few words."""
        async with Sim() as sim:
            with tempfile.TemporaryDirectory() as folder:
                running = asyncio.create_task(self.told(name, sim.url, folder, 7, 1, 1, 0.0, SHORT))
                try:
                    await probe(sim)
                finally:
                    await sim.release()
                told = await running
                files = [path.read_bytes() for path in Path(folder).iterdir() if path.is_file()]
            there = [path.read_bytes() for path in sim.folders.base("output").rglob("*.png")]
            return words(told["errors"], files, there, sim.executed.total())


def server_ends(url: str) -> dict[int, float]:
    """When the server told of each job's end, by the job's number, in seconds since the Unix epoch."""
    with urllib.request.urlopen(f"{url}/history") as answer:
        history = json.load(answer)
    ends: dict[int, float] = {}
    for entry in history.values():
        prefix = entry["prompt"][2]["2"]["inputs"]["filename_prefix"]
        at = dict(entry["status"]["messages"])["execution_success"]["timestamp"] / 1000
        ends[int(prefix.removeprefix(PREFIX).rstrip("-"))] = at
    return ends


def words(errors: dict[str, int], files: list[bytes], there: list[bytes], executed: int) -> str:
    """How a job ended."""
    ran = {0: ", never ran", 1: ""}.get(executed, f", ran {executed} times")
    if errors:
        (error,) = errors
        kind, _, text = error.partition(":")
        what = f"no word in {SHORT:g} s" if kind == "TimeoutError" else kind
        if kind == "RuntimeError":  # of peer.py, for what comfykit gives back
            what = text.partition(":")[0].strip()
        return f"{what}{', file left' if files else ''}{ran}"
    if not files:
        return f"calls it done, no file{ran}"
    return f"{'whole file' if set(files) <= set(there) else 'DAMAGED file as good'}{ran}"


async def is_damaged(sim: Sim) -> None:
    """One byte of the file is another on the way, the first time."""
    sim.faults.add("GET", "/view", corrupt())


async def is_not_answered(sim: Sim) -> None:
    """The server takes the job, and the connection breaks before its answer."""
    sim.faults.add("POST", "/prompt", reset_after())


async def loses_sockets(sim: Sim) -> None:
    """All sockets are cut while the job runs."""
    await in_the_middle(sim)
    sim.drop_sockets()
    await asyncio.sleep(NOTICED)


async def is_restarted(sim: Sim) -> None:
    """The server is killed while the job runs, and comes back with nothing in its memory."""
    await in_the_middle(sim)
    await sim.restart()


async def in_the_middle(sim: Sim) -> None:
    """Wait until the job runs, and whoever sends it has had the time to open its socket."""
    await sim.hold()
    with suppress(TimeoutError):  # it could not even begin, or has no socket
        await sim.wait_running()
        await sim.wait_for(lambda: sim.sockets > 0, timeout=1.0)


PROBES: dict[str, Probe] = {
    "a damaged file": is_damaged,
    "no answer to the job": is_not_answered,
    "sockets cut": loses_sockets,
    "server restarted": is_restarted,
}


def cpu_of(rounds: list[Round], jobs: int) -> float:
    """Seconds for a job, the median of the rounds."""
    return statistics.median(one.cpu / jobs for one in rounds)


def speed(name: str, rounds: list[Round], floors: list[Round], jobs: int) -> Row:
    """Medians over the rounds; the ratio is that of each round."""
    cpu = cpu_of(rounds, jobs)
    ratio = statistics.median(one.cpu / least.cpu for one, least in zip(rounds, floors, strict=True))
    lags = [lag for one in rounds for lag in one.lags]
    errors = sum((one.errors for one in rounds), Counter[str]())
    figures = [
        f"{statistics.median(jobs / one.wall for one in rounds):.0f}",
        f"{cpu * 1000:.2f}",
        f"{ratio:.1f}",
        f"{statistics.median(lags) * 1000:.0f}" if lags else "",
        f"{max(one.memory for one in rounds) / MIB:.0f}",
        *became(sum(one.whole for one in rounds), jobs * len(rounds), errors),
    ]
    return Row(called(name), figures)


def became(whole: int, jobs: int, errors: Counter[str]) -> tuple[str, str]:
    """How many have their files, and what became of others."""
    told = (f"{count} x {error[:60]}" for error, count in errors.most_common(2))
    return f"{whole} of {jobs}", ", ".join(told)


def in_flight(bench: Bench, name: str) -> Row:
    """How soon a job's file is there while hundreds of others wait."""
    done = bench.round(name, IN_FLIGHT)
    slow = statistics.quantiles(done.lags, n=20)[-1] if len(done.lags) > 1 else None
    middle = statistics.median(done.lags) if done.lags else None
    times = ["" if lag is None else f"{lag * 1000:.0f}" for lag in (middle, slow)]
    cpu = f"{done.cpu / IN_FLIGHT.jobs * 1000:.2f}"
    return Row(called(name), [*times, cpu, *became(done.whole, IN_FLIGHT.jobs, done.errors)])


def on_several(bench: Bench, name: str) -> Row:
    """Jobs a second on one server and more, and what share of so many times one that is."""
    rates: list[float] = []
    for servers in SERVERS:
        done = bench.round(name, Load(SHARE * servers, 8 * servers, SECONDS, servers))
        rates.append(done.whole / done.wall)
    shares = [rate / servers / (rates[0] or 1) for rate, servers in zip(rates, SERVERS, strict=True)]
    return Row(called(name), [f"{rate:.1f} ({share:.2f})" for rate, share in zip(rates, shares, strict=True)])


def called(name: str) -> str:
    """With the version of a peer."""
    version = PEERS.get(name.partition(" ")[0])
    return name if version is None else f"{name} {version}"


async def probed(bench: Bench) -> list[Row]:
    """Each client through each trouble, one trouble at a time."""
    names = [name for name in CLIENTS if name != "floor"]
    columns = []
    for probe in PROBES.values():
        columns.append([await bench.probe(name, probe) for name in names])
    return [Row(called(name), told) for name, *told in zip(names, *columns, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    try:
        bench = Bench(install())
    except InstallFailed as error:
        sys.exit(str(error))
    load = Load(given.jobs, given.at_once)
    show_speed(bench, load, given.rounds)
    columns = ["file after, ms", "95 of 100", "CPU, ms/job", "whole files", "errors"]
    what = f"{IN_FLIGHT.at_once} jobs of {IN_FLIGHT.seconds * 1000:g} ms in flight"
    show(what, columns, [in_flight(bench, name) for name in CLIENTS])
    rows = [on_several(bench, name) for name in CLIENTS]
    what = f"jobs of {SECONDS * 1000:g} ms: jobs/s on n servers (of n x one)"
    show(what, [f"{servers}" for servers in SERVERS], rows)
    show("one job that meets trouble", list(PROBES), asyncio.run(probed(bench)))
    print(NOTES)


def show_speed(bench: Bench, load: Load, count: int) -> None:
    """Short jobs, `count` rounds in turn."""
    rounds: dict[str, list[Round]] = {name: [] for name in CLIENTS}
    for _ in range(count):
        for name, done in rounds.items():
            done.append(bench.round(name, load))
    rows = [speed(name, done, rounds["floor"], load.jobs) for name, done in rounds.items()]
    ours, *peers = (cpu_of(done, load.jobs) for name, done in rounds.items() if name != "floor")
    rows[1] = replace(rows[1], target="less CPU than any peer", good=ours < min(peers))
    columns = [
        "jobs/s",
        "CPU, ms/job",
        "of the floor",
        "file after, ms",
        "memory, MiB",
        "whole files",
        "errors",
    ]
    show(
        f"{load.jobs} jobs, {load.at_once} at a time, with download, median of {count} rounds", columns, rows
    )


if __name__ == "__main__":
    main()
