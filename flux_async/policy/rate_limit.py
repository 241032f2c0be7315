"""May one more submit start now? Pure bookkeeping over times that the caller brings.

The vendor takes 20 submits in any 10 s per account and rejects the rest (vendor's page "Getting Started",
section 8). Submits are therefore paced *evenly*: the generic cell rate algorithm with a burst of one. Bursts
would fill the window at once, meet the server's clock unevenly and come back as 429.

How much wider than the limit the spacing must be depends on how unevenly requests travel: connections that
are being made, a busy machine, a bad line. That is learned. It begins with 2 %, is halved whenever five full
windows of submits were let in, down to 0.5 %, and doubled by a 429, below which it never falls again. A 429
costs a window: that is nothing to a batch so long that it narrows, and a short one never does.
"""

from __future__ import annotations

import attrs
from attrs.validators import optional

from flux_async.policy.numbers import positive_integer, positive_number

_SLACK, _LEAST_SLACK, _MOST_SLACK = 0.02, 0.005, 0.04
"""By what share the spacing is wider than the limit: at first, and in the best and the worst case."""
_WINDOWS_BEFORE_NARROWER = 5


@attrs.frozen(kw_only=True)
class Limits:
    """What one account and one process may do at once.

    Attributes:
        submits: Submits the account may make in ``window_s`` seconds.
        window_s: Length of the sliding window, in seconds.
        in_flight: Pictures that ``run`` and its short forms have under way, at most; who calls ``submit``
            himself counts for himself.
        concurrent_submits: Submits sent and not yet answered, at most: what a crash could leave in doubt.
        connections: Connections to the API that polls share, kept alive. Every other request has one of its
            own.
        polls_per_s: Looks that all waits together make a second, at most; None sets no bound. Where more are
            due, the tasks that have most likely ended come first.
        unknown_answers: Submits whose answer makes no sense, among the last ten answered, that halt all
            submits (:class:`flux_async.TooManyUnknownAnswers`).
    """

    submits: int = attrs.field(default=20, validator=positive_integer)
    window_s: float = attrs.field(default=10.0, validator=positive_number)
    in_flight: int = attrs.field(default=100, validator=positive_integer)
    concurrent_submits: int = attrs.field(default=6, validator=positive_integer)
    connections: int = attrs.field(default=16, validator=positive_integer)
    polls_per_s: float | None = attrs.field(default=None, validator=optional(positive_number))
    unknown_answers: int = attrs.field(default=5, validator=positive_integer)


@attrs.define
class RateLimiter:
    """When the next submit of an account may start.

    ``delay`` asks, ``take`` starts one, ``pause`` holds everyone back; ``let_in`` and ``turned_away`` tell
    what became of those that were started. All times are monotonic seconds.
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
        """Return the seconds to wait before the next submit; 0 means go."""
        return max(0.0, self._next_at - now)

    def take(self, now: float) -> None:
        """Record that a submit starts now."""
        self._next_at = max(self._next_at, now) + self.spacing_s

    def pause(self, now: float, seconds: float) -> None:
        """Let no submit start for ``seconds``: the vendor said 429 or 455."""
        self._next_at = max(self._next_at, now + seconds)

    def let_in(self) -> None:
        """Take note of a submit that was not too early."""
        self._in_a_row += 1
        if self._in_a_row % (_WINDOWS_BEFORE_NARROWER * self.limits.submits) == 0:
            self._slack = max(self._least_slack, self._slack / 2.0)

    def turned_away(self) -> None:
        """Take note of a 429. Several at once, with nothing let in between, are one."""
        if self._in_a_row:
            self._slack = self._least_slack = min(_MOST_SLACK, self._slack * 2.0)
        self._in_a_row = 0

    def seed(self, now: float, ages: list[float]) -> None:
        """Count submits of an earlier process, made ``ages`` seconds ago: the vendor still counts them.

        The next start keeps its spacing from the last of them, and waits until a full window of them is over.
        """
        starts = sorted(now - max(0.0, age) for age in ages)
        self._next_at = max(self._next_at, starts[-1] + self.spacing_s)
        if len(starts) >= self.limits.submits:
            oldest = starts[-self.limits.submits]
            self._next_at = max(self._next_at, oldest + self.limits.window_s * (1.0 + _SLACK))
