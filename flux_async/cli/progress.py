"""How far a run is, as one frozen value for the display."""

from __future__ import annotations

from collections import deque

import attrs

from flux_async import Limits
from flux_async.batch.progress import BatchProgress


@attrs.frozen(kw_only=True)
class RunView:
    """A run at one moment.

    Attributes:
        batch: What the batch says of itself.
        asked: Different images that were asked for, those that are no request included.
        kept: How many of them an earlier run settled.
        refused: How many of them are no request.
        limits: The bounds of the run.
        in_window: Submits of this run in the last window.
        is_read: Whether all inputs have been read; until then, there may be more.
    """

    batch: BatchProgress
    asked: int
    kept: int = 0
    refused: int = 0
    limits: Limits = attrs.field(factory=Limits)
    in_window: int = 0
    is_read: bool = True

    @property
    def total(self) -> int:
        """All images, those that an earlier run left under way included."""
        return max(self.asked, self.kept + self.refused + self.batch.seen)

    @property
    def worked_off(self) -> int:
        """Images that this run has settled."""
        return self.batch.succeeded + self.batch.failed + self.batch.in_doubt

    @property
    def settled(self) -> int:
        """Images about which nothing more will happen in this run."""
        return self.kept + self.refused + self.worked_off

    @property
    def failed(self) -> int:
        """Images that failed in this run, those that are no request included."""
        return self.refused + self.batch.failed

    @property
    def in_flight(self) -> int:
        """Tasks at the vendor, and pictures on their way to disk."""
        return self.batch.generating + self.batch.fetching

    @property
    def only_awaits_callbacks(self) -> bool:
        """Whether nothing but the callbacks of submits in doubt is missing."""
        waiting = self.batch.waiting
        return self.is_read and waiting > 0 and self.in_flight == 0 and self.settled + waiting >= self.total

    @property
    def only_retries_downloads(self) -> bool:
        """Whether nothing is missing but results whose download failed and is tried again."""
        retrying = self.batch.retrying
        return self.is_read and 0 < retrying == self.in_flight and self.settled + retrying >= self.total

    @property
    def per_minute(self) -> float:
        """Images settled by this run, per minute: 30 in 90 s is 20."""
        return 60.0 * self.worked_off / self.batch.elapsed_s if self.batch.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the present rate, or None while there is none: 40 left at 20 a minute is 120.

        Jobs in doubt that wait for their callback are left out: they end with the callback, not at this rate.
        """
        if self.per_minute <= 0 or not self.is_read:
            return None
        return 60.0 * max(0, self.total - self.settled - self.batch.waiting) / self.per_minute


@attrs.define
class WindowUse:
    """Counts the submits of the last window, from how their number grows."""

    window_s: float
    _seen: int = attrs.field(default=0, init=False)
    _times: deque[float] = attrs.field(factory=deque, init=False)

    def count(self, submits: int, now: float) -> int:
        """Return how many of ``submits`` were made in the window that ends ``now``."""
        self._times.extend([now] * (submits - self._seen))
        self._seen = max(self._seen, submits)
        while self._times and self._times[0] <= now - self.window_s:
            self._times.popleft()
        return len(self._times)
