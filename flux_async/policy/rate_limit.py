"""Decides whether another submit may start now. All times are monotonic seconds that the caller passes in.

:class:`SubmitSpacing` spaces submits, :class:`CircuitBreaker` halts them when their answers make no sense,
and a :class:`Pause` delays requests while the service is unreachable or has asked for time.
"""

from __future__ import annotations

import copy
import math
from collections import deque

import attrs
from attrs.validators import optional

from flux_async.errors import FluxError, RequestNotSent, Scope
from flux_async.policy import positive_integer, positive_number

_SLACK, _LEAST_SLACK, _MOST_SLACK = 0.02, 0.005, 0.04
"""Share by which the spacing exceeds the limit: at first, and in the best and the worst case."""
_WINDOWS_BEFORE_NARROWER = 5
_LATE = 0.25
"""Share of the slack by which a submit may start late without moving those that follow."""


@attrs.frozen(kw_only=True)
class Limits:
    """What one account and one process may do at once.

    Attributes:
        submits: Submits the account may make in ``window_s`` seconds.
        window_s: Length of the sliding window, in seconds.
        in_flight: Images in progress in ``run`` and its short forms, at most; ``submit`` does not count.
        concurrent_submits: Submits sent and not yet answered, at most: what a crash could leave in doubt.
        connections: Connections to the API that polls share, kept alive. Every other request has one of its
            own.
        polls_per_s: Polls per second of all waits together, at most; None sets no limit. If more are due,
            the tasks that have most likely ended come first.
        unknown_answers: Submits among the last ten whose answer makes no sense, at which all submits halt
            (:class:`flux_async.TooManyUnknownAnswers`).
    """

    submits: int = attrs.field(default=20, validator=positive_integer)
    window_s: float = attrs.field(default=10.0, validator=positive_number)
    in_flight: int = attrs.field(default=100, validator=positive_integer)
    concurrent_submits: int = attrs.field(default=6, validator=positive_integer)
    connections: int = attrs.field(default=16, validator=positive_integer)
    polls_per_s: float | None = attrs.field(default=None, validator=optional(positive_number))
    unknown_answers: int = attrs.field(default=5, validator=positive_integer)


@attrs.define
class SubmitSpacing:
    """Spaces the submits of a session evenly: the generic cell rate algorithm with a burst of one.

    The vendor takes 20 submits in any 10 s per account and rejects the rest (vendor's page "Getting Started",
    section 8). A burst would fill the window at once, and differences between the two clocks would make it
    end in 429.

    How much wider than the limit the spacing must be depends on how unevenly requests travel: new
    connections, a busy machine, a bad network. The share is learned. It begins with 2 %, is halved after
    every five full windows of accepted submits, down to 0.5 %, and doubled by a 429, below which it never
    falls again. A 429 costs a window: a batch long enough to narrow the spacing does not notice it.

    A timer wakes up some milliseconds late. If each delay moved all later submits, a batch on a busy machine
    would lose some per cent. Up to a quarter of the slack, 12.5 ms at 0.5 %, a delay moves none of them: any
    21 submits still take longer than the window, by three quarters of the slack.
    """

    limits: Limits
    _next_at: float = attrs.field(default=float("-inf"), init=False)
    _slack: float = attrs.field(default=_SLACK, init=False)
    _least_slack: float = attrs.field(default=_LEAST_SLACK, init=False)
    _in_a_row: int = attrs.field(default=0, init=False)

    @property
    def spacing_s(self) -> float:
        """Seconds between two submits: at first 0.51 s for the vendor's 20 in 10 s."""
        return self.limits.window_s / self.limits.submits * (1.0 + self._slack)

    def delay(self, now: float) -> float:
        """Return the seconds until the next submit may start."""
        return max(0.0, self._next_at - now)

    def take(self, now: float) -> None:
        """Record that a submit starts now."""
        is_on_time = now - self._next_at <= self.limits.window_s * self._slack * _LATE
        self._next_at = (self._next_at if is_on_time else now) + self.spacing_s

    def pause(self, now: float, seconds: float) -> None:
        """Let no submit start for ``seconds``: the vendor answered 429 or 455."""
        self._next_at = max(self._next_at, now + seconds)

    def record_accepted(self) -> None:
        """Record a submit that was not too early."""
        self._in_a_row += 1
        if self._in_a_row % (_WINDOWS_BEFORE_NARROWER * self.limits.submits) == 0:
            self._slack = max(self._least_slack, self._slack / 2.0)

    def record_rate_limited(self) -> None:
        """Record a 429. Several without an accepted submit between them count once."""
        if self._in_a_row:
            self._slack = self._least_slack = min(_MOST_SLACK, self._slack * 2.0)
        self._in_a_row = 0

    def seed(self, now: float, ages: list[float]) -> None:
        """Count submits of an earlier process, made ``ages`` seconds ago: the vendor still counts them.

        The next start keeps its distance from the last of them, and waits until a full window is over.
        """
        starts = sorted(now - max(0.0, age) for age in ages)
        self._next_at = max(self._next_at, starts[-1] + self.spacing_s)
        if len(starts) >= self.limits.submits:
            oldest = starts[-self.limits.submits]
            self._next_at = max(self._next_at, oldest + self.limits.window_s * (1.0 + _SLACK))


