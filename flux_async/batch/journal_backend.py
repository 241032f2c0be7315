"""The jobs of a service in a journal, which one process works on."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import attrs

from flux_async.batch import job_events
from flux_async.batch.answers import Answers, JobStatus, ServiceSnapshot
from flux_async.batch.endless import EndlessRun
from flux_async.batch.inputs import Input, read_job
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.options import BatchClient, ServiceOptions
from flux_async.batch.runner import run_batch
from flux_async.batch.service_backend import ServiceBackend
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import CallbackEvent, JobKey, Outcome
from flux_async.session import Session
from flux_async.snapshots import ClientSnapshot
from flux_async.telemetry.feed import EventFeed

logger: logging.Logger = logging.getLogger("flux_async")


@attrs.define(kw_only=True, eq=False)
class JournalBackend:
    """Fulfils :class:`flux_async.batch.service_backend.ServiceBackend` for one process.

    Attributes:
        client: Makes the requests.
        journal: The durable record.
        options: The options of its runs.
        most_waiting: Jobs that may wait for their submit.

    Raises:
        InvalidInput: An option is out of range or of a wrong type.
    """

    client: BatchClient
    journal: Journal
    options: ServiceOptions
    most_waiting: int
    _answers: Answers = attrs.field(init=False, repr=False)
    _run: EndlessRun = attrs.field(init=False, repr=False)
    _work: asyncio.Task[None] | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        run_batch(self.client, (), **self.options)  # refuses wrong options before anything is opened
        folder = self.options.get("directory")
        self._answers = Answers(
            journal=self.journal,
            clock=self._session.clock,
            directory=None if folder is None else Path(folder),
        )
        self._run = EndlessRun(
            client=self.client,
            journal=self.journal,
            options=self.options,
            answers=self._answers,
            most_waiting=self.most_waiting,
        )

    @property
    def _session(self) -> Session:
        return self.client.session

    # --- opening and closing ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the journal and begin to work."""
        await self.journal.open(account=self.client.fingerprint)
        await self.journal.recover()
        self._work = asyncio.get_running_loop().create_task(self._run.run())

    def end_waits(self) -> None:
        """Let no caller wait for an outcome any more."""
        self._answers.waiters.close()

    async def aclose(self, stop_within: float) -> None:
        """Submit nothing more, wait for POSTs in flight, and close the journal."""
        if self._work is not None:
            self._work.cancel()
            _, unfinished = await asyncio.wait([self._work], timeout=stop_within)
            if unfinished:
                logger.warning("submits had no answer in %g s: they are in doubt", stop_within)
                self._session.background.abandon()
                await asyncio.wait([self._work])
        await self.journal.aclose()

    # --- jobs ---------------------------------------------------------------------------------------------

    async def add(self, image: Input, key: str | None, priority: int) -> JobKey:
        """Add a job; return once it is on disk."""
        events = self._session.events
        with self._run.room():
            job = await read_job(image)
            job = job if key is None else attrs.evolve(job, key=JobKey(key))
            self.client.check_reachable(job.request)
            is_new = await self.journal.job(job.key) is None
            trace = events.trace_context(self._session.clock.wall()) if is_new else None
            (stored,) = await self.journal.add_jobs(
                [job], is_chosen=self._run.works_on, trace=trace, priority=priority
            )
        if self._run.push(stored):
            self._answers.forget(stored.job.key)
            events.emit(job_events.added(stored, self._session.clock.wall()))
        return stored.job.key

    async def find(self, key: str) -> tuple[StoredJob, JobStatus | Outcome]:
        """Return a job with its outcome, or with how far it is."""
        stored = await self._answers.stored(key)
        return stored, self._answers.answer(stored)

    async def result(self, key: str, timeout_s: float) -> Outcome:
        """Wait for the outcome of a job."""
        return await self._answers.waiters.result(key, timeout_s)

    async def cancel(self, key: str) -> None:
        """Cancel a job that is not submitted yet."""
        if not await self._run.cancel(await self._answers.stored(key)):
            stored = await self._answers.stored(key)
            outcome = outcome_of(stored.job, stored.as_job(), None, self._answers.directory)
            self._session.events.emit(job_events.settled(stored, outcome, self._session.clock.wall()))
            self._answers.settle(stored.job.key, outcome)

    async def receive(self, event: CallbackEvent) -> None:
        """Store a callback; return after the commit."""
        await self.journal.receive(event)

    # --- how it is ----------------------------------------------------------------------------------------

    def attach(self, feed: EventFeed) -> None:
        """Hand the events of the session to a feed."""
        self._session.events.attach(feed)

    def detach(self, feed: EventFeed) -> None:
        """Hand them to it no more."""
        self._session.events.detach(feed)

    def snapshot(self, client: ClientSnapshot, *, is_open: bool) -> ServiceSnapshot:
        """Return what waits, what is active and what is halted."""
        run, halted = self._run, self._run.halted
        return ServiceSnapshot(
            client=client,
            is_open=is_open,
            waiting=len(run.queued),
            most_waiting=run.most_waiting,
            active=0 if run.batch is None else run.batch.active,
            journal_lag_s=self.journal.lag_s,
            halted=None if halted is None else type(halted).__name__,
            reason=None if halted is None else halted.message,
            progress=None if run.batch is None else run.batch.progress,
        )


_: type[ServiceBackend] = JournalBackend
