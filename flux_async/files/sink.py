"""Where the results of a batch go: a folder of this machine, or whatever fulfils :class:`Sink`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import attrs

from flux_async.errors import DownloadError, FluxError, shown
from flux_async.files.image_writer import ImageStream
from flux_async.models import Job


class Sink(Protocol):
    """A destination for results: a folder, an archive, an object store."""

    async def save(self, job: Job, stream: ImageStream) -> str:
        """Save the image of a job and return a reference to it, which the journal keeps.

        The image has come whole and was checked. Several images are saved at once, from one event loop.
        Whatever this raises is tried again later, as a download that failed: the result stays paid. After a
        crash an image that was saved may be saved again, so a second one of the same job replaces the first.
        """
        ...


@attrs.frozen
class SavedResult:
    """A result that a sink has.

    Attributes:
        reference: What the sink returned.
        sha256: Digest of the image's bytes, as 64 hex digits.
    """

    reference: str
    sha256: str


@attrs.frozen
class FolderSink:
    """Saves images in a folder of this machine; the reference is the name of the file in it.

    Attributes:
        folder: The folder; it is made when it is missing, and existing files are replaced.
    """

    folder: Path = attrs.field(converter=Path)

    async def save(self, job: Job, stream: ImageStream) -> str:  # noqa: ARG002 - the protocol's
        """Give the image its name in the folder, in one step."""
        await stream.move_to(self.folder / stream.name)
        return stream.name


def path_in(sink: Sink, name: str) -> Path | None:
    """Return where a sink that is a folder puts an image, without its ending; None for any other sink."""
    return sink.folder / name if isinstance(sink, FolderSink) else None


async def save_in(sink: Sink, job: Job, stream: ImageStream) -> SavedResult:
    """Save an image in a sink.

    Raises:
        DownloadError: The sink failed, or returned no reference.
    """
    kind = type(sink).__name__
    try:
        reference: object = await sink.save(job, stream)
    except FluxError:
        raise
    except Exception as error:  # noqa: BLE001 - a sink of the caller's own
        raise DownloadError(f"{kind} could not save {stream.name}: {shown(error)}.") from None
    if not isinstance(reference, str):
        raise DownloadError(f"{kind} returned no reference for {stream.name}.", retryable=False)
    return SavedResult(reference, stream.sha256)
