"""The names that processes agree on, and how work gets into DBOS's queues."""

from __future__ import annotations

from typing import Any

from dbos import DBOSClient, EnqueueOptions

from flux_async.journal.store import StoredJob

SUBMIT, WATCH = "flux_async.submit", "flux_async.watch"
"""The workflows: make a submit; wait for its task and save the result."""

SUBMIT_QUEUE = "flux_async.submit"


def watch_queue(account: str) -> str:
    """Return the queue of an account's tasks: only a worker that has its key can poll them."""
    return f"{WATCH}.{account}"


def to_submit(batch: str, key: str, priority: int, *, attempts: int = 0) -> EnqueueOptions:
    """Return the options of a workflow that submits a job; the same again is the same workflow."""
    again = f":{attempts}" if attempts else ""
    return {
        "workflow_name": SUBMIT,
        "queue_name": SUBMIT_QUEUE,
        "workflow_id": f"{batch}:{key}{again}",
        "priority": priority,
    }


async def enqueue_watch(
    client: DBOSClient, batch: str, stored: StoredJob, account: str, *, cause: str = ""
) -> None:
    """Enqueue the workflow that waits for a job's task; one for a late callback has a ``cause``."""
    options: EnqueueOptions = {
        "workflow_name": WATCH,
        "queue_name": watch_queue(account),
        "workflow_id": f"watch:{batch}:{stored.job.key}:{stored.job.attempts}{cause}",
    }
    handle: Any = await client.enqueue_async(options, stored.number)
    del handle
