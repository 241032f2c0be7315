"""The vendor's time: real time, scaled; or time that passes only when somebody says so."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol, runtime_checkable

import anyio
import anyio.lowlevel

VIRTUAL_BEGIN: Final = 1_787_093_500.0
"""Where virtual time begins, unless given otherwise: always the same, so that answers repeat."""

_TURNS_TO_SETTLE: Final = 50
_A_MOMENT: Final = 0.001  # real seconds


@runtime_checkable
class VendorClock(Protocol):
    """What the sandbox needs to know of time, all of it in vendor seconds."""

    def __call__(self) -> float:
        """Return the present: seconds since the epoch, never running backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


@runtime_checkable
class HoldableClock(VendorClock, Protocol):
    """A clock that stands still while there is work."""

    def working(self) -> AbstractContextManager[None]:
        """Say that something is being done which takes real time: a picture, a delivery."""
        ...


class ScaledTime:
    """Time that passes by itself, `speed` vendor seconds in a real one.

    Args:
        speed: How fast it runs.
        reader: Tells the present instead; it must run at `speed`.
        not_before: Where it begins, if that is later than the real present.
    """

    def __init__(
        self,
        speed: float = 1.0,
        reader: Callable[[], float] | None = None,
        *,
        not_before: float = 0.0,
    ) -> None:
        begun_at, begun = max(time.time(), not_before), time.monotonic()
        self._speed = speed
        self._reader = reader or (lambda: begun_at + (time.monotonic() - begun) * speed)

    def __call__(self) -> float:
        """Return the present."""
        return self._reader()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds / self._speed)


class VirtualTime:
    """Time that stands still until `advance`; the sandbox then does at once all that falls due.

    Args:
        begin: The present, in seconds since the epoch.
    """

    def __init__(self, begin: float = VIRTUAL_BEGIN) -> None:
        self._now = begin
        self._numbers = itertools.count()
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._at_work = 0

    def __call__(self) -> float:
        """Return the present."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until time has been advanced so far."""
        if seconds == math.inf:
            await anyio.sleep_forever()
        woken = anyio.Event()
        sleeper = (self._now + max(0.0, seconds), next(self._numbers), woken)
        heapq.heappush(self._sleepers, sleeper)
        try:
            await woken.wait()
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Say that something is being done which takes real time: a picture, a delivery."""
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    async def advance(self, seconds: float) -> None:
        """Let time pass, from one thing that is due to the next, each done before the one after it.

        Returns when everything is quiet: pictures are made and callbacks delivered, retries included.

        Raises:
            ValueError: If time is to run backwards.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"time can be advanced by a number of seconds from 0 on, not {seconds!r}")
        end = self._now + seconds
        await self._settled()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            woken.set()
            await self._settled()
        self._now = max(self._now, end)

    async def _settled(self) -> None:
        """Give everybody turns until nobody has anything left to do now."""
        while True:
            for _ in range(_TURNS_TO_SETTLE):
                await anyio.lowlevel.checkpoint()
            if not self._at_work:
                return
            await anyio.sleep(_A_MOMENT)


@contextmanager
def holding(clock: VendorClock) -> Iterator[None]:
    """Say that something is being done which takes real time, to a clock that cares."""
    if isinstance(clock, HoldableClock):
        with clock.working():
            yield
    else:
        yield


def as_clock(clock: Callable[[], float], speed: float) -> VendorClock:
    """Return a clock that can also sleep, from one that may only tell the time."""
    return clock if isinstance(clock, VendorClock) else ScaledTime(speed, clock)
