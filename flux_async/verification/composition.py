"""The steps of ``preserve``, and the limits above or below which composing is refused.

Text is found on the original. Both images are compared on one grid, the smaller of the two; only the filling
is done at the original's full size. The limits were set on simulated results, with other seeds than those
that the benchmark reports.
"""

# ruff: noqa: PLR2004 - the numbers are thresholds and widths in pixels, each used once

from __future__ import annotations

import math

import attrs
import numpy as np

from flux_async.imaging.arrays import Floats, Pixels, gaussian
from flux_async.verification.alignment import residual_shift
from flux_async.verification.changes import difference
from flux_async.verification.colours import Tone, fit_tone, local_offset
from flux_async.verification.filling import Fill, Filled, border_step, fill_holes
from flux_async.verification.grid import grow, size_matrix
from flux_async.verification.holes import Changes, Hole, find_changes
from flux_async.verification.loading import LoadedImage, load, open_file, unsupported, write
from flux_async.verification.outlines import outlines_of
from flux_async.verification.report import Preserved, PreserveRefusal, PreserveReport
from flux_async.verification.scene import Overlay, Scene, grey, make_scene, overlay_result, shape_of
from flux_async.verification.sharpness import fit_sharpening
from flux_async.verification.text_areas import TextLines, find_lines, share_left

# Each limit with what was measured on good and on bad results.
LEAST_MATCH = 0.87
"""Good: at least 0.91. Other content: at most 0.82."""
MOST_RESIDUAL_PX = 2.5
"""Good: at most 0.7, once 1.9. Warped by more than 10 pixels: at least 3.1."""
SURE_MATCH = 0.98
"""Above this match the residual does not count: along the straight edges of a chart the flow slides freely,
2.8 pixels at a match of 0.999. Warped by 6 pixels and more: at most 0.92."""
MOST_CHANGED = 0.35
"""Good: at most 0.02."""
LEAST_COVERED = 0.98
"""Share of the text's area inside the result's frame. Cut off: at most 0.73."""
MOST_UNTOUCHED = 0.5
"""Share of the text's area that shows no change. Good: at most 0.04."""
LEAST_AGREEMENT = 0.75
"""Share of the surroundings of the holes that match in colour. Good: at least 0.97."""
MOST_TEXT_LEFT = 0.1
"""Share of the text's area that can still be read. Good: at most 0.02. Left by the editor: at least 0.18."""

SMALLEST_SIDE = 32
"""Images with a shorter side cannot be compared."""


def compose_files(original: bytes, result: bytes, *, format: str, max_pixels: int) -> Preserved:  # noqa: A002
    """Return the composed image; arguments and errors as those of ``preserve``."""
    opened, vendor = open_file(original, "original", max_pixels), open_file(result, "result", max_pixels)
    refusal = unsupported(opened)
    report = PreserveReport(refusal=refusal)
    if refusal is None:
        loaded = load(opened)
        composition = compose(loaded, load(vendor).pixels, find_lines(loaded.pixels))
        report = composition.report
        if composition.filled is not None:
            image, written = write(loaded, composition.filled.channels, format)
            return Preserved(image=image, format=written, report=report)
    return Preserved(image=result, format=vendor.format.value.lower(), report=report)


@attrs.frozen(kw_only=True, eq=False)
class Composition:
    """The filled image, upright, or None where the report says why it was refused."""

    report: PreserveReport
    filled: Filled | None = None


def compose(original: LoadedImage, result: Pixels, lines: TextLines, *, search: bool = True) -> Composition:
    """Return the original with its text filled from the result.

    ``lines`` is the original's text; ``search`` says whether the difference of both images is searched for
    more, and the composed image for what is left. Without it the text models are not used.
    """
    scene = make_scene(original, result)
    if min(*scene.shape, *shape_of(scene.result)) < SMALLEST_SIDE:
        return _refused(PreserveRefusal.NO_OVERLAP)
    if not lines.regions:
        return _refused(PreserveRefusal.NO_TEXT)
    regions = lines.on(scene.shape)
    overlay = overlay_result(scene, regions)
    if overlay is None:
        return _refused(PreserveRefusal.NO_OVERLAP)
    changes = find_changes(scene, overlay, regions, search=search)
    colours = match_colours(scene, overlay, changes.hole)
    report = _measure(scene, overlay, changes)
    refusal = judge(report, changes, colours.agreement)
    if refusal is not None:
        return _refused(refusal, report)
    filled = _filled(original, scene, overlay, changes.hole, colours)
    report = attrs.evolve(
        report,
        replaced=float(filled.changed.mean()),
        seam=border_step(filled.pixels, original.pixels, filled.changed),
        text_left=share_left(filled.pixels, lines) if search else None,
        hole=original.turned_back(filled.changed),
        outlines=outlines_of(filled.changed),
    )
    if (report.text_left or 0.0) > MOST_TEXT_LEFT:
        return _refused(PreserveRefusal.TEXT_LEFT, report)
    return Composition(report=report, filled=filled)


