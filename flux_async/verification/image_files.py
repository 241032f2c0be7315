"""Reads the image files that ``verify`` and ``preserve`` are called with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from flux_async.errors import InvalidInput, shown

ImageFile: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
"""Bytes of an image file, or its path."""

MAX_PIXELS = 40_000_000
_BYTES = (bytes, bytearray, memoryview)


def read_file(image: ImageFile, what: str) -> bytes:
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
