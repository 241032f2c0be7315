"""Names paid tasks on stderr where a run could not bring them home, so that none is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from flux_async import EditRequest, FluxError, UnclaimedTask
from flux_async.cli.results import image_of
from flux_async.job_state import JobState
from flux_async.journal.reader import JournalReader

_MOST = 50


def tasks_under_way(reader: JournalReader) -> Iterator[str]:
    """Yield a line for each paid task whose image is not here, as far as the journal can still be read."""
    try:
        under_way = reader.jobs(JobState.SUBMITTED, JobState.GENERATED)
        for stored in islice(under_way, _MOST):
            yield f"Task {stored.job.task_id} is paid: {image_of(stored)}"
        more = sum(1 for _ in under_way)
    except FluxError:
        return
    if more:
        yield f"{more} more tasks are paid; the journal has them."


def tasks_not_recorded(unclaimed: Iterable[UnclaimedTask]) -> Iterator[str]:
    """Yield a line for each submit whose answer could not be written to the journal."""
    for loose in unclaimed:
        request = loose.request
        image = str(request.input_image) if isinstance(request, EditRequest) else request.prompt
        if loose.task_id is None:
            yield f"A submit is perhaps paid, and could not be written down: {image}"
        else:
            yield f"Task {loose.task_id} is paid, and could not be written down: {image}"
