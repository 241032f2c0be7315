"""Finds and reads the text of an image, and rejects what the model mistakes for text."""

from __future__ import annotations

import enum
import math
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, Pixels, Window, depth
from flux_async.imaging.ocr import SIDE_STEP, detect_boxes, read_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COARSE_SIDE = 736
FINE_SIDE = 1408
SMALLEST_HEIGHT = 6.0
"""Lines lower than this many pixels cannot be read and are ignored."""
_UNSURE = 0.8
_LARGEST_SHARE = 0.45
_LARGE_SHARE = 0.10
_BLOCKY_SHARE = 0.004
_BLOCKY_ASPECT = 2.4
_UPRIGHT_ASPECT = 1.5
_TWICE = 2.0

CORE_DEPTH = 0.3
"""The core of a line lies at least this share of its height from the edge."""

_CONFIDENT, _SAME_LETTERS = 0.9, 0.75
_DUPLICATE = 0.7
_FEWEST_STEPS = 4
_JOINED = 1.2
_MOST_WINDOWS = 0.8


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


@attrs.frozen(kw_only=True)
class TextLine:
    """A line of text and how it reads.

    ``confidence`` (0 to 1) is the mean over the characters; 0 with an empty text if nothing was read.
    """

    region: TextRegion
    text: str
    confidence: float

    @property
    def letters(self) -> int:
        """Number of letters and digits, in any script."""
        return sum(character.isalnum() for character in self.text)

    def is_legible(self, *, least_letters: int = 2, least_confidence: float = 0.6) -> bool:
        """Return whether letters were read.

        A row of buttons or windows is read as "0000" or, with less confidence, "C000", and is no text.
        """
        if self.letters < least_letters or self.confidence < least_confidence:
            return False
        most = Counter(filter(str.isalnum, self.text)).most_common(1)[0][1]
        same = 1.0 if self.confidence >= _CONFIDENT else _SAME_LETTERS
        return least_letters == 1 or most < same * self.letters


class Quality(enum.Enum):
    """How thoroughly text is looked for."""

    FAST = "fast"
    """One detection, with the longer side scaled to 736 pixels: finds ordinary text."""

    GOOD = "good"
    """A second detection at 1,408 pixels with raised contrast: also finds small, thin and faint text."""


def find_text(
    image: Pixels, *, quality: Quality = Quality.FAST, within: Sequence[Window] | None = None
) -> tuple[TextRegion, ...]:
    """Return the lines of text in an image (uint8 RGB), the largest first.

    ``within`` are windows of the image to look in, by default all of it: a small part takes little time.
    """
    require_rgb(image)
    found = detect(image, COARSE_SIDE, within)
    if quality is Quality.GOOD:
        found.extend(detect(raise_contrast(image), FINE_SIDE, within))
    return without_duplicates(_plausible(image, found))


def find_faint_text(image: Pixels) -> tuple[TextRegion, ...]:
    """Return what ``find_text`` finds with ``Quality.GOOD`` in an image where it finds nothing otherwise."""
    require_rgb(image)
    return without_duplicates(_plausible(image, detect(raise_contrast(image), FINE_SIDE)))


def windows_around(boxes: Iterable[Window], margin: int, shape: tuple[int, ...]) -> tuple[Window, ...]:
    """Return windows that contain all boxes with a margin, to look for text in.

    Those that are close to each other become one; if they cover most of the image, it is all of it.
    """
    step = SIDE_STEP * max(shape[:2]) / COARSE_SIDE  # the model takes sides that are multiples of this
    found: list[Window] = []
    for box in boxes:
        window = _of_whole_steps(box.grown(margin, shape), step, shape)
        while (other := _cheaper_together(window, found)) is not None:
            found.remove(other)
            window = window.joined(other)
        found.append(window)
    whole = Window(0, 0, shape[0], shape[1])
    return tuple(found) if sum(window.area for window in found) < _MOST_WINDOWS * whole.area else (whole,)


