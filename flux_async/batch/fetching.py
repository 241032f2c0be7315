"""Brings the result of one job to the sink, in as many tries as the run has patience for."""

from __future__ import annotations

import logging

from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.run_context import Events, RunContext, concerns_all
from flux_async.clock import sleep_and_read
from flux_async.errors import DownloadError, FluxError, Scope, shown
from flux_async.files.sink import Sink
from flux_async.job_state import Fetch, Problem, ResultLost, Saved
from flux_async.models import ImageResult
from flux_async.policy.downloads import NoDownload, expired

logger: logging.Logger = logging.getLogger("flux_async")


async def fetch(job: ActiveJob, run: RunContext, step: Fetch) -> Events | Leave:
    """Download a result; one that fails is tried again, with no slot held meanwhile.

    Raises:
        FluxError: It concerns every job, such as a full disk.
    """
    await _fetch_original(job, run)
    if run.options.sink is None:
        return (Saved(at=run.now()),)
    image = ImageResult(task_id=step.task_id, result_url=step.result_url, origin_url=job.state.origin_url)
    ended = await _try(job, run, image, run.options.sink)
    if not isinstance(ended, DownloadError):
        return ended
    return await _try_again(job, run, image, run.options.sink, ended)


async def _try_again(
    job: ActiveJob, run: RunContext, image: ImageResult, sink: Sink, error: DownloadError
) -> Events | Leave:
    retries = run.downloads
    failed = retries.begin(error)
    job.slot.release()
    with retries.count():
        while True:
            what = retries.after(failed, job.stored, error)
            if what is NoDownload.FOR_NOW:
                return Leave(failed.last_word(job.stored))
            if isinstance(what, NoDownload):
                job.last_error = expired(error)
                return (ResultLost(at=run.now(), problem=Problem.of(job.last_error)),)
            run.progress.notify()
            await sleep_and_read(run.session.clock, what)
            async with retries.slot(failed) as is_in_time:
                if not is_in_time:
                    return Leave(failed.last_word(job.stored))
                ended = await _try(job, run, image, sink)
            if not isinstance(ended, DownloadError):
                return ended
            error = ended


async def _try(
    job: ActiveJob, run: RunContext, image: ImageResult, sink: Sink
) -> Events | Leave | DownloadError:
    """Try one download; return the error where another try may be made."""
    try:
        name = await run.names.name(job.stored)
        saved = await run.client.save(image, sink, job=job.as_job(), name=name)
    except DownloadError as error:
        if error.scope is Scope.STOP:
            raise
        return error
    except FluxError as error:
        if concerns_all(error):
            raise
        return Leave(error)
    except Exception as error:  # noqa: BLE001 - a transport of the caller's own
        return DownloadError(f"The download failed: {shown(error)}.")
    return (Saved(at=run.now(), file=saved.reference, sha256=saved.sha256),)


async def _fetch_original(job: ActiveJob, run: RunContext) -> None:
    """Download the input as the vendor keeps it, for ten minutes; without it the result is as good."""
    url, folder = job.state.origin_url, run.options.originals
    if folder is None or url is None:
        return
    try:
        destination = await run.names.destination(folder, job.stored)
        await run.client.download(url, destination, match_suffix=True, retry=False)
    except FluxError as error:
        if error.scope is Scope.STOP:
            raise
        logger.warning("the original of job %s is not here: %s", job.state.key, error.message)
    except Exception as error:  # noqa: BLE001 - a transport of the caller's own
        logger.warning("the original of job %s is not here: %s", job.state.key, shown(error))
