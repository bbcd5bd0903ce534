"""One job, brought to a certain phase of its life, and what may befall it there.

As a program it runs one workflow through the library, to be killed:
    python fate.py URL DSN FOLDER STATE
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp import web
from clusters import Cluster, connected
from commands import command
from database_road import Road
from graphs import Graph, alone, image

import comfyflow
from comfyflow import (
    ComfyClient,
    ComfyflowError,
    JobLost,
    OnLost,
    PollSchedule,
    PostgresStore,
    Runner,
    RunResult,
    ServerUnreachable,
    Timeouts,
)
from comfyflow.exits import ExitCode
from comfyflow.journal import Journal
from comfyflow.part import BLOCK_SIZE
from comfyflow.sim import Effect, Fault, Sim, reset, stall
from comfyflow.sim.faults import Handler, abort
from comfyflow.sim.folders import Stored

T = TypeVar("T")
QUICK = PollSchedule(first=0.05, factor=1.5, ceiling=0.2, stall_after=0.5, deaf_after=0.5)
PATIENT = Timeouts(silence=20.0)
IMPATIENT = Timeouts(connect=0.4, answer=0.4, silence=20.0)  # nobody waits as long as a stall lasts
LONG = 30.0  # s: whatever is waited for comes far sooner
NOISE = Random(1).randbytes(5 << 19)  # bytes of a file that is more than two blocks of a download
TOLD = """
    CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_notify('told', NEW.state); RETURN NULL; END $$;
    CREATE TRIGGER told AFTER INSERT OR UPDATE ON workflow_runs FOR EACH ROW EXECUTE FUNCTION told();
"""


class Phase(StrEnum):
    """How far the job has come when it happens."""

    BEFORE = "before POST"
    POSTING = "POST in flight"
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    DOWNLOADING = "downloading"
    RECORDING = "recording"


class Trouble(StrEnum):
    """What happens."""

    CUT = "socket cut"
    DEAF = "socket deaf"
    RESET = "HTTP reset"
    STALL = "HTTP stall"
    RESTART = "server kill -9 and restart"
    KILL = "our kill -9"
    DATABASE = "PostgreSQL stop and start"


class Surface(StrEnum):
    """Who runs the job."""

    LIBRARY = "library"
    CLI = "CLI"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table."""

    phase: Phase
    trouble: Trouble
    surface: Surface

    def __str__(self) -> str:
        return f"{self.phase}, {self.trouble}, {self.surface}"

    @property
    def websocket(self) -> bool:
        """Whether the job is followed by a socket: with one there is no HTTP to be disturbed meanwhile."""
        asking = self.phase in (Phase.PENDING, Phase.RUNNING, Phase.ENDED)
        return not (asking and self.trouble in (Trouble.RESET, Trouble.STALL))

    @property
    def refused(self) -> bool:
        """Whether the job is never sent: there is no server when it is about to be."""
        return self.phase is Phase.BEFORE and self.trouble is Trouble.RESTART


def graph() -> Graph:
    """A picture, and a file large enough to be cut in the middle."""
    return {**image(), "3": alone("SimFile", filename_prefix="noise", suffix="bin", size=len(NOISE))["1"]}


# the job


async def run_in_library(
    url: str,
    dsn: str,
    folder: Path,
    state: Path,
    *,
    websocket: bool = True,
    timeouts: Timeouts = PATIENT,
    on_lost: OnLost = OnLost.FAIL,
) -> RunResult:
    """A program with its own client, store and runner, from the first line to the last."""
    async with (
        ComfyClient(url, poll=QUICK, timeout=timeouts, websocket=websocket) as client,
        await PostgresStore.open(dsn, journal=Journal(state / "journal")) as store,
        Runner(client, store, folder, on_lost=on_lost, resubmits=2) as runner,
    ):
        return await runner.run(graph())


async def resume_in_library(url: str, dsn: str, folder: Path, state: Path) -> list[RunResult]:
    """What `comfyflow resume` does."""
    async with (
        ComfyClient(url, poll=QUICK, timeout=PATIENT) as client,
        await PostgresStore.open(dsn, journal=Journal(state / "journal")) as store,
        Runner(client, store, folder) as runner,
    ):
        return [result async for result in runner.resume()]


