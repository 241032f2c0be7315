"""Lets the submits of one session start: how many at once, how fast, and whether at all.

A submit goes through these gates, in this order: a place in the air (submits sent and not answered) → a
permit of the pace → POST at once. Nothing waits between the permit and the POST.

No permit is given while the vendor has sent everybody away (429, 455), while it cannot be reached, or after a
halt by :mod:`flux_async.policy.rate_limit`. While such a pause is not over, until the first submit has been
accepted, and after many unknown answers, submits go one at a time: a wrong key, an empty balance or an outage
then costs one request, not one for every image that waits.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

import attrs

from flux_async.clock import Clock, Signal
from flux_async.errors import (
    DeadlineExceeded,
    FluxError,
    RateLimitedError,
    RequestNotSent,
    TooManyUnknownAnswers,
)
from flux_async.policy.rate_limit import CircuitBreaker, Pause, RateLimiter
from flux_async.policy.retry import RetryPolicy


@attrs.define(kw_only=True, eq=False)
class SubmitGate:
    """The gates of one session's submits, and what their answers mean for the next ones.

    Attributes:
        rate_limiter: The pace.
        clock: The reader of time.
        rng: The source of jitter.
        changed: Is set when a waiting submit should look again whether it may go.
        pause: The pause that all submits share.
        breaker: Counts unknown answers.
    """

    rate_limiter: RateLimiter
    clock: Clock = attrs.field(repr=False)
    rng: random.Random = attrs.field(repr=False)
    changed: Signal = attrs.field(repr=False)
    pause: Pause = attrs.field(factory=Pause, init=False)
    breaker: CircuitBreaker = attrs.field(init=False)
    _waits: RetryPolicy = attrs.field(init=False, repr=False)
    _places: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _pace: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False, repr=False)
    _in_air: int = attrs.field(default=0, init=False)
    _last_went_alone: bool = attrs.field(default=False, init=False)
    _last_problem: str = attrs.field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        limits = self.rate_limiter.limits
        self.breaker = CircuitBreaker(limits.unknown_answers)
        self._waits = RetryPolicy(window_s=limits.window_s)
        self._places = asyncio.Semaphore(min(limits.concurrent_submits, limits.in_flight))

    async def enter(
        self,
        deadline: float,
        *,
        check: Callable[[], None],
        wanted: Callable[[], bool],
        waits_out_pauses: bool,
    ) -> bool:
        """Wait for a place in the air and a permit; then POST at once, and :meth:`leave`.

        Args:
            deadline: When to wait no more, in monotonic seconds.
            check: Raises where no submit of this call may start any more.
            wanted: Whether the submit is still wanted; where it is not, False is returned.
            waits_out_pauses: Whether the pause of all submits holds this one, too. A call with a deadline of
                its own tries for itself.

        Raises:
            DeadlineExceeded: The deadline came first.
            TooManyUnknownAnswers: Submits are halted.
        """
        await take(self._places, deadline, self.clock)
        entered = False
        try:
            check()  # no waiting for those who were turned away meanwhile
            if wanted():
                await take(self._pace, deadline, self.clock)
                try:
                    entered = await self._permitted(
                        deadline, check, wanted, waits_out_pauses=waits_out_pauses
                    )
                finally:
                    self._pace.release()
        finally:
            if not entered:
                self._places.release()
        return entered

    async def _permitted(
        self,
        deadline: float,
        check: Callable[[], None],
        wanted: Callable[[], bool],
        *,
        waits_out_pauses: bool,
    ) -> bool:
        while True:
            check()
            if not wanted():
                return False
            now = self.clock.monotonic()
            if self.breaker.is_halted(now):
                raise self._halt()
            delay = self._delay(now, waits_out_pauses=waits_out_pauses)
            if delay <= 0:
                break
            if now >= deadline or (math.isfinite(delay) and now + delay >= deadline):
                raise too_late()
            await self.changed.wait(self.clock, min(delay, deadline - now))
        self.rate_limiter.take(now)
        self._in_air += 1
        self._last_went_alone = self.breaker.one_at_a_time
        return True

    def _delay(self, now: float, *, waits_out_pauses: bool) -> float:
        """Return the seconds until the next permit; infinity until a submit in the air is answered."""
        paused = waits_out_pauses and self.pause.is_on
        if self._in_air and (paused or self.breaker.one_at_a_time):
            return math.inf
        return max(self.rate_limiter.delay(now), self.pause.delay(now) if paused else 0.0)

    def leave(self) -> None:
        """Give back the place of a submit that entered."""
        self._in_air -= 1
        self._places.release()
        self.changed.set()

    def _halt(self) -> TooManyUnknownAnswers:
        unknown, last = self.breaker.counts()
        return TooManyUnknownAnswers(
            f"{unknown} of the last {last} submits got an answer that makes no sense, or none (the last one: "
            f"{self._last_problem}). {self.breaker.unknown} submits may have been charged without a known "
            "task; nothing more is submitted.",
            unknown=self.breaker.unknown,
        )

    # --- what became of those that entered ----------------------------------------------------------------

    def saw_accepted(self, began: float) -> None:
        """Take note of a submit that made a task."""
        self.rate_limiter.record_accepted()
        self.breaker.saw_accepted()
        self._saw_answer(began)

    def saw_rejected(self, began: float) -> None:
        """Take note of a submit that was refused for its own sake."""
        self.breaker.saw_rejected()
        self._saw_answer(began)

    def saw_unknown(self, error: FluxError, began: float) -> TooManyUnknownAnswers | None:
        """Take note of a submit that may have been charged; return the error of a halt, where it halts."""
        self._last_problem = f"{type(error).__name__}: {error.message.rstrip('.')}"
        halts = self.breaker.saw_unknown(self.clock.monotonic(), alone=self._last_went_alone)
        self._saw_answer(began)  # it was sent, so there was a connection
        return self._halt() if halts else None

    def saw_request_to_wait(self, error: FluxError, began: float) -> float:
        """Take note of 429 or 455; return the seconds for which all submits pause."""
        if isinstance(error, RateLimitedError):
            self.rate_limiter.record_rate_limited()
        now, seconds = self.clock.monotonic(), self._waits.pause_for(error, self.rng.random())
        self.rate_limiter.pause(now, seconds)
        seconds = max(seconds, float(getattr(error, "retry_after_s", None) or 0.0))
        self.pause.saw_request_to_wait(error, began, now, seconds)
        self.changed.set()
        return seconds

    def saw_unreachable(self, error: RequestNotSent, began: float) -> float:
        """Take note that no connection could be made; return the seconds until the next try."""
        now = self.clock.monotonic()
        self.pause.saw_unreachable(error, began, now, self.rng.random())
        self.changed.set()
        return self.pause.delay(now)

    def _saw_answer(self, began: float) -> None:
        self.pause.saw_answer(began, self.clock.monotonic())
        self.changed.set()


async def take(place: asyncio.Semaphore | asyncio.Lock, deadline: float, clock: Clock) -> None:
    """Take a place, or a lock.

    Raises:
        DeadlineExceeded: None was free before the deadline.
    """
    # A lock that is free may still be promised to somebody who has waited for it.
    if isinstance(place, asyncio.Semaphore) and not place.locked():
        await place.acquire()  # at once
        return
    try:
        async with asyncio.timeout(max(0.0, deadline - clock.monotonic())):
            await place.acquire()
    except TimeoutError:
        raise too_late() from None


def too_late() -> DeadlineExceeded:
    """Return what to raise when the deadline passed before a request could be sent."""
    return DeadlineExceeded("The deadline passed before the request could be sent.")
