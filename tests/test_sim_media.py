"""The files that the simulator makes are what their names say: read by Pillow where it can, else by hand."""

from __future__ import annotations

import hashlib
import io
import json
import struct

import pytest
from PIL import Image, ImageChops

from comfyflow.sim import media
from comfyflow.sim.pictures import MAX_SIDE, Picture, apng, gif, jpeg, png, png_size

PICTURES = [Picture(64, 48, seed, "frame") for seed in range(3)]


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_a_png_has_the_size_and_the_texts_it_was_given() -> None:
    data = png(Picture(200, 100, 7, "a cat"), {"prompt": '{"1": 2}', "workflow": "{}"})
    image = opened(data)
    assert (image.format, image.size) == ("PNG", (200, 100))
    assert image.info["prompt"] == '{"1": 2}'
    assert png_size(data) == (200, 100)


def test_another_seed_makes_another_picture_and_the_same_seed_the_same() -> None:
    assert png(Picture(32, 32, 1)) != png(Picture(32, 32, 2))
    assert png(Picture(32, 32, 1)) == png(Picture(32, 32, 1))


def test_the_text_is_written_on_the_picture_in_white() -> None:
    written, plain = (opened(png(Picture(64, 32, 5, text))) for text in ("Hé!", ""))
    assert ImageChops.difference(written, plain).getbbox() is not None
    colors = written.getcolors(1 << 16)
    assert colors is not None
    assert (255, 255, 255) in [color for _, color in colors]


@pytest.mark.parametrize("size", [(1, 1), (4, 3), (5, 200)])
def test_text_on_a_picture_too_small_for_it_does_no_harm(size: tuple[int, int]) -> None:
    assert opened(png(Picture(*size, text="too long for this"))).size == size


def test_a_plain_color_fills_the_picture() -> None:
    assert opened(png(Picture(3, 2, color=0x3366CC))).getcolors() == [(6, (0x33, 0x66, 0xCC))]


def test_no_picture_is_larger_than_the_bound() -> None:
    assert Picture(1, 1).sized(10**6, 0) == Picture(MAX_SIDE, 1)


def test_what_is_no_png_has_no_size() -> None:
    assert png_size(b"GIF89a" + bytes(30)) is None


@pytest.mark.parametrize(("size", "blocks"), [((64, 48), 48), ((9, 17), 6), ((1, 1), 1)])
def test_a_jpeg_is_a_mosaic_in_the_colors_of_the_picture(size: tuple[int, int], blocks: int) -> None:
    image = opened(jpeg(Picture(*size, color=0x4080C0)))
    assert (image.format, image.size) == ("JPEG", size)
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    assert all(abs(got - wanted) <= 3 for got, wanted in zip(pixel, (0x40, 0x80, 0xC0), strict=True))


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (apng(PICTURES, 8, {"prompt": "{}"}), "PNG"),
        (gif(PICTURES, 8), "GIF"),
        (media.webp(PICTURES, 8), "WEBP"),
    ],
)
def test_an_animation_has_all_its_frames_and_each_differs(data: bytes, format: str) -> None:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size, getattr(image, "n_frames", 1)) == (format, (64, 48), 3)
    frames = []
    for number in range(3):
        image.seek(number)
        frames.append(image.convert("RGB").tobytes())
    assert len(set(frames)) == 3


def boxes(data: bytes) -> dict[str, bytes]:
    found = {}
    while data:
        size, kind = struct.unpack(">I4s", data[:8])
        assert 8 <= size <= len(data)
        found[kind.decode()] = data[8:size]
        data = data[size:]
    return found


def test_an_mp4_lists_its_frames_where_they_are() -> None:
    data = media.mp4(PICTURES, 8)
    outer = boxes(data)
    assert list(outer) == ["ftyp", "mdat", "moov"]
    track = boxes(outer["moov"])["trak"]
    table = boxes(boxes(boxes(boxes(track)["mdia"])["minf"])["stbl"].removeprefix(b""))
    count, *sizes = struct.unpack(">I3I", table["stsz"][8:])
    (offset,) = struct.unpack(">I", table["stco"][8:])
    assert count == 3
    assert sum(sizes) == len(outer["mdat"])
    assert opened(data[offset : offset + sizes[0]]).size == (64, 48)


def elements(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    while data:
        width = 9 - data[0].bit_length()
        size = int.from_bytes(data[width : width + 8], "big") & (1 << 56) - 1
        assert width + 8 + size <= len(data)
        found.append((data[:width].hex(), data[width + 8 : width + 8 + size]))
        data = data[width + 8 + size :]
    return found


def test_a_webm_holds_info_tracks_and_one_block_a_frame() -> None:
    (head, fields), (segment, content) = elements(media.webm(PICTURES, 8))
    assert (head, segment) == ("1a45dfa3", "18538067")
    assert dict(elements(fields))["4282"] == b"webm"
    parts = dict(elements(content))
    assert list(parts) == ["1549a966", "1654ae6b", "1f43b675"]
    blocks = [block for kind, block in elements(parts["1f43b675"]) if kind == "a3"]
    assert [opened(block[4:]).size for block in blocks] == [(64, 48)] * 3


def test_a_flac_says_how_long_it_is_and_carries_the_digest_of_its_samples() -> None:
    data = media.flac(0.1, seed=3)
    assert data[:5] == b"fLaC\x80"
    layout = int.from_bytes(data[18:26], "big")
    assert layout >> 44 == media.RATE
    assert layout & (1 << 36) - 1 == 4410
    level = struct.unpack(">h", data[42 + 7 : 42 + 9])[0]
    samples = struct.pack("<h", level) * 2 * 4096 + struct.pack("<h", -level) * 2 * (4410 - 4096)
    assert data[26:42] == hashlib.md5(samples).digest()
    assert media.flac(0.1, seed=3) != media.flac(0.1, seed=4)


def test_mp3_opus_and_wav_have_whole_frames() -> None:
    assert len(media.mp3(0.1)) % 417 == 0
    assert media.opus(0.1).count(b"OggS") == 3
    wav = media.wav(0.1)
    assert struct.unpack("<I", wav[4:8])[0] + 8 == len(wav)


def test_a_glb_holds_the_document_and_the_points_it_speaks_of() -> None:
    data = media.glb(5)
    magic, version, size, length, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, size, kind) == (b"glTF", 2, len(data), b"JSON")
    document = json.loads(data[20 : 20 + length])
    assert document["buffers"][0]["byteLength"] == len(data) - 28 - length
