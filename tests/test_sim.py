"""The simulator's own behaviour: life and death, warts, faults to order. Order and shapes of its messages and
answers are compared with real servers in test_sim_recordings.py."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from caller import Caller, Graph, alone, calling, heard, picture, sampled
from recorded import scenario

from comfyflow.sim import FaultProxy, Sim, stall
from comfyflow.sim.__main__ import parser
from comfyflow.sim.catalog import CATALOG
from comfyflow.sim.nodes import NODES

# What it does


async def test_a_sampler_tells_each_step_and_its_picture_shows_seed_and_text(caller: Caller) -> None:
    async with caller.socket() as ws:
        await caller.submit(sampled(), client_id="me")
        messages = await heard(ws)
    steps = [each["data"] for each in messages if isinstance(each, dict) and each["type"] == "progress"]
    assert [(step["value"], step["max"], step["node"]) for step in steps] == [
        (n, 4, "5") for n in (1, 2, 3, 4)
    ]
    previews = [each for each in messages if isinstance(each, bytes)]
    assert len(previews) == 4
    assert all(each[:10] == b"\0\0\0\1\0\0\0\1\xff\xd8" for each in previews)
    first = await caller.get("/view?filename=fox_00001_.png")
    _, other_seed = await caller.get(await caller.saved(sampled(seed=6)))
    _, other_text = await caller.get(await caller.saved(sampled(text="a blue fox")))
    assert first[0] == 200
    assert b"a red fox" in first[1]  # the graph, in a tEXt chunk
    assert len({first[1], other_seed, other_text}) == 3


@pytest.mark.parametrize(
    ("graph", "key", "suffix"),
    [
        ({"9": {"class_type": "SaveGLB", "inputs": {"mesh": ["1", 0], "filename_prefix": "3d/x"}},
          **alone("SimMesh", seed=1)}, "3d", ".glb"),
        (alone("SimFile", filename_prefix="sim/file", suffix="bin", size=100_000), "files", ".bin"),
    ],
)  # fmt: skip
async def test_other_kinds_of_files(caller: Caller, graph: Graph, key: str, suffix: str) -> None:
    (ui,) = (await caller.finished(graph))["outputs"].values()
    assert ui[key][0]["filename"].endswith(suffix)
    assert ui[key][0]["subfolder"] in ("3d", "sim")


@pytest.mark.parametrize(
    ("graph", "ui"),
    [
        (alone("SimText", text="hi"), {"text": ["hi"]}),
        (alone("SimBigOutput", size=3), {"text": ["xxx"]}),
        (alone("SimSleep", seconds=0.0), {"text": ["slept 0.0"]}),
        (alone("SimNoInterrupt", seconds=0.0), {"text": ["slept 0.0"]}),
        (alone("SimOutput", ui='{"x": [{"filename": "../y"}]}'), {"x": [{"filename": "../y"}]}),
        (alone("Preview3D", model_file="a.glb"), {"result": ["a.glb", None, None]}),
    ],
)
async def test_nodes_that_only_show_something(caller: Caller, graph: Graph, ui: dict[str, Any]) -> None:
    assert (await caller.finished(graph))["outputs"] == {"1": ui}


async def test_a_node_fails_with_the_message_and_the_type_that_were_asked_for(caller: Caller) -> None:
    entry = await caller.finished(alone("SimFail", message="no memory", exception="torch.OutOfMemoryError"))
    kind, data = entry["status"]["messages"][-1]
    assert (entry["status"]["status_str"], kind) == ("error", "execution_error")
    assert (data["exception_message"], data["exception_type"]) == ("no memory\n", "torch.OutOfMemoryError")


async def test_a_node_that_breaks_by_accident_ends_its_prompt_only(caller: Caller) -> None:
    entry = await caller.finished(alone("SimOutput", ui="{"))
    assert entry["status"]["messages"][-1][1]["exception_type"] == "JSONDecodeError"
    assert (await caller.finished(picture()))["status"]["completed"]


async def test_a_prefix_cannot_leave_the_output_folder(caller: Caller) -> None:
    entry = await caller.finished(picture(prefix="../../escape"))
    assert entry["status"]["status_str"] == "error"
    assert not list(caller.sim.folders.root.parent.glob("escape*"))


async def test_a_blocked_node_is_left_out_and_the_prompt_succeeds(caller: Caller) -> None:
    graph = alone("SimBlocker", message="stop here") | {
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    }
    entry = await caller.finished(graph)
    assert (entry["outputs"], entry["status"]["completed"]) == ({}, True)


async def test_a_dead_worker_leaves_its_prompt_running_until_a_restart(caller: Caller) -> None:
    prompt_id = await caller.submit(alone("SimDie"))
    await caller.sim.wait_running(prompt_id)
    waiting = await caller.submit(picture())
    queue = await caller.json("/queue")
    assert [item[1] for item in queue["queue_running"]] == [prompt_id]
    assert [item[1] for item in queue["queue_pending"]] == [waiting]
    await caller.sim.restart()
    assert (await caller.finished(picture()))["prompt"][0] == 0


async def test_an_expanded_node_shows_its_inner_nodes(caller: Caller) -> None:
    graph = alone("RecExpand", seed=1, steps=2) | {
        "6": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    }
    entry = await caller.finished(graph)
    assert entry["meta"]["1.0.0.2"] == {
        "node_id": "1.0.0.2", "display_node": "1", "parent_node": "1", "real_node_id": "1",
    }  # fmt: skip


async def test_the_same_graph_again_is_answered_with_the_old_file_until_memory_is_freed(
    caller: Caller,
) -> None:
    first = await caller.saved(picture())
    assert await caller.saved(picture()) == first
    await caller.post("/free", {"free_memory": True})
    assert await caller.saved(picture()) != first


async def test_a_name_comes_back_after_the_folder_was_cleaned(caller: Caller) -> None:
    first = await caller.saved(picture(1))
    (caller.sim.folders.base("output") / "pic_00001_.png").unlink()
    assert await caller.saved(picture(2)) == first


async def test_an_image_that_was_uploaded_can_be_loaded_and_a_changed_one_is_loaded_again(
    caller: Caller,
) -> None:
    _, data = await caller.get(await caller.saved(picture(size=24)))
    for content in (data, data + b" "):
        form = aiohttp.FormData({"overwrite": "true"})
        form.add_field("image", content, filename="in.png")
        async with caller.session.post(f"{caller.sim.url}/upload/image", data=form) as response:
            assert (await response.json())["name"] == "in.png"
        graph = alone("LoadImage", image="in.png") | {
            "2": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["3", 2]}},
            "3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sim.safetensors"}},
            "4": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["3", 2]}},
            "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "again"}},
        }
        await caller.finished(graph)
    assert len(list(caller.sim.folders.base("output").glob("again*"))) == 2


# Its warts


async def test_success_is_told_before_history_knows_and_the_end_after_it() -> None:
    async with calling(history_gap=0.05) as caller, caller.socket() as ws:
        prompt_id = await caller.submit(picture(), client_id="me")
        await heard(ws, "execution_success")
        assert await caller.json(f"/history/{prompt_id}") == {}
        await heard(ws)
        assert prompt_id in await caller.json(f"/history/{prompt_id}")


async def test_a_client_id_that_is_a_list_hears_nothing_but_harms_nobody(caller: Caller) -> None:
    assert (await caller.finished(picture(), client_id=["x"]))["status"]["completed"]


async def test_history_keeps_one_entry_more_than_its_bound() -> None:
    async with calling(max_history=2) as caller:
        for color in range(5):
            await caller.finished(picture(color))
        assert len(await caller.json("/history")) == 3


async def test_interrupting_by_id_stops_only_the_running_one(caller: Caller) -> None:
    await caller.sim.hold()
    running = await caller.submit(alone("SimSleep", seconds=0.0))
    await caller.sim.wait_running(running)
    waiting = await caller.submit(picture())
    await caller.post("/interrupt", {"prompt_id": waiting})
    assert not caller.sim.engine.interrupted
    await caller.post("/interrupt", {"prompt_id": running})
    await caller.sim.release()
    await caller.sim.wait_done(waiting)
    history = await caller.json("/history")
    ends = {key: entry["status"]["messages"][-1][0] for key, entry in history.items()}
    assert ends == {running: "execution_interrupted", waiting: "execution_success"}


async def test_an_old_server_interrupts_whatever_runs_and_makes_its_own_ids() -> None:
    async with calling(profile="0.3.40") as caller, caller.socket() as ws:
        await caller.sim.hold()
        mine = str(uuid.uuid4())
        prompt_id = await caller.submit(alone("SimSleep", seconds=0.0), prompt_id=mine, client_id="me")
        assert prompt_id != mine
        await caller.sim.wait_running(prompt_id)
        await caller.post("/interrupt", {"prompt_id": "somebody else's"})
        await caller.sim.release()
        messages = await heard(ws)
        assert "execution_interrupted" in [each["type"] for each in messages]
        assert "progress_state" not in [each["type"] for each in messages]
        assert (await caller.get("/features"))[0] == 404
        assert (await caller.get(f"/api/jobs/{prompt_id}"))[0] == 404
        assert (await caller.post(f"/api/jobs/{prompt_id}/cancel", {}))[0] == 405


async def test_a_body_over_the_limit_is_refused_with_413() -> None:
    async with calling(max_upload=1000) as caller:
        status, text = await caller.post("/prompt", {"prompt": "x" * 2000})
        assert (status, text) == (413, "Maximum request body size 1000 exceeded.")


@pytest.mark.parametrize(
    ("graph", "node", "kind"),
    [
        ({**picture(), "2": alone("SaveImage", images=["9", 0], filename_prefix="x")["1"]},
         "2", "exception_during_validation"),
        ({"1": {"class_type": "EmptyImage"}, "2": picture()["2"]}, "1", "exception_during_inner_validation"),
        (picture(color={"__value__": -1}), "1", "value_smaller_than_min"),
        (sampled() | alone("CheckpointLoaderSimple", ckpt_name="other"), "1", "value_not_in_list"),
        (sampled() | {"5": sampled()["5"] | {"inputs": sampled()["5"]["inputs"] | {"sampler_name": "x"}}},
         "5", "value_not_in_list"),
    ],
)  # fmt: skip
async def test_a_graph_that_cannot_run_is_refused_with_the_reason(
    caller: Caller, graph: Graph, node: str, kind: str
) -> None:
    status, answer = await caller.post("/prompt", {"prompt": graph})
    assert status == 400
    assert kind in [error["type"] for error in answer["node_errors"][node]["errors"]]


@pytest.mark.parametrize(
    "query", ["status=bogus", "limit=0", "limit=x", "sort_by=x", "sort_order=x", "offset=x"]
)
async def test_the_list_of_jobs_refuses_what_it_does_not_know(caller: Caller, query: str) -> None:
    await caller.finished(picture())
    assert (await caller.get(f"/api/jobs?{query}"))[0] == 400


async def test_the_list_of_jobs_is_sorted_newest_first_or_by_duration(caller: Caller) -> None:
    slow = await caller.submit(alone("SimSleep", seconds=0.05))
    await caller.sim.wait_done(slow)
    quick = await caller.submit(picture())
    await caller.sim.wait_done(quick)
    newest = await caller.json("/api/jobs")
    shortest = await caller.json("/api/jobs?sort_by=execution_duration&sort_order=asc&offset=-3")
    assert [job["id"] for job in newest["jobs"]] == [quick, slow]
    assert [job["id"] for job in shortest["jobs"]] == [quick, slow]


async def test_cancelling_a_running_job_interrupts_it(caller: Caller) -> None:
    await caller.sim.hold()
    prompt_id = await caller.submit(alone("SimSleep", seconds=0.0))
    await caller.sim.wait_running(prompt_id)
    assert await caller.post(f"/api/jobs/{prompt_id}/cancel", None) == (200, {"cancelled": True})
    await caller.sim.release()
    await caller.sim.wait_done(prompt_id)
    assert (await caller.json(f"/api/jobs/{prompt_id}"))["status"] == "cancelled"


# Life and death


async def test_a_restart_forgets_queue_and_history_and_keeps_outputs_and_port(caller: Caller) -> None:
    url = caller.sim.url
    path = await caller.saved(picture())
    async with caller.socket() as ws:
        await caller.sim.hold()
        lost = await caller.submit(picture(2))
        await caller.sim.wait_running(lost)
        await caller.sim.restart()
        await caller.sim.release()
        assert (await ws.receive()).type is aiohttp.WSMsgType.TEXT
        async for _ in ws:
            continue
        assert ws.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    assert caller.sim.url == url
    assert await caller.json("/history") == {}
    assert (await caller.get(path))[0] == 200
    assert (await caller.finished(picture(3)))["prompt"][0] == 0
    assert caller.sim.executed[lost] == 1


async def test_a_killed_server_refuses_connections_until_it_is_started(caller: Caller) -> None:
    await caller.sim.kill()
    with pytest.raises(aiohttp.ClientConnectorError):
        await caller.get("/queue")
    await caller.sim.start()
    assert (await caller.get("/queue"))[0] == 200


async def test_a_restart_empties_temp_and_stalled_requests_die_with_the_server(caller: Caller) -> None:
    shown = picture()
    shown["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    path = await caller.saved(shown)
    assert "type=temp" in path
    fault = caller.sim.faults.add("POST", "/prompt", stall())
    hanging = asyncio.create_task(caller.submit(picture()))
    await fault.met()
    await caller.sim.restart()
    fault.release()
    with pytest.raises(aiohttp.ClientConnectionError):
        await hanging
    assert (await caller.get(path))[0] == 404
    await caller.finished(picture(7))
    assert caller.sim.executed.total() == 2


async def test_what_is_left_of_an_old_socket_does_not_deafen_the_new_one(caller: Caller) -> None:
    async with caller.socket() as old:
        await old.receive()
        await caller.sim.restart()
        async with caller.socket() as new:
            await old.close()
            await caller.submit(picture(), client_id="me")
            await heard(new)


async def test_a_frozen_server_answers_everything_later(caller: Caller) -> None:
    async with caller.session.ws_connect(f"{caller.url}/ws?clientId=me", autoping=False) as ws:
        await ws.receive()
        caller.sim.freeze()
        asking = [asyncio.create_task(caller.submit(picture(n), client_id="me")) for n in range(3)]
        await ws.ping(b"there?")
        async with FaultProxy(caller.sim.url) as proxy:  # it sees the request leave
            looking = asyncio.create_task(Caller(caller.sim, caller.session, proxy).get("/queue"))
            await proxy.wait_for(lambda: proxy.requests.total() == 1)
            assert not any(task.done() for task in (*asking, looking))
            assert caller.sim.requests == [("GET", "/ws")]
            caller.sim.thaw()
            ids = await asyncio.gather(*asking)
            assert (await looking)[0] == 200
        while (await ws.receive()).data != b"there?":
            pass
    await caller.sim.wait_idle()
    assert caller.sim.executed == dict.fromkeys(ids, 1)


async def arrived() -> None:
    """Let everything arrive that is under way within this machine: far fewer turns of the loop are needed."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_messages_wait_while_the_server_is_frozen(caller: Caller) -> None:
    async with caller.socket() as ws:
        await ws.receive()
        fault = caller.sim.faults.add("GET", "/queue", stall(after=True))
        looking = asyncio.create_task(caller.get("/queue"))
        await fault.met()
        caller.sim.freeze()
        caller.sim.send_raw("later")
        fault.release()
        hearing = asyncio.create_task(ws.receive())
        await arrived()
        assert not (hearing.done() or looking.done())
        caller.sim.thaw()
        assert (await hearing).data == "later"
        assert (await looking)[0] == 200


