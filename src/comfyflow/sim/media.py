"""Other media made by hand: WebP, MP4, WebM, FLAC, MP3, Opus, WAV and GLB.

Every container is whole and well formed. MP4 and WebM hold JPEG pictures as their frames, the sound is a slow
square wave or silence: enough to tell two files apart and to test whatever reads them.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence

from .pictures import Picture, jpeg

RATE = 44100  # samples a second


# WebP: an animation of plain frames; a lossless bitstream whose five codes have one symbol each needs no
# pixel data


def webp(pictures: Sequence[Picture], fps: float) -> bytes:
    """An animated WebP, one plain frame for each picture, all in the size of the first."""
    first = pictures[0]
    size = _u24(first.width - 1) + _u24(first.height - 1)
    duration = _u24(max(1, round(1000 / fps)))
    parts = _riff(b"VP8X", b"\x02\0\0\0" + size) + _riff(b"ANIM", b"\xff\xff\xff\xff\0\0")
    for picture in pictures:
        bitstream = _riff(b"VP8L", _plain_vp8l(first.width, first.height, picture))
        parts += _riff(b"ANMF", bytes(6) + size + duration + b"\0" + bitstream)
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts


def _riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _u24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _plain_vp8l(width: int, height: int, picture: Picture) -> bytes:
    red, green, blue = zlib.crc32(b"%d %d" % (picture.seed, picture.color or 0)).to_bytes(4, "big")[:3]
    fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    for symbol in (green, red, blue, 255):
        fields += [(1, 1), (0, 1), (1, 1), (symbol, 8)]
    fields += [(1, 1), (0, 1), (0, 1), (0, 1)]
    value = shift = 0
    for number, size in fields:
        value |= number << shift
        shift += size
    return value.to_bytes(-(-shift // 8), "little")


# MP4


def mp4(pictures: Sequence[Picture], fps: float) -> bytes:
    """An MP4 with one video track of JPEG frames (ISO/IEC 14496-12 boxes)."""
    frames = [jpeg(picture) for picture in pictures]
    head = _box(b"ftyp", b"isom\0\0\x02\0isommp41")
    data = _box(b"mdat", b"".join(frames))
    return head + data + _moov(pictures[0], frames, len(head) + 8, max(1, round(1000 / fps)))


def _box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I", 8 + len(data)) + kind + data


def _full(kind: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags), *parts)


_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def _moov(picture: Picture, frames: Sequence[bytes], offset: int, each: int) -> bytes:
    total = each * len(frames)
    mvhd = _full(
        b"mvhd", struct.pack(">4IIH10x", 0, 0, 1000, total, 0x10000, 0x100), _MATRIX, bytes(24), b"\0\0\0\x02"
    )
    size = struct.pack(">II", picture.width << 16, picture.height << 16)
    tkhd = _full(b"tkhd", struct.pack(">5I16x", 0, 0, 1, 0, total), _MATRIX, size, flags=3)
    mdhd = _full(b"mdhd", struct.pack(">4IHH", 0, 0, 1000, total, 0x55C4, 0))
    hdlr = _full(b"hdlr", bytes(4), b"vide", bytes(12), b"video\0")
    dinf = _box(b"dinf", _full(b"dref", b"\0\0\0\x01", _full(b"url ", flags=1)))
    minf = _box(b"minf", _full(b"vmhd", bytes(8), flags=1), dinf, _stbl(picture, frames, offset, each))
    return _box(b"moov", mvhd, _box(b"trak", tkhd, _box(b"mdia", mdhd, hdlr, minf)))


def _stbl(picture: Picture, frames: Sequence[bytes], offset: int, each: int) -> bytes:
    count = len(frames)
    entry = struct.pack(
        ">6xH16xHHII4xH32xHh", 1, picture.width, picture.height, 0x480000, 0x480000, 1, 24, -1
    )
    stsd = _full(b"stsd", b"\0\0\0\x01", _box(b"jpeg", entry))
    stts = _full(b"stts", struct.pack(">III", 1, count, each))
    stsc = _full(b"stsc", struct.pack(">IIII", 1, 1, count, 1))
    stsz = _full(b"stsz", struct.pack(f">II{count}I", 0, count, *map(len, frames)))
    return _box(b"stbl", stsd, stts, stsc, stsz, _full(b"stco", struct.pack(">II", 1, offset)))


# WebM


def webm(pictures: Sequence[Picture], fps: float) -> bytes:
    """A WebM (EBML) with one video track; its frames are JPEG, which players of Matroska know as V_MJPEG."""
    each = max(1, round(1000 / fps))
    head = _ebml("1a45dfa3", b"".join([
        _ebml("4286", b"\1"), _ebml("42f7", b"\1"), _ebml("42f2", b"\4"), _ebml("42f3", b"\x08"),
        _ebml("4282", b"webm"), _ebml("4287", b"\4"), _ebml("4285", b"\2"),
    ]))  # fmt: skip
    duration = _ebml("4489", struct.pack(">d", each * len(pictures)))
    app = _ebml("4d80", b"comfyflow") + _ebml("5741", b"comfyflow")
    info = _ebml("1549a966", _ebml("2ad7b1", (1_000_000).to_bytes(3, "big")) + duration + app)
    size = _ebml("b0", struct.pack(">H", pictures[0].width)) + _ebml(
        "ba", struct.pack(">H", pictures[0].height)
    )
    entry = (
        _ebml("d7", b"\1")
        + _ebml("73c5", b"\1")
        + _ebml("83", b"\1")
        + _ebml("86", b"V_MJPEG")
        + _ebml("e0", size)
    )
    tracks = _ebml("1654ae6b", _ebml("ae", entry))
    blocks = [
        _ebml("a3", b"\x81" + struct.pack(">hB", number * each, 0x80) + jpeg(picture))
        for number, picture in enumerate(pictures)
    ]
    cluster = _ebml("1f43b675", _ebml("e7", b"\0") + b"".join(blocks))
    return head + _ebml("18538067", info + tracks + cluster)


def _ebml(identifier: str, data: bytes) -> bytes:
    return bytes.fromhex(identifier) + (len(data) | 1 << 56).to_bytes(8, "big") + data


# Sound

_BLOCK = 4096  # samples in a FLAC frame


def flac(seconds: float, seed: int = 0) -> bytes:
    """A stereo FLAC of 16 bits: each frame holds one constant level, a slow square wave."""
    total = max(1, round(seconds * RATE))
    level = 64 + zlib.crc32(b"%d" % seed) % 1000
    frames, digest = [], hashlib.md5(usedforsecurity=False)
    for number in range(-(-total // _BLOCK)):
        count = min(_BLOCK, total - number * _BLOCK)
        value = struct.pack(">h", level if number % 2 else -level)
        digest.update(value[::-1] * 2 * count)
        frames.append(_flac_frame(number, count, value))
    layout = (RATE << 44 | (2 - 1) << 41 | (16 - 1) << 36 | total).to_bytes(8, "big")
    info = struct.pack(">HH", _BLOCK, _BLOCK) + bytes(6) + layout + digest.digest()
    return b"fLaC\x80" + len(info).to_bytes(3, "big") + info + b"".join(frames)


def _flac_frame(number: int, count: int, value: bytes) -> bytes:
    short = count != _BLOCK
    head = (
        b"\xff\xf8" + (b"\x79" if short else b"\xc9") + b"\x18" + chr(number).encode("utf-8", "surrogatepass")
    )
    head += struct.pack(">H", count - 1) if short else b""
    head += _crc(head, 0x07, 8).to_bytes(1, "big")
    frame = head + (b"\0" + value) * 2
    return frame + _crc(frame, 0x8005, 16).to_bytes(2, "big")


def _crc(data: bytes, polynomial: int, width: int) -> int:
    top, mask, value = 1 << (width - 1), (1 << width) - 1, 0
    for byte in data:
        value ^= byte << (width - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
    return value


def mp3(seconds: float) -> bytes:
    """A silent MP3 of 128 kbit/s: frames without any side information."""
    return (b"\xff\xfb\x90\x64" + bytes(413)) * max(1, round(seconds * RATE / 1152))


def opus(seconds: float) -> bytes:
    """A silent Opus in an Ogg stream (RFC 7845), packets of 20 ms."""
    head = b"OpusHead\x01\x02\x00\x00" + struct.pack("<IHB", 48000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I", 9) + b"comfyflow" + bytes(4)
    count = min(255, max(1, round(seconds * 50)))
    pages = _ogg(0, 2, 0, [head]) + _ogg(1, 0, 0, [tags])
    return pages + _ogg(2, 4, count * 960, [b"\xfc\xff\xfe"] * count)


def _ogg(number: int, flags: int, granule: int, packets: Sequence[bytes]) -> bytes:
    sizes = bytes(len(packet) for packet in packets)
    start = b"OggS\0" + struct.pack("<BqII", flags, granule, 1, number)
    rest = bytes([len(sizes)]) + sizes + b"".join(packets)
    return start + struct.pack("<I", _crc(start + bytes(4) + rest, 0x04C11DB7, 32)) + rest


def wav(seconds: float, seed: int = 0) -> bytes:
    """A mono WAV of 8 bits and 8000 samples a second with one constant level."""
    data = bytes([64 + seed % 128]) * max(2, round(seconds * 8000) & ~1)
    form = _riff(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)) + _riff(b"data", data)
    return b"RIFF" + struct.pack("<I", 4 + len(form)) + b"WAVE" + form


# 3D


def glb(seed: int = 0) -> bytes:
    """A binary glTF 2.0 with one triangle, its height chosen by the seed."""
    top = 1.0 + zlib.crc32(b"%d" % seed) % 100 / 100
    points = struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, top, 0)
    accessor = {
        "bufferView": 0,
        "componentType": 5126,
        "count": 3,
        "type": "VEC3",
        "min": [0, 0, 0],
        "max": [1, top, 0],
    }
    document = {
        "asset": {"version": "2.0", "generator": "comfyflow sim"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [accessor],
        "bufferViews": [{"buffer": 0, "byteLength": len(points)}],
        "buffers": [{"byteLength": len(points)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(points), b"BIN\0") + points
    )
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks
