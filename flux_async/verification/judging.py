"""The limits of ``verify``: which figures make a result damaged, cropped, clean or doubtful.

They were set on simulated results of other images than those that the benchmark reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flux_async.verification.verdict import VerdictKind

if TYPE_CHECKING:
    from flux_async.verification.verdict import Verdict

# Each limit with what was measured on good and on bad results.
OTHER_CONTENT = 0.8
"""Correlation of the details of both images below which they show different things."""
MOST_TEXT_LEFT = 0.05
LEAST_COVERED = 0.9
MOST_ADDED = 0.1
MOST_CHANGED = 0.002
MOST_RECOLOURED = 25.0
"""A quarter of the distance of black and white. Usual edits: at most 5. Where a shaded ground was
cut off, which shows in nothing but its colours: 14."""
DOUBTFUL = 0.5
"""From this share of a limit on, a figure is in doubt."""
NOTHING_IN_COMMON = "the result shows something else than the original"


def judge(figures: Verdict) -> tuple[VerdictKind, str]:
    """Return the verdict on the figures of a comparison, and the reason in words."""
    match, left = figures.background_kept or 0.0, figures.text_left or 0.0
    changed, covered = figures.changed_elsewhere or 0.0, figures.covered or 0.0
    added, recoloured = figures.added or 0.0, figures.recoloured or 0.0
    still = ": ".join(
        filter(None, [f"{left:.0%} of the text's area is still text", ", ".join(figures.words)])
    )
    elsewhere = f"{changed:.1%} of the area outside the text changed"
    findings = [
        (match < OTHER_CONTENT, VerdictKind.DAMAGED, NOTHING_IN_COMMON),
        (left >= MOST_TEXT_LEFT, VerdictKind.TEXT_LEFT, still),
        (covered < LEAST_COVERED, VerdictKind.CROPPED, f"the result shows {covered:.0%} of the original"),
        (added > MOST_ADDED, VerdictKind.CROPPED, f"{added:.0%} of the result lies beyond the original"),
        (changed > MOST_CHANGED, VerdictKind.DAMAGED, elsewhere),
        (recoloured > MOST_RECOLOURED, VerdictKind.DAMAGED, "the colours differ"),
        (left > 0, VerdictKind.UNSURE, still),
        (changed > DOUBTFUL * MOST_CHANGED, VerdictKind.UNSURE, elsewhere),
        (recoloured > DOUBTFUL * MOST_RECOLOURED, VerdictKind.UNSURE, "the colours differ"),
    ]
    return next(((kind, why) for holds, kind, why in findings if holds), (VerdictKind.CLEAN, ""))