async def test_a_server_killed_while_frozen_never_does_what_it_was_asked(caller: Caller) -> None:
    async with caller.socket() as ws:
        await ws.receive()
        caller.sim.freeze()
        hanging = asyncio.create_task(caller.submit(picture()))
        await arrived()
        await caller.sim.restart()
        with pytest.raises(aiohttp.ClientConnectionError):
            await hanging
        await ws.close()
    assert ("POST", "/prompt") not in caller.sim.requests
    assert (await caller.json("/queue"))["queue_running"] == []


async def test_history_can_be_forgotten_in_part_or_as_a_whole(caller: Caller) -> None:
    ids = [await caller.submit(picture(number)) for number in range(3)]
    await caller.sim.wait_idle()
    caller.sim.forget(ids[0])
    assert list(await caller.json("/history")) == ids[1:]
    caller.sim.forget("never heard of")
    caller.sim.forget()
    assert await caller.json("/history") == {}


async def test_every_start_of_a_prompt_is_counted_also_of_one_sent_twice(caller: Caller) -> None:
    prompt_id = str(uuid.uuid4())
    for _ in range(2):
        await caller.submit(picture(), prompt_id=prompt_id)
        await caller.sim.wait_idle()
    await caller.sim.restart()
    await caller.submit(picture(), prompt_id=prompt_id)
    await caller.sim.wait_idle()
    assert caller.sim.executed == {prompt_id: 3}


