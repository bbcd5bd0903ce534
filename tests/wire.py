"""A relay between a client and PostgreSQL that counts round trips, remembers what the client sent, and may
change what the server says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit, urlunsplit


def unchanged(data: bytes) -> bytes:
    return data


def as_pooler(data: bytes) -> bytes:
    """What a pooler does to BackendKeyData ("K", length 12): the process id is not the server's."""
    place = data.find(b"K\x00\x00\x00\x0c")
    return data if place < 0 else data[: place + 5] + b"\x00\x00\x00\x01" + data[place + 9 :]


class Relay:
    """`dsn` leads to the same database, through here. `connected` counts connections, `answers` the times
    that the server was ready for the next query: one for each round trip."""

    def __init__(self, target: str, change: Callable[[bytes], bytes] = unchanged) -> None:
        self._target = urlsplit(target)
        self._change = change
        self.sent = bytearray()
        self.answers = 0
        self.connected = 0
        self.dsn = ""
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        netloc = f"{self._target.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
        self.dsn = urlunsplit(self._target._replace(netloc=netloc, query="sslmode=disable"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        if self._serving:
            await asyncio.wait(self._serving)
        await asyncio.sleep(0)  # the loop tells the transports

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        self._serving.add(asyncio.create_task(self._relay(reader, writer)))

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await self._dial()
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back, self._note), self._pump(there, writer, self._answer))

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        query = parse_qs(self._target.query)
        if "host" in query:
            port = query.get("port", ["5432"])[0]
            return await asyncio.open_unix_connection(f"{query['host'][0]}/.s.PGSQL.{port}")
        return await asyncio.open_connection(self._target.hostname, self._target.port or 5432)

    @staticmethod
    async def _pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(change(data))
                await sink.drain()
        sink.close()

    def _note(self, data: bytes) -> bytes:
        self.sent += data
        return data

    def _answer(self, data: bytes) -> bytes:
        self.answers += data.count(b"Z\x00\x00\x00\x05")
        return self._change(data)
