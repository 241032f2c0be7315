"""Rate limit, retry and polling interval: numbers in, numbers out."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_async import (
    AuthenticationError,
    Charge,
    ConnectionLost,
    ContentPolicyError,
    FluxError,
    InsufficientCreditsError,
    InvalidInput,
    InvalidRequestError,
    Limits,
    MaintenanceError,
    PollPolicy,
    RateLimitedError,
    RequestNotSent,
    RetryPolicy,
    ServerError,
    UnexpectedResponse,
    UploadRejected,
)
from flux_async.policy import check_function, check_positive, check_whole_number
from flux_async.policy.rate_limit import SubmitSpacing

NUMBERS = [
    (Limits, "submits", 0),
    (Limits, "submits", 2.5),
    (Limits, "submits", True),
    (Limits, "window_s", 0),
    (Limits, "window_s", math.nan),
    (Limits, "in_flight", -1),
    (Limits, "connections", "many"),
    (Limits, "polls_per_s", 0),
    (RetryPolicy, "max_tries", 0),
    (RetryPolicy, "base_s", -0.1),
    (RetryPolicy, "cap_s", math.inf),
    (RetryPolicy, "longest_retry_after_s", -1),
    (PollPolicy, "first_s", -1),
    (PollPolicy, "interval_s", 0),
    (PollPolicy, "jitter", 0.6),
    (PollPolicy, "growth", 0.9),
    (PollPolicy, "cap_s", 0.1),
    (PollPolicy, "first_s", 3.0),
    (PollPolicy, "poll_cost_s", 0),
    (PollPolicy, "not_found_grace_s", None),
]


@pytest.mark.parametrize(("kind", "field", "value"), NUMBERS)
def test_a_number_out_of_range_is_named(kind: type, field: str, value: Any) -> None:
    """Every policy refuses a bad number and names it."""
    with pytest.raises(InvalidInput, match=field):
        kind(**{field: value})


def test_seconds_are_finite_and_positive() -> None:
    """A timeout of zero, nothing or for ever is refused."""
    assert check_positive(3, "timeout") == 3.0
    for bad in (0, -1, math.inf, math.nan, None, "5", True):
        with pytest.raises(InvalidInput, match="timeout"):
            check_positive(bad, "timeout")


@given(
    st.integers(1, 50),
    st.floats(0.5, 60),
    st.lists(st.floats(0, 3), min_size=1, max_size=200),
)
def test_no_window_ever_holds_more_than_the_limit(submits: int, window: float, idle: list[float]) -> None:
    """However submits arrive, any sliding window holds at most the allowed number of them."""
    spacing, now, starts = SubmitSpacing(Limits(submits=submits, window_s=window)), 0.0, []
    for pause in idle:
        now += pause
        now += spacing.delay(now)
        spacing.take(now)
        spacing.record_accepted()
        starts.append(now)
    for i, start in enumerate(starts):
        assert sum(start <= other < start + window for other in starts[i:]) <= submits


def test_submits_are_spaced_evenly() -> None:
    """20 in 10 s means one about every half second, not 20 at once and a wait."""
    spacing = SubmitSpacing(Limits())
    assert spacing.delay(100.0) == 0
    spacing.take(100.0)
    assert spacing.delay(100.0) == pytest.approx(0.51)
    assert spacing.delay(100.3) == pytest.approx(0.21)
    assert spacing.delay(101.0) == 0


@pytest.mark.parametrize("late_s", [0.0, 0.012])
def test_two_thousand_submits_take_less_than_one_per_cent_longer_than_the_limit(late_s: float) -> None:
    """2,000 submits at 20 in 10 s take at least 1,000 s; timers that wake up late add nothing."""
    spacing, now = SubmitSpacing(Limits()), 0.0
    for _ in range(2_000):
        now += spacing.delay(now) + late_s
        spacing.take(now)
        spacing.record_accepted()
    assert now == pytest.approx(1_006, abs=1)


def test_a_submit_that_is_very_late_keeps_its_distance_from_the_next() -> None:
    """Up to 50 ms, a quarter of the slack, are made up for; more is not."""
    spacing = SubmitSpacing(Limits())
    spacing.take(100.0)
    spacing.take(100.55)
    assert spacing.delay(100.55) == pytest.approx(0.47)
    spacing.take(101.1)
    assert spacing.delay(101.1) == pytest.approx(0.51)


def _let_in(spacing: SubmitSpacing, windows: int) -> None:
    for _ in range(windows * spacing.limits.submits):
        spacing.record_accepted()


def test_the_rate_limit_is_used_up_while_nothing_is_refused() -> None:
    """Spacing begins 2 % wider than the limit, and after ten full windows it is 0.5 % wider, never less."""
    spacing, spacings = SubmitSpacing(Limits()), []
    for _ in range(5):
        _let_in(spacing, 4)
        spacings.append(spacing.spacing_s)
        _let_in(spacing, 1)
    assert spacings == pytest.approx([0.51, 0.505, 0.5025, 0.5025, 0.5025])


def test_a_429_widens_the_spacing_for_good() -> None:
    """What was too narrow is doubled and not tried again; the rest of the same crowd changes nothing more."""
    spacing = SubmitSpacing(Limits())
    _let_in(spacing, 10)
    for _ in range(6):
        spacing.record_rate_limited()
    assert spacing.spacing_s == pytest.approx(0.505)
    _let_in(spacing, 15)
    assert spacing.spacing_s == pytest.approx(0.505)
    for _ in range(4):
        spacing.record_rate_limited()
        spacing.record_accepted()
    assert spacing.spacing_s == pytest.approx(0.52)


def test_a_pause_holds_and_never_shortens() -> None:
    """A shorter pause does not cut a longer one."""
    spacing = SubmitSpacing(Limits())
    spacing.pause(0.0, 10.0)
    spacing.pause(1.0, 2.0)
    assert spacing.delay(1.0) == pytest.approx(9.0)


def test_submits_of_an_earlier_process_count() -> None:
    """The last of them keeps its spacing; a full window of them is waited out from its oldest."""
    spacing = SubmitSpacing(Limits(submits=4, window_s=10.0))
    spacing.seed(100.0, [1.0])
    assert spacing.delay(100.0) == pytest.approx(2.55 - 1.0)
    spacing.seed(100.0, [3.0, 2.0, 1.0, 0.5, 30.0])
    assert spacing.delay(100.0) == pytest.approx(10.2 - 3.0)


@given(st.integers(1, 20), st.lists(st.floats(0, 20), min_size=1, max_size=40), st.integers(1, 40))
def test_a_restart_never_overfills_a_window(submits: int, ages: list[float], more: int) -> None:
    """However the submits before a restart were spread within the limit, those after it keep to it."""
    limits = Limits(submits=submits, window_s=10.0)
    before = SubmitSpacing(limits)
    starts, now = [], -sum(ages)
    for age in ages:
        now += age
        now += before.delay(now)
        before.take(now)
        starts.append(now)
    after = SubmitSpacing(limits)
    after.seed(now, [now - start for start in starts if start > now - 10.0])
    for _ in range(more):
        now += after.delay(now)
        after.take(now)
        starts.append(now)
    assert all(sum(start <= other < start + 10.0 for other in starts) <= submits for start in starts)


LOST = ConnectionLost("lost")
SUBMITS = [
    (RequestNotSent("refused"), True),
    (RateLimitedError("429"), True),
    (MaintenanceError("455"), True),
    (LOST, False),
    (ServerError("500"), False),
    (UnexpectedResponse("html"), False),
    (AuthenticationError("401"), False),
    (InsufficientCreditsError("402"), False),
    (InvalidRequestError("422"), False),
    (ContentPolicyError("400"), False),
]


@pytest.mark.parametrize(("error", "again"), SUBMITS, ids=lambda value: type(value).__name__)
def test_only_uncharged_submits_are_repeated(error: FluxError, again: bool) -> None:
    """A submit is made again only after an error that certainly cost nothing and may pass."""
    assert (RetryPolicy().before_next_submit(error, 1, 0.5) is not None) is again


@given(st.sampled_from([error for error, _ in SUBMITS]), st.integers(1, 99), st.floats(0, 1))
def test_nothing_that_may_be_charged_is_ever_repeated(error: FluxError, tries: int, draw: float) -> None:
    """No error whose charge is not NO leads to another submit, at any try."""
    delay = RetryPolicy(max_tries=50).before_next_submit(error, tries, draw)
    assert delay is None or (error.charge is Charge.NO and delay >= 0)


def test_backoff_is_full_jitter_within_its_cap() -> None:
    """The wait is drawn between nothing and a bound that doubles up to the cap."""
    policy, error = RetryPolicy(max_tries=99), RequestNotSent("refused")
    assert policy.before_next_submit(error, 1, 1.0) == 0.5
    assert policy.before_next_submit(error, 3, 0.5) == 1.0
    assert policy.before_next_submit(error, 90, 1.0) == 15.0
    assert policy.before_next_submit(error, 5, 0.0) == 0.0


def test_tries_are_counted() -> None:
    """After the last allowed try there is no other."""
    policy = RetryPolicy(max_tries=2)
    assert policy.before_next_submit(RequestNotSent("x"), 1, 0.5) is not None
    assert policy.before_next_submit(RequestNotSent("x"), 2, 0.5) is None
    assert policy.before_next_poll(LOST, 2, 0.5) is None


def test_a_429_costs_a_full_window_at_least() -> None:
    """Retry-After is honoured upwards, up to a bound; never below a window."""
    policy = RetryPolicy()
    assert policy.before_next_submit(RateLimitedError("429"), 1, 0.5) == 10.5
    assert policy.before_next_submit(RateLimitedError("429", retry_after_s=2.0), 1, 0.0) == 10.0
    assert policy.before_next_submit(RateLimitedError("429", retry_after_s=60.0), 1, 0.0) == 60.0
    assert policy.before_next_submit(RateLimitedError("429", retry_after_s=4e6), 1, 0.0) is None
    assert policy.before_next_submit(MaintenanceError("455"), 1, 0.0) == 60.0


def test_failed_polls_are_repeated_if_that_may_help() -> None:
    """Polls cost nothing, so broken connections and server errors are retried; refusals are not."""
    policy = RetryPolicy()
    for error in (RequestNotSent("x"), LOST, ServerError("500"), RateLimitedError("429")):
        assert policy.before_next_poll(error, 1, 0.5) is not None
    for error in (AuthenticationError("401"), InvalidRequestError("422"), UnexpectedResponse("html")):
        assert policy.before_next_poll(error, 1, 0.5) is None


def test_polling_keeps_its_interval_and_slows_for_late_tasks() -> None:
    """First poll, body and tail of the schedule, without jitter."""
    policy = PollPolicy(interval_s=3.0, jitter=0.0, cap_s=15.0)
    assert policy.next_delay(polls=0, stragglers=0, draw=0.5) == 3.0
    assert policy.next_delay(polls=5, stragglers=0, draw=0.5) == 3.0
    assert policy.next_delay(polls=9, stragglers=2, draw=0.5) == pytest.approx(5.88)
    assert policy.next_delay(polls=99, stragglers=5000, draw=0.5) == 15.0


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0, 1))
def test_jitter_stays_inside_the_cap(polls: int, stragglers: int, draw: float) -> None:
    """No draw leads to a negative wait or one beyond the cap."""
    policy = PollPolicy(interval_s=3.0, cap_s=15.0)
    assert 0 <= policy.next_delay(polls=polls, stragglers=stragglers, draw=draw) <= 15.0


@pytest.mark.parametrize(
    ("error", "low", "high"),
    [
        (RequestNotSent("x"), 0, 0.5),
        (ConnectionLost("x"), 0, 0.5),
        (ServerError("x"), 0, 0.5),
        (UnexpectedResponse("x"), 0, 0.5),
        (RateLimitedError("x"), 10, 11),
        (MaintenanceError("x"), 60, 72),
        (RateLimitedError("x", retry_after_s=999), None, None),
        (AuthenticationError("x"), None, None),
        (UploadRejected("x"), None, None),
    ],
)
def test_an_upload_is_retried_if_that_may_help(
    error: FluxError, low: float | None, high: float | None
) -> None:
    """It is free, so a missing answer is a reason, too; a refusal is none, and retries are limited."""
    policy = RetryPolicy()
    assert policy.before_next_upload(error, 5, 0.5) is None
    delay = policy.before_next_upload(error, 1, 0.5)
    if low is None or high is None:
        assert delay is None
    else:
        assert delay is not None
        assert low <= delay <= high


def test_the_plain_rhythms_are_what_they_are_called() -> None:
    """A fixed one never changes its gap; the gaps of one that backs off grow from the first to the last."""
    fixed = PollPolicy.fixed(40.0, jitter=0.0)
    assert {fixed.next_delay(polls=n, stragglers=n, draw=0.5) for n in range(50)} == {40.0}
    growing = PollPolicy.backoff(1.0, growth=2.0, cap_s=10.0, jitter=0.0)
    gaps = [growing.next_delay(polls=n, stragglers=n, draw=0.5) for n in range(6)]
    assert gaps == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    for bad in (0, -1.0, math.nan, "3"):
        with pytest.raises(InvalidInput, match="every_s"):
            PollPolicy.fixed(bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="first_s"):
            PollPolicy.backoff(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="cap_s"):
        PollPolicy.backoff(20.0)


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(0, 1))
def test_a_learned_gap_stays_inside_its_bounds(best: float, following: float, draw: float) -> None:
    """Whatever was learned, no gap is below 0.3 s or beyond the cap, or spread by more than its share."""
    delay = PollPolicy(cap_s=20.0).learned_delay(best, following, draw)
    assert 0.3 <= delay <= 20.0
    assert delay <= max(0.3, best * 1.25 + 1e-9)


async def of_one(given: object) -> None:
    """Do nothing."""


@functools.wraps(of_one)
def decorated(given: object) -> Any:
    return of_one(given)


class Callable:
    """An object that is called."""

    async def __call__(self, given: object) -> None:
        """Do nothing."""

    async def method(self, given: object) -> None:
        """Do nothing."""

    def sync_method(self, given: object) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("function", "is_refused"),
    [
        (of_one, False),
        (decorated, False),
        (functools.partial(of_one), False),
        (lambda given: of_one([given]), False),
        (Callable(), False),
        (Callable().method, False),
        (type, False),  # its signature is unknown
        (Callable().sync_method, True),
        (Callable.method, True),
        ([].append, True),
        (check_positive, True),
        ("of_one", True),
        (None, True),
    ],
)
def test_what_is_certainly_no_async_function_of_its_arguments_is_refused(
    function: Any, is_refused: bool
) -> None:
    """What may return an awaitable is accepted."""
    with contextlib.nullcontext() if not is_refused else pytest.raises(InvalidInput, match="Give f"):
        check_function(function, "f is wrong", takes=1, is_async=True, advice="Give f.")


def test_whole_numbers_are_checked() -> None:
    """The ends of the range are in it."""
    assert [check_whole_number(value, "rank", -1, 2) for value in (-1, 2)] == [-1, 2]
    for value in (-2, 3, 1.0, True, "1", None, 10**30):
        with pytest.raises(InvalidInput, match="rank must be a whole number from -1 to 2, not"):
            check_whole_number(value, "rank", -1, 2)
