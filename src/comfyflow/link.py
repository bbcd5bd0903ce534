"""The WebSocket of one server: kept open, read without pause, replaced when it is lost or deaf.

Memory: one frame may have MAX_FRAME_SIZE bytes (a larger one closes the socket, and polling goes on). Unread
are those of one read from the system (256 KiB, and the rest of a frame): our reader takes all that are there
each time. ComfyUI itself sets no limit: 32 MiB frames were seen whole [31].
"""

from __future__ import annotations

import ssl as tls
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

MAX_FRAME_SIZE = 64 * 2**20  # bytes
# Unread frames at which the library stops reading. Small on purpose it would cost two system calls for every
# burst of a few frames, and a fifth of the time until the last of them is seen.
MAX_FRAMES = 4096
PING_EVERY, PING_TIMEOUT = (
    30.0,
    60.0,
)  # s; the server freezes for 0.8-1.6 s as a habit, far longer while loading models
RETRY_FIRST, RETRY_CEILING = 0.2, 10.0  # s between connection attempts
STEADY_AFTER = 5.0  # s: a socket that held that long starts the waits again from the first


class _Connect(connect):
    """No redirects: the library would send our credentials on to the other address."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Link:
    """One socket at a time, for ever. `on_frame` and `on_live` are called in the reader and must not
    block."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        hello: str,
        on_frame: Callable[[str | bytes], None],
        on_live: Callable[[bool], None],
        connect_timeout: float | None,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        """`hello` is the first message of each connection, `connect_timeout` in seconds."""
        self._url, self._headers, self._hello, self._ssl = url, headers, hello, ssl
        self._on_frame, self._on_live, self._connect_timeout = on_frame, on_live, connect_timeout
        self._socket: ClientConnection | None = None
        self.tried = anyio.Event()  # the first attempt has been made, with or without success
        self.error: str | None = None  # why there is no socket just now

    async def run(self) -> None:
        """Connect, read, connect again, until cancelled; then the socket is closed."""
        wait = RETRY_FIRST
        try:
            while True:
                began = anyio.current_time()
                await self._once()
                wait = RETRY_FIRST if anyio.current_time() - began > STEADY_AFTER else wait
                await anyio.sleep(wait)
                wait = min(wait * 2, RETRY_CEILING)
        finally:
            self.tried.set()

    def replace(self) -> None:
        """Give up the socket. It is closed BEFORE the next one is opened: a server drops the registration of
        a client id when the older of two sockets closes, and the newer stays deaf for ever [24]."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def _once(self) -> None:
        try:
            async with self._opener() as socket:
                self._socket, self.error = socket, None
                await self._read(socket)
        except (OSError, WebSocketException, TimeoutError) as error:
            self.error = str(error) or type(error).__name__
        finally:
            self.tried.set()
            if self._socket is not None:
                self._socket.transport.abort()  # a cancelled reader does not get to the end of a polite close
                self._socket = None
                self._on_live(False)

    async def _read(self, socket: ClientConnection) -> None:
        await socket.send(self._hello)
        self._on_live(True)
        self.tried.set()
        while True:
            self._on_frame(await socket.recv())

    def _opener(self) -> connect:
        options: dict[str, Any] = {} if self._ssl is None else {"ssl": self._ssl}
        return _Connect(
            self._url,
            additional_headers=dict(self._headers),
            open_timeout=self._connect_timeout,
            compression=None,
            max_size=MAX_FRAME_SIZE,
            max_queue=MAX_FRAMES,
            ping_interval=PING_EVERY,
            ping_timeout=PING_TIMEOUT,
            close_timeout=1.0,  # do not hold up our own exit for a server that does not answer the close
            proxy=None,  # as for HTTP: a ComfyUI is addressed directly
            **options,
        )
