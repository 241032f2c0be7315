"""Webhook notifications in the journal: written by any process, read by the run.

An :class:`Inbox` needs no lock, so a receiver may be in another process than the run, or in several.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

import attrs

from flux_async.api.models_table import ApiName
from flux_async.clock import Clock, SystemClock, hold_of
from flux_async.errors import JournalError
from flux_async.journal.guard import open_file
from flux_async.journal.schema import make_folder, resolve
from flux_async.journal.writer import Writer
from flux_async.models import CallbackEvent, JobKey, TaskId

if TYPE_CHECKING:
    import sqlite3

_MOST_PER_ATTEMPT = 8
"""Limit of tasks that callbacks may name for one attempt, for signed and unsigned ones each: one is right,
but anyone with the address can send others."""

POSSIBLE_DUPLICATES = (
    "attempt.task_id IS NULL AND attempt.number < job.attempts "
    "AND NOT EXISTS (SELECT 1 FROM attempt AS known WHERE known.task_id = inbox.task_id)"
)
"""A callback names an unknown task for an attempt that was resubmitted since: both may be charged."""


@attrs.frozen(kw_only=True)
class InboxEntry:
    """A stored callback, with the job whose attempt it names.

    Attributes:
        number: Its position in the order of arrival.
        at: Time of the first delivery, in seconds since the epoch.
        job: The job's key.
        task_id: The task it names.
        signed: Whether its signature was verified.
        callback_id: The attempt, as in the callback address.
        api: The API that the attempt was sent to.
        input_url: URL of the uploaded image that the attempt sent, if one was uploaded.
        is_possible_duplicate: Whether that attempt was resubmitted since and no job has the task: then the
            image may have been charged twice.
        trace: The context of the job's trace, where that is read.
    """

    number: int
    at: float
    job: JobKey
    task_id: TaskId
    signed: bool
    callback_id: str
    api: ApiName
    input_url: str | None
    is_possible_duplicate: bool
    trace: str | None = None


class Inbox:
    """Writes callbacks into a journal that another process may be running; ``async with`` opens it.

    Args:
        path: The journal's file; made if there is none.
        clock: The reader of time.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        if path == ":memory:":
            raise JournalError("An inbox in memory has no reader.", advice="Give it a file.")
        self._path = resolve(path)
        self._clock = clock or SystemClock()
        self._writer: Writer | None = None

    def __repr__(self) -> str:
        return f"<Inbox of {self._path}>"

    async def open(self) -> Self:
        """Open the journal's file.

        Raises:
            JournalVersionError: It has an unsupported version.
            JournalError: It is damaged, another program's, or cannot be written.
        """
        if self._writer is not None:
            raise JournalError("The inbox is open already.", advice="Open it once, and close it.")
        make_folder(self._path)
        loop, hold = asyncio.get_running_loop(), hold_of(self._clock)
        writer = Writer(lambda: open_file(self._path), loop, hold=hold)
        try:
            await writer.start()
        except BaseException:
            await writer.stop()  # the thread of a cancelled caller would wait for work for ever
            raise
        self._writer = writer
        return self

    async def aclose(self) -> None:
        """Finish the waiting writes and close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.stop()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def receive(self, event: CallbackEvent) -> None:
        """Store a callback that names an attempt of this journal; returns after the commit."""
        if self._writer is None:
            raise JournalError("The inbox is not open.", advice="Use it as `async with`, or call open().")
        if event.attempt_id is not None:
            at = self._clock.wall()
            await self._writer.do(lambda c: store_callback(c, event, at))


def store_callback(connection: sqlite3.Connection, event: CallbackEvent, at: float) -> None:
    """Store a callback once, and count the deliveries of the same."""
    values = {
        "at": at,
        "attempt": event.attempt_id,
        "task": event.task_id,
        "signed": int(event.signed),
        "code": event.code,
        "most": _MOST_PER_ATTEMPT,
    }
    again = connection.execute(
        "UPDATE inbox SET deliveries = deliveries + 1 "
        "WHERE callback_id = :attempt AND task_id = :task AND signed = :signed",
        values,
    )
    if not again.rowcount:
        connection.execute(
            "INSERT INTO inbox (at, callback_id, task_id, signed, code) "
            "SELECT :at, callback_id, :task, :signed, :code FROM attempt WHERE callback_id = :attempt "
            # Counted apart, so that a sender without the key cannot use up the room of signed callbacks.
            "AND (SELECT count(*) FROM inbox WHERE callback_id = :attempt AND signed = :signed) < :most",
            values,
        )


def unsettled_after(connection: sqlite3.Connection, number: int) -> tuple[list[InboxEntry], int]:
    """Return the callbacks after ``number`` whose jobs wait for something, and the newest number.

    Callbacks that show a possible duplicate charge are returned, too.
    """
    newest = connection.execute("SELECT max(number) FROM inbox").fetchone()[0] or 0
    where = "inbox.number > ? AND inbox.number <= ? "
    where += f"AND (job.state IN ('submitting', 'submitted', 'in_doubt') OR {POSSIBLE_DUPLICATES})"
    return _entries(connection, where, number, newest), newest


def entries_for(connection: sqlite3.Connection, job: int) -> list[InboxEntry]:
    """Return the callbacks that name attempts of one job whose task is unknown."""
    return _entries(connection, "job.number = ? AND attempt.task_id IS NULL", job)


def _entries(connection: sqlite3.Connection, where: str, *values: int) -> list[InboxEntry]:
    rows = connection.execute(
        "SELECT inbox.number, inbox.at, job.key, inbox.task_id, inbox.signed, inbox.callback_id, "
        f"attempt.api, attempt.input_url, {POSSIBLE_DUPLICATES}, job.trace "
        "FROM inbox JOIN attempt ON attempt.callback_id = inbox.callback_id "
        f"JOIN job ON job.number = attempt.job WHERE {where} ORDER BY inbox.number",
        values,
    )
    return [
        InboxEntry(
            number=number,
            at=at,
            job=JobKey(key),
            task_id=TaskId(task_id),
            signed=bool(signed),
            callback_id=callback_id,
            api=api,
            input_url=input_url,
            is_possible_duplicate=bool(is_duplicate),
            trace=trace,
        )
        for number, at, key, task_id, signed, callback_id, api, input_url, is_duplicate, trace in rows
    ]