@dataclass(frozen=True, slots=True)
class Said:
    """What a process left behind."""

    code: int
    out: str
    err: str


class Program:
    """A process that can be killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said = asyncio.create_task(process.communicate())

    @classmethod
    async def start(cls, *arguments: str, env: dict[str, str], folder: Path) -> Program:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *arguments, env=env, cwd=folder, stdout=pipe, stderr=pipe
        )
        return cls(process)

    async def kill(self) -> None:
        """kill -9, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.said

    async def ended(self) -> Said:
        out, err = await self.said
        assert self._process.returncode is not None
        return Said(self._process.returncode, out.decode(), err.decode())


# what holds a job in a phase, and what disturbs it there


class Gate(Road):
    """The way to PostgreSQL, closed for the outcome of a job until `release`."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.met, self._released = asyncio.Event(), asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def _requests(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if b'"outcome"' in data:  # a key of what is written; never in the text of the statement
                    self.met.set()
                    await self._released.wait()
                back.write(data)
                await back.drain()
        back.transport.abort()


class Halfway:
    """/view of the large file, once: half of it, and the other half, or a reset, when the fault is
    released."""

    def __init__(self, *, cut: bool) -> None:
        self.cut, self.met = cut, asyncio.Event()
        self.again = asyncio.Event()  # it was asked for once more

    async def __call__(self, request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        found = await handler(request)
        if not isinstance(found, Stored) or found.path.suffix != ".bin":
            return found
        if self.met.is_set():
            self.again.set()
            return found
        found.path.write_bytes(NOISE)
        stamp = found.path.stat()
        etag = {"ETag": f'"{stamp.st_mtime_ns:x}-{stamp.st_size:x}"'}  # as FileResponse of aiohttp makes it
        answer = web.StreamResponse(headers={**found.headers, **etag})
        answer.content_length = len(NOISE)
        with suppress(ConnectionError):  # whoever asked may be dead
            await answer.prepare(request)
            await answer.write(NOISE[: len(NOISE) // 2])
            self.met.set()
            await fault.released()
            abort(request) if self.cut else await answer.write(NOISE[len(NOISE) // 2 :])
        return answer


def reset_when_released(*, after: bool = False) -> Effect:
    """The request is handled (`after`) or not; its connection is reset when the fault is released."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        if after:
            await handler(request)
        await fault.released()
        abort(request)
        return web.Response(status=500)

    return effect


