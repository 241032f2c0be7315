"""Who is due when: one sleep for all who wait, and a pace for looks."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

import attrs

from flux_async.clock import Clock

W = TypeVar("W")

GAP_S = 1.0
"""A sleep that took so much longer than asked for tells that the process was stopped meanwhile."""
_READ_FIRST_S = 1.0
_MOST_COMPARED = 256
_SPARE = 64


@attrs.define(eq=False)
class Nap:
    """A sleep that somebody may end."""

    _scope: asyncio.Timeout = attrs.field(factory=lambda: asyncio.timeout(None), init=False)

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Sleep, at most ``seconds``; infinity has no bound.

        Where the process was stopped meanwhile, a second more: what has arrived is read before anything is
        judged by the time.
        """
        until = clock.monotonic() + seconds
        try:
            async with self._scope:
                await (asyncio.Event().wait() if seconds == math.inf else clock.sleep(seconds))
                if clock.monotonic() > until + GAP_S:
                    await clock.sleep(_READ_FIRST_S)
        except TimeoutError:
            if not self._scope.expired():
                raise

    def wake(self) -> None:
        """End the sleep, which has begun."""
        if not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())


@attrs.define(eq=False)
class Signal:
    """Wakes everybody who waits for a change, whenever there is one."""

    _naps: set[Nap] = attrs.field(factory=set, init=False)

    async def wait(self, clock: Clock, seconds: float) -> None:
        """Wait for the next :meth:`set`, at most ``seconds``; infinity has no bound."""
        nap = Nap()
        self._naps.add(nap)
        try:
            await nap.sleep(clock, seconds)
        finally:
            self._naps.discard(nap)

    def set(self) -> None:
        """Wake everybody who waits now."""
        for nap in self._naps:
            nap.wake()


