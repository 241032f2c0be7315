"""Submits an image again whose verdict is no good, until it is good or its attempts are used up.

Rules:

1. Only an image that an input of this run names is submitted again, and only while the run may spend.
2. Until the intent of the next submit is recorded, the job is done with the image that it has. If nothing is
   submitted, because the budget is used up or the model does not take the request, that is its outcome.
3. The journal counts the attempts: the same call resumes, and never makes more of them in all.
"""

from __future__ import annotations

import logging

import attrs

from flux_async.api.stored_requests import model_patch
from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.run_context import RunContext
from flux_async.batch.submitting import submit
from flux_async.errors import InvalidInput
from flux_async.job_state import JobState, RetryGranted, SubmitAgain

logger: logging.Logger = logging.getLogger("flux_async")


async def submit_again(step: SubmitAgain, job: ActiveJob, run: RunContext) -> None:
    """Submit a job again for a better image; if that cannot be done, this run leaves it as it is.

    Raises:
        FluxError: It concerns every job, such as a refused key.
    """
    job.slots.give_back(run.slots.starting, run.slots.in_flight)
    if not job.is_given:
        job.slots.give_back()  # an input that is still to be read may need them
    is_given = await run.jobs.until_given(job, run.session.clock)
    refused: Leave | None = Leave()
    if is_given and run.control.is_spending:
        refused = await _submit(step, job, run)
    if refused is not None and job.state.state is JobState.DONE:
        job.planned, job.checks = None, attrs.evolve(job.checks, until_clean=1)
        if refused.error is not None:
            words = "job %s is not submitted again for a better image: %s"
            logger.warning(words, job.state.key, refused.error.message)


async def _submit(step: SubmitAgain, job: ActiveJob, run: RunContext) -> Leave | None:
    try:
        patch = None if step.model is None else model_patch(job.stored.request, step.model)
        job.plan(RetryGranted(at=run.now(), other_model=patch))
    except InvalidInput as error:
        return Leave(error)
    return await submit(job, run, 0.0)
