"""Which parts of the shared JavaScript a Code node needs: only those go into it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_START = re.compile(r"^(?:async function|function|const) (\w+)", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z_$][\w$]*")


def with_needed(code: str, library: str) -> str:
    """`code` behind those top-level functions and constants of `library` that it uses, and that those use."""
    parts = dict(_parts(library))
    wanted: set[str] = set()
    waiting = [code]
    while waiting:
        new = (_words(waiting.pop()) & parts.keys()) - wanted
        wanted |= new
        waiting += [parts[name] for name in new]
    return "\n\n".join([*(parts[name] for name in parts if name in wanted), code])


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text))


def _parts(library: str) -> Iterator[tuple[str, str]]:
    """Each top-level function or constant with the comment above it."""
    lines = library.splitlines()
    starts = [(place, match[1]) for place, line in enumerate(lines) if (match := _START.match(line))]
    places = [_above(lines, place) for place, _ in starts]
    for (_, name), begin, end in zip(starts, places, [*places[1:], len(lines)], strict=True):
        yield name, "\n".join(_trimmed(lines[begin:end]))


def _above(lines: list[str], place: int) -> int:
    """Where the comment of the line begins."""
    while place and lines[place - 1].startswith("//") and not lines[place - 1].startswith("// ---"):
        place -= 1
    return place


def _trimmed(lines: Iterable[str]) -> list[str]:
    kept = [line for line in lines if not line.startswith("// ---")]
    while kept and not kept[-1].strip():
        kept.pop()
    return kept
