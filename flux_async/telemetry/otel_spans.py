"""Makes the spans of OpenTelemetry, each when it has ended, with the times of its event.

Nothing is held open, so that a process that is killed leaves no span without an end: all spans of a job are
children of ``flux_async.add``, which ends at once and whose context the journal keeps. A later run continues
with that context, and the run in which the job has its outcome makes ``flux_async.job``, which lasts from the
first moment to the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache, partial
from typing import TypeAlias
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flux_async.events import CallbackReceived, FluxEvent, RequestEnded, Settled

Value: TypeAlias = str | int | float | bool

SCOPE = "flux_async"
FIRST_ERROR = 400
_W3C = TraceContextTextMapPropagator()


def tracer(provider: TracerProvider | None, version: str) -> Tracer:
    """Return the tracer of this package."""
    return trace.get_tracer(SCOPE, version, tracer_provider=provider)


class Spans:
    """The spans of one observer.

    Args:
        tracer: Makes them.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._suppressing = _suppression()

    def added(self, at: float) -> str | None:
        """Make the first span of a job, in the trace of the caller if there is one; return its context."""
        moment, carrier = _ns(at), dict[str, str]()
        span = self._tracer.start_span("flux_async.add", kind=SpanKind.PRODUCER, start_time=moment)
        span.end(moment)
        _W3C.inject(carrier, trace.set_span_in_context(span))
        return carrier.get("traceparent")

    def request(self, event: RequestEnded) -> None:
        """Make the span of an HTTP request, in the trace of the coroutine that made it."""
        about = dict(address_attributes(event.origin)) | {
            "http.request.method": event.method,
            "url.full": event.origin + (event.path or ""),
        }
        name = event.method
        if event.path is not None:
            name, about["url.template"] = f"{name} {event.path}", event.path
        if event.status is not None:
            about["http.response.status_code"] = event.status
        span = self._tracer.start_span(
            name,
            kind=SpanKind.CLIENT,
            attributes=about | _about(event),
            links=[Link(context.get_span_context()) for context in map(_span_of, event.links)],
            start_time=_ns(event.at - event.seconds),
        )
        if (problem := error_type(event)) is not None:
            span.set_attribute("error.type", problem)
            span.set_status(Status(StatusCode.ERROR))
        span.end(_ns(event.at))

    def callback(self, event: CallbackReceived) -> None:
        """Make the span of a callback of a job, linked to the request that has brought it."""
        if event.trace is None:
            return
        request = trace.get_current_span().get_span_context()
        span = self._tracer.start_span(
            "flux_async.callback",
            context_of(event.trace),
            kind=SpanKind.CONSUMER,
            attributes=_about(event),
            links=[Link(request)] if request.is_valid else [],
            start_time=_ns(event.at),
        )
        span.end(_ns(event.at))

    def job(self, event: Settled) -> None:
        """Make the span of a whole job."""
        about = _about(event) | {
            "flux_async.outcome": event.outcome,
            "flux_async.final": event.is_final,
            "flux_async.charge": event.charge.value,
        }
        optional = {
            "flux_async.credits": event.credits,
            "flux_async.generation_s": event.generation_s,
            "flux_async.verdict": event.verdict,
            "flux_async.error.code": event.code,
            "error.type": event.error,
        }
        span = self._tracer.start_span(
            "flux_async.job",
            None if event.trace is None else context_of(event.trace),
            attributes=about | {name: value for name, value in optional.items() if value is not None},
            start_time=_ns(event.at if event.added_at is None else event.added_at),
        )
        if event.outcome != "succeeded":
            span.set_status(Status(StatusCode.ERROR, event.reason))
        span.end(_ns(event.at))

    # --- what runs inside of them -------------------------------------------------------------------------

    @staticmethod
    def enter_trace(context: str | None) -> Callable[[], None]:
        """Make the span with this context the current one; return what ends that."""
        if context is None:
            return lambda: None
        return partial(contexts.detach, contexts.attach(context_of(context, contexts.get_current())))

    def enter_request(self) -> Callable[[], None] | None:
        """Switch off the instrumentation of HTTP libraries; return what ends that."""
        if self._suppressing is None:
            return None
        suppressed = ExitStack()
        suppressed.enter_context(self._suppressing())
        return suppressed.close


def _suppression() -> Callable[[], AbstractContextManager[object]] | None:
    """Return what switches the instrumentation of HTTP libraries off; None without any instrumentation."""
    try:
        from opentelemetry.instrumentation.utils import suppress_http_instrumentation  # noqa: PLC0415
    except ImportError:
        return None
    suppress: Callable[[], AbstractContextManager[object]] = suppress_http_instrumentation
    return suppress


# --- contexts and attributes ------------------------------------------------------------------------------


def context_of(traceparent: str, context: Context | None = None) -> Context:
    """Return a context whose current span is the one of a ``traceparent``."""
    return _W3C.extract({"traceparent": traceparent}, context)


def _span_of(traceparent: str) -> trace.Span:
    return trace.get_current_span(context_of(traceparent))


@lru_cache(maxsize=1024)
def address_attributes(origin: str) -> Mapping[str, Value]:
    """Return host and port of an origin."""
    parts = urlsplit(origin)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname or "", "server.port": port}


def error_type(event: RequestEnded) -> str | None:
    """Return what went wrong with a request: the class of the error, or the HTTP status."""
    if event.error is not None or event.status is None or event.status < FIRST_ERROR:
        return event.error
    return str(event.status)


def _about(event: FluxEvent) -> dict[str, Value]:
    return dict(_attributes(event))


def _attributes(event: FluxEvent) -> Iterator[tuple[str, Value]]:
    for name, value in (
        ("flux_async.job.key", event.job),
        ("flux_async.image", event.image),
        ("flux_async.model", event.model),
        ("flux_async.api", event.api),
        ("flux_async.task.id", event.task_id),
        ("flux_async.attempts", event.attempt or None),
    ):
        if value is not None:
            yield name, value


def _ns(at: float) -> int:
    return int(at * 1e9)
