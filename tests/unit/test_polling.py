"""One wait for one task, fact by fact, without a clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flux_async import (
    AuthenticationError,
    Charge,
    ConnectionLost,
    FluxError,
    InvalidRequestError,
    NotFoundError,
    PollDeadlineExceeded,
    PollPolicy,
    RateLimitedError,
    RequestNotSent,
    ServerError,
    TaskFailed,
    TaskId,
    TaskRecord,
    TaskStatus,
)
from flux_async.api.error_codes import CODES, PollMeaning, error_for
from flux_async.policy.generation_times import GenerationTimes
from flux_async.policy.polling import CallbackHealth, PollState

TASK = TaskId("t1")
STEADY = PollPolicy(interval_s=3.0, jitter=0.0)


def watch(span: float = 300.0, policy: PollPolicy = STEADY) -> PollState:
    """A wait that begins at 0."""
    return PollState(policy=policy, task_id=TASK, started_at=0.0, deadline=span, timeout_s=span)


def record(status: TaskStatus, **fields: Any) -> TaskRecord:
    """A record of the task."""
    return TaskRecord(task_id=TASK, status=status, **fields)


def test_generating_is_polled_on_and_success_ends() -> None:
    """Only a finished record ends the wait."""
    wait = watch()
    assert wait.saw_record(record(TaskStatus.GENERATING), 3.0) is None
    done = record(TaskStatus.SUCCESS, result_url="https://h/r.jpg")
    assert wait.saw_record(done, 6.0) is done


@pytest.mark.parametrize(
    ("status", "charge"),
    [(TaskStatus.CREATE_TASK_FAILED, Charge.NO), (TaskStatus.GENERATE_FAILED, Charge.MAYBE)],
)
def test_a_failed_task_ends_with_its_reason(status: TaskStatus, charge: Charge) -> None:
    """The error has the record, the task, the vendor's message and the charge."""
    end = watch().saw_record(record(status, error_code=500, error_message="internal error."), 3.0)
    assert isinstance(end, TaskFailed)
    assert (end.charge, end.task_id) == (charge, TASK)
    assert end.record is not None
    assert f"{status.name} (errorCode 500): internal error. " in str(end)


def test_a_failure_without_a_message_is_reported_as_such() -> None:
    """No reason is better than None."""
    end = watch().saw_record(record(TaskStatus.GENERATE_FAILED), 3.0)
    assert "no reason given" in str(end)


@pytest.mark.parametrize("error", [NotFoundError("404", code=404), InvalidRequestError("422", code=422)])
def test_no_such_task_means_not_visible_yet_for_90_s(error: FluxError) -> None:
    """Within the grace the wait goes on; after it, the error ends it and names the task."""
    wait = watch()
    assert wait.saw_error(error, 0.1) is None
    assert wait.saw_error(error, 89.9) is None
    end = wait.saw_error(error, 90.0)
    assert end is error
    assert error.task_id == TASK


def test_a_task_once_seen_exists() -> None:
    """A record that vanishes after it was seen is polled until the deadline."""
    wait = watch()
    wait.saw_record(record(TaskStatus.GENERATING), 3.0)
    assert wait.saw_error(NotFoundError("404", code=404), 200.0) is None


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_has_its_poll_meaning_of_the_table(code: int) -> None:
    """Fatal codes end the wait at once, the others do not (task failures arrive as records)."""
    end = watch().saw_error(error_for(code, "words"), 3.0)
    assert (end is not None) is (CODES[code].poll is PollMeaning.FATAL)


def test_a_fatal_code_names_the_task() -> None:
    """A key that died during the wait does not make us forget the paid task."""
    end = watch().saw_error(AuthenticationError("401", code=401), 3.0)
    assert end is not None
    assert end.task_id == TASK


def test_failed_polls_are_spaced_until_one_succeeds() -> None:
    """Each failed poll in a row doubles the bound of the wait, up to 30 s; Retry-After is honoured."""
    wait = watch(3000.0)
    for _ in range(3):
        assert wait.saw_error(ConnectionLost("x"), 3.0) is None
    assert wait.next_poll(3.0, 1.0) == 8.0
    for _ in range(40):
        wait.saw_error(ServerError("500", code=500), 3.0)
    assert wait.next_poll(3.0, 1.0) == 30.0
    wait.saw_record(record(TaskStatus.GENERATING), 3.0)
    assert wait.next_poll(3.0, 1.0) == 3.0
    wait.saw_error(RateLimitedError("429", code=429, retry_after_s=20.0), 3.0)
    assert wait.next_poll(3.0, 0.0) == 20.0
    wait.saw_error(RateLimitedError("429", code=429, retry_after_s=9e9), 3.0)
    assert wait.next_poll(3.0, 0.0) == 30.0


