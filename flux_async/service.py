"""JobService: takes jobs in one request of a web backend, answers for them in another, survives a restart.

It is a batch that never ends, on one journal in one process. Rules:

1. ``add`` returns when the job is on disk. The service submits it when its turn comes, by priority and then
   in order of arrival; what a process leaves undone, the next one on the same journal takes up.
2. ``get`` and ``result`` answer from the journal, also for jobs of earlier processes.
3. A halt (key, balance, answers that make no sense) ends the run, not the service: after a while one submit
   shows whether the cause is gone. A price or a budget that was exceeded needs a person, and a restart.
4. Closing submits nothing more at once, waits for POSTs in flight at most ``stop_within`` seconds, and leaves
   everything else to the next process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import attrs

from flux_async.batch import job_events
from flux_async.batch.answers import Answers, JobStatus, ServiceSnapshot
from flux_async.batch.cancelling import as_cancelled
from flux_async.batch.endless import EndlessRun
from flux_async.batch.inputs import Input, read_job
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.options import ServiceOptions, check_client
from flux_async.batch.runner import run_batch
from flux_async.client import FluxClient
from flux_async.errors import ConfigurationError, QueueFull
from flux_async.events import FluxEvent, Settled
from flux_async.journal.store import Journal
from flux_async.models import JobKey, Outcome
from flux_async.policy import check_positive
from flux_async.telemetry.feed import EventFeed
from flux_async.transport.background import wait_until_done
from flux_async.webhook import WebhookReceiver

logger: logging.Logger = logging.getLogger("flux_async")


class JobService:
    """Jobs for a web backend: ``async with JobService(client, journal="jobs.sqlite3") as service: …``.

    Args:
        client: Makes the requests. One that is not in use yet is opened and closed with the service.
        journal: The durable record: a path, which one process uses at a time, or a journal that is not open.
        most_waiting: Jobs that may wait for their submit; beyond them ``add`` raises :class:`QueueFull`.
        stop_within: Seconds for which closing waits for POSTs in flight; one without an answer by then is in
            doubt.
        options: The options of :func:`flux_async.run_batch`: ``directory`` or ``sink``, ``callbacks``,
            ``preserve``, ``verify`` …

    Raises:
        InvalidInput: An option is out of range or of a wrong type; nothing was opened or sent.
    """

    def __init__(
        self,
        client: FluxClient,
        *,
        journal: str | os.PathLike[str] | Journal,
        most_waiting: int = 10_000,
        stop_within: float = 20.0,
        **options: Unpack[ServiceOptions],
    ) -> None:
        check_client(client)
        run_batch(client, (), **options)  # refuses wrong options before anything is opened
        self._client, self._session, self._options = client, client.session, options
        self._stop_within = check_positive(stop_within, "stop_within")
        self._journal = (
            journal if isinstance(journal, Journal) else Journal(journal, clock=self._session.clock)
        )
        folder = options.get("directory")
        self._answers = Answers(
            journal=self._journal,
            clock=self._session.clock,
            directory=None if folder is None else Path(folder),
        )
        self._run = EndlessRun(
            client=client,
            journal=self._journal,
            options=options,
            answers=self._answers,
            most_waiting=int(check_positive(most_waiting, "most_waiting")),
        )
        self._work: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._owns_client = False
        self._feeds: set[EventFeed] = set()

    # --- opening and closing ------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the journal and begin to work.

        Raises:
            JournalError: The journal cannot be used, for instance as another process uses it.
            ConfigurationError: The service was opened before.
        """
        if self._work is not None:
            raise ConfigurationError("This service was opened before.", advice="Make a new one.")
        self._owns_client = not self._session.is_in_use
        self._session.enter()
        await self._journal.open(account=self._client.fingerprint)
        await self._journal.recover()
        self._work = asyncio.get_running_loop().create_task(self._run.run())
        return self

    async def aclose(self) -> None:
        """Submit nothing more, wait for POSTs in flight, and close the journal; once for all callers."""
        if self._work is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(self._work))
        await wait_until_done(self._closing)

    async def _close(self, work: asyncio.Task[None]) -> None:
        work.cancel()
        _, unfinished = await asyncio.wait([work], timeout=self._stop_within)
        if unfinished:
            logger.warning("submits had no answer in %g s: they are in doubt", self._stop_within)
            self._session.background.abandon()
            await asyncio.wait([work])
        for feed in self._feeds:
            feed.end()
        self._answers.close()
        await self._journal.aclose()
        if self._owns_client:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:  # noqa: ARG002 - frameworks give it
        """Run the service as long as an application: ``FastAPI(lifespan=service.lifespan)``.

        Starlette takes it the same way, Litestar as ``lifespan=[service.lifespan]``. Quart calls
        ``before_serving(service.open)`` and ``after_serving(service.aclose)``.
        """
        async with self:
            yield

    @cached_property
    def receiver(self) -> WebhookReceiver:
        """The ASGI application for the vendor's callbacks, to mount where ``callbacks`` says.

        Raises:
            ConfigurationError: The service was given no ``callbacks``.
        """
        endpoint = self._options.get("callbacks")
        if endpoint is None:
            raise ConfigurationError(
                "This service was given no callbacks.", advice="Give callbacks=CallbackEndpoint(url, key=…)."
            )
        return WebhookReceiver(self._journal, key=endpoint.keys, clock=self._session.clock)

    # --- jobs ---------------------------------------------------------------------------------------------

    async def add(self, image: Input, *, key: str | None = None, priority: int = 0) -> JobKey:
        """Add an image or a request as a job; return its key once it is on disk.

        The same job again, by its key, is added once. Without ``key`` it is named by its request.

        Args:
            image: A URL or a file to remove text from, a request, or a :class:`Job`.
            key: Your own name of the job.
            priority: The highest is submitted first.

        Raises:
            QueueFull: Too many jobs wait, or the service is closing: answer 503.
            InvalidInput: It is no request, or the image cannot be used: answer 422.
            JobConflictError: The key has another request: answer 409.
            JournalError: It could not be written.
        """
        self._check_open()
        events = self._session.events
        with self._run.room():
            job = await read_job(image)
            job = job if key is None else attrs.evolve(job, key=JobKey(key))
            self._client.check_reachable(job.request)
            trace = events.trace_context(self._session.clock.wall())
            (stored,) = await self._journal.add_jobs(
                [job], is_chosen=self._run.works_on, trace=trace, priority=priority
            )
        if self._run.push(stored):
            self._answers.forget(stored.job.key)
            events.emit(job_events.added(stored, self._session.clock.wall()))
        return stored.job.key

    async def get(self, key: str) -> JobStatus | Outcome:
        """Return the outcome of a job, or how far it is.

        Raises:
            UnknownJob: The journal does not have it.
        """
        return self._answers.answer(await self._answers.stored(key))

    async def result(self, key: str, *, timeout: float | None = None) -> Outcome:
        """Wait for the outcome of a job and return it.

        Raises:
            UnknownJob: The journal does not have it.
            DeadlineExceeded: ``timeout`` seconds passed, or the service was closed; the job goes on.
        """
        timeout_s = math.inf if timeout is None else check_positive(timeout, "timeout")
        return await self._answers.result(key, timeout_s)

    async def events(self, key: str | None = None) -> AsyncIterator[FluxEvent]:
        """Yield the events of a job as they come, up to its outcome; without a key, those of all jobs.

        A slow reader loses the oldest of over 1,000. A job that has its outcome yields its ``Settled`` alone.

        Raises:
            UnknownJob: The journal does not have it.
        """
        feed = EventFeed(None if key is None else JobKey(key))
        self._session.events.attach(feed)
        self._feeds.add(feed)
        try:
            if key is not None:
                stored = await self._answers.stored(key)
                if not isinstance(outcome := self._answers.answer(stored), JobStatus):
                    yield job_events.settled(stored, outcome, self._session.clock.wall())
                    return
            async for event in feed:
                yield event
                if key is not None and isinstance(event, Settled):
                    return
        finally:
            self._session.events.detach(feed)
            self._feeds.discard(feed)

    async def cancel(self, key: str) -> None:
        """Cancel a job that is not submitted yet; its outcome is then a failure by :class:`JobCancelled`.

        Raises:
            AlreadySubmitted: Its submit is in progress, or was made: the vendor cannot cancel a task.
            UnknownJob: The journal does not have it.
        """
        if not await self._run.cancel(await self._answers.stored(key)):
            stored = await self._answers.stored(key)
            error = as_cancelled(stored.job)
            outcome = outcome_of(stored.job, stored.as_job(), error, self._answers.directory)
            self._session.events.emit(job_events.settled(stored, outcome, self._session.clock.wall()))
            self._answers.settle(stored.job.key, outcome)

    def snapshot(self) -> ServiceSnapshot:
        """Return what waits, what is active and what is halted, for health checks; makes no request."""
        run, halted = self._run, self._run.halted
        return ServiceSnapshot(
            client=self._client.snapshot(),
            is_open=self._work is not None and self._closing is None,
            waiting=len(run.queued),
            most_waiting=run.most_waiting,
            active=0 if run.batch is None else run.batch.active,
            journal_lag_s=self._journal.lag_s,
            halted=None if halted is None else type(halted).__name__,
            reason=None if halted is None else halted.message,
            progress=None if run.batch is None else run.batch.progress,
        )

    # --- helpers ------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._work is None:
            raise ConfigurationError("This service is not open.", advice="Use it as `async with`.")
        if self._closing is not None:
            raise QueueFull("The service is closing.", retry_after_s=10.0)
