"""The journal: whole lines or none, in order, once, and nothing lost silently."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from comfyflow import JobEvent, StoreError
from comfyflow.journal import ANYWHERE, DAMAGED, Draining, Journal, JournalSummary
from comfyflow.rows import Batch, batch_of

HERE, THERE = "localhost:5432/here", "localhost:5432/there"


def batch(name: str, **detail: Any) -> Batch:
    return batch_of([JobEvent(name, "note", detail, at=1.0, event_id=f"id of {name}")])


def name_of(one: Batch) -> str:
    return str(one.runs[0]["prompt_id"])


def filled(folder: Path, *names: str, target: str = HERE) -> Journal:
    journal = Journal(folder)
    for name in names:
        journal.append(batch(name), target)
    return journal


def drained(journal: Journal, target: str | None = HERE) -> list[str]:
    with journal.draining(target) as batches:
        return [name_of(one) for one in batches]


def aside(journal: Journal) -> list[bytes]:
    """What was set aside, without the line that says why."""
    return [path.read_bytes().partition(b"\n")[2] for path in journal.folder.glob("*.aside")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal"


def journal_name(target: str) -> str:
    return f"{quote(target, safe='')}.journal"


def journal_file(journal: Journal) -> Path:
    (path,) = journal.folder.glob("*.journal")
    return path


# -- in and out ---------------------------------------------------------------------------------------------


def test_batches_come_out_as_they_went_in_and_only_once(folder: Path) -> None:
    journal = Journal(folder)
    entries = [batch("a", text="é\n\t\0\ud800😀", n=2**70), batch("b"), batch("a")]
    for one in entries:
        journal.append(one, HERE)
    with journal.draining(HERE) as batches:
        assert [one.to_json() for one in batches] == [one.to_json() for one in entries]
    assert drained(journal) == []
    assert list(folder.glob("*.journal")) == []


def test_nothing_is_touched_before_something_is_written(folder: Path) -> None:
    journal = Journal(folder)
    assert journal.summary() == JournalSummary()
    assert not journal.waits_for(None)
    assert not folder.exists()


def test_prompts_are_not_for_others_to_read(folder: Path) -> None:
    journal = filled(folder, "a")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert journal.waits_for(HERE)


def test_each_database_gets_its_own_and_what_belongs_to_none(folder: Path) -> None:
    journal = filled(folder, "1", "2")
    filled(folder, "3", target=THERE)
    filled(folder, "4", target=ANYWHERE)
    assert drained(journal) == ["4", "1", "2"]
    assert journal.summary().targets == {THERE: 1}
    assert not journal.waits_for(HERE)
    assert drained(journal, None) == ["3"]


def test_what_belongs_to_no_database_stays_for_one(folder: Path) -> None:
    journal = filled(folder, "1", target=ANYWHERE)
    assert journal.waits_for(HERE)
    assert drained(journal, ANYWHERE) == ["1"]


def test_names_of_databases_of_any_length_are_kept_apart(folder: Path) -> None:
    hosts = ",".join(f"host{number}.example.org:5432" for number in range(20))
    journal = filled(folder, "1", target=f"{hosts}/x")
    filled(folder, "2", target=f"{hosts}/y")
    assert journal.summary().targets == {f"{hosts}/x": 1, f"{hosts}/y": 1}
    assert drained(journal, f"{hosts}/y") == ["2"]


def test_the_summary_tells_how_much_waits_and_since_when(folder: Path) -> None:
    journal = filled(folder, "1", "2", "3")
    filled(folder, "4", target=THERE)
    summary = journal.summary()
    files = list(folder.glob("*.journal"))
    assert (summary.records, summary.targets) == (4, {HERE: 3, THERE: 1})
    assert summary.bytes == sum(path.stat().st_size for path in files)
    assert summary.oldest is not None
    assert 0 <= max(path.stat().st_mtime for path in files) - summary.oldest < 60


@pytest.mark.parametrize("variable", [True, False])
def test_the_usual_folder_is_below_the_users_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    monkeypatch.delenv("COMFYFLOW_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    if variable:
        monkeypatch.setenv("COMFYFLOW_STATE", str(tmp_path / "own"))
    folder = Journal().folder
    assert folder.name == "journal"
    assert not variable or folder == tmp_path / "own" / "journal"
    assert variable or "comfyflow" in folder.parts


# -- a flush that does not come to its end ------------------------------------------------------------------


def test_what_was_not_written_stays_with_all_that_follows(folder: Path) -> None:
    journal = filled(folder, *"abcd")
    with pytest.raises(ZeroDivisionError), journal.draining(HERE) as batches:
        for one in batches:
            assert name_of(one) != "c" or 1 / 0
    assert journal.summary().records == 2
    assert drained(journal) == ["c", "d"]


def test_a_flush_that_fails_at_once_changes_nothing(folder: Path) -> None:
    journal = filled(folder, *"ab")
    before = journal_file(journal).read_bytes()
    with pytest.raises(ZeroDivisionError), journal.draining(HERE) as batches:
        next(batches)
        raise ZeroDivisionError
    assert journal_file(journal).read_bytes() == before


def test_a_flush_may_stop_between_two_files(folder: Path) -> None:
    journal = filled(folder, "1", target=ANYWHERE)
    filled(folder, "2")
    with journal.draining(HERE) as batches:
        assert [name_of(next(batches)), name_of(next(batches))] == ["1", "2"]
    assert drained(journal) == ["2"]


def test_what_no_database_takes_is_set_aside_and_the_others_go_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = filled(folder, *"abc")
    seen = []
    with journal.draining(HERE) as batches:
        for one in batches:
            seen.append(name_of(one))
            if seen[-1] == "b":
                batches.refuse("no job b\nis recorded")
    assert (seen, drained(journal), journal.summary().set_aside) == (["a", "b", "c"], [], 1)
    (kept,) = folder.glob("*.aside")
    assert kept.read_text("utf-8").startswith("# no job b is recorded\n")
    assert '"prompt_id":"b"' in kept.read_text("utf-8")
    assert str(kept) in caplog.text


# -- torn and damaged lines ---------------------------------------------------------------------------------


def test_a_line_torn_at_any_byte_costs_only_itself(folder: Path) -> None:
    journal = filled(folder, "a", "b")
    path = journal_file(journal)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert drained(journal) == ["a"]
        assert aside(journal) == [whole[start:cut]]
        next(iter(folder.glob("*.aside"))).unlink()


def test_a_torn_line_does_not_take_the_next_one_with_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = filled(folder, "a", "b")
    path = journal_file(journal)
    os.truncate(path, path.stat().st_size - 5)
    journal.append(batch("c"), HERE)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert drained(journal) == ["a", "c"]
    assert journal.summary().set_aside == 1


@pytest.mark.parametrize("taken", [2, 4])
def test_what_follows_a_torn_line_while_others_are_taken_out_is_not_mixed_with_it(
    folder: Path, taken: int
) -> None:
    """A file is read ahead: what was read of the torn line is not the beginning of the next one."""
    journal = filled(folder, "a", "b")
    path = journal_file(journal)
    path.write_bytes(path.read_bytes() + b"abc")
    found = []
    with journal.draining(HERE) as batches:
        found.append(name_of(next(batches)))
        filled(folder, "c", "d")
        found += [name_of(one) for one in islice(batches, taken - 1)]
    found += drained(journal)
    assert found == (["a", "b", "b", "c", "d"] if taken == 2 else ["a", "b", "c", "d", "d"])
    assert aside(journal) == [b"abc"]


def test_a_file_of_one_torn_line_is_emptied(folder: Path) -> None:
    journal = filled(folder, "a")
    journal_file(journal).write_bytes(b"x" * 3_000_000)
    assert drained(journal) == []
    assert aside(journal) == [b"x" * 3_000_000]


@pytest.mark.parametrize(
    "damaged",
    [b"no checksum\n", b"\n", b"00000000\t{}\t{}\n", b"99999999 x\n"],
)
def test_a_damaged_line_is_set_aside_and_the_others_go_on(folder: Path, damaged: bytes) -> None:
    journal = filled(folder, "a", "b")
    path = journal_file(journal)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(damaged + first + damaged + second)
    assert journal.summary().records == 4
    assert drained(journal) == ["a", "b"]
    assert aside(journal) == [damaged * 2]


def test_a_file_full_of_damage_is_set_aside_as_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = filled(folder, "a", "b")
    filled(folder, "c", target=ANYWHERE)
    path = folder / journal_name(HERE)
    first, second = path.read_bytes().splitlines(keepends=True)
    garbage = [b"%d\n" % number for number in range(2000)]
    path.write_bytes(b"".join([*garbage[:1000], first, *garbage[1000:], second]))
    assert drained(journal) == ["c", "a", "b"]
    (kept,) = folder.glob("*.aside")
    assert kept.read_bytes() == f"# {DAMAGED}\n".encode() + b"".join(garbage)
    assert [record.getMessage() for record in caplog.records] == [
        f"2000 lines of the journal cannot be used ({DAMAGED}): kept in {kept}"
    ]


def test_each_file_has_its_damage_set_aside_by_itself(folder: Path) -> None:
    journal = filled(folder, "a")
    filled(folder, "b", target=ANYWHERE)
    for name in (HERE, ANYWHERE):
        with (folder / journal_name(name)).open("ab") as file:
            file.write(f"damage of {name}\n".encode())
    assert drained(journal) == ["b", "a"]
    assert sorted(aside(journal)) == sorted(f"damage of {name}\n".encode() for name in (HERE, ANYWHERE))


def test_damage_leaves_the_journal_also_where_the_flush_does_not_come_to_its_end(folder: Path) -> None:
    journal = filled(folder, "a")
    path = journal_file(journal)
    whole = path.read_bytes()
    path.write_bytes(b"x\ny\n" + whole)
    with pytest.raises(ZeroDivisionError), journal.draining(HERE) as batches:
        next(batches)
        raise ZeroDivisionError
    assert (path.read_bytes(), aside(journal)) == (whole, [b"x\ny\n"])


def test_damage_that_cannot_be_set_aside_stays_in_the_journal(folder: Path) -> None:
    journal = filled(folder, "a")
    path = journal_file(journal)
    whole = b"x" * 20_000 + b"\n" + path.read_bytes()
    path.write_bytes(whole)
    with pytest.raises(StoreError, match="cannot be used"), small_files():
        drained(journal)
    assert (path.read_bytes(), aside(journal)) == (whole, [])


def test_a_line_of_another_version_is_set_aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(folder)
    monkeypatch.setattr(Batch, "to_json", lambda _: json.dumps({"runs": "in another form"}))
    journal.append(batch("a"), HERE)
    assert drained(journal) == []
    assert journal.summary().set_aside == 1


# -- several at once ----------------------------------------------------------------------------------------


def test_only_one_flushes_at_a_time(folder: Path) -> None:
    journal = filled(folder, "a", "b")
    with journal.draining(HERE) as first:
        assert name_of(next(first)) == "a"
        with Journal(folder).draining(HERE, wait=False) as second:
            assert (second.busy, list(second)) == (True, [])
        assert [name_of(one) for one in first] == ["b"]


def test_a_second_flush_waits_for_the_first(folder: Path) -> None:
    journal = filled(folder, "a", "b")
    got: list[str] = []
    with journal.draining(HERE) as first:
        second = threading.Thread(target=lambda: got.extend(drained(Journal(folder))))
        second.start()
        next(first)
        assert got == []
        next(first)
    second.join()
    assert got == ["b"]


def test_what_is_added_during_a_flush_is_flushed_too(folder: Path) -> None:
    journal = filled(folder, "a")
    seen = []
    with journal.draining(HERE) as batches:
        for one in batches:
            seen.append(name_of(one))
            if len(seen) < 4:
                journal.append(batch(f"{len(seen)}"), HERE)
    assert seen == ["a", "1", "2", "3"]


def append_many(folder: Path, name: str, count: int) -> None:
    journal = Journal(folder)
    for number in range(count):
        journal.append(batch(f"{name}{number}", text="x" * 5000), HERE)


def test_processes_append_and_flush_at_once_and_nothing_is_lost(folder: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=append_many, args=(folder, name, 60)) for name in "ab"]
    for writer in writers:
        writer.start()
    seen: list[str] = []
    while any(writer.is_alive() for writer in writers):
        seen += drained(Journal(folder))
    for writer in writers:
        writer.join()
    seen += drained(Journal(folder))
    for name in "ab":
        assert [one for one in seen if one[0] == name] == [f"{name}{number}" for number in range(60)]
    assert aside(Journal(folder)) == []


WRITES_FOR_EVER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_journal import HERE, Journal, batch
journal, number = Journal(Path(sys.argv[1])), 0
while True:
    journal.append(batch(str(number), text="x" * 200_000), HERE)
    number += 1
    print(number, flush=True)
"""


