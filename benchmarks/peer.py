"""One client's share of bench_peers.py, in a process of its own and in a Python that has that client:

    python peer.py CLIENT URLS FOLDER FIRST JOBS AT_ONCE SECONDS PATIENCE

Runs JOBS jobs of SECONDS each, AT_ONCE at a time, saves their files in FOLDER, and says what it took on the
last line. FIRST numbers the first of them. A job that takes longer than PATIENCE seconds is given up. Each
client is used as its own pages show it; where it saves no files, what it has for getting them is used, and
the bytes are written here. None of the others knows of several servers (URLS with a comma between): each gets
a client of its own, and they are dealt the jobs in turn.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import cycle
from pathlib import Path
from shutil import copyfile
from typing import Any

from harness import memory

Graph = dict[str, Any]
Run = Callable[[Graph, Path], Awaitable[object]]
TITLE = "Save Image"
PREFIX = "peer-"


def graph(number: int, *, sampled: bool) -> Graph:
    """Never twice the same, so that the server has to run each. A `sampled` one has one step, which takes the
    simulator as long as it was told."""
    image = {"width": 64, "height": 64, "batch_size": 1}
    saved = {"filename_prefix": f"{PREFIX}{number}-"}
    if not sampled:
        blank = ("EmptyImage", {**image, "color": number})
        return titled({"1": blank, "2": ("SaveImage", {**saved, "images": ["1", 0]})})
    sampler = {
        "seed": number, "steps": 1, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 1.0, "model": ["4", 0], "positive": ["6", 0], "negative": ["6", 0],
        "latent_image": ["5", 0],
    }  # fmt: skip
    return titled(
        {
            "4": ("CheckpointLoaderSimple", {"ckpt_name": "sim.safetensors"}),
            "5": ("EmptyLatentImage", image),
            "6": ("CLIPTextEncode", {"text": "a fox", "clip": ["4", 1]}),
            "3": ("KSampler", sampler),
            "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
            "2": ("SaveImage", {**saved, "images": ["8", 0]}),
        }
    )


def titled(nodes: dict[str, tuple[str, dict[str, Any]]]) -> Graph:
    """In API format; the title of the last one is how comfy-api-simplified finds it."""
    return {
        node: {"class_type": name, "inputs": inputs, "_meta": {"title": TITLE if node == "2" else name}}
        for node, (name, inputs) in nodes.items()
    }


@asynccontextmanager
async def floor(url: str, at_once: int) -> AsyncIterator[Run]:
    """The least that a program can do."""
    from floor import Floor  # noqa: PLC0415 - each client is imported where it is installed

    async with Floor.opened(url) as opened:
        yield opened.run


@asynccontextmanager
async def comfyflow(url: str, at_once: int) -> AsyncIterator[Run]:
    """This project, without a record."""
    package = import_module("comfyflow")
    urls = url.split(",")
    async with package.ServerPool(urls) if len(urls) > 1 else package.ComfyClient(url) as client:
        await client.ready()

        async def run(graph: Graph, folder: Path) -> None:
            prompt_id = await client.submit_workflow(graph)
            await client.wait(prompt_id)
            await client.download_images(prompt_id, folder)

        yield run


@asynccontextmanager
async def comfy_api_simplified(url: str, at_once: int) -> AsyncIterator[Run]:
    """It blocks and has a loop of its own for each job, so it needs a thread for each."""
    api = import_module("comfy_api_simplified").ComfyApiWrapper(url)

    def job(graph: Graph, folder: Path) -> None:
        for name, data in api.queue_and_wait_images(graph, TITLE).items():
            (folder / name).write_bytes(data)

    async def run(graph: Graph, folder: Path) -> None:
        await asyncio.get_running_loop().run_in_executor(threads, job, graph, folder)

    threads = ThreadPoolExecutor(at_once)
    yield run
    threads.shutdown(wait=False, cancel_futures=True)


def comfykit(how: str) -> Callable[[str, int], AbstractAsyncContextManager[Run]]:
    """It gives addresses; what it has for fetching them saves a temporary file."""

    @asynccontextmanager
    async def opened(url: str, at_once: int) -> AsyncIterator[Run]:
        fetched = import_module("comfykit.utils.file_util").download_files
        kit = import_module("comfykit").ComfyKit(comfyui_url=url, executor_type=how)

        async def run(graph: Graph, folder: Path) -> None:
            result = await kit.execute_json(graph)
            if result.status != "completed":
                raise RuntimeError(result.msg)
            for address in result.images:
                async with fetched(address) as path:
                    copyfile(path, folder / f"{result.prompt_id}.png")

        yield run

    return opened


@asynccontextmanager
async def comfyui_utils(url: str, at_once: int) -> AsyncIterator[Run]:
    """It calls back, with the files' names."""
    module = import_module("comfyui_utils.comfy")
    api = module.ComfyAPI(url.partition("//")[2])

    async def run(graph: Graph, folder: Path) -> None:
        class Callbacks(module.Callbacks):  # type: ignore[name-defined,misc] # it is not installed beside mypy
            async def queue_position(self, position: int) -> None: ...
            async def in_progress(self, node_id: int, progress: int, total: int) -> None: ...
            async def completed(self, outputs: dict[str, Any], cached: bool) -> None:
                for file in outputs["images"]:
                    await api.fetch(file, self.save(folder / file["filename"]))

            def save(self, path: Path) -> Callable[[Any], Awaitable[None]]:
                async def save(data: Any) -> None:
                    path.write_bytes(data.read())

                return save

        await api.submit(graph, Callbacks())

    yield run


