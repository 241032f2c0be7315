"""Writes one log line per event of a job of a batch, on the logger ``flux_async.jobs``.

INFO for submits, retries and settlement, WARNING where money may have been spent without a known task. Lines
name the image without the query of its address, and never the key.
"""

from __future__ import annotations

import logging
import re

from flux_async.api.stored_requests import read_image
from flux_async.job_state import Event, JobSnapshot, JobState
from flux_async.journal.store import StoredJob
from flux_async.models import without_query
from flux_async.session import log

logger: logging.Logger = logging.getLogger("flux_async.jobs")

_SHOWN_OF_KEY = 12


def log_event(stored: StoredJob, job: JobSnapshot, event: Event) -> None:
    """Write the line of one event; ``job`` is the job after it."""
    level = logging.WARNING if job.state is JobState.IN_DOUBT else logging.INFO
    if not logger.isEnabledFor(level):
        return
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(event).__name__).lower()
    image = without_query(stored.source or read_image(stored.request))
    key = stored.job.key[:_SHOWN_OF_KEY]
    log(level, "job %s %s: %s, now %s%s", key, image, words, job.state, _details(job), to=logger)


def _details(job: JobSnapshot) -> str:
    details = [f"attempt {job.attempts}", f"charge {job.charge}"]
    if job.task_id is not None:
        details.append(f"task {job.task_id}")
    if job.file is not None:
        details.append(f"file {job.file}")
    if job.problem is not None:
        code = "" if job.problem.code is None else f" {job.problem.code}"
        details.append(f"{job.problem.type}{code}")
    return f" ({', '.join(details)})"
