"""Kind and dimensions of an image by its header, and refused files."""

from __future__ import annotations

import contextlib
import io
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flux_async import InvalidInput
from flux_async.files.image_check import MAX_PIXELS, check_size, read_image


def reader(content: bytes) -> object:
    return lambda offset, count: content[offset : offset + count]


def read(content: bytes) -> object:
    return read_image(reader(content), "x.jpg")  # type: ignore[arg-type]


def drawn(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (70, 41), (9, 90, 200)).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    end = struct.pack(">I4sI", 0, b"IEND", 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(9) + end


def segment(marker: int, length: int) -> bytes:
    return bytes([0xFF, marker]) + (length + 2).to_bytes(2, "big") + bytes(length)


@pytest.mark.parametrize(
    ("kind", "options", "content_type", "suffix"),
    [
        ("JPEG", {}, "image/jpeg", ".jpg"),
        ("JPEG", {"progressive": True}, "image/jpeg", ".jpg"),
        ("PNG", {}, "image/png", ".png"),
        ("WEBP", {}, "image/webp", ".webp"),
        ("WEBP", {"lossless": True}, "image/webp", ".webp"),
        ("WEBP", {"exif": b"Exif\0\0MM\0*" + bytes(64)}, "image/webp", ".webp"),
    ],
)
def test_real_images_are_recognised(
    kind: str, options: dict[str, object], content_type: str, suffix: str
) -> None:
    """Each kind that the vendor accepts, with its dimensions."""
    image = read(drawn(kind, **options))
    assert (image.content_type, image.suffix) == (content_type, suffix)  # type: ignore[attr-defined]
    assert (image.width, image.height) == (70, 41)  # type: ignore[attr-defined]


def test_a_frame_behind_large_segments_is_found() -> None:
    """Cameras put previews, profiles and padding before the frame header; all of it is skipped."""
    real = drawn("JPEG")
    before = b"".join(segment(0xE2, 60_000) for _ in range(20)) + b"\xff\xff" + b"\xff\x01"
    image = read(real[:2] + before + real[2:])
    assert (image.width, image.height) == (70, 41)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"GIF89a", "a GIF"),
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"II*\0", "a TIFF"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"<?xml version='1.0'?><svg>", "perhaps an SVG"),
        (b"x", "not a JPEG, PNG or WebP image"),
    ],
)
def test_other_files_are_named_and_refused(head: bytes, words: str) -> None:
    """What is refused is called by its name, with what to do."""
    with pytest.raises(InvalidInput, match=words) as caught:
        read(head + bytes(64))
    assert "convert" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + bytes(24),
        png(0, 5),
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"RIFF\0\0\0\0WEBPVP8 " + bytes(32),
        b"RIFF\0\0\0\0WEBPVP8L" + bytes(32),
        b"RIFF\0\0\0\0WEBPxxxx" + bytes(32),
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9" + bytes(9),
        b"\xff\xd8\xff\xda\0\x08" + bytes(9),
        b"\xff\xd8\xff\xc0\0\x0b\x08\0\x05",
        b"\xff\xd8\xff\xe0\0\x04ab" + b"no marker",
        b"\xff\xd8" + b"\xff\xd0" * 5000,
    ],
)
def test_a_damaged_header_is_refused(content: bytes) -> None:
    """Without dimensions above zero nothing is sent."""
    with pytest.raises(InvalidInput, match=r"damaged|cut off"):
        read(content)


def test_absurd_dimensions_are_refused() -> None:
    """A header that claims more pixels than the cap is refused; the cap itself is not."""
    assert read(png(MAX_PIXELS, 1))
    with pytest.raises(InvalidInput, match="pixels"):
        read(png(MAX_PIXELS, 2))


@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]),
    st.binary(max_size=300),
)
def test_any_bytes_are_an_image_or_refused(magic: bytes, rest: bytes) -> None:
    """No file makes the reader fail in another way, or go on for ever."""
    with contextlib.suppress(InvalidInput):
        assert read(magic + rest)


def test_size_has_bounds() -> None:
    """Empty and too large files are refused before they are sent."""
    check_size(1, "x.jpg", 1)
    for size in (0, 2):
        with pytest.raises(InvalidInput, match=r"x\.jpg"):
            check_size(size, "x.jpg", 1)


def whole_images() -> dict[str, bytes]:
    noise = Image.frombytes("RGB", (190, 160), random.Random(5).randbytes(3 * 190 * 160))
    kinds: dict[str, tuple[str, dict[str, object]]] = {
        "baseline JPEG": ("JPEG", {"quality": 90}),
        "progressive JPEG": ("JPEG", {"progressive": True}),
        "JPEG with restart markers": ("JPEG", {"restart_marker_rows": 1}),
        "PNG": ("PNG", {}),
        "lossy WebP": ("WEBP", {}),
        "lossless WebP": ("WEBP", {"lossless": True}),
        "animated WebP": ("WEBP", {"save_all": True, "append_images": [noise.rotate(90)]}),
        "MPO": ("MPO", {"save_all": True, "append_images": [noise.rotate(180)]}),
    }
    made = {}
    for name, (kind, options) in kinds.items():
        file = io.BytesIO()
        noise.save(file, kind, **options)
        made[name] = file.getvalue()
    return made


WHOLE = whole_images()
each_kind = pytest.mark.parametrize("kind", WHOLE)


@each_kind
def test_half_an_image_is_refused(kind: str) -> None:
    """A file that breaks off anywhere, in its header or in its data, is never uploaded."""
    content = WHOLE[kind]
    end = len(content) // 2 if kind == "MPO" else len(content)  # its first image is all of it that counts
    for part in (0.01, 0.1, 0.5, 0.9, 0.99):
        with pytest.raises(InvalidInput, match=r"cut off.*Nothing was sent"):
            read(content[: max(16, int(end * part))])


@each_kind
def test_whole_images_with_odds_and_ends_pass(kind: str) -> None:
    """Bytes behind the end are no reason to refuse an image, be they zeros, text or a video."""
    for tail in (b"", b"\0" * 512, b"\r\n", b"ftypmp42" + bytes(300_000)):
        assert read(WHOLE[kind] + tail).width == 190  # type: ignore[attr-defined]


def test_ten_megabytes_of_metadata_are_read_past() -> None:
    """Cameras and editors put previews and profiles of any size before the image."""
    notes = segment(0xE1, 65_000) * 160
    jpeg, png_image = WHOLE["baseline JPEG"], WHOLE["PNG"]
    chunk = struct.pack(">I4s", 10 << 20, b"iTXt") + bytes((10 << 20) + 4)
    assert read(jpeg[:2] + notes + jpeg[2:]).width == 190  # type: ignore[attr-defined]
    assert read(png_image[:33] + chunk + png_image[33:]).width == 190  # type: ignore[attr-defined]


def test_an_image_is_read_in_small_pieces_and_not_beyond_its_end() -> None:
    """Memory is bounded by the piece, and a long tail costs nothing."""
    content, asked = WHOLE["PNG"] + bytes(5 << 20), []

    def reading(at: int, count: int) -> bytes:
        asked.append((at, count))
        return content[at : at + count]

    read_image(reading, "tail.png")
    assert max(count for _, count in asked) <= 64 * 1024
    assert max(at for at, _ in asked) <= len(WHOLE["PNG"])


def test_data_that_is_damaged_behind_a_good_header_is_refused() -> None:
    """A PNG chunk that claims two gigabytes is no chunk."""
    content = png(5, 5)[:33] + b"\xff\xff\xff\xffIDAT" + bytes(90)
    with pytest.raises(InvalidInput, match="damaged"):
        read(content)
