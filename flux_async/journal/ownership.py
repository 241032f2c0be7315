"""Which task and which file name belong to which job, and which account a journal belongs to.

A task belongs to one submit. The record of a task shows the request it was made from, so that the job of a
task is found even if its id was in the answer to another submit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from flux_async.api.echo import compare, spellings_of
from flux_async.api.models_table import ApiName
from flux_async.api.parsing import ids_in
from flux_async.errors import JobConflictError, JournalError
from flux_async.job_state import (
    EchoContradicted,
    Event,
    JobSnapshot,
    SubmitAccepted,
    SubmitUnknown,
    TaskFound,
    TaskSucceeded,
)
from flux_async.journal.schema import read_meta, write_meta
from flux_async.models import Echo, JobKey, TaskId

if TYPE_CHECKING:
    import sqlite3

_ECHOES, _IMAGE_ECHOES = "confirmed_echoes", "confirmed_image_echoes"

_SUBJECT = "coalesce(json_extract(request, '$.inputImage'), json_extract(request, '$.prompt'))"
"""Must be written exactly as in the index ``job_by_subject``."""

_SUBMITTED = (
    "CASE WHEN job.other_model IS NULL THEN job.request "
    "ELSE json_patch(json_remove(job.request, '$.customModel'), job.other_model) END"
)
"""The request of a job with the model of its latest submit."""

MOST_ALIKE = 200
"""A record is compared with at most this many jobs of one image."""


@attrs.frozen(kw_only=True)
class Sender:
    """Another job whose request, or whose image, a record shows.

    Attributes:
        key: The job; None if several jobs have the image and none of them has sent the rest.
    """

    key: JobKey | None


@attrs.frozen(kw_only=True)
class KnownTask:
    """A task, and where its record is.

    Attributes:
        task_id: Its id.
        api: The API that it was submitted to.
    """

    task_id: TaskId
    api: ApiName


@attrs.frozen(kw_only=True)
class PaidTask(KnownTask):
    """A task of a journal.

    Attributes:
        task_id: Its id.
        api: The API that it was submitted to.
        submitted_at: The time it was accepted, in seconds since the epoch.
        is_live: Whether its result is still to be fetched.
    """

    submitted_at: float
    is_live: bool


# --- tasks ------------------------------------------------------------------------------------------------


def check_owner(connection: sqlite3.Connection, event: Event, job: int, attempt: int) -> None:
    """Refuse a task that belongs to another submit.

    A found task may belong to an earlier submit of the same job. The task in the answer to a submit may not:
    each submit makes its own.

    Raises:
        JobConflictError: The task belongs to another job or, for an answer, to an earlier submit of the job.
    """
    if not isinstance(event, SubmitAccepted):
        return
    sql = (
        "SELECT job.key, job.number FROM attempt JOIN job ON job.number = attempt.job "
        "WHERE attempt.task_id = ? AND NOT (attempt.job = ? AND attempt.number = ?) "
        "ORDER BY job.number <> ? DESC LIMIT 1"
    )
    for key, number in connection.execute(sql, (event.task_id, job, attempt, job)):
        if number != job:
            raise JobConflictError(f"Task {event.task_id} belongs to job {key}.")
        if not isinstance(event, TaskFound):
            raise JobConflictError(f"Task {event.task_id} belongs to an earlier submit of this job.")


def write_attempt(
    connection: sqlite3.Connection, event: Event, number: int, job: JobSnapshot, state: str
) -> None:
    """Write the new state of the latest attempt of a job, and the task ids and the cost of the event.

    Args:
        connection: The journal, in a transaction.
        event: The event.
        number: The job's number.
        job: The job after the event.
        state: The state of the attempt.
    """
    attempt = job.attempts
    task_id, answer, refused, paid = None, None, None, getattr(event, "credits", None)
    if isinstance(event, SubmitAccepted):
        task_id = event.task_id
    elif isinstance(event, SubmitUnknown):
        # The id in a contradictory answer may not be that of the attempt's task: a callback can decide it.
        answer, refused = event.answer, event.refused_task_id
    elif isinstance(event, EchoContradicted):
        refused = event.task_id
        connection.execute(
            "UPDATE attempt SET task_id = NULL WHERE job = ? AND number = ?", (number, attempt)
        )
        connection.execute(
            "INSERT OR IGNORE INTO offer (job, task_id, api, at) "
            "SELECT number, ?, ?, ? FROM job WHERE key = ?",
            (event.task_id, job.api, event.at, event.belongs_to),
        )
        # It may have been offered to this job because of its image: it is not offered again.
        connection.execute("DELETE FROM offer WHERE job = ? AND task_id = ?", (number, event.task_id))
    elif isinstance(event, TaskSucceeded) and event.echo is Echo.CONFIRMED:
        _add_one(connection, _of_api(_ECHOES, job.api))
    connection.execute(
        "UPDATE attempt SET state = ?, task_id = coalesce(?, task_id), answer = coalesce(?, answer), "
        "refused_task_id = coalesce(?, refused_task_id), credits = coalesce(?, credits) "
        "WHERE job = ? AND number = ?",
        (state, task_id, answer, refused, paid, number, attempt),
    )


def owner_of(connection: sqlite3.Connection, task_id: str) -> JobKey | None:
    """Return the job that a task belongs to, or once belonged to."""
    sql = "SELECT key FROM job JOIN attempt ON attempt.job = job.number WHERE attempt.task_id = ? LIMIT 1"
    row = connection.execute(sql, (task_id,)).fetchone()
    return None if row is None else JobKey(row[0])


def offers_to(connection: sqlite3.Connection, job: int) -> list[KnownTask]:
    """Return the tasks that belong to no job and whose records show the request of this one."""
    sql = (
        "SELECT task_id, api FROM offer WHERE job = ? "
        "AND NOT EXISTS (SELECT 1 FROM attempt WHERE attempt.task_id = offer.task_id) ORDER BY at"
    )
    return [KnownTask(task_id=TaskId(task_id), api=api) for task_id, api in connection.execute(sql, (job,))]


def candidates(connection: sqlite3.Connection, job: int) -> list[TaskId]:
    """Return the tasks that may be a job's: the ids in the answers to its submits, the latest first.

    Left out are tasks that belong to a submit, tasks whose record shows another job's request, and strings
    that are part of the request itself.
    """
    request, task_id = connection.execute(
        "SELECT request, task_id FROM job WHERE number = ?", (job,)
    ).fetchone()
    sql = "SELECT refused_task_id, answer FROM attempt WHERE job = ? ORDER BY number DESC"
    found = named_in(request, task_id, connection.execute(sql, (job,)))
    offered = "SELECT 1 FROM offer WHERE task_id = ? AND job <> ?"
    return [
        name
        for name in found
        if owner_of(connection, name) is None and connection.execute(offered, (name, job)).fetchone() is None
    ]


def input_urls(connection: sqlite3.Connection, job: int) -> list[str | None]:
    """Return the image URLs that a job's submits have sent, the latest first; None is the request's own."""
    sql = "SELECT input_url FROM attempt WHERE job = ? ORDER BY number DESC"
    return list(dict.fromkeys(row[0] for row in connection.execute(sql, (job,))))


def named_in(
    request: str, task_id: str | None, answers: Iterable[tuple[str | None, str | None]]
) -> list[TaskId]:
    """Return the tasks that a job and the answers to its submits name, but for parts of its request.

    Args:
        request: The stored request.
        task_id: The task of the job.
        answers: For each submit, the task that was refused and the answer that was kept.
    """
    found = [task_id]
    for refused, answer in answers:
        found += [refused, *(name for name in ids_in(answer or "") if name not in request)]
    return [TaskId(name) for name in dict.fromkeys(found) if name is not None]


def apis_of(connection: sqlite3.Connection, job: int) -> list[ApiName]:
    """Return the APIs that a job was submitted to, the latest first."""
    sql = "SELECT api FROM attempt WHERE job = ? AND api IS NOT NULL ORDER BY number DESC"
    return list(dict.fromkeys(row[0] for row in connection.execute(sql, (job,))))


# --- echoes -----------------------------------------------------------------------------------------------


def confirmed_echoes(connection: sqlite3.Connection, api: ApiName) -> tuple[int, int]:
    """Return how many records of an API have shown the request as it was sent, and how many the image."""
    requests, images = (read_meta(connection, _of_api(name, api)) for name in (_ECHOES, _IMAGE_ECHOES))
    return int(requests or 0), int(images or 0)


def count_image_echo(connection: sqlite3.Connection, api: ApiName) -> None:
    """Count a record of an API that has shown the image as it was sent."""
    _add_one(connection, _of_api(_IMAGE_ECHOES, api))


def _of_api(name: str, api: ApiName | None) -> str:
    return f"{name} {api}"


def _add_one(connection: sqlite3.Connection, name: str) -> None:
    write_meta(connection, name, str(int(read_meta(connection, name) or 0) + 1))


def job_that_sent(
    connection: sqlite3.Connection,
    shown: Mapping[str, Any],
    *,
    besides: int,
    verbatim: bool = False,
    by_image: bool = False,
) -> Sender | None:
    """Return another job whose submit a record shows, the closest if there are several.

    Args:
        connection: The journal.
        shown: The request as the record shows it.
        besides: The number of a job that is left out.
        verbatim: Whether the request must be the same character by character, in all fields that are shown.
        by_image: Whether a job counts that has sent the image with another prompt: the vendor may rewrite it.
    """
    alike = _alike(connection, spellings_of(shown))
    return closest_sender(shown, alike, besides=besides, verbatim=verbatim, by_image=by_image)


def closest_sender(
    shown: Mapping[str, Any],
    alike: Iterable[tuple[int, JobKey, str]],
    *,
    besides: int,
    verbatim: bool = False,
    by_image: bool = False,
) -> Sender | None:
    """Return the closest of the submits in ``alike``, given by number, key and body; see job_that_sent."""
    best: tuple[int, JobKey] | None = None
    with_image: dict[JobKey, bool] = {}
    for number, key, body in alike:
        if number == besides:
            continue
        seen = compare(shown, body)
        if by_image and seen.is_same_image:
            with_image[key] = with_image.get(key, False) or not seen.is_other_model
        if not seen.is_same or (verbatim and not (seen.is_verbatim and seen.rest_is_same)):
            continue
        closeness = seen.is_verbatim + seen.rest_is_same
        if best is None or closeness > best[0]:
            best = closeness, key
    if best is not None:
        return Sender(key=best[1])
    if not with_image:
        return None
    fitting = [key for key, fits in with_image.items() if fits]
    return Sender(key=fitting[0] if len(with_image) == len(fitting) == 1 else None)


def _alike(connection: sqlite3.Connection, subjects: list[str]) -> Iterator[tuple[int, JobKey, str]]:
    """Yield number, key and body of the submits with one of these images or prompts."""
    marks = ", ".join("?" * len(subjects))
    by_request = (
        f"SELECT number, key, {_SUBMITTED} FROM job WHERE attempts > 0 AND {_SUBJECT} IN ({marks}) LIMIT ?"
    )
    by_upload = (
        f"SELECT job.number, job.key, json_set({_SUBMITTED}, '$.inputImage', attempt.input_url) "
        f"FROM attempt JOIN job ON job.number = attempt.job WHERE attempt.input_url IN ({marks}) LIMIT ?"
    )
    for sql in (by_request, by_upload):
        yield from connection.execute(sql, (*subjects, MOST_ALIKE))


# --- the account ------------------------------------------------------------------------------------------


def check_account(connection: sqlite3.Connection, account: str) -> None:
    """Store the account that a journal belongs to.

    Raises:
        JournalError: It belongs to another one, and a submit of it may be charged.
    """
    known = read_meta(connection, "account") or ""
    if account and known and known != account and may_have_paid(connection):
        raise JournalError(
            "This journal holds the tasks of another key or address.",
            advice="Use the key and address it was made with. {new_key}",
        )
    write_meta(connection, "account", account or known)


def may_have_paid(connection: sqlite3.Connection) -> bool:
    """Return whether a submit of the journal was charged, or may have been."""
    sql = (
        "SELECT EXISTS (SELECT 1 FROM attempt WHERE task_id IS NOT NULL OR state <> 'over') "
        "OR EXISTS (SELECT 1 FROM event WHERE type IN ('SubmitUnknown', 'TaskFound'))"
    )
    return bool(connection.execute(sql).fetchone()[0])


def paid_tasks(connection: sqlite3.Connection, since: float, limit: int) -> list[PaidTask]:
    """Return up to ``limit`` tasks submitted since a time: live ones first, then the newest."""
    live = "state IN ('submitted', 'generated')"
    sql = (
        f"SELECT task_id, api, submitted_at, {live} FROM job "
        "WHERE state IN ('submitted', 'generated', 'done', 'failed') AND task_id IS NOT NULL "
        f"AND submitted_at >= ? ORDER BY {live} DESC, submitted_at DESC LIMIT ?"
    )
    return [
        PaidTask(task_id=TaskId(task_id), api=api, submitted_at=at, is_live=bool(is_live))
        for task_id, api, at, is_live in connection.execute(sql, (since, limit))
    ]


# --- file names -------------------------------------------------------------------------------------------


def take_names(connection: sqlite3.Connection, names: Mapping[int, str]) -> dict[int, JobKey]:
    """Assign a file name to each job, by its number; a job without a file returns its earlier names.

    Args:
        connection: The journal.
        names: Names as file systems compare them.

    Returns:
        The jobs whose names belong to other jobs, each with the key of the other.
    """
    release = (
        "DELETE FROM file_name WHERE job = ? AND folded <> ? "
        "AND (SELECT coalesce(file, kept) FROM job WHERE number = file_name.job) IS NULL"
    )
    owner = (
        "SELECT job.number, job.key FROM file_name JOIN job ON job.number = file_name.job WHERE folded = ?"
    )
    taken = {}
    for number, name in names.items():
        connection.execute(release, (number, name))
        connection.execute("INSERT OR IGNORE INTO file_name (folded, job) VALUES (?, ?)", (name, number))
        owner_number, key = connection.execute(owner, (name,)).fetchone()
        if owner_number != number:
            taken[number] = JobKey(key)
    return taken
