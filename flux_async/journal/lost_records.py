"""Submits that are in the log of submits but not in the journal: how they are found, and put in doubt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from flux_async.errors import JournalRecordsLost
from flux_async.job_state import JobState
from flux_async.journal.rows import put_in_doubt
from flux_async.journal.schema import check_version, open_for_reading, opening_error, read_meta, write_meta
from flux_async.journal.submit_log import (
    LoggedSubmit,
    has_opening,
    is_cut,
    last_of,
    log_of,
    read_log,
    rewrite,
)
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3

_STATE, _CLOSED, _OPEN = "submit_log", "closed", "open "
"""The name and the values of the journal's own state; the second is followed by the name of the opening."""

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
_REMEMBER = "INSERT OR REPLACE INTO lost_submit VALUES (?, ?)"
_ANY = JobKey("")
"""Stands in the table ``lost_submit`` for every job that is not in the journal."""


@attrs.frozen(kw_only=True)
class LostRecords:
    """Submits that a journal has no record of.

    Attributes:
        submits: The newest of each job, by the job's key; the job itself may be lost, too.
        log_is_lost: Whether the log of submits itself is missing, empty, cut or older than the journal: any
            job
            that is pending, or that is not in the journal, may have been submitted.
    """

    submits: dict[JobKey, LoggedSubmit] = attrs.field(factory=dict)
    log_is_lost: bool = False


# --- finding ----------------------------------------------------------------------------------------------


def check_complete(connection: sqlite3.Connection | None, journal: Path) -> None:
    """Compare a journal with its log of submits.

    Args:
        connection: Reads the journal; None if there is no file, or an empty one.
        journal: Its path.

    Raises:
        JournalRecordsLost: The journal lacks records.
    """
    log = log_of(journal)
    last = last_of(log)  # read first: every submit in it was committed before
    if last is not None and (connection is None or not _is_known(connection, last)):
        problem = (
            f"lacks records of submits, which may be paid: {log.name} names later ones. Its -wal file was "
            "lost or cut, or an older copy was put in its place"
        )
    elif connection is None and last is None and _is_left_over(journal):
        problem = "is missing or empty, and files beside it show that it was in use: its records are lost"
    elif connection is not None and _is_log_lost(connection, log, last):
        state = "is empty, cut or older than the journal" if log.exists() else "is not beside it"
        problem = (
            f"was in use when its process ended or when it was copied, and {log.name} {state}: it may lack "
            "records of submits"
        )
    else:
        return
    raise JournalRecordsLost(f"{journal} {problem}. Nothing was sent.")


def find_lost_records(path: Path) -> LostRecords | None:
    """Return the submits that a journal lacks, or None if it is complete; the journal is not changed.

    Raises:
        JournalError: It is another program's, or damaged, or cannot be read.
    """
    import sqlite3

    try:
        if not path.exists() or not path.stat().st_size:
            return _find(None, path)
        with open_for_reading(path, leaves_no_trace=True) as connection:
            check_version(connection, path)
            return _find(connection, path)
    except (OSError, sqlite3.Error) as error:
        raise opening_error(error, path) from None


def _find(connection: sqlite3.Connection | None, journal: Path) -> LostRecords | None:
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


def _is_known(connection: sqlite3.Connection, submit: LoggedSubmit) -> bool:
    if _is_empty(connection):
        return False
    return connection.execute(_IS_KNOWN, (submit.event, submit.at, submit.key)).fetchone() is not None


def _is_log_lost(connection: sqlite3.Connection, log: Path, last: LoggedSubmit | None) -> bool:
    """Return whether a journal was left in use, and its log is of another use, or is not complete.

    A journal in use without its ``-wal`` file is no loss by itself: a webhook receiver that ends after the
    run has moved the records into the main file. Then the log shows that nothing is missing.
    """
    state = None if _is_empty(connection) else read_meta(connection, _STATE)
    if state is None or not state.startswith(_OPEN):
        return False
    if not has_opening(log, state.removeprefix(_OPEN)) or is_cut(log):
        return True
    # A request leaves after its line is written. A run may be writing, so the log is read again after the
    # journal.
    after = 0 if last is None else last.event
    answered = connection.execute(_NEWEST_ANSWERED, (after, after)).fetchone()[0]
    if answered is None:
        return False
    last = last_of(log)
    return last is None or last.event < answered


def _is_left_over(journal: Path) -> bool:
    """Return whether files of a journal in use exist while the journal itself is missing or empty.

    SQLite writes to the main file first, and the log has a line before it is used. So if the main file has
    bytes by now, another process has just made the journal, and nothing was left over.
    """
    wal, log = journal.with_name(f"{journal.name}-wal"), log_of(journal)
    is_log_lost = log.exists() and (is_cut(log) or not has_opening(log))
    is_in_use = is_log_lost or (wal.exists() and wal.stat().st_size > 0)
    return is_in_use and not (journal.exists() and journal.stat().st_size > 0)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


# --- the state of a journal -------------------------------------------------------------------------------


def set_open(connection: sqlite3.Connection, opening: str) -> None:
    """Store that a journal is in use: from now on it is complete only together with its log of submits.

    The state is in the main file at once, so that a copy without the ``-wal`` file has it.

    Args:
        connection: The journal.
        opening: The name of this opening, which is in the log already.
    """
    write_meta(connection, _STATE, _OPEN + opening)
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def set_closed(connection: sqlite3.Connection) -> None:
    """Store that a journal is complete without its log of submits."""
    write_meta(connection, _STATE, _CLOSED)


# --- accepting --------------------------------------------------------------------------------------------


def accept_lost_records(connection: sqlite3.Connection, path: Path, lost: LostRecords, now: float) -> None:
    """Put in doubt every job that may have been submitted without a record; jobs not in the journal later."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        for key, submit in lost.submits.items():
            if not put_in_doubt(connection, key, submit.at, now):
                connection.execute(_REMEMBER, (key, submit.at))
        if lost.log_is_lost:
            pending = connection.execute(
                "SELECT key FROM job WHERE state = ?", (JobState.PENDING,)
            ).fetchall()
            for (key,) in pending:
                put_in_doubt(connection, key, now, now)
            connection.execute(_REMEMBER, (_ANY, now))
    rewrite(connection, log_of(path))


def has_lost_submits(connection: sqlite3.Connection) -> bool:
    """Return whether jobs that are not in the journal yet may have been submitted."""
    return connection.execute("SELECT 1 FROM lost_submit LIMIT 1").fetchone() is not None


def take_lost_submit(connection: sqlite3.Connection, key: JobKey) -> float | None:
    """Return, and forget, the time of a new job's lost submit; None if it has none."""
    rows = connection.execute("DELETE FROM lost_submit WHERE key = ? RETURNING at", (key,)).fetchall()
    if not rows:
        rows = connection.execute("SELECT at FROM lost_submit WHERE key = ?", (_ANY,)).fetchall()
    return float(rows[0][0]) if rows else None
