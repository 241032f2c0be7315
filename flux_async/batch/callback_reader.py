"""Reads the callbacks that this or another process received, and wakes the jobs that they name."""

from __future__ import annotations

import asyncio
import logging

import attrs

from flux_async.batch.run_context import RunContext
from flux_async.batch.scheduler import Scheduler
from flux_async.errors import JournalError
from flux_async.job_state import JobState
from flux_async.journal.inbox import InboxEntry
from flux_async.journal.store import StoredJob

logger: logging.Logger = logging.getLogger("flux_async")

PEEK_S = 0.05
"""Seconds between two reads of what another process has received."""
_AFTER_TROUBLE_S = 1.0


@attrs.define(eq=False)
class CallbackReader:
    """The callbacks of one run.

    Attributes:
        run: What its jobs share.
        scheduler: Starts jobs in doubt that none of the run's inputs names.
        has_read: Set once what came before the run is known: the run may end from then on.
    """

    run: RunContext
    scheduler: Scheduler
    has_read: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _seen: int = attrs.field(default=0, init=False)

    async def read(self) -> None:
        """Read what arrives, until cancelled."""
        journal = self.run.journal
        while True:
            journal.mail.clear()
            try:
                entries, newest = await journal.callbacks_after(self._seen)
                for entry in entries:
                    await self._arrived(entry)
                    self._seen = entry.number  # one that fails is read again
                self._seen = newest
            except JournalError as error:  # callbacks only save time: the batch goes on without
                logger.warning("callbacks cannot be read: %s", error.message)
                self.has_read.set()
                await self.run.session.clock.sleep(_AFTER_TROUBLE_S)
            else:
                self.has_read.set()
                await journal.mail.wait()

    async def peek(self) -> None:
        """Look now and then for what another process has received, until cancelled."""
        while True:
            await self.run.session.clock.sleep(PEEK_S)
            if await self.run.journal.newest_callback() > self._seen:
                self.run.journal.mail.set()

    async def _arrived(self, entry: InboxEntry) -> None:
        self.run.client.poller.notify(entry.task_id)
        if self.run.jobs.wake(entry.job):  # it may be in doubt, now or in a moment
            return
        stored = await self.run.journal.job(entry.job)
        if stored is None or stored.job.state is not JobState.IN_DOUBT:
            self._warn_of_second_charge(entry, stored)
        elif not self.run.jobs.wake(entry.job):  # it may have become active meanwhile
            self.scheduler.start_unwanted(stored)

    def _warn_of_second_charge(self, entry: InboxEntry, stored: StoredJob | None) -> None:
        """Log a task of a job that has gone on: once it has, no other submit can adopt it."""
        if stored is not None and entry.is_besides and stored.job.state is not JobState.PENDING:
            logger.warning(
                "%s callback names task %s for a submit of job %s that was made again: the image was "
                "perhaps paid for twice",
                "a signed" if entry.signed else "an unsigned",
                entry.task_id,
                entry.job,
            )
