"""The templates in a real n8n: its production webhooks, a real PostgreSQL, a simulated ComfyUI.

It is not collected by itself, because it installs n8n: ./dev test-n8n
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from documented import assert_documented
from graphs import alone, image, partly_valid
from n8n_stand import GENERATE, Stand, Webhooks

from comfyflow.sim import Sim, answer, login_page, reset, reset_after, stall, truncate
from comfyflow.workflow import Workflow

pytest_plugins = ["n8n_fixtures"]
pytestmark = pytest.mark.timeout(120, func_only=True)

MEGABYTE = 1 << 20
UI_FORMAT = {"nodes": [{"id": 1, "type": "SaveImage"}], "links": [], "version": 0.4}


def video() -> dict[str, Any]:
    """A film, and a picture of it as a preview that nobody wants to keep."""
    return image(batch=3) | {
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}},
        "4": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["3", 0], "filename_prefix": "film", "format": "auto", "codec": "auto"},
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def large(megabytes: int) -> dict[str, Any]:
    return alone("SimFile", filename_prefix="large", suffix="mp4", size=megabytes * MEGABYTE)


def made_by(gpu: Sim, asset: dict[str, Any]) -> bytes:
    """The file as ComfyUI has it."""
    path: Path = gpu.folders.base("output") / asset["subfolder"] / asset["filename"]
    return path.read_bytes()


def assert_stored(gpu: Sim, stand: Stand, asset: dict[str, Any]) -> None:
    """The file that the answer tells of is in the shared folder, byte by byte what ComfyUI made."""
    whole = made_by(gpu, asset)
    path = Path(asset["path"])
    assert path == stand.shared / asset["output_path"]
    assert path.read_bytes() == whole
    assert asset["bytes"] == len(whole)
    assert asset["sha256"] == hashlib.sha256(whole).hexdigest()


# Success


async def test_a_workflow_becomes_a_file_a_row_and_an_answer(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    graph = image(prefix="castles/one")
    told = await hooks.generate(graph)
    assert told.status == 200, told.body
    (asset,) = told.body["assets"]
    assert_stored(gpu, stand, asset)
    assert (asset["media_type"], asset["node_id"], asset["key"]) == ("image/png", "2", "images")
    (row,) = await hooks.rows("SELECT * FROM generated_assets")
    assert (row["id"], row["output_path"]) == (asset["id"], asset["output_path"])
    assert row["prompt_id"] == told.body["prompt_id"]
    kept = json.loads(row["metadata"])
    assert (kept["sha256"], kept["bytes"]) == (asset["sha256"], asset["bytes"])
    assert (kept["filename"], kept["subfolder"]) == (asset["filename"], "castles")


async def test_the_record_of_a_job_is_what_comfyflow_itself_writes(hooks: Webhooks, gpu: Sim) -> None:
    graph = image()
    told = await hooks.generate(graph)
    assert told.body["recorded"] is True
    run = await hooks.run(told.body["prompt_id"])
    assert run["state"] == "succeeded"
    assert run["server"] == gpu.url
    assert run["client_id"] == told.body["client_id"]
    assert run["digest"] == Workflow.load(graph).digest
    assert json.loads(run["graph"]) == graph
    assert run["error"] is None
    assert run["finished_at"] is not None
    events = await hooks.events(told.body["prompt_id"])
    assert [kind for kind in events if kind != "started"] == ["submitted", "download_started", "finished"]
    assert await hooks.rows("SELECT * FROM run_workers") == []


async def test_a_seed_of_64_bits_arrives_as_it_was_written(hooks: Webhooks, gpu: Sim) -> None:
    graph = image()
    graph["3"] = {"class_type": "SimMesh", "inputs": {"seed": 18446744073709551615}}
    graph["4"] = {"class_type": "SaveGLB", "inputs": {"mesh": ["3", 0], "filename_prefix": "mesh"}}
    told = await hooks.generate(graph)
    assert told.status == 200, told.body
    entry = gpu.engine.history[told.body["prompt_id"]]
    assert entry["prompt"][2]["3"]["inputs"]["seed"] == 18446744073709551615
    (row,) = await hooks.rows("SELECT metadata FROM generated_assets WHERE metadata ->> 'node_id' = '4'")
    assert json.loads(row["metadata"])["seed"] == 18446744073709551615
    assert (await hooks.run(told.body["prompt_id"]))["digest"] == Workflow.load(graph).digest


async def test_every_output_file_is_fetched(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    graph = image(batch=3)
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "again"}}
    told = await hooks.generate(graph)
    assert len(told.body["assets"]) == 6
    assert len({asset["output_path"] for asset in told.body["assets"]}) == 6
    for asset in told.body["assets"]:
        assert_stored(gpu, stand, asset)
    assert len(await hooks.rows("SELECT * FROM generated_assets")) == 6


async def test_a_film_is_kept_and_a_preview_is_not(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    told = await hooks.generate(video())
    kinds = [asset["media_type"] for asset in told.body["assets"]]
    assert sorted(kinds) == ["image/png"] * 3 + ["video/mp4"]
    for asset in told.body["assets"]:
        assert_stored(gpu, stand, asset)


async def test_texts_of_a_job_are_in_the_answer(hooks: Webhooks, gpu: Sim) -> None:
    told = await hooks.generate(alone("SimText", text="a red fox, näher"))
    assert told.status == 200, told.body
    assert told.body["assets"] == []
    assert told.body["texts"] == [{"node_id": "1", "key": "text", "text": "a red fox, näher"}]


@pytest.mark.parametrize("name", ["../out.png", "a b/ü€.png", "x" * 300 + ".png"])
async def test_a_file_with_a_hostile_name_stays_in_the_shared_folder(
    hooks: Webhooks, gpu: Sim, stand: Stand, name: str
) -> None:
    gpu.faults.rename(name)
    told = await hooks.generate(image())
    assert told.status == 200, told.body
    (asset,) = told.body["assets"]
    path = Path(asset["path"])
    assert path.resolve().parent == stand.shared.resolve()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == asset["sha256"]


@pytest.mark.parametrize("count", [3, 10])
async def test_several_at_once_do_not_meet(hooks: Webhooks, gpu: Sim, stand: Stand, count: int) -> None:
    told = await asyncio.gather(*(hooks.generate(image(prefix=f"at-once-{n}")) for n in range(count)))
    assert [one.status for one in told] == [200] * count
    assert len({one.body["prompt_id"] for one in told}) == count
    assert len({one.body["client_id"] for one in told}) == count
    for number, one in enumerate(told):
        (asset,) = one.body["assets"]
        assert asset["filename"].startswith(f"at-once-{number}")
        assert_stored(gpu, stand, asset)
    assert set(gpu.executed.values()) == {1}


async def test_a_large_file_does_not_go_through_memory(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    await hooks.generate(large(50))  # n8n has grown to its usual size
    with stand.n8n.memory() as memory:
        told = await hooks.generate(large(200))
    (asset,) = told.body["assets"]
    assert asset["bytes"] == 200 * MEGABYTE
    assert_stored(gpu, stand, asset)
    print(f"n8n: {memory.before >> 20} MiB before, {memory.most >> 20} MiB at most")
    assert memory.growth < 60 * MEGABYTE


# What a caller may ask for


async def test_a_graph_alone_and_one_called_prompt_are_understood(hooks: Webhooks, gpu: Sim) -> None:
    assert (await hooks.post(json.dumps(image()))).status == 200
    assert (await hooks.post(json.dumps({"prompt": image()}))).status == 200


@pytest.mark.parametrize("asked", ["wait", "prefer"])
async def test_who_does_not_wait_asks_for_the_status(
    hooks: Webhooks, gpu: Sim, stand: Stand, asked: str
) -> None:
    await gpu.hold()
    told = await (
        hooks.generate(image(), wait=False)
        if asked == "wait"
        else hooks.generate(image(), headers={"Prefer": "respond-async"})
    )
    assert told.status == 202
    prompt_id = told.body["prompt_id"]
    assert told.body["status_url"].endswith(f"/webhook/comfyflow/status?prompt_id={prompt_id}")
    still = await hooks.status(prompt_id)
    assert (still.status, still.body["prompt_id"]) == (202, prompt_id)
    await gpu.release()
    done = await hooks.settled(prompt_id)
    assert (done.status, done.body["state"]) == (200, "succeeded")
    assert_stored(gpu, stand, done.body["assets"][0])
    assert gpu.executed[prompt_id] == 1


async def test_extra_data_goes_to_the_server(hooks: Webhooks, gpu: Sim) -> None:
    told = await hooks.generate(image(), extra_data={"extra_pnginfo": {"mine": {"a": 1}}})
    entry = gpu.engine.history[told.body["prompt_id"]]
    assert entry["prompt"][3]["extra_pnginfo"] == {"mine": {"a": 1}}
    assert entry["prompt"][3]["client_id"] == told.body["client_id"]


async def test_a_part_of_a_workflow_is_not_run_unless_it_is_allowed(hooks: Webhooks, gpu: Sim) -> None:
    await gpu.hold()
    refused = await hooks.generate(partly_valid())
    assert (refused.status, refused.code) == (422, "workflow_refused")
    assert "3" in refused.body["error"]["node_errors"]
    await gpu.release()
    await gpu.wait_idle()
    assert not any(file.is_file() for file in gpu.folders.base("output").rglob("*"))
    allowed = await hooks.generate(partly_valid(), allow_partial=True)
    assert (allowed.status, len(allowed.body["assets"])) == (200, 1)


# The key


async def test_the_same_key_twice_at_once_is_one_job(hooks: Webhooks, gpu: Sim) -> None:
    graph, headers = image(), {"Idempotency-Key": "order 4711"}
    one, two = await asyncio.gather(*(hooks.generate(graph, headers=headers) for _ in range(2)))
    assert (one.status, two.status) == (200, 200)
    assert one.body["prompt_id"] == two.body["prompt_id"]
    assert one.body["assets"] == two.body["assets"]
    assert gpu.executed.total() == 1


async def test_the_same_key_later_gives_the_same_answer(hooks: Webhooks, gpu: Sim) -> None:
    graph, headers = image(), {"Idempotency-Key": "order 4712"}
    first = await hooks.generate(graph, headers=headers)
    again = await hooks.generate(graph, headers=headers)
    assert (again.status, again.body["replayed"]) == (200, True)
    assert again.body["assets"] == first.body["assets"]
    assert gpu.executed.total() == 1


async def test_another_workflow_under_the_same_key_is_refused(hooks: Webhooks, gpu: Sim) -> None:
    headers = {"Idempotency-Key": "order 4713"}
    first = await hooks.generate(image(), headers=headers)
    other = await hooks.generate(image(), headers=headers)
    assert (other.status, other.code) == (409, "key_conflict")
    assert first.body["prompt_id"] in other.body["error"]["message"]
    assert gpu.executed.total() == 1


async def test_a_key_whose_job_never_came_to_the_server_can_be_used_again(
    hooks: Webhooks, stand: Stand
) -> None:
    graph, headers = image(), {"Idempotency-Key": "order 4714"}
    assert (await hooks.generate(graph, headers=headers)).status == 503
    async with Sim(port=stand.comfyui) as gpu:
        told = await hooks.generate(graph, headers=headers)
        assert told.status == 200, told.body
        assert gpu.executed.total() == 1
    assert (await hooks.run(told.body["prompt_id"]))["attempt"] == 2


# What a caller does wrong


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("", "empty", id="no body"),
        pytest.param("{}", "workflow", id="empty object"),
        pytest.param({"workflow": None}, "workflow", id="null"),
        pytest.param({"workflow": []}, "workflow", id="list"),
        pytest.param({"workflow": {"1": {"inputs": {}}}}, "class_type", id="no class_type"),
        pytest.param({"workflow": alone("A", x=["9", 0])}, "9", id="dead link"),
        pytest.param({"workflow": UI_FORMAT}, "API", id="UI format"),
        pytest.param({"workflow": image(), "timeout_seconds": "soon"}, "timeout_seconds", id="limit"),
        pytest.param({"workflow": image(), "wait": "yes"}, "wait", id="wait"),
        pytest.param({"workflow": image(), "extra_data": []}, "extra_data", id="extra_data"),
    ],
)
async def test_what_is_wrong_with_the_input_is_said(hooks: Webhooks, gpu: Sim, body: Any, words: str) -> None:
    told = await hooks.post(body if isinstance(body, str) else json.dumps(body))
    assert (told.status, told.code) == (400, "invalid_input")
    assert words in told.body["error"]["message"]
    assert gpu.requests == []
    assert await hooks.rows("SELECT * FROM workflow_runs") == []


async def test_a_body_that_is_no_json_is_refused(hooks: Webhooks, gpu: Sim) -> None:
    told = await hooks.post('{"workflow": {')
    assert told.status == 422  # by n8n itself
    assert gpu.requests == []


async def test_a_key_that_is_too_long_is_refused(hooks: Webhooks, gpu: Sim) -> None:
    told = await hooks.generate(image(), headers={"Idempotency-Key": "x" * 201})
    assert (told.status, told.code) == (400, "invalid_input")
    assert "Idempotency-Key" in told.body["error"]["message"]


@pytest.mark.parametrize("headers", [{"X-API-Key": "wrong"}, {"X-API-Key": ""}])
async def test_without_the_key_of_the_webhook_nothing_happens(
    hooks: Webhooks, gpu: Sim, headers: dict[str, str]
) -> None:
    assert (await hooks.generate(image(), headers=headers)).status == 403
    assert (await hooks.status("any", **headers)).status == 403
    assert gpu.requests == []


async def test_the_status_of_nothing_and_of_an_unknown_job(hooks: Webhooks, gpu: Sim) -> None:
    nothing = await hooks.status(None)
    assert (nothing.status, nothing.code) == (400, "invalid_input")
    unknown = await hooks.settled(str(uuid.uuid4()))
    assert (unknown.status, unknown.code) == (404, "unknown")


# What ComfyUI says no to


async def test_who_hangs_up_gets_the_files_all_the_same(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    await gpu.hold()
    asked = asyncio.create_task(hooks.generate(image()))
    await gpu.wait_running()
    asked.cancel()
    await gpu.release()
    await hooks.until("SELECT * FROM workflow_runs WHERE state = 'succeeded'")
    (row,) = await hooks.rows("SELECT * FROM generated_assets")
    assert (stand.shared / row["output_path"]).is_file()


async def test_a_large_workflow(hooks: Webhooks, gpu: Sim) -> None:
    text = "a fox, " * 300_000
    told = await hooks.generate(alone("SimText", text=text))
    assert told.status == 200
    assert told.body["texts"][0]["text"] == text


async def test_a_workflow_that_the_server_refuses(hooks: Webhooks, gpu: Sim) -> None:
    told = await hooks.generate(alone("NoSuchNode"))
    assert (told.status, told.code) == (422, "workflow_refused")
    assert told.body["error"]["comfyui_status"] == 400
    assert "NoSuchNode" in told.body["error"]["message"]
    assert (await hooks.run(told.body["prompt_id"]))["state"] == "failed"
    later = await hooks.status(told.body["prompt_id"])
    assert (later.status, later.code) == (422, "workflow_refused")


async def test_the_nodes_that_the_server_refuses_are_told(hooks: Webhooks, gpu: Sim) -> None:
    graph = image()
    del graph["1"]["inputs"]["width"]
    told = await hooks.generate(graph)
    assert (told.status, told.code) == (422, "workflow_refused")
    assert told.body["error"]["node_errors"]["1"]["class_type"] == "EmptyImage"


async def test_a_node_that_fails_is_named(hooks: Webhooks, gpu: Sim) -> None:
    graph = alone("SimFail", message="CUDA out of memory", exception="torch.OutOfMemoryError")
    graph["2"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    told = await hooks.generate(graph)
    assert (told.status, told.code) == (502, "execution_failed")
    error = told.body["error"]
    assert "CUDA out of memory" in error["message"]
    assert (error["node_id"], error["node_type"], error["node_title"]) == ("1", "SimFail", "my SimFail")
    assert error["exception_type"] == "torch.OutOfMemoryError"
    run = await hooks.run(told.body["prompt_id"])
    assert (run["state"], json.loads(run["error"])["node_id"]) == ("failed", "1")
    assert (await hooks.events(told.body["prompt_id"]))[-1] == "failed"
    later = await hooks.status(told.body["prompt_id"])
    assert (later.status, later.body["error"]) == (502, error)


async def test_a_job_that_somebody_cancels(hooks: Webhooks, gpu: Sim) -> None:
    await gpu.hold()
    asked = asyncio.create_task(hooks.generate(alone("SimSleep", seconds=60)))
    await gpu.wait_running()
    await asyncio.to_thread(_post, f"{gpu.url}/interrupt")
    await gpu.release()
    told = await asked
    assert (told.status, told.code) == (502, "cancelled")
    assert (await hooks.run(told.body["prompt_id"]))["state"] == "cancelled"
    assert (await hooks.events(told.body["prompt_id"]))[-1] == "cancelled"


async def test_a_job_that_a_restart_of_the_server_forgot(hooks: Webhooks, gpu: Sim) -> None:
    await gpu.hold()
    asked = asyncio.create_task(hooks.generate(image()))
    await gpu.wait_running()
    await gpu.restart()
    told = await asked
    assert (told.status, told.code) == (502, "lost")
    assert (await hooks.run(told.body["prompt_id"]))["state"] == "lost"
    assert (await hooks.events(told.body["prompt_id"]))[-1] == "lost"
    assert (await hooks.status(told.body["prompt_id"])).code == "lost"


async def test_a_job_that_takes_too_long_is_collected_later(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    await gpu.hold()
    told = await hooks.generate(image(), timeout_seconds=2)
    assert (told.status, told.code) == (504, "timeout")
    prompt_id = told.body["prompt_id"]
    assert told.body["status_url"].endswith(prompt_id)
    await gpu.release()
    await gpu.wait_done(prompt_id)
    done = await hooks.settled(prompt_id)
    assert done.status == 200
    assert_stored(gpu, stand, done.body["assets"][0])
    assert (await hooks.run(prompt_id))["state"] == "succeeded"
    assert gpu.executed[prompt_id] == 1


async def test_a_job_that_comfyflow_sent_is_told_of_too(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    """Not one of n8n's: it is on the server, and not on record."""
    told = json.loads(await asyncio.to_thread(_post, f"{gpu.url}/prompt", {"prompt": image()}))
    done = await hooks.settled(told["prompt_id"])
    assert done.status == 200
    assert_stored(gpu, stand, done.body["assets"][0])


