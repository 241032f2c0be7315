"""Draws cases of the preserve benchmark: original with its hole outlined, result, composed, details."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageOps

from flux_async import Preserved
from flux_async.imaging.arrays import Mask, Pixels
from harness.preserve_cases import Case

WIDTH, HEIGHT = 420, 300
DETAIL = 150
_GAP = 6


def draw_sheet(cases: Sequence[tuple[Case, Preserved]]) -> Image.Image:
    """Return one row for each case: original, result, composed, and the same detail of all three."""
    row = HEIGHT + _GAP
    sheet = Image.new("RGB", (4 * (WIDTH + _GAP), max(1, len(cases)) * row), "white")
    for number, (case, preserved) in enumerate(cases):
        for column, image in enumerate(_row(case, preserved)):
            image.thumbnail((WIDTH, HEIGHT))
            sheet.paste(image, (column * (WIDTH + _GAP), number * row))
    return sheet


def upright_hole(case: Case, preserved: Preserved) -> Mask:
    """Return the mask of the replaced pixels, upright; the report has it in the orientation of the file."""
    assert preserved.report.hole is not None
    mask = Image.fromarray(preserved.report.hole)
    mask.getexif()[0x0112] = Image.open(io.BytesIO(case.original)).getexif().get(0x0112, 1)
    return np.asarray(ImageOps.exif_transpose(mask))


def _row(case: Case, preserved: Preserved) -> list[Image.Image]:
    hole = upright_hole(case, preserved)
    size = case.clean.shape[1::-1]
    images = [_opened(data).resize(size) for data in (case.original, case.result, preserved.image)]
    pixels = [np.array(image) for image in images]
    return [Image.fromarray(_outlined(pixels[0], hole)), images[1], images[2], _detail(pixels, hole)]


def _opened(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def _outlined(image: Pixels, hole: Mask) -> Pixels:
    reach = max(1, image.shape[1] // 400)
    inner = cv2.erode(hole.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)) > 0
    outlined = image.copy()
    outlined[hole & ~inner] = (255, 0, 200)
    return outlined


def _detail(images: Sequence[Pixels], hole: Mask) -> Image.Image:
    """Return the busiest square of the hole, one third of the sheet's column for each image."""
    share = cv2.blur(hole.astype(np.float32), (DETAIL, DETAIL))
    share = np.where(np.abs(share - 0.5) < 0.4, 1 - np.abs(share - 0.5), 0)
    half = DETAIL // 2
    share[:half] = share[-half:] = share[:, :half] = share[:, -half:] = 0
    row, column = np.unravel_index(int(np.argmax(share)), share.shape)
    row, column = max(half, int(row)), max(half, int(column))
    cut = [image[row - half : row + half, column - half : column + half] for image in images]
    return Image.fromarray(np.concatenate(cut, 1)).resize((WIDTH, WIDTH // 3))
