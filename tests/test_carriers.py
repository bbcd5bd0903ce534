"""What media carry: files of a real ComfyUI (recordings/carriers), of Pillow, and made by hand."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyflow.carriers import Carried, carried
from comfyflow.carriers import reader as bounds
from comfyflow.errors import WorkflowInvalid

FOLDER = Path(__file__).parent / "recordings" / "carriers"
RECORDED = sorted(FOLDER.iterdir())
PROMPT = '{"1": {"class_type": "A", "inputs": {"x": NaN, "seed": 18446744073709551615}}}'
WORKFLOW = '{"nodes": [], "links": []}'
BOTH = {"prompt": PROMPT, "workflow": WORKFLOW}
KIND_OF = {
    "apng.png": "PNG",
    "comment.mov": "MOV",
    "comment.mp4": "MP4",
    "comment.webm": "WebM",
    "exr.exr": "EXR",
    "flac.flac": "FLAC",
    "fragmented.mp4": "MP4",
    "glb.glb": "GLB",
    "latent.latent": "safetensors file",
    "mp3.mp3": "MP3",
    "mp4.mp4": "MP4",
    "opus.opus": "Opus",
    "png.png": "PNG",
    "png16.png": "PNG",
    "svg.svg": "SVG",
    "webm.webm": "WebM",
    "webp.webp": "WebP",
}


def read(data: bytes) -> Carried:
    found = carried(BytesIO(data))
    assert found is not None
    return found


def texts(data: bytes) -> dict[str, str]:
    return dict(read(data).texts)


def refused(data: bytes) -> str:
    with pytest.raises(WorkflowInvalid) as caught:
        carried(BytesIO(data))
    return caught.value.reason


# Containers made by hand


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(*chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def riff(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)


def webp(*parts: bytes) -> bytes:
    return riff(b"RIFF", b"WEBP" + b"".join(parts))


def tiff(*entries: tuple[int, int, bytes], order: str = "<", link: int | None = None) -> bytes:
    """Exif data of one directory; `link` is where an entry points that stands for a second one."""
    count = len(entries) + (link is not None)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, count)
    table, values = b"", b""
    start = len(head) + 12 * count
    for tag, kind, value in entries:
        at = start + len(values)
        where = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{order}I", at)
        table += struct.pack(f"{order}HHI", tag, kind, len(value)) + where
        values += value if len(value) > 4 else b""
    if link is not None:
        table += struct.pack(f"{order}HHII", 0x8769, 4, 1, link)
    return head + table + values


def jpeg(*segments: tuple[int, bytes], end: bytes = b"\xff\xd9") -> bytes:
    written = [b"\xff" + bytes([kind]) + struct.pack(">H", len(body) + 2) + body for kind, body in segments]
    return b"\xff\xd8" + b"".join(written) + end


def box(kind: bytes, *inner: bytes) -> bytes:
    body = b"".join(inner)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def data(text: str) -> bytes:
    return box(b"data", bytes(8), text.encode())


FTYP = box(b"ftyp", b"isom" + bytes(4))


def element(number: int, body: bytes, *, known: bool = True) -> bytes:
    name = number.to_bytes((number.bit_length() + 7) // 8, "big")
    length = (1 << 56 | len(body)).to_bytes(8, "big") if known else b"\xff"
    return name + length + body


def webm(*inner: bytes, known: bool = True) -> bytes:
    return element(0x1A45DFA3, b"") + element(0x18538067, b"".join(inner), known=known)


def simple_tag(name: str, text: str) -> bytes:
    return element(0x67C8, element(0x45A3, name.encode()) + element(0x4487, text.encode()))


def vorbis(*comments: str, count: int | None = None) -> bytes:
    number = len(comments) if count is None else count
    both = [struct.pack("<I", len(text.encode())) + text.encode() for text in comments]
    return struct.pack("<I", 2) + b"me" + struct.pack("<I", number) + b"".join(both)


def flac(*blocks: tuple[int, bytes]) -> bytes:
    heads = [
        struct.pack(">I", (place == len(blocks) - 1) << 31 | kind << 24 | len(body)) + body
        for place, (kind, body) in enumerate(blocks)
    ]
    return b"fLaC" + b"".join(heads)


def page(*packets: bytes, stream: int = 1, open_end: bool = False) -> bytes:
    lengths = b"".join(
        b"\xff" * (len(packet) // 255) + (b"" if open_end else bytes([len(packet) % 255]))
        for packet in packets
    )
    head = b"OggS" + bytes(10) + struct.pack("<III", stream, 0, 0) + bytes([len(lengths)])
    return head + lengths + b"".join(packets)


def syncsafe(number: int) -> bytes:
    return bytes(number >> 7 * place & 0x7F for place in (3, 2, 1, 0))


def frame(name: bytes, body: bytes, *, version: int = 4) -> bytes:
    length = syncsafe(len(body)) if version > 3 else struct.pack(">I", len(body))
    return name + length + b"\0\0" + body


def mp3(*frames: bytes, version: int = 4, flags: int = 0, extended: bytes = b"") -> bytes:
    body = extended + b"".join(frames)
    return b"ID3" + bytes([version, 0, flags]) + syncsafe(len(body)) + body


def glb(document: bytes, *, kind: bytes = b"JSON", missing: int = 0) -> bytes:
    body = struct.pack("<I4s", len(document), kind) + document
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body) + missing) + body


def latent(document: str) -> bytes:
    return struct.pack("<Q", len(document)) + document.encode()


def exr(*attributes: tuple[bytes, bytes]) -> bytes:
    written = [name + b"\0string\0" + struct.pack("<i", len(value)) + value for name, value in attributes]
    return b"\x76\x2f\x31\x01\2\0\0\0" + b"".join(written) + b"\0"


def picture(form: str, **options: object) -> bytes:
    file = BytesIO()
    Image.new("RGB", (16, 16)).save(file, form, **options)
    return file.getvalue()


def exif_of_comfyui() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{PROMPT}"
    exif[0x010F] = f"workflow:{WORKFLOW}"
    return exif


# What a real server wrote


def test_every_recorded_file_has_its_kind_here() -> None:
    assert {path.name for path in RECORDED} == set(KIND_OF)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_files_of_a_real_server_give_both_graphs(path: Path) -> None:
    with path.open("rb") as file:
        found = carried(file)
    assert found is not None
    assert found.kind == KIND_OF[path.name]
    assert "class_type" in json.loads(found.texts["prompt"])["1"]
    assert "nodes" in json.loads(found.texts["workflow"])


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
@settings(deadline=None)
@given(st.data())
def test_a_cut_or_changed_file_gives_what_it_holds_or_one_sentence(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(content), 4096) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    try:
        found = carried(BytesIO(content[: end or len(content)]))
    except WorkflowInvalid as error:
        assert error.reason.startswith(("this ", "the "))
    else:
        assert found is None or set(found.texts) <= {"prompt", "workflow"}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_a_file_cut_before_its_graph_is_never_called_one_without_a_graph(path: Path) -> None:
    content = path.read_bytes()
    for end in range(70, len(content), 7):
        try:
            found = carried(BytesIO(content[:end]))
        except WorkflowInvalid as error:
            assert "ends in the middle" in error.reason or "damaged" in error.reason
        else:
            assert found is not None
            assert found.texts, end


@pytest.mark.parametrize("text", [b"", b"{}", b'{"1": {}}', b"\xef\xbb\xbf{}", b"[1, 2]", b"GIF89a"])
def test_what_is_no_media_is_left_to_others(text: bytes) -> None:
    assert carried(BytesIO(text)) is None


class Shrinking(BytesIO):
    """A file that somebody truncates while it is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size) if size == 64 else b""


