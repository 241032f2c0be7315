"""Whether a run still submits, still waits for callbacks and still waits for tasks; and what it may spend."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import anyio
import attrs

from flux_async.api.models_table import Model
from flux_async.api.stored_requests import read_model
from flux_async.batch.progress import Tally
from flux_async.clock import Wakeup
from flux_async.errors import BudgetExhausted, FluxError
from flux_async.journal.store import StoredJob
from flux_async.session import Session


@attrs.define(kw_only=True, eq=False)
class RunControl:
    """Stops and halts one run.

    Attributes:
        session: Its waiting submits are woken when the run stops.
        is_spending: Whether the run still submits and reads inputs.
        awaits_callbacks: Whether jobs in doubt still wait for their callbacks.
        is_abandoned: Whether tasks are no longer waited for.
        halted_by: The first error that concerned every job.
        reading: Cancelled when the run stops spending: no more inputs are read.
    """

    session: Session
    is_spending: bool = attrs.field(default=True, init=False)
    awaits_callbacks: bool = attrs.field(default=True, init=False)
    is_abandoned: bool = attrs.field(default=False, init=False)
    halted_by: FluxError | None = attrs.field(default=None, init=False, repr=False)
    reading: anyio.CancelScope | None = attrs.field(default=None, init=False, repr=False)
    _in_doubt: set[Wakeup] = attrs.field(factory=set, init=False, repr=False)
    _awaiting_tasks: set[asyncio.Task[Any]] = attrs.field(factory=set, init=False, repr=False)

    def stop_spending(self) -> None:
        """Submit nothing more and read no more inputs; callbacks are waited for all the same."""
        self.is_spending = False
        self.session.changed.set()
        if self.reading is not None:
            self.reading.cancel()
        for wakeup in self._in_doubt:
            wakeup.set()

    def stop(self) -> None:
        """Submit nothing more; jobs in doubt are reported as they are, and submitted tasks go on."""
        self.awaits_callbacks = False
        self.stop_spending()

    def halt(self, error: FluxError) -> None:
        """Stop because of an error that concerns every job; it is raised when all else has ended."""
        self.halted_by = self.halted_by or error
        self.stop()

    def abandon(self) -> None:
        """Leave the tasks that are waited for, now and later: the coroutines of their jobs are cancelled."""
        self.is_abandoned = True
        for waiting in self._awaiting_tasks:
            waiting.cancel()

    @contextlib.contextmanager
    def awaiting_task(self) -> Iterator[None]:
        """Hold while a job waits for its task."""
        if self.is_abandoned:
            raise asyncio.CancelledError
        me = asyncio.current_task()
        assert me is not None  # noqa: S101 - it is called by a coroutine
        self._awaiting_tasks.add(me)
        try:
            yield
        finally:
            self._awaiting_tasks.discard(me)

    @contextlib.contextmanager
    def awaiting_callback(self, wakeup: Wakeup) -> Iterator[None]:
        """Hold while a job in doubt waits; ``wakeup`` is set when the run stops."""
        self._in_doubt.add(wakeup)
        try:
            yield
        finally:
            self._in_doubt.discard(wakeup)


@attrs.define(kw_only=True, eq=False)
class Budget:
    """The credits of one run, and its POSTs under way.

    Attributes:
        control: Stopped when the budget is exhausted.
        tally: Counts the credits.
        prices: Credits per image, by model.
        max_credits: The most this run may spend; None has no bound.
    """

    control: RunControl
    tally: Tally
    prices: Mapping[Model, float] = attrs.field(repr=False)
    max_credits: float | None
    _posts: int = attrs.field(default=0, init=False)
    _no_posts: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)

    def price(self, stored: StoredJob) -> float:
        """Return what one submit of a job costs."""
        return self.prices[read_model(stored.request)]

    def reserve(self, stored: StoredJob) -> bool:
        """Count the price of a submit that is about to be made; False where this run does not spend it."""
        price, control = self.price(stored), self.control
        if self.max_credits is not None and self.tally.credits + price > self.max_credits:
            control.halted_by = control.halted_by or BudgetExhausted(
                f"The next picture would take this run over {self.max_credits:g} credits."
            )
            control.stop_spending()
        if not control.is_spending:
            return False
        self.tally.credits += price
        return True

    def give_back(self, stored: StoredJob) -> None:
        """Take back a reservation: the submit was not made."""
        self.tally.credits -= self.price(stored)

    def begin_post(self) -> None:
        """Count a POST that is about to leave."""
        self._posts += 1

    def end_post(self) -> None:
        """Count a POST whose answer is recorded."""
        self._posts -= 1
        if not self._posts:
            self._no_posts.set()

    async def all_posts_recorded(self) -> None:
        """Wait until the answers of all POSTs are recorded."""
        while self._posts:
            self._no_posts.clear()
            await self._no_posts.wait()
