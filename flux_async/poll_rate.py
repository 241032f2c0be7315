"""Spaces the polls of one session evenly, those first that are most likely to find a finished task."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

import attrs

from flux_async.clock import Clock, Wakeup

_MOST_COMPARED = 256
"""Only so many of the longest waiting are compared: with a longer queue all polls are late."""


@attrs.define(eq=False)
class _Queued:
    """One poll in the queue.

    Attributes:
        chance: Returns how likely it is to find an end.
        is_permitted: Whether it may be made now.
        wakeup: Set when it may, or when it is the first in the queue.
    """

    chance: Callable[[], float]
    is_permitted: bool = False
    wakeup: Wakeup = attrs.field(factory=Wakeup)


@attrs.define(eq=False)
class PollRate:
    """A rate limiter for polls. The first in its queue sleeps until the next permit and hands it to the best.

    Attributes:
        clock: The reader of time.
        spacing_s: Seconds between two polls.
    """

    clock: Clock
    spacing_s: float
    _queue: OrderedDict[_Queued, None] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _next_at: float = attrs.field(default=-math.inf, init=False)

    def __len__(self) -> int:
        return len(self._queue)

    async def permit(self, chance: Callable[[], float], deadline: float) -> bool:
        """Wait for a permit; False if the deadline came first."""
        queued = _Queued(chance)
        self._queue[queued] = None
        try:
            while not queued.is_permitted:
                is_first = next(iter(self._queue)) is queued
                until = min(deadline, self._next_at) if is_first else deadline
                await queued.wakeup.wait(self.clock, max(0.0, until - self.clock.monotonic()))
                if queued.is_permitted:
                    break
                now = self.clock.monotonic()
                if now >= deadline:
                    return False
                if self._next_at <= now and next(iter(self._queue)) is queued:
                    self._hand_out(now)
        finally:
            self._queue.pop(queued, None)
            if self._queue:
                next(iter(self._queue)).wakeup.set()
        return True

    def _hand_out(self, now: float) -> None:
        """Permit one poll."""
        best = max(islice(self._queue, _MOST_COMPARED), key=lambda queued: queued.chance())
        self._next_at = now + self.spacing_s
        del self._queue[best]
        best.is_permitted = True
        best.wakeup.set()
