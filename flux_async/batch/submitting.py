"""The submit of one job: image, permit, budget, intent on disk, POST, answer on disk; in this order.

The intent, the POST and its answer run where no cancellation reaches them: once the intent is on disk, the
answer follows it there.
"""

from __future__ import annotations

import secrets

import attrs

from flux_async.api.models_table import ApiName, api_for, on_wire
from flux_async.api.stored_requests import read_aspect_ratio, with_input
from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.check_stage import require_comparison
from flux_async.batch.in_doubt import adopt_known_task
from flux_async.batch.run_context import RunContext, concerns_all
from flux_async.errors import (
    Charge,
    FluxError,
    InvalidInput,
    JobConflictError,
    JournalError,
    MissingExtra,
    RequestNotSent,
    Scope,
    TaskMismatch,
)
from flux_async.job_state import (
    Event,
    JobState,
    Problem,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    SubmitUnknown,
)
from flux_async.models import TaskId

_NO_DEADLINE_S = 10.0**9
"""A submit waits for its permit as long as it takes; the run ends the wait."""
_LONGEST_OWN_WAIT_S = 120.0
_MOST_TRIES_TO_RECORD = 12


async def submit(job: ActiveJob, run: RunContext, not_before: float) -> Leave | None:
    """Submit a job once, and record what became of it; None if the job moved.

    Raises:
        FluxError: It concerns every job, such as a refused key.
    """
    clock = run.session.clock
    try:
        if job.state.kept is not None or job.planned is not None:
            require_comparison(run.checks)
        api = api_for(job.model, run.session.api, read_aspect_ratio(job.submitted))
    except (InvalidInput, MissingExtra) as refused:  # another run may check it, or use another API
        return Leave(refused)
    await job.slots.take_task()
    wait = min(not_before - clock.wall(), _LONGEST_OWN_WAIT_S)  # the wall clock may have jumped back
    if wait > 0:
        await clock.sleep(wait)
    try:
        return await _submit_in_turn(job, run, api)
    finally:
        run.prices.end_turn(job)


async def _submit_in_turn(job: ActiveJob, run: RunContext, api: ApiName) -> Leave | None:
    """Submit when the image is uploaded, no other job measures the price, and there is a permit."""
    session = run.session
    is_acquired = False
    while not is_acquired:
        failed = await upload_input(job, run)  # again if it has grown old meanwhile
        if failed is not None:
            return failed
        await run.prices.take_turn(job, api)
        if not run.control.is_spending:
            return Leave()
        is_acquired = await session.submitter.acquire(
            deadline=session.clock.monotonic() + _NO_DEADLINE_S,
            check=run.call.check,
            wanted=lambda: _is_wanted(job, run),
            waits_out_pauses=True,
        )
    run.budget.begin_post()
    is_reserved = False
    try:
        if job.planned is None and await adopt_known_task(job, run):
            return None
        is_reserved = run.budget.reserve(job)
    finally:
        if not is_reserved:
            run.budget.end_post()
            session.submitter.release()
    if not is_reserved:
        return Leave()
    await run.call.post(_intent_then_post(job, run, api), when_abandoned=lambda _: None)
    await run.prices.submitted(job)
    error = job.last_error
    if job.state.state is JobState.PENDING and error is not None and error.scope is Scope.STOP:
        raise error
    return None


def _is_wanted(job: ActiveJob, run: RunContext) -> bool:
    return run.control.is_spending and run.input_of(job).is_ready and run.prices.may_submit(job)


async def upload_input(job: ActiveJob, run: RunContext) -> Leave | None:
    """Upload the image, if it has to be: before the intent, after which nothing waits."""
    session, upload = run.session, run.input_of(job)
    while run.control.is_spending:
        wait = session.uploads.delay(session.clock.monotonic())
        if wait > 0 and not upload.is_ready:
            await session.changed.wait(session.clock, wait)
            continue
        try:
            await upload.prepare()
        except RequestNotSent:  # the run halts when that lasts
            continue
        except FluxError as error:
            if concerns_all(error):
                raise
            return Leave(error)
        return None
    return None


async def _intent_then_post(job: ActiveJob, run: RunContext, api: ApiName) -> None:
    """Record the intent, make the POST, record its answer: each on disk before the next."""
    try:
        url = run.input_of(job).url
        callback_id, callback_url = None, None
        if run.options.callbacks is not None:  # an id of this attempt alone, which cannot be guessed
            callback_id = secrets.token_hex(16)
            callback_url = run.options.callbacks.address_for(callback_id)
        try:
            model = on_wire(api, job.model).model
            if job.planned is not None:  # until now the job was done, and stays so if nothing is submitted
                await run.record(job, attrs.evolve(job.planned, at=run.now()))
                job.planned = None
            about = {"callback_id": callback_id, "input_url": url, "trace": job.stored.trace}
            await run.record(job, SubmitIntended(at=run.now(), api=api, model=model, **about))
        except BaseException:
            run.budget.give_back(job)  # no request is made without its intent
            raise
        job.posted_at = run.session.clock.monotonic()
        answer = await run.session.submitter.post(
            with_input(job.stored.submitted, url), callback_url, api=api
        )
        await _record_answer(job, run, api, answer)
    finally:
        run.budget.end_post()
    if job.was_cancelled:
        run.keep_unclaimed(job)


async def _record_answer(job: ActiveJob, run: RunContext, api: ApiName, answer: TaskId | FluxError) -> None:
    """Record an answer. It may be paid for, so a journal that is busy is tried again and again."""
    event, last = _event_of(job, answer, run.now()), JournalError("The journal is busy.")
    for _ in range(_MOST_TRIES_TO_RECORD):
        try:
            return await run.record(job, event)
        except JobConflictError as error:  # another submit of the journal has this task
            if not isinstance(event, SubmitAccepted):
                raise
            answer = run.session.submitter.count_mismatch(_named_twice(event.task_id, error))
            event = _event_of(job, answer, event.at)
        except JournalError as error:
            last = error
            await run.session.clock.sleep(1.0)
    if not isinstance(answer, FluxError):
        run.session.keep_unclaimed(job.stored.as_job().request, api, answer)
    raise last


def _event_of(job: ActiveJob, answer: TaskId | FluxError, at: float) -> Event:
    """Return the event that the answer to a submit is for its job."""
    if not isinstance(answer, FluxError):
        return SubmitAccepted(at=at, task_id=answer)
    job.last_error, problem = answer, Problem.of(answer)
    if answer.charge is not Charge.NO:
        return SubmitUnknown(
            at=at,
            problem=problem,
            task_id=answer.task_id,
            answer=answer.answer or None,
            refused_task_id=answer.refused_task_id if isinstance(answer, TaskMismatch) else None,
        )
    if answer.scope is Scope.THIS_JOB and not isinstance(answer, RequestNotSent):
        return SubmitRejected(at=at, problem=problem)
    # All submits pause already, and the run halts when that lasts: it is never one job's failure.
    return SubmitRefused(at=at, problem=problem)


def _named_twice(task_id: TaskId, conflict: JobConflictError) -> TaskMismatch:
    return TaskMismatch(
        f"The API answered the submit with a task that is not its own. {conflict.message} "
        "The submit was probably charged, and its own task is not known.",
        refused_task_id=task_id,
    )