async def test_a_root_folder_of_ones_own_is_kept(tmp_path: Path) -> None:
    async with calling(root=tmp_path) as caller:
        await caller.saved(picture())
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["pic_00001_.png"]


async def test_a_base_path_and_a_demanded_header_hold_for_http_and_the_socket() -> None:
    async with calling(base_path="/comfy/", auth="Bearer secret") as caller:
        assert caller.sim.url.endswith("/comfy")
        assert (await caller.get("/queue"))[0] == 401
        headers = {"Authorization": "Bearer secret"}
        assert (await caller.get("/api/queue", headers=headers))[0] == 200
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await caller.socket()
        async with caller.session.ws_connect(f"{caller.sim.url}/ws", headers=headers) as ws:
            assert len((await ws.receive_json())["data"]["sid"]) == 32


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "null"}, 200),
        ({"Origin": "http://127.0.0.1:1", "Host": "comfy.lan"}, 200),
        ({"Origin": "http://127.0.0.1"}, 200),
    ],
)
async def test_pages_of_other_origins_are_refused(
    caller: Caller, headers: dict[str, str], status: int
) -> None:
    assert (await caller.get("/queue", headers=headers))[0] == status


async def test_sockets_can_be_dropped_closed_and_made_deaf(caller: Caller) -> None:
    async with caller.socket("a") as ws:
        await ws.receive()
        caller.sim.drop_sockets()
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSED
        assert ws.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    await caller.sim.wait_sockets(0)
    async with caller.socket("b") as ws:
        await ws.receive()
        closing = asyncio.create_task(caller.sim.close_sockets())
        assert (await ws.receive()).data == aiohttp.WSCloseCode.GOING_AWAY
        await closing
    async with caller.socket("c") as deaf:
        await deaf.receive()
        caller.sim.deafen()
        async with caller.socket("d") as ws:
            await caller.finished(picture(), client_id="c")
            await heard(ws, '"queue_remaining": 0}}}')
        await deaf.close()
        assert caller.sim.engine.executed.total() == 1