def test_the_last_poll_comes_just_before_the_deadline() -> None:
    """The poll before the end is moved so that no finished task is missed; then there is none."""
    wait = watch(10.0)
    assert wait.next_poll(0.0, 0.5) == 3.0
    wait.saw_record(record(TaskStatus.GENERATING), 8.0)
    assert wait.next_poll(8.0, 0.5) == pytest.approx(1.0)
    wait.saw_record(record(TaskStatus.GENERATING), 9.0)
    assert wait.next_poll(9.0, 0.5) is None


def test_a_deadline_is_postponed_once_for_a_last_poll() -> None:
    """By five seconds, if the process was stopped over it."""
    wait = watch(300.0, PollPolicy())
    wait.saw_record(record(TaskStatus.GENERATING), 250.0)
    assert wait.next_poll(400.0, 0.5) is None
    assert wait.postpone(400.0)
    delay = wait.next_poll(400.0, 0.5)
    assert delay is not None
    assert 0.0 <= delay < 5.0
    wait.saw_record(record(TaskStatus.GENERATING), 404.9)
    assert wait.next_poll(405.0, 0.5) is None
    assert not wait.postpone(500.0)


def test_the_deadline_error_has_the_task_and_the_charge() -> None:
    """The deadline's error can be acted on."""
    wait = watch(10.0)
    wait.saw_error(RequestNotSent("The API could not be reached."), 9.0)
    end = wait.expired()
    assert isinstance(end, PollDeadlineExceeded)
    assert (end.task_id, end.charge) == (TASK, Charge.YES)
    assert "may still finish and is paid" in str(end)
    assert "The last poll failed: The API could not be reached." in str(end)


def test_a_failure_worded_as_a_timeout_may_change_to_success() -> None:
    """Such a failure is polled again for two minutes; a success meanwhile counts."""
    wait, failed = watch(), record(TaskStatus.GENERATE_FAILED, error_message="generate task timeout")
    assert wait.saw_record(failed, 20.0) is None
    assert wait.saw_record(failed, 100.0) is None
    assert wait.saw_record(record(TaskStatus.SUCCESS), 110.0) is not None
    wait = watch()
    wait.saw_record(failed, 20.0)
    assert isinstance(wait.saw_record(failed, 140.0), TaskFailed)


def test_a_failure_that_turns_back_to_generating_starts_afresh() -> None:
    """The two minutes count from the failure that is seen now."""
    wait, failed = watch(3000.0), record(TaskStatus.GENERATE_FAILED, error_message="Timed out")
    wait.saw_record(failed, 20.0)
    wait.saw_record(record(TaskStatus.GENERATING), 100.0)
    assert wait.saw_record(failed, 150.0) is None


def test_at_the_deadline_a_seen_failure_is_raised_rather_than_the_deadline() -> None:
    """The vendor's last answer has priority over the deadline."""
    wait = watch(30.0)
    wait.saw_record(record(TaskStatus.GENERATE_FAILED, error_message="timeout"), 20.0)
    assert isinstance(wait.expired(), TaskFailed)


@given(
    st.floats(0.01, 5000),
    st.lists(st.sampled_from(["ok", "lost", "none", "404"]), max_size=400),
    st.floats(0, 1),
)
def test_every_wait_ends_at_its_deadline(span: float, facts: list[str], draw: float) -> None:
    """With any answers, the computed sleeps reach the end in bounded steps and never exceed the deadline."""
    wait, now = watch(span, PollPolicy()), 0.0
    for fact in facts:
        delay = wait.next_poll(now, draw)
        if delay is None:
            break
        now += delay
        assert now <= span
        if fact == "lost":
            wait.saw_error(ConnectionLost("x"), now)
        elif fact == "404":
            if wait.saw_error(NotFoundError("x", code=404), now) is not None:
                break
        else:
            wait.saw_record(record(TaskStatus.GENERATING), now)


def test_late_tasks_are_polled_more_and_more_rarely() -> None:
    """Past the slow age the interval grows."""
    wait = watch(3000.0)
    for _ in range(3):
        wait.saw_record(record(TaskStatus.GENERATING), 61.0)
    assert wait.next_poll(61.0, 0.5) == pytest.approx(3.0 * 1.4**3)


