"""Find and read the text of a whole picture: the two networks together, with a check for plausibility."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import cv2
import numpy as np

from flux_async.imaging.detection import TextRegion, detect, without_duplicates
from flux_async.imaging.recognition import TextLine, read_region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flux_async.imaging.arrays import Pixels

COARSE_SIDE = 736
FINE_SIDE = 1408

_LARGEST_SHARE = 0.45
_SURE_SCORE = 0.92
_LARGE_SHARE = 0.10
_BLOCKY_SHARE = 0.004
_BLOCKY_ASPECT = 1.8
_UPRIGHT_ASPECT = 1.5
_TWICE = 2.0


class Quality(enum.Enum):
    """How hard to look for text."""

    FAST = "fast"
    """One look, longer side scaled to 736 pixels: ordinary text."""

    GOOD = "good"
    """A second look at 1,408 pixels with the contrast raised: small, thin and faint text too."""


def find_text(picture: Pixels, *, quality: Quality = Quality.FAST) -> tuple[TextRegion, ...]:
    """Find the lines of text in a picture (uint8 RGB); the largest first."""
    require_rgb(picture)
    found = list(detect(picture, COARSE_SIDE))
    if quality is Quality.GOOD:
        found.extend(detect(raise_contrast(picture), FINE_SIDE))
    return without_duplicates(_plausible(picture, found))


def read_text(
    picture: Pixels, *, quality: Quality = Quality.FAST, least_confidence: float = 0.5
) -> tuple[TextLine, ...]:
    """Find and read the text in a picture; lines read with less than ``least_confidence`` are left out."""
    lines = (read_region(picture, region) for region in find_text(picture, quality=quality))
    return tuple(line for line in lines if line.letters and line.confidence >= least_confidence)


def is_readable(
    picture: Pixels, region: TextRegion, *, least_letters: int = 2, least_confidence: float = 0.6
) -> bool:
    """Tell whether the recogniser sees letters in a region."""
    line = read_region(picture, region)
    if least_letters > 1 and len({sign for sign in line.text if sign.isalnum()}) == 1:
        return False  # a row of buttons or windows reads "0000"
    return line.letters >= least_letters and line.confidence >= least_confidence


def raise_contrast(picture: Pixels) -> Pixels:
    """Raise local contrast of the lightness (CLAHE), so that faint text stands out."""
    values = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
    values[..., 0] = cv2.createCLAHE(3.0, (8, 8)).apply(values[..., 0])
    return np.asarray(cv2.cvtColor(values, cv2.COLOR_LAB2RGB), np.uint8)


def require_rgb(picture: Pixels) -> None:
    """Refuse anything but a non-empty uint8 array shaped (height, width, 3).

    Raises:
        ValueError: another dtype or shape, or no pixels at all.
    """
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or picture.size == 0:
        raise ValueError(f"expected uint8 RGB shaped (height, width, 3), got {picture.dtype} {picture.shape}")


def _plausible(picture: Pixels, found: Sequence[TextRegion]) -> list[TextRegion]:
    """Sort out what the detector mistakes for text.

    Huge areas are never text. Large, blocky or upright ones, and those the detector is unsure of, must be
    readable; a mark in line with sure text ("$" before a price) need not.
    """
    pixels = picture.shape[0] * picture.shape[1]
    possible = [region for region in found if region.area <= _LARGEST_SHARE * pixels]
    usual = [region for region in possible if not _is_odd(region, region.area / pixels)]
    sure = [region for region in usual if region.score >= _SURE_SCORE]
    in_line = [region for region in usual if region.score < _SURE_SCORE and _is_in_line(region, sure)]
    accepted = [*sure, *in_line]
    contrasty = raise_contrast(picture)
    for region in possible:
        if region not in accepted and (is_readable(picture, region) or is_readable(contrasty, region)):
            accepted.append(region)
    return accepted


def _is_odd(region: TextRegion, share: float) -> bool:
    """Tell whether a region is larger, more like a block or more upright than most lines are."""
    height, width = region.window.shape
    blocky = region.length < _BLOCKY_ASPECT * region.height and share > _BLOCKY_SHARE
    return blocky or height > _UPRIGHT_ASPECT * width or share > _LARGE_SHARE


def _is_in_line(region: TextRegion, sure: Sequence[TextRegion]) -> bool:
    """Tell whether a region goes on where a sure line of about its height ends."""
    reach = int(region.height / 2)
    shape = (region.window.bottom + reach, region.window.right + reach)
    near = region.window.grown(reach, shape)
    return any(
        near.overlap(line.window) is not None and 1 / _TWICE < line.height / region.height < _TWICE
        for line in sure
    )
