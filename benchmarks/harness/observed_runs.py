"""The runs of ``observers.py``: ``python observed_runs.py URL …`` runs a batch with each observer in turn.

All runs are made by one process, so that two that are compared share its start, its memory and its moment.
Each prints the CPU of a finished task in milliseconds, as a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

from opentelemetry.metrics import Histogram, MeterProvider
from opentelemetry.sdk import metrics, trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, TracerProvider

from flux_async import FluxClient, Limits, OpenTelemetry, PollPolicy, Succeeded, run_batch
from flux_async.events import EventStream, FluxEvent, Observer, Polled, RequestEnded, Settled, SubmitStarted

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness.batch_clients import hide_sniffio

SPEED = 10.0


class Nowhere(SpanExporter):
    """Drops all spans: what an exporter does with them is its own cost."""

    def export(self, spans: object) -> None:  # type: ignore[override]
        """Drop them."""


def providers() -> tuple[TracerProvider, MeterProvider]:
    """Return the SDK's own providers, which sample all spans and export none."""
    tracers = trace.TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(Nowhere()))
    return tracers, metrics.MeterProvider([InMemoryMetricReader()])


class ByHand:
    """Makes as many spans and measurements as the observer does, in the shortest way there is.

    All are the same, each with attributes of one number and kind with the observer's: the rest is the SDK.
    """

    def __init__(self) -> None:
        tracers, meters = providers()
        self._tracer, self._meter = tracers.get_tracer("by hand"), meters.get_meter("by hand")
        self._histograms = {
            kind: [self._meter.create_histogram(f"{kind.__name__}.{n}") for n in range(2)]
            for kind in (RequestEnded, SubmitStarted, Polled, Settled)
        }

    def wants(self, kind: type[FluxEvent]) -> bool:
        """Return whether it makes something of events of a class."""
        return kind in self._histograms

    def trace_context(self, at: float) -> None:  # noqa: ARG002 - as an observer has it
        """Make the first span of a job."""
        self._span("flux_async.add", {})

    def __call__(self, event: FluxEvent, /) -> None:
        """Make what the observer makes of an event."""
        first: Histogram = self._histograms[type(event)][0]
        match event:
            case RequestEnded():
                about = {
                    "http.request.method": event.method,
                    "server.address": "127.0.0.1",
                    "server.port": 80,
                    "http.response.status_code": 200,
                }
                self._span("GET", about | {"url.full": event.origin, "task": "t", "model": "m", "api": "a"})
                first.record(event.seconds, about)
            case Settled():
                self._span("job", dict.fromkeys("abcdefghijk", "of a job"))
                first.record(9.0, {"model": "m"})
            case Polled(lag_s=None):
                pass
            case _:
                first.record(1.0)

    def _span(self, name: str, about: dict[str, str | int]) -> None:
        self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=about, start_time=1).end(2)


def with_observer(make: Callable[[], Observer]) -> Callable[[], AbstractContextManager[list[Observer]]]:
    """Return what makes the observers of a run."""
    return lambda: nullcontext([make()])


def with_sdk() -> AbstractContextManager[list[Observer]]:
    """Have spans and metrics."""
    tracers, meters = providers()
    return nullcontext([OpenTelemetry(tracer_provider=tracers, meter_provider=meters)])


@contextlib.contextmanager
def with_log_lines() -> Iterator[list[Observer]]:
    """Have all lines from INFO on in a file, as ``logging.basicConfig(filename=…)`` writes them."""
    root = logging.getLogger()
    with tempfile.TemporaryDirectory(prefix="observers-") as folder:
        handler = logging.FileHandler(Path(folder) / "log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield []
        finally:
            root.removeHandler(handler)
            root.setLevel(logging.WARNING)
            handler.close()


@contextlib.contextmanager
def without_events() -> Iterator[list[Observer]]:
    """Replace the methods of the event stream by ones that do nothing: as if there were none."""
    with contextlib.ExitStack() as replaced:
        for name, instead in (
            ("wants", lambda *_: False),
            ("emit", lambda *_: None),
            ("trace_context", lambda *_: None),
            ("job", lambda *_: nullcontext()),
            ("request", lambda *_: nullcontext()),
        ):
            replaced.enter_context(mock.patch.object(EventStream, name, instead))
        yield []


RUNS: dict[str, Callable[[], AbstractContextManager[list[Observer]]]] = {
    "none": lambda: nullcontext([]),
    "without-events": without_events,
    "log": with_log_lines,
    "otel": with_sdk,
    "by-hand": with_observer(ByHand),
    "no-sdk": with_observer(lambda: OpenTelemetry(tracer_provider=NoOpTracerProvider())),
}


async def finished(
    url: str, tasks: int, folder: Path, transport: str, *, saves: bool, observers: list[Observer]
) -> int:
    """Run a batch and return how many of its tasks succeeded."""
    policy = PollPolicy()
    polling = PollPolicy(poll_cost_s=policy.poll_cost_s / SPEED, cap_s=policy.cap_s / SPEED)
    limits = Limits(in_flight=100, submits=10**6, window_s=1.0)
    images = (f"https://pictures.example/a/folder/of/many/{n}.jpg" for n in range(tasks))
    options = {"directory": folder / "clean"} if saves else {}
    async with (
        FluxClient(
            "test", url, limits=limits, polling=polling, transport=transport, observers=observers
        ) as client,
        run_batch(client, images, journal=folder / "journal.sqlite3", **options) as batch,
    ):
        return sum([isinstance(outcome, Succeeded) async for outcome in batch])


def cpu_ms(name: str, options: argparse.Namespace) -> float:
    """Return the CPU of a finished task of one run, of all threads of this process."""
    with tempfile.TemporaryDirectory(prefix="observers-") as folder, RUNS[name]() as observers:
        gc.collect()
        began = time.process_time()
        done = asyncio.run(
            finished(
                options.url,
                options.tasks,
                Path(folder),
                options.transport,
                saves=options.saves,
                observers=observers,
            )
        )
        spent = time.process_time() - began
    if done != options.tasks:
        raise SystemExit(f"{done} of {options.tasks} with {name}")
    return spent / done * 1000


def main() -> None:
    """Make one run that is not counted, then all in turn, in another order in every round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--transport", required=True)
    parser.add_argument("--saves", action="store_true")
    options = parser.parse_args()
    hide_sniffio()
    cpu_ms("otel", options)
    for number in range(options.rounds):
        for name in itertools.islice(itertools.cycle(RUNS), number, number + len(RUNS)):
            print(json.dumps([name, cpu_ms(name, options)]), flush=True)


if __name__ == "__main__":
    main()
