"""RIFF files: WebP, WAV, AVI."""

from __future__ import annotations

import struct
from collections.abc import Callable

from .tape import Damaged, Facts, Tape, Walk

_UNKNOWN = {0, 0xFFFFFFFF}
_RiffNote = Callable[[bytes, int, bytes], None]
_RIFF_HEAD = 24  # of each chunk's body, what `_RiffNote` gets to see


def _riff(tape: Tape, note: _RiffNote) -> Walk[None]:
    """Walk the chunks up to the length in the header; `note` gets each one's kind, length and first bytes.

    A length of 0 or FFFFFFFF means that the writer did not know it (a WAV written to a pipe, RF64): then to
    the end.
    """
    header = yield from tape.take(12)
    length = int.from_bytes(header[4:8], "little")
    end = None if length in _UNKNOWN else length + 8
    while tape.at != end and not (end is None and (yield from tape.exhausted())):
        kind, size = struct.unpack("<4sI", (yield from tape.take(8)))
        if end is None and size in _UNKNOWN:
            return
        if end is not None and tape.at + size > end:
            raise tape.garbled()
        head = yield from tape.take(min(size, _RIFF_HEAD))
        note(kind, size, head)
        yield from tape.skip(size - len(head))
        if size % 2 and tape.at != end and not (end is None and (yield from tape.exhausted())):
            yield from tape.skip(1)


def webp(tape: Tape) -> Walk[Facts]:
    """WebP container specification: VP8X holds the canvas, ANMF the time of one frame."""
    sizes: dict[bytes, tuple[int, int]] = {}
    milliseconds = 0

    def note(kind: bytes, _size: int, head: bytes) -> None:
        nonlocal milliseconds
        measure = _WEBP_SIZES.get(kind)
        if measure is not None and kind not in sizes:
            sizes[kind] = measure(head.ljust(_RIFF_HEAD, b"\0"))
        if kind == b"ANMF":
            milliseconds += int.from_bytes(head[12:15], "little")
            sizes.setdefault(kind, (0, 0))

    yield from _riff(tape, note)
    if not sizes.keys() & {b"VP8 ", b"VP8L", b"ANMF"}:
        raise Damaged("the WebP has no picture in it")
    width, height = sizes.get(b"VP8X") or next(iter(sizes.values()))
    return Facts(width, height, milliseconds / 1000 or None)


def _vp8x_size(head: bytes) -> tuple[int, int]:
    return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1


def _vp8l_size(head: bytes) -> tuple[int, int]:
    bits = int.from_bytes(head[1:5], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _vp8_size(head: bytes) -> tuple[int, int]:
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


_WEBP_SIZES = {b"VP8X": _vp8x_size, b"VP8L": _vp8l_size, b"VP8 ": _vp8_size}


def wav(tape: Tape) -> Walk[Facts]:
    found: dict[bytes, int] = {}

    def note(kind: bytes, size: int, head: bytes) -> None:
        if kind == b"fmt ":
            found[kind] = int.from_bytes(head[8:12], "little")  # bytes a second
        elif kind == b"data":
            found[kind] = size

    yield from _riff(tape, note)
    if b"fmt " not in found:
        raise Damaged("the WAV does not say what sound it holds")
    rate = found[b"fmt "]
    return Facts(duration=found[b"data"] / rate if rate and b"data" in found else None)


def avi(tape: Tape) -> Walk[Facts]:
    yield from _riff(tape, lambda _kind, _size, _head: None)
    return Facts()
