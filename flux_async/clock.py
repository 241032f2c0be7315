"""The only reader of time, and sleeps that can be ended early.

Give another :class:`Clock` to make time pass as a test wants.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import attrs

SUSPENSION_S = 1.0
"""A sleep that took so much longer than requested proves a suspension of the process."""
_READ_FIRST_S = 1.0


class Clock(Protocol):
    """Source of time."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...

    def wall(self) -> float:
        """Return seconds since the epoch (UTC)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``; zero or less only lets other coroutines run."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since the epoch (UTC)."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``."""
        await asyncio.sleep(max(0.0, seconds))


def hold_of(clock: Clock) -> Callable[[], AbstractContextManager[object]]:
    """Return the ``hold`` of a test's clock: no virtual time passes meanwhile. Other clocks have none."""
    hold: Callable[[], AbstractContextManager[object]] = getattr(clock, "hold", nullcontext)
    return hold


async def sleep_and_read(clock: Clock, seconds: float) -> None:
    """Sleep; infinity never ends.

    After a suspension of the process (SIGSTOP, a closed laptop lid) it takes a second longer: what has
    arrived is read before anything is decided by the time.
    """
    if seconds == math.inf:
        await asyncio.Event().wait()
    until = clock.monotonic() + seconds
    await clock.sleep(seconds)
    if clock.monotonic() > until + SUSPENSION_S:
        await clock.sleep(_READ_FIRST_S)


@attrs.define(eq=False)
class Wakeup:
    """An event for one coroutine, whose wait has a timeout on the given clock."""

    _is_set: bool = attrs.field(default=False, init=False)
    _sleep: asyncio.Timeout | None = attrs.field(default=None, init=False)

    def set(self) -> None:
        """End the wait under way, or else the next one."""
        self._is_set = True
        if self._sleep is not None and not self._sleep.expired():
            self._sleep.reschedule(asyncio.get_running_loop().time())

    async def wait(self, clock: Clock, seconds: float) -> None:
        """Return when set, and clear it; at the latest after ``seconds``, infinity having no bound."""
        if not self._is_set:
            sleep = asyncio.timeout(None)
            try:
                async with sleep:
                    self._sleep = sleep
                    await sleep_and_read(clock, seconds)
            except TimeoutError:
                if not sleep.expired():
                    raise
            finally:
                self._sleep = None
        self._is_set = False


@attrs.define(eq=False)
class Signal:
    """Wakes all coroutines that wait for a change, whenever there is one, in the order in which they came."""

    _wakeups: dict[Wakeup, None] = attrs.field(factory=dict, init=False)

    async def wait(self, clock: Clock, seconds: float) -> None:
        """Wait for the next :meth:`set`, at most ``seconds``; infinity has no bound."""
        wakeup = Wakeup()
        self._wakeups[wakeup] = None
        try:
            await wakeup.wait(clock, seconds)
        finally:
            del self._wakeups[wakeup]

    def set(self) -> None:
        """Wake all that wait now."""
        for wakeup in self._wakeups:
            wakeup.set()
