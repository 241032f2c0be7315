"""The journal's file as a database: is it ours, which version, how to open it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from contextlib import ExitStack, closing
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from flux_async.errors import JournalError, JournalVersionError

if TYPE_CHECKING:
    import sqlite3

APPLICATION_ID = 0x464C5558
""""FLUX": marks the file as ours, so that nobody's other database is taken for a journal."""

SCHEMA_VERSION = 1
"""Stored as ``user_version``. Journals of another version are refused."""

_RESTORE = (
    "It was left as it is. If it was a journal, restore a copy: a new journal would pay again for what this "
    "one held."
)
BUSY_S = 30.0
"""For so long a write waits where another program has locked the journal: backups take seconds."""

_MEMORY, _TEMPORARY = ":memory:", ""
_WAL_TURNS, _WAL_TURN_S = 20, 0.05


def make_folder(path: Path) -> None:
    """Make the folder of a journal; refuse a path that cannot be one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise JournalError(f"{path} is a folder.", advice="Give the name of a file.")
    except (OSError, ValueError) as error:
        raise JournalError(f"{path} cannot be used: {error}.") from None


def inspect(path: Path) -> None:
    """Look at what is there without touching it, and only through SQLite.

    To open and close the file by other means would drop the locks that this process holds on it.
    """
    import sqlite3  # noqa: PLC0415 - loaded with the first journal, not with the package

    if not os.access(path.parent, os.W_OK) or not os.access(path, os.W_OK):
        raise JournalError(f"{path} or its folder is not writable.")
    if path.stat().st_size == 0:
        return
    connection = None
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        check_ours(connection, path)
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise not_ours_or_damaged(error, path) from None
    finally:
        if connection is not None:
            connection.close()
    if problem != "ok":
        raise _damaged(problem, path)


def open_memory() -> sqlite3.Connection:
    """Open a journal that nobody else sees and that ends with the process."""
    return connect(_MEMORY)


def open_temporary() -> sqlite3.Connection:
    """Open a journal that ends with the process, and that may be larger than memory."""
    return connect(_TEMPORARY)


def connect(path: str | Path) -> sqlite3.Connection:
    """Return a connection that may write; make the tables if there are none."""
    import sqlite3  # noqa: PLC0415 - as above

    connection = sqlite3.connect(path, isolation_level=None, cached_statements=64)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}")
        check_ours(connection, path)
        if path not in {_MEMORY, _TEMPORARY}:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
        _make(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; where others open the file too, SQLite may call it busy without having waited."""
    import sqlite3  # noqa: PLC0415 - as above

    for turn in range(_WAL_TURNS):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or turn == _WAL_TURNS - 1:
                raise
            threading.Event().wait(_WAL_TURN_S)
        else:
            return


def check_ours(connection: sqlite3.Connection, path: str | Path) -> None:
    """Refuse another program's database, and a journal of another version."""
    connection.execute("BEGIN")  # one look, so that a schema being written is seen whole or not at all
    try:
        ours = connection.execute("PRAGMA application_id").fetchone()[0]
        version = _version(connection)
        empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    if empty and ours == version == 0:
        return  # new, or made by a process that ended before it could write the schema
    if ours != APPLICATION_ID:
        raise JournalError(f"{path} is another program's database.", advice="Choose another path.")
    if version != SCHEMA_VERSION:
        raise unsupported_version(path, version)


def unsupported_version(path: str | Path, version: int) -> JournalVersionError:
    """Return the error for a journal of another version."""
    return JournalVersionError(
        f"{path} has the unsupported journal version {version}: this release supports {SCHEMA_VERSION}."
    )


def _make(connection: sqlite3.Connection) -> None:
    """Create the tables of a new journal in one transaction; another process may create them first."""
    if _version(connection):
        return
    text = files("flux_async.journal").joinpath("schema.sql").read_text(encoding="utf-8")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _version(connection):
            for statement in text.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def not_ours_or_damaged(error: Exception, path: Path) -> JournalError:
    """Return the error for a file that SQLite refuses."""
    if "not a database" in str(error):
        return JournalError(f"{path} is not a journal, or a damaged one.", advice=_RESTORE)
    return _damaged(str(error), path)


def _damaged(problem: str, path: Path) -> JournalError:
    return JournalError(f"{path} is damaged: {problem}.", advice=_RESTORE)


def open_for_reading(
    path: Path, closing_stack: ExitStack, *, leaves_no_trace: bool = False
) -> sqlite3.Connection:
    """Return a connection that reads a journal; the stack closes it, and removes what was copied for it.

    SQLite needs a shared-memory file (``-shm``) to read a journal in WAL mode, and makes it where it can. In
    a read-only folder or on a read-only disk there are two other ways: a journal without a ``-wal`` file is
    complete and is read as an immutable file; a journal with one was left by a process that died, and both
    files are copied first.

    Args:
        path: The journal.
        closing_stack: Closes the connection.
        leaves_no_trace: Also not the empty ``-wal`` and ``-shm`` that SQLite otherwise makes beside a journal
            at rest. A run that begins meanwhile may then end the reading with an error.

    Raises:
        OSError: It cannot be copied.
        sqlite3.Error: It cannot be opened.
    """
    import sqlite3  # noqa: PLC0415 - as above

    path = path.resolve()
    if leaves_no_trace and not path.with_name(f"{path.name}-wal").exists():
        return closing_stack.enter_context(closing(_connect_read_only(path, "mode=ro&immutable=1")))
    try:
        connection = _connect_read_only(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            raise
        connection = _connect_without_writing(path, closing_stack)
    return closing_stack.enter_context(closing(connection))


def _connect_without_writing(path: Path, closing_stack: ExitStack) -> sqlite3.Connection:
    wal = path.with_name(f"{path.name}-wal")
    if not wal.exists() or not wal.stat().st_size:
        return _connect_read_only(path, "mode=ro&immutable=1")
    folder = Path(closing_stack.enter_context(tempfile.TemporaryDirectory(prefix="flux-async-")))
    for file in (path, wal):
        shutil.copyfile(file, folder / file.name)
    return _connect_read_only(folder / path.name, "mode=rw")


def _connect_read_only(path: Path, options: str) -> sqlite3.Connection:
    import sqlite3  # noqa: PLC0415 - as above

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
