"""ISO base media files: MP4, MOV, M4A, AVIF."""

from __future__ import annotations

import re
import struct

from .tape import Damaged, Facts, Tape, Walk


class _Movie:
    """What is known of an ISO base media file so far."""

    __slots__ = ("duration", "kinds", "size")

    def __init__(self) -> None:
        self.kinds: set[bytes] = set()  # of the top-level boxes that count
        self.size: tuple[int, int] | None = None
        self.duration: float | None = None


_BOX_KIND = re.compile(rb"[\x20-\x7e\xa9]{4}", re.DOTALL)
_BOX_PARENTS = (b"moov", b"trak")  # by depth: what is looked into


def film(tape: Tape) -> Walk[Facts]:
    """ISO/IEC 14496-12, section 4: boxes, whose lengths have to add up to the file's; a film
    needs moov and mdat."""
    movie = yield from _boxes_to_the_end(tape)
    if not {b"moov", b"mdat"} <= movie.kinds:
        missing = "index (moov)" if b"moov" not in movie.kinds else "data (mdat)"
        raise Damaged(f"the {tape.label} has no {missing}: it was not written to its end")
    width, height = movie.size or (None, None)
    return Facts(width, height, movie.duration)


def image_boxes(tape: Tape) -> Walk[Facts]:
    movie = yield from _boxes_to_the_end(tape)
    if not {b"meta", b"mdat"} <= movie.kinds:
        raise Damaged(f"the {tape.label} has no picture in it")
    return Facts()


def _boxes_to_the_end(tape: Tape) -> Walk[_Movie]:
    movie = _Movie()
    while not (yield from tape.exhausted()):
        kind, size = yield from _box_header(tape)
        movie.kinds |= {kind} & {b"moov", b"mdat", b"meta"}
        if size is None:
            yield from tape.rest()
        else:
            yield from _box_body(tape, kind, size, movie, depth=0)
    return movie


def _box_header(tape: Tape) -> Walk[tuple[bytes, int | None]]:
    """A box's kind and the size of its body, None for "to the end of the file"."""
    start = tape.at
    size, kind = struct.unpack(">I4s", (yield from tape.take(8)))
    if not _BOX_KIND.fullmatch(kind):
        raise tape.garbled()
    if size == 0:
        return kind, None
    if size == 1:
        size = int.from_bytes((yield from tape.take(8)), "big")
    body = size - (tape.at - start)
    if body < 0:
        raise tape.garbled()
    return kind, body


def _box_body(tape: Tape, kind: bytes, size: int, movie: _Movie, *, depth: int) -> Walk[None]:
    end = tape.at + size
    if kind in {b"mvhd", b"tkhd"} and size <= 256:
        _note_box(kind, (yield from tape.take(size)), movie)
    elif depth < len(_BOX_PARENTS) and kind == _BOX_PARENTS[depth]:
        while tape.at < end:
            child, child_size = yield from _box_header(tape)
            if child_size is None or tape.at + child_size > end:
                raise tape.garbled()
            yield from _box_body(tape, child, child_size, movie, depth=depth + 1)
    else:
        yield from tape.skip(size)


def _note_box(kind: bytes, body: bytes, movie: _Movie) -> None:
    if (
        kind == b"tkhd" and len(body) >= 84
    ):  # width and height end it, as 16.16 fixed point; a sound track has 0
        width, height = struct.unpack(">HxxHxx", body[-8:])
        movie.size = movie.size or ((width, height) if width and height else None)
    elif kind == b"mvhd" and len(body) >= 100:
        scale, ticks = struct.unpack_from(">IQ" if body[0] else ">II", body, 20 if body[0] else 12)
        if scale and ticks and ticks != 0xFFFFFFFF:  # 0 in a fragmented file
            movie.duration = ticks / scale
