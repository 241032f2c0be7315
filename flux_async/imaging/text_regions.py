"""Regions of an image; each is one line of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, Window, depth

if TYPE_CHECKING:
    from collections.abc import Iterable

CORE_DEPTH = 0.3
"""The core of a line lies at least this share of its height from the edge."""

_DUPLICATE = 0.7


@attrs.frozen(kw_only=True, eq=False)
class TextRegion:
    """One line of text in an image.

    ``mask`` (the whole line) and ``core`` (its middle) are as large as ``window``. ``corners`` are clockwise
    from the top left, as (x, y) in pixels of the image. ``height`` and ``length`` are those of the line, in
    pixels, also when it is rotated. ``certain`` says that it is text without being read.
    """

    window: Window
    mask: Mask
    core: Mask
    corners: Floats
    height: float
    length: float
    certain: bool

    @classmethod
    def of(cls, corners: Floats, shape: tuple[int, ...], *, certain: bool) -> TextRegion:
        """Return the region inside four corners in an image of the given shape."""
        left, top = np.floor(corners.min(0)).astype(int)
        right, bottom = np.ceil(corners.max(0)).astype(int) + 1
        window = Window(int(top), int(left), int(bottom), int(right)).grown(0, shape)
        canvas = np.zeros(window.shape, np.uint8)
        cv2.fillPoly(canvas, [np.round(corners - (window.left, window.top)).astype(np.int32)], (1,))
        mask = canvas.astype(np.bool_)
        sides = [float(np.linalg.norm(corners[end] - corners[0])) for end in (1, 3)]
        return cls(
            window=window,
            mask=mask,
            core=depth(mask) > CORE_DEPTH * min(sides),
            corners=corners,
            height=min(sides),
            length=max(sides),
            certain=certain,
        )

    @property
    def area(self) -> int:
        """Number of pixels of the line."""
        return int(self.mask.sum())

    def placed(self, outer: Window, *, core: bool = False) -> Mask:
        """Return the line's mask (or its core) in a window around it."""
        canvas = np.zeros(outer.shape, np.bool_)
        canvas[self.window.within(outer).slices] = self.core if core else self.mask
        return canvas

    def scaled(self, before: tuple[int, int], after: tuple[int, int]) -> TextRegion:
        """Return the region in the same image resized from one (height, width) to another."""
        factor = np.array([after[1] / before[1], after[0] / before[0]], np.float32)
        return TextRegion.of(self.corners * factor, after, certain=self.certain)


def without_duplicates(regions: Iterable[TextRegion]) -> tuple[TextRegion, ...]:
    """Return the regions, largest first, without those of which 70 % lie in a larger one."""
    kept: list[TextRegion] = []
    for region in sorted(regions, key=lambda region: -region.area):
        if not any(_shared(region, larger) >= _DUPLICATE * region.area for larger in kept):
            kept.append(region)
    return tuple(kept)


def covered(regions: Iterable[TextRegion], shape: tuple[int, ...]) -> Mask:
    """Return the mask of all regions together."""
    canvas = np.zeros(shape[:2], np.bool_)
    for region in regions:
        canvas[region.window.slices] |= region.mask
    return canvas


def along_line(line: Mask) -> Floats:
    """Return the position of each pixel of a line along it, in pixels, in the order of ``np.nonzero``."""
    rows, columns = np.nonzero(line)
    points = np.stack([columns, rows]).astype(np.float32)
    _, axes = np.linalg.eigh(np.cov(points))
    along = axes[:, 1] @ points
    return np.asarray(along - along.min(), np.float32)


def _shared(one: TextRegion, other: TextRegion) -> int:
    """Return the number of pixels in both regions."""
    common = one.window.overlap(other.window)
    if common is None:
        return 0
    mine = one.mask[common.within(one.window).slices]
    return int((mine & other.mask[common.within(other.window).slices]).sum())
