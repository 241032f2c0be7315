"""The jobs of a service in PostgreSQL, which any number of processes work on and answer for.

Rules:

1. A process with a client is a worker beside its service; one without only adds jobs and answers for them.
2. A file of this machine is copied or uploaded when its job is added, as other processes cannot read it.
3. A request waits for a database that is away for seconds, not as long as a worker does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

import attrs
from sqlalchemy.ext.asyncio import AsyncConnection

from flux_async.api.stored_requests import read_image, store_request
from flux_async.batch import job_events
from flux_async.batch.answers import JobStatus, ServiceSnapshot, Waiters
from flux_async.batch.cancelling import too_late
from flux_async.batch.file_names import safe_name
from flux_async.batch.inputs import Input, read_job
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.options import RunOptions, ServiceOptions, check_folder, in_doubt_policy
from flux_async.batch.runner import PATIENCE_S
from flux_async.batch.service_backend import HIGHEST_PRIORITY, ServiceBackend
from flux_async.client import FluxClient
from flux_async.engine.batch import BatchRow
from flux_async.engine.database import Row
from flux_async.engine.engine import Engine, portable
from flux_async.engine.row_events import RowEvents
from flux_async.engine.service_reader import ServiceReader
from flux_async.engine.staging import Staging
from flux_async.engine.store import COLUMNS, NEW_JOBS, PostgresStore, notify, stored_job
from flux_async.engine.worker import WORKER_LIMITS, Worker
from flux_async.errors import (
    InvalidInput,
    JobConflictError,
    JournalError,
    UnknownJob,
    shown,
)
from flux_async.events import EventStream
from flux_async.files.sink import FolderSink, Sink
from flux_async.images import LocalImage
from flux_async.job_state import Cancelled, JobSnapshot, JobState, apply
from flux_async.journal.store import StoredJob
from flux_async.models import CallbackEvent, EditRequest, Failed, Job, JobKey, Outcome
from flux_async.policy import check_positive
from flux_async.policy.retry import RetryPolicy
from flux_async.snapshots import ClientSnapshot
from flux_async.telemetry.feed import EventFeed
from flux_async.transport.background import wait_until_done

logger: logging.Logger = logging.getLogger("flux_async.engine")

T = TypeVar("T")

ANSWER_S = 10.0
"""Seconds for which a request waits for the database."""
_FIRST_PRIORITY = HIGHEST_PRIORITY + 1  # of the engine, whose first rank is 1
_DIGEST = 60
"""Digits of a file's digest that are in the address of its upload."""
_TIMEOUT_S = 300.0
_AWAY = "Answer 503. A job that was being added may be there: add it again, and it is there once."
_CHECKS = {"verify", "preserve", "preserve_format", "checks"}
_OPTIONS = {"directory", "sink", "in_doubt", "prices", "timeout", "retry", "callbacks"} | _CHECKS


def read_options(options: ServiceOptions, client: FluxClient | None) -> RunOptions:
    """Return the options of a service on the engine.

    Raises:
        InvalidInput: An option is out of range, of a wrong type, or not one of a service on the engine.
    """
    for name, value in options.items():
        if value and name not in _OPTIONS:
            raise InvalidInput(
                f"{name} is not available for a service with engine=.",
                advice="Leave it out, or use journal=.",
            )
        if value and name in _CHECKS and client is None:
            raise InvalidInput(
                f"{name} is for a service with a client: workers make the checks.",
                advice="Leave it out, and start the workers with it.",
            )
    directory, timeout = options.get("directory"), options.get("timeout")
    if directory is not None and options.get("sink") is not None:
        raise InvalidInput("directory and sink are both destinations for results: give one of them.")
    if timeout is None:
        timeout = _TIMEOUT_S if client is None else client.timeout
    folder = None if directory is None else check_folder(directory, "directory")
    return RunOptions(
        directory=folder,
        sink=options.get("sink") if folder is None else FolderSink(folder),
        originals=None,
        timeout_s=check_positive(timeout, "timeout"),
        retry=options.get("retry") or RetryPolicy(),
        patience_s=PATIENCE_S,
        callbacks=options.get("callbacks"),
        in_doubt=in_doubt_policy(options.get("in_doubt", "hold")),
        via_upload=False,
    )


