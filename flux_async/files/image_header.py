"""Reads format, size and end of an image without decoding it.

The bytes are read as they arrive and not kept. Each format is a generator that yields what it needs next (a
:data:`Demand`), so that an image may arrive in any chunks.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import TypeAlias

import attrs

from flux_async.errors import NotAnImage

Demand: TypeAlias = int | bytes
"""A number of bytes to read; if negative, to skip; or a marker to skip to and past."""

Reading: TypeAlias = Generator[Demand, bytes, None]

_HEAD = 12
_MOST_STEPS = 1_000_000  # a 64 MB GIF needs half as many; more are an attack
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_LENGTH = 13
_LONGEST_PNG_CHUNK = 2**31
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_SCAN, _JPEG_END, _JPEG_FILL = 0xDA, 0xD9, 0xFF
_GIF_IMAGE, _GIF_EXTENSION, _GIF_END = 0x2C, 0x21, 0x3B
_GIF_TABLE = 0x80
_VP8_START = b"\x9d\x01\x2a"
_VP8L_START = 0x2F
_14_BITS = 0x3FFF
_MAGIC = ((b"\xff\xd8\xff", ".jpg"), (_PNG, ".png"), (b"GIF87a", ".gif"), (b"GIF89a", ".gif"))


def image_suffix(head: bytes) -> str | None:
    """Return the file suffix for the first bytes of an image, or None if they are no image."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in _MAGIC if head.startswith(magic)), None)


