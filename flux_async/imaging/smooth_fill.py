"""Smooth fill of a hole from the known pixels around it: for skies, walls, paper and plain colours.

Pull-push interpolation: the image is halved until every pixel has a value, with hole pixels of weight zero.
Then it is doubled again; known pixels are kept, unknown ones are relaxed towards a membrane (Laplace).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from flux_async.imaging.arrays import Floats, Mask

_NEIGHBOURS = np.array([[0.05, 0.2, 0.05], [0.2, 0, 0.2], [0.05, 0.2, 0.05]], np.float32)
_SMALLEST = 2
_UNKNOWN = 0.001
_VAGUE = 0.01
_MOSTLY_KNOWN = 0.5
_LARGE = 250_000
"""Levels with more pixels are relaxed in fewer rounds: the coarser levels are already smooth."""


def fill_smoothly(values: Floats, hole: Mask) -> Floats:
    """Return the values (height, width, 2 or more channels) with the hole filled."""
    levels = [(values * (~hole)[..., None], (~hole).astype(np.float32))]
    while min(levels[-1][1].shape) > _SMALLEST and (levels[-1][1] < _VAGUE).any():
        weighted, weight = levels[-1]
        levels.append((_half(weighted), _half(weight)))
    current = _top(*levels[-1])
    for weighted, weight in reversed(levels[:-1]):
        height, width = weight.shape
        upscaled = np.asarray(cv2.pyrUp(current, dstsize=(width, height)), np.float32)
        known = np.clip(weight, 0, 1)[..., None]
        current = _mean(weighted, weight) * known + upscaled * (1 - known)
        current = relax(current, weight < _MOSTLY_KNOWN, rounds=24 if weight.size < _LARGE else 10)
    return current


def relax(values: Floats, free: Mask, *, rounds: int) -> Floats:
    """Return values whose free pixels have moved towards the mean of their neighbours."""
    if not free.any():
        return values
    values, movable = values.copy(), free.astype(np.uint8)
    for _ in range(rounds):
        cv2.copyTo(cv2.filter2D(values, -1, _NEIGHBOURS, borderType=cv2.BORDER_REPLICATE), movable, values)
    return values


def _half(values: Floats) -> Floats:
    return np.asarray(cv2.pyrDown(values), np.float32)


def _mean(weighted: Floats, weight: Floats) -> Floats:
    return np.asarray(weighted / np.maximum(weight, 1e-4)[..., None], np.float32)


def _top(weighted: Floats, weight: Floats) -> Floats:
    """Return the coarsest level; pixels without a value get the mean of all known pixels."""
    overall = weighted.sum((0, 1)) / max(float(weight.sum()), 1e-4)
    return np.where((weight < _UNKNOWN)[..., None], overall, _mean(weighted, weight)).astype(np.float32)
