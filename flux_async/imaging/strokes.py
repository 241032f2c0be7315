"""The stroke mask: which pixels of the found lines are to be replaced.

For each line the colours are asked first, the contrast second. A share of ink that no lettering has (next
to nothing, or nearly everything) means the method was fooled; when both were, the whole line is taken, but
only if the recogniser can read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from flux_async.imaging.arrays import Mask, Pixels, Window, close_gaps, dilate
from flux_async.imaging.detection import TextRegion, along_line, covered
from flux_async.imaging.finding import is_readable, raise_contrast
from flux_async.imaging.stroke_colours import ink_by_colour
from flux_async.imaging.stroke_contrast import weigh

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LEAST_INK = 0.07
MOST_INK = 0.68
MOST_COLOURED_INK = 0.85
"""Colours absent from the surroundings may cover more: fat outlined letters do."""
GROWTH = 0.045
"""Ink is grown by this share of the line's height: anti-aliasing, soft shadows, outlines."""
GAP = 2
"""A stretch without ink is this many half heights long."""
PIECE = 3
"""Stretches that are judged by themselves are this many heights long."""
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
    """Return the strokes of a line; where some stretch of it shows no ink, each stretch is judged by itself.

    A see-through line that crosses from one ground to another has no colour of its own along its whole
    length.
    """
    window = surroundings(region, picture.shape)
    ink = _ink(picture, region, window, text)
    if ink is not None and _has_gap(ink[region.window.within(window).slices], region):
        for piece in _pieces(region):
            found = _ink(picture, piece, window, text)
            ink |= found if found is not None else False
    if ink is not None:
        return _with_edges(ink, region.height, GROWTH)
    if is_readable(picture, region) or is_readable(raise_contrast(picture), region):
        return dilate(region.placed(window), max(1.0, 0.04 * region.height))
    return None


def _ink(picture: Pixels, region: TextRegion, window: Window, text: Mask) -> Mask | None:
    """Return what looks like lettering by colour, else by contrast, else None."""
    line, near = region.placed(window), text[window.slices]
    ink = ink_by_colour(picture, region, window, near)
    if ink is not None and _is_lettering(ink, line, most=MOST_COLOURED_INK):
        return ink
    evidence = weigh(picture, region, window, near)
    ink = evidence.agreed() if evidence is not None else line
    return ink if _is_lettering(ink, line) else None


def _has_gap(ink: Mask, region: TextRegion) -> bool:
    """Tell whether some stretch of the line, longer than a space between words, shows next to no ink."""
    along = along_line(region.mask) / (region.height / 2)
    steps = along.astype(np.int32)
    shares = np.bincount(steps, weights=ink[region.mask]) / np.maximum(np.bincount(steps), 1)
    bare = shares < 0.25 * max(float(ink[region.mask].mean()), 1e-6)
    return any(bare[start : start + GAP].all() for start in range(1, len(bare) - GAP))


def _pieces(region: TextRegion) -> Iterator[TextRegion]:
    """Cut a line into stretches about three times as long as high, each overlapping the next."""
    along = np.zeros(region.mask.shape, np.float32)
    along[region.mask] = along_line(region.mask)
    for start in np.arange(0, region.length, 2 * region.height):
        stretch = region.mask & (along >= start) & (along <= start + PIECE * region.height)
        if stretch.any():
            yield attrs.evolve(region, mask=stretch, core=region.core & stretch, length=PIECE * region.height)


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
