"""A proxy in front of PostgreSQL that counts round trips, and that can be closed and opened."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit, urlunsplit

SOCKET = ".s.PGSQL.5432"


class Road:
    """`dsn` leads over it. `round_trips` counts how often the server said ReadyForQuery.

    `close` cuts every connection and lets nobody in until `open`. With `swallow` answers do not arrive any
    more although the server has done its work; the connection is cut instead. At round trip number `cut_at`
    that happens once.
    """

    def __init__(self, dsn: str) -> None:
        self._there = urlsplit(dsn)
        # Unix sockets have short names; nobody else may enter the folder.
        self._folder = Path(tempfile.mkdtemp(prefix="comfyflow-road-", dir="/tmp"))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.round_trips = 0
        self.swallow = False
        self.cut_at = 0
        account = self._there.netloc.rpartition("@")[0]
        here = self._there._replace(netloc=f"{account}@", query=f"host={self._folder}")
        self.dsn = urlunsplit(here)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        self.remove()

    def remove(self) -> None:
        """Leave nothing. For whoever opens and closes it by hand."""
        shutil.rmtree(self._folder)

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._folder / SOCKET)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            (self._folder / SOCKET).unlink(missing_ok=True)  # Python 3.13 does that itself
        for writer in self._writers:
            writer.transport.abort()
        if self._serving:
            await asyncio.wait(self._serving)
        await asyncio.sleep(0)  # the loop tells the transports

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder = parse_qs(self._there.query).get("host")
        if folder:
            return await asyncio.open_unix_connection(f"{folder[0]}/.s.PGSQL.{self._there.port or 5432}")
        return await asyncio.open_connection(self._there.hostname, self._there.port or 5432)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass_on(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there, back = await self._connected()
        self._writers.add(back)
        try:
            requests = asyncio.create_task(self._requests(reader, back))
            await self._answers(there, writer)
            requests.cancel()
            await asyncio.wait([requests])
        finally:
            for one in (writer, back):
                one.transport.abort()
                self._writers.discard(one)

    async def _requests(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                back.write(data)
                await back.drain()
        back.transport.abort()

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Whole messages: kind, length, body (PostgreSQL documentation, 54.2)."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := await there.readexactly(5):
                body = await there.readexactly(int.from_bytes(head[1:], "big") - 4)
                self.round_trips += head[:1] == b"Z"
                if self.swallow or (head[:1] == b"Z" and self.round_trips == self.cut_at):
                    return
                writer.write(head + body)
