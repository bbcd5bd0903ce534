"""One job's state machine: rows of the table, any order of events, and every recorded scenario played to its
end."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from comfyflow import events as e
from comfyflow import protocol
from comfyflow.models import (
    JobFailure,
    JobResult,
    JobState,
    JobView,
    OutputFile,
    OutputText,
    PollSchedule,
    Preview,
)
from comfyflow.tracker import ABSENCES, CLIMBS, GRACE, RETRY_CEILING, RETRY_FIRST, Tracker

RECORDINGS = Path(__file__).parent / "recordings"
POLL = PollSchedule(first=0.5)
TITLES = {"3": "Sampler", "9": "Save"}
FILE, TEXT = OutputFile("9", "a.png"), OutputText("9", "text", "hi")
DONE = JobResult("j", JobState.SUCCEEDED, (FILE,))
FAILED = e.Announced("j", JobState.FAILED, JobFailure("bad", "3"), 7.0)
SUCCEEDED = e.Announced("j", JobState.SUCCEEDED)


def tracker(*events: e.JobEvent) -> Tracker:
    made = Tracker("j", POLL, TITLES)
    for event in events:
        made.feed(event, 0.0)
    return made


SAMPLES: dict[type[e.JobEvent], e.JobEvent] = {
    e.Accepted: e.Accepted("j", 4),
    e.SeenPending: e.SeenPending("j", 4, 2),
    e.Started: e.Started("j"),
    e.Cached: e.Cached("j", ("3",)),
    e.NodeStarted: e.NodeStarted("j", "3"),
    e.Progressed: e.Progressed("j", "3", 1, 4),
    e.NodesSeen: e.NodesSeen("j", 1, "9", 0, 1),
    e.NodeOutput: e.NodeOutput("j", (FILE,), (TEXT,)),
    e.Previewed: e.Previewed("j", Preview(b"x", "image/png")),
    e.Blocked: e.Blocked("j", "9", "no image"),
    e.SeenRunning: e.SeenRunning("j", 4),
    e.Announced: FAILED,
    e.Settled: e.Settled("j"),
}


def test_the_table_has_every_event_that_is_not_an_end() -> None:
    # By name: a slotted dataclass leaves its unslotted first draft behind among the subclasses.
    kinds = {kind.__name__ for kind in e.JobEvent.__subclasses__()} - {"Recorded", "Absent"}
    assert {kind.__name__ for kind in CLIMBS} == {kind.__name__ for kind in SAMPLES} == kinds


@pytest.mark.parametrize("kind", CLIMBS)
def test_an_event_lifts_a_new_job_to_the_state_that_it_proves(kind: type[e.JobEvent]) -> None:
    assert tracker(SAMPLES[kind]).state is CLIMBS[kind]


@pytest.mark.parametrize("kind", CLIMBS)
def test_no_event_lowers_a_job_whose_end_was_announced(kind: type[e.JobEvent]) -> None:
    assert tracker(e.Settled("j"), SAMPLES[kind]).state is JobState.FINISHING


def test_what_the_history_records_overrules_everything_and_is_final() -> None:
    job = tracker(FAILED, e.Recorded("j", DONE))
    assert (job.state, job.result, job.due()) == (JobState.SUCCEEDED, DONE, None)
    assert not job.feed(FAILED, 1.0)
    assert job.result is DONE


def test_a_look_is_due_when_the_last_frame_has_come_and_a_grace_after_an_announced_end() -> None:
    job = Tracker("j", POLL)
    assert job.due() is None
    job.feed(FAILED, 10.0)
    assert job.announced
    assert job.due() == 10.0 + GRACE
    job.feed(e.Settled("j"), 10.5)
    assert job.due() == 10.5


def test_looks_for_a_missing_history_entry_come_ever_less_often() -> None:
    job = tracker(e.Settled("j"))
    waits = []
    for _ in range(12):
        job.feed(e.SeenRunning("j"), 100.0)
        waits.append((job.due() or 0) - 100.0)
    assert waits[0] == pytest.approx(RETRY_FIRST)
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_CEILING


def test_a_look_that_finds_the_job_alive_needs_no_other_one() -> None:
    job = Tracker("j", POLL)
    job.look_at(3.0)
    job.look_at(5.0)
    assert job.due() == 3.0
    job.put_off(4.0)
    assert job.due() == 4.0
    job.feed(e.SeenPending("j", 7, 2), 4.0)
    assert job.due() is None
    assert (job.number, job.ahead) == (7, 2)
    job.feed(e.SeenPending("j"), 5.0)  # a look that cannot tell
    assert (job.number, job.ahead) == (7, 2)


def absent_until_lost(job: Tracker, now: float = 0.0) -> JobResult:
    for n in range(ABSENCES):
        assert job.result is None, n
        job.feed(e.Absent("j"), now)
    assert job.result is not None
    return job.result


def test_one_absence_is_no_verdict() -> None:
    job = tracker(e.Accepted("j", 1))
    job.feed(e.Absent("j"), 10.0)
    assert job.state is JobState.QUEUED
    assert job.due() == 10.0 + POLL.first
    job.feed(e.SeenRunning("j"), 11.0)  # it was there after all: the count starts again
    assert absent_until_lost(job).state is JobState.LOST


def test_a_job_that_we_asked_to_end_and_that_is_gone_was_cancelled() -> None:
    job = tracker(e.Accepted("j", 1))
    job.stop(5.0)
    assert job.due() == 5.0
    job.feed(e.SeenRunning("j"), 6.0)
    assert job.due() == 6.0 + RETRY_FIRST
    assert absent_until_lost(job).state is JobState.CANCELLED


def test_an_end_that_the_socket_told_counts_when_the_history_is_gone() -> None:
    job = tracker(
        e.NodeOutput("j", (FILE,), (TEXT,)), e.NodeOutput("j", (FILE,), (TEXT,)), FAILED, e.Settled("j")
    )
    job.stop(1.0)
    file, text = replace(FILE, reused=None), replace(TEXT, reused=None)  # nothing was heard of the cache
    assert absent_until_lost(job) == JobResult(
        "j", JobState.FAILED, (file,), (text,), FAILED.failure, ended_at=7.0, source="events"
    )


def test_what_the_socket_tells_of_the_cache_counts_too() -> None:
    new, old = OutputFile("3", "new.png", reused=None), OutputFile("9", "old.png", reused=None)
    job = tracker(e.Cached("j", ("9",)), e.NodeOutput("j", (old,)), e.NodeOutput("j", (new,)), SUCCEEDED)
    result = absent_until_lost(job)
    assert {file.filename: file.reused for file in result.outputs} == {"old.png": True, "new.png": False}


def test_a_node_that_was_seen_to_run_has_not_given_an_old_result() -> None:
    """0.27.0 may drop a result that it has just listed as cached, and run the node again (--cache-ram)."""
    outputs = (
        OutputFile("9", "a.png", reused=True),
        OutputFile("8", "b.png", reused=True),
        OutputFile("5.0.2", "c.png", reused=None),
        OutputFile("5.0.3", "d.png", reused=None),
    )
    texts = (OutputText("9", "text", "hi", reused=True),)
    job = tracker(
        e.NodeStarted("j", "9", "9"),
        e.NodeStarted("j", "5", "5.0.2"),
        e.NodeStarted("j", "8"),  # after a reconnect: it may be of another job
        e.Recorded("j", JobResult("j", JobState.SUCCEEDED, outputs, texts)),
    )
    assert job.result is not None
    assert [output.reused for output in job.result.outputs] == [False, True, False, None]
    assert [text.reused for text in job.result.texts] == [False]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((e.NodeOutput("j", (FILE,), ()), SUCCEEDED), JobState.LOST),
        ((e.NodeOutput("j", (), (TEXT,)), SUCCEEDED), JobState.SUCCEEDED),
        ((e.NodeOutput("j", (FILE,), ()), FAILED), JobState.FAILED),
        ((e.Accepted("j", 1),), JobState.LOST),
    ],
)
def test_files_of_a_server_that_has_ended_are_lost_whatever_was_told(
    events: tuple[e.JobEvent, ...], state: JobState
) -> None:
    job = tracker(*events)
    job.forsake()
    assert absent_until_lost(job).state is state


def test_the_view_shows_node_step_and_counts() -> None:
    job = tracker(
        e.Accepted("j", 1),
        e.Cached("j", ("1",)),
        e.NodesSeen("j", 2, "3", 0.0, 1.0),
        e.Progressed("j", "3", 2, 8),
    )
    view = job.view()
    assert (view.state, view.node_id, view.node_title) == (JobState.RUNNING, "3", "Sampler")
    assert (view.step, view.steps, view.nodes_done, view.nodes_total) == (2, 8, 2, 2)
    job.feed(e.NodesSeen("j", 1), 0.0)  # repeated late: no step back
    assert job.view() == view
    job.feed(e.NodeStarted("j", "77"), 0.0)
    assert (job.view().node_id, job.view().node_title, job.view().step) == ("77", None, None)
    job.feed(e.NodeStarted("j", "3.0.1"), 0.0)
    assert job.view().node_title == "Sampler"  # expanded from it
    job.feed(e.NodeStarted("j", "77"), 0.0)
    job.feed(e.Progressed("j", "", 1, 2), 0.0)  # names no node: the one that runs
    assert (job.view().node_id, job.view().step) == ("77", 1)


def test_previews_and_notes_go_when_the_job_ends() -> None:
    preview = Preview(b"x", "image/png")
    job = tracker(e.Previewed("j", preview), e.Blocked("j", "9", "no image"))
    assert job.view().preview == preview
    assert job.view().note == "node Save was blocked: no image"
    job.feed(e.Blocked("j", None, "x"), 0.0)
    job.feed(e.Recorded("j", DONE), 0.0)
    assert (job.view().preview, job.view().note, job.view().result) == (None, None, DONE)


def test_the_place_in_the_queue_only_shrinks() -> None:
    job = Tracker("j", POLL)
    assert not job.at_most(3)
    job.feed(e.Accepted("j", 1), 0.0)
    assert job.at_most(3)
    assert job.view().queue_position == 2
    assert not job.at_most(9)
    assert job.at_most(0)
    assert job.view().queue_position == 0
    job.feed(e.Started("j"), 0.0)
    assert job.view().queue_position is None
    assert not job.at_most(1)


@given(
    st.lists(st.sampled_from(list(SAMPLES.values())), max_size=30),
    st.sampled_from([DONE, JobResult("j", JobState.FAILED)]),
)
def test_any_order_repetition_and_loss_ends_in_what_the_history_says(
    events: list[e.JobEvent], end: JobResult
) -> None:
    job = Tracker("j", POLL, TITLES)
    ranks = [job.state.rank]
    for now, event in enumerate(events):
        job.feed(event, float(now))
        ranks.append(job.state.rank)
        assert (job.due() is not None) >= job.announced  # an announced end is always looked into
    assert ranks == sorted(ranks)
    job.feed(e.Recorded("j", end), 99.0)
    assert (job.state, job.result) == (end.state, end)


# --- whatever happens, in any order ------------------------------------------------------------------------

TOLD = [event for event in SAMPLES.values() if not isinstance(event, e.Accepted)]
SECONDS = st.floats(0.0, 30.0)


class Life(RuleBasedStateMachine):
    """A job between a socket that tells, repeats and forgets, looks that answer or fail, and a caller with a
    clock. The machine keeps its own, simpler book of what must be true."""

    def __init__(self) -> None:
        super().__init__()
        self.job = Tracker("j", POLL, TITLES)
        self.now = 0.0
        self.rank = self.job.state.rank
        self.absences = 0  # looks in a row that found it nowhere, nothing heard in between
        self.announced: e.Announced | None = None
        self.end: JobView | None = None

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=st.integers(-3, 9))
    def accept(self, number: int) -> None:
        self._feed(e.Accepted("j", number))

    @rule(event=st.sampled_from(TOLD))
    def tell(self, event: e.JobEvent) -> None:
        self._feed(event)

    @rule(state=st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]))
    def announce(self, state: JobState) -> None:
        self._feed(e.Announced("j", state, at=self.now))

    @rule(number=st.none() | st.integers(0, 9), ahead=st.none() | st.integers(0, 9))
    def look_finds_it_waiting(self, number: int | None, ahead: int | None) -> None:
        self._feed(e.SeenPending("j", number, ahead))

    @rule()
    def look_finds_it_nowhere(self) -> None:
        before = self.job.result
        self.job.feed(e.Absent("j"), self.now)
        if before is None:
            self.absences += 1
            self._judge_absence()

    @rule(state=st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]))
    def look_finds_its_end(self, state: JobState) -> None:
        result = JobResult("j", state, (FILE,))
        news = self.job.feed(e.Recorded("j", result), self.now)
        assert news == (self.end is None)
        if news:
            assert self.job.result is result
            self._ended()

    @precondition(lambda self: self.job.due() is not None)
    @rule(seconds=SECONDS)
    def look_fails(self, seconds: float) -> None:
        self.job.put_off(self.now + seconds)
        assert self.job.due() == self.now + seconds

    @rule(seconds=SECONDS)
    def want_a_look(self, seconds: float) -> None:
        before = self.job.due()
        self.job.look_at(self.now + seconds)
        wanted = self.now + seconds if before is None else min(before, self.now + seconds)
        assert self.job.due() == (wanted if self.end is None else None)

    @precondition(lambda self: self.end is None)
    @rule()
    def stop(self) -> None:
        self.job.stop(self.now)
        assert (self.job.due() or 0.0) <= self.now

    @rule(remaining=st.integers(0, 9))
    def count(self, remaining: int) -> None:
        before = self.job.ahead
        news = self.job.at_most(remaining)
        assert not news or before is None or (self.job.ahead or 0) < before + 1

    @invariant()
    def state_only_climbs(self) -> None:
        assert self.job.state.rank >= self.rank
        self.rank = self.job.state.rank

    @invariant()
    def nothing_changes_after_the_end(self) -> None:
        assert (self.end is not None) == (self.job.result is not None) == self.job.state.terminal
        assert self.end is None or self.job.view() == self.end

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        """Without a look of its own it has to have a turn among the others: a place in the server's order."""
        due = self.job.due()
        assert due is None or math.isfinite(due)
        unknown = self.absences > 0 or self.job.announced or self.job.stopping
        assert self.end is not None or not unknown or due is not None

    @invariant()
    def a_place_in_the_queue_is_none_below_the_first(self) -> None:
        waits = self.job.state.rank <= JobState.QUEUED.rank
        assert self.job.ahead is None or (waits and self.job.ahead >= 0)

    def teardown(self) -> None:
        """From here on only looks, each when it is due or at its turn, and they find nothing any more."""
        for _ in range(ABSENCES + 1):
            if self.end is None:
                self.now = max(self.now, self.job.due() or self.now)
                self.look_finds_it_nowhere()
        assert self.end is not None

    def _feed(self, event: e.JobEvent) -> None:
        news = self.job.feed(event, self.now)
        assert news == (self.end is None)
        if news:
            self.absences = 0
            self.announced = self.announced or (event if isinstance(event, e.Announced) else None)
            assert self.job.state.rank >= CLIMBS[type(event)].rank

    def _judge_absence(self) -> None:
        if self.absences < ABSENCES:
            assert self.job.result is None
            return
        result = self.job.result
        assert result is not None
        if self.announced is not None:
            assert (result.state, result.source) == (self.announced.state, "events")
        else:
            assert result.state is (JobState.CANCELLED if self.job.stopping else JobState.LOST)
        self._ended()

    def _ended(self) -> None:
        self.end = self.job.view()
        assert self.end.result is self.job.result
        assert self.job.due() is None


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


