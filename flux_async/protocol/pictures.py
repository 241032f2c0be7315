"""What a picture is, by its first bytes: kind and dimensions, without decoding it.

What the vendor takes is not documented beyond "JPEG, PNG, etc."; JPEG, PNG and WebP up to 20 MB are what its
other models name and what has been seen to work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from flux_async.errors import InvalidInput

MAX_UPLOAD_BYTES = 20 * 1024 * 1024
"""A larger file is refused unless the caller says otherwise."""

LARGE_UPLOAD_BYTES = 10 * 1024 * 1024
"""A larger file is sent, and the log says that it may be refused."""

MAX_PIXELS = 100_000_000
"""More than any camera's picture: a header that claims more is damaged, or a trap for who decodes it."""

Read: TypeAlias = Callable[[int, int], bytes]
"""Gives ``count`` bytes from ``offset``, fewer at the end: ``read(offset, count)``."""

_TAKEN = "Give a JPEG, PNG or WebP file; convert others first. Nothing was sent."
_FOREIGN = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (0, b"%PDF", "a PDF"),
    (4, b"ftypheic", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIC picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (0, b"<svg", "an SVG drawing"),
)
_MOST_SEGMENTS = 4096
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; the three are tables
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_SCAN, _END = 0xDA, 0xD9


@attrs.frozen(kw_only=True)
class Picture:
    """What the header of a picture says.

    Attributes:
        content_type: ``image/jpeg``, ``image/png`` or ``image/webp``.
        suffix: The ending that a file of this kind has.
        width: Pixels.
        height: Pixels.
    """

    content_type: str
    suffix: str
    width: int
    height: int


def read_picture(read: Read, name: str) -> Picture:
    """Return what the picture behind ``read`` is; ``name`` is what messages call it.

    Raises:
        InvalidInput: It is no JPEG, PNG or WebP, its header is damaged, or it claims absurd dimensions.
    """
    head = read(0, 32)
    if head.startswith(b"\xff\xd8\xff"):
        kind, size = ("image/jpeg", ".jpg"), _jpeg_size(read)
    elif head.startswith(b"\x89PNG\r\n\x1a\n"):
        kind, size = ("image/png", ".png"), _png_size(head)
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind, size = ("image/webp", ".webp"), _webp_size(head)
    else:
        raise InvalidInput(f"{name} is {_what_else(head)}, which the API may not take.", advice=_TAKEN)
    width, height = size
    if width <= 0 or height <= 0:
        raise InvalidInput(f"The header of {name} is damaged.", advice=_TAKEN)
    if width * height > MAX_PIXELS:
        raise InvalidInput(
            f"{name} claims {width} x {height} pixels; at most {MAX_PIXELS:,} are sent.",
            advice="Scale it down first. Nothing was sent.",
        )
    return Picture(content_type=kind[0], suffix=kind[1], width=width, height=height)


def check_size(size: int, name: str, max_bytes: int = MAX_UPLOAD_BYTES) -> None:
    """Refuse a file that is empty or too large.

    Raises:
        InvalidInput: It is.
    """
    if size == 0:
        raise InvalidInput(f"{name} is empty.", advice="Give a picture. Nothing was sent.")
    if size > max_bytes:
        raise InvalidInput(
            f"{name} has more than {max_bytes:,} bytes.",
            advice="Scale it down, or upload it by itself with a larger bound (max_bytes, or --max-mb).",
        )


def _what_else(head: bytes) -> str:
    found = (words for at, magic, words in _FOREIGN if head[at : at + len(magic)] == magic)
    return next(found, "neither a JPEG nor a PNG nor a WebP file")


def _png_size(head: bytes) -> tuple[int, int]:
    if head[12:16] != b"IHDR" or len(head) < 24:  # noqa: PLR2004 - where the two numbers end
        return 0, 0
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _webp_size(head: bytes) -> tuple[int, int]:
    """The three kinds of WebP: extended, lossless, lossy."""
    if len(head) < 30:  # noqa: PLR2004 - where the last number ends
        return 0, 0
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L" if head[20] == 0x2F:  # noqa: PLR2004 - its signature
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            width, height = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
            return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _jpeg_size(read: Read) -> tuple[int, int]:
    """Go from segment to segment until the frame header, past whatever a camera has put before it."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        segment = read(at, 9)
        if len(segment) < 2 or segment[0] != 0xFF:  # noqa: PLR2004 - every segment begins with FF and a marker
            break
        marker = segment[1]
        if marker == 0xFF:  # noqa: PLR2004 - padding
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker in _FRAMES and len(segment) == 9:  # noqa: PLR2004 - as far as the two numbers
            return int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big")
        elif marker in {_SCAN, _END} or marker in _FRAMES:
            break
        else:
            at += 2 + int.from_bytes(segment[2:4], "big")
    return 0, 0
