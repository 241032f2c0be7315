"""What a job service answers: the outcome of a job, or how far it is; how the service is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import attrs

from flux_async.api.models_table import ApiName
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.progress import BatchProgress
from flux_async.clock import Clock, Wakeup
from flux_async.errors import Charge, DeadlineExceeded, UnknownJob
from flux_async.job_state import FINAL, JobState
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import JobKey, Outcome, Succeeded, TaskId
from flux_async.snapshots import ClientSnapshot

_MOST_KEPT = 10_000


@attrs.frozen(kw_only=True)
class JobStatus:
    """A job that has no outcome yet.

    Attributes:
        key: Its key.
        state: Its state.
        attempts: Its submits so far.
        charge: Whether the latest of them was charged.
        task_id: Its task at the vendor, once it has one, and ``api`` where that was submitted to.
        api: See ``task_id``.
        submitted_at: When the task was accepted, in seconds since the epoch.
        priority: Its priority in the queue.
        problem: The latest error, in words.
    """

    key: JobKey
    state: JobState
    attempts: int = 0
    charge: Charge = Charge.NO
    task_id: TaskId | None = None
    api: ApiName | None = None
    submitted_at: float | None = None
    priority: int = 0
    problem: str | None = None

    @classmethod
    def of(cls, stored: StoredJob) -> Self:
        """Return the status of a job of the journal."""
        job = stored.job
        return cls(
            key=job.key,
            state=job.state,
            attempts=job.attempts,
            charge=job.charge,
            task_id=job.task_id,
            api=job.api,
            submitted_at=job.submitted_at,
            priority=stored.priority,
            problem=None if job.problem is None else job.problem.message,
        )


@attrs.frozen(kw_only=True)
class ServiceSnapshot:
    """A job service at one moment.

    Attributes:
        client: Its client.
        is_open: Whether it is open and not closing.
        waiting: Jobs that wait for their turn, and ``most_waiting`` how many may.
        most_waiting: See ``waiting``.
        active: Jobs that it works on.
        journal_lag_s: Seconds for which the oldest request to the journal has been waiting for its commit.
        halted: The class of the error that has halted submits; None while nothing has.
        reason: Its message.
        progress: The counts of the run in progress, with the credits that it has spent; None during a halt.
    """

    client: ClientSnapshot
    is_open: bool
    waiting: int
    most_waiting: int
    active: int
    journal_lag_s: float
    halted: str | None
    reason: str | None
    progress: BatchProgress | None

    @property
    def is_ready(self) -> bool:
        """Whether new jobs are taken and submitted: what ``/readyz`` answers."""
        return self.is_open and self.halted is None and self.waiting < self.most_waiting


@attrs.define(eq=False)
class Waiters:
    """Callers that wait for the outcomes of jobs.

    Attributes:
        clock: Measures waits.
        find: Returns the outcome of a job, or how far it is.
    """

    clock: Clock
    find: Callable[[str], Awaitable[JobStatus | Outcome]]
    _waiting: dict[JobKey, set[Wakeup]] = attrs.field(factory=dict, init=False, repr=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    @property
    def keys(self) -> list[JobKey]:
        """The jobs that are waited for."""
        return list(self._waiting)

    async def result(self, key: str, timeout_s: float) -> Outcome:
        """Wait for the outcome of a job.

        Raises:
            UnknownJob: There is no such job.
            DeadlineExceeded: The time is up, or the service was closed.
        """
        wakeup, deadline = Wakeup(), self.clock.monotonic() + timeout_s
        waiting = self._waiting.setdefault(JobKey(key), set())
        waiting.add(wakeup)
        try:
            found = await self.find(key)
            while isinstance(found, JobStatus):
                if self._is_closed or self.clock.monotonic() >= deadline:
                    words, advice = f"Job {key} is {found.state} and goes on.", "Ask for it again later."
                    raise DeadlineExceeded(words, advice=advice, charge=found.charge, task_id=found.task_id)
                await wakeup.wait(self.clock, deadline - self.clock.monotonic())
                if not self._is_closed:
                    found = await self.find(key)
            return found
        finally:
            waiting.discard(wakeup)
            if not waiting:
                self._waiting.pop(JobKey(key), None)

    def wake(self, key: JobKey) -> None:
        """Let those who wait for a job read it again."""
        for wakeup in self._waiting.get(key, ()):
            wakeup.set()

    def close(self) -> None:
        """End all waits: nothing works on the jobs any more."""
        self._is_closed = True
        for key in self._waiting:
            self.wake(key)


@attrs.define(kw_only=True, eq=False)
class Answers:
    """What one service answers.

    Attributes:
        journal: Has the jobs.
        clock: Measures waits.
        directory: The folder of the results, if there is one.
        works_on: Returns by its number whether the service works on a job now.
        waiters: Those who wait for outcomes.
    """

    journal: Journal
    clock: Clock
    directory: Path | None
    works_on: Callable[[int], bool] = attrs.field(default=lambda _: False, init=False, repr=False)
    waiters: Waiters = attrs.field(init=False, repr=False)
    # The latest outcomes that bring no image: the journal has less of their errors, or none.
    _kept: OrderedDict[JobKey, Outcome] = attrs.field(factory=OrderedDict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.waiters = Waiters(self.clock, self.find)

    async def stored(self, key: str) -> StoredJob:
        """Return a job of the journal.

        Raises:
            UnknownJob: The journal does not have it.
        """
        stored = await self.journal.job(key)
        if stored is None:
            raise UnknownJob(f"There is no job {key!r}.")
        return stored

    async def find(self, key: str) -> JobStatus | Outcome:
        """Return the outcome of a job, or how far it is; raises as :meth:`stored` does."""
        return self.answer(await self.stored(key))

    def answer(self, stored: StoredJob) -> JobStatus | Outcome:
        """Return the outcome of a job, or how far it is."""
        job = stored.job
        if (outcome := self._kept.get(job.key)) is not None:
            return outcome
        is_left = job.state is JobState.IN_DOUBT and not self.works_on(stored.number)
        if is_left or job.state in FINAL:
            return outcome_of(job, stored.as_job(), None, self.directory)
        return JobStatus.of(stored)

    def settle(self, key: JobKey, outcome: Outcome) -> None:
        """Keep an outcome, unless the journal has all of it, and wake those who wait for it."""
        self._kept.pop(key, None)
        if not isinstance(outcome, Succeeded):
            self._kept[key] = outcome
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self.waiters.wake(key)

    def forget(self, key: JobKey) -> None:
        """Drop the outcome of a job that is tried again."""
        self._kept.pop(key, None)
