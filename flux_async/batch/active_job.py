"""The jobs that a run works on now: what each needs besides its record, and the slots that it holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import attrs

from flux_async.batch.inputs import InputPlace
from flux_async.clock import Wakeup
from flux_async.errors import FluxError
from flux_async.job_state import JobSnapshot
from flux_async.journal.store import StoredJob
from flux_async.models import Job, JobKey
from flux_async.session import Session

_MOST_STARTING = 64
"""Inputs that wait for their submit at once: more than could be submitting, or uploading."""


@attrs.define(kw_only=True, eq=False)
class Slots:
    """Bounds the jobs of a run: those that are active, and those that wait for their submit."""

    session: Session
    active: asyncio.Semaphore = attrs.field(init=False, repr=False)
    starting: asyncio.Semaphore = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        limits = self.session.rate_limiter.limits
        self.active = asyncio.Semaphore(limits.in_flight)
        self.starting = asyncio.Semaphore(max(_MOST_STARTING, 2 * limits.concurrent_submits))


@attrs.define(eq=False)
class JobSlot:
    """What one job holds of the run's slots, and of the session's for tasks in flight."""

    slots: Slots
    _is_active: bool = attrs.field(default=False, init=False)
    _is_starting: bool = attrs.field(default=False, init=False)
    _is_in_flight: bool = attrs.field(default=False, init=False)

    async def activate(self) -> None:
        """Take a slot of the run."""
        if not self._is_active:
            await self.slots.active.acquire()
            self._is_active = True

    async def begin_start(self) -> None:
        """Take a slot among the inputs that wait for their submit."""
        await self.slots.starting.acquire()
        self._is_starting = True

    def end_start(self) -> None:
        """Give that back: the job is submitted, or needs no submit."""
        if self._is_starting:
            self._is_starting = False
            self.slots.starting.release()

    async def take(self) -> None:
        """Take what a task in flight needs, as far as it is not held."""
        await self.activate()
        if not self._is_in_flight:
            await self.slots.session.task_slots.acquire()
            self._is_in_flight = True

    def land(self) -> None:
        """Give back the session's slot: no task of this job is in flight any more."""
        self.end_start()
        if self._is_in_flight:
            self._is_in_flight = False
            self.slots.session.task_slots.release()

    def release(self) -> None:
        """Give back everything."""
        self.land()
        if self._is_active:
            self._is_active = False
            self.slots.active.release()


@attrs.define(kw_only=True, eq=False)
class ActiveJob:
    """One job while a run works on it.

    Attributes:
        stored: The job as the journal has it.
        slot: What it holds of the slots.
        is_wanted: Whether its outcome is wanted whatever it is. False for a job in doubt that no input names:
            only its task, where one is found, concerns this run.
        callback_may_come: Whether a callback, or another job's poll, may still name its task.
        wakeup: Set when there may be news for a job in doubt.
        posted_at: When this run submitted it last, in monotonic seconds.
        doubt_ends: When no callback can come any more, where that was decided before.
        was_resubmitted: Whether it was in doubt and submitted again: once a run, or an outage would cost no
            end.
        is_record_fresh: Whether this run has read the record of its task.
        input: Where the vendor is told to fetch its image; None where that has to be read again.
        last_error: The latest error of this run.
        has_left: Whether its coroutine was cancelled.
    """

    stored: StoredJob
    slot: JobSlot
    is_wanted: bool = True
    callback_may_come: bool = False
    wakeup: Wakeup = attrs.field(factory=Wakeup, init=False)
    posted_at: float | None = attrs.field(default=None, init=False)
    doubt_ends: float | None = attrs.field(default=None, init=False)
    was_resubmitted: bool = attrs.field(default=False, init=False)
    is_record_fresh: bool = attrs.field(default=False, init=False)
    input: InputPlace | None = attrs.field(default=None, init=False)
    last_error: FluxError | None = attrs.field(default=None, init=False)
    has_left: bool = attrs.field(default=False, init=False)

    @property
    def number(self) -> int:
        """Its number in the journal."""
        return self.stored.number

    @property
    def state(self) -> JobSnapshot:
        """Where it stands."""
        return self.stored.job

    def as_job(self) -> Job:
        """Return it as the caller gave it."""
        return self.stored.as_job()


@attrs.frozen
class Leave:
    """A run can do no more for a job now; the journal keeps it for the next run.

    Attributes:
        error: What the run reports as the outcome; None where it reports nothing.
    """

    error: FluxError | None = None


@attrs.define(eq=False)
class ActiveJobs:
    """The jobs that a run works on.

    Attributes:
        is_fed: Whether all inputs have been read.
    """

    is_fed: bool = attrs.field(default=False, init=False)
    _by_number: dict[int, JobKey] = attrs.field(factory=dict, init=False, repr=False)
    _by_key: dict[JobKey, ActiveJob] = attrs.field(factory=dict, init=False, repr=False)
    # Jobs that were active since the inputs at hand were read; how those stand now, the journal knows.
    _moved: set[int] = attrs.field(factory=set, init=False, repr=False)
    _idle: int = attrs.field(default=0, init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)

    def __contains__(self, number: object) -> bool:
        return number in self._by_number

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
        """Work on a job no more."""
        del self._by_key[self._by_number.pop(number)]
        self._moved.add(number)
        self._changed.set()

    def read_on(self) -> None:
        """Note that the next inputs are about to be read, and that none read before is left."""
        self._moved.clear()

    def has_moved(self, number: int) -> bool:
        """Return whether a job was active since :meth:`read_on`."""
        return number in self._moved

    def wake(self, key: JobKey) -> bool:
        """Wake a job where it waits in doubt, or as soon as it does; False where it is not active."""
        job = self._by_key.get(key)
        if job is None:
            return False
        job.wakeup.set()
        return True

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
