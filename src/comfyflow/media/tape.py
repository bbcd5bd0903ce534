"""Bytes that arrived and are not read yet, and how a walk over them is told."""

from __future__ import annotations

import re
import zlib
from collections.abc import Generator
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")
Walk = Generator[None, None, _T]
"""A reader of a tape: it yields when it needs more bytes."""


class Damaged(Exception):
    """The file is certainly not what it should be; `reason` says why in half a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Facts(NamedTuple):
    """What a container says of its content: pixels and seconds."""

    width: int | None = None
    height: int | None = None
    duration: float | None = None


class Tape:
    """The bytes that arrived and are not read yet.

    Walkers are generators that read from here and yield when they need more: so each format is one straight
    story. `label` is what the file is called in an error, `at` counts the bytes that were read.
    """

    __slots__ = ("_unread", "at", "ended", "label")

    def __init__(self) -> None:
        self._unread = memoryview(b"")
        self.at = 0
        self.ended = False
        self.label = "file"

    def push(self, chunk: bytes) -> None:
        """Add the next bytes of the file."""
        self._unread = memoryview(b"".join((self._unread, chunk)) if self._unread else chunk)

    def grow(self) -> Walk[None]:
        """Wait for more bytes; where none come any more the file is cut short."""
        if self.ended:
            raise Damaged(f"the {self.label} is cut short after {self.at + len(self._unread)} bytes")
        yield

    def peek(self, size: int) -> Walk[bytes]:
        """The next `size` bytes without reading them; fewer at the end of the file."""
        while len(self._unread) < size and not self.ended:
            yield
        return bytes(self._unread[:size])

    def take(self, size: int) -> Walk[bytes]:
        """Read exactly `size` bytes; they are held in memory."""
        while len(self._unread) < size:
            yield from self.grow()
        data = bytes(self._unread[:size])
        self.advance(size)
        return data

    def skip(self, size: int) -> Walk[None]:
        """Read `size` bytes without a look at them."""
        yield from self.crc(size, None)

    def crc(self, size: int, value: int | None) -> Walk[int]:
        """Read `size` bytes in big steps, going on with the CRC-32 `value` (None: no CRC wanted)."""
        while size:
            piece = self._unread[:size]
            value = None if value is None else zlib.crc32(piece, value)
            size -= len(piece)
            self.advance(len(piece))
            if size:
                yield from self.grow()
        return value or 0

    def seek(self, pattern: re.Pattern[bytes]) -> Walk[None]:
        """Read up to the next place where the two-byte `pattern` fits."""
        while not (match := pattern.search(self._unread)):
            self.advance(max(len(self._unread) - 1, 0))
            yield from self.grow()
        self.advance(match.start())

    def skip_blocks(self) -> Walk[None]:
        """Read GIF sub-blocks, each with its length in front, up to the empty one."""
        while True:
            view, at = self._unread, 0
            while at < len(view) and (size := view[at]):
                at += size + 1
            if at < len(view):
                self.advance(at + 1)
                return
            self.advance(len(view))
            yield from self.skip(at - len(view))
            if not self._unread:
                yield from self.grow()

    def rest(self) -> Walk[None]:
        """Read everything that still comes."""
        while True:
            self.advance(len(self._unread))
            if self.ended:
                return
            yield

    def exhausted(self) -> Walk[bool]:
        """Whether the file ends here."""
        return not (yield from self.peek(1))

    def garbled(self) -> Damaged:
        """The error for bytes that mean nothing at this place."""
        return Damaged(f"the {self.label} is garbled near byte {self.at}")

    def advance(self, size: int) -> None:
        """Read `size` bytes that are there."""
        self._unread = self._unread[size:]
        self.at += size
