"""One coroutine per job: decide, perform, apply, record, until the job settles.

::

    while not isinstance(step := next_step(job), Settle):
        events = await perform(step)
        job = apply(job, events)
        await journal.record(job, events)     # returns after the commit

Decisions are made in :mod:`flux_async.job_state`. The steps are :mod:`~flux_async.batch.submitting`,
awaiting the task (here), :mod:`~flux_async.batch.in_doubt`, :mod:`~flux_async.batch.downloads` and
:mod:`~flux_async.batch.checks`.
"""

from __future__ import annotations

from pathlib import Path

from flux_async.advice import fill, python_words
from flux_async.api.parsing import check_task_id
from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.cancelling import as_cancelled, is_cancelled
from flux_async.batch.check_stage import read_verdict
from flux_async.batch.checks import check, choose
from flux_async.batch.downloads import fetch
from flux_async.batch.improving import submit_again
from flux_async.batch.in_doubt import Found, check_echo, resolve_doubt
from flux_async.batch.run_context import Events, RunContext, concerns_all
from flux_async.batch.submitting import submit
from flux_async.batch.textless import skip_if_textless
from flux_async.errors import ConfigurationError, FluxError, InvalidInput, Scope, TaskFailed, TaskMismatch
from flux_async.job_state import (
    AwaitCallback,
    AwaitTask,
    Begin,
    CheckForText,
    Choose,
    Compose,
    EchoContradicted,
    Event,
    Fetch,
    JobSnapshot,
    JobState,
    Problem,
    Saved,
    Settle,
    Step,
    SubmitAgain,
    TaskEnded,
    TaskEndedRetryable,
    TaskSucceeded,
    Verify,
    next_step,
)
from flux_async.models import Failed, ImageResult, InDoubt, Job, Outcome, Succeeded
from flux_async.policy.generation_times import kind_of
from flux_async.poller import as_paid


async def run_job(job: ActiveJob, run: RunContext, *, submits: bool = True) -> Outcome | None:
    """Work on one job until it settles, or until this run can do no more for it now.

    Args:
        job: The job.
        run: What all jobs of the run share.
        submits: False leaves the job as it is when its next step is a submit.

    Returns:
        The outcome; None if this run reports nothing and the journal keeps the job for the next one.

    Raises:
        FluxError: It concerns every job (key, balance, disk): the run halts.
    """
    try:
        run.input_of(job)  # a request that another release wrote is found before anything is spent
        while not isinstance(step := await _decide(job, run), Settle):
            if isinstance(step, Begin) and not submits:
                return None
            happened = await _perform(step, job, run)
            if isinstance(happened, Leave):
                error = happened.error
                return None if error is None else Failed(job=job.stored.as_job(), error=error)
            if happened is not None:
                await run.record(job, *happened)
        return outcome_of(job.state, job.stored.as_job(), job.last_error, run.options.directory)
    except InvalidInput as error:
        return Failed(job=None, error=error)
    except BaseException:
        job.was_cancelled = True
        run.keep_unclaimed(job)
        raise
    finally:
        run.prices.release(job)


async def _decide(job: ActiveJob, run: RunContext) -> Step:
    """Return the next step. A job in doubt first takes its task, if another job's poll has found it."""
    step = next_step(job.state, callback_may_come=job.callback_may_come, checks=job.checks)
    if isinstance(step, Settle) and step.state is JobState.IN_DOUBT:
        for task in await run.journal.offers_to(job.number):
            if await run.adopt(job, task):
                return next_step(job.state)
    return step


async def _perform(  # noqa: PLR0911 - one match arm per step
    step: Step, job: ActiveJob, run: RunContext
) -> Events | Leave | None:
    """Do the I/O of one step; return what happened, or None if the step has recorded it itself."""
    match step:
        case CheckForText():
            return await skip_if_textless(job, run)
        case Begin(not_before=not_before):
            return await submit(job, run, not_before)
        case AwaitTask():
            return await _await_task(step, job, run)
        case AwaitCallback():
            return await resolve_doubt(job, run)
        case Fetch():
            if run.options.sink is None or job.is_record_fresh:
                return await fetch(job, run, step)
            return await _await_task(step, job, run)  # its address may be old: the record has a new one
        case Compose() | Verify():
            return await check(step, job, run)
        case Choose():
            return await choose(job, run)
        case SubmitAgain():
            await submit_again(step, job, run)
            return None
        case _:
            raise AssertionError(step)  # an intent outlives neither its submit nor a restart


# --- the task ---------------------------------------------------------------------------------------------


