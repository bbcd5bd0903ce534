"""POST /prompt exactly once: what is sent again, what is not, and what is left open."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from graphs import image

from comfyflow import submit
from comfyflow.api import Api, Server
from comfyflow.errors import (
    BadAnswer,
    ServerError,
    ServerUnreachable,
    StoreError,
    UsageError,
    WorkflowRejected,
)
from comfyflow.look import Looker
from comfyflow.models import Ambiguous, Timeouts
from comfyflow.sim import Fault, Sim, answer, login_page, reset, reset_after, stall
from comfyflow.tracker import ABSENCES

NOT_FOUND = answer(404, b'{"error": "Job not found"}', content_type="application/json")
GARBAGE = answer(200, b"\0", after=True)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "SETTLE", 0.02)
    monkeypatch.setattr(submit, "SETTLE_LATE", 0.1)
    monkeypatch.setattr(submit, "GIVE_UP", 1.0)


@pytest.fixture
async def api(comfyui: Sim) -> AsyncIterator[Api]:
    made = Api(Server.at(comfyui.url), Timeouts(answer=0.2))
    yield made
    await made.close()


async def held_back(request: web.Request, handler: Any, fault: Fault) -> web.StreamResponse:
    """As in a proxy's queue: it has the whole request, and passes it on though its client has gone."""
    await request.read()
    await fault.released()
    response: web.StreamResponse = await handler(request)
    return response


def body(**more: Any) -> dict[str, Any]:
    return {"prompt": image(), "prompt_id": str(uuid.uuid4()), "client_id": "c", **more}


async def test_a_job_that_was_taken_is_not_sent_again(comfyui: Sim, api: Api) -> None:
    for effect in (reset_after(), answer(504, after=True), answer(500, after=True), GARBAGE):
        comfyui.faults.add("POST", "/prompt", effect)
        sent = body()
        assert (await submit.send_once(api, Looker(api), sent)).prompt_id == sent["prompt_id"]
        await comfyui.wait_idle()
        assert comfyui.executed[sent["prompt_id"]] == 1


async def test_a_job_that_waits_keeps_its_number(comfyui: Sim, api: Api) -> None:
    await comfyui.hold()
    comfyui.faults.add("POST", "/prompt", reset_after(), times=1)
    assert (await submit.send_once(api, Looker(api), body(number=7))).number == 7


async def test_a_job_that_was_not_taken_is_sent_again(comfyui: Sim, api: Api) -> None:
    for effect in (reset(), answer(502)):
        fault = comfyui.faults.add("POST", "/prompt", effect, times=2)
        sent = body()
        await submit.send_once(api, Looker(api), sent)
        await comfyui.wait_idle()
        assert (fault.hits, comfyui.executed[sent["prompt_id"]]) == (2, 1)


async def test_it_is_sent_only_so_often(comfyui: Sim, api: Api) -> None:
    fault = comfyui.faults.add("POST", "/prompt", reset(), times=None)
    with pytest.raises(ServerUnreachable):
        await submit.send_once(api, Looker(api), body())
    assert fault.hits == submit.SENDS


async def test_a_stalled_server_is_waited_out(comfyui: Sim, api: Api) -> None:
    post = comfyui.faults.add("POST", "/prompt", stall(after=True))
    looks = comfyui.faults.add("GET", "/jobs/*", answer(503), times=3)
    sent = body()
    await submit.send_once(api, Looker(api), sent)
    post.release()
    await comfyui.wait_idle()
    assert (looks.hits, comfyui.executed[sent["prompt_id"]]) == (3, 1)


async def test_what_cannot_be_found_out_is_said(comfyui: Sim, api: Api) -> None:
    comfyui.faults.add("POST", "/prompt", reset_after(), times=None)
    comfyui.faults.add("GET", "*", answer(503), times=None)
    with pytest.raises(ServerUnreachable, match="comfyflow status") as caught:
        await submit.send_once(api, Looker(api), body())
    assert caught.value.sent


async def test_a_look_without_end_ends_too(comfyui: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "GIVE_UP", 0.2)
    api = Api(Server.at(comfyui.url), Timeouts(answer=None))
    comfyui.faults.add("POST", "/prompt", reset_after())
    comfyui.faults.add("GET", "*", stall(), times=None)
    with pytest.raises(ServerUnreachable, match="comfyflow status") as caught:
        await submit.send_once(api, Looker(api), body())
    assert caught.value.sent
    await api.close()


