"""Fine detail for originals that are larger than the result: grain, leaves, the weave of paper.

An enlarged result has none of it, which shows as soft spots at full size. The band of frequencies that it
lacks is taken from places nearby that look most like the filled ones. This costs a little likeness to the
true background (PSNR), and looks right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from flux_async.imaging.arrays import Floats, Mask, gaussian
from flux_async.verification.grid import grow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flux_async.imaging.arrays import Ints

RING = 24
"""How much is missing is measured in a ring of this width around the hole, in pixels."""
REACH = 3
"""Look-alikes are searched within this many cells, in steps of half a cell."""
LEAST_FREE = 0.7
"""A look-alike lies outside all holes with at least this share of its pixels."""
LEAST_GAIN, LEAST_POWER = 0.1, 0.3
_FEW_PIXELS = 50
_SAMPLES = 300
_OCCUPIED_COST = 30
_MAD = 1.48
"""Standard deviation of normal noise over the median of its absolute values."""
_CLIP = 3


def add_grain(fill: Floats, original: Floats, *, hole: Mask, busy: Mask, scale: float, cell: int) -> Floats:
    """Return the fill (0 to 255) with fine detail in the hole.

    ``busy`` are pixels of any hole, ``scale`` is the enlargement of the result, ``cell`` the side (in pixels)
    of the areas that are each given the detail of one place.
    """
    sigma = 0.6 * max(1.0, scale) + 0.4
    band = original - gaussian(original, sigma)
    ring = grow(hole, RING) & ~busy
    if ring.sum() < _FEW_PIXELS:
        return fill
    # Medians, so that edges do not count: they are no grain.
    power = _deviation(band[ring]) ** 2
    present = _deviation((fill - gaussian(fill, sigma))[ring]) ** 2
    gain = math.sqrt(max(0.0, power - present) / max(power, 1e-6))
    if gain < LEAST_GAIN or power < LEAST_POWER:
        return fill
    limit = _CLIP * math.sqrt(power)
    coarse = gaussian(original, 4 * sigma), gaussian(fill, 4 * sigma)
    grained = fill.copy()
    for rows, columns in _cells(hole, cell):
        move = _look_alike(coarse, busy, (rows, columns), cell)
        if move is not None:
            place = rows + move[0], columns + move[1]
            free = (~busy[place])[:, None]
            grained[rows, columns] += gain * np.clip(band[place] * free, -limit, limit)
    return grained


def _cells(hole: Mask, cell: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield the rows and columns of the hole's pixels in each square cell of the grid."""
    height, width = hole.shape
    for top in range(0, height, cell):
        for left in range(0, width, cell):
            rows, columns = np.nonzero(hole[top : top + cell, left : left + cell])
            if rows.size:
                yield (rows + top).astype(np.int32), (columns + left).astype(np.int32)


def _look_alike(
    coarse: tuple[Floats, Floats], busy: Mask, where: tuple[Ints, Ints], cell: int
) -> tuple[int, int] | None:
    """Return how far down and right the place is that looks most like the fill, or None.

    ``coarse`` are the original and the fill without detail, ``where`` the rows and columns to fill.
    """
    original, fill = coarse
    rows, columns = where
    step = max(1, len(rows) // _SAMPLES)
    some_rows, some_columns = rows[::step], columns[::step]
    wanted = fill[some_rows, some_columns]
    best, best_cost = None, math.inf
    lowest, highest = (int(rows.min()), int(columns.min())), (int(rows.max()), int(columns.max()))
    moves = range(-REACH * cell, REACH * cell + 1, cell // 2)
    for down in moves:
        if lowest[0] + down < 0 or highest[0] + down >= fill.shape[0]:
            continue
        for right in moves:
            if lowest[1] + right < 0 or highest[1] + right >= fill.shape[1]:
                continue
            place = some_rows + down, some_columns + right
            free = 1 - float(busy[place].mean())
            if free < LEAST_FREE:
                continue
            cost = float(np.abs(original[place] - wanted).mean()) + _OCCUPIED_COST * (1 - free)
            if cost < best_cost:
                best, best_cost = (down, right), cost
    return best


def _deviation(values: Floats) -> float:
    return float(np.median(np.abs(values))) * _MAD
