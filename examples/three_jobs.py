"""Three jobs at once inside an async program. Run it with COMFYFLOW_URL set, or with --simulate."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from comfyflow import ComfyClient, MemoryStore, Runner, Workflow
from comfyflow.sim import Sim


async def main(url: str) -> None:
    workflow = Workflow.load(Path(__file__).with_name("text_to_image.json"))
    prompts = ["a red fox", "a grey owl", "a green frog"]
    jobs = [workflow.set("Positive.text", prompt).seed("random") for prompt in prompts]
    async with ComfyClient(url) as client, Runner(client, MemoryStore(), "comfyflow-output") as runner:
        async for done in runner.run_many(jobs, concurrency=3):  # one socket follows them all
            if done.error is not None:
                print(f"{done.job.prompt_text}: {done.error}")
            for saved in done.files:
                print(f"{done.job.prompt_text}: {saved.path}")


async def start() -> None:
    if "--simulate" in sys.argv:
        async with Sim() as server:
            await main(server.url)
    else:
        await main(os.environ.get("COMFYFLOW_URL", "http://127.0.0.1:8188"))


asyncio.run(start())
