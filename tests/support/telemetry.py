"""Spans and metrics of a test, in memory, as OpenTelemetry's own SDK and Prometheus exporter make them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flux_async import OpenTelemetry

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
NAMES = tuple(
    name.replace(".", "_")
    for name in re.findall(r"^\| `((?:flux_async|http)\.[\w.]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
)


@attrs.define(eq=False)
class Telemetry:
    """An observer, and all that it makes.

    Attributes:
        tracer_provider: Receives its spans.
        meter_provider: Receives its metrics.
        registry: Has its metrics.
        observer: The observer.
    """

    tracer_provider: TracerProvider = attrs.field(factory=TracerProvider)
    registry: CollectorRegistry = attrs.field(factory=CollectorRegistry)
    meter_provider: MeterProvider = attrs.field(init=False)
    observer: OpenTelemetry = attrs.field(init=False)
    _exporter: InMemorySpanExporter = attrs.field(factory=InMemorySpanExporter, init=False)

    def __attrs_post_init__(self) -> None:
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([PrometheusMetricReader(registry=self.registry)])
        self.observer = OpenTelemetry(
            tracer_provider=self.tracer_provider, meter_provider=self.meter_provider
        )

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """The spans that have ended."""
        return self._exporter.get_finished_spans()

    def named(self, *names: str) -> list[ReadableSpan]:
        """Return the spans with one of these names."""
        return [span for span in self.spans if span.name in names]

    def exposition(self) -> str:
        """Return what Prometheus reads."""
        return generate_latest(self.registry).decode()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Yield name, labels and value of each metric."""
        for family in text_string_to_metric_families(self.exposition()):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all series with these labels; one without series is 0."""
        assert name.startswith(NAMES), f"{name} is no documented metric"
        return sum(
            value for found, has, value in self.samples() if found == name and labels.items() <= has.items()
        )


def traces_of(spans: list[ReadableSpan] | tuple[ReadableSpan, ...]) -> set[int]:
    """Return the traces of spans."""
    return {span.context.trace_id for span in spans}


def orphans(spans: list[ReadableSpan] | tuple[ReadableSpan, ...]) -> list[ReadableSpan]:
    """Return the spans whose parent is not among them."""
    known = {span.context.span_id for span in spans}
    return [span for span in spans if span.parent is not None and span.parent.span_id not in known]
