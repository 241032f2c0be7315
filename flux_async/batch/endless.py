"""A batch that never ends: a queue by priority as its inputs, and a new run after each halt."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import AsyncIterator, Iterator

import attrs

from flux_async.batch.answers import Answers
from flux_async.batch.cancelling import cancel_stored
from flux_async.batch.options import BatchClient, ServiceOptions
from flux_async.batch.runner import BatchRun, run_batch
from flux_async.errors import (
    BudgetExhausted,
    FluxError,
    InvalidInput,
    QueueFull,
    TooManyUnknownAnswers,
    UnexpectedPrice,
)
from flux_async.job_state import JobState
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Failed, Job, JobKey, Outcome

logger: logging.Logger = logging.getLogger("flux_async")

RETRY_S = (60.0, 300.0)
"""Seconds after a halt until one submit is tried again: at first, and at most; they double with each halt."""

COSTLY_RETRY_S = (600.0, 6 * 3600.0)
"""The same after too many unknown answers: then the try may be charged without a known task."""

_NEEDS_A_PERSON = (BudgetExhausted, UnexpectedPrice)


@attrs.define(kw_only=True, eq=False)
class EndlessRun:
    """The work of a service on an open journal.

    Attributes:
        client: Makes the requests.
        journal: The durable record.
        options: The options of each run.
        answers: Receives the outcomes.
        most_waiting: Jobs that may wait for their turn.
        queued: The jobs that wait for their turn.
        announced: The jobs that were reported as added and have no outcome yet.
        batch: The run in progress.
        halted: What has halted the last one, until the next one begins.
        retry_at: When that is, in monotonic seconds; None if it needs a person.
    """

    client: BatchClient
    journal: Journal
    options: ServiceOptions
    answers: Answers
    most_waiting: int
    queued: set[JobKey] = attrs.field(factory=set, init=False)
    announced: set[JobKey] = attrs.field(factory=set, init=False)
    batch: BatchRun | None = attrs.field(default=None, init=False)
    halted: FluxError | None = attrs.field(default=None, init=False)
    retry_at: float | None = attrs.field(default=None, init=False)
    _adding: int = attrs.field(default=0, init=False)
    _queue: list[tuple[int, int, JobKey]] = attrs.field(factory=list, init=False, repr=False)
    _given: set[JobKey] = attrs.field(factory=set, init=False, repr=False)
    _arrived: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.answers.works_on = self.works_on

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Hold while a job is added.

        Raises:
            QueueFull: Too many are waiting.
        """
        if len(self.queued) + self._adding >= self.most_waiting:
            words = f"{self.most_waiting} jobs wait for their submit already."
            raise QueueFull(words, retry_after_s=self._next_submit_s())
        self._adding += 1
        try:
            yield
        finally:
            self._adding -= 1

    def push(self, stored: StoredJob) -> bool:
        """Put a pending job into the queue; return False if it waits or is active already."""
        key = stored.job.key
        if stored.job.state is not JobState.PENDING or key in self.queued or key in self._given:
            return False
        self.queued.add(key)
        self.announced.add(key)
        heapq.heappush(self._queue, (-stored.priority, stored.number, key))
        self._arrived.set()
        return True

    async def cancel(self, stored: StoredJob) -> bool:
        """Cancel a job; return whether the run reports its outcome, because it worked on it.

        Raises:
            AlreadySubmitted: It is submitted, or has its outcome.
        """
        is_reported = False
        if self.batch is not None:
            is_reported = await self.batch.cancel(stored)
        else:
            await cancel_stored(self.journal, stored, self.client.session.clock.wall())
        self.queued.discard(stored.job.key)
        self._given.discard(stored.job.key)
        return is_reported

    def works_on(self, number: int) -> bool:
        """Return whether the run in progress works on a job, by its number."""
        return self.batch is not None and self.batch.works_on(number)

    def _next_submit_s(self) -> float:
        """Return the seconds until a waiting job is probably submitted, at least one."""
        now, session = self.client.session.clock.monotonic(), self.client.session
        pause = session.submitter.pause
        waits = [1.0, session.spacing.delay(now), pause.delay(now) if pause.is_on else 0.0]
        return max(*waits, 0.0 if self.retry_at is None else self.retry_at - now)

    # --- the runs -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run one batch after the other, until cancelled."""
        clock, halts = self.client.session.clock, 0
        while True:
            began = clock.monotonic()
            error = await self._run_batch()
            first_s, longest_s = COSTLY_RETRY_S if isinstance(error, TooManyUnknownAnswers) else RETRY_S
            halts = halts + 1 if clock.monotonic() - began < longest_s else 1
            self.halted = error
            if isinstance(error, _NEEDS_A_PERSON):
                self.retry_at = None
                logger.error("the service submits nothing until it is restarted: %s", error.message)
                await asyncio.Event().wait()
            seconds = min(longest_s, first_s * 2.0 ** (halts - 1))
            self.retry_at = clock.monotonic() + seconds
            logger.error("the service tries again in %.0f s: %s", seconds, error.message)
            await clock.sleep(seconds)
            self.halted = self.retry_at = None

    async def _run_batch(self) -> FluxError:
        """Run a batch until it halts; return why."""
        try:
            await self._load()
            batch = run_batch(self.client, self._inputs(), journal=self.journal, **self.options)
            batch.announced = self.announced
            async with batch:
                self.batch = batch
                async for outcome in batch:
                    if outcome.job is not None:
                        self._settle(outcome.job.key, outcome)
        except FluxError as error:
            return error
        except Exception as error:
            logger.exception("the service was interrupted")
            return FluxError(f"The service was interrupted by {type(error).__name__}.")
        finally:
            self.batch = None
        return FluxError("The run has ended by itself.")

    def _settle(self, key: JobKey, outcome: Outcome) -> None:
        self._given.discard(key)
        self.announced.discard(key)
        self.answers.settle(key, outcome)

    async def _load(self) -> None:
        """Read the queue from the journal: after a halt what was read ahead is in neither queue nor run."""
        found = await self.journal.queue()  # from here on without an await: jobs may be added meanwhile
        self._given.clear()
        self._queue = [(-priority, number, key) for priority, number, key in found]
        self.queued = {key for _, _, key in found}

    async def _inputs(self) -> AsyncIterator[Job]:
        """Yield the waiting jobs, each when the run asks for it."""
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            _, _, key = heapq.heappop(self._queue)
            if key not in self.queued:
                continue  # it was cancelled
            self.queued.discard(key)
            self._given.add(key)
            stored = await self.journal.job(key)
            if stored is None or stored.job.state is not JobState.PENDING:
                self._given.discard(key)
                continue
            try:
                job = stored.as_job()
            except InvalidInput as error:  # another release wrote it
                self._settle(key, Failed(job=None, error=error))
                continue
            yield job
