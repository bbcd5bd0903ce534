"""FLAC, Opus and Ogg (Vorbis comments), MP3 (ID3)."""

from __future__ import annotations

from collections.abc import Iterator

from .reader import Reader

# FLAC, Ogg: Vorbis comments

_COMMENTS = 4  # the type of FLAC's block of comments


def flac(file: Reader) -> Iterator[tuple[str, str]]:
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


def ogg(file: Reader) -> Iterator[tuple[str, str]]:
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


def _vorbis(file: Reader, body: bytes) -> Iterator[tuple[str, str]]:
    _, at = _sized(file, body, 0)  # who wrote it
    count = int.from_bytes(body[at : at + 4], "little")
    at += 4
    for _ in range(count):
        file.count()
        comment, at = _sized(file, body, at)
        name, _, text = comment.decode("utf-8", "replace").partition("=")
        yield name, text


def _sized(file: Reader, body: bytes, at: int) -> tuple[bytes, int]:
    """What stands behind its own length, and where it ends."""
    end = at + 4 + int.from_bytes(body[at : at + 4], "little")
    if at + 4 > len(body) or end > len(body):
        raise file.damaged("a comment is longer than all of them")
    return body[at + 4 : end], end


# MP3: ID3

_UNSYNCHRONISED, _EXTENDED = 0x80, 0x40
_ENCODINGS = ("latin-1", "utf-16", "utf-16-be", "utf-8")


def mp3(file: Reader) -> Iterator[tuple[str, str]]:
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
