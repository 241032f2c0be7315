"""A JPEG without its end marker: whole but for that, or cut off."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from flux_async.files.image_check import lacks_only_its_end, read_image

NOISE = Image.frombytes("RGB", (83, 61), random.Random(4).randbytes(3 * 83 * 61))
LARGE = Image.frombytes("RGB", (400, 300), random.Random(4).randbytes(3 * 400 * 300))


def jpeg(image: Image.Image = NOISE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)  # type: ignore[arg-type]
    return file.getvalue()


KINDS = {
    "4:2:0": jpeg(subsampling=2),
    "4:2:2": jpeg(subsampling=1),
    "4:4:4": jpeg(subsampling=0, quality=95),
    "grey": jpeg(NOISE.convert("L")),
    "CMYK": jpeg(NOISE.convert("CMYK")),
    "own tables": jpeg(optimize=True),
    "restarts": jpeg(restart_marker_rows=1),
    "restarts of blocks": jpeg(restart_marker_blocks=3),
    "plain": jpeg(Image.new("RGB", (64, 64), "white")),
    "many pieces": jpeg(LARGE, quality=98),
    "many pieces with restarts": jpeg(LARGE, quality=98, restart_marker_rows=1),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def whole(content: bytes) -> bool:
    return lacks_only_its_end(lambda at, count: content[at : at + count])


@each_kind
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(kind: str) -> None:
    """Both bytes of the marker, or one of them."""
    for cut in (1, 2):
        assert whole(KINDS[kind][:-cut])
        content = KINDS[kind][:-cut]
        assert read_image(lambda at, count, content=content: content[at : at + count], "a.jpg")


@each_kind
def test_a_jpeg_that_lacks_any_of_its_data_is_not(kind: str) -> None:
    """The last byte of the data is enough, and so is every header."""
    content = KINDS[kind]
    cuts = [
        len(content) - 3,
        len(content) - 4,
        len(content) // 2,
        *range(2, len(content), len(content) // 40),
    ]
    assert not any(whole(content[:cut]) for cut in cuts)


def test_fill_bytes_and_markers_that_stand_alone_are_passed_over() -> None:
    """They may stand between segments."""
    content = KINDS["4:2:0"]
    assert whole(content[:2] + b"\xff\xff\xff\x01" + content[2:-2])


def test_what_is_not_known_may_lack_something() -> None:
    """Progressive images, scans of one component, scans without tables, unknown codes, no sampling."""
    content = KINDS["4:2:0"]
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    assert not whole(jpeg(progressive=True)[:-2])
    assert not whole(content[: scan + 4] + b"\x01" + content[scan + 5 : -2])
    assert not whole(content[: scan + 6] + b"\x33" + content[scan + 7 : -2])
    assert not whole(content[: scan + 5] + b"\x09" + content[scan + 6 : -2])
    for at in (11, 14, 17):
        content = content[: frame + at] + b"\x00" + content[frame + at + 1 :]
    assert not whole(content[:-2])
    zeros = KINDS["plain"].index(b"\xff\xda") + 14
    assert not whole(KINDS["plain"][:zeros] + b"\xff\x00" * 900)
