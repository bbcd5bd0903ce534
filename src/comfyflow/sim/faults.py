"""Trouble to order: what a server, a proxy or a disk can do to one request.

An `Effect` is an async function of the request and of the handler that would answer it. It may run the
handler, change what it answers, or do something worse. `Faults.add` says for which requests, and how often::

    sim.faults.add("POST", "/prompt", reset_after())            # taken, but nobody hears of it
    sim.faults.add("GET", "/view", truncate(100), times=2)      # the first two downloads break off
    fault = sim.faults.add("GET", "/queue", stall())            # hangs until fault.release()

Paths are those without base path and `/api`, and may be patterns ("/history*"). "/ws" is the socket's
upgrade.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from aiohttp import web

from .folders import Stored
from .forwarded import Forwarded
from .wire import reset as reset_now

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Effect = Callable[[web.Request, Handler, "Fault"], Awaitable[web.StreamResponse]]
LOGIN_PAGE = (
    "<!DOCTYPE html><html><head><title>Log in</title></head><body><form>Password</form></body></html>"
)


@dataclass(slots=True, eq=False)
class Fault:
    """One order. `hits` counts the requests that met it; `left` the times it still has, None for ever."""

    method: str
    path: str
    effect: Effect
    left: int | None
    skip: int
    hits: int = 0
    _met: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let everything go on that waits in `stall`."""
        self._released.set()

    async def released(self) -> None:
        """Wait for `release`. For effects."""
        await self._released.wait()

    async def met(self) -> None:
        """Wait until a request has met this fault. Cancelling this wait changes nothing."""
        await self._met.wait()

    def meet(self, method: str, path: str) -> bool:
        """Whether this request is one of those ordered; counts it when it is. For `Faults`."""
        if self.method not in ("*", method) or not fnmatchcase(path, self.path) or self.left == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        self.hits += 1
        self._met.set()
        return True


class Faults:
    """The orders of one simulator, the oldest first."""

    def __init__(self) -> None:
        self._orders: list[Fault] = []
        self._names: list[str] = []
        self.aliases: dict[str, Path] = {}

    def add(self, method: str, path: str, effect: Effect, *, times: int | None = 1, skip: int = 0) -> Fault:
        """Order `effect` for the next `times` requests (None: for ever) after the first `skip` matching
        ones."""
        fault = Fault(method, path, effect, times, skip)
        self._orders.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all orders and let go of what they hold."""
        for fault in self._orders:
            fault.release()
        self._orders.clear()
        self._names.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The order that this request meets. For the server."""
        if not self._orders:
            return None
        return next((fault for fault in self._orders if fault.meet(method, path)), None)

    def rename(self, *names: str) -> None:
        """Report the next files that nodes write under these names, however hostile; /view answers them with
        the file."""
        self._names += names

    def reported(self, name: str, path: Path) -> str:
        """The name under which a file just written is reported. For the nodes."""
        if not self._names:
            return name
        alias = self._names.pop(0)
        self.aliases[alias] = path
        return alias


def abort(request: web.Request) -> None:
    """Cut the connection below a request, with a reset."""
    if request.transport is not None:
        reset_now(request.transport)


async def _nothing(request: web.Request) -> web.StreamResponse:
    """End a request whose connection is gone."""
    abort(request)
    return web.Response(status=500)


# Effects on any request


def reset() -> Effect:
    """The connection is cut before the request is handled."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        return await _nothing(request)

    return effect


def reset_after() -> Effect:
    """The request is handled, then the connection is cut before the answer: nobody knows that it was
    taken."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        await handler(request)
        return await _nothing(request)

    return effect


def stall(*, after: bool = False) -> Effect:
    """Hang until the fault is released, before the request is handled or (`after`) between handling and
    answer."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        if not after:
            await fault.released()
            return await handler(request)
        response = await handler(request)
        await fault.released()
        return response

    return effect


def delay(seconds: float) -> Effect:
    """Answer as usual, `seconds` later."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await handler(request)

    return effect


def answer(
    status: int,
    body: str | bytes = b"",
    *,
    content_type: str = "text/html",
    headers: Mapping[str, str] | None = None,
    after: bool = False,
) -> Effect:
    """A canned answer instead of the server's; `after` handles the request first, as a proxy that gave up
    does."""
    data = body.encode() if isinstance(body, str) else body

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        if after:
            await handler(request)
        return web.Response(
            status=status, body=data, headers={"Content-Type": content_type, **(headers or {})}
        )

    return effect


def login_page() -> Effect:
    """The 200 of a portal that wants a password first."""
    return answer(200, LOGIN_PAGE)


def redirect(location: str, status: int = 302) -> Effect:
    """A redirect, for example to another origin."""
    return answer(status, headers={"Location": location})


# Effects on the body of /view. They answer from the whole file in memory: order them for small files.


@dataclass(slots=True)
class Body:
    """An answer of /view before it is sent: the part of the file asked for, and its headers."""

    status: int
    headers: dict[str, str]
    data: bytes
    length: int | None = None  # Content-Length to claim; None: the true one
    cut: bool = False  # the connection is cut after `data`


