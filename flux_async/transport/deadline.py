"""A timeout that reads received data before it cancels.

After a process was stopped (SIGSTOP, a closed laptop lid, a blocked event loop), the answer is in the socket
and the timer is due in the same iteration of the event loop. ``asyncio.timeout`` cancels in it; the
coroutine that waits for the answer would run in the next one. The lost answer would leave a submit in doubt.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import attrs

TURNS = 100
"""Iterations of the event loop before it cancels; each reads up to 64 kB from each socket.

An answer of 4 kB in ten TLS records takes five with httpx and aiohttp; 100 iterations take about 1 ms."""


@attrs.define(eq=False)
class Deadline:
    """``asyncio.timeout(seconds)`` that waits for ``TURNS`` iterations of the event loop before it cancels.

    Usage: ``async with Deadline(60.0): …``, which raises TimeoutError.
    """

    seconds: float
    _scope: asyncio.Timeout = attrs.field(factory=lambda: asyncio.timeout(None), init=False)
    _timer: asyncio.Handle | None = attrs.field(default=None, init=False)
    _turns: int = attrs.field(default=TURNS, init=False)

    def expired(self) -> bool:
        """Return whether it has cancelled its block."""
        return self._scope.expired()

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self.seconds), self._go_round)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._scope.__aexit__(kind, error, trace)

    def _go_round(self) -> None:
        loop = asyncio.get_running_loop()
        if self._turns:
            self._turns -= 1
            self._timer = loop.call_soon(self._go_round)
        else:
            self._scope.reschedule(loop.time())
