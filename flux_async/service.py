"""JobService: takes jobs in one request of a web backend, answers for them in another, survives a restart.

Its jobs live in a journal, which one process works on, or in the database of an engine, which any number of
processes share. Rules:

1. ``add`` returns when the job is stored durably. The service submits it when its turn comes, by priority and
   then in order of arrival; what a process leaves undone, the next one takes up, or another one.
2. ``get`` and ``result`` answer from there, also for jobs of earlier or other processes.
3. A halt (key, balance, answers that make no sense) ends the submits, not the service: after a while one
   submit shows whether the cause is gone. A price or a budget that was exceeded needs a person.
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
from typing import TYPE_CHECKING, Self, Unpack

from flux_async.batch import job_events
from flux_async.batch.answers import JobStatus, ServiceSnapshot
from flux_async.batch.cancelling import is_cancelled
from flux_async.batch.inputs import Input
from flux_async.batch.journal_backend import JournalBackend
from flux_async.batch.options import ServiceOptions, check_client
from flux_async.batch.service_backend import HIGHEST_PRIORITY, LOWEST_PRIORITY, ServiceBackend
from flux_async.client import FluxClient
from flux_async.clock import Clock, SystemClock
from flux_async.errors import AlreadySubmitted, ConfigurationError, InvalidInput, QueueFull, UnknownJob, shown
from flux_async.events import FluxEvent, Settled
from flux_async.journal.store import Journal
from flux_async.models import JobKey, Outcome, check_job_key
from flux_async.policy import check_positive, check_whole_number
from flux_async.snapshots import no_client
from flux_async.telemetry.feed import EventFeed
from flux_async.transport.background import wait_until_done
from flux_async.webhook import WebhookReceiver

if TYPE_CHECKING:
    from flux_async.engine.engine import Engine

_EITHER = "Give journal=, for one process, or engine=, for several."


class JobService:
    """Jobs for a web backend: ``async with JobService(client, journal="jobs.sqlite3") as service: …``.

    With ``engine="postgresql://user@host/flux"`` in place of ``journal`` any number of processes work on the
    same jobs, and each of them answers for all.

    Args:
        client: Makes the requests. One that is not in use yet is opened and closed with the service. With an
            engine it may be left out: then workers in other processes do the work.
        journal: The durable record: a path, which one process uses at a time, or a journal that is not open.
        engine: In its place the database of the jobs, a :class:`flux_async.engine.Engine` or its DSN. One
            that is not open yet is opened and closed with the service. Needs the extra ``engine``.
        batch: With an engine, the name of the batch that has the jobs of this service.
        staging: With an engine, an address in an object store, ``s3://bucket/prefix``, into which ``add``
            copies files. Left out, it uploads them to the vendor, who keeps them for 24 hours.
        most_waiting: Jobs that may wait for their submit; beyond them ``add`` raises :class:`QueueFull`.
        stop_within: Seconds for which closing waits for POSTs in flight; one without an answer by then is in
            doubt.
        options: The options of :func:`flux_async.run_batch`: ``directory`` or ``sink``, ``callbacks``,
            ``preserve``, ``verify`` … With an engine ``directory``, ``sink``, ``callbacks``, ``in_doubt``,
            ``prices``, ``timeout``, ``retry.max_paid_attempts`` and, with ``directory`` and a client,
            ``preserve``, ``preserve_format``, ``verify`` and ``checks``.

    Raises:
        InvalidInput: An option is out of range or of a wrong type; nothing was opened or sent.
        MissingExtra: ``engine`` needs an extra that is not installed.
    """

    def __init__(
        self,
        client: FluxClient | None = None,
        *,
        journal: str | os.PathLike[str] | Journal | None = None,
        engine: Engine | str | None = None,
        batch: str = "service",
        staging: str | None = None,
        most_waiting: int = 10_000,
        stop_within: float = 20.0,
        **options: Unpack[ServiceOptions],
    ) -> None:
        if (journal is None) == (engine is None):
            raise InvalidInput("A service has its jobs in a journal or in an engine.", advice=_EITHER)
        if journal is not None and staging is not None:
            raise InvalidInput("staging is for a service with engine=.", advice="Leave it out.")
        if client is not None or journal is not None:
            check_client(client)
        self._client, self._options = client, options
        self._clock: Clock = SystemClock() if client is None else client.session.clock
        self._stop_within = check_positive(stop_within, "stop_within")
        most = int(check_positive(most_waiting, "most_waiting"))
        if client is not None and journal is not None:
            kept = journal if isinstance(journal, Journal) else Journal(journal, clock=self._clock)
            self._backend: ServiceBackend = JournalBackend(
                client=client, journal=kept, options=options, most_waiting=most
            )
        else:
            from flux_async.engine.service_backend import EngineBackend  # noqa: PLC0415 - needs an extra

            self._backend = EngineBackend.on(
                engine, client=client, batch=batch, staging=staging, options=options, most_waiting=most
            )
        self._is_open = False
        self._closing: asyncio.Task[None] | None = None
        self._owns_client = False
        self._feeds: set[EventFeed] = set()

    # --- opening and closing ------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the journal, or connect to the database, and begin to work.

        Raises:
            JournalError: The journal cannot be used, for instance as another process uses it.
            ConfigurationError: The service was opened before, or the database does not answer.
        """
        if self._is_open:
            raise ConfigurationError("This service was opened before.", advice="Make a new one.")
        if self._client is not None:
            self._owns_client = self._owns_client or not self._client.session.is_in_use
            self._client.session.enter()
        await self._backend.open()
        self._is_open = True
        return self

    async def aclose(self) -> None:
        """Submit nothing more, wait for POSTs in flight, and close it; once for all callers."""
        if not self._is_open:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await wait_until_done(self._closing)

    async def _close(self) -> None:
        self._backend.end_waits()
        await self._backend.aclose(self._stop_within)
        for feed in self._feeds:
            feed.end()
        if self._client is not None and self._owns_client:
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
        """Add an image or a request as a job; return its key once it is stored durably.

        The same job again, by its key, is added once. Without ``key`` it is named by its request.

        Args:
            image: A URL or a file to remove text from, a request, or a :class:`Job`.
            key: Your own name of the job.
            priority: The highest is submitted first: a whole number from -9,950 to 49.

        Raises:
            QueueFull: Too many jobs wait, or the service is closing: answer 503.
            InvalidInput: It is no request, or the image cannot be used: answer 422.
            JobConflictError: The key has another request: answer 409.
            JournalError: It could not be written: answer 503. It may be stored all the same; the same job
                again is added once.
            FluxError: With an engine, a file could not be copied or uploaded: answer 503.
        """
        self._check_open()
        check_whole_number(priority, "priority", LOWEST_PRIORITY, HIGHEST_PRIORITY)
        return await self._backend.add(image, key, priority)

    async def get(self, key: str) -> JobStatus | Outcome:
        """Return the outcome of a job, or how far it is.

        Raises:
            UnknownJob: There is no such job.
        """
        _, answer = await self._backend.find(_key_of(key))
        return answer

    async def result(self, key: str, *, timeout: float | None = None) -> Outcome:
        """Wait for the outcome of a job and return it.

        Raises:
            UnknownJob: There is no such job.
            DeadlineExceeded: ``timeout`` seconds passed, or the service was closed; the job goes on.
        """
        timeout_s = math.inf if timeout is None else check_positive(timeout, "timeout")
        return await self._backend.result(_key_of(key), timeout_s)

    async def events(self, key: str | None = None) -> AsyncIterator[FluxEvent]:
        """Yield the events of a job as they come, up to its outcome; without a key, those of all jobs.

        Of a job that another process works on come ``JobAdded``, ``Submitted`` and ``Settled``.
        A slow reader loses the oldest of over 1,000. A job that has its outcome yields its ``Settled`` alone.

        Raises:
            UnknownJob: There is no such job.
        """
        feed = EventFeed(None if key is None else _key_of(key))
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

        A job that is cancelled already stays so.

        Raises:
            AlreadySubmitted: Its submit is in progress, or was made: the vendor cannot cancel a task.
            UnknownJob: There is no such job.
        """
        try:
            await self._backend.cancel(_key_of(key))
        except AlreadySubmitted:
            stored, _ = await self._backend.find(key)
            if not is_cancelled(stored.job):
                raise

    def snapshot(self) -> ServiceSnapshot:
        """Return what waits, what is active and what is halted, for health checks; makes no request."""
        is_open = self._is_open and self._closing is None
        client = no_client(self._clock.wall()) if self._client is None else self._client.snapshot()
        return self._backend.snapshot(client, is_open=is_open)

    # --- helpers ------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._is_open:
            raise ConfigurationError("This service is not open.", advice="Use it as `async with`.")
        if self._closing is not None:
            raise QueueFull("The service is closing.", retry_after_s=10.0)


def _key_of(key: str) -> JobKey:
    """Return the key of a job, else raise :class:`UnknownJob`: a database may refuse to look for it."""
    try:
        return check_job_key(key)
    except InvalidInput:
        raise UnknownJob(f"There is no job {shown(key)}.") from None
