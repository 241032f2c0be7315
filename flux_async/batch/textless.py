"""Checks originals for text before they are paid for; one without text is copied, not submitted.

Rules:

1. Only an image that was certainly not paid for is checked, once in a run, while it holds no slot for tasks
   in flight.
2. The copy is on disk, whole, before it is recorded. A run that is killed before checks again.
3. An image that cannot be checked counts as one with text: it is submitted, as it would be without this.
"""

from __future__ import annotations

import logging

import anyio.to_thread
import attrs

from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.check_stage import CheckStage
from flux_async.batch.originals import copy_image, original_of
from flux_async.batch.run_context import Events, RunContext, concerns_all
from flux_async.errors import FluxError, shown
from flux_async.files.sink import SavedResult
from flux_async.job_state import NoTextFound

logger: logging.Logger = logging.getLogger("flux_async")


async def skip_if_textless(job: ActiveJob, run: RunContext) -> Events | Leave | None:
    """Return the end of a job whose original has no text; None where it is to be submitted.

    Raises:
        FluxError: It concerns every job, such as a full disk.
    """
    job.checks = attrs.evolve(job.checks, skip_textless=False)
    if run.checks is None or not run.control.is_spending:
        return Leave()
    job.slots.give_back(run.slots.in_flight)
    copied = await _copy_if_textless(job, run, run.checks)
    if copied is None:
        return None
    copy, size = copied
    found = NoTextFound(
        at=run.now(),
        file=copy.reference,
        sha256=copy.sha256,
        verdict={"kind": "clean", "no_text": True, "original_size": size, "result_size": size},
        saved_credits=run.budget.guard.price(job.model),
    )
    return (found,)


async def _copy_if_textless(
    job: ActiveJob, run: RunContext, stage: CheckStage
) -> tuple[SavedResult, tuple[int, int]] | None:
    """Return the copy of an original that certainly has no text, and its size; else None."""
    try:
        with run.progress.checking("checking_text"):
            original = await original_of(job, run, stage, retry=False)
            if await stage.ready().has_text(original):
                return None
        name = await run.names.name(job.stored)
        return await anyio.to_thread.run_sync(copy_image, original, stage.directory, name)
    except Exception as error:  # of an image, of a worker process, of a transport
        if isinstance(error, FluxError) and concerns_all(error):
            raise
        run.progress.tally.not_checked_for_text += 1
        words = error.message if isinstance(error, FluxError) else f"{shown(error)}."
        logger.warning("job %s is submitted without a check for text: %s", job.state.key, words)
        return None
