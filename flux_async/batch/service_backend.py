"""What a job service needs of the place where its jobs live and are worked on.

:class:`flux_async.batch.journal_backend.JournalBackend` is one process with a journal,
:class:`flux_async.engine.service_backend.EngineBackend` one of several processes on a database.
"""

from __future__ import annotations

from typing import Protocol

from flux_async.batch.answers import JobStatus, ServiceSnapshot
from flux_async.batch.inputs import Input
from flux_async.journal.store import StoredJob
from flux_async.models import CallbackEvent, JobKey, Outcome
from flux_async.snapshots import ClientSnapshot
from flux_async.telemetry.feed import EventFeed

LOWEST_PRIORITY, HIGHEST_PRIORITY = -9_950, 49
"""The priorities of jobs, which both backends can store."""


class ServiceBackend(Protocol):
    """The jobs of one service, and the work on them. Errors are those of :class:`flux_async.JobService`."""

    async def open(self) -> None:
        """Open it and begin to work."""

    def end_waits(self) -> None:
        """End all waits for outcomes: the service closes."""

    async def aclose(self, stop_within: float) -> None:
        """Submit nothing more, wait ``stop_within`` seconds for POSTs in flight, and close it."""

    async def add(self, image: Input, key: str | None, priority: int) -> JobKey:
        """Add a job; return after its commit."""

    async def find(self, key: str) -> tuple[StoredJob, JobStatus | Outcome]:
        """Return a job with its outcome, or with how far it is."""

    async def result(self, key: str, timeout_s: float) -> Outcome:
        """Wait for the outcome of a job."""

    async def cancel(self, key: str) -> None:
        """Cancel a job that is not submitted yet."""

    async def receive(self, event: CallbackEvent) -> None:
        """Store a callback; return after the commit."""

    def attach(self, feed: EventFeed) -> None:
        """Hand the events of the jobs to a feed from now on."""

    def detach(self, feed: EventFeed) -> None:
        """Hand them to it no more."""

    def snapshot(self, client: ClientSnapshot, *, is_open: bool) -> ServiceSnapshot:
        """Return how the service is, without any request."""
