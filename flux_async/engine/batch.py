"""One batch of the engine: its outcomes as they come, its counts, its end; any process may read it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Self

import attrs

from flux_async.api.parsing import check_task_id
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.operations import Adopted, Grants, Retried, adopt_in
from flux_async.batch.options import BatchClient, check_client
from flux_async.engine.batch_store import BatchStore
from flux_async.engine.database import Database, Row
from flux_async.engine.store import COLUMNS, stored_job
from flux_async.errors import FluxError, InvalidInput, shown
from flux_async.job_state import JobState, Problem
from flux_async.journal.reader import Spending
from flux_async.journal.store import StoredJob
from flux_async.models import Failed, JobKey, Outcome, TaskId, check_job_key

_LOOK_S = 1.0
_OVERLAP = 200
"""Outcomes that are read once more: their numbers are given before their transactions end."""
_WORK_LEFT = "settled IS NULL AND (attempts > 0 OR NOT batch.is_cancelled)"
_IN_FLIGHT = frozenset({JobState.SUBMITTING, JobState.SUBMITTED, JobState.GENERATED})


@attrs.frozen(kw_only=True)
class BatchStatus:
    """How a batch stands.

    Attributes:
        pending: Jobs that were not submitted yet.
        in_flight: Jobs that are submitted, and whose result is not saved yet.
        succeeded: Jobs that have their image.
        failed: Jobs that ended without.
        in_doubt: Jobs whose submit may have been charged.
        credits: What its tasks have cost, by their records, else by the price of their model.
        is_cancelled: Whether its pending jobs are not submitted any more.
    """

    pending: int = 0
    in_flight: int = 0
    succeeded: int = 0
    failed: int = 0
    in_doubt: int = 0
    credits: float = 0.0
    is_cancelled: bool = False


@attrs.frozen(kw_only=True)
class BatchRow:
    """A job of a batch, and the problem that ended the work on it before a final state, if there was one."""

    stored: StoredJob
    obstacle: Problem | None = None

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return the job of a row."""
        return cls(
            stored=stored_job(row), obstacle=None if row["obstacle"] is None else Problem(**row["obstacle"])
        )

    @property
    def outcome(self) -> Outcome:
        """The outcome of the job."""
        job = self.stored.as_job()
        if self.obstacle is not None:
            return Failed(
                job=job, error=FluxError(self.obstacle.message, advice="", charge=self.stored.job.charge)
            )
        return outcome_of(self.stored.job, job, None, None)


