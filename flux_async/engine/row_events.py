"""Events of jobs that other processes work on, made from their rows as these change.

Rules:

1. One query reads all jobs that are followed, however many readers there are.
2. What this process's own worker does comes from that worker, except for additions and outcomes, which come
   from the rows alone, whichever process has brought them about: so a reader has each of them once.
3. The database gives numbers before transactions end, so the last ones are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

import attrs

from flux_async.batch import job_events
from flux_async.batch.answers import JobStatus
from flux_async.engine.database import Database, Row
from flux_async.engine.store import COLUMNS
from flux_async.events import FluxEvent
from flux_async.job_state import SubmitAccepted
from flux_async.journal.store import StoredJob
from flux_async.models import JobKey, Outcome, TaskId

_OVERLAP, _MOST_KEPT = 200, 10_000
_FOLLOWED = (
    f"SELECT {COLUMNS}, job.settled, job.obstacle, attempt.executor FROM flux_async.job "
    "LEFT JOIN flux_async.attempt ON attempt.job = job.number AND attempt.number = job.attempts "
    "WHERE job.number IN (SELECT number FROM flux_async.job WHERE batch = %(batch)s AND key = ANY(%(keys)s)"
)
_ALL = (
    " UNION SELECT number FROM flux_async.job WHERE batch = %(batch)s AND number > %(number)s"
    " UNION SELECT number FROM flux_async.job WHERE batch = %(batch)s AND settled > %(settled)s"
    " UNION SELECT number FROM flux_async.job WHERE batch = %(batch)s AND settled IS NULL"
    " AND state IN ('submitting', 'submitted', 'generated', 'in_doubt')"
)
_LATEST = (
    "SELECT coalesce(max(number), 0) AS number, coalesce(max(settled), 0) AS settled "
    "FROM flux_async.job WHERE batch = %(batch)s"
)


@attrs.define(eq=False)
class _Numbers:
    """Numbers of a sequence, each reported once."""

    _floor: int = attrs.field(default=0, init=False)
    _last: int = attrs.field(default=0, init=False)
    _reported: dict[int, None] = attrs.field(factory=dict, init=False)

    @property
    def since(self) -> int:
        """The number after which the sequence is read."""
        return max(self._floor, self._last - _OVERLAP)

    def begin(self, last: int) -> None:
        """Read the sequence from its end on."""
        self._floor = self._last = last

    def take(self, number: int) -> bool:
        """Return whether a number is to be reported."""
        if number in self._reported:
            return False
        self._reported[number] = None
        self._last = max(self._last, number)
        if len(self._reported) > _MOST_KEPT:
            del self._reported[next(iter(self._reported))]
        return True


@attrs.define(kw_only=True, eq=False)
class RowEvents:
    """The events of one batch.

    Attributes:
        database: Where the jobs are.
        batch: The batch.
        executor: Returns the name of this process's own worker; empty if it has none.
        answer: Returns the outcome of a row, or how far it is.
    """

    database: Database
    batch: str
    executor: Callable[[], str]
    answer: Callable[[Row], tuple[StoredJob, JobStatus | Outcome]]
    _added: _Numbers = attrs.field(factory=_Numbers, init=False)
    _settled: _Numbers = attrs.field(factory=_Numbers, init=False)
    _tasks: set[TaskId] = attrs.field(factory=set, init=False)
    _followed: frozenset[JobKey] = attrs.field(default=frozenset(), init=False)
    _follows_all: bool = attrs.field(default=False, init=False)

    def was_added(self, number: int) -> None:
        """Take note of a job whose addition this process has reported."""
        self._added.take(number)

    def has_reported(self, task_id: TaskId) -> None:
        """Take note of a task that this process's worker has reported."""
        self._tasks.add(task_id)

    async def read(
        self, keys: AbstractSet[JobKey], *, follows_all: bool
    ) -> tuple[list[FluxEvent], set[JobKey]]:
        """Return what has happened since the last call, and which of ``keys`` have their outcome."""
        if not keys and not follows_all:
            self._tasks, self._followed, self._follows_all = set(), frozenset(), False
            return [], set()
        if follows_all and not self._follows_all:
            await self._begin()
        values = {"keys": list(keys), "number": self._added.since, "settled": self._settled.since}
        sql = f"{_FOLLOWED}{_ALL * follows_all}) ORDER BY job.number"
        rows = await self.database.rows(sql, batch=self.batch, **values)
        happened, tasks = list[FluxEvent](), set[TaskId]()
        for row in rows:
            stored, answer = self.answer(row)
            happened += self._events_of(row, stored, answer, follows_all=follows_all)
            if stored.job.task_id is not None:
                tasks.add(stored.job.task_id)
        self._tasks = tasks
        self._followed, self._follows_all = frozenset(keys), follows_all
        return happened, {JobKey(row["key"]) for row in rows if row["settled"] is not None} & keys

    async def _begin(self) -> None:
        """Follow all jobs from now on."""
        row = await self.database.row(_LATEST, batch=self.batch)
        assert row is not None  # noqa: S101 - an aggregate has one
        self._added.begin(row["number"])
        self._settled.begin(row["settled"])

    def _events_of(
        self, row: Row, stored: StoredJob, answer: JobStatus | Outcome, *, follows_all: bool
    ) -> Iterator[FluxEvent]:
        job, now = stored.job, self.database.clock.wall()
        if follows_all and stored.number > self._added.since and self._added.take(stored.number):
            yield job_events.added(stored, now)
        was_followed = self._follows_all or job.key in self._followed
        is_new = job.task_id is not None and job.task_id not in self._tasks
        if job.task_id is not None and is_new and was_followed and row["executor"] != self.executor():
            accepted = SubmitAccepted(at=job.submitted_at or now, task_id=job.task_id)
            submitted = job_events.event_of(stored, job, accepted, None)
            if submitted is not None:
                yield submitted
        if not isinstance(answer, JobStatus) and self._settled.take(row["settled"]):
            yield job_events.settled(stored, answer, now)
