"""Spans and metrics of calls and batches, with OpenTelemetry's own SDK and exporters."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.trace import SpanKind, StatusCode

from check_workers import CLEAN, CheckWorkers
from flux_async import (
    CheckFailed,
    EditRequest,
    FluxError,
    ImageStream,
    InDoubt,
    Job,
    JobService,
    MissingExtra,
    OpenTelemetry,
    Succeeded,
    VerdictKind,
    events,
    run_batch,
)
from flux_async.journal.inbox import Inbox
from flux_async.models import JobKey
from flux_async.telemetry.otel_metrics import totals
from flux_async.testing import FluxSandbox, VirtualClock
from flux_async.transport import Unknown
from telemetry import Telemetry, orphans, traces_of

URL = "https://example.com/poster.jpg?signature=secret"
POST, POLL = "POST /api/v1/flux/kontext/generate", "GET /api/v1/flux/kontext/record-info"


@pytest.fixture
def seen() -> Telemetry:
    """What an observer makes."""
    return Telemetry()


@pytest.fixture
def observed(client: Any, seen: Telemetry) -> Any:
    """A client with that observer."""
    client.session.events.attach(seen.observer)
    return client


async def run(client: Any, images: list[str], **options: Any) -> list[Any]:
    """Run a batch to its end."""
    async with run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


# --- traces -----------------------------------------------------------------------------------------------


async def test_a_job_has_one_trace_across_a_restart_and_a_webhook(calling: Any, tmp_path: Path) -> None:
    """Each run has an observer of its own; the first one ends in the middle, as a process that is killed."""
    path, runs = tmp_path / "run.sqlite3", (Telemetry(), Telemetry())
    calling.generation_s = 10_000.0
    async with calling.client(observers=[runs[0].observer]) as client:
        running = asyncio.get_running_loop().create_task(calling.collect(client, path))
        while len(runs[0].named(POST)) < 12:
            await calling.sleep(0.1)
        running.cancel()
        await asyncio.wait([running])
    clock = calling.clock
    async with calling.client(observers=[runs[1].observer]) as client, Inbox(path, clock=clock) as webhook:
        running = asyncio.get_running_loop().create_task(calling.collect(client, path))
        while runs[1].total("flux_async_job_active") < 12:
            await calling.sleep(0.1)
        for task in calling.tasks:
            task.ready_at = calling.now()
            await calling.call_back(task, inbox=webhook)
        outcomes = await running
    assert calling.submits == 12
    spans = [span for each in runs for span in each.spans]
    traces = traces_of(spans)
    jobs = [span for span in spans if span.name == "flux_async.job"]
    assert len(traces) == len(jobs) == len(traces_of(jobs)) == 12
    for name in ("flux_async.add", POST):
        assert traces_of(runs[0].named(name)) == traces
        assert runs[1].named(name) == []
    keys = {outcome.job.key for outcome in outcomes} | {
        span.attributes["flux_async.job.key"] for span in jobs
    }
    assert len(keys) == 12
    assert orphans(spans) == []
    assert traces_of(runs[1].named("flux_async.callback")) == traces
    ended = {span.context.trace_id: span for span in jobs}
    for span in (*runs[0].named(POST), *runs[1].named(POLL)):
        job = ended[span.context.trace_id]
        assert job.start_time <= span.start_time <= span.end_time <= job.end_time


async def test_a_call_is_part_of_the_trace_of_its_caller(observed: Any, vendor: Any, seen: Any) -> None:
    """A web backend's request, say; nothing of it is left current afterwards."""
    tracer = seen.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("request"):
        await observed.remove_text(URL)
        with tracer.start_as_current_span("after"):
            pass
    await observed.credits()
    (request,), (after,) = seen.named("request"), seen.named("after")
    (balance,) = seen.named("GET /api/v1/chat/credit")
    assert traces_of(seen.spans) == {request.context.trace_id, balance.context.trace_id}
    assert after.parent == request.context
    assert balance.parent is None
    names = ["flux_async.add", POST, POLL, POLL, "flux_async.job", "after", "request"]
    assert [span.name for span in seen.spans[:-1]] == names
    assert orphans(seen.spans) == []


