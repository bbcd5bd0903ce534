"""Which files are whole, which are damaged, and that the split of the stream does not matter."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from comfyflow.media import Damaged, Inspector, MediaInfo, media_type_of, sniff, suffix_of

# -- files: pictures by Pillow, the rest by hand from the formats' specifications --


def noise(seed: int = 0) -> Image.Image:
    return Image.frombytes(
        "RGB", (24, 16), bytes((i * 37 + seed * 11) ** 2 % 251 for i in range(24 * 16 * 3))
    )


def picture(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    noise().save(buffer, kind, **options)
    return buffer.getvalue()


def animation(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise().save(buffer, kind, save_all=True, append_images=[noise(1), noise(2)], duration=250, loop=0)
    return buffer.getvalue()


def riff(form: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    body = form + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


WAV_FORMAT = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)


def wav() -> bytes:
    return riff(b"WAVE", (b"fmt ", WAV_FORMAT), (b"odd ", b"abc"), (b"data", bytes(range(200)) * 40))


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def mvhd(duration: int = 1500, version: int = 0) -> bytes:
    numbers = (
        struct.pack(">IIII", 0, 0, 1000, duration)
        if version == 0
        else struct.pack(">QQIQ", 0, 0, 1000, duration)
    )
    return box(b"mvhd", bytes([version, 0, 0, 0]), numbers, bytes(80))


def tkhd(width: int, height: int) -> bytes:
    return box(b"tkhd", bytes(76), struct.pack(">HHHH", width, 0, height, 0))


def moov(*, version: int = 0, duration: int = 1500) -> bytes:
    tracks = (box(b"trak", tkhd(0, 0)), box(b"trak", tkhd(64, 48), box(b"mdia", bytes(9))))
    return box(b"moov", mvhd(duration, version), *tracks, box(b"udta", bytes(30)))


FTYP = box(b"ftyp", b"isom", bytes(4), b"isomiso2")
MDAT = box(b"mdat", bytes(range(256)) * 4)


def element(ident: int, *parts: bytes, unknown: bool = False) -> bytes:
    body = b"".join(parts)
    size = b"\x01" + b"\xff" * 7 if unknown else (0x10000000 | len(body)).to_bytes(4, "big")
    return ident.to_bytes((ident.bit_length() + 7) // 8, "big") + size + body


def ebml(doctype: bytes) -> bytes:
    return element(0x1A45DFA3, element(0x4282, doctype))


DURATION = element(0x4489, struct.pack(">d", 1500.0))
INFO = element(0x1549A966, element(0x2AD7B1, (1_000_000).to_bytes(3, "big")), DURATION)
VIDEO = element(0xE0, element(0xB0, b"\x40"), element(0xBA, b"\x00\x30"))
TRACKS = element(
    0x1654AE6B, element(0xAE, element(0xD7, b"\x01")), element(0xAE, VIDEO), element(0xAE, VIDEO)
)
CLUSTER = element(0x1F43B675, element(0xE7, b"\x00"), element(0xA3, bytes(range(200))))


def webm(doctype: bytes = b"webm") -> bytes:
    return ebml(doctype) + element(0x18538067, element(0xEC, bytes(50)), INFO, TRACKS, CLUSTER, CLUSTER)


def live_webm() -> bytes:
    cluster = element(0x1F43B675, element(0xA3, bytes(50)), unknown=True)
    return ebml(b"webm") + element(0x18538067, TRACKS, cluster, cluster, unknown=True)


def flac(samples: int = 22050, frames: bytes = b"\xff\xf8" + bytes(100)) -> bytes:
    packed = 44100 << 44 | samples
    info = bytes(10) + packed.to_bytes(8, "big") + bytes(16)
    return (
        b"fLaC\x00"
        + len(info).to_bytes(3, "big")
        + info
        + b"\x84"
        + (40).to_bytes(3, "big")
        + bytes(40)
        + frames
    )


MP3_FRAME = b"\xff\xfb\x90\x64"  # MPEG 1, layer III, 44.1 kHz, joint stereo
ID3 = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 2]) + bytes(130)


def mp3(*, xing: bytes | None = b"Xing", size: int = 1000, flags: int = 3) -> bytes:
    if xing is None:
        return ID3 + MP3_FRAME + bytes(size - 4)
    frame = MP3_FRAME + bytes(32) + xing + struct.pack(">III", flags, 100, size)
    return ID3 + frame + bytes(size - len(frame))


def ogg_crc(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def page(flags: int, granule: int, serial: int, *packets: bytes) -> bytes:
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    head = b"OggS\0" + struct.pack("<BqII", flags, granule, serial, 0)
    tail = bytes([len(lacing)]) + lacing + b"".join(packets)
    return head + struct.pack("<I", ogg_crc(head + bytes(4) + tail)) + tail


OPUS_HEAD = b"OpusHead\x01\x02" + struct.pack("<HIhB", 312, 48000, 0, 0)
VORBIS_HEAD = b"\x01vorbis" + struct.pack("<IBI", 0, 1, 22050) + bytes(14)


def opus() -> bytes:
    return (
        page(2, 0, 7, OPUS_HEAD)
        + page(0, 0, 7, b"OpusTags" + bytes(300))
        + page(4, 24312, 7, bytes(700), b"x")
    )


def glb(version: int = 2) -> bytes:
    chunks = struct.pack("<I4s", 8, b"JSON") + b'{"a":1} ' + struct.pack("<I4s", 16, b"BIN\0") + bytes(16)
    return struct.pack("<4sII", b"glTF", version, 12 + len(chunks)) + chunks


def tensors(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


LATENT = {"__metadata__": {"prompt": "{}"}, "latent": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}

WHOLE: dict[str, tuple[bytes, MediaInfo]] = {
    "a.png": (picture("PNG"), MediaInfo("image/png", 24, 16)),
    "apng.png": (animation("PNG"), MediaInfo("image/png", 24, 16, 0.75)),
    "a.jpg": (picture("JPEG"), MediaInfo("image/jpeg", 24, 16)),
    "progressive.jpeg": (picture("JPEG", progressive=True), MediaInfo("image/jpeg", 24, 16)),
    "a.gif": (animation("GIF"), MediaInfo("image/gif", 24, 16, 0.75)),
    "still.gif": (picture("GIF"), MediaInfo("image/gif", 24, 16)),
    "a.webp": (picture("WEBP"), MediaInfo("image/webp", 24, 16)),
    "lossless.webp": (picture("WEBP", lossless=True), MediaInfo("image/webp", 24, 16)),
    "extended.webp": (picture("WEBP", exif=b"Exif\0\0abc"), MediaInfo("image/webp", 24, 16)),
    "animated.webp": (animation("WEBP"), MediaInfo("image/webp", 24, 16, 0.75)),
    "a.bmp": (picture("BMP"), MediaInfo("image/bmp", 24, 16)),
    "a.avif": (box(b"ftyp", b"avif", bytes(4)) + box(b"meta", bytes(9)) + MDAT, MediaInfo("image/avif")),
    "a.mp4": (FTYP + MDAT + moov(), MediaInfo("video/mp4", 64, 48, 1.5)),
    "fast.mp4": (FTYP + moov(version=1) + MDAT, MediaInfo("video/mp4", 64, 48, 1.5)),
    "large.mp4": (
        FTYP + moov() + struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100),
        MediaInfo("video/mp4", 64, 48, 1.5),
    ),
    "a.mov": (box(b"wide") + MDAT + moov(), MediaInfo("video/quicktime", 64, 48, 1.5)),
    "a.m4a": (
        box(b"ftyp", b"M4A ", bytes(4)) + box(b"moov", mvhd(), box(b"trak", tkhd(0, 0))) + MDAT,
        MediaInfo("audio/mp4", duration=1.5),
    ),
    "a.webm": (webm(), MediaInfo("video/webm", 64, 48, 1.5)),
    "a.mkv": (webm(b"matroska"), MediaInfo("video/x-matroska", 64, 48, 1.5)),
    "a.avi": (riff(b"AVI ", (b"LIST", bytes(99))), MediaInfo("video/x-msvideo")),
    "a.wav": (wav(), MediaInfo("audio/wav", duration=0.5)),
    "a.opus": (opus(), MediaInfo("audio/ogg", duration=0.5)),
    "a.mp3": (mp3(), MediaInfo("audio/mpeg", duration=2.612245)),
    "a.glb": (glb(), MediaInfo("model/gltf-binary")),
    "a.latent": (tensors(LATENT) + bytes(16), MediaInfo("application/x-safetensors")),
}
"""Files of the kinds that can tell any cut."""

UNBOUNDED: dict[str, tuple[bytes, MediaInfo]] = {
    "a.flac": (flac(), MediaInfo("audio/flac", duration=0.5)),
    "piped.flac": (flac(samples=0, frames=b""), MediaInfo("audio/flac")),
    "plain.mp3": (mp3(xing=None), MediaInfo("audio/mpeg")),
    "bare.mp3": (mp3(xing=b"Info", flags=2)[len(ID3) :], MediaInfo("audio/mpeg")),
    "a.aac": (b"\xff\xf1\x50\x80" + bytes(60), MediaInfo("audio/aac")),
    "piped.wav": (
        b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + WAV_FORMAT + b"data\xff\xff\xff\xff" + bytes(99),
        MediaInfo("audio/wav"),
    ),
    "unfinished.wav": (
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + WAV_FORMAT + b"data\x01\0\0\0a",
        MediaInfo("audio/wav", duration=round(1 / 16000, 6)),
    ),
    "rf64.wav": (
        b"RF64\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + WAV_FORMAT + b"odd \x01\0\0\0a\0data\0\0\0\0" + bytes(9),
        MediaInfo("audio/wav"),
    ),
    "unpadded.wav": (
        b"RIFF\x25\0\0\0WAVEfmt \x10\0\0\0" + WAV_FORMAT + b"data\x01\0\0\0a",
        MediaInfo("audio/wav", duration=round(1 / 16000, 6)),
    ),
    "silent.wav": (riff(b"WAVE", (b"fmt ", bytes(16))), MediaInfo("audio/wav")),
    "open.mp4": (
        FTYP + moov() + struct.pack(">I4s", 0, b"mdat") + bytes(50),
        MediaInfo("video/mp4", 64, 48, 1.5),
    ),
    "fragmented.mp4": (
        FTYP + moov(duration=0) + box(b"moof", bytes(20)) + MDAT,
        MediaInfo("video/mp4", 64, 48),
    ),
    "strange.mp4": (
        FTYP
        + box(
            b"moov", box(b"mvhd", bytes(99)), box(b"mvhd", bytes(400)), box(b"tkhd", bytes(9)), box(b"moov")
        )
        + MDAT,
        MediaInfo("video/mp4"),
    ),
    "live.webm": (live_webm(), MediaInfo("video/webm", 64, 48)),
    "sound.webm": (
        ebml(b"webm")
        + element(0x18538067, element(0x1549A966, element(0x4489, struct.pack(">f", 2500.0))), CLUSTER),
        MediaInfo("video/webm", duration=2.5),
    ),
    "nan.webm": (
        ebml(b"webm")
        + element(0x18538067, element(0x1549A966, element(0x4489, struct.pack(">d", float("nan"))))),
        MediaInfo("video/webm"),
    ),
    "timeless.webm": (ebml(b"webm") + element(0x18538067, element(0x1549A966)), MediaInfo("video/webm")),
    "long.webm": (
        ebml(b"webm") + element(0x18538067, element(0x1549A966, bytes(2 << 20))),
        MediaInfo("video/webm"),
    ),
    "tail.webm": (ebml(b"webm") + element(0x18538067, CLUSTER) + b"tail", MediaInfo("video/webm")),
    "vorbis.ogg": (
        page(2, 0, 1, VORBIS_HEAD) + page(4, 11025, 1, b"x"),
        MediaInfo("audio/ogg", duration=0.5),
    ),
    "two.ogg": (
        page(2, 0, 1, b"fishead\0") + page(2, 0, 2, b"OpusHead") + page(4, 9, 1, b"") + page(4, 9, 2, b""),
        MediaInfo("audio/ogg"),
    ),
    "old.glb": (glb(version=1), MediaInfo("model/gltf-binary")),
    "huge.safetensors": (
        struct.pack("<Q", 2 << 20) + b"{" + bytes((2 << 20) - 1),
        MediaInfo("application/x-safetensors"),
    ),
    "none.safetensors": (tensors({}), MediaInfo("application/x-safetensors")),
    "a.exr": (b"v/1\x01" + bytes(40), MediaInfo("image/x-exr")),
    "a.hdr": (b"#?RADIANCE\n\n-Y 1 +X 1\n", MediaInfo("image/vnd.radiance")),
    "a.tif": (b"II*\0" + bytes(40), MediaInfo("image/tiff")),
    "a.txt": (b"a text", MediaInfo("text/plain")),
    "empty.txt": (b"", MediaInfo("text/plain")),
    "quicktime.txt": (b"The skip button", MediaInfo("text/plain")),
    "page.html": (b"<!DOCTYPE html><p>a node wrote it", MediaInfo("text/html")),
    "a.json": (b'{"a": 1}', MediaInfo("application/json")),
    "a.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", MediaInfo("image/svg+xml")),
    "a.obj": (b"v 0 0 0\n", MediaInfo("model/obj")),
    "a.gltf": (b'{"asset": {}}', MediaInfo("model/gltf+json")),
    "a.splat": (bytes(64), MediaInfo("application/octet-stream")),
    "no_suffix": (b"\0\1\2", MediaInfo("application/octet-stream")),
    "archive": (b"PK\x03\x04" + bytes(20), MediaInfo("application/zip")),
    "picture": (picture("PNG"), MediaInfo("image/png", 24, 16)),
    "really_a_jpeg.png": (picture("JPEG"), MediaInfo("image/jpeg", 24, 16)),
}
"""Files that are accepted, of kinds that cannot tell every cut."""


def look(name: str, chunks: Iterable[bytes]) -> MediaInfo:
    inspector = Inspector(name)
    for chunk in chunks:
        inspector.feed(chunk)
    return inspector.finish()


def verdict(name: str, chunks: Iterable[bytes]) -> MediaInfo | str:
    try:
        return look(name, chunks)
    except Damaged as damage:
        return damage.reason


def reason(name: str, data: bytes) -> str:
    with pytest.raises(Damaged) as caught:
        look(name, [data])
    return caught.value.reason


@pytest.mark.parametrize("name", [*WHOLE, *UNBOUNDED])
def test_a_whole_file_is_known(name: str) -> None:
    data, info = (WHOLE | UNBOUNDED)[name]
    assert look(name, [data]) == info


@pytest.mark.parametrize("name", list(WHOLE))
def test_a_cut_at_any_byte_is_damage(name: str) -> None:
    data = WHOLE[name][0]
    undetected = [size for size in range(len(data)) if not isinstance(verdict(name, [data[:size]]), str)]
    assert undetected == []


@pytest.mark.parametrize("name", ["a.png", "apng.png", "a.opus"])
def test_one_changed_byte_is_damage_where_there_are_checksums(name: str) -> None:
    data = WHOLE[name][0]
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        assert isinstance(verdict(name, [changed]), str), place


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in {"a.wav", "a.avi"}])
def test_a_second_half_of_zeros_is_damage(name: str) -> None:
    data = WHOLE[name][0]
    if name in {
        "a.webp",
        "lossless.webp",
        "a.bmp",
        "large.mp4",
        "fast.mp4",
        "a.avif",
        "a.m4a",
        "a.mp3",
        "a.latent",
    }:
        data = data[: len(data) // 8]  # one block of data fills most of these: only its length can be told
    half = len(data) // 2
    assert isinstance(verdict(name, [data[:half] + bytes(len(data) - half - 1)]), str)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_the_split_of_the_stream_does_not_matter(name: str, data: st.DataObject) -> None:
    whole = WHOLE[name][0]
    content = whole[: data.draw(st.integers(0, len(whole)), "size")]
    if data.draw(st.booleans(), "change") and content:
        place = data.draw(st.integers(0, len(content) - 1), "place")
        content = (
            content[:place]
            + bytes([content[place] ^ data.draw(st.integers(1, 255), "mask")])
            + content[place + 1 :]
        )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8), "cuts"))
    pieces = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    expected = verdict(name, [content])
    assert verdict(name, pieces) == expected
    assert verdict(name, [content[at : at + 1] for at in range(len(content))]) == expected


def test_a_split_inside_a_block_does_not_matter() -> None:
    data, info = WHOLE["a.gif"]
    for place in range(len(data)):
        assert look("a.gif", [data[:place], data[place:]]) == info


@pytest.mark.parametrize("name", list(UNBOUNDED))
def test_byte_by_byte_gives_the_same_information(name: str) -> None:
    data, info = UNBOUNDED[name]
    step = 1 + len(data) // 2000
    assert look(name, [data[at : at + step] for at in range(0, len(data), step)]) == info


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.wav", "a.bmp"])
def test_bytes_behind_the_end_are_accepted_as_decoders_do(name: str) -> None:
    data, info = WHOLE[name]
    assert look(name, [data, b"behind", b"the end"]) == info


@pytest.mark.parametrize("name", ["a.glb", "a.mp4", "a.opus", "a.latent"])
def test_bytes_behind_the_end_are_damage_where_the_length_is_exact(name: str) -> None:
    assert isinstance(verdict(name, [WHOLE[name][0] + bytes(40)]), str)


PAGE = b"\xef\xbb\xbf \n<!DOCTYPE html><html><body>Please log in to continue</body></html>"


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.png", PAGE, "the server sent an HTML page instead of an image"),
        ("a.webm", PAGE, "the server sent an HTML page instead of a video"),
        ("a.flac", PAGE, "the server sent an HTML page instead of audio"),
        ("a.glb", PAGE, "the server sent an HTML page instead of a 3D model"),
        ("a.obj", PAGE, "the server sent an HTML page instead of a 3D model"),
        ("a.json", PAGE, "the server sent an HTML page instead of the file"),
        ("a.svg", PAGE, "the server sent an HTML page instead of an image"),
        ("a.png", b'{"error": "not found"}', "the server sent JSON instead of an image"),
        ("a.png", b"502 Bad Gateway, sorry for that", "the server sent text instead of an image"),
        ("a.png", b"<?xml version='1.0'?><Error/>", "the server sent XML instead of an image"),
        ("a.png", b"<svg xmlns='x'></svg>", "the server sent an SVG drawing instead of an image"),
        ("a.png", bytes(100), "the server sent something else instead of an image"),
        ("a.latent", b"nothing to see here", "the server sent text instead of the file"),
        ("a.PNG", b"", "the server sent only 0 bytes instead of an image"),
        ("a.png", b"\x89PN", "the server sent only 3 bytes instead of an image"),
        ("a.obj", b"", "the server sent an empty file instead of a 3D model"),
    ],
)
def test_what_a_server_sent_instead_is_named(name: str, data: bytes, told: str) -> None:
    assert reason(name, data) == told


PNG = picture("PNG")
JPEG = picture("JPEG")


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


IHDR = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
GIF_HEAD = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.png", PNG[:8] + png_chunk(b"IEND"), "the PNG is garbled near byte 20"),
        ("a.png", PNG[:8] + png_chunk(b"IHDR", b"short"), "the PNG is garbled near byte 25"),
        ("a.png", PNG[:8] + IHDR + png_chunk(b"IEND"), "the PNG has no picture in it"),
        ("a.png", PNG[:8] + IHDR + bytes(40), "the PNG is garbled near byte 41"),
        ("a.png", PNG[:8] + b"\xff" * 4 + b"IHDR" + bytes(40), "the PNG is garbled near byte 16"),
        (
            "a.png",
            PNG[:-1] + b"x",
            f"the PNG's IEND chunk does not match its checksum (near byte {len(PNG)})",
        ),
        ("a.png", PNG[:30], "the PNG is cut short after 30 bytes"),
        ("a.jpg", b"\xff\xd8\xff\xd9" + bytes(20), "the JPEG has no picture in it"),
        ("a.jpg", b"\xff\xd8\xff\x01\xff\xff\xff\xd9" + bytes(20), "the JPEG has no picture in it"),
        ("a.jpg", b"\xff\xd8\xff\xe0\0\1" + bytes(20), "the JPEG is garbled near byte 6"),
        ("a.jpg", b"\xff\xd8\xff\xc0\0\4" + bytes(20), "the JPEG is garbled near byte 6"),
        ("a.jpg", b"\xff\xd8\xff\xe0\0\2x" + bytes(20), "the JPEG is garbled near byte 7"),
        ("a.gif", GIF_HEAD + b";" + bytes(9), "the GIF has no picture in it"),
        ("a.gif", GIF_HEAD + b"x" + bytes(9), "the GIF is garbled near byte 14"),
        ("a.webp", riff(b"WEBP", (b"EXIF", b"abcd")), "the WebP has no picture in it"),
        ("a.webp", b"RIFF\x10\0\0\0WEBPVP8 \xff\0\0\0" + bytes(300), "the WebP is garbled near byte 20"),
        ("a.wav", riff(b"WAVE", (b"data", b"abcd")), "the WAV does not say what sound it holds"),
        ("a.mp4", FTYP + MDAT, "the MP4 has no index (moov): it was not written to its end"),
        ("a.mp4", FTYP + moov(), "the MP4 has no data (mdat): it was not written to its end"),
        ("a.mp4", FTYP + bytes(8), "the MP4 is garbled near byte 32"),
        ("a.mp4", FTYP + struct.pack(">I4s", 7, b"free"), "the MP4 is garbled near byte 32"),
        ("a.mp4", FTYP + box(b"moov", struct.pack(">I4s", 0, b"trak")), "the MP4 is garbled near byte 40"),
        ("a.mp4", FTYP + box(b"moov", struct.pack(">I4s", 99, b"trak")), "the MP4 is garbled near byte 40"),
        ("a.avif", box(b"ftyp", b"avif", bytes(4)) + MDAT, "the AVIF has no picture in it"),
        ("a.webm", ebml(b"webm") + bytes(9), "the WebM is garbled near byte 19"),
        ("a.webm", ebml(b"webm") + element(0xEC, b"x"), "the WebM is cut short after 24 bytes"),
        ("a.webm", ebml(b"webm") + element(0x1654AE6B, unknown=True), "the WebM is garbled near byte 30"),
        (
            "a.webm",
            ebml(b"webm") + element(0x18538067, b"\xec\x8f" + bytes(3)) + bytes(20),
            "the WebM is garbled near byte 28",
        ),
        (
            "a.webm",
            ebml(b"webm") + element(0x18538067, element(0x1654AE6B, b"\xae\x9fxx")),
            "the video's header is cut short after 4 bytes",
        ),
        ("a.flac", b"fLaC\x84" + bytes(40), "the FLAC is garbled near byte 8"),
        ("a.flac", b"fLaC\x00\0\0\x05" + bytes(40), "the FLAC is garbled near byte 8"),
        ("a.flac", flac(frames=bytes(10)), "the FLAC is garbled near byte 88"),
        ("a.flac", flac()[:60], "the FLAC is cut short after 60 bytes"),
        ("a.mp3", ID3 + bytes(9), "the MP3 has no sound in it"),
        ("a.mp3", mp3()[:-1], f"the MP3 is cut short after {len(mp3()) - 1} bytes"),
        ("a.ogg", opus()[:-1] + b"y", f"an Ogg page does not match its checksum (near byte {len(opus())})"),
        ("a.ogg", page(2, 0, 1, OPUS_HEAD), "the Ogg file is cut short after 47 bytes"),
        ("a.ogg", b"".join(page(2, 0, n, b"") for n in range(65)), "the Ogg file is garbled near byte 1820"),
        ("a.glb", struct.pack("<4sII", b"glTF", 2, 12), "the GLB is not 12 bytes long as its header says"),
        ("a.glb", glb()[:12] + struct.pack("<I", 999) + bytes(40), "the GLB is garbled near byte 20"),
        (
            "a.latent",
            tensors(LATENT) + bytes(15),
            f"the safetensors file is cut short after {len(tensors(LATENT)) + 15} bytes",
        ),
        ("a.latent", tensors(LATENT) + bytes(17), "the safetensors file is longer than its header says"),
        (
            "a.latent",
            struct.pack("<Q", 9) + b'{"a": "b"' + bytes(9),
            "the safetensors file is garbled near byte 17",
        ),
        (
            "a.latent",
            tensors({"x": {"data_offsets": [0, -1]}}),
            "the safetensors file is garbled near byte 40",
        ),
        (
            "a.latent",
            tensors({"x": {"data_offsets": [0, "1"]}}),
            "the safetensors file is garbled near byte 41",
        ),
        ("a.latent", tensors({"x": {"data_offsets": "0"}}), "the safetensors file is garbled near byte 36"),
    ],
)
def test_damage_is_told_in_half_a_sentence(name: str, data: bytes, told: str) -> None:
    assert reason(name, data) == told


def test_damage_is_raised_as_soon_as_it_is_certain_and_again_later() -> None:
    inspector = Inspector("a.png")
    inspector.feed(PNG[:100])
    with pytest.raises(Damaged):
        inspector.feed(bytes(len(PNG)))
    with pytest.raises(Damaged):
        inspector.feed(b"more")
    with pytest.raises(Damaged):
        inspector.finish()


def test_a_finished_file_can_be_asked_again() -> None:
    inspector = Inspector("a.png")
    inspector.feed(PNG)
    assert inspector.finish() == inspector.finish()


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (b"", None),
        (bytes(30), None),
        (b"RIFF\0\0\0\0JUNK" + bytes(9), None),
        (b"\xff\xfa\x00", None),
        (b"\xff\xe8\x90\x00", None),
        (b"\xff\xfb\xf0\x00", None),
        (b"\xff\xfb\x9c\x00", None),
        (b"\xff\xf3\x90\xc4", "audio/mpeg"),
        (b"\xff\xfb\x90\xc4", "audio/mpeg"),
        (b"\xff\xfd\x90\x04", "audio/mpeg"),
        (b"\xff\xff\x90\x04", "audio/mpeg"),
        (b"\xff\xe3\x90\x04", "audio/mpeg"),
        (b"\xff\xf9\x50\x80", "audio/aac"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"GIF89a is the name of a format", "text/plain"),
        ("Grüße".encode()[:3], "text/plain"),
        ("Grüße".encode("latin-1"), None),
        (b"[1, 2]", "application/json"),
        (b"[section]", "text/plain"),
        (b"<?xml version='1.0'?><svg/>", "image/svg+xml"),
        (b"<!DOCTYPE svg PUBLIC>", "image/svg+xml"),
        (b"<?xml version='1.0'?><a/>", "application/xml"),
        (b"<script>1</script>", "text/html"),
        (b"BM\x00\x01\x00\x00\x00\x00\x00\x00", "image/bmp"),
        (b"BM\x00\x01\x00\x00\x01\x00\x00\x00", None),
        (struct.pack("<Q", 1) + b"{", None),
    ],
)
def test_the_first_bytes_tell_the_kind(head: bytes, media_type: str | None) -> None:
    assert sniff(head) == media_type


def test_a_media_type_has_a_usual_suffix() -> None:
    found = [suffix_of(kind) for kind in ("image/png", "image/jpeg", "audio/ogg", "model/gltf-binary")]
    assert found == ["png", "jpg", "ogg", "glb"]
    assert suffix_of("text/html") is None


def test_a_suffix_has_a_media_type() -> None:
    assert media_type_of("flac") == "audio/flac"
    assert media_type_of("csv") == "text/csv"
    assert media_type_of("unheard-of") is None


def mono(header: bytes, offset: int) -> bytes:
    return header + bytes(offset - 4) + b"Info" + struct.pack(">III", 1, 10, 0) + bytes(60)


@pytest.mark.parametrize(
    ("data", "duration"),
    [
        (mono(b"\xff\xfb\x90\xc4", 21), 10 * 1152 / 44100),
        (mono(b"\xff\xf3\x90\x44", 21), 10 * 576 / 22050),
        (mono(b"\xff\xe3\x94\xc4", 13), 10 * 576 / 12000),
        (mono(b"\xff\xfd\x98\x04", 36), 10 * 1152 / 32000),
        (mono(b"\xff\xff\x90\x04", 36), 10 * 384 / 44100),
    ],
)
def test_an_mp3_tells_its_duration_by_its_number_of_frames(data: bytes, duration: float) -> None:
    assert look("a.mp3", [data]).duration == round(duration, 6)


def peak(fill: Callable[[Inspector], None]) -> int:
    inspector = Inspector("a.png")
    tracemalloc.start()
    try:
        fill(inspector)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_stays_constant_however_long_the_file_is() -> None:
    block = bytes(1 << 20)
    head = PNG[:8] + IHDR + struct.pack(">I4s", 200 << 20, b"IDAT")

    def fill(inspector: Inspector) -> None:
        inspector.feed(head)
        for _ in range(200):
            inspector.feed(block)

    assert peak(fill) < 2 << 20
