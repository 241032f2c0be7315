"""A job service over the engine on a real PostgreSQL: several services in this process share its jobs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from flux_async import (
    AlreadySubmitted,
    ConfigurationError,
    Failed,
    FluxClient,
    InvalidInput,
    JobCancelled,
    JobConflictError,
    JobService,
    JobState,
    JobStatus,
    JournalError,
    Limits,
    PollPolicy,
    QueueFull,
    Succeeded,
    UnknownJob,
    events,
)
from flux_async.testing import FluxSandbox
from servers import Bucket, Postgres, RunningServer
from tests.support.file_host import JPEG

pytest.importorskip("dbos", reason="the extra engine is not installed")
from flux_async.engine import Engine, service_backend, service_reader

POLLING = PollPolicy(first_s=0.1, interval_s=0.1, jitter=0)
LIMITS = Limits(submits=1000, window_s=10)
URLS = [f"https://example.com/{number}.jpg" for number in range(20)]

Make: TypeAlias = Callable[..., JobService]


class Tracing:
    """An observer that begins the trace of each job."""

    def __call__(self, event: events.FluxEvent) -> None:
        """Take an event."""

    def trace_context(self, at: float) -> str:
        """Return the context of a new trace."""
        return f"trace of {at}"


@pytest.fixture
def sandbox() -> Iterator[FluxSandbox]:
    """The vendor, a hundred times as fast."""
    with FluxSandbox(sockets=True, webhook_key=None) as vendor:
        yield vendor


@pytest.fixture
def replica(fresh_dsn: str, sandbox: FluxSandbox, tmp_path: Path) -> Make:
    """Make a service that works on the jobs beside those that are there already."""

    def make(**options: Any) -> JobService:
        client = FluxClient(sandbox.key, sandbox.url, limits=LIMITS, polling=POLLING, observers=[Tracing()])
        return JobService(client, engine=fresh_dsn, directory=tmp_path / "results", **options)

    return make


@pytest.fixture
async def enqueuing(fresh_dsn: str, tmp_path: Path) -> AsyncIterator[JobService]:
    """An open service without a client, as of a web process without a key."""
    async with JobService(engine=fresh_dsn, directory=tmp_path / "results") as service:
        yield service


async def test_a_job_of_one_process_is_done_by_another_and_answered_by_both(
    replica: Make, enqueuing: JobService, sandbox: FluxSandbox, tmp_path: Path
) -> None:
    """Each reader has the addition, the submit and the outcome of each job once."""
    seen: list[Any] = []

    async def read(service: JobService) -> None:
        async for event in service.events():
            seen.append((service, event))

    async with asyncio.TaskGroup() as group:
        first = await enqueuing.add(URLS[0], key="order-17")
        assert await enqueuing.add(URLS[0], key="order-17") == first
        found = await enqueuing.get(first)
        assert isinstance(found, JobStatus)
        assert (found.key, found.state, found.attempts) == ("order-17", JobState.PENDING, 0)
        async with replica() as working:
            assert isinstance(await enqueuing.result(first), Succeeded)
            readers = [group.create_task(read(service)) for service in (working, enqueuing)]
            await asyncio.sleep(0.5)
            later = await working.add(URLS[1], priority=7)
            for service in (enqueuing, working):
                outcome = await service.result(later)
                assert isinstance(outcome, Succeeded)
                assert outcome.file is not None
                assert outcome.file.parent == tmp_path / "results"
                assert outcome.file.is_file()
            (settled,) = [event async for event in enqueuing.events(later)]
            assert isinstance(settled, events.Settled)
            while sum(isinstance(event, events.Settled) for _, event in seen) < len(readers):
                await asyncio.sleep(0.05)
            with pytest.raises(ConfigurationError, match="has a worker of the engine already"):
                await replica().open()
        for reader in readers:
            reader.cancel()
    for service in (working, enqueuing):
        kinds = [type(event).__name__ for reader, event in seen if reader is service and event.job == later]
        assert (kinds[0], kinds[-1]) == ("JobAdded", "Settled")
        assert [kinds.count(kind) for kind in ("JobAdded", "Submitted", "Settled")] == [1, 1, 1]
    traces = {event.trace for _, event in seen if event.job == later and event.task_id}
    assert len(traces) == 1
    assert traces != {None}
    assert sandbox.ledger.accepted == 2


async def test_keys_mean_the_same_in_each_process(
    replica: Make, enqueuing: JobService, fresh_dsn: str
) -> None:
    """An unknown one, one with another request, one that is too late to cancel, one that is tried again."""
    for ask in (enqueuing.get, enqueuing.result, enqueuing.cancel):
        with pytest.raises(UnknownJob, match="There is no job 'nobody'"):
            await ask("nobody")
        with pytest.raises(UnknownJob):
            await ask("a\0")
    with pytest.raises(InvalidInput, match="key holds a NUL character"):
        await enqueuing.add(URLS[0], key="a\0")
    key = await enqueuing.add(URLS[0])
    unwanted = await enqueuing.add(URLS[1], priority=-5)
    status = await enqueuing.get(unwanted)
    assert isinstance(status, JobStatus)
    assert status.priority == -5
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(enqueuing.cancel(unwanted))
    with pytest.raises(InvalidInput, match="priority must be a whole number from -9,950 to 49"):
        await enqueuing.add(URLS[3], priority=50)
    async with Engine(fresh_dsn) as engine:  # as a worker does where it cannot submit a job
        await engine.database.execute(
            "UPDATE flux_async.job SET settled = nextval('flux_async.settled'), obstacle = "
            """'{"type": "InvalidInput", "code": null, "message": "too large"}' WHERE state = 'pending'"""
        )
    failed = await enqueuing.result(key)
    assert isinstance(failed, Failed)
    assert failed.error.message == "too large"
    async with replica() as service:
        assert await service.add(URLS[0]) == key
        with pytest.raises(JobConflictError):
            await service.add(URLS[2], key=key)
        assert isinstance(await service.result(key), Succeeded)
        for each in (service, enqueuing):
            cancelled = await each.get(unwanted)
            assert isinstance(cancelled, Failed)
            assert isinstance(cancelled.error, JobCancelled)
            with pytest.raises(AlreadySubmitted):
                await each.cancel(key)
            await each.cancel(unwanted)  # it is so already
    with pytest.raises(JournalError, match="is not connected"):
        await service.get(key)


async def test_a_file_is_uploaded_or_copied_when_it_is_added(
    replica: Make,
    enqueuing: JobService,
    sandbox: FluxSandbox,
    s3: Bucket,
    fresh_dsn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other processes cannot read it; the same content is one job, also added twice at once."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    poster, other = tmp_path / "poster.jpg", tmp_path / "other.jpg"
    poster.write_bytes(JPEG)
    other.write_bytes(JPEG + b"other")
    with pytest.raises(InvalidInput, match="workers cannot read it"):
        await enqueuing.add(poster)
    async with JobService(engine=fresh_dsn, staging=f"{s3.url}/inputs") as service:
        staged = await service.add(other)
        assert await service.add(other) == staged
    assert len(s3.names("inputs/")) == 1
    async with replica() as service:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(service.add(poster, key="poster"))
        assert await service.add(poster, key="poster") == "poster"
        with pytest.raises(JobConflictError):
            await service.add(other, key="poster")
        assert isinstance(await service.result("poster"), Succeeded)
        assert isinstance(await service.result(staged), Succeeded)
    assert sandbox.ledger.accepted == 2


async def test_a_full_queue_refuses_jobs_in_each_process(fresh_dsn: str) -> None:
    """By the count that each has read last."""
    async with JobService(engine=fresh_dsn, most_waiting=2) as service:
        for url in URLS[:2]:
            await service.add(url)
        with pytest.raises(QueueFull) as full:
            await service.add(URLS[2])
        assert full.value.retry_after_s >= 1
        async with JobService(engine=fresh_dsn, most_waiting=2) as second:
            assert (second.snapshot().waiting, second.snapshot().is_ready) == (2, False)
            with pytest.raises(QueueFull):
                await second.add(URLS[2])
        async with Engine(fresh_dsn) as engine:
            await engine.batch("service").cancel()
        while (halted := service.snapshot().halted) is None:
            await asyncio.sleep(0.05)
        assert halted == "JobCancelled"


async def test_a_halt_is_shown_and_jobs_are_taken_meanwhile(fresh_dsn: str) -> None:
    """The account has no credits: for all replicas with its key, until one starts again."""
    with FluxSandbox(sockets=True, webhook_key=None, credits=0) as poor:
        client = FluxClient(poor.key, poor.url, limits=LIMITS, polling=POLLING)
        async with JobService(client, engine=fresh_dsn) as service:
            await service.add(URLS[0])
            while (snapshot := service.snapshot()).halted is None:
                await asyncio.sleep(0.1)
            assert (snapshot.halted, snapshot.is_ready) == ("InsufficientCreditsError", False)
            assert isinstance(await service.get(await service.add(URLS[1])), JobStatus)
        assert poor.ledger.accepted == 0


async def test_a_database_that_is_away_is_one_error(
    enqueuing: JobService, postgres: tuple[Postgres, RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests end soon, health checks at once, and everything goes on when it is back."""
    monkeypatch.setattr(service_backend, "ANSWER_S", 0.3)
    monkeypatch.setattr(service_reader, "AWAY_S", 0.3)
    _, process = postgres
    key = await enqueuing.add(URLS[0])
    process.stop(signal.SIGQUIT)
    for request in (enqueuing.add(URLS[1]), enqueuing.get(key)):
        with pytest.raises(JournalError, match="PostgreSQL at .* did not answer") as away:
            await request
        assert "503" in away.value.advice
    while (snapshot := enqueuing.snapshot()).halted is None:
        await asyncio.sleep(0.1)
    assert (snapshot.halted, snapshot.is_ready) == ("JournalError", False)
    process.start()
    while not enqueuing.snapshot().is_ready:
        await asyncio.sleep(0.1)
    monkeypatch.setattr(service_backend, "ANSWER_S", 60.0)
    assert isinstance(await enqueuing.get(key), JobStatus)
