"""Files from the web, from real servers on this machine."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from comfyflow import remote
from comfyflow.errors import InputUnavailable
from comfyflow.remote import fetch_file, is_public, is_url
from comfyflow.sim.pictures import Picture, png

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(host: str = "127.0.0.1", **handlers: Handler) -> AsyncIterator[str]:
    """A server with a route for each handler; gives its address."""
    app = web.Application()
    for name, handler in handlers.items():
        app.router.add_get(f"/{name}", handler)
        app.router.add_get(f"/{name}/{{rest:.*}}", handler)
    async with TestServer(app, host=host) as server:
        yield str(server.make_url("/"))


PNG = png(Picture(8, 4, color=0xFF0000))


async def picture(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"pixels", content_type="image/png")


async def test_a_file_is_saved_under_its_name(tmp_path: Path) -> None:
    async with serving(cat=picture) as url:
        path = await fetch_file(f"{url}cat/my%20cat.png?secret=1", tmp_path, private=True)
        assert (path.name, path.read_bytes()) == ("my cat.png", b"pixels")
        assert (await fetch_file(f"{url}cat", tmp_path, private=True)).name == "cat.png"


@pytest.mark.parametrize(
    ("path", "headers", "body", "name"),
    [
        ("a.jpg", {"Content-Type": "image/png"}, b"x", "a.jpg"),
        ("a.JPG", {"Content-Type": "image/png"}, b"x", "a.JPG"),
        ("view.php", {"Content-Type": "image/webp"}, b"x", "view.php.webp"),
        ("v1.5", {"Content-Type": "image/jpeg; charset=x"}, b"x", "v1.5.jpg"),
        ("view", {}, PNG, "view.png"),
        ("view", {"Content-Type": "application/octet-stream"}, PNG, "view.png"),
        ("view", {"Content-Type": "application/octet-stream"}, b"\0\1", "view"),
        ("", {"Content-Type": "audio/flac"}, b"x", "input.flac"),
        ("a%2Fb.png", {}, b"x", "b.png"),
        ("..%5C..%5Cb.png", {}, b"x", "b.png"),
        ("view", {"Content-Disposition": 'attachment; filename="my cat.png"'}, b"x", "my cat.png"),
        ("view", {"Content-Disposition": "inline; filename*=UTF-8''k%C3%A4.png"}, b"x", "kä.png"),
        ("view", {"Content-Disposition": 'filename="../../x.png"'}, b"x", "x.png"),
        ("a.png", {"Content-Disposition": 'filename="'}, b"x", "a.png"),
        ("a.png", {"Content-Disposition": "attachment; filename="}, b"x", "a.png"),
        ("a.png", {"Content-Disposition": "\xe4;;="}, b"x", "a.png"),
    ],
)
async def test_a_name_is_the_servers_or_the_addresss_with_a_suffix_for_what_it_is(
    path: str, headers: dict[str, str], body: bytes, name: str, tmp_path: Path
) -> None:
    async def named(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers=headers)

    async with serving(named=named) as url:
        saved = await fetch_file(f"{url}named/{path}", tmp_path, private=True)
    assert (saved.name, saved.read_bytes()) == (name, body)
    assert saved.is_relative_to(tmp_path)


async def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    async with serving(cat=picture) as url:
        saved = {await fetch_file(f"{url}cat", tmp_path, private=True) for _ in range(2)}
    assert [path.read_bytes() for path in saved] == [b"pixels"] * 2


async def test_a_web_page_is_no_file(tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"<!doctype html><p>Log in", content_type="image/png")

    async with serving(page=page) as url:
        with pytest.raises(InputUnavailable, match="answers with a web page"):
            await fetch_file(f"{url}page/cat.png", tmp_path, private=True)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("bound", ["STALL", "TOTAL"])
async def test_a_server_that_stalls_is_not_waited_for(
    bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(remote, bound, 0.05)
    async with serving(stall=stall) as url:
        with pytest.raises(InputUnavailable, match="was not there in time"):
            await fetch_file(f"{url}stall", tmp_path, private=True)


async def test_cancelling_leaves_no_file(tmp_path: Path) -> None:
    async def begin(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"x")
        begun.set()
        await asyncio.Event().wait()
        return answer

    begun = asyncio.Event()
    async with serving(begin=begin) as url:
        task = asyncio.create_task(fetch_file(f"{url}begin", tmp_path, private=True))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert list(tmp_path.iterdir()) == []


async def test_an_answer_that_is_no_http_tells_no_secret(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 this is something else\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(InputUnavailable, match="cannot be fetched") as caught:
            await fetch_file(f"http://u:secret@127.0.0.1:{port}/x?token=secret", tmp_path, private=True)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None  # its words hold the whole URL


class Names:
    """A name server whose answers change: each name's next one, the last of them again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list[str]) -> None:
        self.answers, self.asked = answers, 0
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._answer)

    async def _answer(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        self.asked += 1
        found = self.answers[host]
        address = found.pop(0) if len(found) > 1 else found[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))]


