"""One coroutine per job: decide, perform, apply, record, until the job settles.

::

    while not isinstance(step := next_step(job), Settle):
        events = await perform(step)
        job = apply(job, events)
        await journal.record(job, events)     # returns after the commit

Decisions are made in :mod:`flux_async.job_state`. The steps are :mod:`~flux_async.batch.submitting`,
awaiting the task, fetching its result (both here) and :mod:`~flux_async.batch.in_doubt`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flux_async.advice import fill, python_words
from flux_async.api.parsing import check_task_id
from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.in_doubt import Found, check_echo, resolve_doubt
from flux_async.batch.run_context import (
    Events,
    RunContext,
    adopt,
    concerns_all,
    input_of,
    leave_task,
    record,
)
from flux_async.batch.submitting import submit
from flux_async.clock import sleep_and_read
from flux_async.errors import (
    ConfigurationError,
    DownloadError,
    FluxError,
    InvalidInput,
    Scope,
    TaskFailed,
    TaskMismatch,
    shown,
)
from flux_async.files.sink import Sink
from flux_async.job_state import (
    AwaitCallback,
    AwaitTask,
    Begin,
    EchoContradicted,
    Event,
    Fetch,
    JobSnapshot,
    JobState,
    Problem,
    ResultLost,
    Saved,
    Settle,
    Step,
    TaskEnded,
    TaskEndedRetryable,
    TaskSucceeded,
    next_step,
)
from flux_async.models import Failed, ImageResult, InDoubt, Job, Outcome, Succeeded, TaskId
from flux_async.policy.downloads import NoDownload, expired
from flux_async.policy.generation_times import kind_of
from flux_async.poller import as_paid


async def run_job(job: ActiveJob, run: RunContext) -> Outcome | None:
    """Work on one job until it settles, or until this run can do no more for it now.

    Returns:
        The outcome; None where this run reports nothing and the journal keeps the job for the next one.

    Raises:
        FluxError: It concerns every job (key, balance, disk): the run halts.
    """
    try:
        input_of(job, run)  # a request that another release wrote is found before anything is spent
        while not isinstance(step := await _decide(job, run), Settle):
            happened = await _perform(step, job, run)
            if isinstance(happened, Leave):
                return None if happened.error is None else Failed(job=job.as_job(), error=happened.error)
            if happened is not None:
                await record(job, run, *happened)
        return outcome_of(job.state, job.as_job(), job.last_error, run.options.directory)
    except InvalidInput as error:
        return Failed(job=None, error=error)
    except BaseException:
        job.has_left = True
        leave_task(job, run)
        raise


async def _decide(job: ActiveJob, run: RunContext) -> Step:
    """Return what follows. A job in doubt first takes its task, if another job's poll has found it."""
    step = next_step(job.state, callback_may_come=job.callback_may_come)
    if isinstance(step, Settle) and step.state is JobState.IN_DOUBT:
        for task_id in await run.journal.offers_to(job.number):
            if await adopt(job, run, task_id):
                return next_step(job.state)
    return step


async def _perform(step: Step, job: ActiveJob, run: RunContext) -> Events | Leave | None:
    """Do the I/O of one step; return what happened, or None where the step has recorded it itself."""
    match step:
        case Begin(not_before=not_before):
            return await submit(job, run, not_before)
        case AwaitTask(task_id=task_id):
            return await _await_task(task_id, job, run)
        case AwaitCallback():
            return await resolve_doubt(job, run)
        case Fetch(task_id=task_id) if run.options.sink is not None and not job.is_record_fresh:
            return await _await_task(task_id, job, run)  # its address may be old: the record has a new one
        case Fetch():
            return await fetch(job, run, step)
        case _:
            raise AssertionError(step)  # an intent outlives neither its submit nor a restart


# --- the task ---------------------------------------------------------------------------------------------


