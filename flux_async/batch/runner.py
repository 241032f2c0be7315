"""A batch: inputs in as a stream, outcomes out as a stream, the journal in between.

Rules:

1. ``async with`` opens the journal and starts the work; ``async for`` receives one outcome per job. The work
   is done in a coroutine of its own and the iterator only receives from it: no cancel scope crosses a
   ``yield`` (PEP 789).
2. What an earlier run has paid for comes first, then the inputs.
3. Leaving the block, in whatever way, stops all new spending at once; POSTs in flight are answered and
   recorded before it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Container, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self, Unpack

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from flux_async.api.models_table import RETENTION_S, AnyModel, ModelName, Prices
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.cancelling import cancel_stored
from flux_async.batch.check_stage import Checker, check_stage
from flux_async.batch.file_names import FileNames
from flux_async.batch.inputs import Input, check_images, drain, each, read_into, read_job
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.learned import Learned
from flux_async.batch.notebook import NotebookBar, to_html
from flux_async.batch.options import (
    BatchClient,
    BatchOptions,
    RunOptions,
    check_attempts,
    check_client,
    check_flag,
    check_folder,
    check_functions,
    check_models,
    in_doubt_policy,
    price_list,
)
from flux_async.batch.progress import BatchProgress, ProgressObserver, ProgressReporter, Tally
from flux_async.batch.result_files import EARLIER, VENDOR
from flux_async.batch.run_context import RunContext
from flux_async.batch.run_control import Budget, PauseWatch, RunControl
from flux_async.batch.scheduler import CallbackReader, Scheduler
from flux_async.errors import FluxError, InvalidInput, JournalError, Scope
from flux_async.files.sink import FolderSink, Sink
from flux_async.job_state import FINAL, NO_CHECKS, JobState, WantedChecks
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Failed, InDoubtPolicy, Job, JobKey, Outcome
from flux_async.policy import check_positive
from flux_async.policy.downloads import fetch_first_after_s
from flux_async.policy.image_urls import mistyped_in_words
from flux_async.policy.price import PriceGuard
from flux_async.policy.retry import RetryPolicy
from flux_async.session import Session
from flux_async.transport.background import wait_until_done
from flux_async.verification.preserve import PreserveFormat

job_logger: logging.Logger = logging.getLogger("flux_async.jobs")

PATIENCE_S = 600.0
"""Seconds a batch waits for the service before it halts, by default."""

RESUME_S = 1800.0
"""Seconds after which a service takes up tasks again whose wait has ended."""
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
    prices: Prices | None = None,
    timeout: float | None = None,
    retry: RetryPolicy | None = None,
    patience: float = PATIENCE_S,
    callbacks: CallbackEndpoint | None = None,
    via_upload: bool = False,
    skip_textless: bool = False,
    preserve: bool = False,
    verify: bool = False,
    preserve_format: PreserveFormat = "png",
    until_clean: int = 1,
    escalate: Sequence[AnyModel | ModelName] = (),
    checks: Checker | None = None,
    on_progress: ProgressObserver | None = None,
) -> BatchRun:
    """Return a batch of many jobs: ``async with`` starts it, ``async for`` receives the outcomes.

    Cancelling the ``async for`` may lose outcomes that were ready and not yielded yet. They are in the
    journal: ``client.remove_text_many`` with the same images and journal file returns all outcomes, and pays
    for none of them again.

    Args:
        client: Makes the requests; its limits bound the batch.
        images: The inputs, read lazily. The same input twice is one job. A file of this machine is named by
            its content, and uploaded right before its submit.
        journal: The batch's durable record; the same call on the same file resumes. ``":memory:"`` does not.
        directory: The folder for the results; with neither this nor ``sink`` they stay at the vendor.
        sink: Where the results go instead: an archive, an object store (:class:`flux_async.Sink`).
        originals: Where the vendor's copies of the inputs go, which it keeps for ten minutes; None leaves
            them there.
        name_file: Returns the name of a job's file, without ending; left out, it is named after the job's
            key. A job whose name another job of the journal has is a :class:`Failed` outcome, and is not
            submitted.
        in_doubt: What to do with submits whose answer never came: ``hold`` or ``resubmit``.
        max_credits: Stop submitting before this many credits are spent by this run.
        prices: Credits per image, by model, if they are no longer those of ``Model.row.credits``. The run
            halts with :class:`flux_async.UnexpectedPrice` if the first image costs over 10 % more or less.
        timeout: Seconds a task may take from its acceptance; left out, the client's.
        retry: When submits are repeated, and how often a job may be paid for.
        patience: Seconds the batch waits for a service that cannot be reached, is under maintenance or asks
            to wait, before it halts. Images that were not submitted stay pending. Also, seconds for which the
            download of a paid result is retried once the batch has nothing else to do.
        callbacks: Where the vendor is to report ends. A :class:`flux_async.WebhookReceiver` on the same
            journal, in this process or another, must answer there. A submit whose answer was lost is then
            settled by its callback; if none comes within ``doubt_wait_s``, ``in_doubt`` decides.
        via_upload: Put images that have an address on the vendor's upload host first, too.
        skip_textless: Check each original for text before it is paid for, in worker processes. One without
            text is not submitted: it is copied, and ``Succeeded.image`` is None. An original that cannot be
            checked is submitted. It needs the same as ``preserve``.
        preserve: Compose each result with its original, in worker processes: only the text areas come from
            the vendor's image, which stays in ``directory/vendor``. Where that is not certain enough, the
            vendor's image is the result, and ``Succeeded.check.not_preserved`` says why. Needs ``directory``
            and the extra ``verify``. An original with an address is downloaded once, into ``originals`` or
            ``directory/originals``. Images that an earlier run has saved are composed, too.
        verify: Verify each result, after ``preserve``: ``Succeeded.verdict``. It needs the same.
        preserve_format: Format of composed images: ``png``, ``webp``, ``tiff``, or ``jpeg``, which changes
            every pixel a little.
        until_clean: The most attempts, up to 10, for an image whose verdict is ``text_left``, ``damaged`` or
            ``cropped``, the first one included; it implies ``verify``. Each of them is charged. The best
            result is the outcome, the files of the others are in ``directory/earlier``. Attempts of earlier
            runs count, so that the same call resumes; only images of this call are submitted again.
        escalate: The models of the second attempt, the third and so on; the last one is used for all that
            follow. Left out, the model of the request.
        checks: Worker processes that several batches share, an :class:`flux_async.ImageChecks`; left out, the
            batch has its own.
        on_progress: Called at every change; it cannot break the run. Left out in a Jupyter notebook, a bar
            below the cell follows the run.

    Raises:
        InvalidInput: An option is out of range or of a wrong type; nothing was opened or sent.
        MissingExtra: ``preserve``, ``verify`` or ``skip_textless`` needs an extra that is not installed.
    """
    wanted = WantedChecks(
        skip_textless=check_flag(skip_textless, "skip_textless"),
        preserve=check_flag(preserve, "preserve"),
        verify=check_flag(verify, "verify") or until_clean != 1,
        until_clean=check_attempts(until_clean),
        escalate=check_models(escalate),
    )
    check_client(client)
    check_images(images)
    check_functions(name_file, on_progress)
    places = {"directory": directory, "originals": originals}
    folders = [check_folder(place, name).resolve() for name, place in places.items() if place is not None]
    if len(folders) > len(set(folders)):
        raise InvalidInput("directory and originals are one folder: the files would overwrite each other.")
    if directory is not None and sink is not None:
        raise InvalidInput("directory and sink are both destinations for results: give one of them.")
    stage = check_stage(
        wanted, directory=directory, originals=originals, format=preserve_format, checker=checks
    )
    options = RunOptions(
        directory=None if directory is None else Path(directory),
        sink=sink if directory is None else FolderSink(directory),
        originals=None if originals is None else Path(originals),
        timeout_s=client.timeout if timeout is None else check_positive(timeout, "timeout"),
        retry=RetryPolicy() if retry is None else retry,
        patience_s=check_positive(patience, "patience"),
        callbacks=callbacks,
        in_doubt=in_doubt_policy(in_doubt),
        via_upload=check_flag(via_upload, "via_upload"),
        checks=wanted,
    )
    control, tally = RunControl(session=client.session), Tally(expects_callbacks=callbacks is not None)
    budget = Budget(
        control=control,
        tally=tally,
        guard=PriceGuard(expected=price_list(prices), given=frozenset(prices or ())),
        max_credits=None if max_credits is None else check_positive(max_credits, "max_credits"),
    )
    kept = journal if isinstance(journal, Journal) else Journal(journal, clock=client.session.clock)
    run = RunContext(
        client=client,
        journal=kept,
        options=options,
        names=FileNames(
            journal=kept,
            name_file=name_file,
            place=options.place,
            reserved=(EARLIER, VENDOR) if wanted.preserve else (EARLIER,),
        ),
        control=control,
        budget=budget,
        progress=ProgressReporter(
            session=client.session, tally=tally, observer=on_progress or NotebookBar.here()
        ),
        checks=stage,
    )
    return BatchRun(images=images, run=run, journal=kept, owns_journal=kept is not journal)


@attrs.define(kw_only=True, eq=False)
class BatchRun:
    """A batch: an async context manager, and an async iterator of outcomes in order of completion.

    Attributes:
        only_checks: Whether it only checks the images that its journal has, and submits and polls nothing.
        announced: The jobs that a service has reported as added. With it the run is that of a service: its
            inputs never end, only few are read ahead, and a job whose wait has ended is taken up again.
    """

    only_checks: bool = False
    announced: Container[JobKey] | None = None
    _images: Iterable[Input] | AsyncIterable[Input] = attrs.field(repr=False)
    _run: RunContext = attrs.field(repr=False)
    _journal: Journal = attrs.field(repr=False)
    _owns_journal: bool = attrs.field(repr=False)
    _learned: Learned = attrs.field(init=False, repr=False)
    _work_task: asyncio.Task[None] | None = attrs.field(default=None, init=False, repr=False)
    _outcomes: MemoryObjectReceiveStream[Outcome] | None = attrs.field(default=None, init=False, repr=False)
    _closing: contextlib.AsyncExitStack = attrs.field(
        factory=contextlib.AsyncExitStack, init=False, repr=False
    )
    _failure_raised: bool = attrs.field(default=False, init=False, repr=False)
    _scheduler: Scheduler | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._learned = Learned(session=self._session, journal=self._journal)

    # --- entering and leaving -----------------------------------------------------------------------------

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
        async with contextlib.AsyncExitStack() as opened:
            if self._owns_journal:
                await self._journal.open(account=self._run.client.fingerprint)
                opened.push_async_callback(self._journal.aclose)
            opened.enter_context(self._journal.one_run())
            self._closing = opened.pop_all()
        self._run.progress.began = self._session.clock.monotonic()
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
        """Wait until the answers of POSTs in flight are recorded; then close everything."""
        self.stop()
        if self._work_task is not None:
            self._work_task.cancel()
            await asyncio.wait([self._work_task])
        await self._run.budget.all_posts_recorded()
        if self._outcomes is not None:
            self._outcomes.close()
        self._run.progress.end()
        await self._learned.save_at_end()
        await self._closing.aclose()

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        if self._outcomes is None or self._work_task is None:
            raise InvalidInput("A batch is used as `async with run_batch(…) as batch:`.")
        try:
            return await self._outcomes.receive()
        except anyio.ClosedResourceError:
            raise InvalidInput("This batch has ended: its block was left.") from None
        except anyio.EndOfStream:
            pass
        await asyncio.wait([self._work_task])
        failure, self._failure_raised = (None if self._failure_raised else self._failure()), True
        if failure is not None:
            raise failure
        control = self._run.control
        halted, control.halted_by = control.halted_by, None
        if halted is not None:
            raise self._run.as_halt(halted) from None
        raise StopAsyncIteration

    def stop(self) -> None:
        """Submit nothing more and read no more inputs; submitted tasks go on to their ends.

        Jobs in doubt are reported as they are: their callbacks are left to the next run.
        """
        self._run.control.stop()

    @property
    def active(self) -> int:
        """Jobs that it works on."""
        return len(self._run.jobs)

    def works_on(self, number: int) -> bool:
        """Return whether it works on a job, by its number in the journal."""
        return number in self._run.jobs

    async def cancel(self, stored: StoredJob) -> bool:
        """Cancel a job that is not submitted; return whether it becomes an outcome of this run.

        Raises:
            AlreadySubmitted: A submit of it is in progress, or was made.
        """
        if self._scheduler is not None:
            return await self._scheduler.cancel(stored)
        await cancel_stored(self._journal, stored, self._run.now())
        return False

    async def earlier_outcome(self, job: Job, halted: FluxError | None = None) -> Outcome:
        """Return the outcome of a job that had ended before this run; else a failure by ``halted``."""
        stored = await self._journal.job(job.key)
        if halted is not None and (stored is None or stored.job.state not in FINAL):
            return Failed(job=job, error=halted)
        if stored is None:
            raise JournalError(f"The journal does not hold job {job.key}.")
        return outcome_of(stored.job, job, None, self._run.options.directory)

    @property
    def progress(self) -> BatchProgress:
        """How far the batch is."""
        return self._run.progress.current()

    def _repr_html_(self) -> str:
        """Return a bar, for notebooks."""
        return to_html(self.progress)

    # --- the work -----------------------------------------------------------------------------------------

    async def _work(self, send: MemoryObjectSendStream[Outcome]) -> None:
        """Start jobs until there is nothing left to start, and wait until all have ended."""
        run = self._run
        checks = contextlib.nullcontext() if run.checks is None else run.checks
        async with send, checks, self._session.call() as run.call:
            await self._journal.reserve_room()
            await self._journal.recover()
            await self._learned.load()
            await run.prices.load()
            self._session.submitter.breaker.release()  # one submit of this batch decides about a halt
            watch = PauseWatch(
                session=self._session,
                patience_s=run.options.patience_s,
                control=run.control,
                progress=run.progress,
            )
            async with anyio.create_task_group() as helpers:
                helpers.start_soon(watch.run)
                if self._journal.is_durable:
                    helpers.start_soon(self._learned.save_periodically)
                async with asyncio.TaskGroup() as group:
                    self._scheduler = Scheduler(
                        run=run, journal=self._journal, group=group, send=send, announced=self.announced
                    )
                    await self._run_jobs(self._scheduler, helpers)
                helpers.cancel_scope.cancel()

    async def _run_jobs(self, scheduler: Scheduler, helpers: TaskGroup) -> None:
        """Start the paid jobs, then the inputs; return when no job is active any more."""
        reader = reading = None
        if self._run.options.callbacks is not None:
            reader = CallbackReader(scheduler)
            reading = scheduler.group.create_task(reader.read())
            if self._journal.is_durable:
                helpers.start_soon(reader.peek)
        if self.announced is not None:
            self._run.slots.start_few(self._session)
            helpers.start_soon(self._resume, scheduler)
        if not self.only_checks:
            await self._start_paid(scheduler)
            await self._feed(scheduler)
        await self._start_unchecked(scheduler)
        if reader is not None:
            await reader.has_read.wait()
        await self._run.jobs.all_done()
        if reading is not None:
            reading.cancel()

    async def _start_paid(self, scheduler: Scheduler) -> None:
        """Start what an earlier run has paid for, beginning with results that the vendor will soon delete."""
        now, paid = self._session.clock.wall(), (JobState.GENERATED, JobState.SUBMITTED)
        soon = {api: now - fetch_first_after_s(kept_s) for api, kept_s in RETENTION_S.items()}
        shortest_first = sorted(soon, key=RETENTION_S.__getitem__)
        orders = [(state, api) for api in (*shortest_first, None) for state in paid]
        for state, api in orders:
            older = None if api is None else (api, soon[api])
            async for stored in self._journal.iter_jobs(state, older=older):
                if self._run.control.is_abandoned:
                    return
                await scheduler.start_paid(stored)

    async def _resume(self, scheduler: Scheduler) -> None:
        """Take up again, now and then, tasks whose wait has ended, as the next run of a batch does."""
        while True:
            await self._session.clock.sleep(RESUME_S)
            await self._start_paid(scheduler)

    async def _start_unchecked(self, scheduler: Scheduler) -> None:
        """Start what earlier runs have saved and not checked, after the inputs, which take longer."""
        if self._run.checks is None:
            return
        only_undecided = self._run.options.checks == NO_CHECKS
        async for stored in self._journal.iter_jobs(JobState.DONE, only_undecided=only_undecided):
            if not self._run.control.is_spending:
                return
            await scheduler.start_unchecked(stored)

    async def _feed(self, scheduler: Scheduler) -> None:
        run = self._run
        ahead = _CHUNK if self.announced is None else 0  # what is read ahead has no priority any more
        give, take = anyio.create_memory_object_stream[Input](ahead)
        run.control.reading = reading = anyio.CancelScope()
        if not run.control.is_spending:
            reading.cancel()
        scheduler.group.create_task(read_into(give, self._images, reading))
        try:
            async with take:
                async for chunk in drain(take, _CHUNK):
                    run.jobs.read_on()
                    for stored in await self._add(chunk, scheduler.send):
                        if not run.control.is_spending:
                            return
                        await scheduler.start_input(stored)
        finally:
            reading.cancel()
            give.close()  # the coroutine that reads into it may have been cancelled before it began
            run.jobs.all_fed()

    async def _add(self, chunk: list[Input], send: MemoryObjectSendStream[Outcome]) -> list[StoredJob]:
        """Put a chunk of inputs into the journal; an input that is no request becomes an outcome itself."""
        run, jobs, names = self._run, list[Job](), dict[JobKey, str]()
        for given in chunk:
            try:
                job = await read_job(given)
                run.client.check_reachable(job.request)
                name = run.names.check(job)
                if (words := mistyped_in_words(job.request)) is not None:
                    job_logger.warning("%s", words)
            except InvalidInput as error:
                run.progress.tally.add_refused()
                await send.send(Failed(job=given if isinstance(given, Job) else None, error=error))
                continue
            jobs.append(job)
            names[job.key] = name
        added = await self._journal.add_jobs(jobs, is_chosen=run.jobs.__contains__)
        refused = await run.names.refused(added, names)
        for stored in added:
            if stored.number in refused:
                run.progress.tally.add_refused()
                await send.send(Failed(job=stored.as_job(), error=refused[stored.number]))
        return [stored for stored in added if stored.number not in refused]

    @property
    def _session(self) -> Session:
        return self._run.session

    def _failure(self) -> BaseException | None:
        """Return what ended the work, unless it ended by itself or was cancelled here."""
        task = self._work_task
        if task is None or not task.done() or task.cancelled() or task.exception() is None:
            return None
        error = task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]  # many jobs met the same error
        return None if error is None else self._run.as_halt(error)


# --- all outcomes of a list -------------------------------------------------------------------------------


async def gather(
    client: BatchClient, images: Iterable[Input] | AsyncIterable[Input], **options: Unpack[BatchOptions]
) -> list[Outcome]:
    """Run a batch to its end and return all outcomes in order, those of earlier runs included.

    A halt (key, credits …) raises nothing here, so that no outcome is lost: each job that was not done is a
    :class:`Failed` with the error that halted it.
    """
    check_client(client)
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
                found[job.key] = await batch.earlier_outcome(job, halted)
    return [found[job.key] if isinstance(job, Job) else job for job in jobs]


async def _job_or_failure(image: Input) -> Job | Failed:
    try:
        return await read_job(image)
    except InvalidInput as error:
        return Failed(job=None, error=error)
