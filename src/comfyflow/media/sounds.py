"""FLAC, MP3, Ogg."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from .tape import Damaged, Facts, Tape, Walk


def flac(tape: Tape) -> Walk[Facts]:
    """RFC 9639, section 8: STREAMINFO comes first, the frames' sync code follows the last metadata block."""
    yield from tape.skip(4)
    last, duration = False, None
    while not last:
        header = yield from tape.take(4)
        last, kind, size = bool(header[0] & 0x80), header[0] & 0x7F, int.from_bytes(header[1:], "big")
        if tape.at == 8:
            if kind != 0 or size != 34:
                raise tape.garbled()
            packed = int.from_bytes((yield from tape.take(34))[10:18], "big")
            rate, samples = packed >> 44, packed & 0xFFFFFFFFF
            duration = samples / rate if rate and samples else None
        else:
            yield from tape.skip(size)
    if duration is not None and (yield from tape.take(2)) not in {b"\xff\xf8", b"\xff\xf9"}:
        raise tape.garbled()
    return Facts(duration=duration)


class MpegFrame(NamedTuple):
    """What a frame's header says: samples in it, samples a second."""

    samples: int
    rate: int
    xing_at: int  # where a Xing header would stand in the frame


def mpeg_frame(header: bytes) -> MpegFrame | None:
    """ISO/IEC 11172-3, 2.4.2.3: what the first four bytes of an MPEG audio frame say, if they are that."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    if version == 1 or layer == 0 or header[2] >> 4 == 15 or header[2] >> 2 & 3 == 3:
        return None
    mpeg1, mono = version == 3, header[3] >> 6 == 3
    rate = (44100, 48000, 32000)[header[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 3 else 1152 if mpeg1 or layer == 2 else 576
    side_info = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return MpegFrame(samples, rate, 4 + side_info)


def mp3(tape: Tape) -> Walk[Facts]:
    """ID3v2 (it gives its length), then frames; a Xing or Info header tells how many, in how many bytes."""
    if (yield from tape.peek(3)) == b"ID3":
        header = yield from tape.take(10)
        yield from tape.skip(header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9])
    start = tape.at
    head = yield from tape.peek(64)
    if len(head) < 64:
        raise Damaged("the MP3 has no sound in it")
    frame = mpeg_frame(head)
    if frame is None or head[frame.xing_at : frame.xing_at + 4] not in {b"Xing", b"Info"}:
        return Facts()
    flags, frames, size = struct.unpack_from(">III", head, frame.xing_at + 4)
    yield from tape.rest()
    if flags & 3 == 3 and tape.at - start < size:
        raise Damaged(f"the MP3 is cut short after {tape.at} bytes")
    return Facts(duration=frames * frame.samples / frame.rate if flags & 1 else None)


# Ogg's CRC-32 is zlib's with the bits of every byte the other way round, and without its two inversions.
_ONES = 0xFFFFFFFF
_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MAX_OGG_STREAMS = 64
_OGG_FIRST, _OGG_LAST = 2, 4


def ogg(tape: Tape) -> Walk[Facts]:
    """RFC 3533, section 6: pages with checksums; each stream has to reach its last page."""
    open_streams: set[int] = set()
    rates: dict[
        int, tuple[int, int]
    ] = {}  # samples a second and samples to drop, of the streams whose codec is known here
    duration = 0.0
    while not (yield from tape.exhausted()):
        header, body = yield from _ogg_page(tape)
        flags, granule, serial = struct.unpack_from("<BqI", header, 5)
        if flags & _OGG_FIRST:
            open_streams.add(serial)
            rates |= _ogg_rate(serial, body)
        if flags & _OGG_LAST:
            open_streams.discard(serial)
        if len(open_streams) + len(rates) > _MAX_OGG_STREAMS:
            raise tape.garbled()
        if serial in rates and granule > 0:
            rate, dropped = rates[serial]
            duration = max(duration, (granule - dropped) / rate)
    if open_streams:
        raise Damaged(f"the Ogg file is cut short after {tape.at} bytes")
    return Facts(duration=duration or None)


def _ogg_page(tape: Tape) -> Walk[tuple[bytes, bytes]]:
    header = yield from tape.take(27)
    if not header.startswith(b"OggS\0"):
        raise tape.garbled()
    lacing = yield from tape.take(header[26])
    body = yield from tape.take(sum(lacing))
    page = b"".join((header[:22], bytes(4), header[26:], lacing, body))
    inverted = zlib.crc32(page.translate(_MIRROR), _ONES) ^ _ONES
    if inverted.to_bytes(4, "big").translate(_MIRROR) != header[22:26]:
        raise Damaged(f"an Ogg page does not match its checksum (near byte {tape.at})")
    return header, body


def _ogg_rate(serial: int, body: bytes) -> dict[int, tuple[int, int]]:
    if body.startswith(b"OpusHead") and len(body) >= 12:  # RFC 7845: always counted at 48 kHz
        return {serial: (48000, int.from_bytes(body[10:12], "little"))}
    if body.startswith(b"\x01vorbis") and len(body) >= 16:
        return {serial: (int.from_bytes(body[12:16], "little") or 1, 0)}
    return {}
