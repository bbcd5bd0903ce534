"""For tests of your own integration: fixtures, there as soon as comfyflow is installed (a pytest plugin), and
trouble to order.

`comfyui` is a simulated server of the test's own, `comfyui_proxy` a proxy in front of it that can be told to
fail, `comfyui_proxy_for` puts one in front of any other server::

    from comfyflow.testing import reset_after

    async def test_my_bot_sends_once(comfyui, comfyui_proxy):
        comfyui_proxy.faults.add("POST", "/prompt", reset_after())
        await my_bot(comfyui_proxy.url)
        assert list(comfyui.executed.values()) == [1]

They work with pytest-asyncio in both of its modes, and with anyio's plugin where pytest-asyncio is not
installed. All of `comfyflow.sim` can be imported from here too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sim import (
        Body,
        Effect,
        Fault,
        FaultProxy,
        Faults,
        Sim,
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

try:
    import pytest_asyncio as _plugin  # its strict mode takes no other async fixtures
except ImportError:
    import pytest as _plugin  # type: ignore[no-redef] # the other place where a fixture may come from

__all__ = [
    "Body",
    "Effect",
    "Fault",
    "FaultProxy",
    "Faults",
    "Sim",
    "alter",
    "answer",
    "changed",
    "comfyui",
    "comfyui_proxy",
    "comfyui_proxy_for",
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
    "stall",
    "truncate",
    "zero_tail",
]

# What is imported where it is needed: a plugin is imported at every start of pytest, that must stay cheap.
# ruff: noqa: PLC0415


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import sim

    return getattr(sim, name)


@_plugin.fixture
async def comfyui() -> AsyncIterator[Sim]:
    """A started simulator (`comfyflow.sim.Sim`) for one test; it is stopped, and its files removed,
    afterwards."""
    from .sim import Sim

    async with Sim() as sim:
        yield sim


@_plugin.fixture
async def comfyui_proxy(comfyui: Sim) -> AsyncIterator[FaultProxy]:
    """A started `comfyflow.sim.FaultProxy` in front of `comfyui`."""
    from .sim import FaultProxy

    async with FaultProxy(comfyui.url) as proxy:
        yield proxy


@_plugin.fixture
async def comfyui_proxy_for() -> AsyncIterator[Callable[..., Awaitable[FaultProxy]]]:
    """A function that starts a `comfyflow.sim.FaultProxy` in front of the server whose URL it gets, with the
    options of `FaultProxy`; it is stopped after the test::

        proxy = await comfyui_proxy_for("http://127.0.0.1:8188", idle_cut=60)
    """
    from .sim import FaultProxy

    async with AsyncExitStack() as stack:

        async def start(url: str, **options: Any) -> FaultProxy:
            return await stack.enter_async_context(FaultProxy(url, **options))

        yield start
