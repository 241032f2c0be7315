"""Look at a journal without changing it, also while a run holds its lease."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import attrs

from flux_async.errors import JournalError
from flux_async.job_state import JobState
from flux_async.journal import ownership
from flux_async.journal.adding import Added, Adding, Addresses, EarlierRuns, addresses_of
from flux_async.journal.inbox import POSSIBLE_DUPLICATES
from flux_async.journal.rows import StoredJob, select_jobs
from flux_async.journal.schema import check_version, connect, open_for_reading
from flux_async.models import Echo, JobKey, TaskId

T = TypeVar("T")

_PAGE = 500
_SPENT = ("SubmitAccepted", "TaskFound")
_UNKNOWN = ("SubmitUnknown", "EchoContradicted")
_COPY = (
    "INSERT OR IGNORE INTO job "
    "(number, key, request, address, bare_address, state, task_id, result_url, file, charge) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_MARK = "INSERT INTO job (number, key, request) VALUES (?, ?, '{}')"
_MODEL = "json_extract(job.request, '$.model')"


@attrs.frozen(kw_only=True)
class Spending:
    """What one model has cost in tasks: certain ones, and submits whose task never became known."""

    model: str
    tasks: int
    perhaps: int


@attrs.frozen(kw_only=True)
class PossibleDuplicateCharge:
    """A task that was perhaps paid besides the one a job has its picture from.

    Attributes:
        stored: The job.
        task_id: What a callback names.
        signed: Whether its signature was verified.
    """

    stored: StoredJob
    task_id: TaskId
    signed: bool


class JournalReader:
    """A read-only connection to a journal; use it as ``with``. It may be used from any thread, one at a time.

    Args:
        path: The journal.
        leaves_no_trace: Make no file beside it, not even for a moment.

    Raises:
        JournalError: There is none, it is damaged, or it is somebody else's.
        JournalVersionError: It has an unsupported version.
    """

    def __init__(self, path: Path, *, leaves_no_trace: bool = False) -> None:
        if not path.is_file():
            raise JournalError(f"There is no journal at {path}.", advice="Check the folder's name.")
        self._closing = ExitStack()
        try:
            self._connection = self._closing.enter_context(
                open_for_reading(path, leaves_no_trace=leaves_no_trace)
            )
            check_version(self._connection, path, may_be_new=False)
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise JournalError(f"{path} cannot be read: {error}.") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._closing.close()

    # --- jobs ---------------------------------------------------------------------------------------------

    def jobs(self, *states: JobState) -> Iterator[StoredJob]:
        """Yield the jobs in these states, or all of them, in order of arrival."""
        where = f"state IN ({_marks(states)}) AND" if states else ""
        return self._pages(f"{where} number > ?", *states)

    def by_number(self, numbers: Sequence[int]) -> list[StoredJob]:
        """Return the jobs with these numbers, at most some hundreds, in the order asked for."""
        found = {stored.number: stored for stored in self._jobs(f"number IN ({_marks(numbers)})", *numbers)}
        return [found[number] for number in numbers if number in found]

    def with_key(self, key: str) -> StoredJob | None:
        """Return the job with this key, or None."""
        found = self._jobs("key = ?", key)
        return found[0] if found else None

    def with_address(self, digest: int) -> list[StoredJob]:
        """Return the jobs at an address, however it was signed."""
        return self._jobs("address = ?", digest)

    def with_bare_address(self, digest: int, after: int) -> list[StoredJob]:
        """Return some of the jobs whose address without its query this is, in order of arrival, after one."""
        return self._jobs(f"bare_address = ? AND number > ? ORDER BY number LIMIT {_PAGE}", digest, after)

    def newest(self) -> int:
        """Return the number of the newest job; 0 where there is none."""
        return int(self._value("SELECT max(number) FROM job") or 0)

    def named(self, start: str) -> list[StoredJob]:
        """Return the job with this key, or else up to two whose keys begin so."""
        return self._jobs("key = ?", start) or self._jobs("substr(key, 1, ?) = ? LIMIT 2", len(start), start)

    def has(self, key: str) -> bool:
        """Whether a job has this key."""
        return self._value("SELECT 1 FROM job WHERE key = ?", key) is not None

    def owner_of(self, task_id: str) -> JobKey | None:
        """Return the job that a task belongs to, or once belonged to."""
        return self._read(lambda c: ownership.owner_of(c, task_id))

    def candidates(self, number: int) -> list[TaskId]:
        """Return tasks that may be those of a job's submits: what odd answers named."""
        return self._read(lambda c: ownership.candidates(c, number))

    def found_task(self, number: int) -> TaskId | None:
        """Return the task whose record shows the request of a job in doubt, and that no job has."""
        found = self._read(lambda c: ownership.offers_to(c, number))
        return found[0] if found else None

    def with_echo(self, echo: Echo) -> Iterator[StoredJob]:
        """Yield the jobs whose record shows this of their request, in order of arrival."""
        return self._pages("echo = ? AND number > ?", echo)

    def echoes(self) -> dict[Echo, int]:
        """Return how many jobs have a record that shows their request, none, or an unknown one."""
        rows = dict(self._all("SELECT echo, count(*) FROM job WHERE echo IS NOT NULL GROUP BY echo"))
        return {echo: rows.get(echo.value, 0) for echo in Echo}

    def input_url(self, number: int) -> str | None:
        """Return where the latest submit of a job told the vendor to fetch a picture that was uploaded."""
        sql = "SELECT input_url FROM attempt WHERE job = ? ORDER BY number DESC LIMIT 1"
        url = self._value(sql, number)
        return None if url is None else str(url)

    def intended_at(self, number: int) -> float | None:
        """Return when the latest submit of a job was about to leave."""
        return self._number("SELECT max(intended_at) FROM attempt WHERE job = ?", number)

    def possible_duplicate_charges(self) -> list[PossibleDuplicateCharge]:
        """Return the tasks that callbacks name for submits made again since, and that nobody knows.

        A job that waits for its next submit is left out: before that it may yet take up the task.
        """
        sql = (
            "SELECT job.number, inbox.task_id, max(inbox.signed) FROM inbox "
            "JOIN attempt ON attempt.callback_id = inbox.callback_id JOIN job ON job.number = attempt.job "
            f"WHERE {POSSIBLE_DUPLICATES} AND job.state <> 'pending' "
            f"GROUP BY job.number, inbox.task_id ORDER BY min(inbox.number) LIMIT {_PAGE}"
        )
        rows = self._all(sql)
        jobs = {stored.number: stored for stored in self.by_number(sorted({row[0] for row in rows}))}
        return [
            PossibleDuplicateCharge(stored=jobs[number], task_id=TaskId(task_id), signed=bool(signed))
            for number, task_id, signed in rows
        ]

    # --- figures ------------------------------------------------------------------------------------------

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state, those without any included."""
        rows = dict(self._all("SELECT state, count(*) FROM job GROUP BY state"))
        return {state: rows.get(state.value, 0) for state in JobState}

    def last_activity(self) -> float | None:
        """Return when something last happened, in seconds since the epoch."""
        return self._number("SELECT at FROM event ORDER BY number DESC LIMIT 1")

    def spending(self) -> list[Spending]:
        """Return the tasks made so far, by model."""
        sql = (
            f"SELECT {_MODEL}, sum(type IN {_SPENT}) - sum(type = 'EchoContradicted'), "
            f"sum(type IN {_UNKNOWN}) - sum(type = 'TaskFound') "
            "FROM event JOIN job ON event.job = job.number "
            f"WHERE type IN {_SPENT + _UNKNOWN} GROUP BY 1"
        )
        return [
            Spending(model=str(model), tasks=tasks, perhaps=max(0, perhaps))
            for model, tasks, perhaps in self._all(sql)
        ]

    def generation_s(self, share: float) -> float | None:
        """Return the duration that ``share`` of the tasks did not exceed, in the vendor's own seconds."""
        known = "FROM job WHERE generation_s IS NOT NULL"
        count = self._value(f"SELECT count(*) {known}")
        place = max(0, math.ceil(count * share) - 1)
        return self._number(f"SELECT generation_s {known} ORDER BY generation_s LIMIT 1 OFFSET ?", place)

    # --- how ----------------------------------------------------------------------------------------------

    def _jobs(self, where: str, *values: object) -> list[StoredJob]:
        return self._read(lambda c: select_jobs(c, where, *values))

    def _pages(self, where: str, *values: object) -> Iterator[StoredJob]:
        """Yield jobs by pages; the last condition is ``number > ?``."""
        after = 0
        while page := self._jobs(f"{where} ORDER BY number LIMIT {_PAGE}", *values, after):
            yield from page
            after = page[-1].number

    def _all(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self._read(lambda c: c.execute(sql, values).fetchall())

    def _read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return question(self._connection)
        except sqlite3.Error as error:
            raise JournalError(f"The journal cannot be read: {error}.") from None

    def _number(self, sql: str, *values: object) -> float | None:
        value = self._value(sql, *values)
        return None if value is None else float(value)

    def _value(self, sql: str, *values: object) -> Any:
        rows = self._all(sql, *values)
        return rows[0][0] if rows else None


class JournalPreview:
    """Says of entries what would become of them; use it as ``with``.

    Args:
        reader: The journal, or None where there is none yet.
    """

    def __init__(self, reader: JournalReader | None) -> None:
        self._reader = reader
        self._connection = connect("")
        self._first_new = 1 if reader is None else reader.newest() + 1
        self._earlier = EarlierRuns(newest=self._first_new - 1)
        self._connection.execute("BEGIN")  # and never committed
        # Numbers of new jobs begin behind this one.
        mark = f"\0{os.urandom(8).hex()}"
        self._connection.execute(_MARK, (self._first_new, mark))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def add(self, key: JobKey, request: str, *, pays_again: bool, is_given: Callable[[int], bool]) -> Added:
        """Return what would become of an entry; of the same one again, that it is there already.

        Args:
            key: The entry's.
            request: What it asks for.
            pays_again: Whether an image that was submitted under another signature becomes a new job.
            is_given: Says by its number whether a job was an entry before.
        """
        if self._reader is not None:
            for stored in _related(self._reader, key, addresses_of(request)):
                self._copy(stored)
        adding = Adding(
            connection=self._connection,
            at=0.0,
            is_chosen=is_given,
            pays_again=pays_again,
            pays_similar=True,
            earlier=self._earlier,
            similar_page=None if self._reader is None else self._reader.with_bare_address,
            put_in_doubt=lambda _key, _at: None,
        )
        (added,) = adding.add([(key, request)], {})
        return added

    def _copy(self, stored: StoredJob) -> None:
        job = stored.job
        values = (stored.number, job.key, stored.request, *addresses_of(stored.request), job.state.value)
        self._connection.execute(_COPY, (*values, job.task_id, job.result_url, job.file, job.charge.value))


def _related(reader: JournalReader, key: JobKey, addresses: Addresses) -> Iterator[StoredJob]:
    """Yield the jobs that decide what becomes of an entry."""
    known = reader.with_key(key)
    if known is not None:
        yield known
        return
    if addresses.unsigned is None:
        return
    yield from reader.with_address(addresses.unsigned)
    if addresses.bare is not None:
        yield from reader.with_address(addresses.bare)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