@attrs.frozen
class EngineBatch:
    """The jobs of one batch: ``async for`` yields their outcomes as they come, from the first on.

    Attributes:
        name: Its name.
    """

    name: str
    _database: Database = attrs.field(repr=False)

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        async for row in self.settled():
            yield row.outcome

    async def settled(self) -> AsyncIterator[BatchRow]:
        """Yield the jobs as they settle, until none is left; one in doubt may come again later."""
        await self._database.open()
        last, seen = 0, dict[int, int]()
        while True:
            is_working = await self._has_work()
            rows = await self._rows("settled > %(after)s ORDER BY settled LIMIT 1000", after=last - _OVERLAP)
            fresh = [row for row in rows if row["settled"] not in seen]
            seen = {row["settled"]: row["number"] for row in rows}
            for row in fresh:
                last = max(last, row["settled"])
                yield BatchRow.of(row)
            if not fresh and not is_working:
                return
            if not fresh:
                await self._database.clock.sleep(_LOOK_S)

    async def rows(self, *states: JobState) -> AsyncIterator[BatchRow]:
        """Yield all jobs, or those in some states, in the order in which they were submitted to the batch."""
        await self._database.open()
        after, wanted = 0, "" if not states else "state = ANY(%(states)s) AND "
        named = [state.value for state in states]
        page = f"{wanted}number > %(after)s ORDER BY number LIMIT 1000"
        while rows := await self._rows(page, after=after, states=named):
            for row in rows:
                yield BatchRow.of(row)
            after = rows[-1]["number"]

    async def is_cancelled(self) -> bool:
        """Return whether its pending jobs are not submitted any more; it counts nothing.

        Raises:
            InvalidInput: There is no such batch.
        """
        await self._database.open()
        batch = await self._database.row(
            "SELECT is_cancelled FROM flux_async.batch WHERE name = %(batch)s", batch=self.name
        )
        if batch is None:
            raise InvalidInput(
                f"There is no batch {shown(self.name)}.", advice="Check its name, and the DSN."
            )
        return bool(batch["is_cancelled"])

    async def status(self) -> BatchStatus:
        """Return how many jobs are where.

        Raises:
            InvalidInput: There is no such batch.
        """
        is_cancelled = await self.is_cancelled()
        (refused,) = await self._database.rows(
            "SELECT count(*) AS jobs FROM flux_async.job "
            "WHERE batch = %(batch)s AND obstacle IS NOT NULL AND state = 'pending'",
            batch=self.name,
        )
        rows = await self._database.rows(
            "SELECT state, count(*) AS jobs FROM flux_async.job WHERE batch = %(batch)s GROUP BY state",
            batch=self.name,
        )
        counts = {JobState(row["state"]): int(row["jobs"]) for row in rows}
        return BatchStatus(
            pending=counts.get(JobState.PENDING, 0) - refused["jobs"],
            in_flight=sum(counts.get(state, 0) for state in _IN_FLIGHT),
            succeeded=counts.get(JobState.DONE, 0),
            failed=counts.get(JobState.FAILED, 0) + refused["jobs"],
            in_doubt=counts.get(JobState.IN_DOUBT, 0),
            credits=sum((one.spent for one in await self.spending()), 0.0),
            is_cancelled=is_cancelled,
        )

    async def named(self, start: str) -> list[JobKey]:
        """Return the job with this key, or else up to two whose keys start with it.

        Raises:
            InvalidInput: It is not the beginning of a key.
        """
        check_job_key(start)
        await self._database.open()
        rows = await self._database.rows(
            "SELECT key FROM flux_async.job WHERE batch = %(batch)s AND starts_with(key, %(start)s) "
            "ORDER BY key <> %(start)s LIMIT 2",
            batch=self.name,
            start=start,
        )
        found = [JobKey(row["key"]) for row in rows]
        return found[:1] if found[:1] == [start] else found

    async def spending(self) -> list[Spending]:
        """Return the tasks made so far, by model."""
        await self._database.open()
        rows = await self._database.rows(
            # The requests of a million jobs take seconds to parse: one stands for all of an API and a model.
            "SELECT model, tasks, perhaps, measured, credits, coalesce(value, custom) AS price FROM ("
            "SELECT request::jsonb->>'model' AS model, sum(tasks)::int AS tasks, "
            "sum(perhaps)::int AS perhaps, sum(measured)::int AS measured, sum(made.credits) AS credits, "
            "max((request::jsonb->'customModel'->>'credits')::float8) AS custom FROM ("
            "SELECT max(job.number) AS latest, count(task_id) AS tasks, "
            "count(*) FILTER (WHERE task_id IS NULL AND NOT is_refused) AS perhaps, "
            "count(credits) FILTER (WHERE attempt.number = attempts) AS measured, "
            "coalesce(sum(credits) FILTER (WHERE attempt.number = attempts), 0) AS credits "
            "FROM flux_async.job JOIN flux_async.attempt ON attempt.job = job.number "
            "WHERE batch = %(batch)s GROUP BY api, model) AS made "
            "JOIN flux_async.job ON job.number = latest GROUP BY 1) AS made "
            "LEFT JOIN flux_async.fact ON name = 'price ' || model",
            batch=self.name,
        )
        return [Spending(**row) for row in rows]

    async def retry(self, *, failed: bool = False, in_doubt: bool = False, dry_run: bool = False) -> Retried:
        """Let workers submit jobs again that failed or are in doubt; return which.

        Jobs that were never submitted because of a problem, such as an image that could not be read, are
        taken up in any case. A job in doubt whose task was found is not submitted again: it is fetched.

        Args:
            failed: Submit jobs again that failed: each for one more charge.
            in_doubt: Submit jobs in doubt again. Their first submit may have been charged, too.
            dry_run: Return the same, and leave these jobs as they are.

        Raises:
            InvalidInput: There is no such batch, or it is cancelled: submit it again, which resumes it.
            JournalError: A worker has moved one of the jobs meanwhile; some are taken up.
        """
        if await self.is_cancelled():
            raise InvalidInput(
                f"Batch {shown(self.name)} is cancelled.", advice="Submit it again, which resumes it."
            )
        store, at = BatchStore(database=self._database, batch=self.name), self._database.clock.wall()
        states = [JobState.FAILED] * failed + [JobState.IN_DOUBT] * in_doubt
        plan = await Grants(store=store, at=at).make(states, dry_run=dry_run)
        found = list(plan.to_fetch)
        for stored in await store.with_obstacle():
            found.append(stored.number)
            if stored.job.state is JobState.PENDING:
                plan.to_submit.append(stored.number)
                plan.submits[stored.model] += 1
            else:
                plan.to_fetch.append(stored.number)
        if not dry_run and found:
            await store.reopen(found)
        return plan.as_retried()

    async def adopt(self, client: BatchClient, job: JobKey | str, task_id: TaskId | str) -> Adopted:
        """Record that a task is that of a job in doubt; workers fetch its image without a charge.

        The task's record is compared with the job's request first, as workers compare it.

        Args:
            client: Of the account that paid.
            job: The key of the job.
            task_id: The task.

        Raises:
            InvalidInput: The task belongs to another job or was made from another request, or the job is not
                in doubt or was submitted with another key; nothing was changed.
            NotFoundError: The vendor has no such task; nothing was changed.
        """
        check_client(client)
        await self.is_cancelled()  # refuses a name that is none
        store, task = BatchStore(database=self._database, batch=self.name), check_task_id(task_id)
        if await store.account_of(check_job_key(job)) not in {None, client.fingerprint}:
            raise InvalidInput(
                f"Job {job} was submitted with another key, or to another address of the API.",
                advice="Use those. Nothing was changed.",
            )
        return await adopt_in(store, client, job, task)

    async def cancel(self) -> BatchStatus:
        """Submit no further job; tasks in flight are paid, and their results are saved."""
        await self.is_cancelled()  # refuses a name that is none
        await self._database.execute(
            "UPDATE flux_async.batch SET is_cancelled = true WHERE name = %(batch)s", batch=self.name
        )
        await self._database.execute(
            "UPDATE flux_async.job SET is_queued = NULL "
            "WHERE batch = %(batch)s AND NOT is_queued AND state = 'pending'",
            batch=self.name,
        )
        return await self.status()

    async def wait(self) -> BatchStatus:
        """Wait until no job is left to work on; return how the batch stands."""
        await self._database.open()
        while await self._has_work():
            await self._database.clock.sleep(_LOOK_S)
        return await self.status()

    async def _has_work(self) -> bool:
        sql = (
            "SELECT EXISTS (SELECT FROM flux_async.job JOIN flux_async.batch ON name = batch "
            f"WHERE batch = %(batch)s AND {_WORK_LEFT}) AS is_left"
        )
        row = await self._database.row(sql, batch=self.name)
        return row is not None and bool(row["is_left"])

    async def _rows(self, where: str, **values: object) -> Sequence[Row]:
        sql = f"SELECT {COLUMNS}, settled, obstacle FROM flux_async.job WHERE batch = %(batch)s AND {where}"
        return await self._database.rows(sql, batch=self.name, **values)
