"""Composes saved results with their originals, and verifies them, in worker processes.

Rules:

1. A check begins when the image is saved and recorded: nothing here can pay for anything.
2. What a check made is on disk, whole, and recorded before the next one begins. A run that is killed leaves
   the missing checks to the next run, which makes them without a download.
3. Of two results of an image the better one is chosen, once both are verified; all files are kept.
4. What goes wrong with one image is recorded with it, and the next run tries again. Only a disk that refuses
   files ends a run.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import anyio
import anyio.to_thread
import attrs

from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.check_stage import CheckStage
from flux_async.batch.originals import original_of
from flux_async.batch.result_files import composed_name, keep_vendors, promote, unlink
from flux_async.batch.run_context import RunContext, concerns_all
from flux_async.errors import FluxError, shown
from flux_async.files.image_writer import copy_to_part, disk_error, finish_part, part_beside, with_suffix
from flux_async.job_state import (
    NO_CHECKS,
    Compose,
    Composed,
    NotChecked,
    ResultChosen,
    Verified,
    Verify,
    earlier_is_better,
    verdict_of,
)


async def check(step: Compose | Verify, job: ActiveJob, run: RunContext) -> Leave | None:
    """Make one check of a saved image, and record what it found, or why it could not be made.

    Raises:
        FluxError: It concerns every job, such as a full disk.
    """
    if run.checks is None:
        return Leave()
    job.slots.give_back(run.slots.starting, run.slots.in_flight)  # no task is in flight any more
    await job.slots.take(run.slots.active)
    event: Composed | Verified | NotChecked
    try:
        if isinstance(step, Compose):
            with run.progress.checking("preserving"):
                event = await _compose(job, run, run.checks)
        else:
            with run.progress.checking("verifying"):
                event = await _verify(job, run, run.checks)
    except Exception as error:  # of an image, of a worker process, of a transport
        if isinstance(error, FluxError) and concerns_all(error):
            raise
        job.checks = NO_CHECKS  # this run does not try again
        words = error.message if isinstance(error, FluxError) else f"{shown(error)}."
        event = NotChecked(at=run.now(), problem=words)
    before = job.state.file
    await run.record(job, event)
    if isinstance(event, Composed) and before not in {None, event.file, event.vendor_file}:
        # The vendor's image of a run without preserve, which is in vendor/ by now.
        await anyio.to_thread.run_sync(unlink, run.checks.directory / str(before))
    return None


async def choose(job: ActiveJob, run: RunContext) -> Leave | None:
    """Choose the better one of a job's two results, and give it the place of the result.

    Raises:
        FluxError: It concerns every job, such as a full disk.
    """
    if run.checks is None:
        return Leave()
    if earlier_is_better(job.state):
        await run.record(job, ResultChosen(at=run.now(), keeps_earlier=True, loses=verdict_of(job.state)))
        return None
    directory = run.checks.directory
    try:
        files = await anyio.to_thread.run_sync(promote, directory, job.state)
    except FluxError as error:
        if concerns_all(error):
            raise
        return Leave(error)
    chosen = ResultChosen(at=run.now(), keeps_earlier=False, file=files.file, vendor_file=files.vendor_file)
    await run.record(job, chosen)
    for file in files.leftover:
        await anyio.to_thread.run_sync(unlink, directory / file)
    return None


async def _verify(job: ActiveJob, run: RunContext, stage: CheckStage) -> Verified:
    original = await original_of(job, run, stage)
    found = await stage.ready().verify(original, stage.directory / str(job.state.file))
    return Verified(at=run.now(), verdict=attrs.asdict(found))


async def _compose(job: ActiveJob, run: RunContext, stage: CheckStage) -> Composed:
    original = await original_of(job, run, stage)
    file = str(job.state.file)
    vendor_file = await anyio.to_thread.run_sync(keep_vendors, stage.directory, file, job.state.sha256)
    vendor, name = stage.directory / vendor_file, composed_name(vendor_file)
    part = await anyio.to_thread.run_sync(part_beside, stage.directory / name)
    try:
        made = await stage.ready().preserve_file(original, vendor, part, format=stage.format)
        if made.reason is None:
            name = str(with_suffix(PurePosixPath(name), f".{made.format}"))
        else:
            await anyio.to_thread.run_sync(unlink, part)
            part = await anyio.to_thread.run_sync(copy_to_part, vendor, stage.directory / name)
        await anyio.to_thread.run_sync(finish_part, part, stage.directory / name)
    except OSError as error:  # the disk of the worker process
        raise disk_error(error, stage.directory / name) from None
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(unlink, part)
    return Composed(
        at=run.now(),
        file=name,
        sha256=made.sha256,
        vendor_file=vendor_file,
        reason=made.reason,
        replaced=made.replaced,
        outlines=made.outlines,
    )