# The connection to ComfyUI


async def test_a_server_that_is_not_there(hooks: Webhooks) -> None:
    told = await hooks.generate(image())
    assert (told.status, told.code) == (503, "comfyui_unreachable")
    assert told.body["recorded"] is True


async def test_what_answers_is_not_comfyui(hooks: Webhooks, gpu: Sim) -> None:
    gpu.faults.add("POST", "/prompt", login_page())
    told = await hooks.generate(image())
    assert (told.status, told.code) == (503, "comfyui_unreachable")


@pytest.mark.parametrize(
    "effect", [reset_after, lambda: answer(504, "<html>", after=True)], ids=["lost", "504"]
)
async def test_a_job_whose_answer_was_lost_is_not_sent_again(
    hooks: Webhooks, gpu: Sim, stand: Stand, effect: Any
) -> None:
    gpu.faults.add("POST", "/prompt", effect())
    told = await hooks.generate(image())
    assert told.status == 200, told.body
    assert_stored(gpu, stand, told.body["assets"][0])
    assert dict(gpu.executed) == {told.body["prompt_id"]: 1}


async def test_a_server_that_hangs_for_a_moment(hooks: Webhooks, gpu: Sim) -> None:
    fault = gpu.faults.add("GET", "/queue", stall())
    asked = asyncio.create_task(hooks.generate(image()))
    await fault.met()
    fault.release()
    assert (await asked).status == 200


