"""Whether a journal knows of every submit that its log names, and what becomes of those it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from flux_async.errors import JournalRecordsLost
from flux_async.job_state import JobState
from flux_async.journal.submit_log import LoggedSubmit, last_of, log_of, read_log
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3

_OPEN, _CLOSED = "open", "closed"
_SET_STATE = "INSERT OR REPLACE INTO meta VALUES ('submit_log', ?)"
_IS_KNOWN = (
    "SELECT 1 FROM event JOIN job ON job.number = event.job "
    "WHERE event.number = ? AND event.type = 'SubmitIntended' AND event.at = ? AND job.key = ?"
)


@attrs.frozen(kw_only=True)
class LostRecords:
    """Submits that a journal has no record of.

    Attributes:
        submits: The newest of each job, by the job's key; also of jobs that the journal does not know.
        log_is_missing: Whether the log of submits itself is not there: any pending job may be submitted.
    """

    submits: dict[JobKey, LoggedSubmit] = attrs.field(factory=dict)
    log_is_missing: bool = False


def check_whole(connection: sqlite3.Connection | None, journal: Path) -> None:
    """Compare a journal with its log of submits.

    Args:
        connection: Reads the journal; None where the file is empty.
        journal: Its path.

    Raises:
        JournalRecordsLost: It lacks records.
    """
    log = log_of(journal)
    last = last_of(log)  # read first: every submit that it names was committed before
    if last is None:
        if connection is not None and _lacks_log(connection, log):
            raise JournalRecordsLost(
                f"{journal} was in use when its process ended or when it was copied, and {log.name} is not "
                "beside it. So it may lack records of submits, and nothing was sent."
            )
    elif connection is None or not _is_known(connection, last):
        raise JournalRecordsLost(
            f"{journal} lacks records of submits, which may be paid: {log.name} names later ones. Its -wal "
            "file was lost or cut, or an older copy was put in its place. Nothing was sent."
        )


def find_lost(connection: sqlite3.Connection | None, journal: Path) -> LostRecords:
    """Return all submits of the log that the journal does not know."""
    log = log_of(journal)
    submits = {
        submit.key: submit
        for submit in read_log(log)
        if connection is None or not _is_known(connection, submit)
    }
    is_missing = connection is not None and last_of(log) is None and _lacks_log(connection, log)
    return LostRecords(submits=submits, log_is_missing=is_missing)


def note_open(connection: sqlite3.Connection) -> None:
    """Note that the journal is in use: from now on it is whole only together with its log of submits.

    The note is in the main file at once, where a copy without the ``-wal`` file has it.
    """
    connection.execute(_SET_STATE, (_OPEN,))
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def note_closed(connection: sqlite3.Connection) -> None:
    """Note that the journal is whole without its log of submits."""
    connection.execute(_SET_STATE, (_CLOSED,))


def keep_unknown(connection: sqlite3.Connection, submit: LoggedSubmit) -> None:
    """Remember a submit of a job that the journal does not know, until the job is given again."""
    connection.execute("INSERT OR REPLACE INTO lost_submit VALUES (?, ?)", (submit.key, submit.at))


def has_unknown(connection: sqlite3.Connection) -> bool:
    """Whether any such submit is remembered."""
    return connection.execute("SELECT 1 FROM lost_submit LIMIT 1").fetchone() is not None


def take_unknown(connection: sqlite3.Connection, key: JobKey) -> float | None:
    """Return, and forget, the time of a job's lost submit; None where it has none."""
    rows = connection.execute("DELETE FROM lost_submit WHERE key = ? RETURNING at", (key,)).fetchall()
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


def _lacks_log(connection: sqlite3.Connection, log: Path) -> bool:
    """Whether the journal was left in use, and its log is not there."""
    if log.exists() or not _has_table(connection, "meta"):
        return False
    state = connection.execute("SELECT value FROM meta WHERE name = 'submit_log'").fetchone()
    return state is not None and state[0] == _OPEN


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(sql, (name,)).fetchone() is not None
