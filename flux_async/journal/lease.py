"""The right to run a journal: a lock that dies with the process that holds it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from flux_async.errors import JournalBusyError, JournalError


class Lease:
    """Holds ``<journal>.lock``, and a lock file in the temporary folder named after the journal's inode.

    The operating system lets go of both when the process ends, however it ends. The second is for the cases
    that somebody deletes the lock file of a run, or comes by a hard link. The journal itself is never locked
    here: on some systems that would shut SQLite out, and closing any descriptor of it would drop SQLite's own
    locks.
    """

    def __init__(self, by_name: int, by_inode: int, of_inode: Path) -> None:
        self._by_name = by_name
        self._by_inode = by_inode
        self._of_inode = of_inode

    @classmethod
    def take(cls, journal: Path, *, at: float) -> Lease:
        """Take the lease of ``journal``; an empty file is made where there is none.

        Raises:
            JournalBusyError: Somebody else holds it; the message says who.
            JournalError: The files cannot be opened.
        """
        path = journal.with_name(journal.name + ".lock")
        try:
            by_name = _lock_file(path)
            if by_name is None:
                raise JournalBusyError(f"{journal} is being run by {_holder(path)}.")
            try:
                of_inode = _inode_lock(journal)
                by_inode = _lock_file(of_inode)
            except OSError:
                _let_go(by_name)
                raise
            if by_inode is None:
                _let_go(by_name)
                raise JournalBusyError(f"{journal} is being run, though its lock file was removed.")
        except OSError as error:
            raise JournalError(f"{journal} cannot be opened: {error.strerror or error}.") from None
        os.ftruncate(by_name, 0)
        os.pwrite(by_name, json.dumps({"pid": os.getpid(), "since": at}).encode(), 0)
        return cls(by_name, by_inode, of_inode)

    def release(self) -> None:
        """Let go, also of what a forked child inherited; the temporary folder is left as it was."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._by_name, 0)
        with contextlib.suppress(OSError):
            # Whoever waits for this very file sees that it has lost its name, and makes another.
            if os.path.samestat(os.fstat(self._by_inode), self._of_inode.lstat()):
                self._of_inode.unlink()
        for file in (self._by_inode, self._by_name):
            _let_go(file)


def _inode_lock(journal: Path) -> Path:
    """Name the lock that belongs to the file, whatever it is called; make the file where there is none."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(journal, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
    file = journal.stat()
    name = f"flux-async-{os.getuid()}-{file.st_dev:x}-{file.st_ino:x}.lock"
    return Path(tempfile.gettempdir()) / name


def _lock_file(path: Path) -> int | None:
    """Open and lock the file that bears this name now, or None where somebody else has."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
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
