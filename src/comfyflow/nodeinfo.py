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
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
import msgspec
import platformdirs

from .errors import BadAnswer, ServerError, UsageError
from .protocol import Malformed, parse_json

log = logging.getLogger("comfyflow.nodeinfo")

_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
KEPT = 30 * 24 * 3600.0  # s; what is older is not believed any more
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
    """The classes of an answer of `/object_info`; each is decoded when it is first asked for."""

    def __init__(self, parts: Mapping[str, msgspec.Raw]) -> None:
        self._parts = parts
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = msgspec.json.decode(self._parts[name])
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
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from error
    except (Malformed, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UsageError(f"{name} is not the JSON that a server's /object_info answers") from error
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
    except Malformed:
        classes = None
    if classes is None:
        message = f"{url} does not answer as ComfyUI does: /object_info is no mapping of node classes"
        raise BadAnswer(message, method="GET", url=f"{url}/object_info", status=200, body=_head(text))
    return classes


def _head(text: bytes) -> str:
    return text[:200].decode("utf-8", "replace")


def _classes(text: bytes) -> Mapping[str, Any] | None:
    """Raises Malformed for what is no JSON; None for JSON of another kind."""
    found: Any
    try:
        found = Classes(_PARTS.decode(text))
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RecursionError):
        found = parse_json(text)  # NaN and Infinity, which ComfyUI may write
    first = next(iter(found.values()), None) if isinstance(found, Mapping) else None
    return found if isinstance(first, Mapping) and "input" in first else None


async def _version(server: Asked) -> str:
    """What the classes depend on: ComfyUI's version and how it was started (`--disable-api-nodes`)."""
    system = (await server.system_stats()).get("system")
    found = system if isinstance(system, Mapping) else {}
    return json.dumps([found.get("comfyui_version"), found.get("argv")], default=str)


def _place(url: str, version: str) -> Path:
    chosen = os.environ.get("COMFYFLOW_CACHE")
    folder = Path(chosen) if chosen else platformdirs.user_cache_path("comfyflow", appauthor=False)
    digest = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:32]
    return folder / "nodes" / f"{digest}.json"


def _kept(path: Path) -> Mapping[str, Any] | None:
    """The kept answer; a damaged one counts as none, and is replaced by the next."""
    try:
        if time.time() - path.stat().st_mtime > KEPT:
            return None
        return _classes(path.read_bytes())
    except (OSError, Malformed):
        return None


def _keep(path: Path, text: bytes) -> None:
    """Write it whole or not at all; a disk that does not take it costs nothing but time."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        log.info("the node classes are not kept: %s", error)
