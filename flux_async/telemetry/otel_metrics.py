"""The instruments of OpenTelemetry.

What is counted is added up here and read by OpenTelemetry when it collects: a measurement of its own for each
of the eight counts of a job took a sixth of the observer's CPU (``benchmarks/observers.py``). Histograms are
measured one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from threading import Lock
from weakref import WeakKeyDictionary

import attrs
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from flux_async.events import (
    Halted,
    Paused,
    RateLimited,
    RequestEnded,
    Settled,
    SubmitStarted,
    Submitted,
    Verified,
)
from flux_async.telemetry.otel_spans import SCOPE, Value, address_attributes, error_type

REQUEST_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Those of the semantic conventions."""
TASK_BOUNDS_S = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.5, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0)
QUEUE_BOUNDS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)


def meter(provider: MeterProvider | None, version: str) -> Meter:
    """Return the meter of this package."""
    return metrics.get_meter(SCOPE, version, meter_provider=provider)


class Total:
    """What was counted, by the values of its attributes; called by OpenTelemetry when it collects.

    Args:
        attributes: The names of the attributes; a value that is None is left out.
    """

    def __init__(self, *attributes: str) -> None:
        self._attributes = attributes
        self._lock = Lock()  # OpenTelemetry collects in a thread of its own
        self._sums: dict[tuple[Value | None, ...], float] = {}

    def add(self, amount: float, *values: Value | None) -> None:
        """Add an amount, which may be negative, under the values of the attributes."""
        with self._lock:
            self._sums[values] = self._sums.get(values, 0) + amount

    def __call__(self, _: CallbackOptions) -> Iterator[Observation]:
        """Yield each sum with its attributes."""
        with self._lock:
            sums = tuple(self._sums.items())
        for values, amount in sums:
            named = zip(self._attributes, values, strict=True)
            yield Observation(amount, {name: value for name, value in named if value is not None})


@attrs.define(eq=False)
class Totals:
    """What all observers with one meter provider have counted.

    OpenTelemetry calls only the first function that is registered for an instrument of a name, so that
    observers of one provider must share what it reads.
    """

    active_jobs: Total = attrs.field(factory=Total, init=False)
    tasks_in_flight: Total = attrs.field(factory=Total, init=False)
    permits: Total = attrs.field(factory=Total, init=False)
    outcomes: Total = attrs.field(init=False)
    credits: Total = attrs.field(init=False)
    verdicts: Total = attrs.field(init=False)
    pauses: Total = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.outcomes = Total("flux_async.outcome", "flux_async.final", "error.type")
        self.credits = Total("flux_async.model", "flux_async.charge")
        self.verdicts = Total("flux_async.verdict")
        self.pauses = Total("flux_async.pause", "flux_async.paused")


_OF_THE_GLOBAL_PROVIDER = Totals()
_OF_OTHERS: WeakKeyDictionary[MeterProvider, Totals] = WeakKeyDictionary()


def totals(provider: MeterProvider | None) -> Totals:
    """Return what the observers with a provider have counted; None is the global one."""
    if provider is None or provider is metrics.get_meter_provider():
        return _OF_THE_GLOBAL_PROVIDER
    return _OF_OTHERS.setdefault(provider, Totals())


