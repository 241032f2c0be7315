"""How far a batch is: one frozen value for whoever watches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import attrs

from flux_async.errors import Charge, RequestNotSent
from flux_async.job_state import (
    Event,
    JobSnapshot,
    JobState,
    SubmitIntended,
    TaskEnded,
    TaskEndedRetryable,
)
from flux_async.session import Session

logger: logging.Logger = logging.getLogger("flux_async")


@attrs.frozen(kw_only=True)
class BatchProgress:
    """A batch at one moment.

    Attributes:
        seen: Jobs this run was given so far, those of earlier runs that it takes up included.
        submits: Submits this run has made; one that never reached the vendor is none.
        generating: Tasks at the vendor.
        fetching: Pictures on their way to disk.
        retrying: Those of them whose download failed and is tried again.
        succeeded: Jobs that have their picture.
        failed: Jobs that ended, or cannot go on in this run.
        in_doubt: Jobs whose submit may have been charged.
        waiting: Jobs in doubt that wait for their callback.
        credits: Credits this run has spent by the price list, submits in doubt and failed tasks included.
        refundable: The part of ``credits`` that went to failed tasks; the vendor usually returns it.
        elapsed_s: Seconds since the run began.
        pause_left_s: Seconds until submits are tried again, where all of them pause; else 0.
        pause_reason: Why they pause, in one sentence without its full stop; else empty.
    """

    seen: int = 0
    submits: int = 0
    generating: int = 0
    fetching: int = 0
    retrying: int = 0
    succeeded: int = 0
    failed: int = 0
    in_doubt: int = 0
    waiting: int = 0
    credits: float = 0.0
    refundable: float = 0.0
    elapsed_s: float = 0.0
    pause_left_s: float = 0.0
    pause_reason: str = ""


class ProgressObserver(Protocol):
    """Told at every change; what it raises is logged and goes no further."""

    def __call__(self, progress: BatchProgress, /) -> None:
        """Look at the batch."""
        ...


@attrs.define
class Tally:
    """Keeps the count from the events of all jobs."""

    seen: int = 0
    submits: int = 0
    credits: float = 0.0
    refundable: float = 0.0
    _states: Counter[JobState] = attrs.field(factory=Counter)
    _ended: Counter[str] = attrs.field(factory=Counter)

    def moved(self, before: JobState, after: JobSnapshot, event: Event, price: Callable[[], float]) -> None:
        """Count one event of one job; ``price`` is called only where an event changes what was spent."""
        self._states[before] -= 1
        self._states[after.state] += 1
        if isinstance(event, SubmitIntended):
            self.submits += 1
        elif before is JobState.SUBMITTING and after.charge is Charge.NO:
            self.credits -= price()  # it was counted when the submit was let go
            if after.problem is not None and after.problem.type == RequestNotSent.__name__:
                self.submits -= 1
        elif isinstance(event, TaskEnded | TaskEndedRetryable):
            self.refundable += price()

    def taken_up(self, state: JobState) -> None:
        """Count a job that this run begins to drive."""
        self.seen += 1
        self._states[state] += 1

    def put_back(self, state: JobState) -> None:
        """Take back that a job was taken up."""
        self.seen -= 1
        self._states[state] -= 1

    def refused(self) -> None:
        """Count an input that is no request."""
        self.seen += 1
        self._ended["Failed"] += 1

    def ended(self, how: str, state: JobState) -> None:
        """Count an outcome."""
        self._states[state] -= 1
        self._ended[how] += 1

    def progress(self, elapsed_s: float) -> BatchProgress:
        """Return the value for observers."""
        return BatchProgress(
            seen=self.seen,
            submits=self.submits,
            generating=self._states[JobState.SUBMITTED],
            fetching=self._states[JobState.GENERATED],
            succeeded=self._ended["Succeeded"],
            failed=self._ended["Failed"],
            in_doubt=self._ended["InDoubt"],
            waiting=self._states[JobState.IN_DOUBT],
            credits=self.credits,
            refundable=self.refundable,
            elapsed_s=elapsed_s,
        )


@attrs.define(kw_only=True, eq=False)
class ProgressReporter:
    """Counts the events of one run and notifies its observer.

    Attributes:
        session: Has the clock and the pauses.
        observer: Is called at every change.
        expects_callbacks: Whether jobs in doubt wait for callbacks.
        began: When the run began, in monotonic seconds.
        retrying: How many downloads failed and are tried again.
        tally: Keeps the count.
    """

    session: Session
    observer: ProgressObserver | None = attrs.field(repr=False)
    expects_callbacks: bool = False
    began: float = 0.0
    retrying: int = 0
    tally: Tally = attrs.field(factory=Tally, init=False)

    def current(self) -> BatchProgress:
        """Return how far the run is."""
        now = self.session.clock.monotonic()
        progress = self.tally.progress(now - self.began)
        if not self.expects_callbacks:  # no callback can settle a doubt
            in_doubt = progress.in_doubt + progress.waiting
            progress = attrs.evolve(progress, waiting=0, in_doubt=in_doubt)
        if self.retrying:
            progress = attrs.evolve(progress, retrying=self.retrying)
        pause = self.session.current_pause()
        if pause is None or pause.error is None:
            return progress
        reason = pause.error.message.rstrip(".")
        return attrs.evolve(progress, pause_left_s=pause.delay(now), pause_reason=reason)

    def moved(self, before: JobState, after: JobSnapshot, event: Event, price: Callable[[], float]) -> None:
        """Count one event of one job; ``price`` is called only where an event changes what was spent."""
        self.tally.moved(before, after, event, price)
        self.notify()

    def notify(self) -> None:
        """Call the observer; what it raises is logged and goes no further."""
        if self.observer is None:
            return
        try:
            self.observer(self.current())
        except Exception:
            logger.exception("a progress observer failed")
