"""All outcomes of a list, in its order."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import Unpack

from flux_async.batch.client_protocol import BatchClient
from flux_async.batch.input_files import with_file_read
from flux_async.batch.inputs import Input, as_job, check_images, each
from flux_async.batch.options import BatchOptions
from flux_async.batch.runner import BatchRun, run_batch
from flux_async.errors import FluxError, InvalidInput, Scope
from flux_async.job_state import FINAL
from flux_async.models import Failed, Job, JobKey, Outcome


async def gather(
    client: BatchClient, images: Iterable[Input] | AsyncIterable[Input], **options: Unpack[BatchOptions]
) -> list[Outcome]:
    """Run a batch to its end and put its outcomes in order; what an earlier run finished is told again.

    A halt (key, credits …) raises nothing here, so that no outcome is lost: what it left undone is a
    :class:`Failed` with the error that halted it.
    """
    check_images(images)
    jobs = [await _job_or_failure(image) async for image in each(images)]
    wanted = [job for job in jobs if isinstance(job, Job)]
    found: dict[JobKey, Outcome] = {}
    halted: FluxError | None = None
    async with run_batch(client, wanted, **options) as batch:
        try:
            async for outcome in batch:
                if outcome.job is not None:
                    found[outcome.job.key] = outcome
        except FluxError as error:
            if error.scope is not Scope.STOP:
                raise
            halted = error
        for job in wanted:
            if job.key not in found:
                found[job.key] = await _missing(batch, job, halted)
    return [found[job.key] if isinstance(job, Job) else job for job in jobs]


async def _missing(batch: BatchRun, job: Job, halted: FluxError | None) -> Outcome:
    stored = await batch.journal.job(job.key)
    if halted is not None and (stored is None or stored.job.state not in FINAL):
        return Failed(job=job, error=halted)
    return await batch.earlier_outcome(job)


async def _job_or_failure(image: Input) -> Job | Failed:
    try:
        return as_job(await with_file_read(image))
    except InvalidInput as error:
        return Failed(job=None, error=error)
