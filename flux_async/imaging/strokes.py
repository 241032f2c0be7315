"""The stroke mask: which pixels of the found lines are to be replaced.

For each line the colours are asked first, the contrast second. A share of ink that no lettering has (next
to nothing, or nearly everything) means the method was fooled; when both were, the whole line is taken, but
only if the recogniser can read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flux_async.imaging.arrays import Mask, Pixels, Window, close_gaps, dilate
from flux_async.imaging.detection import TextRegion, covered
from flux_async.imaging.finding import is_readable, raise_contrast
from flux_async.imaging.stroke_colours import ink_by_colour
from flux_async.imaging.stroke_contrast import weigh

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LEAST_INK = 0.07
MOST_INK = 0.68
MOST_COLOURED_INK = 0.85
"""Colours absent from the surroundings may cover more: fat outlined letters do."""
GROWTH = 0.045
"""Ink is grown by this share of the line's height: anti-aliasing, soft shadows, outlines."""
TRACE_GROWTH = 0.08
"""Traces left by a first pass are faint at their edges, so they are grown more."""


def stroke_mask(picture: Pixels, regions: Sequence[TextRegion]) -> Mask:
    """Return the pixels that make up the text of the regions, edges included."""
    text = covered(regions, picture.shape)
    return _collect(picture.shape, ((region, _strokes(picture, region, text)) for region in regions))


def trace_mask(picture: Pixels, regions: Sequence[TextRegion]) -> Mask:
    """Return the pixels of text still seen after a pass: generously, as text is known to be there."""
    text = covered(regions, picture.shape)
    return _collect(picture.shape, ((region, _traces(picture, region, text)) for region in regions))


def surroundings(region: TextRegion, shape: tuple[int, ...]) -> Window:
    """Return the window around a line in which its strokes are looked for."""
    return region.window.grown(int(max(6, 0.5 * region.height)), shape)


def _collect(shape: tuple[int, ...], strokes: Iterable[tuple[TextRegion, Mask | None]]) -> Mask:
    mask = np.zeros(shape[:2], np.bool_)
    for region, found in strokes:
        if found is not None:
            mask[surroundings(region, shape).slices] |= found
    return mask


def _strokes(picture: Pixels, region: TextRegion, text: Mask) -> Mask | None:
    window = surroundings(region, picture.shape)
    line, near = region.placed(window), text[window.slices]
    ink = ink_by_colour(picture, region, window, near)
    if ink is not None and _is_lettering(ink, line, most=MOST_COLOURED_INK):
        return _with_edges(ink, region.height, GROWTH)
    evidence = weigh(picture, region, window, near)
    ink = evidence.agreed() if evidence is not None else line
    if _is_lettering(ink, line):
        return _with_edges(ink, region.height, GROWTH)
    if is_readable(picture, region) or is_readable(raise_contrast(picture), region):
        return dilate(line, max(1.0, 0.04 * region.height))
    return None


def _traces(picture: Pixels, region: TextRegion, text: Mask) -> Mask:
    window = surroundings(region, picture.shape)
    line = region.placed(window)
    evidence = weigh(picture, region, window, text[window.slices])
    ink = evidence.either() if evidence is not None else line
    if _is_lettering(ink, line):
        return _with_edges(ink, region.height, TRACE_GROWTH)
    return dilate(line, max(1.0, 0.04 * region.height))


def _is_lettering(ink: Mask, line: Mask, *, most: float = MOST_INK) -> bool:
    share = float((ink & line).sum()) / max(1, int(line.sum()))
    return LEAST_INK <= share <= most


def _with_edges(ink: Mask, height: float, growth: float) -> Mask:
    return close_gaps(dilate(ink, max(2.0, growth * height)), max(1, int(0.03 * height)))
