"""Watches a journal's files from outside of SQLite while it is run.

Before intents are committed, and after every commit, the journal must still be the file at its path: SQLite
itself goes on writing to a file that was moved or deleted. After a commit that holds intents, they are
written to the log of submits, and only then their requests leave.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flux_async.errors import JournalDisplaced, JournalError
from flux_async.journal.lost_records import note_closed, note_open
from flux_async.journal.rescue import copy_to, rescue
from flux_async.journal.submit_log import LoggedSubmit, SubmitLog, catch_up, log_error, log_of
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3


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
