"""Commands that run jobs and record them: run, wait, download."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import report
from ..console import Call, Interrupted, attended, tell
from ..errors import (
    ComfyflowError,
    DownloadError,
    JobTimeout,
    StoreUnavailable,
    UsageError,
    WorkflowInvalid,
)
from ..exits import exit_code
from ..models import JobFailure, JobResult, JobState, JobView, OutputFile, PollSchedule
from ..settings import Settings
from ..store import Accepted, Added, Entry, Job, JobRecord, Store, ending
from ..workflow import Workflow, random_seed
from .app import (
    FileArgument,
    Following,
    JobArgument,
    KeepOption,
    SharedOption,
    app,
    command,
    connected,
    loaded,
)

if TYPE_CHECKING:
    from ..client import ComfyClient
    from ..recording import Recording
    from ..runner import Runner, RunResult

OFTEN = PollSchedule(ceiling=5.0)  # for jobs that no socket tells of
FAREWELL = 5.0  # s to end the job on the server after Ctrl-C
SIMULATED_STEP = 0.03  # s for one step of a sampler in `run --simulate`, so that there is something to see


class OutputFolderUnusable(DownloadError):
    """The folder for results cannot be written; found before anything was sent."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(reason, output=OutputFile("", folder.name), destination=folder)
        self.args = (f"the output folder {folder} cannot be used: {reason}; name another one with --output",)


WaitOption = Annotated[bool, typer.Option("--wait", help="Follow the job to its end and save its files.")]
OutputOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for files. [default: COMFYFLOW_OUTPUT, ./comfyflow-output]"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NODE.INPUT=VALUE", help="Change an input; NODE is an id, a title or a class name."
    ),
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
FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder for the files; made when it is missing.")
]


@command(app)
def run(
    file: FileArgument,
    *,
    wait: WaitOption = False,
    output: OutputOption = None,
    assignments: SetOption = None,
    seed: SeedOption = None,
    allow_partial: PartialOption = False,
    simulate: SimulateOption = False,
    comfyui_output: MountedOption = None,
    shared: SharedOption = None,
    keep_content: KeepOption = False,
    options: Following,
) -> None:
    """Send a workflow; with --wait save its files.

    With --wait it is followed to its end, its files are saved, and their paths are printed.
    Without it the prompt id is printed as soon as the server has taken the job.
    """
    call = options.call(quiet=options.quiet)
    with call.guarded():
        settings = options.settings(output=output, shared=shared, keep_content=keep_content)
        _check_simulation(simulate, options.server, wait)
        call.workflow = workflow = _patched(loaded(file), assignments or (), _seed(seed, call))
        if comfyui_output is not None and not comfyui_output.is_dir():
            raise UsageError(
                f"--comfyui-output: {comfyui_output} is no folder here: mount it, or leave it out"
            )
        road = _Road(call, settings, options, simulate, allow_partial, comfyui_output)
        if wait:
            _check_folder(settings.output)
        attended(road.follow(workflow) if wait else road.submit(workflow))


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
        _check_folder(folder)
        attended(_download(call, settings, options, prompt_id))


# the record


@asynccontextmanager
async def _recorded(call: Call, options: Following) -> AsyncIterator[Recording]:
    """What the jobs of a command are recorded in. When that is only the journal, a line on stderr says why.

    A database that cannot be used is no reason to stop a job: see `_answer`.
    """
    from ..recording import recording

    async with AsyncExitStack() as stack:
        record = await stack.enter_async_context(recording(options.environment(), options.database))
        before = record.fault
        _warn(record)
        try:
            yield record
        finally:
            await stack.aclose()  # which writes what was still to be written
            call.known["recorded"] = record.where
            if before is None and isinstance(record.fault, StoreUnavailable):
                _warn(record)


def _warn(record: Recording) -> None:
    if record.lost is not None:
        tell([f"comfyflow: {report.printable(record.lost)}; until then nothing is recorded"])
    elif record.fault is not None:
        tell([f"comfyflow: {report.printable(record.fault)}; until then the journal keeps the record"])


