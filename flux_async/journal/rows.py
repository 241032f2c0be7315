"""A job and its events as rows of the journal."""

from __future__ import annotations

import json
import os
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

from flux_async.api.models_table import AnyModel
from flux_async.api.stored_requests import apply_patch, read_model, read_request
from flux_async.errors import Charge, JournalError
from flux_async.images import LocalImage
from flux_async.job_state import (
    LIVE,
    EarlierResult,
    Event,
    JobSnapshot,
    JobState,
    Problem,
    SubmitIntended,
    apply,
    events_of_lost_submit,
)
from flux_async.journal import ownership
from flux_async.models import CheckResult, Echo, EditRequest, ImageRequest, Job, JobKey

if TYPE_CHECKING:
    import sqlite3

_CONVERTED = ("state", "charge", "problem", "echo", "checked", "kept")
_PLAIN = [a.name for a in attrs.fields(JobSnapshot) if a.name not in {"key", *_CONVERTED}]
_OF_JOB = ("number", "request", "source", "source_folder", "trace", "added_at", "priority", "key")
_COLUMNS = ", ".join((*_OF_JOB, *_CONVERTED, *_PLAIN))
_UPDATE = f"UPDATE job SET {', '.join(f'{name} = ?' for name in (*_CONVERTED, *_PLAIN))} WHERE number = ?"
_plain_values = attrgetter(*_PLAIN)
_UPDATE_FROM = f"{_UPDATE} AND state = ? AND attempts = ?"

_STATES = {state.value: state for state in JobState}  # a lookup takes a tenth of the time of a call
_CHARGES = {charge.value: charge for charge in Charge}


@attrs.frozen(kw_only=True)
class StoredJob:
    """A job as the journal has it.

    Attributes:
        number: Its position in the order of arrival.
        request: The stored request; it names a file of this machine by the digest of its content.
        job: Its state.
        source: Last known path of that file, as given.
        source_folder: The folder that a relative path starts from.
        trace: The context of its trace, which it has at the latest from its first submit on.
        added_at: When it was added; None if an earlier release has added it.
        priority: Its priority in the queue of a service.
    """

    number: int
    request: str
    job: JobSnapshot
    source: str | None = None
    source_folder: str | None = None
    trace: str | None = None
    added_at: float | None = None
    priority: int = 0

    @property
    def submitted(self) -> str:
        """The stored request as its latest submit has it, or its next: perhaps with another model."""
        return apply_patch(self.request, self.job.other_model)

    @property
    def model(self) -> AnyModel:
        """The model of :attr:`submitted`."""
        return read_model(self.submitted)

    def as_job(self) -> Job:
        """Return the job as it was given; raises as :meth:`read` does."""
        return Job(key=self.job.key, request=self.read())

    def read(self) -> ImageRequest:
        """Return the request as it was given.

        Raises:
            InvalidInput: Another release wrote it, with unknown fields.
        """
        return self.read_as(self.request)

    def read_as(self, body: str) -> ImageRequest:
        """Return the request in another stored form; raises as :meth:`read` does."""
        request = read_request(body)
        if not isinstance(request, EditRequest) or not isinstance(request.input_image, LocalImage):
            return request
        image = attrs.evolve(request.input_image, path=self.source, folder=self.source_folder or "")
        return attrs.evolve(request, input_image=image)


def select_jobs(connection: sqlite3.Connection, where: str, *values: object) -> list[StoredJob]:
    """Return the jobs that a condition, with its order and limit, selects."""
    return [
        _stored_job(row)
        for row in connection.execute(f"SELECT {_COLUMNS} FROM job WHERE {where}", values).fetchall()
    ]


