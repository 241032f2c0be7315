"""Submits in doubt whose callback may still come, and the callbacks that come.

Nobody sits and waits for them: a job in doubt is parked as its key and an hour, and driven again when a
callback names it or the hour has come. So a thousand doubts cost a thousand keys, and no place in flight.
Hours are of the monotonic clock: the wall clock may jump, and must neither shorten nor stretch a wait.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import attrs

from flux_async.batch.job_runner import Parking
from flux_async.client import FluxClient
from flux_async.clock import Clock, Wakeup
from flux_async.errors import JournalError
from flux_async.job_state import JobState
from flux_async.journal.inbox import InboxEntry
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import JobKey
from flux_async.timing import Agenda

logger: logging.Logger = logging.getLogger("flux_async")

PEEK_S = 0.05
"""Seconds between two looks for callbacks that another process has received."""

_AFTER_TROUBLE_S = 1.0
_AT_ONCE = float("-inf")


@attrs.define(kw_only=True, eq=False)
class Doubts:
    """The doubts of one run.

    Attributes:
        journal: Holds the callbacks.
        client: Is rung for every callback.
        start: Drives a job again, or says that somebody does already.
        is_driven: Whether a job, by its number, has a driver now.
        is_active: Whether the run still has drivers or inputs, so that more doubts may come.
        is_over: Whether the run waits for nothing any more.
    """

    journal: Journal
    client: FluxClient
    start: Callable[[StoredJob], Awaitable[bool]]
    is_driven: Callable[[int], bool]
    is_active: Callable[[], bool]
    is_over: Callable[[], bool]
    _parked: Agenda[JobKey] = attrs.field(factory=Agenda, init=False, repr=False)
    _ends: dict[JobKey, float] = attrs.field(factory=dict, init=False, repr=False)
    _at_hand: set[JobKey] = attrs.field(factory=set, init=False, repr=False)  # due, and about to be driven
    _rung: set[JobKey] = attrs.field(factory=set, init=False, repr=False)
    _uninvited: set[JobKey] = attrs.field(factory=set, init=False, repr=False)
    _changed: Wakeup = attrs.field(factory=Wakeup, init=False, repr=False)
    _seen: int = attrs.field(default=0, init=False)
    _has_read: bool = attrs.field(default=False, init=False)

    # --- what is parked -----------------------------------------------------------------------------------

    def park(self, key: JobKey, parking: Parking) -> None:
        """Keep a job in doubt until its hour or its callback."""
        self._parked.set(key, _AT_ONCE if key in self._rung else parking.until)
        self._ends.setdefault(key, parking.ends)
        self.reconsider()

    def ends(self, key: JobKey) -> float | None:
        """Return when a doubt is over, where this run has decided that before."""
        return self._ends.get(key)

    def invite(self, key: JobKey) -> None:
        """A job is one of the inputs of this run, so its outcome is wanted whatever it is."""
        if key in self._uninvited:
            self._uninvited.discard(key)
            self._ends.pop(key, None)

    def offered(self, key: JobKey) -> None:
        """A task has been found for a job: drive it again, at once or as soon as it is parked."""
        if key in self._parked:
            self._parked.set(key, _AT_ONCE)
            self.reconsider()
        else:
            self._rung.add(key)

    def is_invited(self, key: JobKey) -> bool:
        """Say whether more than a task that is found concerns this run."""
        return key not in self._uninvited

    def forget(self, key: JobKey) -> None:
        """A job needs no more of this run."""
        self._rung.discard(key)
        self._uninvited.discard(key)
        self._ends.pop(key, None)
        self.reconsider()

    def reconsider(self) -> None:
        """Say that something has changed: a driver ended, the inputs are over, the run was stopped."""
        self._changed.set()

    async def settle(self) -> None:
        """Drive again what is due, until the run has nothing more to do."""
        while self._parked or self.is_active() or not self._has_read:
            for key in self._take_due():
                stored = await self.journal.job(key)
                if stored is not None and not await self.start(stored):
                    self._rung.add(key)  # its driver may have asked the inbox a moment too early
                self._at_hand.discard(key)
            await self._until_next()

    def _take_due(self) -> list[JobKey]:
        if self.is_over():
            due = self._parked.clear()
        else:
            now, due = self._clock.monotonic(), list[JobKey]()
            while (key := self._parked.take(now)) is not None:
                due.append(key)
        self._rung.difference_update(due)
        self._at_hand.update(due)
        return due

    async def _until_next(self) -> None:
        await self._changed.wait(self._clock, self._parked.next_at() - self._clock.monotonic())

    # --- what arrives -------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Read the callbacks that this or another process receives, until cancelled."""
        while True:
            self.journal.mail.clear()
            try:
                entries, newest = await self.journal.callbacks_after(self._seen)
                for entry in entries:
                    await self._arrived(entry)
                    self._seen = entry.number  # one that fails is read again
                self._seen = newest
            except JournalError as error:  # callbacks only save time: the batch goes on without
                logger.warning("callbacks cannot be read: %s", error.message)
                self._first_read_is_over()
                await self._clock.sleep(_AFTER_TROUBLE_S)
            else:
                self._first_read_is_over()
                await self.journal.mail.wait()

    def _first_read_is_over(self) -> None:
        """From now on the run may end: what came before it began is known."""
        if not self._has_read:
            self._has_read = True
            self.reconsider()

    async def peek(self) -> None:
        """Look now and then for what another process has received, until cancelled."""
        while True:
            await self._clock.sleep(PEEK_S)
            if await self.journal.newest_callback() > self._seen:
                self.journal.mail.set()

    async def _arrived(self, entry: InboxEntry) -> None:
        self.client.ring(entry.task_id)
        stored = await self.journal.job(entry.job)
        if entry.job in self._parked:
            self._parked.set(entry.job, _AT_ONCE)
            self.reconsider()
        elif stored is None or stored.job.state is not JobState.IN_DOUBT:
            self._tell_of_second_charge(entry, stored)
        elif entry.job in self._at_hand or self.is_driven(stored.number):
            self._rung.add(entry.job)  # for when it parks
        else:
            self._uninvited.add(entry.job)
            self._parked.set(entry.job, _AT_ONCE)
            self.reconsider()

    def _tell_of_second_charge(self, entry: InboxEntry, stored: StoredJob | None) -> None:
        """A task that nobody knows, of a job that has gone on: once it has, no other submit can adopt it."""
        if stored is not None and entry.is_besides and stored.job.state is not JobState.PENDING:
            logger.warning(
                "%s callback names task %s for a submit of job %s that was made again: the picture was "
                "perhaps paid for twice",
                "a signed" if entry.signed else "an unsigned",
                entry.task_id,
                entry.job,
            )

    @property
    def _clock(self) -> Clock:
        return self.client.session.clock