def killed_after(folder: Path, appends: int, more: int) -> int:
    """How many appends a process has told to be done before it was killed in the middle of another one."""
    command = [sys.executable, "-c", WRITES_FOR_EVER, str(folder), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(appends)]
        for _ in range(more):
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
        told += process.stdout.readlines()
    return int(told[-1])


def test_a_process_that_is_killed_leaves_whole_what_it_had_told(folder: Path) -> None:
    chance = random.Random(1)
    for _ in range(3):
        told = killed_after(folder, chance.randrange(1, 20), chance.randrange(2000))
        names = drained(Journal(folder))
        assert names[:told] == [str(number) for number in range(told)]
        assert len(names) <= told + 1


# -- whatever happens, in any order -------------------------------------------------------------------------

GARBAGE = b"no checksum\n"
IN_A_FILE = st.sampled_from([HERE, ANYWHERE])
ONE_OF_TWO = st.integers(0, 1)


class Story(RuleBasedStateMachine):
    """Two programs with one journal: they append, take out, refuse and die. The machine keeps its own book:
    what has to come out yet, of each target in order, and what has to be found beside the journal."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name) / "journal"
        self.journals = Journal(self.folder), Journal(self.folder)
        self.count = 0
        self.waiting: dict[str, list[str]] = {HERE: [], ANYWHERE: [], THERE: []}
        self.garbage = Counter[str]()  # whole lines that are none, by target
        self.aside = Counter[str]()  # batches that have to be found set aside
        self.flush: Draining | None = None
        self.given: list[str] = []  # taken out of the file that is being read, which is still as it was
        self.source: str | None = None  # the target of that file

    # Rules

    @rule(who=ONE_OF_TWO, whose=IN_A_FILE | st.just(THERE), size=st.sampled_from([0, 10, 20_000]))
    def append(self, who: int, whose: str, size: int) -> None:
        one = self._batch(size)
        self.journals[who].append(one, whose)
        self.waiting[whose].append(name_of(one))

    @rule(who=ONE_OF_TWO, whose=IN_A_FILE, part=st.floats(0.0, 1.0, exclude_max=True))
    def die_while_appending(self, who: int, whose: str, part: float) -> None:
        """Any part of the line is there, but not its end. Nobody was told that it is safe."""
        path = self.folder / journal_name(whose)
        before = path.stat().st_size if path.exists() else 0
        torn = self._ends_torn(path)
        self.journals[who].append(self._batch(100), whose)
        whole = path.stat().st_size
        start = path.read_bytes().rfind(b"\n", 0, whole - 1) + 1 if torn else before
        os.truncate(path, start + int(part * (whole - start)))

    @rule(whose=IN_A_FILE)
    def damage(self, whose: str) -> None:
        path = self.folder / journal_name(whose)
        if path.exists() and not self._ends_torn(path):
            with path.open("ab") as file:
                file.write(GARBAGE)
            self.garbage[whose] += 1

    @rule(who=ONE_OF_TWO)
    def put_aside(self, who: int) -> None:
        one = self._batch(10)
        self.journals[who].put_aside(one, HERE, "no such job")
        self.aside[name_of(one)] += 1

    @precondition(lambda self: self.flush is None)
    @rule(who=ONE_OF_TWO)
    def begin_to_flush(self, who: int) -> None:
        self.flush = self.journals[who].draining(HERE).__enter__()
        assert not self.flush.busy

    @precondition(lambda self: self.flush is not None)
    @rule(who=ONE_OF_TWO)
    def flush_beside_another(self, who: int) -> None:
        with self.journals[who].draining(HERE, wait=False) as second:
            assert (second.busy, list(second)) == (True, [])

    @precondition(lambda self: self.flush is not None)
    @rule(steps=st.integers(1, 4))
    def take_out(self, steps: int) -> None:
        for _ in range(steps):
            self._take_one()

    @precondition(lambda self: self.flush is not None and self.given)
    @rule()
    def refuse(self) -> None:
        assert self.flush is not None
        self.flush.refuse("the database does not want it")
        self.aside[self.given[-1]] += 1
        self._take_one()

    @precondition(lambda self: self.flush is not None)
    @rule()
    def stop_flushing(self) -> None:
        """Of what was given, all but the last was written; that one may not have been."""
        assert self.flush is not None
        self.flush.__exit__(None, None, None)
        self._leave_file(self.given[:-1])
        self.flush = None

    @precondition(lambda self: self.flush is not None)
    @rule()
    def die_while_flushing(self) -> None:
        """All that the file holds comes once more: what is written twice is there once."""
        assert self.flush is not None
        self.flush._stack.close()  # what the kernel does: the locks are gone, and nothing else has happened
        self.flush._close()
        self.flush = None
        self._leave_file([])

    # What holds always

    @invariant()
    def nothing_is_found_aside_that_does_not_belong_there(self) -> None:
        assert self._found_aside() == self.aside

    @precondition(lambda self: self.flush is None)
    @invariant()
    def the_summary_counts_what_waits(self) -> None:
        summary = self.journals[0].summary()
        assert summary.records >= sum(map(len, self.waiting.values()))
        assert self.journals[1].waits_for(HERE) >= bool(self.waiting[HERE] or self.waiting[ANYWHERE])

    def teardown(self) -> None:
        """At the end everything comes out that was neither taken out nor set aside, once, in order."""
        with self.place:
            if self.flush is not None:
                self.stop_flushing()
            for target in (ANYWHERE, HERE, THERE):
                with self.journals[0].draining(target) as batches:
                    assert [name_of(one) for one in batches] == self.waiting[target]
            self.nothing_is_found_aside_that_does_not_belong_there()
            damaged = b"".join(aside(self.journals[0])).count(GARBAGE)
            assert damaged >= self.garbage.total()
            assert list(self.folder.glob("*.journal")) == []

    # The book

    def _batch(self, size: int) -> Batch:
        self.count += 1
        return batch(f"batch {self.count}", text="x" * size)

    def _take_one(self) -> None:
        assert self.flush is not None
        one = next(self.flush, None)
        if one is None:  # this file is gone, and there is no other one
            self._leave_file(self.given)
            assert self.waiting[HERE] == self.waiting[ANYWHERE] == []
            return
        source = HERE if name_of(one) in self.waiting[HERE] else ANYWHERE
        if source != self.source:  # the file before this one has come to its end
            assert self.source is None or self.waiting[self.source] == self.given
            self._leave_file(self.given)
            self.source = source
        assert self.waiting[source][len(self.given)] == name_of(one)
        self.given.append(name_of(one))

    def _leave_file(self, written: list[str]) -> None:
        if self.source is not None:
            del self.waiting[self.source][: len(written)]
        self.source, self.given = None, []

    def _ends_torn(self, path: Path) -> bool:
        return path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")

    def _found_aside(self) -> Counter[str]:
        found = Counter[str]()
        for body in aside(self.journals[0]):
            for line in body.splitlines(keepends=True):
                if (rows := line.rpartition(b"\t")[2]).endswith(b"}\n"):
                    found[name_of(Batch.from_json(rows.decode()))] += 1
        return found


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# -- the disk -----------------------------------------------------------------------------------------------


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may become larger than 10 kB. Not for a whole test: what pytest prints may go
    to a larger file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_told_and_leaves_no_half_line(folder: Path) -> None:
    journal = filled(folder, "a")
    told = "cannot be used: File too large; make room"
    with pytest.raises(StoreError, match=told) as raised, small_files():
        journal.append(batch("b", text="x" * 20_000), HERE)
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.EFBIG
    journal.append(batch("c"), HERE)
    assert drained(journal) == ["a", "c"]
    assert aside(journal) == []


def test_a_journal_that_can_be_written_is_left_as_it_was(folder: Path) -> None:
    journal = filled(folder, "a")
    journal.check()
    assert drained(journal) == ["a"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    journal = Journal(tmp_path / "file" / "journal")
    with pytest.raises(StoreError, match="cannot be used"):
        journal.check()
    with pytest.raises(StoreError, match="COMFYFLOW_STATE"):
        journal.append(batch("a"), HERE)
    with pytest.raises(StoreError, match="cannot be used"), journal.draining(HERE):
        pass
