"""``preserve``: the original image, in which only the areas of its text come from the vendor's result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from flux_async.errors import InvalidInput, MissingExtra, shown

if TYPE_CHECKING:
    from flux_async.verification.report import Preserved

ImageFile: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
"""Bytes of an image file, or its path."""

PreserveFormat: TypeAlias = Literal["png", "webp", "tiff", "jpeg"]
"""Formats in which a composed image is written. All but ``jpeg`` keep every pixel."""

MAX_PIXELS = 40_000_000
_FORMATS = ("png", "webp", "tiff", "jpeg")
_BYTES = (bytes, bytearray, memoryview)


def preserve(
    original: ImageFile,
    result: ImageFile,
    *,
    format: PreserveFormat = "png",  # noqa: A002 - the word of Pillow and of OutputFormat
    max_pixels: int = MAX_PIXELS,
) -> Preserved:
    """Return the original with only its text areas taken from the vendor's result.

    The composed image has the original's size, colour mode, ICC profile and EXIF data. Outside the text areas
    (``report.hole``) every pixel is the original's. The result is aligned and matched in colour first. Where
    that is not certain enough, the vendor's image is returned unchanged, with the reason in ``report``.

    Blocks for some seconds of CPU time; call it in a worker process or thread. The same input gives the same
    bytes on the same machine. Memory is about 400 MB, plus 30 MB for each megapixel of the original.

    Args:
        original: The image that was submitted: bytes of a file, or its path.
        result: The vendor's image of it without text: bytes of a file, or its path.
        format: Format of a composed image. ``"jpeg"`` changes every pixel a little, also outside the text.
            Where a format cannot hold the original's mode, PNG is written, and TIFF for CMYK.
        max_pixels: The most pixels that either image may have; its header is checked before it is decoded.

    Raises:
        InvalidInput: A file is missing, damaged, too large or no image, or ``format`` is unknown.
        MissingExtra: The extra ``verify`` is not installed.
    """
    if format not in _FORMATS:
        raise InvalidInput(
            f"{shown(format)} is no format for a composed image.",
            advice=f"Choose one of {', '.join(_FORMATS)}.",
        )
    files = _read(original, "original"), _read(result, "result")
    try:
        from flux_async.verification.composition import compose_files  # noqa: PLC0415 - loads numpy and OpenCV

        return compose_files(*files, format=format, max_pixels=max_pixels)
    except ImportError as missing:
        name = missing.name or "text models"
        raise MissingExtra.for_extra(f"preserve ({name} not installed)", "verify") from missing


def _read(image: ImageFile, what: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        InvalidInput: It cannot be read, or ``image`` is neither bytes nor a path.
    """
    if isinstance(image, _BYTES):
        return bytes(image)
    if not isinstance(image, str | os.PathLike):
        raise InvalidInput(
            f"The {what} image is {shown(image)}, neither bytes nor a path.",
            advice="Give the bytes of an image file, or its path.",
        )
    try:
        return Path(image).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"The {what} image {shown(os.fspath(image))} cannot be read: {error}.", advice="Check the path."
        ) from error