async def test_a_job_of_a_service_is_part_of_the_trace_of_its_request(
    observed: Any, vendor: Any, seen: Any, tmp_path: Path
) -> None:
    """The request has ended long before; another process may finish the job."""
    async with JobService(observed, journal=tmp_path / "jobs.sqlite3") as service:
        with seen.tracer_provider.get_tracer("app").start_as_current_span("POST /images"):
            key = await service.add(URL)
        assert await service.add(URL) == key
        await service.result(key)
    (request,), (job,) = seen.named("POST /images"), seen.named("flux_async.job")
    assert len(seen.named("flux_async.add")) == 1
    assert traces_of([request]) == traces_of([job]) == traces_of(seen.named(POST, POLL))
    assert orphans(seen.spans) == []
    assert seen.total("flux_async_job_queue_duration_seconds_count") == 1
    assert seen.total("flux_async_job_active") == 0


def test_a_trace_of_another_kind_leaves_that_of_the_caller(seen: Telemetry) -> None:
    """The journal keeps what the first observer has said, which may not be OpenTelemetry's."""
    tracer = seen.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("request") as request:
        leave = seen.observer.enter_job(JobKey("k"), "no traceparent")
        assert trace.get_current_span() is request
        leave()


async def test_the_jobs_of_a_batch_have_traces_of_their_own(observed: Any, vendor: Any, seen: Any) -> None:
    """Thousands of jobs in the trace of the task that runs the batch would be too large a trace."""
    with seen.tracer_provider.get_tracer("app").start_as_current_span("nightly"):
        await run(observed, [f"https://example.com/{n}.jpg" for n in range(3)])
    assert len(traces_of(seen.named("flux_async.job"))) == 3
    assert not traces_of(seen.named("flux_async.job")) & traces_of(seen.named("nightly"))


async def test_what_a_sink_does_is_in_the_trace_of_the_job(clock: VirtualClock, seen: Telemetry) -> None:
    """So are the log lines of an instrumented logger: the job's trace is the current one."""

    class Uploading:
        async def save(self, job: Job, image: ImageStream) -> str:
            with seen.tracer_provider.get_tracer("app").start_as_current_span("put object"):
                return job.key

    with FluxSandbox(clock=clock) as sandbox:
        async with sandbox.client(observers=[seen.observer]) as client:
            assert [type(each) for each in await run(client, [URL], sink=Uploading())] == [Succeeded]
    assert traces_of(seen.named("put object")) == traces_of(seen.named("flux_async.job"))
    (download,) = seen.named("GET")
    assert download.attributes is not None
    assert download.attributes["url.full"] == "https://sandbox.test"
    assert traces_of([download]) == traces_of(seen.named("flux_async.job"))


async def test_a_poll_that_serves_two_jobs_is_linked_to_the_other(
    observed: Any, vendor: Any, seen: Any
) -> None:
    """It is made once, in the trace of the one that is due."""
    task, clock = await observed.submit(EditRequest.text_removal(URL)), observed.session.clock
    traces = [seen.observer.trace_context(clock.wall()) for _ in range(2)]
    about = {
        "api": "kontext",
        "policy": observed.polling,
        "timeout_s": 300.0,
        "deadline": clock.monotonic() + 300,
    }

    async def wait(trace: str) -> None:
        leave = seen.observer.enter_job("k", trace)
        await observed.poller.wait(task, trace=trace, **about)
        leave()

    async with asyncio.TaskGroup() as group:
        for trace in traces:
            group.create_task(wait(trace))
    for poll in seen.named(POLL):
        linked = {link.context.span_id for link in poll.links} | {poll.parent.span_id}
        assert linked == {int(trace.split("-")[2], 16) for trace in traces}
        assert poll.attributes["flux_async.task.id"] == task


async def test_a_callback_is_linked_to_the_request_that_brought_it(
    observed: Any, vendor: Any, seen: Any
) -> None:
    """It is in the trace of the job; one of an unknown task has no span."""
    tracer = seen.tracer_provider.get_tracer("app")
    async with asyncio.TaskGroup() as group:
        call = group.create_task(observed.remove_text(URL))
        while not seen.named(POLL):
            await vendor.sleep(0.1)
        with tracer.start_as_current_span("POST /callback"):
            observed.notify("t0")
            observed.notify("t99")
        await call
    (callback,), (request,) = seen.named("flux_async.callback"), seen.named("POST /callback")
    assert traces_of([callback]) == traces_of(seen.named("flux_async.job"))
    assert [link.context for link in callback.links] == [request.context]
    assert callback.kind is SpanKind.CONSUMER


