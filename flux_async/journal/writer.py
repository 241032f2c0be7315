"""One connection in one thread, and one commit for all writes that wait (*group commit*)."""

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
from flux_async.journal.schema import NO_ROOM_ADVICE, access_error, is_disk_error
from flux_async.journal.submit_log import LoggedSubmit
from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

Result: TypeAlias = "tuple[asyncio.Future[Any], Any, BaseException | None]"
"""The future that receives the result, what the work returned, the error it raised."""

RESERVE_STEP = 64 * 1024
"""More than all submits that are usually in flight at once need."""

RESERVE_SIZE = 8 * RESERVE_STEP

MOST_PER_COMMIT = 1000
"""Pieces of work in one commit, at most. More would hold up the callers that wait for the first of them."""


@attrs.frozen(kw_only=True, eq=False)
class Item:
    """A piece of work in the queue.

    Attributes:
        work: Runs in the transaction.
        done: Receives what it returned, after the commit.
        critical: Whether room is made for it on a full disk.
        submits: The job that is submitted after the commit, if any.
    """

    work: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    critical: bool = False
    submits: JobKey | None = None


class Writer:
    """Runs work on a connection in a thread of its own; results are returned after the commit.

    Args:
        connect: Opens the connection, in the thread.
        loop: The event loop of the callers.
        make_room: Frees a part of a full disk for critical work; returns whether it could.
        guard: Checks the journal's files at each commit, and keeps the log of submits.
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
        self._connect = connect
        self._loop = loop
        self._make_room = make_room
        self._guard = guard
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="flux-async journal", daemon=True)
        self.commits: int = 0
        self._process = os.getpid()
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
        """Run ``work`` in a transaction; return its result after the commit.

        Cancelling the caller does not undo it. If the disk is full, room is made for ``critical`` work. Work
        after which a job is submitted names the job, and returns the submit for the log.

        Raises:
            WrongEventLoop: The journal was opened on another event loop; nothing was written.
        """
        if self._process != os.getpid():  # there is no thread here, and a write would hang
            raise WrongEventLoop(
                "This journal was open when this process was forked.",
                advice="Open it after the fork, in one process.",
            )
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
        """Finish the waiting work, then close the connection; a cancelled caller waits for it, too."""
        self._queue.put(None)
        joining = self._loop.run_in_executor(None, self._thread.join)
        cancelled: asyncio.CancelledError | None = None
        while not joining.done():
            try:
                await asyncio.shield(joining)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    # --- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            connection = self._open()
        except Exception as error:  # noqa: BLE001 - raised by start()
            self._call(partial(self._opened.set_exception, as_journal_error(error)))
            return
        self._call(partial(self._opened.set_result, None))
        try:
            while batch := self._collect():
                self._call(partial(_resolve, self._commit(connection, batch)))
            if self._guard is not None:
                self._guard.closing(connection)
        finally:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            if self._guard is not None:
                self._guard.opened(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _collect(self) -> list[Item]:
        """Wait for work and return all that is there; nothing after the end of the queue."""
        batch: list[Item] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if self._queue.empty() or len(batch) >= MOST_PER_COMMIT:
                return batch
            item = self._queue.get()
        if batch:
            self._queue.put(None)  # the end is found again after this batch
        return batch

    def _commit(self, connection: sqlite3.Connection, batch: list[Item]) -> list[Result]:
        """Commit all work together; if a piece of it fails, each piece alone, so that only that one fails."""
        submits = [item.submits for item in batch if item.submits is not None]
        refusal = self._guard.refusal(connection, submits) if self._guard is not None and submits else None
        if refusal is not None:
            rest = [item for item in batch if item.submits is None]
            refused = [(item.done, None, copy(refusal)) for item in batch if item.submits is not None]
            return [*refused, *(self._commit(connection, rest) if rest else [])]
        try:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                values = [item.work(connection) for item in batch]
        except BaseException as error:  # noqa: BLE001 - raised to its caller; the thread goes on
            critical = [item for item in batch if item.critical]
            if critical and is_disk_error(error) and self._make_room():
                others = [(item.done, None, as_journal_error(error)) for item in batch if not item.critical]
                return others + self._commit(connection, critical)
            if len(batch) == 1 or _concerns_all(error):
                return [(item.done, None, as_journal_error(error)) for item in batch]
            return [result for item in batch for result in self._commit(connection, [item])]
        self.commits += 1
        logged = [value for value in values if isinstance(value, LoggedSubmit)]
        problem = None if self._guard is None else self._guard.committed(connection, logged)
        return [
            (item.done, value, None if item.submits is None else copy(problem))
            for item, value in zip(batch, values, strict=True)
        ]

    def _call(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits any more
            self._loop.call_soon_threadsafe(callback)


def _resolve(results: list[Result]) -> None:
    for done, value, error in results:
        if done.done():
            continue
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)


# --- errors of SQLite -------------------------------------------------------------------------------------


def as_journal_error(error: BaseException) -> BaseException:
    """Return the journal's error for one of SQLite or of the disk; other errors are returned as they are."""
    import sqlite3

    if isinstance(error, OSError | sqlite3.Error) and not isinstance(error, FluxError):
        return access_error(error, "The journal could not be written")
    return error


def _concerns_all(error: BaseException) -> bool:
    """Return whether an error is one of the disk or of a lock, not of one piece of work."""
    import sqlite3

    return isinstance(error, sqlite3.OperationalError)


# --- room on the disk -------------------------------------------------------------------------------------


class Reserve:
    """Room on the disk for answers to submits that are in flight when it fills up.

    Such an answer is paid for and comes once. The file ``<journal>.reserve`` holds the room while a batch
    runs, and is cut shorter, a step at a time, if an answer cannot be written without. Used from one thread
    at a time.

    Args:
        journal: The journal's path.
    """

    def __init__(self, journal: Path) -> None:
        self._path = journal.with_name(journal.name + ".reserve")

    def hold(self) -> None:
        """Take the room, or the part of it that is missing.

        Raises:
            JournalError: The disk has not so much.
        """
        try:
            with self._path.open("ab") as file:
                _fill(file.fileno(), os.fstat(file.fileno()).st_size)
        except OSError as error:
            self.release()
            raise JournalError(
                f"There is no room beside the journal for the answers to submits: {error.strerror or error}.",
                advice=NO_ROOM_ADVICE,
                scope=Scope.STOP,
            ) from None

    def release_step(self) -> bool:
        """Release a step; return False if none is left."""
        try:
            size = self._path.stat().st_size
            os.truncate(self._path, max(0, size - RESERVE_STEP))
        except OSError:
            return False
        return size > 0

    def release(self) -> None:
        """Release it all."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def _fill(file: int, size: int) -> None:
    """Allocate the blocks themselves: a sparse file would hold no room."""
    try:
        os.posix_fallocate(file, 0, RESERVE_SIZE)
    except AttributeError:
        pass  # no such call on this system
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise  # any other error means that this file system cannot allocate
    else:
        return
    while size < RESERVE_SIZE:
        size += os.write(file, os.urandom(min(RESERVE_STEP, RESERVE_SIZE - size)))
