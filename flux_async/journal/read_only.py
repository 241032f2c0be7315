"""Opens a journal for reading, also where nothing can be written beside it.

SQLite needs a shared-memory file (``-shm``) to read a journal in WAL mode, and makes it where it can. In a
folder that is read-only, or on a read-only disk, there are two other ways: a journal without a ``-wal`` file
is whole by itself and is read as a file that does not change; one with a ``-wal`` file was left by a process
that died, and both are copied first.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

_NO_PLACE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})


def open_for_reading(
    path: Path, closing_stack: ExitStack, *, leaves_no_trace: bool = False
) -> sqlite3.Connection:
    """Return a connection that reads a journal; the stack closes it, and removes what was copied for it.

    Args:
        path: The journal.
        closing_stack: Closes the connection.
        leaves_no_trace: Also not the empty ``-wal`` and ``-shm`` that SQLite otherwise makes beside a journal
            at rest. A run that begins meanwhile may then end the reading with an error.

    Raises:
        OSError: It cannot be copied.
        sqlite3.Error: It cannot be opened.
    """
    path = path.resolve()
    if leaves_no_trace and not path.with_name(f"{path.name}-wal").exists():
        return closing_stack.enter_context(closing(_connect(path, "mode=ro&immutable=1")))
    try:
        connection = _connect(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _NO_PLACE:
            raise
        connection = _connect_without_writing(path, closing_stack)
    return closing_stack.enter_context(closing(connection))


def _connect_without_writing(path: Path, closing_stack: ExitStack) -> sqlite3.Connection:
    wal = path.with_name(f"{path.name}-wal")
    if not wal.exists() or not wal.stat().st_size:
        return _connect(path, "mode=ro&immutable=1")
    folder = Path(closing_stack.enter_context(tempfile.TemporaryDirectory(prefix="flux-async-")))
    for file in (path, wal):
        shutil.copyfile(file, folder / file.name)
    return _connect(folder / path.name, "mode=rw")


def _connect(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?{options}", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # only now are the files opened
    except sqlite3.Error:
        connection.close()
        raise
    return connection
