"""What an embedded PostgreSQL takes to come up and to go down, beside asking a running one if it is there."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
from harness import HERE, Row, show, simulator

from comfyflow.embedded import Embedded

COLD_ROUNDS, ROUNDS, COMMANDS = 5, 15, 9


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


async def connected(dsn: str) -> None:
    await (await asyncpg.connect(dsn)).close()


def asked(server: Embedded) -> None:
    """pg_isready, as a shell script would ask."""
    command: list[str | Path] = [server.binaries / "pg_isready", "-q", "-h", server.home / "run"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def cold(home: Path) -> float:
    """The first start ever, with a cluster to be made."""
    server = Embedded(home)
    try:
        return seconds(server.start)
    finally:
        server.stop()


def measured(home: Path) -> dict[str, float]:
    """One round with a server over a cluster that is there."""
    first, second = Embedded(home), Embedded(home)
    return {
        "warm: start": seconds(first.start),
        "attach": seconds(second.start),
        "leave": seconds(second.stop),
        "pg_isready": seconds(lambda: asked(first)),
        "asyncpg connect": seconds(lambda: asyncio.run(connected(first.dsn))),
        "stop": seconds(first.stop),
    }


def command(url: str, folder: Path, number: int, database: str) -> float:
    """`comfyflow run --wait` of a small job; without a server of its own the command starts and stops one."""
    workflow = str(HERE.parent / "examples" / "text_to_image.json")
    options = ["run", workflow, "--wait", "--quiet", "--server", url, "--seed", str(number)]
    options += ["--output", str(folder / "out"), "--database", database]
    own = {"COMFYFLOW_DATA": str(folder / "data"), "COMFYFLOW_STATE": str(folder / "state")}
    started = [sys.executable, "-m", "comfyflow", *options]
    environment = {**os.environ, **own}
    return seconds(lambda: subprocess.run(started, env=environment, stdout=subprocess.DEVNULL, check=True))


def commands() -> None:
    """What recording adds to a command."""
    with tempfile.TemporaryDirectory() as folder, simulator("--any-model") as url:
        place = Path(folder)
        place.chmod(0o711)
        ways = ("none", "embedded")
        rounds = [
            {way: command(url, place, 2 * number + ways.index(way), way) for way in ways}
            for number in range(COMMANDS + 1)
        ][1:]  # the first one makes the cluster
    ratio = statistics.median(one["embedded"] / one["none"] for one in rounds)
    took = {way: statistics.median(one[way] for one in rounds) for way in ways}
    rows = [Row("--database none", [f"{took['none'] * 1000:.0f}", "1"])]
    rows += [Row("--database embedded", [f"{took['embedded'] * 1000:.0f}", f"{ratio:.2f}"])]
    rows += [Row("overhead", [f"{(took['embedded'] - took['none']) * 1000:.0f}", ""])]
    show(f"comfyflow run --wait, median of {COMMANDS} rounds", ["ms", "ratio"], rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o711)  # root's server runs as another user
        first_ever = [cold(place / str(number)) for number in range(COLD_ROUNDS)]
        rounds = [measured(place / "0") for _ in range(ROUNDS)]
    took = {what: statistics.median(one[what] for one in rounds) for what in rounds[0]}
    took = {"cold: make and start": statistics.median(first_ever), **took}
    floor = took.pop("pg_isready")
    rows = [Row("pg_isready, server running", [f"{floor * 1000:.1f}", "1"])]
    rows += [Row(what, [f"{one * 1000:.1f}", f"{one / floor:.2f}"]) for what, one in took.items()]
    title = f"embedded PostgreSQL, median of {ROUNDS} rounds ({COLD_ROUNDS} cold)"
    show(title, ["ms", "x pg_isready"], rows)
    commands()


if __name__ == "__main__":
    main()