async def test_clear_answers_are_final(comfyui: Sim, api: Api) -> None:
    cases: list[tuple[Any, type[ServerError]]] = [(answer(401), BadAnswer), (answer(500), BadAnswer)]
    for effect, kind in cases:
        fault = comfyui.faults.add("POST", "/prompt", effect, times=None)
        with pytest.raises(kind):
            await submit.send_once(api, Looker(api), body())
        assert fault.hits == 1
        comfyui.faults.clear()
    with pytest.raises(WorkflowRejected):
        await submit.send_once(api, Looker(api), body(prompt={}))


async def test_a_server_that_makes_its_own_ids_gets_nothing_twice() -> None:
    async with Sim(profile="0.3.40") as old:
        api = Api(Server.at(old.url), Timeouts())
        fault = old.faults.add("POST", "/prompt", reset_after(), times=None)
        with pytest.raises(ServerUnreachable):
            await submit.send_once(api, Looker(api), body())
        assert fault.hits == 1
        await api.close()


async def test_a_server_that_was_never_reached_is_not_asked_again(api: Api, comfyui: Sim) -> None:
    await comfyui.kill()
    with pytest.raises(ServerUnreachable) as caught:
        await submit.send_once(api, Looker(api), body())
    assert not caught.value.sent


# --- what may still be on its way


async def test_a_request_that_is_read_late_is_found_and_not_sent_again(
    comfyui: Sim, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "SETTLE_LATE", 30.0)
    post = comfyui.faults.add("POST", "/prompt", held_back)
    sent = body()
    sending = asyncio.create_task(submit.send_once(api, Looker(api), sent))
    await comfyui.wait_for(lambda: comfyui.looks() >= 2 * ABSENCES)
    post.release()
    assert not (await sending).answered
    await comfyui.wait_idle()
    assert comfyui.executed == {sent["prompt_id"]: 1}


QUICK_DOUBTS, LATE_DOUBTS = [reset(), answer(502)], [answer(504), answer(524), stall()]


@pytest.mark.parametrize(
    ("doubt", "look"),
    [*((late, NOT_FOUND) for late in LATE_DOUBTS), *((reset(), late) for late in LATE_DOUBTS)],
)
async def test_what_nobody_saw_the_end_of_is_waited_for_longer(
    comfyui: Sim, api: Api, monkeypatch: pytest.MonkeyPatch, doubt: Any, look: Any
) -> None:
    monkeypatch.setattr(submit, "SETTLE_LATE", 1e6)  # it is not over as long as this test lasts
    comfyui.faults.add("POST", "/prompt", doubt)
    comfyui.faults.add("GET", "/jobs/*", look)
    sending = asyncio.create_task(submit.send_once(api, Looker(api), body()))
    await comfyui.wait_for(lambda: comfyui.looks() > 8)
    assert not sending.done()
    sending.cancel()
    await asyncio.wait([sending])


@pytest.mark.parametrize("doubt", QUICK_DOUBTS)
@pytest.mark.parametrize("look", [NOT_FOUND, *QUICK_DOUBTS])
async def test_what_was_seen_to_end_is_sent_again_soon(
    comfyui: Sim, api: Api, monkeypatch: pytest.MonkeyPatch, doubt: Any, look: Any
) -> None:
    monkeypatch.setattr(submit, "SETTLE_LATE", 1e6)
    comfyui.faults.add("POST", "/prompt", doubt)
    comfyui.faults.add("GET", "/jobs/*", look)
    assert (await submit.send_once(api, Looker(api), body())).answered


async def test_two_absences_with_silence_between_them_are_not_enough(comfyui: Sim, api: Api) -> None:
    await comfyui.hold()
    comfyui.faults.add("POST", "/prompt", reset_after())
    comfyui.faults.add("GET", "/jobs/*", NOT_FOUND)
    comfyui.faults.add("GET", "/jobs/*", answer(503))
    comfyui.faults.add("GET", "/jobs/*", NOT_FOUND)
    assert not (await submit.send_once(api, Looker(api), body())).answered


async def test_a_server_that_restarts_meanwhile_gets_it_again(comfyui: Sim, api: Api) -> None:
    for _ in range(2):
        await comfyui.hold()
        comfyui.faults.add("POST", "/prompt", reset_after())
        sent = body()
        sending = asyncio.create_task(submit.send_once(api, Looker(api), sent))
        await comfyui.wait_running(sent["prompt_id"])
        await comfyui.kill()
        await asyncio.wait([sending], timeout=0.1)
        await comfyui.start()
        assert (await sending).prompt_id == sent["prompt_id"]
        await comfyui.release()
        await comfyui.wait_idle()


