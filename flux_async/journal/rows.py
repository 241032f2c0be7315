"""A job as a row of the journal's table ``job``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import attrs

from flux_async.api.stored_requests import read_request
from flux_async.errors import Charge, JournalError
from flux_async.job_state import (
    LIVE,
    Event,
    JobSnapshot,
    JobState,
    Problem,
    SubmitIntended,
    apply,
    events_of_lost_submit,
)
from flux_async.journal import ownership
from flux_async.models import Echo, EditRequest, ImageRequest, Job, JobKey, LocalImage, TaskId

if TYPE_CHECKING:
    import sqlite3

_UPDATE = (
    "UPDATE job SET state=?, attempts=?, paid_failures=?, task_id=?, result_url=?, origin_url=?, file=?, "
    "charge=?, problem=?, not_before=?, submitted_at=?, generated_at=?, finished_at=?, generation_s=?, "
    "sha256=?, echo=? "
    "WHERE number=?"
)
_UPDATE_FROM = _UPDATE + " AND state=? AND attempts=?"

COLUMNS = (
    "number, key, request, state, attempts, paid_failures, task_id, result_url, origin_url, file, charge, "
    "problem, not_before, submitted_at, generated_at, finished_at, generation_s, sha256, source, "
    "source_folder, echo"
)


@attrs.frozen(kw_only=True)
class StoredJob:
    """A job as the journal has it.

    Attributes:
        number: Its place in the order of arrival.
        request: The wire JSON it was added with; it names a file of this machine by its content.
        job: Where it stands.
        source: Where that file was last seen, as given.
        source_folder: What it is relative to, where it is relative.
    """

    number: int
    request: str
    job: JobSnapshot
    source: str | None = None
    source_folder: str | None = None

    def as_job(self) -> Job:
        """Return the job as it was given; raises as :meth:`read` does."""
        return Job(key=self.job.key, request=self.read())

    def read(self) -> ImageRequest:
        """Return the request as it was given.

        Raises:
            InvalidInput: Another release wrote it, with fields that are unknown here.
        """
        request = read_request(self.request)
        if not isinstance(request, EditRequest) or not isinstance(request.input_image, LocalImage):
            return request
        image = attrs.evolve(request.input_image, path=self.source, folder=self.source_folder or "")
        return attrs.evolve(request, input_image=image)


def stored_job(row: tuple[Any, ...]) -> StoredJob:
    """Return the job of a row of :data:`COLUMNS`."""
    number, key, request, state, attempts, paid, task, result, origin, file, charge, problem, *times = row
    not_before, submitted_at, generated_at, finished_at, generation_s, *rest = times
    sha256, source, source_folder, echo = rest
    return StoredJob(
        number=number,
        request=request,
        source=None if source is None else os.fsdecode(source),
        source_folder=None if source_folder is None else os.fsdecode(source_folder),
        job=JobSnapshot(
            key=JobKey(key),
            state=JobState(state),
            attempts=attempts,
            paid_failures=paid,
            task_id=None if task is None else TaskId(task),
            result_url=result,
            origin_url=origin,
            file=file,
            charge=Charge(charge),
            problem=None if problem is None else Problem(**json.loads(problem)),
            not_before=not_before,
            submitted_at=submitted_at,
            generated_at=generated_at,
            finished_at=finished_at,
            generation_s=generation_s,
            sha256=sha256,
            echo=None if echo is None else Echo(echo),
        ),
    )


def put_in_doubt(connection: sqlite3.Connection, key: JobKey, at: float, now: float) -> bool:
    """Put a job in doubt that was perhaps submitted at ``at``; False where the journal does not know it."""
    row = connection.execute(f"SELECT {COLUMNS} FROM job WHERE key = ?", (key,)).fetchone()  # noqa: S608
    if row is None:
        return False
    stored = stored_job(row)
    job = stored.job
    for event in events_of_lost_submit(job, at, now):
        before, job = job, apply(job, event)
        write_event(connection, stored.number, job, event, before)
    return True


def write_event(
    connection: sqlite3.Connection, number: int, job: JobSnapshot, event: Event, before: JobSnapshot | None
) -> int:
    """Write what ``event`` made of a job; return the event's number."""
    values = (
        job.state.value,
        job.attempts,
        job.paid_failures,
        job.task_id,
        job.result_url,
        job.origin_url,
        job.file,
        job.charge.value,
        None if job.problem is None else json.dumps(attrs.asdict(job.problem)),
        job.not_before,
        job.submitted_at,
        job.generated_at,
        job.finished_at,
        job.generation_s,
        job.sha256,
        job.echo,
        number,
    )
    if before is None:
        changed = connection.execute(_UPDATE, values)
    else:
        changed = connection.execute(_UPDATE_FROM, (*values, before.state.value, before.attempts))
    if changed.rowcount != 1:
        raise JournalError(f"The journal does not hold job {job.key}, or it has moved on without this run.")
    ownership.check_owner(connection, event, number, job.attempts)
    attempt = job.state.value if job.state in LIVE else "over"
    if isinstance(event, SubmitIntended):
        connection.execute(
            "INSERT INTO attempt (job, number, state, intended_at, callback_id, input_url) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (number, job.attempts, attempt, event.at, event.callback_id, event.input_url),
        )
    else:
        ownership.keep(connection, event, number, job.attempts, attempt)
    written = connection.execute(
        "INSERT INTO event (job, at, type, detail) VALUES (?, ?, ?, ?)",
        (number, event.at, type(event).__name__, _detail(event)),
    )
    return written.lastrowid or 0


def _detail(event: Event) -> str:
    """The event's own fields as JSON; an answer is kept with its attempt."""
    fields = {
        a.name: attrs.asdict(value) if isinstance(value, Problem) else value
        for a in attrs.fields(type(event))
        if a.name not in {"at", "answer"} and (value := getattr(event, a.name)) is not None
    }
    return json.dumps(fields, separators=(",", ":")) if fields else "{}"
