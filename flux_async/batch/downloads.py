"""Downloads the result of one job into the sink, in as many tries as the run has patience for.

Rules:

1. A job whose download failed sleeps in its own coroutine. It holds no slot for tasks in flight and none of
   the session's download slots meanwhile.
2. Few downloads are retried at once, so that a file host that is down leaves room for the results of others.
3. A run retries while it has other work. Once it has none, a download ends ``patience_s`` seconds after its
   first failure.
"""

from __future__ import annotations

import copy
import logging

import attrs

from flux_async.api.models_table import RETENTION_S
from flux_async.api.stored_requests import read_image
from flux_async.batch import job_events
from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.result_files import result_name, vendor_name
from flux_async.batch.run_context import Events, RunContext, concerns_all
from flux_async.clock import sleep_and_read
from flux_async.errors import DownloadError, FluxError, Scope, shown
from flux_async.files.sink import Sink
from flux_async.images import without_query
from flux_async.job_state import NO_CHECKS, Fetch, JobSnapshot, Problem, ResultLost, Saved
from flux_async.journal.store import StoredJob
from flux_async.models import ImageResult
from flux_async.policy.downloads import (
    DownloadAgain,
    NoDownload,
    after_failed_download,
    expired,
    unfetched,
)
from flux_async.session import Session

logger: logging.Logger = logging.getLogger("flux_async")

MOST_BEYOND_PATIENCE = 1000
"""With more downloads waiting, a download ends after ``patience_s`` even while the run has other work."""
_LATE_S = 30.0


@attrs.define(kw_only=True, eq=False)
class FailedDownload:
    """One download that failed.

    Attributes:
        ends: When its patience ends, in monotonic seconds.
        error: How the last try ended.
        tries: Tries made.
    """

    ends: float
    error: DownloadError
    tries: int = 0

    def next_try(self, session: Session, job: JobSnapshot, left_s: float) -> DownloadAgain | NoDownload:
        """Decide on another try for a job, with ``left_s`` seconds of patience left."""
        submitted_at = job.submitted_at
        return after_failed_download(
            self.error,
            tries=self.tries,
            age_s=None if submitted_at is None else session.clock.wall() - submitted_at,
            kept_s=kept_s(job),
            left_s=left_s,
            draw=session.rng.random(),
        )

    def final_error(self, stored: StoredJob) -> FluxError:
        """Return the error with which the download ends for this run."""
        return _unfetched(self.error, stored, self.tries)


async def fetch(job: ActiveJob, run: RunContext, step: Fetch) -> Events | Leave:
    """Download a result; a failed download is retried, with no slot held meanwhile.

    Raises:
        FluxError: It concerns every job, such as a full disk.
    """
    await _fetch_original(job, run)
    if run.options.sink is None:
        return (Saved(at=run.now()),)
    image = ImageResult(
        task_id=step.task_id, result_url=step.result_url, origin_url=job.state.origin_url, api=step.api
    )
    ended = await _try(job, run, image, run.options.sink)
    if not isinstance(ended, DownloadError):
        return ended
    job.slots.give_back()
    run.progress.tally.retrying += 1
    try:
        with run.jobs.idle():
            return await _retry(job, run, image, run.options.sink, ended)
    finally:
        run.progress.tally.retrying -= 1


async def _retry(
    job: ActiveJob, run: RunContext, image: ImageResult, sink: Sink, error: DownloadError
) -> Events | Leave:
    clock = run.session.clock
    failed = FailedDownload(ends=clock.monotonic() + run.options.patience_s, error=error)
    while True:
        failed.tries += 1
        failed.error = copy.copy(error)  # without its traceback, which keeps much more alive
        left_s = failed.ends - clock.monotonic()
        if left_s <= 0 and _may_continue(run):
            left_s = run.options.patience_s
        what = failed.next_try(run.session, job.state, left_s)
        if what is NoDownload.FOR_NOW:
            return Leave(failed.final_error(job.stored))
        if isinstance(what, NoDownload):
            job.last_error = expired(error, kept_s(job.state))
            return (ResultLost(at=run.now(), problem=Problem.of(job.last_error)),)
        run.emit(job_events.download_retried(job.stored, error, what.delay_s, run.now()))
        run.progress.notify()
        next_at = clock.monotonic() + what.delay_s
        await sleep_and_read(clock, what.delay_s)
        async with run.retry_slots:
            is_late = clock.monotonic() > max(failed.ends, next_at + _LATE_S)
            if is_late and not _may_continue(run):
                return Leave(failed.final_error(job.stored))
            ended = await _try(job, run, image, sink, tries=failed.tries + 1)
        if not isinstance(ended, DownloadError):
            return ended
        error = ended


def _may_continue(run: RunContext) -> bool:
    """Whether a download may be retried beyond its patience."""
    return run.jobs.are_busy and run.progress.tally.retrying <= MOST_BEYOND_PATIENCE


async def _try(
    job: ActiveJob, run: RunContext, image: ImageResult, sink: Sink, *, tries: int = 1
) -> Events | Leave | DownloadError:
    """Try one download; return the error if another try may be made. ``tries`` counts this one."""
    try:
        name = result_name(await run.names.name(job.stored), job.state)
        if job.checks.preserve:
            name = vendor_name(name)
        saved = await run.client.save(image, sink, job=job.stored.as_job(), name=name)
    except DownloadError as error:
        if error.scope is Scope.STOP:
            raise
        return error
    except FluxError as error:
        if concerns_all(error):
            raise
        return Leave(_unfetched(error, job.stored, tries))
    except Exception as error:  # noqa: BLE001 - a transport of the caller's own
        return DownloadError(f"The download failed: {shown(error)}.")
    return (Saved(at=run.now(), file=saved.reference, sha256=saved.sha256),)


def _unfetched(error: FluxError, stored: StoredJob, tries: int) -> FluxError:
    job = stored.job
    return unfetched(
        error,
        name_of(stored),
        tries=tries,
        submitted_at=job.submitted_at,
        kept_s=kept_s(job),
        task_id=job.task_id,
    )


def kept_s(job: JobSnapshot) -> float:
    """Return the seconds for which the vendor keeps the result of a job's task."""
    return RETENTION_S[job.api or "kontext"]


async def _fetch_original(job: ActiveJob, run: RunContext) -> None:
    """Download the input, which the vendor keeps for ten minutes. A failure does not concern the result.

    Not in a run with checks: they download the input from its own address, and read a file where it is.
    """
    url, folder = job.state.origin_url, run.options.originals
    has_checks = NO_CHECKS not in {job.checks, run.options.checks}
    if folder is None or url is None or has_checks:
        return
    try:
        name = await run.names.name(job.stored)
        await run.client.download(url, folder / name, match_suffix=True, retry=False)
    except FluxError as error:
        if error.scope is Scope.STOP:
            raise
        logger.warning("the original of job %s was not downloaded: %s", job.state.key, error.message)
    except Exception as error:  # noqa: BLE001 - a transport of the caller's own
        logger.warning("the original of job %s was not downloaded: %s", job.state.key, shown(error))


def name_of(stored: StoredJob) -> str:
    """Return what messages call the image of a job: the last part of its address or path, else its key."""
    image = without_query(stored.source or read_image(stored.request))
    return image.rstrip("/").rpartition("/")[2] or stored.job.key
