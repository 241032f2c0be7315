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
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from flux_async.api.models_table import Model
from flux_async.api.stored_requests import read_model
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.download_retries import DownloadRetries
from flux_async.batch.file_names import FileNames
from flux_async.batch.fleet import Fleet
from flux_async.batch.in_doubt import Doubts
from flux_async.batch.input_files import with_file_read
from flux_async.batch.inputs import Input, as_job, check_images, drain, read_into
from flux_async.batch.job_runner import Terms, outcome_of
from flux_async.batch.learned import LearnedTimes
from flux_async.batch.pause_watch import PauseWatch
from flux_async.batch.prices import price_list
from flux_async.batch.progress import BatchProgress, ProgressObserver, Tally
from flux_async.client import FluxClient
from flux_async.clock import Clock
from flux_async.errors import (
    BudgetExhausted,
    FluxError,
    InvalidInput,
    JournalError,
    shown,
)
from flux_async.files.sink import FolderSink, SavedResult, Sink
from flux_async.job_state import Event, JobSnapshot, JobState
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import (
    Failed,
    ImageResult,
    InDoubtPolicy,
    Job,
    JobKey,
    Outcome,
)
from flux_async.policy.image_addresses import mistyped_in_words
from flux_async.policy.numbers import check_positive
from flux_async.policy.retry import RetryPolicy
from flux_async.session import Call, Session, log
from flux_async.transport.background import wait_until_done

logger: logging.Logger = logging.getLogger("flux_async")
job_logger: logging.Logger = logging.getLogger("flux_async.jobs")

_FETCH_FIRST_AFTER_S = 13 * 86_400.0
"""The vendor keeps results for 14 days."""

PATIENCE_S = 600.0
"""Seconds a batch waits for the service before it halts, unless the caller sets another time."""

_PAGE = 100
_CHUNK = 100


