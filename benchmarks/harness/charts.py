"""Small charts, as SVG that any browser shows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

import attrs

_OURS, _THEIRS = "#2a78b5", "#9aa5b1"
_LEFT, _WIDTH, _STEP, _GAP = 260, 480, 20, 14


@attrs.frozen(kw_only=True)
class Bar:
    """One bar: the median, and as a line the lowest and the highest.

    Attributes:
        name: What stands beside it.
        values: One for each round.
        ours: Whether it is one of ours, which have a colour of their own.
        opens: Whether it opens a new group.
        form: How its figure is written.
    """

    name: str
    values: Sequence[float]
    ours: bool
    opens: bool = False
    form: str = ".0f"


def write(path: Path, width: int, height: int, content: str) -> None:
    """Write an image on white ground."""
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="white"/>\n'
        f"{content}\n</svg>\n",
        encoding="utf-8",
    )


def draw_bars(path: Path, title: str, bars: Sequence[Bar]) -> None:
    """Draw bars under a title."""
    scale = _WIDTH / max(max(bar.values) for bar in bars)
    parts, y = [f'<text x="10" y="18">{escape(title)}; bar: median, line: lowest to highest</text>'], 30
    for bar in bars:
        y += _GAP if bar.opens else 0
        parts.append(_bar(bar, y, scale))
        y += _STEP
    write(path, _LEFT + _WIDTH + 80, y + 10, "\n".join(parts))


def _bar(bar: Bar, y: int, scale: float) -> str:
    median, low, high = statistics.median(bar.values), min(bar.values) * scale, max(bar.values) * scale
    return (
        f'<text x="10" y="{y + 11}">{escape(bar.name)}</text>'
        f'<rect x="{_LEFT}" y="{y}" width="{median * scale:.1f}" height="14" '
        f'fill="{_OURS if bar.ours else _THEIRS}"/>'
        f'<path d="M{_LEFT + low:.1f} {y + 7}H{_LEFT + high:.1f}" stroke="black"/>'
        f'<text x="{_LEFT + 6 + high:.1f}" y="{y + 11}">{median:{bar.form}}</text>'
    )
