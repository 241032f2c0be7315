"""The steps of ``verify``: both images are laid over each other, then text and background are compared.

Text is looked for on the original and on the aligned result. Everything else is compared on a small grid: it
is asked whether something changed, not which pixels to replace.
"""

# ruff: noqa: PLR2004 - the numbers are thresholds and widths in pixels, each used once

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import cv2
import numpy as np

from flux_async.errors import InvalidInput
from flux_async.imaging.arrays import Components, Mask, Pixels, components, disc, gaussian, resize
from flux_async.imaging.image_codec import ImageError, decode_image
from flux_async.imaging.text_detection import (
    COARSE_SIDE,
    FINE_SIDE,
    Quality,
    TextRegion,
    covered,
    detect,
    find_faint_text,
    find_text,
    is_readable,
    raise_contrast,
    read_region,
    windows_around,
    without_duplicates,
)
from flux_async.verification.alignment import correlation
from flux_async.verification.changes import difference
from flux_async.verification.colours import local_offset
from flux_async.verification.grid import Matrix, Shape, frame_of, grow, size_matrix, warp, without_specks
from flux_async.verification.judging import NOTHING_IN_COMMON, judge
from flux_async.verification.loading import LoadedImage
from flux_async.verification.scene import Overlay, Scene, make_scene, overlay_result, shape_of
from flux_async.verification.text_areas import LEAST_MARGIN, TextLines, around, text_zone, usual_height
from flux_async.verification.verdict import Verdict, VerdictKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LOOK_PIXELS = 1_050_000
"""Text is looked for in copies of at most this many pixels, as many as a result of Flux Kontext has."""
GRID_PIXELS = 200_000
"""The rest is compared on copies of at most this many pixels: on whole images it took four times as long."""
SMALLEST_SIDE = 32
"""Images with a shorter side cannot be compared."""
BESIDE_TEXT = 0.03
"""Changes within a line height of the text, and this share of the longer side, are not counted."""
HOPELESS = 0.5
"""Images that correlate less than this show different things, whatever text was not found."""
AROUND_TEXT = 0.3
"""A change that covers this share of the outline of a line went with the text."""
MOST_BESIDE_TEXT = 3
"""Such a change is counted all the same if it is larger than this many times the text's own zone."""
SAME_LOOK = 0.7
"""Correlation of the details of a line in both images from which on it is the same."""
TALLER = 1.6
"""What is left of a line is at most this many times as high as the line was found to be."""
FEW_LETTERS = 2
LONG_READ, SHORT_READ = 0.6, 0.9
"""Mean confidence of letters that are text: "AN" and "10" were read in textures, with up to 0.8."""
LINE_LIKE = 2.4
"""What is that many times as long as high, and looks like text, is text without being read."""
SURELY_READ = 0.75
"""Mean confidence of letters from which on something that changed was text: "C" was read in fur with 0.65."""
SAME_LINE = 0.15
"""A line of the result is text that was left if this share of it lies on text of the original."""


@attrs.frozen(kw_only=True, eq=False)
class View:
    """A copy of an image for comparing, on white where it is transparent.

    ``alpha`` is its opacity or None, ``size`` the width and height of the file's image.
    """

    pixels: Pixels
    alpha: NDArray[np.uint8] | None
    size: tuple[int, int]

    @property
    def shape(self) -> Shape:
        """Height and width of the copy."""
        return self.pixels.shape[0], self.pixels.shape[1]


def compare_files(original: bytes, result: bytes, *, max_pixels: int) -> Verdict:
    """Return the verdict; arguments and errors as those of ``verify``."""
    views = (view_file(original, "original", max_pixels), view_file(result, "result", max_pixels))
    return compare(*views, find_lines(views[0]))


def file_has_text(file: bytes, *, max_pixels: int) -> bool:
    """Return whether text is found; arguments and errors as those of ``has_text``."""
    return bool(find_lines(view_file(file, "original", max_pixels)).regions)