class Metrics:
    """The instruments of one observer.

    Args:
        meter: Makes them.
        totals: What is counted.
    """

    def __init__(self, meter: Meter, totals: Totals) -> None:
        counter, up_down = meter.create_observable_counter, meter.create_observable_up_down_counter
        active, tasks = totals.active_jobs, totals.tasks_in_flight
        up_down("flux_async.job.active", [active], "{job}", "Jobs that clients work on.")
        up_down("flux_async.task.in_flight", [tasks], "{task}", "Tasks without a known end.")
        permits = [totals.permits]
        counter("flux_async.submit.permits", permits, "{permit}", "Permits used: submits made.")
        counter("flux_async.job.outcomes", [totals.outcomes], "{job}", "Outcomes of jobs.")
        priced = "Price of submits that were charged, or may have been."
        counter("flux_async.credits", [totals.credits], "{credit}", priced)
        counter("flux_async.verdicts", [totals.verdicts], "{image}", "What verify has found.")
        counter("flux_async.pauses", [totals.pauses], "{pause}", "Pauses and halts of requests.")
        self._totals = totals
        self._queue_s = _seconds(
            meter, "flux_async.job.queue.duration", "From adding a job to its first permit.", QUEUE_BOUNDS_S
        )
        self._lag_s = _seconds(
            meter, "flux_async.task.detection.lag", "From the end of a task to its detection.", TASK_BOUNDS_S
        )
        self._generation_s = _seconds(
            meter, "flux_async.task.generation.duration", "Of tasks, by the vendor's clock.", TASK_BOUNDS_S
        )
        self._request_s = _seconds(
            meter, "http.client.request.duration", "Duration of HTTP client requests.", REQUEST_BOUNDS_S
        )

    def job_began(self) -> None:
        """Count a job that is worked on."""
        self._totals.active_jobs.add(1)

    def job_ended(self) -> None:
        """Count it no more."""
        self._totals.active_jobs.add(-1)

    def task_began(self) -> None:
        """Count a task whose end is not known."""
        self._totals.tasks_in_flight.add(1)

    def task_ended(self, lag_s: float | None = None) -> None:
        """Count it no more, and record how long it took to find its end, if a poll has."""
        self._totals.tasks_in_flight.add(-1)
        if lag_s is not None:
            self._lag_s.record(lag_s)

    def request_ended(self, event: RequestEnded) -> None:
        """Record an HTTP request."""
        about = _of_request(event.method, event.origin, event.path, event.status, error_type(event))
        self._request_s.record(event.seconds, about)

    def settled(self, event: Settled) -> None:
        """Record the outcome of a job, and how long its task took once that is final."""
        self._totals.outcomes.add(1, event.outcome, event.is_final, event.error)
        if event.is_final and event.generation_s is not None:
            self._generation_s.record(event.generation_s, _of_model(event.model))

    def submit_started(self, event: SubmitStarted) -> None:
        """Record a permit, and how long a job has waited for its first one."""
        self._totals.permits.add(1)
        if event.attempt == 1 and event.added_at is not None:
            self._queue_s.record(max(0.0, event.at - event.added_at))

    def submitted(self, event: Submitted) -> None:
        """Record what a submit has cost, or may have."""
        if event.credits is not None:
            self._totals.credits.add(event.credits, event.model, event.charge.value)

    def verified(self, event: Verified) -> None:
        """Record a verdict, or a check that could not be made."""
        self._totals.verdicts.add(1, event.verdict or "not_checked")

    def paused(self, event: RateLimited | Paused | Halted) -> None:
        """Record that requests pause, or that they are halted."""
        kind, what = {RateLimited: "rate_limited", Paused: "paused", Halted: "halted"}, "submits"
        if not isinstance(event, RateLimited):
            what = event.what
        self._totals.pauses.add(1, kind[type(event)], what)


@lru_cache(maxsize=1024)
def _of_request(
    method: str, origin: str, path: str | None, status: int | None, problem: str | None
) -> dict[str, Value]:
    optional = {"url.template": path, "http.response.status_code": status, "error.type": problem}
    found = {"http.request.method": method, **address_attributes(origin)}
    return found | {name: value for name, value in optional.items() if value is not None}


@lru_cache(maxsize=64)
def _of_model(model: str | None) -> dict[str, Value]:
    return {} if model is None else {"flux_async.model": model}


def _seconds(meter: Meter, name: str, words: str, bounds: tuple[float, ...]) -> Histogram:
    return meter.create_histogram(name, "s", words, explicit_bucket_boundaries_advisory=bounds)
