"""WebM and Matroska: EBML elements."""

from __future__ import annotations

from collections.abc import Iterator

from .reader import Reader

_SEGMENT, _TAGS, _TAG, _SIMPLE_TAG = 0x18538067, 0x1254C367, 0x7373, 0x67C8
_TAG_NAME, _TAG_STRING = 0x45A3, 0x4487


def webm(file: Reader) -> Iterator[tuple[str, str]]:
    name, end = "", 0
    while file.more():
        element, _ = _number(file, keep_mark=True)
        length, known = _number(file, keep_mark=False)
        if known:
            end = max(end, file.at + length)
        if element in (_SEGMENT, _TAGS, _TAG, _SIMPLE_TAG) or not known:
            continue  # what follows is inside of it
        if element in (_TAG_NAME, _TAG_STRING):
            text = file.text(length).decode("utf-8", "replace").rstrip("\0")
            if element == _TAG_STRING:
                yield name, text
            else:
                name = text
            continue
        file.at += length
    if end > file.size:
        raise file.cut()


def _number(file: Reader, *, keep_mark: bool) -> tuple[int, bool]:
    """A number of EBML, and whether it is known (all ones: a live stream did not know its length)."""
    first = file.number(1)
    width = 9 - first.bit_length()
    if width > 8:
        raise file.damaged("an element has no length")
    value = first if keep_mark else first & (0xFF >> width)
    value = int.from_bytes(bytes([value]) + file.read(width - 1), "big")
    return value, value != (1 << 7 * width) - 1
