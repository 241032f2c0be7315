"""Array types of this package, and the operations that several modules use.

The functions are typed wrappers around OpenCV: its own stubs only say "some numeric matrix", and its masks
are bytes where ours are booleans.
"""

from __future__ import annotations

import math
from typing import TypeVar

import attrs
import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""An image: unsigned bytes, red, green, blue, shaped (height, width, 3)."""

Floats = NDArray[np.float32]
"""Floating-point values, shaped (height, width) or (height, width, channels)."""

Mask = NDArray[np.bool_]
"""Boolean mask, shaped (height, width)."""

Ints = NDArray[np.int32]
"""Integers: labels, coordinates, counts."""

Scalar = TypeVar("Scalar", np.uint8, np.float32)

_NEIGHBOURS = np.array([[0.05, 0.2, 0.05], [0.2, 0, 0.2], [0.05, 0.2, 0.05]], np.float32)
_SMALLEST = 2
_UNKNOWN = 0.001
_VAGUE = 0.01
_MOSTLY_KNOWN = 0.5
_LARGE = 250_000
"""Levels with more pixels are relaxed in fewer rounds: the coarser levels are already smooth."""


@attrs.frozen
class Window:
    """A rectangle of an image, half open like a slice, in pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices that cut the window out of an array of the whole image, as a view."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    def joined(self, other: Window) -> Window:
        """Return the smallest window that contains both."""
        return Window(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def grown(self, margin: int, shape: tuple[int, ...]) -> Window:
        """Return this window with a margin on every side, clipped to ``shape``."""
        return Window(
            max(0, self.top - margin),
            max(0, self.left - margin),
            min(shape[0], self.bottom + margin),
            min(shape[1], self.right + margin),
        )

    def scaled(self, before: tuple[int, int], after: tuple[int, int]) -> Window:
        """Return the same place in an image that is resized from one (height, width) to another."""
        down, right = after[0] / before[0], after[1] / before[1]
        return Window(
            int(self.top * down),
            int(self.left * right),
            math.ceil(self.bottom * down),
            math.ceil(self.right * right),
        ).grown(0, after)

    def within(self, outer: Window) -> Window:
        """Return this window in the coordinates of ``outer``, which contains it."""
        return Window(
            self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left
        )

    def overlap(self, other: Window) -> Window | None:
        """Return the part both windows share, or None."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Window(top, left, bottom, right) if top < bottom and left < right else None


@attrs.frozen(eq=False)
class Components:
    """Connected components of a mask; number 0 is the background."""

    count: int
    labels: Ints
    boxes: tuple[Window, ...]
    areas: Ints


def components(mask: Mask) -> Components:
    """Return the 8-connected components of a mask."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    boxes = tuple(Window(int(y), int(x), int(y + h), int(x + w)) for x, y, w, h, _ in stats)
    return Components(
        count=count, labels=np.asarray(labels, np.int32), boxes=boxes, areas=np.asarray(stats[:, 4], np.int32)
    )


def disc(radius: int) -> Pixels:
    """Return a round structuring element."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2), np.uint8)


def dilate(mask: Mask, radius: float) -> Mask:
    """Return the mask grown by a radius in pixels; always a new array."""
    reach = round(radius)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc(reach)), np.bool_) if reach > 0 else mask.copy()


def erode(mask: Mask, radius: int) -> Mask:
    """Return the mask shrunk by a radius in pixels; outside the array counts as empty."""
    shrunk = cv2.erode(np.pad(mask, 1).astype(np.uint8), disc(radius))
    return np.asarray(shrunk[1:-1, 1:-1], np.bool_)


def dilate_square(mask: Mask, radius: int) -> Mask:
    """Return the mask grown by a square of the given radius."""
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((2 * radius + 1,) * 2, np.uint8)), np.bool_)


def close_gaps(mask: Mask, radius: int) -> Mask:
    """Return the mask with gaps and holes closed that are up to twice the radius wide."""
    square = np.ones((2 * radius + 1,) * 2, np.uint8)
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, square), np.bool_)


def depth(mask: Mask) -> Floats:
    """Return the distance of every pixel of the mask to the nearest pixel outside it, borders included."""
    padded = np.pad(mask, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1], np.float32)


def gaussian(values: Floats, sigma: float) -> Floats:
    """Return blurred values of the same shape."""
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)


def masked_gaussian(values: Floats, known: Floats, sigma: float) -> Floats:
    """Return blurred values in which unknown pixels have no weight (``known`` is 0 to 1)."""
    weight = np.maximum(gaussian(known, sigma), 1e-3)
    if values.ndim == known.ndim:
        return np.asarray(gaussian(values * known, sigma) / weight, np.float32)
    return np.asarray(gaussian(values * known[..., None], sigma) / weight[..., None], np.float32)


def resize(values: NDArray[Scalar], shape: tuple[int, int]) -> NDArray[Scalar]:
    """Return values of (height, width): averaged by area where smaller, linear where larger."""
    smaller = shape[0] * shape[1] < values.shape[0] * values.shape[1]
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, shape[::-1], interpolation=interpolation), values.dtype)


def resize_mask(mask: Mask, shape: tuple[int, int], *, threshold: float = 0.5) -> Mask:
    """Return a mask of (height, width), resized and thresholded; a low threshold keeps thin parts."""
    grey = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.asarray(grey) > threshold, np.bool_)


def lab(image: Pixels) -> Floats:
    """Return CIELAB values (L from 0 to 100); their distance approximates the visible difference."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def to_pixels(values: NDArray[np.floating]) -> Pixels:
    """Return values rounded and clipped to bytes."""
    return np.asarray(np.clip(values + 0.5, 0, 255).astype(np.uint8), np.uint8)


def fill_smoothly(values: Floats, hole: Mask) -> Floats:
    """Return the values (height, width, 2 or more channels), the hole filled from the known ones around it.

    Pull-push interpolation: the image is halved until every pixel has a value, with hole pixels of weight
    zero. Then it is doubled again; known pixels are kept, unknown ones are relaxed towards a membrane
    (Laplace).
    """
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
