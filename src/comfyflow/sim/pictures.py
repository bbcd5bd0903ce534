"""Pictures made by hand: PNG, animated PNG, JPEG and GIF without an imaging library.

A picture is a slanted gradient in two colours chosen by the seed, with the prompt text on it, so that a
person sees at a glance which job a file came from, and two seeds never give the same bytes.
"""

from __future__ import annotations

import struct
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

MAX_SIDE = 2048  # pixels: bounds what one prompt can cost
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_WHITE = b"\xff\xff\xff"

# Five columns a character, lowest bit on top, for the characters from space to underscore.
_FONT = bytes.fromhex(
    "0000000000" "00005f0000" "0007000700" "147f147f14" "242a7f2a12" "2313086462" "3649562050" "0008070300"
    "001c224100" "0041221c00" "2a1c7f1c2a" "08083e0808" "0080703000" "0808080808" "0000606000" "2010080402"
    "3e5149453e" "00427f4000" "7249494946" "2141494d33" "1814127f10" "2745454539" "3c4a494931" "4121110907"
    "3649494936" "464949291e" "0000140000" "0040340000" "0008142241" "1414141414" "0041221408" "0201590906"
    "3e415d594e" "7c1211127c" "7f49494936" "3e41414122" "7f4141413e" "7f49494941" "7f09090901" "3e41415173"
    "7f0808087f" "00417f4100" "2040413f01" "7f08142241" "7f40404040" "7f021c027f" "7f0408107f" "3e4141413e"
    "7f09090906" "3e4151215e" "7f09192946" "2649494932" "03017f0103" "3f4040403f" "1f2040201f" "3f4038403f"
    "6314081463" "0304780403" "6159494d43" "007f414141" "0204081020" "004141417f" "0402010204" "4040404040"
)  # fmt: skip
_GLYPH = 6  # pixels from one character to the next
_LINE = 9  # pixels from one line to the next


@dataclass(frozen=True, slots=True)
class Picture:
    """What an IMAGE is in here. `color` is 0xRRGGBB for a plain one, else the `seed` chooses a gradient."""

    width: int
    height: int
    seed: int = 0
    text: str = ""
    color: int | None = None

    def sized(self, width: int, height: int) -> Picture:
        """The same picture in another size, in pixels, never beyond `MAX_SIDE`."""
        return replace(self, width=min(max(width, 1), MAX_SIDE), height=min(max(height, 1), MAX_SIDE))