def run_batch(
    client: FluxClient,
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
    return BatchRun(
        client=client,
        images=images,
        journal=journal if isinstance(journal, Journal) else Journal(journal),
        owns_journal=not isinstance(journal, Journal),
        directory=None if directory is None else Path(directory),
        sink=sink if directory is None else FolderSink(directory),
        originals=None if originals is None else Path(originals),
        name_file=name_file,
        in_doubt=_policy(in_doubt),
        max_credits=None if max_credits is None else check_positive(max_credits, "max_credits"),
        prices=price_list(prices),
        timeout=client.timeout if timeout is None else check_positive(timeout, "timeout"),
        retry=_retry(retry),
        patience=check_positive(patience, "patience"),
        callbacks=_endpoint(callbacks),
        via_upload=via_upload,
        on_progress=on_progress,
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

    client: FluxClient
    images: Iterable[Input] | AsyncIterable[Input] = attrs.field(repr=False)
    journal: Journal
    owns_journal: bool
    directory: Path | None
    sink: Sink | None = attrs.field(repr=False)
    originals: Path | None
    name_file: Callable[[Job], str] | None = attrs.field(repr=False)
    in_doubt: InDoubtPolicy
    max_credits: float | None
    prices: Mapping[Model, float] = attrs.field(repr=False)
    timeout: float
    retry: RetryPolicy
    patience: float
    via_upload: bool
    callbacks: CallbackEndpoint | None = None
    on_progress: ProgressObserver | None = attrs.field(default=None, repr=False)
    _tally: Tally = attrs.field(factory=Tally, init=False, repr=False)
    _work_task: asyncio.Task[None] | None = attrs.field(default=None, init=False, repr=False)
    _outcomes: MemoryObjectReceiveStream[Outcome] | None = attrs.field(default=None, init=False, repr=False)
    _reading: anyio.CancelScope | None = attrs.field(default=None, init=False, repr=False)
    _closing: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack, init=False, repr=False)
    _halted_by: FluxError | None = attrs.field(default=None, init=False, repr=False)
    _failure_told: bool = attrs.field(default=False, init=False)
    _over: bool = attrs.field(default=False, init=False)
    _spending: int = attrs.field(default=0, init=False)
    _spent: asyncio.Event = attrs.field(factory=asyncio.Event, init=False, repr=False)
    _fleet: Fleet | None = attrs.field(default=None, init=False, repr=False)
    _pause_watch: PauseWatch | None = attrs.field(default=None, init=False, repr=False)
    _learned: LearnedTimes = attrs.field(init=False, repr=False)
    _names: FileNames = attrs.field(init=False, repr=False)
    _still_waits: bool = attrs.field(default=True, init=False)
    _fed: bool = attrs.field(default=False, init=False)
    _began: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._learned = LearnedTimes(session=self._session, journal=self.journal)
        places = (self.directory, self.sink and type(self.sink).__name__, self.originals)
        place = next((str(place) for place in places if place is not None), None)
        self._names = FileNames(journal=self.journal, name_file=self.name_file, place=place)

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
        self._began = self._clock.monotonic()
        send, self._outcomes = anyio.create_memory_object_stream[Outcome](0)
        self._work_task = asyncio.get_running_loop().create_task(self._work(send))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await wait_until_done(asyncio.get_running_loop().create_task(self._end()))
        failure = self._failure()
        if failure is None or self._failure_told:
            return
        if error is None:
            raise failure
        error.add_note(f"The batch itself had failed: {failure}")

    async def _end(self) -> None:
        """POSTs in the air come home and are recorded; then everything is closed."""
        self.stop()
        if self._work_task is not None:
            self._work_task.cancel()
            await asyncio.wait([self._work_task])
        while self._spending:
            self._spent.clear()
            await self._spent.wait()
        if self._outcomes is not None:
            self._outcomes.close()
        await self._learned.keep()
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
        failure, self._failure_told = (None if self._failure_told else self._failure()), True
        if failure is not None:
            raise failure
        if self._halted_by is not None:
            halted, self._halted_by = self._halted_by, None
            raise halted from None
        raise StopAsyncIteration

    def stop(self) -> None:
        """Submit nothing more and read no more inputs; what is submitted goes on to its end.

        What is in doubt is told as it is: its callback is left to the next run.
        """
        self._still_waits = False
        self._stop_spending()

    def _stop_spending(self) -> None:
        self._over = True
        self._session.changed.set()
        if self._reading is not None:
            self._reading.cancel()
        if self._fleet is not None and self._fleet.doubts is not None:
            self._fleet.doubts.reconsider()

    def _halt_for_pause(self, error: FluxError, leaves: bool) -> None:  # noqa: FBT001
        """The service was away for too long; ``leaves``: the tasks that are waited for are left, too."""
        log(logging.WARNING, "the batch is halted: %s", error.message)
        self._halt(error)
        if leaves and self._fleet is not None:
            self._fleet.abandon()

    def _halt(self, error: FluxError) -> None:
        """Nothing more can be submitted; ``error`` is told when all else has ended."""
        self._halted_by = self._halted_by or error
        self.stop()

    async def earlier_outcome(self, job: Job) -> Outcome:
        """Return how a job ended that this run had nothing to do for."""
        stored = await self.journal.job(job.key)
        if stored is None:
            raise JournalError(f"The journal does not hold job {job.key}.")
        return outcome_of(stored.job, job, None, self.directory)

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        now = self._clock.monotonic()
        progress = self._tally.progress(now - self._began)
        if self.callbacks is None:  # no callback can settle a doubt
            in_doubt = progress.in_doubt + progress.parked
            progress = attrs.evolve(progress, parked=0, in_doubt=in_doubt)
        if self._fleet is not None and self._fleet.retries:
            progress = attrs.evolve(progress, retrying=len(self._fleet.retries))
        pause = None if self._pause_watch is None else self._pause_watch.current()
        if pause is None or pause.error is None:
            return progress
        reason = pause.error.message.rstrip(".")
        return attrs.evolve(progress, pause_left_s=pause.delay(now), pause_reason=reason)

    # --- the work -----------------------------------------------------------------------------------------

    async def _work(self, send: MemoryObjectSendStream[Outcome]) -> None:
        """Start drivers until there is nothing left to drive."""
        async with send, self._session.call() as call:
            await self.journal.hold_room()
            await self.journal.recover()
            await self._learned.take_up()
            await self._seed()
            self._session.begin_batch()
            self._pause_watch = watch = PauseWatch(
                session=self._session,
                patience_s=self.patience,
                on_halt=self._halt_for_pause,
                on_change=self._tell,
            )
            async with anyio.create_task_group() as clerks:
                clerks.start_soon(watch.run)
                if self.journal.is_durable:
                    clerks.start_soon(self._learned.keep_on)
                try:
                    async with asyncio.TaskGroup() as drivers:
                        self._fleet = fleet = self._make_fleet(drivers, call, send)
                        self._listen(fleet, clerks)
                        await self._take_up_what_is_paid(fleet)
                        await self._feed(fleet)
                        await fleet.all_done()
                finally:
                    if self._fleet is not None:
                        self._fleet.abandon()
                clerks.cancel_scope.cancel()

    def _make_fleet(
        self, drivers: asyncio.TaskGroup, call: Call, send: MemoryObjectSendStream[Outcome]
    ) -> Fleet:
        return Fleet(
            session=self._session,
            journal=self.journal,
            tally=self._tally,
            group=drivers,
            send=send,
            terms=self._terms(call),
            on_halt=self._halt,
            on_change=self._tell,
            is_fed=lambda: self._fed,
        )

    def _listen(self, fleet: Fleet, clerks: TaskGroup) -> None:
        """Read the callbacks that come, and settle by them what is in doubt."""
        if self.callbacks is None:
            return
        fleet.doubts = Doubts(
            journal=self.journal,
            client=self.client,
            start=fleet.start,
            is_driven=fleet.is_driven,
            is_active=lambda: fleet.is_busy or not self._fed,
            is_over=lambda: not self._still_waits,
        )
        clerks.start_soon(fleet.doubts.read)
        if self.journal.is_durable:
            clerks.start_soon(fleet.doubts.peek)
        fleet.group.create_task(fleet.doubts.settle())

    async def _take_up_what_is_paid(self, fleet: Fleet) -> None:
        """Start what an earlier run has paid for, first of all what the vendor will soon delete."""
        soon = self._clock.wall() - _FETCH_FIRST_AFTER_S
        for state, before in (
            (JobState.GENERATED, soon),
            (JobState.SUBMITTED, soon),
            (JobState.GENERATED, None),
            (JobState.SUBMITTED, None),
        ):
            async for stored in self._pages(state, submitted_before=before):
                if fleet.is_abandoned:
                    return
                await fleet.start(stored)

    async def _feed(self, fleet: Fleet) -> None:
        give, take = anyio.create_memory_object_stream[Input](_CHUNK)
        self._reading = reading = anyio.CancelScope()
        if self._over:
            reading.cancel()
        fleet.group.create_task(read_into(give, self.images, reading))
        try:
            async with take:
                async for chunk in drain(take, _CHUNK):
                    fleet.read_on()
                    for stored in await self._add(chunk, fleet.send):
                        if self._over:
                            return
                        await fleet.begin(stored)
        finally:
            reading.cancel()
            give.close()  # whoever reads into it may have been cancelled before he began
            self._fed = True
            if fleet.doubts is not None:
                fleet.doubts.reconsider()

    # --- spending -----------------------------------------------------------------------------------------

    def _reserve(self, stored: StoredJob) -> bool:
        """Let one more submit go, and count what it costs; or say that this run does not spend it."""
        price = self._price(stored)
        if self.max_credits is not None and self._tally.credits + price > self.max_credits:
            self._halted_by = self._halted_by or BudgetExhausted(
                f"The next picture would take this run over {self.max_credits:g} credits."
            )
            self._stop_spending()  # callbacks are waited for all the same
        if self._over:
            return False
        self._tally.credits += price
        return True

    def _give_back(self, stored: StoredJob) -> None:
        self._tally.credits -= self._price(stored)

    def _count_spending(self, change: int) -> None:
        self._spending += change
        if not self._spending:
            self._spent.set()

    # --- the journal --------------------------------------------------------------------------------------

    async def _seed(self) -> None:
        """Begin with the submits of the last window, and with what records have shown in earlier runs."""
        session, now = self._session, self._clock.wall()
        requests, images = await self.journal.confirmed_echoes()
        session.submits.confirmed = max(session.submits.confirmed, requests)
        session.submits.confirmed_images = max(session.submits.confirmed_images, images)
        recent = await self.journal.submits_since(now - session.admission.limits.window_s)
        if recent:
            session.admission.seed(self._clock.monotonic(), [now - at for at in recent])

    async def _add(self, chunk: list[Input], send: MemoryObjectSendStream[Outcome]) -> list[StoredJob]:
        """Put a chunk of inputs into the journal; what is no request becomes an outcome of its own."""
        jobs, names = [], dict[JobKey, str]()
        for given in chunk:
            try:
                job = as_job(await with_file_read(given))
                self.client.check_reachable(job.request)
                name = self._names.check(job)
                if (words := mistyped_in_words(job.request)) is not None:
                    job_logger.warning("%s", words)
            except InvalidInput as error:
                self._tally.refused()
                await send.send(Failed(job=None, error=error))
                continue
            jobs.append(job)
            names[job.key] = name
        is_driven = None if self._fleet is None else self._fleet.is_driven
        added = await self.journal.add_jobs(jobs, is_chosen=is_driven or (lambda _: False))
        refused = await self._names.refused(added, names)
        for stored in added:
            if stored.number in refused:
                self._tally.refused()
                await send.send(Failed(job=_job_of(stored), error=refused[stored.number]))
        return [stored for stored in added if stored.number not in refused]

    async def _pages(
        self, state: JobState, *, submitted_before: float | None = None
    ) -> AsyncIterator[StoredJob]:
        """Yield the journal's jobs in ``state`` page by page."""
        after = 0
        while page := await self.journal.jobs(
            state, after=after, limit=_PAGE, submitted_before=submitted_before
        ):
            for stored in page:
                yield stored
            after = page[-1].number

    # --- how ----------------------------------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        return self.client.session

    @property
    def _clock(self) -> Clock:
        return self._session.clock

    def _waits(self, number: int) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self._fleet is None else self._fleet.waits(number)

    def _retries(self) -> DownloadRetries:
        if self._fleet is None:
            raise AssertionError("no driver runs before there is a fleet")
        return self._fleet.retries

    def _terms(self, call: Call) -> Terms:
        return Terms(
            client=self.client,
            journal=self.journal,
            call=call,
            timeout_s=self.timeout,
            retry=self.retry,
            patience_s=self.patience,
            folder=self.directory,
            save=None if self.sink is None else partial(self._save, self.sink),
            fetch=partial(self.client.fetch_file, match_suffix=True, retry=False),
            on_event=self._on_event,
            still_spends=lambda: not self._over,
            still_waits=lambda: self._still_waits,
            reserve=self._reserve,
            give_back=self._give_back,
            spending=self._count_spending,
            grant=lambda number: self._fleet is None or self._fleet.grant(number),
            is_invited=self._is_invited,
            waits=self._waits,
            offer=self._offer,
            retries=self._retries,
            original=None if self.originals is None else partial(self._names.destination, self.originals),
            callbacks=self.callbacks,
            doubt_wait_s=0.0 if self.callbacks is None else self.callbacks.wait_for_doubts_s(self.timeout),
            resubmits=self.in_doubt is InDoubtPolicy.RESUBMIT,
            via_upload=self.via_upload,
        )

    async def _save(self, sink: Sink, image: ImageResult, stored: StoredJob) -> SavedResult:
        job, name = Job(request=stored.read(), key=stored.job.key), await self._names.name(stored)
        return await self.client.save(image, sink, job=job, name=name)

    def _offer(self, key: JobKey) -> None:
        if self._fleet is not None and self._fleet.doubts is not None:
            self._fleet.doubts.offered(key)

    def _is_invited(self, key: JobKey) -> bool:
        doubts = None if self._fleet is None else self._fleet.doubts
        return doubts is None or doubts.is_invited(key)

    def _price(self, stored: StoredJob) -> float:
        return self.prices[read_model(stored.request)]

    def _on_event(self, stored: StoredJob, before: JobState, job: JobSnapshot, event: Event) -> None:
        self._tally.moved(before, job, event, partial(self._price, stored))
        self._tell()

    def _tell(self) -> None:
        if self.on_progress is None:
            return
        try:
            self.on_progress(self.progress)
        except Exception:
            logger.exception("a progress observer failed")

    def _failure(self) -> BaseException | None:
        """What ended the work, if it was not its own end and not ours."""
        task = self._work_task
        if task is None or not task.done() or task.cancelled() or task.exception() is None:
            return None
        error = task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]  # many drivers met the same wall
        return error


def _job_of(stored: StoredJob) -> Job:
    return Job(key=stored.job.key, request=stored.read())
