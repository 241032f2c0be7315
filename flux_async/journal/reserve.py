"""Room on the disk for answers to submits that are on their way when it fills up.

Such an answer is paid for and comes once. A file beside the journal holds the room while a batch runs, and is
cut shorter, a step at a time, where an answer cannot be written without.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from flux_async.errors import JournalError, Scope

STEP = 64 * 1024
"""More than all submits that are usually on the wire at once need."""

SIZE = 8 * STEP

NO_ROOM_ADVICE = "Make room: what was written down is kept."

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Reserve:
    """Holds ``<journal>.reserve``. Used from one thread at a time.

    Args:
        journal: Beside which file.
    """

    def __init__(self, journal: Path) -> None:
        self._path = journal.with_name(journal.name + ".reserve")

    def hold(self) -> None:
        """Take the room, or what is missing of it.

        Raises:
            JournalError: The disk has not so much.
        """
        try:
            with self._path.open("ab") as file:
                _fill(file.fileno(), os.fstat(file.fileno()).st_size)
        except OSError as error:
            self.give_back()
            raise JournalError(
                f"There is no room beside the journal for the answers to submits: {error.strerror or error}.",
                advice=NO_ROOM_ADVICE,
                scope=Scope.STOP,
            ) from None

    def give(self) -> bool:
        """Let go of a step; False where none is left."""
        try:
            size = self._path.stat().st_size
            os.truncate(self._path, max(0, size - STEP))
        except OSError:
            return False
        return size > 0

    def give_back(self) -> None:
        """Let go of it all."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def _fill(file: int, size: int) -> None:
    """Take the blocks themselves: a hole would hold nothing."""
    try:
        os.posix_fallocate(file, 0, SIZE)
    except AttributeError:
        pass  # no such call on this system
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise  # any other says that this disk cannot do it
    else:
        return
    while size < SIZE:
        size += os.write(file, os.urandom(min(STEP, SIZE - size)))
