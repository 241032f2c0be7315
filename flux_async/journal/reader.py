"""Read-only access to a journal, also while a run uses it, and a preview of what adding jobs would do."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import attrs

from flux_async.api.models_table import RETENTION_S, ApiName, credits_of
from flux_async.errors import JournalError
from flux_async.job_state import JobState, verdict_in
from flux_async.journal import ownership
from flux_async.journal.adding import Added, Adding, Addresses, EarlierRuns, addresses_of
from flux_async.journal.inbox import POSSIBLE_DUPLICATES
from flux_async.journal.lock import lock_owner_of
from flux_async.journal.rows import StoredJob, select_jobs
from flux_async.journal.schema import (
    access_error,
    check_version,
    connect,
    open_for_reading,
    read_as_current,
    read_prices,
)
from flux_async.models import CheckResult, Echo, JobKey, TaskId

T = TypeVar("T")

_PAGE = 500
_SPENT = ("SubmitAccepted", "TaskFound")
_UNKNOWN = ("SubmitUnknown", "EchoContradicted")
_MODEL = "json_extract(job.request, '$.model')"
_CUSTOM_PRICE = "json_extract(job.request, '$.customModel.credits')"
_OTHER_MODEL = "json_extract(attempt.other_model, '$.model')"
_WITH_OTHER_MODELS = (
    f"SELECT {_MODEL}, {_OTHER_MODEL}, sum(attempt.task_id IS NOT NULL), sum(attempt.state = 'in_doubt'), "
    "max(json_extract(attempt.other_model, '$.customModel.credits')) "
    "FROM attempt JOIN job ON attempt.job = job.number "
    "WHERE attempt.other_model IS NOT NULL AND (attempt.task_id IS NOT NULL OR attempt.state = 'in_doubt') "
    "GROUP BY 1, 2"
)
"""Submits with another model than that of their request, which the events do not name."""


@attrs.frozen(kw_only=True)
class Spending:
    """The tasks of one model.

    Attributes:
        model: Its name.
        tasks: Tasks that are certain.
        perhaps: Submits whose task is unknown.
        measured: Tasks whose cost is known, by the vendor's own figure or by the balance.
        credits: What those have cost, refunds deducted.
        price: The latest price that was measured, else that of a model of the caller's own; or None.
    """

    model: str
    tasks: int
    perhaps: int
    measured: int = 0
    credits: float = 0.0
    price: float | None = None

    @property
    def unit(self) -> float:
        """Credits of a task whose cost is not known: its price, else that of the price list."""
        return credits_of(self.model) if self.price is None else self.price

    @property
    def spent(self) -> float:
        """Credits of the tasks that are certain."""
        return self.credits + self.unit * max(0, self.tasks - self.measured)


@attrs.frozen(kw_only=True)
class PossibleDuplicateCharge:
    """A task that may have been charged in addition to the one that a job has its image from.

    Attributes:
        stored: The job.
        task_id: The task, which a callback names.
        signed: Whether the callback's signature was verified.
    """

    stored: StoredJob
    task_id: TaskId
    signed: bool


class JournalReader:
    """A read-only connection to a journal, for ``with``. Used from any thread, one at a time.

    Args:
        path: The journal.
        leaves_no_trace: Make no file beside it, not even for a moment.

    Raises:
        JournalError: There is none, it is damaged, or another program's.
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
            read_as_current(self._connection)
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise access_error(error, f"{path} cannot be read", is_unchanged=True) from None
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
        """Close the file."""
        self._closing.close()

    # --- jobs ---------------------------------------------------------------------------------------------

    def jobs(self, *states: JobState) -> Iterator[StoredJob]:
        """Yield the jobs in these states, or all of them, in order of arrival."""
        where = f"state IN ({_marks(states)}) AND" if states else ""
        return self._pages(f"{where} number > ?", *states)

    def select(self, where: str, *values: object) -> list[StoredJob]:
        """Return the jobs that a condition in SQL, with its order and limit, selects."""
        return self._read(lambda c: select_jobs(c, where, *values))

    def by_number(self, numbers: Sequence[int]) -> list[StoredJob]:
        """Return the jobs with these numbers, at most some hundreds, in the order asked for."""
        found = {stored.number: stored for stored in self.select(f"number IN ({_marks(numbers)})", *numbers)}
        return [found[number] for number in numbers if number in found]

    def newest(self) -> int:
        """Return the number of the newest job; 0 if there is none."""
        return int(self._value("SELECT max(number) FROM job") or 0)

    def named(self, start: str) -> list[StoredJob]:
        """Return the job with this key, or else up to two whose keys start with it."""
        return self.select("key = ?", start) or self.select(
            "substr(key, 1, ?) = ? LIMIT 2", len(start), start
        )

    def has(self, key: str) -> bool:
        """Return whether a job has this key."""
        return self._value("SELECT 1 FROM job WHERE key = ?", key) is not None

    def owner_of(self, task_id: str) -> JobKey | None:
        """Return the job that a task belongs to, or once belonged to."""
        return self._read(lambda c: ownership.owner_of(c, task_id))

    def candidates(self, number: int) -> list[TaskId]:
        """Return the tasks that may be a job's: the ids in odd answers to its submits."""
        return self._read(lambda c: ownership.candidates(c, number))

    def found_task(self, number: int) -> TaskId | None:
        """Return the task whose record shows the request of a job in doubt, and that belongs to no job."""
        found = self._read(lambda c: ownership.offers_to(c, number))
        return found[0].task_id if found else None

    def with_echo(self, echo: Echo) -> Iterator[StoredJob]:
        """Yield the jobs whose records have this echo of the request, in order of arrival."""
        return self._pages("echo = ? AND number > ?", echo)

    def echoes(self) -> dict[Echo, int]:
        """Return how many jobs have a record with each echo."""
        rows = dict(self._all("SELECT echo, count(*) FROM job WHERE echo IS NOT NULL GROUP BY echo"))
        return {echo: rows.get(echo.value, 0) for echo in Echo}

    def input_url(self, number: int) -> str | None:
        """Return the URL of the uploaded image that the latest submit of a job has sent."""
        sql = "SELECT input_url FROM attempt WHERE job = ? ORDER BY number DESC LIMIT 1"
        url = self._value(sql, number)
        return None if url is None else str(url)

    def intended_at(self, number: int) -> float | None:
        """Return the time of the latest intent to submit a job."""
        return self._number("SELECT max(intended_at) FROM attempt WHERE job = ?", number)

    def possible_duplicate_charges(self) -> list[PossibleDuplicateCharge]:
        """Return the unknown tasks that callbacks name for submits that were resubmitted since.

        A job that waits for its next submit is left out: it may still take the task before.
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
        """Return how many jobs are in each state, states without jobs included."""
        rows = dict(self._all("SELECT state, count(*) FROM job GROUP BY state"))
        return {state: rows.get(state.value, 0) for state in JobState}

    def findings(self) -> dict[str, int]:
        """Return what the checks found, with the number of images: verdicts, ``preserved`` and others.

        While another attempt is made for a better image, the earlier one counts.
        """
        checked = Counter[str]()
        shown = "CASE state WHEN 'done' THEN checked ELSE json_extract(kept, '$.checked') END"
        for (text,) in self._all(f"SELECT {shown} FROM job WHERE {shown} IS NOT NULL"):
            checked.update(findings_in(CheckResult(**json.loads(text))))
        return dict(sorted(checked.items()))

    def to_retry(self) -> dict[str, dict[str, int]]:
        """Return how many images failed, or have text left or damage by their verdict, each by model."""
        why = "CASE state WHEN 'failed' THEN state ELSE json_extract(checked, '$.verdict.kind') END"
        which = "state = 'failed' OR state = 'done' AND kept IS NULL"
        sql = f"SELECT {why}, {_MODEL}, count(*) FROM job WHERE {which} GROUP BY 1, 2"
        names = {"failed": "failed", "text_left": "text_left", "damaged": "damaged", "cropped": "damaged"}
        counted = {name: Counter[str]() for name in names.values()}
        for reason, model, count in self._all(sql):
            if reason in names:
                counted[names[reason]][str(model)] += count
        return {name: dict(counts) for name, counts in counted.items()}

    def saved_credits(self) -> float:
        """Return what the images would have cost that were not submitted, as their originals have no text."""
        saved = "json_extract(checked, '$.saved_credits')"
        return self._number(f"SELECT sum({saved}) FROM job WHERE state = 'done' AND task_id IS NULL") or 0.0

    def apis(self) -> dict[ApiName, int]:
        """Return how many jobs have their task, or their latest attempt, at each API; none for no jobs."""
        return dict(
            self._all("SELECT api, count(*) FROM job WHERE api IS NOT NULL GROUP BY api ORDER BY api")
        )

    def fetch_by(self) -> float | None:
        """Return when the vendor may delete the first result that is paid and not fetched yet."""
        sql = "SELECT api, min(submitted_at) FROM job WHERE state IN ('submitted', 'generated') GROUP BY api"
        return min((at + RETENTION_S[api] for api, at in self._all(sql)), default=None)

    def last_activity(self) -> float | None:
        """Return the time of the last event, in seconds since the epoch."""
        return self._number("SELECT at FROM event ORDER BY number DESC LIMIT 1")

    def spending(self) -> list[Spending]:
        """Return the tasks made so far, by model."""
        sql = (
            f"SELECT {_MODEL}, sum(type IN {_SPENT}) - sum(type = 'EchoContradicted'), "
            f"sum(type IN {_UNKNOWN}) - sum(type = 'TaskFound'), max({_CUSTOM_PRICE}) "
            "FROM event JOIN job ON event.job = job.number "
            f"WHERE type IN {_SPENT + _UNKNOWN} GROUP BY 1"
        )
        measured = (
            f"SELECT coalesce({_OTHER_MODEL}, {_MODEL}), count(*), sum(attempt.credits) "
            "FROM attempt JOIN job ON attempt.job = job.number "
            "WHERE attempt.credits IS NOT NULL GROUP BY 1"
        )
        costs = {model: (count, paid) for model, count, paid in self._all(measured)}
        prices = self._read(read_prices)
        made = {model: [tasks, perhaps, price] for model, tasks, perhaps, price in self._all(sql)}
        for model, other, tasks, perhaps, price in self._all(_WITH_OTHER_MODELS):
            moved = made.setdefault(other, [0, 0, price])
            for column, count in enumerate((tasks, perhaps)):
                made[model][column] -= count
                moved[column] += count
        return [
            Spending(
                model=str(model),
                tasks=tasks,
                perhaps=max(0, perhaps),
                measured=costs.get(model, (0, 0.0))[0],
                credits=costs.get(model, (0, 0.0))[1],
                price=prices.get(model, custom_price),
            )
            for model, (tasks, perhaps, custom_price) in made.items()
        ]

    def generation_s(self, share: float) -> float | None:
        """Return the duration that ``share`` of the tasks did not exceed, by the vendor's clock."""
        known = "FROM job WHERE generation_s IS NOT NULL"
        count = self._value(f"SELECT count(*) {known}")
        offset = max(0, math.ceil(count * share) - 1)
        return self._number(f"SELECT generation_s {known} ORDER BY generation_s LIMIT 1 OFFSET ?", offset)

    # --- how ----------------------------------------------------------------------------------------------

    def _pages(self, where: str, *values: object) -> Iterator[StoredJob]:
        """Yield jobs by pages; the last condition is ``number > ?``."""
        after = 0
        while page := self.select(f"{where} ORDER BY number LIMIT {_PAGE}", *values, after):
            yield from page
            after = page[-1].number

    def _all(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self._read(lambda c: c.execute(sql, values).fetchall())

    def _read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return question(self._connection)
        except sqlite3.Error as error:
            raise access_error(error, "The journal cannot be read", is_unchanged=True) from None

    def _number(self, sql: str, *values: object) -> float | None:
        value = self._value(sql, *values)
        return None if value is None else float(value)

    def _value(self, sql: str, *values: object) -> Any:
        rows = self._all(sql, *values)
        return rows[0][0] if rows else None


def read_at_rest(path: Path, read: Callable[[JournalReader], T]) -> T:
    """Return the result of ``read``; leave no file beside a journal that no process has open.

    SQLite locks nothing then. So if a process begins to write meanwhile, ``read`` is called again, with
    SQLite's locks and files.

    Raises:
        JournalError: The journal cannot be read.
    """
    file = path.resolve()
    if lock_owner_of(file) is None and not file.with_name(f"{file.name}-wal").exists():
        before = _state_of(file)
        try:
            with JournalReader(path, leaves_no_trace=True) as reader:
                found = read(reader)
        except JournalError:
            if _state_of(file) == before:
                raise
        else:
            if _state_of(file) == before:
                return found
    with JournalReader(path) as reader:
        return read(reader)


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Return figures of a file that differ after each write to it; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class JournalPreview:
    """Returns what adding entries would do, and changes nothing; use it as ``with``.

    The same code adds the jobs to a temporary database; the jobs of the journal with the same key or address
    are copied there first.

    Args:
        reader: The journal, or None if there is none yet.
    """

    def __init__(self, reader: JournalReader | None) -> None:
        self._reader = reader
        self._connection = connect("")
        newest = 0 if reader is None else reader.newest()
        self._earlier = EarlierRuns(newest=newest)
        self._connection.execute("BEGIN")  # never committed
        # The numbers of new jobs come after this one.
        sql = "INSERT INTO job (number, key, request) VALUES (?, ?, '{}')"
        self._connection.execute(sql, (newest + 1, f"\0{os.urandom(8).hex()}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def add(self, key: JobKey, request: str, *, pays_again: bool, is_given: Callable[[int], bool]) -> Added:
        """Return the result of adding an entry; the second time, that it is there already.

        Args:
            key: The entry's.
            request: Its request.
            pays_again: Whether an image that was submitted under another signature becomes a new job.
            is_given: Returns by its number whether a job was an entry before.
        """
        page = None
        if self._reader is not None:
            where = f"bare_address = ? AND number > ? ORDER BY number LIMIT {_PAGE}"
            page = partial(self._reader.select, where)
            for stored in _related(self._reader, key, addresses_of(request)):
                self._copy(stored)
        adding = Adding(
            connection=self._connection,
            at=0.0,
            is_chosen=is_given,
            pays_again=pays_again,
            earlier=self._earlier,
            similar_page=page,
        )
        (added,) = adding.add([(key, request)], {})
        return added

    def _copy(self, stored: StoredJob) -> None:
        job = stored.job
        checked = None if job.checked is None else json.dumps(attrs.asdict(job.checked))
        values = (stored.number, job.key, stored.request, *addresses_of(stored.request), job.state)
        self._connection.execute(
            "INSERT OR IGNORE INTO job "
            "(number, key, request, address, bare_address, state, task_id, api, result_url, file, charge, "
            "checked, redone, other_model) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(*values, job.task_id, job.api, job.result_url, job.file, job.charge),
                *(checked, job.redone, job.other_model),
            ),
        )


def _related(reader: JournalReader, key: JobKey, addresses: Addresses) -> list[StoredJob]:
    """Return the jobs that decide what happens to an entry."""
    return reader.select("key = ?", key) or reader.select(
        "address IN (?, ?)", addresses.unsigned, addresses.bare
    )


def findings_in(found: CheckResult) -> dict[str, int]:
    """Return one for each finding about an image: its verdict, whether it is composed, and failed checks."""
    findings = {
        verdict_in(found.verdict or {}): found.verdict is not None,
        "preserved": found.is_preserved is True,
        "not_preserved": found.is_preserved is False,
        "not_checked": found.problem is not None,
    }
    return {name: 1 for name, is_found in findings.items() if is_found}


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
