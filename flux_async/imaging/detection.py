"""Where text is: from the detector's probability map to regions, each one line of text.

The detector (a "differentiable binarisation" network) marks the *shrunken* middle of every line. Each
connected mark is scored, then grown back by the amount the training shrank it: area x 1.6 / perimeter.
Straight lines become rotated rectangles; bent ones keep their shape.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import (
    Floats,
    Mask,
    Pixels,
    Window,
    components,
    depth,
    resize_mask,
    resize_pixels,
)
from flux_async.imaging.networks import as_network_input, detector

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK_THRESHOLD = 0.3
SCORE_THRESHOLD = 0.5
SHRINK_RATIO = 1.6
SMALLEST_MARK = 8
"""Marks of fewer pixels of the map are noise."""
SMALLEST_HEIGHT = 6.0
"""Lines lower than this many pixels of the picture cannot be read and are left alone."""
NETWORK_STEP = 32
"""The detector wants sides that are multiples of this."""

_THINNEST_MARK = 2.0
_STRAIGHT = 0.75
_BENT = 0.6
_THINNER = 0.7
_FEW_PIXELS = 200


@attrs.frozen(kw_only=True, eq=False)
class TextRegion:
    """One line of text in a picture.

    ``mask`` (the whole line) and ``core`` (its shrunken middle) are as large as ``window``. ``height`` is the
    height of the line and ``length`` its length, in pixels, also when it is rotated; ``score`` is the
    detector's mean probability.
    """

    window: Window
    mask: Mask
    core: Mask
    height: float
    length: float
    score: float

    @property
    def area(self) -> int:
        """Pixels of the line."""
        return int(self.mask.sum())

    def placed(self, outer: Window, *, core: bool = False) -> Mask:
        """Return the line's mask (or its core) in a window around it."""
        canvas = np.zeros(outer.shape, np.bool_)
        canvas[self.window.within(outer).slices] = self.core if core else self.mask
        return canvas

    def scaled(self, before: tuple[int, int], after: tuple[int, int]) -> TextRegion:
        """Return the region as it lies in the same picture resized from one (height, width) to another."""
        scale = (after[0] / before[0], after[1] / before[1])
        window = _scaled(self.window, scale, after)
        return attrs.evolve(
            self,
            window=window,
            mask=resize_mask(self.mask, window.shape),
            core=resize_mask(self.core, window.shape),
            height=self.height * min(scale),
            length=self.length * max(scale),
        )


def detect(picture: Pixels, long_side: int) -> tuple[TextRegion, ...]:
    """Find the lines of text in a picture, looked at with its longer side scaled to ``long_side`` pixels."""
    chances = _probabilities(picture, long_side)
    frame = _Frame((chances.shape[0], chances.shape[1]), (picture.shape[0], picture.shape[1]))
    marks = components(chances > MARK_THRESHOLD)
    found = []
    for part in range(1, marks.count):
        if marks.areas[part] < SMALLEST_MARK:
            continue
        box = marks.boxes[part]
        mark = marks.labels[box.slices] == part
        score = float(chances[box.slices][mark].mean())
        if score >= SCORE_THRESHOLD:
            region = _grow_back(mark, box, score, frame)
            found.extend([region] if region is not None else [])
    return without_duplicates(found)


def without_duplicates(regions: Iterable[TextRegion]) -> tuple[TextRegion, ...]:
    """Drop regions of which 70 % lie in a larger one; largest first."""
    kept: list[TextRegion] = []
    for region in sorted(regions, key=lambda region: -region.area):
        if not any(_shared(region, larger) >= 0.7 * region.area for larger in kept):
            kept.append(region)
    return tuple(kept)


def covered(regions: Iterable[TextRegion], shape: tuple[int, ...]) -> Mask:
    """Return the mask of all regions together."""
    canvas = np.zeros(shape[:2], np.bool_)
    for region in regions:
        canvas[region.window.slices] |= region.mask
    return canvas


def along_line(line: Mask) -> Floats:
    """Return how far along the line each of its pixels lies, in pixels, in the order of ``np.nonzero``."""
    rows, columns = np.nonzero(line)
    points = np.stack([columns, rows]).astype(np.float32)
    _, axes = np.linalg.eigh(np.cov(points))
    along = axes[:, 1] @ points
    return np.asarray(along - along.min(), np.float32)


