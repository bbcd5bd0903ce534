"""The TCP connections of a proxy, and what a network does to them: resets, silence, forgotten connections.

`Wire` listens; each connection is a `Line`, which stands between the network and the HTTP server and lets
bytes through, loses them, or holds them back.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Any, cast

_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # on, 0 s: close() sends a reset, not a FIN


class Frozen(Enum):
    """What happens to the bytes of a connection that is frozen."""

    LOST = auto()  # they vanish, both ways
    HELD = auto()  # they arrive later


def reset(transport: asyncio.BaseTransport) -> None:
    """End a connection at once, with a reset (RST), whatever was still to be sent."""
    if isinstance(transport, Valve):
        transport.abort()
        return
    here = transport.get_extra_info("socket")
    if here is not None and here.fileno() != -1:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    cast(asyncio.Transport, transport).abort()


class Wire:
    """A port and its connections. `inner` makes the protocol that serves one connection."""

    def __init__(self, host: str, port: int, changed: Callable[[], None]) -> None:
        self.host, self.port, self.changed = host, port, changed
        self.lines: set[Line] = set()
        self.cuts = 0
        self.lost = 0  # bytes
        self.frozen_new: Frozen | None = None  # what new connections start with
        self._idle_cut: float | None = None
        self._server: asyncio.Server | None = None

    @property
    def idle_cut(self) -> float | None:
        """Seconds of silence after which a connection is closed, None for never."""
        return self._idle_cut

    @idle_cut.setter
    def idle_cut(self, seconds: float | None) -> None:
        self._idle_cut = seconds
        for line in list(self.lines):
            line.watch()

    async def listen(self, inner: Callable[[], asyncio.Protocol]) -> None:
        """Take connections; the port stays the same from the first time on."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: Line(self, inner()), self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Close the port: new connections are refused. Those that stand are not touched."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def cut(self) -> None:
        """Reset every connection."""
        for line in list(self.lines):
            line.cut()

    def freeze(self, kind: Frozen, *, new: bool) -> None:
        """Freeze every connection, and, with `new`, those that come later."""
        self.frozen_new = kind if new else None
        for line in list(self.lines):
            line.freeze(kind)

    def thaw(self) -> None:
        """Let bytes through again."""
        self.frozen_new = None
        for line in list(self.lines):
            line.thaw()


class Line(asyncio.Protocol):
    """One connection, between the network and the protocol that serves it."""

    def __init__(self, wire: Wire, inner: asyncio.Protocol) -> None:
        self._wire, self._inner = wire, inner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._frozen: Frozen | None = None
        self._held: list[bytes] = []
        self._damaged = False  # bytes were lost: no side can make sense of the rest
        self._closing = False  # the server closed it while it was frozen
        self._over = False  # the network closed it
        self._full = self._told_full = False
        self._reading = True
        self._seen = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None
        self.busy = False  # a request is being worked on: somebody else counts how long that takes

    # From the network

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._wire.lines.add(self)
        self._inner.connection_made(Valve(self, self._transport))
        if self._wire.frozen_new is not None:
            self.freeze(self._wire.frozen_new)
        self.watch()

    def data_received(self, data: bytes) -> None:
        self._seen = self._loop.time()
        if self._frozen is Frozen.LOST:
            self._lose(data)
        else:
            self._inner.data_received(data)

    def _lose(self, data: bytes) -> None:
        self._damaged = True
        self._wire.lost += len(data)
        self._wire.changed()

    def eof_received(self) -> bool | None:
        if self._frozen is Frozen.LOST:
            self._damaged = True
            return True
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._frozen is not Frozen.LOST:
            self._lost(exc)

    def _lost(self, exc: Exception | None) -> None:
        self._wire.lines.discard(self)
        self._inner.connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()
        self._wire.changed()

    def pause_writing(self) -> None:
        self._full = True
        self._flow()

    def resume_writing(self) -> None:
        self._full = False
        self._flow()

    def _flow(self) -> None:
        full = self._full or self._frozen is Frozen.HELD
        if full != self._told_full:
            self._told_full = full
            (self._inner.pause_writing if full else self._inner.resume_writing)()

    # From the server

    @property
    def closing(self) -> bool:
        return self._closing or self._over or self._transport.is_closing()

    def send(self, data: bytes) -> None:
        self._seen = self._loop.time()
        if self._frozen is Frozen.LOST:
            self._lose(data)
        elif self._frozen is Frozen.HELD:
            self._held.append(bytes(data))
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close after what was sent; nobody hears of it while the line is frozen."""
        self._closing = True
        if self._frozen is None:
            self._transport.close()

    def abort(self) -> None:
        """Reset; nobody hears of it while the line is frozen."""
        self._closing = True
        if self._frozen is None:
            reset(self._transport)
        else:
            self._damaged = True

    def read(self, on: bool) -> None:
        """Whether the server wants to read just now."""
        self._reading = on
        if self._frozen is not Frozen.HELD:
            (self._transport.resume_reading if on else self._transport.pause_reading)()

    # Trouble

    def freeze(self, kind: Frozen) -> None:
        if self._frozen is None:
            self._frozen = kind
            if kind is Frozen.HELD:
                self._transport.pause_reading()
                self._flow()

    def thaw(self) -> None:
        """Go on. A connection that has lost bytes is reset, as a router does that has forgotten it."""
        frozen, self._frozen = self._frozen, None
        if self._over:
            self._lost(None)
        elif self._damaged:
            reset(self._transport)
        elif frozen is Frozen.HELD:
            self._go_on()
        elif self._closing:
            self._transport.close()

    def _go_on(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(b"".join(held))
        self._flow()
        if self._reading:
            self._transport.resume_reading()
        if self._closing:
            self._transport.close()

    def cut(self) -> None:
        """Reset, frozen or not."""
        frozen, self._frozen = self._frozen, None
        self._wire.cuts += 1
        if self._over and frozen is not None:
            self._lost(None)
        else:
            reset(self._transport)

    def watch(self) -> None:
        """Close the connection after it was silent for too long, without a word, as nginx does."""
        if self._timer is not None:
            self._timer.cancel()
        limit = self._wire.idle_cut
        if limit is None or self._over:
            return
        left = self._seen + limit - self._loop.time()
        if left <= 0 and not self.busy and self._frozen is None:
            self.drop()
            return
        self._timer = self._loop.call_later(left if left > 0 else limit, self.watch)

    def drop(self) -> None:
        """Close without a word, and count it as a cut."""
        self._wire.cuts += 1
        self.close()


class Valve(asyncio.Transport):
    """The transport that the server sees."""

    def __init__(self, line: Line, transport: asyncio.Transport) -> None:
        super().__init__()
        self.line, self._real = line, transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._real.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self.line.closing

    def close(self) -> None:
        self.line.close()

    def abort(self) -> None:
        self.line.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.line.send(cast(bytes, data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.line.send(b"".join(list_of_data))

    def is_reading(self) -> bool:
        return self._real.is_reading()

    def pause_reading(self) -> None:
        self.line.read(False)

    def resume_reading(self) -> None:
        self.line.read(True)

    def get_write_buffer_size(self) -> int:
        return self._real.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._real.set_write_buffer_limits(high, low)
