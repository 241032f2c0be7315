"""When the connections of downloads are closed."""

from __future__ import annotations

from typing import Any

import attrs

from flux_async.transport.file_client import ConnectionPools


@attrs.define(eq=False)
class FakePool:
    """Counts how often it is closed; closing a broken one fails."""

    is_broken: bool = False
    closed: int = 0

    async def aclose(self) -> None:
        """Close it."""
        self.closed += 1
        if self.is_broken:
            raise OSError("the connection is dead")


def pools_over(pool: Any) -> ConnectionPools:
    return ConnectionPools(lambda _: pool)


async def test_retired_pools_are_closed_by_their_last_download() -> None:
    """Pools that are not retired stay open."""
    pool = FakePool()
    pools = pools_over(pool)
    async with pools.used():
        pools.through(None)
    assert pool.closed == 0
    async with pools.used():
        async with pools.used():
            pools.retire()
        assert pool.closed == 0
    assert pool.closed == 1


async def test_an_error_while_closing_does_not_fail_a_download() -> None:
    """It reaches neither the last download nor the caller of ``aclose``."""
    pool = FakePool(is_broken=True)
    pools = pools_over(pool)
    pools.through(None)
    async with pools.used():
        await pools.aclose()
    assert pool.closed == 2
