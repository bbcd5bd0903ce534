"""The fault proxy: without orders nobody notices it; with orders it does what networks and proxies do."""

from __future__ import annotations

import asyncio
import gzip
import io
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import aiohttp
import pytest
import trustme
from aiohttp import WSMsgType, web
from caller import Caller, calling, picture

from comfyflow import ComfyClient, JobState, PollSchedule
from comfyflow.sim import Fault, FaultProxy, Sim, alter, changed, delay, reset, reset_after, stall
from comfyflow.sim.faults import abort
from comfyflow.sim.wire import reset as reset_now

LARGE = bytes(range(256)) * (1 << 17)  # 32 MiB
Stream = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def caller(comfyui: Sim, comfyui_proxy: FaultProxy) -> AsyncIterator[Caller]:
    """A bare client of the proxy."""
    async with aiohttp.ClientSession() as session:
        yield Caller(comfyui, session, comfyui_proxy)


@pytest.fixture
def proxy(comfyui_proxy: FaultProxy) -> FaultProxy:
    return comfyui_proxy


@asynccontextmanager
async def before(handler: Handler) -> AsyncIterator[FaultProxy]:
    """A proxy in front of a server that answers everything with `handler`."""
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.001, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with FaultProxy(f"http://127.0.0.1:{runner.addresses[0][1]}") as proxy:
            yield proxy
    finally:
        await runner.cleanup()


