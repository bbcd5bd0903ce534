"""WebM and Matroska."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeVar

from .tape import Damaged, Facts, Tape, Walk

_T = TypeVar("_T")

_EBML, _SEGMENT, _CLUSTER, _INFO, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1549A966, 0x1654AE6B
_MAX_HEADER = 1 << 20  # bytes of Info or Tracks that are read into memory
_TIMECODE_SCALE, _DURATION = 0x2AD7B1, 0x4489
_TRACK_ENTRY, _VIDEO, _PIXEL_WIDTH, _PIXEL_HEIGHT = 0xAE, 0xE0, 0xB0, 0xBA


def webm(tape: Tape) -> Walk[Facts]:
    """RFC 8794, RFC 9559: walk the Segment's elements; one of unknown size (live) is entered, not skipped."""
    end: int | None = -1  # of the Segment; -1: none yet
    facts = Facts()
    while tape.at != end and not (yield from tape.exhausted()):
        ident, size = yield from _ebml_header(tape)
        if ident == _SEGMENT:
            end = None if size is None else tape.at + size
        elif size is None:
            if ident != _CLUSTER:
                raise tape.garbled()
        elif end is not None and 0 <= end < tape.at + size:
            raise tape.garbled()
        elif ident in {_INFO, _TRACKS} and size <= _MAX_HEADER:
            facts = _note_ebml(ident, (yield from tape.take(size)), facts)
        else:
            yield from tape.skip(size)
    if end == -1 or (end is not None and tape.at < end):
        raise Damaged(f"the {tape.label} is cut short after {tape.at} bytes")
    return facts


def _ebml_header(tape: Tape) -> Walk[tuple[int, int | None]]:
    ident, _ = yield from _vint(tape)
    size, length = yield from _vint(tape)
    mask = (1 << 7 * length) - 1
    return ident, None if size & mask == mask else size & mask


def _vint(tape: Tape) -> Walk[tuple[int, int]]:
    """A number with its length marker still on it, and its length in bytes."""
    first = (yield from tape.take(1))[0]
    if not first:
        raise tape.garbled()
    length = 9 - first.bit_length()
    return int.from_bytes(bytes([first]) + (yield from tape.take(length - 1)), "big"), length


def _note_ebml(ident: int, body: bytes, facts: Facts) -> Facts:
    if ident == _INFO:
        values = dict(_elements(body))
        ticks, scale = values.get(_DURATION, b""), values.get(_TIMECODE_SCALE, b"")
        if len(ticks) not in {4, 8}:
            return facts
        (duration,) = struct.unpack(">f" if len(ticks) == 4 else ">d", ticks)
        nanoseconds = int.from_bytes(scale, "big") if scale else 1_000_000
        return facts._replace(duration=duration * nanoseconds / 1e9)
    for track in (track for child, track in _elements(body) if child == _TRACK_ENTRY):
        video = dict(_elements(dict(_elements(track)).get(_VIDEO, b"")))
        if facts.width is None and _PIXEL_WIDTH in video and _PIXEL_HEIGHT in video:
            width, height = (int.from_bytes(video[key], "big") for key in (_PIXEL_WIDTH, _PIXEL_HEIGHT))
            facts = facts._replace(width=width, height=height)
    return facts


def _elements(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements directly inside `body`, which is all there."""
    tape = Tape()
    tape.push(body)
    tape.ended = True
    tape.label = "video's header"
    while tape.at < len(body):
        ident, size = _run(_ebml_header(tape))
        yield ident, _run(tape.take(len(body) - tape.at if size is None else size))


def _run(walk: Walk[_T]) -> _T:
    """The result of a walk over a tape that has ended: it never yields."""
    results: list[_T] = []

    def told() -> Walk[None]:
        results.append((yield from walk))

    list(told())
    return results[0]