def test_a_file_that_becomes_shorter_is_cut() -> None:
    file: BinaryIO = Shrinking(png())
    with pytest.raises(WorkflowInvalid, match="this PNG ends in the middle"):
        carried(file)


# PNG


def test_png_texts_of_every_chunk_are_read() -> None:
    info = PngInfo()
    info.add_text("prompt", PROMPT, zip=True)
    info.add_itxt("workflow", WORKFLOW, zip=True)
    assert texts(picture("PNG", pnginfo=info)) == BOTH
    assert texts(png(chunk(b"iTXt", b"prompt\0\0\0\0\0" + PROMPT.encode()))) == {"prompt": PROMPT}
    assert texts(png(chunk(b"comf", b"prompt\0" + PROMPT.encode()))) == {"prompt": PROMPT}


def test_png_texts_are_utf8_and_else_latin1() -> None:
    assert texts(png(chunk(b"tEXt", "Prompt\0é".encode()))) == {"prompt": "é"}
    assert texts(png(chunk(b"tEXt", b"prompt\0\xe9"))) == {"prompt": "é"}


def test_the_first_text_of_a_name_counts() -> None:
    assert texts(png(chunk(b"tEXt", b"prompt\x001"), chunk(b"tEXt", b"prompt\x002"))) == {"prompt": "1"}


