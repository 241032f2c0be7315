"""Stroke mask: the pixels of the found lines that are to be replaced.

Ink is looked for by colour first, by contrast second. An implausible share of ink (close to 0 or to 1) means
that the method failed. If both fail, the whole line is masked, but only if it can be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from flux_async.imaging.arrays import Mask, Pixels, Window, close_gaps, dilate, gaussian, lab
from flux_async.imaging.smooth_fill import fill_smoothly
from flux_async.imaging.stroke_colours import ink_by_colour
from flux_async.imaging.stroke_contrast import measure_contrast, texture
from flux_async.imaging.text_detection import is_readable, raise_contrast
from flux_async.imaging.text_regions import TextRegion, along_line, covered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LEAST_INK = 0.07
MOST_INK = 0.68
MOST_COLOURED_INK = 0.85
"""Larger limit for ink found by colour: bold outlined letters cover more of the line."""
GROWTH = 0.045
"""Ink is grown by this share of the line's height, to cover anti-aliasing, shadows and outlines."""
GAP = 2
"""Length of a stretch without ink, in half heights."""
PIECE = 2
"""Length of the pieces of a line that are searched separately, in heights."""
SURE_EDGE = 2
"""Ink is always grown by this many pixels."""
SMOOTH = 3.0
"""Backgrounds up to this roughness (a distance in CIELAB) are smooth."""
LEAST_DIFFERENCE, DIFFERENCE = 1.5, 0.75
"""An edge differs from the background by at least this distance, and by this share of the roughness."""
TRACE_GROWTH = 0.08
"""Remains of a first pass are faint at their edges, so they are grown more."""


def stroke_mask(image: Pixels, regions: Sequence[TextRegion]) -> Mask:
    """Return the ink of the regions, edges included."""
    text = covered(regions, image.shape)
    return _collect(image.shape, ((region, _strokes(image, region, text)) for region in regions))


def trace_mask(image: Pixels, regions: Sequence[TextRegion]) -> Mask:
    """Return the ink of text that is left after a pass; limits are lower, as text is known to be there."""
    text = covered(regions, image.shape)
    return _collect(image.shape, ((region, _traces(image, region, text)) for region in regions))


def surroundings(region: TextRegion, shape: tuple[int, ...]) -> Window:
    """Return the window around a line in which its ink is looked for."""
    return region.window.grown(int(max(6, 0.5 * region.height)), shape)


def _collect(shape: tuple[int, ...], strokes: Iterable[tuple[TextRegion, Mask | None]]) -> Mask:
    mask = np.zeros(shape[:2], np.bool_)
    for region, found in strokes:
        if found is not None:
            mask[surroundings(region, shape).slices] |= found
    return mask


def _strokes(image: Pixels, region: TextRegion, text: Mask) -> Mask | None:
    """Return the strokes of a line; if a stretch of it shows no ink, its pieces are searched separately.

    A transparent line that crosses two backgrounds has no single ink colour along its whole length.
    """
    window = surroundings(region, image.shape)
    ink = _ink(image, region, window, text)
    if ink is not None and _has_gap(ink[region.window.within(window).slices], region):
        for piece in _pieces(region):
            found = _ink(image, piece, window, text)
            ink |= found if found is not None else False
    if ink is not None:
        return _with_edges(image[window.slices], ink, region.height, GROWTH)
    if is_readable(image, region) or is_readable(raise_contrast(image), region):
        return dilate(region.placed(window), max(1.0, 0.04 * region.height))
    return None


def _ink(image: Pixels, region: TextRegion, window: Window, text: Mask) -> Mask | None:
    """Return the ink found by colour, else by contrast, else None."""
    line, near = region.placed(window), text[window.slices]
    ink = ink_by_colour(image, region, window, near)
    if ink is not None and _is_plausible(ink, line, most=MOST_COLOURED_INK):
        return ink
    contrast = measure_contrast(image, region, window, near)
    ink = contrast.agreed() if contrast is not None else line
    return ink if _is_plausible(ink, line) else None


def _has_gap(ink: Mask, region: TextRegion) -> bool:
    """Return whether a stretch of the line, longer than a space between words, shows almost no ink."""
    along = along_line(region.mask) / (region.height / 2)
    steps = along.astype(np.int32)
    shares = np.bincount(steps, weights=ink[region.mask]) / np.maximum(np.bincount(steps), 1)
    bare = shares < 0.25 * max(float(ink[region.mask].mean()), 1e-6)
    return any(bare[start : start + GAP].all() for start in range(len(bare) - GAP + 1))


def _pieces(region: TextRegion) -> Iterator[TextRegion]:
    """Yield overlapping pieces of a line, each about three times as long as high."""
    along = np.zeros(region.mask.shape, np.float32)
    along[region.mask] = along_line(region.mask)
    for start in np.arange(0, region.length, PIECE * region.height / 2):
        stretch = region.mask & (along >= start) & (along <= start + PIECE * region.height)
        if stretch.any():
            yield attrs.evolve(region, mask=stretch, core=region.core & stretch, length=PIECE * region.height)


def _traces(image: Pixels, region: TextRegion, text: Mask) -> Mask:
    window = surroundings(region, image.shape)
    line = region.placed(window)
    contrast = measure_contrast(image, region, window, text[window.slices])
    ink = contrast.either() if contrast is not None else line
    if _is_plausible(ink, line):
        return _with_edges(image[window.slices], ink, region.height, TRACE_GROWTH)
    return dilate(line, max(1.0, 0.04 * region.height))


def _is_plausible(ink: Mask, line: Mask, *, most: float = MOST_INK) -> bool:
    share = float((ink & line).sum()) / max(1, int(line.sum()))
    return LEAST_INK <= share <= most


def _with_edges(near: Pixels, ink: Mask, height: float, growth: float) -> Mask:
    """Return the ink with its edges: anti-aliasing, shadows, outlines.

    On a smooth background, pixels that look like the background are left out: a smaller hole is filled better.
    On a textured one a soft shadow does not differ from the texture, so all pixels in reach are masked.
    """
    grown = close_gaps(dilate(ink, max(2.0, growth * height)), max(1, int(0.03 * height)))
    values, background = lab(near), ~grown
    roughness = texture(values, background, height) if background.any() else np.inf
    if roughness > SMOOTH:
        return grown
    # Blurred: that averages the grain of the background, but not the edge of a letter.
    difference = gaussian(values - fill_smoothly(values, grown), 1.0)
    edge = (difference**2).sum(2) > max(LEAST_DIFFERENCE, DIFFERENCE * roughness) ** 2
    return dilate(ink, SURE_EDGE) | (grown & dilate(edge, 1))
