"""A workflow in, its picture out. Run it with COMFYFLOW_URL set, or with --simulate."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from comfyflow import ComfyClient, Workflow
from comfyflow.sim import Sim


async def main(url: str) -> None:
    workflow = Workflow.load(Path(__file__).with_name("text_to_image.json"))
    workflow = workflow.set("Positive.text", "a red fox on a hill").seed("random")
    async with ComfyClient(url) as client:
        prompt_id = await client.submit_workflow(workflow)
        for saved in await client.download_images(prompt_id, "comfyflow-output"):
            print(saved.path)


async def start() -> None:
    if "--simulate" in sys.argv:
        async with Sim() as server:
            await main(server.url)
    else:
        await main(os.environ.get("COMFYFLOW_URL", "http://127.0.0.1:8188"))


asyncio.run(start())
