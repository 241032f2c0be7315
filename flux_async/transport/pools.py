"""Connections that had to be left in the middle of an exchange are closed when nobody uses them any more.

Cancelling an exchange within httpcore 1.0 can cost a pool a connection for ever. Where a hard stop does that,
the pool is retired: those that still use it finish, new ones get another, and the last to leave closes it.
"""

from __future__ import annotations

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
    _users: int = 0
    _retired: bool = False

    @asynccontextmanager
    async def used(self) -> AsyncIterator[R]:
        """Hold the pool open; the last user of a retired one closes it."""
        self._users += 1
        try:
            yield self.resource
        finally:
            self._users -= 1
            if self._retired and not self._users:
                await self.resource.aclose()

    def retire(self) -> None:
        """Let it be closed when its last exchange ends."""
        self._retired = True
