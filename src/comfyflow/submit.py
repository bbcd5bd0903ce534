"""POST /prompt exactly once, as far as a server lets one be certain.

A POST without an answer may have been read. It is never repeated blindly: the server runs the same id twice
without a word [17]. So the job is looked for (queue, then history); a stalled server is waited out; and only
when it answers again and still knows nothing of the job, twice, is the request sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio

from . import events as e
from .api import Api
from .errors import BadAnswer, ServerError, ServerUnreachable
from .look import Looker
from .models import Submission
from .tracker import ABSENCES

SENDS = 3  # at most
SETTLE = 1.0  # s between the looks that must both find nothing before a request is sent again
GIVE_UP = 120.0  # s without a usable answer after an ambiguous request
RETRY_FIRST, RETRY_CEILING = 0.05, 5.0  # s between looks at a server that does not answer


async def send_once(api: Api, looker: Looker, body: Mapping[str, Any]) -> Submission:
    """Send the request body and return what the server said, or found out about it.

    Raises WorkflowRejected, BadAnswer, or ServerUnreachable, whose `sent` is True when the job may be queued
    all the same. Cancelling leaves that open too.
    """
    prompt_id = str(body["prompt_id"])
    for last in (False,) * (SENDS - 1) + (True,):
        try:
            return await api.prompt(body)
        except ServerError as error:
            if not _ambiguous(error):
                raise
            found = await _search(looker, prompt_id, error)
            if found is not None:
                return Submission(prompt_id, found, answered=False)
            if last or not await _may_send_again(api, error):
                raise
    raise AssertionError("unreachable")


def _ambiguous(error: ServerError) -> bool:
    """No answer, or one from somebody who cannot know: a proxy, or ComfyUI after it queued the job (500 in
    [17])."""
    if isinstance(error, ServerUnreachable):
        return error.sent
    return isinstance(error, BadAnswer) and error.status >= 500


async def _may_send_again(api: Api, error: ServerError) -> bool:
    """A plain 500 is ComfyUI's refusal. Servers before 0.3.45 choose the id themselves, so absence proves
    nothing there; /features came in the same version."""
    if isinstance(error, BadAnswer) and error.status == 500:
        return False
    try:
        await api.features()
    except ServerError:
        return False
    return True


async def _search(looker: Looker, prompt_id: str, error: ServerError) -> float | None:
    """The number of the job if the server has it, None if it has answered twice that it has not."""
    try:
        with anyio.fail_after(GIVE_UP):
            return await _found(looker, prompt_id)
    except TimeoutError:
        raise ServerUnreachable(
            f"{error}; whether it took the job is not known: ask with `comfyflow status {prompt_id}`",
            method=error.method, url=error.url, sent=True,
        ) from error  # fmt: skip


async def _found(looker: Looker, prompt_id: str) -> float | None:
    absences, wait = 0, RETRY_FIRST
    while True:
        event = await _looked(looker, prompt_id)
        if event is None:
            absences, wait = 0, min(wait * 2, RETRY_CEILING)
        elif not isinstance(event, e.Absent):
            return _number(event)
        else:
            absences, wait = absences + 1, SETTLE
        if absences == ABSENCES:
            return None
        await anyio.sleep(wait)


async def _looked(looker: Looker, prompt_id: str) -> e.JobEvent | None:
    """None when the server does not answer as it should."""
    try:
        return await looker.look(prompt_id)
    except ServerError:
        return None


def _number(event: e.JobEvent) -> float:
    number = event.number if isinstance(event, e.SeenPending | e.SeenRunning) else None
    return 0.0 if number is None else number
