"""Saves a journal that was deleted during its run, and finds it again when a new one is made in its place."""

from __future__ import annotations

import contextlib
import glob
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flux_async.errors import JournalError
from flux_async.journal.lost_records import note_closed
from flux_async.journal.paying_account import may_have_paid

if TYPE_CHECKING:
    import sqlite3


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

    from flux_async.journal.read_only import open_for_reading  # noqa: PLC0415 - loads sqlite3

    try:
        with contextlib.ExitStack() as stack:
            return may_have_paid(open_for_reading(journal, stack, leaves_no_trace=True))
    except (OSError, sqlite3.Error):
        return True
