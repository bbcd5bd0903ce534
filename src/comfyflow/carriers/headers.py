"""GLB and safetensors: JSON in front of what is large."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from .reader import KEYS, Reader, as_text


def glb(file: Reader) -> Iterator[tuple[str, str]]:
    file.at = 8
    whole, length, kind = struct.unpack("<II4s", file.read(12))
    if kind != b"JSON":
        raise file.damaged("its first chunk is not JSON")
    asset = _object(file, file.text(length)).get("asset")
    extras = asset.get("extras") if isinstance(asset, Mapping) else None
    yield from _named(extras)
    if whole > file.size:
        raise file.cut()


def safetensors(file: Reader) -> Iterator[tuple[str, str]]:
    (length,) = struct.unpack("<Q", file.read(8))
    yield from _named(_object(file, file.text(length)).get("__metadata__"))


def _object(file: Reader, text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise file.damaged("its JSON cannot be read") from error
    return found if isinstance(found, Mapping) else {}


def _named(found: Any) -> Iterator[tuple[str, str]]:
    for key in KEYS:
        if isinstance(found, Mapping) and key in found:
            yield key, as_text(found[key])