def test_the_last_poll_is_marked() -> None:
    """It is the one from two seconds, or a tenth of the wait, before the deadline."""
    assert not watch(300.0).is_last_poll(297.9)
    assert watch(300.0).is_last_poll(298.0)
    assert watch(10.0).is_last_poll(9.0)


# --- a learned rhythm -------------------------------------------------------------------------------------


def learned(
    *,
    age: float | None = 0.0,
    now: float = 0.0,
    policy: PollPolicy = PollPolicy(),  # noqa: B008 - frozen
) -> PollState:
    """A wait in a rhythm that is learned, of which nothing is learned yet."""
    trail = GenerationTimes().begin(now, age=age)
    return PollState(
        policy=policy, task_id=TASK, started_at=now, deadline=now + 300.0, timeout_s=300.0, observation=trail
    )


def test_a_learned_gap_counts_from_the_previous_poll() -> None:
    """Computed again later, for example because callbacks have stopped, the poll does not move."""
    wait = learned()
    first = wait.next_poll(0.0, 0.5)
    assert first is not None
    assert wait.next_poll(1.0, 0.5) == pytest.approx(first - 1.0)
    wait.saw_record(record(TaskStatus.GENERATING), first)
    second = wait.next_poll(first, 0.5)
    assert second is not None
    assert wait.next_poll(first + 0.5, 0.5) == pytest.approx(second - 0.5)


def test_an_overdue_task_is_polled_within_a_second() -> None:
    """After a restart, thousands of tasks are polled soon, but not in the same instant."""
    delays = [learned(age=100.0).next_poll(0.0, draw) for draw in (0.0, 0.3, 1.0)]
    assert delays == pytest.approx([0.0, 0.3, 1.0])


@given(st.floats(0.0, 1.0), st.floats(0.0, 1e6), st.floats(0.0, 1.0))
def test_learned_polls_are_made_at_ticks(draw: float, now: float, ticks_from: float) -> None:
    """A poll comes at the first tick after its best time, never before it: many are made together."""
    exact, ticking = (learned(now=now, policy=PollPolicy(tick_s=tick_s)) for tick_s in (0.0, 0.1))
    ticking.ticks_from = ticks_from
    best, delay = exact.next_poll(now, draw), ticking.next_poll(now, draw)
    assert best is not None
    assert delay is not None
    assert best <= delay <= best + 0.1 + 1e-6
    ticks = (now + delay - ticks_from) / 0.1
    assert ticks == pytest.approx(round(ticks), abs=1e-4)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1e6), st.floats(0.0, 1e15), st.floats(0.3, 1e3))
@example(draw=0.5, now=1e6, tick_s=5e-324, cap_s=30.0)
@example(draw=0.5, now=1e6, tick_s=60.0, cap_s=30.0)
def test_whatever_the_ticks_no_gap_is_longer_than_the_cap(
    draw: float, now: float, tick_s: float, cap_s: float
) -> None:
    """Ticks far apart do not stretch it, and ticks finer than a clock are none."""
    wait = learned(now=now, policy=PollPolicy(tick_s=tick_s, cap_s=cap_s))
    delay = wait.next_poll(now, draw)
    assert delay is not None
    assert 0.0 <= delay <= cap_s + 1e-6


def test_the_last_poll_waits_for_no_tick() -> None:
    """It would miss the deadline."""
    wait = PollState(policy=PollPolicy(tick_s=5.0), task_id=TASK, started_at=0.0, deadline=1.0, timeout_s=1.0)
    assert wait.next_poll(0.0, 0.5) == pytest.approx(0.9)


def test_a_rhythm_of_ones_own_has_no_ticks() -> None:
    """What was asked for is what is done."""
    policy = PollPolicy.fixed(0.25, jitter=0.0)
    wait = PollState(
        policy=policy, task_id=TASK, started_at=0.0, deadline=9.0, timeout_s=9.0, ticks_from=0.07
    )
    assert wait.next_poll(0.0, 0.5) == 0.25


def test_a_task_of_unknown_age_is_polled_soon() -> None:
    """Within about three seconds, although a new one would not be."""
    trail = GenerationTimes().begin(0.0)
    delay = learned(age=None).next_poll(0.0, 0.5)
    assert delay is not None
    assert delay <= 3.0 < trail.gap(0.0, 0.5, 30.0) + 0.5


