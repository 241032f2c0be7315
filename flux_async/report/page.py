"""Writes the report: one self-contained page that opens from disk."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import attrs
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from flux_async.report.part_file import part_file
from flux_async.report.rows import Filter, ReportRow
from flux_async.report.summary import Summary

FILE_NAME = "report.html"
MOST_ROWS = 10_000
"""More make the page slow to open; it shows those first that need a look."""

_LABELS: Mapping[Filter, str] = {
    Filter.ALL: "All",
    Filter.ATTENTION: "Need a look",
    Filter.FAILED: "Failed",
    Filter.IN_DOUBT: "In doubt",
    Filter.REFUSED: "Refused",
    Filter.TEXT_LEFT: "Text left",
    Filter.DAMAGED: "Damaged",
    Filter.UNSURE: "Unsure",
    Filter.NOT_PRESERVED: "Not composed",
    Filter.UNRECOGNISED: "Another request",
    Filter.PENDING: "Pending",
    Filter.SUCCEEDED: "Succeeded",
    Filter.CLEAN: "Text gone",
    Filter.NO_TEXT: "No text",
}


@attrs.frozen(kw_only=True)
class NextStep:
    """What to do about the images of a filter: a sentence, and a command if one helps."""

    words: str
    command: str | None = None


@attrs.frozen(kw_only=True)
class ReportHead:
    """What a report says about its run as a whole.

    Attributes:
        folder: The folder of the run, as an absolute path.
        written_at: When the report was written, in seconds since the epoch.
        images: How many images the run has; a long run has more than rows.
        credits: Credits spent, by the vendor's figures or the price list.
        credits_in_doubt: Credits that submits in doubt may have cost besides.
        is_running: Whether a run was using the folder.
        reload_s: Seconds after which the page reloads itself; None where nothing writes it anew.
        warning: A warning about the journal.
        next_steps: What to do, by filter.
        whole_list: What lists all images, where the page does not.
    """

    folder: Path
    written_at: float
    images: int
    credits: float = 0.0
    credits_in_doubt: float = 0.0
    is_running: bool = False
    reload_s: int | None = None
    warning: str | None = None
    next_steps: Mapping[Filter, NextStep] = attrs.field(factory=dict)
    whole_list: str = "results.jsonl"


def write_page(head: ReportHead, rows: Sequence[ReportRow]) -> Path:
    """Write ``report.html`` in the folder of the run and return its path; it appears only when complete.

    Raises:
        OSError: It cannot be written; an earlier one is as it was.
    """
    path = head.folder / FILE_NAME
    # A lone surrogate comes from a name that is no Unicode.
    with part_file(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(render_page(head, rows))
    return path


def render_page(head: ReportHead, rows: Sequence[ReportRow]) -> Iterator[str]:
    """Yield the page about ``rows`` in pieces: the whole of it takes several times the memory of the rows."""
    summary = Summary.of(rows)
    style, script = _asset("report.css"), _asset("report.js")
    return (
        _environment()
        .get_template("report.html")
        .generate(
            head=head,
            rows=rows,
            steps={name.value: attrs.asdict(step) for name, step in head.next_steps.items()},
            summary=summary,
            filters=[
                (name, label, summary.counts[name])
                for name, label in _LABELS.items()
                if summary.counts[name] or name is Filter.ALL
            ],
            has_holes=any(row.hole for row in rows),
            has_preserved=any(row.preserved for row in rows),
            # Written here, not by anyone else: the page's policy names their digests.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            style_digest=_digest(style),
            script_digest=_digest(script),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["duration"] = _duration
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment


def _asset(name: str) -> str:
    return resources.files("flux_async.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _figure(number: float) -> str:
    """Return a number with commas and at most one decimal: ``12,500`` or ``7.5``."""
    return f"{number:,.1f}".removesuffix(".0")


def _duration(seconds: float) -> str:
    """Return a duration in words: ``42 s``, ``7 min``, ``3 h 20 min``, ``5 days``."""
    if seconds < 100:  # noqa: PLR2004 - up to here seconds are the better unit
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:  # noqa: PLR2004 - and up to here minutes
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:  # noqa: PLR2004 - as above
        return f"{hours} h {minutes} min"
    return f"{round(hours / 24)} days"
