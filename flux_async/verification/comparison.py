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
from flux_async.imaging.arrays import Pixels, components, disc, gaussian, resize
from flux_async.imaging.image_codec import ImageError, decode_image
from flux_async.imaging.text_detection import Quality, TextRegion, covered, find_text, read_region
from flux_async.verification.alignment import correlation
from flux_async.verification.changes import difference
from flux_async.verification.colours import local_offset
from flux_async.verification.grid import Matrix, Shape, frame_of, grow, size_matrix, warp, without_specks
from flux_async.verification.judging import NOTHING_IN_COMMON, judge
from flux_async.verification.loading import LoadedImage
from flux_async.verification.scene import Overlay, Scene, make_scene, overlay_result, shape_of
from flux_async.verification.text_areas import TextLines, text_zone, usual_height
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
MOST_BESIDE_TEXT = 3
"""A change that touches the text is counted if it is larger than this many times the text's own zone."""
SAME_LOOK = 0.7
"""Correlation of the details of a line in both images from which on it is the same."""
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
    found = find_text(image.pixels) or find_text(image.pixels, quality=Quality.GOOD)
    return TextLines(regions=found, shape=image.shape)


def compare(original: View, result: View, lines: TextLines) -> Verdict:
    """Return the verdict on two images; ``lines`` is the text of the original."""
    sizes = Verdict(
        kind=VerdictKind.UNSURE,
        reason="the images are too small to be compared",
        no_text=not lines.regions,
        original_size=original.size,
        result_size=result.size,
    )
    if min(*original.shape, *result.shape) < SMALLEST_SIDE:
        return sizes
    scene = _scene(original, result)
    overlay = overlay_result(scene, lines.on(scene.shape), quick=True)
    if overlay is None:
        return attrs.evolve(sizes, kind=VerdictKind.DAMAGED, reason=NOTHING_IN_COMMON)
    changed = changed_share(scene, overlay, lines.on(scene.shape))
    whole = size_matrix(shape_of(scene.result), result.shape) @ overlay.alignment.matrix
    left, words = text_left(original, result, whole @ size_matrix(original.shape, scene.shape), lines)
    measured = attrs.evolve(
        sizes,
        text_left=left,
        words=words,
        background_kept=overlay.alignment.match,
        changed_elsewhere=changed,
        covered=float(overlay.frame.mean()),
        added=1 - _original_in_result(scene, overlay.alignment.matrix),
        **_movement(overlay.alignment.matrix, scene, sizes),
    )
    kind, reason = judge(measured)
    return attrs.evolve(measured, kind=kind, reason=reason)


def changed_share(scene: Scene, overlay: Overlay, regions: Sequence[TextRegion]) -> float:
    """Return the share of the area outside the text that differs visibly.

    What touches the text went with it: its box, its shadow.
    """
    missing = scene.original - overlay.matched
    calm = overlay.usable & (difference(scene.original, overlay.matched) < 12)  # certainly the same
    missing -= local_offset(missing, calm, sigma=12, least=0.05, smooth=8)
    distance = difference(scene.original, scene.original - missing)
    zone = text_zone(regions, scene.shape)
    near = grow(zone, 3 + usual_height(regions)) if regions else zone
    inside = np.asarray(cv2.erode(overlay.frame.astype(np.uint8), np.ones((5, 5))), np.bool_)
    differs = without_specks((gaussian(distance, 1.5) > 6) & inside & ~zone, disc(1))
    found, touching = components(differs), grow(zone, 2)
    most = MOST_BESIDE_TEXT * int(zone.sum())
    total = 0
    for number in range(1, found.count):
        window = found.boxes[number].slices
        part = found.labels[window] == number
        area = int((part & ~near[window]).sum())
        if area > most or not (part & touching[window]).any():
            total += area
    return total / max(1, int((inside & ~near).sum()))


def text_left(
    original: View, result: View, matrix: Matrix, lines: TextLines
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
    for region in find_text(aligned):
        shared = text[region.window.slices] & region.mask
        if shared.sum() < SAME_LINE * region.area:
            continue
        line = read_region(aligned, region)
        if line.is_legible():
            words.append(line.text)
        elif not (region.certain and _is_same(original.pixels, aligned, region)):
            continue
        remaining[region.window.slices] |= shared
    return float(remaining.sum() / max(1, text.sum())), tuple(words)


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
