"""The graph that ComfyUI writes into what it makes: `prompt` and `workflow`, as the raw JSON texts.

PNG (tEXt, zTXt, iTXt, and `comf` of animated ones), WebP, JPEG and AVIF (Exif), EXR, MP4 and MOV, WebM, FLAC,
MP3, Opus and Ogg, GLB, SVG and safetensors (latents). Only headers are read: pixels, frames and samples are
stepped over. Every walk is counted and all that is kept is weighed, so a hostile file ends quickly.
Sources: ComfyUI nodes.py, comfy_extras/nodes_images.py, nodes_video.py and nodes_save_3d.py,
comfy_api/latest/_ui.py, 0.27.0 and 0.3.64; the official frontend's readers (src/scripts/metadata, 1.45.20);
recordings/carriers. `media` walks the same containers for another duty: it takes a file once, in pieces, as it
arrives, and looks at pixels too; here the file can be sought, and the payload must not be read.
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
    head = file.read(64)
    for kind, fits, texts in _KINDS:
        if fits(head):
            file.seek(0)
            return _collected(kind, texts(_Reader(file, kind)))
    return None


def _collected(kind: str, found: Iterable[tuple[str, str]]) -> Carried:
    texts: dict[str, str] = {}
    try:
        for name, text in found:
            for key, value in _split(name.lower(), text):
                texts.setdefault(key, value)
    except WorkflowInvalid:
        if not texts:
            raise
    return Carried(kind, texts)


def _split(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A text under its own name, or the texts in a comment that some packs write: `{"prompt": ..., ...}`."""
    if name in KEYS:
        yield name, _unwrapped(text)
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


def _unwrapped(text: str) -> str:
    """JSON that was written as a JSON string once more, or twice (videos saved again by older ComfyUI)."""
    for _ in range(3):
        if not text.startswith('"'):
            break
        try:
            text = _as_text(json.loads(text))
        except ValueError:
            break
    return text


def _decoded(data: bytes) -> str:
    """UTF-8, as the page reads every text, else Latin-1, as PNG has it."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


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
        data = self._file.read(count)
        if len(data) < count:  # it became shorter since
            raise self.cut()
        return data

    def number(self, width: int) -> int:
        """An unsigned number of `width` bytes, the highest first."""
        return int.from_bytes(self.read(width), "big")

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
        try:
            made = stream.decompress(data, MAX_TEXT + 1)
        except zlib.error as error:
            raise self.damaged("a text in it cannot be inflated") from error
        self.weigh(len(made))
        return made

    def more(self) -> bool:
        """Whether there is another part; counts them."""
        self.count()
        return self.at < self.size

    def count(self) -> None:
        """One part more: this bounds the walk, whatever the sizes in the file say."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise self.damaged(f"it has more than {MAX_PARTS} parts")


# PNG


def _png(file: _Reader) -> Iterator[tuple[str, str]]:
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


def _itxt(file: _Reader, rest: bytes) -> str:
    packed, rest = rest[:1], rest[2:]
    text = rest.partition(b"\0")[2].partition(b"\0")[2]
    return _decoded(file.inflated(text) if packed == b"\1" else text)


_PNG_TEXTS: Mapping[bytes, Callable[[_Reader, bytes], str]] = {
    b"tEXt": lambda _, rest: _decoded(rest),
    b"comf": lambda _, rest: _decoded(rest),  # SaveAnimatedPNG
    b"zTXt": lambda file, rest: _decoded(file.inflated(rest[1:])),
    b"iTXt": _itxt,
}


# Exif: WebP, JPEG and AVIF. ComfyUI writes "prompt:{...}" into Model and "workflow:{...}" into Make.


def _webp(file: _Reader) -> Iterator[tuple[str, str]]:
    file.at = 4
    end = 8 + int.from_bytes(file.read(4), "little")
    file.at = 12
    while file.more():
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"EXIF":
            yield from _exif(file, file.text(length))
            return
        file.at += length + length % 2
    if max(end, file.at) > file.size + 1:  # some writers leave the last byte of padding away
        raise file.cut()


_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers that nothing belongs to


def _jpeg(file: _Reader) -> Iterator[tuple[str, str]]:
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


def _segment(file: _Reader, kind: int, length: int) -> Iterator[tuple[str, str]]:
    end = file.at + length
    if kind == 0xE1 and length > 6 and file.read(6) == b"Exif\0\0":
        yield from _exif(file, file.text(length - 6))
    elif kind == 0xFE:
        yield "comment", _decoded(file.text(length))
    file.at = end


