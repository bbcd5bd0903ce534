"""Pictures that are lists of parts: PNG, WebP, JPEG, EXR and SVG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

from .exif import exif
from .reader import MAX_TEXT, Reader, decoded


# PNG
def png(file: Reader) -> Iterator[tuple[str, str]]:
    file.at = 8
    while True:
        file.count()
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IEND":
            return
        if kind not in _PNG_TEXTS:
            file.at += length + 4
            continue
        body = file.text(length)
        if zlib.crc32(kind + body) != struct.unpack(">I", file.read(4))[0]:
            raise file.damaged(f"the checksum of a {kind.decode('ascii')} chunk is wrong")
        keyword, _, rest = body.partition(b"\0")
        yield keyword.decode("latin-1"), _PNG_TEXTS[kind](file, rest)


def _itxt(file: Reader, rest: bytes) -> str:
    packed, rest = rest[:1], rest[2:]
    text = rest.partition(b"\0")[2].partition(b"\0")[2]
    return decoded(file.inflated(text) if packed == b"\1" else text)


_PNG_TEXTS: Mapping[bytes, Callable[[Reader, bytes], str]] = {
    b"tEXt": lambda _, rest: decoded(rest),
    b"comf": lambda _, rest: decoded(rest),  # SaveAnimatedPNG
    b"zTXt": lambda file, rest: decoded(file.inflated(rest[1:])),
    b"iTXt": _itxt,
}


# WebP and JPEG: Exif data in one of their parts


def webp(file: Reader) -> Iterator[tuple[str, str]]:
    file.at = 4
    end = 8 + int.from_bytes(file.read(4), "little")
    file.at = 12
    while file.more():
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"EXIF":
            yield from exif(file, file.text(length))
            return
        file.at += length + length % 2
    if max(end, file.at) > file.size + 1:  # some writers leave the last byte of padding away
        raise file.cut()


_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers that nothing belongs to


def jpeg(file: Reader) -> Iterator[tuple[str, str]]:
    file.at = 2
    while True:
        file.count()
        mark, kind = struct.unpack(">BB", file.read(2))
        if mark != 0xFF:
            raise file.damaged("a marker is missing")
        if kind in (0xDA, 0xD9):  # the picture, or its end
            return
        if kind == 0xFF:
            file.at -= 1
        elif kind not in _BARE:
            yield from _segment(file, kind, max(file.number(2) - 2, 0))


def _segment(file: Reader, kind: int, length: int) -> Iterator[tuple[str, str]]:
    end = file.at + length
    if kind == 0xE1 and length > 6 and file.read(6) == b"Exif\0\0":
        yield from exif(file, file.text(length - 6))
    elif kind == 0xFE:
        yield "comment", decoded(file.text(length))
    file.at = end


# EXR: attributes, each a name, a type, a length and a value; an empty name ends them


def exr(file: Reader) -> Iterator[tuple[str, str]]:
    file.at = 8
    while name := _zero_ended(file):
        file.count()
        _zero_ended(file)
        length = int.from_bytes(file.read(4), "little")
        if name in (b"prompt", b"workflow"):
            yield name.decode("ascii"), decoded(file.text(length))
        else:
            file.at += length


def _zero_ended(file: Reader) -> bytes:
    """A name; the format allows 255 bytes."""
    start = file.at
    block = file.read(max(min(256, file.size - start), 1))
    name, ended, _ = block.partition(b"\0")
    if not ended:
        raise file.damaged("a name in it does not end") if len(block) == 256 else file.cut()
    file.at = start + len(name) + 1
    return name


_OPENED, _CLOSED = b"<![CDATA[", b"]]>"


def svg(file: Reader) -> Iterator[tuple[str, str]]:
    """ComfyUI puts its metadata right behind the opening tag (SaveSVGNode)."""
    text = file.text(min(file.size, MAX_TEXT))
    if b"<svg" not in text:
        raise file.damaged("there is no <svg> in it")
    _, found, rest = text.partition(b"<metadata>")
    inner, closed, _ = rest.lstrip().partition(_CLOSED)
    if found and closed and inner.startswith(_OPENED):
        yield "metadata", decoded(inner.removeprefix(_OPENED))
    elif b"</svg>" not in text:
        raise file.cut()
