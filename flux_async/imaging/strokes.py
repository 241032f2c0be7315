"""Stroke mask: the pixels of the found lines that are to be replaced.

Ink is looked for by colour first. The colours in and around a line are grouped into a few clusters. A cluster
is ink if it is common in the middle of the line, rare along its border and outside, and spread along the
whole line. Ink may be dark, light or of several colours: fill and outline are two clusters.

Then it is looked for by contrast to the background, with two measures: the distance in CIELAB from a
background interpolated from a ring around the line, and how much more frequent the pixel's colour is inside
the line than in the ring. Pixels for which both are high are strong; pixels with one high measure are weak
and count only if they touch strong ones.

An implausible share of ink (close to 0 or to 1) means that the method failed. If both fail, the whole line is
masked, but only if it can be read.
"""

# ruff: noqa: PLR2004 - the numbers are weights and thresholds, each used once

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import cv2
import numpy as np

from flux_async.imaging.arrays import (
    Floats,
    Ints,
    Mask,
    Pixels,
    Window,
    close_gaps,
    components,
    dilate,
    erode,
    fill_smoothly,
    gaussian,
    lab,
    masked_gaussian,
    resize,
    resize_mask,
)
from flux_async.imaging.text_detection import TextRegion, along_line, covered, is_readable, raise_contrast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LEAST_INK = 0.07
MOST_INK = 0.68
MOST_COLOURED_INK = 0.85
"""Larger limit for ink found by colour: bold outlined letters cover more of the line."""
GROWTH = 0.045
"""Ink is grown by this share of the line's height, to cover anti-aliasing, shadows and outlines."""
GAP = 2
"""Length of a stretch without ink, in half heights."""
PIECE = 2
"""Length of the pieces of a line that are searched separately, in heights."""
SURE_EDGE = 2
"""Ink is always grown by this many pixels."""
SMOOTH = 3.0
"""Backgrounds up to this roughness (a distance in CIELAB) are smooth."""
LEAST_DIFFERENCE, DIFFERENCE = 1.5, 0.75
"""An edge differs from the background by at least this distance, and by this share of the roughness."""
TRACE_GROWTH = 0.08
"""Remains of a first pass are faint at their edges, so they are grown more."""

CLUSTERS = 7
WORKING_HEIGHT = 56
"""Higher lines are scaled down to this height."""
OUTSIDE_TO_INSIDE = 0.5
"""An ink colour is at most this many times as common outside the line as in its middle."""
LEAST_SPREAD = 0.55
"""An ink colour occurs in at least this share of the slices along the line."""
_SAMPLES = 6000
_FEW_PIXELS = 25
_WORTH_SCALING = 0.85
_RARE = 0.01
_BINS = 26
_LIGHTNESS_STEP = 4
_COLOUR_STEP = 8


def stroke_mask(image: Pixels, regions: Sequence[TextRegion]) -> Mask:
    """Return the ink of the regions, edges included."""
    text = covered(regions, image.shape)
    return _collect(image.shape, ((region, _strokes(image, region, text)) for region in regions))


def trace_mask(image: Pixels, regions: Sequence[TextRegion]) -> Mask:
    """Return the ink of text that is left after a pass; limits are lower, as text is known to be there."""
    text = covered(regions, image.shape)
    return _collect(image.shape, ((region, _traces(image, region, text)) for region in regions))


def surroundings(region: TextRegion, shape: tuple[int, ...]) -> Window:
    """Return the window around a line in which its ink is looked for."""
    return region.window.grown(int(max(6, 0.5 * region.height)), shape)


def _collect(shape: tuple[int, ...], strokes: Iterable[tuple[TextRegion, Mask | None]]) -> Mask:
    mask = np.zeros(shape[:2], np.bool_)
    for region, found in strokes:
        if found is not None:
            mask[surroundings(region, shape).slices] |= found
    return mask


def _strokes(image: Pixels, region: TextRegion, text: Mask) -> Mask | None:
    """Return the strokes of a line; if a stretch of it shows no ink, its pieces are searched separately.

    A transparent line that crosses two backgrounds has no single ink colour along its whole length.
    """
    window = surroundings(region, image.shape)
    ink = _ink(image, region, window, text)
    if ink is not None and _has_gap(ink[region.window.within(window).slices], region):
        for piece in _pieces(region):
            found = _ink(image, piece, window, text)
            ink |= found if found is not None else False
    if ink is not None:
        return _with_edges(image[window.slices], ink, region.height, GROWTH)
    if is_readable(image, region) or is_readable(raise_contrast(image), region):
        return dilate(region.placed(window), max(1.0, 0.04 * region.height))
    return None