@asynccontextmanager
async def states(dsn: str) -> AsyncIterator[asyncio.Queue[str]]:
    """The states of jobs, as their rows get them."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with connected(dsn) as connection:
        await connection.execute(TOLD)
        await connection.add_listener("told", lambda *told: heard.put_nowait(told[-1]))
        yield heard


async def reaches(heard: asyncio.Queue[str], state: str) -> None:
    """Wait until a row has this state."""
    while await heard.get() != state:
        pass


# the play


@dataclass(slots=True)
class Stage:
    """All that takes part in one cell. `dsn` is the database itself; the job's way to it may lead through
    `gate`."""

    cell: Cell
    sim: Sim
    folder: Path
    dsn: str
    cluster: Cluster | None = None  # of `dsn`, where it is to be stopped
    resubmit: bool = True  # a job that is lost with its server is sent again
    gate: Gate | None = None
    holds: list[Fault] = field(default_factory=list)  # released when it has happened
    next: Fault | None = None  # what the request after that meets
    halfway: Halfway | None = None
    blocker: str = ""  # a job of somebody else, in front of ours
    job: Program | asyncio.Task[RunResult] | None = None

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    async def play(self) -> None:
        """The whole cell, until everything has ended."""
        async with asyncio.timeout(LONG):
            async with states(self.dsn) as heard:
                await self._prepare()
                await self._start()
                await self._unless_it_ends(self._arrive(heard))
            await _TROUBLES[self.cell.trouble](self)
            await self._end()
            if self.cluster is not None:
                await self._flush(self.cluster)

    async def close(self) -> None:
        """Nothing of it stays behind, however it went."""
        if isinstance(self.job, Program):
            await self.job.kill()
        elif self.job is not None:
            self.job.cancel()
            await asyncio.wait([self.job])
        if self.gate is not None:
            await self.gate.__aexit__(None, None, None)

    async def comfyflow(self, *arguments: str, dsn: str | None = None) -> Said:
        """A command, to its end."""
        return await (await self._program(command(*arguments), dsn or self.dsn)).ended()

    async def _unless_it_ends(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that happens while the job is under way; one that ends too early says why."""
        doing, job = asyncio.create_task(work), asyncio.create_task(self.over())
        await asyncio.wait([doing, job], return_when=asyncio.FIRST_COMPLETED)
        job.cancel()
        if not doing.done():
            doing.cancel()
            await self._end()
            raise AssertionError("the job has ended too early")
        await doing

    async def over(self) -> None:
        """Wait until the program that runs the job has ended."""
        assert self.job is not None
        await asyncio.wait([self.job.said if isinstance(self.job, Program) else self.job])

    # the phase

    async def _prepare(self) -> None:
        trouble, add = self.cell.trouble, self.sim.faults.add
        disturbed = trouble is Trouble.RESET
        match self.cell.phase:
            case Phase.BEFORE:
                cut = trouble in (Trouble.CUT, Trouble.RESET)
                self.holds = [add("GET", "/ws", reset_when_released() if cut else stall())]
                if disturbed:
                    self.next = add("GET", "/prompt", reset())
            case Phase.POSTING:
                await self._block()
                effect = reset_when_released(after=True) if disturbed else stall(after=True)
                self.holds = [add("POST", "/prompt", effect)]
            case Phase.PENDING:
                await self._block()
            case Phase.RUNNING:
                await self.sim.hold()
            case Phase.ENDED if self.cell.websocket:
                self.holds = [add("GET", path, stall(), times=None) for path in ("/history*", "/jobs*")]
            case Phase.ENDED:
                self.holds = [add("GET", "/jobs*", reset_when_released() if disturbed else stall())]
                self.next = add("GET", "/jobs*", reset() if disturbed else stall())
            case Phase.DOWNLOADING:
                self.halfway = Halfway(cut=disturbed)
                self.holds = [add("GET", "/view", self.halfway, times=None)]
            case Phase.RECORDING:
                self.gate = Gate(self.dsn)
                await self.gate.open()

    async def _block(self) -> None:
        """Have another job run, and stand still."""
        await self.sim.hold()
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.sim.url}/prompt", json={"prompt": image()}) as answer,
        ):
            self.blocker = (await answer.json())["prompt_id"]
        await self.sim.wait_running(self.blocker)

    async def _start(self) -> None:
        dsn = self.dsn if self.gate is None else self.gate.dsn
        places = self.sim.url, dsn, self.output, self.state
        cell = self.cell
        if cell.surface is Surface.CLI:
            file = self.folder / "workflow.json"
            file.write_text(json.dumps(graph()))
            options = ["--wait", "--quiet", "--output", str(self.output)]
            options += [] if cell.websocket else ["--no-websocket"]
            options += ["--resubmit-lost", "2"] if self._resubmits else []
            arguments = command("run", str(file), *options)
        elif cell.trouble is Trouble.KILL:
            arguments = [sys.executable, __file__, *map(str, places)]
        else:
            timeouts = IMPATIENT if cell.trouble is Trouble.STALL else PATIENT
            on_lost = OnLost.RESUBMIT if self._resubmits else OnLost.FAIL
            road = run_in_library(*places, websocket=cell.websocket, timeouts=timeouts, on_lost=on_lost)
            self.job = asyncio.create_task(road)
            return
        self.job = await self._program(arguments, dsn)

    @property
    def _resubmits(self) -> bool:
        return self.resubmit and self.cell.trouble is Trouble.RESTART

    async def _arrive(self, heard: asyncio.Queue[str]) -> None:
        sim, mine = self.sim, self._is_mine
        await reaches(heard, "created")
        match self.cell.phase:
            case Phase.BEFORE:
                await self.holds[0].met()
            case Phase.POSTING:
                await sim.wait_for(lambda: any(mine(item[1]) for item in sim.engine.pending))
            case Phase.PENDING:
                await reaches(heard, "queued")
                await sim.wait_for(lambda: any(mine(item[1]) for item in sim.engine.pending))
            case Phase.RUNNING:
                await reaches(heard, "queued")
                await sim.wait_running()
            case Phase.ENDED:
                await reaches(heard, "queued")
                await sim.wait_for(lambda: any(map(mine, sim.engine.history)))
                await _first(*(hold.met() for hold in self.holds))
            case Phase.DOWNLOADING:
                assert self.halfway is not None
                await self.halfway.met.wait()
                while not self._has_part():  # noqa: ASYNC110 - the disk tells nobody
                    await asyncio.sleep(0)
            case Phase.RECORDING:
                assert self.gate is not None
                await self.gate.met.wait()

    def _has_part(self) -> bool:
        """Whether the first block of the large file is on the disk."""
        with suppress(FileNotFoundError):  # that of the picture: it is here in the meantime
            return any(part.stat().st_size >= BLOCK_SIZE for part in self.output.glob(".*.part"))
        return False

    def _is_mine(self, prompt_id: str) -> bool:
        return prompt_id != self.blocker

    async def let_go(self) -> None:
        """Whatever held the job holds it no longer."""
        self._let_pass(self.holds)
        if self.cell.trouble is Trouble.STALL and self.next is not None:
            self._let_pass([self.next])
        if self.gate is not None:
            self.gate.release()
        await self.sim.release()

    @staticmethod
    def _let_pass(faults: list[Fault]) -> None:
        for fault in faults:
            fault.left = 0
            fault.release()

    # its end

    async def _end(self) -> None:
        if isinstance(self.job, Program):
            await self._end_of(self.job)
            return
        assert self.job is not None
        error, _ = self.expected
        with nullcontext() if error is None else pytest.raises(error):
            assert (await self.job).error is None

    @property
    def expected(self) -> tuple[type[ComfyflowError] | None, ExitCode]:
        """How the program ends that runs the job."""
        if self.cell.refused:
            return ServerUnreachable, ExitCode.UNREACHABLE
        if self.cell.trouble is Trouble.RESTART and not self.resubmit:
            return JobLost, ExitCode.LOST
        return None, ExitCode.OK

    async def _end_of(self, program: Program) -> None:
        if self.cell.trouble is not Trouble.KILL:
            said = await program.ended()
            assert (said.code, _complaints(said)) == (self.expected[1], []), said
        elif self.cell.surface is Surface.CLI:
            said = await self._released_by_the_first_look(self.comfyflow("resume", "--quiet"))
            assert (said.code, _complaints(said)) == (0, []), said
        else:
            road = resume_in_library(self.sim.url, self.dsn, self.output, self.state)
            assert [result.error for result in await self._released_by_the_first_look(road)] == [None]

    async def _released_by_the_first_look(self, road: Coroutine[Any, Any, T]) -> T:
        """The job goes on when somebody has asked for it: it was to be found as it stood."""
        seen = self.sim.looks()
        resuming = asyncio.create_task(road)
        looked = self.sim.wait_for(lambda: self.sim.looks() > seen, timeout=LONG)
        await _first(looked, asyncio.wait([resuming]))
        await self.sim.release()
        return await resuming

    async def _flush(self, cluster: Cluster) -> None:
        """PostgreSQL is back: the next program writes what waited for it."""
        await asyncio.to_thread(cluster.start)
        dsn = self.dsn
        if self.gate is not None:
            await self.gate.open()
            dsn = self.gate.dsn
        if self.cell.surface is Surface.CLI:
            said = await self.comfyflow("db", "flush", dsn=dsn)
            assert (said.code, _complaints(said)) == (0, []), said
        else:
            async with await PostgresStore.open(dsn, journal=Journal(self.state / "journal")):
                pass

    async def _program(self, arguments: list[str], dsn: str) -> Program:
        foreign = ("COMFY", "PG", "POSTGRES", "DATABASE_URL")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        ours = {
            "COMFYFLOW_URL": self.sim.url,
            "COMFYFLOW_DATABASE_URL": dsn,
            "COMFYFLOW_STATE": str(self.state),
            "PYTHONPATH": str(Path(comfyflow.__file__).parent.parent),
        }
        return await Program.start(*arguments, env=kept | ours, folder=self.folder)


