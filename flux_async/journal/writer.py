"""One connection in one thread, and one commit for all who are waiting (*group commit*)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs

from flux_async.errors import FluxError, JournalError, Scope, WrongEventLoop
from flux_async.journal.guard import JournalGuard
from flux_async.journal.submit_log import NO_ROOM_ADVICE, LoggedSubmit
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

Work: TypeAlias = "Callable[[sqlite3.Connection], Any]"

Result: TypeAlias = "tuple[asyncio.Future[Any], Any, BaseException | None]"
"""Who waits, what the work returned, why it failed."""


@attrs.frozen(kw_only=True, eq=False)
class Item:
    """A piece of work in the queue.

    Attributes:
        work: What to do.
        done: Receives what it returned, after the commit.
        critical: Whether room is made for it on a full disk.
        submits: The job that is submitted after it, if one is.
    """

    work: Work
    done: asyncio.Future[Any]
    critical: bool = False
    submits: JobKey | None = None


_MOST_PER_COMMIT = 1000
_LOCKED_ADVICE = "Close the program that has it open: nothing is lost."

STEP = 64 * 1024
"""More than all submits that are usually on the wire at once need."""

SIZE = 8 * STEP

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Writer:
    """Runs work on a connection in a thread of its own; what it returns is on disk.

    Args:
        connect: Opens the connection, in the thread.
        loop: Where the waiting coroutines live.
        make_room: Frees some of a full disk for what is critical; says whether it could.
        guard: Watches over the commits of intents.
        hold: Stops virtual time while work is in the queue.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        loop: asyncio.AbstractEventLoop,
        make_room: Callable[[], bool] = lambda: False,
        guard: JournalGuard | None = None,
        hold: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._hold = hold
        self._guard = guard
        self._connect = connect
        self._loop = loop
        self._make_room = make_room
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="flux-async journal", daemon=True)
        self.commits: int = 0
        self._opened: asyncio.Future[None] = loop.create_future()

    async def start(self) -> None:
        """Open the connection.

        Raises:
            JournalError: It cannot be opened.
        """
        self._thread.start()
        await asyncio.shield(self._opened)

    async def do(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        critical: bool = False,
        submits: JobKey | None = None,
    ) -> T:
        """Run ``work`` in a transaction; return what it returned, after the commit.

        A cancelled caller does not undo it: what was asked for is written. Where the disk is full, room is
        made for what is ``critical``. Work after which a job is submitted names it, and returns the submit
        for the log.

        Raises:
            WrongEventLoop: The file was opened on another one; nothing was written.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise WrongEventLoop(
                "This journal was opened on another event loop.",
                advice="Give a WebhookReceiver that is served elsewhere the journal's path.",
            )
        done: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(Item(work=work, done=done, critical=critical, submits=submits))
        with self._hold():
            return await done

    async def stop(self) -> None:
        """Write what is waiting, then close the connection; who is cancelled meanwhile still waits for it."""
        self._queue.put(None)
        joining = self._loop.run_in_executor(None, self._thread.join)
        cancelled: asyncio.CancelledError | None = None
        while not joining.done():
            try:
                await asyncio.shield(joining)
            except asyncio.CancelledError as gone:
                cancelled = gone
        if cancelled is not None:
            raise cancelled

    def _run(self) -> None:
        try:
            connection = self._open()
        except Exception as error:  # noqa: BLE001 - handed to whoever opened the journal
            self._tell(partial(self._opened.set_exception, as_journal_error(error)))
            return
        self._tell(lambda: self._opened.set_result(None))
        while True:
            batch, over = self._collect()
            if batch:
                results = self._commit(connection, batch)
                self._tell(partial(_resolve, results))
            if over:
                self._close(connection)
                return

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            if self._guard is not None:
                self._guard.opened(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self, connection: sqlite3.Connection) -> None:
        try:
            if self._guard is not None:
                self._guard.closing(connection)
        finally:
            connection.close()

    def _collect(self) -> tuple[list[Item], bool]:
        batch: list[Item] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) >= _MOST_PER_COMMIT:
                return batch, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, connection: sqlite3.Connection, batch: list[Item]) -> list[Result]:
        """Commit all together; if one of them fails, each by itself, so that it fails alone."""
        submits = [item.submits for item in batch if item.submits is not None]
        refusal = self._guard.refusal(connection, submits) if self._guard is not None and submits else None
        if refusal is not None:
            rest = [item for item in batch if item.submits is None]
            refused = [(item.done, None, copy(refusal)) for item in batch if item.submits is not None]
            return [*refused, *(self._commit(connection, rest) if rest else [])]
        try:
            values = self._transact(connection, [item.work for item in batch])
        except BaseException as error:  # noqa: BLE001 - told to whose work it was; the thread must live
            critical = [item for item in batch if item.critical]
            if critical and _has_no_room(error) and self._make_room():
                others = [(item.done, None, as_journal_error(error)) for item in batch if not item.critical]
                return others + self._commit(connection, critical)
            if len(batch) == 1 or not _is_of_one(error):
                return [(item.done, None, as_journal_error(error)) for item in batch]
            return [result for item in batch for result in self._commit(connection, [item])]
        trouble = self._log(connection, values)
        return [
            (item.done, value, None if item.submits is None else copy(trouble))
            for item, value in zip(batch, values, strict=True)
        ]

    def _log(self, connection: sqlite3.Connection, values: list[Any]) -> JournalError | None:
        if self._guard is None:
            return None
        submits = [value for value in values if isinstance(value, LoggedSubmit)]
        return self._guard.committed(connection, submits)

    def _transact(self, connection: sqlite3.Connection, works: list[Work]) -> list[Any]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            values = [work(connection) for work in works]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.commits += 1
        return values

    def _tell(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: nobody is waiting any more
            return


def _is_of_one(error: BaseException) -> bool:
    """Whether one piece of work failed by itself; a full disk or a locked file concerns all."""
    import sqlite3  # noqa: PLC0415 - loaded with the first journal, not with the package

    return not isinstance(error, sqlite3.OperationalError)


def _has_no_room(error: BaseException) -> bool:
    """Whether the disk is full; of the file that it maps into memory, SQLite calls that an I/O error."""
    import sqlite3  # noqa: PLC0415 - as above

    known = isinstance(error, sqlite3.OperationalError)
    return known and _code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def _code(error: BaseException) -> int:
    """Return SQLite's code of an error, without what it says more closely; 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _resolve(results: list[Result]) -> None:
    for done, value, error in results:
        if done.done():
            continue
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)


def as_journal_error(error: BaseException) -> BaseException:
    """Turn SQLite's errors into ours; ours and bugs pass as they are."""
    import sqlite3  # noqa: PLC0415 - loaded with the first journal, not with the package

    if isinstance(error, FluxError) or not isinstance(error, sqlite3.Error):
        return error
    if _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return JournalError(
            "Another program keeps the journal locked.", advice=_LOCKED_ADVICE, scope=Scope.STOP
        )
    words = f"The journal could not be written: {error}."
    if _code(error) == sqlite3.SQLITE_FULL:
        return JournalError(words, advice=NO_ROOM_ADVICE, scope=Scope.STOP)
    return JournalError(words)


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
