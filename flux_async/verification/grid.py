"""Operations on pixel grids that several modules of this package use: warping, growing, spreading values."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from flux_async.imaging.arrays import Floats, Mask, disc, gaussian

Matrix = NDArray[np.float64]
"""A 3 x 3 matrix that maps places (x, y, 1) of one image to places of another."""

Shape = tuple[int, int]
"""Height and width, in pixels."""

Scalar = TypeVar("Scalar", np.uint8, np.float32)

BAND = (1.0, 8.0)
"""Details between these sigmas, in pixels, are what two images are compared by: neither noise nor light."""
_WIDE = 5
_COARSEST = 4
_NOTHING = 1e-6
_TRUSTED = 4
"""Pixels whose neighbourhood is known to a quarter keep their own value."""


def size_matrix(before: tuple[int, ...], after: tuple[int, ...]) -> Matrix:
    """Return the map from the pixels of a shape to the same places in another shape."""
    x, y = after[1] / before[1], after[0] / before[0]
    return np.array([[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5], [0, 0, 1]])


def offset_matrix(left: float, top: float) -> Matrix:
    """Return the map from the pixels of a window to those of its image."""
    return np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])


def warp(
    values: NDArray[Scalar],
    matrix: Matrix,
    shape: Shape,
    *,
    interpolation: int = cv2.INTER_CUBIC,
    border: int = cv2.BORDER_REPLICATE,
) -> NDArray[Scalar]:
    """Return values seen on another grid: ``matrix`` maps its pixels to those of ``values``."""
    flags = interpolation | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(values, matrix, shape[::-1], flags=flags, borderMode=border)
    return np.asarray(warped, values.dtype)


def frame_of(shape: Shape, matrix: Matrix, grid: Shape) -> Floats:
    """Return which pixels of a grid lie inside an image of ``shape``: 1 inside, 0 outside."""
    inside = np.ones(shape, np.float32)
    return warp(inside, matrix, grid, interpolation=cv2.INTER_LINEAR, border=cv2.BORDER_CONSTANT)


def grow(mask: Mask, radius: float) -> Mask:
    """Return the mask grown by a radius in pixels; large radii take no longer than small ones."""
    if round(radius) < 1 or not mask.any():
        return mask.copy()
    if radius < _WIDE:
        return np.asarray(cv2.dilate(mask.astype(np.uint8), disc(round(radius))), np.bool_)
    return distance_to(mask) <= radius


def distance_to(mask: Mask) -> Floats:
    """Return the distance of every pixel to the mask, in pixels."""
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5), np.float32)


def without_specks(mask: Mask, element: NDArray[np.uint8]) -> Mask:
    """Return the mask without parts that are smaller than a structuring element."""
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, element), np.bool_)


def close_round(mask: Mask, radius: int) -> Mask:
    """Return the mask with gaps closed that are up to twice the radius wide, by a round element."""
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, disc(radius)), np.bool_)


def details(grey: Floats) -> Floats:
    """Return the details of a grey image without its noise and its light."""
    return gaussian(grey, BAND[0]) - gaussian(grey, BAND[1])


def spread(values: Floats, weight: Floats, *, smooth: float) -> Floats:
    """Return values carried smoothly from where ``weight`` is 1 to where it is 0, by pull-push interpolation.

    Unlike ``fill_smoothly`` it takes weights between 0 and 1, and blurs the result by a sigma in pixels.
    """
    channels = values.shape[2]
    if channels == 1:  # OpenCV's pyramids drop a single last channel
        values = np.repeat(values, 2, 2)
    levels = [(values * weight[..., None], weight)]
    while min(levels[-1][1].shape) > _COARSEST:
        levels.append((_half(levels[-1][0]), _half(levels[-1][1])))
    current = _mean(*levels[-1])
    for weighted, known in reversed(levels[:-1]):
        above = np.asarray(cv2.pyrUp(current, dstsize=known.shape[::-1]), np.float32)
        share = np.clip(known * _TRUSTED, 0, 1)[..., None]
        current = np.where(
            (known > _NOTHING)[..., None], _mean(weighted, known) * share + above * (1 - share), above
        )
    current = current[..., :channels]
    # Blurring, too, drops a single last channel.
    return gaussian(current, smooth).reshape(current.shape) if smooth else current


def _half(values: Floats) -> Floats:
    return np.asarray(cv2.pyrDown(values), np.float32)


def _mean(weighted: Floats, weight: Floats) -> Floats:
    return np.asarray(weighted / np.maximum(weight, _NOTHING)[..., None], np.float32)
