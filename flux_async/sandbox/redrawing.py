"""Redraws images as the vendor's editor does, and makes its mistakes on request.

An editor that generates images redraws all of it: in another size, slightly moved, and in slightly other
colours. The figures follow descriptions of Flux Kontext's results; they were not fitted to any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

from flux_async.imaging.arrays import Window, resize, to_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flux_async.imaging import Mask, Pixels

Size = tuple[int, int]
"""Width and height."""

MOST_ZOOM: Final = 0.016
MOST_SHIFT: Final = 0.012
"""Of a side. Zoomed around its middle and shifted, no place moves by more than 2 % of a side."""

_MOST_SATURATION: Final = 0.06
_MOST_CONTRAST: Final = 0.04
_MOST_TINT: Final = 3.0
_LUMA: Final = np.array([0.299, 0.587, 0.114])
_MIDDLE: Final = 128

KEPT: Final = 0.65
"""The share of a side that is left where the image is cut."""

OBJECT_SIZE: Final = 0.16
"""The diameter of an invented object, as a share of the smaller side."""
_PLACES: Final = 40


def flatten(image: Pixels, alpha: NDArray[np.uint8]) -> Pixels:
    """Return the image on white."""
    share = alpha[..., None] / np.float32(255)
    return to_pixels(image * share + 255 * (1 - share))


def redraw(image: Pixels, size: Size, random: np.random.Generator) -> Pixels:
    """Return the image in another size, moved by up to 2 % of a side, in slightly other colours."""
    return _recolour(_move(resize(image, size[::-1]), random), random)


def _move(image: Pixels, random: np.random.Generator) -> Pixels:
    """Return the image zoomed around its middle and shifted; it is mirrored beyond its border."""
    size = np.array(image.shape[1::-1])
    zoom = 1 + random.uniform(-MOST_ZOOM, MOST_ZOOM)
    shift = (1 - zoom) * size / 2 + random.uniform(-MOST_SHIFT, MOST_SHIFT, 2) * size
    matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    moved = cv2.warpAffine(
        image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(moved, np.uint8)


def _recolour(image: Pixels, random: np.random.Generator) -> Pixels:
    """Return the image with slightly other saturation and contrast, and a tint."""
    saturation = 1 + random.uniform(-_MOST_SATURATION, _MOST_SATURATION)
    contrast = 1 + random.uniform(-_MOST_CONTRAST, _MOST_CONTRAST)
    mixed = contrast * (saturation * np.eye(3) + (1 - saturation) * _LUMA)
    offset = _MIDDLE * (1 - contrast) + random.uniform(-_MOST_TINT, _MOST_TINT, 3)
    return np.asarray(cv2.transform(image, np.column_stack([mixed, offset])), np.uint8)


def invent_object(image: Pixels, text: Mask, random: np.random.Generator) -> Pixels:
    """Return the image with a disc away from its text, in a colour that differs from what it hides."""
    height, width = text.shape
    side = max(1, round(OBJECT_SIZE * min(height, width)))
    tops = random.integers(0, height - side + 1, _PLACES)
    lefts = random.integers(0, width - side + 1, _PLACES)
    places = [
        Window(int(top), int(left), int(top) + side, int(left) + side)
        for top, left in zip(tops, lefts, strict=True)
    ]
    place = min(places, key=lambda each: int(text[each.grown(side, text.shape).slices].sum()))
    disc = np.zeros((side, side), np.uint8)
    cv2.circle(disc, (side // 2, side // 2), side // 2, (1,), -1)
    invented, window = image.copy(), place.slices
    colour = (image[window].mean((0, 1)) + _MIDDLE) % 256
    invented[window][disc > 0] = colour.astype(np.uint8)
    return invented


def cut_off(image: Pixels, text: Mask) -> Pixels:
    """Return the image without a third of a side: of four strips the one with most of the text is cut off."""
    height, width = text.shape
    rows, columns = max(1, round(KEPT * height)), max(1, round(KEPT * width))
    whole = slice(None)
    parts = [
        (slice(height - rows, None), whole),
        (slice(rows), whole),
        (whole, slice(width - columns, None)),
        (whole, slice(columns)),
    ]
    kept = min(parts, key=lambda part: int(text[part].sum()))
    return np.ascontiguousarray(image[kept])
