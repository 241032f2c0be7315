"""The part of a journal that the steps of one job use: submit, wait, doubt, download.

:class:`flux_async.Journal` fulfils it for one process, the engine's store for several machines. Opening,
inputs and callbacks of a whole run are the journal's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from flux_async.api.models_table import ApiName
from flux_async.job_state import Event, JobSnapshot, JobState
from flux_async.journal.inbox import InboxEntry
from flux_async.journal.ownership import KnownTask, Sender
from flux_async.journal.store import StoredJob
from flux_async.models import JobKey, TaskId


class JobStore(Protocol):
    """Jobs, their submits and their tasks, by the jobs' numbers. Each method returns after its commit."""

    @property
    def is_durable(self) -> bool:
        """Whether it outlives the process."""

    async def record(
        self,
        number: int,
        job: JobSnapshot,
        event: Event,
        *,
        before: JobSnapshot | None = None,
        then: tuple[JobSnapshot, Event] | None = None,
    ) -> None:
        """Write an event and the job after it, and perhaps a second event; all or nothing.

        Raises:
            JobConflictError: The event names a task that belongs to another submit.
            JournalError: The job is not the one in ``before``, or nothing could be written.
        """

    async def attempt(self, job: int, number: int) -> tuple[float, str | None]:
        """Return the time of a submit's intent (seconds since the epoch), and its callback id."""

    async def callbacks_for(self, job: int) -> list[InboxEntry]:
        """Return the callbacks that name submits of a job whose task is unknown."""

    async def offers_to(self, job: int) -> list[KnownTask]:
        """Return tasks that belong to no job and whose records show the request of a job."""

    async def owner_of(self, task_id: TaskId) -> JobKey | None:
        """Return the job that a task belongs to, or once belonged to."""

    async def input_urls(self, job: int) -> list[str | None]:
        """Return the image URLs that the submits of a job have sent, the latest first."""

    async def job_that_sent(
        self, shown: Mapping[str, Any], *, besides: int, verbatim: bool = False, by_image: bool = False
    ) -> Sender | None:
        """Return another job than ``besides`` whose submit a record shows."""

    async def count_image_echo(self, api: ApiName) -> None:
        """Count a record of an API that has shown the image as it was sent."""

    async def take_names(self, names: Mapping[int, str]) -> dict[int, JobKey]:
        """Assign file names to jobs; return the jobs whose names are taken, and by which job."""

    async def prices(self) -> dict[str, float]:
        """Return the prices that earlier runs have measured, by name of the model."""

    async def record_price(self, model: str, credits_: float) -> None:
        """Store the price of a model that was measured."""


class OperationStore(JobStore, Protocol):
    """What the operations of a user need besides: the jobs by their keys and states."""

    async def job(self, key: str) -> StoredJob | None:
        """Return one job, or None."""

    def iter_jobs(self, state: JobState) -> AsyncIterator[StoredJob]:
        """Yield the jobs in a state, in order of arrival; one may move to another state meanwhile."""

    async def candidates(self, job: int) -> list[TaskId]:
        """Return the tasks that may be a job's, by its number: the ids in odd answers to its submits."""

    async def apis_of(self, job: int) -> list[ApiName]:
        """Return the APIs that a job, by its number, was submitted to, the latest first."""
