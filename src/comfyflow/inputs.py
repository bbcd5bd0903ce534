"""Local files that jobs take in: each is put onto a server once, before the first job that names it, under a
name made of its content. So no job can change what another one reads."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from anyio import to_thread

from .batch import upload_name
from .errors import UsageError
from .workflow import Workflow

KEPT = 10_000  # files that are remembered; one that is named again is read again after that

Upload = Callable[[bytes, str], Awaitable[str]]  # (content, name) -> the name that the server gave it


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file and the name that jobs know it by."""

    name: str
    source: Path | bytes
    digest: str

    def read(self) -> bytes:
        """Its content. Raises UsageError when that is no longer the one that the name was made of."""
        if isinstance(self.source, bytes):
            return self.source
        data = _content(self.source)
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise UsageError(f"{self.source} has changed since it was read first: run it again")
        return data


class Inputs:
    """The files that jobs may name. Shared by the servers of a pool."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, InputFile] = OrderedDict()

    async def add(self, source: Path | str | bytes, name: str | None = None) -> str:
        """Know a file, and give the name to put into a workflow. `name` is what bytes are called: its suffix
        is kept. Raises UsageError when the file cannot be read."""
        content = source if isinstance(source, bytes) else Path(source)
        digest = await to_thread.run_sync(_digest, content)
        called = Path(name or "content.png") if isinstance(content, bytes) else content
        file = InputFile(upload_name(digest, called), content, digest)
        self._files[file.name] = file
        self._files.move_to_end(file.name)
        if len(self._files) > KEPT:
            self._files.popitem(last=False)
        return file.name

    def named_in(self, workflow: Workflow) -> Iterator[InputFile]:
        """The files that a workflow names."""
        if not self._files:
            return
        for node in workflow.nodes.values():
            for value in node["inputs"].values():
                if isinstance(value, str) and (file := self._files.get(value)) is not None:
                    yield file


class Brought:
    """What of it one server has."""

    def __init__(self, inputs: Inputs, upload: Upload) -> None:
        self.inputs, self._upload = inputs, upload
        self._there: OrderedDict[str, None] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def forget(self) -> None:
        """The server was away: its folder may be empty now. To put a file there again changes nothing."""
        self._there.clear()

    async def bring(self, workflow: Workflow) -> None:
        """Put there what the workflow names. Raises UsageError, and what the upload raises."""
        for file in self.inputs.named_in(workflow):
            lock = self._locks.setdefault(file.name, asyncio.Lock())
            async with lock:
                if file.name not in self._there:
                    await self._put(file)

    async def _put(self, file: InputFile) -> None:
        name = await self._upload(await to_thread.run_sync(file.read), file.name)
        if name != file.name:
            raise UsageError(
                f"the server has another file called {file.name}: take that out of its input folder"
            )
        self._there[file.name] = None
        if len(self._there) > KEPT:
            self._there.popitem(last=False)


def _digest(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
