"""The next step of a job, and what the end of its process or a lost record is for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import attrs

from flux_async.api.models_table import AnyModel, ApiName
from flux_async.errors import Charge
from flux_async.job_state.events import (
    Event,
    Problem,
    RetryGranted,
    SubmitIntended,
    SubmitUnknown,
    TaskEndedRetryable,
)
from flux_async.job_state.states import BAD_VERDICTS, IllegalTransition, JobSnapshot, JobState, verdict_of
from flux_async.models import CheckResult, TaskId


@attrs.frozen
class CheckForText:
    """Check the original for text, before it is paid to remove it."""


@attrs.frozen(kw_only=True)
class Begin:
    """Submit: record the intent, not before ``not_before``, then POST."""

    not_before: float = 0.0


@attrs.frozen
class Submit:
    """POST, at once: the intent is on disk."""


@attrs.frozen(kw_only=True)
class AwaitTask:
    """Wait for the task's end, by polls of the API that has it."""

    task_id: TaskId
    api: ApiName


@attrs.frozen
class AwaitCallback:
    """Wait for a callback that names the task of a submit in doubt."""


@attrs.frozen(kw_only=True)
class Fetch:
    """Download the image."""

    task_id: TaskId
    api: ApiName
    result_url: str


@attrs.frozen
class Compose:
    """Compose the image with its original."""


@attrs.frozen
class Verify:
    """Verify the image."""


@attrs.frozen
class Choose:
    """Choose the better one of the latest result and the earlier one."""


@attrs.frozen(kw_only=True)
class SubmitAgain:
    """Submit once more for a better image, with another model or, if it is None, that of the request."""

    model: AnyModel | None = None


@attrs.frozen(kw_only=True)
class WantedChecks:
    """The checks that a run makes of its images, in this order; ``skip_textless`` before their submit.

    Attributes:
        skip_textless: Look for text in the original before it is paid.
        preserve: Compose the result with its original.
        verify: Verify the result.
        until_clean: The most attempts for an image whose verdict is no good, the first one included.
        escalate: The models of the attempts after the first one; the last is used for all that follow.
    """

    skip_textless: bool = False
    preserve: bool = False
    verify: bool = False
    until_clean: int = 1
    escalate: tuple[AnyModel, ...] = ()

    def models_left(self, redone: int) -> Iterator[AnyModel | None]:
        """Yield the models of the attempts that an image may still have after so many for a better result."""
        for number in range(redone, self.until_clean - 1):
            yield self.escalate[min(number, len(self.escalate) - 1)] if self.escalate else None


NO_CHECKS = WantedChecks()


@attrs.frozen(kw_only=True)
class Settle:
    """Nothing more to do for this job in this run."""

    state: JobState


Step: TypeAlias = (
    CheckForText
    | Begin
    | Submit
    | AwaitTask
    | AwaitCallback
    | Fetch
    | Compose
    | Verify
    | Choose
    | SubmitAgain
    | Settle
)


def next_step(job: JobSnapshot, *, callback_may_come: bool = False, checks: WantedChecks = NO_CHECKS) -> Step:
    """Return the next step of a job.

    Args:
        job: The job.
        callback_may_come: Whether a callback to the address of its latest attempt would still be received.
        checks: What is to be checked, before the submit or once its image is saved.
    """
    task_id, api = job.task_id, job.api
    match job.state:
        case JobState.PENDING:
            is_checked = checks.skip_textless and job.charge is Charge.NO and job.kept is None
            return CheckForText() if is_checked else Begin(not_before=job.not_before)
        case JobState.SUBMITTING:
            return Submit()
        case JobState.SUBMITTED if task_id is not None and api is not None:
            return AwaitTask(task_id=task_id, api=api)
        case JobState.GENERATED if task_id is not None and api is not None and job.result_url is not None:
            return Fetch(task_id=task_id, api=api, result_url=job.result_url)
        case JobState.IN_DOUBT if callback_may_come:
            return AwaitCallback()
        case JobState.DONE | JobState.FAILED | JobState.IN_DOUBT:
            return next_check(job, checks) or next_attempt(job, checks) or Settle(state=job.state)
    raise IllegalTransition(f"Job {job.key} is {job.state} without a task, its API or a result.")


def next_check(job: JobSnapshot, checks: WantedChecks) -> Compose | Verify | Choose | None:
    """Return the first of the wanted checks that was not made of the job's image, or None.

    The copy of an original without text needs none. Two results are compared once the latest is verified.
    """
    if job.state is not JobState.DONE or job.file is None or job.task_id is None:
        return None
    made = job.checked or CheckResult()
    if checks.preserve and made.is_preserved is None:
        return Compose()
    if made.verdict is None:
        return Verify() if checks.verify else None
    return Choose() if job.kept is not None else None


def next_attempt(job: JobSnapshot, checks: WantedChecks) -> SubmitAgain | None:
    """Return the next attempt for a job that is done and whose image has text left or is damaged, or None.

    The attempts of earlier runs, and those that failed, count.
    """
    if job.state is not JobState.DONE or job.kept is not None or verdict_of(job) not in BAD_VERDICTS:
        return None
    return next((SubmitAgain(model=model) for model in checks.models_left(job.redone)), None)


def recover(job: JobSnapshot, at: float) -> Event | None:
    """Return the event that the end of its process is for a job; None if its state stays as it is.

    An intent without an answer is in doubt: the POST may have been sent and charged.
    """
    if job.state is not JobState.SUBMITTING:
        return None
    return SubmitUnknown(
        at=at,
        problem=Problem(
            type="ConnectionLost",
            message="The process ended between the intent to submit and the answer; the submit may have been "
            "charged. Look for the task at kie.ai/logs before submitting the same image again.",
        ),
    )


def events_of_lost_submit(job: JobSnapshot, at: float, now: float) -> tuple[Event, ...]:
    """Return the events that put a job in doubt after the journal lost the record of its submit at ``at``.

    They include what must have preceded that submit: a task that failed, or the user's permission. A job that
    had its result only later, or is in doubt already, needs none: it is not submitted anyway.
    """
    problem = Problem(
        type="ConnectionLost",
        message="The journal lost the record of a submit; it may have been charged. Look for the task at "
        "kie.ai/logs before submitting the same image again.",
    )
    submit = (SubmitIntended(at=at, api=None), SubmitUnknown(at=now, problem=problem))
    match job.state:
        case JobState.PENDING:
            return submit
        case JobState.SUBMITTED:
            return (TaskEndedRetryable(at=at, problem=problem), *submit)
        case JobState.FAILED:
            return (RetryGranted(at=at), *submit)
        case JobState.DONE if job.finished_at is not None and at > job.finished_at:
            return (RetryGranted(at=at), *submit)
    return ()
