"""A list of all submits outside of SQLite's files, which shows whether the journal has lost records.

SQLite cannot tell a ``-wal`` file that was left behind, or cut, from one that never was: it opens the journal
as it stood some time before, and jobs that are paid look as if they were never submitted. So every submit is
also a line of ``<journal>.submits``: the number of its event, its time, the key of its job. The line is
written after the commit of the intent and before the request leaves. Therefore the journal may know of more
submits than this file, never of fewer, unless records were lost.

Every time the journal is opened for a run, a comment line names the opening, before the journal notes the
same name as its state. A journal that was left in use and whose list does not have that line has an older
list, an emptied one, or none: then the list proves nothing.

The file grows in chunks of blank lines, so that a line neither needs room on a full disk nor changes the
file's size: what it costs is one ``fdatasync`` for each commit that holds an intent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import attrs

from flux_async.errors import JournalError, Scope
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3

NO_ROOM_ADVICE = "Make room: what was written down is kept."
_CHUNK = 16 * 1024
_OPENING = b"# opened "
_BLANK = b"\n\n"
_SQL_INTENTS = (
    "SELECT event.number, event.at, job.key FROM event JOIN job ON job.number = event.job "
    "WHERE event.type = 'SubmitIntended' AND event.number > ? ORDER BY event.number"
)


@attrs.frozen
class LoggedSubmit:
    """One submit.

    Attributes:
        event: The number of its event in the journal.
        at: When it was intended, in seconds since the epoch.
        key: Its job.
    """

    event: int
    at: float
    key: JobKey

    @property
    def line(self) -> bytes:
        """The line that stands for it."""
        return f"{self.event} {self.at!r} {json.dumps(self.key)}\n".encode()

    @classmethod
    def read(cls, line: bytes) -> Self | None:
        """Return what a line says; None for a blank line, or one that was cut by a loss of power."""
        try:
            event, at, key = line.split(b" ", 2)
            said = json.loads(key)
            return cls(int(event), float(at), JobKey(said)) if isinstance(said, str) else None
        except ValueError:
            return None


class SubmitLog:
    """The file, open for writing. Used from one thread at a time.

    Args:
        path: The file; made where there is none.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        is_new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        self._size = os.fstat(self._file).st_size
        self._end = self._find_end()
        if is_new:
            _sync_folder(path.parent)

    @property
    def was_removed(self) -> bool:
        """Whether the file has lost its last name."""
        return os.fstat(self._file).st_nlink == 0

    @property
    def current_path(self) -> Path | None:
        """Where the file is now, also after it was moved; None where the system does not say."""
        try:
            return Path(f"/proc/self/fd/{self._file}").readlink()
        except OSError:
            return None

    def make_room(self, keys: Iterable[JobKey]) -> None:
        """Make sure that the submits of these jobs can be appended.

        Raises:
            OSError: The disk has no room.
        """
        self._make_room(sum(len(LoggedSubmit(2**63, 0.1234567890123456e300, key).line) for key in keys))

    def _make_room(self, needed: int) -> None:
        while self._size < self._end + needed:
            _write(self._file, b"\n" * _CHUNK, self._size)
            os.fsync(self._file)
            self._size += _CHUNK

    def append(self, submits: Iterable[LoggedSubmit]) -> None:
        """Write submits down; on return they are on disk.

        Raises:
            OSError: The disk refused it.
        """
        self._append(b"".join(submit.line for submit in submits))

    def append_opening(self, name: str) -> None:
        """Write down that the journal is opened; on return it is on disk.

        Raises:
            OSError: The disk refused it.
        """
        line = _opening(name) + b"\n"
        self._make_room(len(line) + len(_BLANK))
        self._append(line)

    def _append(self, lines: bytes) -> None:
        if lines:
            _write(self._file, lines, self._end)
            getattr(os, "fdatasync", os.fsync)(self._file)  # macOS has no fdatasync
            self._end += len(lines)
            self._size = max(self._size, self._end)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _find_end(self) -> int:
        """Return where the next line goes; a line that was cut is ended first."""
        end = self._size
        while end > 0:
            start = max(0, end - _CHUNK)
            filled = os.pread(self._file, end - start, start).rstrip(b"\n\0")
            if filled:
                end = start + len(filled)
                break
            end = start
        if end == 0:
            return 0
        os.pwrite(self._file, b"\n", end)
        self._size = max(self._size, end + 1)
        return end + 1


def log_of(journal: Path) -> Path:
    """Return the path of a journal's log of submits."""
    return journal.with_name(journal.name + ".submits")


def read_log(path: Path) -> Iterator[LoggedSubmit]:
    """Yield all submits of a log, oldest first; none where there is no file."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            submit = LoggedSubmit.read(line)
            if submit is not None:
                yield submit


def has_opening(path: Path, name: str | None = None) -> bool:
    """Whether a log holds the line of an opening of its journal; without a name, of any."""
    wanted = _OPENING if name is None else _opening(name)
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return any(
            line.startswith(wanted) if name is None else line.rstrip(b"\r\n\0") == wanted for line in file
        )
    return False


def is_cut(path: Path) -> bool:
    """Whether a log lacks its end: every log ends with blank lines, in the room for the next submits."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_BLANK)))
        return len(file.read().replace(b"\0", b"\n").removesuffix(_BLANK)) > 0 or size < len(_BLANK)
    return False


def last_of(path: Path) -> LoggedSubmit | None:
    """Return the newest submit of a log, read from its end; None where there is none."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        while end > 0:
            start = max(0, end - _CHUNK)
            file.seek(start)
            tail = (file.read(end - start) + tail).rstrip(b"\n\0")
            lines = tail.split(b"\n")
            for line in reversed(lines if start == 0 else lines[1:]):
                submit = LoggedSubmit.read(line)
                if submit is not None:
                    return submit
            tail, end = lines[0] if start > 0 else b"", start
    return None


def catch_up(connection: sqlite3.Connection, path: Path) -> SubmitLog:
    """Open the log of a journal, and append the submits it lacks: those of a release that kept none.

    Raises:
        JournalError: The disk refused it.
    """
    try:
        last = last_of(path)
        log = SubmitLog(path)
        try:
            _append_all(log, connection, 0 if last is None else last.event)
        except BaseException:
            log.close()
            raise
    except OSError as error:
        raise log_error(path, error) from None
    return log


def rewrite(connection: sqlite3.Connection, path: Path) -> None:
    """Write the log of a journal anew, whole or not at all.

    Raises:
        JournalError: The disk refused it.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        log = SubmitLog(part)
        try:
            _append_all(log, connection, 0)
        finally:
            log.close()
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise log_error(path, error) from None


def log_error(path: Path, error: OSError) -> JournalError:
    """Return the error of a log that cannot be written."""
    return JournalError(
        f"{path} could not be written: {error.strerror or error}.", advice=NO_ROOM_ADVICE, scope=Scope.STOP
    )


def _opening(name: str) -> bytes:
    return _OPENING + name.encode()


def _append_all(log: SubmitLog, connection: sqlite3.Connection, after: int) -> None:
    rows = connection.execute(_SQL_INTENTS, (after,))
    while page := rows.fetchmany(_CHUNK // 64):
        submits = [LoggedSubmit(number, at, JobKey(key)) for number, at, key in page]
        log.make_room(submit.key for submit in submits)
        log.append(submits)


def _write(file: int, data: bytes, place: int) -> None:
    if os.pwrite(file, data, place) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync_folder(folder: Path) -> None:
    """Put a new name on disk, where the system can do that."""
    with contextlib.suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