async def test_spans_tell_what_went_wrong(observed: Any, vendor: Any, seen: Any, make: Any) -> None:
    """An HTTP status, a lost answer, an exception; and the outcome of the job."""
    vendor.script["generate"] = [
        make.answer(None, 500, status=500),
        Unknown("dropped"),
        make.answer(None, 422),
    ]
    for outcome in ("in_doubt", "in_doubt", "failed"):
        with pytest.raises(FluxError):
            await observed.remove_text(URL)
        job = seen.named("flux_async.job")[-1]
        assert job.attributes["flux_async.outcome"] == outcome
        assert job.status.status_code is StatusCode.ERROR
        assert job.status.description
    problems = [span.attributes.get("error.type") for span in seen.named(POST)]
    assert problems == ["500", "ConnectionLost", None]
    assert [span.status.status_code for span in seen.named(POST)][2] is StatusCode.UNSET

    async def fail(_: object, **__: object) -> None:
        raise ZeroDivisionError

    vendor.exchange = fail
    with pytest.raises(ZeroDivisionError):
        await observed.credits()
    assert seen.spans[-1].attributes["error.type"] == "ZeroDivisionError"


# --- beside other instrumentation -------------------------------------------------------------------------


@pytest.fixture
def instrumented(seen: Telemetry) -> Iterator[None]:
    """OpenTelemetry's own instrumentation of httpx."""
    HTTPXClientInstrumentor().instrument(tracer_provider=seen.tracer_provider)
    yield
    HTTPXClientInstrumentor().uninstrument()


@pytest.mark.usefixtures("instrumented")
async def test_a_request_has_one_span_beside_the_instrumentation_of_httpx(seen: Telemetry) -> None:
    """The instrumentation makes those of a client without the observer, and of the application."""
    with FluxSandbox(sockets=True) as sandbox:
        async with sandbox.client(transport="httpx") as client:
            await client.credits()
        assert [span.instrumentation_scope.name for span in seen.spans] == [
            "opentelemetry.instrumentation.httpx"
        ]
        async with sandbox.client(transport="httpx", observers=[seen.observer]) as client:
            await client.credits()
        assert [span.instrumentation_scope.name for span in seen.spans[1:]] == ["flux_async"]
        async with httpx.AsyncClient() as application:
            await application.get(f"{sandbox.url}/__sandbox/ledger")
        assert len(seen.spans) == 3


async def test_without_instrumentation_nothing_is_suppressed(
    monkeypatch: pytest.MonkeyPatch, client: Any, vendor: Any
) -> None:
    """The package that could be told is not installed."""
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.utils", None)
    seen = Telemetry()
    client.session.events.attach(seen.observer)
    await client.credits()
    assert len(seen.spans) == 1
    assert seen.observer.enter_request() is None


