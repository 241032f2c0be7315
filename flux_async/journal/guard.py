"""Opens a journal's file, notices when it is moved or deleted during a run, and saves a deleted one.

SQLite itself goes on writing to a file that was moved or deleted. So before intents are committed, and after
every commit, the journal must still be the file at its path. After a commit that holds intents, they are
written to the log of submits, and only then their requests leave.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from flux_async.errors import JournalDisplaced, JournalError
from flux_async.journal.lost_records import (
    accept_lost_records,
    check_complete,
    find_lost_records,
    set_closed,
    set_open,
)
from flux_async.journal.ownership import may_have_paid
from flux_async.journal.schema import (
    check_version,
    connect,
    connect_read_only,
    damage,
    open_for_reading,
    opening_error,
)
from flux_async.journal.submit_log import LoggedSubmit, SubmitLog, catch_up, log_errors, log_of
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3


# --- opening ----------------------------------------------------------------------------------------------


def open_file(
    path: Path, *, checks_pages: bool = False, accept_lost_at: float | None = None, may_be_new: bool = True
) -> sqlite3.Connection:
    """Open a journal, from any process; make it if there is none and ``may_be_new``.

    Args:
        path: The file.
        checks_pages: Whether to check every page, which takes a second for 100 MB.
        accept_lost_at: Open it also if it lacks records of submits; these jobs are put in doubt at this time.
        may_be_new: Whether a missing or empty file becomes a journal.

    Raises:
        JournalVersionError: It has an unsupported version.
        JournalRecordsLost: It lacks records of submits, and that is not accepted.
        JournalError: It is no journal, or damaged; or it would be new, and one with paid work was saved when
            it was deleted.
        sqlite3.Error: It cannot be opened.
    """
    import sqlite3

    is_new = not path.exists() or not path.stat().st_size
    if not os.access(path.parent, os.W_OK) or not (is_new or os.access(path, os.W_OK)):
        raise JournalError(f"{path} or its folder is not writable.")
    lost = None if accept_lost_at is None else find_lost_records(path)
    try:
        if is_new:
            _check_not_rescued(path)
            if accept_lost_at is None:
                check_complete(None, path)
        else:
            with closing(connect_read_only(path)) as connection:
                check_version(connection, path)
                problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0] if checks_pages else "ok"
                if problem != "ok":
                    raise damage(problem, path)
                if accept_lost_at is None:
                    check_complete(connection, path)
        connection = connect(path, may_be_new=may_be_new)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise opening_error(error, path) from None
    try:
        if lost is not None and accept_lost_at is not None:
            accept_lost_records(connection, path, lost, accept_lost_at)
    except BaseException:
        connection.close()
        raise
    return connection


def find_rescued(journal: Path) -> Path | None:
    """Return a journal with paid work that was saved when the one at this path was deleted.

    None if there is none beside its folder, or if a journal is at the path.
    """
    if journal.exists() and journal.stat().st_size:
        return None
    pattern = f"{glob.escape(_rescue_prefix(journal))}*/{glob.escape(journal.name)}"
    return next(filter(_file_may_have_paid, sorted(journal.parent.parent.glob(pattern))), None)


def _check_not_rescued(journal: Path) -> None:
    rescued = find_rescued(journal)
    if rescued is not None:
        raise JournalError(
            f"{journal} was deleted during a run, and its records were saved as {rescued}. A new journal "
            "would pay for the same images again; nothing was sent.",
            advice=f"Go on with {rescued}: the same call on it fetches what is paid and submits the rest.",
        )


def _file_may_have_paid(journal: Path) -> bool:
    """Return whether a journal holds a submit that was or may be charged; True if it cannot be read."""
    import sqlite3

    try:
        with open_for_reading(journal, leaves_no_trace=True) as connection:
            return may_have_paid(connection)
    except (OSError, sqlite3.Error):
        return True


# --- during a run -----------------------------------------------------------------------------------------


class JournalGuard:
    """Guards one journal, in the thread of its writer.

    Args:
        journal: Its path.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._log: SubmitLog | None = None
        self._file: tuple[int, int] | None = None
        self._rescued: Path | None = None
        self.displaced: JournalDisplaced | None = None

    def opened(self, connection: sqlite3.Connection) -> None:
        """Remember which file the journal is; bring its log up to date.

        Raises:
            JournalError: The log cannot be written.
        """
        self._file = _identity(self._journal)
        log = catch_up(connection, log_of(self._journal))
        try:
            opening = secrets.token_hex(8)
            with log_errors(log.path):
                log.append_opening(opening)
            set_open(connection, opening)
        except BaseException:
            log.close()
            raise
        self._log = log

    def refusal(self, connection: sqlite3.Connection, keys: Sequence[JobKey]) -> JournalError | None:
        """Return the error that forbids to submit these jobs, or None."""
        return self._use_log(connection, lambda log: log.make_room(keys))

    def committed(
        self, connection: sqlite3.Connection, submits: Sequence[LoggedSubmit]
    ) -> JournalError | None:
        """Write submits to the log; return the error that forbids their requests, or None."""
        return self._use_log(connection, lambda log: log.append(submits))

    def closing(self, connection: sqlite3.Connection) -> None:
        """Store that the journal is complete; renew the copy of a deleted one."""
        import sqlite3

        self._check_path(connection)
        if self._rescued is not None:
            _copy_to(connection, self._rescued)
        with contextlib.suppress(sqlite3.Error):  # a full disk: then it is opened with its log, or not at all
            set_closed(connection)
        if self._log is not None:
            self._log.close()

    def _use_log(
        self, connection: sqlite3.Connection, work: Callable[[SubmitLog], None]
    ) -> JournalError | None:
        self._check_path(connection)
        if self.displaced is not None or self._log is None:
            return self.displaced
        try:
            with log_errors(self._log.path):
                work(self._log)
        except JournalError as error:
            return error
        return None

    def _check_path(self, connection: sqlite3.Connection) -> None:
        """Notice, once, that the journal is no longer the file at its path."""
        if self.displaced is not None or _identity(self._journal) == self._file:
            return
        moved_to = self._moved_to()
        if moved_to is None:
            self._rescued = _rescue(connection, self._journal)
        message = f"{self._journal} was deleted or replaced during the run. Nothing more is submitted."
        if moved_to is not None:
            message = f"{self._journal} was moved to {moved_to} during the run. Nothing more is submitted."
        elif self._rescued is not None:
            message += f" Its records were saved as {self._rescued}."
        found, advice = moved_to or self._rescued, None
        if found is not None:
            advice = (
                f"Continue in {found.parent}: its paid tasks are fetched from there. A new run in the old "
                "place would pay for the same images again."
            )
        self.displaced = JournalDisplaced(message, advice=advice)

    def _moved_to(self) -> Path | None:
        """Return the new path of a journal that was moved with its log, if the system provides it."""
        if self._log is None or self._log.was_removed:
            return None
        log = self._log.current_path
        journal = None if log is None else log.with_name(self._journal.name)
        return journal if journal is not None and _identity(journal) == self._file else None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of the file at a path; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _rescue(connection: sqlite3.Connection, journal: Path) -> Path | None:
    """Copy a deleted journal to a new folder; return the copy's path, or None if no folder can be written."""
    name = f"{_rescue_prefix(journal)}{secrets.token_hex(3)}"
    for base in (str(journal.parent.parent), ".", tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            folder = Path(base).absolute() / name
            folder.mkdir()
            if _copy_to(connection, folder / journal.name):
                return folder / journal.name
            folder.rmdir()
    return None


def _rescue_prefix(journal: Path) -> str:
    return f"{journal.parent.name or 'journal'}-rescued-"


def _copy_to(connection: sqlite3.Connection, path: Path) -> bool:
    """Write the whole journal to ``path``, in place of an earlier copy; return whether that worked."""
    import sqlite3

    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (str(part),))
        with closing(sqlite3.connect(part, isolation_level=None)) as copy:
            set_closed(copy)
        part.replace(path)
    except (OSError, sqlite3.Error):
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True