# --- unknown answers ------------------------------------------------------------------------------------

WINDOW = 10
HALT_S = 600.0
"""Seconds for which nothing is submitted after a halt; then one submit decides."""


@attrs.define
class CircuitBreaker:
    """Counts the answers to the submits of one session, and halts submits when they make no sense.

    An *unknown* answer is one after which a submit may have been charged: no whole answer, HTTP 502, a web
    page, a success without a task id. Single ones happen and cost one image each. Many mean that something
    between here and the vendor is wrong, and every further submit may be paid for without a result.

    Rules:

    1. Until a submit has been accepted, submits go one at a time.
    2. While ``limit`` of the last ten answers are unknown, submits go one at a time, too.
    3. An unknown answer to a submit that went alone halts if with it ``limit`` of the last ten are unknown.
    4. A halt ends after ``HALT_S``, or with the next batch, also of another process on the same journal: then
       one submit goes, alone, and its answer decides.

    A vendor whose answers are all unknown costs 5 submits at the start of a run, and at most 5 + 6 in the
    middle: those that rule 2 counts, five that were in flight at the same time, and the one that went alone.

    The one that went alone separates bad luck from a fault. With 5 % of all answers lost at random, 5 of the
    last 10 happen in 13 % of all runs of 5,000 submits; rule 3 halts 1.4 % of them (1 % lost: 1 in 800,000).
    Answers lost together, because a connection broke with six submits on it, halt nothing if the next one is
    accepted. ``tests/unit/test_circuit_breaker.py`` computes the figures.

    Attributes:
        limit: Unknown answers among the last ten that halt.
        unknown: Unknown answers in all.
    """

    limit: int
    unknown: int = attrs.field(default=0, init=False)
    _last: deque[bool] = attrs.field(init=False)
    _proven: bool = attrs.field(default=False, init=False)
    _halted_until: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._last = deque(maxlen=max(WINDOW, self.limit))

    @property
    def one_at_a_time(self) -> bool:
        """Whether a submit may start only while no other is in flight."""
        return not self._proven or self._is_at_limit

    def is_halted(self, now: float) -> bool:
        """Return whether no submit may start."""
        return self._halted_until is not None and now < self._halted_until

    def saw_accepted(self) -> None:
        """Count a submit that made a task."""
        self._last.append(False)
        self._proven, self._halted_until = True, None

    def saw_rejected(self) -> None:
        """Count a submit that was certainly not charged: an answer that makes sense."""
        self._last.append(False)

    def saw_unknown(self, now: float, *, alone: bool) -> bool:
        """Count a submit that may have been charged; return whether it halts.

        Args:
            now: Monotonic seconds.
            alone: Whether it was started under ``one_at_a_time``.
        """
        self.unknown += 1
        self._last.append(True)
        if alone and self._is_at_limit:
            self._halted_until = now + HALT_S
            return True
        return False

    @property
    def has_halted(self) -> bool:
        """Whether a halt was neither released nor followed by an accepted submit."""
        return self._halted_until is not None

    @property
    def is_proven(self) -> bool:
        """Whether a submit has been accepted."""
        return self._proven

    def resume(self) -> None:
        """Continue after a halt of an earlier process: the first submit goes alone and decides."""
        if not self._proven and not self._is_at_limit:
            self._last.extend([True] * self.limit)

    def release(self) -> None:
        """End a halt early: the caller starts a new batch."""
        self._halted_until = None

    def counts(self) -> tuple[int, int]:
        """Return how many of the last answers were unknown, and how many answers these are."""
        return sum(self._last), len(self._last)

    @property
    def _is_at_limit(self) -> bool:
        return sum(self._last) >= self.limit


# --- pauses ---------------------------------------------------------------------------------------------

_FIRST_S, _LONGEST_S = 1.0, 15.0
_AT_START_S = 20.0
"""A run that never reached the service has nothing to lose: it halts within 30 s, its last try included."""
_TRIES_COUNTED = 16
_RUN_AGAIN = "Do so when the service takes submits again."