def _refused(refusal: PreserveRefusal, report: PreserveReport | None = None) -> Composition:
    return Composition(report=attrs.evolve(report or PreserveReport(), refusal=refusal))


@attrs.frozen(kw_only=True, eq=False)
class Colours:
    """How the result's colours become the original's: a map, and a correction for each pixel of the grid.

    ``sharpening`` is the filter that makes it as sharp, if it is softer. ``agreement`` is the share of a ring
    around the holes that has the same colours then.
    """

    tone: Tone
    offset: Floats
    sharpening: Floats | None
    agreement: float


def match_colours(scene: Scene, overlay: Overlay, hole: Hole) -> Colours:
    """Return the colours once more, now that the hole is known and left out."""
    inside = scene.opaque & overlay.frame
    calm = inside & ~grow(hole.mask, 2) & (difference(scene.original, overlay.matched) < 10)
    tone = fit_tone(overlay.plain, scene.original, calm if calm.sum() > 100 else overlay.usable)
    toned = tone.apply(overlay.plain)
    offset = local_offset(scene.original - toned, calm, sigma=6, least=0.03, smooth=3)
    ring = grow(hole.mask, 6) & ~grow(hole.mask, 1) & inside
    matched = toned + offset
    error = np.abs(gaussian(matched, 1.5) - gaussian(scene.original, 1.5)).sum(2)
    same = float((error[ring] < 14).mean()) if ring.any() else 0.0
    light = [np.ascontiguousarray(values[..., 0]) for values in (matched, scene.original)]
    sharpening = fit_sharpening(light[0], light[1], calm)
    return Colours(tone=tone, offset=offset, sharpening=sharpening, agreement=same)


def _measure(scene: Scene, overlay: Overlay, changes: Changes) -> PreserveReport:
    """Return what is known of alignment and changes before anything is filled."""
    matrix = overlay.alignment.matrix
    move = np.linalg.inv(size_matrix(scene.shape, shape_of(scene.result))) @ matrix
    centre = np.array([scene.shape[1] / 2, scene.shape[0] / 2, 1])
    right, down = ((move @ centre) - centre)[:2] / np.diag(scene.to_grid)[:2]
    away = overlay.usable & ~grow(changes.hole.core, 16)
    whole = size_matrix(shape_of(scene.result), scene.result_shape) @ matrix @ scene.to_grid
    return PreserveReport(
        alignment=(tuple(whole[0].tolist()), tuple(whole[1].tolist())),
        scale=math.sqrt(abs(float(np.linalg.det(move[:2, :2])))),
        shift=(float(right), float(down)),
        residual_px=residual_shift(grey(scene.original), grey(overlay.matched), away),
        match=overlay.alignment.match,
        changed=changes.changed,
    )


def judge(report: PreserveReport, changes: Changes, agreement: float) -> PreserveRefusal | None:
    """Return why the image is not to be composed, or None."""
    match, residual = report.match or 0.0, report.residual_px or 0.0
    reasons = {
        PreserveRefusal.NOT_ALIGNED: match < LEAST_MATCH
        or (match < SURE_MATCH and residual > MOST_RESIDUAL_PX),
        PreserveRefusal.OTHER_CONTENT: changes.changed > MOST_CHANGED,
        PreserveRefusal.OUTSIDE_FRAME: changes.covered < LEAST_COVERED or changes.reaches_end,
        PreserveRefusal.UNTOUCHED: changes.untouched > MOST_UNTOUCHED or not changes.hole.core.any(),
        PreserveRefusal.SURROUNDINGS_DIFFER: agreement < LEAST_AGREEMENT,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _filled(original: LoadedImage, scene: Scene, overlay: Overlay, hole: Hole, colours: Colours) -> Filled:
    fill = Fill(
        source=scene.source,
        to_source=size_matrix(shape_of(scene.result), scene.source.shape) @ overlay.alignment.matrix,
        to_grid=scene.to_grid,
        hole=hole,
        tone=colours.tone,
        offset=colours.offset,
        sharpening=colours.sharpening,
    )
    return fill_holes(original, fill)
