"""`/object_info`: the node classes of a server, for converting and checking workflows.

The answer has 1 to 30 MB and changes rarely, so it is kept on disk for each server and version, and is read
off the event loop. Lists of files in it do change (a model that was added, a file that was uploaded): whoever
is about to refuse something because of a kept answer asks the server anew first.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import msgspec
import platformdirs

from .errors import BadAnswer, ServerError, UsageError
from .whole import write_whole

log = logging.getLogger("comfyflow.nodeinfo")

T = TypeVar("T")

_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
KEPT = 30 * 24 * 3600.0  # s; what is older is not believed any more
_SUFFIX = ".classes"
_UNPACK: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\xfd7zXZ\0": lzma.decompress,
    b"\x1f\x8b": gzip.decompress,
}


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The node classes of one server, as `/object_info` tells them.

    `source` is the server's URL or the file's name; `cached`: it comes from the disk, and may be out of date.
    """

    classes: Mapping[str, Any]
    source: str
    cached: bool = False


class Classes(Mapping[str, Any]):
    """The classes of an answer of `/object_info`; each is decoded when it is first asked for.

    So 30 MB are there in 30 ms instead of 500, during which no other task could run.
    """

    def __init__(self, parts: Mapping[str, msgspec.Raw | str]) -> None:
        self._parts = parts
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = _decoded(self._parts[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts


class Asked(Protocol):
    """A server that can be asked: a ComfyClient."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The server's URL, without a password."""

    async def system_stats(self) -> dict[str, Any]:
        """GET /system_stats."""

    async def object_info_text(self) -> bytes:
        """GET /object_info."""


def from_file(path: str | os.PathLike[str]) -> NodeInfo:
    """Read a saved answer of `/object_info` (JSON, also packed by gzip or xz). Raises UsageError."""
    name = os.fspath(path)
    try:
        data = Path(path).read_bytes()
        for head, unpack in _UNPACK.items():
            data = unpack(data) if data.startswith(head) else data
        classes = _classes(data)
    except (ValueError, RecursionError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UsageError(f"{name} is not the JSON that a server's /object_info answers") from error
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from error
    if classes is None:
        raise UsageError(f"{name} is not what a server's /object_info answers: a mapping of node classes")
    return NodeInfo(classes, name)


async def node_info(server: Asked, *, fresh: bool = False) -> NodeInfo:
    """The classes of a server: from the disk when they are kept for its version, else (or when `fresh`) from
    the server itself, and kept then.

    Raises ServerError. Cancelling it leaves what was kept as it was.
    """
    url = server.addresses[0]
    path = _place(url, await _version(server))
    if not fresh:
        kept = await anyio.to_thread.run_sync(_kept, path)
        if kept is not None:
            return NodeInfo(kept, url, cached=True)
    text = await server.object_info_text()
    classes = await anyio.to_thread.run_sync(_read, text, url)
    await anyio.to_thread.run_sync(_keep, path, text)
    return NodeInfo(classes, url)


async def first_info(servers: Sequence[Asked]) -> NodeInfo:
    """What the first server that answers has now. Raises ServerError when none does."""
    return await first_answer(servers, partial(node_info, fresh=True))


async def first_answer(servers: Sequence[Asked], ask: Callable[[Asked], Awaitable[T]]) -> T:
    """What the first server that can be asked says. Raises ServerError when none can."""
    fault: ServerError | None = None
    for server in servers:
        try:
            return await ask(server)
        except ServerError as error:
            fault = error
    assert fault is not None  # there is at least one server
    raise fault


async def giving(
    server: Asked, kinds: Collection[str], known: MutableMapping[str, bool]
) -> frozenset[str] | None:
    """Those of the classes that give files or texts, or of which the server does not tell; None where it
    tells nothing. `known` is what it told before, and is filled.

    They are output nodes, and nodes that show what passes through them (server.py, `output_node` and
    `has_intermediate_output`, 0.27.0), whether something is linked to them or not.
    """
    try:
        if not known.keys() >= set(kinds):
            info = await node_info(server)
            if info.cached and any(kind not in info.classes for kind in kinds):
                info = await node_info(server, fresh=True)
            known.update({kind: _gives(info.classes.get(kind)) for kind in kinds})
    except ServerError:
        return None
    return frozenset(kind for kind in kinds if known[kind])


def _gives(entry: object) -> bool:
    flags = ("output_node", "has_intermediate_output")
    return not isinstance(entry, Mapping) or any(entry.get(flag) for flag in flags)


def _read(text: bytes, url: str) -> Mapping[str, Any]:
    """Raises BadAnswer for what is not ComfyUI's."""
    try:
        classes = _classes(text)
    except (ValueError, RecursionError):
        classes = None
    if classes is None:
        message = f"{url} does not answer as ComfyUI does: /object_info is no mapping of node classes"
        raise BadAnswer(message, method="GET", url=f"{url}/object_info", status=200, body=_head(text))
    return classes


def _head(text: bytes) -> str:
    return text[:200].decode("utf-8", "replace")


def _classes(text: bytes) -> Mapping[str, Any] | None:
    """Raises ValueError or RecursionError for what is no JSON; None for JSON of another kind."""
    parts: Mapping[str, msgspec.Raw | str]
    if not text.isascii():  # ComfyUI's answers are ASCII; a file may hold anything
        text = text.decode().removeprefix("\ufeff").encode()
    try:
        parts = _PARTS.decode(text)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RecursionError):
        parts = _walked(text.decode())
    found = Classes(parts)
    first = next(iter(found.values()), None)
    return found if isinstance(first, Mapping) and "input" in first else None


def _decoded(part: msgspec.Raw | str) -> Any:
    """One class. Infinity stays what it is, as it is a limit that nothing exceeds; only Python reads it."""
    if isinstance(part, str):
        return json.loads(part)
    try:
        return msgspec.json.decode(part)
    except msgspec.DecodeError:  # a number like 1e999
        return json.loads(bytes(part))


def _walked(text: str) -> dict[str, msgspec.Raw | str]:
    """The same for what is not strictly JSON, as Python writes it: NaN, Infinity, lone surrogates.

    Class by class, so that other threads have their turns in between. Raises ValueError, RecursionError.
    """
    found: dict[str, msgspec.Raw | str] = {}
    place = _skip(text, _expect(text, 0, "{"))
    while text[place : place + 1] != "}":
        name, place = _DECODER.raw_decode(text, place)
        start = _skip(text, _expect(text, place, ":"))
        _, place = _DECODER.raw_decode(text, start)
        found[str(name)] = text[start:place]
        place = _skip(text, place)
        if text[place : place + 1] != "}":
            place = _skip(text, _expect(text, place, ","))
    if text[place + 1 :].strip():
        raise ValueError("there is more behind it")
    return found


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None  # it takes anything
    return found.end()


def _expect(text: str, place: int, sign: str) -> int:
    place = _skip(text, place)
    if text[place : place + 1] != sign:
        raise ValueError(f"a {sign} is missing")
    return place + 1


async def _version(server: Asked) -> str:
    """What the classes depend on: ComfyUI's version and how it was started (`--disable-api-nodes`)."""
    system = (await server.system_stats()).get("system")
    found = system if isinstance(system, Mapping) else {}
    return json.dumps([found.get("comfyui_version"), found.get("argv")], default=str)


def _place(url: str, version: str) -> Path:
    chosen = os.environ.get("COMFYFLOW_CACHE")
    folder = Path(chosen) if chosen else platformdirs.user_cache_path("comfyflow", appauthor=False)
    digest = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:32]
    return folder / "nodes" / f"{digest}{_SUFFIX}"


def _kept(path: Path) -> Mapping[str, Any] | None:
    """The kept answer; a damaged one counts as none, and is replaced by the next.

    It stands there as the server told it, behind its checksum: to pack it costs more than to read it.
    """
    try:
        if time.time() - path.stat().st_mtime > KEPT:
            return None
        check, _, text = path.read_bytes().partition(b"\n")
        return _classes(text) if check == _checksum(text) else None
    except (OSError, ValueError, RecursionError):
        return None


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _keep(path: Path, text: bytes) -> None:
    """Write it whole or not at all; a disk that does not take it costs nothing but time."""
    try:
        write_whole(path, _checksum(text), b"\n", text, suffix=_SUFFIX)
        _tidy(path.parent)
    except OSError as error:
        log.info("the node classes are not kept: %s", error)


def _tidy(folder: Path) -> None:
    """Take away what is too old to be believed: of servers that are gone, of processes that were killed."""
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink()