def _ink(image: Pixels, region: TextRegion, window: Window, text: Mask) -> Mask | None:
    """Return the ink found by colour, else by contrast, else None."""
    line, near = region.placed(window), text[window.slices]
    ink = ink_by_colour(image, region, window, near)
    if ink is not None and _is_plausible(ink, line, most=MOST_COLOURED_INK):
        return ink
    contrast = measure_contrast(image, region, window, near)
    ink = contrast.agreed() if contrast is not None else line
    return ink if _is_plausible(ink, line) else None


def _has_gap(ink: Mask, region: TextRegion) -> bool:
    """Return whether a stretch of the line, longer than a space between words, shows almost no ink."""
    along = along_line(region.mask) / (region.height / 2)
    steps = along.astype(np.int32)
    shares = np.bincount(steps, weights=ink[region.mask]) / np.maximum(np.bincount(steps), 1)
    bare = shares < 0.25 * max(float(ink[region.mask].mean()), 1e-6)
    return any(bare[start : start + GAP].all() for start in range(len(bare) - GAP + 1))


def _pieces(region: TextRegion) -> Iterator[TextRegion]:
    """Yield overlapping pieces of a line, each about three times as long as high."""
    along = np.zeros(region.mask.shape, np.float32)
    along[region.mask] = along_line(region.mask)
    for start in np.arange(0, region.length, PIECE * region.height / 2):
        stretch = region.mask & (along >= start) & (along <= start + PIECE * region.height)
        if stretch.any():
            yield attrs.evolve(region, mask=stretch, core=region.core & stretch, length=PIECE * region.height)


def _traces(image: Pixels, region: TextRegion, text: Mask) -> Mask:
    window = surroundings(region, image.shape)
    line = region.placed(window)
    contrast = measure_contrast(image, region, window, text[window.slices])
    ink = contrast.either() if contrast is not None else line
    if _is_plausible(ink, line):
        return _with_edges(image[window.slices], ink, region.height, TRACE_GROWTH)
    return dilate(line, max(1.0, 0.04 * region.height))


def _is_plausible(ink: Mask, line: Mask, *, most: float = MOST_INK) -> bool:
    share = float((ink & line).sum()) / max(1, int(line.sum()))
    return LEAST_INK <= share <= most


def _with_edges(near: Pixels, ink: Mask, height: float, growth: float) -> Mask:
    """Return the ink with its edges: anti-aliasing, shadows, outlines.

    On a smooth background, pixels that look like it are left out: a smaller hole is filled better.
    On a textured one a soft shadow does not differ from the texture, so all pixels in reach are masked.
    """
    grown = close_gaps(dilate(ink, max(2.0, growth * height)), max(1, int(0.03 * height)))
    values, background = lab(near), ~grown
    roughness = texture(values, background, height) if background.any() else np.inf
    if roughness > SMOOTH:
        return grown
    # Blurred: that averages the grain of the background, but not the edge of a letter.
    difference = gaussian(values - fill_smoothly(values, grown), 1.0)
    edge = (difference**2).sum(2) > max(LEAST_DIFFERENCE, DIFFERENCE * roughness) ** 2
    return dilate(ink, SURE_EDGE) | (grown & dilate(edge, 1))


@attrs.frozen(eq=False)
class _LineColours:
    """One line and its surroundings, at working size."""

    values: Floats
    inside: Mask
    core: Mask
    border: Mask
    ring: Mask
    height: float


def ink_by_colour(image: Pixels, region: TextRegion, window: Window, other_text: Mask) -> Mask | None:
    """Return the ink of a line in a window around it, or None where no colour behaves like ink."""
    view = _line_colours(image, region, window, other_text)
    if min(view.inside.sum(), (view.border | view.ring).sum()) < _FEW_PIXELS:
        return None
    labels = _cluster(view)
    inks = [_is_ink(labels == label, view) for label in range(CLUSTERS)]
    if not any(inks):
        return None
    ink = _mostly_inside(np.array(inks)[labels], view)
    return ink if ink.shape == window.shape else resize_mask(ink, window.shape, threshold=0.3)


def _line_colours(image: Pixels, region: TextRegion, window: Window, other_text: Mask) -> _LineColours:
    inside, core = region.placed(window), region.placed(window, core=True)
    near, other = image[window.slices], other_text & ~inside
    height, scale = max(6.0, region.height), min(1.0, WORKING_HEIGHT / max(6.0, region.height))
    if scale < _WORTH_SCALING:
        shape = (max(8, int(window.shape[0] * scale)), max(8, int(window.shape[1] * scale)))
        near = resize(near, shape)
        inside, core, other = (_nearest(mask, shape) for mask in (inside, core, other))
        height *= scale
    ring = dilate(inside, max(2.0, 0.22 * height)) & ~dilate(inside, 1) & ~other
    border = inside & ~erode(inside, max(1, int(0.09 * height)))
    return _LineColours(lab(near), inside, core if core.any() else inside, border, ring, height)


