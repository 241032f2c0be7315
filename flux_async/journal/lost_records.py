"""Whether a journal knows of every submit that its log names, and what becomes of those it does not know."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from flux_async.errors import JournalRecordsLost
from flux_async.job_state import JobState
from flux_async.journal.schema import check_ours, not_ours_or_damaged, open_for_reading
from flux_async.journal.submit_log import LoggedSubmit, has_opening, is_cut, last_of, log_of, read_log
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3

_CLOSED, _OPEN = "closed", "open "
"""The states of a journal as it notes them; the second is followed by the name of the opening."""

_SET_STATE = "INSERT OR REPLACE INTO meta VALUES ('submit_log', ?)"
_IS_KNOWN = (
    "SELECT 1 FROM event JOIN job ON job.number = event.job "
    "WHERE event.number = ? AND event.type = 'SubmitIntended' AND event.at = ? AND job.key = ?"
)
_NEWEST_ANSWERED = (
    "SELECT max(intent.number) FROM event AS intent JOIN event AS answer "
    "ON answer.job = intent.job AND answer.number > intent.number "
    "WHERE intent.number > ? AND answer.number > ? AND intent.type = 'SubmitIntended' "
    "AND answer.type IN ('SubmitAccepted', 'SubmitRejected', 'SubmitUnknown')"
)
_ANY = JobKey("")
"""Stands in the table of lost submits for every job that the journal does not know."""


@attrs.frozen(kw_only=True)
class LostRecords:
    """Submits that a journal has no record of.

    Attributes:
        submits: The newest of each job, by the job's key; also of jobs that the journal does not know.
        log_is_lost: Whether the log of submits itself is not there, is empty, cut or older than the journal:
            any job that is pending, or that the journal does not know, may have been submitted.
    """

    submits: dict[JobKey, LoggedSubmit] = attrs.field(factory=dict)
    log_is_lost: bool = False


def check_whole(connection: sqlite3.Connection | None, journal: Path) -> None:
    """Compare a journal with its log of submits.

    Args:
        connection: Reads the journal; None where there is no file, or an empty one.
        journal: Its path.

    Raises:
        JournalRecordsLost: It lacks records.
    """
    log = log_of(journal)
    last = last_of(log)  # read first: every submit that it names was committed before
    if last is not None and (connection is None or not _is_known(connection, last)):
        raise JournalRecordsLost(
            f"{journal} lacks records of submits, which may be paid: {log.name} names later ones. Its -wal "
            "file was lost or cut, or an older copy was put in its place. Nothing was sent."
        )
    if connection is None and last is None and _is_left_over(journal):
        raise JournalRecordsLost(
            f"{journal} is not there or empty, and files beside it show that it was in use. So its records "
            "of submits are lost, and nothing was sent."
        )
    if connection is not None and _is_log_lost(connection, log, last):
        what = "is empty, cut or older than the journal" if log.exists() else "is not beside it"
        raise JournalRecordsLost(
            f"{journal} was in use when its process ended or when it was copied, and {log.name} {what}. So "
            "the journal may lack records of submits, and nothing was sent."
        )


def find_lost(connection: sqlite3.Connection | None, journal: Path) -> LostRecords | None:
    """Return all submits of the log that the journal does not know; None where nothing is lost."""
    log = log_of(journal)
    submits = {
        submit.key: submit
        for submit in read_log(log)
        if connection is None or not _is_known(connection, submit)
    }
    if submits and is_cut(log):
        is_lost = True
    elif connection is None:
        is_lost = not submits and _is_left_over(journal)
    else:
        is_lost = _is_log_lost(connection, log, last_of(log))
    return LostRecords(submits=submits, log_is_lost=is_lost) if submits or is_lost else None


def look_for_loss(path: Path) -> LostRecords | None:
    """Return what a journal lacks of the submits in its log, or None where it is whole; it is not changed.

    Raises:
        JournalError: It is another program's, or damaged.
    """
    import sqlite3  # noqa: PLC0415 - loaded with the first journal, not with the package

    if not path.exists() or not path.stat().st_size:
        return find_lost(None, path)
    try:
        with ExitStack() as stack:
            connection = open_for_reading(path, stack, leaves_no_trace=True)
            check_ours(connection, path)
            return find_lost(connection, path)
    except sqlite3.Error as error:
        raise not_ours_or_damaged(error, path) from None


def note_open(connection: sqlite3.Connection, opening: str) -> None:
    """Note that the journal is in use: from now on it is whole only together with its log of submits.

    The note is in the main file at once, where a copy without the ``-wal`` file has it.

    Args:
        connection: The journal.
        opening: The name of this opening, which the log has already.
    """
    connection.execute(_SET_STATE, (_OPEN + opening,))
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def note_closed(connection: sqlite3.Connection) -> None:
    """Note that the journal is whole without its log of submits."""
    connection.execute(_SET_STATE, (_CLOSED,))


def keep_unknown(connection: sqlite3.Connection, submit: LoggedSubmit) -> None:
    """Remember a submit of a job that the journal does not know, until the job is given again."""
    connection.execute("INSERT OR REPLACE INTO lost_submit VALUES (?, ?)", (submit.key, submit.at))


def keep_any_unknown(connection: sqlite3.Connection, at: float) -> None:
    """Remember that any job which the journal does not know may have been submitted."""
    connection.execute("INSERT OR REPLACE INTO lost_submit VALUES (?, ?)", (_ANY, at))


def has_unknown(connection: sqlite3.Connection) -> bool:
    """Whether any such submit is remembered."""
    return connection.execute("SELECT 1 FROM lost_submit LIMIT 1").fetchone() is not None


def take_unknown(connection: sqlite3.Connection, key: JobKey) -> float | None:
    """Return, and forget, the time of a job's lost submit; None where it has none."""
    rows = connection.execute("DELETE FROM lost_submit WHERE key = ? RETURNING at", (key,)).fetchall()
    if not rows:
        rows = connection.execute("SELECT at FROM lost_submit WHERE key = ?", (_ANY,)).fetchall()
    return float(rows[0][0]) if rows else None


