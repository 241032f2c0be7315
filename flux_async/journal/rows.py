"""A job as a row of the journal's table ``job``."""

from __future__ import annotations

import json
import os
from typing import Any

import attrs

from flux_async.api.stored_requests import read_request
from flux_async.errors import Charge
from flux_async.job_state import JobSnapshot, JobState, Problem
from flux_async.models import Echo, EditRequest, ImageRequest, JobKey, LocalImage, TaskId

COLUMNS = (
    "number, key, request, state, attempts, paid_failures, task_id, result_url, origin_url, file, charge, "
    "problem, not_before, submitted_at, generated_at, finished_at, generation_s, sha256, source, "
    "source_folder, echo"
)


@attrs.frozen(kw_only=True)
class StoredJob:
    """A job as the journal has it.

    Attributes:
        number: Its place in the order of arrival.
        request: The wire JSON it was added with; it names a file of this machine by its content.
        job: Where it stands.
        source: Where that file was last seen, as given.
        source_folder: What it is relative to, where it is relative.
    """

    number: int
    request: str
    job: JobSnapshot
    source: str | None = None
    source_folder: str | None = None

    def read(self) -> ImageRequest:
        """Return the request as it was given.

        Raises:
            InvalidInput: Another release wrote it, with fields that are unknown here.
        """
        request = read_request(self.request)
        if not isinstance(request, EditRequest) or not isinstance(request.input_image, LocalImage):
            return request
        image = attrs.evolve(request.input_image, path=self.source, folder=self.source_folder or "")
        return attrs.evolve(request, input_image=image)


def stored_job(row: tuple[Any, ...]) -> StoredJob:
    """Return the job of a row of :data:`COLUMNS`."""
    number, key, request, state, attempts, paid, task, result, origin, file, charge, problem, *times = row
    not_before, submitted_at, generated_at, finished_at, generation_s, *rest = times
    sha256, source, source_folder, echo = rest
    return StoredJob(
        number=number,
        request=request,
        source=None if source is None else os.fsdecode(source),
        source_folder=None if source_folder is None else os.fsdecode(source_folder),
        job=JobSnapshot(
            key=JobKey(key),
            state=JobState(state),
            attempts=attempts,
            paid_failures=paid,
            task_id=None if task is None else TaskId(task),
            result_url=result,
            origin_url=origin,
            file=file,
            charge=Charge(charge),
            problem=None if problem is None else Problem(**json.loads(problem)),
            not_before=not_before,
            submitted_at=submitted_at,
            generated_at=generated_at,
            finished_at=finished_at,
            generation_s=generation_s,
            sha256=sha256,
            echo=None if echo is None else Echo(echo),
        ),
    )
