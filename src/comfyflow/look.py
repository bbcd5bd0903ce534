"""One look at one job: ask the server where it stands. What it can be asked is found out by asking, not by
its version."""

from __future__ import annotations

from . import events as e
from .api import Api
from .errors import BadAnswer, NotSupported


class Looker:
    """Look at jobs of one server."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._has_jobs: bool | None = None  # None: not yet known
        self._keeps_ids = False  # False: not yet known, or not so

    async def look(self, prompt_id: str, *, ended: bool = False) -> e.JobEvent:
        """Where a job stands: SeenPending, SeenRunning, Recorded, or Absent. Raises ServerError.

        With `ended` the history is asked first, which is one request when the end was announced. Otherwise
        /api/jobs/{id} (it reads queue, then history, under one lock) or, where there is none, the queue and
        THEN the history: the other way round 93 of 595 living jobs were in neither.
        """
        if ended and (recorded := await self._recorded(prompt_id)):
            return recorded
        alive = await self._alive(prompt_id)
        return alive or await self._recorded(prompt_id) or e.Absent(prompt_id)

    async def keeps_ids(self) -> bool:
        """Whether a job has the id that we gave it. Servers before 0.3.45 make their own, so that not finding
        it proves nothing there. Raises ServerError."""
        if not (self._keeps_ids or self._has_jobs):
            try:
                await self._api.features()  # it came in the same version
            except BadAnswer as error:
                if error.status not in (404, 405):
                    raise
                return False
            self._keeps_ids = True
        return True

    async def require_ids(self) -> None:
        """Raises NotSupported where a job does not have the id that we gave it, ServerError."""
        if not await self.keeps_ids():
            server = self._api.server
            raise NotSupported(
                f"{server} makes its own prompt ids (that ended with ComfyUI 0.3.45), so no job is "
                "found by its key there: update the server, or submit without a key",
                method="POST", url=str(server.url("/prompt")),
            )  # fmt: skip

    async def _recorded(self, prompt_id: str) -> e.Recorded | None:
        result = await self._api.history(prompt_id)
        return None if result is None else e.Recorded(prompt_id, result)

    async def _alive(self, prompt_id: str) -> e.JobEvent | None:
        """The job in the queue or running; Absent when it is certain that the history does not have it
        either."""
        if self._has_jobs is not False:
            found = await self._api.job(prompt_id)
            if found.supported:
                self._has_jobs = True
                return found.alive if found.known else e.Absent(prompt_id)
        queue = await self._api.queue()  # a proxy's 404 of a moment ago has no queue either
        self._has_jobs = False
        return queue.find(prompt_id)
