"""What all jobs of one run share, and the one place where an event of a job is recorded."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path
from typing import TypeAlias

import attrs

from flux_async.api.stored_requests import read_image
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.active_job import ActiveJob, ActiveJobs, Slots
from flux_async.batch.download_retries import DownloadRetries
from flux_async.batch.file_names import FileNames
from flux_async.batch.inputs import InputPlace
from flux_async.batch.options import BatchClient
from flux_async.batch.progress import ProgressReporter
from flux_async.batch.run_control import Budget, RunControl
from flux_async.errors import ConfigurationError, FluxError, JobConflictError, Scope
from flux_async.files.sink import Sink
from flux_async.job_state import EchoContradicted, Event, JobSnapshot, JobState, TaskFound, apply
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Echo, TaskId, without_query
from flux_async.policy.retry import RetryPolicy
from flux_async.session import Call, Session
from flux_async.submitter import log

Events: TypeAlias = tuple[Event, ...]
"""What one step brought about: one event, or two that are recorded in one commit; or nothing."""


@attrs.frozen(kw_only=True)
class RunOptions:
    """The options of one run.

    Attributes:
        sink: Where results go; None leaves them at the vendor.
        directory: The folder that results go to, where ``sink`` is one.
        originals: Where the vendor's copies of the inputs go; None leaves them there.
        timeout_s: Seconds a task may take from its acceptance.
        retry: When a submit is made again, and how often a job may be paid for.
        patience_s: Seconds the run waits for a service that is away before it halts.
        callbacks: Where the vendor reports ends, or None where it is not asked to.
        resubmits: Whether submits in doubt may be made again once no callback can come any more.
        via_upload: Whether images that have an address go to the upload host first, too.
    """

    sink: Sink | None
    directory: Path | None
    originals: Path | None
    timeout_s: float
    retry: RetryPolicy
    patience_s: float
    callbacks: CallbackEndpoint | None
    resubmits: bool
    via_upload: bool

    @property
    def doubt_wait_s(self) -> float:
        """Seconds after a submit for which its callback may still name its task."""
        return 0.0 if self.callbacks is None else self.callbacks.wait_for_doubts_s(self.timeout_s)

    @property
    def fetches(self) -> bool:
        """Whether anything is downloaded."""
        return self.sink is not None or self.originals is not None

    @property
    def place(self) -> str | None:
        """Where files go, for messages; None where none are saved."""
        places = (self.directory, self.sink and type(self.sink).__name__, self.originals)
        return next((str(place) for place in places if place is not None), None)


@attrs.frozen(kw_only=True)
class RunContext:
    """What all jobs of one run share.

    Attributes:
        client: Connections, rate limiter and clock of one API key, and its poller.
        call: The run as a call on the session.
        journal: The durable record.
        options: What the caller asked for.
        control: Whether the run still submits and waits.
        budget: The credits it may spend.
        progress: Counts events for observers.
        jobs: The jobs that the run works on.
        slots: Bounds them.
        names: Names the files of results.
        downloads: Spaces the downloads that are tried again.
    """

    client: BatchClient
    call: Call
    journal: Journal
    options: RunOptions
    control: RunControl
    budget: Budget
    progress: ProgressReporter
    jobs: ActiveJobs
    slots: Slots
    names: FileNames
    downloads: DownloadRetries

    @property
    def session(self) -> Session:
        """The session of the API key."""
        return self.client.session

    def now(self) -> float:
        """Return seconds since the epoch, for events."""
        return self.session.clock.wall()


async def record(job: ActiveJob, run: RunContext, event: Event, then: Event | None = None) -> None:
    """Apply one event, or two in one commit; return when they are on disk and counted.

    Raises:
        JournalError: They are not on disk; the job stays as it was.
    """
    before, after = job.state, apply(job.state, event)
    last = after if then is None else apply(after, then)
    follows = None if then is None else (last, then)
    await run.journal.record(job.number, after, event, before=before, then=follows)
    job.stored = attrs.evolve(job.stored, job=last)
    moves = [(before.state, after, event)]
    if then is not None:
        moves.append((after.state, last, then))
    for earlier, snapshot, happened in moves:
        run.progress.moved(earlier, snapshot, happened, partial(run.budget.price, job.stored))
        log_event(job.stored, snapshot, happened)
    if isinstance(event, EchoContradicted) and event.belongs_to is not None:
        run.jobs.wake(event.belongs_to)  # the journal offers the task to that job


async def adopt(job: ActiveJob, run: RunContext, task_id: TaskId) -> bool:
    """Record the task that a callback, or another job's poll, named; False where another job has it."""
    # The record of an offered task may show this job's image alone: it is compared once more.
    is_offer = task_id in await run.journal.offers_to(job.number)
    echo = None if is_offer else Echo.CONFIRMED
    try:
        await record(job, run, TaskFound(at=run.now(), task_id=task_id, echo=echo))
    except JobConflictError:
        return False
    return True


def input_of(job: ActiveJob, run: RunContext) -> InputPlace:
    """Return where the vendor is told to fetch a job's image.

    Raises:
        InvalidInput: Another release wrote the request.
    """
    if job.input is None:
        request = job.stored.read()
        job.input = InputPlace(client=run.client, request=request, via_upload=run.options.via_upload)
    return job.input


def concerns_all(error: FluxError) -> bool:
    """Whether an error ends the run, and not only the work on one job."""
    return error.scope is Scope.STOP or isinstance(error, ConfigurationError)


def leave_task(job: ActiveJob, run: RunContext) -> None:
    """Keep the id of a paid task whose outcome nobody will receive, where no journal outlives the process."""
    paid = job.state.task_id is not None and job.state.state is not JobState.FAILED
    if paid and not run.journal.is_durable:
        run.session.keep_unclaimed(job.as_job().request, TaskId(job.state.task_id or ""))


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
