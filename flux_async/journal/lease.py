"""The right to run a journal: a lock that dies with the process that holds it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from flux_async.errors import JournalBusyError, JournalError

_NEVER_CLOSED: list[int] = []
"""Descriptors of a journal that this process itself is running. Closing any descriptor of a file drops all of
the process's POSIX locks on it, and with them SQLite's."""


class Lease:
    """Holds ``<journal>.lock`` and the journal itself.

    The operating system lets go of both when the process ends, however it ends. The second lock is for the
    case that somebody deletes the lock file of a run. Release the lease after the database is closed.
    """

    def __init__(self, lock: int, journal: int) -> None:
        self._lock = lock
        self._journal = journal

    @classmethod
    def take(cls, journal: Path, *, at: float) -> Lease:
        """Take the lease of ``journal``; an empty file is made where there is none.

        Raises:
            JournalBusyError: Somebody else holds it; the message says who.
            JournalError: The files cannot be opened.
        """
        path = journal.with_name(journal.name + ".lock")
        try:
            lock = _lock_file(path)
            if lock is None:
                raise JournalBusyError(f"{journal} is being run by {_holder(path)}.")
            file = os.open(journal, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(file):
                _NEVER_CLOSED.append(file)
                _let_go(lock)
                raise JournalBusyError(f"{journal} is being run, though its lock file was removed.")
        except OSError as error:
            raise JournalError(f"{journal} cannot be opened: {error.strerror or error}.") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "since": at}).encode(), 0)
        return cls(lock, file)

    def release(self) -> None:
        """Let go, also of what a forked child inherited."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._lock, 0)
        for file in (self._journal, self._lock):
            _let_go(file)


def _lock_file(path: Path) -> int | None:
    """Open and lock the file that bears this name now, or None where somebody else has."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(file):
            os.close(file)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # it was exchanged meanwhile


def _lock(file: int) -> bool:
    import fcntl  # noqa: PLC0415 - not on every platform, and only runs need it

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_go(file: int) -> None:
    import fcntl  # noqa: PLC0415 - as above

    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _holder(path: Path) -> str:
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(held['pid'])}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
