"""The value that ``verify`` returns: what became of the text, and of everything else."""

from __future__ import annotations

import enum

import attrs


class VerdictKind(enum.StrEnum):
    """What a check found, the gravest first where there are several."""

    DAMAGED = "damaged"
    """The result shows something else than the original, as a whole or in places away from the text."""
    TEXT_LEFT = "text_left"
    """Text can still be read where the original has text."""
    CROPPED = "cropped"
    """The result shows another part of the image: something was cut off, or borders were added."""
    UNSURE = "unsure"
    """The images could not be compared well enough: look at them."""
    CLEAN = "clean"
    """No text is left, and everything else is as it was."""


@attrs.frozen(kw_only=True)
class Verdict:
    """What ``verify`` found. A figure is None where the images could not be compared.

    Attributes:
        kind: The verdict.
        reason: Why, in words; empty for a clean result.
        no_text: Whether no text was found in the original.
        text_left: Share of the area of the original's text that still reads as text, from 0 to 1.
        words: What can be read there, line by line.
        background_kept: Correlation of the details of both images outside the text: 1 for the same content.
        changed_elsewhere: Share of the area outside the text that differs visibly.
        recoloured: Mean distance of the colours outside the text, in CIELAB, before they were matched.
        covered: Share of the original that the result shows.
        added: Share of the result that lies beyond the original.
        original_size: Width and height of the original, upright, in pixels.
        result_size: Width and height of the result.
        scale: Size of the result's content relative to the original's, after both are scaled to one size.
        shift: How far the content moved right and down, in pixels of the original at its centre.
        alignment: Where a pixel (x, y) of the original is in the result: the two rows of an affine matrix,
            applied to (x, y, 1).
    """

    kind: VerdictKind
    reason: str = ""
    no_text: bool
    text_left: float | None = None
    words: tuple[str, ...] = ()
    background_kept: float | None = None
    changed_elsewhere: float | None = None
    recoloured: float | None = None
    covered: float | None = None
    added: float | None = None
    original_size: tuple[int, int]
    result_size: tuple[int, int]
    scale: float | None = None
    shift: tuple[float, float] | None = None
    alignment: tuple[tuple[float, ...], tuple[float, ...]] | None = None