def test_a_whole_file_without_a_graph_carries_nothing() -> None:
    assert read(picture("PNG")) == Carried("PNG", {})
    assert texts(png(chunk(b"tEXt", b"parameters\0cat"))) == {}


def test_a_cut_png_says_where_it_ends() -> None:
    cut = png(chunk(b"tEXt", b"prompt\0" + PROMPT.encode()))[:60]
    assert refused(cut) == (
        "this PNG ends in the middle, at byte 60, before a workflow was found: copy or download it again"
    )


def test_a_cut_png_gives_what_stands_whole_in_it() -> None:
    assert texts(png(chunk(b"tEXt", b"prompt\x001"))[:-6]) == {"prompt": "1"}


def test_damaged_texts_of_a_png_are_said() -> None:
    assert "checksum of a tEXt chunk" in refused(png(chunk(b"tEXt", b"prompt\0{}", crc=1)))
    assert "cannot be inflated" in refused(png(chunk(b"zTXt", b"prompt\0\0not packed")))


# Bounds


def test_announced_sizes_beyond_the_bound_are_refused() -> None:
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31) + b"tEXt"
    assert "it holds more than 64 MiB of metadata" in refused(huge)


def test_inflated_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_TEXT", 1000)
    packed = chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(100_000)))
    assert "it holds more than 0 MiB of metadata" in refused(png(packed))


def test_a_read_beyond_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_TEXT", 6)
    assert "announces 8 bytes of metadata" in refused(png())


def test_the_number_of_parts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_PARTS", 10)
    many = [chunk(b"tIME", b"")] * 20
    assert refused(png(*many)) == "this PNG is damaged (it has more than 10 parts): use the original file"


# Comments of the packs, and texts in texts


def test_comments_hold_graphs_as_objects_or_as_texts() -> None:
    comment = json.dumps({"prompt": "{}", "workflow": {"nodes": []}})
    found = texts(flac((4, vorbis(f"COMMENT={comment}"))))
    assert found == {"prompt": "{}", "workflow": '{"nodes": []}'}


@pytest.mark.parametrize("comment", ["a cat", "{no JSON", "{}"])
def test_other_comments_are_left_alone(comment: str) -> None:
    assert texts(flac((4, vorbis(f"comment={comment}")))) == {}


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_json_in_json_strings_is_unwrapped(times: int) -> None:
    text = PROMPT
    for _ in range(times):
        text = json.dumps(text)
    assert texts(flac((4, vorbis(f"prompt={text}")))) == {"prompt": PROMPT}


def test_what_only_looks_like_a_json_string_stays() -> None:
    assert texts(flac((4, vorbis('prompt="a cat')))) == {"prompt": '"a cat'}


def test_metadata_nested_too_deeply_is_one_sentence() -> None:
    deep = '{"a":' * 200_000
    assert "nested deeper than any workflow" in refused(flac((4, vorbis(f"comment={deep}"))))
    assert texts(flac((4, vorbis("prompt=1", f"comment={deep}")))) == {"prompt": "1"}


# Exif


@pytest.mark.parametrize("form", ["WEBP", "JPEG", "AVIF"])
def test_exif_of_pillow_is_read(form: str) -> None:
    assert texts(picture(form, exif=exif_of_comfyui())) == BOTH


@pytest.mark.parametrize("form", ["WEBP", "JPEG", "AVIF"])
def test_pictures_without_exif_carry_nothing(form: str) -> None:
    assert texts(picture(form)) == {}


