"""Follow a job step by step. Run it with COMFYFLOW_URL set, or with --simulate."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from comfyflow import ComfyClient, Workflow
from comfyflow.sim import Sim


async def main(url: str) -> None:
    workflow = Workflow.load(Path(__file__).with_name("text_to_image.json")).seed("random")
    async with ComfyClient(url) as client:
        prompt_id = await client.submit_workflow(workflow)
        async for view in client.watch(prompt_id):  # always the latest, and the last one is the end
            steps = f" {view.step:g}/{view.steps:g}" if view.step is not None and view.steps else ""
            print(f"{view.state} {view.node_title or ''}{steps}")
        result = await client.wait(prompt_id)  # raises what went wrong, if something did
        print(f"files: {', '.join(output.filename for output in result.outputs)}")


async def start() -> None:
    if "--simulate" in sys.argv:
        async with Sim(step_delay=0.02) as server:
            await main(server.url)
    else:
        await main(os.environ.get("COMFYFLOW_URL", "http://127.0.0.1:8188"))


asyncio.run(start())
