"""The figures at the head of a report: counts, credits, times, and a histogram of generation times."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Self

import attrs

from flux_async.report.rows import Filter, ReportRow

_MOST_BINS = 24
_WIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@attrs.frozen(kw_only=True)
class Bin:
    """One bar of a histogram: how many times lie in ``start <= seconds < end``."""

    start: float
    end: float
    count: int


@attrs.frozen(kw_only=True)
class Histogram:
    """Durations in bins of one width, with their median and 95 % quantile, in seconds."""

    bins: tuple[Bin, ...]
    median: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self | None:
        """Return the histogram of some durations; None where there are none.

        The width is the smallest of a list of round ones that needs at most 24 bins: 3 s to 31 s takes bins
        of 2 s.
        """
        times = sorted(time for time in seconds if time >= 0 and math.isfinite(time))
        if not times:
            return None
        width = next((w for w in _WIDTHS if _bins(times, w) <= _MOST_BINS), times[-1] / (_MOST_BINS - 2))
        first = math.floor(times[0] / width)
        counts = Counter(math.floor(time / width) - first for time in times)
        bins = tuple(
            Bin(start=(first + n) * width, end=(first + n + 1) * width, count=counts[n])
            for n in range(max(counts) + 1)
        )
        return cls(bins=bins, median=_quantile(times, 0.5), p95=_quantile(times, 0.95))

    @property
    def highest(self) -> int:
        """The count of the highest bar."""
        return max(each.count for each in self.bins)


def _bins(times: Sequence[float], width: float) -> int:
    return math.floor(times[-1] / width) - math.floor(times[0] / width) + 1


def _quantile(times: Sequence[float], share: float) -> float:
    return times[max(0, math.ceil(len(times) * share) - 1)]


@attrs.frozen(kw_only=True)
class FailureClass:
    """All failures with one class of error."""

    type: str
    count: int
    example: str


@attrs.frozen(kw_only=True)
class Summary:
    """Figures of some rows.

    Attributes:
        counts: Rows by filter.
        failures: Failed and refused images by the class of their error, the most frequent first.
        generation: Histogram of the vendor's generation times, or None.
        saved_credits: Credits that were not spent on images without text.
        elapsed_s: Seconds from the first submit to the last settled image, pauses between runs included.
        is_checked: Whether any result was checked for text.
    """

    counts: Counter[Filter]
    failures: tuple[FailureClass, ...]
    generation: Histogram | None
    saved_credits: float
    elapsed_s: float | None
    is_checked: bool

    @classmethod
    def of(cls, rows: Sequence[ReportRow]) -> Self:
        """Return the figures of ``rows``."""
        begun = [row.submitted_at for row in rows if row.submitted_at is not None]
        ended = [row.finished_at for row in rows if row.finished_at is not None]
        return cls(
            counts=Counter(name for row in rows for name in row.filters),
            failures=_failures(rows),
            generation=Histogram.of([row.generation_s for row in rows if row.generation_s is not None]),
            saved_credits=sum(row.saved_credits or 0.0 for row in rows),
            elapsed_s=max(0.0, max(ended) - min(begun)) if begun and ended else None,
            is_checked=any(row.verdict is not None for row in rows),
        )


def _failures(rows: Sequence[ReportRow]) -> tuple[FailureClass, ...]:
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        if {Filter.FAILED, Filter.REFUSED} & set(row.filters):
            name = row.error_type or "unknown"
            counts[name] += 1
            examples.setdefault(name, row.error or "")
    return tuple(
        FailureClass(type=name, count=count, example=examples[name]) for name, count in counts.most_common()
    )
