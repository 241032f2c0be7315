"""The values that ``preserve`` returns: the composed image, what was measured, and why it was refused."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from flux_async.imaging.arrays import Mask


class PreserveRefusal(enum.StrEnum):
    """Why an image was not composed."""

    UNSUPPORTED_DEPTH = "the original has more than 8 bits per channel"
    UNSUPPORTED_MODE = "the original is in a colour mode that cannot be composed"
    SEVERAL_FRAMES = "the original has several frames or pages"
    NO_TEXT = "no text was found in the original"
    NO_OVERLAP = "the result shows too little of the original"
    NOT_ALIGNED = "the result cannot be aligned with the original"
    OTHER_CONTENT = "the result shows something else than the original"
    OUTSIDE_FRAME = "text of the original lies outside the result's frame"
    UNTOUCHED = "the result still shows the text unchanged"
    SURROUNDINGS_DIFFER = "the surroundings of the text differ"
    TEXT_LEFT = "text can still be read in the composed image"


@attrs.frozen(kw_only=True)
class PreserveReport:
    """What was measured. A figure is None where the refusal came before it could be measured.

    Attributes:
        refusal: Why the image was not composed, or None if it was.
        scale: Size of the result's content relative to the original's, after both are scaled to one size:
            1.01 means that the vendor enlarged it by 1 %.
        shift: How far the content moved right and down, in pixels of the original at its centre.
        alignment: Where a pixel (x, y) of the upright original is in the upright result: the two rows of an
            affine matrix, applied to (x, y, 1).
        residual_px: Median shift that is left after alignment, in pixels of the smaller of both images.
        match: Correlation of both images outside the text after alignment: 1 for the same content.
        changed: Share of the area outside the text that differs.
        replaced: Share of the original's pixels that were replaced.
        seam: Mean step across the border of the replaced areas less the usual step beside it, in grey levels.
        text_left: Share of the text's area that can still be read in the composed image.
        hole: The replaced pixels, in the orientation of the file; every other pixel is the original's.
        outlines: Polygons around them, in the upright image: x and y of each corner, in thousandths of its
            width and height.
    """

    refusal: PreserveRefusal | None = None
    scale: float | None = None
    shift: tuple[float, float] | None = None
    alignment: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    residual_px: float | None = None
    match: float | None = None
    changed: float | None = None
    replaced: float | None = None
    seam: float | None = None
    text_left: float | None = None
    hole: Mask | None = attrs.field(default=None, eq=False, repr=False)
    outlines: tuple[tuple[int, ...], ...] | None = attrs.field(default=None, repr=False)

    @property
    def verdict(self) -> Literal["composed", "refused"]:
        """Whether the image was composed."""
        return "composed" if self.refusal is None else "refused"

    @property
    def reason(self) -> str:
        """Why the image was not composed, in words; empty if it was."""
        return "" if self.refusal is None else str(self.refusal)


@attrs.frozen(kw_only=True)
class Preserved:
    """The composed image, or the vendor's own where composing was refused.

    Attributes:
        image: Bytes of an image file.
        format: Its format: "png", "webp", "tiff", "jpeg", or that of the vendor's file.
        report: What was measured, and why it was refused.
    """

    image: bytes = attrs.field(repr=False)
    format: str
    report: PreserveReport
