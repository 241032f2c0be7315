"""Who closes a pool, and when."""

from __future__ import annotations

import attrs

from flux_async.transport.pools import Pool


@attrs.define(eq=False)
class Connections:
    """Connections that may be broken: then they cannot even be closed."""

    is_broken: bool = False
    closed: int = 0

    async def aclose(self) -> None:
        """Close them."""
        self.closed += 1
        if self.is_broken:
            raise OSError("the connection is dead")


async def test_a_retired_pool_is_closed_by_its_last_user() -> None:
    """Not before, and not at all while it is not retired."""
    pool = Pool(Connections())
    async with pool.used() as connections:
        pass
    assert connections.closed == 0
    async with pool.used():
        async with pool.used():
            pool.retire()
        assert connections.closed == 0
    assert connections.closed == 1


async def test_a_pool_that_cannot_be_closed_costs_no_answer() -> None:
    """Neither the last user nor who closes everything gets the error."""
    pool = Pool(Connections(is_broken=True))
    async with pool.used():
        await pool.aclose()
    assert pool.resource.closed == 2
