"""Whether a run still submits, waits for callbacks and waits for tasks; and what it may spend."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import anyio
import attrs

from flux_async.batch.active_job import ActiveJob
from flux_async.batch.progress import ProgressReporter, Tally
from flux_async.clock import Wakeup
from flux_async.errors import BudgetExhausted, FluxError
from flux_async.events import Halted, why
from flux_async.policy.price import PriceGuard
from flux_async.policy.rate_limit import Pause
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
        """Submit nothing more and read no more inputs; callbacks are still waited for."""
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
        self.record_halt(error)
        self.stop()

    def record_halt(self, error: FluxError) -> None:
        """Keep the first error that halts the run, and report it."""
        if self.halted_by is None:
            self.halted_by = error
            self.session.events.emit(Halted(at=self.session.clock.wall(), what="run", **why(error)))

    def abandon(self) -> None:
        """Stop waiting for tasks, now and later: the coroutines of their jobs are cancelled."""
        self.is_abandoned = True
        for waiting in self._awaiting_tasks:
            waiting.cancel()

    @contextlib.contextmanager
    def awaiting_task(self) -> Iterator[None]:
        """Hold while a job waits for its task."""
        me = asyncio.current_task()
        if self.is_abandoned or me is None:
            raise asyncio.CancelledError
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
    """The credits of one run, and its POSTs in flight.

    Attributes:
        control: Stopped when the budget is exhausted.
        tally: Counts the credits.
        guard: The price of each model.
        max_credits: The most this run may spend; None has no bound.
    """

    control: RunControl
    tally: Tally
    guard: PriceGuard = attrs.field(repr=False)
    max_credits: float | None
    _posts: int = attrs.field(default=0, init=False)
    _no_posts: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)

    def reserve(self, job: ActiveJob) -> bool:
        """Count the price of a submit that is about to be made; False if this run does not spend it."""
        price = self.guard.price(job.model)
        if self.max_credits is not None and self.tally.credits + price > self.max_credits:
            self.stop(
                BudgetExhausted(f"The next image would take this run over {self.max_credits:g} credits.")
            )
        if not self.control.is_spending:
            return False
        self.tally.credits += price
        job.spent = price
        return True

    def correct(self, job: ActiveJob, price: float) -> None:
        """Count what a submit has really cost."""
        self.tally.credits += price - (job.spent or 0.0)
        job.spent = price

    def give_back(self, job: ActiveJob) -> None:
        """Take back a reservation: the submit was not made."""
        self.tally.credits -= job.spent or 0.0
        job.spent = None

    def stop(self, error: FluxError) -> None:
        """Submit nothing more, because of what it would cost; ``error`` is raised when all else has ended."""
        self.control.record_halt(error)
        self.control.stop_spending()

    def begin_post(self) -> None:
        """Count a POST that is about to be made."""
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


@attrs.define(kw_only=True, eq=False)
class PauseWatch:
    """Halts a run when the service has been away for longer than the run waits.

    Submits, polls and uploads record their own failures to connect, and pause together. No image fails by a
    pause: jobs that were not submitted stay pending, and submitted ones are left to the next run.

    Attributes:
        session: Has the pauses.
        patience_s: Seconds the run waits.
        control: Halts the run.
        progress: Notified when a pause has begun or ended.
    """

    session: Session
    patience_s: float
    control: RunControl
    progress: ProgressReporter
    _began: float = attrs.field(init=False)
    _reported: tuple[float | None, float] | None = attrs.field(default=None, init=False)
    _halted: list[Pause] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._began = self.session.clock.monotonic()

    async def run(self) -> None:
        """Watch until cancelled, or until a halt leaves nothing to wait for."""
        session = self.session
        while True:
            now = session.clock.monotonic()
            self._report()
            at, pause = min(
                ((self._gives_up_at(pause), pause) for pause in session.pauses), key=lambda end: end[0]
            )
            if now < at:
                await session.changed.wait(session.clock, at - now)
                continue
            began = max(self._began, now if pause.since is None else pause.since)
            # Nothing was answered since the pause began, so tasks cannot be polled either.
            is_unreachable = pause.is_outage and session.answered_at < began
            halt = pause.as_halt(now - began)
            self.control.halt(halt)
            if is_unreachable:
                self.control.abandon()
                return
            self._halted.append(pause)

    def _report(self) -> None:
        pause = self.session.current_pause()
        seen = None if pause is None else (pause.since, pause.until)
        if seen != self._reported:
            self._reported = seen
            self.progress.notify()

    def _gives_up_at(self, pause: Pause) -> float:
        if any(pause is halted for halted in self._halted):
            return math.inf
        reached = self.session.answered_at >= self._began
        return pause.gives_up_at(self._began, self.patience_s, reached=reached)
