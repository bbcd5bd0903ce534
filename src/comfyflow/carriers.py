"""The graph that ComfyUI writes into what it makes: `prompt` and `workflow`, as the raw JSON texts.

PNG (tEXt, zTXt, iTXt, and `comf` of animated ones), WebP and JPEG (Exif), MP4 and MOV, WebM, FLAC, MP3, Ogg,
GLB, SVG and safetensors. Only headers are read: pixels, frames and samples are stepped over.
Sources: ComfyUI nodes.py, comfy_extras/nodes_images.py, comfy_api/latest/_ui.py and _util, 0.27.0; the
official frontend's readers (src/scripts/metadata, 1.45.20).
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from .errors import WorkflowInvalid

MAX_TEXT = 64 * 1024 * 1024  # bytes of metadata that are read from one file, inflated ones too
MAX_PARTS = 200_000  # chunks, boxes, elements or frames that are looked at in one file

KEYS = ("prompt", "workflow")


@dataclass(frozen=True, slots=True)
class Carried:
    """What a media file carries: its kind, and the texts `prompt` and `workflow`, those that are there."""

    kind: str
    texts: Mapping[str, str]


def carried(file: BinaryIO) -> Carried | None:
    """Read the graphs that a seekable media file carries; None when it is not of a kind known here.

    A file that is cut short still gives what stands whole in it. Raises WorkflowInvalid when it is cut or
    damaged and no graph was found.
    """
    head = file.read(16)
    for kind, fits, texts in _KINDS:
        if fits(head):
            file.seek(0)
            return _collected(kind, texts(_Reader(file, kind)))
    return None


def _collected(kind: str, found: Iterable[tuple[str, str]]) -> Carried:
    texts: dict[str, str] = {}
    fault: WorkflowInvalid | None = None
    try:
        for name, text in found:
            for key, value in _split(name.lower(), text):
                texts.setdefault(key, value)
    except WorkflowInvalid as error:
        fault = error
    except (zlib.error, UnicodeDecodeError, struct.error) as error:
        fault = WorkflowInvalid(f"this {kind} is damaged ({error}): use the original file")
    if fault is not None and not texts:
        raise fault
    return Carried(kind, texts)


def _split(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A text under its own name, or the texts in a comment that some packs write: `{"prompt": ..., ...}`."""
    if name in KEYS:
        yield name, text
    elif name in ("comment", "usercomment", "metadata") and text.lstrip().startswith("{"):
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            return
        for key in KEYS:
            if key in inner:
                yield key, _as_text(inner[key])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Reader:
    """A file that is read exactly, or the reading ends with one sentence."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._file = file
        self.kind = kind
        self._texts = 0
        self._parts = 0
        self.size = file.seek(0, 2)
        self.at = 0

    def cut(self) -> WorkflowInvalid:
        return WorkflowInvalid(
            f"this {self.kind} ends in the middle, at byte {self.size}, before a workflow was found: "
            "copy or download it again"
        )

    def damaged(self, why: str) -> WorkflowInvalid:
        return WorkflowInvalid(f"this {self.kind} is damaged ({why}): use the original file")

    def read(self, count: int) -> bytes:
        if count > MAX_TEXT:
            raise self.damaged(f"it announces {count} bytes of metadata")
        if self.at + count > self.size:
            raise self.cut()
        self._file.seek(self.at)
        self.at += count
        return self._file.read(count)

    def text(self, count: int) -> bytes:
        """Like `read`, for what is kept."""
        self.weigh(count)
        return self.read(count)

    def weigh(self, count: int) -> None:
        self._texts += count
        if self._texts > MAX_TEXT:
            raise self.damaged(f"it holds more than {MAX_TEXT >> 20} MiB of metadata")

    def inflated(self, data: bytes) -> bytes:
        stream = zlib.decompressobj()
        made = stream.decompress(data, MAX_TEXT + 1)
        self.weigh(len(made))
        return made

    def more(self) -> bool:
        """Whether there is another part; counts them."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise self.damaged(f"it has more than {MAX_PARTS} parts")
        return self.at < self.size


# PNG


