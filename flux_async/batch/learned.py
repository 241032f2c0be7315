"""What a run learns outlives it in the journal: how long tasks take, and whether answers made no sense."""

from __future__ import annotations

import logging

import attrs

from flux_async.errors import JournalError
from flux_async.journal.store import Journal
from flux_async.session import Session

logger: logging.Logger = logging.getLogger("flux_async")

KEPT_EVERY_S = 120.0


@attrs.define(kw_only=True, eq=False)
class LearnedTimes:
    """Takes up what the journal holds when a run begins, and keeps what is known from time to time.

    It is no more than a head start: where it cannot be read or written, the run goes on without it.
    """

    session: Session
    journal: Journal
    _kept: str = attrs.field(default="", init=False, repr=False)

    async def take_up(self) -> None:
        """Begin with what an earlier run has learned."""
        if not self.journal.is_durable:
            return
        if await self.journal.ended_in_halt():
            self.session.submitter.breaker.resume()
        text = await self.journal.generation_times()
        if text is not None and not self.session.times.merge(text):
            logger.info("what the journal holds of generation times cannot be read; it is learned anew")

    async def keep_on(self) -> None:
        """Keep it every two minutes, until cancelled."""
        while True:
            await self.session.clock.sleep(KEPT_EVERY_S)
            await self.keep()

    async def keep_all(self) -> None:
        """Write down what is known when a run ends."""
        await self.keep()
        breaker = self.session.submitter.breaker
        if self.journal.is_durable and (breaker.has_halted or breaker.is_proven):
            try:
                await self.journal.record_halt(ended_in_it=breaker.has_halted)
            except JournalError as error:
                logger.warning("how the run ended could not be kept: %s", error.message)

    async def keep(self) -> None:
        """Write down what is known, where there is something new."""
        if not self.journal.is_durable or not self.session.times.weight():
            return
        text = self.session.times.dump()
        if text == self._kept:
            return
        try:
            await self.journal.record_generation_times(text)
        except JournalError as error:
            logger.warning("what was learned of generation times could not be kept: %s", error.message)
        else:
            self._kept = text