_EXIF_IFD, _USER_COMMENT, _ASCII, _UNDEFINED = 0x8769, 0x9286, 2, 7
_NAMED = re.compile(r"(prompt|workflow)\s*:", re.IGNORECASE)


def _exif(file: _Reader, body: bytes) -> Iterator[tuple[str, str]]:
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


def _entries(file: _Reader, body: bytes, order: str, start: int) -> Iterator[tuple[int, int, int, int, int]]:
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


# MP4 and MOV, AVIF: boxes inside of boxes


def _boxes(file: _Reader, end: int) -> Iterator[tuple[bytes, int]]:
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


def _mp4(file: _Reader) -> Iterator[tuple[str, str]]:
    yield from _movie(file, file.size, 0)


def _movie(file: _Reader, end: int, depth: int) -> Iterator[tuple[str, str]]:
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
            yield "comment", _decoded(file.text(max(stop - file.at, 0)))
    if not whole:  # what was cut off is the description of the movie
        raise file.cut()


def _is_plain(file: _Reader) -> bool:
    """Whether a `meta` box starts with a box at once (QuickTime) and not with its version (MP4)."""
    head = file.read(8)
    file.at -= 8
    return head[4:] == b"hdlr"


def _movie_keys(file: _Reader, end: int) -> Iterator[str]:
    file.at += 8  # version and count
    while file.at < end and file.more():
        yield file.text(max(file.number(4) - 4, 4))[4:].decode("utf-8", "replace")


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


def _avif(file: _Reader) -> Iterator[tuple[str, str]]:
    for kind, end in _boxes(file, file.size):
        if kind == b"meta":
            file.at += 4
            yield from _items(file, end)
            return
    raise file.cut()


def _items(file: _Reader, end: int) -> Iterator[tuple[str, str]]:
    """The Exif data of an AVIF is an item: `iinf` says which, `iloc` where."""
    wanted: set[int] = set()
    places: list[tuple[int, int, int]] = []
    for kind, stop in _boxes(file, end):
        if kind == b"iinf":
            file.at += 6 if file.number(1) == 0 else 8
            file.at -= 1
            wanted.update(_exif_items(file, stop))
        elif kind == b"iloc":
            places.extend(_places(file))
    for item, at, length in places:
        if item in wanted:
            file.at = at
            skipped = file.number(4)
            yield from _exif(file, file.text(max(length - 4, 0))[skipped:])


def _exif_items(file: _Reader, end: int) -> Iterator[int]:
    for kind, _ in _boxes(file, end):
        if kind == b"infe":
            version = file.number(4) >> 24
            item = file.number(2 if version == 2 else 4)
            if file.read(6)[2:] == b"Exif":
                yield item


def _places(file: _Reader) -> Iterator[tuple[int, int, int]]:
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


# WebM: EBML elements

_SEGMENT, _TAGS, _TAG, _SIMPLE_TAG = 0x18538067, 0x1254C367, 0x7373, 0x67C8
_TAG_NAME, _TAG_STRING = 0x45A3, 0x4487


def _webm(file: _Reader) -> Iterator[tuple[str, str]]:
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


def _number(file: _Reader, *, keep_mark: bool) -> tuple[int, bool]:
    """A number of EBML, and whether it is known (all ones: a live stream did not know its length)."""
    first = file.number(1)
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
        file.count()
        head = file.number(4)
        last, kind, length = bool(head >> 31), head >> 24 & 0x7F, head & 0xFFFFFF
        if kind == _COMMENTS:
            yield from _vorbis(file, file.text(length))
        else:
            file.at += length


def _ogg(file: _Reader) -> Iterator[tuple[str, str]]:
    """The second packet of the first stream, which may run over many pages."""
    packets, packet = 0, bytearray()
    stream: bytes | None = None
    while file.more():
        head = file.read(27)
        if head[:4] != b"OggS":
            raise file.damaged("a page does not start as one")
        lengths = file.read(head[26])
        page = file.text(sum(lengths))
        stream = stream or head[14:18]
        at = 0
        for length in lengths if head[14:18] == stream else b"":
            packet += page[at : at + length]
            at += length
            if length == 255:
                continue
            if packets == 1:
                yield from _vorbis(file, _without_name(bytes(packet)))
                return
            packets, packet = packets + 1, bytearray()
    raise file.cut()


