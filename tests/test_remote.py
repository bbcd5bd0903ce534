"""Files from the web, from real servers on this machine."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from comfyflow import remote
from comfyflow.errors import InputUnavailable
from comfyflow.remote import fetch_file, is_public, is_url

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(**handlers: Handler) -> AsyncIterator[str]:
    """A server with a route for each handler; gives its address."""
    app = web.Application()
    for name, handler in handlers.items():
        app.router.add_get(f"/{name}", handler)
        app.router.add_get(f"/{name}/{{rest}}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def picture(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"pixels", content_type="image/png")


async def test_a_file_is_saved_under_its_name(tmp_path: Path) -> None:
    async with serving(cat=picture) as url:
        path = await fetch_file(f"{url}cat/my%20cat.png?secret=1", tmp_path, private=True)
        assert (path.name, path.read_bytes()) == ("my cat.png", b"pixels")
        assert (await fetch_file(f"{url}cat", tmp_path, private=True)).name == "cat.png"


async def test_nothing_of_ours_is_sent_along(tmp_path: Path) -> None:
    seen: list[web.Request] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        answer = web.Response(body=b"x")
        answer.set_cookie("a", "b")
        return answer

    async with serving(look=look) as url:
        await fetch_file(f"{url}look", tmp_path, private=True)
        await fetch_file(f"{url}look", tmp_path, private=True)
    assert not any({"Cookie", "Authorization"} & set(request.headers) for request in seen)


@pytest.mark.parametrize("limit", [5, 0])
async def test_a_file_that_is_too_large_is_refused_and_does_not_stay(limit: int, tmp_path: Path) -> None:
    async with serving(cat=picture) as url:
        with pytest.raises(InputUnavailable, match=f"larger than {limit} bytes"):
            await fetch_file(f"{url}cat", tmp_path, limit=limit, private=True)
    assert list(tmp_path.iterdir()) == []


async def test_a_body_without_a_length_is_counted(tmp_path: Path) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65536)

    async with serving(endless=endless) as url:
        with pytest.raises(InputUnavailable, match="larger than"):
            await fetch_file(f"{url}endless", tmp_path, limit=1_000_000, private=True)
    assert list(tmp_path.iterdir()) == []


async def test_what_a_packed_body_becomes_is_counted(tmp_path: Path) -> None:
    async def bomb(request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(bytes(5_000_000)), headers={"Content-Encoding": "gzip"})

    async with serving(bomb=bomb) as url:
        with pytest.raises(InputUnavailable, match="larger than"):
            await fetch_file(f"{url}bomb", tmp_path, limit=1_000_000, private=True)
    assert list(tmp_path.iterdir()) == []


async def test_a_body_that_is_cut_short_is_not_taken(tmp_path: Path) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": "100"})
        await answer.prepare(request)
        await answer.write(b"x")
        assert request.transport is not None
        request.transport.close()
        return answer

    async with serving(cut=cut) as url:
        with pytest.raises(InputUnavailable, match="cannot be fetched"):
            await fetch_file(f"{url}cut", tmp_path, private=True)
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_stalls_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(remote, "STALL", 0.05)
    async with serving(stall=stall) as url:
        with pytest.raises(InputUnavailable, match="was not there in time"):
            await fetch_file(f"{url}stall", tmp_path, private=True)


async def test_redirects_are_followed_a_few_times(tmp_path: Path) -> None:
    async def once(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/cat/there.png")

    async def forever(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/forever")

    async with serving(cat=picture, once=once, forever=forever) as url:
        assert (await fetch_file(f"{url}once", tmp_path, private=True)).name == "there.png"
        with pytest.raises(InputUnavailable, match="redirects more than 5 times"):
            await fetch_file(f"{url}forever", tmp_path, private=True)


@pytest.mark.parametrize("target", ["ftp://example.com/x", "file:///etc/passwd"])
async def test_a_redirect_to_something_else_is_refused(target: str, tmp_path: Path) -> None:
    async def away(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(target)

    async with serving(away=away) as url:
        with pytest.raises(InputUnavailable, match="no http or https address"):
            await fetch_file(f"{url}away", tmp_path, private=True)


async def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    async with serving() as url:
        with pytest.raises(InputUnavailable, match=r"/nothing answers with status 404$"):
            await fetch_file(f"{url}nothing?token=secret", tmp_path, private=True)
    with pytest.raises(InputUnavailable, match="cannot be fetched"):
        await fetch_file("http://127.0.0.1:1/x", tmp_path, private=True)
    with pytest.raises(InputUnavailable, match=r"^the address cannot be fetched"):
        await fetch_file("http://[/x", tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "[::ffff:127.0.0.1]"])
async def test_addresses_inside_of_a_network_are_refused(host: str, tmp_path: Path) -> None:
    async with serving(cat=picture) as url:
        port = url.rstrip("/").rpartition(":")[2]
        with pytest.raises(InputUnavailable, match="--allow-private"):
            await fetch_file(f"http://{host}:{port}/cat", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:1.1.1.1", True),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::101:101", True),
        ("2002:a00:1::", False),
        ("2002:101:101::", True),
        ("2001:0:1:1::", False),
        ("fd00:ec2::254", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("text", "yes"), [("http://x", True), ("https://x", True), ("./x", False), ("ftp://x", False)]
)
def test_what_is_a_url(text: str, yes: bool) -> None:
    assert is_url(text) is yes
