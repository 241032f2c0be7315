"""Should submits stop because their answers make no sense? Counts answers; reads no clock.

An *unknown* answer is one after which a submit may have been charged: no whole answer, HTTP 502, a web page,
a success without a task id. Scattered ones happen and cost one image each. Many of them mean that something
between here and the vendor is wrong, and every further submit may be paid for without a result.

Rules:

1. Until a submit has been accepted, submits go one at a time.
2. While ``limit`` of the last ten answers are unknown, submits go one at a time, too.
3. An unknown answer to a submit that went alone halts, where with it ``limit`` of the last ten are unknown.
4. A halt ends after ``HALT_S``, or with the next batch, also of another process on the same journal: then one
   submit goes, alone, and its answer decides.

A vendor that never answers well costs 5 submits at the start of a run, and at most 5 + 6 in the middle of
one: those that rule 2 counts, five that were in the air besides, and the one that went alone.

The one that went alone is what tells bad luck from a fault. With 5 % of all answers lost at random, 5 of the
last 10 happen in 13 % of all runs of 5,000 submits; rule 3 halts 1.4 % of them (1 % lost: 1 in 800,000).
Replies lost together, because a connection broke with six submits on it, halt nothing where the next one is
accepted. ``tests/unit/test_brake.py`` computes the figures.
"""

from __future__ import annotations

from collections import deque

import attrs

WINDOW = 10
HALT_S = 600.0
"""Seconds for which nothing is submitted after a halt; then one submit finds out."""


@attrs.define
class Brake:
    """Counts what became of the submits of one session. All times are monotonic seconds.

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
        """Whether a submit may start only while no other is in the air."""
        return not self._proven or self._is_at_limit

    def is_halted(self, now: float) -> bool:
        """Say whether no submit may start."""
        return self._halted_until is not None and now < self._halted_until

    def saw_accepted(self) -> None:
        """Count a submit that made a task."""
        self._last.append(False)
        self._proven, self._halted_until = True, None

    def saw_rejected(self) -> None:
        """Count a submit that was certainly not charged: that is an answer, too."""
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
        """Go on from a halt of an earlier process: the first submit goes alone, and its answer decides."""
        if not self._proven and not self._is_at_limit:
            self._last.extend([True] * self.limit)

    def release(self) -> None:
        """End a halt before its time: the caller begins a new batch, which knows of it."""
        self._halted_until = None

    def counts(self) -> tuple[int, int]:
        """Return how many of the last answers were unknown, and how many answers these are."""
        return sum(self._last), len(self._last)

    @property
    def _is_at_limit(self) -> bool:
        return sum(self._last) >= self.limit
