"""The one home of coroutines that outlive their caller.

Cancelling an httpx request can cost its pool a connection for ever, and cancelling a submit loses the id of a
paid task. So no caller's cancellation reaches an exchange: it runs in a coroutine of its own, bounded by its
own deadline, and a caller who leaves simply stops listening. What the exchange then brings home is given to
``when_abandoned``. ``aclose`` waits for those that must not be lost, so nothing is left running afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import attrs

from flux_async.errors import ClientClosed

T = TypeVar("T")


@attrs.define(eq=False)
class BackgroundTasks:
    """Runs exchanges that no caller can cancel."""

    _losable: set[asyncio.Task[Any]] = attrs.field(factory=set, init=False)
    _precious: set[asyncio.Task[Any]] = attrs.field(factory=set, init=False)
    _closing: asyncio.Task[None] | None = attrs.field(default=None, init=False)

    async def run(
        self,
        exchange: Coroutine[Any, Any, T],
        *,
        when_done: Callable[[], None],
        when_abandoned: Callable[[T], None] | None = None,
    ) -> T:
        """Await ``exchange``; if the caller is cancelled meanwhile, let it finish without him.

        Args:
            exchange: A coroutine that bounds its own duration. One with ``when_abandoned`` must return
                something whatever happens to it, its own cancellation included.
            when_done: Called when the exchange has ended, however, and whoever is still there.
            when_abandoned: Called with the result if nobody waits for it any more. An exchange that has one
                is waited for when the host closes; others are then ended.

        Raises:
            ClientClosed: The host was closed meanwhile.
        """
        task = asyncio.get_running_loop().create_task(exchange)
        kept = self._losable if when_abandoned is None else self._precious
        kept.add(task)

        def let_go(done: asyncio.Task[T]) -> None:
            kept.discard(done)
            when_done()

        task.add_done_callback(let_go)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _cancelled_from_outside():
                raise ClientClosed("The client was closed while this request was under way.") from None
            task.add_done_callback(lambda done: _hand_over(done, when_abandoned))
            raise

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` without waiting for it; it must handle its own errors. Closing ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._losable.add(task)
        task.add_done_callback(self._losable.discard)
        return task

    @property
    def in_the_air(self) -> int:
        """How many exchanges are running."""
        return len(self._losable) + len(self._precious)

    async def settle(self) -> None:
        """Wait for the exchanges that must not be lost, end the others."""
        while self._precious:
            await asyncio.wait(self._precious)
        for task in tuple(self._losable):
            task.cancel()
        while self._losable:
            await asyncio.wait(self._losable)

    async def close_once(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``close`` to its end, once, whoever asks and is cancelled while waiting for it.

        A cancelled closer still waits, then raises his cancellation: what he closes is bounded in time.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(close())
        await see_through(self._closing)


async def see_through(task: asyncio.Task[T]) -> T:
    """Wait for ``task`` to its end; a caller who is cancelled meanwhile leaves after that."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as gone:
            cancelled = gone
    if cancelled is not None:
        raise cancelled
    return task.result()


def _cancelled_from_outside() -> bool:
    caller = asyncio.current_task()
    return caller is not None and caller.cancelling() > 0


def _hand_over(task: asyncio.Task[T], when_abandoned: Callable[[T], None] | None) -> None:
    """Give an orphaned result to whom it may concern, and let an orphaned error rest."""
    if task.cancelled() or task.exception() is not None:
        return
    if when_abandoned is not None:
        when_abandoned(task.result())
