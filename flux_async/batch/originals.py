"""The originals of a run: files of the user, and downloads of addresses, each made once."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import anyio.to_thread

from flux_async.batch.active_job import ActiveJob
from flux_async.batch.check_stage import CheckStage
from flux_async.batch.run_context import RunContext
from flux_async.errors import InvalidInput
from flux_async.files.image_writer import find_image, sha256_of
from flux_async.images import LocalImage
from flux_async.models import EditRequest


async def original_of(job: ActiveJob, run: RunContext, stage: CheckStage) -> Path:
    """Return the file of the original: the user's own, or a download of its address, made once.

    Raises:
        InvalidInput: There is none, or it changed since it was submitted.
        DownloadError: It cannot be downloaded.
    """
    request = job.stored.read()
    image = request.input_image if isinstance(request, EditRequest) else None
    if isinstance(image, LocalImage):
        return await anyio.to_thread.run_sync(unchanged, image)
    name = PurePosixPath(await run.names.name(job.stored))
    here = await anyio.to_thread.run_sync(find_image, stage.originals, name)
    if here is None:
        async with run.retry_slots:  # results come first
            saved = await run.client.download(str(image), stage.originals / name, match_suffix=True)
        here = saved.path
    return here


def unchanged(image: LocalImage) -> Path:
    """Return the path of a file whose content is what was submitted.

    Raises:
        InvalidInput: It cannot be read, or has changed.
    """
    path = image.location
    digest = None if path is None else sha256_of(path)
    if path is None or digest is None:
        raise InvalidInput(f"The original {image} cannot be read.")
    if image.sha256 is not None and digest != image.sha256:
        raise InvalidInput(f"The original {image} has changed since it was submitted.")
    return path
