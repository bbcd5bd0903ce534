"""Commands that run jobs and record them: run, wait, download."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import report
from ..console import Call, Interrupted, attended
from ..errors import ComfyflowError, JobTimeout, UsageError
from ..models import JobState, JobView
from ..settings import Settings
from ..store import Job, Store
from ..workflow import Workflow, random_seed
from .app import (
    FileArgument,
    Following,
    JobArgument,
    KeepOption,
    Pooling,
    Sending,
    SharedOption,
    app,
    command,
    connected,
)
from .prepared import Change, Changing, Checking, Prepared
from .recorded import OFTEN, answer, check_folder, recorded

if TYPE_CHECKING:
    from ..client import ComfyClient
    from ..outcome import RunResult
    from ..pool import ServerPool
    from ..runner import Runner

FAREWELL = 5.0  # s to end the job on the server after Ctrl-C
SIMULATED_STEP = 0.03  # s for one step of a sampler in `run --simulate`, so that there is something to see


class OnInterrupt(StrEnum):
    """What Ctrl-C does to the job on the server."""

    LEAVE = "leave"
    CANCEL = "cancel"


WaitOption = Annotated[bool, typer.Option("--wait", help="Follow the job to its end and save its files.")]
OutputOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for files. [default: COMFYFLOW_OUTPUT, ./comfyflow-output]"),
]
SeedOption = Annotated[str | None, typer.Option(metavar="N|random", help="Set every seed of the workflow.")]
PartialOption = Annotated[
    bool,
    typer.Option("--allow-partial", help="Accept that the server runs only the part that it finds valid."),
]
SimulateOption = Annotated[
    bool, typer.Option("--simulate", help="Run on a simulated server that starts and ends with this command.")
]
MountedOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Where ComfyUI's own output folder is mounted here: take files from it."
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="TEXT",
        help="Run this once: when a job of this key is known, nothing is sent and that job is followed.",
    ),
]
ReuseOption = Annotated[
    bool,
    typer.Option(
        "--reuse",
        help="With --wait: give the files of an earlier run of this workflow, if the record has them whole.",
    ),
]
InterruptOption = Annotated[
    OnInterrupt, typer.Option("--on-interrupt", help="With --wait: what Ctrl-C does to the job.")
]
FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder for the files; made when it is missing.")
]


@command(app)
def run(
    file: FileArgument,
    *,
    wait: WaitOption = False,
    output: OutputOption = None,
    seed: SeedOption = None,
    allow_partial: PartialOption = False,
    simulate: SimulateOption = False,
    comfyui_output: MountedOption = None,
    shared: SharedOption = None,
    keep_content: KeepOption = False,
    key: KeyOption = None,
    on_interrupt: InterruptOption = OnInterrupt.CANCEL,
    reuse: ReuseOption = False,
    changing: Changing,
    checking: Checking,
    sending: Sending,
    pooling: Pooling,
    options: Following,
) -> None:
    """Send a workflow; with --wait save its files.

    With --wait it is followed to its end, its files are saved, and their paths are printed.
    Without it the prompt id is printed as soon as the server has taken the job.
    Ctrl-C ends the job on the server too, unless --on-interrupt leave; a second Ctrl-C stops at once.
    """
    call = options.call(quiet=options.quiet)
    with call.guarded():
        settings = options.settings(output=output, shared=shared, keep_content=keep_content)
        _check_simulation(simulate, options.server, wait)
        _check_reuse(reuse, options.database, wait)
        change = Change.of(changing, _seed(seed, call))
        prepared = Prepared.of(call, file, change, checking)
        _check_places(comfyui_output, key)
        ways = options, sending, pooling
        places = simulate, allow_partial, comfyui_output
        road = _Road(call, settings, *ways, *places, key, on_interrupt, reuse)
        if wait:
            check_folder(settings.output)
        attended(road.follow(prepared) if wait else road.submit(prepared))


@command(app)
def wait(prompt_id: JobArgument, *, options: Following) -> None:
    """Wait for a job's end, and record it. Ctrl-C stops the waiting, not the job."""
    call = options.call(quiet=options.quiet, prompt_id=prompt_id)
    with call.guarded():
        attended(_wait(call, options.settings(), options, prompt_id))


@command(app)
def download(
    prompt_id: JobArgument,
    folder: FolderArgument,
    *,
    shared: SharedOption = None,
    keep_content: KeepOption = False,
    options: Following,
) -> None:
    """Save the files of a job, record them and print their paths.

    A job that has not ended yet is waited for.
    """
    call = options.call(quiet=options.quiet, prompt_id=prompt_id)
    with call.guarded():
        settings = options.settings(output=folder, shared=shared, keep_content=keep_content)
        check_folder(folder)
        attended(_download(call, settings, options, prompt_id))


