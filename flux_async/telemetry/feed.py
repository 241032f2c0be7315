"""Events as an async iterator, for server-sent events and the like."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import attrs

from flux_async.events import FluxEvent
from flux_async.models import JobKey

MOST_WAITING = 1000
"""Events that a slow reader may lag behind; the oldest are dropped beyond that."""


@attrs.define(eq=False)
class EventFeed:
    """An observer whose events are read with ``async for``; it ends with :meth:`end`.

    Attributes:
        job: Only its events are kept; None keeps all.
    """

    job: JobKey | None = None
    _waiting: deque[FluxEvent] = attrs.field(factory=lambda: deque(maxlen=MOST_WAITING), init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _has_ended: bool = attrs.field(default=False, init=False)

    def __call__(self, event: FluxEvent, /) -> None:
        """Keep an event."""
        if self.job is None or event.job == self.job:
            self._waiting.append(event)
            self._changed.set()

    def end(self) -> None:
        """Let the reader end when it has read what is waiting."""
        self._has_ended = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[FluxEvent]:
        """Yield the events as they come."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._has_ended:
                return
            self._changed.clear()
            await self._changed.wait()
