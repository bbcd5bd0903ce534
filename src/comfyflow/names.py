"""File names that are safe to create. A name from a server is hostile until it has been through here."""

from __future__ import annotations

import re
import unicodedata

MAX_NAME_SIZE = 200
"""Bytes of UTF-8 a name may have: file systems allow 255, and a number or a `.part` has to fit behind it."""

_MAX_SUFFIX_SIZE = 20
_FALLBACK = "output"
_DRIVE = re.compile(r"[A-Za-z]:")
# Forbidden by Windows; the colon also opens a drive or an alternate data stream there.
_FORBIDDEN = frozenset('<>:"|?*')
# They turn the direction of writing, so that "gpj.exe" is shown as "exe.jpg".
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BAD_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, lone surrogates, line ends
_DEVICES = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"}
    | {f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"}
)


def safe_name(filename: str, media_suffix: str = "") -> str:
    """A base name that can be created in any folder, on any system; an ordinary name comes back as it is.

    Folders, drive letters, control characters, device names (`NUL.png`) and leading or trailing dots and
    spaces go; at most 200 bytes of UTF-8 stay, with the suffix. A name of which nothing is left becomes
    `output` plus `media_suffix` (such as ".png"). The result never starts with a dot, so it never meets one
    of our own hidden `.part` files.
    """
    name = _DRIVE.sub("", filename, count=1) if _DRIVE.match(filename) else filename
    name = re.split(r"[/\\]", name)[-1]
    name = "".join("_" if _is_harmful(char) else char for char in name)
    name = _trim(_shorten(_trim(name)))
    if not name:
        return _FALLBACK + media_suffix
    if name.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        return _shorten(f"_{name}")
    return name


def numbered(name: str, number: int) -> str:
    """The next choice when `name` is taken: `x.png` -> `x (1).png`, as ComfyUI does it (recording 19)."""
    stem, suffix = split_suffix(name)
    return f"{stem} ({number}){suffix}"


def split_suffix(name: str) -> tuple[str, str]:
    """`name` as stem and suffix, the dot with the suffix; a very long "suffix" is none."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix.encode("utf-8", "replace")) > _MAX_SUFFIX_SIZE:
        return name, ""
    return stem, dot + suffix


def _is_harmful(char: str) -> bool:
    if char in _FORBIDDEN or char in _BIDI:
        return True
    return not char.isprintable() and unicodedata.category(char) in _BAD_CATEGORIES


def _trim(name: str) -> str:
    return name.strip(" .")


def _shorten(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_SIZE:
        return name
    stem, suffix = split_suffix(name)
    room = MAX_NAME_SIZE - len(suffix.encode())
    return stem.encode()[:room].decode("utf-8", "ignore").rstrip(" .") + suffix