async def _await_task(step: AwaitTask | Fetch, job: ActiveJob, run: RunContext) -> Events | Leave | None:
    """Wait for the task's end; accept its result only if its record shows this job's request."""
    await job.slots.take_task()
    input_url = run.input_of(job).url
    found = await _wait(step, job, run)
    cost = await run.prices.cost_of(job, found)
    job.is_record_fresh = True
    if job.state.state is JobState.GENERATED and _is_unread(found):
        return None  # the known address is used
    echo = job.state.echo
    if echo is None:
        try:
            echo = await check_echo(run.session, run.journal, job.stored, found, input_url=input_url)
        except TaskMismatch as error:
            job.last_error, problem = error, Problem.of(error)
            at, belongs_to = run.now(), error.belongs_to
            return (EchoContradicted(at=at, problem=problem, task_id=step.task_id, belongs_to=belongs_to),)
    if isinstance(found, TaskFailed):
        return (_failed(job, run, found, cost),)
    if isinstance(found, FluxError):
        end = as_paid(found, step.task_id, step.api)
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
        credits=cost,
    )
    return (generated,) if run.options.fetches else (generated, Saved(at=run.now()))


async def _wait(step: AwaitTask | Fetch, job: ActiveJob, run: RunContext) -> Found:
    """Wait for a task. The request is dropped from memory meanwhile, unless its image was uploaded."""
    clock, timeout_s = run.session.clock, run.options.timeout_s
    submitted_at, kind = job.state.submitted_at, kind_of(run.input_of(job).request)
    expects_callback = await _expects_callback(job, run)
    if run.input_of(job).url is None:
        job.input = None
    job.slots.give_back(run.slots.starting)
    with run.control.awaiting_task():
        try:
            return await run.client.poller.wait(
                check_task_id(step.task_id),
                api=step.api,
                policy=run.client.polling,
                timeout_s=timeout_s,
                deadline=clock.monotonic() + timeout_s,
                kind=kind,
                age=None if submitted_at is None else max(0.0, clock.wall() - submitted_at),
                expects_callback=expects_callback,
                waits_out_outages=True,
                job=job.state.key,
                trace=job.stored.trace,
            )
        except Exception as error:  # noqa: BLE001 - also that of a caller's clock
            return error


async def _expects_callback(job: ActiveJob, run: RunContext) -> bool:
    if run.options.callbacks is None or job.posted_at is not None:
        return run.options.callbacks is not None
    _, callback_id = await run.journal.attempt(job.number, job.state.attempts)
    return callback_id is not None


def _failed(job: ActiveJob, run: RunContext, error: TaskFailed, cost: float | None) -> Event:
    """Return the end of a task without an image: final, or paid for once more if the caller allows it."""
    job.last_error, problem = error, Problem.of(error)
    again = job.state.paid_failures + 1 < run.options.retry.max_paid_attempts
    if again and job.state.state is JobState.SUBMITTED:
        return TaskEndedRetryable(at=run.now(), problem=problem, credits=cost)
    return TaskEnded(at=run.now(), problem=problem, charge=error.charge, credits=cost)


def _is_unread(found: Found) -> bool:
    """Whether a record could not be read, which proves nothing about its task."""
    if not isinstance(found, FluxError) or found.scope is Scope.STOP:
        return False
    return not isinstance(found, TaskFailed | ConfigurationError)


# --- the outcome ------------------------------------------------------------------------------------------


def outcome_of(snapshot: JobSnapshot, job: Job, error: FluxError | None, directory: Path | None) -> Outcome:
    """Return the outcome of a settled job; ``error`` is the one of this process, if there was one."""
    if snapshot.state is JobState.DONE:
        file = directory / snapshot.file if directory is not None and snapshot.file else None
        checked = snapshot.checked
        return Succeeded(
            job=job,
            image=image_of(snapshot),
            file=file,
            reference=snapshot.file,
            verdict=None if checked is None else read_verdict(checked.verdict),
            check=checked,
            error=None if snapshot.problem is None else error or _restored(snapshot),
        )
    error = error or _restored(snapshot)
    return (InDoubt if snapshot.state is JobState.IN_DOUBT else Failed)(job=job, error=error)


def image_of(snapshot: JobSnapshot) -> ImageResult | None:
    """Return the result of a job at the vendor; None where it is done without a task."""
    if snapshot.task_id is None or snapshot.result_url is None:
        return None
    return ImageResult(
        task_id=snapshot.task_id,
        result_url=snapshot.result_url,
        origin_url=snapshot.origin_url,
        echo=snapshot.echo,
        credits=snapshot.credits,
        api=snapshot.api or "kontext",
    )


def _restored(snapshot: JobSnapshot) -> FluxError:
    """Return the error of an earlier process, as far as the journal has it."""
    if is_cancelled(snapshot):
        return as_cancelled(snapshot)
    words = f"Job {snapshot.key} is {snapshot.state}."
    if snapshot.problem is not None:
        advice = fill(snapshot.problem.message, python_words(snapshot.task_id, snapshot.api))
        words = f"{snapshot.problem.type}: {advice}"
    return FluxError(words, advice="", charge=snapshot.charge, task_id=snapshot.task_id)
