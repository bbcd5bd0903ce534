"""Which kind of file this is, by its first bytes and by its name."""

from __future__ import annotations

import codecs
import mimetypes
import re

from .sounds import mpeg_frame
from .tape import Damaged

HEAD_SIZE = 512
"""Bytes from the start of a file that `sniff` wants to see; fewer often do."""


def sniff(head: bytes) -> str | None:
    """The media type that the first bytes of a file show, whatever its name; None when they show none."""
    # A text comes first: "GIF89a is a format" is one, and real files of these kinds have control characters
    # early.
    return _by_signature(head, _TEXT_HEADERS) or _sniff_text(head) or _sniff_binary(head)


def media_type_of(suffix: str) -> str | None:
    """The media type that goes with a suffix (without the dot, in lower case)."""
    return _TYPES.get(suffix) or mimetypes.types_map.get(f".{suffix}")


def suffix_of(media_type: str) -> str | None:
    """The usual suffix of a media type (without the dot); None for one that jobs have no use for."""
    return next((suffix for suffix, kind in _TYPES.items() if kind == media_type), None)


def refuse_stand_in(head: bytes, suffix: str) -> None:
    """Raise Damaged for what a proxy or a server sent in place of the file: a page, a message, nothing."""
    found, by_name = sniff(head), media_type_of(suffix)
    wanted = _NOUNS.get((by_name or "").partition("/")[0], _ANY_FILE)
    if suffix in _SIGNED and found not in _KNOWN:
        sent = _STAND_INS.get(found or "", "something else") if len(head) > 16 else f"only {len(head)} bytes"
        raise Damaged(f"the server sent {sent} instead of {wanted}")
    if not head and wanted != _ANY_FILE:
        raise Damaged(f"the server sent an empty file instead of {wanted}")
    if found == "text/html" and by_name is not None and not by_name.startswith("text/"):
        raise Damaged(f"the server sent an HTML page instead of {wanted}")


_ANY_FILE = "the file"
_NOUNS = {"image": "an image", "video": "a video", "audio": "audio", "model": "a 3D model"}
_STAND_INS = {
    "text/html": "an HTML page",
    "application/json": "JSON",
    "text/plain": "text",
    "application/xml": "XML",
    "image/svg+xml": "an SVG drawing",
}

_TYPES = {
    **dict.fromkeys(("png", "apng"), "image/png"),
    **dict.fromkeys(("jpg", "jpeg"), "image/jpeg"),
    **dict.fromkeys(("tif", "tiff"), "image/tiff"),
    **dict.fromkeys(("ogg", "oga", "opus"), "audio/ogg"),
    **dict.fromkeys(("mp4", "m4v"), "video/mp4"),
    **dict.fromkeys(("safetensors", "latent"), "application/x-safetensors"),
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "exr": "image/x-exr",
    "hdr": "image/vnd.radiance",
    "avif": "image/avif",
    "heic": "image/heic",
    "jxl": "image/jxl",
    "svg": "image/svg+xml",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mkv": "video/x-matroska",
    "avi": "video/x-msvideo",
    "mka": "audio/x-matroska",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "m4a": "audio/mp4",
    "aac": "audio/aac",
    "glb": "model/gltf-binary",
    "gltf": "model/gltf+json",
    "obj": "model/obj",
    "stl": "model/stl",
    "ply": "model/ply",
    "fbx": "model/fbx",
    "usdz": "model/vnd.usdz+zip",
}

_TEXT_HEADERS = {b"#?R": "image/vnd.radiance", b"%PDF-": "application/pdf"}  # they begin as a text does
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
    b"ID3": "audio/mpeg",
    b"glTF": "model/gltf-binary",
    b"v/1\x01": "image/x-exr",
    b"II*\0": "image/tiff",
    b"II+\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"MM\0+": "image/tiff",
    b"\xff\x0a": "image/jxl",
    b"\0\0\0\x0cJXL \r\n\x87\n": "image/jxl",
    b"PK\x03\x04": "application/zip",
    b"\xff\xf1": "audio/aac",
    b"\xff\xf9": "audio/aac",
}
_RIFF_KINDS = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"mif1": "image/heic",
}
_QUICKTIME_STARTS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_MAX_SAFETENSORS_HEADER = 100_000_000  # the format's own limit

# Suffixes whose files begin with something known here, and what that may be: anything else is no such file.
_SIGNED = frozenset(_TYPES) - {"svg", "gltf", "obj", "stl", "ply", "fbx", "usdz"}
_KNOWN = frozenset(_TYPES[suffix] for suffix in _SIGNED)

_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_HTML = re.compile(rb"<(!doctype\s+html|html|head|body|script|title|meta|center)\b")
_JSON = re.compile(rb'\{\s*["}]|\[\s*["\[\]{\-\d]')


def _by_signature(head: bytes, signatures: dict[bytes, str]) -> str | None:
    return next((kind for start, kind in signatures.items() if head.startswith(start)), None)


def _sniff_binary(head: bytes) -> str | None:
    found = _by_signature(head, _SIGNATURES) or _sniff_container(head)
    if found is None and mpeg_frame(head) is not None:
        return "audio/mpeg"
    return found


def _sniff_container(head: bytes) -> str | None:
    """The kinds whose signature is not one fixed start."""
    if head[:4] in {b"RIFF", b"RF64"}:
        return _RIFF_KINDS.get(head[8:12])
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[4:8] in _QUICKTIME_STARTS:
        return "video/quicktime"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return "application/x-safetensors"
    return "image/bmp" if head.startswith(b"BM") and head[6:10] == bytes(4) else None


def _sniff_text(head: bytes) -> str | None:
    if not head or _NO_TEXT.search(head):
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    start = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if _HTML.match(start):
        return "text/html"
    if start.startswith((b"<?xml", b"<svg", b"<!doctype svg")):
        return "image/svg+xml" if b"<svg" in start or b"doctype svg" in start else "application/xml"
    return "application/json" if _JSON.match(start) else "text/plain"
