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
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from types import TracebackType
from typing import Self, Unpack

from flux_async.batch import job_events
from flux_async.batch.answers import JobStatus, ServiceSnapshot
from flux_async.batch.inputs import Input
from flux_async.batch.journal_backend import JournalBackend
from flux_async.batch.options import ServiceOptions, check_client
from flux_async.batch.service_backend import ServiceBackend
from flux_async.client import FluxClient
from flux_async.errors import ConfigurationError, QueueFull
from flux_async.events import FluxEvent, Settled
from flux_async.journal.store import Journal
from flux_async.models import JobKey, Outcome
from flux_async.policy import check_positive
from flux_async.telemetry.feed import EventFeed
from flux_async.transport.background import wait_until_done
from flux_async.webhook import WebhookReceiver


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
        self._client, self._clock, self._options = client, client.session.clock, options
        self._stop_within = check_positive(stop_within, "stop_within")
        self._backend: ServiceBackend = JournalBackend(
            client=client,
            journal=journal if isinstance(journal, Journal) else Journal(journal, clock=self._clock),
            options=options,
            most_waiting=int(check_positive(most_waiting, "most_waiting")),
        )
        self._is_open = False
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
        if self._is_open:
            raise ConfigurationError("This service was opened before.", advice="Make a new one.")
        self._owns_client = not self._client.session.is_in_use
        self._client.session.enter()
        await self._backend.open()
        self._is_open = True
        return self

    async def aclose(self) -> None:
        """Submit nothing more, wait for POSTs in flight, and close the journal; once for all callers."""
        if not self._is_open:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await wait_until_done(self._closing)

    async def _close(self) -> None:
        await self._backend.aclose(self._stop_within)
        for feed in self._feeds:
            feed.end()
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
        return WebhookReceiver(self._backend, key=endpoint.keys, clock=self._clock)

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
        return await self._backend.add(image, key, priority)

    async def get(self, key: str) -> JobStatus | Outcome:
        """Return the outcome of a job, or how far it is.

        Raises:
            UnknownJob: The journal does not have it.
        """
        _, answer = await self._backend.find(key)
        return answer

    async def result(self, key: str, *, timeout: float | None = None) -> Outcome:
        """Wait for the outcome of a job and return it.

        Raises:
            UnknownJob: The journal does not have it.
            DeadlineExceeded: ``timeout`` seconds passed, or the service was closed; the job goes on.
        """
        timeout_s = math.inf if timeout is None else check_positive(timeout, "timeout")
        return await self._backend.result(key, timeout_s)

    async def events(self, key: str | None = None) -> AsyncIterator[FluxEvent]:
        """Yield the events of a job as they come, up to its outcome; without a key, those of all jobs.

        A slow reader loses the oldest of over 1,000. A job that has its outcome yields its ``Settled`` alone.

        Raises:
            UnknownJob: The journal does not have it.
        """
        feed = EventFeed(None if key is None else JobKey(key))
        self._backend.attach(feed)
        self._feeds.add(feed)
        try:
            if key is not None:
                stored, answer = await self._backend.find(key)
                if not isinstance(answer, JobStatus):
                    yield job_events.settled(stored, answer, self._clock.wall())
                    return
            async for event in feed:
                yield event
                if key is not None and isinstance(event, Settled):
                    return
        finally:
            self._backend.detach(feed)
            self._feeds.discard(feed)

    async def cancel(self, key: str) -> None:
        """Cancel a job that is not submitted yet; its outcome is then a failure by :class:`JobCancelled`.

        Raises:
            AlreadySubmitted: Its submit is in progress, or was made: the vendor cannot cancel a task.
            UnknownJob: The journal does not have it.
        """
        await self._backend.cancel(key)

    def snapshot(self) -> ServiceSnapshot:
        """Return what waits, what is active and what is halted, for health checks; makes no request."""
        is_open = self._is_open and self._closing is None
        return self._backend.snapshot(self._client.snapshot(), is_open=is_open)

    # --- helpers ------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._is_open:
            raise ConfigurationError("This service is not open.", advice="Use it as `async with`.")
        if self._closing is not None:
            raise QueueFull("The service is closing.", retry_after_s=10.0)
