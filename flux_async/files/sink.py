"""The destination of results: the protocol :class:`Sink`, and the local folder as its first."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import attrs

from flux_async.errors import DownloadError, FluxError, shown
from flux_async.files.image_writer import ImageStream
from flux_async.models import Job
from flux_async.policy import check_function

_ERRORS_IN_CODE = (
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    TypeError,
)
"""Exceptions that come again at every try. Others (``OSError``, ``KeyError``) may come from an answer."""


class Sink(Protocol):
    """A destination for results: a folder, an archive, an object store."""

    async def save(self, job: Job, stream: ImageStream) -> str:
        """Save the image of a job and return a reference to it, which the journal keeps.

        The image is complete and checked. Several images are saved concurrently on one event loop. After a
        crash a saved image may be saved again, so a second one of the same job must replace the first.

        After an exception the result stays paid, and the image is downloaded and saved again later. An error
        in the code of the sink (``AttributeError``, ``TypeError``, ``NameError``, ``ImportError``,
        ``AssertionError``, ``NotImplementedError``), a ``DownloadError(…, retryable=False)`` and any other
        :class:`FluxError` end the try of this run at once; the next run saves the image.
        """
        ...


@attrs.frozen
class SavedResult:
    """A result that a sink has saved.

    Attributes:
        reference: The value that the sink returned.
        sha256: Digest of the image's bytes, as 64 hex digits.
    """

    reference: str
    sha256: str


@attrs.frozen
class FolderSink:
    """Saves images in a local folder; the reference is the name of the file in it.

    Attributes:
        folder: The folder; it is created if missing, and existing files are replaced.
    """

    folder: Path = attrs.field(converter=Path)

    async def save(self, job: Job, stream: ImageStream) -> str:  # noqa: ARG002 - the protocol's
        """Rename the image into the folder."""
        await stream.move_to(self.folder / stream.name)
        return stream.name


def path_in(sink: Sink, name: str) -> Path | None:
    """Return the path of an image in a folder, without its suffix; None for any other sink."""
    return sink.folder / name if isinstance(sink, FolderSink) else None


def check_sink(sink: object) -> None:
    """Refuse a destination that cannot save anything.

    Raises:
        InvalidInput: It has no ``async def save(job, stream)``.
    """
    words = f"sink must be an object with `async def save(self, job, stream) -> str`, not {shown(sink)}"
    advice = "For a folder give directory=."
    check_function(getattr(sink, "save", None), words, takes=2, is_async=True, advice=advice)


async def save_in(sink: Sink, job: Job, stream: ImageStream) -> SavedResult:
    """Save an image in a sink.

    Raises:
        DownloadError: The sink failed, or returned no reference. It is not retryable if only a change of the
            sink's code can help.
    """
    kind = type(sink).__name__
    try:
        reference: object = await sink.save(job, stream)
    except FluxError:
        raise
    except Exception as error:  # noqa: BLE001 - a sink of the caller's own
        is_in_code = isinstance(error, _ERRORS_IN_CODE)
        raise DownloadError(
            f"{kind} could not save {stream.name}: {shown(error)}.",
            retryable=not is_in_code,
            advice=f"Correct {kind}.save." if is_in_code else None,
        ) from None
    if not isinstance(reference, str):
        raise DownloadError(
            f"{kind} returned no reference for {stream.name}.",
            retryable=False,
            advice=f"Return a str from {kind}.save.",
        )
    return SavedResult(reference, stream.sha256)
