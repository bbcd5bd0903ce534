"""The promise, measured: nothing lost, nothing twice, nothing damaged, nothing left, whatever happens.

    python benchmarks/soak.py --jobs 1000 --seed 1 [--seeds 10] [--processes 4] [--server URL] [--minutes 10]

Several programs run their jobs at once, on one server (the simulator, or a real one) behind a proxy that
makes trouble, with a PostgreSQL of its own, while server, database and programs are stopped, killed and
started again as chance has it. The same seed draws the same trouble. Ends with 1 unless "lost", "duplicated",
"damaged" and "leaked" are zero: soak_audit.py says what they count.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import aiohttp
from harness import HERE, Row, show
from soak_audit import ASSETS, LEASES, RUNS, Asset, Evidence, Findings, Run, check_files, check_leases, judge
from soak_audit import sha256 as sha256_of
from soak_faults import Server, Trouble, draws
from soak_worker import Order, Task

from comfyflow import PostgresStore, StoreError
from comfyflow.database import Connections
from comfyflow.embedded import Embedded
from comfyflow.journal import Journal
from comfyflow.migrations import upgrade
from comfyflow.sim import FaultProxy, Sim

COLUMNS = ["jobs", "outcomes", "lost", "duplicated", "damaged", "leaked"]
TRIED = ["faults", "kill -9", "restarts", "seconds"]
PATIENCE = 3.0  # s after which the next fault comes although no job was sent
GRACE = 60.0  # s for what is left when the time is up
SHOWN = 20  # lines of each kind of trouble
WITH_KEY = 10, 7  # of so many jobs so many have a key


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    jobs: int
    seed: int
    seeds: int
    processes: int
    server: str | None
    minutes: float
    keep: Path | None


def options() -> Options:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1000, help="jobs for each seed")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--processes", type=int, default=4, help="programs at work at once")
    parser.add_argument("--server", metavar="URL", help="a real ComfyUI instead of the simulator")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each seed, at most")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to keep what is left of a bad seed")
    return Options(**vars(parser.parse_args()))


def tasks(options: Options, seed: int) -> list[Task]:
    """The jobs of a seed. A real server remembers those of other days, so they are new each time."""
    run = f"{seed}" if options.server is None else f"{seed}-{uuid4().hex[:8]}"
    of, keyed = WITH_KEY
    names = [f"soak-{run}-{number}" for number in range(options.jobs)]
    return [
        Task(name, 1 + number, 1 + (number % 5 == 0), f"key of {name}" if number % of < keyed else None)
        for number, name in enumerate(names)
    ]


class Worker:
    """A share of the jobs, and the process that works on it now."""

    def __init__(self, order: Order, folder: Path, number: int) -> None:
        self.order, self._folder, self._number = order, folder, number
        self.pids: set[int] = set()  # of those that were killed
        self.told = Counter[str]()
        self.left: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._changing = asyncio.Lock()
        self.over = False

    async def start(self) -> None:
        log = self._folder / f"worker-{self._number}-{self.order.life}.log"
        with log.open("wb") as file:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(HERE / "soak_worker.py"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
            )
        assert self._process.stdin is not None
        order = f"{self.order.to_json()}\n"  # not in its arguments: it has a password
        self._process.stdin.write(order.encode())
        self._process.stdin.close()

    async def kill(self) -> None:
        """kill -9, and a new one in its place."""
        async with self._changing:
            process = self._process
            if process is None or process.returncode is not None:
                return
            process.kill()
            await process.wait()
            self.pids.add(process.pid)
            self.order = replace(self.order, life=self.order.life + 1)
            await self.start()

    async def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        async with self._changing:
            process = self._process
            with suppress(ProcessLookupError):
                if process is not None and process.returncode is None:
                    process.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(seconds)
                    process.send_signal(signal.SIGCONT)

    async def run(self) -> None:
        """Until a process of this share has ended by itself."""
        await self.start()
        while True:
            process = self._process
            assert process is not None
            assert process.stdout is not None
            said = await process.stdout.read()
            await process.wait()
            async with self._changing:
                if process is self._process:
                    self._ended(process.returncode, said)
                    return

    def _ended(self, code: int | None, said: bytes) -> None:
        self.over = True
        if code != 0:
            self.left = [f"worker {self._number} ended with {code}: see its log"]
            return
        told = json.loads(said.splitlines()[-1])
        self.told, self.left = Counter(told["told"]), told["left"]

    async def end(self) -> None:
        """At the end of the time."""
        async with self._changing:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()


@dataclass(slots=True)
class Stage:
    """Everything that a seed takes."""

    folder: Path
    server: Server
    database: Embedded
    workers: list[Worker]
    tasks: list[Task]
    trouble: Trouble = field(init=False)

    def __post_init__(self) -> None:
        self.trouble = Trouble(self.server, self.database, list(self.workers))

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "state" / "journal")

    @property
    def over(self) -> bool:
        return all(worker.over for worker in self.workers)


@asynccontextmanager
async def staged(options: Options, seed: int, folder: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        sim = None
        if options.server is None:
            sim = await stack.enter_async_context(Sim(record=False, max_history=1_000_000))
        proxy = await stack.enter_async_context(FaultProxy(options.server or (sim.url if sim else "")))
        database = Embedded(folder / "postgresql", durable=False)
        await asyncio.to_thread(database.start)
        stack.callback(database.stop)
        async with await Connections.open(database.dsn) as connections:
            await upgrade(connections)
        jobs = tasks(options, seed)
        places = str(folder / "out"), str(folder / "state")
        (folder / "out").mkdir()
        orders = [
            Order(proxy.url, database.dsn, *places, tuple(jobs[number :: options.processes]))
            for number in range(options.processes)
        ]
        workers = [Worker(order, folder, number) for number, order in enumerate(orders)]
        yield Stage(folder, Server(proxy, sim), database, workers, jobs)


async def play(stage: Stage, options: Options, seed: int) -> None:
    """Run all jobs, and make trouble until they have ended."""
    running = [asyncio.create_task(worker.run()) for worker in stage.workers]
    ends = time.monotonic() + options.minutes * 60
    try:
        for draw in draws(seed, len(stage.workers), server_dies=stage.server.sim is not None):
            await until_sent(stage, draw.gap)
            if stage.over or time.monotonic() > ends:
                break
            stage.trouble.begin(draw)
    finally:
        await stage.trouble.calm()
    await asyncio.wait(running, timeout=GRACE)
    for worker in stage.workers:
        await worker.end()
    await asyncio.gather(*running)


async def until_sent(stage: Stage, jobs: int) -> None:
    """Wait until so many more prompts have come to the server."""
    enough = stage.server.sent + jobs
    with suppress(TimeoutError):
        await stage.server.proxy.wait_for(lambda: stage.server.sent >= enough or stage.over, timeout=PATIENCE)


async def audited(stage: Stage) -> Findings:
    """What is left when all is quiet."""
    found = Findings(len(stage.tasks))
    store = await PostgresStore.open(stage.database.dsn, journal=stage.journal)
    async with store:
        with suppress(StoreError):
            await store.flush()
        fetch = store.connections.fetch
        runs = [Run(**dict(row)) for row in await fetch(RUNS)]
        assets = [Asset(**dict(row)) for row in await fetch(ASSETS)]
        leases = [dict(row) for row in await fetch(LEASES)]
    evidence = Evidence(stage.tasks, runs, assets, stage.server.lives(), stage.server.deaths)
    found = judge(evidence)
    check_files(evidence, stage.output, await server_files(stage, assets), found)
    killed = {pid for worker in stage.workers for pid in worker.pids}
    check_leases(leases, killed, found)
    await check_rest(stage, killed, found)
    return found


async def check_rest(stage: Stage, killed: set[int], found: Findings) -> None:
    """The journal, the workers themselves, and the server's sockets."""
    summary = stage.journal.summary()
    found.leaked += [f"{summary.records} records stayed in the journal"] if summary.records else []
    for path in stage.journal.folder.glob("*.aside"):
        reason = path.read_text("utf-8", errors="replace").partition("\n")[0]
        if not ("not written to its end" in reason and killed):  # nobody was told that this one was written
            found.lost.append(f"a record was set aside: {reason[2:]}")
    found.leaked += [line for worker in stage.workers for line in worker.left]
    for one in (stage.server.proxy, stage.server.sim):
        if one is not None:
            with suppress(TimeoutError):
                await one.wait_sockets(0)
            found.leaked += [f"a socket of the {type(one).__name__} stayed open"] * one.sockets


