"""States of a job, all that is known of it, and what each event makes of that. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from flux_async.api.models_table import ApiName
from flux_async.errors import Charge, FluxError, JobCancelled
from flux_async.job_state.events import (
    Cancelled,
    Composed,
    EchoContradicted,
    Event,
    NotChecked,
    NoTextFound,
    Problem,
    ResubmitGranted,
    ResultChosen,
    ResultLost,
    RetryGranted,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    SubmitUnknown,
    TaskEnded,
    TaskEndedRetryable,
    TaskFound,
    TaskSucceeded,
    Verified,
)
from flux_async.models import CheckResult, Echo, JobKey, TaskId


class JobState(enum.StrEnum):
    """State of a job."""

    PENDING = "pending"
    """No attempt is in progress."""
    SUBMITTING = "submitting"
    """An intent is on disk; a POST may be in flight."""
    SUBMITTED = "submitted"
    """A task exists and is paid."""
    GENERATED = "generated"
    """The vendor has the image; it is not on disk yet."""
    DONE = "done"
    """Final: the image is saved."""
    FAILED = "failed"
    """Final: there will be no image."""
    IN_DOUBT = "in_doubt"
    """Parked: a submit may have been charged, and its task is not known."""


LIVE = frozenset({JobState.SUBMITTING, JobState.SUBMITTED, JobState.IN_DOUBT})
"""States in which an attempt is live: no other may begin."""

FINAL = frozenset({JobState.DONE, JobState.FAILED})
"""States that no fact can leave."""


CANCELLED = "The job was cancelled before it was submitted."
"""The message of the error of a cancelled job."""


class IllegalTransition(FluxError):
    """An event that cannot happen to a job in its state: a bug in this package."""


@attrs.frozen(kw_only=True)
class EarlierResult:
    """A result of a job that stays while another attempt is made for a better one; fields as in a snapshot.

    Attributes:
        attempt: Which of the job's attempts made it, from 1.
    """

    attempt: int
    task_id: TaskId
    api: ApiName | None
    result_url: str | None
    origin_url: str | None
    file: str
    sha256: str | None
    submitted_at: float | None
    generated_at: float | None
    finished_at: float | None
    generation_s: float | None
    echo: Echo | None
    credits: float | None
    checked: CheckResult | None
    other_model: str | None


@attrs.frozen(kw_only=True)
class JobSnapshot:
    """All that is known of a job at one moment. Times are seconds since the epoch (UTC).

    Attributes:
        key: Its name.
        state: Its state.
        attempts: Submits intended so far.
        paid_failures: Tasks that were paid and failed.
        task_id: The task of the attempt in progress, or of the finished one.
        api: The API that this task, or the latest attempt, was submitted to; None before the first attempt,
            and where the journal lost the record of a submit.
        result_url: Address of the image at the vendor.
        origin_url: Address of the vendor's copy of the input.
        file: The image on disk, relative to the run's folder.
        sha256: Digest of that image, as 64 hex digits.
        charge: Whether the latest attempt cost credits.
        problem: The latest error.
        not_before: No submit before this time.
        submitted_at: When the task was accepted.
        generated_at: When a poll found the image.
        finished_at: When the job became final.
        generation_s: The vendor's own figure for the duration.
        echo: What the task's record shows of the request; None before a record was compared with it.
        credits: What the task has cost, by the vendor's own figure or by the balance; None if neither says.
        checked: What the checks of the image found; None before one was made.
        other_model: What another model than the request's changes in it, as a JSON merge patch.
        kept: The earlier result, while another attempt is made for a better one.
        result_of: The attempt that made the result, where it is not the latest.
        redone: Attempts that were begun for a better result.
    """

    key: JobKey
    state: JobState = JobState.PENDING
    attempts: int = 0
    paid_failures: int = 0
    task_id: TaskId | None = None
    result_url: str | None = None
    origin_url: str | None = None
    file: str | None = None
    charge: Charge = Charge.NO
    problem: Problem | None = None
    not_before: float = 0.0
    submitted_at: float | None = None
    generated_at: float | None = None
    finished_at: float | None = None
    generation_s: float | None = None
    sha256: str | None = None
    echo: Echo | None = None
    credits: float | None = None
    api: ApiName | None = None
    checked: CheckResult | None = None
    other_model: str | None = None
    kept: EarlierResult | None = None
    result_of: int | None = None
    redone: int = 0


TRANSITIONS: Mapping[tuple[JobState, type[Event]], JobState] = MappingProxyType(
    {
        (JobState.PENDING, NoTextFound): JobState.DONE,
        (JobState.PENDING, SubmitIntended): JobState.SUBMITTING,
        (JobState.PENDING, Cancelled): JobState.FAILED,
        (JobState.PENDING, TaskFound): JobState.SUBMITTED,
        (JobState.SUBMITTING, SubmitAccepted): JobState.SUBMITTED,
        (JobState.SUBMITTING, SubmitRefused): JobState.PENDING,
        (JobState.SUBMITTING, SubmitRejected): JobState.FAILED,
        (JobState.SUBMITTING, SubmitUnknown): JobState.IN_DOUBT,
        (JobState.SUBMITTING, TaskFound): JobState.SUBMITTED,
        (JobState.IN_DOUBT, TaskFound): JobState.SUBMITTED,
        (JobState.IN_DOUBT, ResubmitGranted): JobState.PENDING,
        (JobState.SUBMITTED, TaskSucceeded): JobState.GENERATED,
        (JobState.SUBMITTED, EchoContradicted): JobState.IN_DOUBT,
        (JobState.SUBMITTED, TaskEnded): JobState.FAILED,
        (JobState.SUBMITTED, TaskEndedRetryable): JobState.PENDING,
        (JobState.GENERATED, TaskSucceeded): JobState.GENERATED,
        (JobState.GENERATED, EchoContradicted): JobState.IN_DOUBT,
        (JobState.GENERATED, Saved): JobState.DONE,
        (JobState.GENERATED, TaskEnded): JobState.FAILED,
        (JobState.GENERATED, ResultLost): JobState.FAILED,
        (JobState.DONE, Saved): JobState.DONE,
        (JobState.DONE, Composed): JobState.DONE,
        (JobState.DONE, Verified): JobState.DONE,
        (JobState.DONE, NotChecked): JobState.DONE,
        (JobState.DONE, ResultChosen): JobState.DONE,
        (JobState.DONE, ResultLost): JobState.FAILED,
        (JobState.DONE, RetryGranted): JobState.PENDING,
        (JobState.FAILED, RetryGranted): JobState.PENDING,
    }
)
"""Every legal transition."""


def apply(job: JobSnapshot, event: Event) -> JobSnapshot:
    """Return the job after the event.

    Raises:
        IllegalTransition: The table does not hold it.
    """
    state = TRANSITIONS.get((job.state, type(event)))
    if state is None:
        raise IllegalTransition(
            f"{type(event).__name__} cannot happen to job {job.key}, which is {job.state}."
        )
    after = attrs.evolve(_with_fields(job, event), state=state)
    return _with_earlier(after) if state is JobState.FAILED and after.kept is not None else after


def _with_fields(job: JobSnapshot, event: Event) -> JobSnapshot:  # noqa: C901, PLR0911, PLR0912 - one arm per event
    """Return the job with the fields that an event sets."""
    at = event.at
    match event:
        case NoTextFound():
            return _without_task(job, event)
        case SubmitIntended(api=api):  # until it is answered it may be charged
            job = attrs.evolve(job, attempts=job.attempts + 1, charge=Charge.MAYBE, problem=None, api=api)
            return attrs.evolve(job, task_id=None, echo=None, credits=None, checked=None, result_of=None)
        case TaskFound(task_id=task_id, api=api, echo=echo):
            job = attrs.evolve(job, charge=Charge.YES, submitted_at=at, problem=None)
            return attrs.evolve(job, task_id=task_id, api=api, echo=echo)
        case SubmitAccepted(task_id=task_id):
            return attrs.evolve(job, task_id=task_id, charge=Charge.YES, submitted_at=at, problem=None)
        case SubmitRefused(problem=problem, not_before=not_before):
            return attrs.evolve(job, charge=Charge.NO, problem=problem, not_before=not_before)
        case SubmitRejected(problem=problem):
            return attrs.evolve(job, charge=Charge.NO, problem=problem, finished_at=at)
        case SubmitUnknown(problem=problem, task_id=named):
            return attrs.evolve(job, charge=Charge.MAYBE, problem=problem, task_id=named)
        case EchoContradicted(problem=problem):  # nothing of the other task is kept
            job = attrs.evolve(job, charge=Charge.MAYBE, problem=problem, task_id=None, echo=None)
            job = attrs.evolve(job, credits=None)
            return attrs.evolve(job, result_url=None, origin_url=None, generation_s=None, generated_at=None)
        case ResubmitGranted():
            return attrs.evolve(job, not_before=0.0)
        case TaskSucceeded(result_url=url, origin_url=origin, generation_s=took_s, echo=echo, credits=paid):
            echo, paid = echo or job.echo, job.credits if paid is None else paid
            job = attrs.evolve(job, result_url=url, origin_url=origin, generation_s=took_s, credits=paid)
            return attrs.evolve(job, echo=echo, generated_at=at, problem=None)
        case TaskEnded(problem=problem, charge=charge, credits=paid):
            failures = job.paid_failures + 1
            job = attrs.evolve(job, problem=problem, charge=charge, credits=paid)
            return attrs.evolve(job, paid_failures=failures, finished_at=at)
        case TaskEndedRetryable(problem=problem, credits=paid):
            failures = job.paid_failures + 1
            job = attrs.evolve(job, problem=problem, credits=paid)
            return attrs.evolve(job, paid_failures=failures, not_before=0.0)
        case Saved(file=file, sha256=sha256):
            checked = None if job.task_id else job.checked  # a copy of an original is the same again
            return attrs.evolve(job, file=file, sha256=sha256, finished_at=at, problem=None, checked=checked)
        case Composed() | Verified() | NotChecked():
            return _with_check(job, event)
        case Cancelled():
            return attrs.evolve(job, problem=Problem.of(JobCancelled(CANCELLED)), finished_at=at)
        case ResultLost(problem=problem):
            return attrs.evolve(job, problem=problem, finished_at=at)
        case ResultChosen(keeps_earlier=keeps_earlier):
            return _with_earlier(job) if keeps_earlier else _with_latest(job, event)
        case _:  # RetryGranted
            job = _with_kept(job) if job.state is JobState.DONE else job
            job = attrs.evolve(job, finished_at=None, not_before=0.0, charge=Charge.NO)
            return attrs.evolve(job, file=None, sha256=None, checked=None, other_model=event.other_model)


def _without_task(job: JobSnapshot, event: NoTextFound) -> JobSnapshot:
    """Return a job that is done without a task; nothing is left of an earlier one that failed."""
    return JobSnapshot(
        key=job.key,
        attempts=job.attempts,
        paid_failures=job.paid_failures,
        file=event.file,
        sha256=event.sha256,
        finished_at=event.at,
        credits=0.0,
        checked=CheckResult(verdict=event.verdict, saved_credits=event.saved_credits),
    )


_OF_RESULT = tuple(a.name for a in attrs.fields(EarlierResult) if a.name != "attempt")


def _with_kept(job: JobSnapshot) -> JobSnapshot:
    """Return a job that is done and about to be submitted again, with its image kept, if that is here."""
    job = attrs.evolve(job, redone=job.redone + 1)
    if job.file is None or job.task_id is None or job.kept is not None:
        return job
    values = {name: getattr(job, name) for name in _OF_RESULT}
    return attrs.evolve(job, kept=EarlierResult(attempt=job.result_of or job.attempts, **values))


def _with_earlier(job: JobSnapshot) -> JobSnapshot:
    """Return a job with its earlier result, which is paid; the problem of the latest attempt stays."""
    kept = job.kept
    if kept is None:
        raise IllegalTransition(f"Job {job.key} has no earlier result.")
    values = {name: getattr(kept, name) for name in _OF_RESULT}
    job = attrs.evolve(job, state=JobState.DONE, charge=Charge.YES, kept=None, result_of=kept.attempt)
    return attrs.evolve(job, **values)


def _with_latest(job: JobSnapshot, event: ResultChosen) -> JobSnapshot:
    """Return a job with its latest result, whose files have their final names now."""
    checked = None if job.checked is None else attrs.evolve(job.checked, vendor_file=event.vendor_file)
    return attrs.evolve(job, file=event.file, checked=checked, kept=None)


def _with_check(job: JobSnapshot, event: Composed | Verified | NotChecked) -> JobSnapshot:
    """Return the job with what a check found."""
    checked = job.checked or CheckResult()
    match event:
        case Composed(file=file, sha256=sha256):
            checked = attrs.evolve(
                checked,
                is_preserved=event.reason is None,
                not_preserved=event.reason,
                vendor_file=event.vendor_file,
                replaced=event.replaced,
                outlines=event.outlines,
                verdict=None if event.reason is None else checked.verdict,  # it was about another image
                problem=None,
            )
            return attrs.evolve(job, file=file, sha256=sha256, checked=checked)
        case Verified(verdict=verdict):
            return attrs.evolve(job, checked=attrs.evolve(checked, verdict=verdict, problem=None))
        case _:  # NotChecked
            return attrs.evolve(job, checked=attrs.evolve(checked, problem=event.problem))


_RANKS = {"clean": 0, "no_text": 0, "unsure": 1, "text_left": 2, "cropped": 3, "damaged": 4}
"""Verdicts, the best first. A result that was not verified may be anything: it counts as unsure."""


BAD_VERDICTS = frozenset({"text_left", "cropped", "damaged"})
"""Verdicts with which another attempt may be worth its price."""


def earlier_is_better(job: JobSnapshot) -> bool:
    """Return whether the earlier result of a job is better than its latest; of equal ones the latest counts.

    Of two with text left the one with less is better, of two that are damaged the one with more background.
    """
    earlier = None if job.kept is None else job.kept.checked
    return job.kept is not None and _rank(earlier) < _rank(job.checked)


def _rank(checked: CheckResult | None) -> tuple[int, float]:
    found = {} if checked is None or checked.verdict is None else checked.verdict
    rank = _RANKS.get(verdict_in(found), _RANKS["unsure"])
    if rank == _RANKS["text_left"]:
        return rank, found.get("text_left") or 0.0
    return rank, -(found.get("background_kept") or 0.0) if rank == _RANKS["damaged"] else 0.0


def verdict_in(found: Mapping[str, Any]) -> str:
    """Return the verdict in what ``verify`` found: its kind, or ``no_text`` for an original without text."""
    return "no_text" if found.get("no_text") and found.get("kind") == "clean" else str(found.get("kind"))


def verdict_of(job: JobSnapshot) -> str | None:
    """Return the verdict about a job's image, as :func:`verdict_in`; None before it was verified."""
    return None if job.checked is None or job.checked.verdict is None else verdict_in(job.checked.verdict)
