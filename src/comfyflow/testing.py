"""Fixtures for your tests, there as soon as comfyflow is installed (a pytest plugin).

`comfyui` is a simulated server of the test's own::

    async def test_my_bot(comfyui):
        async with ComfyClient(comfyui.url) as client: ...

It works with pytest-asyncio in both of its modes, and with anyio's plugin where pytest-asyncio is not
installed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sim import Sim

try:
    import pytest_asyncio as _plugin  # its strict mode takes no other async fixtures
except ImportError:
    import pytest as _plugin  # type: ignore[no-redef] # the other place where a fixture may come from

__all__ = ["comfyui"]


@_plugin.fixture
async def comfyui() -> AsyncIterator[Sim]:
    """A started simulator (`comfyflow.sim.Sim`) for one test; it is stopped, and its files removed,
    afterwards."""
    from .sim import Sim  # noqa: PLC0415 - a plugin is imported at every start of pytest: that must stay cheap

    async with Sim() as sim:
        yield sim
