"""One image of a report as a frozen value, and the filters that it belongs to."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import attrs

from flux_async.errors import Charge


class Kind(enum.StrEnum):
    """What has become of an image."""

    SUCCEEDED = "succeeded"
    PENDING = "pending"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    REFUSED = "refused"
    """An input that was never submitted."""


class Filter(enum.StrEnum):
    """The filters of the page, in their order; the name of each kind is one."""

    ALL = "all"
    ATTENTION = "attention"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    REFUSED = "refused"
    TEXT_LEFT = "text_left"
    DAMAGED = "damaged"
    UNSURE = "unsure"
    NOT_PRESERVED = "not_preserved"
    UNRECOGNISED = "unrecognised"
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    CLEAN = "clean"
    NO_TEXT = "no_text"


_OF_VERDICT = {
    "clean": Filter.CLEAN,
    "no_text": Filter.NO_TEXT,
    "text_left": Filter.TEXT_LEFT,
    "damaged": Filter.DAMAGED,
    "cropped": Filter.DAMAGED,
    "unsure": Filter.UNSURE,
}
_NEED_NO_ATTENTION = frozenset({Filter.ALL, Filter.PENDING, Filter.SUCCEEDED, Filter.CLEAN, Filter.NO_TEXT})


@attrs.frozen(kw_only=True)
class Picture:
    """An image file to show, and a small copy of it, if there is one; both are absolute paths."""

    file: Path
    thumbnail: Path | None = None

    @property
    def smallest(self) -> Path:
        """The small copy, or else the file."""
        return self.thumbnail or self.file


def link_to(path: Path, folder: Path) -> str:
    """Return the link to a file: relative where it lies in ``folder``, so that the folder can be moved."""
    return quote(bytes(path.relative_to(folder))) if path.is_relative_to(folder) else path.as_uri()


def web_link(url: str | None) -> str | None:
    """Return an address that a page may link to: http or https; else None."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in {"http", "https"} and parts.netloc else None


@attrs.frozen(kw_only=True)
class ReportRow:
    """One image. Times are seconds since the epoch; what is not known is None.

    Attributes:
        number: Its place in the order of the input, from 1.
        key: The key of its job.
        image: The URL or path as given.
        title: Its short name.
        kind: What has become of it.
        stage: Where it is while it is pending, in words.
        original: The input on this machine.
        original_url: The address of the input.
        vendor: The result as the vendor made it.
        preserved: The result with every pixel outside the text taken from the original.
        stored_as: The address of the result in an object store, which a page cannot show.
        result_url: The result at the vendor, while it keeps it.
        verdict: The finding of the check: ``clean``, ``text_left``, ``damaged``, ``cropped``, ``unsure`` or
            ``no_text``.
        reason: Why, in words.
        text_left: The share of the original's text area that still reads as text.
        words_left: The words that can still be read.
        background_kept: Correlation of the details outside the text: 1 for the same content.
        changed_elsewhere: The share of the area outside the text that differs visibly.
        not_preserved: Why the vendor's pixels outside the text were kept.
        hole: Outlines of the parts of the original that were filled: x and y of each corner, in thousandths
            of its width and height.
        is_unrecognised: Whether the record of its task shows another request.
        error_type: The class of its error.
        error: Its error in words, with advice.
        task_id: The vendor's task.
        model: The model that was asked for.
        charge: Whether it was paid for.
        credits: What it cost: as measured, else by the price list.
        saved_credits: What it would have cost, where it was not submitted because it has no text.
        attempts: Submits made.
        submitted_at: When its task was accepted.
        finished_at: When it was settled.
        generation_s: Seconds that the vendor took.
    """

    number: int
    key: str
    image: str
    title: str
    kind: Kind
    stage: str | None = None
    original: Picture | None = None
    original_url: str | None = attrs.field(default=None, converter=web_link)
    vendor: Picture | None = None
    preserved: Picture | None = None
    stored_as: str | None = None
    result_url: str | None = attrs.field(default=None, converter=web_link)
    verdict: str | None = None
    reason: str | None = None
    text_left: float | None = None
    words_left: tuple[str, ...] = ()
    background_kept: float | None = None
    changed_elsewhere: float | None = None
    not_preserved: str | None = None
    hole: Sequence[Sequence[int]] = ()
    is_unrecognised: bool = False
    error_type: str | None = None
    error: str | None = None
    task_id: str | None = None
    model: str | None = None
    charge: Charge = Charge.NO
    credits: float | None = None
    saved_credits: float | None = None
    attempts: int = 0
    submitted_at: float | None = None
    finished_at: float | None = None
    generation_s: float | None = None

    @property
    def filters(self) -> tuple[Filter, ...]:
        """The filters that show it."""
        found = {Filter.ALL, Filter(self.kind.value)}
        if self.verdict in _OF_VERDICT:
            found.add(_OF_VERDICT[self.verdict])
        if self.not_preserved is not None:
            found.add(Filter.NOT_PRESERVED)
        if self.is_unrecognised:
            found.add(Filter.UNRECOGNISED)
        if found - _NEED_NO_ATTENTION:
            found.add(Filter.ATTENTION)
        return tuple(each for each in Filter if each in found)

    def as_data(self, folder: Path) -> dict[str, Any]:
        """Return what the script of a page in ``folder`` reads: the known fields, and the filters."""

        def plain(_: object, __: object, value: Any) -> Any:
            return link_to(value, folder) if isinstance(value, Path) else value

        data = attrs.asdict(
            self,
            filter=lambda _, value: value is not None and value is not False and value != (),
            value_serializer=plain,
        )
        return data | {"filters": self.filters}
