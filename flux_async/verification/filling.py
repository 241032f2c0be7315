"""Filling: writes the aligned, colour-matched result into the holes of the original, at its full size.

The work is done in windows of bounded size, so that memory depends little on the size of the image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, Pixels, Window, components, lab, to_pixels
from flux_async.verification.channels import to_own_channels
from flux_async.verification.colours import Tone, to_rgb
from flux_async.verification.grain import add_grain
from flux_async.verification.grid import Matrix, distance_to, grow, offset_matrix, warp
from flux_async.verification.sharpness import sharpened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from flux_async.verification.holes import Hole
    from flux_async.verification.loading import LoadedImage

TILE = 2048
"""Longest side of a window without its margin, in pixels of the original."""
FINE_DETAIL_SCALE = 1.3
"""Originals that are larger than the result by this factor have details that the result lacks."""

_JOINED = 12
_MARGIN = 24
_MARGIN_HEIGHTS = 1.5
_SMALLEST_TEXT, _LARGEST_TEXT = 16, 80
_INSIDE = 0.3


@attrs.frozen(kw_only=True, eq=False)
class Fill:
    """What fills the holes, and where, on the grid on which both images were compared.

    Attributes:
        source: The result, in full.
        to_source: From pixels of the grid to pixels of ``source``.
        to_grid: From pixels of the original to pixels of the grid.
        hole: What is replaced.
        tone: Map of the result's colours.
        offset: Further correction of its colours, for each pixel of the grid.
        sharpening: Filter for its lightness, or None.
    """

    source: Pixels
    to_source: Matrix
    to_grid: Matrix
    hole: Hole
    tone: Tone
    offset: Floats
    sharpening: Floats | None

    @property
    def enlarged(self) -> float:
        """Pixels of the original for one pixel of the grid."""
        return 1 / float(self.to_grid[0, 0])

    @property
    def upsampled(self) -> float:
        """Pixels of the original for one pixel of the result."""
        return 1 / math.sqrt(abs(float(np.linalg.det((self.to_source @ self.to_grid)[:2, :2]))))


@attrs.frozen(kw_only=True, eq=False)
class Filled:
    """The filled image, upright: its own channels, the same in RGB, and which pixels were changed."""

    channels: NDArray[np.uint8]
    pixels: Pixels
    changed: Mask


def fill_holes(original: LoadedImage, fill: Fill) -> Filled:
    """Return the original with the holes filled."""
    channels, pixels = original.channels.copy(), original.pixels.copy()
    changed = np.zeros(pixels.shape[:2], np.bool_)
    for tile, window in _windows(fill, changed.shape):
        filled, hole = _fill_window(original.pixels, window, fill)
        inner = tile.within(window).slices
        part = np.zeros_like(hole)
        part[inner] = hole[inner]
        if part.any():
            own = original.channels[window.slices]
            values = to_own_channels(filled, own, part, original.mode, original.palette)
            channels[window.slices][part] = values[part]
            pixels[window.slices][part] = to_pixels(filled[part])
            changed[window.slices] |= part
    return Filled(channels=channels, pixels=pixels, changed=changed)


def _windows(fill: Fill, shape: tuple[int, ...]) -> Iterator[tuple[Window, Window]]:
    """Yield the tiles of each group of holes, each with the window of surroundings that it is filled from."""
    scale = fill.enlarged
    margin = int(
        (_MARGIN + _MARGIN_HEIGHTS * np.clip(fill.hole.height, _SMALLEST_TEXT, _LARGEST_TEXT)) * scale
    )
    for box in components(grow(fill.hole.mask, _JOINED)).boxes[1:]:
        bottom = min(shape[0], math.ceil(box.bottom * scale))
        right = min(shape[1], math.ceil(box.right * scale))
        for top in range(int(box.top * scale), bottom, TILE):
            for left in range(int(box.left * scale), right, TILE):
                tile = Window(top, left, min(bottom, top + TILE), min(right, left + TILE))
                yield tile, tile.grown(margin, shape)


def _fill_window(original: Pixels, window: Window, fill: Fill) -> tuple[Floats, Mask]:
    """Return a window of the original, mixed with the result, and which of its pixels are mixed."""
    place = fill.to_grid @ offset_matrix(window.left, window.top)

    def lifted(values: Floats) -> Floats:
        return warp(values, place, window.shape, interpolation=cv2.INTER_LINEAR)

    core = lifted(fill.hole.core.astype(np.float32)) > _INSIDE
    before = original[window.slices].astype(np.float32)
    if not core.any():
        return before, core
    # Straight from the result to the full grid, in one interpolation. At the result's own border it is
    # mirrored: repeated pixels become visible streaks.
    taken = warp(
        fill.source,
        fill.to_source @ place,
        window.shape,
        interpolation=cv2.INTER_LANCZOS4,
        border=cv2.BORDER_REFLECT_101,
    )
    values = fill.tone.apply(lab(taken)) + lifted(fill.offset)
    if fill.sharpening is not None and fill.enlarged <= FINE_DETAIL_SCALE:
        values[..., 0] = sharpened(np.ascontiguousarray(values[..., 0]), fill.sharpening)
    after = to_rgb(values)
    feather = fill.hole.feather * fill.enlarged
    away = distance_to(core)
    if fill.upsampled > FINE_DETAIL_SCALE:
        busy = lifted(fill.hole.mask.astype(np.float32)) > 0.01  # noqa: PLR2004 - any part of it
        cell = int(np.clip(fill.hole.height * fill.enlarged, 24, 200))
        after = add_grain(after, before, hole=away < feather, busy=busy, scale=fill.upsampled, cell=cell)
    return _mixed(before, after, away, feather), away < feather


def _mixed(before: Floats, after: Floats, away: Floats, feather: float) -> Floats:
    """Return both mixed: all ``after`` in the core, none of it from ``feather`` pixels away on."""
    part = np.clip(1 - away / feather, 0, 1)
    share = (part * part * (3 - 2 * part))[..., None]
    return np.asarray(before * (1 - share) + after * share, np.float32)


def border_step(composed: Pixels, original: Pixels, hole: Mask) -> float:
    """Return the mean step across the hole's border minus the usual step just outside it, in grey levels."""
    if not hole.any() or hole.all():
        return 0.0
    after, before = (_grey(image) for image in (composed, original))
    near = grow(hole, 4) & ~grow(hole, 1)
    across: list[NDArray[np.int16]] = []
    usual: list[NDArray[np.int16]] = []
    for axis in (0, 1):
        size = hole.shape[axis]
        first, second = (np.arange(size - 1), np.arange(1, size))
        border = np.take(hole, first, axis) != np.take(hole, second, axis)
        beside = np.take(near, first, axis) & np.take(near, second, axis)
        across.append(np.abs(np.diff(after, axis=axis))[border])
        usual.append(np.abs(np.diff(before, axis=axis))[beside])
    steps, ordinary = np.concatenate(across), np.concatenate(usual)
    return float(steps.mean() - (ordinary.mean() if ordinary.size else 0))


def _grey(image: Pixels) -> NDArray[np.int16]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.int16)
