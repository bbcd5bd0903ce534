"""`python -m comfyflow` and the command `comfyflow`."""

# ruff: noqa: PLC0415 - `--version` answers before the command line is imported

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; never returns without an exit code."""
    if sys.argv[1:] == ["--version"]:
        from . import __version__

        print(f"comfyflow {__version__}")
        return
    try:
        from .cli import app

        app(prog_name="comfyflow")
    except KeyboardInterrupt:  # while the command line was still being imported
        sys.exit(130)


if __name__ == "__main__":
    main()