def _complaints(said: Said) -> list[str]:
    """What an interpreter says of tasks, connections and errors that nobody took care of."""
    words = ("Traceback", "never retrieved", "was destroyed", "Unclosed", "never awaited")
    return [line for line in said.err.splitlines() if any(word in line for word in words)]


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for one of them."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# what happens


async def _cut(stage: Stage) -> None:
    assert stage.sim.sockets == (stage.cell.phase is not Phase.BEFORE)
    stage.sim.drop_sockets()
    await stage.let_go()


async def _deaf(stage: Stage) -> None:
    """The socket stays open, and says nothing any more; one that is just being opened says nothing at all."""
    if stage.cell.phase is Phase.BEFORE:
        opened = asyncio.create_task(stage.sim.wait_sockets(1))
        await stage.let_go()
        await opened
    assert stage.sim.sockets == 1
    stage.sim.deafen()
    await stage.let_go()


async def _reset(stage: Stage) -> None:
    await _disturb(stage, reset)


async def _stall(stage: Stage) -> None:
    await _disturb(stage, stall)


async def _disturb(stage: Stage, effect: Callable[[], Effect]) -> None:
    """What is in flight is, and what comes next. A stall lasts until it was given up, by the library, which
    was told to be impatient; the command line waits a minute for an answer, so it has to last less there."""
    sim, phase = stage.sim, stage.cell.phase
    if phase in (Phase.PENDING, Phase.RUNNING):
        stage.holds = [sim.faults.add("GET", "/jobs*", effect())]
        stage.next = sim.faults.add("GET", "/jobs*", effect())
        await stage.holds[0].met()
    elif phase is Phase.RECORDING:
        stage.next = sim.faults.add("*", "*", effect(), times=None)
    if effect is stall and stage.cell.surface is Surface.LIBRARY:
        await _given_up(stage)
    await stage.let_go()