async def test_a_request_that_the_server_has_not_read_yet_is_taken_back(comfyui: Sim, api: Api) -> None:
    post = comfyui.faults.add("POST", "/prompt", stall())
    sent, later = body(), body()
    await submit.send_once(api, Looker(api), sent)
    post.release()
    await api.prompt(later)
    await comfyui.wait_idle()
    assert comfyui.executed == {sent["prompt_id"]: 1, later["prompt_id"]: 1}


async def test_a_server_that_stands_still_runs_it_once(comfyui: Sim, api: Api) -> None:
    assert await api.remaining() == 0
    comfyui.freeze()
    sent = body()
    sending = asyncio.create_task(submit.send_once(api, Looker(api), sent))
    await asyncio.wait([sending], timeout=0.5)  # the request and a look are given up
    comfyui.thaw()
    assert (await sending).prompt_id == sent["prompt_id"]
    await comfyui.wait_idle()
    assert comfyui.executed == {sent["prompt_id"]: 1}


# --- what is left to the caller


async def test_fail_never_sends_a_second_time(comfyui: Sim, api: Api) -> None:
    for effect in (reset(), answer(502)):
        fault = comfyui.faults.add("POST", "/prompt", effect, times=None)
        with pytest.raises(ServerUnreachable, match="comfyflow status") as caught:
            await submit.send_once(api, Looker(api), body(), ambiguous=Ambiguous.FAIL)
        assert (caught.value.sent, fault.hits) == (True, 1)
        comfyui.faults.clear()


async def test_fail_finds_what_was_taken(comfyui: Sim, api: Api) -> None:
    comfyui.faults.add("POST", "/prompt", reset_after())
    sent = body()
    found = await submit.send_once(api, Looker(api), sent, ambiguous=Ambiguous.FAIL)
    assert (found.prompt_id, found.answered) == (sent["prompt_id"], False)


async def test_resend_also_sends_when_nobody_can_tell(
    comfyui: Sim, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "GIVE_UP", 0.2)
    await comfyui.hold()
    comfyui.faults.add("GET", "*", answer(503), times=None)
    posts = comfyui.faults.add("POST", "/prompt", reset_after(), times=1)
    assert (await submit.send_once(api, Looker(api), body(), ambiguous=Ambiguous.RESEND)).answered
    assert posts.hits == 1


@pytest.mark.parametrize("second", [answer(401), reset()])
async def test_a_refusal_does_not_hide_an_earlier_request_whose_fate_is_open(
    comfyui: Sim, api: Api, monkeypatch: pytest.MonkeyPatch, second: Any
) -> None:
    monkeypatch.setattr(submit, "GIVE_UP", 0.1)
    comfyui.faults.add("GET", "*", answer(503), times=None)
    comfyui.faults.add("POST", "/prompt", reset_after())
    again = comfyui.faults.add("POST", "/prompt", second, times=None)
    with pytest.raises(ServerUnreachable, match="comfyflow status") as caught:
        await submit.send_once(api, Looker(api), body(), ambiguous=Ambiguous.RESEND)
    assert caught.value.sent
    assert 1 <= again.hits < submit.SENDS


async def test_a_rejected_workflow_is_rejected_whatever_became_of_the_first_request(
    comfyui: Sim, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "GIVE_UP", 0.1)
    comfyui.faults.add("GET", "*", answer(503), times=None)
    comfyui.faults.add("POST", "/prompt", reset_after())
    with pytest.raises(WorkflowRejected):
        await submit.send_once(api, Looker(api), body(prompt={}), ambiguous=Ambiguous.RESEND)


@pytest.mark.parametrize(
    ("ambiguous", "posts"), [(Ambiguous.WAIT, 1), (Ambiguous.FAIL, 1), (Ambiguous.RESEND, submit.SENDS)]
)
async def test_on_a_server_that_makes_its_own_ids_only_resend_sends_again(
    ambiguous: Ambiguous, posts: int
) -> None:
    async with Sim(profile="0.3.40") as old:
        api = Api(Server.at(old.url), Timeouts())
        fault = old.faults.add("POST", "/prompt", reset_after(), times=None)
        with pytest.raises(ServerUnreachable) as caught:
            await submit.send_once(api, Looker(api), body(), ambiguous=ambiguous)
        assert (caught.value.sent, fault.hits) == (True, posts)
        await api.close()


