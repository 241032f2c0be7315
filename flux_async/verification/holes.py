"""What is to be replaced: the changes at the text, found on the grid, with room for a soft transition."""

# ruff: noqa: PLR2004 - the numbers are thresholds and widths in pixels, each used once

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from flux_async.imaging.arrays import Mask, disc, gaussian
from flux_async.imaging.text_detection import covered
from flux_async.verification.changes import difference, find_changed
from flux_async.verification.colours import local_offset
from flux_async.verification.grid import close_round, grow, without_specks
from flux_async.verification.text_areas import removed_lines, text_zone, usual_height

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flux_async.imaging.text_detection import TextRegion
    from flux_async.verification.scene import Overlay, Scene


@attrs.frozen(kw_only=True, eq=False)
class Hole:
    """What is replaced, on the grid.

    Attributes:
        core: Pixels that are replaced completely.
        feather: Width of the transition around them, in pixels.
        mask: Pixels that may change: the core with its feather.
        height: Usual height of a line of text, in pixels.
    """

    core: Mask
    feather: float
    mask: Mask
    height: float


@attrs.frozen(kw_only=True, eq=False)
class Changes:
    """What is to be replaced, and what was measured on the way.

    Attributes:
        hole: What is to be replaced.
        changed: Share of the area outside the text that differs.
        untouched: Share of the text's area in lines without any change.
        covered: Share of the text's area inside the result's frame.
        reaches_end: Whether a change goes beyond that frame.
    """

    hole: Hole
    changed: float
    untouched: float
    covered: float
    reaches_end: bool


def find_changes(
    scene: Scene, overlay: Overlay, regions: Sequence[TextRegion], *, search: bool = True
) -> Changes:
    """Return what is to be replaced: changes at the text.

    ``search`` says whether the difference is searched for text that was not found in the original.
    """
    shape, height, usable = scene.shape, usual_height(regions), overlay.usable
    zone = text_zone(regions, shape)
    gone = scene.original - overlay.matched
    calm = usable & (difference(scene.original, overlay.matched) < 12)  # certainly the same
    gone -= local_offset(gone, calm, sigma=12, least=0.05, smooth=8)
    distance = difference(scene.original, scene.original - gone)
    loose = without_specks((distance > 5) & usable, disc(1))  # clearly changed
    if search and grow(loose, 3).mean() > 0.002:  # less is noise
        more = removed_lines(scene.pixels, gone, distance, zone)
        regions, added = (*regions, *more), text_zone(more, shape)
        zone, usable = zone | added, usable & ~grow(added, 6)
    # Outside the result's frame its pixels are invented: differences there mean nothing.
    near_frame = grow(overlay.frame, 0.02 * max(shape))
    distance = distance * near_frame
    core, sure = find_changed(distance, zone & near_frame, height, usable)
    outside = usable & ~grow(core, 6)
    text = covered(regions, shape)
    still = [each.area for each in regions if (sure[each.window.slices] & each.mask).sum() < 0.02 * each.area]
    return Changes(
        hole=_hole(core, height),
        changed=float((gaussian(distance, 2)[outside] > 8).mean()) if outside.any() else 1.0,
        untouched=sum(still) / max(1, sum(each.area for each in regions)),
        covered=float((near_frame & text).sum() / max(1, text.sum())),
        reaches_end=int((grow(core, 4) & ~near_frame).sum()) > 20,  # a few stray pixels
    )


def _hole(core: Mask, height: float) -> Hole:
    """Return the hole around changed pixels, which are grown by 2 pixels and 4 % of the line height."""
    core = close_round(grow(core, 2 + 0.04 * height), max(1, int(0.06 * height)))
    feather = float(np.clip(0.12 * height, 2.5, 8))
    return Hole(core=core, feather=feather, mask=grow(core, feather + 1), height=height)
