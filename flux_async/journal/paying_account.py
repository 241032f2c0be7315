"""The account that a journal belongs to, and what was paid with its key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from flux_async.errors import JournalError
from flux_async.models import TaskId

if TYPE_CHECKING:
    import sqlite3


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
