"""What a file is, and what it carries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import WorkflowInvalid
from .boxes import avif, mp4
from .ebml import webm
from .headers import glb, safetensors
from .images import exr, jpeg, png, svg, webp
from .reader import KEYS, Reader, as_text, unwrapped
from .sounds import flac, mp3, ogg


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
            return _collected(kind, texts(Reader(file, kind)))
    return None


def _collected(kind: str, found: Iterable[tuple[str, str]]) -> Carried:
    texts: dict[str, str] = {}
    try:
        for name, text in found:
            for key, value in _split(name.lower(), text):
                texts.setdefault(key, value)
    except (WorkflowInvalid, RecursionError) as error:
        if texts:
            return Carried(kind, texts)
        if isinstance(error, RecursionError):
            raise WorkflowInvalid(
                f"the metadata of this {kind} is nested deeper than any workflow"
            ) from error
        raise
    return Carried(kind, texts)


def _split(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A text under its own name, or the texts in a comment that some packs write: `{"prompt": ..., ...}`."""
    if name in KEYS:
        yield name, unwrapped(text)
    elif name in ("comment", "usercomment", "metadata") and text.lstrip().startswith("{"):
        try:
            inner = json.loads(text)
        except ValueError:
            return
        for key in KEYS:
            if key in inner:
                yield key, as_text(inner[key])


def _is_riff(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_safetensors(head: bytes) -> bool:
    """A length of eight bytes, and then JSON: no text starts so."""
    return head[8:9] == b"{" and head[5:8] == b"\0\0\0"


_KINDS: tuple[tuple[str, Callable[[bytes], bool], Callable[[Reader], Iterator[tuple[str, str]]]], ...] = (
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n"), png),
    ("WebP", _is_riff, webp),
    ("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), jpeg),
    ("EXR", lambda head: head.startswith(b"\x76\x2f\x31\x01"), exr),
    ("AVIF", lambda head: head[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1"), avif),
    ("MOV", lambda head: head[4:12] == b"ftypqt  ", mp4),
    ("M4A", lambda head: head[4:12] == b"ftypM4A ", mp4),
    ("MP4", lambda head: head[4:8] == b"ftyp", mp4),
    ("WebM", lambda head: head.startswith(b"\x1a\x45\xdf\xa3"), webm),
    ("FLAC", lambda head: head.startswith(b"fLaC"), flac),
    ("Opus", lambda head: head.startswith(b"OggS") and head[28:36] == b"OpusHead", ogg),
    ("Ogg", lambda head: head.startswith(b"OggS"), ogg),
    ("MP3", lambda head: head.startswith((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")), mp3),
    ("GLB", lambda head: head.startswith(b"glTF"), glb),
    ("SVG", lambda head: head.lstrip().startswith((b"<svg", b"<?xml")), svg),
    ("safetensors file", _is_safetensors, safetensors),
)
