"""Connections that are closed by the last exchange that uses them.

Cancelling an exchange within httpcore 1.0 can cost a pool a connection for ever. Where that may have happened
a pool is retired: exchanges that still use it finish, new ones get another pool, and the last one closes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import attrs


class Closable(Protocol):
    """What holds connections."""

    async def aclose(self) -> None:
        """Close them."""
        ...


R = TypeVar("R", bound=Closable)


@attrs.define(eq=False)
class Pool(Generic[R]):
    """Connections of ours, and how many exchanges are using them."""

    resource: R
    is_retired: bool = attrs.field(default=False, init=False)
    _users: int = attrs.field(default=0, init=False)

    @asynccontextmanager
    async def used(self) -> AsyncIterator[R]:
        """Hold the pool open; the last user of a retired one closes it."""
        self._users += 1
        try:
            yield self.resource
        finally:
            self._users -= 1
            if self.is_retired and not self._users:
                await self._close()

    def retire(self) -> None:
        """Have the pool closed when its last exchange ends."""
        self.is_retired = True

    async def aclose(self) -> None:
        """Close all connections now; one that is just being made, when its exchange ends."""
        self.is_retired = True
        await self._close()

    async def _close(self) -> None:
        with contextlib.suppress(Exception):  # an answer that has come must not be lost for it
            await self.resource.aclose()
