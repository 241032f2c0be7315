"""Draws ``docs/grafana-dashboard.json`` from a Prometheus server, without Grafana.

Each panel's own queries are sent to the server, and what they return is drawn with the title, unit and
legend of the panel at its place.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MultipleLocator
from PIL import Image

from harness.processes import read_json

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"
SCRAPE_S = 5
"""Seconds between two readings of the metrics."""
RATE_INTERVAL_S = 4 * SCRAPE_S  # as Grafana computes it where the picture has many more points than scrapes
COLUMNS, UNIT_IN, ROW_IN = 24, 0.62, 0.38
GROUND, PANEL, TEXT, GRID = "#111217", "#181b1f", "#ccccdc", "#2c3038"
COLOURS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#ca95e5", "#fade2a")
NAMED = {"green": "#73bf69", "red": "#f2495c", "orange": "#ff9830", "yellow": "#fade2a", "blue": "#5794f2"}

Found: TypeAlias = list[tuple[str, list[tuple[float, float]]]]
"""The legend of each series, and its points: seconds, and the value."""


def query(server: str, target: dict[str, Any], began: float, ended: float) -> list[dict[str, Any]]:
    """Return the series of a panel's query, each with its labels and its points."""
    text = target["expr"].replace("$__rate_interval", f"{RATE_INTERVAL_S}s")
    text = text.replace("$__range", f"{ended - began:.0f}s")
    about = {"query": text, "time": ended}
    if target["range"]:
        about = {"query": text, "start": began, "end": ended, "step": SCRAPE_S}
    kind = "query_range" if target["range"] else "query"
    found = read_json(f"{server}/api/v1/{kind}?{urlencode(about)}")["data"]["result"]
    for series in found:
        points = series.pop("values", None) or [series.pop("value")]
        series["points"] = [(at - began, float(value)) for at, value in points if value != "NaN"]
    return [series for series in found if series["points"]]


def name_of(series: dict[str, Any], target: dict[str, Any]) -> str:
    """Return the legend of a series."""
    words = re.sub(r"{{(\w+)}}", lambda label: series["metric"].get(label[1], ""), target["legendFormat"])
    return " ".join(words.split())


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """Return a value as Grafana writes it: thousands as K, seconds with ``s``."""
    suffix = {"s": " s", "reqps": " req/s"}.get(unit, "")
    if unit == "short" and abs(value) >= 1000:
        return f"{value / 1000:.3g} K"
    return (f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}") + suffix


def lines_of_legend(found: Found) -> int:
    """Return how many lines the legend takes: two series each where their names are long."""
    return -(-len(found) // (2 if max(len(name) for name, _ in found) > 30 else 3))


def draw_stat(axes: Axes, panel: dict[str, Any], found: Found) -> None:
    """Draw a panel of one number."""
    defaults = panel["fieldConfig"]["defaults"]
    value, colour = found[0][1][-1][1], defaults.get("color", {}).get("fixedColor", "text")
    text = written(value, defaults["unit"], defaults.get("decimals"))
    axes.set_axis_off()
    about = {"ha": "center", "va": "center", "fontsize": 26, "color": NAMED.get(colour, TEXT)}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **about)


def draw_series(axes: Axes, panel: dict[str, Any], found: Found, seconds: float) -> None:
    """Draw a panel of lines, stacked where it says so."""
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    is_stacked = custom["stacking"]["mode"] == "normal"
    below: dict[float, float] = {}
    for colour, (name, points) in zip(itertools.cycle(COLOURS), found):
        times, base = [at for at, _ in points], [below.get(at, 0.0) for at, _ in points]
        tops = [value + under for (_, value), under in zip(points, base, strict=True)]
        axes.plot(times, tops, color=colour, linewidth=1.1, label=name)
        axes.fill_between(times, base, tops, color=colour, alpha=custom["fillOpacity"] / 100, linewidth=0)
        if is_stacked:
            below.update(zip(times, tops, strict=True))
    axes.set_xlim(0.0, seconds)
    axes.set_ylim(bottom=defaults["min"])
    axes.yaxis.set_major_formatter(lambda value, _: written(value, defaults["unit"]))
    axes.xaxis.set_major_formatter(lambda at, _: f"{at / 60:.0f} min")
    axes.xaxis.set_major_locator(MultipleLocator(60))
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_facecolor(PANEL)
    axes.tick_params(colors=TEXT, labelsize=7, length=0)
    axes.spines[:].set_visible(False)
    columns = -(-len(found) // lines_of_legend(found))
    about = {"loc": "upper left", "bbox_to_anchor": (-0.04, -0.1), "ncols": columns, "fontsize": 6.5}
    axes.legend(
        **about, frameon=False, labelcolor=TEXT, handlelength=1.2, columnspacing=1.2, labelspacing=0.25
    )


def draw_panel(figure: Figure, panel: dict[str, Any], found: Found, rows: int, seconds: float) -> None:
    """Draw a panel at its place: its frame, its title, and what was found."""
    at, (width, height) = panel["gridPos"], figure.get_size_inches()
    left, bottom = at["x"] * UNIT_IN + 0.03, (rows - at["y"] - at["h"]) * ROW_IN + 0.03
    wide, high = at["w"] * UNIT_IN - 0.06, at["h"] * ROW_IN - 0.06
    frame = (left / width, bottom / height)
    look = {"facecolor": PANEL, "edgecolor": GRID, "zorder": -1}
    figure.add_artist(Rectangle(frame, wide / width, high / height, **look))
    figure.text((left + 0.1) / width, (bottom + high - 0.13) / height, panel["title"], color=TEXT, va="top")
    if panel["type"] == "stat":
        draw_stat(figure.add_axes((*frame, wide / width, (high - 0.3) / height)), panel, found)
        return
    below = 0.35 + 0.13 * lines_of_legend(found)
    inner = (left + 0.55, bottom + below, wide - 0.7, high - below - 0.42)
    sides = (width, height, width, height)
    axes = figure.add_axes([inches / side for inches, side in zip(inner, sides, strict=True)])
    draw_series(axes, panel, found, seconds)


def draw(server: str, began: float, ended: float, path: Path) -> list[str]:
    """Draw all panels into a file; return the titles of those without data."""
    panels, without = json.loads(DASHBOARD.read_text("utf-8"))["panels"], []
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    pyplot.rcParams["font.size"] = 9
    figure = pyplot.figure(figsize=(COLUMNS * UNIT_IN, rows * ROW_IN), facecolor=GROUND)
    for panel in panels:
        found: Found = [
            (name_of(series, target), series["points"])
            for target in panel["targets"]
            for series in query(server, target, began, ended)
        ]
        if found:
            draw_panel(figure, panel, found, rows, ended - began)
        else:
            without.append(panel["title"])
    figure.savefig(path, dpi=96, facecolor=GROUND)
    with Image.open(path) as drawn:
        small = drawn.quantize(128)
    small.save(path, optimize=True)
    return without
