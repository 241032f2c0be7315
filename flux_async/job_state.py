"""States, events and transitions of a job, and its next step. Pure.

A job moves only through :data:`TRANSITIONS`; a pair that is not in the table is an
:class:`IllegalTransition`. The source of an event (a poll, a callback, an operator, the start after a crash)
makes no difference.

::

    PENDING ──intent──▶ SUBMITTING ──accepted──▶ SUBMITTED ───image───▶ GENERATED ──on disk──▶ DONE
       ▲                 │  │  │                   ▲  │                    │
       ├──── refused ────┘  │  └── rejected ───────┼──┼──▶ FAILED ◀── lost ┘
       │                 unknown                   │  └── task failed ──▶ FAILED, or PENDING where it may
       │                    ▼                      │                      be paid for once more
       └── permission ── IN_DOUBT ── task found ───┘
                             ▲
                             └── the task's record shows another request ── SUBMITTED, GENERATED

Rules:

1. ``SubmitIntended`` is on disk before the POST leaves; after a crash SUBMITTING means "perhaps charged".
2. Only a refusal that was certainly not charged leads from SUBMITTING back to PENDING.
3. IN_DOUBT waits. A task found for it, by its callback or by a person, makes it SUBMITTED; only the caller's
   permission makes it PENDING. A task of an earlier submit that becomes known even then, before another
   POST, makes it SUBMITTED: no known paid task is paid for again.
4. DONE and FAILED are final: late and repeated events change nothing. (An image may be saved again if its
   file is missing; one that was left at the vendor, never saved and has expired there has FAILED.) Only the
   user's ``RetryGranted`` leads on from FAILED, and from DONE where the user wants another image.
5. A job has at most one attempt in progress: submitting, submitted or in doubt.
6. A task whose record shows another request is never the job's: the submit was answered with a wrong id, so
   its own task is unknown and the job is IN_DOUBT.
7. An image without text, where the user wants that looked at, is DONE from PENDING: no submit, no task.
8. Our own deadline ends a run's wait, not the job: it stays SUBMITTED and paid, and the next run resumes it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs

from flux_async.api.models_table import ApiName
from flux_async.errors import Charge, FluxError
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


class IllegalTransition(FluxError):
    """An event that cannot happen to a job in its state: a bug in this package."""


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


# --- events -----------------------------------------------------------------------------------------------


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
    attempt's part of the callback address, ``input_url`` the address of its upload, if there was one.
    """

    api: ApiName | None
    model: str | None = None
    callback_id: str | None = None
    input_url: str | None = None


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
class RetryGranted(_Event):
    """The user wants a job submitted again that failed or whose image is no good, and pays for a new task."""


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
    | RetryGranted
)

# --- the table --------------------------------------------------------------------------------------------

TRANSITIONS: Mapping[tuple[JobState, type[Event]], JobState] = MappingProxyType(
    {
        (JobState.PENDING, NoTextFound): JobState.DONE,
        (JobState.PENDING, SubmitIntended): JobState.SUBMITTING,
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
    return attrs.evolve(_with_fields(job, event), state=state)


def _with_fields(job: JobSnapshot, event: Event) -> JobSnapshot:  # noqa: C901, PLR0911, PLR0912 - one arm per event
    """Return the job with the fields that an event sets."""
    at = event.at
    match event:
        case NoTextFound():
            return _without_task(job, event)
        case SubmitIntended(api=api):  # until it is answered it may be charged
            job = attrs.evolve(job, attempts=job.attempts + 1, charge=Charge.MAYBE, problem=None)
            return attrs.evolve(job, task_id=None, api=api, echo=None, credits=None, checked=None)
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
            job = attrs.evolve(job, result_url=url, origin_url=origin, generation_s=took_s)
            job = attrs.evolve(job, credits=job.credits if paid is None else paid)
            return attrs.evolve(job, echo=echo or job.echo, generated_at=at, problem=None)
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
        case ResultLost(problem=problem):
            return attrs.evolve(job, problem=problem, finished_at=at)
        case _:  # RetryGranted
            job = attrs.evolve(job, finished_at=None, not_before=0.0, charge=Charge.NO)
            return attrs.evolve(job, file=None, sha256=None, checked=None)


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


def verdict_in(found: Mapping[str, Any]) -> str:
    """Return the verdict in what ``verify`` found: its kind, or ``no_text`` for an original without text."""
    return "no_text" if found.get("no_text") and found.get("kind") == "clean" else str(found.get("kind"))


def verdict_of(job: JobSnapshot) -> str | None:
    """Return the verdict about a job's image, as :func:`verdict_in`; None before it was verified."""
    return None if job.checked is None or job.checked.verdict is None else verdict_in(job.checked.verdict)


# --- what comes next --------------------------------------------------------------------------------------


@attrs.frozen
class LookForText:
    """Look for text in the original, before it is paid to remove it."""


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


@attrs.frozen(kw_only=True)
class WantedChecks:
    """The checks that a run makes of its images, in this order; ``skip_textless`` before their submit."""

    skip_textless: bool = False
    preserve: bool = False
    verify: bool = False


NO_CHECKS = WantedChecks()


@attrs.frozen(kw_only=True)
class Settle:
    """Nothing more to do for this job in this run."""

    state: JobState


Step: TypeAlias = LookForText | Begin | Submit | AwaitTask | AwaitCallback | Fetch | Compose | Verify | Settle


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
            looks = checks.skip_textless and job.charge is Charge.NO
            return LookForText() if looks else Begin(not_before=job.not_before)
        case JobState.SUBMITTING:
            return Submit()
        case JobState.SUBMITTED if task_id is not None and api is not None:
            return AwaitTask(task_id=task_id, api=api)
        case JobState.GENERATED if task_id is not None and api is not None and job.result_url is not None:
            return Fetch(task_id=task_id, api=api, result_url=job.result_url)
        case JobState.IN_DOUBT if callback_may_come:
            return AwaitCallback()
        case JobState.DONE | JobState.FAILED | JobState.IN_DOUBT:
            return next_check(job, checks) or Settle(state=job.state)
    raise IllegalTransition(f"Job {job.key} is {job.state} without a task, its API or a result.")


def next_check(job: JobSnapshot, checks: WantedChecks) -> Compose | Verify | None:
    """Return the first of the wanted checks that was not made of the job's image, or None.

    The copy of an original without text needs none.
    """
    if job.state is not JobState.DONE or job.file is None or job.task_id is None:
        return None
    made = job.checked or CheckResult()
    if checks.preserve and made.is_preserved is None:
        return Compose()
    return Verify() if checks.verify and made.verdict is None else None


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