async def _await_task(task_id: TaskId, job: ActiveJob, run: RunContext) -> Events | Leave | None:
    """Wait for the task's end; accept its result only if its record shows this job's request."""
    await job.slot.take()
    input_url = input_of(job, run).url
    found = await _wait(task_id, job, run)
    job.is_record_fresh = True
    if job.state.state is JobState.GENERATED and _is_unread(found):
        return None  # the known address has to do
    echo = job.state.echo
    if echo is None:
        try:
            echo = await check_echo(run.session, run.journal, job.stored, found, input_url=input_url)
        except TaskMismatch as error:
            return (_contradicted(task_id, job, run, error),)
    if isinstance(found, TaskFailed):
        return (_failed(job, run, found),)
    if isinstance(found, FluxError):
        end = as_paid(found, task_id)
        if concerns_all(end):
            raise end from None
        return Leave(end)
    if isinstance(found, Exception):
        raise found
    generated = TaskSucceeded(
        at=run.now(),
        result_url=found.result_url,
        origin_url=found.origin_url,
        generation_s=None if found.record is None else found.record.generation_s,
        echo=echo,
    )
    return (generated,) if run.options.fetches else (generated, Saved(at=run.now()))


async def _wait(task_id: TaskId, job: ActiveJob, run: RunContext) -> Found:
    """Wait for a task. What only a submit needs is forgotten meanwhile, save an upload."""
    clock, timeout_s = run.session.clock, run.options.timeout_s
    submitted_at = job.state.submitted_at
    deadline, kind = clock.monotonic() + timeout_s, kind_of(input_of(job, run).request)
    expects_callback = await _expects_callback(job, run)
    if input_of(job, run).url is None:
        job.input = None
    job.slot.end_start()
    with run.control.awaiting_task():
        try:
            return await run.client.poller.wait(
                check_task_id(task_id),
                policy=run.client.polling,
                timeout_s=timeout_s,
                deadline=deadline,
                kind=kind,
                age=None if submitted_at is None else max(0.0, clock.wall() - submitted_at),
                expects_callback=expects_callback,
                waits_out_outages=True,
            )
        except Exception as error:  # noqa: BLE001 - also that of a caller's clock
            return error


async def _expects_callback(job: ActiveJob, run: RunContext) -> bool:
    if run.options.callbacks is None or job.posted_at is not None:
        return run.options.callbacks is not None
    _, callback_id = await run.journal.attempt(job.number, job.state.attempts)
    return callback_id is not None


def _contradicted(task_id: TaskId, job: ActiveJob, run: RunContext, error: TaskMismatch) -> Event:
    job.last_error = error
    problem = Problem.of(error)
    return EchoContradicted(at=run.now(), problem=problem, task_id=task_id, belongs_to=error.belongs_to)


def _failed(job: ActiveJob, run: RunContext, error: TaskFailed) -> Event:
    """Return the end of a task without an image: final, or paid for once more where the caller allows it."""
    job.last_error, problem = error, Problem.of(error)
    again = job.state.paid_failures + 1 < run.options.retry.max_paid_attempts
    if again and job.state.state is JobState.SUBMITTED:
        return TaskEndedRetryable(at=run.now(), problem=problem)
    return TaskEnded(at=run.now(), problem=problem, charge=error.charge)


def _is_unread(found: Found) -> bool:
    """Whether a record could not be read, which proves nothing about its task."""
    if not isinstance(found, FluxError) or found.scope is Scope.STOP:
        return False
    return not isinstance(found, TaskFailed | ConfigurationError)


# --- the outcome ------------------------------------------------------------------------------------------