@lru_cache(maxsize=256)
def _colors(seed: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    noise = zlib.crc32(b"%d" % seed).to_bytes(4, "big") + zlib.crc32(b"%d!" % seed).to_bytes(4, "big")
    return (noise[0] // 2, noise[1] // 2, noise[2] // 2), (noise[4], noise[5], noise[6])


def _ramp(picture: Picture) -> list[tuple[int, int, int]]:
    """The colours along the diagonal: entry x + y is the colour of pixel (x, y)."""
    length = picture.width + picture.height
    if picture.color is not None:
        return [(picture.color >> 16 & 255, picture.color >> 8 & 255, picture.color & 255)] * length
    low, high = _colors(picture.seed)
    span = max(length - 1, 1)
    return [
        (
            low[0] + (high[0] - low[0]) * i // span,
            low[1] + (high[1] - low[1]) * i // span,
            low[2] + (high[2] - low[2]) * i // span,
        )
        for i in range(length)
    ]


def _rows(picture: Picture) -> list[bytearray]:
    strip = b"".join(map(bytes, _ramp(picture)))
    rows = [bytearray(strip[3 * y : 3 * (y + picture.width)]) for y in range(picture.height)]
    if picture.text:
        _write(rows, picture.text, scale=max(1, picture.width // 200))
    return rows


def _write(rows: list[bytearray], text: str, scale: int) -> None:
    columns = (len(rows[0]) // 3) // (_GLYPH * scale) - 1
    lines = len(rows) // (_LINE * scale)
    if columns < 1 or lines < 1:
        return
    for number, line in enumerate(textwrap.wrap(text.upper(), columns)[:lines]):
        for position, character in enumerate(line):
            _draw(rows, character, (1 + position * _GLYPH) * scale, (1 + number * _LINE) * scale, scale)


def _draw(rows: list[bytearray], character: str, left: int, top: int, scale: int) -> None:
    code = ord(character) - ord(" ")
    glyph = _FONT[5 * code : 5 * code + 5] if 0 <= code < len(_FONT) // 5 else b"\x7f\x41\x41\x41\x7f"
    for column, bits in enumerate(glyph):
        start = 3 * (left + column * scale)
        for y in range(8):
            if bits >> y & 1:
                _dot(rows, start, top + y * scale, scale)


def _dot(rows: list[bytearray], start: int, top: int, scale: int) -> None:
    for row in rows[top : top + scale]:
        row[start : start + 3 * scale] = _WHITE * scale


# PNG


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _header(picture: Picture) -> bytes:
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", picture.width, picture.height, 8, 2, 0, 0, 0))


def _compressed(picture: Picture) -> bytes:
    return zlib.compress(b"".join(b"\0" + row for row in _rows(picture)), 1)


def _texts(texts: Mapping[str, str]) -> bytes:
    return b"".join(
        _chunk(b"tEXt", key.encode("latin-1", "replace") + b"\0" + value.encode("latin-1", "replace"))
        for key, value in texts.items()
    )


def png(picture: Picture, texts: Mapping[str, str] | None = None) -> bytes:
    """A PNG with the given tEXt chunks, as SaveImage writes them (ComfyUI nodes.py)."""
    return (
        _PNG_MAGIC
        + _header(picture)
        + _texts(texts or {})
        + _chunk(b"IDAT", _compressed(picture))
        + _chunk(b"IEND", b"")
    )


def apng(pictures: Sequence[Picture], fps: float, texts: Mapping[str, str] | None = None) -> bytes:
    """An animated PNG of one picture or more, all in the size of the first."""
    first = pictures[0]
    parts = [
        _PNG_MAGIC,
        _header(first),
        _chunk(b"acTL", struct.pack(">II", len(pictures), 0)),
        _texts(texts or {}),
    ]
    sequence = 0
    for number, picture in enumerate(pictures):
        frame = picture.sized(first.width, first.height)
        delay = max(1, round(1000 / fps))
        control = struct.pack(">IIIIIHHBB", sequence, first.width, first.height, 0, 0, delay, 1000, 0, 0)
        parts.append(_chunk(b"fcTL", control))
        sequence += 1
        if number == 0:
            parts.append(_chunk(b"IDAT", _compressed(frame)))
        else:
            parts.append(_chunk(b"fdAT", struct.pack(">I", sequence) + _compressed(frame)))
            sequence += 1
    return b"".join([*parts, _chunk(b"IEND", b"")])


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG, None when it is something else."""
    if len(data) < 24 or not data.startswith(_PNG_MAGIC):
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


# JPEG: a mosaic. Each 8x8 block has one colour, so only its DC coefficient is stored, and the code tables are
# the simplest ones that the format allows: nine DC categories of four bits each, one AC symbol ("end of
# block") of one bit.

_JPEG_TABLES = (
    b"\xff\xdb\x00\x43\x00" + b"\x08" * 64
    + b"\xff\xc4\x00\x1c\x00" + bytes([0, 0, 0, 9, *[0] * 12]) + bytes(range(9))
    + b"\xff\xc4\x00\x14\x10" + bytes([1, *[0] * 15]) + b"\x00"
)  # fmt: skip


def jpeg(picture: Picture) -> bytes:
    """A JPEG mosaic of the picture in blocks of 8x8 pixels."""
    across, down = -(-picture.width // 8), -(-picture.height // 8)
    ramp = _ramp(picture)
    blocks = (ramp[min(8 * (x + y) + 8, len(ramp) - 1)] for y in range(down) for x in range(across))
    frame = struct.pack(">BHHB", 8, picture.height, picture.width, 3) + bytes.fromhex("011100021100031100")
    return (
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
        + _JPEG_TABLES
        + b"\xff\xc0"
        + struct.pack(">H", len(frame) + 2)
        + frame
        + b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00"
        + _scan(blocks)
        + b"\xff\xd9"
    )


def _scan(blocks: Iterable[tuple[int, int, int]]) -> bytes:
    before = (0, 0, 0)
    bits: list[str] = []
    for block in blocks:
        levels = _levels(*block)
        bits += [_code(now - then) for now, then in zip(levels, before, strict=True)]
        before = levels
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")


@lru_cache(maxsize=4096)
def _levels(red: int, green: int, blue: int) -> tuple[int, int, int]:
    return (
        round(0.299 * red + 0.587 * green + 0.114 * blue) - 128,
        max(-128, min(127, round(-0.1687 * red - 0.3313 * green + 0.5 * blue))),
        max(-128, min(127, round(0.5 * red - 0.4187 * green - 0.0813 * blue))),
    )


@lru_cache(maxsize=1024)
def _code(difference: int) -> str:
    """One block of one component: its DC category, the difference in that many bits, and "end of block"."""
    size = abs(difference).bit_length()
    value = difference if difference >= 0 else difference + (1 << size) - 1
    return f"{size:04b}" + (f"{value:0{size}b}" if size else "") + "0"


# GIF: 128 grey levels, and a clear code often enough that every code keeps eight bits


def gif(pictures: Sequence[Picture], fps: float) -> bytes:
    """An animated grey GIF of one picture or more, all in the size of the first."""
    first = pictures[0]
    screen = struct.pack("<HHBBB", first.width, first.height, 0xF6, 0, 0)
    palette = b"".join(bytes([2 * level] * 3) for level in range(128))
    loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
    frames = b"".join(_gif_frame(picture.sized(first.width, first.height), fps) for picture in pictures)
    return b"GIF89a" + screen + palette + loop + frames + b";"


def _gif_frame(picture: Picture, fps: float) -> bytes:
    pixels = b"".join(bytes(row[1::3]) for row in _rows(picture)).translate(
        bytes(level // 2 for level in range(256))
    )
    codes = b"".join(b"\x80" + pixels[i : i + 126] for i in range(0, len(pixels), 126)) + b"\x81"
    blocks = b"".join(bytes([len(part)]) + part for part in _split(codes, 255))
    control = b"\x21\xf9\x04\x00" + struct.pack("<H", max(1, round(100 / fps))) + b"\x00\x00"
    return (
        control
        + b","
        + struct.pack("<HHHHB", 0, 0, picture.width, picture.height, 0)
        + b"\x07"
        + blocks
        + b"\x00"
    )


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]