CLIENTS: dict[str, Callable[[str, int], AbstractAsyncContextManager[Run]]] = {
    "floor": floor,
    "comfyflow": comfyflow,
    "comfy-api-simplified": comfy_api_simplified,
    "comfykit (socket)": comfykit("websocket"),
    "comfykit (polls)": comfykit("http"),
    "comfyui-utils": comfyui_utils,
}


@dataclass(frozen=True, slots=True)
class Share:
    """What is to be done: jobs that take `seconds`; `patience` in seconds for one."""

    first: int
    jobs: int
    at_once: int
    seconds: float
    patience: float


async def measured(run: Run, folder: Path, share: Share) -> dict[str, Any]:
    """What all of it took, in seconds, and when which job had its file."""
    numbers = iter(range(share.first, share.first + share.jobs))
    ended: dict[int, float] = {}
    errors = Counter[str]()

    async def worker() -> None:
        for number in numbers:
            try:
                async with asyncio.timeout(share.patience):
                    await run(graph(number, sampled=share.seconds > 0), folder)
                ended[number] = time.time()
            except Exception as error:  # whatever it may raise, it is told
                errors[" ".join(f"{type(error).__name__}: {error}".split())[:100]] += 1

    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(share.at_once)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "ended": ended, "errors": errors}


@asynccontextmanager
async def runs_of(name: str, urls: str, at_once: int) -> AsyncIterator[Run]:
    """A client for all servers, or one for each, in turn."""
    each = [urls] if name == "comfyflow" else urls.split(",")
    async with AsyncExitStack() as stack:
        turns = cycle([await stack.enter_async_context(CLIENTS[name](url, at_once)) for url in each])

        def run(graph: Graph, folder: Path) -> Awaitable[object]:
            return next(turns)(graph, folder)

        yield run


async def work(name: str, urls: str, folder: Path, share: Share) -> dict[str, Any]:
    """One run that warms it up where there are many jobs, and the one that counts."""
    async with runs_of(name, urls, share.at_once) as run:
        if share.jobs > 1:
            aside = folder / "warm"
            aside.mkdir()
            few = replace(share, first=share.first + share.jobs, jobs=share.at_once)
            await measured(run, aside, few)
        return await measured(run, folder, share) | {"memory": memory("VmHWM")}


def main() -> None:
    name, urls, folder, first, jobs, at_once, seconds, patience = sys.argv[1:]
    share = Share(int(first), int(jobs), int(at_once), float(seconds), float(patience))
    if name.startswith("comfykit"):
        import_module("comfykit")  # it sets up logging, which is undone here: to write all that takes time
    logging.disable(logging.ERROR)
    print(json.dumps(asyncio.run(work(name, urls, Path(folder), share))), flush=True)
    os._exit(0)  # a thread may wait for ever


if __name__ == "__main__":
    main()