def outcome_of(snapshot: JobSnapshot, job: Job, error: FluxError | None, directory: Path | None) -> Outcome:
    """Return the outcome of a settled job; ``error`` is the one this process met, if it did."""
    if snapshot.state is JobState.DONE and snapshot.task_id is not None and snapshot.result_url is not None:
        image = ImageResult(
            task_id=snapshot.task_id,
            result_url=snapshot.result_url,
            origin_url=snapshot.origin_url,
            echo=snapshot.echo,
        )
        file = directory / snapshot.file if directory is not None and snapshot.file else None
        return Succeeded(job=job, image=image, file=file, reference=snapshot.file)
    error = error or _remembered(snapshot)
    return (InDoubt if snapshot.state is JobState.IN_DOUBT else Failed)(job=job, error=error)


def _remembered(snapshot: JobSnapshot) -> FluxError:
    """Return an error that an earlier process met, as far as the journal has it."""
    words = f"Job {snapshot.key} is {snapshot.state}."
    if snapshot.problem is not None:
        advice = fill(snapshot.problem.message, python_words(snapshot.task_id))
        words = f"{snapshot.problem.type}: {advice}"
    return FluxError(words, advice="", charge=snapshot.charge, task_id=snapshot.task_id)


logger: logging.Logger = logging.getLogger("flux_async")


async def fetch(job: ActiveJob, run: RunContext, step: Fetch) -> Events | Leave:
    """Download a result; one that fails is tried again, with no slot held meanwhile.

    Raises:
        FluxError: It concerns every job, such as a full disk.
    """
    await _fetch_original(job, run)
    if run.options.sink is None:
        return (Saved(at=run.now()),)
    image = ImageResult(task_id=step.task_id, result_url=step.result_url, origin_url=job.state.origin_url)
    ended = await _try(job, run, image, run.options.sink)
    if not isinstance(ended, DownloadError):
        return ended
    return await _try_again(job, run, image, run.options.sink, ended)


async def _try_again(
    job: ActiveJob, run: RunContext, image: ImageResult, sink: Sink, error: DownloadError
) -> Events | Leave:
    retries = run.downloads
    failed = retries.begin(error)
    job.slot.release()
    with retries.count():
        while True:
            what = retries.after(failed, job.stored, error)
            if what is NoDownload.FOR_NOW:
                return Leave(failed.last_word(job.stored))
            if isinstance(what, NoDownload):
                job.last_error = expired(error)
                return (ResultLost(at=run.now(), problem=Problem.of(job.last_error)),)
            run.progress.notify()
            await sleep_and_read(run.session.clock, what)
            async with retries.slot(failed) as is_in_time:
                if not is_in_time:
                    return Leave(failed.last_word(job.stored))
                ended = await _try(job, run, image, sink)
            if not isinstance(ended, DownloadError):
                return ended
            error = ended


async def _try(
    job: ActiveJob, run: RunContext, image: ImageResult, sink: Sink
) -> Events | Leave | DownloadError:
    """Try one download; return the error where another try may be made."""
    try:
        name = await run.names.name(job.stored)
        saved = await run.client.save(image, sink, job=job.as_job(), name=name)
    except DownloadError as error:
        if error.scope is Scope.STOP:
            raise
        return error
    except FluxError as error:
        if concerns_all(error):
            raise
        return Leave(error)
    except Exception as error:  # noqa: BLE001 - a transport of the caller's own
        return DownloadError(f"The download failed: {shown(error)}.")
    return (Saved(at=run.now(), file=saved.reference, sha256=saved.sha256),)


async def _fetch_original(job: ActiveJob, run: RunContext) -> None:
    """Download the input as the vendor keeps it, for ten minutes; without it the result is as good."""
    url, folder = job.state.origin_url, run.options.originals
    if folder is None or url is None:
        return
    try:
        destination = await run.names.destination(folder, job.stored)
        await run.client.download(url, destination, match_suffix=True, retry=False)
    except FluxError as error:
        if error.scope is Scope.STOP:
            raise
        logger.warning("the original of job %s is not here: %s", job.state.key, error.message)
    except Exception as error:  # noqa: BLE001 - a transport of the caller's own
        logger.warning("the original of job %s is not here: %s", job.state.key, shown(error))