@pytest.mark.parametrize(
    "comment",
    [
        b"ASCII\0\0\0" + json.dumps(BOTH).encode(),
        b"UNICODE\0" + json.dumps(BOTH).encode("utf-16-be"),
        b"UNICODE\0" + json.dumps(BOTH).encode("utf-16-le"),
    ],
)
def test_a_user_comment_of_exif_is_read(comment: bytes) -> None:
    assert texts(webp(riff(b"EXIF", tiff((0x9286, 7, comment), order=">")))) == BOTH


def test_exif_of_other_kinds_and_loops_are_stepped_over() -> None:
    body = tiff((1, 3, b"\1\0\0\0"), (0x010F, 2, b"abc"), link=8)
    assert texts(webp(riff(b"EXIF", b"Exif\0\0" + body))) == {}


@pytest.mark.parametrize("body", [b"", b"II*\0", b"XX*\0\x08\0\0\0"])
def test_exif_that_does_not_start_as_such_is_damaged(body: bytes) -> None:
    assert "its Exif data does not start as such" in refused(webp(riff(b"EXIF", body)))


def test_exif_that_points_outside_is_damaged() -> None:
    assert "points outside of itself" in refused(webp(riff(b"EXIF", tiff(link=999))))


def test_entries_of_exif_that_share_one_large_text_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_TEXT", 5000)
    table = struct.pack("<HHII", 0x010E, 2, 1000, 8) * 100
    body = b"II*\0" + struct.pack("<IH", 8, 100) + table
    assert "more than 0 MiB of metadata" in refused(webp(riff(b"EXIF", body)))


def test_a_cut_webp_is_told_from_one_without_exif() -> None:
    whole = webp(riff(b"VP8 ", bytes(5)), riff(b"EXIF", tiff((0x0110, 2, b"prompt:{}\0"))))
    assert texts(whole) == {"prompt": "{}"}
    assert "this WebP ends in the middle" in refused(whole[:26])


def test_jpeg_comments_fillers_and_bare_markers_are_known() -> None:
    comment = json.dumps(BOTH).encode()
    filled = b"\xff\xd8\xff\x01\xff" + jpeg((0xE1, b"http://xmp"), (0xE1, b""), (0xFE, comment))[2:]
    assert texts(filled) == BOTH
    assert texts(jpeg(end=b"\xff\xda")) == {}


def test_a_jpeg_without_a_marker_is_damaged() -> None:
    assert "a marker is missing" in refused(b"\xff\xd8\xff\xe0\0\x02\0\0")


# MP4, MOV, AVIF


def test_mp4_keys_and_comments_are_read_wherever_they_stand() -> None:
    keys = box(b"keys", bytes(8), box(b"mdta", b"prompt"))
    items = box(b"ilst", box(struct.pack(">I", 1), box(b"mean", b""), data(PROMPT)))
    movie = box(b"meta", box(b"hdlr", bytes(25)), keys, items)
    assert texts(FTYP + box(b"mdat", bytes(9)) + box(b"moov", movie)) == {"prompt": PROMPT}
    comment = box(
        b"meta", bytes(4), box(b"hdlr", bytes(25)), box(b"ilst", box(b"\xa9cmt", data(json.dumps(BOTH))))
    )
    assert texts(FTYP + box(b"moov", box(b"udta", comment))) == BOTH
    assert texts(FTYP + box(b"udta", comment) + box(b"moov")) == BOTH


def test_boxes_of_64_bits_and_up_to_the_end_are_known() -> None:
    wide = struct.pack(">I4sQ", 1, b"mdat", 20) + bytes(4)
    last = struct.pack(">I4s", 0, b"moov")
    assert texts(FTYP + wide + last) == {}


def test_holders_in_holders_are_not_followed_for_ever() -> None:
    nested = b""
    for _ in range(50):
        nested = box(b"udta", nested)
    assert texts(FTYP + box(b"moov", nested)) == {}


@pytest.mark.parametrize("length", [2, 7])
def test_a_box_smaller_than_its_head_is_damaged(length: int) -> None:
    assert "smaller than its own head" in refused(FTYP + struct.pack(">I4s", length, b"moov"))


def test_a_movie_without_its_description_is_cut() -> None:
    assert "this MP4 ends in the middle" in refused(FTYP)
    assert "this MP4 ends in the middle" in refused(FTYP + struct.pack(">I4sQ", 1, b"mdat", 2**63))


