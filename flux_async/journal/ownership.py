"""Which task and which file name belong to which job, and which account a journal belongs to.

A task belongs to one submit. The record of a task shows the request it was made from, so a task whose answer
went to the wrong submit can be found its job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from flux_async.api.echo import compare, spellings_of
from flux_async.api.parsing import ids_in
from flux_async.errors import JobConflictError, JournalError
from flux_async.job_state import (
    EchoContradicted,
    Event,
    SubmitAccepted,
    SubmitUnknown,
    TaskFound,
    TaskSucceeded,
)
from flux_async.models import Echo, JobKey, TaskId

if TYPE_CHECKING:
    import sqlite3

_ECHOES, _IMAGES = "confirmed_echoes", "confirmed_image_echoes"

_SUBJECT = "coalesce(json_extract(request, '$.inputImage'), json_extract(request, '$.prompt'))"
"""As the index ``job_by_subject`` has it, letter by letter."""

_TAKE = "INSERT OR IGNORE INTO file_name (folded, job) VALUES (?, ?)"
_OWNER = "SELECT job.number, job.key FROM file_name JOIN job ON job.number = file_name.job WHERE folded = ?"
_GIVE_BACK = (
    "DELETE FROM file_name WHERE job = ? AND folded <> ? "
    "AND (SELECT file FROM job WHERE number = file_name.job) IS NULL"
)

_MOST_ALIKE = 200
"""Jobs about one image that a record is compared with."""


@attrs.frozen(kw_only=True)
class Sender:
    """Another job whose request, or whose image, a record shows.

    Attributes:
        key: The job; None where several jobs are about the image, and none of them has sent the rest.
    """

    key: JobKey | None


@attrs.frozen(kw_only=True)
class PaidTask:
    """A task of a journal.

    Attributes:
        task_id: Its id.
        submitted_at: When it was accepted, in seconds since the epoch.
        is_live: Whether its result is still to be fetched.
    """

    task_id: TaskId
    submitted_at: float
    is_live: bool


def check_owner(connection: sqlite3.Connection, event: Event, job: int, attempt: int) -> None:
    """Refuse a task that another submit has.

    A found task may be that of an earlier submit of the same job. A task that a submit was answered with may
    not: each submit makes its own.

    Raises:
        JobConflictError: Another job has it, or for an answer, an earlier submit of the job.
    """
    if not isinstance(event, SubmitAccepted):
        return
    sql = (
        "SELECT job.key, job.number FROM attempt JOIN job ON job.number = attempt.job "
        "WHERE attempt.task_id = ? AND NOT (attempt.job = ? AND attempt.number = ?) "
        "ORDER BY job.number <> ? DESC LIMIT 1"
    )
    row = connection.execute(sql, (event.task_id, job, attempt, job)).fetchone()
    if row is None:
        return
    key, number = row
    if number != job:
        raise JobConflictError(f"Task {event.task_id} belongs to job {key}.")
    if not isinstance(event, TaskFound):
        raise JobConflictError(f"Task {event.task_id} belongs to an earlier submit of this job.")


def keep(connection: sqlite3.Connection, event: Event, job: int, attempt: int, state: str) -> None:
    """Write down what an event says of the task of a job's latest attempt, now in ``state``."""
    task_id, answer, refused = None, None, None
    if isinstance(event, SubmitAccepted):
        task_id = event.task_id
    elif isinstance(event, SubmitUnknown):
        # What a contradictory answer named is not known to be the attempt's task: a callback may say.
        answer, refused = event.answer, event.refused_task_id
    elif isinstance(event, EchoContradicted):
        refused = event.task_id
        connection.execute("UPDATE attempt SET task_id = NULL WHERE job = ? AND number = ?", (job, attempt))
        connection.execute(
            "INSERT OR IGNORE INTO offer SELECT number, ?, ? FROM job WHERE key = ?",
            (event.task_id, event.at, event.belongs_to),
        )
        # It may have been offered to this job because of its image: it is not offered again.
        connection.execute("DELETE FROM offer WHERE job = ? AND task_id = ?", (job, event.task_id))
    elif isinstance(event, TaskSucceeded) and event.echo is Echo.CONFIRMED:
        _count(connection, _ECHOES)
    connection.execute(
        "UPDATE attempt SET state = ?, task_id = coalesce(?, task_id), answer = coalesce(?, answer), "
        "refused_task_id = coalesce(?, refused_task_id) WHERE job = ? AND number = ?",
        (state, task_id, answer, refused, job, attempt),
    )


