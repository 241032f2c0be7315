"""Runs callbacks at their times from one sleeping coroutine."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

import attrs

from flux_async.clock import Clock, Wakeup

W = TypeVar("W")

_SPARE = 64


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
    _wakeup: Wakeup = attrs.field(factory=Wakeup, init=False)

    def set(self, who: W, at: float) -> None:
        """Call ``who`` at ``at``, and at no other time."""
        self._agenda.set(who, at)
        if not self._is_kept:
            self._is_kept = True
            self.start(self._keep())
        elif at < self._until:
            self._wakeup.set()

    def drop(self, who: W) -> None:
        """Do not call ``who``."""
        self._agenda.drop(who)
        if not self._agenda:
            self._wakeup.set()

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
                await self._wakeup.wait(self.clock, seconds)
                continue
            who = self._agenda.take(self._until)
            if who is not None:
                self.call(who)
