"""A plain aiohttp server that answers /view with one file, as ComfyUI does: `static_server.py FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web


async def serve(folder: Path) -> None:
    """Print the URL, then answer until killed."""

    async def view(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(folder / Path(request.query["filename"]).name, chunk_size=2**18)

    app = web.Application()
    app.router.add_get("/view", view)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