def confirmed_echoes(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many records have shown the request as it was sent, and how many the image."""
    found = dict(connection.execute("SELECT name, value FROM meta WHERE name IN (?, ?)", (_ECHOES, _IMAGES)))
    return int(found.get(_ECHOES, 0)), int(found.get(_IMAGES, 0))


def count_image_echo(connection: sqlite3.Connection) -> None:
    """Write down that a record has shown the image as it was sent."""
    _count(connection, _IMAGES)


def _count(connection: sqlite3.Connection, name: str) -> None:
    connection.execute(
        "INSERT INTO meta VALUES (?, '1') "
        "ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
        (name,),
    )


def offers_to(connection: sqlite3.Connection, job: int) -> list[TaskId]:
    """Return the tasks whose records show the request of a job, and that no job has."""
    sql = (
        "SELECT task_id FROM offer WHERE job = ? "
        "AND NOT EXISTS (SELECT 1 FROM attempt WHERE attempt.task_id = offer.task_id) ORDER BY at"
    )
    return [TaskId(row[0]) for row in connection.execute(sql, (job,))]


def candidates(connection: sqlite3.Connection, job: int) -> list[TaskId]:
    """Return the tasks that may be a job's: what answers to its submits named, the latest first.

    Tasks that a submit has, or whose record shows another job's request, are left out, and what the request
    itself holds.
    """
    request, task_id = connection.execute(
        "SELECT request, task_id FROM job WHERE number = ?", (job,)
    ).fetchone()
    found = [task_id]
    sql = "SELECT refused_task_id, answer FROM attempt WHERE job = ? ORDER BY number DESC"
    for refused, answer in connection.execute(sql, (job,)):
        found += [refused, *(name for name in ids_in(answer or "") if name not in request)]
    named = [TaskId(name) for name in dict.fromkeys(found) if name is not None]
    taken = "SELECT 1 FROM offer WHERE task_id = ? AND job <> ?"
    return [
        name
        for name in named
        if owner_of(connection, name) is None and connection.execute(taken, (name, job)).fetchone() is None
    ]


def owner_of(connection: sqlite3.Connection, task_id: str) -> JobKey | None:
    """Return the job that a task belongs to, or once belonged to."""
    sql = "SELECT key FROM job JOIN attempt ON attempt.job = job.number WHERE attempt.task_id = ? LIMIT 1"
    row = connection.execute(sql, (task_id,)).fetchone()
    return None if row is None else JobKey(row[0])


def echoes(connection: sqlite3.Connection) -> dict[Echo, int]:
    """Return how many jobs have a record that shows their request, none, or an unknown one."""
    rows = dict(connection.execute("SELECT echo, count(*) FROM job WHERE echo IS NOT NULL GROUP BY echo"))
    return {echo: rows.get(echo.value, 0) for echo in Echo}


def input_urls(connection: sqlite3.Connection, job: int) -> list[str | None]:
    """Return where the submits of a job told the vendor to fetch its image; None: where the request says."""
    sql = "SELECT input_url FROM attempt WHERE job = ? ORDER BY number DESC"
    return list(dict.fromkeys(row[0] for row in connection.execute(sql, (job,))))


def job_that_sent(
    connection: sqlite3.Connection,
    told: Mapping[str, Any],
    *,
    besides: int,
    verbatim: bool = False,
    by_image: bool = False,
) -> Sender | None:
    """Return another job whose submit a record shows, the closest where there are several.

    Args:
        connection: To the journal.
        told: The request as the record shows it.
        besides: The number of the job that is known to have sent something else.
        verbatim: Whether the request must be the same character by character, in all that is shown.
        by_image: Whether a job counts that has sent the image with another prompt: the vendor may rewrite it.
    """
    best: tuple[int, JobKey] | None = None
    about_image: dict[JobKey, bool] = {}
    for number, key, body in _alike(connection, spellings_of(told)):
        if number == besides:
            continue
        seen = compare(told, body)
        if by_image and seen.is_same_image:
            about_image[key] = about_image.get(key, False) or not seen.is_other_model
        if not seen.is_same or (verbatim and not (seen.is_verbatim and seen.rest_is_same)):
            continue
        closeness = seen.is_verbatim + seen.rest_is_same
        if best is None or closeness > best[0]:
            best = closeness, key
    if best is not None:
        return Sender(key=best[1])
    if not about_image:
        return None
    fitting = [key for key, fits in about_image.items() if fits]
    return Sender(key=fitting[0] if len(about_image) == len(fitting) == 1 else None)


def _alike(connection: sqlite3.Connection, subjects: list[str]) -> Iterator[tuple[int, JobKey, str]]:
    """Yield number, key and body of submits about one of these images or prompts."""
    marks = ", ".join("?" * len(subjects))
    by_request = (
        f"SELECT number, key, request FROM job WHERE attempts > 0 AND {_SUBJECT} IN ({marks}) LIMIT ?"  # noqa: S608
    )
    by_upload = (
        "SELECT job.number, job.key, json_set(job.request, '$.inputImage', attempt.input_url) "  # noqa: S608
        f"FROM attempt JOIN job ON job.number = attempt.job WHERE attempt.input_url IN ({marks}) LIMIT ?"
    )
    for sql in (by_request, by_upload):
        for number, key, body in connection.execute(sql, (*subjects, _MOST_ALIKE)):
            yield number, JobKey(key), body


def check_account(connection: sqlite3.Connection, account: str) -> None:
    """Refuse an account other than the journal's, where something may have been paid; else note it down."""
    known = read_account(connection)
    if account and known and known != account and may_have_paid(connection):
        raise JournalError(
            "This journal holds the tasks of another key or address.",
            advice="Use the key and address it was made with. {new_key}",
        )
    set_account(connection, account or known)


def read_account(connection: sqlite3.Connection) -> str:
    """Return the fingerprint of the account, or an empty string."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'account'").fetchone()
    return "" if row is None else str(row[0])


def set_account(connection: sqlite3.Connection, account: str) -> None:
    """Note down whose journal it is."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('account', ?)", (account,))


