"""Remove the text from a picture: find it, mask its strokes, fill, look again, and change nothing else."""

from __future__ import annotations

import math

import attrs
import numpy as np

from flux_async.imaging.arrays import Mask, Pixels, dilate, resize_mask, resize_pixels
from flux_async.imaging.detection import TextRegion, covered
from flux_async.imaging.filling import Fill, fill_hole
from flux_async.imaging.finding import Quality, find_text, is_readable, require_rgb
from flux_async.imaging.strokes import stroke_mask, trace_mask

WORKING_PIXELS = 4_000_000
"""Larger pictures are worked on in a smaller copy; only the filled hole is brought back to full size."""

_MORE_PASSES = {Quality.FAST: 1, Quality.GOOD: 2}
"""How often the result is looked at again."""
_RIM = 1
_REACH = 4
_TRACE_SCORE = 0.6
_LARGEST_TRACE = 0.3


@attrs.frozen(kw_only=True, eq=False)
class Removal:
    """A picture without its text.

    ``hole`` marks the only pixels that may differ from the original. ``regions`` are the lines that were
    found, ``passes`` how many lines each pass worked on; where nothing was found there was no pass.
    """

    picture: Pixels
    hole: Mask
    regions: tuple[TextRegion, ...]
    passes: tuple[int, ...]


def remove_text(picture: Pixels, *, quality: Quality = Quality.FAST, fill: Fill = Fill.HYBRID) -> Removal:
    """Remove the text from a picture (uint8 RGB, height x width x 3).

    The same picture gives the same result, bit for bit, on the same machine. Safe to call from several
    threads; the runs of the networks take turns.

    Raises:
        ValueError: not a uint8 RGB array, or one without pixels.
        ImportError: the text networks are not installed.
    """
    require_rgb(picture)
    height, width = picture.shape[:2]
    if height * width <= WORKING_PIXELS:
        return _remove(picture, quality, fill)
    scale = math.sqrt(WORKING_PIXELS / (height * width))
    shape = (max(1, int(height * scale)), max(1, int(width * scale)))
    small = _remove(resize_pixels(picture, shape), quality, fill)
    hole = resize_mask(small.hole, (height, width), threshold=0.05)
    return Removal(
        picture=_inside(hole, resize_pixels(small.picture, (height, width)), picture),
        hole=hole,
        regions=tuple(region.scaled(shape, (height, width)) for region in small.regions),
        passes=small.passes,
    )


def _remove(picture: Pixels, quality: Quality, fill: Fill) -> Removal:
    nothing = np.zeros(picture.shape[:2], np.bool_)
    regions = find_text(picture, quality=quality)
    if not regions:
        return Removal(picture=picture.copy(), hole=nothing, regions=(), passes=())
    hole = dilate(stroke_mask(picture, regions), _RIM)
    result = _inside(hole, fill_hole(picture, hole, fill), picture)
    passes = [len(regions)]
    for _ in range(_MORE_PASSES[quality]):
        text = covered(regions, picture.shape)
        again = find_text(result)
        traces = [region for region in again if _is_trace(result, region, text)]
        missed = [region for region in again if region not in traces and _was_missed(result, region)]
        if not traces and not missed:
            break
        extra = trace_mask(result, traces) & dilate(text, _REACH)
        extra |= dilate(stroke_mask(result, missed), _RIM)
        result = _inside(extra, fill_hole(result, extra, fill), result)
        hole |= extra
        regions = (*regions, *missed)
        passes.append(len(traces) + len(missed))
    return Removal(picture=result, hole=hole, regions=regions, passes=tuple(passes))


def _is_trace(result: Pixels, region: TextRegion, text: Mask) -> bool:
    """Tell whether a line is left of one removed before: there, a single readable letter is enough."""
    return (
        region.score >= _TRACE_SCORE
        and region.area < _LARGEST_TRACE * text.size
        and (text[region.window.slices] & region.mask).sum() >= 0.5 * region.area
        and is_readable(result, region, least_letters=1, least_confidence=0.5)
    )


def _was_missed(result: Pixels, region: TextRegion) -> bool:
    """Tell whether a line was overlooked before: it must read well, as fills can look like letters."""
    return region.score >= _TRACE_SCORE and is_readable(result, region, least_letters=2, least_confidence=0.7)


def _inside(hole: Mask, changed: Pixels, original: Pixels) -> Pixels:
    """Return the original with only the hole's pixels taken from the changed picture."""
    return np.where(hole[..., None], changed, original)
