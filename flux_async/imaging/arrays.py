"""The kinds of array that travel through this room, and the few operations every module needs.

The functions are narrow, typed doors to OpenCV: its own stubs know only "some numeric matrix", and its masks
are bytes where ours are booleans.
"""

from __future__ import annotations

import attrs
import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""A picture: unsigned bytes, red, green, blue, shaped (height, width, 3)."""

Floats = NDArray[np.float32]
"""Real values, shaped (height, width) or (height, width, channels)."""

Mask = NDArray[np.bool_]
"""True where something is, shaped (height, width)."""

Ints = NDArray[np.int32]
"""Whole numbers: labels, coordinates, counts."""


@attrs.frozen
class Window:
    """A rectangle of a picture, half open like a slice, in pixels."""

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
        """What to index an array of the whole picture with: a view, so writing to it writes the picture."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, margin: int, shape: tuple[int, ...]) -> Window:
        """Return this window with a margin on every side, cut off at the borders of ``shape``."""
        return Window(
            max(0, self.top - margin),
            max(0, self.left - margin),
            min(shape[0], self.bottom + margin),
            min(shape[1], self.right + margin),
        )

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
    """The connected parts of a mask; part 0 is the background."""

    count: int
    labels: Ints
    boxes: tuple[Window, ...]
    areas: Ints


def components(mask: Mask) -> Components:
    """Label the parts of a mask, pixels that touch by a corner included."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    boxes = tuple(Window(int(y), int(x), int(y + h), int(x + w)) for x, y, w, h, _ in stats)
    return Components(
        count=count, labels=np.asarray(labels, np.int32), boxes=boxes, areas=np.asarray(stats[:, 4], np.int32)
    )


def disc(radius: int) -> Pixels:
    """Return a round structuring element."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2), np.uint8)


def dilate(mask: Mask, radius: float) -> Mask:
    """Grow a mask by a radius in pixels; always a new array."""
    reach = round(radius)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc(reach)), np.bool_) if reach > 0 else mask.copy()


def erode(mask: Mask, radius: int) -> Mask:
    """Shrink a mask by a radius in pixels; outside the array counts as empty."""
    shrunk = cv2.erode(np.pad(mask, 1).astype(np.uint8), disc(radius))
    return np.asarray(shrunk[1:-1, 1:-1], np.bool_)


def dilate_square(mask: Mask, radius: int) -> Mask:
    """Grow a mask by a square of the given radius."""
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((2 * radius + 1,) * 2, np.uint8)), np.bool_)


def close_gaps(mask: Mask, radius: int) -> Mask:
    """Close gaps and holes up to twice the radius wide."""
    square = np.ones((2 * radius + 1,) * 2, np.uint8)
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, square), np.bool_)


def depth(mask: Mask) -> Floats:
    """Return the distance of every pixel of the mask to the nearest pixel outside it, borders included."""
    padded = np.pad(mask, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1], np.float32)


def gaussian(values: Floats, sigma: float) -> Floats:
    """Blur; the shape stays."""
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)


def masked_gaussian(values: Floats, known: Floats, sigma: float) -> Floats:
    """Blur known pixels only: unknown ones neither add nor dilute (``known`` is 0 to 1)."""
    weight = np.maximum(gaussian(known, sigma), 1e-3)
    if values.ndim == known.ndim:
        return np.asarray(gaussian(values * known, sigma) / weight, np.float32)
    return np.asarray(gaussian(values * known[..., None], sigma) / weight[..., None], np.float32)


def resize(values: Floats, shape: tuple[int, int]) -> Floats:
    """Resize to (height, width): by area where it gets smaller, linearly where it grows."""
    smaller = shape[0] * shape[1] < values.shape[0] * values.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, shape[::-1], interpolation=how), np.float32)


def resize_mask(mask: Mask, shape: tuple[int, int], *, threshold: float = 0.5) -> Mask:
    """Resize a mask linearly and cut it at a threshold; a lower one keeps thin parts."""
    grey = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.asarray(grey) > threshold, np.bool_)


def resize_pixels(picture: Pixels, shape: tuple[int, int]) -> Pixels:
    """Resize a picture to (height, width): by area where it gets smaller, linearly where it grows."""
    smaller = shape[0] * shape[1] < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, shape[::-1], interpolation=how), np.uint8)


def lab(picture: Pixels) -> Floats:
    """Return CIELAB values (L from 0 to 100): distances in it are roughly distances to the eye."""
    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def to_pixels(values: NDArray[np.floating]) -> Pixels:
    """Round and clip real values to bytes."""
    return np.asarray(np.clip(values + 0.5, 0, 255).astype(np.uint8), np.uint8)
