"""Sharpness matching: a small filter that makes the vendor's result as sharp as the original.

Editors return images that are softer than what they were given, so their fills looked blurred beside sharp
surroundings. How much softer is measured outside the text: the filter with the least squared error between
both. On five simulated edits, in the mean, it brought fills 1 dB closer to the clean image.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from flux_async.imaging.arrays import Floats, Mask, gaussian

REACH = 3
"""The filter is a square that reaches this many pixels to each side."""
SAMPLES = 60_000
FEWEST_SAMPLES = 5_000
LARGEST_GAIN = 3.0
"""Largest weight of the pixel itself; beyond it, noise would be sharpened."""
_SEED = 0
_ROUNDS = 3
_RIDGE = 5e-5
_SMOOTH = 6.0
_OUTLIER, _LEAST_OUTLIER = 3.0, 0.3


def fit_sharpening(result: Floats, original: Floats, where: Mask) -> Floats | None:
    """Return the filter for the result's lightness, or None where it is as sharp as the original.

    Both are aligned and matched in colour; ``where`` are pixels that show the same in both.
    """
    rows, columns = np.nonzero(where)
    if len(rows) < FEWEST_SAMPLES:
        return None
    picked = np.random.default_rng(_SEED).permutation(len(rows))[:SAMPLES]
    place = rows[picked], columns[picked]
    parts = _parts()
    terms = np.stack([sharpened(result, part)[place] for part in parts], 1).astype(np.float64)
    missing = original - result
    wanted = (missing - gaussian(missing, _SMOOTH))[place].astype(np.float64)
    weight = np.ones(len(wanted))
    shares: NDArray[np.float64] = np.zeros(len(parts))
    for _ in range(_ROUNDS):  # again with less weight for pixels that the editor changed
        weighted = (terms * weight[:, None]).T
        system = weighted @ terms + _RIDGE * len(wanted) * np.eye(len(parts))
        shares = np.asarray(np.linalg.solve(system, weighted @ wanted), np.float64)
        error = np.abs(wanted - terms @ shares)
        weight = 1 / (1 + (error / (_OUTLIER * np.median(error) + _LEAST_OUTLIER)) ** 2)
    kernel = np.tensordot(shares, parts, 1).astype(np.float32)
    gain = float(kernel[REACH, REACH])  # of the pixel itself, beyond 1
    if gain <= 0:
        return None
    kernel *= min(1.0, (LARGEST_GAIN - 1) / gain)
    kernel[REACH, REACH] += 1
    return kernel


def sharpened(values: Floats, kernel: Floats) -> Floats:
    """Return filtered values of one channel."""
    return np.asarray(cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _parts() -> Floats:
    """Return the filters that it is made of: the mean of all pixels at a distance, less the pixel itself."""
    groups: dict[tuple[int, int], Floats] = {}
    size = 2 * REACH + 1
    for row in range(size):
        for column in range(size):
            far, near = sorted((abs(row - REACH), abs(column - REACH)), reverse=True)
            groups.setdefault((far, near), np.zeros((size, size), np.float32))[row, column] = 1
    del groups[0, 0]
    parts = np.stack([group / group.sum() for group in groups.values()])
    parts[:, REACH, REACH] -= 1
    return np.asarray(parts, np.float32)
