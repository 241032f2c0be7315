"""The drivers of one run: a slot each, one outcome each, and those that wait for their callback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from flux_async.account import Account
from flux_async.batch.doubts import Doubts
from flux_async.batch.orchestrator import Driver
from flux_async.batch.progress import Tally
from flux_async.errors import FluxError, Scope
from flux_async.journal.store import Journal, StoredJob
from flux_async.lifecycle import FINAL, JobState
from flux_async.models import Outcome


@attrs.define(kw_only=True, eq=False)
class Fleet:
    """Starts drivers and takes in what they bring.

    Attributes:
        account: Has the places for tasks in flight.
        journal: Says how a job stands when its turn comes.
        tally: Counts.
        group: Runs the drivers.
        send: Takes the outcomes, one by one.
        make_driver: Makes the driver of a job; the second argument is when its doubt ends, if that is known.
        on_halt: Told of the error that ends all spending.
        on_change: Told when there is something new to see.
        doubts: Where jobs wait for their callbacks, if they do.
    """

    account: Account
    journal: Journal
    tally: Tally
    group: TaskGroup
    send: MemoryObjectSendStream[Outcome]
    make_driver: Callable[[StoredJob, float | None], Driver]
    on_halt: Callable[[FluxError], None]
    on_change: Callable[[], None]
    doubts: Doubts | None = None
    _slots: asyncio.Semaphore = attrs.field(init=False, repr=False)
    _driven: set[int] = attrs.field(factory=set, init=False, repr=False)
    _told: set[int] = attrs.field(factory=set, init=False, repr=False)
    _granted: set[int] = attrs.field(factory=set, init=False, repr=False)
    _counted: set[int] = attrs.field(factory=set, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.account.admission.limits.in_flight)

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

    async def begin(self, stored: StoredJob) -> None:
        """Start an input's job where there is something to do."""
        if stored.number in self._told or stored.job.state not in {JobState.PENDING, JobState.IN_DOUBT}:
            return
        if self.doubts is not None:
            self.doubts.invite(stored.job.key)
        await self.start(stored)

    async def start(self, stored: StoredJob) -> bool:
        """Start a driver when there is a slot, unless the job's outcome was told; False where it has one."""
        if stored.number in self._driven:
            return False
        if stored.number in self._told:
            return True
        self._driven.add(stored.number)
        await self._slots.acquire()
        self.group.start_soon(self._drive, stored)
        return True

    async def _drive(self, stored: StoredJob) -> None:
        """Drive one job, and hand its outcome over."""
        driver: Driver | None = None
        try:
            await self.account.take_place()
            try:
                fresh = await self.journal.job(stored.job.key)
                if fresh is None or fresh.job.state in FINAL:
                    return
                self._take_up(fresh)
                driver = self.make_driver(fresh, self._doubt_ends(stored))
                outcome = await self._outcome_of(driver)
            finally:
                self.account.give_place()
            if outcome is not None:
                await self._hand_over(driver, outcome)
        except asyncio.CancelledError:
            if driver is not None:
                driver.leave_task()  # nobody will receive this outcome
            raise
        finally:
            self._driven.discard(stored.number)
            self._slots.release()
            self._park(stored, driver)

    async def _outcome_of(self, driver: Driver) -> Outcome | None:
        try:
            return await driver.run()
        except FluxError as error:
            if error.scope is not Scope.STOP:
                raise
            self.on_halt(error)
            self.tally.ended("Halted", driver.job.state)
            return None

    async def _hand_over(self, driver: Driver, outcome: Outcome) -> None:
        number = driver.stored.number
        if driver.job.state not in FINAL:
            self._told.add(number)
        self._counted.discard(number)
        self.tally.ended(type(outcome).__name__, driver.job.state)
        self.on_change()
        await self.send.send(outcome)

    def _take_up(self, fresh: StoredJob) -> None:
        """Count a job, once, however often it is parked."""
        if fresh.number not in self._counted:
            self._counted.add(fresh.number)
            self.tally.taken_up(fresh.job.state)

    def _doubt_ends(self, stored: StoredJob) -> float | None:
        return None if self.doubts is None else self.doubts.ends(stored.job.key)

    def _park(self, stored: StoredJob, driver: Driver | None) -> None:
        """Let a job in doubt wait for its callback, where the driver says so."""
        if self.doubts is None:
            return
        key = stored.job.key
        if driver is not None and driver.parked is not None:
            self.doubts.park(key, driver.parked)
            return
        if driver is not None and driver.was_left_alone:
            self._counted.discard(stored.number)
            self.tally.put_back(driver.job.state)
        self.doubts.forget(key)