@attrs.define(eq=False)
class ImageReader:
    """Reads an image as it arrives.

    Attributes:
        suffix: The file suffix of its format, as soon as it is known.
        size: Width and height in pixels, as soon as they are known.
        complete: Whether the end that its format requires has been read.
    """

    suffix: str | None = attrs.field(default=None, init=False)
    size: tuple[int, int] | None = attrs.field(default=None, init=False)
    complete: bool = attrs.field(default=False, init=False)
    _unread: bytearray = attrs.field(factory=bytearray, init=False, repr=False)
    _reading: Reading | None = attrs.field(default=None, init=False, repr=False)
    _demand: Demand = attrs.field(default=0, init=False, repr=False)
    _steps: int = attrs.field(default=0, init=False, repr=False)

    def feed(self, data: bytes) -> None:
        """Read the next bytes.

        Raises:
            NotAnImage: The bytes are none of the four formats, or damaged.
        """
        if self.complete:
            return  # some cameras and programs append data after the end
        self._unread += data
        if self._reading is None and len(self._unread) >= _HEAD:
            self._recognise()
        while self._reading is not None and not self.complete:
            got = self._take()
            if got is None:
                return
            self._advance(got)

    def finish(self) -> None:
        """End the image.

        Raises:
            NotAnImage: Too few bytes were received.
        """
        if self._reading is None:
            self._recognise()

    def _recognise(self) -> None:
        head = bytes(self._unread[:_HEAD])
        self.suffix = image_suffix(head)
        if self.suffix is None:
            raise NotAnImage(
                f"The file host sent no JPEG, PNG, WebP or GIF: the file begins with {head!r}."
                if head
                else "The file host sent an empty file."
            )
        readers = {".png": self._png, ".jpg": self._jpeg, ".gif": self._gif, ".webp": self._webp}
        self._reading = readers[self.suffix]()
        self._demand = next(self._reading)

    def _take(self) -> bytes | None:
        """Return the demanded bytes, or None if they have not arrived yet."""
        demand, unread = self._demand, self._unread
        if isinstance(demand, bytes):
            found = unread.find(demand)
            del unread[: len(unread) - len(demand) + 1 if found < 0 else found + len(demand)]
            return None if found < 0 else b""
        if demand < 0:
            skipped = min(-demand, len(unread))
            del unread[:skipped]
            self._demand = demand + skipped
            return None if self._demand else b""
        if len(unread) < demand:
            return None
        got = bytes(unread[:demand])
        del unread[:demand]
        return got

    def _advance(self, got: bytes) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise NotAnImage("The image has more blocks than any program writes.")
        try:
            self._demand = self._reading.send(got)  # type: ignore[union-attr]
        except StopIteration:
            self.complete = True
            self._unread.clear()

    def _found(self, width: int, height: int) -> None:
        if not width or not height:
            raise NotAnImage(f"The image has {width} by {height} pixels.")
        self.size = width, height

    # --- the formats --------------------------------------------------------------------------------------

    def _png(self) -> Reading:
        """PNG (third edition), section 5: chunks, from IHDR to IEND."""
        length, kind = struct.unpack(">8xI4s", (yield len(_PNG) + 8))
        if kind != b"IHDR" or length != _PNG_HEADER_LENGTH:
            raise _damaged("PNG")
        self._found(*struct.unpack(">II", (yield 8)))
        yield -(length - 8 + 4)
        while kind != b"IEND":
            length, kind = struct.unpack(">I4s", (yield 8))
            if length >= _LONGEST_PNG_CHUNK:
                raise _damaged("PNG")
            yield -(length + 4)

    def _jpeg(self) -> Reading:
        """ITU T.81, annex B: segments up to the first scan, then anything up to EOI.

        Within a scan, 0xFF is always followed by 0x00 or a marker, so EOI is unambiguous there. Thumbnails
        with an EOI of their own are in segments, which are skipped.
        """
        yield 2
        code = 0
        while code != _JPEG_SCAN:
            if (yield 1)[0] != _JPEG_FILL:
                raise _damaged("JPEG")
            code = (yield 1)[0]
            while code == _JPEG_FILL:
                code = (yield 1)[0]
            if code in _JPEG_ALONE:
                continue
            if code == _JPEG_END or (code == _JPEG_SCAN and self.size is None):
                raise _damaged("JPEG")
            length = int.from_bytes((yield 2)) - 2
            if code in _JPEG_SIZES and self.size is None:
                height, width = struct.unpack(">xHH", (yield 5))
                self._found(width, height)
                length -= 5
            if length < 0:
                raise _damaged("JPEG")
            yield -length
        yield bytes((_JPEG_FILL, _JPEG_END))

    def _gif(self) -> Reading:
        """GIF89a specification, sections 17 to 27: blocks, up to the trailer."""
        width, height, flags = struct.unpack("<6xHHB2x", (yield 13))
        self._found(width, height)
        yield -_gif_table(flags)
        while (block := (yield 1)[0]) != _GIF_END:
            if block == _GIF_EXTENSION:
                yield 1
            elif block == _GIF_IMAGE:
                flags = (yield 9)[8]
                yield -(_gif_table(flags) + 1)
            else:
                raise _damaged("GIF")
            while length := (yield 1)[0]:
                yield -length

    def _webp(self) -> Reading:
        """RFC 9649: one RIFF file that starts with its length."""
        whole, kind = struct.unpack("<4xI4x4s4x", (yield 20))
        wanted = 5 if kind == b"VP8L" else 10
        head = yield wanted
        if kind == b"VP8X":
            self._found(1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little"))
        elif kind == b"VP8L" and head[0] == _VP8L_START:
            bits = int.from_bytes(head[1:5], "little")
            self._found(1 + (bits & _14_BITS), 1 + (bits >> 14 & _14_BITS))
        elif kind == b"VP8 " and head[3:6] == _VP8_START:
            width, height = struct.unpack("<HH", head[6:10])
            self._found(width & _14_BITS, height & _14_BITS)
        else:
            raise _damaged("WebP")
        rest = whole - 12 - wanted
        if rest < 0:
            raise _damaged("WebP")
        yield -rest


def _gif_table(flags: int) -> int:
    """Return the bytes of the colour table that the flags announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & _GIF_TABLE else 0


def _damaged(name: str) -> NotAnImage:
    return NotAnImage(f"The file begins as a {name}, but is damaged.")
