"""Who has a connection, and what becomes of it."""

from __future__ import annotations

import asyncio

import attrs
import pytest

from flux_async.transport.pools import Rack


@attrs.define(eq=False)
class Line:
    """A connection that may be broken: then it cannot even be closed."""

    is_broken: bool = False
    closed: int = 0

    async def aclose(self) -> None:
        """Close it."""
        self.closed += 1
        if self.is_broken:
            raise OSError("the line is dead")


async def test_what_cannot_be_closed_costs_no_answer() -> None:
    """Neither the exchange that gives a sound one back hears of it, nor those that are closed after it."""
    lines = [Line(is_broken=True), Line(), Line()]
    makes = iter(lines)
    rack = Rack(lambda: next(makes), 3, idle_s=0.0)
    dead, quiet, sound = [await rack.take(1.0) for _ in range(3)]
    await rack.give(dead, is_sound=True)
    await asyncio.sleep(0.002)
    await rack.give(quiet, is_sound=True)
    assert (dead.closed, quiet.closed) == (1, 0)
    quiet.is_broken = True
    await rack.aclose()
    assert (quiet.closed, sound.closed) == (1, 1)
    await rack.give(sound, is_sound=True)
    with pytest.raises(ConnectionError):
        await rack.take(1.0)


async def test_who_leaves_the_line_leaves_his_place() -> None:
    """Cancelled in the very moment a connection comes free, or too late for one, he takes none with him."""
    rack = Rack(Line, 1, idle_s=9.0)
    only = await rack.take(1.0)
    waiting = asyncio.get_running_loop().create_task(rack.take(1.0))
    await asyncio.sleep(0)
    await rack.give(only, is_sound=True)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await rack.take(0.01) is only
    with pytest.raises(TimeoutError):
        await rack.take(0.005)
    await rack.give(only, is_sound=False)
    assert only.closed == 1
    assert await rack.take(0.01) is not only
