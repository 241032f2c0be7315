"""The life of a job: its states, what may happen to it, what comes next. Pure.

A job moves only through :data:`TRANSITIONS`; a pair that is not in the table is an
:class:`IllegalTransition`. This module does not know whether a fact came from a look, a callback, an operator
or the start after a crash.

::

    PENDING ──intent──▶ SUBMITTING ──accepted──▶ SUBMITTED ──picture──▶ GENERATED ──on disk──▶ DONE
       ▲                 │  │  │                   ▲  │                    │
       ├──── refused ────┘  │  └── rejected ───────┼──┼──▶ FAILED ◀── lost ┘
       │                 unknown                   │  └── task failed ──▶ FAILED, or PENDING where it may
       │                    ▼                      │                      be paid for once more
       └──── consent ─── IN_DOUBT ── task found ───┘
                             ▲
                             └── the task's record shows another request ── SUBMITTED, GENERATED

Rules:

1. ``SubmitIntended`` is on disk before the POST leaves; after a crash SUBMITTING means "perhaps charged".
2. Only a refusal that was certainly not charged leads from SUBMITTING back to PENDING.
3. IN_DOUBT is parked. A task found for it, by its callback or by a person, makes it SUBMITTED; only the
   caller's consent makes it PENDING. A task of an earlier submit that becomes known even then, before another
   POST, makes it SUBMITTED: nothing is paid twice that is known to be paid.
4. DONE and FAILED are final for facts: late and repeated ones change nothing. (A picture may be saved again
   where its file is missing; one that was left at the vendor, never saved and has expired there has FAILED.)
   ``RetryGranted`` is a person's word, not a fact.
5. A job has at most one live attempt: submitting, submitted or in doubt.
6. A task whose record shows another request is never the job's: the submit was answered with a wrong id, so
   its own task is unknown and the job is IN_DOUBT.
7. A deadline of ours ends a run's wait, not the job: it stays SUBMITTED, paid, to be taken up again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import attrs

from flux_async.errors import Charge, FluxError
from flux_async.models import Echo, JobKey, TaskId


class JobState(enum.StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    """Nothing is under way, nothing is owed."""
    SUBMITTING = "submitting"
    """An intent is on disk; a POST may be on its way."""
    SUBMITTED = "submitted"
    """A task exists and is paid."""
    GENERATED = "generated"
    """The vendor has the picture; it is not on disk yet."""
    DONE = "done"
    """Final: the picture is where it was wanted."""
    FAILED = "failed"
    """Final: there will be no picture."""
    IN_DOUBT = "in_doubt"
    """Parked: a submit may have been charged, and its task is not known."""


LIVE = frozenset({JobState.SUBMITTING, JobState.SUBMITTED, JobState.IN_DOUBT})
"""States in which an attempt is live: no other may begin."""

FINAL = frozenset({JobState.DONE, JobState.FAILED})
"""States that no fact can leave."""


class IllegalTransition(FluxError):
    """An event that cannot happen to a job in its state: a bug of ours, told loudly."""


@attrs.frozen(kw_only=True)
class Problem:
    """An error as it is kept: the name of its class, the vendor's code where there is one, its words."""

    type: str
    code: int | None = None
    message: str

    @classmethod
    def of(cls, error: FluxError) -> Problem:
        """Note down ``error``, its advice as a template: who reads it words what can be done."""
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
        state: Where it stands.
        attempts: Submits intended so far.
        paid_failures: Tasks that were paid and failed.
        task_id: The live or finished attempt's task.
        result_url: Where the vendor has the picture.
        origin_url: The input as the vendor kept it.
        file: The picture on disk, relative to the run's folder.
        sha256: Digest of that picture, as 64 hex digits.
        charge: Whether the live or last attempt cost credits.
        problem: What went wrong last.
        not_before: No submit before this time.
        submitted_at: When the task was accepted.
        generated_at: When the picture was seen.
        finished_at: When the job became final.
        generation_s: The vendor's own figure for the duration.
        echo: What the task's record shows of the request; None where no record has been compared with it.
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


# --- events -----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Event:
    """Something that happened to a job at ``at`` seconds since the epoch.

    Every event has ``changes``: the fields of the snapshot that it sets.
    """

    is_consent: ClassVar[bool] = False
    at: float


