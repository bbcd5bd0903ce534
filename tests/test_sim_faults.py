"""Trouble to order: each effect does to a request what it says, in the simulator and in a proxy."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import aiohttp
import pytest
from caller import Caller, picture

from comfyflow import sim as simulator


@pytest.fixture(params=["simulator", "proxy"])
async def caller(
    request: pytest.FixtureRequest, comfyui: simulator.Sim, comfyui_proxy: simulator.FaultProxy
) -> AsyncIterator[Caller]:
    """Orders are for the simulator itself, or for a proxy in front of it."""
    proxy = comfyui_proxy if request.param == "proxy" else None
    async with aiohttp.ClientSession() as session:
        yield Caller(comfyui, session, proxy)


async def test_a_fault_meets_as_many_requests_as_ordered_and_no_others(caller: Caller) -> None:
    fault = caller.faults.add("GET", "/history*", simulator.answer(503, "busy"), times=2, skip=1)
    statuses = [(await caller.get(path))[0] for path in ("/history", "/queue", "/api/history/x", "/history")]
    assert statuses == [200, 200, 503, 503]
    assert (await caller.get("/history"))[0] == 200
    assert fault.hits == 2


async def test_a_reset_leaves_the_client_without_an_answer(caller: Caller) -> None:
    caller.faults.add("POST", "/prompt", simulator.reset())
    with pytest.raises(aiohttp.ClientConnectionError):
        await caller.submit(picture())
    assert not caller.sim.executed


async def test_a_reset_after_the_fact_hides_that_the_prompt_was_taken(caller: Caller) -> None:
    caller.faults.add("POST", "/prompt", simulator.reset_after())
    prompt_id = str(uuid.uuid4())
    with pytest.raises(aiohttp.ClientConnectionError):
        await caller.submit(picture(), prompt_id=prompt_id)
    await caller.sim.wait_done(prompt_id)
    assert caller.sim.executed == {prompt_id: 1}


@pytest.mark.parametrize("after", [False, True])
async def test_a_stalled_request_goes_on_when_it_is_released(caller: Caller, after: bool) -> None:
    fault = caller.faults.add("POST", "/prompt", simulator.stall(after=after))
    prompt_id = str(uuid.uuid4())
    request = asyncio.create_task(caller.submit(picture(), prompt_id=prompt_id))
    await fault.met()
    if after:
        await caller.sim.wait_done(prompt_id)
    assert caller.sim.executed.total() == after
    fault.release()
    assert await request == prompt_id


async def test_canned_answers_login_pages_and_redirects(caller: Caller) -> None:
    caller.faults.add("*", "*", simulator.login_page())
    caller.faults.add("GET", "/queue", simulator.redirect("http://other.example/"))
    caller.faults.add("GET", "/queue", simulator.delay(0.0))
    status, body = await caller.get("/queue")
    assert (status, b"<form>" in body) == (200, True)
    assert (await caller.get("/queue", allow_redirects=False))[0] == 302
    assert (await caller.get("/queue"))[1].startswith(b"{")


async def test_a_gateway_timeout_may_hide_that_the_prompt_was_taken(caller: Caller) -> None:
    caller.faults.add("POST", "/prompt", simulator.answer(504, after=True))
    prompt_id = str(uuid.uuid4())
    assert (await caller.post("/prompt", {"prompt": picture(), "prompt_id": prompt_id}))[0] == 504
    await caller.sim.wait_done(prompt_id)


async def test_the_upgrade_of_a_socket_can_be_refused(caller: Caller) -> None:
    caller.faults.add("GET", "/ws", simulator.answer(502))
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await caller.socket()
    async with caller.socket() as ws:
        assert (await ws.receive_json())["type"] == "status"


async def test_cleared_faults_let_go_of_what_they_hold(caller: Caller) -> None:
    fault = caller.faults.add("GET", "/queue", simulator.stall(), times=None)
    request = asyncio.create_task(caller.get("/queue"))
    await fault.met()
    caller.faults.clear()
    assert (await request)[0] == 200


async def test_a_download_breaks_off_early(caller: Caller) -> None:
    path = await caller.saved(picture())
    caller.faults.add("GET", "/view", simulator.truncate(50))
    with pytest.raises(aiohttp.ClientPayloadError):
        await caller.get(path)


async def test_a_length_may_be_a_lie(caller: Caller) -> None:
    path = await caller.saved(picture())
    _, whole = await caller.get(path)
    caller.faults.add("GET", "/view", simulator.lie(100))
    caller.faults.add("GET", "/view", simulator.lie(-10))
    with pytest.raises(aiohttp.ClientPayloadError):
        await caller.get(path)
    assert await caller.get(path) == (200, whole[:-10])


async def test_bytes_can_be_flipped_zeroed_and_replaced(caller: Caller) -> None:
    path = await caller.saved(picture())
    _, whole = await caller.get(path)
    for effect in (
        simulator.corrupt(),
        simulator.zero_tail(30),
        simulator.replace_body(b"<html>", "text/html"),
    ):
        caller.faults.add("GET", "/view", effect)
    flipped, zeroed, page = [(await caller.get(path))[1] for _ in range(3)]
    assert sum(a != b for a, b in zip(flipped, whole, strict=True)) == 1
    assert (zeroed[:-30], zeroed[-30:]) == (whole[:-30], bytes(30))
    assert page == b"<html>"


async def test_a_server_that_knows_no_ranges_sends_the_whole(caller: Caller) -> None:
    path = await caller.saved(picture())
    _, whole = await caller.get(path)
    headers = {"Range": "bytes=10-"}
    assert await caller.get(path, headers=headers) == (206, whole[10:])
    caller.faults.add("GET", "/view", simulator.ignore_range())
    assert await caller.get(path, headers=headers) == (200, whole)


async def test_body_faults_answer_ranges_and_conditions_as_the_server_does(caller: Caller) -> None:
    path = await caller.saved(picture())
    _, whole = await caller.get(path)
    caller.faults.add("GET", "/view", simulator.alter(lambda body: body), times=None)
    assert await caller.get(path, headers={"Range": "bytes=10-19"}) == (206, whole[10:20])
    assert (await caller.get(path, headers={"Range": f"bytes={len(whole)}-"}))[0] == 416
    assert (await caller.get(path, headers={"If-Match": '"another"'}))[0] == 412
    assert await caller.get("/view?filename=gone.png") == (404, b"")


async def test_a_changed_file_has_another_etag_and_a_conditional_range_fails(caller: Caller) -> None:
    path = await caller.saved(picture())
    async with caller.session.head(caller.url + path) as response:
        headers = {"Range": "bytes=10-", "If-Match": response.headers["ETag"]}
    caller.faults.add("GET", "/view", simulator.changed(), skip=1)
    assert (await caller.get(path, headers=headers))[0] == 206
    assert (await caller.get(path, headers=headers))[0] == 412


async def test_an_endless_body_goes_on_until_the_reader_leaves(caller: Caller) -> None:
    caller.faults.add("GET", "/view", simulator.endless())
    async with caller.session.get(f"{caller.url}/view") as response:
        assert len(await response.content.readexactly(1_000_000)) == 1_000_000
        response.close()
    caller.faults.add("GET", "/view", simulator.gone())
    assert (await caller.get("/view"))[0] == 404


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "CON", "a\0b.png", "x" * 300])
async def test_a_hostile_name_is_reported_and_served(caller: Caller, name: str) -> None:
    caller.sim.faults.rename(name)
    entry = await caller.finished(picture())
    assert entry["outputs"]["2"]["images"][0]["filename"] == name
    async with caller.session.get(f"{caller.url}/view", params={"filename": name}) as response:
        assert (await response.read()).startswith(b"\x89PNG")
