"""What must not be left half done is finished, whichever way the caller is cancelled."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from comfyflow.shield import to_the_end


class Work:
    """Begins, waits to be allowed to end, ends."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.ended = asyncio.Event(), asyncio.Event(), False

    async def __call__(self) -> str:
        self.begun.set()
        await self.may_end.wait()
        self.ended = True
        return "done"


async def test_the_result_comes_back_and_errors_too() -> None:
    work = Work()
    work.may_end.set()
    assert await to_the_end(work(), 1.0) == "done"

    async def failing() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await to_the_end(failing(), 1.0)


@pytest.mark.parametrize("native", [True, False], ids=["task.cancel", "cancel scope"])
async def test_a_cancellation_waits_for_the_end(native: bool) -> None:
    work, scope = Work(), anyio.CancelScope()

    async def caller() -> None:
        with scope:
            await to_the_end(work(), 5.0)

    task = asyncio.create_task(caller())
    await work.begun.wait()
    task.cancel() if native else scope.cancel()
    await asyncio.sleep(0)
    work.may_end.set()
    await asyncio.wait([task])
    assert work.ended
    assert task.cancelled() == native


async def test_nothing_is_waited_for_longer_than_the_limit() -> None:
    work = Work()
    with pytest.raises(TimeoutError):
        await to_the_end(work(), 0.02)
    assert not work.ended
