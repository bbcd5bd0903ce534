"""What it takes until `comfyflow --version` and `--help` have answered, beside importing typer alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from harness import Row, show

ROUNDS, MOST = 15, 3.0
COMMANDS = {
    'python -c "import typer"': ["-c", "import typer"],
    "comfyflow --version": ["-m", "comfyflow", "--version"],
    "comfyflow --help": ["-m", "comfyflow", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one start."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(ROUNDS + 1)][1:]
    floor, *ours = COMMANDS
    rows = [Row(floor, [f"{statistics.median(one[floor] for one in rounds) * 1000:.0f}", "1"])]
    for name in ours:
        ratio = statistics.median(one[name] / one[floor] for one in rounds)
        took = statistics.median(one[name] for one in rounds) * 1000
        rows.append(Row(name, [f"{took:.0f}", f"{ratio:.2f}"], f"<= {MOST}", ratio <= MOST))
    show(f"start, median of {ROUNDS} rounds", ["ms", "ratio"], rows)


if __name__ == "__main__":
    main()