async def test_a_server_that_goes_away_and_comes_back(hooks: Webhooks, gpu: Sim) -> None:
    await gpu.hold()
    away = gpu.faults.add("GET", "*", reset(), times=None)
    asked = asyncio.create_task(hooks.generate(image()))
    await gpu.wait_for(lambda: away.hits >= 3)
    gpu.faults.clear()
    await gpu.release()
    told = await asked
    assert (told.status, gpu.executed.total()) == (200, 1)


async def test_a_server_that_stays_away_is_not_a_lost_job(hooks: Webhooks, stand: Stand) -> None:
    async with Sim(port=stand.comfyui) as gpu:
        away = gpu.faults.add("GET", "*", reset(), times=None)
        told = await hooks.generate(image())
        assert (told.status, told.code) == (503, "comfyui_unreachable")
        assert away.hits > 1
        gpu.faults.clear()
        done = await hooks.settled(told.body["prompt_id"])
        assert (done.status, gpu.executed.total()) == (200, 1)


async def test_pages_of_a_proxy_are_no_answers_about_the_job(hooks: Webhooks, gpu: Sim) -> None:
    gpu.faults.add("GET", "/history*", login_page())
    gpu.faults.add("GET", "/queue", answer(502, "<html>"), times=2)
    told = await hooks.generate(image())
    assert told.status == 200, told.body


