"""What can happen to a job: its events, as values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from flux_async.api.models_table import ApiName
from flux_async.errors import Charge, FluxError
from flux_async.models import Echo, JobKey, TaskId


@attrs.frozen(kw_only=True)
class Problem:
    """An error in the journal: the name of its class, the vendor's code if there is one, its message."""

    type: str
    code: int | None = None
    message: str

    @classmethod
    def of(cls, error: FluxError) -> Problem:
        """Return the record of ``error``. Its advice stays a template, which each surface fills in."""
        record = getattr(error, "record", None)
        code = getattr(error, "code", None) or getattr(record, "error_code", None)
        return cls(
            type=type(error).__name__, code=code, message=f"{error.message} {error.advice_template}".strip()
        )


@attrs.frozen(kw_only=True)
class _Event:
    """Something that happened to a job at ``at`` seconds since the epoch."""

    at: float


@attrs.frozen(kw_only=True)
class NoTextFound(_Event):
    """The original has no text: ``file`` is a copy of it, and nothing is submitted.

    ``verdict`` is what ``verify`` would find, as JSON; ``saved_credits`` is what a submit would have cost.
    """

    file: str
    sha256: str
    verdict: Mapping[str, Any]
    saved_credits: float


@attrs.frozen(kw_only=True)
class SubmitIntended(_Event):
    """A POST is about to be made.

    ``api`` and ``model`` are the API that it is sent to and the model's id there; ``callback_id`` is the
    attempt's part of the callback address, ``input_url`` the address of its upload, if there was one;
    ``trace`` is the context of the job's trace, for the journal.
    """

    api: ApiName | None
    model: str | None = None
    callback_id: str | None = None
    input_url: str | None = None
    trace: str | None = None


@attrs.frozen(kw_only=True)
class SubmitAccepted(_Event):
    """The vendor made a task."""

    task_id: TaskId


@attrs.frozen(kw_only=True)
class SubmitRefused(_Event):
    """The submit was certainly not charged, and another may succeed after ``not_before``."""

    problem: Problem
    not_before: float = 0.0


@attrs.frozen(kw_only=True)
class SubmitRejected(_Event):
    """The vendor will never take this request; nothing was charged."""

    problem: Problem


@attrs.frozen(kw_only=True)
class SubmitUnknown(_Event):
    """No answer came, or one that contradicts itself or names a task of another submit: perhaps charged.

    ``answer`` is the answer, cut and without the key: it may name the task. ``refused_task_id`` is a task
    that it named and that is refused, as another submit has it.
    """

    problem: Problem
    task_id: TaskId | None = None
    answer: str | None = None
    refused_task_id: TaskId | None = None


@attrs.frozen(kw_only=True)
class TaskFound(SubmitAccepted):
    """The task of a submit in doubt became known: by a callback, by its record, or by a person.

    ``api`` is the API that has its record; ``echo`` is what that shows of the request, if it was compared.
    """

    api: ApiName
    echo: Echo | None = None


@attrs.frozen(kw_only=True)
class EchoContradicted(_Event):
    """The record of the task that the API named shows another request: the submit's own task is unknown.

    ``belongs_to`` is the job of this journal whose request it shows, if there is one: the task is offered to
    that job.
    """

    problem: Problem
    task_id: TaskId
    belongs_to: JobKey | None = None


@attrs.frozen(kw_only=True)
class ResubmitGranted(_Event):
    """The caller accepts that a submit in doubt may be paid for a second time."""


@attrs.frozen(kw_only=True)
class TaskSucceeded(_Event):
    """record-info shows the image. Repeated, it renews the address."""

    result_url: str
    origin_url: str | None = None
    generation_s: float | None = None
    echo: Echo | None = None
    credits: float | None = None


@attrs.frozen(kw_only=True)
class TaskEnded(_Event):
    """The task ended without an image, and no other task is paid for."""

    problem: Problem
    charge: Charge = Charge.MAYBE
    credits: float | None = None


@attrs.frozen(kw_only=True)
class TaskEndedRetryable(_Event):
    """The task ended without an image, and the caller's policy pays for another."""

    problem: Problem
    credits: float | None = None


@attrs.frozen(kw_only=True)
class Saved(_Event):
    """The image is saved, or left at the vendor if no file was wanted."""

    file: str | None = None
    sha256: str | None = None


@attrs.frozen(kw_only=True)
class Composed(_Event):
    """The image was composed with its original, or the vendor's image stays, for ``reason``.

    ``file`` and ``sha256`` are the image that the caller gets, ``vendor_file`` is the vendor's own.
    """

    file: str
    sha256: str
    vendor_file: str
    reason: str | None = None
    replaced: float | None = None
    outlines: Sequence[Sequence[int]] | None = None


@attrs.frozen(kw_only=True)
class Verified(_Event):
    """The image was verified; ``verdict`` is what was found, as JSON."""

    verdict: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class NotChecked(_Event):
    """A check could not be made, for ``problem``; the image stays as it is."""

    problem: str


@attrs.frozen(kw_only=True)
class ResultLost(_Event):
    """The vendor no longer has the image."""

    problem: Problem


@attrs.frozen(kw_only=True)
class Cancelled(_Event):
    """The user no longer wants the image; no submit of the job is in progress."""


@attrs.frozen(kw_only=True)
class RetryGranted(_Event):
    """The user wants a job submitted again that failed or whose image is no good, and pays for a new task.

    ``other_model`` is what another model changes in its request, as a JSON merge patch.
    """

    other_model: str | None = None


@attrs.frozen(kw_only=True)
class ResultChosen(_Event):
    """The better one of the latest result and the earlier one was chosen; the other's files are kept.

    ``loses`` is the verdict of the other one; ``file`` and ``vendor_file`` are where the files of the latest
    result are now.
    """

    keeps_earlier: bool
    loses: str | None = None
    file: str | None = None
    vendor_file: str | None = None


Event: TypeAlias = (
    NoTextFound
    | SubmitIntended
    | SubmitAccepted
    | SubmitRefused
    | SubmitRejected
    | SubmitUnknown
    | TaskFound
    | EchoContradicted
    | ResubmitGranted
    | TaskSucceeded
    | TaskEnded
    | TaskEndedRetryable
    | Saved
    | Composed
    | Verified
    | NotChecked
    | ResultLost
    | Cancelled
    | RetryGranted
    | ResultChosen
)
