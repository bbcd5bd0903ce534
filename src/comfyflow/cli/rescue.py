"""Commands about jobs that are under way: resume, cancel."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import report
from ..console import Call, attended, tell
from ..errors import UsageError
from ..exits import ExitCode, exit_code
from ..figures import counted
from ..settings import Settings
from .app import (
    Asking,
    DatabaseOption,
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
from .recorded import OFTEN, answer, check_folder, recorded

if TYPE_CHECKING:
    from ..outcome import RunResult
    from ..runner import Runner
    from ..store import Store

ConcurrencyOption = Annotated[
    int, typer.Option("--concurrency", min=1, metavar="N", help="How many jobs to work on at once.")
]
InPlaceOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Folder for files. [default: the one that each job was sent for, where it is there]",
    ),
]


@command(app)
def resume(
    *,
    output: InPlaceOutput = None,
    shared: SharedOption = None,
    keep_content: KeepOption = False,
    concurrency: ConcurrencyOption = 100,
    sending: Sending,
    pooling: Pooling,
    options: Following,
) -> None:
    """Bring every unfinished job of a server to its end.

    What has ended is downloaded and recorded, what runs is followed, what was never sent is sent, and nothing
    twice. Jobs of other programs that live are left to them. Ctrl-C stops the waiting, not the jobs.
    """
    call = options.call(quiet=options.quiet)
    with call.guarded():
        settings = options.settings(output=output, shared=shared, keep_content=keep_content)
        if output is not None:
            check_folder(output)
        road = _Resuming(call, settings, options, sending, pooling, concurrency, in_place=output is None)
        attended(road.run())


@command(app)
def cancel(
    prompt_id: JobArgument,
    *,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait so long for the end.")] = 60.0,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="On servers before 0.3.57, which cannot interrupt one certain job: interrupt whatever runs, "
            "right after a look that saw this job running.",
        ),
    ] = False,
    database: DatabaseOption = None,
    options: Asking,
) -> None:
    """End a job, waiting or running, and nobody else's, and record that.

    The exit code is 1 when there was nothing to end.
    """
    call = options.call(prompt_id=prompt_id)
    with call.guarded():
        settings = options.settings(timeout=timeout)
        attended(_cancel(call, settings, _Named(options, database), prompt_id, force=force))


@dataclass(frozen=True, slots=True)
class _Named:
    """The options of `cancel`, as `recorded` wants them."""

    options: Asking
    database: str | None

    def environment(self) -> Any:
        return self.options.environment()


async def _cancel(call: Call, settings: Settings, named: _Named, prompt_id: str, *, force: bool) -> None:
    from ..runner import Runner

    call.known["server"] = settings.shown_url
    async with recorded(call, named) as record, connected(settings, websocket=False) as client:
        runner = Runner(client, record.store, settings.output)
        done = await runner.cancel(prompt_id, timeout=settings.timeouts.total, force=force)
    said = "cancelled" if done else "not cancelled: it has ended already, or the server does not know it"
    document = {**call.known, "cancelled": done}
    if not done:
        call.answer(document, [f"{prompt_id}: {said}"])
        raise SystemExit(ExitCode.FAILED)
    answer(call, record, document, [f"{prompt_id}: {said}"])


@dataclass(frozen=True, slots=True)
class _Resuming:
    """`resume`, from the settings to what is printed."""

    call: Call
    settings: Settings
    options: Following
    sending: Sending
    pooling: Pooling
    concurrency: int
    in_place: bool

    async def run(self) -> None:
        """Work on all jobs, tell of each as it ends, print their files."""
        self.call.known["server"] = self.settings.shown_url
        done: list[RunResult] = []
        async with recorded(self.call, self.options, required=True) as record:
            if record.name == "none":
                raise UsageError("there is nothing to resume: --database none means that nothing is recorded")
            async with AsyncExitStack() as stack:
                runner = await self._runner(stack, record.store)
                await runner.client.ready()  # a wrong address is told at once, not after the silence
                async for result in runner.resume(concurrency=self.concurrency):
                    done.append(result)
                    self._tell(result)
                if not done:
                    await self._explain(runner)
        document = {**self.call.known, "jobs": [_document(result) for result in done]}
        answer(self.call, record, document, [str(file.path) for result in done for file in result.files])
        raise SystemExit(_code(done))

    async def _runner(self, stack: AsyncExitStack, store: Store) -> Runner:
        from ..runner import Runner

        settings, sending = self.settings, self.sending
        # A socket tells a client of its own jobs alone (server.py, send_sync): these are another client's.
        client = connected(
            settings, websocket=False, poll=OFTEN, ambiguous=sending.ambiguous, pooling=self.pooling
        )
        runner = Runner(
            await stack.enter_async_context(client),
            store,
            settings.output,
            shared=settings.shared,
            keep_content=settings.keep_content,
            on_lost=sending.on_lost,
            resubmits=sending.resubmit_lost or 1,
            in_place=self.in_place,
        )
        return await stack.enter_async_context(runner)

    def _tell(self, result: RunResult) -> None:
        if self.call.quiet and result.error is None:
            return
        said = f"done, {counted(len(result.files), 'file')}" if result.error is None else str(result.error)
        tell([f"comfyflow: {result.prompt_id}: {report.printable(said)}"])

    async def _explain(self, runner: Runner) -> None:
        """Why there was nothing to do: the wrong server was named, or somebody else is at it."""
        here = runner.client.addresses
        held = await runner.others()
        lines = [
            f"{one.jobs} unfinished: process {one.worker.pid} on {one.worker.host} works on that"
            for one in held
        ]
        elsewhere = Counter([job.server async for job in runner.store.unfinished() if job.server not in here])
        lines += [
            f"{count} unfinished on {server}: name it with --server" for server, count in elsewhere.items()
        ]
        tell(
            [
                f"comfyflow: nothing to resume on {', '.join(here)}",
                *(f"  {report.printable(line)}" for line in lines),
            ]
        )


def _document(result: RunResult) -> dict[str, Any]:
    error = {} if result.error is None else {"error": report.error_document(result.error)}
    state = None if result.result is None else result.result.state.value
    files = [report.file_document(file) for file in result.files]
    replaced = {} if result.job.replaces is None else {"replaces": result.job.replaces}
    return {"prompt_id": result.prompt_id, **replaced, "state": state, "files": files, **error}


def _code(done: list[RunResult]) -> int:
    """That of the errors if they are of one kind, else that of failure."""
    codes = {exit_code(result.error) for result in done if result.error is not None}
    return int(codes.pop() if len(codes) == 1 else ExitCode.FAILED if codes else ExitCode.OK)
