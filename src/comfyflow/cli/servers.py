"""The command about several servers at once: servers."""

# ruff: noqa: PLC0415 - what takes long to import is imported where it is needed

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from .. import report, tables
from ..console import attended
from ..errors import ComfyflowError
from ..exits import ExitCode
from ..models import PoolServer
from ..settings import Settings, without_credentials
from .app import Asking, app, command

LIMIT = 10.0  # s in which a server has to tell all of it
COLUMNS = ("SERVER", "HEALTH", "VERSION", "QUEUE", "VRAM FREE", "NODES", "MODELS", "TOOK", "WEIGHT", "DEVICE")


@command(app)
def servers(
    *,
    models: Annotated[bool, typer.Option("--models", help="Name the model files that each has.")] = False,
    options: Asking,
) -> None:
    """Tell how each server is, and what it has.

    The exit code is 4 when one does not answer within 10 s; the others are told all the same.
    """
    call = options.call()
    with call.guarded():
        settings = options.settings()
        told = attended(_all(settings, models=models))
        lines = tables.aligned(COLUMNS, [_cells(one) for one in told])
        for one in told:
            lines += _model_lines(one) if models else []
        lines += [
            report.printable(f"{one['server']}: {one['error']['message']}") for one in told if one["error"]
        ]
        call.answer({"servers": told}, lines)
        raise SystemExit(ExitCode.UNREACHABLE if any(one["error"] for one in told) else ExitCode.OK)


async def _all(settings: Settings, *, models: bool) -> list[dict[str, Any]]:
    async def one(server: PoolServer) -> dict[str, Any]:
        document: dict[str, Any] = {"server": without_credentials(server.url), "weight": server.weight}
        try:
            return {**document, **await _told(settings, server.url, models=models), "error": None}
        except ComfyflowError as error:
            return {**document, "health": "away", "error": report.error_document(error)}

    return await asyncio.gather(*map(one, settings.servers))


async def _told(settings: Settings, url: str, *, models: bool) -> dict[str, Any]:
    from ..client import ComfyClient
    from ..errors import ServerUnreachable
    from ..inventory import Inventory

    async with ComfyClient(url, websocket=False, headers=settings.headers) as client:
        started = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT):
                stats = await client.system_stats()
                queue, info = await client.queue(), await client.object_info()
                seconds = time.monotonic() - started
        except TimeoutError as error:
            text = f"{client.server} does not answer in {LIMIT:g} s"
            raise ServerUnreachable(text, method="GET", url=str(client.server)) from error
    has = Inventory.of(info)
    files = {name for names in has.models.values() for name in names}
    document = report.health_document(without_credentials(url), stats, len(queue.running), len(queue.pending))
    document |= {"health": "up", "node_classes": len(has.node_classes), "model_files": len(files)}
    document |= {"model_counts": {place: len(names) for place, names in has.models.items()}}
    document |= {"seconds": round(seconds, 3)}
    return document | (
        {"models": {place: list(names) for place, names in has.models.items()}} if models else {}
    )


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    weight = f"{one['weight']:g}"
    if one["error"] is not None:
        return (one["server"], one["health"], "-", "-", "-", "-", "-", "-", weight, "-")
    queue = f"{one['running']} + {one['waiting']}"
    free = ", ".join(report.memory_text(device) for device in one["devices"]) or "-"
    names = ", ".join(str(device["name"]) for device in one["devices"]) or "-"
    cells = one["server"], one["health"], one["version"] or "?", queue, free
    took = tables.took_text(one["seconds"])
    more = str(one["node_classes"]), str(one["model_files"]), took, weight, names
    return tuple(report.printable(cell) for cell in (*cells, *more))


def _model_lines(one: Mapping[str, Any]) -> list[str]:
    lines = [f"{one['server']} {place}: {', '.join(names)}" for place, names in one.get("models", {}).items()]
    return [report.printable(line) for line in lines]
