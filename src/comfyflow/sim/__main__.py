"""`python -m comfyflow.sim --port N`: prints its URL as one line and serves until killed."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from . import PROFILES, Sim, serve


def parser() -> argparse.ArgumentParser:
    """The options; those of `Sim`."""
    options = argparse.ArgumentParser(
        prog="python -m comfyflow.sim", description="A stand-in ComfyUI server."
    )
    options.add_argument("--host", default="127.0.0.1", help="address to listen on")
    options.add_argument("--port", type=int, default=0, help="0: any free port")
    options.add_argument("--profile", choices=sorted(PROFILES), default="0.27", help="the version to play")
    options.add_argument("--step-delay", type=float, default=0.0, help="seconds a sampler step takes")
    options.add_argument("--history-gap", type=float, default=0.0, help="seconds from success to history")
    options.add_argument("--root", type=Path, default=None, help="folder for output, temp and input")
    options.add_argument("--base-path", default="", help="serve below this path")
    options.add_argument("--no-previews", action="store_true", help="samplers send no previews")
    options.add_argument("--log", type=Path, default=None, help="file for a line for each prompt executed")
    options.add_argument("--any-model", action="store_true", help="take every checkpoint name")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    given = parser().parse_args(argv)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(given))


async def _serve(given: argparse.Namespace) -> None:
    sim = Sim(
        host=given.host,
        port=given.port,
        profile=given.profile,
        step_delay=given.step_delay,
        history_gap=given.history_gap,
        root=given.root,
        base_path=given.base_path,
        previews=not given.no_previews,
        any_model=given.any_model,
        record=False,
        log=given.log,
    )
    task = asyncio.create_task(serve(sim))
    with suppress(NotImplementedError):  # Windows has no signal handlers on a loop
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    main()
