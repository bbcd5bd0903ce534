"""Exif data of WebP, JPEG and AVIF. ComfyUI writes "prompt:{...}" into Model, "workflow:{...}" into Make."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from .reader import Reader

_EXIF_IFD, _USER_COMMENT, _ASCII, _UNDEFINED = 0x8769, 0x9286, 2, 7
_NAMED = re.compile(r"(prompt|workflow)\s*:", re.IGNORECASE)


def exif(file: Reader, body: bytes) -> Iterator[tuple[str, str]]:
    body = body.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None or len(body) < 8:
        raise file.damaged("its Exif data does not start as such")
    waiting = [struct.unpack_from(f"{order}I", body, 4)[0]]
    seen: set[int] = set()
    while waiting:
        start = waiting.pop()
        if start in seen:
            continue
        seen.add(start)
        for tag, kind, length, offset, place in _entries(file, body, order, start):
            if tag == _EXIF_IFD:
                waiting.append(offset)
            elif kind in (_ASCII, _UNDEFINED):
                at = place + 8 if length <= 4 else offset
                file.weigh(length)
                yield from _exif_text(tag, body[at : at + length])


def _entries(file: Reader, body: bytes, order: str, start: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The entries of a directory: tag, kind, length, offset of the value, and where the entry stands."""
    if start + 2 > len(body):
        raise file.damaged("its Exif data points outside of itself")
    (count,) = struct.unpack_from(f"{order}H", body, start)
    for place in range(start + 2, min(start + 2 + 12 * count, len(body) - 11), 12):
        file.count()
        yield *struct.unpack_from(f"{order}HHII", body, place), place


def _exif_text(tag: int, data: bytes) -> Iterator[tuple[str, str]]:
    if tag == _USER_COMMENT:
        wide = data.startswith(b"UNICODE\0")
        text = data[8:].decode("utf-16-be" if wide else "utf-8", "replace")
        if wide and "{" not in text[:12]:
            text = data[8:].decode("utf-16-le", "replace")
    else:
        text = data.decode("utf-8", "replace")
    text = text.rstrip("\0")
    named = _NAMED.match(text)
    if named:
        yield named[1], text[named.end() :]
    else:
        yield "comment", text