def pending_keys(connection: sqlite3.Connection) -> list[JobKey]:
    """Return the keys of all jobs that would be submitted."""
    rows = connection.execute("SELECT key FROM job WHERE state = ?", (JobState.PENDING,))
    return [JobKey(key) for (key,) in rows]


def _is_known(connection: sqlite3.Connection, submit: LoggedSubmit) -> bool:
    if not _has_table(connection, "event"):
        return False
    found = connection.execute(_IS_KNOWN, (submit.event, submit.at, submit.key))
    return found.fetchone() is not None


def _is_log_lost(connection: sqlite3.Connection, log: Path, last: LoggedSubmit | None) -> bool:
    """Whether the journal was left in use, and its log is not the one of that use, or not all of it.

    A journal in use without its ``-wal`` file is no loss by itself: a webhook receiver that ends after the
    run has moved what it held into the main file. Then the log says that nothing is missing.
    """
    if not _has_table(connection, "meta"):
        return False
    row = connection.execute("SELECT value FROM meta WHERE name = 'submit_log'").fetchone()
    if row is None or not row[0].startswith(_OPEN):
        return False
    if not has_opening(log, row[0].removeprefix(_OPEN)) or is_cut(log):
        return True
    # A request leaves after its line is written. A run may be writing: look at the log again, after the
    # journal.
    after = 0 if last is None else last.event
    answered = connection.execute(_NEWEST_ANSWERED, (after, after)).fetchone()[0]
    if answered is None:
        return False
    last = last_of(log)
    return last is None or last.event < answered


def _is_left_over(journal: Path) -> bool:
    """Whether files of a journal in use lie where the journal itself is not there or empty.

    SQLite writes to the main file first, and the log has a line before it is used. So where the main file has
    bytes by now, another process has just made the journal, and nothing was left over.
    """
    wal, log = journal.with_name(f"{journal.name}-wal"), log_of(journal)
    is_log_lost = log.exists() and (is_cut(log) or not has_opening(log))
    is_in_use = is_log_lost or (wal.exists() and wal.stat().st_size > 0)
    return is_in_use and not (journal.exists() and journal.stat().st_size > 0)


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(sql, (name,)).fetchone() is not None
