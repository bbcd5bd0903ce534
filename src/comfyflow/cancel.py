"""Ask a server to end one job, and never another one."""

from __future__ import annotations

import re

from .api import Api
from .errors import NotSupported, UsageError

TARGETED_SINCE = (
    0,
    3,
    57,
)  # POST /interrupt obeys `prompt_id`; there is no other way to find out than the version


async def ask_to_end(api: Api, prompt_id: str, *, force: bool = False) -> None:
    """Take the job out of the queue, or interrupt it. What came of it only the history tells.

    Raises NotSupported when the job runs on a server that would interrupt whatever runs at that moment; with
    `force` that is done all the same, right after a look that saw this job running.
    """
    if not prompt_id:  # to /interrupt that means whatever runs
        raise UsageError("there is no job without a prompt id")
    if await api.cancel_job(prompt_id) is not None:
        return
    await api.dequeue(prompt_id)
    running = (await api.queue()).running
    if any(item.prompt_id == prompt_id for item in running):
        if not force and not await _targets(api):
            raise NotSupported(
                f"{api.server} cannot interrupt one certain job (that came with ComfyUI 0.3.57): "
                "force it to interrupt what is running now, or update the server",
                method="POST", url=str(api.server.url("/interrupt")),
            )  # fmt: skip
        await api.interrupt(prompt_id)


async def _targets(api: Api) -> bool:
    stats = await api.system_stats()
    system = stats.get("system")
    version = system.get("comfyui_version") if isinstance(system, dict) else None
    parts = re.findall(r"\d+", str(version or ""))[:3]
    return tuple(int(part) for part in parts) >= TARGETED_SINCE