async def test_any_frame_can_be_sent(caller: Caller) -> None:
    async with caller.socket() as ws:
        await ws.receive()
        for frame in ("not json", b"\0\0", '{"type": "unheard of"}', "x" * 2_000_000):
            caller.sim.send_raw(frame)
            assert (await ws.receive()).data == frame


async def test_a_held_worker_goes_on_for_as_many_steps_as_it_is_let(caller: Caller) -> None:
    await caller.sim.hold()
    prompt_id = await caller.submit(sampled(steps=3))
    await caller.sim.wait_running()
    for steps, value in ((6, 1), (1, 2)):  # five nodes come before the first step
        await caller.sim.release(steps)
        await caller.sim.wait_for(partial(at_step, caller.sim, value))
    assert (await caller.json("/prompt"))["exec_info"]["queue_remaining"] == 1
    await caller.sim.release()
    await caller.sim.wait_done(prompt_id)
    await caller.sim.wait_idle()


def at_step(sim: Sim, value: int) -> bool:
    steps = [each["data"]["value"] for each in sim.events if each["type"] == "progress"]
    return steps[-1:] == [value]


async def test_waiting_for_what_never_comes_ends_in_a_timeout(caller: Caller) -> None:
    with pytest.raises(TimeoutError):
        await caller.sim.wait_for(lambda: False, timeout=0.01)
    await caller.get("/queue")  # the condition given up is not asked any more
    assert caller.sim.looks() == 1