def view_file(data: bytes, what: str, max_pixels: int) -> View:
    """Return a copy of a file's image, upright.

    Raises:
        InvalidInput: It is empty, no image, damaged or too large; ``what`` names it.
    """
    try:
        decoded = decode_image(data, max_pixels=max_pixels)
    except ImageError as error:
        raise InvalidInput(
            f"The {what} image cannot be used: {error}.", advice=f"Check the {what} image."
        ) from error
    shape = _limited((decoded.pixels.shape[0], decoded.pixels.shape[1]), LOOK_PIXELS)
    pixels, alpha = resize(decoded.pixels, shape), None
    if decoded.alpha is not None:
        alpha = resize(decoded.alpha, shape)
        share = alpha[..., None] / np.float32(255)
        pixels = (pixels * share + 255 * (1 - share) + 0.5).astype(np.uint8)
    return View(pixels=np.ascontiguousarray(pixels), alpha=alpha, size=decoded.size)


def find_lines(image: View) -> TextLines:
    """Return the lines of text; only where none is found at first, they are looked for thoroughly."""
    if min(image.shape) < SMALLEST_SIDE:
        return TextLines(regions=(), shape=image.shape)
    found = find_text(image.pixels) or find_faint_text(image.pixels)
    return TextLines(regions=found, shape=image.shape)


def compare(original: View, result: View, lines: TextLines, *, search: bool = True) -> Verdict:
    """Return the verdict on two images.

    ``lines`` is the text of the original. ``search`` says whether it is looked for more thoroughly where
    something else seems to have changed: often that is a word that was not found at first.
    """
    if min(*original.shape, *result.shape) < SMALLEST_SIDE:
        return Verdict(
            kind=VerdictKind.UNSURE,
            reason="the images are too small to be compared",
            no_text=not lines.regions,
            original_size=original.size,
            result_size=result.size,
        )
    scene = _scene(original, result)
    overlay = overlay_result(scene, lines.on(scene.shape), quick=True)
    verdict, changes = _verdict(original, result, lines, scene, overlay)
    doubtful = verdict.kind in {VerdictKind.DAMAGED, VerdictKind.UNSURE}
    if search and doubtful and lines.regions and overlay and overlay.alignment.match > HOPELESS:
        more = _more_lines(original, scene, overlay, changes)
        if more:
            lines = attrs.evolve(lines, regions=without_duplicates((*lines.regions, *more)))
            overlay = overlay_result(scene, lines.on(scene.shape), quick=True)
            return _verdict(original, result, lines, scene, overlay, quality=Quality.GOOD)[0]
    return verdict


def _more_lines(original: View, scene: Scene, overlay: Overlay, changes: Changes) -> list[TextRegion]:
    """Return what may be text where something changed: in the original, or in what is gone from it.

    The latter are watermarks.
    """
    places = windows_around(components(changes.parts).boxes[1:], LEAST_MARGIN, scene.shape)
    gone = gaussian((scene.original - overlay.matched)[..., 0], 0.8)
    light = np.clip(128 + 8 * gone, 0, 255).astype(np.uint8)
    picture = np.ascontiguousarray(np.repeat(light[..., None], 3, 2))
    # Other changes are often detected, too, and never read.
    removed = [region for region in detect(picture, COARSE_SIDE, places) if is_readable(picture, region)]
    larger = [place.scaled(scene.shape, original.shape) for place in places]
    contrast = raise_contrast(original.pixels)
    found = [
        region
        for region in detect(contrast, FINE_SIDE, larger)
        if region.certain
        or region.length > LINE_LIKE * region.height  # of a script that the model cannot read
        or is_readable(contrast, region, least_confidence=SURELY_READ)
    ]
    return [*found, *(region.scaled(scene.shape, original.shape) for region in removed)]