@attrs.frozen(kw_only=True)
class SubmitIntended(_Event):
    """A POST is about to leave.

    ``callback_id`` is the attempt's part of the address it gives the vendor, ``input_url`` where it says that
    the picture is, if that was uploaded.
    """

    callback_id: str | None = None
    input_url: str | None = None

    def changes(self, job: JobSnapshot) -> dict[str, Any]:
        """One attempt more; until it is answered it may be charged."""
        return {
            "attempts": job.attempts + 1,
            "charge": Charge.MAYBE,
            "problem": None,
            "task_id": None,
            "echo": None,
        }


@attrs.frozen(kw_only=True)
class SubmitAccepted(_Event):
    """The vendor made a task."""

    task_id: TaskId

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """It is paid."""
        return {
            "task_id": self.task_id,
            "charge": Charge.YES,
            "submitted_at": self.at,
            "problem": None,
        }


@attrs.frozen(kw_only=True)
class SubmitRefused(_Event):
    """The submit was certainly not charged, and another may succeed after ``not_before``."""

    problem: Problem
    not_before: float = 0.0

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """Back to the start."""
        return {"charge": Charge.NO, "problem": self.problem, "not_before": self.not_before}


@attrs.frozen(kw_only=True)
class SubmitRejected(_Event):
    """The vendor will never take this request; nothing was charged."""

    problem: Problem

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """The end."""
        return {"charge": Charge.NO, "problem": self.problem, "finished_at": self.at}


@attrs.frozen(kw_only=True)
class SubmitUnknown(_Event):
    """The answer never came, or contradicts itself, or names a task of another submit: perhaps charged.

    ``answer`` is what came instead, cut and without the key: it may name the task all the same.
    ``refused_task_id`` is a task that it named and that is not taken, as another submit has it.
    """

    problem: Problem
    task_id: TaskId | None = None
    answer: str | None = None
    refused_task_id: TaskId | None = None

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """Parked, with the task id if the answer named one."""
        return {"charge": Charge.MAYBE, "problem": self.problem, "task_id": self.task_id}


@attrs.frozen(kw_only=True)
class TaskFound(SubmitAccepted):
    """The task of a submit in doubt became known: by a callback, by its record, or by a person.

    ``echo`` is what its record shows of the request, where that was compared.
    """

    echo: Echo | None = None

    def changes(self, job: JobSnapshot) -> dict[str, Any]:
        """It is paid."""
        return super().changes(job) | {"echo": self.echo}


@attrs.frozen(kw_only=True)
class EchoContradicted(_Event):
    """The record of the task that the API named shows another request: the submit's own task is unknown.

    ``belongs_to`` is the job of this journal whose request it shows, where there is one: the task is offered
    to that job.
    """

    problem: Problem
    task_id: TaskId
    belongs_to: JobKey | None = None

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """In doubt; nothing of the other task is kept."""
        return {
            "charge": Charge.MAYBE,
            "problem": self.problem,
            "task_id": None,
            "result_url": None,
            "origin_url": None,
            "generation_s": None,
            "generated_at": None,
            "echo": None,
        }


@attrs.frozen(kw_only=True)
class ResubmitGranted(_Event):
    """The caller accepts that a submit in doubt may be paid for a second time."""

    is_consent: ClassVar[bool] = True

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """Back to the start, with eyes open."""
        return {"not_before": 0.0}


@attrs.frozen(kw_only=True)
class TaskSucceeded(_Event):
    """record-info shows the picture. Said again, it renews the address."""

    result_url: str
    origin_url: str | None = None
    generation_s: float | None = None
    echo: Echo | None = None

    def changes(self, job: JobSnapshot) -> dict[str, Any]:
        """The picture is at the vendor."""
        return {
            "echo": self.echo or job.echo,
            "result_url": self.result_url,
            "origin_url": self.origin_url,
            "generation_s": self.generation_s,
            "generated_at": self.at,
            "problem": None,
        }


@attrs.frozen(kw_only=True)
class TaskEnded(_Event):
    """The task ended without a picture, for good."""

    problem: Problem
    charge: Charge = Charge.MAYBE

    def changes(self, job: JobSnapshot) -> dict[str, Any]:
        """The end."""
        return {
            "problem": self.problem,
            "charge": self.charge,
            "paid_failures": job.paid_failures + 1,
            "finished_at": self.at,
        }


