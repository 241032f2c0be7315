"""The drivers of one run: a slot each, one outcome each, and those that wait for their callback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
from anyio.streams.memory import MemoryObjectSendStream

from flux_async.batch.download_retries import DownloadRetries, FailedDownload
from flux_async.batch.in_doubt import Doubts
from flux_async.batch.job_runner import Driver, Terms
from flux_async.batch.progress import Tally
from flux_async.errors import FluxError, JournalDisplaced, Scope
from flux_async.job_state import FINAL, JobState
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Outcome
from flux_async.session import Session

_MOST_STARTING = 64
"""Inputs that wait for their submit at once: more than could be on their way, also to the upload host."""


@attrs.define(kw_only=True, eq=False)
class Fleet:
    """Starts drivers and takes in what they bring.

    Attributes:
        account: Has the places for tasks in flight.
        journal: Says how a job stands when its turn comes.
        tally: Counts.
        group: Runs the drivers.
        send: Takes the outcomes, one by one.
        terms: What the drivers have in common.
        on_halt: Told of the error that ends all spending.
        on_change: Told when there is something new to see.
        is_fed: Whether all inputs have been read.
        doubts: Where jobs wait for their callbacks, if they do.
        is_abandoned: Whether tasks are not waited for any more.
        retries: The downloads that failed and are tried again.
    """

    session: Session
    journal: Journal
    tally: Tally
    group: asyncio.TaskGroup
    send: MemoryObjectSendStream[Outcome]
    terms: Terms
    on_halt: Callable[[FluxError], None]
    on_change: Callable[[], None]
    is_fed: Callable[[], bool]
    doubts: Doubts | None = None
    is_abandoned: bool = attrs.field(default=False, init=False)
    retries: DownloadRetries = attrs.field(init=False)
    _slots: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _starts: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _starting: set[int] = attrs.field(factory=set, init=False, repr=False)
    _driven: set[int] = attrs.field(factory=set, init=False, repr=False)
    _waiting: set[asyncio.Task[Any]] = attrs.field(factory=set, init=False, repr=False)
    _told: set[int] = attrs.field(factory=set, init=False, repr=False)
    _fetching_again: int = attrs.field(default=0, init=False)
    _granted: set[int] = attrs.field(factory=set, init=False, repr=False)
    _counted: set[int] = attrs.field(factory=set, init=False, repr=False)
    # Jobs that have been driven since the inputs at hand were read; how those stand now, the journal knows.
    _moved: set[int] | None = attrs.field(default=None, init=False, repr=False)
    _idle: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        limits = self.session.admission.limits
        self._slots = asyncio.Semaphore(limits.in_flight)
        self._starts = asyncio.Semaphore(max(_MOST_STARTING, 2 * limits.concurrent_submits))
        self.retries = DownloadRetries(
            session=self.session,
            patience_s=self.terms.patience_s,
            group=self.group,
            start=self._fetch_again,
            is_busy=lambda: not self.is_fed() or len(self._driven) > self._fetching_again,
        )

    @property
    def is_busy(self) -> bool:
        """Whether any job is being driven."""
        return bool(self._driven)

    def is_driven(self, number: int) -> bool:
        """Whether a job has a driver now."""
        return number in self._driven

    def grant(self, number: int) -> bool:
        """Say whether a job in doubt may be submitted again: once a run, or an outage would cost no end."""
        if number in self._granted:
            return False
        self._granted.add(number)
        return True

    def read_on(self) -> None:
        """The next inputs are about to be read from the journal, and none that were read before is left."""
        self._moved = set()

    async def begin(self, stored: StoredJob) -> None:
        """Start an input's job where there is something to do, as it was read since :meth:`read_on`."""
        if stored.number in self._told or stored.job.state not in {JobState.PENDING, JobState.IN_DOUBT}:
            return
        if self.doubts is not None:
            self.doubts.invite(stored.job.key)
        await self.start(stored, is_input=True)

    async def start(self, stored: StoredJob, *, is_input: bool = False) -> bool:
        """Start a driver when there is a slot, unless the job's outcome was told; False where it has one."""
        if stored.number in self._driven or stored.number in self.retries:
            return False
        if stored.number in self._told:
            return True
        self._driven.add(stored.number)
        is_fresh = is_input and self._moved is not None and stored.number not in self._moved
        await self._slots.acquire()
        if is_input:
            await self._starts.acquire()
            self._starting.add(stored.number)
        self.group.create_task(self._drive(stored, is_fresh=is_fresh))
        return True

    async def all_done(self) -> None:
        """Wait until nobody drives, and neither a task nor another try of a download is waited for."""
        while self._driven or self.retries:
            self._idle.clear()
            await self._idle.wait()

    def abandon(self) -> None:
        """Leave the tasks that are waited for, now and later: nobody will receive their outcomes."""
        self.is_abandoned = True
        for waiting in self._waiting:
            waiting.cancel()

    @contextlib.contextmanager
    def waits(self, number: int) -> Iterator[None]:
        """Hold while a job waits for its task: where the tasks are left, its coroutine is cancelled."""
        self._has_started(number)
        if self.is_abandoned:
            raise asyncio.CancelledError
        me = asyncio.current_task()
        assert me is not None  # noqa: S101 - it is called by a coroutine
        self._waiting.add(me)
        try:
            yield
        finally:
            self._waiting.discard(me)

    async def _drive(self, stored: StoredJob, *, is_fresh: bool) -> None:
        """Take a place for a job, and drive it; one that is not fresh is read again."""
        driver: Driver | None = None
        try:
            await self.session.take_place()
            try:
                fresh = stored if is_fresh else await self.journal.job(stored.job.key)
                driver = self._take_up(fresh)
            finally:
                if driver is None:
                    self.session.give_place()
        finally:
            if driver is None:
                self._let_go(stored, None)
        if driver is not None:
            await self._go_on(driver)

    def _fetch_again(self, number: int, failed: FailedDownload) -> None:
        """Try a download once more, beside the slots and places for tasks in flight."""
        self._driven.add(number)
        self._fetching_again += 1
        self.group.create_task(self._drive_download(number, failed))

    async def _drive_download(self, number: int, failed: FailedDownload) -> None:
        driver: Driver | None = None
        try:
            stored = await self.journal.job(failed.key)
            if stored is not None and stored.job.state is JobState.GENERATED:
                driver = Driver(terms=self.terms, stored=stored, is_fresh=True)
                outcome = driver.given_up() if failed.given_up else await self._outcome_of(driver)
                if outcome is not None:
                    await self._hand_over(driver, outcome)
        finally:
            self._fetching_again -= 1
            self._forget(number, driver)
            self.retries.tried()
            self._note_idle()

    def _take_up(self, stored: StoredJob | None) -> Driver | None:
        """Return a driver where there is something to do; count the job, once, however often it is parked."""
        if stored is None or stored.job.state in FINAL:
            return None
        if stored.number not in self._counted:
            self.tally.taken_up(stored.job.state)
        return Driver(terms=self.terms, stored=stored, doubt_ends=self._doubt_ends(stored))

    async def _go_on(self, driver: Driver) -> None:
        """Drive a job that has a place, until its outcome is handed over."""
        try:
            try:
                outcome = await self._outcome_of(driver)
            finally:
                self._has_started(driver.stored.number)
                self.session.give_place()
            if outcome is not None:
                await self._hand_over(driver, outcome)
        finally:
            self._let_go(driver.stored, driver)

    async def _outcome_of(self, driver: Driver) -> Outcome | None:
        try:
            return await driver.run()
        except FluxError as error:
            if error.scope is not Scope.STOP or isinstance(error, JournalDisplaced):
                raise  # nothing goes on without a journal, not even what is paid
            self.on_halt(error)
            self.tally.ended("Halted", driver.job.state)
            return None

    async def _hand_over(self, driver: Driver, outcome: Outcome) -> None:
        number = driver.stored.number
        if driver.job.state not in FINAL:
            self._told.add(number)
        self._counted.discard(number)
        self.tally.ended(type(outcome).__name__, driver.job.state)
        self.retries.forget(number)
        self.on_change()
        try:
            await self.send.send(outcome)
        except asyncio.CancelledError:
            driver.leave_task()  # nobody will receive this outcome
            raise

    def _has_started(self, number: int) -> None:
        if number in self._starting:
            self._starting.discard(number)
            self._starts.release()

    def _let_go(self, stored: StoredJob, driver: Driver | None) -> None:
        """Nobody drives a job any more."""
        self._has_started(stored.number)
        self._slots.release()
        self._forget(stored.number, driver)
        self._park(stored, driver)
        self._note_idle()

    def _forget(self, number: int, driver: Driver | None) -> None:
        """Nobody drives a job; where its download failed, it may be tried again later."""
        self._driven.discard(number)
        if self._moved is not None:
            self._moved.add(number)
        if driver is not None and driver.fetch_in_s is not None:
            self.retries.wait(number, driver.fetch_in_s)
            self.on_change()
        else:
            self.retries.forget(number)

    def _note_idle(self) -> None:
        """Notify those who wait for the end of all work."""
        if self.doubts is not None:
            self.doubts.reconsider()
        if not self._driven and not self.retries:
            self._idle.set()

    def _doubt_ends(self, stored: StoredJob) -> float | None:
        return None if self.doubts is None else self.doubts.ends(stored.job.key)

    def _park(self, stored: StoredJob, driver: Driver | None) -> None:
        """Let a job in doubt wait for its callback, where the driver says so."""
        if self.doubts is None:
            return
        key = stored.job.key
        if driver is not None and driver.parked is not None:
            self._counted.add(stored.number)
            self.doubts.park(key, driver.parked)
            return
        if driver is not None and driver.was_left_alone:
            self._counted.discard(stored.number)
            self.tally.put_back(driver.job.state)
        self.doubts.forget(key)
