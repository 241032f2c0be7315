"""``verify``: whether the text is gone from a result, and whether everything else is as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flux_async.errors import MissingExtra
from flux_async.verification.image_files import MAX_PIXELS, ImageFile, read_file

if TYPE_CHECKING:
    from flux_async.verification.verdict import Verdict


def verify(original: ImageFile, result: ImageFile, *, max_pixels: int = MAX_PIXELS) -> Verdict:
    """Return whether the text of an image is gone from a result, and the rest unchanged.

    The result is aligned first: another size, a shift of a few percent and other colours are no damage. Of an
    animation the first frame is compared.

    Blocks for about a second of CPU time; :class:`ImageChecks` does the same without blocking an event loop.

    Args:
        original: The image that was submitted: bytes of a file, or its path.
        result: The vendor's image of it without text: bytes of a file, or its path.
        max_pixels: The most pixels that either image may have; its header is checked before it is decoded.

    Raises:
        InvalidInput: A file is missing, damaged, too large or no image.
        MissingExtra: The extra ``verify`` is not installed.
    """
    files = read_file(original, "original"), read_file(result, "result")
    try:
        from flux_async.verification.comparison import compare_files  # noqa: PLC0415 - loads numpy and OpenCV

        return compare_files(*files, max_pixels=max_pixels)
    except ImportError as missing:
        raise _missing("verify", missing) from missing


def has_text(image: ImageFile, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Return whether text is found in an image, before it is paid to remove it.

    Takes a fifth of a second of CPU time where text is found, and about a second where there is none: then
    small and faint text is looked for as well.

    Args:
        image: Bytes of a file, or its path.
        max_pixels: The most pixels that it may have; its header is checked before it is decoded.

    Raises:
        InvalidInput: The file is missing, damaged, too large or no image.
        MissingExtra: The extra ``verify`` is not installed.
    """
    file = read_file(image, "original")
    try:
        from flux_async.verification.comparison import file_has_text  # noqa: PLC0415 - loads numpy and OpenCV

        return file_has_text(file, max_pixels=max_pixels)
    except ImportError as missing:
        raise _missing("has_text", missing) from missing


def _missing(function: str, missing: ImportError) -> MissingExtra:
    return MissingExtra.for_extra(f"{function} ({missing.name or missing} not installed)", "verify")
