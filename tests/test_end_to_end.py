"""The same bodies against the simulator and, when COMFYFLOW_TEST_SERVER names one, against a real ComfyUI.

    COMFYFLOW_TEST_SERVER=http://127.0.0.1:8188 ./dev test tests/test_end_to_end.py

They need no model: only nodes that every ComfyUI has had since 0.3.x. Each body runs with the socket, without
it, and through a proxy that cuts the socket in the middle.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clusters import execute

from comfyflow import (
    ComfyClient,
    JobFailed,
    JobState,
    MediaKind,
    MemoryStore,
    OutputFile,
    OutputUnavailable,
    PollSchedule,
    PostgresStore,
    Runner,
    Workflow,
    WorkflowRejected,
)
from comfyflow.sim import FaultProxy, Sim

REAL = os.environ.get("COMFYFLOW_TEST_SERVER")
POLL = PollSchedule(first=0.05, ceiling=0.5, stall_after=2.0, deaf_after=5.0)
Graph = dict[str, dict[str, Any]]


def picture(batch: int = 1, **save: Any) -> Graph:
    size = {"width": 64, "height": 48, "batch_size": batch, "color": random.randrange(2**24)}
    inputs = {"images": ["1", 0], "filename_prefix": f"comfyflow/{uuid.uuid4().hex[:8]}", **save}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size, "_meta": {"title": "Canvas"}},
        "2": {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": "Keep"}},
    }


@dataclass(frozen=True)
class Way:
    """A client, and what lies between it and the server."""

    client: ComfyClient
    proxy: FaultProxy | None

    def trouble(self) -> None:
        """What this way does to a job that runs."""
        if self.proxy is not None:
            self.proxy.refuse_sockets = True
            self.proxy.cut_sockets()


@pytest.fixture(params=["simulator", *(["real"] if REAL else [])])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    if request.param == "real":
        assert REAL is not None
        yield REAL
    else:
        async with Sim() as sim:
            yield sim.url


@pytest.fixture(params=["socket", "polling", "cut"])
async def way(request: pytest.FixtureRequest, server: str) -> AsyncIterator[Way]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(server)) if request.param == "cut" else None
        url = proxy.url if proxy else server
        client = ComfyClient(url, websocket=request.param != "polling", poll=POLL)
        yield Way(await stack.enter_async_context(client), proxy)


async def test_pictures_come_out_whole_and_are_recorded(way: Way, tmp_path: Path) -> None:
    async with Runner(way.client, MemoryStore(), tmp_path) as runner:
        job = await runner.submit(picture(batch=3))
        way.trouble()
        done = await runner.complete(job)
    assert [(file.media_type, file.width, file.height) for file in done.files] == [("image/png", 64, 48)] * 3
    record = await runner.store.get(done.prompt_id)
    assert record is not None
    assert (record.state, record.files) == (JobState.SUCCEEDED, done.files)


async def test_a_run_leaves_what_the_page_about_the_database_promises(
    way: Way, tmp_path: Path, database: str
) -> None:
    graph = picture(batch=2)
    async with (
        await PostgresStore.open(database, journal=None) as store,
        Runner(way.client, store, tmp_path / "out", shared=tmp_path) as runner,
    ):
        job = await runner.submit(graph)
        way.trouble()
        await runner.complete(job)
    runs, assets, events = execute(
        database,
        "SELECT state, graph::text, error, digest, created_at <= submitted_at, submitted_at <= finished_at,"
        " execution_seconds >= 0 FROM workflow_runs",
        "SELECT output_path, metadata::text FROM generated_assets ORDER BY output_path",
        "SELECT kind FROM run_events WHERE kind <> 'started' ORDER BY created_at, id",
    )
    assert [(state, json.loads(told), error) for state, told, error, *_ in runs] == [
        ("succeeded", graph, None)
    ]
    assert [tuple(run[3:]) for run in runs] == [(Workflow.load(graph).digest, True, True, True)]
    for path, text in assets:
        metadata, data = json.loads(text), (tmp_path / path).read_bytes()
        assert (metadata["sha256"], metadata["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (metadata["node_id"], metadata["node_title"], metadata["width"]) == ("2", "Keep", 64)
    assert len(assets) == 2
    assert [kind for [kind] in events] == ["submitted", "download_started", "finished"]


async def test_watching_ends_with_the_result(way: Way) -> None:
    prompt_id = await way.client.submit_workflow(picture())
    states = []
    async with aclosing(way.client.watch(prompt_id)) as views:
        async for view in views:
            states.append(view.state)
            way.trouble()
    assert states[-1] is JobState.SUCCEEDED
    assert [state.rank for state in states] == sorted(state.rank for state in states)


async def test_three_at_once(way: Way, tmp_path: Path) -> None:
    jobs = [await way.client.submit_workflow(picture()) for _ in range(3)]
    way.trouble()
    files = await asyncio.gather(*(way.client.download_images(job, tmp_path) for job in jobs))
    assert len({file.path for (file,) in files}) == 3


async def test_what_was_made_before_is_marked_as_reused(way: Way, tmp_path: Path) -> None:
    graph = picture()
    first = await way.client.download_images(await way.client.submit_workflow(graph), tmp_path)
    again = await way.client.download_images(await way.client.submit_workflow(graph), tmp_path)
    assert [(file.output.reused, file.path) for file in first + again] == [
        (False, first[0].path),
        (True, first[0].path),
    ]


async def test_an_uploaded_picture_is_worked_on(way: Way, tmp_path: Path) -> None:
    made = await way.client.download_images(await way.client.submit_workflow(picture()), tmp_path)
    name = f"ünï code {uuid.uuid4().hex[:8]}.png"
    up = await way.client.upload_image(made[0].path, name=name, subfolder="comfyflow")
    assert up.reference == f"comfyflow/{name}"
    graph = picture()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": up.reference}}
    files = await way.client.download_images(await way.client.submit_workflow(graph), tmp_path)
    assert (files[0].width, files[0].height) == (64, 48)


async def test_animations_text_and_temporary_files(way: Way, tmp_path: Path) -> None:
    graph = picture(batch=3)
    webp = {"images": ["1", 0], "filename_prefix": "comfyflow/a", "fps": 6.0, "lossless": True, "quality": 80,
            "method": "default"}  # fmt: skip
    graph["2"] = {"class_type": "SaveAnimatedWEBP", "inputs": webp}
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    graph["4"] = {"class_type": "PrimitiveString", "inputs": {"value": f"hello {uuid.uuid4()}"}}
    graph["5"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}}
    prompt_id = await way.client.submit_workflow(graph)
    way.trouble()
    result = await way.client.wait(prompt_id)
    files = await way.client.download_images(prompt_id, tmp_path)
    assert {(file.output.type, file.media_type) for file in files} == {
        ("output", "image/webp"),
        ("temp", "image/png"),
    }
    assert {file.output.kind for file in files} == {MediaKind.IMAGE}
    assert [text.text for text in result.texts] == [graph["4"]["inputs"]["value"]]


async def test_a_node_that_raises_is_named(way: Way) -> None:
    up = await way.client.upload_image(b"this is no picture", name=f"{uuid.uuid4().hex[:8]}.png")
    graph = picture()
    graph["1"] = {
        "class_type": "LoadImage",
        "inputs": {"image": up.reference},
        "_meta": {"title": "Broken one"},
    }
    prompt_id = await way.client.submit_workflow(graph)
    way.trouble()
    with pytest.raises(JobFailed, match="Broken one") as caught:
        await way.client.wait(prompt_id)
    assert (caught.value.node_id, caught.value.node_type) == ("1", "LoadImage")
    assert "identify" in caught.value.message


async def test_refusals_tell_the_node(way: Way) -> None:
    graph = picture()
    graph["2"]["inputs"]["images"] = ["1", 7]
    with pytest.raises(WorkflowRejected) as caught:
        await way.client.submit_workflow(graph)
    assert list(caught.value.node_errors) == ["2"]
    graph["2"]["class_type"] = "NoSuchNodeAnywhere"
    with pytest.raises(WorkflowRejected, match=r"Keep|NoSuchNodeAnywhere"):
        await way.client.submit_workflow(graph)


async def test_half_a_workflow_is_not_taken_for_a_whole_one(way: Way) -> None:
    graph = picture()
    graph["3"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "nothing to save"}}
    with pytest.raises(WorkflowRejected) as caught:
        await way.client.submit_workflow(graph)
    assert caught.value.accepted
    assert list(caught.value.node_errors) == ["3"]
    job = await way.client.submit_workflow(graph, allow_partial=True)
    assert len((await way.client.wait(job)).outputs) == 1


async def test_a_file_that_is_not_there_is_unavailable(way: Way, tmp_path: Path) -> None:
    with pytest.raises(OutputUnavailable):
        await way.client.download_output(OutputFile("1", "never made.png"), tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_job_that_never_was_is_lost(way: Way) -> None:
    assert (await way.client.poll_status(str(uuid.uuid4()))).state is JobState.LOST
    assert not await way.client.cancel(str(uuid.uuid4()))


async def test_the_server_tells_about_itself(way: Way) -> None:
    assert "comfyui_version" in (await way.client.system_stats())["system"]
    assert "SaveImage" in await way.client.object_info("SaveImage")
    assert isinstance((await way.client.queue()).pending, tuple)