def _stored_job(row: tuple[Any, ...]) -> StoredJob:
    number, request, source, source_folder, trace, added_at, priority, *of_job = row
    key, state, charge, problem, echo, checked, kept, *plain = of_job
    return StoredJob(
        number=number,
        request=request,
        source=None if source is None else os.fsdecode(source),
        source_folder=None if source_folder is None else os.fsdecode(source_folder),
        trace=trace,
        added_at=added_at,
        priority=priority,
        job=JobSnapshot(
            key=key,
            state=_STATES[state],
            charge=_CHARGES[charge],
            problem=None if problem is None else Problem(**json.loads(problem)),
            echo=None if echo is None else Echo(echo),
            checked=None if checked is None else CheckResult(**json.loads(checked)),
            kept=None if kept is None else _earlier_result(json.loads(kept)),
            **dict(zip(_PLAIN, plain, strict=True)),
        ),
    )


def _earlier_result(fields: dict[str, Any]) -> EarlierResult:
    checked, echo = fields["checked"], fields["echo"]
    fields["checked"] = None if checked is None else CheckResult(**checked)
    fields["echo"] = None if echo is None else Echo(echo)
    return EarlierResult(**fields)


def write_event(
    connection: sqlite3.Connection, number: int, job: JobSnapshot, event: Event, before: JobSnapshot | None
) -> int:
    """Write an event and the job after it; return the event's number.

    Args:
        connection: The journal, in a transaction.
        number: The job's number.
        job: The job after the event.
        event: The event.
        before: The job before the event; None writes without a comparison.

    Raises:
        JournalError: The job in the journal is not the one in ``before``.
    """
    problem = None if job.problem is None else json.dumps(attrs.asdict(job.problem))
    echo = None if job.echo is None else job.echo.value
    checked = None if job.checked is None else json.dumps(attrs.asdict(job.checked))
    kept = None if job.kept is None else json.dumps(attrs.asdict(job.kept))
    values = (job.state.value, job.charge.value, problem, echo, checked, kept, *_plain_values(job), number)
    if before is None:
        changed = connection.execute(_UPDATE, values)
    else:
        changed = connection.execute(_UPDATE_FROM, (*values, before.state.value, before.attempts))
    if changed.rowcount != 1:
        raise JournalError(f"The journal does not hold job {job.key}, or it is in another state by now.")
    ownership.check_owner(connection, event, number, job.attempts)
    attempt_state = job.state.value if job.state in LIVE else "over"
    if isinstance(event, SubmitIntended):
        if event.trace is not None:
            connection.execute("UPDATE job SET trace = ? WHERE number = ?", (event.trace, number))
        connection.execute(
            "INSERT INTO attempt "
            "(job, number, state, intended_at, api, model, other_model, callback_id, input_url) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(number, job.attempts, attempt_state, event.at),
                *(event.api, event.model, job.other_model, event.callback_id, event.input_url),
            ),
        )
    else:
        ownership.write_attempt(connection, event, number, job, attempt_state)
    written = connection.execute(
        "INSERT INTO event (job, at, type, detail) VALUES (?, ?, ?, ?)",
        (number, event.at, type(event).__name__, _detail(event)),
    )
    return written.lastrowid or 0


def _detail(event: Event) -> str:
    """Return the event's own fields as JSON; an answer is stored with its attempt, a trace with its job."""
    fields = {
        a.name: attrs.asdict(value) if isinstance(value, Problem) else value
        for a in attrs.fields(type(event))
        if a.name not in {"at", "answer", "trace"} and (value := getattr(event, a.name)) is not None
    }
    return json.dumps(fields, separators=(",", ":")) if fields else "{}"


def put_in_doubt(connection: sqlite3.Connection, key: JobKey, submitted_at: float, now: float) -> bool:
    """Put a job in doubt that may have been submitted; return False if the journal does not have it."""
    found = select_jobs(connection, "key = ?", key)
    for stored in found:
        job = stored.job
        for event in events_of_lost_submit(job, submitted_at, now):
            before, job = job, apply(job, event)
            write_event(connection, stored.number, job, event, before)
    return bool(found)
