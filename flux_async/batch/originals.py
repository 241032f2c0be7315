"""The originals of a run: files of the user, and downloads of addresses, each made once."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import anyio.to_thread

from flux_async.batch.active_job import ActiveJob
from flux_async.batch.check_stage import CheckStage
from flux_async.batch.options import BatchClient
from flux_async.batch.run_context import RunContext
from flux_async.errors import FluxError, InvalidInput, shown
from flux_async.files.image_header import ImageReader
from flux_async.files.image_writer import copy_to_part, find_image, finish_part, sha256_of, with_suffix
from flux_async.files.sink import SavedResult
from flux_async.images import LocalImage
from flux_async.journal.store import StoredJob
from flux_async.models import EditRequest

_CHUNK = 1 << 20


async def original_of(job: ActiveJob, run: RunContext, stage: CheckStage, *, retry: bool = True) -> Path:
    """Return the file of the original: the user's own, or a download of its address, made once.

    Without ``retry`` a download has one try.

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
            saved = await run.client.download(
                str(image), stage.originals / name, match_suffix=True, retry=retry
            )
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


# --- copies -----------------------------------------------------------------------------------------------


def copy_image(source: Path, folder: Path, name: str) -> tuple[SavedResult, tuple[int, int]]:
    """Copy an original into the folder of the results, with the ending that its content has.

    Returns:
        The copy by its name there, and its width and height in pixels.

    Raises:
        InvalidInput: It is no whole image, or cannot be read.
        DownloadError: The disk refuses the copy.
    """
    reader, digest = ImageReader(), hashlib.sha256()
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                reader.feed(chunk)
                digest.update(chunk)
        reader.finish()
    except (OSError, FluxError) as error:
        raise InvalidInput(f"The original {source} cannot be copied: {shown(error)}.") from None
    if reader.suffix is None or reader.size is None:
        raise InvalidInput(f"The original {source} is no image.")
    target = str(with_suffix(PurePosixPath(name), reader.suffix))
    finish_part(copy_to_part(source, folder / target), folder / target)
    return SavedResult(target, digest.hexdigest()), reader.size


async def copy_again(client: BatchClient, stored: StoredJob, folder: Path, name: str) -> SavedResult:
    """Copy the original of a job once more, whose copy is gone; nothing is paid.

    Raises:
        InvalidInput: There is none, or it changed since.
        DownloadError: It cannot be downloaded, or the disk refuses the copy.
    """
    request = stored.read()
    image = request.input_image if isinstance(request, EditRequest) else ""
    if isinstance(image, LocalImage):
        copied, _ = await anyio.to_thread.run_sync(lambda: copy_image(unchanged(image), folder, name))
        return copied
    saved = await client.download(image, folder / name, match_suffix=True)
    return SavedResult(saved.path.relative_to(folder).as_posix(), saved.sha256)
