"""Virtual time for tests: a wait of five minutes takes milliseconds, and everything due meanwhile happens.

Clients and the sandbox share the clock; the sandbox runs on an event loop of its own. Time advances to the
deadline of the next sleeper as soon as nothing else can run. Work that takes real time holds it: requests,
commits of the journal, and everything in a worker thread of anyio.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from time import monotonic, time
from typing import Final

import anyio
import anyio.to_thread
import attrs

_TURNS_TO_SETTLE: Final = 12
_TURNS_PER_VISIT: Final = 3
"""A turn of another thread's loop takes much longer than one of this loop."""
_POLL_S: Final = 0.0002
_LONGEST_TURN_S: Final = 0.05
_LONGEST_HOLD_S: Final = 10.0
"""Real seconds: work that holds time for longer waits for time itself, and would never end."""


@attrs.define(eq=False)
class _Sleeper:
    """A sleep: its deadline, the event that is set when it is the next to end, and whether it has ended."""

    until: float
    loop: asyncio.AbstractEventLoop
    is_next: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    is_over: bool = attrs.field(default=False, init=False)

    def notify(self) -> None:
        """Set the event, from any thread."""
        _call_in(self.loop, self.is_next.set)


class VirtualClock:
    """Time that advances only when nothing else can run: to the earliest deadline, at once.

    Give it to a client: ``FluxClient(…, clock=flux_clock)``. Several event loops can use it.

    Args:
        wall: Start, in seconds since the epoch; left out, the present.

    Attributes:
        now: Virtual seconds since some fixed moment.
        slept: All sleeps that were requested, in seconds, in order.
    """

    def __init__(self, wall: float | None = None) -> None:
        self.now: float = 1000.0
        self.slept: list[float] = []
        self._epoch = (time() if wall is None else wall) - self.now
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, int, _Sleeper]] = []
        self._numbers = itertools.count()
        self._worker_threads: dict[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = {}
        self._changes = 0
        self._holds = 0

    def __repr__(self) -> str:
        return f"<VirtualClock at {self.now:g} s>"

    def monotonic(self) -> float:
        """Return virtual seconds."""
        return self.now

    def wall(self) -> float:
        """Return virtual seconds since the epoch."""
        return self._epoch + self.now

    async def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass, and everything happen that is due meanwhile."""
        self.slept.append(seconds)
        if seconds == math.inf:
            await anyio.sleep_forever()
        sleeper = _Sleeper(self.now + max(0.0, seconds), asyncio.get_running_loop())
        with self._lock:
            self._add_loop()
            heapq.heappush(self._sleepers, (sleeper.until, next(self._numbers), sleeper))
            self._changes += 1
        try:
            while not await self._is_over(sleeper):
                pass
        finally:
            with self._lock:
                sleeper.is_over = True
                while self._sleepers and self._sleepers[0][-1].is_over:
                    heapq.heappop(self._sleepers)
                self._changes += 1
                following = self._sleepers[0][-1] if self._sleepers else None
            if following is not None:
                following.notify()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, as ``sleep`` does, in a test without an event loop.

        Raises:
            RuntimeError: An event loop is running: ``await flux_clock.sleep(seconds)``.
        """
        asyncio.run(self.sleep(seconds))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let no time pass meanwhile: around work that takes real time, such as a test's own database."""
        self._add_hold(1)
        try:
            yield
        finally:
            self._add_hold(-1)

    @contextlib.contextmanager
    def release(self) -> Iterator[None]:
        """Let time pass again inside a ``hold``: around a sleep of the work that holds it."""
        self._add_hold(-1)
        try:
            yield
        finally:
            self._add_hold(1)

    def _add_loop(self) -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        self._worker_threads[asyncio.get_running_loop()] = limiter

    def _add_hold(self, number: int) -> None:
        with self._lock:
            with contextlib.suppress(RuntimeError):  # a thread without an event loop
                self._add_loop()
            self._holds += number
            self._changes += 1

    def _is_held(self) -> bool:
        """Return whether work is under way, also in a worker thread of anyio."""
        return self._holds > 0 or any(
            limiter.borrowed_tokens for limiter in tuple(self._worker_threads.values())
        )

    async def _is_over(self, sleeper: _Sleeper) -> bool:
        """Wait until a sleep is the next to end and nothing else runs; return whether it has ended."""
        if self._sleepers[0][-1] is not sleeper:
            sleeper.is_next.clear()
            if self._sleepers[0][-1] is not sleeper:
                await sleeper.is_next.wait()
            return False
        seen = self._changes
        is_quiet = await self._settle(sleeper.loop)
        with self._lock:
            if not is_quiet or self._sleepers[0][-1] is not sleeper or self._changes != seen:
                return False
            self.now = max(self.now, sleeper.until)
            return True

    async def _settle(self, here: asyncio.AbstractEventLoop) -> bool:
        """Let everything go on that can, in threads and other loops too; return whether nothing had to.

        Threads are checked at each turn: one that began and ended in between has woken a coroutine, which
        needs turns of its own.
        """
        for number in range(_TURNS_TO_SETTLE):
            await asyncio.sleep(0)
            if self._is_held():
                return not await self._is_released()
            if number % _TURNS_PER_VISIT == 0:
                for loop in self._worker_threads.keys() - {here}:
                    await self._turn_of(loop, here)
        return True

    async def _is_released(self) -> bool:
        """Wait until no work holds time; return False if it holds time for too long."""
        patience = monotonic() + _LONGEST_HOLD_S
        while self._is_held():
            if monotonic() > patience:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _turn_of(self, loop: asyncio.AbstractEventLoop, here: asyncio.AbstractEventLoop) -> None:
        """Wait for one turn of another thread's loop, if it is running."""
        has_turned = asyncio.Event()
        if not _call_in(loop, lambda: _call_in(here, has_turned.set)):
            self._worker_threads.pop(loop, None)
            return
        patience = monotonic() + _LONGEST_HOLD_S
        while loop.is_running() and not has_turned.is_set() and monotonic() < patience:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_TURN_S):
                    await has_turned.wait()


def _call_in(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> bool:
    """Run ``work`` in a loop, from any thread; return whether the loop still exists."""
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:
        return False
    return True