def _verdict(
    original: View,
    result: View,
    lines: TextLines,
    scene: Scene,
    overlay: Overlay | None,
    *,
    quality: Quality = Quality.FAST,
) -> tuple[Verdict, Changes]:
    """Return the verdict, and what changed away from the text."""
    sizes = Verdict(
        kind=VerdictKind.DAMAGED,
        reason=NOTHING_IN_COMMON,
        no_text=not lines.regions,
        original_size=original.size,
        result_size=result.size,
    )
    nothing = np.zeros(scene.shape, np.bool_)
    if overlay is None:
        return sizes, Changes(parts=nothing, compared=nothing)
    whole = size_matrix(shape_of(scene.result), result.shape) @ overlay.alignment.matrix
    matrix = whole @ size_matrix(original.shape, scene.shape)
    left, words = text_left(original, result, matrix, lines, quality=quality)
    changes = find_changes(scene, overlay, lines.on(scene.shape))
    measured = attrs.evolve(
        sizes,
        text_left=left,
        words=words,
        background_kept=overlay.alignment.match,
        changed_elsewhere=changes.share,
        recoloured=_recoloured(overlay),
        covered=float(overlay.frame.mean()),
        added=1 - _original_in_result(scene, overlay.alignment.matrix),
        **_movement(overlay.alignment.matrix, scene, sizes),
    )
    kind, reason = judge(measured)
    return attrs.evolve(measured, kind=kind, reason=reason), changes


@attrs.frozen(kw_only=True, eq=False)
class Changes:
    """What visibly differs away from the text, on the small grid, and where that was looked for."""

    parts: Mask
    compared: Mask

    @property
    def share(self) -> float:
        """Share of the area that was compared."""
        return float(self.parts.sum()) / max(1, int(self.compared.sum()))


def find_changes(scene: Scene, overlay: Overlay, regions: Sequence[TextRegion]) -> Changes:
    """Return what differs visibly outside the text.

    What surrounds the text went with it: its box, its shadow.
    """
    missing = scene.original - overlay.matched
    calm = overlay.usable & (difference(scene.original, overlay.matched) < 12)  # certainly the same
    missing -= local_offset(missing, calm, sigma=12, least=0.05, smooth=8)
    distance = difference(scene.original, scene.original - missing)
    zone = text_zone(regions, scene.shape)
    reach = min(usual_height(regions), BESIDE_TEXT * max(scene.shape)) if regions else 0
    near = grow(zone, 3 + reach)
    inside = np.asarray(cv2.erode(overlay.frame.astype(np.uint8), np.ones((5, 5))), np.bool_)
    differs = without_specks((gaussian(distance, 1.5) > 6) & inside & ~zone, disc(1))
    parts = components(differs)
    gone = _around_text(parts, zone)
    most = MOST_BESIDE_TEXT * int(zone.sum())
    counted = [number for number in range(1, parts.count) if number not in gone or parts.areas[number] > most]
    return Changes(parts=np.isin(parts.labels, counted) & ~near, compared=inside & ~near)


def _around_text(parts: Components, zone: Mask) -> set[int]:
    """Return the numbers of changed parts that surround text: its box, its shadow."""
    lines, numbers = components(zone), set()
    for line in range(1, lines.count):
        window = lines.boxes[line].grown(3, zone.shape).slices
        ring = grow(lines.labels[window] == line, 2) & ~zone[window]
        counts = np.bincount(parts.labels[window][ring], minlength=1)
        numbers |= set(np.flatnonzero(counts >= AROUND_TEXT * max(1, int(ring.sum()))).tolist())
    return numbers - {0}


