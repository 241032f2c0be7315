"""``docs/observability.md`` and the dashboard name the spans, attributes and metrics that there are."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flux_async import Charge, events
from flux_async.job_state import JobState
from flux_async.models import JobKey, TaskId
from telemetry import Telemetry

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "observability.md").read_text("utf-8")
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))
FUNCTIONS = {"sum", "by", "rate", "increase", "histogram_quantile", "vector", "or", "le"}
NAME = re.compile(r"[a-z_][a-z0-9_]*")


@cache
def everything() -> Telemetry:
    """Return what an observer makes of events with all fields."""
    seen, job, task = Telemetry(), JobKey("k"), TaskId("t")
    trace = seen.observer.trace_context(1.0)
    about: dict[str, Any] = {"at": 2.0, "job": job, "task_id": task, "trace": trace, "attempt": 1}
    about |= {"image": "https://example.com/a.jpg", "model": "flux-kontext-pro", "api": "kontext"}
    leave = seen.observer.enter_job(job, trace)
    request: dict[str, Any] = {"at": 2.0, "method": "GET", "origin": "https://api.example", "seconds": 1.0}
    seen.observer(events.JobAdded(**about, state=JobState.PENDING))
    seen.observer(events.SubmitStarted(**about, added_at=1.0))
    seen.observer(events.Submitted(**about, credits=5.0))
    seen.observer(events.RequestEnded(**request, path="/api/v1/x", status=500, task_id=task, api="kontext"))
    seen.observer(events.RequestEnded(**request, status=200))
    seen.observer(events.CallbackReceived(**about))
    seen.observer(events.Polled(**about, status="SUCCESS", lag_s=1.0))
    seen.observer(events.RateLimited(at=2.0, seconds=1.0, reason="Too many."))
    seen.observer(events.Paused(at=2.0, what="polls", seconds=1.0, error="RequestNotSent", reason="Down."))
    seen.observer(events.Halted(at=2.0, what="run", error="RequestNotSent", reason="Down."))
    seen.observer(events.Verified(**about, verdict="clean"))
    ended: dict[str, Any] = {"outcome": "failed", "charge": Charge.YES, "credits": 5.0, "generation_s": 9.0}
    ended |= {"verdict": "clean", "error": "TaskFailed", "code": 501, "reason": "No.", "added_at": 1.0}
    seen.observer(events.Settled(**about, **ended))
    leave()
    return seen


def table(heading: str, title: str) -> list[tuple[set[str], list[str]]]:
    """Return the rows of a table below a heading: the names in the first cell, and the other cells."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = section.partition(f"\n| {title} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [(set(re.findall(r"`([^`]+)`", first)), others) for first, *others in cells]


def test_every_metric_is_documented_with_its_attributes() -> None:
    """One row each, by the names of OpenTelemetry; Prometheus has underscores for their dots."""
    documented = {name.replace(".", "_"): others[2] for (name,), others in table("Metrics", "metric")}
    found: dict[str, set[str]] = {}
    for name, labels, _ in everything().samples():
        known = [each for each in documented if name.startswith(each)]
        assert known or name == "target_info", name
        if known:
            found.setdefault(max(known, key=len), set()).update(
                label for label, value in labels.items() if value and not label.startswith("otel_scope_")
            )
    assert found.keys() == documented.keys()
    for name, text in documented.items():
        given = {attribute.replace(".", "_") for attribute in re.findall(r"`([^`]+)`", text)}
        if name != "http_client_request_duration":
            assert found[name] - {"le"} == given, name


def test_every_span_and_attribute_is_documented() -> None:
    """A span of a request has method and path in its name."""
    spans = {name for names, _ in table("Spans", "span") for name in names}
    assert {span.name for span in everything().spans if "/" not in span.name} <= spans
    attributes = {name for names, _ in table("Spans", "attribute") for name in names}
    assert {name for span in everything().spans for name in span.attributes or {}} == attributes


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_a_panel_shows_metrics_that_the_exporter_writes(panel: dict[str, Any]) -> None:
    """Names and labels of each query are those of an exporter's output."""
    labels: dict[str, set[str]] = {}
    for name, has, _ in everything().samples():
        labels.setdefault(name, set()).update(has)
    for target in panel["targets"]:
        query = re.sub(r'"[^"]*"|\[[^]]*\]', "", target["expr"])
        metrics = {word for word in NAME.findall(query) if word in labels}
        assert metrics or query == "vector(20)"
        of_metrics = {label for metric in metrics for label in labels[metric]}
        assert set(NAME.findall(query)) <= FUNCTIONS | metrics | of_metrics
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= of_metrics


def test_the_dashboard_can_be_imported() -> None:
    """Panels have ids of their own, lie beside each other, and take the source of the dashboard."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(24))
    (source,) = DASHBOARD["templating"]["list"]
    used = {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert (source["type"], used) == ("datasource", {f"${{{source['name']}}}"})