def _png(file: _Reader) -> Iterator[tuple[str, str]]:
    file.at = 8
    while True:
        file.more()
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


def _itxt(file: _Reader, rest: bytes) -> str:
    packed, rest = rest[:1], rest[2:]
    text = rest.partition(b"\0")[2].partition(b"\0")[2]
    return (file.inflated(text) if packed == b"\1" else text).decode("utf-8")


_PNG_TEXTS: Mapping[bytes, Callable[[_Reader, bytes], str]] = {
    b"tEXt": lambda _, rest: rest.decode("latin-1"),
    b"comf": lambda _, rest: rest.decode("latin-1"),  # SaveAnimatedPNG
    b"zTXt": lambda file, rest: file.inflated(rest[1:]).decode("latin-1"),
    b"iTXt": _itxt,
}


# Exif: WebP and JPEG. ComfyUI writes "prompt:{...}" into Model and "workflow:{...}" into Make.


def _webp(file: _Reader) -> Iterator[tuple[str, str]]:
    file.at = 12
    while file.more():
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"EXIF":
            yield from _exif(file, file.text(length))
            return
        file.at += length + length % 2
        if file.at > file.size:
            raise file.cut()


def _jpeg(file: _Reader) -> Iterator[tuple[str, str]]:
    file.at = 2
    while True:
        file.more()
        mark, kind = struct.unpack(">BB", file.read(2))
        if mark != 0xFF:
            raise file.damaged("a marker is missing")
        if kind in (0xDA, 0xD9):  # the picture, or its end
            return
        if kind == 0xFF:
            file.at -= 1
            continue
        (length,) = struct.unpack(">H", file.read(2))
        body = file.text(max(length - 2, 0))
        if kind == 0xE1 and body.startswith(b"Exif\0\0"):
            yield from _exif(file, body)
        elif kind == 0xFE:
            yield "comment", body.decode("utf-8", "replace")


_EXIF_IFD, _USER_COMMENT, _ASCII, _UNDEFINED = 0x8769, 0x9286, 2, 7
_NAMED = re.compile(r"(prompt|workflow)\s*:", re.IGNORECASE)


def _exif(file: _Reader, body: bytes) -> Iterator[tuple[str, str]]:
    body = body.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None:
        raise file.damaged("its Exif data has no byte order")
    waiting = [struct.unpack_from(f"{order}I", body, 4)[0]]
    seen: set[int] = set()
    while waiting and file.more():
        start = waiting.pop()
        if start in seen or start + 2 > len(body):
            continue
        seen.add(start)
        (count,) = struct.unpack_from(f"{order}H", body, start)
        for place in range(start + 2, min(start + 2 + 12 * count, len(body) - 11), 12):
            tag, kind, length, offset = struct.unpack_from(f"{order}HHII", body, place)
            if tag == _EXIF_IFD:
                waiting.append(offset)
            elif kind in (_ASCII, _UNDEFINED):
                at = place + 8 if length <= 4 else offset
                yield from _exif_text(tag, body[at : at + length])


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


# MP4 and MOV: boxes inside of boxes


def _boxes(file: _Reader, end: int) -> Iterator[tuple[bytes, int]]:
    """The kind and the end of each box up to `end`; the reader stands at its content."""
    at = file.at
    while at + 8 <= end and file.more():
        file.at = at
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        stop = end if length == 0 else at + length
        if stop < file.at:
            raise file.damaged("a box is smaller than its own head")
        if stop > end:
            raise file.cut()
        yield kind, stop
        at = stop


def _mp4(file: _Reader) -> Iterator[tuple[str, str]]:
    for kind, end in _boxes(file, file.size):
        if kind == b"moov":
            yield from _movie(file, end, 0)


def _movie(file: _Reader, end: int, depth: int) -> Iterator[tuple[str, str]]:
    names: list[str] = []
    for kind, stop in _boxes(file, end):
        if kind in (b"udta", b"meta") and depth < len(("udta", "meta")):
            if kind == b"meta" and not _is_plain(file):
                file.at += 4
            yield from _movie(file, stop, depth + 1)
        elif kind == b"keys":
            names = list(_movie_keys(file, stop))
        elif kind == b"ilst":
            yield from _movie_items(file, stop, names)


