"""The names that processes agree on, and how work gets into DBOS's queues.

Rules:

1. The jobs themselves are the long queue: a million of them cost DBOS nothing. Workers give it few at a time,
   in order of priority, as it starts them.
2. A job is given to DBOS in the transaction that marks it as given. Given again, it is another workflow.
3. A submitted job without an outcome has a workflow that works on it; workers look every minute whether one
   has not, and give it one. The id of a workflow that has ended cannot be enqueued again: DBOS ignores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from dbos import DBOSClient, EnqueueOptions
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from flux_async.engine.database import Database, Row, query

SUBMIT, WATCH = "flux_async.submit", "flux_async.watch"
"""The workflows: make a submit; wait for its task and save the result."""

SUBMIT_QUEUE = "flux_async.submit"
_MOST_QUEUED = 100
_SUBMITTED = (
    "FROM flux_async.job JOIN flux_async.attempt "
    "ON attempt.job = job.number AND attempt.number = job.attempts "
    "WHERE job.settled IS NULL AND job.state <> 'pending'"
)
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


async def enqueue_watch(client: DBOSClient, row: Row, task_id: str | None) -> None:
    """Enqueue the workflow that waits for the task of a job, once for each task."""
    await client.enqueue_async(_watch(row, task_id or "unknown"), row["number"])


async def enqueue_another_watch(client: DBOSClient, connection: AsyncConnection, row: Row) -> None:
    """Enqueue it in a transaction, also if an earlier one for this task has ended.

    Args:
        client: DBOS's client.
        connection: The transaction.
        row: Number, batch, key, attempts and account of the job.
    """
    options = _watch(row, uuid4().hex)
    await connection.run_sync(lambda c: client.enqueue_in_transaction(c, options, row["number"]))


def _watch(row: Row, cause: str) -> EnqueueOptions:
    return {
        "workflow_name": WATCH,
        "queue_name": watch_queue(row["account"]),
        "workflow_id": f"watch:{row['batch']}:{row['key']}:{row['attempts']}-{cause.replace(':', '-')}",
    }


# --- submitted jobs that nobody waits for ------------------------------------------------------------------


async def has_submitted(database: Database, accounts: Sequence[str]) -> bool:
    """Return whether jobs that were submitted with one of several keys have no outcome yet."""
    sql = f"SELECT {_SUBMITTED} AND attempt.account = ANY(%(accounts)s) LIMIT 1"
    return await database.row(sql, accounts=list(accounts)) is not None


async def watch_left(database: Database, *, age_s: float) -> int:
    """Enqueue watches of submitted jobs that no workflow works on; return how many there were.

    Each path that moves a job enqueues its own watch. This is for those that a crash cuts short, or a
    defect: no paid task is left.

    Args:
        database: Where the jobs are.
        age_s: Least age of their submits; others are not looked at.
    """
    rows = await database.rows(
        f"SELECT job.number, batch, key, attempts, account {_SUBMITTED} "
        "AND state <> 'submitting' AND intended_at < %(before)s",
        before=database.clock.wall() - age_s,
    )
    if not rows:
        return 0
    live = await database.client.list_workflows_async(
        name=[SUBMIT, WATCH], status=["PENDING", "ENQUEUED"], load_input=False, load_output=False
    )
    has_work = {_job_of(workflow.workflow_id) for workflow in live}
    left = [row for row in rows if f"{row['batch']}:{row['key']}" not in has_work]

    async def enqueue(connection: AsyncConnection) -> None:
        for row in left:
            await enqueue_another_watch(database.client, connection, row)

    await database.transaction(enqueue)
    return len(left)


def _job_of(workflow_id: str) -> str:
    """Return ``batch:key`` of a workflow's id."""
    return workflow_id.partition(":")[2].rpartition(":")[0]