def _without_name(packet: bytes) -> bytes:
    for name in (b"OpusTags", b"\x03vorbis", b"\x81theora"):
        packet = packet.removeprefix(name)
    return packet


def _vorbis(file: _Reader, body: bytes) -> Iterator[tuple[str, str]]:
    _, at = _sized(file, body, 0)  # who wrote it
    count = int.from_bytes(body[at : at + 4], "little")
    at += 4
    for _ in range(count):
        file.count()
        comment, at = _sized(file, body, at)
        name, _, text = comment.decode("utf-8", "replace").partition("=")
        yield name, text


def _sized(file: _Reader, body: bytes, at: int) -> tuple[bytes, int]:
    """What stands behind its own length, and where it ends."""
    end = at + 4 + int.from_bytes(body[at : at + 4], "little")
    if at + 4 > len(body) or end > len(body):
        raise file.damaged("a comment is longer than all of them")
    return body[at + 4 : end], end


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
    while at + 10 <= len(body) and body[at]:
        file.count()
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
    file.at = 8
    whole, length, kind = struct.unpack("<II4s", file.read(12))
    if kind != b"JSON":
        raise file.damaged("its first chunk is not JSON")
    asset = _object(file, file.text(length)).get("asset")
    extras = asset.get("extras") if isinstance(asset, Mapping) else None
    yield from _named(extras)
    if whole > file.size:
        raise file.cut()


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


_OPENED, _CLOSED = b"<![CDATA[", b"]]>"


def _svg(file: _Reader) -> Iterator[tuple[str, str]]:
    """ComfyUI puts its metadata right behind the opening tag (SaveSVGNode)."""
    text = file.text(min(file.size, MAX_TEXT))
    if b"<svg" not in text:
        raise file.damaged("there is no <svg> in it")
    _, found, rest = text.partition(b"<metadata>")
    inner, closed, _ = rest.lstrip().partition(_CLOSED)
    if found and closed and inner.startswith(_OPENED):
        yield "metadata", _decoded(inner.removeprefix(_OPENED))
    elif b"</svg>" not in text:
        raise file.cut()


# EXR: attributes, each a name, a type, a length and a value; an empty name ends them


def _exr(file: _Reader) -> Iterator[tuple[str, str]]:
    file.at = 8
    while name := _zero_ended(file):
        file.count()
        _zero_ended(file)
        length = int.from_bytes(file.read(4), "little")
        if name in (b"prompt", b"workflow"):
            yield name.decode("ascii"), _decoded(file.text(length))
        else:
            file.at += length


def _zero_ended(file: _Reader) -> bytes:
    """A name; the format allows 255 bytes."""
    start = file.at
    block = file.read(max(min(256, file.size - start), 1))
    name, ended, _ = block.partition(b"\0")
    if not ended:
        raise file.damaged("a name in it does not end") if len(block) == 256 else file.cut()
    file.at = start + len(name) + 1
    return name


def _is_riff(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_safetensors(head: bytes) -> bool:
    """A length of eight bytes, and then JSON: no text starts so."""
    return head[8:9] == b"{" and head[5:8] == b"\0\0\0"


_KINDS: tuple[tuple[str, Callable[[bytes], bool], Callable[[_Reader], Iterator[tuple[str, str]]]], ...] = (
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n"), _png),
    ("WebP", _is_riff, _webp),
    ("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), _jpeg),
    ("EXR", lambda head: head.startswith(b"\x76\x2f\x31\x01"), _exr),
    ("AVIF", lambda head: head[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1"), _avif),
    ("MOV", lambda head: head[4:12] == b"ftypqt  ", _mp4),
    ("M4A", lambda head: head[4:12] == b"ftypM4A ", _mp4),
    ("MP4", lambda head: head[4:8] == b"ftyp", _mp4),
    ("WebM", lambda head: head.startswith(b"\x1a\x45\xdf\xa3"), _webm),
    ("FLAC", lambda head: head.startswith(b"fLaC"), _flac),
    ("Opus", lambda head: head.startswith(b"OggS") and head[28:36] == b"OpusHead", _ogg),
    ("Ogg", lambda head: head.startswith(b"OggS"), _ogg),
    ("MP3", lambda head: head.startswith((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")), _mp3),
    ("GLB", lambda head: head.startswith(b"glTF"), _glb),
    ("SVG", lambda head: head.lstrip().startswith((b"<svg", b"<?xml")), _svg),
    ("safetensors file", _is_safetensors, _safetensors),
)
