"""``preserve_file``: ``preserve`` for files, whose result is written where it was made and not sent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import attrs

from flux_async.verification.image_files import ImageFile
from flux_async.verification.preserve import PreserveFormat, preserve


@attrs.frozen(kw_only=True)
class PreservedFile:
    """What became of one image.

    Attributes:
        format: Format of the written image, or of the vendor's where nothing was written.
        sha256: Digest of that image, as 64 hex digits.
        reason: Why nothing was written, in words; None if the image was composed.
        replaced: Share of the original's pixels that were replaced.
        outlines: Polygons around them, as in ``PreserveReport``.
    """

    format: str
    sha256: str
    reason: str | None = None
    replaced: float | None = None
    outlines: tuple[tuple[int, ...], ...] | None = None


def preserve_file(
    original: ImageFile,
    result: ImageFile,
    destination: str | os.PathLike[str],
    *,
    format: PreserveFormat = "png",  # noqa: A002 - as in preserve
) -> PreservedFile:
    """Write the composed image to ``destination`` and sync it; nothing is written where it is refused.

    Raises:
        InvalidInput: A file is missing, damaged, too large or no image.
        OSError: The disk refuses the image.
    """
    made = preserve(original, result, format=format)
    if made.report.refusal is None:
        with Path(destination).open("wb") as file:
            file.write(made.image)
            file.flush()
            os.fsync(file.fileno())
    return PreservedFile(
        format=made.format,
        sha256=hashlib.sha256(made.image).hexdigest(),
        reason=made.report.reason or None,
        replaced=made.report.replaced,
        outlines=made.report.outlines,
    )
