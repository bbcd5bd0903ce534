"""A file that is read exactly, within bounds, and the texts in it."""

from __future__ import annotations

import json
import zlib
from typing import Any, BinaryIO

from ..errors import WorkflowInvalid

MAX_TEXT = 64 * 1024 * 1024  # bytes of metadata that are read from one file, inflated ones too
MAX_PARTS = 200_000  # chunks, boxes, elements or entries that are looked at in one file

KEYS = ("prompt", "workflow")


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def unwrapped(text: str) -> str:
    """JSON that was written as a JSON string once more, or twice (videos saved again by older ComfyUI)."""
    for _ in range(3):
        if not text.startswith('"'):
            break
        try:
            text = as_text(json.loads(text))
        except ValueError:
            break
    return text


def decoded(data: bytes) -> str:
    """UTF-8, as the page reads every text, else Latin-1, as PNG has it."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


class Reader:
    """A file that is read exactly, or the reading ends with one sentence."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._file = file
        self.kind = kind
        self._texts = 0
        self._parts = 0
        self.size = file.seek(0, 2)
        self.at = 0

    def cut(self) -> WorkflowInvalid:
        return WorkflowInvalid(
            f"this {self.kind} ends in the middle, at byte {self.size}, before a workflow was found: "
            "copy or download it again"
        )

    def damaged(self, why: str) -> WorkflowInvalid:
        return WorkflowInvalid(f"this {self.kind} is damaged ({why}): use the original file")

    def read(self, count: int) -> bytes:
        if count > MAX_TEXT:
            raise self.damaged(f"it announces {count} bytes of metadata")
        if self.at + count > self.size:
            raise self.cut()
        self._file.seek(self.at)
        self.at += count
        data = self._file.read(count)
        if len(data) < count:  # it became shorter since
            raise self.cut()
        return data

    def number(self, width: int) -> int:
        """An unsigned number of `width` bytes, the highest first."""
        return int.from_bytes(self.read(width), "big")

    def text(self, count: int) -> bytes:
        """Like `read`, for what is kept."""
        self.weigh(count)
        return self.read(count)

    def weigh(self, count: int) -> None:
        self._texts += count
        if self._texts > MAX_TEXT:
            raise self.damaged(f"it holds more than {MAX_TEXT >> 20} MiB of metadata")

    def inflated(self, data: bytes) -> bytes:
        stream = zlib.decompressobj()
        try:
            made = stream.decompress(data, MAX_TEXT + 1)
        except zlib.error as error:
            raise self.damaged("a text in it cannot be inflated") from error
        self.weigh(len(made))
        return made

    def more(self) -> bool:
        """Whether there is another part; counts them."""
        self.count()
        return self.at < self.size

    def count(self) -> None:
        """One part more: this bounds the walk, whatever the sizes in the file say."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise self.damaged(f"it has more than {MAX_PARTS} parts")
