"""The simulator itself: sockets, life and death of the server, and what tests ask it."""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from weakref import WeakSet

from aiohttp import WSMsgType, web

from .engine import Engine, Outside, Pace
from .faults import Fault, Faults
from .folders import Folders
from .profiles import MAX_UPLOAD, PROFILES
from .routes import Routes, Trouble, missing, trouble
from .waiting import Waiting
from .wire import reset

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


@dataclass(slots=True, eq=False)
class _Socket:
    """One connection to /ws."""

    ws: web.WebSocketResponse
    sid: str
    transport: asyncio.Transport | None
    flags: dict[str, Any] = field(default_factory=dict)
    deaf: bool = False


class Sim:
    """A ComfyUI server for tests and demonstrations: `async with Sim() as sim: ... sim.url`.

    profile: the version to play ("0.27", "0.3.64", "0.3.40"). step_delay: seconds a sampler step takes.
    history_gap: seconds between the message `execution_success` and the entry in history. previews: whether
    samplers send them. root: the folder that holds output, temp and input (default: a temporary one, removed
    at the end). max_history: as many entries, plus one, are kept. auth: the exact Authorization header to
    demand. any_model: take every checkpoint name. record: keep `requests` and `events` (switch it off for
    long runs). log: a file that gets a line of JSON, `{"at": seconds since 1970, "prompt_id": ...}`, for each
    prompt whose execution begins; it outlives this process, however that ends.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        profile: str = "0.27",
        step_delay: float = 0.0,
        base_path: str = "",
        history_gap: float = 0.0,
        previews: bool = True,
        time_scale: float = 1.0,
        root: Path | None = None,
        max_history: int = 10000,
        auth: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        any_model: bool = False,
        max_upload: int = MAX_UPLOAD,
        record: bool = True,
        log: Path | None = None,
    ) -> None:
        self.host, self.port, self.base_path = host, port, base_path.rstrip("/")
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.events: list[dict[str, Any]] = []
        self._auth, self._ssl, self._max_upload = auth, ssl_context, max_upload
        self._record, self._any_model, self._log = record, any_model, log
        self._temporary = tempfile.TemporaryDirectory(prefix="comfyflow-sim-") if root is None else None
        self.folders = Folders(Path(self._temporary.name if self._temporary else root or ".").absolute())
        pace = Pace(step_delay, history_gap, time_scale, previews, max_history)
        self._waiting = Waiting()
        self._notify = self._waiting.notify
        self.engine = Engine(PROFILES[profile], self.folders, pace, self._outside())
        self._sockets: dict[Hashable, _Socket] = {}
        self._open: set[_Socket] = set()
        self._transports: WeakSet[asyncio.Transport] = WeakSet()
        self._messages: asyncio.Queue[tuple[str | bytes, Any]] = asyncio.Queue()
        self._thawed = _open_gate()
        self._tasks: list[asyncio.Task[None]] = []
        self._handling: set[asyncio.Task[Any]] = set()  # one for each request
        self._runner: web.AppRunner | None = None

    # Life

    @property
    def url(self) -> str:
        """The address to give to a client, with the base path."""
        return f"{'https' if self._ssl else 'http'}://{self.host}:{self.port}{self.base_path}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen and work. After `kill`: a new process on the same port and the same folders."""
        if self._log is not None:
            self._log.touch()  # one that cannot be written is told now, not to the worker
        app = web.Application(middlewares=[self._middleware], client_max_size=self._max_upload)
        self._add_routes(app)
        # aiohttp takes 0 for "wait for ever": a connection that came in just now would hold up `kill`.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.001)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, ssl_context=self._ssl, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.folders.boot()
        self._tasks = [asyncio.create_task(self.engine.work()), asyncio.create_task(self._publish())]

    async def kill(self) -> None:
        """Die as a killed process does: no close frame, queue and history forgotten, the port closed
        (recording 16). Requests under way are not answered, and not done later."""
        for site in [] if self._runner is None else list(self._runner.sites):
            await site.stop()
        for transport in list(self._transports):
            if transport.is_closing():
                continue  # a closed transport has lost its loop, and abort() would trip over that
            transport.abort()
        self._transports.clear()
        await self._end_tasks()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._thawed.set()
        # New ones: what is left of the old sockets must not touch those of the next process.
        self._sockets, self._open = {}, set()
        self._messages = asyncio.Queue()
        self.engine.boot()
        self._notify()

    async def _end_tasks(self) -> None:
        """aiohttp leaves alone what works on a request whose connection is gone: it would go on in the next
        life."""
        while working := {*self._tasks, *self._handling} - {asyncio.current_task()}:
            self._tasks = []
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def restart(self) -> None:
        """Kill and start: same port, `number` from 0, temp emptied, outputs kept."""
        await self.kill()
        await self.start()

    async def stop(self) -> None:
        """Stop for good and remove the temporary folder."""
        self.faults.clear()
        await self.kill()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _outside(self) -> Outside:
        return Outside(self._send, self._notify, self._wants_metadata, self.faults.reported, self._started)

    def _add_routes(self, app: web.Application) -> None:
        routes = Routes(self.engine, self.folders, any_model=self._any_model, aliases=self.faults.aliases)
        both = [("GET", "/ws", self._socket), *routes.plain()]
        table = [
            (method, prefix + path, handler) for prefix in ("", "/api") for method, path, handler in both
        ]
        table += [(method, "/api" + path, handler) for method, path, handler in routes.prefixed()]
        for method, path, handler in table:
            add = app.router.add_get if method == "GET" else app.router.add_post
            add(self.base_path + path, handler)
        app.router.add_get("/{path:.*}", missing)

    # Every request

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        task = asyncio.current_task()
        assert task is not None
        self._handling.add(task)
        try:
            return await self._handled(request, handler)
        finally:
            self._handling.discard(task)

    async def _handled(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        await self._thawed.wait()
        path = request.path.removeprefix(self.base_path)
        if self._record:
            self.requests.append((request.method, path))
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        fault = self.faults.take(request.method, path.removeprefix("/api") or path)
        try:
            response = await self._answer(request, handler, fault)
            await self._thawed.wait()
            return response
        except (Trouble, json.JSONDecodeError, UnicodeDecodeError):
            return trouble()
        finally:
            self._notify()

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Any], fault: Fault | None
    ) -> web.StreamResponse:
        response: web.StreamResponse = await (
            handler(request) if fault is None else fault.effect(request, handler, fault)
        )
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._auth is not None and request.headers.get("Authorization") != self._auth:
            return web.Response(status=401, text="401: Unauthorized", headers={"WWW-Authenticate": "Basic"})
        if request.headers.get("Sec-Fetch-Site") == "cross-site" or _foreign(request):
            return web.Response(status=403)
        return None

    # Sockets

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        socket = _Socket(ws, request.query.get("clientId") or uuid.uuid4().hex, request.transport)
        registered, opened = self._sockets, self._open
        opened.add(socket)
        registered[socket.sid] = (
            socket  # the older one of that id stays open and hears nothing (recording 24)
        )
        self._greet(socket)
        try:
            await self._listen(socket)
        finally:
            opened.discard(socket)
            # The wart of server.py: whoever closes takes the id with it, also when another socket has it by
            # now.
            registered.pop(socket.sid, None)
            self._notify()
        return ws

    def _greet(self, socket: _Socket) -> None:
        info = {"exec_info": {"queue_remaining": self.engine.remaining}}
        self._send("status", {"status": info, "sid": socket.sid}, socket.sid)
        if self.engine.client_id == socket.sid and self.engine.last_node is not None:
            self._send("executing", {"node": self.engine.last_node}, socket.sid)
        self._notify()

    async def _listen(self, socket: _Socket) -> None:
        first = True
        async for message in socket.ws:
            if message.type is not WSMsgType.TEXT:
                continue
            with suppress(json.JSONDecodeError):
                data = json.loads(message.data)
                if first:
                    self._negotiate(socket, data)
                first = False

    def _negotiate(self, socket: _Socket, data: Any) -> None:
        """Feature flags count only as the first JSON message of a connection (recording 30)."""
        features = self.engine.profile.features
        if features is None or not isinstance(data, dict) or data.get("type") != "feature_flags":
            return
        socket.flags = data.get("data") or {}
        self._send("feature_flags", features, socket.sid)

    def _wants_metadata(self, client_id: Any) -> bool:
        socket = self._find(client_id)
        return socket is not None and bool(socket.flags.get("supports_preview_metadata"))

    def _started(self, prompt_id: str) -> None:
        """Written and closed before the prompt goes on: the kernel has it then, whoever dies."""
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": time.time(), "prompt_id": prompt_id}) + "\n")

    def _find(self, client_id: Any) -> _Socket | None:
        return self._sockets.get(client_id) if isinstance(client_id, Hashable) else None

    def _send(self, kind: str, data: Any, client_id: Any) -> None:
        """Queue a message for one client or, without an id, for all. Absent clients miss it for good
        (recording 15)."""
        if kind == "binary":
            self._messages.put_nowait((data, client_id))
            return
        message = {"type": kind, "data": data}
        if self._record:
            self.events.append(message)
        self._messages.put_nowait((json.dumps(message), client_id))

    async def _publish(self) -> None:
        """Send everything through one queue that waits for each socket, as ComfyUI does (recording 35)."""
        while True:
            frame, client_id = await self._messages.get()
            await self._thawed.wait()
            one = self._find(client_id)
            targets = list(self._sockets.values()) if client_id is None else [one] if one else []
            for socket in targets:
                if not socket.deaf:
                    await self._deliver(socket, frame)

    async def _deliver(self, socket: _Socket, frame: str | bytes) -> None:
        with suppress(ConnectionError, RuntimeError):  # closed meanwhile
            if isinstance(frame, bytes):
                await socket.ws.send_bytes(frame)
            else:
                await socket.ws.send_str(frame)

    def send_raw(self, frame: str | bytes, client_id: str | None = None) -> None:
        """Send any frame, as it is, to one client or to all: garbage, huge texts, broken binaries, unknown
        events."""
        self._messages.put_nowait((frame, client_id))

    def drop_sockets(self) -> None:
        """Cut all sockets, without a close frame."""
        for socket in list(self._open):
            if socket.transport is not None:
                reset(socket.transport)

    async def close_sockets(self, code: int = 1001) -> None:
        """Close all sockets politely, as a proxy that restarts does."""
        for socket in list(self._open):
            await socket.ws.close(code=code)

    def deafen(self) -> None:
        """The sockets open now stay open, answer pings, and get nothing any more; later ones do."""
        for socket in self._open:
            socket.deaf = True

    def freeze(self) -> None:
        """Stand still as ComfyUI does while it loads a model (0.8-1.6 s as a habit): connections are taken,
        nothing is read, nothing is sent, pings neither; the worker goes on. Then `thaw`."""
        self._thawed.clear()
        for transport in self._transports:
            transport.pause_reading()

    def thaw(self) -> None:
        """Answer everything that came meanwhile, on each connection in order."""
        self._thawed.set()
        for transport in self._transports:
            if not transport.is_closing():
                transport.resume_reading()

    def forget(self, prompt_id: str | None = None) -> None:
        """Drop one prompt, or all, from history, as somebody does who clears it."""
        if prompt_id is None:
            self.engine.history.clear()
        else:
            self.engine.history.pop(prompt_id, None)
        self._notify()

    # What tests ask

    @property
    def executed(self) -> Counter[str]:
        """How often each prompt was started, over all restarts."""
        return self.engine.executed

    @property
    def sockets(self) -> int:
        """How many sockets are open."""
        return len(self._open)

    def looks(self) -> int:
        """How many requests looked at history, queue or jobs."""
        paths = [path.removeprefix("/api") for method, path in self.requests if method == "GET"]
        return sum(path == "/queue" or path.startswith(("/history", "/jobs")) for path in paths)

    async def hold(self) -> None:
        """Stop the worker before its next node or step, until `release`. It still takes prompts from the
        queue."""
        self.engine.hold()

    async def release(self, steps: int | None = None) -> None:
        """Let the worker go on: for ever, or for that many nodes and steps and then stop it again."""
        self.engine.release(steps)

    async def wait_for(self, condition: Callable[[], bool], *, timeout: float = 10.0) -> None:
        """Wait until `condition` holds; it is asked again whenever anything happens on the server.

        TimeoutError after `timeout` seconds. Cancelling this wait changes nothing.
        """
        await self._waiting.until(condition, timeout)

    async def wait_running(self, prompt_id: str | None = None) -> None:
        """Wait until that prompt, or any, is running."""

        def running() -> bool:
            item = self.engine.running
            return item is not None and prompt_id in (None, item[1])

        await self.wait_for(running)

    async def wait_done(self, prompt_id: str) -> None:
        """Wait until history tells how that prompt ended."""
        await self.wait_for(lambda: prompt_id in self.engine.history)

    async def wait_idle(self) -> None:
        """Wait until nothing waits or runs."""
        await self.wait_for(lambda: not self.engine.remaining)

    async def wait_sockets(self, count: int = 1) -> None:
        """Wait until exactly `count` sockets are open."""
        await self.wait_for(lambda: len(self._open) == count)


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


def _foreign(request: web.Request) -> bool:
    """Whether a page of another origin asks, by ComfyUI's rule: only a loopback Host is checked (recording
    32)."""
    origin, host = request.headers.get("Origin"), request.headers.get("Host")
    if not origin or origin == "null" or not host:
        return False
    here, there = urlsplit(f"//{host}"), urlsplit(origin)
    if here.hostname not in _LOOPBACK:
        return False
    ports_differ = here.port is not None and there.port is not None and here.port != there.port
    return here.hostname != there.hostname or ports_differ