async def test_without_an_sdk_nothing_is_made(client: Any, vendor: Any) -> None:
    """Spans and metrics go to the global providers, which do nothing until the application sets them."""
    client.session.events.attach(OpenTelemetry())
    assert client.session.events.trace_context(1.0) is None
    assert [type(outcome) for outcome in await run(client, [URL])] == [Succeeded]


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself does not need it."""
    monkeypatch.delitem(sys.modules, "flux_async.telemetry.otel_spans", raising=False)
    monkeypatch.delitem(sys.modules, "flux_async.telemetry.otel_metrics", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtra, match="the extra otel"):
        OpenTelemetry()


# --- metrics ----------------------------------------------------------------------------------------------


async def test_metrics_agree_with_the_ledger(clock: VirtualClock, seen: Telemetry, tmp_path: Path) -> None:
    """Submits, polls, credits and outcomes, where the vendor refuses and fails."""
    images = [f"https://example.com/{n}.jpg" for n in range(40)]
    with FluxSandbox(clock=clock, faults="http-429:10%,fail-501:20%") as sandbox:
        async with sandbox.client(observers=[seen.observer]) as client:
            outcomes = await run(
                client, images, directory=tmp_path / "clean", journal=tmp_path / "run.sqlite3"
            )
            assert (
                await run(client, images, directory=tmp_path / "clean", journal=tmp_path / "run.sqlite3")
                == []
            )
        ledger, tasks = sandbox.ledger.read(), sandbox.record()["tasks"]
    total = seen.total
    succeeded = sum(isinstance(each, Succeeded) for each in outcomes)
    assert 0 < succeeded < 40
    assert ledger.submits > ledger.accepted
    assert total("flux_async_submit_permits_total") == ledger.submits
    assert total("flux_async_job_outcomes_total", flux_async_outcome="succeeded") == succeeded
    assert total("flux_async_job_outcomes_total") == len(outcomes) == 40
    assert total("flux_async_credits_total", flux_async_charge="yes") == ledger.charged
    assert total("flux_async_credits_total", flux_async_charge="maybe") == 0
    lag, generation = "flux_async_task_detection_lag_seconds", "flux_async_task_generation_duration_seconds"
    took = [task["endedAt"] - task["createdAt"] for task in tasks if task["state"] == "SUCCESS"]
    assert total(f"{generation}_count") == len(took) == succeeded
    assert total(f"{generation}_sum") == pytest.approx(sum(took), abs=len(took))
    assert total(f"{lag}_count") == ledger.accepted
    assert 0 < total(f"{lag}_sum") < 5.0 * ledger.accepted
    waited = "flux_async_job_queue_duration_seconds"
    assert total(f"{waited}_count") == 40
    assert 0 < total(f"{waited}_bucket", le="0.5") < 40, "the rate limit makes the others wait"
    requests = "http_client_request_duration_seconds_count"
    assert total(requests, url_template="/api/v1/flux/kontext/generate") == ledger.submits
    assert total(requests, url_template="/api/v1/flux/kontext/record-info") == ledger.polls
    assert total("flux_async_pauses_total", flux_async_pause="rate_limited") == ledger.refused[429]
    assert total("flux_async_job_active") == total("flux_async_task_in_flight") == 0


def test_observers_of_one_provider_are_counted_together(seen: Telemetry) -> None:
    """An application may have a client, and so an observer, for each of several API keys."""
    other = OpenTelemetry(meter_provider=seen.meter_provider)
    for observer in (seen.observer, other):
        observer(events.Submitted(at=1.0, model="flux-kontext-pro", credits=5.0))
    assert seen.total("flux_async_credits_total", flux_async_charge="yes") == 10.0
    assert totals(None) is totals(metrics.get_meter_provider()) is not totals(seen.meter_provider)


async def test_verdicts_are_counted_by_what_verify_has_found(
    observed: Any, hosted: Any, seen: Telemetry, tmp_path: Path
) -> None:
    """So are checks that could not be made."""
    found = iter([VerdictKind.CLEAN, VerdictKind.TEXT_LEFT, None, VerdictKind.CLEAN])

    def behave(_: str, __: Path) -> None:
        kind = next(found)
        if kind is None:
            raise CheckFailed("It is odd.")
        workers.verdict = attrs.evolve(CLEAN, kind=kind)

    workers = CheckWorkers(behave)
    images = [f"https://example.com/{n}.jpg" for n in range(4)]
    await run(observed, images, directory=tmp_path, verify=True, checks=workers)
    counted = {
        verdict: seen.total("flux_async_verdicts_total", flux_async_verdict=verdict)
        for verdict in ("clean", "text_left", "not_checked")
    }
    assert counted == {"clean": 2, "text_left": 1, "not_checked": 1}
    assert seen.total("flux_async_verdicts_total") == 4


async def test_what_is_in_flight_is_seen_while_it_is(observed: Any, vendor: Any, seen: Any) -> None:
    """A run that ends early leaves nothing behind in the figures."""
    vendor.generation_s = 1e6
    async with run_batch(observed, [URL, f"{URL}2"]):
        while seen.total("flux_async_task_in_flight") < 2:
            await vendor.sleep(0.1)
        assert seen.total("flux_async_job_active") == 2
    assert seen.total("flux_async_task_in_flight") == seen.total("flux_async_job_active") == 0
    assert seen.total("flux_async_job_outcomes_total") == 0


async def test_a_resumed_task_is_in_flight_and_settled_once(
    observed: Any, vendor: Any, seen: Any, tmp_path: Path
) -> None:
    """Its submit was counted by the process that made it."""
    path, vendor.generation_s = tmp_path / "run.sqlite3", 1e6
    async with run_batch(observed, [URL], journal=path):
        while not seen.total("flux_async_task_in_flight"):
            await vendor.sleep(0.1)
    later, vendor.generation_s = Telemetry(), None
    async with vendor.client(observers=[later.observer]) as client:
        await run(client, [URL], journal=path)
    assert later.total("flux_async_submit_permits_total") == later.total("flux_async_task_in_flight") == 0
    assert later.total("flux_async_job_outcomes_total", flux_async_outcome="succeeded") == 1


async def test_outcomes_have_their_class(observed: Any, transport: Any, seen: Any) -> None:
    """In doubt is no final outcome."""
    transport.script["generate"] = [Unknown("dropped")]
    assert [type(outcome) for outcome in await run(observed, [URL])] == [InDoubt]
    labels = {"flux_async_outcome": "in_doubt", "flux_async_final": "false", "error_type": "ConnectionLost"}
    assert seen.total("flux_async_job_outcomes_total", **labels) == 1
