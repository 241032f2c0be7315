"""Outlines of replaced areas: around all of their pixels, close to them, and one for what lies together."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from flux_async.verification.outlines import changed_outlines, outlines_of


def mask_with(shape: tuple[int, int], *rectangles: tuple[int, int, int, int]) -> np.ndarray:
    """Return a mask with rectangles of left, top, right and bottom."""
    mask = np.zeros(shape, np.bool_)
    for left, top, right, bottom in rectangles:
        mask[top:bottom, left:right] = True
    return mask


def drawn(outlines: tuple[tuple[int, ...], ...], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels inside the outlines, as a browser draws them."""
    canvas = np.zeros(shape, np.uint8)
    size = np.array([shape[1], shape[0]])
    polygons = [np.rint(np.array(one).reshape(-1, 2) * size / 1000).astype(np.int32) for one in outlines]
    return cv2.fillPoly(canvas, polygons, 1) > 0


@pytest.mark.parametrize(
    "shape", [(600, 1200), (3000, 400), (40, 60), (1, 5)], ids=["wide", "tall", "small", "thin"]
)
def test_all_pixels_of_a_mask_lie_inside(shape: tuple[int, int]) -> None:
    """Any mask, pixels at the edge of the image included; and little else."""
    rng = np.random.default_rng(5)
    mask = np.zeros(shape, np.bool_)
    mask.ravel()[rng.integers(0, mask.size, 4)] = True
    mask[-1, -1] = True
    inside = drawn(outlines_of(mask), shape)
    assert inside[mask].all()
    assert inside.mean() < 0.1 or max(shape) < 100


def test_areas_far_apart_have_outlines_of_their_own() -> None:
    """Words of a line are together, those further up come first; an area with a hole has one outline."""
    words = (100, 60, 300, 90), (304, 60, 500, 90)
    mask = mask_with((600, 1200), *words, (900, 300, 1100, 500))
    mask[330:470, 930:1070] = False
    line, square = outlines_of(mask)
    assert (min(line[0::2]), max(line[0::2])) == (pytest.approx(83, abs=20), pytest.approx(417, abs=20))
    assert (min(square[1::2]), max(square[1::2])) == (pytest.approx(500, abs=40), pytest.approx(833, abs=40))
    assert (len(line), len(square)) == (8, 8)


def test_turned_text_has_a_turned_outline() -> None:
    """It covers little more than the text: a rectangle around it would cover most of the image."""
    mask = cv2.line(np.zeros((500, 500), np.uint8), (40, 60), (440, 460), 1, 30) > 0
    outlines = outlines_of(mask)
    assert drawn(outlines, mask.shape).sum() < 2 * mask.sum()
    assert sum(map(len, outlines)) < 60


def test_nothing_has_no_outline() -> None:
    """Neither a mask without a pixel, nor a result that is as its original."""
    assert outlines_of(np.zeros((20, 30), np.bool_)) == ()


def test_changes_are_found_in_files_turned_as_they_are_shown(tmp_path: Path) -> None:
    """A single pixel of a large image is found, whatever its difference."""
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.new("RGB", (1200, 600), "teal")
    image.save(tmp_path / "before.png", exif=turned)
    image.paste("red", (300, 60, 600, 120))
    image.putpixel((1190, 590), (1, 128, 128))
    image.save(tmp_path / "after.png", exif=turned)
    words, pixel = changed_outlines(tmp_path / "before.png", tmp_path / "after.png")
    assert (min(words[0::2]), max(words[0::2])) == (pytest.approx(800, abs=40), pytest.approx(900, abs=40))
    assert (min(words[1::2]), max(words[1::2])) == (pytest.approx(250, abs=20), pytest.approx(500, abs=20))
    assert (min(pixel[0::2]) == 0, max(pixel[1::2]) == 1000) == (True, True)
