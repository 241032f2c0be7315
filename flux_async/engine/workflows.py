"""The two workflows of DBOS, which has one instance in a process; a worker enters and leaves.

Their steps are not recorded: each is idempotent, as it asks the job's state what to do.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from dbos import DBOS

from flux_async.engine.queues import SUBMIT, WATCH
from flux_async.errors import ConfigurationError

_LOOK_S = 1.0


class JobWorker(Protocol):
    """What the workflows need of a worker."""

    def submit(self, number: int) -> asyncio.Future[None]:
        """Submit a job, by its number, on the worker's own event loop."""

    def watch(self, number: int) -> asyncio.Future[None]:
        """Wait for the task of a job, by its number, on the worker's own event loop."""


_workers: list[JobWorker] = []


def check_free() -> None:
    """Refuse a second worker in this process: DBOS would give it the work of the first.

    Raises:
        ConfigurationError: There is one.
    """
    if _workers:
        raise ConfigurationError(
            "This process has a worker of the engine already.",
            advice="Give one Worker the clients of all keys, or start another process.",
        )


def enter(worker: JobWorker) -> None:
    """Let a worker do the work of this process."""
    _workers.append(worker)


def leave(worker: JobWorker) -> None:
    """Take a worker out."""
    _workers.remove(worker)


async def _worker() -> JobWorker:
    """Return the worker of this process; an application may listen to the queues before it has one."""
    while not _workers:  # noqa: ASYNC110 - it may come on another event loop
        await asyncio.sleep(_LOOK_S)
    return _workers[-1]


@DBOS.workflow(name=SUBMIT, max_recovery_attempts=None)
async def submit(number: int) -> None:
    """Submit a job, by its number."""
    worker = await _worker()
    await worker.submit(number)


@DBOS.workflow(name=WATCH, max_recovery_attempts=None)
async def watch(number: int) -> None:
    """Wait for the task of a job, by its number, and save its image."""
    worker = await _worker()
    await worker.watch(number)
