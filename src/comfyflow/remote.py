"""A file from the web, as an input of a workflow: fetched with limits, and never from inside the network.

Every address that a name stands for is looked at before a connection is made to it, and the connection is
made to that same address; each redirect is looked at anew.
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
from collections.abc import AsyncIterator
from email.message import Message
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from anyio import fail_after, to_thread
from yarl import URL

from .errors import InputUnavailable
from .media import HEAD_SIZE, media_type_of, sniff, suffix_of
from .names import safe_name, split_suffix

LIMIT = 512 * 1024 * 1024  # bytes
REDIRECTS = 5
TOTAL, STALL = 600.0, 30.0  # s
CHUNK = 256 * 1024  # bytes

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")  # all of the IPv6 internet, by RFC 4291
# What older versions of `ipaddress` take for public, and where clouds answer with a machine's secrets.
_INSIDE = [
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's own services, at a public address
        "192.0.0.0/24",  # IETF assignments; Oracle's metadata are at 192.0.0.192
        "192.88.99.0/24",  # 6to4 relays
        "3fff::/20",  # documentation
    )
]


def is_url(text: str) -> bool:
    """Whether this names a file of the web."""
    return text[:8].lower().startswith(("http://", "https://"))


async def fetch_file(url: str, folder: Path, *, limit: int = LIMIT, private: bool = False) -> Path:
    """Save what a URL answers in a new folder inside of `folder`, at most `limit` bytes, and give its path.

    The file is called as the server or the URL calls it, with a suffix for what it is. Addresses that are
    not of the public internet are refused unless `private`. Nothing of ours is sent along: no cookies, no
    credentials. Raises InputUnavailable; then, and when it is cancelled, no file stays. It takes at most
    `TOTAL` seconds with all redirects.
    """
    own = Path(await to_thread.run_sync(partial(mkdtemp, dir=folder)))
    try:
        return await _fetched(url, own, limit, private=private)
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise


async def _fetched(url: str, folder: Path, limit: int, *, private: bool) -> Path:
    """Raises InputUnavailable, without what may be a secret: aiohttp's own words can hold the whole URL."""
    try:
        with fail_after(TOTAL):
            async with _session(private) as session:
                return await _followed(session, URL(url), folder, limit, private=private)
    except TimeoutError as error:
        raise InputUnavailable(f"{_shown(url)} was not there in time: try again, or give a file") from error
    except _NotPublic as error:
        raise InputUnavailable(_inside(url, error)) from error
    except aiohttp.ClientResponseError as error:
        raise InputUnavailable(f"{_shown(url)} cannot be fetched: {error.message}") from None
    except (aiohttp.InvalidURL, ValueError):
        reason = "is no address of the web, or redirects to what is none"
        raise InputUnavailable(f"{_shown(url)} {reason}") from None
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error.__cause__, _NotPublic):
            raise InputUnavailable(_inside(url, error.__cause__)) from error
        raise InputUnavailable(f"{_shown(url)} cannot be fetched: {error}") from error


def _inside(url: str, error: _NotPublic) -> str:
    return f"{_shown(url)} cannot be fetched: {error}; allow that with --allow-private"


def _session(private: bool) -> aiohttp.ClientSession:
    if private:
        connector = aiohttp.TCPConnector()
    else:
        connector = aiohttp.TCPConnector(resolver=_Public(), socket_factory=_socket)
    timeout = aiohttp.ClientTimeout(total=None, connect=STALL, sock_connect=STALL, sock_read=STALL)
    cookies = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=cookies, trust_env=False)


async def _followed(
    session: aiohttp.ClientSession, url: URL, folder: Path, limit: int, *, private: bool
) -> Path:
    for _ in range(REDIRECTS + 1):
        if url.scheme not in ("http", "https") or not url.host:
            raise InputUnavailable(f"{_shown(str(url))} is no http or https address")
        if not private:
            _check_literal(url.host)
        headers = {"Accept-Encoding": "identity"}
        async with session.get(url, allow_redirects=False, headers=headers) as answer:
            if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                url = url.join(URL(answer.headers["Location"]))
                continue
            if answer.status != 200:
                raise InputUnavailable(f"{_shown(str(url))} answers with status {answer.status}")
            return await _saved(answer, folder, limit)
    raise InputUnavailable(f"{_shown(str(url))} redirects more than {REDIRECTS} times")


async def _saved(answer: aiohttp.ClientResponse, folder: Path, limit: int) -> Path:
    path, head = folder / ".part", b""
    with path.open("wb") as file:
        async for part in _limited(answer, limit):
            head = head or part[:HEAD_SIZE]
            await to_thread.run_sync(file.write, part)
    kind = sniff(head)
    if kind == "text/html":
        reason = "answers with a web page: give the address of the file itself"
        raise InputUnavailable(f"{_shown(str(answer.url))} {reason}")
    return path.rename(folder / _name(answer, kind))


async def _limited(answer: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """The body, unless it is too large: what it announces counts, and what really comes."""
    size = answer.content_length or 0
    if size <= limit:
        size = 0
        async for part in answer.content.iter_chunked(CHUNK):
            size += len(part)
            if size > limit:
                break
            yield part
    if size > limit:
        raise InputUnavailable(f"{_shown(str(answer.url))} is larger than {limit:,} bytes")


def _name(answer: aiohttp.ClientResponse, kind: str | None) -> str:
    """What the server calls the file, else the URL; nodes choose by the suffix how they read it."""
    header = Message()
    header["Content-Disposition"] = answer.headers.get("Content-Disposition", "")
    told = (header.get_filename() or "").strip('" ')
    name = safe_name(told or answer.url.name or "input")
    suffix = suffix_of(kind or "") or suffix_of(answer.content_type)
    has_one = suffix_of(media_type_of(split_suffix(name)[1][1:].lower()) or "") is not None
    return name if suffix is None or has_one else f"{name}.{suffix}"


def _shown(url: str) -> str:
    """The URL without what may be a secret."""
    try:
        bare = URL(url).with_user(None).with_query(None).with_fragment(None)
    except ValueError:
        return "the address"
    return str(bare)


class _NotPublic(OSError):
    """An address inside of some network."""


class _Public(AbstractResolver):
    """Names to addresses, public ones alone; what is connected to is what was looked at."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for one in found:
            _check(host, one["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """The last look, at what really is connected to, whatever the name of the host was taken for."""
    family, kind, protocol, _, target = address
    _check(str(target[0]), str(target[0]))
    return socket.socket(family, kind, protocol)


def _check_literal(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return  # a name, which the resolver looks at
    _check(host, host)


def _check(host: str, address: str) -> None:
    if not is_public(address):
        raise _NotPublic(f"{host} is an address inside of a network, not of the public internet")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it stands inside of an IPv6 one."""
    found: ipaddress.IPv4Address | ipaddress.IPv6Address
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found not in _UNICAST or found.teredo is not None:
            return False
    if any(found in network for network in _INSIDE):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved
