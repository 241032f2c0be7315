"""Which pictures may be sent: their kind, their size, their dimensions, and whether they are whole.

What the vendor takes is not documented beyond "JPEG, PNG, etc."; JPEG, PNG and WebP up to 20 MB are what its
other models name and what has been seen to work.
"""

from __future__ import annotations

import attrs

from flux_async.errors import InvalidInput, NotAPicture
from flux_async.files.image_header import PictureReader, picture_suffix
from flux_async.policy.jpeg_scan import Read, lacks_only_its_end

MAX_UPLOAD_BYTES = 20 * 1024 * 1024
"""A larger file is refused unless the caller says otherwise."""

LARGE_UPLOAD_BYTES = 10 * 1024 * 1024
"""A larger file is sent, and the log says that it may be refused."""

MAX_PIXELS = 100_000_000
"""More than any camera's picture: a header that claims more is damaged, or a trap for who decodes it."""

_AGAIN = "Copy or download it again. Nothing was sent."
_TAKEN = "Give a JPEG, PNG or WebP file; convert others first. Nothing was sent."
_FOREIGN = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (0, b"%PDF", "a PDF"),
    (0, b"8BPS", "a Photoshop file"),
    (4, b"ftypheic", "a HEIC picture"),
    (4, b"ftypheix", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIC picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML file, perhaps an SVG drawing"),
    (0, b"<!doctype html", "a web page"),
    (0, b"<html", "a web page"),
)
_PIECE = 64 * 1024
_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


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

    All of it is read, in small pieces, because a file that breaks off in the middle has a good header.

    Raises:
        InvalidInput: It is no JPEG, PNG or WebP, it is damaged or cut off, or it claims absurd dimensions.
    """
    head = read(0, 32)
    suffix = picture_suffix(head)
    content_type = _TYPES.get(suffix or "")
    if suffix is None or content_type is None:
        raise InvalidInput(f"{name} is {_what_else(head)}, which the API may not take.", advice=_TAKEN)
    width, height = _dimensions_of_a_whole_image(read, name)
    if width * height > MAX_PIXELS:
        raise InvalidInput(
            f"{name} claims {width} x {height} pixels; at most {MAX_PIXELS:,} are sent.",
            advice="Scale it down first. Nothing was sent.",
        )
    return Picture(content_type=content_type, suffix=suffix, width=width, height=height)


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
            advice="Scale it down, or {larger_upload}.",
        )


def _what_else(head: bytes) -> str:
    head = head.lower()  # tags may be written either way
    found = (words for at, magic, words in _FOREIGN if head[at : at + len(magic)] == magic.lower())
    return next(found, "neither a JPEG nor a PNG nor a WebP file")


def _dimensions_of_a_whole_image(read: Read, name: str) -> tuple[int, int]:
    """Return width and height after reading to the end of the image; bytes behind it are left alone."""
    reader, at = PictureReader(), 0
    try:
        while not reader.complete and (piece := read(at, _PIECE)):
            at += len(piece)
            reader.feed(piece)
    except NotAPicture:
        raise InvalidInput(f"{name} begins as an image, but its data is damaged.", advice=_AGAIN) from None
    is_whole = reader.complete or (reader.suffix == ".jpg" and lacks_only_its_end(read))
    if reader.size is None or not is_whole:
        raise InvalidInput(f"{name} is cut off: the file ends before the image does.", advice=_AGAIN)
    return reader.size
