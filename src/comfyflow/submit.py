"""POST /prompt exactly once, as far as a server lets one be certain.

A POST without an answer may have been read. It is never repeated blindly: the server runs the same id twice
without a word [17]. So the job is looked for (queue, then history); a stalled server is waited out; and only
when it answers again and still knows nothing of the job, twice, is the request sent again. `Ambiguous` says
what to do where that proves nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import anyio

from . import events as e
from .api import Api
from .errors import BadAnswer, ServerError, ServerUnreachable, UsageError, WorkflowRejected
from .look import Looker
from .models import Ambiguous, Submission
from .tracker import ABSENCES

SENDS = 3  # at most
# Seconds in which looks must find nothing, again and again, before a request is sent again. ComfyUI answers
# on one event loop, in the order in which requests come in (server.py), so whoever gets an answer knows that
# an earlier request was begun, and a killed server has taken its unread requests with it. SETTLE_LATE is for
# a request whose end nobody has seen: we or a proxy only stopped waiting, or the server stood still. What we
# had not got rid of is taken back (`api.Body`), nginx drops a request whose client has gone, but HAProxy
# passes on what waits in its queue (no `option abortonclose`), for its `timeout queue`: often 5 s.
SETTLE, SETTLE_LATE = 1.0, 6.0
GIVE_UP = 120.0  # s without a usable answer after an ambiguous request
RETRY_FIRST, RETRY_CEILING = 0.05, 5.0  # s between looks at a server that does not answer
GATEWAY_TIMEOUTS = frozenset({504, 522, 524})  # the latter two are Cloudflare's


BeforeSend = Callable[[], Awaitable[None]]


@lru_cache(maxsize=1024)  # a job's is asked for many times
def key_id(key: str) -> str:
    """The prompt id that belongs to an idempotency key: always the same. Raises UsageError for an empty
    one."""
    if not key:
        raise UsageError("an idempotency key must not be empty: all jobs would be the same one")
    return str(uuid5(NAMESPACE_URL, f"comfyflow:key:{key}"))


async def send_once(
    api: Api,
    looker: Looker,
    body: Mapping[str, Any],
    *,
    ambiguous: Ambiguous = Ambiguous.WAIT,
    maybe_sent: bool = False,
    before_send: BeforeSend | None = None,
    departed: Callable[[], bool] = lambda: False,
) -> Submission:
    """Send the request body and return what the server said, or found out about it.

    `maybe_sent`: somebody who did not live to tell may have sent it before. `before_send` is awaited right
    before each request, after however long a search; what it raises stops the sending. No search goes on once
    the server is known to have `departed`.

    Raises WorkflowRejected, BadAnswer, or ServerUnreachable, whose `sent` is True when the job may be queued
    all the same. Cancelling leaves that open too.
    """
    sending = _Sending(api, looker, str(body["prompt_id"]), Ambiguous(ambiguous), departed)
    doubt: ServerError | None = None
    if maybe_sent:
        doubt = sending.unknown("an earlier request may have reached the server")
    for last in (False,) * SENDS + (True,):
        if doubt is not None and (found := await sending.resolve(doubt, last=last)) is not None:
            return found
        if before_send is not None:
            await before_send()
        try:
            return await api.prompt(body)
        except ServerError as error:
            if not _ambiguous(error):
                sending.weigh(error)
                raise
            doubt = error
    raise AssertionError("unreachable")


@dataclass(slots=True)
class _Sending:
    """One job on its way to one server."""

    api: Api
    looker: Looker
    prompt_id: str
    ambiguous: Ambiguous
    departed: Callable[[], bool]
    unsure: bool = False  # it is sent again although nobody knows what became of the request before

    def unknown(self, text: str) -> ServerUnreachable:
        return ServerUnreachable(text, method="POST", url=str(self.api.server.url("/prompt")), sent=True)

    def weigh(self, error: ServerError) -> None:
        """A clear refusal of this request says nothing of one before whose fate is open: that is raised."""
        if self.unsure and not isinstance(error, WorkflowRejected):
            raise self.unknown(f"{error}; an earlier request may have been taken: {self._ask()}") from error

    def _ask(self) -> str:
        return f"ask with `comfyflow status {self.prompt_id}`"

    async def resolve(self, doubt: ServerError, *, last: bool) -> Submission | None:
        """The job, if the server has it; None when it is to be sent (again). Raises when it must not be."""
        try:
            event = await self._search(doubt)
        except TimeoutError:
            text = f"{doubt}; whether it took the job is not known: {self._ask()}"
            self._gamble(self.unknown(text), doubt, last=last)
            return None
        if event is not None:
            return Submission(self.prompt_id, _number(event), answered=False)
        if last or _refused(doubt):
            raise doubt
        if self.ambiguous is Ambiguous.FAIL:
            text = f"{doubt}; it is not sent again, as was asked for (--ambiguous fail)"
            raise self.unknown(f"{text}; the server may still get it: {self._ask()} in a while") from doubt
        self.unsure = False
        if not await self._keeps_ids():
            text = (
                f"{doubt}; nobody can tell whether the server has it, which makes its own ids (before 0.3.45)"
            )
            text = f"{text}: look into its queue, or allow a second run with --ambiguous resend"
            self._gamble(self.unknown(text), doubt, last=last)
        return None

    def _gamble(self, unknown: ServerUnreachable, doubt: ServerError, *, last: bool) -> None:
        if last or self.ambiguous is not Ambiguous.RESEND:
            raise unknown from doubt
        self.unsure = True

    async def _keeps_ids(self) -> bool:
        try:
            return await self.looker.keeps_ids()
        except ServerError:
            return False  # it fell silent again: nothing is certain

    async def _search(self, doubt: ServerError) -> e.JobEvent | None:
        """Where the job is, None if the server has told for long enough that it has not got it. Raises
        TimeoutError when it told nothing for GIVE_UP seconds."""
        late = _may_come_late(doubt)
        deadline = anyio.current_time() + GIVE_UP
        absences, since, wait = 0, inf, RETRY_FIRST
        while True:
            event = await self._looked(doubt, deadline)
            now = anyio.current_time()
            if isinstance(event, e.Absent):
                absences, since, wait = absences + 1, min(since, now), SETTLE
            elif isinstance(event, e.JobEvent):
                return event
            elif now >= deadline or self.departed():
                raise TimeoutError
            else:  # no single failure is a verdict, nor are two absences with one between them
                late = late or _may_come_late(event)
                absences, since, wait = 0, inf, min(wait * 2, RETRY_CEILING)
            if absences >= ABSENCES and now - since >= (SETTLE_LATE if late else 0.0):
                return None
            await anyio.sleep(wait)

    async def _looked(self, doubt: ServerError, deadline: float) -> e.JobEvent | ServerError:
        """What the server says, or that it does not answer as it should."""
        left = max(deadline - anyio.current_time(), SETTLE_LATE)
        try:
            with anyio.fail_after(left):
                return await self.looker.look(self.prompt_id)
        except TimeoutError as error:
            unknown = self.unknown("no answer")
            unknown.__cause__ = error
            return unknown
        except ServerError as error:
            if _strange(doubt) and isinstance(error, BadAnswer) and error.status < 500:
                raise doubt from error  # e.g. a login page: whoever answers here lets nothing through
            return error


def _ambiguous(error: ServerError) -> bool:
    """No answer, or one from somebody who cannot know: a proxy, or ComfyUI after it queued the job (500 in
    [17]; a 200 whose body arrived broken)."""
    if isinstance(error, ServerUnreachable):
        return error.sent
    return isinstance(error, BadAnswer) and (error.status >= 500 or _strange(error))


def _strange(error: ServerError) -> bool:
    """Status 200, and not ComfyUI's answer: damaged on the way, or from somebody else."""
    return isinstance(error, BadAnswer) and error.status == 200


def _refused(error: ServerError) -> bool:
    """Sending it again would bring the same answer: ComfyUI's plain 500, or a stranger's 200."""
    return isinstance(error, BadAnswer) and error.status in (200, 500)


def _may_come_late(error: ServerError) -> bool:
    """Nobody has seen the end of the request: we or a proxy only stopped waiting for the answer."""
    if isinstance(error, BadAnswer):
        return error.status in GATEWAY_TIMEOUTS
    return isinstance(error.__cause__, TimeoutError)


def _number(event: e.JobEvent) -> float:
    number = event.number if isinstance(event, e.SeenPending | e.SeenRunning) else None
    return 0.0 if number is None else number
