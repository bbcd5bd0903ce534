"""PNG, JPEG, GIF, BMP."""

from __future__ import annotations

import re
import struct
import zlib

from .tape import Damaged, Facts, Tape, Walk

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(tape: Tape) -> Walk[Facts]:
    """PNG specification, section 5: every chunk has a CRC-32. APNG's fcTL says how long a frame stays."""
    yield from tape.skip(len(PNG_SIGNATURE))
    kind, header = yield from _png_chunk(tape)
    if kind != b"IHDR" or len(header) != 13:
        raise tape.garbled()
    duration, has_data = 0.0, False
    while kind != b"IEND":
        kind, body = yield from _png_chunk(tape)
        has_data = has_data or kind == b"IDAT"
        if kind == b"fcTL" and len(body) == 26:
            numerator, denominator = struct.unpack_from(">HH", body, 20)
            duration += numerator / (denominator or 100)
    if not has_data:
        raise Damaged("the PNG has no picture in it")
    width, height = struct.unpack_from(">II", header)
    return Facts(width, height, duration or None)


def _png_chunk(tape: Tape) -> Walk[tuple[bytes, bytes]]:
    """The kind of the next chunk, and its body when it is short (only short ones hold what is asked for)."""
    length, kind = struct.unpack(">I4s", (yield from tape.take(8)))
    if length > 0x7FFFFFFF or not kind.isalpha():
        raise tape.garbled()
    body = b""
    if length <= 32:
        body = yield from tape.take(length)
        crc = zlib.crc32(body, zlib.crc32(kind))
    else:
        crc = yield from tape.crc(length, zlib.crc32(kind))
    if (yield from tape.take(4)) != crc.to_bytes(4, "big"):
        raise Damaged(f"the PNG's {kind.decode()} chunk does not match its checksum (near byte {tape.at})")
    return kind, body


# In the picture's data FF is followed by 00 or a restart marker; anything else ends it.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_JPEG_SOS, _JPEG_EOI = 0xDA, 0xD9
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def jpeg(tape: Tape) -> Walk[Facts]:
    """ITU T.81, annex B: segments with lengths, then the picture's data up to a marker that is no restart."""
    yield from tape.skip(2)
    facts, has_scan = None, False
    while (marker := (yield from _jpeg_marker(tape))) != _JPEG_EOI:
        if marker in _JPEG_BARE:
            continue
        length = int.from_bytes((yield from tape.take(2)), "big") - 2
        if length < 0 or (marker in _JPEG_SIZES and length < 5):
            raise tape.garbled()
        body = yield from tape.take(length)
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", body, 1)
            facts = Facts(width, height or None)
        if marker == _JPEG_SOS:
            has_scan = True
            yield from tape.seek(_JPEG_MARKER)
    if facts is None or not has_scan:
        raise Damaged("the JPEG has no picture in it")
    return facts


def _jpeg_marker(tape: Tape) -> Walk[int]:
    if (yield from tape.take(1)) != b"\xff":
        raise tape.garbled()
    marker = 0xFF
    while marker == 0xFF:  # any number of FF may come before a marker
        marker = (yield from tape.take(1))[0]
    return marker


_GIF_CONTROL, _GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = b"\xf9", b"!", b",", b";"


def gif(tape: Tape) -> Walk[Facts]:
    """GIF89a specification: blocks up to the trailer. The duration is the sum of the frames' delays."""
    header = yield from tape.take(13)
    width, height, flags = struct.unpack_from("<HHB", header, 6)
    yield from tape.skip(_color_table_size(flags))
    hundredths, frames = 0, 0
    while (kind := (yield from tape.take(1))) != _GIF_TRAILER:
        if kind == _GIF_EXTENSION:
            hundredths += yield from _gif_extension(tape)
        elif kind == _GIF_IMAGE:
            frames += 1
            yield from tape.skip(_color_table_size((yield from tape.take(9))[8]) + 1)
            yield from tape.skip_blocks()
        else:
            raise tape.garbled()
    if not frames:
        raise Damaged("the GIF has no picture in it")
    return Facts(width, height, hundredths / 100 or None)


def _gif_extension(tape: Tape) -> Walk[int]:
    """The delay in hundredths of a second when it is a graphic control extension, else 0."""
    delay = 0
    if (yield from tape.take(1)) == _GIF_CONTROL:
        block = yield from tape.take(4)
        delay = int.from_bytes(block[2:4], "little")
        yield from tape.skip(1)
    yield from tape.skip_blocks()
    return delay


def _color_table_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def bmp(tape: Tape) -> Walk[Facts]:
    """The header gives the file's length; a picture that is stored from its top has a negative height."""
    header = yield from tape.take(26)
    length, width, height = struct.unpack_from("<I12xii", header, 2)
    yield from tape.skip(max(length - tape.at, 0))
    return Facts(width, abs(height))
