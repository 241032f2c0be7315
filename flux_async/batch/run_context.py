"""What all jobs of one run share, and the one place where an event of a job is recorded."""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial
from typing import TypeAlias

import attrs

from flux_async.api.stored_requests import read_image
from flux_async.batch import job_events
from flux_async.batch.active_job import ActiveJob, ActiveJobs, RunSlots
from flux_async.batch.check_stage import CheckStage
from flux_async.batch.file_names import FileNames
from flux_async.batch.inputs import InputUpload
from flux_async.batch.job_store import JobStore
from flux_async.batch.options import BatchClient, RunOptions
from flux_async.batch.price_check import PriceCheck
from flux_async.batch.progress import ProgressReporter
from flux_async.batch.run_control import Budget, RunControl
from flux_async.errors import ConfigurationError, FluxError, JobConflictError, Scope
from flux_async.events import FluxEvent
from flux_async.job_state import (
    NO_CHECKS,
    EchoContradicted,
    Event,
    JobSnapshot,
    JobState,
    TaskFound,
    WantedChecks,
    apply,
)
from flux_async.journal.ownership import KnownTask
from flux_async.journal.store import StoredJob
from flux_async.models import Echo
from flux_async.session import Call, Session

Events: TypeAlias = tuple[Event, ...]
"""What one step brought about: one event, or two that are recorded in one commit; or nothing."""

MOST_RETRIES_AT_ONCE = 4
"""Downloads retried at once, of the eight that the session makes: the others are for first tries."""


@attrs.define(kw_only=True, eq=False)
class RunContext:
    """What all jobs of one run share.

    Attributes:
        client: Connections, rate limiter and clock of one API key, and its poller.
        journal: The durable record.
        options: What the caller asked for.
        names: Names the files of results.
        control: Whether the run still submits and waits.
        budget: The credits it may spend.
        prices: Measures the price of each model.
        progress: Counts events for observers.
        checks: Checks the results, or None.
        call: The run as a call on the session, from its start on.
        jobs: The jobs that the run works on.
        slots: Bounds them.
        retry_slots: Bounds the downloads that are retried at once.
    """

    client: BatchClient
    journal: JobStore
    options: RunOptions
    names: FileNames
    control: RunControl
    budget: Budget
    progress: ProgressReporter
    checks: CheckStage | None = None
    prices: PriceCheck = attrs.field(init=False)
    call: Call = attrs.field(init=False)
    jobs: ActiveJobs = attrs.field(factory=ActiveJobs, init=False)
    slots: RunSlots = attrs.field(init=False)
    retry_slots: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, MOST_RETRIES_AT_ONCE), init=False
    )

    def __attrs_post_init__(self) -> None:
        self.slots = RunSlots(self.session)
        self.prices = PriceCheck(session=self.session, journal=self.journal, budget=self.budget)

    @property
    def session(self) -> Session:
        """The session of the API key."""
        return self.client.session

    def emit(self, event: FluxEvent) -> None:
        """Hand an event to the observers of the session."""
        self.session.events.emit(event)

    def with_trace(self, stored: StoredJob) -> StoredJob:
        """Return a job with its trace: one of its own, which its first submit keeps, unless it has one."""
        if stored.trace is not None:
            return stored
        at = self.now() if stored.added_at is None else stored.added_at
        # Outside of the context of the caller, whose trace would be that of all jobs of the run.
        trace = Context().run(self.session.events.trace_context, at)
        return stored if trace is None else attrs.evolve(stored, trace=trace)

    def _report(self, job: ActiveJob, snapshot: JobSnapshot, happened: Event) -> None:
        kind = job_events.KINDS.get(type(happened))
        if kind is not None and self.session.events.wants(kind):
            seen = job_events.event_of(job.stored, snapshot, happened, job.spent)
            if seen is not None:
                self.emit(seen)

    def now(self) -> float:
        """Return seconds since the epoch, for events."""
        return self.session.clock.wall()

    async def record(self, job: ActiveJob, event: Event, then: Event | None = None) -> None:
        """Apply one event, or two in one commit; return when they are on disk and counted.

        Raises:
            JournalError: They are not on disk; the job stays as it was.
        """
        before, after = job.state, apply(job.state, event)
        moves = [(before.state, after, event)]
        if then is not None:
            moves.append((after.state, apply(after, then), then))
        follows = None if then is None else (moves[1][1], then)
        await self.journal.record(job.number, after, event, before=before, then=follows)
        job.stored = attrs.evolve(job.stored, job=moves[-1][1])
        for earlier, snapshot, happened in moves:
            job.spent = self.progress.tally.add_event(earlier, snapshot, happened, job.spent)
            self.progress.notify()
            self._report(job, snapshot, happened)
        if isinstance(event, EchoContradicted) and event.belongs_to is not None:
            self.jobs.wake(event.belongs_to)  # the journal offers the task to that job

    def checks_of(self, stored: StoredJob) -> WantedChecks:
        """Return the checks to be made of a job: none where it was made from no image.

        A result that is to be compared with an earlier one is verified, and composed if that was.
        """
        if self.checks is None or not read_image(stored.request):
            return NO_CHECKS
        wanted, kept = self.options.checks, stored.job.kept
        if kept is None:
            return wanted
        was_composed = kept.checked is not None and kept.checked.is_preserved is not None
        return attrs.evolve(
            wanted, skip_textless=False, preserve=wanted.preserve or was_composed, verify=True
        )

    async def adopt(self, job: ActiveJob, task: KnownTask) -> bool:
        """Record the task that a callback, or another job's poll, named; False if another job has it."""
        # The record of an offered task may show this job's image alone: it is compared once more.
        is_offer = task in await self.journal.offers_to(job.number)
        echo = None if is_offer else Echo.CONFIRMED
        try:
            await self.record(job, TaskFound(at=self.now(), task_id=task.task_id, api=task.api, echo=echo))
        except JobConflictError:
            return False
        return True

    def input_of(self, job: ActiveJob) -> InputUpload:
        """Return the upload of a job's image.

        Raises:
            InvalidInput: Another release wrote the request.
        """
        if job.input is None:
            request = job.stored.read_as(job.submitted)
            job.input = InputUpload(client=self.client, request=request, via_upload=self.options.via_upload)
        return job.input

    def as_halt(self, error: BaseException) -> BaseException:
        """Return the error that ends the run; without a journal file its advice names the second charge."""
        if isinstance(error, FluxError) and not self.journal.is_durable:
            error.in_memory, template = True, error.advice_template
            if self.progress.tally.credits > 0 and "{paid_once}" not in template:
                error.advice = f"{template} {{paid_once}}"
        return error

    def keep_unclaimed(self, job: ActiveJob) -> None:
        """Keep the id of a paid task whose outcome no caller receives, unless a journal file keeps it."""
        task_id, api = job.state.task_id, job.state.api
        if task_id is None or api is None or job.state.state is JobState.FAILED:
            return
        if not self.journal.is_durable:
            self.session.keep_unclaimed(job.stored.as_job().request, api, task_id)


def concerns_all(error: FluxError) -> bool:
    """Whether an error ends the run, and not only the work on one job."""
    return error.scope is Scope.STOP or isinstance(error, ConfigurationError)
