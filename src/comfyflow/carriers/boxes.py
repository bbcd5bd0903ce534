"""MP4 and MOV, AVIF: boxes inside of boxes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .exif import exif
from .reader import Reader, decoded


def _boxes(file: Reader, end: int) -> Iterator[tuple[bytes, int]]:
    """The kind and the end of each box up to `end`; the reader stands at its content."""
    at = file.at
    while at + 8 <= end and file.more():
        file.at = at
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = file.number(8)
        stop = end if length == 0 else at + length
        if stop < file.at:
            raise file.damaged("a box is smaller than its own head")
        if stop > end:
            raise file.cut()
        yield kind, stop
        at = stop


_HOLDERS = (b"moov", b"udta", b"meta")  # each may stand in the one before, or at the top


def mp4(file: Reader) -> Iterator[tuple[str, str]]:
    yield from _movie(file, file.size, 0)


def _movie(file: Reader, end: int, depth: int) -> Iterator[tuple[str, str]]:
    names: list[str] = []
    whole = bool(depth)
    for kind, stop in _boxes(file, end):
        whole = whole or kind == b"moov"
        if kind in _HOLDERS and depth < len(_HOLDERS):
            if kind == b"meta" and not _is_plain(file):
                file.at += 4
            yield from _movie(file, stop, depth + 1)
        elif kind == b"keys":
            names = list(_movie_keys(file, stop))
        elif kind == b"ilst":
            yield from _movie_items(file, stop, names)
        elif kind == b"\xa9cmt":  # QuickTime: length, language, text
            file.at += 4
            yield "comment", decoded(file.text(max(stop - file.at, 0)))
    if not whole:  # what was cut off is the description of the movie
        raise file.cut()


def _is_plain(file: Reader) -> bool:
    """Whether a `meta` box starts with a box at once (QuickTime) and not with its version (MP4)."""
    head = file.read(8)
    file.at -= 8
    return head[4:] == b"hdlr"


def _movie_keys(file: Reader, end: int) -> Iterator[str]:
    file.at += 8  # version and count
    while file.at < end and file.more():
        yield file.text(max(file.number(4) - 4, 4))[4:].decode("utf-8", "replace")


def _movie_items(file: Reader, end: int, names: list[str]) -> Iterator[tuple[str, str]]:
    for kind, stop in _boxes(file, end):
        place = int.from_bytes(kind, "big")
        name = "comment" if kind == b"\xa9cmt" else kind.decode("latin-1")
        if 0 < place <= len(names):
            name = names[place - 1]
        for inner, last in _boxes(file, stop):
            if inner == b"data":
                file.at += 8  # type and locale
                yield name, file.text(max(last - file.at, 0)).decode("utf-8", "replace")


def avif(file: Reader) -> Iterator[tuple[str, str]]:
    for kind, end in _boxes(file, file.size):
        if kind == b"meta":
            file.at += 4
            yield from _items(file, end)
            return
    raise file.cut()


def _items(file: Reader, end: int) -> Iterator[tuple[str, str]]:
    """The Exif data of an AVIF is an item: `iinf` says which, `iloc` where."""
    wanted: set[int] = set()
    places: list[tuple[int, int, int]] = []
    for kind, stop in _boxes(file, end):
        if kind == b"iinf":
            version = file.number(4) >> 24
            file.at += 4 if version else 2
            wanted.update(_exif_items(file, stop))
        elif kind == b"iloc":
            places.extend(_places(file))
    for item, at, length in places:
        if item in wanted:
            file.at = at
            skipped = file.number(4)
            yield from exif(file, file.text(max(length - 4, 0))[skipped:])


def _exif_items(file: Reader, end: int) -> Iterator[int]:
    for kind, _ in _boxes(file, end):
        if kind == b"infe":
            version = file.number(4) >> 24
            item = file.number(2 if version == 2 else 4)
            if file.read(6)[2:] == b"Exif":
                yield item


def _places(file: Reader) -> Iterator[tuple[int, int, int]]:
    """Each item, where it stands in the file and how long it is (ISO/IEC 14496-12, 8.11.3)."""
    version = file.number(4) >> 24
    of_offset, of_length = divmod(file.number(1), 16)
    of_base, of_index = divmod(file.number(1), 16)
    wide = 4 if version == 2 else 2
    for _ in range(file.number(wide)):
        file.count()
        item = file.number(wide)
        inside = file.number(2) & 15 if version else 0
        file.at += 2
        base = file.number(of_base)
        for _ in range(file.number(2)):
            file.count()
            file.at += of_index if version else 0
            at, length = base + file.number(of_offset), file.number(of_length)
            if not inside:
                yield item, at, length
