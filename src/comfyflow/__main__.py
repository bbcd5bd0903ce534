"""`python -m comfyflow` and the command `comfyflow`."""

# ruff: noqa: PLC0415 - `--version` answers before the command line is imported

from __future__ import annotations

import os
import sys
from contextlib import suppress

# Internal: what stands in the place of a `--database` with a password, from this process to itself.
HANDED_ON = "COMFYFLOW_DATABASE_FLAG"
HIDDEN = "***"


def main() -> None:
    """Run the command line; never returns without an exit code."""
    if sys.argv[1:] == ["--version"]:
        from . import __version__

        print(f"comfyflow {__version__}")
        return
    try:
        _hide_passwords()
        from .cli import app

        app(prog_name="comfyflow")
    except KeyboardInterrupt:  # while the command line was still being imported
        sys.exit(130)


def _hide_passwords() -> None:
    """Everybody on the machine may read the command line of a process (`ps`), for as long as it runs. Where
    that of this one holds the password of a database, start over without it: same process id, same standard
    streams; the value goes along in the environment, which others cannot read.

    Not on Windows, where exec makes another process, nor where somebody else's program calls `main`.
    """
    if _put_back() or not any(word.startswith("--database") for word in sys.argv):
        return
    words = sys.argv[1:]
    secrets = {place: words[place] for place in range(len(words)) if _is_secret(words, place)}
    before = len(sys.orig_argv) - len(words)
    is_ours = __name__ == "__main__" or os.path.basename(sys.argv[0]) == "comfyflow"
    is_ours = is_ours and sys.orig_argv[before:] == words
    if not secrets or not is_ours or os.name != "posix" or not sys.executable:
        return
    import json

    shown = [_shown(word) if place in secrets else word for place, word in enumerate(words)]
    environment = {**os.environ, HANDED_ON: json.dumps(secrets)}
    with suppress(OSError):  # too long, say: then it stays visible, and works
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:before], *shown], environment)


def _put_back() -> bool:
    """Whether this is the second start; the command line inside of Python is then the one that was typed."""
    text = os.environ.pop(HANDED_ON, None)
    if text is None:
        return False
    import json

    found = False
    with suppress(ValueError, TypeError, AttributeError, IndexError):  # somebody else has set the variable
        for place, word in json.loads(text).items():
            if sys.argv[int(place) + 1] == _shown(word):
                sys.argv[int(place) + 1], found = word, True
    return found


def _is_secret(words: list[str], place: int) -> bool:
    import re

    name, equals, value = words[place].partition("=")
    is_value = place > 0 and words[place - 1] == "--database"
    if not is_value and not (equals and name == "--database"):
        return False
    text = words[place] if is_value else value
    # user:password@ of a URL; password, sslpassword and the like in its query or among keywords.
    return re.search(r"://[^@]*:.*@|(passw|secret|scram)\w*(\s|%20|\+)*=", text, re.I | re.S) is not None


def _shown(word: str) -> str:
    return f"--database={HIDDEN}" if word.startswith("--database=") else HIDDEN


if __name__ == "__main__":
    main()
