"""Upload a picture, let a workflow paint over it. Run it with COMFYFLOW_URL set, or with --simulate."""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import zlib
from pathlib import Path

from comfyflow import ComfyClient, MemoryStore, Runner, Workflow
from comfyflow.sim import Sim


async def main(url: str) -> None:
    workflow = Workflow.load(Path(__file__).with_name("image_to_image.json")).seed("random")
    async with ComfyClient(url) as client, Runner(client, MemoryStore(), "comfyflow-output") as runner:
        uploaded = await client.upload_image(picture(256), name="hills.png")
        done = await runner.run(workflow.set("Picture.image", uploaded.reference))
        for saved in done.files:
            print(f"{saved.path} ({saved.width} x {saved.height}, {saved.size} bytes)")


def picture(size: int) -> bytes:
    """A colour gradient as a PNG, so that the example needs no file of yours."""
    rows = b"".join(
        b"\0" + bytes(v for x in range(size) for v in (x % 256, y % 256, 128)) for y in range(size)
    )
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


async def start() -> None:
    if "--simulate" in sys.argv:
        async with Sim() as server:
            await main(server.url)
    else:
        await main(os.environ.get("COMFYFLOW_URL", "http://127.0.0.1:8188"))


asyncio.run(start())
