"""What a run takes over from earlier runs of its journal, and leaves to later ones.

It is a head start only: if generation times cannot be read or written, the run goes on without them.
"""

from __future__ import annotations

import logging

import attrs

from flux_async.api import APIS
from flux_async.errors import JournalError
from flux_async.journal.store import Journal
from flux_async.session import Session

logger: logging.Logger = logging.getLogger("flux_async")

SAVED_EVERY_S = 120.0


@attrs.define(kw_only=True, eq=False)
class Learned:
    """Submits of the last window, what records have shown, generation times, and a halt of the last run.

    Attributes:
        session: Learns.
        journal: Keeps it; one in memory keeps nothing.
    """

    session: Session
    journal: Journal
    _saved: str = attrs.field(default="", init=False, repr=False)

    async def load(self) -> None:
        """Give the session what the journal has."""
        session, sent = self.session, self.session.submitter.sent
        for api in APIS:
            requests, images = await self.journal.confirmed_echoes(api)
            sent.confirmed[api] = max(sent.confirmed[api], requests)
            sent.confirmed_images[api] = max(sent.confirmed_images[api], images)
        now = session.clock.wall()
        recent = await self.journal.submits_since(now - session.spacing.limits.window_s)
        if recent:
            session.spacing.seed(session.clock.monotonic(), [now - at for at in recent])
        if not self.journal.is_durable:
            return
        if await self.journal.ended_in_halt():
            session.submitter.breaker.resume()
        text = await self.journal.generation_times()
        if text is not None and not session.times.merge(text):
            logger.info("the journal's generation times cannot be read; they are learned anew")

    async def save_periodically(self) -> None:
        """Save generation times every two minutes, until cancelled."""
        while True:
            await self.session.clock.sleep(SAVED_EVERY_S)
            await self.save_times()

    async def save_at_end(self) -> None:
        """Save what is known when a run ends."""
        await self.save_times()
        breaker = self.session.submitter.breaker
        if self.journal.is_durable and (breaker.has_halted or breaker.is_proven):
            try:
                await self.journal.record_halt(ended_in_it=breaker.has_halted)
            except JournalError as error:
                logger.warning("how the run ended could not be saved: %s", error.message)

    async def save_times(self) -> None:
        """Save generation times, if there is something new."""
        if not self.journal.is_durable or not self.session.times.weight():
            return
        text = self.session.times.dump()
        if text == self._saved:
            return
        try:
            await self.journal.record_generation_times(text)
        except JournalError as error:
            logger.warning("generation times could not be saved: %s", error.message)
        else:
            self._saved = text
