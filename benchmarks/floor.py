"""The least that a program can do to get pictures out of ComfyUI: what comfyflow is measured against.

One aiohttp session, one WebSocket, json. Nothing is checked, verified, resumed or flushed; any fault ends it.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from websockets.asyncio.client import ClientConnection, connect


class Floor:
    """Use `Floor.opened`."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session
        self.client_id = uuid.uuid4().hex
        self.ended: dict[str, asyncio.Event] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncIterator[Floor]:
        """A session and a socket that is read until the block ends."""
        async with aiohttp.ClientSession() as session:
            floor = cls(url, session)
            address = f"{url.replace('http', 'ws', 1)}/ws?clientId={floor.client_id}"
            async with connect(address, max_size=None, compression=None) as socket:
                reader = asyncio.create_task(floor.read(socket))
                yield floor
                reader.cancel()

    async def read(self, socket: ClientConnection) -> None:
        """Wake whoever waits for a job that ended."""
        async for frame in socket:
            if isinstance(frame, bytes):
                continue
            message = json.loads(frame)
            if message["type"] == "executing" and message["data"]["node"] is None:
                self.ended[message["data"]["prompt_id"]].set()

    async def run(self, graph: Mapping[str, Any], folder: Path) -> None:
        """Submit, wait, download every file."""
        prompt_id = str(uuid.uuid4())
        self.ended[prompt_id] = asyncio.Event()
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": self.client_id}
        async with self.session.post(f"{self.url}/prompt", json=body) as answer:
            await answer.json()
        await self.ended[prompt_id].wait()
        async with self.session.get(f"{self.url}/history/{prompt_id}") as answer:
            outputs = (await answer.json())[prompt_id]["outputs"]
        for files in outputs.values():
            for file in files["images"]:
                await self.download(file, folder)

    async def download(self, file: Mapping[str, str], folder: Path) -> None:
        """Read the file in one piece and write it."""
        async with self.session.get(f"{self.url}/view", params=file) as answer:
            (folder / file["filename"]).write_bytes(await answer.read())
