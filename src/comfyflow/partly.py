"""A server accepts a workflow of which it would run only a part (execution.py, `validate_prompt`): what that
leaves out, and how the job is taken back."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from . import events as e
from .api import Api
from .cancel import ask_to_end
from .errors import ServerError, WorkflowRejected
from .look import Looker
from .models import JobState, Submission
from .shield import to_the_end

TAKING_BACK = 10.0  # s for ending a job of which only a part would run


async def left_out(api: Api, prompt_id: str) -> dict[str, Any]:
    """The output nodes that the server will not run of a job whose answer was lost, which alone names them;
    without the reasons. Empty when that cannot be found out."""
    with suppress(ServerError):
        sent = await api.sent(prompt_id)
        if sent is None or sent.outputs is None:
            return {}
        others = {key: node for key, node in sent.graph.items() if isinstance(node, dict)}
        kinds = {key: str(others[key].get("class_type")) for key in others.keys() - sent.outputs}
        ends = {kind for kind in set(kinds.values()) if await _is_output(api, kind)}
        return {key: {"class_type": kind, "errors": []} for key, kind in kinds.items() if kind in ends}
    return {}


async def _is_output(api: Api, node_class: str) -> bool:
    found = (await api.object_info(node_class)).get(node_class)
    return isinstance(found, dict) and bool(found.get("output_node"))


async def taken_back(api: Api, looker: Looker, submission: Submission) -> WorkflowRejected:
    """End a job of which the server would run a part only. The error that says so, what the server would not
    run, and what became of the job. Cancelling leaves open whether it ends."""
    outcome = f"but job {submission.prompt_id} could not be taken back"
    with suppress(ServerError, TimeoutError):
        await to_the_end(ask_to_end(api, submission.prompt_id), TAKING_BACK)
        event = await looker.look(submission.prompt_id)
        ran = isinstance(event, e.Recorded) and event.result.state is not JobState.CANCELLED
        outcome = "and that part has already run" if ran else "so it was taken back"
    rejected = WorkflowRejected(
        f"the server would run only a part of the workflow, {outcome}",
        method="POST", url=str(api.server.url("/prompt")), error={},
        node_errors=submission.node_errors, accepted=True,
    )  # fmt: skip
    rejected.prompt_id = submission.prompt_id
    return rejected