async def test_a_download_that_breaks_off_is_begun_again(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    fault = gpu.faults.add("GET", "/view", truncate(50))
    told = await hooks.generate(image())
    assert (told.status, fault.hits) == (200, 1)
    assert_stored(gpu, stand, told.body["assets"][0])


async def test_a_file_that_is_gone_is_named(hooks: Webhooks, gpu: Sim) -> None:
    gpu.faults.add("GET", "/view", answer(404, ""), times=None)
    told = await hooks.generate(image(prefix="gone"))
    assert (told.status, told.code) == (502, "download_failed")
    assert told.body["error"]["files"][0]["filename"].startswith("gone")


# The disk


async def test_a_folder_that_n8n_may_not_write_to(hooks: Webhooks, gpu: Sim) -> None:
    told = await hooks.generate(image(), at=f"{GENERATE}/storage")
    assert (told.status, told.code) == (500, "storage_failed")


# The tests' own eyes


def test_an_answer_that_is_not_documented_is_noticed() -> None:
    with pytest.raises(AssertionError, match="may not answer 418"):
        assert_documented("POST", GENERATE, 418, "application/json", {})
    with pytest.raises(AssertionError, match="required"):
        assert_documented("POST", GENERATE, 200, "application/json", {})


def _post(url: str, body: Any = None) -> bytes:
    request = Request(url, json.dumps(body or {}).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        return bytes(response.read())
