"""The jobs of one batch, for the operations of a user: fulfils ``OperationStore``.

Rules:

1. Workers go on meanwhile. A job that one of them has moved is not moved here: :class:`JournalError`.
2. A job in doubt is submitted again only after workers have stopped to wait for a callback.
3. The work on a job that has a task again is enqueued in the transaction that says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import attrs
from sqlalchemy.ext.asyncio import AsyncConnection

from flux_async.api.models_table import ApiName
from flux_async.batch.job_store import OperationStore
from flux_async.engine.database import Row, query
from flux_async.engine.queues import enqueue_another_watch
from flux_async.engine.store import COLUMNS, PostgresStore, stored_job
from flux_async.job_state import Event, JobSnapshot, JobState
from flux_async.journal.ownership import named_in
from flux_async.journal.store import StoredJob
from flux_async.models import JobKey, TaskId

_ROWS = (
    f"SELECT {COLUMNS}, attempt.account FROM flux_async.job LEFT JOIN flux_async.attempt "
    "ON attempt.job = job.number AND attempt.number = job.attempts WHERE batch = %(batch)s AND"
)


@attrs.frozen(kw_only=True)
class BatchStore(PostgresStore):
    """The jobs of one batch. It makes no submit, so it has neither an account nor a worker.

    Attributes:
        batch: The batch.
    """

    batch: str
    account: str = ""
    executor: str = ""

    async def job(self, key: str) -> StoredJob | None:
        """Return one job, or None."""
        rows = await self._rows("key = %(key)s", key=key)
        return stored_job(rows[0]) if rows else None

    async def iter_jobs(self, state: JobState) -> AsyncIterator[StoredJob]:
        """Yield the jobs in a state, in order of arrival; one may move to another state meanwhile."""
        page = "state = %(state)s AND job.number > %(after)s ORDER BY job.number LIMIT 1000"
        after = 0
        if state is JobState.IN_DOUBT:
            page = f"settled IS NOT NULL AND {page}"
        while rows := await self._rows(page, state=state.value, after=after):
            for row in rows:
                yield stored_job(row)
            after = rows[-1]["number"]

    async def owner_of(self, task_id: TaskId) -> JobKey | None:
        """Return the job that a task belongs to; of another batch as ``batch:key``."""
        row = await self.database.row(
            "SELECT batch, key FROM flux_async.job JOIN flux_async.attempt ON attempt.job = job.number "
            "WHERE attempt.task_id = %(task)s",
            task=task_id,
        )
        if row is None:
            return None
        return JobKey(row["key"] if row["batch"] == self.batch else f"{row['batch']}:{row['key']}")

    async def candidates(self, job: int) -> list[TaskId]:
        """Return the tasks that may be a job's, by its number: the ids in odd answers to its submits."""
        rows = await self.database.rows(
            "SELECT request, snapshot->>'task_id' AS task_id, refused_task_id, answer FROM flux_async.job "
            "JOIN flux_async.attempt ON attempt.job = job.number WHERE job.number = %(job)s "
            "ORDER BY attempt.number DESC",
            job=job,
        )
        answers = [(row["refused_task_id"], row["answer"]) for row in rows]
        found = named_in(rows[0]["request"], rows[0]["task_id"], answers) if rows else []
        taken = await self.database.rows(
            "SELECT task_id FROM flux_async.attempt WHERE task_id = ANY(%(found)s) "
            "UNION SELECT task_id FROM flux_async.offer WHERE task_id = ANY(%(found)s) AND job <> %(job)s",
            found=found,
            job=job,
        )
        return [task for task in found if task not in {row["task_id"] for row in taken}]

    async def apis_of(self, job: int) -> list[ApiName]:
        """Return the APIs that a job, by its number, was submitted to, the latest first."""
        sql = (
            "SELECT api FROM flux_async.attempt WHERE job = %(job)s AND api IS NOT NULL ORDER BY number DESC"
        )
        return list(dict.fromkeys(row["api"] for row in await self.database.rows(sql, job=job)))

    async def _move(
        self,
        connection: AsyncConnection,
        number: int,
        before: JobSnapshot,
        moves: list[tuple[JobSnapshot, Event]],
    ) -> bool:
        """Write events, and enqueue the wait for a task that was found; as in the class above."""
        if not await super()._move(connection, number, before, moves):
            return False
        if moves[-1][0].state is JobState.SUBMITTED:
            (row,) = await query(
                connection, f"{_ROWS} job.number = %(number)s", batch=self.batch, number=number
            )
            await enqueue_another_watch(self.database.client, connection, row)
        return True

    # --- work that is taken up again ----------------------------------------------------------------------

    async def account_of(self, key: str) -> str | None:
        """Return the account of the latest submit of a job, if there is one."""
        rows = await self._rows("key = %(key)s", key=key)
        return rows[0]["account"] if rows else None

    async def with_obstacle(self) -> Sequence[StoredJob]:
        """Return the jobs on which the work ended before a final state."""
        return [stored_job(row) for row in await self._rows("obstacle IS NOT NULL ORDER BY job.number")]

    async def reopen(self, numbers: Sequence[int]) -> None:
        """Let workers go on with settled jobs, by their numbers."""

        async def work(connection: AsyncConnection) -> None:
            await connection.exec_driver_sql(
                "UPDATE flux_async.job SET settled = NULL, obstacle = NULL, is_queued = false "
                "WHERE number = ANY(%(numbers)s)",
                {"numbers": list(numbers)},
            )
            left = f"{_ROWS} job.number = ANY(%(numbers)s) AND state <> 'pending'"
            for row in await query(connection, left, batch=self.batch, numbers=list(numbers)):
                await enqueue_another_watch(self.database.client, connection, row)

        await self.database.transaction(work)

    async def _rows(self, where: str, **values: object) -> Sequence[Row]:
        return await self.database.rows(f"{_ROWS} {where}", batch=self.batch, **values)


_: type[OperationStore] = BatchStore