async def server_files(stage: Stage, assets: list[Asset]) -> dict[str, str]:
    """sha256 of what the server has, by name: read on its disk, or asked for without the proxy."""
    if stage.server.sim is not None:
        base = stage.server.sim.folders.base("output")
        paths = [path for path in base.rglob("*") if path.is_file()]
        return {path.relative_to(base).as_posix(): sha256_of(path) for path in paths}
    found: dict[str, str] = {}
    async with aiohttp.ClientSession() as session:
        for asset in assets:
            subfolder, _, name = asset.there.rpartition("/")
            query = f"filename={quote(name)}&subfolder={quote(subfolder)}&type=output"
            async with session.get(f"{stage.server.proxy.target}/view?{query}") as answer:
                found[asset.there] = hashlib.sha256(await answer.read()).hexdigest()
    return found


async def soak(options: Options, seed: int) -> Row:
    """One seed, from the first job to the verdict."""
    folder = Path(tempfile.mkdtemp(prefix=f"soak-{seed}-", dir=options.keep))
    folder.chmod(0o711)  # root's PostgreSQL runs as another user
    form = "%(asctime)s %(name)s %(message)s"
    logging.basicConfig(filename=folder / "server.log", level=logging.INFO, format=form, force=True)
    began = time.monotonic()
    async with staged(options, seed, folder) as stage:
        await play(stage, options, seed)
        found = await audited(stage)
        tell(stage, found, seed)
        killed = sum(len(worker.pids) for worker in stage.workers)
        counts = stage.trouble.done.total(), killed, len(stage.server.deaths), round(time.monotonic() - began)
        figures = [*found.figures, *map(str, counts)]
    if found.good or options.keep is None:
        shutil.rmtree(folder)
    return Row(f"seed {seed}", figures, "4 zeros", found.good)