def _is_plain(file: _Reader) -> bool:
    """Whether a `meta` box starts with a box at once (QuickTime) and not with its version (MP4)."""
    head = file.read(8)
    file.at -= 8
    return head[4:] == b"hdlr"


def _movie_keys(file: _Reader, end: int) -> Iterator[str]:
    file.at += 8  # version and count
    while file.at < end and file.more():
        (length,) = struct.unpack(">I", file.read(4))
        yield file.text(max(length - 4, 4))[4:].decode("utf-8", "replace")


def _movie_items(file: _Reader, end: int, names: list[str]) -> Iterator[tuple[str, str]]:
    for kind, stop in _boxes(file, end):
        place = int.from_bytes(kind, "big")
        name = "comment" if kind == b"\xa9cmt" else kind.decode("latin-1")
        if 0 < place <= len(names):
            name = names[place - 1]
        for inner, last in _boxes(file, stop):
            if inner == b"data":
                file.at += 8  # type and locale
                yield name, file.text(max(last - file.at, 0)).decode("utf-8", "replace")


# WebM: EBML elements

_SEGMENT, _TAGS, _TAG, _SIMPLE_TAG = 0x18538067, 0x1254C367, 0x7373, 0x67C8
_TAG_NAME, _TAG_STRING = 0x45A3, 0x4487


def _webm(file: _Reader) -> Iterator[tuple[str, str]]:
    name = ""
    while file.more():
        element, _ = _number(file, keep_mark=True)
        length, known = _number(file, keep_mark=False)
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
        if file.at > file.size:
            raise file.cut()


def _number(file: _Reader, *, keep_mark: bool) -> tuple[int, bool]:
    """A number of EBML, and whether it is known (all ones: a live stream did not know its length)."""
    first = file.read(1)[0]
    width = 9 - first.bit_length()
    if width > 8:
        raise file.damaged("an element has no length")
    value = first if keep_mark else first & (0xFF >> width)
    value = int.from_bytes(bytes([value]) + file.read(width - 1), "big")
    return value, value != (1 << 7 * width) - 1


# FLAC, Ogg: Vorbis comments

_COMMENTS = 4  # the type of FLAC's block of comments


def _flac(file: _Reader) -> Iterator[tuple[str, str]]:
    file.at = 4
    last = False
    while not last:
        file.more()
        (head,) = struct.unpack(">I", file.read(4))
        last, kind, length = bool(head >> 31), head >> 24 & 0x7F, head & 0xFFFFFF
        if kind == _COMMENTS:
            yield from _vorbis(file, file.text(length))
        else:
            file.at += length


def _ogg(file: _Reader) -> Iterator[tuple[str, str]]:
    """The second packet of an Ogg file, which may run over many pages."""
    packets, packet = 0, b""
    while file.more():
        head = file.read(27)
        if head[:4] != b"OggS":
            raise file.damaged("a page does not start as one")
        for length in file.read(head[26]):
            packet += file.text(length) if packets else file.read(length)
            if length == 255:
                continue
            if packets == 1:
                yield from _vorbis(file, packet.removeprefix(b"OpusTags").removeprefix(b"\x03vorbis"))
                return
            packets, packet = packets + 1, b""


def _vorbis(file: _Reader, body: bytes) -> Iterator[tuple[str, str]]:
    (vendor,) = struct.unpack_from("<I", body)
    (count,) = struct.unpack_from("<I", body, 4 + vendor)
    at = 8 + vendor
    for _ in range(count):
        (length,) = struct.unpack_from("<I", body, at)
        if at + 4 + length > len(body):
            raise file.damaged("a comment is longer than all of them")
        name, _, text = body[at + 4 : at + 4 + length].decode("utf-8", "replace").partition("=")
        yield name, text
        at += 4 + length


# MP3: ID3

_UNSYNCHRONISED, _EXTENDED = 0x80, 0x40
_ENCODINGS = ("latin-1", "utf-16", "utf-16-be", "utf-8")


