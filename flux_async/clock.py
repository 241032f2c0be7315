"""The only reader of time, and the sleeper. Give another clock to make time pass as a test wants."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the package needs to know of time."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...

    def wall(self) -> float:
        """Return seconds since the epoch (UTC), as a person's clock shows them."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``; zero and less only lets others run."""
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
