"""Both images on one grid, then aligned and matched in colour, so that they can be compared."""

# ruff: noqa: PLR2004 - the numbers are thresholds and widths in pixels, each used once

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, Pixels, lab, resize
from flux_async.imaging.text_detection import covered
from flux_async.verification.alignment import Alignment, align, correlation
from flux_async.verification.colours import SAMPLES, fit_tone
from flux_async.verification.grid import Matrix, Shape, frame_of, grow, size_matrix, warp
from flux_async.verification.text_areas import text_zone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flux_async.imaging.text_detection import TextRegion
    from flux_async.verification.loading import LoadedImage

QUICK_SAMPLES = 30_000
"""Pixels that the colours are matched on where it has to be quick."""
GRID_PIXELS = 2_000_000
"""Images are compared on a grid of at most this many pixels; results of Flux Kontext have about a million."""


@attrs.frozen(kw_only=True, eq=False)
class Scene:
    """Both images on the grid, in CIELAB.

    ``result`` is not yet aligned. ``source`` is the result in full, if it is not larger than the original;
    ``result_shape`` are its own height and width. ``opaque`` is where the original is.
    """

    original: Floats
    pixels: Pixels
    result: Floats
    source: Pixels
    result_shape: Shape
    opaque: Mask
    to_grid: Matrix

    @property
    def shape(self) -> Shape:
        """Height and width of the grid."""
        return self.original.shape[0], self.original.shape[1]


@attrs.frozen(kw_only=True, eq=False)
class Overlay:
    """The result laid over the original on the grid, with matched colours.

    ``frame`` is the part of the grid that it covers, ``usable`` the part of that without text.
    """

    alignment: Alignment
    plain: Floats
    matched: Floats
    frame: Mask
    usable: Mask


def make_scene(original: LoadedImage, result: Pixels) -> Scene:
    """Return both images on the grid on which they are compared."""
    full = original.pixels.shape[:2]
    source = _at_most(result, full[0] * full[1])
    seen = _at_most(source, GRID_PIXELS)
    scale = min(1.0, math.sqrt(seen.shape[0] * seen.shape[1] / (full[0] * full[1])))
    shape = max(1, round(full[0] * scale)), max(1, round(full[1] * scale))
    pixels = resize(original.pixels, shape) if scale < 1 else original.pixels
    return Scene(
        original=lab(pixels),
        pixels=pixels,
        result=lab(seen),
        source=source,
        result_shape=(result.shape[0], result.shape[1]),
        opaque=_opaque(original, shape),
        to_grid=size_matrix(full, shape),
    )


def overlay_result(scene: Scene, regions: Sequence[TextRegion], *, quick: bool = False) -> Overlay | None:
    """Return the aligned result, or None where it shows too little of the original.

    ``quick`` takes half the time, and is less exact.
    """
    # Beside transparent pixels the details depend on the ground that the vendor laid the image on.
    keep = ~grow(~scene.opaque, 12) & ~grow(text_zone(regions, scene.shape), 6)
    if keep.mean() < 0.15:  # little is left beside the text: use what is between the lines
        keep = scene.opaque & ~covered(regions, scene.shape)
    if not keep.any():
        return None
    original, result = grey(scene.original), grey(scene.result)
    alignment = align(original, result, keep, quick=quick)
    frame = frame_of(shape_of(scene.result), alignment.matrix, scene.shape) > 0.99  # all of it
    usable = keep & frame
    if usable.mean() < 0.05:  # a twentieth of the image
        return None
    plain = warp(scene.result, alignment.matrix, scene.shape)
    tone = fit_tone(plain, scene.original, usable, samples=QUICK_SAMPLES if quick else SAMPLES)
    matched = tone.apply(plain)
    if not alignment.flat:
        alignment = attrs.evolve(alignment, match=correlation(original, grey(matched), usable))
    return Overlay(alignment=alignment, plain=plain, matched=matched, frame=frame, usable=usable)


def grey(values: Floats) -> Floats:
    """Return the lightness of CIELAB values, from 0 to 255."""
    return np.ascontiguousarray(values[..., 0] * np.float32(2.55))


def shape_of(values: Floats) -> Shape:
    """Return height and width."""
    return values.shape[0], values.shape[1]


def _at_most(image: Pixels, pixels: int) -> Pixels:
    """Return the image, reduced to at most that many pixels."""
    have = image.shape[0] * image.shape[1]
    if have <= pixels:
        return image
    scale = math.sqrt(pixels / have)
    return resize(image, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))


def _opaque(original: LoadedImage, shape: Shape) -> Mask:
    """Return where the original is opaque; everywhere if it is little but text on nothing."""
    if original.alpha is None:
        return np.ones(shape, np.bool_)
    alpha = resize(original.alpha, shape) if original.alpha.shape != shape else original.alpha
    opaque = np.asarray(alpha > 250, np.bool_)  # of 255
    return opaque if opaque.mean() >= 0.3 else np.ones(shape, np.bool_)  # a third