# --- every recording, played to its end -------------------------------------------------------------------

S, F, C, L = "succeeded", "failed", "cancelled", "lost"
ENDS: dict[str, list[str]] = {  # in the order of submission, as scenario.md tells it
    "01_success_single_image": [S],
    "02_success_steps_previews_legacy": [S, S],
    "03_success_steps_previews_metadata": [S, S],
    "04_batch_of_3_images": [S],
    "05_two_output_nodes": [S],
    "06_all_cached_resubmission": [S, S, S, S, S],
    "08_execution_error": [F, F],
    "09_execution_blocked": [S, S, L],  # the third was cut short by the end of the recording
    "10_interrupt_running": [C, C, C, S, S, S],
    "11_delete_pending": [S, L, L],  # removed while pending: not to be told from lost
    "12_three_prompts_one_client": [S, S, S],
    "13_two_clients_interleaved": [S, S, S, S],
    "14_socket_dropped_and_reconnected": [S],
    "15_socket_absent_whole_run": [S],
    "16_server_killed_and_restarted": [S, L, L, S, L, L],
    "17_duplicate_prompt_id": [S, S, S, L],
    "18_media_outputs": [S, S, S, S, S, S, S],
    "19_upload_and_use": [S, S, S],
    "20_view_variants": [S],
    "24_two_sockets_same_client": [S, S, S],
    "25_prompt_without_client_id": [S],
    "26_progress_text": [S, S],
    "27_async_and_expanded_nodes": [S, S],
    "29_history_paging": [S, S, S, S],
    "31_big_executed_frame": [S, S, S],
    "33_late_errors_and_worker_death": [L, L],
    "36_assets_enabled": [S, S],
    "38_nan_in_outputs": [S],
}


