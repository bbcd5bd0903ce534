"""What the benchmarks share: a table, a simulator in its own process, a figure of this process's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark's table. `good` is None where there is no target, only a figure for reading."""

    what: str
    figures: Sequence[str]
    target: str = ""
    good: bool | None = None


def show(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print a table in Markdown, the verdict last. A missed target is told, not raised: machines differ."""
    verdicts = {True: "met", False: "MISSED", None: ""}
    lines = [["", *columns, "target", ""]]
    lines += [[row.what, *row.figures, row.target, verdicts[row.good]] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    print(f"\n## {title}\n")
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    print(flush=True)


@contextmanager
def server(*command: str) -> Iterator[str]:
    """Run a Python program that prints its URL as the first line; gives that URL, ends it afterwards."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        if not url.startswith("http"):
            raise RuntimeError(f"{command} did not print a URL but {url!r}")
        yield url
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def simulator(*options: str) -> Iterator[str]:
    """The simulator in a process of its own, so that its work is not counted as the client's."""
    with server("-m", "comfyflow.sim", "--port", "0", *options) as url:
        yield url


def child(script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark script as `script arguments` in its own process; gives the JSON of its last line."""
    command = [sys.executable, str(HERE / script), *arguments]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return figures


def memory(field: str) -> int:
    """Bytes of this process as Linux tells them: "VmRSS" is what it holds, "VmHWM" the most ever."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Let VmHWM start again from what is held now (Linux 4.0)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
