"""The journal's file as a database: connections to it, its version, and its steps from older versions.

This package imports sqlite3 inside of functions: it is loaded with the first journal, not with flux_async.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from flux_async.errors import JournalError, JournalVersionError, Scope, shown

if TYPE_CHECKING:
    import sqlite3

APPLICATION_ID = 0x464C5558
""""FLUX" in ASCII: marks a file as a journal, so that another program's database is never used as one."""

SCHEMA_VERSION = 4
"""Stored as ``user_version``. A journal of an older version is brought to this one when it is written."""

OLDEST_VERSION = 3
"""A journal of a version before it, or after this release's own, is refused."""

BUSY_S = 30.0
"""Seconds that a write waits for another program's lock: backups take some."""

NO_ROOM_ADVICE = "Make room on the disk: everything that was written is kept."

_WAL_ATTEMPTS, _WAL_PAUSE_S = 20, 0.05
_RESTORE_ADVICE = (
    "It was left as it is. If it was a journal, restore a copy: a new journal would pay again for what this "
    "one held."
)


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a journal, without links, so that one file has one lock file."""
    try:
        return Path(path).resolve()
    except (OSError, TypeError, ValueError) as error:
        raise JournalError(f"{shown(path)} is no path for a journal: {error}.") from None


def make_folder(path: Path, *, may_be_new: bool = True) -> None:
    """Make the folder of a journal that may be new; refuse a path that cannot be one."""
    try:
        if not may_be_new and not path.exists():
            raise JournalError(f"There is no journal at {path}.", advice="Check the path.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise JournalError(f"{path} is a folder.", advice="Give the name of a file.")
    except (OSError, ValueError) as error:
        raise access_error(error, f"{path} cannot be used") from None


# --- connections ------------------------------------------------------------------------------------------


def connect(path: str | Path = ":memory:", *, may_be_new: bool = True) -> sqlite3.Connection:
    """Return a connection that may write; make the tables if there are none and ``may_be_new``.

    Args:
        path: The file; ``":memory:"``, or ``""`` for a temporary database that may be larger than memory.
        may_be_new: Whether an empty database becomes a journal.

    Raises:
        JournalError: It is not a journal of a supported version.
        sqlite3.Error: It cannot be opened.
    """
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None, cached_statements=64)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}")
        connection.execute("PRAGMA cache_size = -8000")  # 8 MB: the index of many keys is random
        check_version(connection, path, may_be_new=may_be_new)
        if path not in {":memory:", ""}:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
        _make_tables(connection)
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_read_only(path: Path, options: str = "mode=ro") -> sqlite3.Connection:
    """Return a connection that only reads, for any thread.

    Closing a connection that may write would checkpoint another program's database, and would make it
    impossible to put a ``-wal`` file back that was left behind.
    """
    import sqlite3

    connection = sqlite3.connect(
        f"{path.as_uri()}?{options}", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # SQLite opens the files only now
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def open_for_reading(path: Path, *, leaves_no_trace: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a journal for reading, also in a folder or on a disk that is read-only.

    SQLite needs a shared-memory file (``-shm``) to read a journal in WAL mode, and makes it where it can. If
    it cannot, a journal without a ``-wal`` file is complete and is read as an immutable file, also on a full
    disk; a journal with one was left by a process that died, and both files are copied first.

    Args:
        path: The journal.
        leaves_no_trace: Do not make the empty ``-wal`` and ``-shm`` either that SQLite makes beside a journal
            at rest. A run that begins meanwhile may then end the reading with an error.

    Raises:
        OSError: It cannot be copied.
        sqlite3.Error: It cannot be opened.
    """
    import sqlite3

    path = path.resolve()
    wal = path.with_name(f"{path.name}-wal")
    immutable = "mode=ro&immutable=1"
    with ExitStack() as stack:
        try:
            connection = connect_read_only(
                path, immutable if leaves_no_trace and not wal.exists() else "mode=ro"
            )
        except sqlite3.OperationalError as error:
            is_complete = not wal.exists() or not wal.stat().st_size
            if result_code(error) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY} and not (
                is_complete and is_disk_error(error)
            ):
                raise
            if is_complete:
                connection = connect_read_only(path, immutable)
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flux-async-"))
                for file in (path, wal):
                    shutil.copyfile(file, Path(folder, file.name))
                connection = connect_read_only(Path(folder, path.name), "mode=rw")
        yield stack.enter_context(closing(connection))


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode; SQLite may report another process that does so without waiting for it."""
    import sqlite3

    for attempt in range(1, _WAL_ATTEMPTS + 1):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or attempt == _WAL_ATTEMPTS:
                raise
            threading.Event().wait(_WAL_PAUSE_S)
        else:
            return


# --- the schema -------------------------------------------------------------------------------------------


def check_version(connection: sqlite3.Connection, path: str | Path, *, may_be_new: bool = True) -> None:
    """Check that a database is a journal of a supported version or, unless ``may_be_new`` is false, empty.

    Raises:
        JournalVersionError: It is a journal of an unsupported version.
        JournalError: It is not a journal.
    """
    # One snapshot, which has all of a schema that another process writes, or nothing.
    connection.execute("BEGIN")
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = _version(connection)
        is_empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    if may_be_new and is_empty and application == version == 0:
        return  # new, or made by a process that ended before it could write the schema
    if application != APPLICATION_ID:
        kind = "an empty database" if is_empty else "another program's database"
        raise JournalError(f"{path} is not a journal, but {kind}.", advice="Check the path.")
    if not OLDEST_VERSION <= version <= SCHEMA_VERSION:
        raise JournalVersionError(
            f"{path} has the unsupported journal version {version}: this release supports "
            f"{OLDEST_VERSION} to {SCHEMA_VERSION}."
        )


def _make_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of a new journal in one transaction; another process may create them first."""
    if _version(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        if not _version(connection):
            for statement in _statements():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements() -> list[str]:
    schema = files("flux_async.journal").joinpath("schema.sql").read_text(encoding="utf-8")
    return schema.split(";")


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring a journal of version 3 to version 4, in one transaction: wholly, or not at all.

    SQLite cannot change a CHECK, so that the table of jobs is written anew. Its foreign keys are switched off
    meanwhile, as SQLite's manual advises ("Making Other Kinds Of Table Schema Changes").
    """
    if _version(connection) == SCHEMA_VERSION:
        return
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        if _version(connection) != SCHEMA_VERSION:  # another process may have been faster
            _rebuild_jobs(connection)
            connection.execute("ALTER TABLE attempt ADD COLUMN other_model TEXT")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("PRAGMA foreign_keys = ON")


def _rebuild_jobs(connection: sqlite3.Connection) -> None:
    """Write the table of jobs anew with the columns and checks of this version; new columns have defaults."""
    of_jobs = re.compile(r"^CREATE (TABLE job|INDEX \w+\s+ON job) ", re.MULTILINE)
    table, *indexes = filter(of_jobs.search, _statements())
    connection.execute(re.sub(r"\bTABLE job\b", "TABLE new_job", table, count=1))
    columns = ", ".join(row[1] for row in connection.execute("PRAGMA table_info(job)"))
    connection.execute(f"INSERT INTO new_job ({columns}) SELECT {columns} FROM job")
    connection.execute("DROP TABLE job")  # and its indexes
    connection.execute("ALTER TABLE new_job RENAME TO job")
    for index in indexes:
        connection.execute(index)


def read_as_current(connection: sqlite3.Connection) -> None:
    """Let a connection read an older journal as one of this version; the file is not changed."""
    if _version(connection) != SCHEMA_VERSION:
        new = "NULL AS trace, NULL AS added_at, 0 AS priority, "
        new += "NULL AS other_model, NULL AS kept, NULL AS result_of, 0 AS redone"
        connection.execute(f"CREATE TEMP VIEW job AS SELECT *, {new} FROM main.job")
        connection.execute("CREATE TEMP VIEW attempt AS SELECT *, NULL AS other_model FROM main.attempt")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def read_meta(connection: sqlite3.Connection, name: str) -> str | None:
    """Return a value of the table ``meta``, or None."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def write_meta(connection: sqlite3.Connection, name: str, value: str | None) -> None:
    """Set a value of the table ``meta``; None deletes it."""
    if value is None:
        connection.execute("DELETE FROM meta WHERE name = ?", (name,))
    else:
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def read_prices(connection: sqlite3.Connection) -> dict[str, float]:
    """Return the prices that runs have measured, by name of the model."""
    prices: dict[str, float] = json.loads(read_meta(connection, "prices") or "{}")
    return prices


def write_price(connection: sqlite3.Connection, model: str, credits_: float) -> None:
    """Store the price of a model."""
    write_meta(connection, "prices", json.dumps(read_prices(connection) | {model: credits_}))


# --- errors of SQLite and of the disk ---------------------------------------------------------------------


def result_code(error: BaseException) -> int:
    """Return SQLite's primary result code; 0 if there is none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_disk_error(error: BaseException) -> bool:
    """Return whether an error of the system or of SQLite says that a disk is full or failing.

    SQLite reports a full disk as an I/O error for a file in shared memory.
    """
    import sqlite3

    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}
    return result_code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def access_error(error: Exception, problem: str, *, is_unchanged: bool = False) -> JournalError:
    """Return the error for a journal that could not be opened, read or written.

    Args:
        error: The error of the system or of SQLite.
        problem: What could not be done, as the start of a sentence.
        is_unchanged: Whether nothing was to be written yet.
    """
    import sqlite3

    if result_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        advice = "Close the program that has it open: nothing is lost."
        return JournalError("Another program keeps the journal locked.", advice=advice, scope=Scope.STOP)
    reason = getattr(error, "strerror", None) or error
    if is_disk_error(error):
        message = f"{problem} ({reason}): the disk is failing or full."
        if is_unchanged:
            message += " Its records are unchanged."
        return JournalError(message, advice=NO_ROOM_ADVICE, scope=Scope.STOP)
    return JournalError(f"{problem}: {reason}.")


def opening_error(error: Exception, path: Path) -> JournalError:
    """Return the error for a journal that cannot be opened; it is damaged only if SQLite reports damage."""
    import sqlite3

    if result_code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
        return damage(str(error), path)
    return access_error(error, f"{path} could not be opened", is_unchanged=True)


def damage(finding: str, path: Path) -> JournalError:
    """Return the error for a damaged journal.

    Args:
        finding: The problem, as SQLite or its ``quick_check`` reports it.
        path: The journal.
    """
    import sqlite3

    if "not a database" in finding:
        return JournalError(f"{path} is not a journal, or a damaged one.", advice=_RESTORE_ADVICE)
    code = re.search(r"error code=(\d+)", finding)  # quick_check lists a page that it could not read
    if code is not None and int(code[1]) & 0xFF == sqlite3.SQLITE_IOERR:
        return opening_error(OSError(errno.EIO, os.strerror(errno.EIO)), path)
    return JournalError(f"{path} is damaged: {finding}.", advice=_RESTORE_ADVICE)