PUBLIC = "127.0.0.2"


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of this machine counts as one of the internet."""
    monkeypatch.setattr(remote, "is_public", lambda address: address == PUBLIC)


@pytest.mark.usefixtures("outside")
async def test_the_address_that_was_looked_at_is_the_one_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, rebinding=[PUBLIC, "127.0.0.1"])
    async with serving(PUBLIC, cat=picture) as url:
        port = URL(url).port
        assert (await fetch_file(f"http://rebinding:{port}/cat", tmp_path)).read_bytes() == b"pixels"
        assert names.asked == 1
        with pytest.raises(InputUnavailable, match="rebinding is an address inside of a network"):
            await fetch_file(f"http://rebinding:{port}/cat", tmp_path)


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("host", ["127.0.0.1", "inside", "[::1]", "localhost"])
async def test_a_redirect_to_inside_of_a_network_is_refused(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def away(request: web.Request) -> web.StreamResponse:
        asked.append(request.host)
        raise web.HTTPFound(f"http://{host}:{request.url.port}/away")

    Names(monkeypatch, public=[PUBLIC], inside=["127.0.0.1"], localhost=["127.0.0.1"])
    async with serving("0.0.0.0", away=away) as url:
        with pytest.raises(InputUnavailable, match="--allow-private"):
            await fetch_file(f"http://public:{URL(url).port}/away", tmp_path)
    assert len(asked) == 1
    assert list(tmp_path.iterdir()) == []


async def test_the_last_look_is_at_the_connection_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_check_literal", lambda host: None)
    async with serving(cat=picture) as url:
        with pytest.raises(InputUnavailable, match=r"127\.0\.0\.1 is an address inside of a network"):
            await fetch_file(f"{url}cat", tmp_path)


async def test_credentials_do_not_go_to_another_server(tmp_path: Path) -> None:
    seen: list[bool] = []

    async def there(request: web.Request) -> web.StreamResponse:
        seen.append("Authorization" in request.headers)
        return web.Response(body=b"x")

    async with serving(there=there) as other:

        async def away(request: web.Request) -> web.StreamResponse:
            seen.append("Authorization" in request.headers)
            raise web.HTTPFound(f"{other}there")

        async with serving(away=away) as url:
            given = str(URL(f"{url}away").with_user("u").with_password("secret"))
            await fetch_file(given, tmp_path, private=True)
    assert seen == [True, False]


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
    with pytest.raises(InputUnavailable, match=r"^the address is no address of the web"):
        await fetch_file("http://[/x", tmp_path)


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0", "0177.0.0.1", "127.0.0.1.", "①②⑦.1", "a..b"])
async def test_odd_ways_to_write_an_address_are_not_taken(host: str, tmp_path: Path) -> None:
    async with serving(cat=picture) as url:
        with pytest.raises(InputUnavailable, match="is no address of the web"):
            await fetch_file(f"http://{host}:{URL(url).port}/cat", tmp_path)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "localhost", "[::ffff:127.0.0.1]", "①②⑦.⓪.⓪.①", "0x7f.1"]
)
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
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("203.0.113.1", False),
        ("fec0::1", False),
        ("3fff::1", False),
        ("::7f00:1", False),
        ("64:ff9b:1::a00:1", False),
        ("2001:db8::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("text", "yes"),
    [("http://x", True), ("https://x", True), ("HTTPS://x", True), ("./x", False), ("ftp://x", False)],
)
def test_what_is_a_url(text: str, yes: bool) -> None:
    assert is_url(text) is yes