@attrs.define(eq=False)
class Agenda(Generic[W]):
    """Who is due when, however many there are: what is set anew or dropped costs nothing for long."""

    _hours: dict[W, int] = attrs.field(factory=dict, init=False)  # by the number of the entry that counts
    _heap: list[tuple[float, int, W]] = attrs.field(factory=list, init=False)
    _numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)

    def __len__(self) -> int:
        return len(self._hours)

    def __contains__(self, who: object) -> bool:
        return who in self._hours

    def set(self, who: W, at: float) -> None:
        """Have ``who`` due at ``at``, and at no other time."""
        number = self._hours[who] = next(self._numbers)
        heapq.heappush(self._heap, (at, number, who))
        if len(self._heap) > 2 * len(self._hours) + _SPARE:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def drop(self, who: W) -> None:
        """Have ``who`` due no more."""
        self._hours.pop(who, None)

    def clear(self) -> list[W]:
        """Drop everybody, and return who was there."""
        everybody = list(self._hours)
        self._hours.clear()
        self._heap.clear()
        return everybody

    def next_at(self) -> float:
        """Return when the next one is due; with none, never."""
        while self._heap and not self._is_valid(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def take(self, now: float) -> W | None:
        """Return somebody who is due, and drop him."""
        if self.next_at() > now:
            return None
        who = heapq.heappop(self._heap)[2]
        del self._hours[who]
        return who

    def _is_valid(self, entry: tuple[float, int, W]) -> bool:
        return self._hours.get(entry[2]) == entry[1]


@attrs.define(eq=False)
class Alarm(Generic[W]):
    """Calls everybody when he is due. One coroutine sleeps for all of them, and only while there are any.

    Attributes:
        clock: The reader of time.
        start: Runs that coroutine.
        call: Is called with whoever is due.
        fail: Is called with everybody when the clock fails, and with its error: nobody is to wait for ever.
    """

    clock: Clock
    start: Callable[[Coroutine[Any, Any, None]], object]
    call: Callable[[W], None]
    fail: Callable[[W, Exception], None]
    _agenda: Agenda[W] = attrs.field(factory=Agenda, init=False)
    _is_kept: bool = attrs.field(default=False, init=False)
    _until: float = attrs.field(default=math.inf, init=False)
    _nap: Nap | None = attrs.field(default=None, init=False)

    def set(self, who: W, at: float) -> None:
        """Call ``who`` at ``at``, and at no other time."""
        self._agenda.set(who, at)
        if not self._is_kept:
            self._is_kept = True
            self.start(self._keep())
        elif self._nap is not None and at < self._until:
            self._nap.wake()

    def drop(self, who: W) -> None:
        """Do not call ``who``."""
        self._agenda.drop(who)
        if not self._agenda and self._nap is not None:
            self._nap.wake()

    async def _keep(self) -> None:
        failure: Exception | None = None
        try:
            await self._call_who_is_due()
        except Exception as error:  # noqa: BLE001 - of a clock of the caller's
            failure = error
        finally:
            self._is_kept = False
        if failure is not None:
            for who in self._agenda.clear():
                self.fail(who, failure)

    async def _call_who_is_due(self) -> None:
        while self._agenda:
            self._until = self._agenda.next_at()
            seconds = self._until - self.clock.monotonic()
            if seconds > 0:
                await self._sleep(seconds)
                continue
            who = self._agenda.take(self._until)
            if who is not None:
                self.call(who)

    async def _sleep(self, seconds: float) -> None:
        self._nap = Nap()
        try:
            await self._nap.sleep(self.clock, seconds)
        finally:
            self._nap = None


@attrs.define(eq=False)
class _Turn:
    """One look that waits for its turn.

    Attributes:
        chance: How likely it is to find an end.
        granted: Whether it may be made; None while that is open.
        called: Set when there is something to do: look, give up, or keep the time for the others.
    """

    chance: Callable[[], float]
    granted: bool | None = None
    called: asyncio.Event = attrs.field(factory=asyncio.Event)


@attrs.define(eq=False)
class LookPace:
    """Lets an account's looks go one by one, evenly, those first that will most likely find an end.

    There is no coroutine of its own here: the first of those who wait keeps the time for all, and when he
    leaves, the next does.
    """

    clock: Clock
    spacing_s: float
    _turns: OrderedDict[_Turn, None] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _deadlines: Agenda[_Turn] = attrs.field(factory=Agenda, init=False, repr=False)
    _next_at: float = attrs.field(default=-math.inf, init=False)
    _nap: Nap | None = attrs.field(default=None, init=False)

    async def turn(self, chance: Callable[[], float], deadline: float) -> bool:
        """Wait for a turn; False where the deadline came first."""
        turn = _Turn(chance)
        self._turns[turn] = None
        self._deadlines.set(turn, deadline)
        if self._nap is not None and deadline < self._next_at:
            self._nap.wake()
        try:
            while turn.granted is None:
                if next(iter(self._turns)) is turn:
                    await self._keep_time()
                else:
                    await turn.called.wait()
                    turn.called.clear()
        finally:
            self._turns.pop(turn, None)
            self._deadlines.drop(turn)
            if self._turns:
                next(iter(self._turns)).called.set()
        return turn.granted

    async def _keep_time(self) -> None:
        """Sleep until a look may go, or somebody's deadline has come; then say so."""
        until = min(self._next_at, self._deadlines.next_at())
        self._nap = Nap()
        try:
            await self._nap.sleep(self.clock, max(0.0, until - self.clock.monotonic()))
        finally:
            self._nap = None
        now = self.clock.monotonic()
        while (late := self._deadlines.take(now)) is not None:
            self._answer(late, granted=False)
        if self._next_at <= now and self._turns:
            # Only the longest waiting are compared: with more than that, all are late anyhow.
            best = max(islice(self._turns, _MOST_COMPARED), key=lambda turn: turn.chance())
            self._next_at = now + self.spacing_s
            self._answer(best, granted=True)

    def _answer(self, turn: _Turn, *, granted: bool) -> None:
        del self._turns[turn]
        self._deadlines.drop(turn)
        turn.granted = granted
        turn.called.set()