def may_have_paid(connection: sqlite3.Connection) -> bool:
    """Return whether a submit of the journal was charged, or may have been."""
    sql = (
        "SELECT EXISTS (SELECT 1 FROM attempt WHERE task_id IS NOT NULL OR state <> 'over') "
        "OR EXISTS (SELECT 1 FROM event WHERE type IN ('SubmitUnknown', 'TaskFound'))"
    )
    return bool(connection.execute(sql).fetchone()[0])


def paid_tasks(connection: sqlite3.Connection, since: float, limit: int) -> list[PaidTask]:
    """Return up to ``limit`` tasks submitted since a time: live ones first, of each kind the newest first."""
    live = "state IN ('submitted', 'generated')"
    sql = (
        f"SELECT task_id, submitted_at, {live} FROM job "  # noqa: S608 - no value of anybody's
        "WHERE state IN ('submitted', 'generated', 'done', 'failed') AND task_id IS NOT NULL "
        f"AND submitted_at >= ? ORDER BY {live} DESC, submitted_at DESC LIMIT ?"
    )
    return [
        PaidTask(task_id=TaskId(task_id), submitted_at=at, is_live=bool(is_live))
        for task_id, at, is_live in connection.execute(sql, (since, limit)).fetchall()
    ]


def take_names(connection: sqlite3.Connection, names: Mapping[int, str]) -> dict[int, JobKey]:
    """Give each job, by its number, its name; a job without a file gives its earlier names back.

    Args:
        connection: The journal.
        names: Names as disks compare them.

    Returns:
        The jobs whose names others have, each with the key of the other.
    """
    taken = {}
    for number, name in names.items():
        connection.execute(_GIVE_BACK, (number, name))
        connection.execute(_TAKE, (name, number))
        owner, key = connection.execute(_OWNER, (name,)).fetchone()
        if owner != number:
            taken[number] = JobKey(key)
    return taken
