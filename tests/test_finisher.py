"""Ends of files, many at once: each gets its own answer, and a slow one holds nobody up for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from comfyflow import finisher
from comfyflow.finisher import Finisher


class Folder:
    """The one in which all of them are."""

    def __init__(self) -> None:
        self.synced = 0

    def sync(self) -> None:
        self.synced += 1


FOLDER = Folder()


class Note:
    """A file that takes down what is done with it, and waits where it is told to."""

    def __init__(self, name: str, steps: list[str], *, wrong: str | None = None) -> None:
        self.name, self.steps, self.wrong = name, steps, wrong
        self.met, self.go = threading.Event(), threading.Event()
        self.go.set()

    def prepare(self) -> None:
        self.met.set()
        assert self.go.wait(10)
        self._step("prepare")

    def publish(self) -> str:
        self._step("publish")
        return self.name

    def names(self) -> Callable[[], None]:
        return FOLDER.sync

    def _step(self, step: str) -> None:
        if step == self.wrong:
            raise OSError(step)
        self.steps.append(f"{step} {self.name}")


async def held(work: Finisher) -> tuple[Note, asyncio.Task[str]]:
    """A file that keeps the one thread waiting."""
    first = Note("first", [])
    first.go.clear()
    task = asyncio.create_task(work.finish(first))
    await asyncio.to_thread(first.met.wait, 10)
    return first, task


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Finisher:
    """One thread."""
    monkeypatch.setattr(finisher, "THREADS", 1)
    return Finisher()


async def test_files_that_come_meanwhile_are_finished_together(one: Finisher) -> None:
    steps: list[str] = []
    first, task = await held(one)
    others = [asyncio.create_task(one.finish(Note(name, steps))) for name in "abc"]
    await asyncio.wait(others, timeout=0.01)
    before = FOLDER.synced
    first.go.set()
    assert await task == "first"
    assert await asyncio.gather(*others) == ["a", "b", "c"]
    assert steps == [*(f"prepare {name}" for name in "abc"), *(f"publish {name}" for name in "abc")]
    assert FOLDER.synced == before + 2


@pytest.mark.parametrize("wrong", ["prepare", "publish"])
async def test_each_gets_its_own_error(one: Finisher, wrong: str) -> None:
    steps: list[str] = []
    first, task = await held(one)
    bad, good = (
        asyncio.create_task(one.finish(Note(name, steps, wrong=fault)))
        for name, fault in (("bad", wrong), ("good", None))
    )
    await asyncio.wait([bad], timeout=0.01)
    first.go.set()
    with pytest.raises(OSError, match=wrong):
        await bad
    assert (await task, await good) == ("first", "good")
    assert "publish good" in steps
    assert "publish bad" not in steps


async def test_who_is_cancelled_disturbs_nobody(one: Finisher) -> None:
    steps: list[str] = []
    first, task = await held(one)
    gone, other = (asyncio.create_task(one.finish(Note(name, steps))) for name in ("gone", "other"))
    await asyncio.wait([gone], timeout=0.01)
    gone.cancel()
    task.cancel()
    await asyncio.wait([gone, task])
    first.go.set()
    assert await other == "other"
    assert "publish gone" in steps


async def test_a_slow_folder_gets_more_threads_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finisher, "SLOW", 0.0)
    work = Finisher()
    first, task = await held(work)
    assert await work.finish(Note("quick", [])) == "quick"
    assert not task.done()
    first.go.set()
    await task


def test_a_loop_that_has_been_closed_is_no_fault(one: Finisher) -> None:
    steps: list[str] = []
    note = Note("late", steps)
    note.go.clear()

    async def leave() -> None:
        task = asyncio.create_task(one.finish(note))
        await asyncio.to_thread(note.met.wait, 10)
        task.cancel()

    asyncio.run(leave())
    note.go.set()
    assert asyncio.run(one.finish(Note("next", steps))) == "next"
    assert steps[:2] == ["prepare late", "publish late"]
