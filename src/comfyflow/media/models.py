"""3D models and tensors: GLB, safetensors."""

from __future__ import annotations

import json
import struct

from .tape import Damaged, Facts, Tape, Walk

_MAX_HEADER = 1 << 20  # bytes of it that are read into memory


def glb(tape: Tape) -> Walk[Facts]:
    """glTF 2.0, section 4.4: the header holds the file's length, the chunks add up to it."""
    _, version, total = struct.unpack("<4sII", (yield from tape.take(12)))
    if version != 2:
        return Facts()
    while tape.at < total:
        size, _ = struct.unpack("<I4s", (yield from tape.take(8)))
        if tape.at + size > total:
            raise tape.garbled()
        yield from tape.skip(size)
    if tape.at == 12 or not (yield from tape.exhausted()):
        raise Damaged(f"the GLB is not {total} bytes long as its header says")
    return Facts()


def safetensors(tape: Tape) -> Walk[Facts]:
    """A JSON header with each tensor's place; the tensors fill the file. Very long headers are not read."""
    size = int.from_bytes((yield from tape.take(8)), "little")
    if size > _MAX_HEADER:
        yield from tape.skip(size)
        return Facts()
    try:
        header = json.loads((yield from tape.take(size)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = max(ends, default=0)
        if not isinstance(end, int) or end < 0:
            raise tape.garbled()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise tape.garbled() from None
    yield from tape.skip(end)
    if not (yield from tape.exhausted()):
        raise Damaged("the safetensors file is longer than its header says")
    return Facts()
