"""A proxy in front of any server, a real ComfyUI too, with trouble to order."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self, cast

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from .faults import Fault, Faults, abort
from .forwarded import Forwarded, kept
from .tunnel import Tunnel
from .waiting import Waiting
from .wire import Frozen, Line, Valve, Wire

_LONGEST_HEADER = 1 << 20  # bytes: which length is too long is for the server to say
_OWN = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # what aiohttp would add to a request


@dataclass(slots=True, eq=False)
class _Exchange:
    """One request, and the answers that were fetched for it."""

    line: Line
    answers: list[aiohttp.ClientResponse] = field(default_factory=list)

    def close(self) -> None:
        for answer in self.answers:
            answer.close()


class FaultProxy:
    """Between a client and a server: `async with FaultProxy(url) as proxy: ... proxy.url`.

    It passes on everything as it is, bodies in a stream and WebSockets message by message, until trouble is
    ordered: `faults` takes the orders that `Sim.faults` takes, for the requests that come through here. A
    server that cannot be reached, or breaks off before it answers, is a 502, as nginx tells it.

    target: where the server is. port: 0 takes a free one. idle_cut: seconds without a byte after which a
    connection is closed without a word, and a server that is silent for as long is a 504, as nginx (60 s) and
    Cloudflare (100 s) do; None for never. ssl_context: for a `target` with https.
    """

    def __init__(
        self,
        target: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        idle_cut: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.target = target
        self.faults = Faults()
        self.refuse_sockets = False  # new WebSockets are reset
        self.requests: Counter[tuple[str, str]] = Counter()  # by method and path, as they came
        self.sent: Counter[str] = Counter()  # POST /prompt by prompt id ("": without one), as passed on
        self.taken: Counter[str] = Counter()  # those that the server answered with 200, by the id it told
        self.sockets_opened = 0
        self._waiting = Waiting()
        self._wire = Wire(host, port, self._waiting.notify)
        self._wire.idle_cut = idle_cut
        self._ssl = ssl_context
        self._handling: set[asyncio.Task[None]] = set()  # one for each request
        self._tunnels: dict[Tunnel, Line] = {}
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    # Life

    @property
    def url(self) -> str:
        """The address to give to a client in place of `target`."""
        path = URL(self.target).raw_path.rstrip("/")
        return f"http://{self._wire.host}:{self._wire.port}{path}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. OSError when the port is taken."""
        app = web.Application(client_max_size=0)  # no limit
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=0.001,  # aiohttp takes 0 for "wait for ever"
            auto_decompress=False,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )
        await self._runner.setup()
        self._session = self._new_session()
        await self.accept()

    async def stop(self) -> None:
        """Close the port and reset every connection. Nothing of it is left."""
        self._wire.shut()
        self._wire.cut()
        while self._handling:  # aiohttp leaves alone what works on a request whose connection is gone
            for task in self._handling:
                task.cancel()
            await asyncio.wait(self._handling)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.faults.clear()  # not before: what hangs is given up, not passed on at the last moment
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _new_session(self) -> aiohttp.ClientSession:
        # A connection of its own for each request: one that was kept might be closed by the server just now.
        connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=self._ssl or True)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            auto_decompress=False,
            skip_auto_headers=_OWN,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )

    # Requests

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.transport is None:
            return web.Response(status=503)  # whoever asked is gone already
        self.requests[request.method, request.path] += 1
        fault = self.faults.take(request.method, self._short(request.path))
        self._waiting.notify()
        task = cast(asyncio.Task[None], asyncio.current_task())
        self._handling.add(task)
        line = cast(Valve, request.transport).line
        exchange = _Exchange(line)
        line.busy, line.on_lost = True, exchange.close
        try:
            return await self._answer(request, fault, exchange)
        finally:
            line.busy, line.on_lost = False, None
            exchange.close()
            self._handling.discard(task)
            self._waiting.notify()

    def _short(self, path: str) -> str:
        """The path that orders name: without the target's own path and /api."""
        path = path.removeprefix(URL(self.target).path.rstrip("/"))
        return path.removeprefix("/api") or path

    async def _answer(
        self, request: web.Request, fault: Fault | None, exchange: _Exchange
    ) -> web.StreamResponse:
        handler = partial(self._forward, exchange)
        response = await (handler(request) if fault is None else fault.effect(request, handler, fault))
        if isinstance(response, Forwarded):
            with suppress(ConnectionError):  # whoever asked is gone
                if not await response.pass_on(request):
                    exchange.line.drop()
        return response

    async def _forward(self, exchange: _Exchange, request: web.Request) -> web.StreamResponse:
        """Ask the server. The body of its answer is still to come, but for that to a prompt."""
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._relay(exchange, request)
            async with asyncio.timeout(self.idle_cut):
                if request.method == "POST" and self._short(request.path) == "/prompt":
                    return await self._prompt(request)
                answer = await self._ask(request, request.content if request.can_read_body else None)
        except TimeoutError:
            return web.Response(status=504, text="504 Gateway Time-out")
        except (aiohttp.ClientError, OSError) as error:
            return _refusal(error)
        exchange.answers.append(answer)
        return Forwarded(answer, silence=self.idle_cut)

    async def _ask(
        self, request: web.Request, body: io.BytesIO | aiohttp.StreamReader | None
    ) -> aiohttp.ClientResponse:
        assert self._session is not None
        return await self._session.request(
            request.method,
            self._address(request),
            headers=self._headers(request),
            data=body,
            allow_redirects=False,
        )

    def _address(self, request: web.Request) -> URL:
        return URL(str(URL(self.target).origin()) + request.raw_path, encoded=True)

    def _headers(self, request: web.Request) -> CIMultiDict[str]:
        """Those of the client. The server sees its own name in Host, and in an Origin that is the proxy's."""
        headers = kept(request.headers, "Host")
        if headers.get("Origin") == f"http://{request.headers.get('Host')}":
            headers["Origin"] = str(URL(self.target).origin())
        return headers

    async def _prompt(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked = _prompt_id(body)
        self.sent[asked] += 1
        try:
            answer = await self._ask(request, io.BytesIO(body))
        except aiohttp.ClientConnectorError:
            self.sent[asked] -= 1  # it has not left
            raise
        async with answer:
            data = await answer.read()
        if answer.status == web.HTTPOk.status_code:
            self.taken[_prompt_id(data)] += 1
        return Forwarded(answer, data=data)

    async def _relay(self, exchange: _Exchange, request: web.Request) -> web.StreamResponse:
        if self.refuse_sockets:
            abort(request)
            return web.Response(status=503)
        async with self._new_session() as session:  # its own: closing it is the only way to be abrupt
            async with asyncio.timeout(self.idle_cut):
                headers = self._headers(request)
                tunnel = await Tunnel.dig(session, request, self._address(request), headers)
            exchange.line.busy = False
            self._tunnels[tunnel] = exchange.line
            self.sockets_opened += 1
            self._waiting.notify()
            try:
                await tunnel.relay()
            finally:
                del self._tunnels[tunnel]
        return tunnel.here

    # Trouble

    @property
    def idle_cut(self) -> float | None:
        """Seconds of silence after which a connection is closed, None for never. May be set at any time."""
        return self._wire.idle_cut

    @idle_cut.setter
    def idle_cut(self, seconds: float | None) -> None:
        """Seconds, None for never; silence so far counts."""
        self._wire.idle_cut = seconds

    def cut(self) -> None:
        """Reset every connection. New ones are taken."""
        self._wire.cut()

    def cut_sockets(self) -> None:
        """Reset every WebSocket, without a close frame."""
        for line in list(self._tunnels.values()):
            line.cut()

    async def close_sockets(self, code: int = 1001) -> None:
        """Close every WebSocket politely, as a proxy that restarts does."""
        for tunnel in list(self._tunnels):
            await tunnel.here.close(code=code)

    def deafen(self) -> None:
        """The WebSockets open now stay open, pings are answered, and nothing else arrives from the server;
        later ones work."""
        for tunnel in self._tunnels:
            tunnel.deaf = True

    def freeze(self, *, lost: bool = True, new: bool = True) -> None:
        """Half-open: connections stand, nobody gets a FIN, and no byte comes through, until `thaw`.

        lost: the bytes vanish, as behind a router that has forgotten the connection; without it they wait,
        as while a cable is unplugged. new: so do connections that are opened later; without it they work.
        """
        self._wire.freeze(Frozen.LOST if lost else Frozen.HELD, new=new)

    def thaw(self) -> None:
        """Let bytes through again. Connections that lost some are reset: their next byte would be out of
        place."""
        self._wire.thaw()

    async def refuse(self) -> None:
        """As a dead server: every connection is reset, new ones are refused, until `accept`."""
        self._wire.shut()
        self._wire.cut()

    async def accept(self) -> None:
        """Take connections again, on the same port."""
        assert self._runner is not None
        await self._wire.listen(cast(Callable[[], asyncio.Protocol], self._runner.server))

    # What tests ask

    @property
    def cuts(self) -> int:
        """How many connections were cut here: by orders, for silence, for an answer that broke off."""
        return self._wire.cuts

    @property
    def lost(self) -> int:
        """How many bytes have vanished in frozen connections."""
        return self._wire.lost

    @property
    def sockets(self) -> int:
        """How many WebSockets are open."""
        return len(self._tunnels)

    async def wait_for(self, condition: Callable[[], bool], *, timeout: float = 10.0) -> None:
        """Wait until `condition` holds; it is asked again whenever anything happens here.

        TimeoutError after `timeout` seconds. Cancelling this wait changes nothing.
        """
        await self._waiting.until(condition, timeout)

    async def wait_sockets(self, count: int = 1) -> None:
        """Wait until exactly `count` WebSockets are open."""
        await self.wait_for(lambda: len(self._tunnels) == count)


def _refusal(error: Exception) -> web.Response:
    """What a client gets whose server cannot be reached, or has refused a WebSocket."""
    if not isinstance(error, aiohttp.WSServerHandshakeError) or error.status == 101:
        return web.Response(status=502, text=f"502 Bad Gateway: {str(error) or type(error).__name__}")
    headers = kept(error.headers or {}, "Content-Length", "Content-Encoding", "Content-Type")
    return web.Response(status=error.status, headers=headers)


def _prompt_id(body: bytes) -> str:
    """The prompt id in a request or an answer, "" where there is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    return str(found.get("prompt_id") or "") if isinstance(found, dict) else ""
