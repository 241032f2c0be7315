"""Which task belongs to a job: that of a submit in doubt, and whether a record shows what the job has sent.

A submit is *in doubt* when its answer was lost, so that it may have been charged.

Rules:

1. A job in doubt waits in its own coroutine and holds no slot meanwhile.
2. A callback that names it wakes it, and so does the poll of another job whose record shows its request.
3. When no callback can come any more, the caller's policy decides: hold, or resubmit once in a run.
4. While a callback names a task that can be the paid one and its record cannot be read, nothing is
   resubmitted.
5. Times are monotonic: the wall clock may jump, and must neither shorten nor stretch a wait.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

from flux_async.api.echo import CONFIRMED_ENOUGH, Comparison, compare, in_words, is_of_attempt
from flux_async.api.error_codes import PollMeaning, poll_meaning
from flux_async.api.stored_requests import apply_patch, with_input
from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.job_store import JobStore, OperationStore
from flux_async.batch.run_context import RunContext, concerns_all
from flux_async.errors import FluxError, InvalidInput, TaskFailed
from flux_async.job_state import ResubmitGranted
from flux_async.journal.inbox import InboxEntry
from flux_async.journal.ownership import KnownTask, Sender
from flux_async.journal.store import StoredJob
from flux_async.models import Echo, ImageResult, InDoubtPolicy, TaskRecord
from flux_async.policy.polling import PollPolicy
from flux_async.session import Session

logger: logging.Logger = logging.getLogger("flux_async")

Found: TypeAlias = ImageResult | Exception
"""How the wait for a task ended."""

_SOONEST_S, _LATEST_S = 5.0, 300.0
_VISIBLE_WITHIN_S = PollPolicy().not_found_grace_s
_UNWANTED_S = 120.0
"""Seconds for which a run looks for the task of a job in doubt that none of its inputs names."""


async def resolve_doubt(job: ActiveJob, run: RunContext) -> Leave | None:
    """Wait until the task of a submit in doubt is known, or until the caller's policy decides.

    Returns:
        None if that is settled; else the job is left in doubt, and its outcome is not wanted.
    """
    clock, control = run.session.clock, run.control
    while True:
        task, again_s = await find_task(job, run)
        if task is not None and await run.adopt(job, task):
            return None
        if not job.is_wanted and again_s is None:
            return Leave()
        now = clock.monotonic()
        job.doubt_ends = await _end_of_doubt(job, run, now)
        if now >= job.doubt_ends or not control.awaits_callbacks:
            break
        job.slots.give_back()
        until = job.doubt_ends if again_s is None else min(job.doubt_ends, now + again_s)
        with control.awaiting_callback(job.wakeup), run.jobs.idle():
            await job.wakeup.wait(clock, until - now)
    if not job.is_wanted:
        return Leave()
    job.callback_may_come = False
    resubmits = run.options.in_doubt is InDoubtPolicy.RESUBMIT and control.is_spending
    if again_s is not None:
        logger.warning(
            "job %s stays in doubt and is not submitted again: a callback named a task for it, and "
            "record-info does not show now whether it is the one",
            job.state.key,
        )
    elif resubmits and not job.was_resubmitted:
        await run.record(job, ResubmitGranted(at=run.now()))
        job.was_resubmitted = True
        job.callback_may_come = run.options.callbacks is not None
    return None


async def _end_of_doubt(job: ActiveJob, run: RunContext, now: float) -> float:
    """Return when no callback can come any more, in monotonic seconds; ``now`` if none can.

    The wall clock is read once, for a submit of an earlier process only.
    """
    if not job.is_wanted:
        return now + _UNWANTED_S if job.doubt_ends is None else job.doubt_ends
    intended_at, callback_id = await run.journal.attempt(job.number, job.state.attempts)
    if callback_id is None or run.options.callbacks is None:
        return now
    wait_s = run.options.doubt_wait_s
    if job.posted_at is not None:
        return job.posted_at + wait_s
    if job.doubt_ends is not None:
        return job.doubt_ends
    return now + min(wait_s, intended_at + wait_s - run.session.clock.wall())


async def adopt_known_task(job: ActiveJob, run: RunContext) -> bool:
    """Record the task of an earlier submit, if it became known; called before a job is paid for again."""
    if not job.state.attempts:
        return False
    task, _ = await find_task(job, run)
    return task is not None and await run.adopt(job, task)


async def find_task(job: ActiveJob, run: RunContext) -> tuple[KnownTask | None, float | None]:
    """Return the task of a submit whose answer was lost, or else in how many seconds to ask once more.

    A task counts if its record showed this job's request while it was polled for another job. A callback
    counts if it names an attempt of this job whose task is not known, was signed (or there is no key to sign
    with), and record-info shows the same image, prompt and callback address. While asking again may help, a
    callback names a task that can be the paid one: no time for another submit.
    """
    for task in await run.journal.offers_to(job.number):
        return task, None
    keys = () if run.options.callbacks is None else run.options.callbacks.keys
    again_s: float | None = None
    for entry in await run.journal.callbacks_for(job.number):
        if keys and not entry.signed:
            continue
        confirmed = await _confirms(entry, job, run)
        if confirmed:
            return KnownTask(task_id=entry.task_id, api=entry.api), None
        if confirmed is None:  # ever more rarely: it may be forged
            wait = min(_LATEST_S, max(_SOONEST_S, run.now() - entry.at))
            again_s = wait if again_s is None else min(again_s, wait)
    return None, again_s


async def _confirms(entry: InboxEntry, job: ActiveJob, run: RunContext) -> bool | None:
    """Return whether record-info shows that a task was made from that attempt; None if it does not show."""
    if await run.journal.owner_of(entry.task_id) not in {None, job.state.key}:
        return False
    try:
        seen = await run.client.record(entry.task_id, api=entry.api)
    except FluxError as error:
        if concerns_all(error):
            raise
        # The vendor may have no such task, long after it could not be visible yet.
        is_old = run.now() - entry.at >= _VISIBLE_WITHIN_S
        return False if is_old and poll_meaning(error) is PollMeaning.NOT_VISIBLE else None
    answers = [
        is_of_attempt(seen.params, with_input(body, entry.input_url), entry.callback_id)
        for body in _bodies(job.stored)
    ]
    return True if True in answers else None if None in answers else False


# --- what a record shows ----------------------------------------------------------------------------------


async def check_echo(
    session: Session, journal: JobStore, stored: StoredJob, found: Found, *, input_url: str | None
) -> Echo | None:
    """Return what the record that ended a wait shows of the job's request; None if there is no record.

    Args:
        session: Has the submits of this API key, and whether records have shown what was sent.
        journal: Has the submits of the other jobs.
        stored: The job.
        found: How the wait for its task ended.
        input_url: The address of the image that its latest submit named, if that is known to differ.

    Raises:
        TaskMismatch: The task is another submit's.
    """
    record = found.record if isinstance(found, ImageResult | TaskFailed) else None
    if record is None:
        return None
    seen, other = await compare_with_journal(journal, stored, record, input_url=input_url)
    echo = session.submitter.judge_echo(
        record, seen, is_anothers=other is not None, belongs_to=None if other is None else other.key
    )
    if seen.is_same_image and session.submitter.sent.confirmed_images[record.api] <= CONFIRMED_ENOUGH:
        await journal.count_image_echo(record.api)
    return echo


async def adoptable_echo(journal: OperationStore, stored: StoredJob, record: TaskRecord) -> Echo:
    """Return what the record shows of a task that the user names as the task of a job in doubt.

    An unknown request is accepted if the API itself named the task in answer to a submit of the job: a person
    who compares the images has more to go by than the record.

    Raises:
        InvalidInput: It was made from another request.
    """
    seen, other = await compare_with_journal(journal, stored, record)
    if other is None and seen.echo is not Echo.UNRECOGNISED:
        return seen.echo
    if other is None and record.task_id in await journal.candidates(stored.number):
        return seen.echo
    key = None if other is None else other.key
    whose = f"the request of job {key}" if key is not None else "another request"
    raise InvalidInput(
        f"Task {record.task_id} was made from {whose} ({in_words(record.params)}), not from that of job "
        f"{stored.job.key}.",
        advice="Nothing was changed.",
    )


async def compare_with_journal(
    journal: JobStore, stored: StoredJob, record: TaskRecord, *, input_url: str | None = None
) -> tuple[Comparison, Sender | None]:
    """Return how a record compares with the submits of a job, and the other job that it shows.

    If it shows the job's own request, only a job that has sent exactly what is shown counts as another. If it
    shows another image, each job that has sent that image does: the prompt decides which one.
    """
    seen = await _closest(journal, stored, record, input_url)
    if seen.is_same is None or (seen.is_same and seen.is_verbatim and seen.rest_is_same):
        return seen, None
    other = await journal.job_that_sent(
        record.params or {},
        besides=stored.number,
        verbatim=seen.is_same,
        by_image=seen.is_same_image is False,
    )
    return seen, other


async def _closest(
    journal: JobStore, stored: StoredJob, record: TaskRecord, input_url: str | None
) -> Comparison:
    """Compare with the latest submit, and if that differs, with all submits of the job."""
    seen, *others = _compare_all(stored, record, input_url)
    if seen.is_same is not False:
        return seen
    if seen.is_same_image:  # the submits of a job differ in their image and their model only
        return next((other for other in others if other.is_same), seen)
    for url in await journal.input_urls(stored.number):
        alike = [other for other in _compare_all(stored, record, url) if other.is_same_image]
        if alike:
            return next((other for other in alike if other.is_same), alike[0])
    return seen


def _compare_all(stored: StoredJob, record: TaskRecord, input_url: str | None) -> list[Comparison]:
    return [compare(record.params, with_input(body, input_url)) for body in _bodies(stored)]


def _bodies(stored: StoredJob) -> list[str]:
    """Return the request with each model that the job was submitted with, the latest first."""
    kept = stored.job.kept
    patches = (stored.job.other_model, None, None if kept is None else kept.other_model)
    return [apply_patch(stored.request, patch) for patch in dict.fromkeys(patches)]
