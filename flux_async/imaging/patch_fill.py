"""Fills a hole with patches of the rest of the image: for bricks, gravel, leaves and fur.

PatchMatch with voting (Wexler): the search finds the most similar patch for every pixel in and around the
hole, the patches vote for the new pixels, and both steps repeat from a coarse image to the full one. A fourth
channel, the mean gradient (Newson), separates smooth from textured areas of the same colour.

Four float32 channels are stored as one 16-byte item and four byte channels as one 4-byte item: numpy then
gathers whole pixels at once, which makes the search fast enough without compiled code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import (
    Floats,
    Ints,
    Mask,
    depth,
    dilate_square,
    fill_smoothly,
    gaussian,
    masked_gaussian,
    resize,
    to_pixels,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

RADIUS = 3
PATCH = 2 * RADIUS + 1
_NEGLIGIBLE = 0.02
Offsets = list[tuple[int, int]]
FULL_PATCH: Offsets = [(y, x) for y in range(-RADIUS, RADIUS + 1) for x in range(-RADIUS, RADIUS + 1)]
CHEQUERED_PATCH: Offsets = [(y, x) for y, x in FULL_PATCH if (y + x) % 2 == 0]
"""Every other pixel of a patch: half the work for nearly the same result."""

MOST_LEVELS = 6
THIN = 2.5
"""At the coarsest level the hole is at most about twice this many pixels wide."""
ROUNDS = (0, 1, 2, 3, 4, 4)
"""Searches at each level, the full image first: there a vote with the matches of the next level is enough."""
LIKENESS = 0.15
"""Weight of the smooth fill as a guide, at the coarsest level."""
NEARNESS = 150.0
"""Weight of the distance between patch and target, at the coarsest level."""

_MOSTLY_KNOWN = 0.6
_FEW_SOURCES = 30
_SMALL_LEVEL = 30_000
_PEEL_SOURCES = 5000
_PEEL_CHUNK = 2048
_LARGEST_CORRECTION = 24


def fill_with_patches(image: Floats, hole: Mask, *, seed: int) -> Floats:
    """Return the image (height, width, 3) with its hole filled; the same seed gives the same result."""
    random = np.random.default_rng(seed)
    pyramid = _pyramid(image, hole)
    state: _State | None = None
    for depth_below, (values, missing) in reversed(list(enumerate(pyramid))):
        level = Level.of(values, missing)
        if not missing.any() or len(level.sources) < _FEW_SOURCES:
            state = None
            continue
        state = _begin(level, random) if state is None else _refine_from(state, level, depth_below, random)
        rounds = ROUNDS[depth_below] if len(pyramid) > 1 else 1
        state = _search_rounds(state, rounds, depth_below, random)
    if state is None:
        return fill_smoothly(image, hole)
    return _without_seam(image, hole, state)


@attrs.frozen(eq=False)
class _State:
    """Matches and image after some rounds at one level."""

    level: Level
    matches: Positions
    current: Floats
    voted: Floats
    guide: Guide | None = None


def _pyramid(image: Floats, hole: Mask) -> list[tuple[Floats, Mask]]:
    count = 1 + int(
        np.clip(math.ceil(math.log2(max(1.0, float(depth(hole).max()) / THIN))), 0, MOST_LEVELS - 1)
    )
    while count > 1 and min(hole.shape) >> (count - 1) < 4 * PATCH:
        count -= 1
    gradient = _mean_gradient(image, hole, reach=2 ** min(count, 4) + 1)
    levels = [(np.dstack([image, gradient]).astype(np.float32), hole)]
    for _ in range(count - 1):
        levels.append(_halved(*levels[-1]))
    return levels


def _halved(values: Floats, hole: Mask) -> tuple[Floats, Mask]:
    shape = ((hole.shape[0] + 1) // 2, (hole.shape[1] + 1) // 2)
    known = (~hole).astype(np.float32)
    share = resize(known, shape)
    smaller = resize(values * known[..., None], shape) / np.maximum(share, 1e-3)[..., None]
    missing = share < _MOSTLY_KNOWN
    smaller[missing] = 0
    return np.asarray(smaller, np.float32), missing


def _mean_gradient(image: Floats, hole: Mask, *, reach: int) -> Floats:
    """Return the mean gradient around each pixel; gradients that touch the hole are left out."""
    grey = np.asarray(cv2.cvtColor(to_pixels(image), cv2.COLOR_RGB2GRAY), np.float32)
    known = (~dilate_square(hole, 1)).astype(np.float32)
    slope = np.abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    mean = cv2.blur(slope * known, (reach, reach)) / np.maximum(cv2.blur(known, (reach, reach)), 0.02)
    return np.minimum(255, mean).astype(np.float32)


def _begin(level: Level, random: np.random.Generator) -> _State:
    """Return the state of the coarsest level after a first guess and a long search."""
    guide = Guide(
        blurred=masked_gaussian(level.values, (~level.hole).astype(np.float32), 2.0),
        wanted=fill_smoothly(level.values, level.hole),
    )
    current = _peel(level, guide, random)
    start = level.random_sources(len(level.targets), random)
    search = Search(level, current, start, random, guide=guide)
    widest = max(level.shape)
    radii = tuple(widest >> halvings for halvings in range(9) if widest >> halvings >= 1)
    for _ in range(3):
        search.sweep(jumps=(4, 1), radii=radii)
    voted = vote(level, search.matches, None, sharpness=1.2)
    return _State(level, search.matches, current, voted, guide)


def _refine_from(below: _State, level: Level, depth_below: int, random: np.random.Generator) -> _State:
    """Return the state of a level, started from the matches of the next coarser one."""
    coarse = below.level
    targets = level.targets
    parents = Positions(
        np.minimum(targets.rows // 2, coarse.shape[0] - 1),
        np.minimum(targets.columns // 2, coarse.shape[1] - 1),
    )
    number = coarse.numbers[parents.rows, parents.columns]
    matched = below.matches.at(number)
    rows = np.clip(matched.rows * 2 + (targets.rows & 1), 0, level.shape[0] - 1)
    columns = np.clip(matched.columns * 2 + (targets.columns & 1), 0, level.shape[1] - 1)
    lost = np.flatnonzero((number < 0) | ~level.usable[rows, columns])
    fresh = level.random_sources(len(lost), random)
    rows[lost], columns[lost] = fresh.rows, fresh.columns
    matches = Positions(rows, columns)
    voted = vote(level, matches, None, sharpness=1.2 if depth_below else 0.8)
    return _State(level, matches, np.where(level.hole[..., None], voted, level.values), voted)


def _search_rounds(state: _State, rounds: int, depth_below: int, random: np.random.Generator) -> _State:
    """Return the state after some rounds of search and vote; the last vote is sharper, to keep the grain."""
    level, small = state.level, depth_below > 0 and len(state.level.targets) < _SMALL_LEVEL
    jumps = (4, 1) if small else (1,)
    radii = (64, 16, 4, 1) if small else ((16, 4, 1) if depth_below else (8, 2))
    for left in reversed(range(rounds)):
        offsets = FULL_PATCH if small else CHEQUERED_PATCH
        search = Search(level, state.current, state.matches, random, offsets=offsets, guide=state.guide)
        search.sweep(jumps=jumps, radii=radii)
        sharpness = 4.0 * RADIUS if left else (1.5 if depth_below else 0.8)
        voted = vote(level, search.matches, vote_weights(search.costs), sharpness=sharpness)
        current = np.where(level.hole[..., None], voted, level.values)
        state = _State(level, search.matches, current, voted, state.guide)
    return state


def _peel(level: Level, guide: Guide, random: np.random.Generator) -> Floats:
    """Return the image filled layer by layer from the rim, each pixel from the best of all sources.

    The squared distance of a partly known patch to every source is three matrix products, so numpy's BLAS
    does the work: sum(w s s) - 2 sum(w t s) (+ a constant), w marking what is known.
    """
    sources = level.sources
    if len(sources) > _PEEL_SOURCES:
        sources = sources.at(np.sort(random.permutation(len(sources))[:_PEEL_SOURCES]))
    scorer = _Scorer(level, sources, guide)
    filled, known = level.values.copy(), ~level.hole
    filled[level.hole] = 0
    while not known.all():
        layer = Positions.where(~known & dilate_square(known, 1))
        around, around_known = with_rim(filled), np.pad(known, RADIUS, mode="reflect").astype(np.float32)
        for start in range(0, len(layer), _PEEL_CHUNK):
            part = layer.at(np.arange(start, min(start + _PEEL_CHUNK, len(layer))))
            best = sources.at(scorer.best(part, around, around_known))
            filled[part.rows, part.columns] = level.values[best.rows, best.columns]
        known[layer.rows, layer.columns] = True
    return filled


class _Scorer:
    """Scores of partly known patches against all sources at once."""

    def __init__(self, level: Level, sources: Positions, guide: Guide) -> None:
        self._level, self._guide = level, guide
        self._steps = level.flat_offsets(FULL_PATCH)
        patches = with_rim(level.values).reshape(-1, 4)[level.flat(sources)[:, None] + self._steps]
        self._squares = np.ascontiguousarray((patches**2).sum(2).T)
        self._patches = np.ascontiguousarray(patches.reshape(len(sources), -1).T)
        self._blurred = guide.blurred[sources.rows, sources.columns]
        self._blurred_squares = (self._blurred**2).sum(1)
        self._where = np.stack([sources.rows, sources.columns]).astype(np.float32)
        self._where_squares = (self._where**2).sum(0)

    def best(
        self, part: Positions, around: Floats, around_known: Floats
    ) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Return the number of the best source for each target."""
        index = self._level.flat(part)[:, None] + self._steps
        wanted, known = around.reshape(-1, 4)[index], around_known.reshape(-1)[index]
        score = known @ self._squares - 2 * (
            (wanted * known[..., None]).reshape(len(part), -1) @ self._patches
        )
        score += known.sum(1)[:, None] * self._guidance(part)
        return np.asarray(score.argmin(1))

    def _guidance(self, part: Positions) -> Floats:
        expected = self._guide.wanted[part.rows, part.columns]
        unlike = self._blurred_squares[None] - 2 * expected @ self._blurred.T
        here = np.stack([part.rows, part.columns], 1).astype(np.float32)
        away = self._where_squares[None] - 2 * here @ self._where
        height, width = self._level.shape
        return np.asarray(LIKENESS * unlike + NEARNESS / (height**2 + width**2) * away, np.float32)


