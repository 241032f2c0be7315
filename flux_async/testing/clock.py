"""Virtual time for tests: a wait of five minutes takes milliseconds, and everything due meanwhile happens.

The clock is shared by clients and by the sandbox, which lives in a thread of its own. Time moves when nobody
has anything left to do now: then it leaps to whoever sleeps the shortest. What takes real time and is of no
interest (an exchange, a commit, a file) holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from time import monotonic, time
from typing import ParamSpec, Protocol, TypeVar

import anyio
import anyio.to_thread
import attrs

from flux_async.journal.writer import Writer

P = ParamSpec("P")
T = TypeVar("T")

_TURNS_TO_SETTLE = 12
_TURNS_PER_VISIT = 3
"""A turn of another thread's loop takes much longer than one of our own."""
_A_MOMENT_S = 0.0002
_LONGEST_TURN_S = 0.05
_LONGEST_HOLD_S = 10.0
"""Real seconds: what holds time for longer is waiting for time itself, and would wait for ever."""


class Patcher(Protocol):
    """What is used of pytest's ``monkeypatch``."""

    def setattr(self, target: object, name: str, value: object) -> None:
        """Set an attribute until the test ends."""
        ...


@attrs.define(order=True)
class _Sleeper:
    """Who sleeps until when, in order of arrival, and what tells him that he is the first."""

    until: float
    number: int
    loop: asyncio.AbstractEventLoop = attrs.field(order=False)
    first: asyncio.Event = attrs.field(factory=asyncio.Event, order=False)

    def call(self) -> None:
        """Tell him, from whatever thread."""
        _call_in(self.loop, self.first.set)


class VirtualClock:
    """Time that passes only when everybody sleeps: to the earliest sleeper's hour, at once.

    Give it to a client: ``FluxClient(…, clock=flux_clock)``. It may be used from several event loops.

    Args:
        wall: The hour at which it begins, in seconds since the epoch; left out, now.

    Attributes:
        now: Virtual seconds, since some fixed moment.
        slept: Every sleep that was asked for, in seconds, in order.
    """

    def __init__(self, wall: float | None = None) -> None:
        self.now: float = 1000.0
        self.slept: list[float] = []
        self._epoch = (time() if wall is None else wall) - self.now
        self._lock = threading.Lock()
        self._sleepers: list[_Sleeper] = []
        self._numbers = itertools.count()
        self._loops: dict[asyncio.AbstractEventLoop, None] = {}
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
        """Let ``seconds`` pass, and everything happen that falls due meanwhile."""
        self.slept.append(seconds)
        if seconds == math.inf:
            await anyio.sleep_forever()
        me = _Sleeper(self.now + max(0.0, seconds), next(self._numbers), asyncio.get_running_loop())
        with self._lock:
            self._loops[me.loop] = None
            heapq.heappush(self._sleepers, me)
            self._changes += 1
        try:
            while not await self._is_over(me):
                pass
        finally:
            with self._lock:
                self._sleepers.remove(me)
                heapq.heapify(self._sleepers)
                self._changes += 1
                following = self._sleepers[0] if self._sleepers else None
            if following is not None:
                following.call()

    def advance(self, seconds: float) -> None:
        """Do as ``sleep``, in a test without an event loop.

        Raises:
            RuntimeError: There is one: ``await flux_clock.sleep(seconds)``.
        """
        asyncio.run(self.sleep(seconds))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let no time pass meanwhile: around what takes real time, such as a database of the test's own."""
        self._add_hold(1)
        try:
            yield
        finally:
            self._add_hold(-1)

    @contextlib.contextmanager
    def release(self) -> Iterator[None]:
        """Let time pass again, inside a ``hold``: for who holds it and now sleeps himself."""
        self._add_hold(-1)
        try:
            yield
        finally:
            self._add_hold(1)

    def holding(self, work: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Wrap what is done in a thread: no time passes until it has come back."""

        @wraps(work)
        async def held(*arguments: P.args, **options: P.kwargs) -> T:
            with self.hold():
                return await work(*arguments, **options)

        return held

    def hold_for_threads(self, patch: Patcher) -> None:
        """Have time stand still while files or the journal are at work in their threads."""
        patch.setattr(Writer, "do", self.holding(Writer.do))
        patch.setattr(anyio.to_thread, "run_sync", self.holding(anyio.to_thread.run_sync))

    def _add_hold(self, number: int) -> None:
        with self._lock:
            with contextlib.suppress(RuntimeError):  # no loop: a thread
                self._loops[asyncio.get_running_loop()] = None
            self._holds += number
            self._changes += 1

    async def _is_over(self, me: _Sleeper) -> bool:
        """Wait to be the first, then for quiet; say whether time has come to this sleeper's hour."""
        if self._sleepers[0] is not me:
            me.first.clear()
            if self._sleepers[0] is not me:
                await me.first.wait()
            return False
        seen = self._changes
        await self._settle(me.loop)
        with self._lock:
            if self._sleepers[0] is not me or self._changes != seen:
                return False
            self.now = max(self.now, me.until)
            return True

    async def _settle(self, mine: asyncio.AbstractEventLoop) -> None:
        """Give everybody turns until whoever can go on has gone on, threads and other loops too."""
        for number in range(_TURNS_TO_SETTLE):
            await asyncio.sleep(0)
            if number % _TURNS_PER_VISIT == 0:
                for loop in self._loops.keys() - {mine}:
                    await self._turn_of(loop, mine)
        patience = monotonic() + _LONGEST_HOLD_S
        while self._holds > 0 and monotonic() < patience:  # noqa: ASYNC110 - held by other threads, too
            await asyncio.sleep(_A_MOMENT_S)

    async def _turn_of(self, loop: asyncio.AbstractEventLoop, mine: asyncio.AbstractEventLoop) -> None:
        """Wait until another thread's loop has gone round once, unless it stands still."""
        gone_round = asyncio.Event()

        if not _call_in(loop, lambda: _call_in(mine, gone_round.set)):
            self._loops.pop(loop, None)
            return
        patience = monotonic() + _LONGEST_HOLD_S
        while loop.is_running() and not gone_round.is_set() and monotonic() < patience:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_TURN_S):
                    await gone_round.wait()


def _call_in(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> bool:
    """Have a loop do something, from whatever thread; say whether it is still there to do it."""
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:
        return False
    return True
