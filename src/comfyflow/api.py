"""ComfyUI over HTTP: one method a route, third-party errors translated once, here. No rule about jobs lives
in this module.

Sources: ComfyUI `server.py` 0.27.0 and the recordings. Redirects are followed by hand, because aiohttp keeps
`X-API-Key` and other headers on a redirect to another origin (measured with 3.14.5): credentials go to the
server's own origin only.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
import ssl as tls
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from json import dumps
from typing import Any, NoReturn, TypeVar

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from . import protocol
from .errors import BadAnswer, ServerUnreachable, WorkflowRejected
from .events import SeenPending, SeenRunning
from .models import JobResult, OutputFile, Submission, Timeouts, UploadedFile

T = TypeVar("T")
MAX_ANSWER_SIZE = (
    256 * 2**20
)  # bytes of one JSON answer; a queue of 200 large workflows was measured at 11 MB
MAX_REDIRECTS = 5
BLOCK = 65536  # bytes of a request's body that are sent at once
RESET = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # SO_LINGER: close() drops what was not sent


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is. `headers` (credentials) go to its own origin only; `root` never holds any."""

    root: URL  # without a trailing "/api"
    prefix: str  # "/api" when the address ends so, else ""
    headers: Mapping[str, str]

    @classmethod
    def at(cls, url: str, headers: Mapping[str, str] | None = None, api_key: str | None = None) -> Server:
        """From an address such as `https://user:pass@host/base/api`. Raises ValueError when it is none."""
        parsed = URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError("this is no address of a server: write it like http://127.0.0.1:8188")
        try:
            (parsed.raw_host or "").encode("idna")  # as the system would do later, in the middle of a request
        except UnicodeError as error:
            raise ValueError("this address has no valid name of a host") from error
        path = parsed.path.rstrip("/")
        prefix = "/api" if path.endswith("/api") else ""
        sent = dict(headers or {})
        if api_key is not None:
            sent["Authorization"] = f"Bearer {api_key}"
        if parsed.user is not None:
            pair = f"{parsed.user}:{parsed.password or ''}".encode()  # yarl has decoded both
            sent["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        root = (
            parsed.with_user(None).with_path(path.removesuffix("/api")).with_query(None).with_fragment(None)
        )
        return cls(root, prefix, sent)

    def __str__(self) -> str:
        return str(self.root).rstrip("/") + self.prefix

    def url(self, route: str, **query: str) -> URL:
        """The address of a route such as "/prompt". Routes that exist only under /api are written
        "/api/..."."""
        prefix = "" if route.startswith("/api/") else self.prefix
        url = self.root.with_path(self.root.raw_path.rstrip("/") + prefix + route, encoded=True)
        return url.with_query(query) if query else url

    def socket_url(self, client_id: str) -> str:
        """The address of the WebSocket for a client id."""
        url = self.url("/ws", clientId=client_id)
        return str(url.with_scheme("wss" if url.scheme == "https" else "ws"))


@dataclass(frozen=True, slots=True)
class JobLook:
    """What /api/jobs/{id} says. `supported`: the server has that route; `alive` is None for a job that has
    ended."""

    known: bool
    supported: bool
    alive: SeenPending | SeenRunning | None = None


class ViewAnswer:
    """An answer of /view that is being read. Sizes in bytes."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.status = answer.status
        self.etag = answer.headers.get("ETag")
        # A body that was compressed on the way has no known length: aiohttp unpacks it.
        self.length = None if answer.headers.get("Content-Encoding") else answer.content_length
        self.total = _total(answer.headers.get("Content-Range"))

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ServerUnreachable when the connection breaks or stalls."""
        with _translated(self._answer.method, self._answer.url, sent=True):
            while chunk := await self._answer.content.readany():
                yield chunk


def _total(content_range: str | None) -> int | None:
    found = re.search(r"/(\d{1,18})$", content_range or "")
    return int(found[1]) if found else None


