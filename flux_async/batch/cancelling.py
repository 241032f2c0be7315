"""Cancels a job that is not submitted: what was submitted is paid, and the vendor cannot cancel it."""

from __future__ import annotations

from flux_async.errors import AlreadySubmitted, JobCancelled, JournalError
from flux_async.job_state import CANCELLED, Cancelled, JobSnapshot, JobState, apply
from flux_async.journal.store import Journal, StoredJob


async def cancel_stored(journal: Journal, stored: StoredJob, at: float) -> None:
    """Cancel a job that no run works on.

    Raises:
        AlreadySubmitted: It is not pending, or no longer.
    """
    if stored.job.state is not JobState.PENDING:
        raise too_late(stored.job)
    event = Cancelled(at=at)
    try:
        await journal.record(stored.number, apply(stored.job, event), event, before=stored.job)
    except JournalError:
        now = await journal.job(stored.job.key)
        if now is None or now.job.state is JobState.PENDING:
            raise
        raise too_late(now.job) from None


def too_late(job: JobSnapshot) -> AlreadySubmitted:
    """Return the error of a job that cannot be cancelled any more."""
    state = "being submitted" if job.state is JobState.PENDING else str(job.state).replace("_", " ")
    return AlreadySubmitted(
        f"Job {job.key} cannot be cancelled: it is {state}.", charge=job.charge, task_id=job.task_id
    )


def is_cancelled(job: JobSnapshot) -> bool:
    """Whether a job was cancelled before its submit."""
    problem = job.problem
    return job.state is JobState.FAILED and problem is not None and problem.type == JobCancelled.__name__


def as_cancelled(job: JobSnapshot) -> JobCancelled:
    """Return the error of a cancelled job; an earlier attempt of it may have been charged."""
    return JobCancelled(CANCELLED, charge=job.charge, task_id=job.task_id)