async def _given_up(stage: Stage) -> None:
    """Wait until the job has gone on without the answer that it does not get."""
    match stage.cell.phase:
        case Phase.BEFORE:
            await stage.sim.wait_for(lambda: bool(stage.sim.executed))
        case Phase.POSTING:
            await stage.sim.wait_for(lambda: stage.sim.looks() > 0)
        case Phase.DOWNLOADING:
            assert stage.halfway is not None
            await stage.halfway.again.wait()
        case Phase.PENDING | Phase.RUNNING | Phase.ENDED:
            assert stage.next is not None
            await stage.next.met()
        case Phase.RECORDING:
            pass  # nothing is asked any more


async def _restart(stage: Stage) -> None:
    await stage.sim.kill()
    await stage.let_go()
    if stage.cell.phase is Phase.BEFORE:
        await stage.over()  # it finds nobody there, and says so: nothing was sent
    await stage.sim.start()


async def _kill(stage: Stage) -> None:
    assert isinstance(stage.job, Program)
    await stage.job.kill()
    stage._let_pass(stage.holds)


async def _database(stage: Stage) -> None:
    """PostgreSQL is away until the job has ended; what could not be recorded is when it is back."""
    assert stage.cluster is not None
    await asyncio.to_thread(stage.cluster.stop)
    if stage.gate is not None:
        await stage.gate.close()
    await stage.let_go()


_TROUBLES: dict[Trouble, Callable[[Stage], Coroutine[Any, Any, None]]] = {
    Trouble.CUT: _cut,
    Trouble.DEAF: _deaf,
    Trouble.RESET: _reset,
    Trouble.STALL: _stall,
    Trouble.RESTART: _restart,
    Trouble.KILL: _kill,
    Trouble.DATABASE: _database,
}


if __name__ == "__main__":
    asyncio.run(run_in_library(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
