"""The right to run a journal: locks that the operating system releases when the process ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import attrs

from flux_async.errors import JournalBusyError, JournalError

_THOUGH = ", though its lock file was removed or its folder moved or deleted"


@attrs.frozen
class _Lock:
    """A locked file.

    Attributes:
        file: Its descriptor.
        path: Its name.
    """

    file: int
    path: Path

    def write(self, text: str) -> None:
        """Replace its content."""
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, text.encode(), 0)

    def is_in_place(self) -> bool:
        """Whether its name still leads to it."""
        try:
            return os.path.samestat(os.fstat(self.file), self.path.lstat())
        except OSError:
            return False

    def release(self, *, remove: bool) -> None:
        """Unlock it, also for a forked child that inherited it."""
        import fcntl  # noqa: PLC0415 - not on every platform, and only runs need it

        with contextlib.suppress(OSError):
            if remove and self.is_in_place():
                self.path.unlink()  # a process that waits for this very file sees it, and makes another
        with contextlib.suppress(OSError):
            fcntl.flock(self.file, fcntl.LOCK_UN)
        os.close(self.file)


class JournalLock:
    """Holds three locks on a journal, so that no second run gets in by any way.

    ``<journal>.lock`` is seen by every user and every machine. Two more are in a folder that only this user
    can write to: one named after the journal's path, for a folder that is moved or deleted during a run and
    made anew, and one named after its inode, for hard links. The journal itself is never locked here: on some
    systems that would shut SQLite out, and closing any descriptor of it would drop SQLite's own locks.
    """

    def __init__(self, locks: list[_Lock]) -> None:
        self._locks = locks

    @classmethod
    def take(cls, journal: Path, *, at: float) -> JournalLock:
        """Take the lease of ``journal``; an empty file is made where there is none.

        Raises:
            JournalBusyError: Another run holds it; the message names its process.
            JournalError: The files cannot be opened.
        """
        taken: list[_Lock] = []
        try:
            _take(journal.with_name(journal.name + ".lock"), taken, journal, "")
            folder = lock_folder()
            _take(folder / _name_by_path(journal), taken, journal, _THOUGH)
            _take(folder / _name_by_inode(journal), taken, journal, _THOUGH)
        except BaseException as error:
            cls(taken).release()
            if not isinstance(error, OSError):
                raise
            raise JournalError(f"{journal} cannot be opened: {error.strerror or error}.") from None
        for lock in taken:
            lock.write(json.dumps({"pid": os.getpid(), "since": at}))
        return cls(taken)

    def release(self) -> None:
        """Release all locks; the private ones leave no file behind."""
        for number, lock in reversed(list(enumerate(self._locks))):
            with contextlib.suppress(OSError):
                os.ftruncate(lock.file, 0)
            lock.release(remove=number > 0)


def lock_folder() -> Path:
    """Return the folder that holds this user's locks: in the temporary folder, else in the user's cache.

    A folder that others own or can write to is never used: they could hold a lock, or remove one.

    Raises:
        JournalError: There is none that only this user can write to.
    """
    tried = []
    for folder in _lock_folders():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(folder):
                return folder
        tried.append(str(folder))
    raise JournalError(
        f"No folder for locks is private to this user: tried {' and '.join(tried)}.",
        advice="Remove what is in the way, or point TMPDIR to a folder of this user; nothing was sent.",
    )


def _lock_folders() -> list[Path]:
    folders = [Path(tempfile.gettempdir()) / f"flux-async-{os.getuid()}"]
    with contextlib.suppress(RuntimeError):  # no home folder
        # Inode numbers mean something on one machine only, and several may share a home folder.
        folders.append(Path.home() / ".cache" / "flux-async" / f"locks-{os.uname().nodename}")
    return folders


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    others_may = found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not others_may


def _name_by_path(journal: Path) -> str:
    return f"path-{hashlib.sha256(os.fsencode(journal)).hexdigest()[:32]}.lock"


def _name_by_inode(journal: Path) -> str:
    """Name the lock that belongs to the file, whatever it is called; make the file where there is none."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(journal, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
    file = journal.stat()
    return f"file-{file.st_dev:x}-{file.st_ino:x}.lock"


def _take(path: Path, taken: list[_Lock], journal: Path, circumstance: str) -> None:
    """Lock the file at ``path`` and put it on the list.

    Raises:
        JournalBusyError: Another process has locked it.
    """
    file = _lock_file(path)
    if file is None:
        raise JournalBusyError(f"{journal} is being run by {_holder(path)}{circumstance}.")
    taken.append(_Lock(file, path))


def _lock_file(path: Path) -> int | None:
    """Open and lock the file that bears this name now; None where another process has locked it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        if not _lock(file):
            os.close(file)
            return None
        if _Lock(file, path).is_in_place():
            return file
        os.close(file)  # it was exchanged meanwhile


def _lock(file: int) -> bool:
    import fcntl  # noqa: PLC0415 - as above

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(held['pid'])}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
