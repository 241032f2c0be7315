"""Ctrl-C, once and twice.

The first SIGINT, SIGTERM or SIGHUP cancels the scopes a command works in; the command then writes down what
it has and returns. The second ends the process on the spot.
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
from flux_async.cli.terminal import Exit

T = TypeVar("T")


@attrs.define(eq=False)
class Interruption:
    """Whether somebody wants this command to end.

    Attributes:
        happened: Whether the first signal came.
        on_first: Called when it does.
        last_words: Called before a second signal ends the process, newest first; each must be quick.
    """

    happened: bool = False
    on_first: Callable[[], None] = lambda: None
    last_words: list[Callable[[], None]] = attrs.field(factory=list)
    _group: TaskGroup | None = attrs.field(default=None, init=False)
    _cut: bool = attrs.field(default=False, init=False)
    _scopes: list[anyio.CancelScope] = attrs.field(factory=list, init=False)

    def scope(self) -> anyio.CancelScope:
        """Return a scope for what may be cut short."""
        scope = anyio.CancelScope()
        self._scopes.append(scope)
        if self._cut:
            scope.cancel()
        return scope

    def cut_short(self) -> None:
        """Cancel all scopes, those to come included."""
        self._cut = True
        for scope in self._scopes:
            scope.cancel()

    def alongside(self, watch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``watch`` beside the command, until that has ended; it must not raise."""
        if self._group is not None:
            self._group.start_soon(watch)

    async def run(self, work: Callable[[Interruption], Awaitable[T]]) -> T:
        """Run a command's coroutine, listening for signals all the while."""
        async with anyio.create_task_group() as self._group:
            await self._group.start(self._listen)
            try:
                return await work(self)
            except FluxError as error:
                failure = error  # raised below, or the group would wrap it
            finally:
                self._group.cancel_scope.cancel()
        raise failure

    async def _listen(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        try:
            with anyio.open_signal_receiver(*_signals()) as signals:
                task_status.started()
                async for _ in signals:
                    self._heard()
        except NotImplementedError:  # Windows: KeyboardInterrupt ends the command
            task_status.started()

    def _heard(self) -> None:
        if self.happened:
            for say in reversed(self.last_words):
                with contextlib.suppress(Exception):
                    say()
            os._exit(Exit.INTERRUPTED)
        self.happened = True
        # The command itself now names the tasks whose coroutines have gone; the library need not.
        logging.getLogger("flux_async").setLevel(logging.CRITICAL)
        logging.getLogger("flux_async.jobs").setLevel(logging.CRITICAL)
        self.cut_short()
        self.on_first()


def run_interruptible(work: Callable[[Interruption], Awaitable[T]]) -> T:
    """Run a command's coroutine from start to end in an event loop of its own."""

    async def command() -> T:
        return await Interruption().run(work)

    return anyio.run(command)


def _signals() -> list[signal.Signals]:
    """The signals that end a command; under ``nohup`` a lost terminal does not."""
    hangup = getattr(signal, "SIGHUP", None)
    kept = [] if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN else [hangup]
    return [signal.SIGINT, signal.SIGTERM, *kept]
