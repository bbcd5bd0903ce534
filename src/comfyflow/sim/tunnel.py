"""A WebSocket through a proxy: message by message, both ways, of any size, pings and close frames too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import WSMsgType, web
from multidict import CIMultiDict
from yarl import URL

from .faults import abort_softly

_CLOSE_TIMEOUT = 2.0  # s that either side has to answer a close frame
_DATA = (WSMsgType.TEXT, WSMsgType.BINARY)
_PASSED_ON = (*_DATA, WSMsgType.PING, WSMsgType.PONG)
# Both take and give messages as bytes: text is not decoded, so it need not be text.
_Here = web.WebSocketResponse[bool]
_There = aiohttp.ClientWebSocketResponse[bool]
_Wanted = Callable[[WSMsgType], bool]


@dataclass(frozen=True, slots=True)
class _Farewell:
    """A close frame."""

    code: int
    reason: bytes


@dataclass(slots=True, eq=False)
class Tunnel:
    """One WebSocket: `here` to the client, `there` to the server. `deaf`: the client gets no more data."""

    request: web.Request
    here: _Here
    there: _There
    deaf: bool = False

    @classmethod
    async def dig(
        cls, session: aiohttp.ClientSession, request: web.Request, url: URL, headers: CIMultiDict[str]
    ) -> Tunnel:
        """Connect to the server, then answer the client. aiohttp.ClientError when the server refuses."""
        asked = headers.popall("Sec-WebSocket-Protocol", [])
        for name in [name for name in headers if name.lower().startswith("sec-websocket-")]:
            headers.popall(name, None)
        there = await session.ws_connect(
            url,
            headers=headers,
            protocols=[name.strip() for name in ",".join(asked).split(",") if name.strip()],
            timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT),
            autoping=False,
            autoclose=False,
            max_msg_size=0,
            decode_text=False,
        )
        here = web.WebSocketResponse(
            timeout=_CLOSE_TIMEOUT,
            protocols=[there.protocol] if there.protocol else [],
            autoping=False,
            autoclose=False,
            compress=False,
            max_msg_size=0,
            decode_text=False,
        )
        await here.prepare(request)
        return cls(request, here, there)

    async def relay(self) -> None:
        """Pass messages on until one side is gone; then the other learns of it in the same way."""
        ways = [asyncio.create_task(self._up()), asyncio.create_task(self._down())]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
        farewell = next((way.result() for way in done if way.result()), None)
        if farewell is None:
            abort_softly(self.request)  # whoever opened the session of `there` closes it as abruptly
            return
        await self.there.close(code=farewell.code, message=farewell.reason)
        await self.here.close(code=farewell.code, message=farewell.reason)

    async def _up(self) -> _Farewell | None:
        return await _pump(self.here, self.there, lambda kind: True)

    async def _down(self) -> _Farewell | None:
        return await _pump(self.there, self.here, lambda kind: not (self.deaf and kind in _DATA))


async def _pump(source: _Here | _There, sink: _Here | _There, wanted: _Wanted) -> _Farewell | None:
    """Pass on what comes from `source`: until its close frame, or None when one of them is gone."""
    while True:
        message = await source.receive()
        if message.type is WSMsgType.CLOSE:
            # aiohttp has 0 where the frame named no code
            return _Farewell(message.data or aiohttp.WSCloseCode.OK, (message.extra or "").encode())
        if message.type not in _PASSED_ON:
            return None
        if wanted(message.type):
            try:
                await sink.send_frame(message.data, message.type)
            except ConnectionError:
                return None
