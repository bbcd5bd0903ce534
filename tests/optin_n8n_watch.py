"""The templates that watch, and what is left of a job when n8n dies: in a real n8n (tests/optin_n8n.py)."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest
from graphs import alone, image
from n8n_host import API_KEY, TEMPLATES, Place, Workflow
from n8n_stand import FAILURES, Stand, Webhooks
from optin_n8n import assert_stored

from comfyflow.sim import Sim

pytest_plugins = ["n8n_fixtures"]
pytestmark = pytest.mark.timeout(120, func_only=True)

NAMES = ["comfyui-generate", "comfyui-status", "comfyui-healthcheck", "comfyui-error-alert"]
PARTS = ("name", "nodes", "connections", "settings")


def shipped(name: str) -> Workflow:
    workflow: Workflow = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
    return workflow


def failing(message: str) -> dict[str, Any]:
    return image() | {
        "3": {"class_type": "SimFail", "inputs": {"message": message, "exception": "RuntimeError"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "never"}},
    }


# Alerts about jobs


async def test_a_failure_is_told_once_and_the_next_message_counts_the_others(
    hooks: Webhooks, gpu: Sim, stand: Stand
) -> None:
    cause = "the flux capacitor is empty"
    for _ in range(3):
        assert (await hooks.generate(failing(cause))).status == 502
    await hooks.until("SELECT * FROM alerts WHERE times = 3")
    (chat,) = await stand.chat.wait_for(cause)
    (mail,) = await stand.mail.wait_for(cause)
    assert mail.to == "ops@example.test"
    assert "comfyflow: generate" in chat.text
    await hooks.change("UPDATE alerts SET sent_at = sent_at - interval '2 hours'")
    assert (await hooks.generate(failing(cause))).status == 502
    _, later = await stand.chat.wait_for(cause, count=2)
    assert "3 times" in later.text
    assert len(await stand.mail.wait_for(cause, count=2)) == 2


async def test_another_cause_is_told_at_once(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    for cause in ("the first cause", "the second cause"):
        assert (await hooks.generate(failing(cause))).status == 502
    for cause in ("the first cause", "the second cause"):
        assert len(await stand.chat.wait_for(cause)) == 1


async def test_an_alert_tells_no_secret_and_no_payload(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    told = await hooks.generate(failing("a failure that is told"))
    (chat,) = await stand.chat.wait_for("a failure that is told")
    (mail,) = await stand.mail.wait_for("a failure that is told")
    assert told.body["prompt_id"] in chat.text
    for text in (chat.text, mail.text):
        assert API_KEY not in text
        assert "filename_prefix" not in text
        assert "secret-of-the-hook" not in text


async def test_what_a_caller_does_wrong_is_no_alarm(hooks: Webhooks, gpu: Sim, stand: Stand) -> None:
    assert (await hooks.post("{}")).status == 400
    assert (await hooks.generate(alone("NoSuchNode"))).status == 422
    assert (await hooks.generate(failing("the one that counts"))).status == 502
    await stand.chat.wait_for("the one that counts")
    assert not [one for one in stand.chat.messages if "NoSuchNode" in one.text or "invalid_input" in one.text]


# The health of the server


async def test_a_server_that_goes_down_and_comes_back_is_told_once_each(
    hooks: Webhooks, stand: Stand
) -> None:
    healthy = "SELECT * FROM server_checks WHERE ok ORDER BY id OFFSET 2"
    ill = f"SELECT * FROM server_checks WHERE NOT ok ORDER BY id OFFSET {FAILURES + 2}"
    url = f"http://127.0.0.1:{stand.watched}"
    async with Sim(port=stand.watched) as watched:
        await hooks.until(healthy)
        stand.clear()
        await watched.kill()
        (down,) = await stand.chat.wait_for(url)
        assert await hooks.rows(f"SELECT * FROM server_checks WHERE NOT ok OFFSET {FAILURES - 1}")
        await hooks.until(ill)
        assert [one.text for one in stand.chat.messages if url in one.text] == [down.text]
        await watched.start()
        _, up = await stand.chat.wait_for(url, count=2)
        assert up.text != down.text
        assert len(await stand.mail.wait_for(url, count=2)) == 2


async def test_every_check_leaves_a_row_with_what_it_measured(hooks: Webhooks, stand: Stand) -> None:
    async with Sim(port=stand.watched) as watched:
        await watched.hold()
        async with aiohttp.ClientSession() as session:
            for graph in (image(), image()):
                await session.post(f"{watched.url}/prompt", json={"prompt": graph})
        await watched.wait_running()
        query = "SELECT * FROM server_checks WHERE ok AND queue_running = 1 AND queue_pending = 1 LIMIT 1"
        (row,) = await hooks.until(query)
        await watched.release()
    assert row["server"] == watched.url
    assert row["version"]
    assert 0 < row["vram_free"] <= row["vram_total"]
    assert (row["error"], row["mean_seconds"]) == (None, None)


# n8n itself


async def test_what_n8n_leaves_behind_when_it_is_killed_is_finished_once(
    hooks: Webhooks, gpu: Sim, stand: Stand
) -> None:
    await gpu.hold()
    asked = asyncio.create_task(hooks.generate(image(prefix="asked")))
    await gpu.wait_running()
    rescued = (await hooks.generate(image(prefix="rescued"), wait=False)).body["prompt_id"]
    await asyncio.to_thread(stand.n8n.kill)
    with pytest.raises(aiohttp.ClientError):
        await asked
    await gpu.release()
    await gpu.wait_idle()
    began = time.monotonic()
    await asyncio.to_thread(stand.start)
    print(f"n8n was back after {time.monotonic() - began:.1f} s")
    (waited_for,) = set(gpu.executed) - {rescued}
    # Time goes by: the leases of the executions that died come to their end.
    await hooks.change("UPDATE run_workers SET alive_until = now() - interval '1 second'")
    done = await hooks.settled(waited_for)
    assert (done.status, done.body["recorded"]) == (200, True)
    assert_stored(gpu, stand, done.body["assets"][0])
    await hooks.change(
        "UPDATE workflow_runs SET updated_at = now() - interval '1 hour' WHERE prompt_id = $1", rescued
    )
    await hooks.until("SELECT * FROM workflow_runs WHERE prompt_id = $1 AND state = 'succeeded'", rescued)
    (row,) = await hooks.rows("SELECT * FROM generated_assets WHERE prompt_id = $1", rescued)
    assert (stand.shared / row["output_path"]).is_file()
    assert dict(gpu.executed) == {waited_for: 1, rescued: 1}
    assert (await hooks.events(rescued))[-1] == "finished"


def test_what_n8n_exports_is_the_file(stand: Stand) -> None:
    copies = {name: shipped(name) | {"id": f"copy{number:012}"} for number, name in enumerate(NAMES)}
    stand.n8n.give_workflows(copies.values(), published=False)
    exported = stand.n8n.exported()
    for name, copy in copies.items():
        for part in PARTS:
            assert exported[copy["id"]][part] == shipped(name)[part], f"{part} of {name}"


def test_n8n_has_nothing_to_complain_about(stand: Stand) -> None:
    log = stand.n8n.log
    for complaint in ("cannot run on this instance", "cannot be executed", "Cannot read properties"):
        assert complaint not in log
    assert API_KEY not in log
    assert Place(stand.road.dsn).password not in log
