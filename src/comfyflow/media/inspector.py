"""One file while it streams past."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .boxes import film, image_boxes
from .ebml import webm
from .images import bmp, gif, jpeg, png
from .models import glb, safetensors
from .riff import avi, wav, webp
from .sniffing import HEAD_SIZE, media_type_of, refuse_stand_in, sniff
from .sounds import flac, mp3, ogg
from .tape import Damaged, Facts, Tape, Walk


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a whole file is: `width` and `height` in pixels, `duration` in seconds; None: it does not say."""

    media_type: str
    width: int | None = None
    height: int | None = None
    duration: float | None = None


class Inspector:
    """Looks at one file while it streams past: `feed` every chunk in order, then `finish`. Any split will do.

    `filename` says what is expected: a `.png` that begins like an HTML page is a proxy's page, not a picture.
    """

    __slots__ = ("_damage", "_info", "_tape", "_walk")

    def __init__(self, filename: str) -> None:
        self._tape = Tape()
        self._walk = _inspect(self._tape, filename.rpartition(".")[2].lower() if "." in filename else "")
        self._info = MediaInfo("application/octet-stream")
        self._damage: Damaged | None = None
        self._step()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises Damaged as soon as damage is certain, and again at every later call."""
        if self._damage is None:
            self._tape.push(chunk)
        self._step()

    def finish(self) -> MediaInfo:
        """Say that this was all. Raises Damaged when something is missing."""
        self._tape.ended = True
        self._step()
        return self._info

    def _step(self) -> None:
        if self._damage is not None:
            raise self._damage
        try:
            next(self._walk)
        except StopIteration as stop:
            self._info = stop.value or self._info  # None after the end
        except Damaged as damage:
            self._damage = damage
            raise


def _inspect(tape: Tape, suffix: str) -> Walk[MediaInfo]:
    head = yield from tape.peek(HEAD_SIZE)
    refuse_stand_in(head, suffix)
    found = sniff(head) or ""
    if found not in _WALKERS:
        yield from tape.rest()
        return MediaInfo(media_type_of(suffix) or found or "application/octet-stream")
    tape.label, walker = _WALKERS[found]
    facts = yield from walker(tape)
    yield from tape.rest()
    return MediaInfo(found, *_plausible(facts))


def _plausible(facts: Facts) -> Facts:
    """Without what no real file says: the values go into records that know no NaN and no 64 bit number."""
    width, height = (size if size and size < 1 << 31 else None for size in facts[:2])
    duration = round(facts.duration, 6) if facts.duration and 0 < facts.duration < 1e9 else None
    return Facts(width, height, duration)


_WALKERS: dict[str, tuple[str, Callable[[Tape], Walk[Facts]]]] = {
    "image/png": ("PNG", png),
    "image/jpeg": ("JPEG", jpeg),
    "image/gif": ("GIF", gif),
    "image/webp": ("WebP", webp),
    "image/bmp": ("BMP", bmp),
    "image/avif": ("AVIF", image_boxes),
    "image/heic": ("HEIC", image_boxes),
    "video/mp4": ("MP4", film),
    "video/quicktime": ("MOV", film),
    "video/webm": ("WebM", webm),
    "video/x-matroska": ("MKV", webm),
    "video/x-msvideo": ("AVI", avi),
    "audio/wav": ("WAV", wav),
    "audio/mp4": ("M4A", film),
    "audio/flac": ("FLAC", flac),
    "audio/mpeg": ("MP3", mp3),
    "audio/ogg": ("Ogg file", ogg),
    "model/gltf-binary": ("GLB", glb),
    "application/x-safetensors": ("safetensors file", safetensors),
}