class Body(aiohttp.Payload):
    """The body of a request. `limit`: seconds in which the connection must take some more of it.

    aiohttp counts only the wait for the answer: a connection that is half-open, and takes nothing any more,
    would hold us up until the system gives up, for 15 minutes on Linux.
    """

    _value: bytes

    def __init__(self, data: bytes, limit: float | None, content_type: str) -> None:
        super().__init__(data, content_type=content_type)
        self._size, self._limit = len(data), limit
        self._transport: asyncio.Transport | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send it. Raises TimeoutError."""
        self._transport = getattr(writer, "transport", None)
        if len(self._value) <= BLOCK // 2:  # only behind more bytes does aiohttp wait for the connection
            await writer.write(self._value)
            return
        for start in range(0, len(self._value), BLOCK):
            async with asyncio.timeout(self._limit):
                await writer.write(self._value[start : start + BLOCK])

    def take_back(self) -> None:
        """Nobody waits for the answer any more, so what the system still holds of the request must not arrive
        later, when a network is back or a server wakes up: the connection is reset instead of closed."""
        if self._transport is None:
            return
        here = self._transport.get_extra_info("socket")
        if here is not None and here.fileno() != -1:
            with suppress(OSError, TypeError):  # TypeError: loops of another make need not let us
                here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()


class Api:
    """The routes of one server. Owns its HTTP session unless one is given; `close` it in any case."""

    def __init__(
        self,
        server: Server,
        timeouts: Timeouts,
        *,
        session: aiohttp.ClientSession | None = None,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        self.server = server
        self._patience = timeouts.answer
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timeouts.connect, sock_read=timeouts.answer
        )
        self._ssl: tls.SSLContext | bool = ssl or True
        self._given, self._own = session, session is None
        self._foreign: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._given is None:
            self._given = self._new_session()
        return self._given

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
        )

    async def close(self) -> None:
        """Close what this object opened."""
        own, self._given = (self._given, None) if self._own else (None, self._given)
        foreign, self._foreign = self._foreign, None
        for session in (own, foreign):
            if session is not None:
                await session.close()

    # -- routes --

    async def prompt(self, body: Mapping[str, Any]) -> Submission:
        """POST /prompt. Raises WorkflowRejected, BadAnswer, ServerUnreachable (`sent`: it may be queued all
        the same)."""
        status, answer = await self._send("POST", "/prompt", json=body, accept=(200, 400, 413))
        url = self.server.url("/prompt")
        if status == 200:
            return self._read("POST", url, status, answer, protocol.parse_submission)
        if status == 413:
            text = "the server takes no request of this size: start it with a larger --max-upload-size"
            raise _rejected(url, {"type": "too_large", "message": text}, {})
        raise _rejected(url, *self._read("POST", url, status, answer, protocol.parse_refusal))

    async def queue(self) -> protocol.QueueView:
        """GET /queue: everybody's jobs, with their graphs on the wire (11 MB for 200 large ones)."""
        return self._read("GET", *await self._get("/queue"), protocol.parse_queue)

    async def remaining(self) -> int:
        """GET /prompt: jobs on the server, 37 bytes."""
        url, status, body = await self._get("/prompt")
        return self._read("GET", url, status, body, protocol.parse_remaining)

    async def history(self, prompt_id: str) -> JobResult | None:
        """GET /history/{id}: how a job ended, None while it has not, or when the server does not know it."""
        found = await self._get(f"/history/{_quoted(prompt_id)}")
        return self._read("GET", *found, lambda body: protocol.parse_history(body, prompt_id))

    async def histories(self, prompt_id: str | None = None, max_items: int | None = None) -> Any:
        """GET /history[/{id}]: entries as ComfyUI writes them (55 MB per 1000 large workflows)."""
        route = "/history" + ("" if prompt_id is None else f"/{_quoted(prompt_id)}")
        return await self._json(route, **({} if max_items is None else {"max_items": str(max_items)}))

    async def sent(self, prompt_id: str) -> protocol.SentPrompt | None:
        """The prompt of a job, from GET /history/{id}, else from GET /queue; None when it is in neither."""
        for route in (f"/history/{_quoted(prompt_id)}", "/queue", f"/history/{_quoted(prompt_id)}"):
            found = await self._get(route)
            if sent := self._read("GET", *found, lambda body: protocol.parse_sent(body, prompt_id)):
                return sent
        return None

    async def job(self, prompt_id: str) -> JobLook:
        """GET /api/jobs/{id} (since 0.6)."""
        url, status, body = await self._asked(
            "GET", f"/api/jobs/{_quoted(prompt_id)}", accept=(200, 404, 405)
        )
        if status != 200:
            # Only a server with this route says so; an older one has an empty 404 for any path.
            return JobLook(known=False, supported=protocol.is_unknown_job(body))
        alive = self._read("GET", url, 200, body, lambda found: protocol.parse_job(found, prompt_id))
        return JobLook(known=True, supported=True, alive=alive)

    async def cancel_job(self, prompt_id: str) -> bool | None:
        """POST /api/jobs/{id}/cancel (since 0.26): whether it was dispatched, None when the server has no
        such route."""
        route = f"/api/jobs/{_quoted(prompt_id)}/cancel"
        status, body = await self._send("POST", route, accept=(200, 400, 404, 405))
        if status != 200:
            return None
        found = self._read("POST", self.server.url(route), status, body, protocol.parse_json)
        return bool(isinstance(found, dict) and found.get("cancelled"))

    async def dequeue(self, prompt_id: str) -> None:
        """POST /queue: take a waiting job out; nothing happens to a running or unknown one. The answer is
        empty."""
        await self._send("POST", "/queue", json={"delete": [prompt_id]})

    async def interrupt(self, prompt_id: str) -> None:
        """POST /interrupt: only this job, on servers since 0.3.57. OLDER ONES INTERRUPT WHATEVER RUNS."""
        await self._send("POST", "/interrupt", json={"prompt_id": prompt_id})

    async def system_stats(self) -> dict[str, Any]:
        """GET /system_stats."""
        return await self._object("/system_stats")

    async def features(self) -> dict[str, Any]:
        """GET /features (since 0.3.45)."""
        return await self._object("/features")

    async def object_info(self, node_class: str | None = None) -> dict[str, Any]:
        """GET /object_info: all node classes (0.3-1.4 MB), or one; an unknown class gives an empty
        mapping."""
        return await self._object("/object_info" + ("" if node_class is None else f"/{_quoted(node_class)}"))

    async def object_info_text(self) -> bytes:
        """GET /object_info, undecoded: with many packs it has 30 MB, of which little is looked at."""
        _, _, body = await self._get("/object_info")
        return body

    async def node_replacements(self) -> dict[str, Any]:
        """GET /node_replacements: what the server puts in the place of unknown classes; servers before 0.12
        or so have no such route (404)."""
        return await self._object("/node_replacements")

    async def free(self, *, unload_models: bool, free_memory: bool) -> None:
        """POST /free: done after the running job."""
        await self._send("POST", "/free", json={"unload_models": unload_models, "free_memory": free_memory})

    async def upload(self, data: bytes, name: str, fields: Mapping[str, str]) -> UploadedFile:
        """POST /upload/image. The name that comes back counts: the server renames instead of overwriting
        [19]."""
        form = aiohttp.FormData(
            quote_fields=False
        )  # percent-encoded names would stay so on the server's disk
        for key, value in fields.items():
            form.add_field(key, value)
        file = Body(data, self._patience, "application/octet-stream")
        form.add_field("image", file, filename=name)
        _, body = await self._send("POST", "/upload/image", data=form)
        found = self._read("POST", self.server.url("/upload/image"), 200, body, protocol.parse_upload)
        return UploadedFile(*found)

    async def view_size(self, output: OutputFile) -> int | None:
        """HEAD /view: a file's size in bytes, None when the server does not tell or does not have it."""
        async with self._open("HEAD", "/view", query=_view_query(output)) as answer:
            return answer.content_length if answer.status == 200 else None

    def open_view(
        self, output: OutputFile, *, offset: int = 0, etag: str | None = None
    ) -> AbstractAsyncContextManager[ViewAnswer]:
        """GET /view, from `offset` bytes on if the file is still the one with that `etag`.

        Status 200, 206, 404 (gone), 412 (changed) or 416 (nothing behind the offset); anything else raises
        BadAnswer. ComfyUI ignores If-Range with an ETag, so If-Match is sent [20].
        """
        return self._view(output, offset, etag)

    @asynccontextmanager
    async def _view(self, output: OutputFile, offset: int, etag: str | None) -> AsyncIterator[ViewAnswer]:
        extra = {"Accept-Encoding": "identity"}
        if offset:
            extra["Range"] = f"bytes={offset}-"
            extra |= {"If-Match": etag} if etag else {}
        async with self._open("GET", "/view", query=_view_query(output), extra=extra) as answer:
            if answer.status not in (200, 206, 404, 412, 416):
                await _refuse(answer)
            yield ViewAnswer(answer)

    # -- the wire --

    async def _json(self, route: str, **query: str) -> Any:
        url, status, body = await self._get(route, **query)
        return self._read("GET", url, status, body, protocol.parse_json)

    async def _object(self, route: str) -> dict[str, Any]:
        url, status, body = await self._get(route)
        found = self._read("GET", url, status, body, protocol.parse_json)
        if not isinstance(found, dict):
            raise _not_comfyui("GET", url, status, body)
        return found

    async def _get(self, route: str, **query: str) -> tuple[URL, int, bytes]:
        return await self._asked("GET", route, query=query)

    async def _send(
        self, method: str, route: str, *, json: Any = None, data: Any = None, accept: tuple[int, ...] = (200,)
    ) -> tuple[int, bytes]:
        body = self._encoded(json) if data is None else data
        _, status, answer = await self._asked(method, route, data=body, accept=accept)
        return status, answer

    async def _asked(
        self,
        method: str,
        route: str,
        *,
        query: Mapping[str, str] | None = None,
        data: Any = None,
        accept: tuple[int, ...] = (200,),
    ) -> tuple[URL, int, bytes]:
        """The whole answer, if it has one of the statuses that are accepted."""
        url = self.server.url(route, **(query or {}))
        answer = await self._request(method, url, data=data, extra={}, files=False)
        try:
            if answer.status not in accept:
                await _refuse(answer)
            return url, answer.status, await _body(answer)
        finally:
            answer.release()

    def _encoded(self, value: Any) -> Body | None:
        return None if value is None else Body(dumps(value).encode(), self._patience, "application/json")

    @staticmethod
    def _read(method: str, url: URL, status: int, body: bytes, parse: Callable[[bytes], T]) -> T:
        try:
            return parse(body)
        except protocol.Malformed as error:
            raise _not_comfyui(method, url, status, body) from error

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        route: str,
        *,
        query: Mapping[str, str],
        extra: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = self.server.url(route, **query)
        answer = await self._request(method, url, data=None, extra=extra or {}, files=route == "/view")
        try:
            yield answer
        finally:
            answer.release()

    async def _request(
        self, method: str, url: URL, *, data: Any, extra: Mapping[str, str], files: bool
    ) -> aiohttp.ClientResponse:
        at_home = True
        for _ in range(MAX_REDIRECTS + 1):
            session = self._session if at_home else self._abroad()
            headers = {**self.server.headers, **extra} if at_home else extra
            with _translated(method, url, data=data):
                answer = await session.request(
                    method,
                    url,
                    data=data,
                    headers=headers,
                    timeout=self._timeout,
                    allow_redirects=False,
                )
            target = answer.headers.get("Location")
            if answer.status not in (301, 302, 303, 307, 308) or target is None:
                return answer
            answer.release()
            following = _joined(method, url, answer.status, target)
            # Files may lie elsewhere (a storage service). Anything else that sends us abroad is a login page.
            if method not in ("GET", "HEAD") or (following.origin() != url.origin() and not files):
                raise _redirected(method, url, answer.status, target)
            url, at_home = following, following.origin() == self.server.root.origin()
        raise _redirected(method, url, 310, str(url))

    def _abroad(self) -> aiohttp.ClientSession:
        """A session for other origins: one that was given to us may carry credentials of its own."""
        if self._foreign is None:
            self._foreign = self._new_session()
        return self._foreign


