"""The names that processes agree on, and how work gets into DBOS's queues.

Rules:

1. The jobs themselves are the long queue: a million of them cost DBOS nothing. Workers give it few at a time,
   in order of priority, as it starts them.
2. A job is given to DBOS in the transaction that marks it as given. Given again, it is another workflow.
"""

from __future__ import annotations

from collections.abc import Sequence

from dbos import DBOSClient, EnqueueOptions
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from flux_async.engine.database import Database, Row, query
from flux_async.job_state import JobSnapshot
from flux_async.journal.store import StoredJob

SUBMIT, WATCH = "flux_async.submit", "flux_async.watch"
"""The workflows: make a submit; wait for its task and save the result."""

SUBMIT_QUEUE = "flux_async.submit"
_MOST_QUEUED = 100
_WAITING = "NOT is_queued AND state = 'pending' AND settled IS NULL"


def watch_queue(account: str) -> str:
    """Return the queue of an account's tasks: only a worker that has its key can poll them."""
    return f"{WATCH}.{account}"


async def has_waiting(database: Database) -> bool:
    """Return whether jobs wait to be given to DBOS."""
    return await database.row(f"SELECT FROM flux_async.job WHERE {_WAITING} LIMIT 1") is not None


async def feed(database: Database) -> int:
    """Give waiting jobs to DBOS, as far as it has few; return how many were given."""
    if not await has_waiting(database):
        return 0
    client = database.client
    queued = await client.list_workflows_async(
        status="ENQUEUED", queue_name=SUBMIT_QUEUE, limit=_MOST_QUEUED, load_input=False, load_output=False
    )
    room = _MOST_QUEUED - len(queued)
    return 0 if room <= 0 else await database.transaction(lambda connection: _feed(client, connection, room))


async def _feed(client: DBOSClient, connection: AsyncConnection, room: int) -> int:
    rows = await query(
        connection,
        "UPDATE flux_async.job SET is_queued = true, dispatches = dispatches + 1 WHERE number IN "
        f"(SELECT number FROM flux_async.job WHERE {_WAITING} "
        "ORDER BY priority, number LIMIT %(room)s FOR UPDATE SKIP LOCKED) "
        "RETURNING number, batch, key, priority, dispatches",
        room=room,
    )

    def enqueue(synchronous: Connection, given: Sequence[Row]) -> None:
        for row in given:
            options: EnqueueOptions = {
                "workflow_name": SUBMIT,
                "queue_name": SUBMIT_QUEUE,
                "workflow_id": f"submit:{row['batch']}:{row['key']}:{row['dispatches']}",
                "priority": row["priority"],
            }
            client.enqueue_in_transaction(synchronous, options, row["number"])

    await connection.run_sync(enqueue, rows)
    return len(rows)


async def enqueue_watch(client: DBOSClient, batch: str, stored: StoredJob, account: str) -> None:
    """Enqueue the workflow that waits for a job's task."""
    await client.enqueue_async(_watch(batch, stored.job, account, ""), stored.number)


async def enqueue_another_watch(
    client: DBOSClient, connection: AsyncConnection, row: Row, job: JobSnapshot, *, cause: str
) -> None:
    """Enqueue it again in a transaction, for a ``cause`` such as a late callback.

    Args:
        client: DBOS's client.
        connection: The transaction.
        row: Number, batch and account of the job.
        job: The job.
        cause: Names this occasion.
    """
    options = _watch(row["batch"], job, row["account"], f":{cause}")
    await connection.run_sync(lambda c: client.enqueue_in_transaction(c, options, row["number"]))


def _watch(batch: str, job: JobSnapshot, account: str, cause: str) -> EnqueueOptions:
    return {
        "workflow_name": WATCH,
        "queue_name": watch_queue(account),
        "workflow_id": f"watch:{batch}:{job.key}:{job.attempts}{cause}",
    }