def _answer(call: Call, record: Recording, document: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Print the result. A database that refuses makes the exit code that of the refusal, although the job is
    done: trying again will not help, somebody has to look."""
    fault = None if isinstance(record.fault, StoreUnavailable) else record.fault
    error = {} if fault is None else {"error": report.error_document(fault)}
    call.answer({**document, **error, "recorded": record.where}, lines)
    if fault is not None:
        place = "anywhere" if record.lost is not None else "in the database"
        tell([f"comfyflow: the job is done, but not recorded {place}: {report.printable(fault)}"])
        raise SystemExit(int(exit_code(fault)))


class _Noting(Store):
    """Passes everything on, and knows the one job of this command, even while it is being sent."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.job: Job | None = None

    async def write(self, *entries: Entry, lazily: bool = False) -> None:
        for entry in entries:
            match entry:
                case Added(job):
                    self.job = job
                case Accepted(job, prompt_id):
                    self.job = replace(job, prompt_id=prompt_id)
        await self.store.write(*entries, lazily=lazily)

    async def get(self, prompt_id: str) -> JobRecord | None:
        return await self.store.get(prompt_id)

    def unfinished(self) -> AsyncIterator[Job]:
        return self.store.unfinished()


# the road of `run`


@dataclass(frozen=True, slots=True)
class _Road:
    """`run`, from the settings to what is printed."""

    call: Call
    settings: Settings
    options: Following
    simulate: bool
    allow_partial: bool
    comfyui_output: Path | None

    async def submit(self, workflow: Workflow) -> None:
        """Send, print the prompt id."""
        async with _recorded(self.call, self.options) as record:
            store = _Noting(record.store)
            async with self._open(store, websocket=False) as (runner, _):
                job = await self._submitted(runner, store, workflow)
            self.call.known |= {"prompt_id": job.prompt_id, "state": "submitted"}
        _answer(self.call, record, self.call.known, [job.prompt_id])

    async def follow(self, workflow: Workflow) -> None:
        """Send, follow, save, print the paths. On Ctrl-C the job is cancelled on the server too."""
        async with _recorded(self.call, self.options) as record:
            store = _Noting(record.store)
            websocket = not self.options.no_websocket
            async with self._open(store, websocket=websocket) as (runner, client), runner:
                try:
                    done = await self._run(runner, store, workflow)
                except asyncio.CancelledError:
                    said = await _last_words(client, store, accepted="prompt_id" in self.call.known)
                    raise Interrupted(said) from None
        _answer(self.call, record, self._document(done, workflow), _lines(done, workflow))

    @asynccontextmanager
    async def _open(self, store: Store, *, websocket: bool) -> AsyncIterator[tuple[Runner, ComfyClient]]:
        from ..runner import Runner

        settings = self.settings
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(_simulator()) if self.simulate else settings.url
            client = await stack.enter_async_context(connected(settings, url, websocket=websocket))
            self.call.known["server"] = "simulated" if self.simulate else settings.shown_url
            runner = Runner(
                client,
                store,
                settings.output,
                comfyui_output=self.comfyui_output,
                allow_partial=self.allow_partial,
                shared=settings.shared,
                keep_content=settings.keep_content,
            )
            yield runner, client

    async def _submitted(self, runner: Runner, store: _Noting, workflow: Workflow) -> Job:
        """Send within --timeout. After that nobody knows whether the server has taken the job."""
        import anyio

        try:
            with anyio.fail_after(self.settings.timeouts.total):
                return await runner.submit(workflow)
        except TimeoutError:
            view = JobView("" if store.job is None else store.job.prompt_id, JobState.SUBMITTED)
            text = "the server has not answered in time; whether it took the job is not known"
            raise JobTimeout(text, view=view) from None

    async def _run(self, runner: Runner, store: _Noting, workflow: Workflow) -> RunResult:
        from ..progress import progress_on

        with progress_on(sys.stderr, quiet=self.call.quiet) as progress:
            job = await self._submitted(runner, store, workflow)
            self.call.known["prompt_id"] = job.prompt_id
            return await runner.complete(job, on_view=progress.show, timeout=self.settings.timeouts.total)

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


async def _last_words(client: ComfyClient, store: _Noting, *, accepted: bool) -> str:
    """End the job that was being followed, in a few seconds at most, and say what became of it."""
    import anyio

    if store.job is None:
        return "stopped"
    job = store.job
    unsure = f"stopped; job {job.prompt_id} may still run on the server"
    with anyio.move_on_after(FAREWELL, shield=True):
        try:
            ended = await client.cancel(job.prompt_id, timeout=FAREWELL)
            with suppress(ComfyflowError):  # what became of it is known all the same
                await _record_end(client, store, job, ended=ended, accepted=accepted)
        except ComfyflowError as error:
            return f"{unsure}: {error}"
        except asyncio.CancelledError:  # a second Ctrl-C: do not even wait for this
            return unsure
        otherwise = "had ended already" if accepted else "was not on the server yet"
        return f"stopped; job {job.prompt_id} {'was cancelled' if ended else otherwise}"
    return unsure


async def _record_end(client: ComfyClient, store: Store, job: Job, *, ended: bool, accepted: bool) -> None:
    """Write down how the job ended. One that never came to the server must not be sent later on; one that was
    taken out of the queue is forgotten by the server."""
    view = await client.poll_status(job.prompt_id)
    result = view.result
    if view.state is JobState.LOST and (ended or not accepted):
        failure = None if ended else JobFailure("it was stopped before the server had it")
        result = JobResult(job.prompt_id, JobState.CANCELLED, failure=failure, source="events")
    if result is not None:
        await store.write(*ending(job, result))


# the other commands' work


async def _wait(call: Call, settings: Settings, options: Following, prompt_id: str) -> None:
    async with (
        _recorded(call, options) as record,
        _adopted(call, settings, record.store, prompt_id) as (runner, job, show),
    ):
        result = await runner.follow(job, on_view=show, timeout=settings.timeouts.total)
    document = {**report.result_document(result, ()), "server": settings.shown_url}
    lines = [f"{prompt_id}: {report.STATES[result.state]}", *report.text_lines(result.texts)]
    _answer(call, record, document, lines)


async def _download(call: Call, settings: Settings, options: Following, prompt_id: str) -> None:
    async with (
        _recorded(call, options) as record,
        _adopted(call, settings, record.store, prompt_id) as (runner, job, show),
        runner,
    ):
        done = await runner.complete(job, on_view=show, timeout=settings.timeouts.total)
    document = {"prompt_id": prompt_id, "files": [report.file_document(saved) for saved in done.files]}
    lines = [str(saved.path) for saved in done.files]
    _answer(call, record, {**document, "server": settings.shown_url}, lines)


@asynccontextmanager
async def _adopted(
    call: Call, settings: Settings, store: Store, prompt_id: str
) -> AsyncIterator[tuple[Runner, Job, Any]]:
    """A job that is on the server already, with a runner that knows it, and a way to show its progress."""
    from ..progress import progress_on
    from ..runner import Runner

    call.known["server"] = settings.shown_url
    # A socket tells a client of its own jobs alone (server.py, send_sync): this one is another client's.
    async with connected(settings, settings.url, websocket=False, poll=OFTEN) as client:
        runner = Runner(
            client, store, settings.output, shared=settings.shared, keep_content=settings.keep_content
        )
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


def _patched(workflow: Workflow, assignments: Iterable[str], seed: int | None) -> Workflow:
    option = "--seed"
    try:
        patched = workflow if seed is None else workflow.seed(seed)
        option = "--set"
        for assignment in assignments:
            patched = patched.set_text(assignment)
    except WorkflowInvalid as error:
        raise UsageError(f"{option}: {error.reason}") from error.__cause__
    return patched


def _check_simulation(simulate: bool, server: str | None, wait: bool) -> None:
    if simulate and server is not None:
        raise UsageError("--simulate and --server exclude each other: leave one of them out")
    if simulate and not wait:
        raise UsageError("--simulate needs --wait: the simulated server ends with this command")


def _check_folder(folder: Path) -> None:
    """Make the folder and write to it, before anything is sent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"comfyflow")
    except (OSError, ValueError) as error:
        raise OutputFolderUnusable(folder, getattr(error, "strerror", None) or str(error)) from error
