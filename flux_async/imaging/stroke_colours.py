"""Finds the ink of a line by colour and position.

The colours in and around a line are grouped into a few clusters. A cluster is ink if it is common in the
middle of the line, rare along its border and outside, and spread along the whole line. Ink may be dark, light
or of several colours: fill and outline are two clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import (
    Floats,
    Ints,
    Mask,
    Pixels,
    Window,
    components,
    dilate,
    erode,
    lab,
    resize_mask,
    resize_pixels,
)
from flux_async.imaging.text_regions import along_line

if TYPE_CHECKING:
    from flux_async.imaging.text_regions import TextRegion

CLUSTERS = 7
WORKING_HEIGHT = 56
"""Higher lines are scaled down to this height."""
OUTSIDE_TO_INSIDE = 0.5
"""An ink colour is at most this many times as common outside the line as in its middle."""
LEAST_SPREAD = 0.55
"""An ink colour occurs in at least this share of the slices along the line."""

_SAMPLES = 6000
_FEW_PIXELS = 25
_WORTH_SCALING = 0.85
_RARE = 0.01


@attrs.frozen(eq=False)
class _LineColours:
    """One line and its surroundings, at working size."""

    values: Floats
    inside: Mask
    core: Mask
    border: Mask
    ring: Mask
    height: float


def ink_by_colour(image: Pixels, region: TextRegion, window: Window, other_text: Mask) -> Mask | None:
    """Return the ink of a line in a window around it, or None where no colour behaves like ink."""
    view = _line_colours(image, region, window, other_text)
    if min(view.inside.sum(), (view.border | view.ring).sum()) < _FEW_PIXELS:
        return None
    labels = _cluster(view)
    inks = [_is_ink(labels == label, view) for label in range(CLUSTERS)]
    if not any(inks):
        return None
    ink = _mostly_inside(np.array(inks)[labels], view)
    return ink if ink.shape == window.shape else resize_mask(ink, window.shape, threshold=0.3)


def _line_colours(image: Pixels, region: TextRegion, window: Window, other_text: Mask) -> _LineColours:
    inside, core = region.placed(window), region.placed(window, core=True)
    near, other = image[window.slices], other_text & ~inside
    height, scale = max(6.0, region.height), min(1.0, WORKING_HEIGHT / max(6.0, region.height))
    if scale < _WORTH_SCALING:
        shape = (max(8, int(window.shape[0] * scale)), max(8, int(window.shape[1] * scale)))
        near = resize_pixels(near, shape)
        inside, core, other = (_nearest(mask, shape) for mask in (inside, core, other))
        height *= scale
    ring = dilate(inside, max(2.0, 0.22 * height)) & ~dilate(inside, 1) & ~other
    border = inside & ~erode(inside, max(1, int(0.09 * height)))
    return _LineColours(lab(near), inside, core if core.any() else inside, border, ring, height)


def _nearest(mask: Mask, shape: tuple[int, int]) -> Mask:
    small = cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(small, np.bool_)


def _cluster(view: _LineColours) -> Ints:
    """Return the nearest colour cluster for every pixel of the view."""
    values = view.values[view.inside | view.ring]
    samples = np.ascontiguousarray(values[:: max(1, len(values) // _SAMPLES)])
    count = min(CLUSTERS, len(samples))
    cv2.setRNGSeed(1)  # OpenCV keeps one generator per thread: seeding it here makes this call repeatable
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 14, 0.5)
    start = np.zeros((len(samples), 1), np.int32)
    _, _, centres = cv2.kmeans(samples, count, start, stop, 1, cv2.KMEANS_PP_CENTERS)
    distances = ((view.values[..., None, :] - np.asarray(centres)) ** 2).sum(-1)
    return np.asarray(distances.argmin(-1), np.int32)


def _is_ink(colour: Mask, view: _LineColours) -> bool:
    within = float(colour[view.core].mean())
    without = max(float(colour[part].mean()) if part.any() else 0.0 for part in (view.border, view.ring))
    if within <= _RARE or without >= OUTSIDE_TO_INSIDE * within:
        return False
    return _spread(colour, view) > LEAST_SPREAD


def _spread(colour: Mask, view: _LineColours) -> float:
    """Return the share of slices along the line in which the colour is nearly as common as overall."""
    along = along_line(view.inside)
    length = float(np.ptp(along))
    slices = int(np.clip(round(length / max(view.height, 1.0)), 3, 24))
    where = np.minimum(slices - 1, ((along - along.min()) / (length + 1e-6) * slices).astype(np.int32))
    present = colour[view.inside]
    shares = np.bincount(where[present], minlength=slices) / np.maximum(
        np.bincount(where, minlength=slices), 1
    )
    return float((shares > 0.3 * max(float(present.mean()), 1e-6)).mean())


def _mostly_inside(ink: Mask, view: _LineColours) -> Mask:
    """Return the ink without specks and without parts that lie mostly outside the line."""
    near = dilate(view.inside, 1) | view.ring
    parts = components(ink & near)
    inside = np.bincount(parts.labels[view.inside], minlength=parts.count)
    kept = (inside >= 0.6 * parts.areas) & (parts.areas >= max(2.0, 0.0006 * view.height**2))
    kept[0] = False
    goes_on = np.zeros(parts.count, np.bool_)
    goes_on[parts.labels[near & ~erode(near, 1)]] = True
    # A letter may extend beyond a region that is too short; a part that mostly lies outside is no letter.
    whole = ~goes_on | (inside >= 0.65 * parts.areas)
    return np.asarray(kept[parts.labels] & (view.inside | whole[parts.labels]), np.bool_)
