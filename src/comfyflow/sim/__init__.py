"""A stand-in ComfyUI server: its routes, queue, worker, events, previews and files, its warts, and trouble to
order.

It imports nothing else of comfyflow: a fake that shares code with its client agrees with it when both are
wrong. Its behaviour is measured against recordings of real servers (tests/recordings), same messages in the
same order with the same keys, same answers, for these scenarios:

- 0.27.0: 01-20, 23-26, 28, 29, 33, 38, and the descriptions of nodes of 21
- 0.3.64: 01, 02, 03, 06, 07, 08, 10, 11, 14, 16, 17

`async with Sim() as sim` starts one in this process; `python -m comfyflow.sim --port 8188` in its own.
`FaultProxy` brings the same trouble to a real server.
"""

import asyncio

from .faults import (
    Body,
    Effect,
    Fault,
    Faults,
    alter,
    answer,
    changed,
    corrupt,
    delay,
    endless,
    gone,
    ignore_range,
    lie,
    login_page,
    redirect,
    replace_body,
    reset,
    reset_after,
    stall,
    truncate,
    zero_tail,
)
from .profiles import PROFILES, Profile
from .proxy import FaultProxy
from .server import Sim

__all__ = [
    "PROFILES",
    "Body",
    "Effect",
    "Fault",
    "FaultProxy",
    "Faults",
    "Profile",
    "Sim",
    "alter",
    "answer",
    "changed",
    "corrupt",
    "delay",
    "endless",
    "gone",
    "ignore_range",
    "lie",
    "login_page",
    "redirect",
    "replace_body",
    "reset",
    "reset_after",
    "serve",
    "stall",
    "truncate",
    "zero_tail",
]


async def serve(sim: Sim) -> None:
    """Start a simulator, print its URL as one line, and serve until cancelled."""
    async with sim:
        print(sim.url, flush=True)
        await asyncio.Event().wait()
