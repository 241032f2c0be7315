"""The instruments of OpenTelemetry."""

from __future__ import annotations

from opentelemetry import metrics
from opentelemetry.metrics import Histogram, Meter, MeterProvider, UpDownCounter

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


class Metrics:
    """The instruments of one observer.

    Args:
        meter: Makes them.
    """

    def __init__(self, meter: Meter) -> None:
        counter, up_down = meter.create_counter, meter.create_up_down_counter
        self.active_jobs: UpDownCounter = up_down(
            "flux_async.job.active", "{job}", "Jobs that clients work on."
        )
        self.tasks_in_flight: UpDownCounter = up_down(
            "flux_async.task.in_flight", "{task}", "Tasks without a known end."
        )
        self._permits = counter("flux_async.submit.permits", "{permit}", "Permits used: submits made.")
        self._queue_s = _seconds(
            meter, "flux_async.job.queue.duration", "From adding a job to its first permit.", QUEUE_BOUNDS_S
        )
        self.lag_s: Histogram = _seconds(
            meter, "flux_async.task.detection.lag", "From the end of a task to its detection.", TASK_BOUNDS_S
        )
        self._generation_s = _seconds(
            meter, "flux_async.task.generation.duration", "Of tasks, by the vendor's clock.", TASK_BOUNDS_S
        )
        self._request_s = _seconds(
            meter, "http.client.request.duration", "Duration of HTTP client requests.", REQUEST_BOUNDS_S
        )
        self._outcomes = counter("flux_async.job.outcomes", "{job}", "Outcomes of jobs.")
        self._credits = counter(
            "flux_async.credits", "{credit}", "Price of submits that were charged, or may have been."
        )
        self._verdicts = counter("flux_async.verdicts", "{image}", "What verify has found.")
        self._pauses = counter("flux_async.pauses", "{pause}", "Pauses and halts of requests.")

    def request_ended(self, event: RequestEnded) -> None:
        """Record an HTTP request."""
        about = dict(address_attributes(event.origin)) | {"http.request.method": event.method}
        if event.path is not None:
            about["url.template"] = event.path
        if event.status is not None:
            about["http.response.status_code"] = event.status
        if (problem := error_type(event)) is not None:
            about["error.type"] = problem
        self._request_s.record(event.seconds, about)

    def settled(self, event: Settled) -> None:
        """Record the outcome of a job, and how long its task took once that is final."""
        about: dict[str, Value] = {"flux_async.outcome": event.outcome, "flux_async.final": event.is_final}
        if event.error is not None:
            about["error.type"] = event.error
        self._outcomes.add(1, about)
        if event.is_final and event.generation_s is not None:
            self._generation_s.record(event.generation_s, _of_model(event.model))

    def submit_started(self, event: SubmitStarted) -> None:
        """Record a permit, and how long a job has waited for its first one."""
        self._permits.add(1)
        if event.attempt == 1 and event.added_at is not None:
            self._queue_s.record(max(0.0, event.at - event.added_at))

    def submitted(self, event: Submitted) -> None:
        """Record what a submit has cost, or may have."""
        if event.credits is not None:
            self._credits.add(
                event.credits, _of_model(event.model) | {"flux_async.charge": event.charge.value}
            )

    def verified(self, event: Verified) -> None:
        """Record a verdict, or a check that could not be made."""
        self._verdicts.add(1, {"flux_async.verdict": event.verdict or "not_checked"})

    def paused(self, event: RateLimited | Paused | Halted) -> None:
        """Record that requests pause, or that they are halted."""
        kind, what = {RateLimited: "rate_limited", Paused: "paused", Halted: "halted"}, "submits"
        if not isinstance(event, RateLimited):
            what = event.what
        self._pauses.add(1, {"flux_async.pause": kind[type(event)], "flux_async.paused": what})


def _of_model(model: str | None) -> dict[str, Value]:
    return {} if model is None else {"flux_async.model": model}


def _seconds(meter: Meter, name: str, words: str, bounds: tuple[float, ...]) -> Histogram:
    return meter.create_histogram(name, "s", words, explicit_bucket_boundaries_advisory=bounds)