def tell(stage: Stage, found: Findings, seed: int) -> None:
    """What happened, and each thing that is wrong."""
    done = ", ".join(f"{count} {kind}" for kind, count in stage.trouble.done.most_common())
    told = sum((worker.told for worker in stage.workers), Counter[str]())
    errors = ", ".join(f"{count} {name}" for name, count in told.most_common())
    print(f"seed {seed}: {done}")
    print(f"    {stage.trouble.met} requests met a fault; callers got {errors or 'no error'}")
    for what, lines in found.lists().items():
        for line in lines[:SHOWN]:
            print(f"    {what}: {line}")
        if len(lines) > SHOWN:
            print(f"    {what}: {len(lines) - SHOWN} more")
    print(end="", flush=True)


def main() -> None:
    given = options()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    rows = [asyncio.run(soak(given, seed)) for seed in range(given.seed, given.seed + given.seeds)]
    who = "a real server" if given.server else "the simulator"
    show(f"soak: {given.processes} programs, {who}, PostgreSQL", COLUMNS + TRIED, rows)
    if given.server:
        print("This server's executions cannot be counted: a prompt that it took (200, seen by the proxy)")
        print("counts as one. Nobody here may kill it, so it was not.\n")
    sys.exit(0 if all(row.good for row in rows) else 1)


if __name__ == "__main__":
    main()
