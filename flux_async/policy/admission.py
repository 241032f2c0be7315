"""May one more submit start now? Pure bookkeeping over times that the caller brings.

The vendor takes 20 submits in any 10 s per account and rejects the rest (vendor's page "Getting Started",
section 8). Submits are therefore paced *evenly*: the generic cell rate algorithm with a burst of one. Bursts
would fill the window at once, meet the server's clock unevenly and come back as 429.
"""

from __future__ import annotations

import attrs
from attrs.validators import optional

from flux_async.policy.numbers import positive_integer, positive_number

_SLACK = 1.02
"""Spacing is 2 % wider than the limit, so that uneven network delays do not squeeze 21 into a window."""


@attrs.frozen(kw_only=True)
class Limits:
    """What one account and one process may do at once.

    Attributes:
        submits: Submits the account may make in ``window_s`` seconds.
        window_s: Length of the sliding window, in seconds.
        in_flight: Pictures that ``run`` and its short forms have under way, at most; who calls ``submit``
            himself counts for himself.
        submits_in_air: Submits sent and not yet answered, at most: what a crash could leave in doubt.
        connections: TCP connections to the API, all of them kept alive.
        looks_per_s: Looks that all waits together make a second, at most; None sets no bound. Where more are
            due, the tasks that have most likely ended come first.
    """

    submits: int = attrs.field(default=20, validator=positive_integer)
    window_s: float = attrs.field(default=10.0, validator=positive_number)
    in_flight: int = attrs.field(default=100, validator=positive_integer)
    submits_in_air: int = attrs.field(default=6, validator=positive_integer)
    connections: int = attrs.field(default=16, validator=positive_integer)
    looks_per_s: float | None = attrs.field(default=None, validator=optional(positive_number))


@attrs.define
class Admission:
    """When the next submit of an account may start.

    ``delay`` asks, ``take`` starts one, ``pause`` holds everyone back. All times are monotonic seconds.
    """

    limits: Limits
    _next_at: float = attrs.field(default=float("-inf"), init=False)

    @property
    def spacing_s(self) -> float:
        """Seconds between two submits: 0.51 s for the vendor's 20 in 10 s."""
        return self.limits.window_s / self.limits.submits * _SLACK

    def delay(self, now: float) -> float:
        """Return the seconds to wait before the next submit; 0 means go."""
        return max(0.0, self._next_at - now)

    def take(self, now: float) -> None:
        """Record that a submit starts now."""
        self._next_at = max(self._next_at, now) + self.spacing_s

    def pause(self, now: float, seconds: float) -> None:
        """Let no submit start for ``seconds``: the vendor said 429 or 455."""
        self._next_at = max(self._next_at, now + seconds)

    def seed(self, now: float, ages: list[float]) -> None:
        """Count submits of an earlier process, made ``ages`` seconds ago: the vendor still counts them.

        The next start keeps its spacing from the last of them, and waits until a full window of them is over.
        """
        starts = sorted(now - max(0.0, age) for age in ages)
        self._next_at = max(self._next_at, starts[-1] + self.spacing_s)
        if len(starts) >= self.limits.submits:
            oldest = starts[-self.limits.submits]
            self._next_at = max(self._next_at, oldest + self.limits.window_s * _SLACK)