@attrs.define(kw_only=True, eq=False)
class EngineBackend:
    """Fulfils :class:`flux_async.batch.service_backend.ServiceBackend` for several processes.

    Attributes:
        engine: The database.
        client: Makes the requests; None leaves them to workers in other processes.
        batch: The name of the batch that has the jobs of the service.
        options: What the service was given.
        most_waiting: Jobs that may wait for their submit.
        staging: Where files of this machine are copied for all processes; None uploads them to the vendor.

    Raises:
        InvalidInput: An option cannot be used.
    """

    engine: Engine
    client: FluxClient | None
    batch: str
    options: ServiceOptions
    most_waiting: int
    staging: Staging | None
    _run: RunOptions = attrs.field(init=False, repr=False)
    _reader: ServiceReader = attrs.field(init=False, repr=False)
    _worker: Worker | None = attrs.field(default=None, init=False, repr=False)
    _opened: AsyncExitStack = attrs.field(factory=AsyncExitStack, init=False, repr=False)

    @classmethod
    def on(cls, engine: object, *, staging: str | None, **given: Any) -> Self:
        """Return the jobs in the database of an engine, or of a DSN."""
        if not isinstance(engine, str | Engine):
            raise InvalidInput(f"engine must be an Engine or its DSN, not {shown(engine)}.")
        place = None if staging is None else Staging(staging)
        return cls(engine=Engine(engine) if isinstance(engine, str) else engine, staging=place, **given)

    def __attrs_post_init__(self) -> None:
        self._run = read_options(self.options, self.client)
        self.engine.batch(self.batch)  # refuses an invalid name
        database = self.engine.database
        self._reader = ServiceReader(
            database=database,
            batch=self.batch,
            account=None if self.client is None else self.client.fingerprint,
            most_waiting=self.most_waiting,
            events=EventStream() if self.client is None else self.client.session.events,
            rows=RowEvents(database=database, batch=self.batch, executor=self._executor, answer=self._answer),
            waiters=Waiters(database.clock, self._find),
        )
        if self.client is not None:
            limits = self.client.session.spacing.limits
            self._worker = Worker(
                self.engine,
                self.client,
                None if self._run.sink is None else self._sink_of,
                rate=None if limits == WORKER_LIMITS else limits,
                prices=self.options.get("prices"),
                callbacks=self._run.callbacks,
                verify=self.options.get("verify", False),
                preserve=self.options.get("preserve", False),
                preserve_format=self.options.get("preserve_format", "png"),
                checks=self.options.get("checks"),
            )

    def _executor(self) -> str:
        return "" if self._worker is None else self._worker.executor

    def _sink_of(self, folder: str) -> Sink:
        """Return the destination of a batch: workers of one database work on all of them."""
        if self._run.directory is not None and folder != safe_name(self.batch):
            return FolderSink(self._run.directory / folder)
        assert self._run.sink is not None  # noqa: S101 - it is not called otherwise
        return self._run.sink

    # --- opening and closing ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, make the batch, and begin to work."""
        async with AsyncExitStack() as opened:
            if not self.engine.database.is_open:
                opened.push_async_callback(self.engine.aclose)
            await self.engine.open_batch(
                self.batch,
                in_doubt=self._run.in_doubt,
                timeout=self._run.timeout_s,
                max_paid_attempts=self._run.retry.max_paid_attempts,
            )
            opened.push_async_callback(self._reader.aclose)
            if self._worker is not None:
                await opened.enter_async_context(self._worker)
            await self._reader.open()
            self._opened = opened.pop_all()

    def end_waits(self) -> None:
        """Let no caller wait for an outcome any more."""
        self._reader.waiters.close()

    async def aclose(self, stop_within: float) -> None:
        """Submit nothing more, wait for POSTs in flight, leave the rest to other processes, disconnect."""
        ending = asyncio.get_running_loop().create_task(self._opened.aclose())
        _, unfinished = await asyncio.wait([ending], timeout=stop_within)
        if unfinished and self.client is not None:
            logger.warning("the worker has not stopped in %g s: its submits are in doubt", stop_within)
            self.client.session.background.abandon()
        try:
            await wait_until_done(ending)
        except JournalError as error:  # other processes find out by themselves that this one has ended
            logger.warning("the worker has ended without the database: %s", error.message)

    # --- jobs ---------------------------------------------------------------------------------------------

    async def add(self, image: Input, key: str | None, priority: int) -> JobKey:
        """Add a job; return once it is in the database."""
        with self._reader.room():
            given = await read_job(image)
            given = given if key is None else attrs.evolve(given, key=JobKey(key))
            if self.client is not None:
                self.client.check_reachable(given.request)
            job = await self._portable(given)
            try:
                number = await self._add(job, priority)
            except JobConflictError:
                if job.request == given.request:
                    raise
                job = await self._portable(given)  # another request may have uploaded the same file meanwhile
                number = await self._add(job, priority)
        if number is None:
            await self._try_again(job.key)
        else:
            self._report_added(job, number, priority)
        return job.key

    async def _portable(self, job: Job) -> Job:
        """Return a job that any process can submit: a file is copied or uploaded, once for each key.

        Raises:
            FluxError: It cannot be; nothing was added or charged.
        """
        if self.staging is not None:
            (staged,), _ = await self.staging.stage([job])
            if isinstance(staged, InvalidInput):
                raise staged
            job = staged
        request = job.request
        image = request.input_image if isinstance(request, EditRequest) else None
        if not isinstance(request, EditRequest) or not isinstance(image, LocalImage) or self.client is None:
            return portable(job)
        digest = image.reference.rpartition(":")[2]
        known = await self._within(self._row_of(job.key))
        url = "" if known is None else read_image(known["request"])
        if known is None:
            url = (await self.client.upload(image, name=digest)).url
        elif digest[:_DIGEST] not in url:
            raise JobConflictError(f"Job {job.key} of batch {self.batch} has another image.")
        return portable(attrs.evolve(job, request=attrs.evolve(request, input_image=url)))

    async def _add(self, job: Job, priority: int) -> int | None:
        """Add a job; return its number, or None if it is there already."""
        rank = _FIRST_PRIORITY - priority
        events = None if self.client is None else self.client.session.events  # they begin its trace
        (added,) = await self._within(self.engine.add(self.batch, [job], rank, events=events))
        if isinstance(added, InvalidInput | JobConflictError):
            raise added
        return added

    async def _try_again(self, key: JobKey) -> None:
        """Let workers try a job again that ended before its submit, which has cost nothing."""

        async def work(connection: AsyncConnection) -> None:
            changed = await connection.exec_driver_sql(
                "UPDATE flux_async.job SET settled = NULL, obstacle = NULL, is_queued = false "
                "WHERE batch = %(batch)s AND key = %(key)s AND state = 'pending' AND settled IS NOT NULL",
                {"batch": self.batch, "key": key},
            )
            if changed.rowcount:
                await notify(connection, NEW_JOBS, "")

        await self._within(self.engine.database.transaction(work))

    def _report_added(self, job: Job, number: int, priority: int) -> None:
        """Hand the event to the feeds of this process; its observers have it from the worker."""
        self._reader.rows.was_added(number)
        stored = StoredJob(
            number=number, request=store_request(job.request), job=JobSnapshot(key=job.key), priority=priority
        )
        self._reader.report(job_events.added(stored, self.engine.database.clock.wall()))

    async def find(self, key: str) -> tuple[StoredJob, JobStatus | Outcome]:
        """Return a job with its outcome, or with how far it is."""
        row = await self._within(self._row_of(key))
        if row is None:
            raise UnknownJob(f"There is no job {key!r}.")
        return self._answer(row)

    async def _find(self, key: str) -> JobStatus | Outcome:
        _, answer = await self.find(key)
        return answer

    async def result(self, key: str, timeout_s: float) -> Outcome:
        """Wait for the outcome of a job, whichever process works on it."""
        return await self._reader.waiters.result(key, timeout_s)

    async def cancel(self, key: str) -> None:
        """Cancel a job that is not submitted yet, by one compare-and-set."""
        stored, _ = await self.find(key)
        if stored.job.state is not JobState.PENDING:
            raise too_late(stored.job)
        event = Cancelled(at=self.engine.database.clock.wall())
        store = PostgresStore(database=self.engine.database, account="", executor="")
        after = apply(stored.job, event)
        try:
            await self._within(store.record(stored.number, after, event, before=stored.job))
        except JournalError:
            stored, _ = await self.find(key)
            if stored.job.state is JobState.PENDING:
                raise
            raise too_late(stored.job) from None
        stored, answer = await self.find(key)
        if not isinstance(answer, JobStatus):
            self._reader.events.emit(job_events.settled(stored, answer, event.at))

    async def receive(self, event: CallbackEvent) -> None:
        """Store a callback; return after the commit."""
        await self.engine.receive(event)

    async def _row_of(self, key: str) -> Row | None:
        return await self.engine.database.row(
            f"SELECT {COLUMNS}, settled, obstacle FROM flux_async.job "
            "WHERE batch = %(batch)s AND key = %(key)s",
            batch=self.batch,
            key=key,
        )

    def _answer(self, row: Row) -> tuple[StoredJob, JobStatus | Outcome]:
        """Return the job of a row with its outcome, or with how far it is."""
        stored = stored_job(row)
        stored = attrs.evolve(stored, priority=_FIRST_PRIORITY - stored.priority)
        if row["settled"] is None:
            return stored, JobStatus.of(stored)
        try:
            if row["obstacle"] is not None:
                return stored, BatchRow.of(row).outcome
            return stored, outcome_of(stored.job, stored.as_job(), None, self._run.directory)
        except InvalidInput as unreadable:  # another release wrote it
            return stored, Failed(job=None, error=unreadable)

    async def _within(self, work: Awaitable[T]) -> T:
        """Return what the database answers.

        Raises:
            JournalError: It does not answer for seconds.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                return await work
        except TimeoutError:
            raise JournalError(
                f"{self.engine.database} did not answer in {ANSWER_S:g} s.", advice=_AWAY
            ) from None

    def attach(self, feed: EventFeed) -> None:
        """Hand a feed the events of this process's worker, and those of other processes from the rows."""
        self._reader.attach(feed)

    def detach(self, feed: EventFeed) -> None:
        """Hand them to it no more."""
        self._reader.detach(feed)

    def snapshot(self, client: ClientSnapshot, *, is_open: bool) -> ServiceSnapshot:
        """Return what waits and is active in all processes, as it was read a moment ago."""
        return self._reader.snapshot(client, is_open=is_open)


_: type[ServiceBackend] = EngineBackend
