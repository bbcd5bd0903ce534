"""The HTTP edge: addresses, and every kind of bad answer as one error with one sentence."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractStreamWriter
from aioresponses import aioresponses

from comfyflow import api as module
from comfyflow.api import Api, Body, Server
from comfyflow.errors import BadAnswer, ServerUnreachable, WorkflowRejected
from comfyflow.models import OutputFile, Timeouts
from comfyflow.sim import FaultProxy, Sim, answer, delay, endless, redirect, reset, stall

BASE = "http://comfy:8188"
FILE = OutputFile("1", "a b&c.png", "sub/x", "temp")


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    made = Api(Server.at(BASE), Timeouts())
    yield made
    await made.close()


# --- addresses
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown", "prompt", "job", "socket"),
    [
        (BASE, BASE, "/prompt", "/api/jobs/x", "ws://comfy:8188/ws?clientId=c"),
        (BASE + "/", BASE, "/prompt", "/api/jobs/x", "ws://comfy:8188/ws?clientId=c"),
        (BASE + "/api", BASE + "/api", "/api/prompt", "/api/jobs/x", "ws://comfy:8188/api/ws?clientId=c"),
        (
            "https://h/a%20b/",
            "https://h/a%20b",
            "/a%20b/prompt",
            "/a%20b/api/jobs/x",
            "wss://h/a%20b/ws?clientId=c",
        ),
        (
            "http://[::1]:8188/x/api/",
            "http://[::1]:8188/x/api",
            "/x/api/prompt",
            "/x/api/jobs/x",
            "ws://[::1]:8188/x/api/ws?clientId=c",
        ),
    ],
)
def test_an_address_keeps_its_base_path(url: str, shown: str, prompt: str, job: str, socket: str) -> None:
    server = Server.at(url)
    assert str(server) == shown
    assert server.url("/prompt").raw_path == prompt
    assert server.url("/api/jobs/x").raw_path == job
    assert server.socket_url("c") == socket


def test_credentials_leave_the_address_and_become_a_header() -> None:
    server = Server.at("http://us%40er:p%3Aw@host:1/x?q=1#f", {"X-Other": "1"})
    assert str(server) == "http://host:1/x"
    assert server.headers == {"X-Other": "1", "Authorization": "Basic dXNAZXI6cDp3"}
    assert Server.at("http://u:p%2541@h").headers["Authorization"] == "Basic dTpwJTQx"  # decoded once
    assert Server.at("http://user@h").headers["Authorization"] == "Basic dXNlcjo="
    assert Server.at(BASE, api_key="k").headers == {"Authorization": "Bearer k"}


@pytest.mark.parametrize("url", ["host:8188", "ftp://h", "http://", "", "http://h:x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|URL|URI"):
        Server.at(url)


# --- answers, small ones, from a table
# ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (
            400,
            {
                "error": {"type": "prompt_no_outputs", "message": "Prompt has no outputs", "details": ""},
                "node_errors": {},
            },
            WorkflowRejected,
            "Prompt has no outputs",
        ),
        (
            400,
            {"error": {"message": "failed", "details": "why"}, "node_errors": {"3": {}}},
            WorkflowRejected,
            "failed: why",
        ),
        (400, {"error": "plain"}, WorkflowRejected, "plain"),
        (400, {"error": {}}, WorkflowRejected, "without a reason"),
        (413, "Maximum request body size exceeded", WorkflowRejected, "max-upload-size"),
        (400, "<html>", BadAnswer, "HTML"),
        (200, "<html>login</html>", BadAnswer, "HTML"),
        (200, "[]", BadAnswer, "something else than ComfyUI"),
        (200, "", BadAnswer, "something else than ComfyUI"),
        (401, "", BadAnswer, "wants credentials"),
        (403, "", BadAnswer, "access is refused"),
        (404, "", BadAnswer, "no ComfyUI at this address"),
        (405, "", BadAnswer, "no ComfyUI at this address"),
        (429, "", BadAnswer, "too many"),
        (500, "500 Internal Server Error", BadAnswer, "server's log"),
        (502, "", BadAnswer, "proxy"),
        (503, "", BadAnswer, "proxy"),
        (504, "", BadAnswer, "proxy"),
    ],
)
async def test_each_refusal_is_one_error_with_one_sentence(
    api: Api, status: int, body: Any, kind: type[Exception], says: str
) -> None:
    with aioresponses() as answers:
        if isinstance(body, str):
            answers.post(BASE + "/prompt", status=status, body=body)
        else:
            answers.post(BASE + "/prompt", status=status, payload=body)
        with pytest.raises(kind, match=says) as caught:
            await api.prompt({"prompt": {}})
    assert "\n" not in str(caught.value)


async def test_a_rejection_keeps_what_the_server_said(api: Api) -> None:
    with aioresponses() as answers:
        answers.post(
            BASE + "/prompt",
            status=400,
            payload={"error": {"type": "t"}, "node_errors": {"3": {"errors": []}}},
        )
        with pytest.raises(WorkflowRejected) as caught:
            await api.prompt({})
    assert (caught.value.error, caught.value.node_errors) == ({"type": "t"}, {"3": {"errors": []}})
    assert (caught.value.method, caught.value.url) == ("POST", BASE + "/prompt")


@pytest.mark.parametrize(
    ("status", "content_type", "body", "known", "supported", "alive"),
    [
        (200, "application/json", '{"id": "j", "status": "in_progress"}', True, True, True),
        (200, "application/json", '{"id": "j", "status": "completed"}', True, True, False),
        (404, "application/json", '{"error": "Job not found"}', False, True, False),
        (404, "application/octet-stream", "", False, False, False),
        (404, "text/html", "<html>", False, False, False),
        (405, "text/plain", "", False, False, False),
    ],
)
async def test_the_jobs_route_is_recognised_by_how_it_says_no(
    api: Api, *, status: int, content_type: str, body: str, known: bool, supported: bool, alive: bool
) -> None:
    with aioresponses() as answers:
        answers.get(BASE + "/api/jobs/j", status=status, body=body, content_type=content_type)
        look = await api.job("j")
    assert (look.known, look.supported, look.alive is not None) == (known, supported, alive)


async def test_a_cancel_route_may_be_missing(api: Api) -> None:
    with aioresponses() as answers:
        answers.post(BASE + "/api/jobs/j/cancel", payload={"cancelled": True})
        answers.post(BASE + "/api/jobs/j/cancel", payload={"cancelled": False})
        answers.post(BASE + "/api/jobs/j/cancel", status=405)
        assert [await api.cancel_job("j") for _ in range(3)] == [True, False, None]


async def test_small_answers(api: Api) -> None:
    with aioresponses() as answers:
        answers.get(BASE + "/prompt", payload={"exec_info": {"queue_remaining": 3}})
        answers.get(BASE + "/features", payload={"assets": True})
        answers.get(BASE + "/system_stats", payload=[1])
        answers.get(BASE + "/history?max_items=2", payload={"a": {}})
        assert await api.remaining() == 3
        assert await api.features() == {"assets": True}
        assert await api.histories(max_items=2) == {"a": {}}
        with pytest.raises(BadAnswer):
            await api.system_stats()


@pytest.mark.parametrize(
    ("error", "sent", "says"),
    [
        (aiohttp.ServerDisconnectedError(), True, "cut"),
        (ConnectionResetError(), True, "cut"),
        (aiohttp.SocketTimeoutError(), True, "timed out"),
        (aiohttp.ConnectionTimeoutError(), False, "timed out"),
        (aiohttp.ClientPayloadError("x"), True, "broke off"),
        (aiohttp.ClientError(), True, "ClientError"),
        (OSError("odd"), True, "odd"),
    ],
)
async def test_each_way_not_to_answer_is_translated(
    api: Api, error: Exception, sent: bool, says: str
) -> None:
    with aioresponses() as answers:
        answers.post(BASE + "/prompt", exception=error)
        with pytest.raises(ServerUnreachable, match=says) as caught:
            await api.prompt({})
    assert caught.value.sent is sent
    assert caught.value.__cause__ is error


# --- over real sockets
# ----------------------------------------------------------------------------------------


@pytest.fixture
async def real(comfyui: Sim) -> AsyncIterator[Api]:
    made = Api(Server.at(comfyui.url), Timeouts(connect=2.0, answer=0.2))
    yield made
    await made.close()


async def test_a_closed_port_and_an_unknown_host_were_never_reached() -> None:
    for url, says in (
        (f"http://127.0.0.1:{await free_port()}", "refused"),
        ("http://nowhere.invalid", "host is unknown"),
    ):
        api = Api(Server.at(url), Timeouts())
        with pytest.raises(ServerUnreachable, match=says) as caught:
            await api.remaining()
        assert not caught.value.sent
        await api.close()


async def free_port() -> int:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    async with server:
        return int(server.sockets[0].getsockname()[1])


async def test_a_reset_and_a_silent_server_are_unreachable(comfyui: Sim, real: Api) -> None:
    comfyui.faults.add("POST", "/prompt", reset())
    held = comfyui.faults.add("POST", "/prompt", stall())
    for says in ("cut|reset", "timed out"):
        with pytest.raises(ServerUnreachable, match=says) as caught:
            await real.prompt({})
        assert caught.value.sent
    held.release()


@pytest.fixture
async def standstill() -> AsyncIterator[socket.socket]:
    """A port whose connections nobody reads from, as at a server that stands still."""
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port.bind(("127.0.0.1", 0))
        port.listen()
        port.setblocking(False)
        yield port


async def received(port: socket.socket) -> int:
    """What comes in on the first connection until it is reset, in bytes."""
    loop, size = asyncio.get_running_loop(), 0
    with port.accept()[0] as connection:
        connection.setblocking(False)
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionResetError):
                while block := await loop.sock_recv(connection, 2**20):
                    size += len(block)
    return size


@pytest.mark.parametrize("size", [10, 2**24])
async def test_a_request_that_was_given_up_does_not_arrive_later(
    standstill: socket.socket, size: int
) -> None:
    """Neither one that the connection did not take, nor one that only has no answer."""
    api = Api(Server.at("http://{}:{}".format(*standstill.getsockname())), Timeouts(answer=0.2))
    with pytest.raises(ServerUnreachable, match="timed out") as caught:
        await api.prompt({"text": "x" * size})
    assert caught.value.sent
    assert await received(standstill) < 2**24
    with pytest.raises(ServerUnreachable, match="timed out"):
        await api.upload(b"x" * 2**24, "x.png", {})
    await api.close()


async def test_a_request_whose_caller_was_cancelled_does_not_arrive_later(
    standstill: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, write = asyncio.Event(), Body.write

    async def telling(body: Body, writer: AbstractStreamWriter) -> None:
        begun.set()
        await write(body, writer)

    monkeypatch.setattr(Body, "write", telling)
    api = Api(Server.at("http://{}:{}".format(*standstill.getsockname())), Timeouts())
    sending = asyncio.create_task(api.prompt({"text": "x" * 2**24}))
    await begun.wait()
    sending.cancel()
    await asyncio.wait([sending])
    assert await received(standstill) < 2**24
    await api.close()


@pytest.mark.parametrize("lost", [True, False])
async def test_a_kept_connection_that_is_half_open_costs_one_timeout(comfyui: Sim, lost: bool) -> None:
    async with FaultProxy(comfyui.url) as proxy:
        api = Api(Server.at(proxy.url), Timeouts(answer=0.2))
        assert await api.remaining() == 0
        proxy.freeze(lost=lost, new=False)
        with pytest.raises(ServerUnreachable, match="timed out"):
            await api.prompt({"prompt": {}, "padding": "x" * 2**24})
        assert await api.remaining() == 0
        await api.close()


async def test_large_bodies_arrive_whole(comfyui: Sim, real: Api) -> None:
    data = bytes(range(256)) * 2**13
    up = await real.upload(data, "large.bin", {"type": "temp"})
    seen = b""
    async with real.open_view(OutputFile("1", up.name, "", "temp")) as found:
        async for block in found.chunks():
            seen += block
    assert seen == data
    with pytest.raises(WorkflowRejected):
        await real.prompt({"prompt": {}, "text": "ü" * 2**20})


def test_a_body_is_text_to_whoever_asks() -> None:
    assert Body(b"a", None, "text/plain").decode() == "a"


async def test_a_slow_answer_is_waited_for(comfyui: Sim, real: Api) -> None:
    comfyui.faults.add("GET", "/prompt", delay(0.05))
    assert await real.remaining() == 0


async def test_an_endless_answer_is_cut_off(comfyui: Sim, real: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_SIZE", 2**20)
    comfyui.faults.add("GET", "/system_stats", endless())
    with pytest.raises(BadAnswer, match="sends more than 1 MiB"):
        await real.system_stats()


async def test_deep_json_is_a_bad_answer(comfyui: Sim, real: Api) -> None:
    comfyui.faults.add("GET", "/features", answer(200, b'{"a":' * 50_000, content_type="application/json"))
    with pytest.raises(BadAnswer):
        await real.features()


async def test_redirects_are_followed_for_reading_only_and_not_for_ever(comfyui: Sim, real: Api) -> None:
    comfyui.faults.add("GET", "/features", redirect("/api/features"))
    assert await real.features()
    comfyui.faults.add("GET", "/features", redirect("/features"), times=None)
    with pytest.raises(BadAnswer, match="sends the request on"):
        await real.features()
    comfyui.faults.add("GET", "/system_stats", redirect("https://login.invalid/"))
    with pytest.raises(BadAnswer, match="login"):
        await real.system_stats()
    comfyui.faults.add("POST", "/prompt", redirect("https://elsewhere/prompt"))
    with pytest.raises(BadAnswer, match="https://elsewhere/prompt"):
        await real.prompt({})


async def test_a_files_size_is_told_without_reading_it(comfyui: Sim, real: Api) -> None:
    uploaded = await real.upload(b"12345", "x.png", {"type": "temp"})
    assert await real.view_size(OutputFile("1", uploaded.name, type="temp")) == 5
    assert await real.view_size(FILE) is None


async def test_a_part_of_a_file_is_read_only_while_the_file_is_the_same(comfyui: Sim, real: Api) -> None:
    await real.upload(b"0123456789", "x.bin", {"type": "output"})
    file = OutputFile("1", "x.bin")
    async with real.open_view(file) as whole:
        assert (whole.status, whole.length, whole.total) == (200, 10, None)
        etag = whole.etag
    async with real.open_view(file, offset=4, etag=etag) as part:
        assert (part.status, part.length, part.total) == (206, 6, 10)
        assert b"".join([chunk async for chunk in part.chunks()]) == b"456789"
    async with real.open_view(file, offset=4, etag='"other"') as changed:
        assert changed.status == 412
    async with real.open_view(file, offset=10, etag=etag) as behind:
        assert (behind.status, behind.total) == (416, 10)
    async with real.open_view(OutputFile("1", "gone")) as gone:
        assert gone.status == 404
    comfyui.faults.add("GET", "/view", answer(503))
    with pytest.raises(BadAnswer) as caught:
        async with real.open_view(file):
            pass
    assert caught.value.status == 503
