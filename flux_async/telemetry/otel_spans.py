"""Makes the spans of OpenTelemetry, each when it has ended, with the times of its event.

Nothing is held open, so that a process that is killed leaves no span without an end: all spans of a job are
children of ``flux_async.add``, which ends at once and whose context the journal keeps. A later run continues
with that context, and the run in which the job has its outcome makes ``flux_async.job``, which lasts from the
first moment to the last one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import TypeAlias
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flux_async.events import CallbackReceived, FluxEvent, RequestEnded, Settled

Value: TypeAlias = str | int | float | bool

SCOPE = "flux_async"
FIRST_ERROR = 400
_W3C = TraceContextTextMapPropagator()
_ERROR = Status(StatusCode.ERROR)


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

    def added(self, at: float) -> str | None:
        """Make the first span of a job, in the trace of the caller if there is one; return its context."""
        moment = _ns(at)
        span = self._tracer.start_span("flux_async.add", kind=SpanKind.PRODUCER, start_time=moment)
        span.end(moment)
        return _traceparent(span.get_span_context())

    def request(self, event: RequestEnded) -> None:
        """Make the span of an HTTP request, in the trace of the coroutine that made it."""
        name, about = _of_request(event.method, event.origin, event.path)
        about = about | _about(event)
        if event.status is not None:
            about["http.response.status_code"] = event.status
        if (problem := error_type(event)) is not None:
            about["error.type"] = problem
        span = self._tracer.start_span(
            name,
            kind=SpanKind.CLIENT,
            attributes=about,
            links=[Link(_span_of(trace).get_span_context()) for trace in event.links],
            start_time=_ns(event.at - event.seconds),
        )
        if problem is not None:
            span.set_status(_ERROR)
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
        optional = (
            ("flux_async.credits", event.credits),
            ("flux_async.generation_s", event.generation_s),
            ("flux_async.verdict", event.verdict),
            ("flux_async.error.code", event.code),
            ("error.type", event.error),
        )
        span = self._tracer.start_span(
            "flux_async.job",
            None if event.trace is None else context_of(event.trace),
            attributes=about | {name: value for name, value in optional if value is not None},
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

    @staticmethod
    def enter_request() -> Callable[[], object] | None:
        """Switch off the instrumentation of HTTP libraries; return what ends that. None without any."""
        instrumentation = sys.modules.get("opentelemetry.instrumentation.utils")
        if instrumentation is None:
            return None  # each instrumentation imports it
        suppressed: AbstractContextManager[object] = instrumentation.suppress_http_instrumentation()
        suppressed.__enter__()
        return partial(suppressed.__exit__, None, None, None)


# --- contexts and attributes ------------------------------------------------------------------------------


def context_of(traceparent: str, context: Context | None = None) -> Context:
    """Return a context whose current span is the one of a ``traceparent``, if that is one."""
    span = _span_of(traceparent)
    if span.get_span_context().is_valid:
        return trace.set_span_in_context(span, Context() if context is None else context)
    return Context() if context is None else context


@lru_cache(maxsize=1024)
def _span_of(traceparent: str) -> trace.Span:
    return trace.get_current_span(_W3C.extract({"traceparent": traceparent}, Context()))


def _traceparent(span: SpanContext) -> str | None:
    """Return the W3C form of a span's context, which is shorter to write than with a propagator."""
    if not span.is_valid:
        return None
    ids = f"{trace.format_trace_id(span.trace_id)}-{trace.format_span_id(span.span_id)}"
    return f"00-{ids}-{span.trace_flags:02x}"


@lru_cache(maxsize=1024)
def _of_request(method: str, origin: str, path: str | None) -> tuple[str, dict[str, Value]]:
    """Return the name of a request's span, and the attributes that all such requests have."""
    about = {
        **address_attributes(origin),
        "http.request.method": method,
        "url.full": origin + (path or ""),
    }
    return (method, about) if path is None else (f"{method} {path}", about | {"url.template": path})


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
    attributes = (
        ("flux_async.job.key", event.job),
        ("flux_async.image", event.image),
        ("flux_async.model", event.model),
        ("flux_async.api", event.api),
        ("flux_async.task.id", event.task_id),
        ("flux_async.attempts", event.attempt or None),
    )
    return {name: value for name, value in attributes if value is not None}


def _ns(at: float) -> int:
    return int(at * 1e9)
