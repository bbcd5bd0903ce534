"""Commands about the server: status, health, sim."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .. import report
from ..console import Call, attended
from ..errors import UsageError
from ..exits import ExitCode
from ..models import JobState
from ..settings import Settings
from .app import Asking, JobArgument, app, command, connected, only_one

if TYPE_CHECKING:
    from ..client import ComfyClient
    from ..pool import ServerPool

T = TypeVar("T")


@command(app)
def status(prompt_id: JobArgument, *, options: Asking) -> None:
    """Tell where a job stands now. The exit code is 5 when the server does not know it, else 0."""
    call = options.call(prompt_id=prompt_id)
    with call.guarded():
        settings = options.settings()
        view = attended(_asked(settings, lambda client: client.poll_status(prompt_id)))
        document = {**report.view_document(view), "server": settings.shown_url}
        call.answer(document, [f"{prompt_id}: {report.view_line(view)}"])
        raise SystemExit(ExitCode.LOST if view.state is JobState.LOST else ExitCode.OK)


@command(app)
def health(*, options: Asking) -> None:
    """Ask the server how it is.

    Version, devices, memory, queue; the exit code is 4 when it does not answer.
    """
    call = options.call()
    with call.guarded():
        settings = options.settings()
        only_one(settings, "comfyflow servers")
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
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens.")] = False,
) -> None:
    """Run a simulated ComfyUI server until it is stopped. Its address is printed first."""
    call = Call(verbose=verbose)
    with call.guarded(), suppress(KeyboardInterrupt):  # to be stopped is how it ends
        attended(_serve(call, host=host, port=port, step_delay=step_delay, profile=profile))


async def _asked(
    settings: Settings, question: Callable[[ComfyClient | ServerPool], Coroutine[Any, Any, T]]
) -> T:
    """One question to a server; no socket is opened for it."""
    async with connected(settings, websocket=False) as client:
        return await question(client)


async def _health(client: ComfyClient | ServerPool, url: str) -> dict[str, Any]:
    stats, queue = await client.system_stats(), await client.queue()
    return report.health_document(url, stats, len(queue.running), len(queue.pending))


async def _serve(call: Call, *, host: str, port: int, step_delay: float, profile: str) -> None:
    from ..sim import PROFILES, Sim

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
