"""The jobs that a run works on now: what each needs besides its record, and the slots that it holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import attrs

from flux_async.api.models_table import AnyModel
from flux_async.api.stored_requests import apply_patch, read_model
from flux_async.batch.inputs import InputUpload
from flux_async.clock import Clock, Wakeup
from flux_async.errors import FluxError
from flux_async.job_state import NO_CHECKS, JobSnapshot, RetryGranted, WantedChecks
from flux_async.journal.store import StoredJob
from flux_async.models import JobKey
from flux_async.session import Session

_LONGEST_WAIT_S = 3600.0
_MOST_STARTING = 64
"""Inputs that wait for their submit at once: more than could be submitting, or uploading."""


@attrs.define(init=False, eq=False)
class RunSlots:
    """Bounds the jobs of a run.

    Attributes:
        active: Jobs that the run works on.
        starting: Inputs that wait for their submit.
        in_flight: Tasks in flight of the whole session.
    """

    active: asyncio.Semaphore
    starting: asyncio.Semaphore
    in_flight: asyncio.Semaphore

    def __init__(self, session: Session) -> None:
        limits = session.spacing.limits
        self.active = asyncio.Semaphore(limits.in_flight)
        self.starting = asyncio.Semaphore(max(_MOST_STARTING, 2 * limits.concurrent_submits))
        self.in_flight = session.task_slots

    def start_few(self, session: Session) -> None:
        """Let fewer inputs wait for their submit, so that the next one is chosen late, by its priority."""
        self.starting = asyncio.Semaphore(2 * session.spacing.limits.concurrent_submits)


@attrs.define(eq=False)
class JobSlots:
    """The slots that one job holds."""

    run: RunSlots
    _held: set[asyncio.Semaphore] = attrs.field(factory=set, init=False)

    async def take(self, slot: asyncio.Semaphore) -> None:
        """Take a slot, unless it is held."""
        if slot not in self._held:
            await slot.acquire()
            self._held.add(slot)

    async def take_task(self) -> None:
        """Take what a task in flight needs."""
        await self.take(self.run.active)
        await self.take(self.run.in_flight)

    def give_back(self, *slots: asyncio.Semaphore) -> None:
        """Give back slots, if they are held; without arguments all."""
        for slot in self._held.intersection(slots) if slots else tuple(self._held):
            self._held.discard(slot)
            slot.release()


@attrs.define(kw_only=True, eq=False)
class ActiveJob:
    """One job while a run works on it.

    Attributes:
        stored: The job as the journal has it.
        slots: The slots that it holds.
        is_wanted: Whether its outcome is wanted whatever it is. False for a job in doubt that no input names:
            only its task, if one is found, concerns this run.
        callback_may_come: Whether a callback, or another job's poll, may still name its task.
        wakeup: Set when there may be news for a job in doubt.
        posted_at: When this run submitted it last, in monotonic seconds.
        doubt_ends: When no callback can come any more, if that was decided before.
        was_resubmitted: Whether it was in doubt and submitted again: once a run, or an outage would cost
            without end.
        is_record_fresh: Whether this run has read the record of its task.
        input: The upload of its image; None if its request has to be read again.
        last_error: The latest error of this run.
        was_cancelled: Whether its coroutine was cancelled.
        work: Its coroutine, once that has begun.
        is_stale: Whether only the journal has its present state.
        is_counted: Whether the run has counted and reported it.
        is_cancelled: Whether the user has cancelled it, and that is not recorded yet.
        spent: Credits that the run has counted for its latest submit; None if an earlier run made it.
        measured: What the balance has shown of the cost of its task.
        checks: The checks of its image that this run makes.
        is_given: Whether an input of this run names it: only then it is submitted again for a better image.
        planned: Another attempt, which is granted right before its submit.
    """

    stored: StoredJob
    slots: JobSlots
    checks: WantedChecks = NO_CHECKS
    is_given: bool = False
    planned: RetryGranted | None = attrs.field(default=None, init=False)
    is_wanted: bool = True
    callback_may_come: bool = False
    wakeup: Wakeup = attrs.field(factory=Wakeup, init=False)
    posted_at: float | None = attrs.field(default=None, init=False)
    doubt_ends: float | None = attrs.field(default=None, init=False)
    was_resubmitted: bool = attrs.field(default=False, init=False)
    is_record_fresh: bool = attrs.field(default=False, init=False)
    input: InputUpload | None = attrs.field(default=None, init=False)
    last_error: FluxError | None = attrs.field(default=None, init=False)
    was_cancelled: bool = attrs.field(default=False, init=False)
    work: asyncio.Task[None] | None = attrs.field(default=None, init=False, repr=False)
    is_stale: bool = attrs.field(default=False, init=False)
    is_counted: bool = attrs.field(default=False, init=False)
    is_cancelled: bool = attrs.field(default=False, init=False)
    spent: float | None = attrs.field(default=None, init=False)
    measured: float | None = attrs.field(default=None, init=False)
    _model: tuple[str | None, AnyModel] | None = attrs.field(default=None, init=False)

    @property
    def submitted(self) -> str:
        """The stored request as its next or latest submit has it."""
        if self.planned is None:
            return self.stored.submitted
        return apply_patch(self.stored.request, self.planned.other_model)

    @property
    def model(self) -> AnyModel:
        """The model of its next or latest submit."""
        patch = self.state.other_model if self.planned is None else self.planned.other_model
        if self._model is None or self._model[0] != patch:
            self._model = patch, read_model(self.submitted)  # the JSON is read once
        return self._model[1]

    def plan(self, grant: RetryGranted) -> None:
        """Plan another attempt; it is granted right before its submit, with the intent."""
        self.planned, self.spent, self.measured, self.last_error = grant, None, None, None
        self.doubt_ends, self.is_record_fresh = None, False
        if self.input is not None:
            self.input.request = self.stored.read_as(self.submitted)  # an upload serves this submit, too

    @property
    def number(self) -> int:
        """Its number in the journal."""
        return self.stored.number

    @property
    def state(self) -> JobSnapshot:
        """All that is known of it."""
        return self.stored.job


@attrs.frozen
class Leave:
    """A run can do no more for a job now; the journal keeps it for the next run.

    Attributes:
        error: What the run reports as the outcome; None if it reports nothing.
    """

    error: FluxError | None = None


@attrs.define(eq=False)
class ActiveJobs:
    """The jobs that a run works on.

    Attributes:
        is_fed: Whether all inputs have been read.
    """

    is_fed: bool = attrs.field(default=False, init=False)
    _waiting: set[Wakeup] = attrs.field(factory=set, init=False, repr=False)
    _by_number: dict[int, JobKey] = attrs.field(factory=dict, init=False, repr=False)
    _by_key: dict[JobKey, ActiveJob] = attrs.field(factory=dict, init=False, repr=False)
    # Jobs that were active since the inputs at hand were read: only the journal has their present state.
    _moved: set[int] = attrs.field(factory=set, init=False, repr=False)
    _idle: int = attrs.field(default=0, init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)

    def __contains__(self, number: object) -> bool:
        return number in self._by_number

    def __len__(self) -> int:
        return len(self._by_number)

    def get(self, key: JobKey) -> ActiveJob | None:
        """Return an active job, or None."""
        return self._by_key.get(key)

    @property
    def are_busy(self) -> bool:
        """Whether the run has, or may get, work other than jobs that only wait."""
        return not self.is_fed or len(self._by_number) > self._idle

    def add(self, job: ActiveJob) -> None:
        """Begin to work on a job."""
        self._by_number[job.number] = job.state.key
        self._by_key[job.state.key] = job

    def remove(self, number: int) -> None:
        """End the work on a job."""
        del self._by_key[self._by_number.pop(number)]
        self._moved.add(number)
        self._changed.set()

    def read_on(self) -> None:
        """Record that the next inputs are about to be read."""
        self._moved.clear()

    def mark_moved(self, number: int) -> None:
        """Record that only the journal has the present state of a job."""
        self._moved.add(number)

    def has_moved(self, number: int) -> bool:
        """Return whether a job was active since :meth:`read_on`."""
        return number in self._moved

    def wake(self, key: JobKey) -> bool:
        """Wake a job in doubt that waits, now or as soon as it does; False if it is not active."""
        job = self._by_key.get(key)
        if job is None:
            return False
        job.wakeup.set()
        return True

    def all_fed(self) -> None:
        """Record that all inputs have been read, and wake the jobs that wait for theirs."""
        self.is_fed = True
        for wakeup in self._waiting:
            wakeup.set()

    async def until_given(self, job: ActiveJob, clock: Clock) -> bool:
        """Return whether an input names a job, once that is known. It may be read later than the job ends."""
        self._waiting.add(job.wakeup)
        try:
            with self.idle():
                while not job.is_given and not self.is_fed:
                    await job.wakeup.wait(clock, _LONGEST_WAIT_S)
        finally:
            self._waiting.discard(job.wakeup)
        return job.is_given

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Hold while a job only waits: for a callback, or for the next try of its download."""
        self._idle += 1
        try:
            yield
        finally:
            self._idle -= 1

    async def all_done(self) -> None:
        """Wait until no job is active."""
        while self._by_number:
            self._changed.clear()
            await self._changed.wait()