async def test_requests_are_counted_and_those_that_look_for_jobs(caller: Caller) -> None:
    for path in ("/queue", "/api/history/x", "/api/jobs/x", "/view", "/object_info/NoSuchNode"):
        await caller.get(path)
    await caller.post("/queue", {"clear": True})
    assert caller.sim.looks() == 3
    assert ("GET", "/api/jobs/x") in caller.sim.requests
    assert len(caller.sim.requests) == 6


# The catalogue


def test_every_class_that_is_described_can_run() -> None:
    assert set(CATALOG) == set(NODES)


def recorded_info() -> dict[str, Any]:
    (line,) = [line for line in scenario("21").http if line.get("path") == "/object_info"]
    info: dict[str, Any] = line["response_json"]
    return info


def described(group: dict[str, Any]) -> dict[str, Any]:
    """Type and bounds of each input; the texts and the lists of models and samplers are the server's own."""
    facts = ("min", "max", "default", "step", "options")
    return {
        name: [
            "list" if isinstance(config[0], list) else config[0].partition(",")[0],
            {key: value for key, value in (config[1] if len(config) > 1 else {}).items() if key in facts},
        ]
        for name, config in group.items()
    }


@pytest.mark.parametrize("name", sorted(set(recorded_info()) & set(CATALOG)))
def test_classes_are_described_as_the_server_describes_them(name: str) -> None:
    ours, theirs = CATALOG[name], recorded_info()[name]
    assert set(ours) <= set(theirs)
    for key in ("output", "output_name", "output_node", "output_is_list", "name"):
        assert ours[key] == theirs[key], key
    assert described(ours["input"]["required"]) == described(theirs["input"]["required"])


