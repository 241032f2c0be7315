"""Decides which image files may be uploaded: format, size, dimensions, and whether they are whole.

The vendor documents only "JPEG, PNG, etc."; JPEG, PNG and WebP up to 20 MB are documented for its other
models and have been seen to work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import attrs

from flux_async.errors import InvalidInput, NotAnImage
from flux_async.files.image_header import ImageReader, image_suffix

MAX_UPLOAD_BYTES = 20 * 1024 * 1024
"""A larger file is refused unless the caller allows it."""

LARGE_UPLOAD_BYTES = 10 * 1024 * 1024
"""A larger file is sent, with a warning in the log that it may be refused."""

MAX_PIXELS = 100_000_000
"""More than any camera's image: a larger claim is damage, or an attack on the decoder."""

_AGAIN = "Copy or download it again. Nothing was sent."
_TAKEN = "Give a JPEG, PNG or WebP file; convert others first. Nothing was sent."
_FOREIGN = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (0, b"%PDF", "a PDF"),
    (0, b"8BPS", "a Photoshop file"),
    (4, b"ftypheic", "a HEIC image"),
    (4, b"ftypheix", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (4, b"ftypavif", "an AVIF image"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML file, perhaps an SVG drawing"),
    (0, b"<!doctype html", "a web page"),
    (0, b"<html", "a web page"),
)
_PIECE = 64 * 1024
_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


@attrs.frozen(kw_only=True)
class ImageInfo:
    """The header of an image.

    Attributes:
        content_type: ``image/jpeg``, ``image/png`` or ``image/webp``.
        suffix: The suffix of its files.
        width: Pixels.
        height: Pixels.
    """

    content_type: str
    suffix: str
    width: int
    height: int


def read_image(read: Read, name: str) -> ImageInfo:
    """Return the header of the image that ``read`` reads; messages call it ``name``.

    The whole file is read, in small pieces, because a truncated file has a valid header.

    Raises:
        InvalidInput: It is no JPEG, PNG or WebP, damaged, truncated, or claims absurd dimensions.
    """
    head = read(0, 32)
    suffix = image_suffix(head)
    content_type = _TYPES.get(suffix or "")
    if suffix is None or content_type is None:
        raise InvalidInput(f"{name} is {_other_format(head)}, which the API may not accept.", advice=_TAKEN)
    width, height = _dimensions_of_a_whole_image(read, name)
    if width * height > MAX_PIXELS:
        raise InvalidInput(
            f"{name} claims {width} x {height} pixels; at most {MAX_PIXELS:,} are sent.",
            advice="Scale it down first. Nothing was sent.",
        )
    return ImageInfo(content_type=content_type, suffix=suffix, width=width, height=height)


def check_size(size: int, name: str, max_bytes: int = MAX_UPLOAD_BYTES) -> None:
    """Refuse a file that is empty or too large.

    Raises:
        InvalidInput: It is either.
    """
    if size == 0:
        raise InvalidInput(f"{name} is empty.", advice="Give an image. Nothing was sent.")
    if size > max_bytes:
        raise InvalidInput(
            f"{name} has more than {max_bytes:,} bytes.",
            advice="Scale it down, or {larger_upload}.",
        )


def _other_format(head: bytes) -> str:
    head = head.lower()  # tags may be written either way
    found = (name for at, magic, name in _FOREIGN if head[at : at + len(magic)] == magic.lower())
    return next(found, "not a JPEG, PNG or WebP image")


def _dimensions_of_a_whole_image(read: Read, name: str) -> tuple[int, int]:
    """Return width and height after reading to the end of the image; later bytes are ignored."""
    reader, at = ImageReader(), 0
    try:
        while not reader.complete and (piece := read(at, _PIECE)):
            at += len(piece)
            reader.feed(piece)
    except NotAnImage:
        raise InvalidInput(f"{name} begins as an image, but its data is damaged.", advice=_AGAIN) from None
    is_whole = reader.complete or (reader.suffix == ".jpg" and lacks_only_its_end(read))
    if reader.size is None or not is_whole:
        raise InvalidInput(f"{name} is cut off: the file ends before the image does.", advice=_AGAIN)
    return reader.size


# --- JPEG without end marker ----------------------------------------------------------------------------

# A JPEG without its end marker may lack only these two bytes, or be truncated in its middle; its size does
# not show which. The image data is read code by code, without decoding a pixel, until all blocks of the image
# were found or the data has ended: about 1 MB per second, and only for files without an end marker. Supported
# are sequential Huffman images in one scan (ITU T.81), which cameras write; others, such as progressive ones,
# count as truncated.

Read: TypeAlias = Callable[[int, int], bytes]
"""``read(offset, count)`` returns ``count`` bytes from ``offset``, fewer at the end."""

_PIECE = 64 * 1024
_DHT, _SOS, _DRI = 0xC4, 0xDA, 0xDD
_SEQUENTIAL = (0xC0, 0xC1)
_ALONE = (0x01, *range(0xD0, 0xD9))
_FILL = 0xFF
_NEEDED = 32  # bits: the longest code and the bits behind it
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_PADDING = 4
_LAST_COEFFICIENT = 63
_RUN_OF_16_ZEROS = 0xF0


class _Frame(NamedTuple):
    """Width and height in pixels, and horizontal and vertical sampling by component."""

    width: int
    height: int
    sampling: Mapping[int, tuple[int, int]]


def lacks_only_its_end(read: Read) -> bool:
    """Return whether all image data of a JPEG without an end marker is there."""
    try:
        return _walk(read)
    except IndexError:  # a header is too short
        return False


def _walk(read: Read) -> bool:
    frame: _Frame | None = None
    tables: dict[int, list[int]] = {}
    interval, at = 0, 2
    while True:
        code = read(at, 2)[1]
        if code == _FILL:
            at += 1
            continue
        if code in _ALONE:
            at += 2
            continue
        length = int.from_bytes(read(at + 2, 2))
        body = read(at + 4, length - 2)
        at += 2 + length
        if code in _SEQUENTIAL:
            frame = _frame(body)
        elif code == _DHT:
            tables.update(_tables(body))
        elif code == _DRI:
            interval = int.from_bytes(body[:2])
        elif code == _SOS:
            plan = None if frame is None else _plan(frame, body, tables)
            return frame is not None and plan is not None and _is_all_there(read, at, frame, plan, interval)


def _frame(body: bytes) -> _Frame:
    height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
    parts = (body[at : at + 3] for at in range(6, 6 + 3 * body[5], 3))
    return _Frame(width, height, {part[0]: (part[1] >> 4, part[1] & 15) for part in parts})


def _tables(body: bytes) -> Iterator[tuple[int, list[int]]]:
    """Yield Huffman tables by class and number: for each 16 bits, the length of the code and its symbol."""
    while len(body) > 16:  # noqa: PLR2004 - the counts of codes by length
        name, counts, at = body[0], body[1:17], 17
        table: list[int] = []
        for length, count in enumerate(counts, start=1):
            for symbol in body[at : at + count]:
                table += [length << 8 | symbol] * (1 << 16 - length)
            at += count
        yield name, (table + [0] * (1 << 16))[: 1 << 16]
        body = body[at:]


def _plan(
    frame: _Frame, scan: bytes, tables: Mapping[int, list[int]]
) -> list[tuple[list[int], list[int]]] | None:
    """Return the tables of each block of one unit of the scan; None if the scan is not the whole image."""
    count = scan[0]
    if count != len(frame.sampling):
        return None
    plan = []
    for at in range(1, 1 + 2 * count, 2):
        component, choice = scan[at], scan[at + 1]
        pair = tables.get(choice >> 4), tables.get(0x10 | choice & 15)
        if component not in frame.sampling or pair[0] is None or pair[1] is None:
            return None
        across, down = frame.sampling[component]
        plan += [(pair[0], pair[1])] * (across * down if count > 1 else 1)
    return plan


def _is_all_there(
    read: Read, at: int, frame: _Frame, plan: Sequence[tuple[list[int], list[int]]], interval: int
) -> bool:
    """Read the data after the last restart marker; everything before it is there."""
    sampling = list(frame.sampling.values()) if len(frame.sampling) > 1 else [(1, 1)]
    across, down = max(one[0] for one in sampling), max(one[1] for one in sampling)
    if not across or not down:
        return False
    units = -(-frame.width // (8 * across)) * -(-frame.height // (8 * down))
    if interval:
        restarts, at = _restarts(read, at)
        units -= interval * restarts
        if units > interval:
            return False
    return _has_blocks(_unstuffed(read, at), list(plan), units)


def _restarts(read: Read, start: int) -> tuple[int, int]:
    """Return the number of restart markers after ``start``, and the offset of the data after the last."""
    count, at, behind = 0, start, start
    while len(piece := read(at, _PIECE)) > 1:
        for found in _RESTART.finditer(piece):
            count, behind = count + 1, at + found.end()
        at += len(piece) - 1  # a marker may lie across two pieces
    return count, behind


def _unstuffed(read: Read, at: int) -> Iterator[int]:
    """Yield the bytes of the data, and ones after its end."""
    while piece := read(at, _PIECE):
        at += len(piece)
        if piece[-1] == _FILL:  # its meaning depends on the next byte
            piece += read(at, 1)
            at += 1
        yield from piece.replace(b"\xff\x00", b"\xff")
    yield from b"\xff" * _PADDING


def _has_blocks(data: Iterator[int], plan: Sequence[tuple[list[int], list[int]]], units: int) -> bool:
    """Return whether ``data`` contains as many units of blocks as the image has."""
    bits = count = 0

    def take(table: list[int]) -> int:
        """Return a symbol and skip the bits that belong to it; -1 if there is none."""
        nonlocal bits, count
        while count < _NEEDED:
            byte = next(data, -1)
            if byte < 0:
                return -1
            bits, count = (bits << 8 | byte) & 0xFFFFFFFFFF, count + 8
        found = table[bits >> count - 16 & 0xFFFF]
        count -= (found >> 8) + (found & 15)
        return found & 0xFF if found else -1

    for _ in range(units):
        for direct, others in plan:
            if take(direct) < 0:
                return False
            at = 1
            while at <= _LAST_COEFFICIENT:
                symbol = take(others)
                if symbol < 0:
                    return False
                if not symbol & 15 and symbol != _RUN_OF_16_ZEROS:
                    break
                at += (symbol >> 4) + 1
    left = count + 8 * sum(1 for _ in data)
    return left >= 8 * _PADDING  # else the last code contains bits appended after the end