def _without_seam(image: Floats, hole: Mask, state: _State) -> Floats:
    """Return the filled image, corrected by the interpolated error of the vote on the known rim."""
    rim = state.level.numbers >= 0
    rim &= ~hole
    error = np.zeros_like(image)
    error[rim] = (image - state.voted[..., :3])[rim]
    weight = np.maximum(gaussian(rim.astype(np.float32), 3), 1e-3)[..., None]
    correction = np.clip(
        fill_smoothly(np.asarray(gaussian(error, 3) / weight, np.float32), ~rim),
        -_LARGEST_CORRECTION,
        _LARGEST_CORRECTION,
    )
    return np.where(hole[..., None], state.current[..., :3] + correction, image).astype(np.float32)


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

    blurred: Floats
    wanted: Floats


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
        found = guide.blurred[positions.rows, positions.columns]
        unlike = found - guide.wanted[targets.rows, targets.columns]
        away = (positions.rows - targets.rows) ** 2 + (positions.columns - targets.columns) ** 2
        height, width = self._level.shape
        near = NEARNESS / (height**2 + width**2) * away
        weight = self._steps.shape[1]
        return np.asarray(weight * (LIKENESS * np.einsum("ij,ij->i", unlike, unlike) + near), np.float32)

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
        index = targets + step
        proposed += total_packed[index].view(np.float32).reshape(-1, 4)
        total_packed[index] = proposed.view(np.complex128).reshape(-1)
        weight[index] += share
    total /= np.maximum(weight, np.float32(1e-9))[:, None]
    return np.asarray(total.reshape(-1, level.stride, 4)[RADIUS:-RADIUS, RADIUS:-RADIUS], np.float32)


def vote_weights(costs: Floats) -> Floats:
    """Return the weights of matches in the vote: matches much worse than most weigh nearly nothing."""
    usual = float(np.percentile(costs, 40)) + 1e-3
    return np.asarray(np.exp(-costs / (2 * usual)) + 1e-4, np.float32)


def _packed_bytes(values: Floats) -> NDArray[np.uint32]:
    return to_pixels(with_rim(values)).view(np.uint32).reshape(-1)
