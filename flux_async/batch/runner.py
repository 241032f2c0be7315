"""A batch: inputs in as a stream, outcomes out as a stream, the journal in between.

``run_batch`` returns a :class:`BatchRun`. ``async with`` opens the journal and starts the work, ``async for``
receives one outcome per job, and leaving the block, in whatever way, stops all new spending at once; POSTs in
the air finish and are recorded before it is left. The work is done by a coroutine of its own, and the
iterator only receives from it: no cancel scope crosses a ``yield`` (PEP 789).

Order: what an earlier run has paid for comes first, then the inputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self, Unpack

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from flux_async.api.models_table import Model
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.active_job import ActiveJobs, Slots
from flux_async.batch.download_retries import DownloadRetries
from flux_async.batch.file_names import FileNames
from flux_async.batch.inputs import Input, as_job, check_images, drain, each, read_into, with_file_read
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.learned import LearnedTimes
from flux_async.batch.options import BatchClient, BatchOptions, price_list
from flux_async.batch.progress import BatchProgress, ProgressObserver, ProgressReporter
from flux_async.batch.run_context import RunContext, RunOptions
from flux_async.batch.run_control import Budget, PauseWatch, RunControl
from flux_async.batch.scheduler import CallbackReader, Scheduler
from flux_async.errors import (
    FluxError,
    InvalidInput,
    JournalError,
    Scope,
    shown,
)
from flux_async.files.sink import FolderSink, Sink
from flux_async.job_state import FINAL, JobState
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import (
    Failed,
    InDoubtPolicy,
    Job,
    JobKey,
    Outcome,
)
from flux_async.policy import check_positive
from flux_async.policy.image_urls import mistyped_in_words
from flux_async.policy.retry import RetryPolicy
from flux_async.session import Call, Session
from flux_async.transport.background import wait_until_done

logger: logging.Logger = logging.getLogger("flux_async")
job_logger: logging.Logger = logging.getLogger("flux_async.jobs")

_FETCH_FIRST_AFTER_S = 13 * 86_400.0
"""The vendor keeps results for 14 days."""

PATIENCE_S = 600.0
"""Seconds a batch waits for the service before it halts, unless the caller sets another time."""

_CHUNK = 100


def run_batch(
    client: BatchClient,
    images: Iterable[Input] | AsyncIterable[Input],
    *,
    journal: str | os.PathLike[str] | Journal = ":memory:",
    directory: str | os.PathLike[str] | None = None,
    sink: Sink | None = None,
    originals: str | os.PathLike[str] | None = None,
    name_file: Callable[[Job], str] | None = None,
    in_doubt: InDoubtPolicy | Literal["hold", "resubmit"] = InDoubtPolicy.HOLD,
    max_credits: float | None = None,
    prices: Mapping[Model, float] | None = None,
    timeout: float | None = None,
    retry: RetryPolicy | None = None,
    patience: float = PATIENCE_S,
    callbacks: CallbackEndpoint | None = None,
    via_upload: bool = False,
    on_progress: ProgressObserver | None = None,
) -> BatchRun:
    """Return a batch of many jobs: ``async with`` starts it, ``async for`` receives the outcomes.

    Args:
        client: Does the work; its limits bound the batch.
        images: What is wanted, read lazily. The same thing twice is one job. A file of this machine is named
            by its content, and uploaded right before its submit.
        journal: Where the batch is kept; the same call on the same file resumes. ``":memory:"`` does not.
        directory: The folder the images go to; with neither this nor ``sink`` they stay at the vendor.
        sink: Where the images go instead: an archive, an object store (:class:`flux_async.Sink`).
        originals: Where the inputs go as the vendor kept them, for ten minutes; None leaves them there.
        name_file: Names a job's file in it, without ending; left out, after the job's key. A job whose name
            another job of the journal has is a :class:`Failed` outcome, and is not submitted.
        in_doubt: What to do with submits whose answer never came: ``hold`` or ``resubmit``.
        max_credits: Stop submitting before this many credits are spent by this run.
        prices: Credits per picture, by model, where they are no longer those of ``Model.row.credits``.
        timeout: Seconds a task may take from its acceptance; left out, the client's.
        retry: When submits are made again, and how often a job may be paid for.
        patience: Seconds the batch waits for a service that cannot be reached, is under maintenance or asks
            to wait, before it halts. Images that were not submitted stay pending. Also, seconds for which the
            download of a paid result is tried again once the batch has nothing else to do.
        callbacks: Where the vendor is to report ends. A :class:`flux_async.WebhookReceiver` on the same
            journal, in this process or another, must answer there. A submit whose answer was lost is then
            settled by its callback; where none comes within ``doubt_wait_s``, ``in_doubt`` decides.
        via_upload: Put pictures that have an address on the vendor's upload host first, too.
        on_progress: Told at every change; it cannot break the run.

    Raises:
        InvalidInput: An option is out of range; nothing was opened or sent.
    """
    check_images(images)
    folders = [Path(folder).resolve() for folder in (directory, originals) if folder is not None]
    if len(folders) > len(set(folders)):
        raise InvalidInput("directory and originals are one folder: the files would overwrite each other.")
    if directory is not None and sink is not None:
        raise InvalidInput("directory and sink both say where the images go: give one of them.")
    options = RunOptions(
        directory=None if directory is None else Path(directory),
        sink=sink if directory is None else FolderSink(directory),
        originals=None if originals is None else Path(originals),
        timeout_s=client.timeout if timeout is None else check_positive(timeout, "timeout"),
        retry=_retry(retry),
        patience_s=check_positive(patience, "patience"),
        callbacks=_endpoint(callbacks),
        resubmits=_policy(in_doubt) is InDoubtPolicy.RESUBMIT,
        via_upload=via_upload,
    )
    progress = ProgressReporter(
        session=client.session, observer=on_progress, expects_callbacks=callbacks is not None
    )
    control = RunControl(session=client.session)
    budget = Budget(
        control=control,
        tally=progress.tally,
        prices=price_list(prices),
        max_credits=None if max_credits is None else check_positive(max_credits, "max_credits"),
    )
    kept = journal if isinstance(journal, Journal) else Journal(journal, clock=client.session.clock)
    return BatchRun(
        client=client,
        images=images,
        journal=kept,
        owns_journal=kept is not journal,
        options=options,
        names=FileNames(journal=kept, name_file=name_file, place=options.place),
        control=control,
        budget=budget,
        reporter=progress,
    )


def _policy(value: InDoubtPolicy | str) -> InDoubtPolicy:
    try:
        return InDoubtPolicy(value)
    except ValueError:
        raise InvalidInput(f"in_doubt must be 'hold' or 'resubmit', not {shown(value)}.") from None


def _retry(value: object) -> RetryPolicy:
    if value is not None and not isinstance(value, RetryPolicy):
        raise InvalidInput(f"retry must be a RetryPolicy, not {shown(value)}.")
    return value or RetryPolicy()


def _endpoint(value: object) -> CallbackEndpoint | None:
    if value is not None and not isinstance(value, CallbackEndpoint):
        raise InvalidInput(
            f"callbacks must be a CallbackEndpoint, not {shown(value)}.",
            advice="Write CallbackEndpoint(url=…, key=…).",
        )
    return value


@attrs.define(kw_only=True, eq=False)
class BatchRun:
    """A batch: an async context manager, and an async iterator of outcomes in order of completion."""

    client: BatchClient
    images: Iterable[Input] | AsyncIterable[Input] = attrs.field(repr=False)
    journal: Journal
    owns_journal: bool
    options: RunOptions
    names: FileNames = attrs.field(repr=False)
    control: RunControl = attrs.field(repr=False)
    budget: Budget = attrs.field(repr=False)
    reporter: ProgressReporter = attrs.field(repr=False)
    _jobs: ActiveJobs = attrs.field(factory=ActiveJobs, init=False, repr=False)
    _learned: LearnedTimes = attrs.field(init=False, repr=False)
    _work_task: asyncio.Task[None] | None = attrs.field(default=None, init=False, repr=False)
    _outcomes: MemoryObjectReceiveStream[Outcome] | None = attrs.field(default=None, init=False, repr=False)
    _closing: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack, init=False, repr=False)
    _failure_raised: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._learned = LearnedTimes(session=self._session, journal=self.journal)

    # --- coming and going ---------------------------------------------------------------------------------

    def __enter__(self) -> NoReturn:
        raise InvalidInput(
            "A batch is an asynchronous context manager.",
            advice="Write `async with run_batch(…) as batch:` inside a coroutine; nothing was sent.",
        )

    def __exit__(self, *_: object) -> None:
        """Exist, so that ``with`` reaches :meth:`__enter__` and its advice."""

    async def __aenter__(self) -> Self:
        if self._work_task is not None:
            raise InvalidInput("A batch runs once; call run_batch again to resume it.")
        self._session.enter()
        if self.owns_journal:
            await self.journal.open(account=self.client.fingerprint)
        try:
            self._closing.enter_context(self.journal.one_run())
        except BaseException:
            if self.owns_journal:
                await self.journal.aclose()
            raise
        self.reporter.began = self._session.clock.monotonic()
        send, self._outcomes = anyio.create_memory_object_stream[Outcome](0)
        self._work_task = asyncio.get_running_loop().create_task(self._work(send))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await wait_until_done(asyncio.get_running_loop().create_task(self._end()))
        failure = self._failure()
        if failure is None or self._failure_raised:
            return
        if error is None:
            raise failure
        error.add_note(f"The batch itself had failed: {failure}")

    async def _end(self) -> None:
        """Wait until the answers of POSTs under way are recorded; then close everything."""
        self.stop()
        if self._work_task is not None:
            self._work_task.cancel()
            await asyncio.wait([self._work_task])
        await self.budget.all_posts_recorded()
        if self._outcomes is not None:
            self._outcomes.close()
        await self._learned.keep_all()
        self._closing.close()
        if self.owns_journal:
            await self.journal.aclose()

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        if self._outcomes is None or self._work_task is None:
            raise InvalidInput("A batch is used as `async with run_batch(…) as batch:`.")
        try:
            return await self._outcomes.receive()
        except anyio.ClosedResourceError:
            raise InvalidInput("This batch is over: its block was left.") from None
        except anyio.EndOfStream:
            pass
        await asyncio.wait([self._work_task])
        failure, self._failure_raised = (None if self._failure_raised else self._failure()), True
        if failure is not None:
            raise failure
        halted, self.control.halted_by = self.control.halted_by, None
        if halted is not None:
            raise halted from None
        raise StopAsyncIteration

    def stop(self) -> None:
        """Submit nothing more and read no more inputs; what is submitted goes on to its end.

        Jobs in doubt are reported as they are: their callbacks are left to the next run.
        """
        self.control.stop()

    async def earlier_outcome(self, job: Job) -> Outcome:
        """Return how a job ended that this run had nothing to do for."""
        stored = await self.journal.job(job.key)
        if stored is None:
            raise JournalError(f"The journal does not hold job {job.key}.")
        return outcome_of(stored.job, job, None, self.options.directory)

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        return self.reporter.current()

    # --- the work -----------------------------------------------------------------------------------------

    async def _work(self, send: MemoryObjectSendStream[Outcome]) -> None:
        """Start jobs until there is nothing left to start, and wait until all have ended."""
        async with send, self._session.call() as call:
            await self.journal.hold_room()
            await self.journal.recover()
            await self._learned.take_up()
            await self._seed()
            self._session.submitter.breaker.release()
            run = self._context(call)
            watch = PauseWatch(
                session=self._session,
                patience_s=self.options.patience_s,
                control=self.control,
                progress=self.reporter,
            )
            async with anyio.create_task_group() as helpers:
                helpers.start_soon(watch.run)
                if self.journal.is_durable:
                    helpers.start_soon(self._learned.keep_on)
                async with asyncio.TaskGroup() as group:
                    await self._run_jobs(Scheduler(run=run, group=group, send=send), helpers)
                helpers.cancel_scope.cancel()

    async def _run_jobs(self, scheduler: Scheduler, helpers: TaskGroup) -> None:
        """Start what is paid, then the inputs; return when no job is active any more."""
        reader = reading = None
        if self.options.callbacks is not None:
            reader = CallbackReader(scheduler.run, scheduler)
            reading = scheduler.group.create_task(reader.read())
            if self.journal.is_durable:
                helpers.start_soon(reader.peek)
        await self._start_paid(scheduler)
        await self._feed(scheduler)
        if reader is not None:
            await reader.has_read.wait()
        await self._jobs.all_done()
        if reading is not None:
            reading.cancel()

    def _context(self, call: Call) -> RunContext:
        return RunContext(
            client=self.client,
            call=call,
            journal=self.journal,
            options=self.options,
            control=self.control,
            budget=self.budget,
            progress=self.reporter,
            jobs=self._jobs,
            slots=Slots(session=self._session),
            names=self.names,
            downloads=DownloadRetries(
                session=self._session,
                patience_s=self.options.patience_s,
                jobs=self._jobs,
                progress=self.reporter,
            ),
        )

    async def _start_paid(self, scheduler: Scheduler) -> None:
        """Start what an earlier run has paid for, first of all what the vendor will soon delete."""
        soon = self._session.clock.wall() - _FETCH_FIRST_AFTER_S
        for state, before in (
            (JobState.GENERATED, soon),
            (JobState.SUBMITTED, soon),
            (JobState.GENERATED, None),
            (JobState.SUBMITTED, None),
        ):
            async for stored in self.journal.iter_jobs(state, submitted_before=before):
                if self.control.is_abandoned:
                    return
                await scheduler.start_paid(stored)

    async def _feed(self, scheduler: Scheduler) -> None:
        give, take = anyio.create_memory_object_stream[Input](_CHUNK)
        self.control.reading = reading = anyio.CancelScope()
        if not self.control.is_spending:
            reading.cancel()
        scheduler.group.create_task(read_into(give, self.images, reading))
        try:
            async with take:
                async for chunk in drain(take, _CHUNK):
                    self._jobs.read_on()
                    for stored in await self._add(chunk, scheduler.send):
                        if not self.control.is_spending:
                            return
                        await scheduler.start_input(stored)
        finally:
            reading.cancel()
            give.close()  # the coroutine that reads into it may have been cancelled before it began
            self._jobs.is_fed = True

    # --- the journal --------------------------------------------------------------------------------------

    async def _seed(self) -> None:
        """Begin with the submits of the last window, and with what records have shown in earlier runs."""
        session, now = self._session, self._session.clock.wall()
        requests, images = await self.journal.confirmed_echoes()
        session.submitter.sent.confirmed = max(session.submitter.sent.confirmed, requests)
        session.submitter.sent.confirmed_images = max(session.submitter.sent.confirmed_images, images)
        recent = await self.journal.submits_since(now - session.rate_limiter.limits.window_s)
        if recent:
            session.rate_limiter.seed(session.clock.monotonic(), [now - at for at in recent])

    async def _add(self, chunk: list[Input], send: MemoryObjectSendStream[Outcome]) -> list[StoredJob]:
        """Put a chunk of inputs into the journal; what is no request becomes an outcome of its own."""
        jobs, names = [], dict[JobKey, str]()
        for given in chunk:
            try:
                job = as_job(await with_file_read(given))
                self.client.check_reachable(job.request)
                name = self.names.check(job)
                if (words := mistyped_in_words(job.request)) is not None:
                    job_logger.warning("%s", words)
            except InvalidInput as error:
                self.reporter.tally.refused()
                await send.send(Failed(job=None, error=error))
                continue
            jobs.append(job)
            names[job.key] = name
        added = await self.journal.add_jobs(jobs, is_chosen=self._jobs.__contains__)
        refused = await self.names.refused(added, names)
        for stored in added:
            if stored.number in refused:
                self.reporter.tally.refused()
                await send.send(Failed(job=stored.as_job(), error=refused[stored.number]))
        return [stored for stored in added if stored.number not in refused]

    # --- how ----------------------------------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        return self.client.session

    def _failure(self) -> BaseException | None:
        """What ended the work, if it was not its own end and not ours."""
        task = self._work_task
        if task is None or not task.done() or task.cancelled() or task.exception() is None:
            return None
        error = task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]  # many jobs met the same error
        return error


async def gather(
    client: BatchClient, images: Iterable[Input] | AsyncIterable[Input], **options: Unpack[BatchOptions]
) -> list[Outcome]:
    """Run a batch to its end and put its outcomes in order; what an earlier run finished is told again.

    A halt (key, credits …) raises nothing here, so that no outcome is lost: what it left undone is a
    :class:`Failed` with the error that halted it.
    """
    check_images(images)
    jobs = [await _job_or_failure(image) async for image in each(images)]
    wanted = [job for job in jobs if isinstance(job, Job)]
    found: dict[JobKey, Outcome] = {}
    halted: FluxError | None = None
    async with run_batch(client, wanted, **options) as batch:
        try:
            async for outcome in batch:
                if outcome.job is not None:
                    found[outcome.job.key] = outcome
        except FluxError as error:
            if error.scope is not Scope.STOP:
                raise
            halted = error
        for job in wanted:
            if job.key not in found:
                found[job.key] = await _missing(batch, job, halted)
    return [found[job.key] if isinstance(job, Job) else job for job in jobs]


async def _missing(batch: BatchRun, job: Job, halted: FluxError | None) -> Outcome:
    stored = await batch.journal.job(job.key)
    if halted is not None and (stored is None or stored.job.state not in FINAL):
        return Failed(job=job, error=halted)
    return await batch.earlier_outcome(job)


async def _job_or_failure(image: Input) -> Job | Failed:
    try:
        return as_job(await with_file_read(image))
    except InvalidInput as error:
        return Failed(job=None, error=error)
