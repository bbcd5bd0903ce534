"""A contact sheet: many pictures on one, with a line of text each. Needs Pillow (the extra `images`).

The sheet is written row by row, so neither the number of pictures nor their size makes it need more memory:
one row of tiles, and one picture of at most MAX_PIXELS.
"""
# ruff: noqa: PLC0415 - Pillow is an optional library, asked for by nothing else

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar
from uuid import uuid4

from .errors import UsageError
from .models import MediaKind, OutputFile

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

MAX_PIXELS = 64_000_000  # of one picture; decoded it needs four bytes for each

_EDGE, _LINE = 8, 16  # pixels
_PAPER, _TILE, _INK = (250, 250, 250), (200, 200, 200), (40, 40, 40)
# What Pillow's readers raise for files that are not what they look like.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error)

T = TypeVar("T")
Item = tuple[Path, str]


def contact_sheet(items: Iterable[Item], destination: Path, *, columns: int = 5, thumb: int = 240) -> int:
    """Draw the files, each with its caption, onto one PNG picture; returns how many. Blocking.

    `columns` tiles a row, each with a picture of at most `thumb` pixels a side (the first one of an
    animation). What is no picture, or cannot be opened, becomes a grey tile that says so. An older sheet of
    that name is replaced, at the end. Raises UsageError without Pillow, for no items, for another suffix than
    .png, and when the file cannot be written.
    """
    if find_spec("PIL") is None:
        raise UsageError("a contact sheet needs Pillow, which is not installed: pip install pillow")
    if destination.suffix.lower() != ".png":
        raise UsageError(
            f"{destination}: a contact sheet is a PNG picture, so give it a name that ends in .png"
        )
    part = destination.with_name(f".comfyflow-{uuid4().hex}.part")
    try:
        count = _write(items, part, columns, thumb)
        os.replace(part, destination)
    except OSError as error:
        raise UsageError(f"{destination} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()
    return count


def _write(items: Iterable[Item], part: Path, columns: int, thumb: int) -> int:
    rows = _rows(iter(items), columns)
    first = next(rows, None)
    if first is None:
        raise UsageError("there is nothing to put on a contact sheet: no file was found")
    columns = min(columns, len(first))
    count, font = 0, _font()
    with open(part, "xb") as target, _Png(target, _EDGE + columns * (thumb + _EDGE)) as png:
        png.add(_strip(png.width, _EDGE))
        while first is not None:
            strip = _strip(png.width, thumb + _LINE + _EDGE)
            for number, item in enumerate(first):
                _draw(strip, item, _EDGE + number * (thumb + _EDGE), thumb, font)
            png.add(strip)
            count, first = count + len(first), next(rows, None)
    return count


def _rows(items: Iterator[T], columns: int) -> Iterator[list[T]]:
    while row := list(islice(items, columns)):
        yield row


# -- one tile --


def _strip(width: int, height: int) -> Image:
    from PIL import Image

    return Image.new("RGB", (width, height), _PAPER)


def _font() -> Font:
    from PIL import ImageFont

    return ImageFont.load_default(size=11)


def _draw(strip: Image, item: Item, left: int, thumb: int, font: Font) -> None:
    from PIL import ImageDraw

    path, caption = item
    pen = ImageDraw.Draw(strip)
    picture = _picture(path, thumb)
    if isinstance(picture, str):
        pen.rectangle((left, 0, left + thumb - 1, thumb - 1), fill=_TILE)
        pen.text((left + _EDGE, thumb // 2 - _LINE), _fitting(picture, thumb - 2 * _EDGE, font), _INK, font)
        pen.text((left + _EDGE, thumb // 2), _fitting(path.name, thumb - 2 * _EDGE, font), _INK, font)
    else:
        strip.paste(picture, (left + (thumb - picture.width) // 2, (thumb - picture.height) // 2))
    pen.text((left, thumb + 1), _fitting(caption, thumb, font), _INK, font)


def _picture(path: Path, thumb: int) -> Image | str:
    """The picture at its size on the sheet, or why there is none."""
    from PIL import Image, ImageOps

    kind = OutputFile("", path.name).kind
    if kind not in {MediaKind.IMAGE, MediaKind.OTHER}:
        return kind.value
    try:
        with _opened(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return "too large"
            image.draft("RGB", (2 * thumb, 2 * thumb))  # lets a JPEG be decoded at a fraction of its size
            image.thumbnail((thumb, thumb))
            return _on_paper(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        return "the file is gone"
    except Image.DecompressionBombError:
        return "too large"
    except _BROKEN:
        return kind.value if kind is MediaKind.OTHER else "cannot be opened"


def _opened(path: Path) -> Image:
    """The picture, not decoded yet. Pillow's warning of many pixels is not needed: we look at them."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def _on_paper(image: Image) -> Image:
    """Without transparency."""
    from PIL import Image

    colours = image.convert("RGBA")
    paper = Image.new("RGB", image.size, _PAPER)
    paper.paste(colours, mask=colours.getchannel("A"))
    return paper


def _fitting(text: str, width: int, font: Font) -> str:
    """One line that is not longer than `width` pixels."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())[:200]
    while line and font.getlength(line) > width:
        line = line[: int(len(line) * 0.9)].rstrip("… ") + "…" if len(line) > 2 else ""
    return line


# -- the picture that they go to --


class _Png:
    """A PNG that is written strip by strip (PNG specification, third edition); its height is known last."""

    def __init__(self, target: BinaryIO, width: int) -> None:
        self.width, self._height, self._target = width, 0, target
        self._packer = zlib.compressobj(6)

    def __enter__(self) -> Self:
        self._target.write(b"\x89PNG\r\n\x1a\n")
        self._head()
        return self

    def add(self, strip: Image) -> None:
        """The next strip, in RGB and of this width."""
        self._height += strip.height
        data, stride = strip.tobytes(), 3 * self.width
        lines = (b"\0" + data[start : start + stride] for start in range(0, len(data), stride))
        self._chunk(b"IDAT", self._packer.compress(b"".join(lines)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._chunk(b"IDAT", self._packer.flush())
            self._chunk(b"IEND", b"")
            self._target.seek(8)
            self._head()

    def _head(self) -> None:
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", self.width, self._height, 8, 2, 0, 0, 0))

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._target.write(struct.pack(">I", len(data)) + kind + data)
        self._target.write(struct.pack(">I", zlib.crc32(kind + data)))
