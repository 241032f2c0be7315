"""Starts one coroutine per job, as many as there are slots, and hands over its outcome; reads callbacks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container

import attrs
from anyio.streams.memory import MemoryObjectSendStream

from flux_async.batch import job_events
from flux_async.batch.active_job import ActiveJob, JobSlots
from flux_async.batch.cancelling import cancel_stored, too_late
from flux_async.batch.job_runner import outcome_of, run_job
from flux_async.batch.run_context import RunContext
from flux_async.errors import FluxError, JournalDisplaced, JournalError, Scope
from flux_async.events import JobAdded
from flux_async.job_state import FINAL, Cancelled, JobState, next_attempt, next_check
from flux_async.journal.inbox import InboxEntry
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Failed, InDoubt, JobKey, Outcome

logger: logging.Logger = logging.getLogger("flux_async")

PEEK_S = 0.05
"""Seconds between two reads of the callbacks that another process has received."""
_AFTER_TROUBLE_S = 1.0


@attrs.define(kw_only=True, eq=False)
class Scheduler:
    """The coroutines of one run's jobs.

    Attributes:
        run: What the jobs share.
        journal: The journal of the run.
        group: Runs the coroutines.
        send: Receives the outcomes.
        announced: The jobs that a service has reported as added; None for a run that ends with its inputs.
    """

    run: RunContext
    journal: Journal
    group: asyncio.TaskGroup
    send: MemoryObjectSendStream[Outcome]
    announced: Container[JobKey] | None = None
    # Jobs that are not settled and whose outcome this run has reported.
    _reported: set[int] = attrs.field(factory=set, init=False, repr=False)

    async def start_input(self, stored: StoredJob) -> None:
        """Start the job of an input that was just read, if there is something to do."""
        if stored.number in self._reported:
            return
        active = self.run.jobs.get(stored.job.key)
        if active is None:
            if stored.job.state in {JobState.PENDING, JobState.IN_DOUBT} or self._may_be_improvable(stored):
                await self._start(stored, is_input=True)
        elif not active.is_given or not active.is_wanted:
            active.is_given = True
            if not active.is_wanted:
                active.is_wanted, active.doubt_ends = True, None
            active.wakeup.set()

    async def start_paid(self, stored: StoredJob) -> None:
        """Start a job whose task an earlier run has paid for."""
        if stored.number not in self.run.jobs and stored.number not in self._reported:
            await self._start(stored, is_input=False)

    async def start_unchecked(self, stored: StoredJob) -> None:
        """Start a job whose image an earlier run has saved and not checked as this run does."""
        if next_check(stored.job, self.run.checks_of(stored)) is not None:
            await self.start_paid(stored)

    def start_unwanted(self, stored: StoredJob) -> None:
        """Start a job in doubt that a callback names and no input does; it takes its slots when needed."""
        if stored.number in self._reported:
            return
        job = self._new(stored, is_wanted=False)
        self.run.jobs.add(job)
        self.group.create_task(self._work_on(job, is_fresh=True))

    async def _start(self, stored: StoredJob, *, is_input: bool) -> None:
        jobs, job = self.run.jobs, self._new(stored)
        job.is_given = is_input or self.announced is not None  # all jobs of its journal are a service's own
        is_fresh = is_input and not jobs.has_moved(stored.number)
        jobs.add(job)
        await job.slots.take(self.run.slots.active)
        if is_input:
            await job.slots.take(self.run.slots.starting)
        self.group.create_task(self._work_on(job, is_fresh=is_fresh))

    def _new(self, stored: StoredJob, *, is_wanted: bool = True) -> ActiveJob:
        may_come = self.run.options.callbacks is not None or stored.job.state is JobState.IN_DOUBT
        slots = JobSlots(self.run.slots)
        return ActiveJob(
            stored=stored,
            slots=slots,
            checks=self.run.checks_of(stored),
            is_wanted=is_wanted,
            callback_may_come=may_come,
        )

    async def _work_on(self, job: ActiveJob, *, is_fresh: bool) -> None:
        """Run one job and hand over its outcome; one that is not fresh is read from the journal again."""
        job.work = asyncio.current_task()
        is_fresh = is_fresh and not job.is_stale
        try:
            while not await self._runs_to_end(job, is_fresh=is_fresh):
                is_fresh = False
                if await self._record_cancelled(job):
                    return
        finally:
            job.slots.give_back()
            self.run.jobs.remove(job.number)

    async def _run_one(self, job: ActiveJob, *, is_fresh: bool) -> None:
        run, slots = self.run, self.run.slots
        if job.is_wanted and job.state.state not in FINAL:
            await job.slots.take_task()
        if not is_fresh:
            stored = await self.journal.job(job.state.key)
            if stored is None or self._is_over(stored, is_given=job.is_given):
                return
            job.stored = stored
        job.stored = run.with_trace(job.stored)
        with run.session.events.job(job.state.key, job.stored.trace):
            self._count(job)
            outcome = await self._outcome_of(job)
            job.slots.give_back(slots.starting, slots.in_flight)  # no task of this job is in flight any more
            if outcome is not None:
                await self._hand_over(job, outcome)
        if outcome is None and not job.is_wanted:
            run.progress.tally.remove_job(job.state.state)

    def _count(self, job: ActiveJob) -> None:
        """Count and report a job that this run has taken on, once."""
        if job.is_counted:
            return
        job.is_counted = True
        self.run.progress.tally.add_job(job.state.state)
        if self._is_improvable(job.stored):
            self.run.progress.tally.add_verdict(job.state)
        is_new = self.announced is None or job.state.key not in self.announced
        if is_new and self.run.session.events.wants(JobAdded):
            self.run.emit(job_events.added(job.stored, self.run.now()))

    # --- cancelling ---------------------------------------------------------------------------------------

    async def cancel(self, stored: StoredJob) -> bool:
        """Cancel a job that is not submitted; return whether the run hands its outcome over.

        Raises:
            AlreadySubmitted: A submit of it is in progress, or was made.
        """
        job = self.run.jobs.get(stored.job.key)
        if job is None or job.work is None:  # a coroutine that has not begun cannot handle a cancellation
            self.run.jobs.mark_moved(stored.number)  # it may be about to start: it is then read again
            if job is not None:
                job.is_stale = True
            await cancel_stored(self.journal, stored, self.run.now())
            return False
        # From the reservation of its credits on, the submit follows without an await in between.
        if job.state.state is not JobState.PENDING or job.spent is not None:
            raise too_late(job.state)
        if not job.is_cancelled:  # a second cancellation would end the coroutine that records the first
            job.is_cancelled = True
            job.work.cancel()
        await asyncio.wait([job.work])
        now = await self.journal.job(stored.job.key)
        if now is not None and (now.job.state not in FINAL or now.job.attempts != stored.job.attempts):
            raise too_late(now.job)
        return True

    async def _runs_to_end(self, job: ActiveJob, *, is_fresh: bool) -> bool:
        """Run one job; return False if the user has cancelled it meanwhile."""
        try:
            await self._run_one(job, is_fresh=is_fresh)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if not job.is_cancelled or me is None or me.uncancel():
                raise  # the run ends
            return False
        return True

    async def _record_cancelled(self, job: ActiveJob) -> bool:
        """Record that a job is cancelled; return False if it has a task by now and goes on."""
        job.was_cancelled = False
        stored = await self.journal.job(job.state.key)
        if stored is None or stored.job.state is not JobState.PENDING:
            job.is_cancelled = False
            return False
        job.stored = stored
        self._count(job)
        await self.run.record(job, Cancelled(at=self.run.now()))
        folder = self.run.options.directory
        await self._hand_over(job, outcome_of(job.state, stored.as_job(), None, folder))
        return True

    def _is_over(self, stored: StoredJob, *, is_given: bool = False) -> bool:
        """Whether there is nothing to do for a job, not even a check."""
        if stored.job.state not in FINAL or next_check(stored.job, self.run.checks_of(stored)) is not None:
            return False
        return not is_given or not self._is_improvable(stored)

    def _is_improvable(self, stored: StoredJob) -> bool:
        """Whether a job that is done may be submitted again for a better image."""
        return next_attempt(stored.job, self.run.checks_of(stored)) is not None

    def _may_be_improvable(self, stored: StoredJob) -> bool:
        """Whether that is so, or a check is missing that decides it."""
        checks = self.run.checks_of(stored)
        if next_check(stored.job, checks) is None:
            return self._is_improvable(stored)
        return any(True for _ in checks.models_left(stored.job.redone))

    async def _outcome_of(self, job: ActiveJob) -> Outcome | None:
        try:
            outcome = await run_job(job, self.run)
        except FluxError as error:
            if error.scope is not Scope.STOP or isinstance(error, JournalDisplaced):
                raise  # nothing goes on without a journal, not even paid work
            self.run.control.halt(error)
            self.run.progress.tally.add_outcome("Halted", job.state.state)
            return None
        if isinstance(outcome, Failed | InDoubt):
            outcome.error.in_memory = not self.run.journal.is_durable
        return outcome

    async def _hand_over(self, job: ActiveJob, outcome: Outcome) -> None:
        if self.announced is None and not self._is_over(job.stored, is_given=True):
            self._reported.add(job.number)  # a service reports a job again
        self.run.progress.tally.add_outcome(type(outcome).__name__, job.state.state)
        self.run.progress.notify()
        self.run.emit(job_events.settled(job.stored, outcome, self.run.now()))
        try:
            await self.send.send(outcome)
        except asyncio.CancelledError:
            self.run.keep_unclaimed(job)  # no caller will receive this outcome
            raise


@attrs.define(eq=False)
class CallbackReader:
    """Reads the callbacks that this or another process received, and wakes the jobs that they name.

    Attributes:
        scheduler: Starts jobs in doubt that none of the run's inputs names.
        has_read: Set once the callbacks that came before the run are read: the run may end from then on.
    """

    scheduler: Scheduler
    has_read: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _seen: int = attrs.field(default=0, init=False)

    @property
    def _run(self) -> RunContext:
        return self.scheduler.run

    @property
    def _journal(self) -> Journal:
        return self.scheduler.journal

    async def read(self) -> None:
        """Read what arrives, until cancelled."""
        journal = self._journal
        while True:
            journal.callback_arrived.clear()
            try:
                entries, newest = await journal.callbacks_after(self._seen)
                for entry in entries:
                    await self._arrived(entry)
                    self._seen = entry.number  # one that fails is read again
                self._seen = newest
            except JournalError as error:  # callbacks only save time: the batch goes on without them
                logger.warning("callbacks cannot be read: %s", error.message)
                self.has_read.set()
                await self._run.session.clock.sleep(_AFTER_TROUBLE_S)
            else:
                self.has_read.set()
                await journal.callback_arrived.wait()

    async def peek(self) -> None:
        """Check now and then for callbacks that another process has received, until cancelled."""
        while True:
            await self._run.session.clock.sleep(PEEK_S)
            if await self._journal.newest_callback() > self._seen:
                self._journal.callback_arrived.set()

    async def _arrived(self, entry: InboxEntry) -> None:
        poller = self._run.client.poller
        poller.notify(entry.task_id, job=entry.job, trace=entry.trace, is_signed=entry.signed)
        if self._run.jobs.wake(entry.job):  # it may be in doubt, now or in a moment
            return
        stored = await self._journal.job(entry.job)
        if stored is None or stored.job.state is not JobState.IN_DOUBT:
            self._warn_of_second_charge(entry, stored)
        elif not self._run.jobs.wake(entry.job):  # it may have become active meanwhile
            self.scheduler.start_unwanted(stored)

    def _warn_of_second_charge(self, entry: InboxEntry, stored: StoredJob | None) -> None:
        """Log a task of a job that has gone on, so that no submit of it can adopt the task any more."""
        if stored is not None and entry.is_possible_duplicate and stored.job.state is not JobState.PENDING:
            logger.warning(
                "%s callback names task %s for a submit of job %s that was made again: the image was "
                "perhaps paid for twice",
                "a signed" if entry.signed else "an unsigned",
                entry.task_id,
                entry.job,
            )
