"""Format, size and end of an image, read from bytes that arrive in any pieces."""

from __future__ import annotations

import io
import random
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flux_async import NotAnImage
from flux_async.files.image_header import ImageReader, image_suffix

SIZE = (37, 23)
FORMATS = {
    "png": ("PNG", {}, ".png"),
    "jpeg": ("JPEG", {}, ".jpg"),
    "progressive jpeg": ("JPEG", {"progressive": True}, ".jpg"),
    "jpeg with a profile": ("JPEG", {"icc_profile": bytes(range(256)) * 600}, ".jpg"),
    "gif": ("GIF", {}, ".gif"),
    "lossy webp": ("WEBP", {}, ".webp"),
    "lossless webp": ("WEBP", {"lossless": True}, ".webp"),
    "webp with a profile": ("WEBP", {"icc_profile": b"profile " * 40}, ".webp"),
}


def drawn(name: str) -> bytes:
    file_format, options, _ = FORMATS[name]
    noise = Image.frombytes("RGB", SIZE, random.Random(3).randbytes(3 * SIZE[0] * SIZE[1]))
    content = io.BytesIO()
    noise.save(content, file_format, **options)
    return content.getvalue()


IMAGES = {name: drawn(name) for name in FORMATS}
each_format = pytest.mark.parametrize("name", FORMATS)


def read(*pieces: bytes) -> ImageReader:
    reader = ImageReader()
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return reader


@each_format
@pytest.mark.parametrize("length", [1, 7, 4096, 10**6])
def test_an_image_in_pieces_is_read(name: str, length: int) -> None:
    """Format, size and end are found, however the bytes are cut."""
    data = IMAGES[name]
    reader = read(*(data[at : at + length] for at in range(0, len(data), length)))
    assert (reader.suffix, reader.size, reader.complete) == (FORMATS[name][2], SIZE, True)


@each_format
def test_no_beginning_of_an_image_is_complete(name: str) -> None:
    """Wherever it is cut off, the end is missing."""
    data = IMAGES[name]
    for cut in {*range(12, min(len(data), 400)), *range(len(data) - 40, len(data)), len(data) // 2}:
        assert not read(data[:cut]).complete, cut


@each_format
def test_bytes_after_the_end_are_not_read(name: str) -> None:
    """Some programs append data of their own to an image."""
    assert read(IMAGES[name] + b"\x00trailing" * 9, b"more").complete


def test_the_end_of_a_thumbnail_is_not_that_of_the_image() -> None:
    """A JPEG within a JPEG's segment has an end of its own."""
    inner = IMAGES["jpeg"]
    outer = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(inner) + 2) + inner + IMAGES["jpeg"][2:]
    assert read(outer).complete
    assert not read(outer[: len(inner) + 300]).complete


@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"\x89PNG\r\n\x1a\n", ".png"),
        (b"GIF89a", ".gif"),
        (b"RIFF\x00\x00\x00\x00WEBP", ".webp"),
        (b"RIFF\x00\x00\x00\x00WAVE", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_the_first_bytes_call_for_an_ending(head: bytes, suffix: str | None) -> None:
    """The content decides, not a name."""
    assert image_suffix(head) == suffix


PNG = b"\x89PNG\r\n\x1a\n"
IHDR = PNG + b"\x00\x00\x00\x0dIHDR"
SCREEN = b"GIF89a\x02\x00\x03\x00"
DAMAGED = {
    "html": b"<!doctype html><html>",
    "short": b"<html>",
    "nothing": b"",
    "png without its head": PNG + b"\x00\x00\x00\x0dIDAT" + bytes(20),
    "png with a long head": PNG + b"\x00\x00\x00\x0eIHDR" + bytes(20),
    "png without pixels": IHDR + bytes(20),
    "png with an endless chunk": IHDR + b"\0\0\0\1\0\0\0\1" + bytes(9) + b"\xff\xff\xff\xffIDAT",
    "jpeg without marker": b"\xff\xd8\xff\xe0\x00\x02" + bytes(20),
    "jpeg that ends at once": b"\xff\xd8\xff\xd9" + bytes(20),
    "jpeg with a scan and no size": b"\xff\xd8\xff\xda\x00\x08" + bytes(20),
    "jpeg with a short segment": b"\xff\xd8\xff\xe0\x00\x01" + bytes(20),
    "jpeg without lines": b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x00\x00\x20" + bytes(20),
    "gif without pixels": b"GIF89a" + bytes(20),
    "gif with an odd block": SCREEN + bytes(3) + b"\x99" + bytes(20),
    "webp of another kind": b"RIFF\x40\x00\x00\x00WEBPXXXX" + bytes(30),
    "webp without its mark": b"RIFF\x40\x00\x00\x00WEBPVP8 " + bytes(30),
    "webp that is shorter than its head": b"RIFF\x04\x00\x00\x00WEBPVP8X" + bytes(30),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_files_that_are_no_images_are_refused(data: bytes) -> None:
    """Other content, or an image without a size."""
    with pytest.raises(NotAnImage):
        read(data)


def test_fill_bytes_and_lone_markers_are_passed_over() -> None:
    """ITU T.81 allows fill bytes before a marker, and some markers stand alone."""
    data = IMAGES["jpeg"]
    assert read(data[:2] + b"\xff\x01\xff\xff\xff" + data[3:]).size == SIZE


def test_a_second_size_counts_for_nothing() -> None:
    """The first frame header of a JPEG has its size."""
    data = IMAGES["jpeg"]
    second = b"\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00"
    at = data.index(b"\xff\xda")
    assert read(data[:at] + second + data[at:]).size == SIZE


def test_colour_tables_and_extensions_of_a_gif_are_passed_over() -> None:
    """Tables of the screen and of an image, and blocks in between."""
    blocks = b"\x21\xfe\x03abc\x00" + b"\x2c" + bytes(8) + b"\x80" + bytes(6) + b"\x02\x01\x00\x00" + b"\x3b"
    reader = read(SCREEN + b"\x80\x00\x00" + bytes(6) + blocks)
    assert (reader.size, reader.complete) == ((2, 3), True)
    assert not read(SCREEN + b"\x80\x00\x00" + bytes(6) + blocks[:-1]).complete


def test_the_smallest_lossless_webp_is_read() -> None:
    """It is shorter than the heads of its kin."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "WEBP", lossless=True)
    data = content.getvalue()
    assert (read(data).size, read(data).complete) == ((1, 1), True)


def test_an_image_of_countless_blocks_is_refused_soon() -> None:
    """A hundred million empty blocks cost no CPU time."""
    reader = ImageReader()
    reader.feed(IHDR + b"\0\0\0\1\0\0\0\1" + bytes(9))
    empty = (bytes(4) + b"tEXt" + bytes(4)) * 20_000
    begun = time.process_time()
    with pytest.raises(NotAnImage, match="blocks"):
        for _ in range(100):
            reader.feed(empty)
    assert time.process_time() - begun < 10


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", *(head[:40] for head in IMAGES.values())]), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(head: bytes, rest: bytes) -> None:
    """There is no third outcome."""
    try:
        read(head + rest)
    except NotAnImage as refused:
        assert len(str(refused)) < 300  # noqa: PT017 - it need not be raised
