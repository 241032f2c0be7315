"""Finds the ink of a line by its contrast to the background.

Two measures: the distance in CIELAB from a background interpolated from a ring around the line, and how much
more frequent the pixel's colour is inside the line than in the ring. Pixels for which both are high are
strong; pixels with one high measure are weak and count only if they touch strong ones.
"""

# ruff: noqa: PLR2004 - the numbers are weights and thresholds, each used once

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Mask, Pixels, Window, components, dilate, lab, masked_gaussian
from flux_async.imaging.smooth_fill import fill_smoothly

if TYPE_CHECKING:
    from flux_async.imaging.text_regions import TextRegion

_BINS = 26
_LIGHTNESS_STEP = 4
_COLOUR_STEP = 8


@attrs.frozen(eq=False)
class Contrast:
    """Both measures for every pixel of a window."""

    inside: Mask
    distance: Floats
    threshold: float
    """Larger distances exceed the texture of the background."""
    likelihood: Floats
    """0 to 1: how much more frequent the pixel's colour is in the line than around it."""
    frequency: Floats
    """Share of the line's pixels that have this pixel's colour."""

    def agreed(self) -> Mask:
        """Return strong pixels, and weak ones connected with them."""
        strong = (self.likelihood > 0.7) & (self.distance > self.threshold)
        strong |= (self.likelihood > 0.85) & (self.distance > 0.6 * self.threshold) & (self.frequency > 0.004)
        weak = (self.likelihood > 0.45) & (self.distance > 0.5 * self.threshold)
        weak |= (self.distance > 1.25 * self.threshold) & (self.likelihood > 0.15)
        strong &= self.inside
        parts = components((weak & self.inside) | strong)
        kept = np.bincount(parts.labels[strong], minlength=parts.count) >= 2
        kept[0] = False
        return np.asarray(kept[parts.labels], np.bool_)

    def either(self) -> Mask:
        """Return pixels for which one measure is high: for remains of text, where missing some is worse."""
        return ((self.distance > self.threshold) | (self.likelihood > 0.6)) & self.inside


def measure_contrast(image: Pixels, region: TextRegion, window: Window, other_text: Mask) -> Contrast | None:
    """Return the measures in a window around a line; None where there is no background to compare with."""
    height = max(6.0, region.height)
    inside = dilate(region.placed(window), max(1.0, 0.04 * height))
    ring = ~(inside | other_text)
    if ring.sum() < 0.05 * inside.sum() + 20:
        ring = ~inside
    if ring.sum() < 20:
        return None
    values = lab(image[window.slices])
    distance = np.sqrt(((values - fill_smoothly(values, ~ring)) ** 2).sum(2))
    threshold = _threshold(distance[inside], 1.8 * texture(values, ring, height))
    likelihood, frequency = _colour_likelihood(values, inside, ring)
    return Contrast(inside, distance, threshold, likelihood, frequency)


def texture(values: Floats, ring: Mask, height: float) -> float:
    """Return the roughness of the background: the median deviation of the ring from its blurred copy."""
    residue = values - masked_gaussian(values, ring.astype(np.float32), max(2.0, 0.25 * height))
    return float(1.4826 * np.median(np.abs(residue[ring]), 0).sum() / 1.5)


def _threshold(distances: Floats, floor: float) -> float:
    """Return the Otsu threshold of the distances, limited to the range 6 to 45."""
    doubled = np.clip(distances * 2, 0, 255).astype(np.uint8).reshape(-1, 1)
    split, _ = cv2.threshold(doubled, 0, 255, cv2.THRESH_OTSU)
    return float(min(45.0, max(6.0, floor, split / 2)))


def _colour_likelihood(values: Floats, inside: Mask, ring: Mask) -> tuple[Floats, Floats]:
    """Return likelihood and frequency of each pixel's colour, from the histograms of line and ring."""
    places = _histogram_places(values)
    own, others = (_histogram(places[part]) for part in (inside, ring))
    frequency = own[places]
    likelihood = np.clip(1 - others[places] / (frequency + 1e-9), 0, 1)
    return np.where(frequency > 2e-4, likelihood, likelihood * 0.5).astype(np.float32), frequency


def _histogram_places(values: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    lightness = np.clip(values[..., 0] / _LIGHTNESS_STEP, 0, _BINS - 1).astype(np.int32)
    green, blue = (
        np.clip((values[..., channel] + 100) / _COLOUR_STEP, 0, _BINS - 1).astype(np.int32)
        for channel in (1, 2)
    )
    return (lightness * _BINS + green) * _BINS + blue


def _histogram(places: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Floats:
    """Return the smoothed colour histogram, as shares."""
    counts = np.bincount(places, minlength=_BINS**3).astype(np.float32).reshape(_BINS, _BINS, _BINS)
    for axis in range(3):
        counts = 0.25 * np.roll(counts, 1, axis) + 0.5 * counts + 0.25 * np.roll(counts, -1, axis)
    return np.asarray(counts.reshape(-1) / max(1, places.size), np.float32)