def _probabilities(picture: Pixels, long_side: int) -> Floats:
    scale = long_side / max(picture.shape[:2])
    height, width = (
        max(NETWORK_STEP, round(side * scale / NETWORK_STEP) * NETWORK_STEP) for side in picture.shape[:2]
    )
    seen = resize_pixels(picture, (height, width))
    return np.asarray(detector().run(as_network_input(seen))[0, 0], np.float32)


@attrs.frozen
class _Shape:
    """A mark's geometry in pixels of the map: its tightest rotated rectangle and how far to grow it."""

    centre: tuple[float, float]
    sides: tuple[float, float]
    angle: float
    growth: float
    thickness: float
    straight: bool


def _measure(mark: Mask) -> _Shape | None:
    outlines, _ = cv2.findContours(mark.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=cv2.contourArea)
    centre, (along, across), angle = cv2.minAreaRect(outline)
    along, across = along + 1, across + 1
    if min(along, across) < _THINNEST_MARK:
        return None
    area = float(mark.sum())
    filled = area / (along * across)
    bent = filled < _BENT or 2 * float(depth(mark).max()) < _THINNER * min(along, across)
    if not bent:
        growth = along * across * SHRINK_RATIO / (2 * (along + across))
        thickness = min(along, across) + 2 * growth
    else:
        perimeter = max(cv2.arcLength(outline, closed=True), 1.0)
        growth = area * SHRINK_RATIO / perimeter
        thickness = 2 * area / perimeter + 2 * growth
    straight = not bent and (filled >= _STRAIGHT or area < _FEW_PIXELS)
    return _Shape((centre[0], centre[1]), (along, across), angle, growth, thickness, straight)


@attrs.frozen
class _Frame:
    """How the probability map lies over the picture."""

    map_shape: tuple[int, int]
    shape: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        return self.shape[0] / self.map_shape[0], self.shape[1] / self.map_shape[1]


def _grow_back(mark: Mask, box: Window, score: float, frame: _Frame) -> TextRegion | None:
    """Return the region a mark stands for, in the picture; None where it is too small to read."""
    measured, scale = _measure(mark), frame.scale
    if measured is None or measured.thickness * min(scale) < SMALLEST_HEIGHT:
        return None
    outer = box.grown(math.ceil(measured.growth) + 3, frame.map_shape)
    core = np.zeros(outer.shape, np.bool_)
    inner = box.within(outer)
    core[inner.slices] = mark
    if measured.straight:
        line = _rectangle(measured, inner, outer.shape)
    else:
        away = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5)
        line = np.asarray(np.asarray(away) <= measured.growth * 1.15, np.bool_)
    window = _scaled(outer, scale, frame.shape)
    return TextRegion(
        window=window,
        mask=resize_mask(line, window.shape),
        core=resize_mask(core, window.shape),
        height=measured.thickness * min(scale),
        length=max(measured.sides) * max(scale),
        score=score,
    )


def _rectangle(measured: _Shape, inner: Window, shape: tuple[int, int]) -> Mask:
    centre = (measured.centre[0] + inner.left, measured.centre[1] + inner.top)
    sides = (measured.sides[0] + 2 * measured.growth, measured.sides[1] + 2 * measured.growth)
    corners = np.round(cv2.boxPoints((centre, sides, measured.angle))).astype(np.int32)
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [corners], (1,))
    return canvas.astype(np.bool_)


def _scaled(window: Window, scale: tuple[float, float], shape: tuple[int, int]) -> Window:
    return Window(
        int(window.top * scale[0]),
        int(window.left * scale[1]),
        min(shape[0], math.ceil(window.bottom * scale[0])),
        min(shape[1], math.ceil(window.right * scale[1])),
    )


def _shared(one: TextRegion, other: TextRegion) -> int:
    """Count the pixels both regions cover."""
    common = one.window.overlap(other.window)
    if common is None:
        return 0
    mine = one.mask[common.within(one.window).slices]
    return int((mine & other.mask[common.within(other.window).slices]).sum())