def _of_whole_steps(window: Window, step: float, shape: tuple[int, ...]) -> Window:
    """Return the window grown to sides of whole steps, four at least, as far as the image reaches."""
    starts, ends = [], []
    for start, end, size in zip(
        (window.top, window.left), (window.bottom, window.right), shape, strict=False
    ):
        wanted = min(size, round(max(_FEWEST_STEPS, math.ceil((end - start) / step)) * step))
        first = max(0, min(size - wanted, (start + end - wanted) // 2))
        starts.append(first)
        ends.append(first + wanted)
    return Window(*starts, *ends)


def _cheaper_together(window: Window, others: Iterable[Window]) -> Window | None:
    """Return a window that is better looked at together with this one."""
    close = (other for other in others if window.joined(other).area <= _JOINED * (window.area + other.area))
    return next(close, None)


def read_text(
    image: Pixels, *, quality: Quality = Quality.FAST, least_confidence: float = 0.5
) -> tuple[TextLine, ...]:
    """Return the lines of text that are read with at least ``least_confidence``."""
    lines = (read_region(image, region) for region in find_text(image, quality=quality))
    return tuple(line for line in lines if line.letters and line.confidence >= least_confidence)


def read_region(image: Pixels, region: TextRegion) -> TextLine:
    """Return the text of one region; if the confidence is low, it is also read upside down."""
    strip = level_strip(image, region)
    text, confidence = read_line(strip)
    if confidence < _UNSURE:
        flipped = read_line(strip[::-1, ::-1])
        if flipped[1] > confidence + 0.1:
            text, confidence = flipped
    return TextLine(region=region, text=text, confidence=confidence)


def level_strip(image: Pixels, region: TextRegion) -> Pixels:
    """Return the pixels of a region, rotated to the horizontal; upright lines are turned by 90 degrees."""
    corners = region.corners
    width, height = (int(np.linalg.norm(corners[corner] - corners[0])) for corner in (1, 3))
    if not width or not height:
        return image[:0, :0]
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    strip = cv2.warpPerspective(
        image,
        cv2.getPerspectiveTransform(corners, target),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    level = np.asarray(strip, np.uint8)
    return np.rot90(level) if height >= _UPRIGHT_ASPECT * width else level


def detect(image: Pixels, long_side: int, within: Sequence[Window] | None = None) -> list[TextRegion]:
    """Return the detected lines of an image that is scaled to a long side of ``long_side`` pixels.

    ``within`` are the windows to look in, by default all of it.
    """
    found = []
    for window in (Window(0, 0, *image.shape[:2]),) if within is None else within:
        side = round(long_side * max(window.shape) / max(image.shape[:2]))
        for box in detect_boxes(image[window.slices], side):
            corners = box.corners + np.array([window.left, window.top], np.float32)
            found.append(TextRegion.of(corners, image.shape, certain=box.certain))
    return [region for region in found if region.height >= SMALLEST_HEIGHT and region.mask.any()]


def is_readable(
    image: Pixels, region: TextRegion, *, least_letters: int = 2, least_confidence: float = 0.6
) -> bool:
    """Return whether letters can be read in a region."""
    line = read_region(image, region)
    return line.is_legible(least_letters=least_letters, least_confidence=least_confidence)


def raise_contrast(image: Pixels) -> Pixels:
    """Return the image with raised local contrast of the lightness (CLAHE)."""
    values = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    values[..., 0] = cv2.createCLAHE(3.0, (8, 8)).apply(values[..., 0])
    return np.asarray(cv2.cvtColor(values, cv2.COLOR_LAB2RGB), np.uint8)


def require_rgb(image: Pixels) -> None:
    """Check that an array is a non-empty uint8 array shaped (height, width, 3).

    Raises:
        ValueError: another dtype or shape, or no pixels at all.
    """
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or image.size == 0:
        raise ValueError(f"expected uint8 RGB shaped (height, width, 3), got {image.dtype} {image.shape}")


def _plausible(image: Pixels, found: Sequence[TextRegion]) -> list[TextRegion]:
    """Return the regions that are text.

    Regions of more than 45 % of the image are never text. Large, square or upright regions and those that are
    not certain must be readable, except one that continues a certain line ("$" before a price).
    """
    pixels = image.shape[0] * image.shape[1]
    possible = [region for region in found if region.area <= _LARGEST_SHARE * pixels]
    usual = [region for region in possible if not _is_unusual(region, region.area / pixels)]
    certain = [region for region in usual if region.certain]
    continued = [region for region in usual if not region.certain and _continues_line(region, certain)]
    accepted = [*certain, *continued]
    unsure = [region for region in possible if region not in accepted]
    if not unsure:
        return accepted
    contrast = raise_contrast(image)
    return accepted + [
        region for region in unsure if is_readable(image, region) or is_readable(contrast, region)
    ]


def _is_unusual(region: TextRegion, share: float) -> bool:
    """Return whether a region is larger, more square or more upright than most lines."""
    height, width = region.window.shape
    blocky = region.length < _BLOCKY_ASPECT * region.height and share > _BLOCKY_SHARE
    return blocky or height > _UPRIGHT_ASPECT * width or share > _LARGE_SHARE


def _continues_line(region: TextRegion, certain: Sequence[TextRegion]) -> bool:
    """Return whether a region is next to a certain line of about its height."""
    reach = int(region.height / 2)
    shape = (region.window.bottom + reach, region.window.right + reach)
    near = region.window.grown(reach, shape)
    return any(
        near.overlap(line.window) is not None and 1 / _TWICE < line.height / region.height < _TWICE
        for line in certain
    )