async def _body(request: web.Request, handler: Handler) -> Body:
    """Ask the handler, and read what it would send. An error answer keeps its empty body."""
    response = await handler(request)
    if isinstance(response, Forwarded):
        return await _forwarded_body(request, response)
    if not isinstance(response, Stored):
        data = (
            response.body if isinstance(response, web.Response) and isinstance(response.body, bytes) else b""
        )
        return Body(response.status, dict(response.headers), data)
    path = response.path
    whole = await asyncio.to_thread(path.read_bytes)
    stamp = path.stat()
    headers = dict(response.headers) | {
        "Etag": f'"{stamp.st_mtime_ns:x}-{stamp.st_size:x}"',
        "Accept-Ranges": "bytes",
    }
    asked = request.headers.get("If-Match")
    if asked not in (None, "*", headers["Etag"]):
        return Body(412, dict(response.headers), b"")
    return _ranged(request, headers, whole)


async def _forwarded_body(request: web.Request, response: Forwarded) -> Body:
    """The answer of a real server, which has seen to ranges and conditions itself."""
    length = response.content_length if request.method == "HEAD" else None
    return Body(response.status, dict(response.headers), await response.whole(), length)


def _ranged(request: web.Request, headers: dict[str, str], whole: bytes) -> Body:
    wanted = request.http_range
    if wanted.start is None and wanted.stop is None:
        return Body(200, headers, whole)
    start, stop, _ = wanted.indices(len(whole))
    if start >= len(whole):
        return Body(416, headers | {"Content-Range": f"bytes */{len(whole)}"}, b"")
    return Body(206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(whole)}"}, whole[start:stop])


def alter(change: Callable[[Body], Body]) -> Effect:
    """Answer /view with what `change` makes of the true answer."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        return await _send(request, change(await _body(request, handler)))

    return effect


async def _send(request: web.Request, body: Body) -> web.StreamResponse:
    response = web.StreamResponse(status=body.status, headers=body.headers)
    response.content_length = len(body.data) if body.length is None else body.length
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    await response.write(body.data)
    if body.cut or response.content_length != len(body.data):
        abort_softly(request)
    return response


def abort_softly(request: web.Request) -> None:
    """Close the connection after what was already written."""
    if request.transport is not None:
        request.transport.close()


def truncate(size: int) -> Effect:
    """Only the first `size` bytes of the answer arrive, then the connection closes."""

    def change(body: Body) -> Body:
        body.length, body.cut = len(body.data), True
        body.data = body.data[:size]
        return body

    return alter(change)


def lie(extra: int) -> Effect:
    """Content-Length claims `extra` bytes more than come (fewer, when negative: then as many come as it
    says)."""

    def change(body: Body) -> Body:
        body.length = len(body.data) + extra
        body.data = body.data[: body.length]
        return body

    return alter(change)


def corrupt(offset: int = -20) -> Effect:
    """One byte of the answer is flipped, its length stays."""

    def change(body: Body) -> Body:
        place = offset % max(len(body.data), 1)
        body.data = body.data[:place] + bytes([body.data[place] ^ 0xFF]) + body.data[place + 1 :]
        return body

    return alter(change)


def zero_tail(size: int) -> Effect:
    """The last `size` bytes are zeros, as a file on a full or crashed disk has them."""

    def change(body: Body) -> Body:
        body.data = body.data[: max(0, len(body.data) - size)] + bytes(min(size, len(body.data)))
        return body

    return alter(change)


def replace_body(data: bytes, content_type: str | None = None) -> Effect:
    """Other bytes with status 200, for example an error page under the name of a picture."""

    def change(body: Body) -> Body:
        kind = {"Content-Type": content_type} if content_type else {}
        return Body(200, body.headers | kind, data)

    return alter(change)


def ignore_range() -> Effect:
    """A server or proxy that knows no ranges: 200 and the whole file."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        kept = {
            key: value
            for key, value in request.headers.items()
            if key not in ("Range", "If-Range", "If-Match")
        }
        return await _send(request, await _body(request.clone(headers=kept), handler))

    return effect


def changed() -> Effect:
    """Somebody touches the file before this request is answered: its ETag is another.

    A proxy cannot touch a real server's file: there it is this answer alone that has another ETag.
    """

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        response = await handler(request)
        if isinstance(response, Stored):
            stat = response.path.stat()
            os.utime(response.path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
        if isinstance(response, Forwarded):
            if request.headers.get("If-Match", "*") != "*":
                return web.Response(status=412)
            response.headers["ETag"] = f'"{uuid.uuid4().hex}"'
        return response

    return effect


def gone() -> Effect:
    """The file is no longer there."""
    return answer(404)


def endless(block: int = 65536) -> Effect:
    """A body without length that never ends (until the reader goes away)."""

    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        while request.transport is not None and not request.transport.is_closing():
            await response.write(bytes(block))
            await asyncio.sleep(0)
        return response

    return effect
