"""What a line of text says: cut it out level, run the recogniser, decode its output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Pixels, resize_pixels
from flux_async.imaging.networks import alphabet, as_network_input, recogniser

if TYPE_CHECKING:
    from flux_async.imaging.detection import TextRegion

LINE_HEIGHT = 48
"""The recogniser reads lines of this height."""
LONGEST_LINE = 1216
"""Longer lines are squeezed to this width."""

_UNSURE = 0.8
_FEWEST_PIXELS = 2


@attrs.frozen(kw_only=True)
class TextLine:
    """A line of text that was read.

    ``confidence`` (0 to 1) is the mean over the letters; nothing read is an empty text with confidence 0.
    """

    region: TextRegion
    text: str
    confidence: float

    @property
    def letters(self) -> int:
        """How many letters and digits were read, in any script."""
        return sum(sign.isalnum() for sign in self.text)


def read_region(picture: Pixels, region: TextRegion) -> TextLine:
    """Read one region; unsure readings are tried upside down too, as a steep line has no sure top."""
    strip = level_strip(picture, region)
    text, confidence = read_strip(strip)
    if confidence < _UNSURE:
        flipped = read_strip(np.ascontiguousarray(strip[::-1, ::-1]))
        if flipped[1] > confidence + 0.1:
            text, confidence = flipped
    return TextLine(region=region, text=text, confidence=confidence)


def read_strip(strip: Pixels) -> tuple[str, float]:
    """Read a level line of text; returns the text and the mean confidence of its letters."""
    height, width = strip.shape[:2]
    if min(height, width) < _FEWEST_PIXELS:
        return "", 0.0
    natural = math.ceil(LINE_HEIGHT * width / height)
    padded = min(LONGEST_LINE, -(-max(LINE_HEIGHT, natural) // 32) * 32)
    seen = as_network_input(resize_pixels(strip, (LINE_HEIGHT, min(padded, max(8, natural)))))
    batch = np.zeros((1, 3, LINE_HEIGHT, padded), np.float32)
    batch[..., : seen.shape[3]] = seen
    return decode(recogniser().run(batch)[0])


def decode(chances: Floats) -> tuple[str, float]:
    """Decode greedily by the rule of CTC: the best class at each step, repeats once, blanks dropped."""
    best, sure = chances.argmax(1), chances.max(1)
    fresh = np.concatenate(([True], best[1:] != best[:-1]))
    kept = (best > 0) & fresh
    if not kept.any():
        return "", 0.0
    signs = alphabet()
    text = "".join(signs[index] if index < len(signs) else "?" for index in best[kept])
    return text, float(sure[kept].mean())


def level_strip(picture: Pixels, region: TextRegion) -> Pixels:
    """Cut a region out of the picture, turned level; upright lines are laid on their side."""
    corners = _corners(region)
    top_left, top_right, bottom_right, bottom_left = corners
    width = int(max(np.linalg.norm(top_right - top_left), np.linalg.norm(bottom_right - bottom_left)))
    height = int(max(np.linalg.norm(top_left - bottom_left), np.linalg.norm(top_right - bottom_right)))
    if min(height, width) < _FEWEST_PIXELS:
        return picture[:0, :0]
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    strip = cv2.warpPerspective(
        picture,
        cv2.getPerspectiveTransform(corners, target),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    level = np.asarray(strip, np.uint8)
    return np.ascontiguousarray(np.rot90(level)) if height >= 1.5 * width else level


def _corners(region: TextRegion) -> Floats:
    """Return the corners of the tightest rotated rectangle: clockwise from the top left."""
    outlines, _ = cv2.findContours(region.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return np.zeros((4, 2), np.float32)
    outline = np.asarray(max(outlines, key=cv2.contourArea), np.float32)
    offset = np.array([region.window.left, region.window.top], np.float32)
    box = np.asarray(cv2.boxPoints(cv2.minAreaRect(outline + offset)), np.float32)
    by_column = box[np.argsort(box[:, 0], kind="stable")]
    left, right = (side[np.argsort(side[:, 1], kind="stable")] for side in (by_column[:2], by_column[2:]))
    return np.stack([left[0], right[0], right[1], left[1]])
