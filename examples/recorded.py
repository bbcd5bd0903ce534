"""Every job in PostgreSQL: run one, then find its file by the words of its prompt.

Run it with COMFYFLOW_URL and COMFYFLOW_DATABASE_URL set. Without a database it starts one of its own, with
--simulate a server too.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from comfyflow import Archive, AssetFilter, ComfyClient, Embedded, PostgresStore, Runner, Workflow
from comfyflow.sim import Sim


async def main(url: str, dsn: str) -> None:
    workflow = Workflow.load(Path(__file__).with_name("text_to_image.json")).seed("random")
    async with (
        ComfyClient(url) as client,
        await PostgresStore.open(dsn, migrate=True) as store,
        Runner(client, store, "comfyflow-output") as runner,
    ):
        done = await runner.run(workflow)
        print(f"{done.prompt_id} is recorded")
        for asset in await Archive(store.connections).assets(AssetFilter(text="fox", limit=3)):
            print(f"{asset.metadata['seed']}: {asset.find()}")


async def start(dsn: str) -> None:
    if "--simulate" in sys.argv:
        async with Sim() as server:
            await main(server.url, dsn)
    else:
        await main(os.environ.get("COMFYFLOW_URL", "http://127.0.0.1:8188"), dsn)


if dsn := os.environ.get("COMFYFLOW_DATABASE_URL"):
    asyncio.run(start(dsn))
else:
    with Embedded() as server:
        asyncio.run(start(server.dsn))