@asynccontextmanager
async def before_stream(stream: Stream) -> AsyncIterator[FaultProxy]:
    """A proxy in front of a server that says what it wants, byte by byte, after the head of a request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await stream(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, FaultProxy(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as proxy:
        yield proxy


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection without any client's manners."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.transport.abort()


async def ask(url: str, path: str, **options: object) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(url + path, **options) as answer:  # type: ignore[arg-type] # tests know what they pass
        return answer.status, await answer.read()


# Nobody notices it


async def test_a_whole_job_runs_through_it(caller: Caller, proxy: FaultProxy) -> None:
    async with ComfyClient(proxy.url) as client:
        prompt_id = await client.submit_workflow(picture())
        assert (await client.wait(prompt_id)).state is JobState.SUCCEEDED
        assert proxy.sockets == 1
    await proxy.wait_sockets(0)
    assert (proxy.sent, proxy.taken) == ({prompt_id: 1}, {prompt_id: 1})
    assert proxy.requests["POST", "/prompt"] == proxy.sockets_opened == 1
    assert proxy.cuts == 0


async def test_paths_headers_and_bodies_go_as_they_came() -> None:
    seen: list[tuple[str, str, list[tuple[str, str]], bytes]] = []
    packed = gzip.compress(b"packed")

    async def handler(request: web.Request) -> web.Response:
        own = [(name, value) for name, value in request.headers.items() if name not in ("Connection",)]
        seen.append((request.method, request.raw_path, own, await request.read()))
        answer = web.Response(status=299, reason="Odd", body=packed)
        answer.headers.update({"Content-Encoding": "gzip", "ETag": '"a-b"', "Keep-Alive": "timeout=5"})
        answer.headers.add("Set-Cookie", "a=1")
        answer.headers.add("Set-Cookie", "b=2")
        return answer

    async with before(handler) as proxy, raw(proxy.url) as (reader, writer):
        host = urlsplit(proxy.target).netloc
        lines = ["Host: x", "X-A: 1", "X-A: 2", "Content-Encoding: gzip", f"Content-Length: {len(packed)}"]
        lines += ["Connection: close, X-B", "X-B: 3"]
        head = "\r\n".join(["PUT /a%2Fb%20c?q=%C3%BC&q=2 HTTP/1.1", *lines, "\r\n"])
        writer.write(head.encode() + packed)
        answer = await reader.read()
    assert seen == [
        (
            "PUT",
            "/a%2Fb%20c?q=%C3%BC&q=2",
            [
                ("Host", host),
                ("X-A", "1"),
                ("X-A", "2"),
                ("Content-Encoding", "gzip"),
                ("Content-Length", str(len(packed))),
            ],
            packed,
        )
    ]
    told, _, body = answer.partition(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 299 Odd\r\n")
    assert {b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"Content-Encoding: gzip"} <= set(told.split(b"\r\n"))
    assert b"Keep-Alive" not in told
    assert body == packed


async def test_ranges_conditions_and_heads_are_the_servers(caller: Caller) -> None:
    path = await caller.saved(picture())
    _, whole = await caller.get(path)
    async with caller.session.head(caller.url + path) as answer:
        headers = {"Range": "bytes=10-19", "If-Match": answer.headers["ETag"]}
        assert answer.headers["Content-Length"] == str(len(whole))
    assert await caller.get(path, headers=headers) == (206, whole[10:20])
    assert (await caller.get(path, headers={"If-Match": '"other"'}))[0] == 412


async def test_a_large_body_goes_both_ways_in_chunks_or_with_a_length() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        if "Content-Length" in request.headers:
            answer.content_length = request.content_length
        await answer.prepare(request)
        async for block in request.content.iter_any():
            await answer.write(block)
        return answer

    async def blocks() -> AsyncIterator[bytes]:
        for start in range(0, len(LARGE), 1 << 20):
            yield LARGE[start : start + (1 << 20)]

    async with before(handler) as proxy, aiohttp.ClientSession() as session:
        async with session.post(proxy.url, data=io.BytesIO(LARGE)) as answer:
            assert (answer.headers.get("Content-Length"), await answer.read()) == (str(len(LARGE)), LARGE)
        async with session.post(proxy.url, data=blocks()) as answer:
            assert (answer.headers.get("Transfer-Encoding"), await answer.read()) == ("chunked", LARGE)


async def test_a_body_is_passed_on_as_it_comes() -> None:
    more = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"first")
        await more.wait()
        await answer.write(b"second")
        return answer

    async with (
        before(handler) as proxy,
        aiohttp.ClientSession() as session,
        session.get(proxy.url) as answer,
    ):
        assert await answer.content.readexactly(5) == b"first"
        more.set()
        assert await answer.read() == b"second"


async def test_frames_of_any_kind_and_size_go_both_ways() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(max_msg_size=0, protocols=["comfy"], autoping=False)
        await ws.prepare(request)
        async for message in ws:
            kind = WSMsgType.PONG if message.type is WSMsgType.PING else message.type
            data = message.data.encode() if isinstance(message.data, str) else message.data
            await ws.send_frame(data, kind)
        assert ws.close_code == 4001
        return ws

    async with (
        before(handler) as proxy,
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"{proxy.url}/ws?x=1", max_msg_size=0, protocols=["other", "comfy"], autoping=False
        ) as ws,
    ):
        assert ws.protocol == "comfy"
        await ws.send_bytes(LARGE)
        assert await ws.receive_bytes() == LARGE
        await ws.send_str("x" * (1 << 21))
        assert await ws.receive_str() == "x" * (1 << 21)
        await ws.ping(b"hello")
        assert await ws.receive() == (WSMsgType.PONG, b"hello", "")
        await ws.close(code=4001, message=b"enough")
        await proxy.wait_sockets(0)


async def test_a_close_frame_of_the_server_arrives(caller: Caller) -> None:
    async with caller.socket() as ws:
        await ws.receive()
        closing = asyncio.create_task(caller.sim.close_sockets(code=1012))
        assert (await ws.receive())[:2] == (WSMsgType.CLOSE, 1012)
        await closing


async def test_a_frame_without_a_code_closes_as_well(proxy: FaultProxy, comfyui: Sim) -> None:
    async with raw(proxy.url) as (reader, writer):
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        await comfyui.wait_sockets(1)
        writer.write(b"\x88\x80\0\0\0\0")  # an empty close frame, masked
        await comfyui.wait_sockets(0)
        assert b"\x88\x02\x03\xe8" in await reader.read()


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def test_a_side_that_vanishes_takes_the_other_with_it(caller: Caller, proxy: FaultProxy) -> None:
    async with caller.socket() as ws:
        await ws.receive()
        caller.sim.drop_sockets()
        assert (await ws.receive()).type is WSMsgType.CLOSED
        assert ws.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    async with raw(proxy.url) as (_, writer):
        writer.write(HANDSHAKE)
        await caller.sim.wait_sockets(1)
    await caller.sim.wait_sockets(0)


async def test_a_refusal_of_the_upgrade_is_passed_on() -> None:
    async with calling(auth="Bearer secret") as caller, FaultProxy(caller.sim.url) as proxy:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await caller.session.ws_connect(f"{proxy.url}/ws")
        assert caught.value.status == 401
        assert caught.value.headers is not None
        assert caught.value.headers["WWW-Authenticate"] == "Basic"


async def test_a_path_of_the_targets_own_is_part_of_the_address() -> None:
    async with calling(base_path="/comfy") as caller, FaultProxy(caller.sim.url) as proxy:
        assert urlsplit(proxy.url).path == "/comfy"
        fault = proxy.faults.add("GET", "/queue", delay(0.0))
        assert (await ask(proxy.url, "/api/queue"))[0] == 200
        assert fault.hits == 1
        assert proxy.requests == {("GET", "/comfy/api/queue"): 1}


async def test_a_page_of_the_proxys_own_origin_is_the_servers_own(proxy: FaultProxy) -> None:
    assert (await ask(proxy.url, "/queue", headers={"Origin": proxy.url}))[0] == 200
    assert (await ask(proxy.url, "/queue", headers={"Origin": "http://evil.example"}))[0] == 403


async def test_the_target_may_speak_tls() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with (
        Sim(ssl_context=server) as sim,
        FaultProxy(sim.url, ssl_context=client) as proxy,
        aiohttp.ClientSession() as session,
    ):
        assert (await ask(proxy.url, "/queue"))[0] == 200
        async with session.ws_connect(f"{proxy.url}/ws") as ws:
            assert (await ws.receive_json())["type"] == "status"


async def test_nothing_is_left_of_it() -> None:
    before_it = asyncio.all_tasks()
    async with calling() as caller:
        proxy = FaultProxy(caller.sim.url)
        await proxy.start()
        ws = await caller.session.ws_connect(f"{proxy.url}/ws")
        await ws.receive()
        proxy.faults.add("GET", "/queue", stall())
        hanging = asyncio.create_task(ask(proxy.url, "/queue"))
        await proxy.wait_for(lambda: proxy.requests["GET", "/queue"] == 1)
        await proxy.stop()
        with pytest.raises(aiohttp.ClientError):
            await hanging
        assert (await ws.receive()).type in (WSMsgType.CLOSED, WSMsgType.ERROR)
        await caller.sim.wait_sockets(0)
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(proxy.url, "/queue")
        await ws.close()
    assert asyncio.all_tasks() == before_it


# A server in trouble


async def test_a_server_that_is_not_there_is_a_502(caller: Caller, proxy: FaultProxy) -> None:
    await caller.sim.kill()
    status, text = await caller.get("/queue")
    assert (status, text[:15]) == (502, b"502 Bad Gateway")
    assert (await caller.post("/prompt", {"prompt": picture(), "prompt_id": "x"}))[0] == 502
    with pytest.raises(aiohttp.WSServerHandshakeError, match="502"):
        await caller.socket()
    assert proxy.sent.total() == proxy.sockets_opened == 0
    await caller.sim.start()
    assert (await caller.get("/queue"))[0] == 200


async def test_a_server_that_breaks_off_before_its_answer_is_a_502(caller: Caller, proxy: FaultProxy) -> None:
    caller.sim.faults.add("POST", "/prompt", reset())
    prompt_id = str(uuid.uuid4())
    assert (await caller.post("/prompt", {"prompt": picture(), "prompt_id": prompt_id}))[0] == 502
    assert (proxy.sent, proxy.taken) == ({prompt_id: 1}, {})


async def test_an_answer_that_breaks_off_breaks_off_here_too() -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()

    async with before_stream(stream) as proxy, aiohttp.ClientSession() as session:
        async with session.get(proxy.url) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
            assert answer.status == 200
        assert proxy.cuts == 1


async def test_an_answer_goes_no_further_when_its_reader_is_gone() -> None:
    gone = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read()
        gone.set()

    async with before_stream(stream) as proxy:
        async with raw(proxy.url) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"half")
        async with asyncio.timeout(5):
            await gone.wait()


async def test_a_prompt_without_an_id_is_counted_by_the_one_it_got(caller: Caller, proxy: FaultProxy) -> None:
    prompt_id = await caller.submit(picture())
    for data in (b"[1]", b"no json"):
        async with caller.session.post(f"{caller.url}/prompt", data=data) as answer:
            assert answer.status in (400, 500)
    assert proxy.sent == {"": 3}
    assert proxy.taken == {prompt_id: 1}


async def test_a_prompt_taken_behind_a_cut_is_counted(caller: Caller, proxy: FaultProxy) -> None:
    proxy.faults.add("POST", "/prompt", reset_after())
    prompt_id = str(uuid.uuid4())
    with pytest.raises(aiohttp.ClientOSError):
        await caller.submit(picture(), prompt_id=prompt_id)
    assert proxy.taken == {prompt_id: 1}


async def test_another_etag_and_an_altered_head_are_this_answers_alone(
    caller: Caller, proxy: FaultProxy
) -> None:
    path = await caller.saved(picture())
    url = caller.url + path
    async with caller.session.head(url) as answer:
        etag = answer.headers["ETag"]
    proxy.faults.add("GET", "/view", changed())
    proxy.faults.add("HEAD", "/view", alter(lambda body: body))
    async with caller.session.get(url) as other, caller.session.head(url) as altered:
        assert other.headers["ETag"] != etag
        assert altered.headers["Content-Length"] == other.headers["Content-Length"]
    assert (await caller.get(path, headers={"If-Match": etag}))[0] == 200


# Sockets


async def test_sockets_are_cut_with_a_reset_and_new_ones_refused(caller: Caller, proxy: FaultProxy) -> None:
    async with raw(proxy.url) as (reader, writer):
        writer.write(HANDSHAKE)
        await proxy.wait_sockets(1)
        await reader.readuntil(b"}")
        proxy.refuse_sockets = True
        proxy.cut_sockets()
        with pytest.raises(ConnectionResetError):
            await reader.read()
    await caller.sim.wait_sockets(0)
    with pytest.raises(aiohttp.ClientConnectionError):
        await caller.socket()
    assert (await caller.get("/queue"))[0] == 200
    assert (proxy.cuts, proxy.sockets_opened) == (1, 1)
    proxy.refuse_sockets = False
    async with caller.socket() as ws:
        assert (await ws.receive_json())["type"] == "status"


async def test_sockets_are_closed_politely(caller: Caller, proxy: FaultProxy) -> None:
    async with caller.socket() as ws:
        await ws.receive()
        closing = asyncio.create_task(proxy.close_sockets(code=1012))
        assert (await ws.receive())[:2] == (WSMsgType.CLOSE, 1012)
        await closing
    await caller.sim.wait_sockets(0)


async def test_a_deaf_socket_answers_pings_and_a_later_one_hears(caller: Caller, proxy: FaultProxy) -> None:
    async with caller.session.ws_connect(f"{caller.url}/ws?clientId=a", autoping=False) as deaf:
        await deaf.receive()
        proxy.deafen()
        async with caller.socket("b") as ws:
            await ws.receive()
            caller.sim.send_raw("for all")
            assert await ws.receive_str() == "for all"
        await deaf.ping(b"there?")
        assert (await deaf.receive())[:2] == (WSMsgType.PONG, b"there?")


# Connections


async def test_a_frozen_connection_loses_its_bytes_and_is_reset_at_its_next_one(
    caller: Caller, proxy: FaultProxy
) -> None:
    async with raw(proxy.url) as (reader, writer), raw(proxy.url) as (other, untouched):
        writer.write(HANDSHAKE)
        await proxy.wait_sockets(1)
        await reader.readuntil(b"}")
        await answered(other, untouched)
        proxy.freeze(new=False)
        caller.sim.send_raw("lost")
        assert (await ask(proxy.url, "/queue"))[0] == 200
        assert (caller.sim.sockets, proxy.sockets) == (1, 1)
        proxy.thaw()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await answered(other, untouched)
    await caller.sim.wait_sockets(0)


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"[]}")


async def test_nobody_learns_of_the_end_of_a_frozen_connection_before_it_thaws(
    caller: Caller, proxy: FaultProxy
) -> None:
    async with raw(proxy.url) as (reader, writer):
        writer.write(HANDSHAKE)
        await reader.readuntil(b"}")
        proxy.freeze()
        reset_now(writer.transport)
    async with raw(proxy.url) as (reader, writer):
        writer.write(b"GET /history HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write_eof()
        await proxy.wait_for(lambda: proxy.lost > 0)
        assert caller.sim.sockets == proxy.sockets == 1
        proxy.thaw()
        await caller.sim.wait_sockets(0)
        with pytest.raises(ConnectionResetError):
            await reader.read()
    assert not proxy.requests["GET", "/history"]


async def test_what_is_held_back_arrives_in_order(caller: Caller, proxy: FaultProxy) -> None:
    async with caller.socket() as ws:
        await ws.receive()
        asking = asyncio.create_task(caller.get("/queue"))
        proxy.freeze(lost=False)
        for number in range(50):
            caller.sim.send_raw(str(number) * 10_000)
        hanging = asyncio.create_task(ws.receive())
        assert (await ask(caller.sim.url, "/queue"))[0] == 200  # the server itself is well
        assert not hanging.done()
        later = asyncio.create_task(caller.get("/history"))
        proxy.thaw()
        assert (await asking)[0] == (await later)[0] == 200
        assert (await hanging).data == "0" * 10_000
        for number in range(1, 50):
            assert (await ws.receive()).data == str(number) * 10_000
    assert proxy.cuts == 0


async def test_what_the_server_does_to_a_frozen_connection_is_seen_later(proxy: FaultProxy) -> None:
    async def effect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
        await fault.released()
        if "X-Reset" in request.headers:
            abort(request)
        return await handler(request)

    for lost in (False, True):
        async with raw(proxy.url) as (reader, writer), raw(proxy.url) as (aborted, asking):
            fault = proxy.faults.add("GET", "/queue", effect, times=2)
            writer.write(b"GET /queue HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            asking.write(b"GET /queue HTTP/1.1\r\nHost: x\r\nX-Reset: 1\r\n\r\n")
            await proxy.wait_for(lambda fault=fault: fault.hits == 2)  # type: ignore[misc] # a default is no argument
            proxy.freeze(lost=lost)
            fault.release()
            await proxy.wait_for(lambda: not proxy._handling)
            proxy.thaw()
            with pytest.raises(ConnectionResetError):
                await aborted.read()
            if lost:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert (await reader.read()).endswith(b"[]}")


async def test_a_frozen_connection_that_was_closed_and_lost_nothing_ends_politely() -> None:
    end = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await end.wait()

    async with before_stream(stream) as proxy, raw(proxy.url) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"half")
        proxy.freeze()
        end.set()
        await proxy.wait_for(lambda: proxy.cuts == 1)
        proxy.thaw()
        assert await reader.read() == b""


async def test_a_body_waits_while_its_request_does_frozen_or_not(proxy: FaultProxy) -> None:
    for freeze in (False, True):
        fault = proxy.faults.add("POST", "/upload/image", stall())
        async with aiohttp.ClientSession() as session:
            form = aiohttp.FormData({"image": io.BytesIO(LARGE)})
            uploading = asyncio.create_task(posted(session, f"{proxy.url}/upload/image", form))
            await fault.met()
            if freeze:
                proxy.freeze(lost=False)
            fault.release()
            if freeze:
                await asyncio.sleep(0)
                proxy.thaw()
            assert await uploading == 200


async def posted(session: aiohttp.ClientSession, url: str, data: object) -> int:
    async with session.post(url, data=data) as answer:
        return answer.status


async def test_a_client_that_does_not_read_can_be_cut(caller: Caller, proxy: FaultProxy) -> None:
    async with raw(proxy.url) as (reader, writer):
        writer.write(HANDSHAKE)
        await reader.readuntil(b"}")
        caller.sim.send_raw(LARGE)
        await reader.readexactly(1000)
        proxy.cut_sockets()
        await caller.sim.wait_sockets(0)
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_dead_server_resets_and_refuses_and_comes_back_on_its_port(
    caller: Caller, proxy: FaultProxy
) -> None:
    url = proxy.url
    async with raw(url) as (reader, _):
        await proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await reader.read()
    with pytest.raises(aiohttp.ClientConnectorError):
        await caller.get("/queue")
    await proxy.accept()
    assert proxy.url == url
    assert (await caller.get("/queue"))[0] == 200


async def test_all_connections_can_be_cut_even_frozen_ones(proxy: FaultProxy) -> None:
    async with raw(proxy.url) as (reader, writer):
        await answered(reader, writer)
        proxy.freeze()
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert proxy.cuts == 1


async def test_a_silent_socket_is_closed_without_a_word(caller: Caller, proxy: FaultProxy) -> None:
    async with caller.socket() as ws:
        await ws.receive()
        proxy.idle_cut = 0.05
        assert (await ws.receive()).type is WSMsgType.CLOSED
        assert ws.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    await caller.sim.wait_sockets(0)
    assert proxy.cuts == 1


async def test_a_server_silent_for_as_long_is_a_504(
    comfyui: Sim, comfyui_proxy_for: Callable[..., Awaitable[FaultProxy]]
) -> None:
    comfyui.faults.add("GET", "/queue", stall())
    comfyui.faults.add("GET", "/ws", stall())
    proxy = await comfyui_proxy_for(comfyui.url, idle_cut=0.05)
    assert (await ask(proxy.url, "/queue"))[0] == 504
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError, match="504"):
            await session.ws_connect(f"{proxy.url}/ws")


async def test_a_body_that_stands_still_is_cut() -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read()

    async with before_stream(stream) as proxy:
        proxy.idle_cut = 0.05
        with pytest.raises(aiohttp.ClientPayloadError):
            await ask(proxy.url, "/")


async def test_a_request_that_hangs_when_the_proxy_ends_is_never_passed_on(comfyui: Sim) -> None:
    async with FaultProxy(comfyui.url) as proxy:
        fault = proxy.faults.add("POST", "/prompt", stall())
        async with aiohttp.ClientSession() as session:
            caller = Caller(comfyui, session, proxy)
            hanging = asyncio.create_task(caller.submit(picture()))
            await fault.met()
            await proxy.stop()
            with pytest.raises(aiohttp.ClientError):
                await hanging
    assert (await ask(comfyui.url, "/prompt"))[0] == 200
    assert ("POST", "/prompt") not in comfyui.requests


async def test_waiting_for_what_never_comes_ends_in_a_timeout(proxy: FaultProxy) -> None:
    with pytest.raises(TimeoutError):
        await proxy.wait_for(lambda: False, timeout=0.01)


async def test_a_client_that_loses_its_socket_again_and_again_gets_its_job_done(proxy: FaultProxy) -> None:
    poll = PollSchedule(first=0.05, ceiling=0.2, stall_after=1.0, deaf_after=1.0)
    async with ComfyClient(proxy.url, poll=poll) as client:
        prompt_id = await client.submit_workflow(picture())
        proxy.refuse_sockets = True
        proxy.cut_sockets()
        assert (await client.wait(prompt_id)).state is JobState.SUCCEEDED