def avif(version: int, item: int, exif: bytes, *, inside: int = 0) -> bytes:
    """An AVIF whose Exif item stands behind its boxes; versions differ in the width of their numbers."""
    wide = ">I" if version == 2 else ">H"
    number = struct.pack(wide, item)
    infe = box(b"infe", bytes([2 + (version == 2), 0, 0, 0]), number, b"\0\0Exif\0")
    other = box(b"infe", bytes([2, 0, 0, 0]), b"\0\x63", b"\0\0av01\0")
    count = struct.pack(">H", 2) if version == 0 else struct.pack(">I", 2)
    iinf = box(b"iinf", bytes([bool(version), 0, 0, 0]), count, other, box(b"free"), infe)

    def meta(at: int) -> bytes:
        method = struct.pack(">H", inside) if version else b""
        extent = (b"\0\0\0\1" if version else b"") + struct.pack(">II", at, len(exif))
        place = number + method + b"\0\0" + b"\0\1" + extent
        stranger = struct.pack(wide, 99) + method + b"\0\0" + b"\0\1" + extent
        iloc = bytes([version, 0, 0, 0, 0x44, 0x04 if version else 0])
        return box(b"meta", bytes(4), iinf, box(b"iloc", iloc + struct.pack(wide, 2) + stranger + place))

    head = box(b"ftyp", b"avif" + bytes(4))
    return head + meta(len(head) + len(meta(0))) + exif


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_version_of_the_boxes_of_an_avif_is_read(version: int) -> None:
    body = struct.pack(">I", 0) + tiff((0x0110, 2, f"prompt:{PROMPT}".encode()))
    assert texts(avif(version, 7, body)) == {"prompt": PROMPT}


def test_items_of_an_avif_that_stand_in_another_box_are_left() -> None:
    assert texts(avif(1, 7, bytes(9), inside=1)) == {}


def test_an_avif_without_its_description_is_cut() -> None:
    assert "this AVIF ends in the middle" in refused(box(b"ftyp", b"avif" + bytes(4)) + box(b"free"))


# WebM


def test_webm_tags_are_read_in_files_and_in_streams() -> None:
    tags = element(0x1254C367, element(0x7373, simple_tag("PROMPT", PROMPT)))
    assert texts(webm(element(0xEC, b"void"), tags)) == {"prompt": PROMPT}
    assert texts(webm(tags, known=False)) == {"prompt": PROMPT}


def test_a_cut_webm_is_told_from_one_without_tags() -> None:
    whole = webm(element(0xEC, b"void"))
    assert texts(whole) == {}
    assert "this WebM ends in the middle" in refused(whole[:-1])


def test_an_element_without_a_length_is_damaged() -> None:
    assert "an element has no length" in refused(b"\x1a\x45\xdf\xa3\0")


# FLAC, Ogg, MP3


def test_flac_blocks_before_the_comments_are_stepped_over() -> None:
    assert texts(flac((0, bytes(34)), (4, vorbis(f"PROMPT={PROMPT}")))) == {"prompt": PROMPT}


def test_comments_longer_than_all_of_them_are_damaged() -> None:
    assert "longer than all of them" in refused(flac((4, vorbis("a=b", count=2**32 - 1))))
    assert "longer than all of them" in refused(flac((4, struct.pack("<I", 2**31))))


@pytest.mark.parametrize("name", [b"OpusTags", b"\x03vorbis", b"\x81theora"])
def test_the_comments_of_an_ogg_file_run_over_pages(name: bytes) -> None:
    packet = name + vorbis(f"prompt={PROMPT}{' ' * 600}")
    first, rest = packet[:510], packet[510:]
    whole = page(b"head") + page(b"x", stream=2) + page(first, open_end=True) + page(rest) + page(b"sound")
    assert texts(whole)["prompt"].strip() == PROMPT


def test_an_ogg_file_that_ends_before_its_comments_is_cut() -> None:
    assert "this Opus ends in the middle" in refused(page(b"OpusHead"))
    assert "a page does not start as one" in refused(page(b"head") + bytes(30))


