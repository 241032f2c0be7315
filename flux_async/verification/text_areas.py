"""The text of an original: its lines, their zone, and whether text can still be read after composing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, Pixels, Window, gaussian, resize
from flux_async.imaging.text_detection import (
    Quality,
    TextRegion,
    covered,
    find_text,
    is_readable,
    windows_around,
)
from flux_async.verification.grid import grow

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOK_PIXELS = 1_600_000
"""Text is looked for in a copy of at most this many pixels: the detector scales images down anyway."""
ZONE_SHARE, ZONE_PX = 0.15, 2.0
"""Lines are grown by this share of their height and this many pixels: shadows and outlines reach that far."""

LEAST_MARGIN = 16
"""Text is looked for this many pixels around where it was, or its height."""

_CONTRAST = 8
_VISIBLE = 3.0
_BLUR = 0.8
_GREY = 128
_KNOWN_SHARE = 0.6
_CHANGED, _CHANGED_SHARE = 4.0, 0.08
_SAME_LINE = 0.4


@attrs.frozen(kw_only=True, eq=False)
class TextLines:
    """The lines of text of an image, found in a copy of ``shape`` (height and width)."""

    regions: tuple[TextRegion, ...]
    shape: tuple[int, int]

    def on(self, grid: tuple[int, int]) -> tuple[TextRegion, ...]:
        """Return the lines on a grid of another size."""
        return tuple(region.scaled(self.shape, grid) for region in self.regions)


def find_lines(image: Pixels) -> TextLines:
    """Return the lines of text of an image, thoroughly looked for."""
    copy = _look_at(image)
    return TextLines(regions=find_text(copy, quality=Quality.GOOD), shape=(copy.shape[0], copy.shape[1]))


def text_zone(regions: Sequence[TextRegion], shape: tuple[int, int]) -> Mask:
    """Return the lines, each grown by 15 % of its height and 2 pixels."""
    zone = np.zeros(shape, np.bool_)
    for region in regions:
        reach = ZONE_SHARE * region.height
        window = region.window.grown(int(reach) + 3, shape)
        zone[window.slices] |= grow(region.placed(window), reach + ZONE_PX)
    return zone


def usual_height(regions: Sequence[TextRegion]) -> float:
    """Return the median height of the lines, in pixels."""
    return float(np.median([region.height for region in regions]))


def around(regions: Sequence[TextRegion], shape: tuple[int, int]) -> tuple[Window, ...]:
    """Return windows around lines of text: what is left of a line lies where it was."""
    margin = max(LEAST_MARGIN, int(usual_height(regions)))
    return windows_around([region.window for region in regions], margin, shape)


def removed_lines(original: Pixels, gone: Floats, distance: Floats, zone: Mask) -> tuple[TextRegion, ...]:
    """Return lines that read as text in the difference of both images: faint watermarks above all.

    ``gone`` is original minus result in CIELAB, ``distance`` how far the images differ, ``zone`` the text
    found so far.
    """
    visible = np.abs(gaussian(gone, _BLUR)).sum(2) > _VISIBLE
    light = np.clip(_GREY + _CONTRAST * np.where(visible, gone[..., 0], 0), 0, 255).astype(np.uint8)
    picture = np.ascontiguousarray(np.repeat(light[..., None], 3, 2))
    return tuple(
        region
        for region in find_text(picture, quality=Quality.GOOD)
        if (zone[region.window.slices] & region.mask).sum() < _KNOWN_SHARE * region.area
        and (distance[region.window.slices][region.mask] > _CHANGED).mean() > _CHANGED_SHARE
        and (is_readable(picture, region) or is_readable(original, region))
    )


def share_left(composed: Pixels, lines: TextLines) -> float:
    """Return the share of the text's area that still reads as text in the composed image."""
    copy = np.ascontiguousarray(resize(composed, lines.shape))
    text = covered(lines.regions, lines.shape)
    left = [
        region.area
        for region in find_text(copy, within=around(lines.regions, lines.shape))
        if (text[region.window.slices] & region.mask).sum() > _SAME_LINE * region.area
        and is_readable(copy, region)
    ]
    return sum(left) / max(1, sum(region.area for region in lines.regions))


def _look_at(image: Pixels) -> Pixels:
    scale = min(1.0, math.sqrt(LOOK_PIXELS / (image.shape[0] * image.shape[1])))
    if scale == 1:
        return np.ascontiguousarray(image)
    shape = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    return np.ascontiguousarray(resize(image, shape))