@attrs.define
class Pause:
    """The pause of one kind of request: it begins with the first failure and ends when a request succeeds.

    Requests of one kind (submits, polls, uploads) share one pause, so that an outage costs one try now and
    then, and not several per image.

    Attributes:
        since: When the first of the requests that failed in a row began; None while there is no pause.
        until: When the next one may be made.
        error: Why the last one failed.
        tries: How many have failed in a row.
        answered_at: When the service last answered one of them, whatever it answered.
    """

    since: float | None = attrs.field(default=None, init=False)
    until: float = attrs.field(default=-math.inf, init=False)
    error: FluxError | None = attrs.field(default=None, init=False)
    tries: int = attrs.field(default=0, init=False)
    answered_at: float = attrs.field(default=-math.inf, init=False)
    _asked_s: float = attrs.field(default=0.0, init=False)
    _took: float = attrs.field(default=0.0, init=False)
    _failed_at: float = attrs.field(default=0.0, init=False)
    _earlier_s: float = attrs.field(default=0.0, init=False)

    @property
    def is_on(self) -> bool:
        """Whether requests pause now."""
        return self.since is not None

    @property
    def is_outage(self) -> bool:
        """Whether they pause because no connection can be made."""
        return isinstance(self.error, RequestNotSent)

    def saw_unreachable(self, error: RequestNotSent, began: float, now: float, draw: float) -> None:
        """Record that no connection could be made. Next try after 1, 2, 4, 8, then 15 s, less up to half.

        Args:
            error: What happened.
            began: When the request began.
            now: When it failed.
            draw: A random number from 0 to 1.
        """
        self._begin(error, began, now)
        delay = min(_LONGEST_S, _FIRST_S * 2.0 ** min(self.tries - 1, _TRIES_COUNTED))
        self.until = now + delay * (1.0 - draw / 2.0)

    def saw_request_to_wait(self, error: FluxError, began: float, now: float, seconds: float) -> None:
        """Record that the vendor asked all requests to wait for ``seconds`` (429, 455)."""
        self.answered_at = now
        if self.is_outage:
            self._end(now)
        self._begin(error, began, now)
        self.until = max(self.until, now + seconds)
        self._asked_s = seconds

    def saw_answer(self, began: float, now: float) -> bool:
        """Record that a request was answered; return whether that ended a pause.

        A request that began before the last failure proves nothing.
        """
        self.answered_at = now
        if self.since is None or began < self._failed_at:
            return False
        self._end(now)
        return True

    def hold(self, now: float, seconds: float) -> None:
        """Let no other request try for ``seconds``: one is trying."""
        self.until = max(self.until, now + seconds)

    def delay(self, now: float) -> float:
        """Return the seconds until the next request may start."""
        return max(0.0, self.until - now)

    def outage_s(self, now: float) -> float:
        """Return for how many seconds no connection could be made, in all outages so far."""
        return self._earlier_s + (now - self.since if self.since is not None and self.is_outage else 0.0)

    def gives_up_at(self, run_began: float, patience_s: float, *, reached: bool) -> float:
        """Return when a run halts because of this pause; infinity without a pause.

        If the vendor asks for more time than the run waits, the run halts at once. If the run has not reached
        the service yet, no try begins that would probably end too late.

        Args:
            run_began: When the run began; earlier waiting does not count.
            patience_s: Seconds the run waits.
            reached: Whether anything was answered since then.
        """
        if self.since is None:
            return math.inf
        start = max(self.since, run_began)
        if self.is_outage:
            return start + (patience_s if reached else min(patience_s, _AT_START_S - self._took))
        return start + patience_s if self.until <= start + patience_s else start

    def as_halt(self, waited_s: float) -> FluxError:
        """Return the error that halts a run because of this pause."""
        assert self.error is not None  # noqa: S101 - there is a pause
        error = copy.copy(self.error)
        error.scope = Scope.STOP
        asked = "" if self.is_outage else f"The service asked for a pause of {self._asked_s:.0f} s. "
        error.advice = (
            f"{asked}The run waited {waited_s:.0f} s and halted. The images that are left were not submitted "
            "and cost nothing; {new_run} "
            f"{self.error.advice_template if self.is_outage else _RUN_AGAIN}"
        )
        return error

    def _end(self, now: float) -> None:
        self._earlier_s = self.outage_s(now)
        self.since, self.error, self.tries, self.until = None, None, 0, -math.inf

    def _begin(self, error: FluxError, began: float, now: float) -> None:
        if self.since is None:
            self.since = began
        self.error = copy.copy(error)  # without traceback, which would keep the caller's data alive
        self.tries += 1
        self._took = now - began
        self._failed_at = now
