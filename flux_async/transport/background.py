"""Requests that outlive their caller.

Cancelling an httpx request can occupy a connection forever, and cancelling a submit loses the id of a paid
task. So a caller's cancellation never reaches a request: it runs in a task of its own until its own deadline,
and a cancelled caller only stops waiting. A result without a waiting caller goes to ``when_abandoned``.
``settle`` waits for submits and cancels everything else, so that nothing runs after the client is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import attrs

from flux_async.errors import ClientClosed

T = TypeVar("T")


@attrs.define(eq=False)
class BackgroundTasks:
    """Runs coroutines that no caller can cancel."""

    _cancellable: set[asyncio.Task[Any]] = attrs.field(factory=set, init=False)
    _protected: set[asyncio.Task[Any]] = attrs.field(factory=set, init=False)
    _closing: asyncio.Task[None] | None = attrs.field(default=None, init=False)

    async def run(
        self,
        work: Coroutine[Any, Any, T],
        *,
        when_done: Callable[[], None],
        when_abandoned: Callable[[T], None] | None = None,
    ) -> T:
        """Return the result of ``work``. If the caller is cancelled, ``work`` continues.

        Args:
            work: A coroutine that limits its own duration. With ``when_abandoned`` it must return a result
                even when it is cancelled.
            when_done: Called when ``work`` has ended in any way, whether or not the caller still waits.
            when_abandoned: Called with the result if the caller was cancelled. ``settle`` waits for work that
                has it and cancels other work.

        Raises:
            ClientClosed: ``settle`` cancelled the work.
        """
        task = asyncio.get_running_loop().create_task(work)
        kept = self._cancellable if when_abandoned is None else self._protected
        kept.add(task)

        def let_go(done: asyncio.Task[T]) -> None:
            kept.discard(done)
            when_done()

        task.add_done_callback(let_go)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _is_caller_cancelled():
                raise ClientClosed("The client was closed while this request was in progress.") from None
            task.add_done_callback(lambda done: _hand_over(done, when_abandoned))
            raise

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work``, which handles its own errors, without waiting for it. ``settle`` cancels it."""
        task = asyncio.get_running_loop().create_task(work)
        self._cancellable.add(task)
        task.add_done_callback(self._cancellable.discard)
        return task

    @property
    def in_flight(self) -> int:
        """Number of running tasks."""
        return len(self._cancellable) + len(self._protected)

    def abandon(self) -> None:
        """Cancel also work that must not be lost: it ends at once, with the answer that it has so far."""
        for task in tuple(self._protected):
            task.cancel()

    async def settle(self) -> None:
        """Wait for work that must not be lost, then cancel the rest."""
        while self._protected:
            await asyncio.wait(self._protected)
        for task in tuple(self._cancellable):
            task.cancel()
        while self._cancellable:
            await asyncio.wait(self._cancellable)

    async def close_once(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``close`` to its end, once for all callers.

        A caller cancelled meanwhile still waits, then raises its cancellation: ``close`` is bounded in time.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(close())
        await wait_until_done(self._closing)


async def wait_until_done(task: asyncio.Task[T]) -> T:
    """Return the result of ``task``. A cancellation of the caller is raised after the task has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as received:
            cancelled = received
    if cancelled is not None:
        raise cancelled
    return task.result()


def _is_caller_cancelled() -> bool:
    caller = asyncio.current_task()
    return caller is not None and caller.cancelling() > 0


def _hand_over(task: asyncio.Task[T], when_abandoned: Callable[[T], None] | None) -> None:
    """Pass on the result of an abandoned task; retrieve its error, so that asyncio does not log it."""
    if task.cancelled() or task.exception() is not None:
        return
    if when_abandoned is not None:
        when_abandoned(task.result())


# --- timeouts -------------------------------------------------------------------------------------------

TURNS = 100
"""Iterations of the event loop before it cancels; each reads up to 64 kB from each socket.

An answer of 4 kB in ten TLS records takes five with httpx and aiohttp; 100 iterations take about 1 ms."""


@attrs.define(eq=False)
class Deadline:
    """``asyncio.timeout(seconds)`` that waits for ``TURNS`` iterations of the event loop before it cancels.

    After a process was stopped (SIGSTOP, a closed laptop lid, a blocked event loop), the answer is in the
    socket and the timer is due in the same iteration of the event loop. ``asyncio.timeout`` cancels in it;
    the coroutine that waits for the answer would run in the next one. The lost answer would leave a submit in
    doubt.

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
