"""The vendor's time: scaled real time, or virtual time that a caller advances."""

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
"""Default start of virtual time: constant, so that answers are repeatable."""

_TURNS_TO_SETTLE: Final = 50
_A_MOMENT: Final = 0.001  # real seconds


@runtime_checkable
class VendorClock(Protocol):
    """The clock of a sandbox, in vendor seconds."""

    def __call__(self) -> float:
        """Return the seconds since the epoch; they never decrease."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


@runtime_checkable
class HoldableClock(VendorClock, Protocol):
    """A clock that stands still during work."""

    def working(self) -> AbstractContextManager[None]:
        """Hold time during work that takes real time: an image, a delivery."""
        ...


class ScaledTime:
    """Real time, `speed` vendor seconds in each second.

    Args:
        reader: Returns the present instead; it must run at `speed`.
        not_before: The earliest start.
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
    """Time that stands still until `advance`, which does all that is due at once.

    Args:
        begin: Its start, in seconds since the epoch.
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
        """Wait until time is advanced by so much."""
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
        """Hold time during work that takes real time: an image, a delivery."""
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    async def advance(self, seconds: float) -> None:
        """Advance time from one deadline to the next; the work of each is done before the next.

        Returns when images are made and callbacks delivered, retries included.

        Raises:
            ValueError: `seconds` is negative or infinite.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be a finite number of at least 0, not {seconds!r}")
        end = self._now + seconds
        await self._settled()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            woken.set()
            await self._settled()
        self._now = max(self._now, end)

    async def _settled(self) -> None:
        """Let other tasks run until none has work left."""
        while True:
            for _ in range(_TURNS_TO_SETTLE):
                await anyio.lowlevel.checkpoint()
            if not self._at_work:
                return
            await anyio.sleep(_A_MOMENT)


@contextmanager
def holding(clock: VendorClock) -> Iterator[None]:
    """Hold time, if the clock can, during work that takes real time."""
    if isinstance(clock, HoldableClock):
        with clock.working():
            yield
    else:
        yield


def as_clock(clock: Callable[[], float], speed: float) -> VendorClock:
    """Return a clock with ``sleep``, from one that may lack it."""
    return clock if isinstance(clock, VendorClock) else ScaledTime(speed, clock)
