"""Colour matching: maps the colours of the vendor's result to those of the original.

The map is fitted outside the text, in CIELAB: gain and offset of each channel, then a quadratic polynomial of
all three for what is left. Linear maps alone turned a saturated blue button on a white page violet, as the
page outnumbers it; so rare colours count as much as common ones. What remains varies over the image, and is
corrected around each hole by a smooth field that is carried into it.
"""

from __future__ import annotations

import attrs
import cv2
import numpy as np
from numpy.typing import NDArray

from flux_async.imaging.arrays import Floats, Mask, gaussian, masked_gaussian
from flux_async.verification.grid import spread

SAMPLES = 200_000
SEED = 0
ROUNDS = 3
"""Each fit is repeated without the pixels that it fits badly: those were changed by the editor."""
SMALLEST_GAIN, LARGEST_GAIN = 0.7, 1.4
LEAST_VARIANCE = 4.0
"""Channels that vary less keep their gain: it would be fitted to noise."""

_OUTLIER, _LEAST_OUTLIER = 3.0, 10.0
_CHANGED = 25.0
_FEW_SAMPLES = 500
_BIN = 8
_LOWEST = np.array([0, 128, 128], np.float32)
_COMMON, _RARE = 60, 12
_RIDGE = 20.0
_SOFT = 6.0
_STRIP_ROWS = 256
_TERMS = 10

Samples = NDArray[np.float32]
"""Colours in CIELAB, shaped (number, 3)."""


@attrs.frozen(kw_only=True, eq=False)
class Tone:
    """A map of CIELAB colours: ``gain`` and ``offset`` of each channel, and coefficients of a quadratic."""

    gain: Floats
    offset: Floats
    coefficients: Floats

    def apply(self, values: Floats) -> Floats:
        """Return an image in CIELAB with mapped colours."""
        mapped = values * self.gain + self.offset
        if self.coefficients.any():
            for top in range(0, len(values), _STRIP_ROWS):  # the ten terms of a whole image need much memory
                rows = slice(top, top + _STRIP_ROWS)
                mapped[rows] += _terms(values[rows]) @ self.coefficients
        return mapped


def to_rgb(lab: Floats) -> Floats:
    """Return CIELAB as red, green and blue from 0 to 255, not rounded."""
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.float32) * np.float32(255)


def fit_tone(result: Floats, original: Floats, where: Mask, *, samples: int = SAMPLES) -> Tone:
    """Return the map from the result's colours to the original's, fitted on ``samples`` pixels ``where``."""
    rows, columns = np.nonzero(where)
    picked = np.random.default_rng(SEED).permutation(len(rows))[:samples]
    place = rows[picked], columns[picked]
    have, want = result[place], original[place]
    gain, offset = _fit_linear(have, want)
    distance = np.abs(have * gain + offset - want).sum(1)
    same = distance < _CHANGED
    coefficients = np.zeros((_TERMS, 3), np.float32)
    if same.sum() > _FEW_SAMPLES:
        have, want = have[same], want[same]
        coefficients = _fit_quadratic(have, want - have * gain - offset)
    return Tone(gain=gain, offset=offset, coefficients=coefficients)


def local_offset(missing: Floats, known: Mask, *, sigma: float, least: float, smooth: float) -> Floats:
    """Return a smooth field of colour offsets: the mean of what is missing nearby, carried to the rest.

    ``sigma`` and ``smooth`` are in pixels. Where less than ``least`` of the neighbourhood is known, the
    values come from farther away.
    """
    weight = known.astype(np.float32)
    near = (gaussian(weight, sigma) > least).astype(np.float32)
    return spread(masked_gaussian(missing, weight, sigma), near, smooth=smooth)


def _fit_linear(have: Samples, want: Samples) -> tuple[Floats, Floats]:
    use = np.ones(len(have), np.bool_)
    gain, offset = np.ones(3, np.float32), np.zeros(3, np.float32)
    for _ in range(ROUNDS):
        mine, theirs = have[use], want[use]
        mean, target, variance = mine.mean(0), theirs.mean(0), mine.var(0)
        together = ((mine - mean) * (theirs - target)).mean(0)
        gain = np.where(variance > LEAST_VARIANCE, together / np.maximum(variance, 1e-6), 1)
        gain = gain.clip(SMALLEST_GAIN, LARGEST_GAIN).astype(np.float32)
        offset = (target - gain * mean).astype(np.float32)
        wrong = np.abs(have * gain + offset - want).sum(1)
        use = wrong < max(_LEAST_OUTLIER, _OUTLIER * float(np.median(wrong)))
    return gain, offset


def _fit_quadratic(have: Samples, missing: Samples) -> Floats:
    """Return the coefficients for what the linear map leaves; robust against pixels that are not the same."""
    bins = ((have + _LOWEST) // _BIN).astype(np.int64) @ np.array([4096, 64, 1])
    _, number, counts = np.unique(bins, return_inverse=True, return_counts=True)
    weight = (np.minimum(counts, _COMMON) / counts)[number] * (counts >= _RARE)[number]
    terms = _terms(have)
    coefficients = np.zeros((_TERMS, 3), np.float32)
    for _ in range(ROUNDS):
        weighted = (terms * weight[:, None]).T
        system = weighted @ terms + _RIDGE * np.eye(_TERMS)
        coefficients = np.linalg.solve(system, weighted @ missing).astype(np.float32)
        weight = weight / (1 + (np.abs(missing - terms @ coefficients).sum(1) / _SOFT) ** 2)
    return coefficients


def _terms(values: Floats) -> Floats:
    """Return the ten terms of a quadratic in three channels, in the last axis."""
    light, green, blue = values[..., 0] / 50 - 1, values[..., 1] / 50, values[..., 2] / 50
    ones = np.ones_like(light)
    squares = light * light, green * green, blue * blue
    products = light * green, light * blue, green * blue
    return np.stack([ones, light, green, blue, *squares, *products], -1).astype(np.float32)
