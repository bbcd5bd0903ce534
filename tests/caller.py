"""A client with nothing in it but aiohttp, for tests of the simulator, and small graphs to submit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from comfyflow.sim import FaultProxy, Sim

Graph = dict[str, Any]


def picture(color: Any = 1, prefix: str = "pic", size: int = 16) -> Graph:
    inputs = {"width": size, "height": size, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def alone(class_type: str, **inputs: Any) -> Graph:
    return {"1": {"class_type": class_type, "inputs": inputs}}


def sampled(seed: int = 5, steps: int = 4, text: str = "a red fox") -> Graph:
    sampler = {
        "model": ["1", 0], "seed": seed, "steps": steps, "cfg": 7.0, "sampler_name": "euler",
        "scheduler": "normal", "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
        "denoise": 1.0,
    }  # fmt: skip
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sim.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 32, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": sampler},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "fox"}},
    }


class Caller:
    """What the tests ask of a server."""

    def __init__(self, sim: Sim, session: aiohttp.ClientSession, proxy: FaultProxy | None = None) -> None:
        """`proxy` is asked in place of `sim`, and does what is ordered."""
        self.sim, self.session = sim, session
        self.proxy = proxy
        self.faults = (proxy or sim).faults

    @property
    def url(self) -> str:
        return (self.proxy or self.sim).url

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body, **options) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text

    async def get(self, path: str, **options: Any) -> tuple[int, bytes]:
        async with self.session.get(self.url + path, **options) as response:
            return response.status, await response.read()

    async def json(self, path: str) -> Any:
        return json.loads((await self.get(path))[1])

    async def submit(self, graph: Graph, **more: Any) -> str:
        status, answer = await self.post("/prompt", {"prompt": graph, **more})
        assert status == 200, answer
        return str(answer["prompt_id"])

    async def finished(self, graph: Graph, **more: Any) -> dict[str, Any]:
        """Submit, wait for the end, and return the history entry."""
        prompt_id = await self.submit(graph, **more)
        await self.sim.wait_for(lambda: not self.sim.engine.remaining)
        entry: dict[str, Any] = (await self.json(f"/history/{prompt_id}"))[prompt_id]
        return entry

    async def saved(self, graph: Graph) -> str:
        """Submit, and return the /view path of the file."""
        entry = await self.finished(graph, client_id="me")
        (file,) = [item for ui in entry["outputs"].values() for items in ui.values() for item in items]
        return f"/view?filename={file['filename']}&subfolder={file['subfolder']}&type={file['type']}"

    def socket(self, client_id: str = "me") -> Any:
        return self.session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0)


@asynccontextmanager
async def calling(**options: Any) -> AsyncIterator[Caller]:
    async with Sim(**options) as sim, aiohttp.ClientSession() as session:
        yield Caller(sim, session)


async def heard(ws: aiohttp.ClientWebSocketResponse, last: str = '"node": null') -> list[Any]:
    """Messages up to the one with `last` in it; binary ones as bytes."""
    messages: list[Any] = []
    async with asyncio.timeout(5):
        async for message in ws:
            messages.append(message.data if isinstance(message.data, bytes) else json.loads(message.data))
            if isinstance(message.data, str) and last in message.data:
                return messages
    raise AssertionError(messages)
