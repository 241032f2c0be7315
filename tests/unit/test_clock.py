"""Sleeps that may be ended early."""

from __future__ import annotations

import asyncio

import attrs
import pytest

from flux_async.clock import Wakeup


@attrs.define
class StoppedClock:
    """A clock on which each sleep takes as much longer as the next gap says."""

    gaps: list[float]
    now: float = 0.0
    slept: list[float] = attrs.field(factory=list)

    def monotonic(self) -> float:
        """Return seconds."""
        return self.now

    def wall(self) -> float:
        """Return seconds."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let the seconds pass, and the gap."""
        self.slept.append(seconds)
        self.now += seconds + (self.gaps.pop(0) if self.gaps else 0.0)
        await asyncio.sleep(0)


@pytest.mark.parametrize(("gap_s", "slept"), [(0.0, [5.0]), (0.9, [5.0]), (65.0, [5.0, 1.0])])
async def test_after_a_gap_of_the_clock_what_has_arrived_is_read_first(
    gap_s: float, slept: list[float]
) -> None:
    """Where the process was stopped, the sleep is a second longer; a busy machine is no reason."""
    clock = StoppedClock([gap_s])
    await Wakeup().wait(clock, 5.0)
    assert clock.slept == slept
