"""Watches a journal's files from outside of SQLite while it is run.

Before intents are committed, and after every commit, the journal must still be the file at its path: SQLite
itself goes on writing to a file that was moved or deleted. After a commit that holds intents, they are
written to the log of submits, and only then their requests leave.
"""

from __future__ import annotations

import contextlib
import glob
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flux_async.errors import JournalDisplaced, JournalError
from flux_async.journal.lost_records import check_whole, note_closed, note_open
from flux_async.journal.ownership import may_have_paid
from flux_async.journal.schema import check_ours, connect, not_ours_or_damaged, open_for_reading
from flux_async.journal.submit_log import LoggedSubmit, SubmitLog, catch_up, log_error, log_of
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3


def open_file(path: Path, *, accept_lost_records: bool = False) -> sqlite3.Connection:
    """Open a journal, by whatever process; make it if there is none.

    Raises:
        JournalVersionError: It has an unsupported version.
        JournalRecordsLost: It lacks records of submits, and that is not accepted.
        JournalError: It is another program's, or damaged; or it would be new, and one with paid work was
            saved when it was deleted.
        sqlite3.Error: It cannot be opened.
    """
    import sqlite3  # noqa: PLC0415 - as above

    try:
        if path.exists() and path.stat().st_size:
            # Closing a connection that may write would tidy up another program's files, and would make it
            # impossible to put a -wal file back that was left behind.
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                check_ours(connection, path)
                if not accept_lost_records:
                    check_whole(connection, path)
        else:
            check_not_rescued(path)
            if not accept_lost_records:
                check_whole(None, path)
        return connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise not_ours_or_damaged(error, path) from None


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
        """Note which file the journal is; bring its log up to date.

        Raises:
            JournalError: The log cannot be written.
        """
        self._file = _identity(self._journal)
        self._log = log = catch_up(connection, log_of(self._journal))
        opening = secrets.token_hex(8)
        try:
            log.append_opening(opening)
        except OSError as error:
            raise log_error(log.path, error) from None
        note_open(connection, opening)

    def refusal(self, connection: sqlite3.Connection, keys: Sequence[JobKey]) -> JournalError | None:
        """Return why these jobs must not be submitted, or None."""
        self._look(connection)
        if self.displaced is not None or self._log is None:
            return self.displaced
        try:
            self._log.make_room(keys)
        except OSError as error:
            return log_error(self._log.path, error)
        return None

    def committed(
        self, connection: sqlite3.Connection, submits: Sequence[LoggedSubmit]
    ) -> JournalError | None:
        """Write submits to the log; return why their requests must not leave, or None."""
        self._look(connection)
        if self.displaced is not None or self._log is None or not submits:
            return self.displaced
        try:
            self._log.append(submits)
        except OSError as error:
            return log_error(self._log.path, error)
        return None

    def closing(self, connection: sqlite3.Connection) -> None:
        """Note that the journal is whole; renew the copy of one that was deleted."""
        import sqlite3  # noqa: PLC0415 - loaded with the first journal, not with the package

        self._look(connection)
        if self._rescued is not None:
            copy_to(connection, self._rescued)
        with contextlib.suppress(sqlite3.Error):  # a full disk: then it is opened with its log, or not at all
            note_closed(connection)
        if self._log is not None:
            self._log.close()

    def _look(self, connection: sqlite3.Connection) -> None:
        """Notice, once, that the journal is no longer the file at its path."""
        if self.displaced is not None or _identity(self._journal) == self._file:
            return
        moved_to = self._moved_to()
        if moved_to is None:
            self._rescued = rescue(connection, self._journal)
        words = f"{self._journal} was deleted or replaced during the run. Nothing more is submitted."
        if moved_to is not None:
            words = f"{self._journal} was moved to {moved_to} during the run. Nothing more is submitted."
        elif self._rescued is not None:
            words += f" Its records were saved as {self._rescued}."
        place = moved_to or self._rescued
        advice = None if place is None else _continue_from(place.parent)
        self.displaced = JournalDisplaced(words, advice=advice)

    def _moved_to(self) -> Path | None:
        """Return the journal's new path, where it was moved together with its log and the system tells."""
        if self._log is None or self._log.was_removed:
            return None
        found = self._log.current_path
        journal = None if found is None else found.with_name(self._journal.name)
        return journal if journal is not None and _identity(journal) == self._file else None


def _continue_from(folder: Path) -> str:
    return (
        f"Continue in {folder}: its paid tasks are fetched from there. A new run in the old place would pay "
        "for the same images again."
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what the path leads to, None where that is nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def rescue(connection: sqlite3.Connection, journal: Path) -> Path | None:
    """Copy a journal that has lost its path to a new folder; return its path, None where that failed."""
    name = f"{_beginning(journal)}{secrets.token_hex(3)}"
    for base in _bases(journal):
        with contextlib.suppress(OSError):
            folder = base / name
            folder.mkdir()
            if copy_to(connection, folder / journal.name):
                return folder / journal.name
            folder.rmdir()
    return None


def _bases(journal: Path) -> Iterator[Path]:
    yield journal.parent.parent
    with contextlib.suppress(OSError):  # it was deleted, too
        yield Path.cwd()
    yield Path(tempfile.gettempdir())


def copy_to(connection: sqlite3.Connection, path: Path) -> bool:
    """Write the whole journal to ``path``, in place of an earlier copy; return whether that worked."""
    import sqlite3  # noqa: PLC0415 - loaded with the first journal, not with the package

    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (str(part),))
        with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
            note_closed(copy)
        part.replace(path)
    except (OSError, sqlite3.Error):
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True


def find_rescued(journal: Path) -> Path | None:
    """Return a journal with paid work that was saved when the one at this path was deleted.

    None where there is none beside its folder, or where a journal is at the path.
    """
    if journal.exists() and journal.stat().st_size:
        return None
    pattern = f"{glob.escape(_beginning(journal))}*/{glob.escape(journal.name)}"
    return next(filter(_may_have_paid, sorted(journal.parent.parent.glob(pattern))), None)


def check_not_rescued(journal: Path) -> None:
    """Check that a journal may be made at this path, if there is none.

    Raises:
        JournalError: One with paid work was there, and was saved elsewhere.
    """
    rescued = find_rescued(journal)
    if rescued is not None:
        raise JournalError(
            f"{journal} was deleted during a run, and its records were saved as {rescued}. A new journal "
            "would pay for the same images again; nothing was sent.",
            advice=f"Go on with {rescued}: the same call on it fetches what is paid and submits the rest.",
        )


def _beginning(journal: Path) -> str:
    return f"{journal.parent.name or 'journal'}-rescued-"


def _may_have_paid(journal: Path) -> bool:
    """Whether a journal holds a submit that was charged, or may have been; one that cannot be read may."""
    import sqlite3  # noqa: PLC0415 - as above

    try:
        with contextlib.ExitStack() as stack:
            return may_have_paid(open_for_reading(journal, stack, leaves_no_trace=True))
    except (OSError, sqlite3.Error):
        return True
