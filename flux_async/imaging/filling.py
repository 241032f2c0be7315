"""Fills the hole that removed text leaves.

A smooth background gets a smooth fill with the grain of the background; a textured one gets patches of the
image. A trial decides: the hole is widened by a few pixels and filled smoothly, and the fill is compared
with the known pixels there.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import cv2
import numpy as np

from flux_async.imaging.arrays import (
    Floats,
    Mask,
    Pixels,
    Window,
    components,
    depth,
    dilate,
    dilate_square,
    fill_smoothly,
    masked_gaussian,
    relax,
    to_pixels,
)
from flux_async.imaging.patch_fill import fill_with_patches

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 7
ROUGH = 6.0
"""Where the error of a smooth fill (root mean square, of 255) is larger, patches are used."""
THICK = 9.0
"""Letters with a half width above this many pixels are filled by one method as a whole."""
NAVIER_STOKES_RADIUS = 4

_PARTLY = 0.05
_FEW_PIXELS = 20
_JOINED = 12
_WINDOW_MARGIN = 40
_WINDOW_SHARE = 0.7
_LARGEST_GRAIN = 12.0
_OUTLIER = 4.5
_VISIBLE_GRAIN = 0.6


class Fill(enum.Enum):
    """Method that fills the area of the text."""

    HYBRID = "hybrid"
    """Smooth with grain on a smooth background, patches on a textured one: the best quality."""

    SMOOTH = "smooth"
    """Smooth with grain everywhere."""

    PATCHES = "patches"
    """Patches everywhere."""

    NAVIER_STOKES = "navier-stokes"
    """OpenCV's Navier-Stokes inpainting: fast, without grain."""


def fill_hole(image: Pixels, hole: Mask, fill: Fill = Fill.HYBRID) -> Pixels:
    """Return the image with its hole filled; the same input gives the same output."""
    if fill is Fill.NAVIER_STOKES:
        mask = hole.astype(np.uint8) * 255
        return np.asarray(cv2.inpaint(image, mask, NAVIER_STOKES_RADIUS, cv2.INPAINT_NS), np.uint8)
    values = image.astype(np.float32)
    missing = hole.copy()
    for window, part in _groups(hole):
        near = values[window.slices]
        unknown = missing[window.slices]
        near[part] = _fill_part(near, part, unknown, fill)[part]
        unknown[part] = False
    return to_pixels(values)


def _groups(hole: Mask) -> Iterator[tuple[Window, Mask]]:
    """Yield groups of nearby strokes, each with the window of surroundings it is filled from."""
    joined = components(dilate_square(hole, _JOINED))
    for number in range(1, joined.count):
        box = joined.boxes[number]
        thickness = min(box.shape) - 2 * _JOINED
        window = box.grown(int(_WINDOW_MARGIN - _JOINED + _WINDOW_SHARE * max(0, thickness)), hole.shape)
        yield window, (joined.labels[window.slices] == number) & hole[window.slices]


def _fill_part(near: Floats, part: Mask, unknown: Mask, fill: Fill) -> Floats:
    wrong = _smooth_fill_error(near, unknown)
    rough = _rough_part(part, wrong, fill)
    filled, smooth = near.copy(), part & ~rough
    if smooth.any():
        base = relax(fill_smoothly(near, unknown), unknown, rounds=40)
        filled[smooth] = base[smooth]
        if float(np.median(wrong[smooth])) > _VISIBLE_GRAIN:
            filled[smooth] += _grain(near, unknown)[smooth]
    if rough.any():
        patched = fill_with_patches(filled, unknown & ~smooth, seed=SEED)
        filled[rough] = patched[rough]
    return filled


def _rough_part(part: Mask, wrong: Floats, fill: Fill) -> Mask:
    """Return the part of the hole that is filled with patches."""
    if fill is not Fill.HYBRID:
        return part if fill is Fill.PATCHES else np.zeros_like(part)
    rough = dilate(part & (wrong >= ROUGH), 6) & part
    if rough.any():
        rough |= _thick_and_partly(part, rough)
    if rough.sum() < 0.02 * part.sum():
        return np.zeros_like(part)
    return part if (part & ~rough).sum() < 0.04 * part.sum() else rough


def _thick_and_partly(part: Mask, rough: Mask) -> Mask:
    """Return the thick letters that are partly rough: two methods inside one letter would be visible."""
    letters = components(part)
    thickness = np.zeros(letters.count, np.float32)
    np.maximum.at(thickness, letters.labels.ravel(), depth(part).ravel())
    share = np.bincount(letters.labels[rough], minlength=letters.count) / np.maximum(letters.areas, 1)
    chosen = (thickness > THICK) & (share > _PARTLY)
    chosen[0] = False
    return np.asarray(chosen[letters.labels], np.bool_)


def _smooth_fill_error(near: Floats, hole: Mask) -> Floats:
    """Return the local error of a smooth fill, measured on a rim of 3 known pixels around the hole."""
    wider = dilate(hole, 3)
    rim = wider & ~dilate(hole, 1)
    if rim.sum() < _FEW_PIXELS:
        return np.zeros(hole.shape, np.float32)
    square = np.minimum(((fill_smoothly(near, wider) - near) ** 2).mean(2), 60.0**2)
    return np.sqrt(masked_gaussian((square * rim).astype(np.float32), rim.astype(np.float32), 14.0))


def _grain(near: Floats, hole: Mask) -> Floats:
    """Return film grain for the hole, copied from known pixels nearby.

    All pixels are copied with one common shift, which keeps the spectrum of the grain. Pixels whose shifted
    position is unknown are filled with the next shift.
    """
    known = ~dilate(hole, 1)
    fine = near - masked_gaussian(near, known.astype(np.float32), 1.6)
    usual = float(np.median(np.abs(fine[known]))) if known.any() else 0.0
    limit = min(_LARGEST_GRAIN, _OUTLIER * usual)  # larger values are edges, which must not be copied
    fine = np.clip(fine, -limit, limit)
    random = np.random.default_rng(SEED)
    grain, rows, columns = np.zeros_like(near), *np.nonzero(hole)
    for attempt in range(60):
        reach = 24 + attempt
        shift_rows, shift_columns = (int(shift) for shift in random.integers(-reach, reach + 1, 2))
        from_rows, from_columns = rows + shift_rows, columns + shift_columns
        usable = (
            (from_rows >= 0)
            & (from_rows < hole.shape[0])
            & (from_columns >= 0)
            & (from_columns < hole.shape[1])
        )
        usable[usable] = known[from_rows[usable], from_columns[usable]]
        grain[rows[usable], columns[usable]] = fine[from_rows[usable], from_columns[usable]]
        rows, columns = rows[~usable], columns[~usable]
        if not len(rows):
            break
    return grain