def test_polls_of_another_waiter_count() -> None:
    """A later waiter continues from the last poll of any waiter."""
    first = learned()
    first.saw_record(record(TaskStatus.GENERATING), 9.0)
    second = PollState(
        policy=PollPolicy(),
        task_id=TASK,
        started_at=9.5,
        deadline=300.0,
        timeout_s=290.0,
        observation=first.observation,
    )
    mine, others = first.next_poll(9.5, 0.5), second.next_poll(9.5, 0.5)
    assert mine == others


def test_failed_polls_do_not_hasten_the_next() -> None:
    """A poll without an answer counts as one that found nothing."""
    wait = learned()
    wait.saw_error(NotFoundError("404", code=404), 6.0)
    delay = wait.next_poll(6.0, 0.5)
    assert delay is not None
    assert delay > 0.5


# --- callbacks --------------------------------------------------------------------------------------------


def test_a_callback_brings_the_next_poll_forward() -> None:
    """To now; after false callbacks, to a second after the last poll at the earliest."""
    wait = watch()
    assert wait.next_poll(0.0, 0.5) == 3.0
    wait.saw_callback()
    assert wait.next_poll(0.5, 0.5) == 0.0
    wait = watch()
    wait.saw_record(record(TaskStatus.GENERATING), 3.0)
    wait.saw_callback()
    assert wait.next_poll(3.2, 0.5) == 0.0
    for now in (3.2, 4.2, 6.2, 10.2, 18.2, 34.2, 64.0):
        wait.saw_record(record(TaskStatus.GENERATING), now)
    wait.saw_callback()
    assert wait.next_poll(64.2, 0.5) == pytest.approx(0.8)
    assert wait.next_poll(70.0, 0.5) == 0.0


def test_after_a_callback_polls_follow_soon_and_then_as_usual() -> None:
    """A second, two, four … after a poll that found nothing; after six the callback is forgotten."""
    wait = watch(policy=PollPolicy(jitter=0.0, interval_s=30.0, cap_s=60.0, first_s=30.0))
    wait.saw_callback()
    now, gaps = 1.0, []
    for _ in range(9):
        delay = wait.next_poll(now, 0.5)
        assert delay is not None
        gaps.append(delay)
        now += delay
        wait.saw_record(record(TaskStatus.GENERATING), now)
        wait.saw_callback()  # a flood of them changes nothing
    assert gaps[:7] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_a_sweep_replaces_the_schedule_but_not_the_retries() -> None:
    """While callbacks come, polls are ``sweep_s`` apart; a failed poll is repeated as usual."""
    wait = watch()
    assert wait.next_poll(0.0, 0.5, sweeps=True) == 30.0
    spread = watch(policy=PollPolicy(jitter=0.2))
    assert spread.next_poll(0.0, 1.0, sweeps=True) == pytest.approx(36.0)
    wait.saw_error(ConnectionLost("x"), 1.0)
    delay = wait.next_poll(1.0, 0.5, sweeps=True)
    assert delay is not None
    assert delay < 10


def test_callbacks_are_believed_after_three_and_doubted_after_some() -> None:
    """Ends with their callback count for it, ends without against it."""
    health = CallbackHealth(within_s=5.0)
    assert not health.are_coming(0.0)
    for number in range(3):
        assert not health.are_coming(0.0)
        health.ended(TaskId(f"a{number}"), 0.0, notified=True)
    assert health.are_coming(0.0)
    for number in range(3):
        health.ended(TaskId(f"b{number}"), 1.0, notified=False)
    assert health.are_coming(5.9), "they may still come"
    assert not health.are_coming(6.0)


def test_a_callback_that_comes_a_little_late_counts() -> None:
    """Within five seconds of the end it has come; after that it is missing, and only a latecomer."""
    health = CallbackHealth(within_s=5.0)
    for number in range(3):
        health.ended(TaskId(f"a{number}"), 0.0, notified=False)
        assert health.saw_callback(TaskId(f"a{number}"), 4.9)
    assert health.are_coming(4.9)
    health.ended(TaskId("late"), 10.0, notified=False)
    assert not health.saw_callback(TaskId("late"), 15.0)
    assert not health.saw_callback(TaskId("unknown"), 15.0)


def test_callbacks_that_come_again_are_believed_again() -> None:
    """After an outage it takes some more than at first."""
    health = CallbackHealth(within_s=5.0)
    for number in range(20):
        health.ended(TaskId(f"a{number}"), float(number), notified=False)
    assert not health.are_coming(100.0)
    needed = 0
    while not health.are_coming(200.0):
        health.ended(TaskId(f"b{needed}"), 200.0, notified=True)
        needed += 1
    assert 10 <= needed <= 20