@attrs.frozen(kw_only=True)
class TaskEndedRetryable(_Event):
    """The task ended without a picture, and the caller's policy pays for another."""

    problem: Problem

    def changes(self, job: JobSnapshot) -> dict[str, Any]:
        """Back to the start."""
        return {"problem": self.problem, "paid_failures": job.paid_failures + 1, "not_before": 0.0}


@attrs.frozen(kw_only=True)
class Saved(_Event):
    """The picture is where it was wanted: on disk, or only at the vendor where no file was wanted."""

    file: str | None = None
    sha256: str | None = None

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """The end."""
        return {"file": self.file, "sha256": self.sha256, "finished_at": self.at, "problem": None}


@attrs.frozen(kw_only=True)
class ResultLost(_Event):
    """The vendor no longer has the picture."""

    problem: Problem

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """The end, paid."""
        return {"problem": self.problem, "finished_at": self.at}


@attrs.frozen(kw_only=True)
class RetryGranted(_Event):
    """A person wants a failed job tried again, at the price of a new task."""

    is_consent: ClassVar[bool] = True

    def changes(self, _job: JobSnapshot) -> dict[str, Any]:
        """Back to the start."""
        return {"finished_at": None, "not_before": 0.0, "charge": Charge.NO}


Event: TypeAlias = (
    SubmitIntended
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
    | ResultLost
    | RetryGranted
)

# --- the table --------------------------------------------------------------------------------------------

TRANSITIONS: Mapping[tuple[JobState, type[Event]], JobState] = MappingProxyType(
    {
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
        (JobState.DONE, ResultLost): JobState.FAILED,
        (JobState.FAILED, RetryGranted): JobState.PENDING,
    }
)
"""Every legal move. What is not here cannot happen."""


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
    return attrs.evolve(job, state=state, **event.changes(job))


# --- what comes next --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Begin:
    """Write the intent down, not before ``not_before``; no I/O beyond that."""

    not_before: float = 0.0


@attrs.frozen
class Submit:
    """POST, at once: the intent is on disk."""


@attrs.frozen(kw_only=True)
class AwaitTask:
    """Wait for the task's end."""

    task_id: TaskId


@attrs.frozen
class AwaitCallback:
    """A callback may still name the task of this submit in doubt: see whether it has come."""


@attrs.frozen(kw_only=True)
class Fetch:
    """Bring the picture to where it is wanted."""

    task_id: TaskId
    result_url: str


@attrs.frozen(kw_only=True)
class Settle:
    """Nothing more to do for this job in this run."""

    state: JobState


Step: TypeAlias = Begin | Submit | AwaitTask | AwaitCallback | Fetch | Settle


def next_step(job: JobSnapshot, *, callback_may_come: bool = False) -> Step:
    """Say what to do for a job now.

    Args:
        job: The job.
        callback_may_come: Whether its latest attempt gave the vendor an address that is still listened to.
    """
    match job.state:
        case JobState.PENDING:
            return Begin(not_before=job.not_before)
        case JobState.SUBMITTING:
            return Submit()
        case JobState.SUBMITTED if job.task_id is not None:
            return AwaitTask(task_id=job.task_id)
        case JobState.GENERATED if job.task_id is not None and job.result_url is not None:
            return Fetch(task_id=job.task_id, result_url=job.result_url)
        case JobState.IN_DOUBT if callback_may_come:
            return AwaitCallback()
        case JobState.DONE | JobState.FAILED | JobState.IN_DOUBT:
            return Settle(state=job.state)
    raise IllegalTransition(f"Job {job.key} is {job.state} without a task or a result.")


def recover(job: JobSnapshot, at: float) -> Event | None:
    """Say what the end of the process that ran a job means for it, or None: it goes on as it is.

    An intent without an answer is in doubt: the POST may have left and been charged.
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
    """Return the events that put a job in doubt of whose submit, at ``at``, the journal lost the record.

    What must have come before that submit is said, too: a task that failed, or a person's word. A job that
    has its result, or is in doubt already, needs none: it is not submitted anyway.
    """
    problem = Problem(
        type="ConnectionLost",
        message="The journal lost the record of a submit; it may have been charged. Look for the task at "
        "kie.ai/logs before submitting the same image again.",
    )
    submit = (SubmitIntended(at=at), SubmitUnknown(at=now, problem=problem))
    match job.state:
        case JobState.PENDING:
            return submit
        case JobState.SUBMITTED:
            return (TaskEndedRetryable(at=at, problem=problem), *submit)
        case JobState.FAILED:
            return (RetryGranted(at=at), *submit)
    return ()
