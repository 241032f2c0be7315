"""``preserve``: the original image, in which only the areas of its text come from the vendor's result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from flux_async.errors import InvalidInput, MissingExtra, shown
from flux_async.verification.image_files import MAX_PIXELS, ImageFile, read_file

if TYPE_CHECKING:
    from flux_async.verification.report import Preserved

PreserveFormat: TypeAlias = Literal["png", "webp", "tiff", "jpeg"]
"""Formats in which a composed image is written. All but ``jpeg`` keep every pixel."""

FORMATS: tuple[PreserveFormat, ...] = ("png", "webp", "tiff", "jpeg")


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
    bytes on the same machine. Memory is about 1 GB for an original of 12 megapixels.

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
    if format not in FORMATS:
        raise InvalidInput(
            f"{shown(format)} is no format for a composed image.",
            advice=f"Choose one of {', '.join(FORMATS)}.",
        )
    files = read_file(original, "original"), read_file(result, "result")
    try:
        from flux_async.verification.composition import compose_files  # noqa: PLC0415 - loads numpy and OpenCV

        return compose_files(*files, format=format, max_pixels=max_pixels)
    except ImportError as missing:
        name = missing.name or "text models"
        raise MissingExtra.for_extra(f"preserve ({name} not installed)", "verify") from missing
