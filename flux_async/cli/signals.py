"""Ctrl-C, once and twice.

The first SIGINT, SIGTERM or SIGHUP cancels the scopes in which a command works; the command then writes its
results and returns. The second ends the process at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus

from flux_async import FluxError
from flux_async.cli.terminal import CannotPrint, Exit

T = TypeVar("T")


@attrs.define(eq=False)
class Interruption:
    """Whether a signal asked the command to end.

    Attributes:
        happened: Whether the first signal came.
        on_first: Called when it comes.
        before_exit: Called before a second signal ends the process, newest first; each must be quick.
    """

    happened: bool = False
    on_first: Callable[[], None] = lambda: None
    before_exit: list[Callable[[], None]] = attrs.field(factory=list)
    _group: TaskGroup | None = attrs.field(default=None, init=False)
    _is_cancelled: bool = attrs.field(default=False, init=False)
    _scopes: list[anyio.CancelScope] = attrs.field(factory=list, init=False)

    def scope(self) -> anyio.CancelScope:
        """Return a scope for work that a signal cancels."""
        scope = anyio.CancelScope()
        self._scopes.append(scope)
        if self._is_cancelled:
            scope.cancel()
        return scope

    def cancel(self) -> None:
        """Cancel all scopes, also those that are made later."""
        self._is_cancelled = True
        for scope in self._scopes:
            scope.cancel()

    def run_beside(self, watch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``watch`` until the command has ended; it must not raise."""
        if self._group is not None:
            self._group.start_soon(watch)

    async def run(self, work: Callable[[Interruption], Awaitable[T]]) -> T:
        """Run a command's coroutine while listening for signals."""
        async with anyio.create_task_group() as self._group:
            await self._group.start(self._listen)
            try:
                return await work(self)
            except (FluxError, CannotPrint) as error:
                failure = error  # raised below, or the group would wrap it
            finally:
                self._group.cancel_scope.cancel()
        raise failure

    async def _listen(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        # Under nohup SIGHUP is ignored: a lost terminal does not end the command.
        has_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        received = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if has_terminal else [])]
        with anyio.open_signal_receiver(*received) as signals:
            task_status.started()
            async for _ in signals:
                self.receive()

    def receive(self) -> None:
        """Handle one signal."""
        if self.happened:
            for call in reversed(self.before_exit):
                with contextlib.suppress(Exception):
                    call()
            os._exit(Exit.INTERRUPTED)
        self.happened = True
        # From here on the command itself names the paid tasks that it leaves; the library need not.
        logging.getLogger("flux_async").setLevel(logging.CRITICAL)
        logging.getLogger("flux_async.jobs").setLevel(logging.CRITICAL)
        self.cancel()
        self.on_first()


def run_interruptible(work: Callable[[Interruption], Awaitable[T]]) -> T:
    """Run a command's coroutine in an event loop of its own."""

    async def command() -> T:
        return await Interruption().run(work)

    return anyio.run(command)