@pytest.mark.parametrize(
    ("encoding", "written"),
    [(0, "latin-1"), (1, "utf-16"), (2, "utf-16-be"), (3, "utf-8"), (9, "latin-1")],
)
def test_id3_texts_of_every_encoding_are_read(encoding: int, written: str) -> None:
    end = b"\0\0" if written.startswith("utf-16") else b"\0"
    body = bytes([encoding]) + "prompt".encode(written) + end + PROMPT.encode(written)
    assert texts(mp3(frame(b"TXXX", body))) == {"prompt": PROMPT}


def test_id3_utf16_may_have_its_highest_byte_first() -> None:
    body = b"\1\xfe\xff" + "prompt".encode("utf-16-be") + b"\0\0\xfe\xff" + PROMPT.encode("utf-16-be")
    assert texts(mp3(frame(b"TXXX", body))) == {"prompt": PROMPT}


@pytest.mark.parametrize(("version", "extended"), [(3, b"\0\0\0\6" + bytes(6)), (4, b"\0\0\0\6\1\0")])
def test_id3_versions_and_extended_heads_are_known(version: int, extended: bytes) -> None:
    body = frame(b"TXXX", b"\3prompt\0{}", version=version)
    empty = frame(b"TXXX", b"", version=version) + frame(b"COMM", b"", version=version)
    assert texts(mp3(empty, body, bytes(20), version=version, flags=0x40, extended=extended)) == {
        "prompt": "{}"
    }


def test_id3_comments_and_unsynchronised_tags_are_read() -> None:
    comment = b"\3eng\0" + json.dumps(BOTH).encode()
    assert texts(mp3(frame(b"TIT2", b"\3cat"), frame(b"COMM", comment))) == BOTH
    body = frame(b"TXXX", b"\0prompt\0\xff\0\xe0")
    assert texts(mp3(body, flags=0x80)) == {"prompt": "ÿà"}


def test_an_mp3_without_id3_carries_nothing() -> None:
    assert read(b"\xff\xfb" + bytes(20)) == Carried("MP3", {})


# GLB, safetensors, SVG, EXR


def test_glb_extras_are_read() -> None:
    document = json.dumps({"asset": {"extras": {"prompt": PROMPT, "workflow": {"nodes": []}}}}).encode()
    assert texts(glb(document)) == {"prompt": PROMPT, "workflow": '{"nodes": []}'}


@pytest.mark.parametrize("document", [b"{}", b"[]", b'{"asset": 1}', b'{"asset": {"extras": []}}'])
def test_a_glb_without_extras_carries_nothing(document: bytes) -> None:
    assert texts(glb(document)) == {}


def test_damaged_and_cut_glb_are_told() -> None:
    assert "first chunk is not JSON" in refused(glb(b"{}", kind=b"BIN\0"))
    assert "its JSON cannot be read" in refused(glb(b"{"))
    assert "this GLB ends in the middle" in refused(glb(b"{}", missing=1))


def test_metadata_of_latents_is_read() -> None:
    assert texts(latent(json.dumps({"__metadata__": BOTH}))) == BOTH


def test_svg_metadata_is_read_and_a_cut_one_told() -> None:
    inner = f"<metadata>\n<![CDATA[\n{json.dumps(BOTH)}\n]]></metadata>"
    assert texts(f"<?xml?><svg>{inner}</svg>".encode()) == BOTH
    assert texts(b"<svg><metadata>words</metadata></svg>") == {}
    assert "this SVG ends in the middle" in refused(f"<svg>{inner}"[:60].encode())
    assert "there is no <svg> in it" in refused(b"<?xml?><error/>")


def test_exr_attributes_are_read() -> None:
    assert texts(exr((b"owner", b"me"), (b"prompt", PROMPT.encode()))) == {"prompt": PROMPT}
    assert texts(exr()) == {}


def test_an_exr_whose_names_do_not_end_is_damaged_or_cut() -> None:
    assert "a name in it does not end" in refused(exr()[:8] + b"x" * 300)
    assert "this EXR ends in the middle" in refused(exr()[:8] + b"x" * 30)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FTYP + box(b"moov", box(b"meta", bytes(4), box(b"hdlr", bytes(9)), b"\0\0\0\0keys" * 9)),
        lambda: webm(element(0x67C8, b"")) + b"\x80" * 3000,
        lambda: flac((4, vorbis(*[""] * 5000))),
    ],
)
def test_walks_that_go_nowhere_are_counted(
    make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_PARTS", 5)
    assert "more than 5 parts" in refused(make())
