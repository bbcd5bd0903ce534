"""The command line: parse, call, print, exit code. It holds no rule of its own.

What takes long to import is imported inside the commands that need it, so that `--help` answers at once.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from . import __version__, report
from .console import Call, Interrupted, attended
from .errors import (
    ComfyflowError,
    DownloadError,
    JobTimeout,
    UsageError,
    WorkflowInvalid,
    error_of,
)
from .exits import ExitCode
from .models import JobResult, JobState, JobView, OutputFile, SavedFile
from .settings import Settings, resolve
from .workflow import MAX_SIZE, Workflow, random_seed, read_file

if TYPE_CHECKING:
    from .client import ComfyClient
    from .runner import Runner, RunResult
    from .store import Job, MemoryStore

T = TypeVar("T")
FAREWELL = 5.0  # s to end the job on the server after Ctrl-C
SIMULATED_STEP = 0.03  # s for one step of a sampler in `run --simulate`, so that there is something to see

app = typer.Typer(
    name="comfyflow",
    help="Run ComfyUI workflows dependably: a workflow in, verified files out.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class OutputFolderUnusable(DownloadError):
    """The folder for results cannot be written; found before anything was sent."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(reason, output=OutputFile("", folder.name), destination=folder)
        self.args = (f"the output folder {folder} cannot be used: {reason}; name another one with --output",)


# options that several commands share

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Where ComfyUI is. [default: COMFYFLOW_URL, COMFYUI_URL, COMFYUI_HOST, local]",
    ),
]
HeaderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--header", metavar="'NAME: VALUE'", help="Send this header too. May be given several times."
    ),
]
TimeoutOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Stop waiting after this time. [default: never]")
]
SilenceOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Stop when nothing moves on the server for this time. [default: 1800]"
    ),
]
NoSocketOption = Annotated[
    bool, typer.Option("--no-websocket", help="Follow the job by asking now and then, without a WebSocket.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show causes, the server's traceback, and what happens.")
]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's prompt id.")]
FileArgument = Annotated[
    str,
    typer.Argument(metavar="FILE", help="A workflow in API format (Workflow > Export (API)); - reads stdin."),
]

# options of `run` alone

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


