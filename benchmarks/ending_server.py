"""A server whose jobs end when it is told, one after the other, and that stamps when it tells of each end. It
speaks just enough: what a client needs to send jobs, and to follow them to their ends (recording 01)."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from aiohttp import WSMsgType, web


class Ending:
    """Jobs in flight, the sockets that are told of them, and when each was told of last."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}  # prompt id -> client id
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.stamps: dict[str, float] = {}
        self.work: asyncio.Task[None] | None = None

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.jobs[body["prompt_id"]] = body["client_id"]
        return web.json_response(
            {"prompt_id": body["prompt_id"], "number": len(self.jobs), "node_errors": {}}
        )

    async def remaining(self, request: web.Request) -> web.Response:
        return web.json_response({"exec_info": {"queue_remaining": len(self.jobs) - len(self.stamps)}})

    async def history(self, request: web.Request) -> web.Response:
        job = request.match_info["id"]
        return web.json_response({job: entry(job)} if job in self.stamps else {})

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets[request.query["clientId"]] = socket
        await socket.send_str(frame("status", status={"exec_info": {"queue_remaining": 0}}, sid="x"))
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
        return socket

    async def end(self, request: web.Request) -> web.Response:
        self.work = asyncio.create_task(self.end_all(float(request.query["every"])))
        return web.json_response({})

    async def end_all(self, every: float) -> None:
        for job, client in list(self.jobs.items()):
            if job in self.stamps:
                continue
            socket = self.sockets[client]
            for text in story(job):
                await socket.send_str(text)
            self.stamps[job] = time.monotonic()  # the clock of the whole machine, on Linux
            await socket.send_str(frame("executing", node=None, prompt_id=job))
            await asyncio.sleep(every)

    async def told(self, request: web.Request) -> web.Response:
        return web.json_response(self.stamps)


def frame(kind: str, **data: Any) -> str:
    return json.dumps({"type": kind, "data": data})


def story(job: str) -> list[str]:
    return [
        frame("execution_start", prompt_id=job, timestamp=1),
        frame("executing", node="1", display_node="1", prompt_id=job),
        frame("executed", node="1", display_node="1", output={"images": [picture(job)]}, prompt_id=job),
        frame("execution_success", prompt_id=job, timestamp=2),
    ]


def picture(job: str) -> dict[str, str]:
    return {"filename": f"{job}.png", "subfolder": "", "type": "output"}


def entry(job: str) -> dict[str, Any]:
    messages = [["execution_start", {"prompt_id": job, "timestamp": 1}]]
    messages += [["execution_success", {"prompt_id": job, "timestamp": 2}]]
    return {
        "prompt": [0, job, {}, {}, ["1"]],
        "outputs": {"1": {"images": [picture(job)]}},
        "status": {"status_str": "success", "completed": True, "messages": messages},
        "meta": {},
    }


async def main() -> None:
    ending, app = Ending(), web.Application()
    app.router.add_post("/prompt", ending.prompt)
    app.router.add_get("/prompt", ending.remaining)
    app.router.add_get("/history/{id}", ending.history)
    app.router.add_get("/ws", ending.socket)
    app.router.add_post("/end", ending.end)
    app.router.add_get("/stamps", ending.told)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
