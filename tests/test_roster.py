"""Which job is looked at, and when: one look for a healthy socket, one a server and interval without."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from comfyflow import events as e
from comfyflow.models import JobResult, JobState, PollSchedule
from comfyflow.roster import Roster
from comfyflow.tracker import GRACE, Tracker

POLL = PollSchedule(first=1.0, factor=2.0, ceiling=8.0, stall_after=15.0, deaf_after=10.0)


def roster(*numbers: float, live: bool = False, now: float = 0.0) -> Roster:
    """With accepted jobs "0", "1", ... of these numbers."""
    made = Roster(POLL, now)
    if live:
        made.socket(True, now)
    for index, number in enumerate(numbers):
        add(made, str(index), number, now)
    return made


def add(to: Roster, prompt_id: str, number: float, now: float = 0.0, *, counted: bool = True) -> Tracker:
    job = Tracker(prompt_id, POLL)
    to.add(job, now)
    to.accepted(job, number, now, counted=counted)
    return job


def ended(prompt_id: str) -> e.Recorded:
    return e.Recorded(prompt_id, JobResult(prompt_id, JobState.SUCCEEDED))


def test_without_a_socket_looks_go_to_the_first_job_ever_less_often() -> None:
    jobs = roster(0, 1, 2)
    times = []
    for _ in range(6):
        now = jobs.wake_at()
        assert jobs.due(now - 0.01) is None
        assert jobs.due(now) == "0"
        assert jobs.due(now) is None  # one at a time
        jobs.looked("0", e.SeenPending("0"), now)
        times.append(now)
    assert [b - a for a, b in pairwise(times)] == [2, 4, 8, 8, 8]


def test_when_the_first_has_ended_the_next_is_looked_at_at_once() -> None:
    jobs = roster(0, 1)
    assert jobs.due(1.0) == "0"
    job = jobs.looked("0", ended("0"), 1.0)
    assert job is not None
    assert job.state is JobState.SUCCEEDED
    jobs.drop("0")
    assert len(jobs) == 1
    assert jobs.due(1.0) == "1"
    jobs.looked("1", e.SeenPending("1"), 1.0)
    assert jobs.due(1.0) is None


def test_priority_decides_who_is_first() -> None:
    jobs = roster(5)
    add(jobs, "urgent", -3, counted=False)
    add(jobs, "late", 7)
    assert jobs.due(1.0) == "urgent"


def test_numbers_that_fall_back_tell_of_a_restart_so_older_jobs_come_first() -> None:
    jobs = roster(50)
    add(jobs, "new", 0)
    assert jobs.due(1.0) == "0"


def test_answers_out_of_order_tell_nothing_about_a_restart() -> None:
    jobs, first, second = roster(50), Tracker("first", POLL), Tracker("second", POLL)
    for job in (first, second):
        jobs.add(job, 0.0)
    jobs.accepted(second, 52, 0.0)
    jobs.accepted(first, 51, 0.0)
    jobs.drop("0")
    assert jobs.due(1.0) == "first"


def test_a_priority_of_ours_tells_nothing_about_a_restart() -> None:
    jobs = roster(50)
    add(jobs, "soon", 2, counted=False)
    add(jobs, "next", 51)
    assert jobs.due(1.0) == "soon"


def test_looks_become_frequent_again_when_the_job_is_near_or_runs() -> None:
    jobs = roster(0)
    jobs.due(1.0)
    assert jobs.looked("0", e.SeenPending("0", 0, 5), 1.0) is not None
    assert jobs.wake_at() == 3.0
    jobs.due(3.0)
    jobs.looked("0", e.SeenPending("0", 0, 1), 3.0)
    assert jobs.wake_at() == 4.0
    jobs.due(4.0)
    assert jobs.looked("0", e.SeenPending("0", 0, 1), 4.0) is None  # nothing new
    jobs.due(6.0)
    jobs.looked("0", e.SeenRunning("0"), 6.0)
    assert jobs.wake_at() == 7.0


def test_a_live_socket_is_trusted_until_it_stalls() -> None:
    jobs = roster(0, live=True)
    jobs.frame()
    assert jobs.due(14.9) is None
    jobs.feed(e.Progressed("0", "1", 1, 2), 10.0)
    assert jobs.wake_at() == 25.0
    jobs.feed(e.Status(1), 12.0)
    assert jobs.wake_at() == 27.0
    assert jobs.due(27.0) == "0"
    assert jobs.looked("0", e.SeenRunning("0"), 27.0) is None
    assert jobs.wake_at() == 42.0


def test_an_announced_end_is_looked_into_once() -> None:
    jobs = roster(0, live=True)
    jobs.frame()
    jobs.feed(e.Announced("0", JobState.SUCCEEDED), 3.0)
    assert jobs.wake_at() == 3.0 + GRACE
    jobs.feed(e.Settled("0"), 3.1)
    assert jobs.due(3.1) == "0"
    assert jobs.wake_at() == math.inf
    jobs.looked("0", ended("0"), 3.2)
    jobs.drop("0")
    assert (jobs.wake_at(), jobs.due(99.0), jobs.get("0")) == (math.inf, None, None)


def test_a_job_that_started_shows_that_the_one_before_has_ended() -> None:
    jobs = roster(0, 1, live=True)
    jobs.frame()
    jobs.feed(e.Started("1"), 5.0)
    assert jobs.due(5.0) == "0"
    jobs.looked("0", ended("0"), 5.0)
    jobs.drop("0")
    jobs.feed(e.Started("1"), 6.0)
    assert jobs.due(6.0) is None
    add(jobs, "late", 9)
    jobs.feed(e.Started("late"), 6.0)  # an earlier one of ours has not ended as far as we know
    assert jobs.due(6.0) == "1"


def test_a_job_with_priority_does_not_overtake() -> None:
    jobs = roster(5, 5, live=True)
    jobs.feed(e.Started("1"), 5.0)
    assert jobs.due(5.0) is None


def test_when_the_socket_opens_or_is_lost_the_first_job_is_looked_at() -> None:
    jobs = roster(0, 1, live=True)
    jobs.socket(False, 5.0)
    assert jobs.wake_at() == 6.0
    assert jobs.due(6.0) == "0"
    jobs.looked("0", e.SeenRunning("0"), 6.0)
    jobs.socket(True, 6.5)
    assert jobs.due(6.5) == "0"
    Roster(POLL, 0.0).socket(True, 0.0)  # nothing in flight: nothing to do


def test_a_job_that_was_on_its_way_when_the_socket_opened_is_looked_at() -> None:
    """The server may have run it before it knew whom to tell."""
    jobs = roster()
    early = Tracker("a", POLL)
    jobs.add(early, 0.0)
    jobs.socket(True, 1.0)
    assert jobs.due(1.0) is None  # it is not known to be there yet
    jobs.accepted(early, 1.0, 2.0)
    assert jobs.due(2.0) == "a"
    jobs.looked("a", e.SeenPending("a", 1.0, 0), 2.1)
    add(jobs, "b", 2.0, now=3.0)
    assert jobs.due(3.0) is None


def test_a_socket_that_says_nothing_after_a_submit_is_deaf() -> None:
    jobs = roster(0, live=True)
    assert jobs.wake_at() == 10.0
    assert not jobs.deaf(9.9)
    assert jobs.deaf(10.0)
    assert not jobs.deaf(10.0)


def test_a_socket_that_kept_silent_about_a_change_is_deaf() -> None:
    jobs = roster(0, live=True)
    jobs.frame()
    assert jobs.due(15.0) == "0"
    jobs.looked("0", e.SeenRunning("0"), 15.0)
    assert jobs.deaf(15.0)


def test_a_failed_look_is_tried_again_ever_less_often() -> None:
    jobs = roster(0)
    jobs.due(1.0)
    job = jobs.failed("0", "no answer", 1.0)
    assert job is not None
    assert job.view().note == "no answer"
    assert jobs.wake_at() == 3.0
    assert jobs.failed("0", "no answer", 3.0) is None
    job.look_at(3.0)
    jobs.plan(job)
    assert jobs.due(6.9) is None
    assert jobs.due(7.0) == "0"
    jobs.failed("0", "no answer", 7.0)
    assert jobs.wake_at() == 15.0
    assert jobs.failed("gone", "x", 3.0) is None
    assert jobs.looked("gone", e.Absent("gone"), 3.0) is None


def test_a_job_that_we_know_nothing_of_is_looked_at_first_and_then_takes_its_place() -> None:
    jobs = roster(5)
    stranger = Tracker("s", POLL)
    stranger.look_at(0.0)
    jobs.add(stranger, 0.0)
    assert jobs.due(0.0) == "s"
    jobs.looked("s", e.SeenPending("s", 2, 4), 0.0)
    assert jobs.due(1.9) is None
    assert jobs.due(2.0) == "s"  # before the job with number 5


def test_absence_is_confirmed_by_a_look_of_its_own() -> None:
    jobs = roster(0)
    jobs.due(1.0)
    assert jobs.looked("0", e.Absent("0"), 1.0) is None
    assert jobs.due(1.5) is None
    assert jobs.due(2.0) == "0"
    lost = jobs.looked("0", e.Absent("0"), 2.0)
    assert lost is not None
    assert lost.state is JobState.LOST
    assert jobs.failed("0", "x", 2.0) is None


def test_frames_without_a_job_belong_to_the_one_that_runs() -> None:
    jobs = roster(0, live=True)
    assert jobs.feed(e.NodeStarted("", "7"), 1.0) is None
    jobs.feed(e.Started("0"), 1.0)
    job = jobs.feed(e.NodeStarted("", "7"), 2.0)
    assert job is not None
    assert job.node_id == "7"
    assert roster().feed(e.NodeStarted("", "7"), 2.0) is None


def test_only_signs_of_work_break_the_silence() -> None:
    jobs = roster(0, live=True)
    assert jobs.feed(e.Unknown("monitor"), 5.0) is None
    jobs.feed(e.Status(3), 6.0)
    jobs.feed(e.Status(4), 7.0)  # somebody submits; that is no work
    assert jobs.moved == 0.0
    jobs.feed(e.Status(3), 8.0)
    assert jobs.moved == 8.0
    jobs.working(9.0)
    assert jobs.moved == 9.0
    jobs.due(30.0)
    jobs.looked("0", e.SeenRunning("0"), 30.0)
    assert jobs.moved == 30.0
    jobs.due(45.0)
    jobs.looked("0", e.SeenRunning("0"), 45.0)
    assert jobs.moved == 30.0
    jobs.feed(e.Started("foreign"), 50.0)
    assert jobs.moved == 50.0


def test_the_silence_begins_with_the_first_job() -> None:
    jobs = Roster(POLL, 0.0)
    add(jobs, "0", 0, now=100.0)
    assert jobs.moved == 100.0


def test_a_server_that_talks_of_others_only_is_looked_at_all_the_same() -> None:
    jobs = roster(0, live=True)
    jobs.frame()
    for second in range(60):
        jobs.feed(e.Status(2), float(second))
        jobs.working(float(second), '{"prompt_id": "foreign"}')
    assert jobs.due(59.9) is None
    assert jobs.due(60.0) == "0"


def test_a_frame_that_names_the_first_job_is_news_of_it() -> None:
    jobs = roster(0, live=True)
    jobs.frame()
    for second in range(100):
        jobs.working(float(second), '{"prompt_id": "0"}')
    assert jobs.due(100.0) is None


def test_an_end_that_nobody_told_may_not_be_the_only_one() -> None:
    jobs = roster(0, 1, 2, live=True)
    jobs.frame()
    assert jobs.due(15.0) == "0"
    jobs.looked("0", ended("0"), 15.0)
    jobs.drop("0")
    assert jobs.due(15.0) == "1"


def test_answers_to_us_are_no_signs_of_life() -> None:
    jobs = roster(0, 1, live=True)
    jobs.frame()
    jobs.feed(e.SeenPending("1"), 10.0)
    assert (jobs.moved, jobs.wake_at()) == (0.0, 15.0)


def test_looks_that_fail_together_are_one_failure() -> None:
    jobs = roster()
    for name in "abc":
        stranger = Tracker(name, POLL)
        stranger.look_at(0.0)
        jobs.add(stranger, 0.0)
    looking = [str(jobs.due(0.0)) for _ in range(3)]
    for name in looking:
        jobs.failed(name, "no answer", 0.5)
    assert jobs.wake_at() == 2.5
    jobs.due(2.5)
    jobs.drop("a")
    assert jobs.looked("a", e.SeenRunning("a"), 2.6) is None  # gone, but the server is back
    assert jobs.due(2.6) is not None


def test_a_server_that_fails_is_asked_about_one_job_at_a_time() -> None:
    jobs = roster()
    for name in "abc":
        stranger = Tracker(name, POLL)
        stranger.look_at(0.0)
        jobs.add(stranger, 0.0)
    first = jobs.due(0.0)
    assert first is not None
    jobs.failed(first, "no answer", 0.0)
    assert (jobs.due(1.9), jobs.wake_at()) == (None, 2.0)
    second = jobs.due(2.0)
    assert second not in {None, first}
    assert (jobs.due(2.0), jobs.wake_at()) == (None, math.inf)
    jobs.looked(str(second), e.SeenRunning(str(second), 1), 2.5)
    assert jobs.due(2.5) is not None


@given(st.data())
def test_whatever_is_lost_every_job_ends_and_looks_stay_few(data: st.DataObject) -> None:
    """A server that runs jobs in order, a socket that may lose anything: all end, and no look is wasted in a
    crowd."""
    count = data.draw(st.integers(1, 6), label="jobs")
    jobs = roster(*range(count), live=data.draw(st.booleans(), label="live"))
    finish = [10.0 * (n + 1) for n in range(count)]
    idle, now, pending = 0, 0.0, list(range(count))
    told: set[int] = set()
    while pending:
        now = min([jobs.wake_at(), *(t for n, t in enumerate(finish) if n in pending and n not in told)])
        assert now < 10.0 * count + 100.0
        for n in [n for n in pending if finish[n] <= now and n not in told]:
            told.add(n)
            if jobs.live and data.draw(st.booleans(), label="told"):
                jobs.feed(e.Settled(str(n)), now)
        while (prompt_id := jobs.due(now)) is not None:
            n = int(prompt_id)
            alive = finish[n] > now
            idle += alive
            event: e.JobEvent = ended(prompt_id) if not alive else e.SeenRunning(prompt_id)
            jobs.looked(prompt_id, event, now)
            if not alive:
                pending.remove(n)
                jobs.drop(prompt_id)
        jobs.deaf(now)
    assert idle <= now / POLL.first + count + 1


def test_the_jobs_in_flight_are_told() -> None:
    jobs = roster(live=True)
    add(jobs, "a", 0)
    add(jobs, "b", 1)
    assert [tracker.prompt_id for tracker in jobs.trackers()] == ["a", "b"]


def with_a_stranger(now: float = 0.0) -> Roster:
    """A job that another socket is told of, behind a socket of ours that talks; found waiting at `now`."""
    jobs = roster(live=True, now=now)
    stranger = Tracker("s", POLL)
    stranger.look_at(now)
    jobs.add(stranger, now)
    jobs.stranger("s")
    assert jobs.due(now) == "s"
    jobs.looked("s", e.SeenPending("s", 0, 0), now)
    return jobs


def test_a_live_socket_is_not_trusted_for_a_job_of_another_socket() -> None:
    jobs = with_a_stranger()
    times = []
    for _ in range(4):
        now = jobs.wake_at()
        jobs.feed(e.Status(1), now)  # the socket talks, but not of this job
        assert jobs.due(now) == "s"
        jobs.looked("s", e.SeenPending("s"), now)
        times.append(now)
    assert times == [1, 3, 7, 15]


def test_a_socket_that_says_nothing_of_another_sockets_job_is_not_deaf() -> None:
    jobs = with_a_stranger()
    assert jobs.due(20.0) == "s"
    assert jobs.looked("s", e.SeenRunning("s"), 20.0) is not None
    assert not jobs.deaf(20.0)


def test_a_job_that_our_socket_tells_of_after_all_needs_no_more_looks() -> None:
    jobs = with_a_stranger()
    jobs.feed(e.Started("s"), 1.0)
    assert jobs.wake_at() == 16.0


def test_a_strangers_job_that_we_send_ourselves_is_one_of_ours() -> None:
    jobs = with_a_stranger()
    jobs.drop("s")
    add(jobs, "s", 0)
    jobs.frame()
    assert jobs.wake_at() == 15.0


def test_a_frame_is_about_the_running_job_that_it_names() -> None:
    jobs = roster(0, live=True)
    assert jobs.about('{"prompt_id": "0"}') is None  # it has not begun
    jobs.feed(e.Started("0"), 1.0)
    assert jobs.about('{"prompt_id": "0"}') == "0"
    assert jobs.about('{"prompt_id": "1"}') is None


def test_a_frame_is_about_the_job_that_runs_while_the_end_of_the_one_before_is_asked_for() -> None:
    jobs = roster(0, 1, live=True)
    for event in (e.Started("0"), e.Settled("0"), e.Started("1")):
        jobs.feed(event, 1.0)
    assert jobs.about('{"prompt_id": "0"}') is None
    assert jobs.about('{"prompt_id": "1"}') == "1"
    told = jobs.feed(e.Progressed("", "5", 1, 20), 2.0)  # a server that does not name the job
    assert told is jobs.get("1")


def test_of_ends_that_the_socket_missed_each_is_found_at_once_though_a_later_job_runs() -> None:
    jobs = roster(0, 1, 2, live=True)
    jobs.feed(e.Started("2"), 1.0)
    for prompt_id in ("0", "1"):
        assert jobs.due(1.0) == prompt_id
        jobs.looked(prompt_id, ended(prompt_id), 1.0)
    assert jobs.due(1.0) is None


def test_a_frame_about_a_job_of_another_socket_is_news_at_once() -> None:
    jobs = with_a_stranger()
    jobs.feed(e.SeenRunning("s", 0.0), 1.0)
    assert jobs.about('{"prompt_id": "s"}') is None
