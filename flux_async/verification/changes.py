"""Change mask: where the original and the aligned result differ, and which of that is the removed text.

The difference of two pixels counts only as far as one lies outside the range of the other's neighbourhood, so
blur, sharpening and a shift of a pixel count for nothing. It is judged against the difference that is usual
nearby. That is taken from quiet pixels and carried into the text: averaged over the text itself, it left bars
inside fat letters.
"""

from __future__ import annotations

import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, gaussian, masked_gaussian
from flux_async.verification.grid import grow, spread, without_specks

IN_ZONE = (1.5, 2.5)
"""Inside the text zone a pixel is changed above 1.5 times the usual difference plus 2.5: white text on a
near-white sky and faint watermarks differ by no more."""
BEYOND = (2.5, 5.0)
"""Farther than 0.8 line heights from the text, 1.3 times this limit holds."""
BEYOND_FACTOR = 1.3
NEAR_HEIGHTS, FAR_HEIGHTS = 0.8, 1.5
MOST_FAR = 0.2
"""Changes connected with the text but far from it are dropped if they are a larger share of the image."""
ISLAND_HEIGHTS = 2.0
"""Unchanged islands inside a change that are smaller than a square of this side are replaced, too."""

_BLUR = 0.8
_USUAL_SIGMA = 30
_USUAL_SMOOTH = 4
_QUIET_FACTOR, _QUIET_OFFSET = 3.0, 3.0
_KNOWN = 0.02


def difference(original: Floats, result: Floats) -> Floats:
    """Return how far (a distance in CIELAB) each image lies outside what the other shows nearby.

    Nearby is one pixel for what is gone, two for what is new.
    """
    mine, theirs = gaussian(original, _BLUR), gaussian(result, _BLUR)
    gone, new = _outside(mine, theirs, reach=1), _outside(theirs, mine, reach=2)
    return np.asarray(np.sqrt((np.maximum(gone, new) ** 2).sum(2)), np.float32)


def find_changed(distance: Floats, zone: Mask, height: float, usable: Mask) -> tuple[Mask, Mask]:
    """Return the changes in the text zone with all that is connected to them, and those in the zone alone.

    ``distance`` is from :func:`difference`, ``height`` the usual height of a line in pixels, ``usable`` where
    both images can be compared.
    """
    usual = _usual(distance, usable & ~zone)
    low, high = IN_ZONE[0] * usual + IN_ZONE[1], BEYOND_FACTOR * (BEYOND[0] * usual + BEYOND[1])
    sure = (distance > low) & zone
    changed = ((distance > low) & grow(zone, NEAR_HEIGHTS * height)) | (distance > high)
    changed = without_specks(changed, np.ones((2, 2), np.uint8)) | sure
    _, labels = cv2.connectedComponents(changed.astype(np.uint8), connectivity=8)
    touching = np.unique(np.asarray(labels)[sure])
    connected = np.isin(labels, touching[touching > 0])
    far = connected & ~grow(zone, FAR_HEIGHTS * height)
    if far.mean() > MOST_FAR:
        connected &= ~far
    return _without_islands(connected, (ISLAND_HEIGHTS * height) ** 2), sure


def _outside(one: Floats, other: Floats, *, reach: int) -> Floats:
    """Return how far each value of ``one`` lies outside the range of ``other`` within a reach in pixels."""
    square = np.ones((2 * reach + 1,) * 2, np.uint8)
    above, below = one - cv2.dilate(other, square), cv2.erode(other, square) - one
    return np.asarray(np.maximum(np.maximum(above, below), 0), np.float32)


def _usual(distance: Floats, comparable: Mask) -> Floats:
    """Return the usual difference around each pixel, from quiet pixels outside the text."""
    typical = float(np.median(distance[comparable])) if comparable.any() else 1.0
    quiet = (comparable & (distance < _QUIET_FACTOR * typical + _QUIET_OFFSET)).astype(np.float32)
    known = (gaussian(quiet, _USUAL_SIGMA) > _KNOWN).astype(np.float32)
    if not known.any():
        return np.ones_like(distance)
    nearby = masked_gaussian(distance, quiet, _USUAL_SIGMA)
    return spread((nearby * known)[..., None], known, smooth=_USUAL_SMOOTH)[..., 0]


def _without_islands(mask: Mask, smallest: float) -> Mask:
    """Return the mask with unchanged parts of fewer than ``smallest`` pixels filled."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = np.asarray(stats)[:, cv2.CC_STAT_AREA] < smallest
    small[0] = False
    return mask | small[np.asarray(labels)]