def text_left(
    original: View, result: View, matrix: Matrix, lines: TextLines, *, quality: Quality = Quality.FAST
) -> tuple[float, tuple[str, ...]]:
    """Return the share of the original's text that still reads as text in the result, and the words.

    ``matrix`` maps pixels of the original's copy to those of the result's. Only text inside the result's
    frame counts.
    """
    if not lines.regions:
        return 0.0, ()
    aligned = warp(result.pixels, matrix, original.shape, interpolation=cv2.INTER_LINEAR)
    text = covered(lines.regions, original.shape) & (frame_of(result.shape, matrix, original.shape) > 0.5)
    remaining, words = np.zeros(original.shape, np.bool_), []
    for region in find_text(aligned, quality=quality, within=around(lines.regions, original.shape)):
        shared = text[region.window.slices] & region.mask
        if shared.sum() < SAME_LINE * region.area or _is_too_tall(region, lines.regions):
            continue
        line = read_region(aligned, region)
        short = line.letters <= FEW_LETTERS and not region.certain
        if line.is_legible(least_confidence=SHORT_READ if short else LONG_READ):
            words.append(line.text)
        elif not (region.certain and _is_same(original.pixels, aligned, region)):
            continue
        remaining[region.window.slices] |= shared
    return float(remaining.sum() / max(1, text.sum())), tuple(words)


def _is_too_tall(region: TextRegion, lines: Sequence[TextRegion]) -> bool:
    """Return whether a region is much taller than the lines that were there: it is not what is left of them.

    In a small part of an image the detector takes all of a texture for a line now and then.
    """
    heights = [line.height for line in lines if line.window.overlap(region.window) is not None]
    return region.height > TALLER * max(heights, default=0.0)


def _is_same(original: Pixels, aligned: Pixels, region: TextRegion) -> bool:
    """Return whether a line looks as it did: also of a script that the model cannot read."""
    window = region.window.grown(4, original.shape).slices
    grey = [
        cv2.cvtColor(image[window], cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (original, aligned)
    ]
    return correlation(grey[0], grey[1], np.ones(grey[0].shape, np.bool_)) > SAME_LOOK


def _scene(original: View, result: View) -> Scene:
    """Return both images on the small grid."""
    shape = _limited(original.shape, GRID_PIXELS)
    pixels = resize(original.pixels, shape)
    grid = LoadedImage(
        channels=pixels,
        mode="RGB",
        pixels=pixels,
        alpha=None if original.alpha is None else resize(original.alpha, shape),
        palette=None,
        turn=None,
        info={},
    )
    return make_scene(grid, resize(result.pixels, _limited(result.shape, GRID_PIXELS)))


def _recoloured(overlay: Overlay) -> float:
    """Return how far the colours of the result were moved to match, in the mean."""
    moved = np.sqrt(((overlay.matched - overlay.plain) ** 2).sum(2))
    return float(moved[overlay.usable].mean())


def _original_in_result(scene: Scene, matrix: Matrix) -> float:
    """Return the share of the result that shows the original."""
    back = np.asarray(np.linalg.inv(matrix), np.float64)
    return float((frame_of(scene.shape, back, shape_of(scene.result)) > 0.5).mean())


def _movement(matrix: Matrix, scene: Scene, sizes: Verdict) -> dict[str, Any]:
    """Return ``scale``, ``shift`` and ``alignment`` of a verdict."""
    move = np.linalg.inv(size_matrix(scene.shape, shape_of(scene.result))) @ matrix
    before, after = (size[::-1] for size in (sizes.original_size, sizes.result_size))
    centre = np.array([scene.shape[1] / 2, scene.shape[0] / 2, 1])
    right, down = ((move @ centre) - centre)[:2] * before[1] / scene.shape[1]
    full = size_matrix(shape_of(scene.result), after) @ matrix @ size_matrix(before, scene.shape)
    return {
        "scale": math.sqrt(abs(float(np.linalg.det(move[:2, :2])))),
        "shift": (float(right), float(down)),
        "alignment": (tuple(full[0].tolist()), tuple(full[1].tolist())),
    }


def _limited(shape: Shape, pixels: int) -> Shape:
    """Return a shape of the same ratio with at most that many pixels."""
    scale = min(1.0, math.sqrt(pixels / (shape[0] * shape[1])))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
