"""Removes the text from an image: finds it, masks its strokes, fills them, and checks the result."""

from __future__ import annotations

import math

import attrs
import numpy as np

from flux_async.imaging.arrays import Mask, Pixels, dilate, resize, resize_mask
from flux_async.imaging.filling import Fill, fill_hole
from flux_async.imaging.strokes import stroke_mask, trace_mask
from flux_async.imaging.text_detection import (
    Quality,
    TextRegion,
    covered,
    find_text,
    is_readable,
    require_rgb,
)

WORKING_PIXELS = 4_000_000
"""Larger images are processed as a smaller copy; only the filled hole is scaled back to full size."""

_MORE_PASSES = {Quality.FAST: 1, Quality.GOOD: 2}
"""Number of further passes over the result."""
_RIM = 1
_REACH = 4
_LARGEST_TRACE = 0.3


@attrs.frozen(kw_only=True, eq=False)
class Removal:
    """An image without its text.

    ``hole`` marks the only pixels that may differ from the original. ``regions`` are the lines that were
    found, ``passes`` the number of lines of each pass; it is empty where no text was found.
    """

    image: Pixels
    hole: Mask
    regions: tuple[TextRegion, ...]
    passes: tuple[int, ...]


def remove_text(image: Pixels, *, quality: Quality = Quality.FAST, fill: Fill = Fill.HYBRID) -> Removal:
    """Remove the text from an image (uint8 RGB, height x width x 3).

    The same image gives the same result, bit for bit, on the same machine. Safe to call from several
    threads, which use the text models one at a time.

    Raises:
        ValueError: not a uint8 RGB array, or one without pixels.
        ModelsMissingError: the text models are not installed.
    """
    require_rgb(image)
    height, width = image.shape[:2]
    if height * width <= WORKING_PIXELS:
        return _remove(image, quality, fill)
    scale = math.sqrt(WORKING_PIXELS / (height * width))
    shape = (max(1, int(height * scale)), max(1, int(width * scale)))
    small = _remove(resize(image, shape), quality, fill)
    hole = resize_mask(small.hole, (height, width), threshold=0.05)
    return Removal(
        image=_inside(hole, resize(small.image, (height, width)), image),
        hole=hole,
        regions=tuple(region.scaled(shape, (height, width)) for region in small.regions),
        passes=small.passes,
    )


def _remove(image: Pixels, quality: Quality, fill: Fill) -> Removal:
    nothing = np.zeros(image.shape[:2], np.bool_)
    regions = find_text(image, quality=quality)
    if not regions:
        return Removal(image=image.copy(), hole=nothing, regions=(), passes=())
    hole = dilate(stroke_mask(image, regions), _RIM)
    result = _inside(hole, fill_hole(image, hole, fill), image)
    passes = [len(regions)]
    for _ in range(_MORE_PASSES[quality]):
        text = covered(regions, image.shape)
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
    return Removal(image=result, hole=hole, regions=regions, passes=tuple(passes))


def _is_trace(result: Pixels, region: TextRegion, text: Mask) -> bool:
    """Return whether a region is the rest of a removed line: one readable letter is enough there."""
    return (
        region.area < _LARGEST_TRACE * text.size
        and (text[region.window.slices] & region.mask).sum() >= 0.5 * region.area
        and is_readable(result, region, least_letters=1, least_confidence=0.5)
    )


def _was_missed(result: Pixels, region: TextRegion) -> bool:
    """Return whether a line was missed before; it must be well readable, as fills can resemble letters."""
    return is_readable(result, region, least_letters=2, least_confidence=0.7)


def _inside(hole: Mask, changed: Pixels, original: Pixels) -> Pixels:
    """Return the original with only the hole's pixels taken from the changed image."""
    return np.where(hole[..., None], changed, original)