def _quoted(part: str) -> str:
    if part.isascii() and part.replace("-", "").isalnum():  # as nearly every id is
        return part
    return URL.build(path="/" + part.replace("/", "%2F")).raw_path[1:] if part else ""


def _view_query(output: OutputFile) -> dict[str, str]:
    return {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body, bounded: a hostile server may send without end, or a small body that unpacks to a huge
    one."""
    chunks, size = [], 0
    with _translated(answer.method, answer.url, sent=True):
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > MAX_ANSWER_SIZE:
                answer.close()
                raise BadAnswer(
                    f"{_shown(answer.url)} sends more than {MAX_ANSWER_SIZE >> 20} MiB for one answer",
                    method=answer.method, url=_shown(answer.url), status=answer.status,
                )  # fmt: skip
            chunks.append(chunk)
    return b"".join(chunks)


async def _refuse(answer: aiohttp.ClientResponse) -> NoReturn:
    body = (await _body(answer)).decode("utf-8", "replace")
    url = _shown(answer.url)
    text = f"{url} answered {answer.status}{_ADVICE.get(answer.status, _OTHER_ADVICE)}"
    raise BadAnswer(text, method=answer.method, url=url, status=answer.status, body=body)


_OTHER_ADVICE = ": the server's log tells why"
_AWAY = ": the proxy in front of the server cannot reach it, try again when ComfyUI runs"
_LOG_IN = ": it wants credentials, give them with --header, an API key, or user:password@ in the address"
_ADVICE = {
    401: _LOG_IN,
    403: ": access is refused, check the credentials and the address",
    404: ": there is no ComfyUI at this address, check the host, the port and the path",
    405: ": there is no ComfyUI at this address, check the host, the port and the path",
    407: _LOG_IN,
    429: ": too many requests, try again later",
    502: _AWAY,
    503: _AWAY,
    504: _AWAY,
}


def _not_comfyui(method: str, url: URL, status: int, body: bytes) -> BadAnswer:
    text = body.decode("utf-8", "replace")
    what = "an HTML page (a login page?)" if text.lstrip()[:1] == "<" else "something else than ComfyUI would"
    return BadAnswer(
        f"{_shown(url)} answered {what}: check that the address is that of a ComfyUI server",
        method=method, url=_shown(url), status=status, body=text,
    )  # fmt: skip


def _joined(method: str, url: URL, status: int, target: str) -> URL:
    try:
        following = url.join(URL(target))
        following.origin()
    except ValueError as error:  # no address at all, or one like "mailto:"
        raise _redirected(method, url, status, target) from error
    return following


def _redirected(method: str, url: URL, status: int, target: str) -> BadAnswer:
    text = f"{_shown(url)} sends the request on to {target}: use that address (or log in there) instead"
    return BadAnswer(text, method=method, url=_shown(url), status=status)


def _rejected(url: URL, error: Mapping[str, Any], node_errors: Mapping[str, Any]) -> WorkflowRejected:
    parts = [str(part) for part in (error.get("message"), error.get("details")) if part]
    said = ": ".join("; ".join(part.splitlines()) for part in parts) or "without a reason"
    return WorkflowRejected(
        f"the server refused the workflow: {said}",
        method="POST", url=_shown(url), error=error, node_errors=node_errors,
    )  # fmt: skip


def _shown(url: URL) -> str:
    """Without query and credentials: what may stand in a message or a log."""
    return str(url.with_user(None).with_query(None))


class _translated:
    """aiohttp's errors and the system's become ServerUnreachable. `sent`: the server may have read the
    request. Whatever ends the block takes back what of a request's `data` has not left."""

    def __init__(self, method: str, url: URL, *, sent: bool = False, data: Any = None) -> None:
        self._method, self._url, self._sent, self._data = method, url, sent, data

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and isinstance(self._data, Body):
            self._data.take_back()
        if not isinstance(error, aiohttp.ClientError | OSError | TimeoutError):
            return
        never = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        origin = str(self._url.with_user(None).origin())
        unreachable = ServerUnreachable(
            f"{origin} does not answer ({_cause(error)}): is ComfyUI running there?",
            method=self._method, url=_shown(self._url), sent=self._sent or not never,
        )  # fmt: skip
        unreachable.refused = isinstance(getattr(error, "os_error", error), ConnectionRefusedError)
        raise unreachable from error


_CAUSES: tuple[tuple[type[BaseException], str], ...] = (  # the first that fits
    (aiohttp.ClientConnectorDNSError, "the name of the host is unknown"),
    (ConnectionRefusedError, "connection refused"),
    (TimeoutError, "timed out"),
    (aiohttp.ServerDisconnectedError, "the connection was cut"),
    (ConnectionResetError, "the connection was cut"),
    (aiohttp.ClientPayloadError, "the answer broke off"),
)


def _cause(error: BaseException) -> str:
    below = getattr(error, "os_error", error)  # what the system said, under aiohttp's own error
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return f"TLS: {getattr(error, 'certificate_error', below)}"
    known = (text for kind, text in _CAUSES if isinstance(error, kind) or isinstance(below, kind))
    return next(known, str(error) or type(error).__name__)