def _mp3(file: _Reader) -> Iterator[tuple[str, str]]:
    head = file.read(10)
    if head[:3] != b"ID3":
        return
    version, flags = head[3], head[5]
    body = file.text(_syncsafe(head[6:]))
    if flags & _UNSYNCHRONISED:
        body = body.replace(b"\xff\x00", b"\xff")
    at = 0
    if flags & _EXTENDED:
        size = body[:4]
        at = _syncsafe(size) if version > 3 else int.from_bytes(size, "big") + 4
    while at + 10 <= len(body) and body[at] and file.more():
        name, size = body[at : at + 4], body[at + 4 : at + 8]
        length = _syncsafe(size) if version > 3 else int.from_bytes(size, "big")
        frame = body[at + 10 : at + 10 + length]
        at += 10 + length
        if name == b"TXXX" and frame:
            yield _id3_pair(frame)
        elif name == b"COMM" and frame:
            yield "comment", _id3_pair(frame[:1] + frame[4:])[1]


def _syncsafe(data: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(data)))


def _id3_pair(frame: bytes) -> tuple[str, str]:
    encoding = _ENCODINGS[frame[0]] if frame[0] < len(_ENCODINGS) else "latin-1"
    if encoding == "utf-16":  # each half has a byte order mark of its own
        order = "utf-16-be" if frame[1:3] == b"\xfe\xff" else "utf-16-le"
        text = frame[1:].decode(order, "replace").replace("\ufeff", "")
    else:
        text = frame[1:].decode(encoding, "replace")
    name, _, value = text.partition("\0")
    return name, value.rstrip("\0")


# GLB, safetensors, SVG: JSON inside


def _glb(file: _Reader) -> Iterator[tuple[str, str]]:
    file.at = 12
    length, kind = struct.unpack("<I4s", file.read(8))
    if kind != b"JSON":
        raise file.damaged("its first chunk is not JSON")
    asset = _object(file, file.text(length)).get("asset")
    extras = asset.get("extras") if isinstance(asset, Mapping) else None
    yield from _named(extras)


def _safetensors(file: _Reader) -> Iterator[tuple[str, str]]:
    (length,) = struct.unpack("<Q", file.read(8))
    yield from _named(_object(file, file.text(length)).get("__metadata__"))


def _object(file: _Reader, text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise file.damaged("its JSON cannot be read") from error
    return found if isinstance(found, Mapping) else {}


def _named(found: Any) -> Iterator[tuple[str, str]]:
    for key in KEYS:
        if isinstance(found, Mapping) and key in found:
            yield key, _as_text(found[key])


_CDATA = re.compile(r"<metadata>\s*<!\[CDATA\[(.*?)\]\]>", re.DOTALL)


def _svg(file: _Reader) -> Iterator[tuple[str, str]]:
    found = _CDATA.search(file.text(file.size).decode("utf-8", "replace"))
    if found:
        yield "metadata", found[1]


def _is_riff(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_safetensors(head: bytes) -> bool:
    """A length of eight bytes, and then JSON: no text starts so."""
    return head[8:9] == b"{" and head[5:8] == b"\0\0\0"


_KINDS: tuple[tuple[str, Callable[[bytes], bool], Callable[[_Reader], Iterator[tuple[str, str]]]], ...] = (
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n"), _png),
    ("WebP", _is_riff, _webp),
    ("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), _jpeg),
    ("MOV", lambda head: head[4:12] == b"ftypqt  ", _mp4),
    ("M4A", lambda head: head[4:12] == b"ftypM4A ", _mp4),
    ("MP4", lambda head: head[4:8] == b"ftyp", _mp4),
    ("WebM", lambda head: head.startswith(b"\x1a\x45\xdf\xa3"), _webm),
    ("FLAC", lambda head: head.startswith(b"fLaC"), _flac),
    ("Ogg", lambda head: head.startswith(b"OggS"), _ogg),
    ("MP3", lambda head: head.startswith((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")), _mp3),
    ("GLB", lambda head: head.startswith(b"glTF"), _glb),
    ("SVG", lambda head: head.lstrip().startswith((b"<svg", b"<?xml")), _svg),
    ("safetensors file", _is_safetensors, _safetensors),
)
