"""Which pixels of a line are ink, judged by how far they stand off the background.

Two witnesses: the distance in CIELAB from a background carried in smoothly from a ring around the line, and
how much more usual the pixel's colour is inside the line than in the ring. Where both agree the evidence is
strong; where one does it is weak, and weak pixels count only if they touch strong ones.
"""

# ruff: noqa: PLR2004 - the numbers are weights and levels of evidence, each used once, where it is explained

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, Pixels, Window, components, dilate, lab, masked_gaussian
from flux_async.imaging.smooth_fill import fill_smoothly

if TYPE_CHECKING:
    from flux_async.imaging.detection import TextRegion

_BINS = 26
_LIGHTNESS_STEP = 4
_COLOUR_STEP = 8


@attrs.frozen(eq=False)
class Evidence:
    """What the two witnesses say about every pixel of a window."""

    inside: Mask
    distance: Floats
    threshold: float
    """Distances above it stand out from the background's own texture."""
    likelihood: Floats
    """0 to 1: the pixel's colour belongs to the line rather than to its surroundings."""
    commonness: Floats
    """Share of the line's pixels that have this pixel's colour."""

    def agreed(self) -> Mask:
        """Return strong pixels, and weak ones connected with them."""
        strong = (self.likelihood > 0.7) & (self.distance > self.threshold)
        strong |= (
            (self.likelihood > 0.85) & (self.distance > 0.6 * self.threshold) & (self.commonness > 0.004)
        )
        weak = (self.likelihood > 0.45) & (self.distance > 0.5 * self.threshold)
        weak |= (self.distance > 1.25 * self.threshold) & (self.likelihood > 0.15)
        strong &= self.inside
        parts = components((weak & self.inside) | strong)
        kept = np.bincount(parts.labels[strong], minlength=parts.count) >= 2
        kept[0] = False
        return np.asarray(kept[parts.labels], np.bool_)

    def either(self) -> Mask:
        """Return pixels that at least one witness holds for ink: for traces, where missing some is worse."""
        return ((self.distance > self.threshold) | (self.likelihood > 0.6)) & self.inside


def weigh(picture: Pixels, region: TextRegion, window: Window, other_text: Mask) -> Evidence | None:
    """Judge the pixels of a window around a line; None where there is no background to compare with."""
    height = max(6.0, region.height)
    inside = dilate(region.placed(window), max(1.0, 0.04 * height))
    ring = ~(inside | other_text)
    if ring.sum() < 0.05 * inside.sum() + 20:
        ring = ~inside
    if ring.sum() < 20:
        return None
    values = lab(picture[window.slices])
    distance = np.sqrt(((values - fill_smoothly(values, ~ring)) ** 2).sum(2))
    threshold = _threshold(distance[inside], 1.8 * _texture(values, ring, height))
    likelihood, commonness = _colour_likelihood(values, inside, ring)
    return Evidence(inside, distance, threshold, likelihood, commonness)


def _texture(values: Floats, ring: Mask, height: float) -> float:
    """Measure how rough the background is: a robust spread of the ring around its own blurred self."""
    residue = values - masked_gaussian(values, ring.astype(np.float32), max(2.0, 0.25 * height))
    return float(1.4826 * np.median(np.abs(residue[ring]), 0).sum() / 1.5)


def _threshold(distances: Floats, floor: float) -> float:
    """Split the distances in two (Otsu), within sensible limits."""
    doubled = np.clip(distances * 2, 0, 255).astype(np.uint8).reshape(-1, 1)
    split, _ = cv2.threshold(doubled, 0, 255, cv2.THRESH_OTSU)
    return float(min(45.0, max(6.0, floor, split / 2)))


def _colour_likelihood(values: Floats, inside: Mask, ring: Mask) -> tuple[Floats, Floats]:
    """Compare the colour histogram of the line with that of its surroundings, pixel by pixel."""
    places = _histogram_places(values)
    own, others = (_histogram(places[part]) for part in (inside, ring))
    commonness = own[places]
    likelihood = np.clip(1 - others[places] / (commonness + 1e-9), 0, 1)
    return np.where(commonness > 2e-4, likelihood, likelihood * 0.5).astype(np.float32), commonness


def _histogram_places(values: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    lightness = np.clip(values[..., 0] / _LIGHTNESS_STEP, 0, _BINS - 1).astype(np.int32)
    green, blue = (
        np.clip((values[..., channel] + 100) / _COLOUR_STEP, 0, _BINS - 1).astype(np.int32)
        for channel in (1, 2)
    )
    return (lightness * _BINS + green) * _BINS + blue


def _histogram(places: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Floats:
    """Count colours, each spilling a little into its neighbours, as shares."""
    counts = np.bincount(places, minlength=_BINS**3).astype(np.float32).reshape(_BINS, _BINS, _BINS)
    for axis in range(3):
        counts = 0.25 * np.roll(counts, 1, axis) + 0.5 * counts + 0.25 * np.roll(counts, -1, axis)
    return np.asarray(counts.reshape(-1) / max(1, places.size), np.float32)
