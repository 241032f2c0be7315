"""Compares the record of a job's task with what the job's submits sent: is it the task that was asked for?"""

from __future__ import annotations

from flux_async.account import Account
from flux_async.errors import TaskFailed
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Echo, ImageResult, TaskId, TaskRecord
from flux_async.protocol.echo import Comparison, compare
from flux_async.protocol.wire import with_input
from flux_async.waiting import Found


async def check_echo(
    account: Account, journal: Journal, stored: StoredJob, found: Found, *, input_url: str | None
) -> Echo | None:
    """Return what the record that ended a wait shows of the job's request; None where there is no record.

    Args:
        account: Knows whether its records show what was sent.
        journal: Knows what the other jobs have sent.
        stored: The job.
        found: What the wait for its task ended with.
        input_url: Where its latest submit said that the image is, where that is known to differ.

    Raises:
        TaskMismatch: The task is another submit's.
    """
    record = found.record if isinstance(found, ImageResult | TaskFailed) else None
    if record is None:
        return None
    seen = await _closest(journal, stored, record, input_url)
    owner = None
    if seen.is_same is False or (seen.is_same and not (seen.is_verbatim and seen.rest_is_same)):
        owner = await journal.job_that_sent(
            record.params or {}, besides=stored.number, verbatim=seen.is_same is True
        )
    return account.judge_echo(TaskId(record.task_id), record, seen, belongs_to=owner)


async def _closest(
    journal: Journal, stored: StoredJob, record: TaskRecord, input_url: str | None
) -> Comparison:
    """Compare with the latest submit, and where that differs, with all that the job has made."""
    seen = compare(record.params, with_input(stored.request, input_url))
    if seen.is_same is not False:
        return seen
    for url in await journal.input_urls(stored.number):
        other = compare(record.params, with_input(stored.request, url))
        if other.is_same:
            return other
    return seen
