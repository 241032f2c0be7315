"""Who may use a connection, and when it is closed: what httpcore's own pools do slowly, or not at all.

Cancelling an exchange within httpcore 1.0 can cost a pool a connection for ever. Where a hard stop does that,
a :class:`Pool` is retired: those that still use it finish, new ones get another, and the last to leave closes
it. A :class:`Rack` throws away the one connection that was concerned.

And a pool of httpcore looks at all its connections at the beginning and at the end of every request, for each
of them at all others: with 22 kept alive that takes most of the CPU of a request. In a rack each connection
is a pool of its own, and what is free lies on a stack.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
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


@attrs.define(eq=False)
class Rack(Generic[R]):
    """Things that serve one exchange at a time: as many as are in use at once, the last used first.

    Attributes:
        make: Makes one more.
        most: There are never more.
        idle_s: One that nobody has used for so long, in seconds, is closed when another is given back.
    """

    make: Callable[[], R]
    most: int
    idle_s: float
    _places: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _free: deque[tuple[R, float]] = attrs.field(factory=deque, init=False, repr=False)
    _taken: list[R] = attrs.field(factory=list, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.most)

    async def take(self, timeout_s: float) -> R:
        """Return one that nobody else uses; give it back with :meth:`give`.

        Raises:
            TimeoutError: None was free in time.
            ConnectionError: All have been closed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise TimeoutError("no connection was free in time") from None
        try:
            one = self._next()
        except BaseException:
            self._places.release()
            raise
        self._taken.append(one)
        return one

    def _next(self) -> R:
        if self._closed:
            raise ConnectionError("the connections are closed")
        return self._free.pop()[0] if self._free else self.make()

    async def give(self, one: R, *, is_sound: bool) -> None:
        """Give one back; it is closed where its exchange did not come to its end."""
        now = asyncio.get_running_loop().time()
        self._taken.remove(one)
        self._places.release()
        if is_sound and not self._closed:
            self._free.append((one, now))
        else:
            await _close(one)
        while self._free and now - self._free[0][1] > self.idle_s:
            await _close(self._free.popleft()[0])

    async def aclose(self) -> None:
        """Close all of them, those in use as well."""
        self._closed = True
        everything = [*self._taken, *(one for one, _ in self._free)]
        self._free.clear()
        for one in everything:
            await _close(one)


async def _close(one: Closable) -> None:
    """Close what nobody uses any more; what goes wrong with it must not cost anybody the answer he has."""
    with contextlib.suppress(Exception):
        await one.aclose()
