"""OpenTelemetry: spans and metrics of a client, from its events (extra ``otel``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from flux_async.errors import MissingExtra
from flux_async.events import (
    CallbackReceived,
    FluxEvent,
    Halted,
    JobAdded,
    Paused,
    Polled,
    RateLimited,
    RequestEnded,
    Retried,
    Settled,
    SubmitStarted,
    Submitted,
    Verified,
)
from flux_async.job_state import FINAL, JobState
from flux_async.models import JobKey, TaskStatus

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


_WITHOUT_END = frozenset({None, TaskStatus.GENERATING.name})


class OpenTelemetry:
    """An observer that makes spans and metrics: ``FluxClient(observers=[OpenTelemetry()])``.

    One observes any number of clients. Spans and metrics are those of ``docs/observability.md``. Neither has
    the key, a query, or the address of a result.

    Args:
        tracer_provider: Receives the spans; left out, the global one.
        meter_provider: Receives the metrics; left out, the global one.

    Raises:
        MissingExtra: The extra ``otel`` is not installed.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        try:
            from flux_async.telemetry.otel_metrics import Metrics, meter, totals  # noqa: PLC0415 - an extra
            from flux_async.telemetry.otel_spans import Spans, tracer  # noqa: PLC0415 - as above
        except ImportError as missing:
            raise MissingExtra.for_extra(f"OpenTelemetry ({missing.name} not installed)", "otel") from missing
        from flux_async import __version__  # noqa: PLC0415 - the package imports this module

        self._spans: Spans = Spans(tracer(tracer_provider, __version__))
        self._metrics: Metrics = Metrics(meter(meter_provider, __version__), totals(meter_provider))
        self._jobs: dict[JobKey, _ActiveJob] = {}
        self._handlers: dict[type[FluxEvent], Callable[[Any], None]] = {
            CallbackReceived: self._spans.callback,
            Halted: self._metrics.paused,
            JobAdded: self._added,
            Paused: self._metrics.paused,
            Polled: self._polled,
            RateLimited: self._metrics.paused,
            RequestEnded: self._request_ended,
            Retried: self._retried,
            Settled: self._settled,
            SubmitStarted: self._submit_started,
            Submitted: self._submitted,
            Verified: self._metrics.verified,
        }

    def wants(self, kind: type[FluxEvent]) -> bool:
        """Return whether spans or metrics are made of events of this class."""
        return kind in self._handlers

    def trace_context(self, at: float) -> str | None:
        """Begin the trace of a job that was added ``at``; return its context as a W3C ``traceparent``."""
        return self._spans.added(at)

    def enter_job(self, job: JobKey, trace: str | None) -> Callable[[], None]:
        """Make the trace of a job the current one, and count the job among those that are worked on."""
        leave = self._spans.enter_trace(trace)
        if job not in self._jobs:
            self._jobs[job] = _ActiveJob()
            self._metrics.job_began()

        def left() -> None:
            self._forget(job)  # also where the run has left it without an outcome
            leave()

        return left

    def enter_request(self) -> Callable[[], object] | None:
        """Let no instrumentation of an HTTP library make a second span of a request."""
        return self._spans.enter_request()

    def __call__(self, event: FluxEvent, /) -> None:
        """Make a span of an event, or record it in the metrics."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _request_ended(self, event: RequestEnded) -> None:
        self._spans.request(event)
        self._metrics.request_ended(event)

    # --- jobs ---------------------------------------------------------------------------------------------

    def _added(self, event: JobAdded) -> None:
        job = None if event.job is None else self._jobs.get(event.job)
        if job is None:
            return  # a service has added it to its queue
        job.was_final = event.state in FINAL
        if event.state is JobState.SUBMITTED:
            self._task_began(event)

    def _submit_started(self, event: SubmitStarted) -> None:
        self._metrics.submit_started(event)
        if event.job in self._jobs:
            self._jobs[event.job].was_final = False

    def _submitted(self, event: Submitted) -> None:
        self._metrics.submitted(event)
        if event.task_id is not None:
            self._task_began(event)

    def _polled(self, event: Polled) -> None:
        if event.status not in _WITHOUT_END:
            self._task_ended(event, event.lag_s)

    def _retried(self, event: Retried) -> None:
        if event.what == "task":
            self._task_ended(event)

    def _settled(self, event: Settled) -> None:
        self._spans.job(event)
        job = None if event.job is None else self._jobs.get(event.job)
        if job is None or not job.was_final:  # else it was only checked once more
            self._metrics.settled(event)
        self._forget(event.job)

    def _forget(self, key: JobKey | None) -> None:
        job = None if key is None else self._jobs.pop(key, None)
        if job is not None:
            self._metrics.job_ended()
            if job.has_task:
                self._metrics.task_ended()

    def _task_began(self, event: FluxEvent) -> None:
        job = None if event.job is None else self._jobs.get(event.job)
        if job is not None and not job.has_task:
            job.has_task = True
            self._metrics.task_began()

    def _task_ended(self, event: FluxEvent, lag_s: float | None = None) -> None:
        job = None if event.job is None else self._jobs.get(event.job)
        if job is not None and job.has_task:
            job.has_task = False
            self._metrics.task_ended(lag_s)


@attrs.define
class _ActiveJob:
    """A job that a client works on.

    Attributes:
        was_final: Whether an earlier run has settled it, and this one only checks its image.
        has_task: Whether it has a task whose end is not known.
    """

    was_final: bool = False
    has_task: bool = False
