"""A file from the web, as an input of a workflow: fetched with limits, and never from inside the network.

Every address that a name stands for is looked at before a connection is made to it, and the connection is
made to that same address; each redirect is looked at anew.
"""

from __future__ import annotations

import ipaddress
import mimetypes
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from .errors import InputUnavailable
from .names import safe_name

LIMIT = 512 * 1024 * 1024  # bytes
REDIRECTS = 5
TOTAL, STALL = 600.0, 30.0  # s
CHUNK = 256 * 1024  # bytes
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_url(text: str) -> bool:
    """Whether this names a file of the web."""
    return text.startswith(("http://", "https://"))


async def fetch_file(url: str, folder: Path, *, limit: int = LIMIT, private: bool = False) -> Path:
    """Save what a URL answers in `folder`, at most `limit` bytes, and give its path.

    Addresses that are not of the public internet are refused unless `private`. Nothing of ours is sent along:
    no cookies, no credentials. Raises InputUnavailable; then, and when it is cancelled, no file stays.
    """
    resolver = None if private else _Public()
    connector = aiohttp.TCPConnector(resolver=resolver)
    timeout = aiohttp.ClientTimeout(total=TOTAL, sock_connect=STALL, sock_read=STALL)
    try:
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            return await _followed(session, URL(url), folder, limit, private=private)
    except TimeoutError as error:
        raise InputUnavailable(f"{_shown(url)} was not there in time: try again, or give a file") from error
    except _NotPublic as error:
        raise InputUnavailable(f"{_shown(url)}: {error}; allow that with --allow-private") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, _NotPublic) else None
        hint = "; allow that with --allow-private" if cause else ""
        raise InputUnavailable(f"{_shown(url)} cannot be fetched: {cause or error}{hint}") from error


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
            return await _saved(answer, folder / _name(url, answer.content_type), limit)
    raise InputUnavailable(f"{_shown(str(url))} redirects more than {REDIRECTS} times")


async def _saved(answer: aiohttp.ClientResponse, path: Path, limit: int) -> Path:
    try:
        with path.open("wb") as file:
            async for part in _limited(answer, limit):
                file.write(part)
    except BaseException:
        os.unlink(path)
        raise
    return path


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


def _name(url: URL, content_type: str) -> str:
    name = safe_name(unquote(url.path.rpartition("/")[2]) or "input")
    return name if "." in name else name + (mimetypes.guess_extension(content_type) or "")


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
        if found.teredo is not None:
            return False
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast and not found.is_reserved