# the road of `run`


@dataclass(slots=True)
class _Noted:
    """The one job of this command, even while it is being sent; `accepted`: the server has taken it."""

    job: Job | None = None
    accepted: bool = False
    mine: bool = False  # it was sent by this command, and not found by its key

    def note(self, job: Job) -> None:
        self.accepted = self.job is not None
        self.job, self.mine = job, True


@dataclass(frozen=True, slots=True)
class _Road:
    """`run`, from the settings to what is printed."""

    call: Call
    settings: Settings
    options: Following
    sending: Sending
    pooling: Pooling
    simulate: bool
    allow_partial: bool
    comfyui_output: Path | None
    key: str | None
    on_interrupt: OnInterrupt
    reuse: bool
    noted: _Noted = field(default_factory=_Noted)

    async def submit(self, prepared: Prepared) -> None:
        """Send, print the prompt id."""
        async with recorded(self.call, self.options) as record:
            async with (
                self._open(record.store, prepared, websocket=False) as runner,
                prepared.ready(runner.client) as workflow,
            ):
                job = await self._submitted(runner, workflow)
            self.call.known |= {"prompt_id": job.prompt_id, "state": "submitted"}
        answer(self.call, record, self.call.known, [job.prompt_id])

    async def follow(self, prepared: Prepared) -> None:
        """Send, follow, save, print the paths. On Ctrl-C the job is cancelled on the server too."""
        async with recorded(self.call, self.options) as record:
            websocket = not self.options.no_websocket
            async with self._open(record.store, prepared, websocket=websocket) as runner:
                done, workflow = await self._followed(runner, prepared)
        answer(self.call, record, self._document(done, workflow), _lines(done, workflow))

    async def _followed(self, runner: Runner, prepared: Prepared) -> tuple[RunResult, Workflow]:
        try:
            async with prepared.ready(runner.client) as workflow:
                before = await runner.earlier(workflow) if self.reuse else None
                if before is not None:
                    self.call.known |= {"prompt_id": before.prompt_id, "again": True}
                    return before, workflow
                return await self._run(runner, workflow), workflow
        except asyncio.CancelledError:
            raise Interrupted(await self._last_words(runner)) from None

    @asynccontextmanager
    async def _open(self, store: Store, prepared: Prepared, *, websocket: bool) -> AsyncIterator[Runner]:
        from ..runner import Runner

        settings, sending = self.settings, self.sending
        async with AsyncExitStack() as stack:
            if self.simulate:
                settings = replace(settings, url=await stack.enter_async_context(_simulator()), servers=())
            client = connected(
                settings, websocket=websocket, ambiguous=sending.ambiguous, pooling=self.pooling
            )
            self.call.known["server"] = "simulated" if self.simulate else settings.shown_url
            opened: ComfyClient | ServerPool = await stack.enter_async_context(client)
            checker = prepared.checking.checker(opened, prepared.info, allow_partial=self.allow_partial)
            runner = Runner(
                opened,
                store,
                settings.output,
                comfyui_output=self.comfyui_output,
                allow_partial=self.allow_partial,
                shared=settings.shared,
                keep_content=settings.keep_content,
                on_lost=sending.on_lost,
                resubmits=sending.resubmit_lost or 1,
                on_job=self.noted.note,
                check=checker,
                on_cached=prepared.checking.on_cached,
            )
            yield await stack.enter_async_context(runner)

    async def _submitted(self, runner: Runner, workflow: Workflow) -> Job:
        """Send within --timeout. After that nobody knows whether the server has taken the job."""
        import anyio

        try:
            with anyio.fail_after(self.settings.timeouts.total):
                return await runner.submit(workflow, key=self.key)
        except TimeoutError:
            job = self.noted.job
            view = JobView("" if job is None else job.prompt_id, JobState.SUBMITTED)
            text = "the server has not answered in time; whether it took the job is not known"
            raise JobTimeout(text, view=view) from None

    async def _run(self, runner: Runner, workflow: Workflow) -> RunResult:
        from ..progress import progress_on

        with progress_on(sys.stderr, quiet=self.call.quiet) as progress:
            job = await self._submitted(runner, workflow)
            self.noted.job, self.noted.accepted = job, True
            self.call.known["prompt_id"] = job.prompt_id
            if not self.simulate and len(self.settings.servers) > 1:
                self.call.known["server"] = job.server
            done = await runner.complete(job, on_view=progress.show, timeout=self.settings.timeouts.total)
            self.call.known["prompt_id"] = done.prompt_id
            return done

    async def _last_words(self, runner: Runner) -> str:
        """End the job that was being followed, in a few seconds at most, and say what became of it."""
        import anyio

        job = self.noted.job
        if job is None:
            return "stopped"
        if self.on_interrupt is OnInterrupt.LEAVE or not self.noted.mine:
            return f"stopped; job {job.prompt_id} was left on the server: `comfyflow resume` gets its files"
        unsure = f"stopped; job {job.prompt_id} may still run on the server"
        with anyio.move_on_after(FAREWELL, shield=True):
            try:
                ended = await runner.cancel(job, timeout=FAREWELL)
            except ComfyflowError as error:
                return f"{unsure}: {error}"
            except asyncio.CancelledError:  # a second Ctrl-C: do not even wait for this
                return unsure
            otherwise = "had ended already" if self.noted.accepted else "was not on the server yet"
            return f"stopped; job {job.prompt_id} {'was cancelled' if ended else otherwise}"
        return unsure

    def _document(self, done: RunResult, workflow: Workflow) -> dict[str, Any]:
        assert done.result is not None  # an outcome without one is raised
        return {
            **self.call.known,
            **report.result_document(done.result, done.files, workflow),
            "timings": {"total": round(done.elapsed, 3), "execution": report.execution_seconds(done.result)},
        }


def _lines(done: RunResult, workflow: Workflow) -> list[str]:
    texts = () if done.result is None else done.result.texts
    return [*(str(saved.path) for saved in done.files), *report.text_lines(texts, workflow)]


# the other commands' work


async def _wait(call: Call, settings: Settings, options: Following, prompt_id: str) -> None:
    async with (
        recorded(call, options) as record,
        _adopted(call, settings, record.store, prompt_id) as (runner, job, show),
    ):
        result = await runner.follow(job, on_view=show, timeout=settings.timeouts.total)
    document = {**report.result_document(result, ()), "server": settings.shown_url}
    lines = [f"{prompt_id}: {report.STATES[result.state]}", *report.text_lines(result.texts)]
    answer(call, record, document, lines)


async def _download(call: Call, settings: Settings, options: Following, prompt_id: str) -> None:
    async with (
        recorded(call, options) as record,
        _adopted(call, settings, record.store, prompt_id) as (runner, job, show),
    ):
        done = await runner.complete(job, on_view=show, timeout=settings.timeouts.total)
    document = {"prompt_id": prompt_id, "files": [report.file_document(saved) for saved in done.files]}
    lines = [str(saved.path) for saved in done.files]
    answer(call, record, {**document, "server": settings.shown_url}, lines)


@asynccontextmanager
async def _adopted(
    call: Call, settings: Settings, store: Store, prompt_id: str
) -> AsyncIterator[tuple[Runner, Job, Any]]:
    """A job that is on the server already, with a runner that knows it, and a way to show its progress."""
    from ..progress import progress_on
    from ..runner import Runner

    call.known["server"] = settings.shown_url
    # A socket tells a client of its own jobs alone (server.py, send_sync): this one is another client's.
    async with connected(settings, websocket=False, poll=OFTEN) as client:
        runner = Runner(
            client, store, settings.output, shared=settings.shared, keep_content=settings.keep_content
        )
        async with runner:
            with progress_on(sys.stderr, quiet=call.quiet) as progress:
                await client.poll_status(prompt_id)  # a wrong address is told at once, not after the silence
                yield runner, await runner.adopt(prompt_id), progress.show


@asynccontextmanager
async def _simulator() -> AsyncIterator[str]:
    from ..sim import Sim

    async with Sim(step_delay=SIMULATED_STEP, any_model=True) as server:
        yield server.url


# input


def _seed(text: str | None, call: Call) -> int | None:
    """The number that `--seed` means; the document tells it, so that a random one can be used again."""
    if text is None:
        return None
    try:
        call.known["seed"] = random_seed() if text == "random" else int(text)
    except ValueError as error:
        raise UsageError(f"--seed: {text!r} is neither a whole number nor 'random'") from error
    return int(call.known["seed"])


def _check_places(comfyui_output: Path | None, key: str | None) -> None:
    if comfyui_output is not None and not comfyui_output.is_dir():
        raise UsageError(f"--comfyui-output: {comfyui_output} is no folder here: mount it, or leave it out")
    if key == "":
        raise UsageError("--key: an empty key tells nothing apart: give it a text")


def _check_reuse(reuse: bool, database: str | None, wait: bool) -> None:
    if reuse and database == "none":
        raise UsageError("--reuse looks into the record, and --database none has none: leave one of them out")
    if reuse and not wait:
        raise UsageError("--reuse needs --wait: it gives files")


def _check_simulation(simulate: bool, servers: Sequence[str] | None, wait: bool) -> None:
    if simulate and servers:
        raise UsageError("--simulate and --server exclude each other: leave one of them out")
    if simulate and not wait:
        raise UsageError("--simulate needs --wait: the simulated server ends with this command")
