"""Compares the record of a job's task with what the job's submits sent: is it the task that was asked for?"""

from __future__ import annotations

from typing import TypeAlias

from flux_async.api.echo import CONFIRMED_ENOUGH, Comparison, compare, in_words
from flux_async.api.stored_requests import with_input
from flux_async.errors import InvalidInput, TaskFailed
from flux_async.journal.ownership import Sender
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Echo, ImageResult, TaskRecord
from flux_async.session import Session

Found: TypeAlias = ImageResult | Exception
"""What the wait for a task ended with."""


async def check_echo(
    session: Session, journal: Journal, stored: StoredJob, found: Found, *, input_url: str | None
) -> Echo | None:
    """Return what the record that ended a wait shows of the job's request; None where there is no record.

    Args:
        session: Says whether records of this API key have shown what was sent.
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
    seen, other = await compare_with_journal(journal, stored, record, input_url=input_url)
    echo = session.judge_echo(
        record.task_id,
        record,
        seen,
        is_anothers=other is not None,
        belongs_to=None if other is None else other.key,
    )
    if seen.is_same_image and session.submits.confirmed_images <= CONFIRMED_ENOUGH:
        await journal.count_image_echo()
    return echo


async def adoptable_echo(journal: Journal, stored: StoredJob, record: TaskRecord) -> Echo:
    """Return what the record of a task shows that a person says is the task of a job in doubt.

    An unknown request is taken where the API itself named the task in answer to a submit of the job: then the
    person who compares the images knows more than the record.

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
    journal: Journal, stored: StoredJob, record: TaskRecord, *, input_url: str | None = None
) -> tuple[Comparison, Sender | None]:
    """Return how a record compares with the submits of a job, and the other job that it shows.

    Where it shows the job's own request, only a job that has sent exactly what is shown counts as another.
    Where it shows another image, each job that has sent that image does: the prompt decides which one.
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
    journal: Journal, stored: StoredJob, record: TaskRecord, input_url: str | None
) -> Comparison:
    """Compare with the latest submit, and where that differs, with all that the job has made."""
    seen = compare(record.params, with_input(stored.request, input_url))
    if seen.is_same is not False or seen.is_same_image:
        return seen  # the submits of a job differ in their image only
    for url in await journal.input_urls(stored.number):
        other = compare(record.params, with_input(stored.request, url))
        if other.is_same_image:
            return other
    return seen
