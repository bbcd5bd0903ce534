"""A real server's answer on its way through a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

# Headers about one connection, not about what is sent (RFC 9110, 7.6.1). Expect is answered by the proxy.
_HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade", "expect",
}  # fmt: skip


def kept(headers: Mapping[str, str], *besides: str) -> CIMultiDict[str]:
    """The headers that a proxy passes on: not those that Connection names, nor those `besides`."""
    gone = _HOP_BY_HOP.union(name.lower() for name in besides)
    gone |= {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in gone)


class Forwarded(web.StreamResponse):
    """An answer whose head has come, and whose body is passed on as it comes, byte for byte.

    data: the body, where it has been read already. silence: seconds that the body may stand still before the
    proxy gives up, None for ever.
    """

    def __init__(
        self, answer: aiohttp.ClientResponse, *, data: bytes | None = None, silence: float | None = None
    ) -> None:
        super().__init__(status=answer.status, reason=answer.reason, headers=kept(answer.headers))
        self._answer, self._data, self._silence = answer, data, silence

    async def whole(self) -> bytes:
        """The body, in memory. aiohttp.ClientError when the server breaks it off."""
        return await self._answer.read() if self._data is None else self._data

    async def pass_on(self, request: web.BaseRequest) -> bool:
        """Send it to the client; False when the server broke it off or stood still."""
        await self.prepare(request)
        while block := await self._next():
            await self.write(block)
        if block is None:
            return False
        await self.write_eof()
        return True

    async def _next(self) -> bytes | None:
        """What comes next, b"" at the end, None when it breaks off."""
        if self._data is not None:
            data, self._data = self._data, b""
            return data
        try:
            async with asyncio.timeout(self._silence):
                return await self._answer.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
