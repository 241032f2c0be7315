"""Counts the events of a run and reports them to its observer as one frozen value."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import attrs

from flux_async.batch.notebook import NotebookBar, to_html
from flux_async.errors import RequestNotSent
from flux_async.job_state import (
    Composed,
    Event,
    JobSnapshot,
    JobState,
    NotChecked,
    NoTextFound,
    ResultChosen,
    ResultLost,
    RetryGranted,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    TaskEnded,
    TaskEndedRetryable,
    TaskSucceeded,
    Verified,
    verdict_in,
    verdict_of,
)
from flux_async.session import Session

logger: logging.Logger = logging.getLogger("flux_async")

_ENDS = (TaskSucceeded, TaskEnded, TaskEndedRetryable)


@attrs.frozen(kw_only=True)
class BatchProgress:
    """A batch at one moment.

    Attributes:
        seen: Jobs this run was given so far, those of earlier runs included.
        submits: Submits this run has made; one that never reached the vendor does not count.
        checking_text: Originals that are being checked for text, or wait for a worker process.
        skipped: Images that were not submitted, as their originals have no text.
        saved_credits: What those would have cost.
        not_checked_for_text: Images that were submitted without that check, as it failed.
        generating: Tasks at the vendor.
        fetching: Images that are being downloaded.
        retrying: Those of them whose download failed and is tried again.
        preserving: Images that are being composed with their originals, or wait for a worker process.
        verifying: Images that are being verified, or wait for one.
        preserved: Images that this run has composed.
        not_preserved: Images that could not be composed; the vendor's image is their result.
        not_checked: Images of which a check could not be made; the next run tries again.
        verdicts: Images that this run has verified, by verdict; of several results of one image, the better.
        tried_again: Attempts that this run has made for a better image.
        succeeded: Jobs that have their image.
        failed: Jobs that ended, or cannot go on in this run.
        in_doubt: Jobs whose submit may have been charged.
        waiting: Jobs in doubt that wait for their callback.
        credits: Credits this run has spent, submits in doubt and failed tasks included. What was not measured
            counts with the price that the run has measured, else with the expected one.
        measured: The part of ``credits`` that the vendor's own figures or the balance have shown.
        refundable: The part of ``credits`` that was spent on failed tasks; the vendor usually returns it.
        elapsed_s: Seconds since the run began.
        pause_left_s: Seconds until submits are tried again during a pause of all submits; else 0.
        pause_reason: Why they pause, in one sentence without its full stop; else empty.
    """

    seen: int = 0
    submits: int = 0
    checking_text: int = 0
    skipped: int = 0
    saved_credits: float = 0.0
    not_checked_for_text: int = 0
    generating: int = 0
    fetching: int = 0
    retrying: int = 0
    preserving: int = 0
    verifying: int = 0
    preserved: int = 0
    not_preserved: int = 0
    not_checked: int = 0
    verdicts: Mapping[str, int] = attrs.field(factory=dict)
    tried_again: int = 0
    succeeded: int = 0
    failed: int = 0
    in_doubt: int = 0
    waiting: int = 0
    credits: float = 0.0
    measured: float = 0.0
    refundable: float = 0.0
    elapsed_s: float = 0.0
    pause_left_s: float = 0.0
    pause_reason: str = ""

    def _repr_html_(self) -> str:
        """Return a bar, for notebooks."""
        return to_html(self)


class ProgressObserver(Protocol):
    """Called at every change; what it raises is logged and goes no further."""

    def __call__(self, progress: BatchProgress, /) -> None:
        """Receive how far the batch is."""
        ...


@attrs.define(kw_only=True)
class Tally:
    """Counts of one run, made from the events of its jobs.

    Attributes:
        expects_callbacks: Whether a job in doubt waits for its callback. Without callbacks nothing can settle
            it, so it counts as in doubt at once.
        failures: Tasks that ended without an image.
    """

    expects_callbacks: bool = False
    seen: int = 0
    submits: int = 0
    retrying: int = 0
    credits: float = 0.0
    measured: float = 0.0
    refundable: float = 0.0
    failures: int = 0
    checking_text: int = 0
    skipped: int = 0
    saved_credits: float = 0.0
    not_checked_for_text: int = 0
    preserving: int = 0
    verifying: int = 0
    preserved: int = 0
    not_preserved: int = 0
    not_checked: int = 0
    verdicts: Counter[str] = attrs.field(factory=Counter)
    tried_again: int = 0
    _states: Counter[JobState] = attrs.field(factory=Counter)
    _ended: Counter[str] = attrs.field(factory=Counter)

    def add_job(self, state: JobState) -> None:
        """Count a job that this run begins to work on."""
        self.seen += 1
        self._states[state] += 1

    def remove_job(self, state: JobState) -> None:
        """Take back :meth:`add_job`."""
        self.seen -= 1
        self._states[state] -= 1

    def add_refused(self) -> None:
        """Count an input that is no request."""
        self.seen += 1
        self._ended["Failed"] += 1

    @property
    def generating(self) -> int:
        """Tasks at the vendor."""
        return self._states[JobState.SUBMITTED]

    def add_event(
        self, before: JobState, after: JobSnapshot, event: Event, spent: float | None
    ) -> float | None:
        """Count one event of one job; return what is counted for its latest submit from then on.

        Args:
            before: The job's state before the event.
            after: The job after the event.
            event: The event.
            spent: The credits counted for its latest submit; None if this run did not make it.
        """
        self._states[before] -= 1
        self._states[after.state] += 1
        self._add_finding(after, event)
        if isinstance(event, SubmitIntended):
            self.submits += 1
        elif isinstance(event, SubmitRefused | SubmitRejected):
            self.credits -= spent or 0.0  # it was counted when the submit got its permit
            spent = None
            if after.problem is not None and after.problem.type == RequestNotSent.__name__:
                self.submits -= 1
        elif before is JobState.SUBMITTED and isinstance(event, _ENDS):
            self.failures += not isinstance(event, TaskSucceeded)
            if spent is None:
                return None
            if event.credits is not None:
                self.credits += event.credits - spent
                self.measured += event.credits
                spent = event.credits
            self.refundable += 0.0 if isinstance(event, TaskSucceeded) else spent
        return spent

    def add_verdict(self, job: JobSnapshot) -> None:
        """Count the verdict of an image that an earlier run, or an earlier attempt, was given."""
        if (verdict := verdict_of(job)) is not None:
            self.verdicts[verdict] += 1

    def _add_finding(self, job: JobSnapshot, event: Event) -> None:
        """Count what an event shows of an image; of several results of one image, the better."""
        match event:
            case NoTextFound(saved_credits=credits_):
                self.skipped += 1
                self.saved_credits += credits_
            case Composed(reason=reason):
                self.preserved += reason is None
                self.not_preserved += reason is not None
            case Verified(verdict=verdict):
                self.verdicts[verdict_in(verdict)] += 1
            case NotChecked():
                self.not_checked += 1
            case RetryGranted():
                self.tried_again += 1
                checked = None if job.kept is None else job.kept.checked
                if checked is not None and checked.verdict is not None:
                    self.verdicts[verdict_in(checked.verdict)] -= 1
            case ResultChosen(keeps_earlier=True, loses=loses) if loses is not None:
                self.verdicts[loses] -= 1
                self.add_verdict(job)
            case SubmitRejected() | TaskEnded() | ResultLost() if job.state is JobState.DONE:
                self.add_verdict(job)  # the attempt has failed, and the earlier image stays

    def add_outcome(self, how: str, state: JobState) -> None:
        """Count an outcome."""
        self._states[state] -= 1
        self._ended[how] += 1

    def progress(
        self, *, elapsed_s: float, pause_left_s: float = 0.0, pause_reason: str = ""
    ) -> BatchProgress:
        """Return the value for observers."""
        in_doubt, waiting = self._ended["InDoubt"], self._states[JobState.IN_DOUBT]
        if not self.expects_callbacks:
            in_doubt, waiting = in_doubt + waiting, 0
        return BatchProgress(
            seen=self.seen,
            submits=self.submits,
            checking_text=self.checking_text,
            skipped=self.skipped,
            saved_credits=self.saved_credits,
            not_checked_for_text=self.not_checked_for_text,
            generating=self.generating,
            fetching=self._states[JobState.GENERATED],
            retrying=self.retrying,
            preserving=self.preserving,
            verifying=self.verifying,
            preserved=self.preserved,
            not_preserved=self.not_preserved,
            not_checked=self.not_checked,
            verdicts={verdict: count for verdict, count in self.verdicts.items() if count},
            tried_again=self.tried_again,
            succeeded=self._ended["Succeeded"],
            failed=self._ended["Failed"],
            in_doubt=in_doubt,
            waiting=waiting,
            credits=self.credits,
            measured=self.measured,
            refundable=self.refundable,
            elapsed_s=elapsed_s,
            pause_left_s=pause_left_s,
            pause_reason=pause_reason,
        )


@attrs.define(kw_only=True, eq=False)
class ProgressReporter:
    """Reports the counts of one run to its observer.

    Attributes:
        session: Has the clock and the pauses.
        tally: Has the counts.
        observer: Is called at every change.
        began: When the run began, in monotonic seconds.
        ended: When it ended, or None.
    """

    session: Session
    tally: Tally
    observer: ProgressObserver | None = attrs.field(repr=False)
    began: float = 0.0
    ended: float | None = None

    def end(self) -> None:
        """Stop the clock of the run; a bar in a notebook shows its last state, also of a run left early."""
        self.ended = self.session.clock.monotonic()
        if isinstance(self.observer, NotebookBar):
            self._call(self.observer.show)

    def current(self) -> BatchProgress:
        """Return how far the run is."""
        now = self.session.clock.monotonic() if self.ended is None else self.ended
        pause = self.session.current_pause()
        elapsed_s = now - self.began
        if pause is None or pause.error is None:
            return self.tally.progress(elapsed_s=elapsed_s)
        reason = pause.error.message.rstrip(".")
        return self.tally.progress(elapsed_s=elapsed_s, pause_left_s=pause.delay(now), pause_reason=reason)

    @contextlib.contextmanager
    def checking(self, kind: Literal["checking_text", "preserving", "verifying"]) -> Iterator[None]:
        """Count an image that is checked while this is held."""
        tally = self.tally
        tally.checking_text += kind == "checking_text"
        tally.preserving += kind == "preserving"
        tally.verifying += kind == "verifying"
        self.notify()
        try:
            yield
        finally:
            tally.checking_text -= kind == "checking_text"
            tally.preserving -= kind == "preserving"
            tally.verifying -= kind == "verifying"

    def notify(self) -> None:
        """Call the observer; what it raises is logged and goes no further."""
        if self.observer is not None:
            self._call(self.observer)

    def _call(self, observer: ProgressObserver) -> None:
        try:
            observer(self.current())
        except Exception:
            logger.exception("a progress observer failed")
