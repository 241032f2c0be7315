"""Search for similar patches, and the vote of the matches.

Four float32 channels are stored as one 16-byte item and four byte channels as one 4-byte item: numpy then
gathers whole pixels at once, which makes the search fast enough without compiled code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import Floats, Ints, Mask, dilate_square, to_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

RADIUS = 3
PATCH = 2 * RADIUS + 1

_NEGLIGIBLE = 0.02

Offsets = list[tuple[int, int]]
FULL_PATCH: Offsets = [(y, x) for y in range(-RADIUS, RADIUS + 1) for x in range(-RADIUS, RADIUS + 1)]
CHEQUERED_PATCH: Offsets = [(y, x) for y, x in FULL_PATCH if (y + x) % 2 == 0]
"""Every other pixel of a patch: half the work for nearly the same result."""


@attrs.frozen(eq=False)
class Positions:
    """Pixels of an image, as rows and columns."""

    rows: Ints
    columns: Ints

    @classmethod
    def where(cls, mask: Mask) -> Positions:
        """Return the pixels of a mask."""
        rows, columns = np.nonzero(mask)
        return cls(rows.astype(np.int32), columns.astype(np.int32))

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, which: NDArray[np.integer]) -> Positions:
        """Return the pixels with these indices."""
        return Positions(self.rows[which], self.columns[which])

    def moved(self, rows: int | Ints, columns: int | Ints) -> Positions:
        """Return the pixels shifted."""
        return Positions(self.rows + np.int32(rows), self.columns + np.int32(columns))


@attrs.frozen(eq=False)
class Level:
    """An image with a hole at one scale: ``values`` is (height, width, 4), float32."""

    values: Floats
    hole: Mask
    usable: Mask
    """Centres of patches that touch no hole; the image is mirrored at its borders."""
    sources: Positions
    targets: Positions
    """Centres of patches that touch the hole; each needs a match."""
    numbers: Ints
    """Index of the target at each pixel; -1 where there is none."""

    @classmethod
    def of(cls, values: Floats, hole: Mask) -> Level:
        """Return the level with its sources and targets."""
        touched = dilate_square(hole, RADIUS)
        usable = ~touched
        targets = Positions.where(touched)
        numbers = np.full(hole.shape, -1, np.int32)
        numbers[targets.rows, targets.columns] = np.arange(len(targets), dtype=np.int32)
        return cls(values, hole, usable, Positions.where(usable), targets, numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def stride(self) -> int:
        """Length of a row with its rim."""
        return self.shape[1] + 2 * RADIUS

    def flat(self, positions: Positions) -> Ints:
        """Return the indices of pixels in the flattened image with its rim."""
        return (positions.rows + RADIUS) * np.int32(self.stride) + positions.columns + np.int32(RADIUS)

    def flat_offsets(self, offsets: Offsets) -> Ints:
        """Return the index offsets of a patch in the flattened image with its rim."""
        return np.array([y * self.stride + x for y, x in offsets], np.int32)

    def contains(self, positions: Positions) -> Mask:
        """Return which pixels lie in the image."""
        height, width = self.shape
        rows, columns = positions.rows, positions.columns
        return np.asarray((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width), np.bool_)

    def random_sources(self, count: int, random: np.random.Generator) -> Positions:
        """Return random source patches."""
        return self.sources.at(random.integers(0, len(self.sources), count))


@attrs.frozen(eq=False, kw_only=True)
class Guide:
    """Preference of the search: patches that, blurred, resemble ``wanted`` and lie near the target."""

    look: Floats
    wanted: Floats
    likeness: float
    nearness: float


def with_rim(values: Floats) -> Floats:
    """Return the image with a mirrored rim of one patch radius."""
    return np.asarray(
        cv2.copyMakeBorder(values, RADIUS, RADIUS, RADIUS, RADIUS, cv2.BORDER_REFLECT_101), np.float32
    )


class Search:
    """Best match found so far for every target of a level."""

    def __init__(
        self,
        level: Level,
        current: Floats,
        matches: Positions,
        random: np.random.Generator,
        *,
        offsets: Offsets = FULL_PATCH,
        guide: Guide | None = None,
    ) -> None:
        self._level = level
        self._random = random
        self._guide = guide
        self._steps = level.flat_offsets(offsets)[None]
        self._source_bytes = _packed_bytes(level.values)
        self._target_patches = self._patches(_packed_bytes(current), level.targets)
        self.matches: Positions = Positions(matches.rows.copy(), matches.columns.copy())
        self.costs: Floats = self._costs(self.matches, np.arange(len(level.targets)))

    def sweep(self, *, jumps: tuple[int, ...], radii: tuple[int, ...]) -> None:
        """Try the matches of neighbours at these distances, then random positions within these radii."""
        for jump in jumps:
            for rows, columns in ((0, jump), (jump, 0), (0, -jump), (-jump, 0)):
                self._try_neighbours(rows, columns)
        for radius in radii:
            self._try_random(radius)

    def _try_neighbours(self, rows: int, columns: int) -> None:
        neighbours = self._level.targets.moved(rows, columns)
        inside = self._level.contains(neighbours)
        height, width = self._level.shape
        number = self._level.numbers[
            np.clip(neighbours.rows, 0, height - 1), np.clip(neighbours.columns, 0, width - 1)
        ]
        self._try(self.matches.at(number).moved(-rows, -columns), inside & (number >= 0))

    def _try_random(self, radius: int) -> None:
        count = len(self._level.targets)
        rows, columns = (self._random.integers(-radius, radius + 1, count, dtype=np.int32) for _ in range(2))
        self._try(self.matches.moved(rows, columns), np.ones(count, np.bool_))

    def _try(self, candidates: Positions, allowed: Mask) -> None:
        """Keep the candidates that are usable and cost less than the current matches."""
        moved = (candidates.rows != self.matches.rows) | (candidates.columns != self.matches.columns)
        chosen = np.flatnonzero(allowed & moved & self._level.contains(candidates))
        chosen = chosen[self._level.usable[candidates.rows[chosen], candidates.columns[chosen]]]
        if not len(chosen):
            return
        tried = candidates.at(chosen)
        costs = self._costs(tried, chosen)
        better = costs < self.costs[chosen]
        winners = chosen[better]
        self.matches.rows[winners], self.matches.columns[winners] = tried.rows[better], tried.columns[better]
        self.costs[winners] = costs[better]

    def _costs(self, positions: Positions, chosen: NDArray[np.intp]) -> Floats:
        patches = self._patches(self._source_bytes, positions)
        wanted = (
            self._target_patches if len(chosen) == len(self._target_patches) else self._target_patches[chosen]
        )
        difference = cv2.absdiff(patches, wanted)
        costs = np.asarray(cv2.reduce(difference, 1, cv2.REDUCE_SUM2, dtype=cv2.CV_32F), np.float32)[:, 0]
        return costs if self._guide is None else costs + self._penalty(self._guide, positions, chosen)

    def _penalty(self, guide: Guide, positions: Positions, chosen: NDArray[np.intp]) -> Floats:
        targets = self._level.targets.at(chosen)
        unlike = guide.look[positions.rows, positions.columns] - guide.wanted[targets.rows, targets.columns]
        away = (positions.rows - targets.rows) ** 2 + (positions.columns - targets.columns) ** 2
        height, width = self._level.shape
        near = guide.nearness / (height**2 + width**2) * away
        weight = self._steps.shape[1]
        return np.asarray(
            weight * (guide.likeness * np.einsum("ij,ij->i", unlike, unlike) + near), np.float32
        )

    def _patches(self, packed: NDArray[np.uint32], positions: Positions) -> NDArray[np.uint8]:
        """Return the patches around pixels, one row of bytes each."""
        gathered = np.take(packed, self._level.flat(positions)[:, None] + self._steps, mode="clip")
        return gathered.view(np.uint8).reshape(len(positions), -1)


def vote(level: Level, matches: Positions, weights: Floats | None, *, sharpness: float) -> Floats:
    """Return the weighted mean of the matched patches, in the hole and within one radius around it.

    Every patch proposes a value for each pixel it covers; its centre has the largest weight. The weights
    are a Gaussian of ``sharpness`` pixels: a narrow one keeps grain, a wide one smooths seams.
    """
    size = (level.shape[0] + 2 * RADIUS) * level.stride
    source = with_rim(level.values).reshape(-1, 4).view(np.complex128).reshape(-1)
    total = np.zeros((size, 4), np.float32)
    total_packed = total.view(np.complex128).reshape(-1)
    weight = np.zeros(size, np.float32)
    own = np.ones(len(matches), np.float32) if weights is None else weights
    targets, sources = level.flat(level.targets), level.flat(matches)
    for (rows, columns), step in zip(FULL_PATCH, level.flat_offsets(FULL_PATCH), strict=True):
        near = math.exp(-(rows * rows + columns * columns) / (2 * sharpness * sharpness))
        if near < _NEGLIGIBLE:
            continue
        share = own * np.float32(near)
        proposed = np.take(source, sources + step, mode="clip").view(np.float32).reshape(-1, 4)
        proposed = proposed * share[:, None]
        # Targets are distinct pixels: within one step no position is written twice, plain indexing adds up.
        place = targets + step
        proposed += total_packed[place].view(np.float32).reshape(-1, 4)
        total_packed[place] = proposed.view(np.complex128).reshape(-1)
        weight[place] += share
    total /= np.maximum(weight, np.float32(1e-9))[:, None]
    return np.asarray(total.reshape(-1, level.stride, 4)[RADIUS:-RADIUS, RADIUS:-RADIUS], np.float32)


def vote_weights(costs: Floats) -> Floats:
    """Return the weights of matches in the vote: matches much worse than most weigh nearly nothing."""
    usual = float(np.percentile(costs, 40)) + 1e-3
    return np.asarray(np.exp(-costs / (2 * usual)) + 1e-4, np.float32)


def _packed_bytes(values: Floats) -> NDArray[np.uint32]:
    rimmed = cv2.copyMakeBorder(to_pixels(values), RADIUS, RADIUS, RADIUS, RADIUS, cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(np.asarray(rimmed, np.uint8)).view(np.uint32).reshape(-1)