def _nearest(mask: Mask, shape: tuple[int, int]) -> Mask:
    small = cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(small, np.bool_)


def _cluster(view: _LineColours) -> Ints:
    """Return the nearest colour cluster for every pixel of the view."""
    values = view.values[view.inside | view.ring]
    samples = np.ascontiguousarray(values[:: max(1, len(values) // _SAMPLES)])
    count = min(CLUSTERS, len(samples))
    cv2.setRNGSeed(1)  # OpenCV keeps one generator per thread: seeding it here makes this call repeatable
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 14, 0.5)
    start = np.zeros((len(samples), 1), np.int32)
    _, _, centres = cv2.kmeans(samples, count, start, stop, 1, cv2.KMEANS_PP_CENTERS)
    distances = ((view.values[..., None, :] - np.asarray(centres)) ** 2).sum(-1)
    return np.asarray(distances.argmin(-1), np.int32)


def _is_ink(colour: Mask, view: _LineColours) -> bool:
    within = float(colour[view.core].mean())
    without = max(float(colour[part].mean()) if part.any() else 0.0 for part in (view.border, view.ring))
    if within <= _RARE or without >= OUTSIDE_TO_INSIDE * within:
        return False
    return _spread(colour, view) > LEAST_SPREAD


def _spread(colour: Mask, view: _LineColours) -> float:
    """Return the share of slices along the line in which the colour is nearly as common as overall."""
    along = along_line(view.inside)
    length = float(np.ptp(along))
    slices = int(np.clip(round(length / max(view.height, 1.0)), 3, 24))
    where = np.minimum(slices - 1, ((along - along.min()) / (length + 1e-6) * slices).astype(np.int32))
    present = colour[view.inside]
    shares = np.bincount(where[present], minlength=slices) / np.maximum(
        np.bincount(where, minlength=slices), 1
    )
    return float((shares > 0.3 * max(float(present.mean()), 1e-6)).mean())


def _mostly_inside(ink: Mask, view: _LineColours) -> Mask:
    """Return the ink without specks and without parts that lie mostly outside the line."""
    near = dilate(view.inside, 1) | view.ring
    parts = components(ink & near)
    inside = np.bincount(parts.labels[view.inside], minlength=parts.count)
    kept = (inside >= 0.6 * parts.areas) & (parts.areas >= max(2.0, 0.0015 * view.height**2))
    kept[0] = False
    goes_on = np.zeros(parts.count, np.bool_)
    goes_on[parts.labels[near & ~erode(near, 1)]] = True
    # The box of a bent line also contains pieces of what lies beside the line: they are at its border only.
    kept &= ~goes_on | (np.bincount(parts.labels[view.core], minlength=parts.count) > 0)
    # A letter may extend beyond a region that is too short; a part that mostly lies outside is no letter.
    whole = ~goes_on | (inside >= 0.65 * parts.areas)
    return np.asarray(kept[parts.labels] & (view.inside | whole[parts.labels]), np.bool_)


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
    bins = _colour_bins(values)
    own, others = (_histogram(bins[part]) for part in (inside, ring))
    frequency = own[bins]
    likelihood = np.clip(1 - others[bins] / (frequency + 1e-9), 0, 1)
    return np.where(frequency > 2e-4, likelihood, likelihood * 0.5).astype(np.float32), frequency


def _colour_bins(values: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    lightness = np.clip(values[..., 0] / _LIGHTNESS_STEP, 0, _BINS - 1).astype(np.int32)
    green, blue = (
        np.clip((values[..., channel] + 100) / _COLOUR_STEP, 0, _BINS - 1).astype(np.int32)
        for channel in (1, 2)
    )
    return (lightness * _BINS + green) * _BINS + blue


def _histogram(bins: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Floats:
    """Return the smoothed colour histogram, as shares."""
    counts = np.bincount(bins, minlength=_BINS**3).astype(np.float32).reshape(_BINS, _BINS, _BINS)
    for axis in range(3):
        counts = 0.25 * np.roll(counts, 1, axis) + 0.5 * counts + 0.25 * np.roll(counts, -1, axis)
    return np.asarray(counts.reshape(-1) / max(1, bins.size), np.float32)