async def test_what_the_server_says_of_itself(caller: Caller) -> None:
    assert (await caller.json("/system_stats"))["system"]["comfyui_version"] == "0.27.0"
    assert (await caller.json("/features"))["max_upload_size"] == 104857600
    assert "KSampler" in await caller.json("/object_info")
    assert await caller.json("/api/object_info/NoSuchNode") == {}
    assert "checkpoints" in await caller.json("/models")
    assert "sim.safetensors" in await caller.json("/models/checkpoints")
    assert (await caller.get("/models/nope"))[0] == 404
    assert await caller.json("/embeddings") == []
    assert (await caller.json("/extensions"))[0].endswith(".js")


async def test_any_checkpoint_name_is_taken_when_asked_for() -> None:
    graph = sampled(steps=1)
    graph["1"]["inputs"]["ckpt_name"] = "mine.safetensors"
    async with calling() as strict:
        assert (await strict.post("/prompt", {"prompt": graph}))[0] == 400
    async with calling(any_model=True) as lenient:
        assert (await lenient.finished(graph))["status"]["completed"]


# Its own process


@contextmanager
def program(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A simulator as a process, and its URL."""
    command = [sys.executable, "-m", "comfyflow.sim", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        try:
            yield url, process
        finally:
            process.kill()


async def fetched(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.json()


async def test_as_a_program_it_prints_its_url_and_serves() -> None:
    with program("--profile", "0.3.64", "--no-previews") as (url, process):
        assert (await fetched(f"{url}/system_stats"))["system"]["comfyui_version"] == "0.3.64"
        process.terminate()
        assert process.wait() == 0


async def test_a_killed_program_comes_back_on_its_port_with_its_outputs_alone(tmp_path: Path) -> None:
    graph = picture()
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    async with aiohttp.ClientSession() as session:
        with program("--root", str(tmp_path)) as (url, process):
            async with session.ws_connect(f"{url}/ws?clientId=me") as ws:
                async with session.post(f"{url}/prompt", json={"prompt": graph, "client_id": "me"}) as answer:
                    assert (await answer.json())["number"] == 0
                await heard(ws)
                process.kill()
                assert process.wait() == -signal.SIGKILL
                assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        assert len(list((tmp_path / "temp").iterdir())) == 1
        with program("--root", str(tmp_path), "--port", url.rpartition(":")[2]) as (again, _):
            assert again == url
            assert await fetched(f"{url}/history") == {}
            async with session.get(f"{url}/view?filename=pic_00001_.png") as answer:
                assert answer.status == 200
    assert list((tmp_path / "temp").iterdir()) == []


async def test_what_a_program_has_begun_to_execute_is_told_in_its_log_also_when_it_was_killed(
    tmp_path: Path,
) -> None:
    log, ids = tmp_path / "log.jsonl", [str(uuid.uuid4()) for _ in range(2)]
    before = time.time()
    for prompt_id in ids:
        with program("--log", str(log)) as (url, process):
            await executed(url, prompt_id)
            process.kill()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["prompt_id"] for line in lines] == ids
    assert before <= lines[0]["at"] <= lines[1]["at"] <= time.time()


async def executed(url: str, prompt_id: str) -> None:
    """Have a prompt executed, and another one refused."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws?clientId=me") as ws:
        for graph, status in ((alone("Nothing"), 400), (picture(), 200)):
            body = {"prompt": graph, "prompt_id": prompt_id, "client_id": "me"}
            async with session.post(f"{url}/prompt", json=body) as answer:
                assert answer.status == status
        await heard(ws)


async def test_a_log_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    sim = Sim(log=tmp_path / "no" / "folder")
    with pytest.raises(FileNotFoundError):
        await sim.start()
    await sim.stop()


def test_its_options_are_those_of_the_class() -> None:
    given = parser().parse_args(["--port", "1", "--step-delay", "0.5", "--history-gap", "0.1", "--root", "x"])
    assert (given.port, given.step_delay, given.history_gap, given.root) == (1, 0.5, 0.1, Path("x"))