def _version(wanted: bool) -> None:
    if wanted:
        print(f"comfyflow {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# commands


@app.command()
def run(
    file: FileArgument,
    *,
    wait: WaitOption = False,
    server: ServerOption = None,
    output: OutputOption = None,
    assignments: SetOption = None,
    seed: SeedOption = None,
    timeout: TimeoutOption = None,
    silence: SilenceOption = None,
    allow_partial: PartialOption = False,
    as_json: JsonOption = False,
    simulate: SimulateOption = False,
    no_websocket: NoSocketOption = False,
    comfyui_output: MountedOption = None,
    header: HeaderOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Send a workflow; with --wait save its files.

    With --wait it is followed to its end, its files are saved, and their paths are printed.
    Without it the prompt id is printed as soon as the server has taken the job.
    """
    call = Call(as_json, quiet, verbose)
    with call.guarded():
        settings = resolve(
            os.environ, server=server, output=output, headers=header or (), timeout=timeout, silence=silence
        )
        _check_simulation(simulate, server, wait)
        call.workflow = workflow = _patched(_workflow(file), assignments or (), _seed(seed, call))
        if comfyui_output is not None and not comfyui_output.is_dir():
            raise UsageError(
                f"--comfyui-output: {comfyui_output} is no folder here: mount it, or leave it out"
            )
        road = _Road(call, settings, simulate, no_websocket, allow_partial, comfyui_output)
        if wait:
            _check_folder(settings.output)
        attended(road.follow(workflow) if wait else road.submit(workflow))


@app.command()
def wait(
    prompt_id: JobArgument,
    *,
    server: ServerOption = None,
    timeout: TimeoutOption = None,
    silence: SilenceOption = None,
    as_json: JsonOption = False,
    no_websocket: NoSocketOption = False,
    header: HeaderOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Wait for a job's end. Ctrl-C stops the waiting, not the job."""
    call = Call(as_json, quiet, verbose, {"prompt_id": prompt_id})
    with call.guarded():
        settings = resolve(os.environ, server=server, headers=header or (), timeout=timeout, silence=silence)
        result = attended(_wait(call, settings, prompt_id, websocket=not no_websocket))
        lines = [f"{prompt_id}: {report.STATES[result.state]}", *report.text_lines(result.texts)]
        call.answer({**report.result_document(result, ()), "server": settings.shown_url}, lines)


@app.command()
def status(
    prompt_id: JobArgument,
    *,
    server: ServerOption = None,
    as_json: JsonOption = False,
    header: HeaderOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Tell where a job stands now. The exit code is 5 when the server does not know it, else 0."""
    call = Call(as_json, True, verbose, {"prompt_id": prompt_id})
    with call.guarded():
        settings = resolve(os.environ, server=server, headers=header or ())
        view = attended(_asked(settings, lambda client: client.poll_status(prompt_id)))
        document = {**report.view_document(view), "server": settings.shown_url}
        call.answer(document, [f"{prompt_id}: {report.view_line(view)}"])
        raise SystemExit(ExitCode.LOST if view.state is JobState.LOST else ExitCode.OK)


@app.command()
def cancel(
    prompt_id: JobArgument,
    *,
    server: ServerOption = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait so long for the end.")] = 60.0,
    as_json: JsonOption = False,
    header: HeaderOption = None,
    verbose: VerboseOption = False,
) -> None:
    """End a job, waiting or running, and nobody else's. The exit code is 1 when there was nothing to end."""
    call = Call(as_json, True, verbose, {"prompt_id": prompt_id})
    with call.guarded():
        settings = resolve(os.environ, server=server, headers=header or (), timeout=timeout)
        limit = settings.timeouts.total
        done = attended(_asked(settings, lambda client: client.cancel(prompt_id, timeout=limit)))
        said = "cancelled" if done else "not cancelled: it has ended already, or the server does not know it"
        document = {"prompt_id": prompt_id, "cancelled": done, "server": settings.shown_url}
        call.answer(document, [f"{prompt_id}: {said}"])
        raise SystemExit(ExitCode.OK if done else ExitCode.FAILED)


@app.command()
def download(
    prompt_id: JobArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder for the files; made when it is missing.")
    ],
    *,
    server: ServerOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
    header: HeaderOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Save the files of a job and print their paths.

    A job that has not ended yet is waited for.
    """
    call = Call(as_json, quiet, verbose, {"prompt_id": prompt_id})
    with call.guarded():
        settings = resolve(os.environ, server=server, headers=header or (), timeout=timeout)
        _check_folder(folder)
        files = attended(_asked(settings, lambda client: _fetched(client, prompt_id, folder)))
        document = {"prompt_id": prompt_id, "files": [report.file_document(saved) for saved in files]}
        call.answer({**document, "server": settings.shown_url}, [str(saved.path) for saved in files])


@app.command()
def validate(file: FileArgument, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Check a workflow file without a server."""
    call = Call(as_json, True, verbose, {"valid": False})
    with call.guarded():
        workflow = _workflow(file)
        count = len(workflow.nodes)
        document = {
            "valid": True,
            "nodes": count,
            "digest": workflow.digest,
            "prompt_text": workflow.prompt_text,
        }
        call.answer(document, [f"{report.printable(file)}: a workflow of {count} node{'s'[: count != 1]}"])


@app.command()
def health(
    server: ServerOption = None,
    as_json: JsonOption = False,
    header: HeaderOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Ask the server how it is.

    Version, devices, memory, queue; the exit code is 4 when it does not answer.
    """
    call = Call(as_json, True, verbose)
    with call.guarded():
        settings = resolve(os.environ, server=server, headers=header or ())
        call.known["server"] = settings.shown_url
        document = attended(_asked(settings, lambda client: _health(client, settings.shown_url)))
        call.answer(document, report.health_lines(document))


@app.command()
def sim(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8188,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    step_delay: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long one step of a sampler takes.")
    ] = 0.1,
    profile: Annotated[str, typer.Option(metavar="VERSION", help="The ComfyUI to stand in for.")] = "0.27",
    verbose: VerboseOption = False,
) -> None:
    """Run a simulated ComfyUI server until it is stopped. Its address is printed first."""
    call = Call(verbose=verbose)
    with call.guarded(), suppress(KeyboardInterrupt):  # to be stopped is how it ends
        attended(_serve(call, host=host, port=port, step_delay=step_delay, profile=profile))


# the road of `run`


@dataclass(frozen=True, slots=True)
class _Road:
    """`run`, from the settings to what is printed."""

    call: Call
    settings: Settings
    simulate: bool
    no_websocket: bool
    allow_partial: bool
    comfyui_output: Path | None

    async def submit(self, workflow: Workflow) -> None:
        """Send, print the prompt id."""
        from .store import MemoryStore

        async with self._open(MemoryStore(), websocket=False) as (runner, _):
            job = await self._submitted(runner, workflow)
        self.call.known |= {"prompt_id": job.prompt_id, "state": "submitted"}
        self.call.answer(self.call.known, [job.prompt_id])

    async def follow(self, workflow: Workflow) -> None:
        """Send, follow, save, print the paths. On Ctrl-C the job is cancelled on the server too."""
        from .store import MemoryStore

        store = MemoryStore()
        async with self._open(store, websocket=not self.no_websocket) as (runner, client), runner:
            try:
                done = await self._run(runner, workflow)
            except asyncio.CancelledError:
                said = await _last_words(client, store, accepted="prompt_id" in self.call.known)
                raise Interrupted(said) from None
        self._answer(done, workflow)

    @asynccontextmanager
    async def _open(
        self, store: MemoryStore, *, websocket: bool
    ) -> AsyncIterator[tuple[Runner, ComfyClient]]:
        from .runner import Runner

        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(_simulator()) if self.simulate else self.settings.url
            client = await stack.enter_async_context(_client(self.settings, url, websocket=websocket))
            self.call.known["server"] = "simulated" if self.simulate else self.settings.shown_url
            folder, mounted = self.settings.output, self.comfyui_output
            yield (
                Runner(client, store, folder, comfyui_output=mounted, allow_partial=self.allow_partial),
                client,
            )

    async def _submitted(self, runner: Runner, workflow: Workflow) -> Job:
        """Send within --timeout. After that nobody knows whether the server has taken the job."""
        import anyio

        try:
            with anyio.fail_after(self.settings.timeouts.total):
                return await runner.submit(workflow)
        except TimeoutError:
            unsure = [job.prompt_id async for job in runner.store.unfinished()]
            view = JobView(unsure[-1] if unsure else "", JobState.SUBMITTED)
            text = "the server has not answered in time; whether it took the job is not known"
            raise JobTimeout(text, view=view) from None

    async def _run(self, runner: Runner, workflow: Workflow) -> RunResult:
        from .progress import progress_on

        with progress_on(sys.stderr, quiet=self.call.quiet) as progress:
            job = await self._submitted(runner, workflow)
            self.call.known["prompt_id"] = job.prompt_id
            return await runner.complete(job, on_view=progress.show, timeout=self.settings.timeouts.total)

    def _answer(self, done: RunResult, workflow: Workflow) -> None:
        assert done.result is not None  # an outcome without one is raised
        document = {
            **self.call.known,
            **report.result_document(done.result, done.files, workflow),
            "timings": {"total": round(done.elapsed, 3), "execution": report.execution_seconds(done.result)},
        }
        lines = [str(saved.path) for saved in done.files]
        self.call.answer(document, [*lines, *report.text_lines(done.result.texts, workflow)])


async def _last_words(client: ComfyClient, store: MemoryStore, *, accepted: bool) -> str:
    """End the job that was being followed, in a few seconds at most, and say what became of it."""
    import anyio

    jobs = [job async for job in store.unfinished()]
    if not jobs:
        return "stopped"
    prompt_id = jobs[-1].prompt_id
    unsure = f"stopped; job {prompt_id} may still run on the server"
    with anyio.move_on_after(FAREWELL, shield=True):
        try:
            ended = await client.cancel(prompt_id, timeout=FAREWELL)
        except ComfyflowError as error:
            return f"{unsure}: {error}"
        except asyncio.CancelledError:  # a second Ctrl-C: do not even wait for this
            return unsure
        otherwise = "had ended already" if accepted else "was not on the server yet"
        return f"stopped; job {prompt_id} {'was cancelled' if ended else otherwise}"
    return unsure


# the other commands' work


async def _wait(call: Call, settings: Settings, prompt_id: str, *, websocket: bool) -> JobResult:
    import anyio

    from .progress import progress_on

    call.known["server"] = settings.shown_url
    view = JobView(prompt_id, JobState.SUBMITTED)
    async with _client(settings, settings.url, websocket=websocket) as client:
        with (
            progress_on(sys.stderr, quiet=call.quiet) as progress,
            anyio.move_on_after(settings.timeouts.total),
        ):
            await client.poll_status(prompt_id)  # a wrong address is told at once, not after the silence
            async for view in client.watch(prompt_id):
                progress.show(view)
    if view.result is None:
        raise JobTimeout(f"job {prompt_id} has not ended in time; it goes on", view=view)
    if (error := error_of(view)) is not None:
        raise error
    return view.result


async def _asked(settings: Settings, question: Callable[[ComfyClient], Coroutine[Any, Any, T]]) -> T:
    """One question to a server; no socket is opened for it."""
    async with _client(settings, settings.url, websocket=False) as client:
        return await question(client)


async def _fetched(client: ComfyClient, prompt_id: str, folder: Path) -> list[SavedFile]:
    await client.poll_status(prompt_id)  # a wrong address is told at once, not after the silence
    return await client.download_images(prompt_id, folder)


async def _health(client: ComfyClient, url: str) -> dict[str, Any]:
    stats, queue = await client.system_stats(), await client.queue()
    return report.health_document(url, stats, len(queue.running), len(queue.pending))


def _client(settings: Settings, url: str, *, websocket: bool) -> ComfyClient:
    from .client import ComfyClient

    return ComfyClient(url, websocket=websocket, timeout=settings.timeouts, headers=settings.headers)


@asynccontextmanager
async def _simulator() -> AsyncIterator[str]:
    from .sim import Sim

    async with Sim(step_delay=SIMULATED_STEP, any_model=True) as server:
        yield server.url


async def _serve(call: Call, *, host: str, port: int, step_delay: float, profile: str) -> None:
    from .sim import PROFILES, Sim

    if profile not in PROFILES:
        raise UsageError(f"--profile: there is no {profile!r}; there are: {', '.join(PROFILES)}")
    # It may run for days, so it keeps no record; and it takes the name of any model.
    server = Sim(host=host, port=port, step_delay=step_delay, profile=profile, any_model=True, record=False)
    try:
        await server.start()
        call.emit([server.url])
        await asyncio.Event().wait()
    except OSError as error:
        raise UsageError(f"the simulator cannot listen on {host}:{port}: {error.strerror}") from error
    finally:
        await server.stop()


# input


def _workflow(file: str) -> Workflow:
    """Read and check FILE. A file that cannot be read is wrong use, not a bad workflow."""
    if file == "-":
        if sys.stdin is None:  # closed by whoever called us (`<&-`)
            raise UsageError("there is nothing on standard input: name a file")
        return Workflow.parse(sys.stdin.buffer.read(MAX_SIZE + 1), name="standard input")
    try:
        text = read_file(file)
    except WorkflowInvalid as error:
        raise UsageError(str(error)) from error.__cause__
    return Workflow.parse(text, name=file)


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
