"""Outlines of the replaced areas, to be drawn over an image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageChops, ImageOps

from flux_async.imaging.arrays import Mask

Outline: TypeAlias = tuple[int, ...]
"""A polygon: x and y of each corner, in thousandths of the image's width and height."""

CELLS = 128
"""Cells along the longer side of the grid that outlines are drawn on."""
_MARGIN = 2
"""Cells between a pixel and its outline. Pixels less than two margins apart are in one."""
_WHOLE = 1000


def outlines_of(mask: Mask) -> tuple[Outline, ...]:
    """Return polygons around all pixels of a mask, the uppermost first; they have no holes of their own."""
    cells = _cells(mask)
    height, width = cells.shape
    room = np.pad(cells, 2 * _MARGIN).astype(np.uint8)
    grown = cv2.dilate(room, np.ones((2 * _MARGIN + 1,) * 2, np.uint8))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    # Corners may be cut by a cell: one and a half lie between the outline and its pixels.
    shapes = (cv2.approxPolyDP(contour, epsilon=1.0, closed=True).reshape(-1, 2) for contour in contours)
    scale = np.array([_WHOLE / width, _WHOLE / height])
    points = ((shape - 2 * _MARGIN + 0.5) * scale for shape in shapes)
    polygons = (np.clip(np.rint(one), 0, _WHOLE).astype(int) for one in points)
    return tuple(sorted((tuple(one.ravel().tolist()) for one in polygons), key=lambda one: (one[1], one[0])))


def _cells(mask: Mask) -> Mask:
    """Return a grid of at most 128 cells a side: whether any pixel of the mask lies in each."""
    if not mask.any():
        return np.zeros((1, 1), np.bool_)
    cells = mask
    for axis, start in enumerate(_starts(mask.shape)):
        cells = np.logical_or.reduceat(cells, start, axis)
    return cells


def _starts(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    scale = min(1.0, CELLS / max(shape))
    for length in shape:
        count = max(1, round(length * scale))
        yield np.arange(count) * length // count


def changed_outlines(original: Path, composed: Path) -> tuple[Outline, ...]:
    """Return outlines of all pixels that differ; none where the images have not the same size.

    In a lossless file these are the replaced pixels: ``preserve`` leaves every other one as it was.
    """
    before, after = _upright(original), _upright(composed)
    if before.size != after.size:
        return ()
    changed = reduce(ImageChops.lighter, ImageChops.difference(before, after).split())
    return outlines_of(np.asarray(changed) > 0)


def _upright(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")
