"""Makes the events of the stream from what the journal has recorded of a job, and from its outcome."""

from __future__ import annotations

from typing import Any, Literal

from flux_async import events
from flux_async.api.stored_requests import read_names
from flux_async.errors import Charge, FluxError
from flux_async.events import FluxEvent
from flux_async.images import without_query
from flux_async.job_state import (
    FINAL,
    Composed,
    EchoContradicted,
    Event,
    JobSnapshot,
    NotChecked,
    NoTextFound,
    Problem,
    ResubmitGranted,
    RetryGranted,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    SubmitUnknown,
    TaskEndedRetryable,
    TaskFound,
    Verified,
    verdict_in,
    verdict_of,
)
from flux_async.journal.store import StoredJob
from flux_async.models import Failed, InDoubt, Outcome, Succeeded


def added(stored: StoredJob, at: float) -> events.JobAdded:
    """Return the event of a job that a run has taken on."""
    return events.JobAdded(at=at, **_about(stored, stored.job), state=stored.job.state)


def event_of(  # noqa: C901, PLR0911, PLR0912 - one arm per event
    stored: StoredJob, job: JobSnapshot, happened: Event, price: float | None
) -> FluxEvent | None:
    """Return the event of what was recorded; None if another event reports it.

    Args:
        stored: The job, of which only what never changes is read.
        job: The job after the event.
        happened: What was recorded.
        price: The credits counted for the latest submit, if this run made it.
    """
    about: dict[str, Any] = {"at": happened.at, **_about(stored, job)}
    match happened:
        case SubmitIntended():
            return events.SubmitStarted(**about, added_at=stored.added_at)
        case TaskFound():
            return events.Submitted(**about, is_found=True)
        case SubmitAccepted():
            return events.Submitted(**about, credits=price)
        case SubmitUnknown(problem=problem):
            return events.Submitted(**about, charge=Charge.MAYBE, credits=price, **_why(problem))
        case EchoContradicted(problem=problem):
            return events.Submitted(**about, charge=Charge.MAYBE, **_why(problem))
        case SubmitRefused(problem=problem):
            seconds = max(0.0, happened.not_before - happened.at)
            return events.Retried(**about, what="submit", seconds=seconds, **_why(problem))
        case TaskEndedRetryable(problem=problem):
            return events.Retried(**about, what="task", **_why(problem))
        case RetryGranted():
            return events.Retried(**about, what="task", reason="another attempt is made for a better image")
        case ResubmitGranted():
            return events.Retried(**about, what="submit", reason="resubmitting a submit in doubt is allowed")
        case Saved(file=file, sha256=sha256) if file is not None:
            return events.Downloaded(**about, file=file, sha256=sha256)
        case Composed(reason=reason, replaced=replaced):
            return events.Preserved(**about, reason=reason, replaced=replaced)
        case Verified(verdict=verdict) | NoTextFound(verdict=verdict):
            return events.Verified(**about, verdict=verdict_in(verdict))
        case NotChecked(problem=words):
            return events.Verified(**about, reason=words)
    return None  # an end of the task: Settled reports it


def download_retried(stored: StoredJob, error: FluxError, seconds: float, at: float) -> events.Retried:
    """Return the event of a download that failed and is made again in ``seconds``."""
    about = _about(stored, stored.job) | events.why(error)
    return events.Retried(at=at, **about, what="download", seconds=seconds)


def settled(stored: StoredJob, outcome: Outcome, at: float) -> events.Settled:
    """Return the event of a job's outcome."""
    job = stored.job
    return events.Settled(
        at=at,
        **_about(stored, job),
        outcome=_NAMES[type(outcome)],
        is_final=job.state in FINAL,
        added_at=stored.added_at,
        charge=job.charge,
        credits=job.credits,
        submitted_at=job.submitted_at,
        generated_at=job.generated_at,
        generation_s=job.generation_s,
        file=job.file,
        verdict=verdict_of(job),
        **({} if isinstance(outcome, Succeeded) else _why_not(outcome.error, job.problem)),
    )


KINDS: dict[type[Event], type[FluxEvent]] = {
    SubmitIntended: events.SubmitStarted,
    SubmitAccepted: events.Submitted,
    TaskFound: events.Submitted,
    SubmitUnknown: events.Submitted,
    EchoContradicted: events.Submitted,
    SubmitRefused: events.Retried,
    TaskEndedRetryable: events.Retried,
    ResubmitGranted: events.Retried,
    RetryGranted: events.Retried,
    Saved: events.Downloaded,
    Composed: events.Preserved,
    Verified: events.Verified,
    NoTextFound: events.Verified,
    NotChecked: events.Verified,
}
"""The class of the event of what was recorded: one that no observer wants is not made."""

_NAMES: dict[type, Literal["succeeded", "failed", "in_doubt"]] = {
    Succeeded: "succeeded",
    Failed: "failed",
    InDoubt: "in_doubt",
}


def _about(stored: StoredJob, job: JobSnapshot) -> dict[str, Any]:
    image, model = read_names(stored.submitted)
    image = stored.source or image
    return {
        "job": job.key,
        "image": without_query(image) if image else None,
        "model": model,
        "api": job.api,
        "task_id": job.task_id,
        "attempt": job.attempts,
        "trace": stored.trace,
    }


def _why(problem: Problem) -> dict[str, Any]:
    return {"error": problem.type, "reason": problem.message}


def _why_not(error: FluxError, problem: Problem | None) -> dict[str, Any]:
    """Return why a job has no image. The error of an earlier process is known by ``problem`` alone."""
    if type(error) is FluxError and problem is not None:
        reason = error.message.removeprefix(f"{problem.type}: ")
        return {"error": problem.type, "reason": reason, "code": problem.code}
    return events.why(error) | {"code": Problem.of(error).code}
