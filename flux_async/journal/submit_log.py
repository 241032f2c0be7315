"""A list of all submits outside of SQLite's files, which shows whether the journal has lost records.

SQLite cannot distinguish a ``-wal`` file that was left behind, or cut, from one that never existed: it opens
the journal in an earlier state, in which paid jobs seem never to have been submitted. So every submit is also
a line of ``<journal>.submits``: the number of its event, its time, the key of its job. The line is written
after the commit of the intent and before the request leaves. Therefore the journal may have more submits than
this file, never fewer, unless records were lost.

Every time the journal is opened for a run, a comment line names the opening, before the journal stores the
same name as its state. If a journal was left in use and its list does not have that line, the list is older,
emptied or missing, and proves nothing.

The file grows in chunks of blank lines, so that a line neither needs room on a full disk nor changes the
file's
size: it costs one ``fdatasync`` for each commit that holds an intent.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import attrs

from flux_async.errors import JournalError, Scope
from flux_async.journal.schema import NO_ROOM_ADVICE
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3

_CHUNK = 16 * 1024
_PAGE = 256
_OPENING = b"# opened "
_END = b"\n\n"
"""Blank lines at the end of every log: without them it was cut."""


@attrs.frozen
class LoggedSubmit:
    """One submit.

    Attributes:
        event: The number of its event in the journal.
        at: Time of the intent, in seconds since the epoch.
        key: Its job.
    """

    event: int
    at: float
    key: JobKey

    @property
    def line(self) -> bytes:
        """Its line in the log."""
        return f"{self.event} {self.at!r} {json.dumps(self.key)}\n".encode()

    @classmethod
    def read(cls, line: bytes) -> Self | None:
        """Return the submit of a line; None for a blank line, or one that was cut by a loss of power."""
        try:
            event, at, key = line.split(b" ", 2)
            read = json.loads(key)
            return cls(int(event), float(at), JobKey(read)) if isinstance(read, str) else None
        except ValueError:
            return None


# --- writing ----------------------------------------------------------------------------------------------


class SubmitLog:
    """The file, open for writing and made if there is none. Used from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        is_new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            self._size = os.fstat(self._file).st_size
            self._end = next((end for end, _ in _lines_backwards(self._file)), 0)
            if self._end:
                os.pwrite(self._file, b"\n", self._end)  # the last line may have been cut
                self._end += 1
                self._size = max(self._size, self._end)
        except BaseException:
            self.close()
            raise
        if is_new:
            _sync_folder(path.parent)

    @property
    def was_removed(self) -> bool:
        """Whether the file has lost its last name."""
        return os.fstat(self._file).st_nlink == 0

    @property
    def current_path(self) -> Path | None:
        """The path of the file, also after it was moved; None where the system does not provide it."""
        try:
            return Path(f"/proc/self/fd/{self._file}").readlink()
        except OSError:
            return None

    def make_room(self, keys: Iterable[JobKey]) -> None:
        """Make sure that the submits of these jobs can be appended; raises OSError on a full disk."""
        self._make_room(sum(len(LoggedSubmit(2**63, 0.1234567890123456e300, key).line) for key in keys))

    def append(self, submits: Iterable[LoggedSubmit]) -> None:
        """Append submits; on return they are on disk."""
        self._append(b"".join(submit.line for submit in submits))

    def append_opening(self, name: str) -> None:
        """Append that the journal is opened; on return the line is on disk."""
        line = _OPENING + name.encode() + b"\n"
        self._make_room(len(line) + len(_END))
        self._append(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _make_room(self, needed: int) -> None:
        while self._size < self._end + needed:
            _write(self._file, b"\n" * _CHUNK, self._size)
            os.fsync(self._file)
            self._size += _CHUNK

    def _append(self, lines: bytes) -> None:
        if lines:
            _write(self._file, lines, self._end)
            getattr(os, "fdatasync", os.fsync)(self._file)  # macOS has no fdatasync
            self._end += len(lines)
            self._size = max(self._size, self._end)


def catch_up(connection: sqlite3.Connection, path: Path) -> SubmitLog:
    """Open the log of a journal, and append the submits that only the journal has.

    Raises:
        JournalError: The log cannot be written.
    """
    with log_errors(path):
        last = last_of(path)
        log = SubmitLog(path)
        try:
            _append_all(log, connection, 0 if last is None else last.event)
        except BaseException:
            log.close()
            raise
    return log


def rewrite(connection: sqlite3.Connection, path: Path) -> None:
    """Write the log of a journal anew, completely or not at all.

    Raises:
        JournalError: The log cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    with log_errors(path):
        part.unlink(missing_ok=True)
        with closing(SubmitLog(part)) as log:
            _append_all(log, connection, 0)
        part.replace(path)
        _sync_folder(path.parent)


@contextmanager
def log_errors(path: Path) -> Iterator[None]:
    """Raise the errors of a log that cannot be written as :class:`JournalError`."""
    try:
        yield
    except OSError as error:
        message = f"{path} could not be written: {error.strerror or error}."
        raise JournalError(message, advice=NO_ROOM_ADVICE, scope=Scope.STOP) from None


def _append_all(log: SubmitLog, connection: sqlite3.Connection, after: int) -> None:
    rows = connection.execute(
        "SELECT event.number, event.at, job.key FROM event JOIN job ON job.number = event.job "
        "WHERE event.type = 'SubmitIntended' AND event.number > ? ORDER BY event.number",
        (after,),
    )
    while page := rows.fetchmany(_PAGE):
        submits = [LoggedSubmit(number, at, JobKey(key)) for number, at, key in page]
        log.make_room(submit.key for submit in submits)
        log.append(submits)


def _write(file: int, data: bytes, offset: int) -> None:
    if os.pwrite(file, data, offset) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync_folder(folder: Path) -> None:
    """Put a new name on disk, where the system can do that."""
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


# --- reading ----------------------------------------------------------------------------------------------


def log_of(journal: Path) -> Path:
    """Return the path of a journal's log of submits."""
    return journal.with_name(journal.name + ".submits")


def read_log(path: Path) -> Iterator[LoggedSubmit]:
    """Yield all submits of a log, oldest first; none if there is no file."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        yield from filter(None, map(LoggedSubmit.read, file))


def last_of(path: Path) -> LoggedSubmit | None:
    """Return the newest submit of a log, read from its end; None if there is none."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        submits = (LoggedSubmit.read(line) for _, line in _lines_backwards(file.fileno()))
        return next(filter(None, submits), None)
    return None


def has_opening(path: Path, name: str = "") -> bool:
    """Return whether a log has the line of an opening of its journal; without a name, of any."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        openings = (line.rstrip(b"\r\n\0") for line in file if line.startswith(_OPENING))
        return any(not name or line == _OPENING + name.encode() for line in openings)
    return False


def is_cut(path: Path) -> bool:
    """Return whether a log lacks its end: every log ends with blank lines, the room for submits."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_END)))
        return file.read().replace(b"\0", b"\n") != _END
    return False


def _lines_backwards(file: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, the last first, each with the offset of its end."""
    start, data = os.fstat(file).st_size, b""
    while start > 0:
        end, start = start, max(0, start - _CHUNK)
        data = os.pread(file, end - start, start) + data
        while b"\n" in (data := data.rstrip(b"\n\0")):
            before, _, line = data.rpartition(b"\n")
            yield start + len(data), line
            data = before
    if data:
        yield len(data), data