async def test_a_server_that_falls_silent_before_it_tells_its_age_leaves_it_open() -> None:
    async with Sim(profile="0.3.64") as sim:
        api = Api(Server.at(sim.url), Timeouts())
        posts = sim.faults.add("POST", "/prompt", reset(), times=None)
        sim.faults.add("GET", "/features", answer(503))
        with pytest.raises(ServerUnreachable) as caught:
            await submit.send_once(api, Looker(api), body())
        assert (caught.value.sent, posts.hits) == (True, 1)
        await api.close()


# --- a 200 that is not ComfyUI's


async def test_a_damaged_answer_is_looked_into_although_a_look_fails(comfyui: Sim, api: Api) -> None:
    comfyui.faults.add("POST", "/prompt", GARBAGE)
    comfyui.faults.add("GET", "/jobs/*", answer(503))
    sent = body()
    assert (await submit.send_once(api, Looker(api), sent)).prompt_id == sent["prompt_id"]


async def test_a_login_page_is_told_at_once(comfyui: Sim, api: Api) -> None:
    comfyui.faults.add("*", "*", login_page(), times=None)
    with pytest.raises(BadAnswer, match="HTML"):
        await submit.send_once(api, Looker(api), body())
    assert [method for method, _ in comfyui.requests].count("POST") == 1


async def test_an_answer_that_makes_no_sense_is_an_error_when_nothing_was_taken(
    comfyui: Sim, api: Api
) -> None:
    fault = comfyui.faults.add("POST", "/prompt", answer(200, b"{}"), times=None)
    with pytest.raises(BadAnswer):
        await submit.send_once(api, Looker(api), body())
    assert fault.hits == 1


# --- an earlier program may have sent it


async def test_what_an_earlier_program_sent_is_found_and_not_sent(comfyui: Sim, api: Api) -> None:
    sent = body()
    await api.prompt(sent)
    await comfyui.wait_idle()
    for ambiguous in Ambiguous:
        found = await submit.send_once(api, Looker(api), sent, ambiguous=ambiguous, maybe_sent=True)
        assert (found.prompt_id, found.answered) == (sent["prompt_id"], False)
    assert comfyui.executed == {sent["prompt_id"]: 1}


@pytest.mark.parametrize("ambiguous", [Ambiguous.WAIT, Ambiguous.RESEND])
async def test_what_an_earlier_program_did_not_get_to_send_is_sent(
    comfyui: Sim, api: Api, ambiguous: Ambiguous
) -> None:
    sent = body()
    assert (await submit.send_once(api, Looker(api), sent, ambiguous=ambiguous, maybe_sent=True)).answered
    looks = [path for method, path in comfyui.requests if method == "GET"]
    assert comfyui.requests.index(("POST", "/prompt")) >= ABSENCES
    assert looks


async def test_with_fail_it_is_not_sent_at_all(comfyui: Sim, api: Api) -> None:
    with pytest.raises(ServerUnreachable, match="earlier request") as caught:
        await submit.send_once(api, Looker(api), body(), ambiguous=Ambiguous.FAIL, maybe_sent=True)
    assert caught.value.sent
    assert ("POST", "/prompt") not in comfyui.requests


async def test_it_is_sent_as_often_as_any_other(comfyui: Sim, api: Api) -> None:
    fault = comfyui.faults.add("POST", "/prompt", reset(), times=None)
    with pytest.raises(ServerUnreachable):
        await submit.send_once(api, Looker(api), body(), maybe_sent=True)
    assert fault.hits == submit.SENDS


def test_a_key_has_one_id_and_must_not_be_empty() -> None:
    assert submit.key_id("a") == submit.key_id("a") != submit.key_id("b")
    assert submit.key_id("a") == str(uuid.UUID(submit.key_id("a")))
    with pytest.raises(UsageError, match="empty"):
        submit.key_id("")


async def test_whoever_sends_is_asked_right_before_each_request(comfyui: Sim, api: Api) -> None:
    order: list[str] = []

    async def ask() -> None:
        order.append("asked" if comfyui.requests.count(("POST", "/prompt")) == len(order) else "too late")

    comfyui.faults.add("POST", "/prompt", reset(), times=2)
    await submit.send_once(api, Looker(api), body(), before_send=ask)
    assert order == ["asked"] * 3


async def test_nothing_is_sent_once_somebody_else_has_taken_the_job_over(comfyui: Sim, api: Api) -> None:
    async def ask() -> None:
        raise StoreError("taken over")

    with pytest.raises(StoreError, match="taken over"):
        await submit.send_once(api, Looker(api), body(), before_send=ask, maybe_sent=True)
    assert ("POST", "/prompt") not in comfyui.requests
