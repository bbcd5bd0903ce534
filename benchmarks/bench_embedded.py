"""What an embedded PostgreSQL takes to come up and to go down, beside asking a running one if it is there."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
from harness import Row, show

from comfyflow.embedded import Embedded

COLD_ROUNDS, ROUNDS = 5, 15


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


if __name__ == "__main__":
    main()