def played(folder: Path) -> list[Tracker]:
    """Every job of a scenario, fed with all frames and answers in the order of their times."""
    jobs: dict[str, Tracker] = {}
    for line in recorded(folder):
        for event in events_of(line):
            if isinstance(event, e.Accepted):
                jobs.setdefault(event.prompt_id, Tracker(event.prompt_id, POLL))
            if isinstance(event, e.JobEvent) and event.prompt_id in jobs:
                jobs[event.prompt_id].feed(event, 0.0)
    return list(jobs.values())


def recorded(folder: Path) -> list[dict[str, Any]]:
    found = [
        json.loads(text)
        for name in ("http.jsonl", "ws.jsonl")
        for text in (folder / name).read_text("utf-8").splitlines()
    ]
    return sorted(found, key=lambda line: line.get("t_end_ms", line.get("t_ms", 0)))


def events_of(line: dict[str, Any]) -> Iterator[e.Event]:
    if line.get("dir") == "in" and line["kind"] in ("text", "binary"):
        frame = line["text"] if "text" in line else base64.b64decode(line.get("base64", ""))
        yield protocol.parse_frame(frame)
    elif line.get("status") == 200 and "response_json" in line:
        body, last = json.dumps(line["response_json"]).encode(), line["path"].rpartition("/")[2]
        if line["method"] == "POST" and last == "prompt":
            answer = protocol.parse_submission(body)
            yield e.Accepted(answer.prompt_id, answer.number)
        elif "/history/" in line["path"] and (result := protocol.parse_history(body, last)):
            yield e.Recorded(last, result)


@pytest.mark.parametrize(
    ("folder", "ends"),
    [(folder, ENDS[folder.name]) for folder in sorted(RECORDINGS.glob("*/*")) if folder.name in ENDS],
    ids=lambda value: value.parent.name + "/" + value.name if isinstance(value, Path) else "",
)
def test_every_recorded_job_ends_as_its_scenario_says(folder: Path, ends: list[str]) -> None:
    jobs = played(folder)
    for job in jobs:
        for _ in range(ABSENCES):  # the recording is over: what has no end by now is nowhere
            job.feed(e.Absent(job.prompt_id), 0.0)
    assert [job.state.value for job in jobs] == ends


def test_a_dead_worker_leaves_its_job_without_an_end() -> None:
    jobs = played(RECORDINGS / "0.27.0" / "33_late_errors_and_worker_death")
    assert [job.state for job in jobs] == [JobState.RUNNING, JobState.QUEUED]
