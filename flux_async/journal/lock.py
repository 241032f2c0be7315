"""One run of a journal at a time: locks that the operating system releases when the process ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Self

import attrs

from flux_async.errors import JournalBusyError, JournalError
from flux_async.journal.schema import opening_error


@attrs.frozen(kw_only=True)
class LockOwner:
    """The process that runs a journal.

    Attributes:
        pid: Its id.
        since: The time it took the lock, in seconds since the epoch.
    """

    pid: int
    since: float

    @classmethod
    def read(cls, lock_file: Path) -> Self | None:
        """Return the owner that is written in a lock file; None if there is none."""
        try:
            fields = json.loads(lock_file.read_text(encoding="utf-8"))
            return cls(pid=int(fields["pid"]), since=float(fields["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def lock_owner_of(journal: Path) -> LockOwner | None:
    """Return the process that runs ``journal`` now, without taking its lock."""
    owner = LockOwner.read(_lock_file_of(journal.resolve()))
    if owner is None:
        return None
    try:
        os.kill(owner.pid, 0)
    except PermissionError:
        return owner  # the process runs, as another user
    except (OSError, OverflowError):
        return None
    return owner


@attrs.frozen
class _LockedFile:
    """A locked file: its descriptor and its path."""

    file: int
    path: Path

    @classmethod
    def lock(cls, path: Path) -> Self | None:
        """Open and lock the file that is at this path now; None if another process has locked it."""
        import fcntl

        while True:
            locked = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), path)
            try:
                fcntl.flock(locked.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(locked.file)
                return None
            except BaseException:  # a file system without locks
                os.close(locked.file)
                raise
            if locked.is_in_place():
                return locked
            os.close(locked.file)  # the file was replaced meanwhile

    def is_in_place(self) -> bool:
        """Return whether the path still leads to the file."""
        try:
            return os.path.samestat(os.fstat(self.file), self.path.lstat())
        except OSError:
            return False

    def write(self, text: str) -> None:
        """Replace its content."""
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, text.encode(), 0)

    def release(self, *, remove: bool) -> None:
        """Empty and unlock it, also for a forked child that inherited it."""
        import fcntl

        with contextlib.suppress(OSError):
            os.ftruncate(self.file, 0)
            if remove and self.is_in_place():
                self.path.unlink()  # a process that waits for this file notices, and makes another
        with contextlib.suppress(OSError):
            fcntl.flock(self.file, fcntl.LOCK_UN)
        with contextlib.suppress(OSError):
            os.close(self.file)


class JournalLock:
    """Three locks on a journal, so that a second run is refused however it reaches the journal.

    ``<journal>.lock`` is seen by every user and every machine. Two more are in a folder that only this user
    can write to: one named after the journal's path, for a folder that is moved or deleted during a run and
    made anew, and one named after its inode, for hard links. The journal itself is never locked here: on some
    systems that would shut SQLite out, and closing any descriptor of it would drop SQLite's own locks.

    Attributes:
        leaves_no_file: Whether a ``<journal>.lock`` that this lock has made is removed as well: the file
            beside it could not be opened as a journal.
    """

    def __init__(self, locks: list[_LockedFile], *, is_new: bool = False) -> None:
        self._locks = locks
        self._is_new = is_new
        self.leaves_no_file: bool = False

    @classmethod
    def take(cls, journal: Path, *, at: float) -> JournalLock:
        """Lock ``journal``; an empty file is made if there is none.

        Raises:
            JournalBusyError: Another run has locked it; the message names its process.
            JournalError: The files cannot be opened or written, as on a full disk; nothing is locked.
        """
        taken: list[_LockedFile] = []
        try:
            is_new = not _lock_file_of(journal).exists()
            _take(_lock_file_of(journal), taken, journal)
            folder = _private_folder()
            removed = ", though its lock file was removed or its folder moved or deleted"
            _take(folder / _name_by_path(journal), taken, journal, removed)
            _take(folder / _name_by_inode(journal), taken, journal, removed)
            for lock in taken:
                lock.write(json.dumps({"pid": os.getpid(), "since": at}))
        except BaseException as error:
            cls(taken).release()
            if not isinstance(error, OSError):
                raise
            raise opening_error(error, journal) from None
        return cls(taken, is_new=is_new)

    def release(self) -> None:
        """Release all locks; the private ones leave no file behind."""
        for number, lock in reversed(list(enumerate(self._locks))):
            lock.release(remove=number > 0 or (self.leaves_no_file and self._is_new))


def _take(path: Path, taken: list[_LockedFile], journal: Path, circumstance: str = "") -> None:
    """Lock the file at ``path`` and add it to ``taken``.

    Raises:
        JournalBusyError: Another process has locked it.
    """
    locked = _LockedFile.lock(path)
    if locked is None:
        owner = LockOwner.read(path)
        process = "another process" if owner is None else f"process {owner.pid}"
        raise JournalBusyError(f"{journal} is being run by {process}{circumstance}.")
    taken.append(locked)


def _lock_file_of(journal: Path) -> Path:
    return journal.with_name(journal.name + ".lock")


def _name_by_path(journal: Path) -> str:
    return f"path-{hashlib.sha256(os.fsencode(journal)).hexdigest()[:32]}.lock"


def _name_by_inode(journal: Path) -> str:
    """Return the name of the lock of the file, whatever its path is; make the file if there is none."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(journal, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
    file = journal.stat()
    return f"file-{file.st_dev:x}-{file.st_ino:x}.lock"


def _private_folder() -> Path:
    """Return the folder with this user's locks: in the temporary folder, else in the user's cache.

    A folder that others own or can write to is never used: they could hold a lock, or remove one.

    Raises:
        JournalError: There is none that only this user can write to.
    """
    folders = [Path(tempfile.gettempdir()) / f"flux-async-{os.getuid()}"]
    with contextlib.suppress(RuntimeError):  # no home folder
        # Inode numbers are valid on one machine only, and several machines may share a home folder.
        folders.append(Path.home() / ".cache" / "flux-async" / f"locks-{os.uname().nodename}")
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
            others_may = found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not others_may:
                return folder
    raise JournalError(
        f"No folder for locks is private to this user: tried {' and '.join(map(str, folders))}.",
        advice="Remove what is in the way, or point TMPDIR to a folder of this user; nothing was sent.",
    )
