"""Jobs, submits and tasks in PostgreSQL: fulfils :class:`flux_async.batch.job_store.JobStore`.

Rules:

1. A job moves only from the state that the worker has seen (compare and set), so that of two workers that
   believe to have a job one makes the submit.
2. An intent is written only by a worker that no other has declared dead, and for a batch that is not
   cancelled.
3. A write whose commit may have succeeded before the connection broke is recognised, and not made twice.
4. The answer to a submit is kept whatever has become of its job meanwhile: it names a paid task.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from hashlib import md5
from typing import Any

import attrs
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from flux_async.api.echo import spellings_of
from flux_async.api.models_table import ApiName
from flux_async.batch.job_store import JobStore
from flux_async.engine.database import Database, Row, query, to_json
from flux_async.engine.queues import enqueue_another_watch
from flux_async.errors import Charge, JobConflictError, JournalError
from flux_async.job_state import (
    FINAL,
    EchoContradicted,
    Event,
    JobSnapshot,
    JobState,
    Problem,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    SubmitUnknown,
    TaskFound,
    TaskSucceeded,
    apply,
)
from flux_async.journal.inbox import InboxEntry
from flux_async.journal.ownership import MOST_ALIKE, KnownTask, Sender, closest_sender
from flux_async.journal.store import StoredJob
from flux_async.models import CheckResult, Echo, JobKey, TaskId

logger: logging.Logger = logging.getLogger("flux_async.engine")

CHANNEL = "flux_async"
"""PostgreSQL's channel on which workers are told of callbacks: a job's number and a task."""

NEW_JOBS = 0
"""Number of no job: there are new ones."""

COLUMNS = (
    "job.number, job.batch, job.key, job.request, job.source, job.priority, job.added_at, job.trace, "
    "job.state, job.attempts, job.credits, job.snapshot"
)
_APART = {"key", "state", "attempts", "credits"}


def snapshot_to_json(job: JobSnapshot) -> str:
    """Return the fields of a job that have no column of their own."""
    fields = {name: value for name, value in attrs.asdict(job).items() if name not in _APART}
    return to_json({name: value for name, value in fields.items() if value is not None})


def stored_job(row: Row) -> StoredJob:
    """Return the job of a row with the columns :data:`COLUMNS`."""
    kept = dict(row["snapshot"])
    if "problem" in kept:
        kept["problem"] = Problem(**kept["problem"])
    kept["charge"] = Charge(kept.get("charge", Charge.NO))
    kept["echo"] = Echo(kept["echo"]) if "echo" in kept else None
    kept["checked"] = CheckResult(**kept["checked"]) if "checked" in kept else None
    job = JobSnapshot(
        key=JobKey(row["key"]),
        state=JobState(row["state"]),
        attempts=row["attempts"],
        credits=row["credits"],
        **kept,
    )
    return StoredJob(
        number=row["number"],
        request=row["request"],
        job=job,
        source=row["source"],
        trace=row["trace"],
        added_at=row["added_at"],
        priority=row["priority"],
    )


def subject(text: str) -> uuid.UUID:
    """Return the digest by which jobs of one image are found."""
    return uuid.UUID(bytes=md5(text.encode("utf-8", "replace"), usedforsecurity=False).digest())


_MAY_SUBMIT = (
    " AND EXISTS (SELECT FROM flux_async.worker WHERE executor = %(executor)s AND NOT is_dead)"
    " AND NOT (SELECT is_cancelled FROM flux_async.batch WHERE name = job.batch)"
)


def _move(before: JobSnapshot, after: JobSnapshot, also: str = "", *, has_checks: bool = False) -> str:
    """Return the statement that moves a job from one state to another, if it is still in the first.

    Args:
        before: The first.
        after: The other.
        also: Further columns that it sets.
        has_checks: Whether a job that is done has no outcome yet, as its image is to be checked.
    """
    is_settled = after.state in FINAL and not (has_checks and after.state is JobState.DONE)
    settled = "nextval('flux_async.settled')" if is_settled else "NULL"
    # A worker that was taken for dead may check an image that another has composed, or settled, by now.
    is_check = before.state is after.state is JobState.DONE
    still = " AND settled IS NULL AND snapshot->>'file' = %(file)s" * is_check
    again = after.state is JobState.PENDING and before.state is not JobState.SUBMITTING
    return (
        "UPDATE flux_async.job SET state = %(state)s, attempts = %(attempts)s, credits = %(credits)s, "
        f"snapshot = %(snapshot)s, settled = {settled}, obstacle = NULL{', is_queued = false' * again}{also} "
        f"WHERE number = %(number)s AND state = %(from)s AND attempts = %(had)s{still}"
    )


def _values(number: int, before: JobSnapshot, after: JobSnapshot) -> dict[str, Any]:
    return {
        "number": number,
        "state": after.state.value,
        "attempts": after.attempts,
        "credits": after.credits,
        "snapshot": snapshot_to_json(after),
        "from": before.state.value,
        "had": before.attempts,
        "file": before.file,
    }


@attrs.frozen(kw_only=True)
class PostgresStore:
    """The jobs of all batches, as the workers of one account see them.

    Attributes:
        database: Where they are.
        account: Fingerprint of the key that makes the submits.
        executor: The worker.
        has_checks: Whether it checks the images of jobs that are done, before they settle.
    """

    database: Database
    account: str
    executor: str
    has_checks: bool = False

    @property
    def is_durable(self) -> bool:
        """Always."""
        return True

    # --- events -------------------------------------------------------------------------------------------

    async def record(
        self,
        number: int,
        job: JobSnapshot,
        event: Event,
        *,
        before: JobSnapshot | None = None,
        then: tuple[JobSnapshot, Event] | None = None,
    ) -> None:
        """Write an event and the job after it; see :class:`JobStore`."""
        assert before is not None  # noqa: S101 - every step knows the job that it moves
        moves = [(job, event)] if then is None else [(job, event), then]
        if isinstance(event, SubmitIntended) and await self._intend(number, job, event, before):
            return

        async def work(connection: AsyncConnection) -> None:
            is_intent = isinstance(event, SubmitIntended)
            if is_intent or not await self._move(connection, number, before, moves):
                await self._after_conflict(connection, number, before, moves)

        try:
            await self.database.transaction(work)
        except IntegrityError:
            task_id = getattr(event, "task_id", None)
            owner = None if task_id is None else await self.owner_of(task_id)
            raise JobConflictError(f"Task {task_id} belongs to job {owner}.") from None

    async def _intend(
        self, number: int, job: JobSnapshot, intent: SubmitIntended, before: JobSnapshot
    ) -> bool:
        """Write an intent, in one statement: the POST follows at once. Return whether it is written."""
        sql = (
            f"WITH moved AS ({_move(before, job, ', trace = coalesce(trace, %(trace)s)')}{_MAY_SUBMIT} "
            "RETURNING number) "
            "INSERT INTO flux_async.attempt (job, number, account, executor, intended_at, api, model, "
            "callback_id, input_url) SELECT number, %(attempts)s, %(account)s, %(executor)s, %(at)s, "
            "%(api)s, %(model)s, %(callback_id)s, %(input_url)s FROM moved"
        )
        values = _values(number, before, job) | attrs.asdict(intent)
        written = await self.database.execute(sql, **values, account=self.account, executor=self.executor)
        return written == 1

    async def _move(
        self,
        connection: AsyncConnection,
        number: int,
        before: JobSnapshot,
        moves: list[tuple[JobSnapshot, Event]],
    ) -> bool:
        """Write events if the job is still the one in ``before``; return whether it was."""
        after = moves[-1][0]
        moved = await connection.exec_driver_sql(
            _move(before, after, has_checks=self.has_checks),
            _values(number, before, after) | {"executor": self.executor},
        )
        if moved.rowcount != 1:
            return False
        for job, event in moves:
            await self._write_attempt(connection, number, job, event)
        return True

    async def _write_attempt(
        self, connection: AsyncConnection, number: int, job: JobSnapshot, event: Event
    ) -> None:
        """Write what an event says about the latest submit of a job."""
        values: dict[str, Any] = {"job": number, "number": job.attempts}
        match event:
            case SubmitAccepted():
                sql = "UPDATE flux_async.attempt SET task_id = %(task_id)s"
                values["task_id"] = event.task_id
            case SubmitRefused() | SubmitRejected():
                sql = "UPDATE flux_async.attempt SET is_refused = true"
            case SubmitUnknown():
                sql = "UPDATE flux_async.attempt SET answer = %(answer)s, refused_task_id = %(refused)s"
                values |= {"answer": event.answer, "refused": event.refused_task_id}
            case EchoContradicted():
                await self._write_offer(connection, number, job, event)
                sql = "UPDATE flux_async.attempt SET task_id = NULL, refused_task_id = %(refused)s"
                values["refused"] = event.task_id
            case TaskSucceeded(echo=Echo.CONFIRMED):
                await _add_one(connection, f"confirmed {job.api}")
                return
            case _:
                return
        await connection.exec_driver_sql(f"{sql} WHERE job = %(job)s AND number = %(number)s", values)

    async def _write_offer(
        self, connection: AsyncConnection, number: int, job: JobSnapshot, event: EchoContradicted
    ) -> None:
        """Offer a task to the job whose request its record shows; it is not offered to this one again."""
        batch, _, key = (event.belongs_to or "").partition(":")
        offered = await query(
            connection,
            "INSERT INTO flux_async.offer (job, task_id, api, at) "
            "SELECT number, %(task)s, %(api)s, %(at)s FROM flux_async.job "
            "WHERE batch = %(batch)s AND key = %(key)s ON CONFLICT DO NOTHING RETURNING job",
            task=event.task_id,
            api=job.api,
            at=event.at,
            batch=batch,
            key=key,
        )
        await connection.exec_driver_sql(
            "DELETE FROM flux_async.offer WHERE job = %(job)s AND task_id = %(task)s",
            {"job": number, "task": event.task_id},
        )
        for row in offered:
            await notify(connection, row["job"], event.task_id)
            await self._reopen(connection, row["job"])

    async def _reopen(self, connection: AsyncConnection, number: int) -> None:
        """Let workers go on with a job that was settled in doubt: a task was offered to it."""
        reopened = await query(
            connection,
            "UPDATE flux_async.job SET settled = NULL FROM flux_async.attempt "
            "WHERE job.number = %(number)s AND state = 'in_doubt' AND settled IS NOT NULL "
            "AND attempt.job = job.number AND attempt.number = job.attempts "
            "RETURNING job.number, batch, key, attempts, account",
            number=number,
        )
        for row in reopened:
            await enqueue_another_watch(self.database.client, connection, row)

    async def _after_conflict(
        self,
        connection: AsyncConnection,
        number: int,
        before: JobSnapshot,
        moves: list[tuple[JobSnapshot, Event]],
    ) -> None:
        """Decide about an event of a job that is another by now.

        Raises:
            JournalError: The event has not happened.
        """
        after, event = moves[-1][0], moves[0][1]
        found = await query(
            connection,
            f"SELECT {COLUMNS}, executor, intended_at FROM flux_async.job LEFT JOIN flux_async.attempt "
            "ON attempt.job = job.number AND attempt.number = job.attempts "
            "WHERE job.number = %(number)s FOR UPDATE OF job",
            number=number,
        )
        now = stored_job(found[0]).job if found else None
        if now is None or now.attempts < after.attempts:
            raise JournalError(f"Job {before.key} was cancelled, or this worker was declared dead.")
        if isinstance(event, SubmitIntended):
            mine = (found[0]["executor"], found[0]["intended_at"]) == (self.executor, event.at)
            if now.state is after.state and mine:
                return  # the commit had succeeded
        elif before.state is not JobState.DONE and (
            (now.state, now.attempts, now.task_id) == (after.state, after.attempts, after.task_id)
        ):
            return
        elif isinstance(event, SubmitAccepted) and before.state is JobState.SUBMITTING:
            await self._keep_late_answer(connection, number, before, now, event)
            return
        raise JournalError(f"Job {before.key} is {now.state} by now; another worker has it.")

    async def _keep_late_answer(
        self,
        connection: AsyncConnection,
        number: int,
        before: JobSnapshot,
        now: JobSnapshot,
        answer: SubmitAccepted,
    ) -> None:
        """Keep the task of a submit whose worker was declared dead before the answer came."""
        if now.attempts == before.attempts and now.state in {JobState.IN_DOUBT, JobState.PENDING}:
            found = TaskFound(at=answer.at, task_id=answer.task_id, api=before.api or "kontext")
            await self._move(connection, number, now, [(apply(now, found), found)])
            await notify(connection, number, answer.task_id)
            return
        logger.warning("job %s was submitted again before its task %s was known", before.key, answer.task_id)
        await connection.exec_driver_sql(
            "UPDATE flux_async.attempt SET task_id = %(task)s WHERE job = %(job)s AND number = %(number)s",
            {"task": answer.task_id, "job": number, "number": before.attempts},
        )

    # --- one job ------------------------------------------------------------------------------------------

    async def attempt(self, job: int, number: int) -> tuple[float, str | None]:
        """Return the time of a submit's intent, and its callback id."""
        sql = "SELECT intended_at, callback_id FROM flux_async.attempt WHERE job = %(job)s AND number = %(n)s"
        row = await self.database.row(sql, job=job, n=number)
        return (0.0, None) if row is None else (row["intended_at"], row["callback_id"])

    async def callbacks_for(self, job: int) -> list[InboxEntry]:
        """Return the callbacks that name submits of a job whose task is unknown."""
        rows = await self.database.rows(
            "SELECT inbox.number, inbox.at, job.key AS job, inbox.task_id, inbox.signed, inbox.callback_id, "
            "attempt.api, attempt.input_url, attempt.number < job.attempts AS is_possible_duplicate "
            "FROM flux_async.inbox JOIN flux_async.attempt USING (callback_id) "
            "JOIN flux_async.job ON job.number = attempt.job "
            "WHERE job.number = %(job)s AND attempt.task_id IS NULL ORDER BY inbox.number",
            job=job,
        )
        return [InboxEntry(**row) for row in rows]

    async def has_callback(self, task_id: TaskId) -> bool:
        """Return whether a callback came for a task that belongs to a job."""
        sql = (
            "SELECT FROM flux_async.attempt JOIN flux_async.inbox USING (callback_id, task_id) "
            "WHERE attempt.task_id = %(task)s LIMIT 1"
        )
        return await self.database.row(sql, task=task_id) is not None

    async def offers_to(self, job: int) -> list[KnownTask]:
        """Return tasks that belong to no job and whose records show the request of a job."""
        rows = await self.database.rows(
            "SELECT task_id, api FROM flux_async.offer WHERE job = %(job)s AND NOT EXISTS "
            "(SELECT FROM flux_async.attempt WHERE attempt.task_id = offer.task_id) ORDER BY at",
            job=job,
        )
        return [KnownTask(task_id=TaskId(row["task_id"]), api=row["api"]) for row in rows]

    async def owner_of(self, task_id: TaskId) -> JobKey | None:
        """Return the job that a task belongs to."""
        row = await self.database.row(
            "SELECT key FROM flux_async.job JOIN flux_async.attempt ON attempt.job = job.number "
            "WHERE attempt.task_id = %(task)s",
            task=task_id,
        )
        return None if row is None else JobKey(row["key"])

    async def input_urls(self, job: int) -> list[str | None]:
        """Return the image URLs that the submits of a job have sent, the latest first."""
        sql = "SELECT input_url FROM flux_async.attempt WHERE job = %(job)s ORDER BY number DESC"
        return list(dict.fromkeys(row["input_url"] for row in await self.database.rows(sql, job=job)))

    async def job_that_sent(
        self, shown: Mapping[str, Any], *, besides: int, verbatim: bool = False, by_image: bool = False
    ) -> Sender | None:
        """Return another job whose submit a record shows, as ``batch:key``."""
        rows = await self.database.rows(
            "SELECT number, batch || ':' || key AS key, request FROM flux_async.job "
            "WHERE attempts > 0 AND subject = ANY(%(subjects)s) LIMIT %(most)s",
            subjects=[subject(text) for text in spellings_of(shown)],
            most=MOST_ALIKE,
        )
        alike = ((row["number"], JobKey(row["key"]), row["request"]) for row in rows)
        return closest_sender(shown, alike, besides=besides, verbatim=verbatim, by_image=by_image)

    async def take_names(self, names: Mapping[int, str]) -> dict[int, JobKey]:  # noqa: ARG002 - the protocol's
        """Return no conflict: names are made from keys, and each batch has a folder of its own."""
        return {}

    # --- facts --------------------------------------------------------------------------------------------

    async def count_image_echo(self, api: ApiName) -> None:
        """Count a record of an API that has shown the image as it was sent."""
        await self.database.transaction(lambda connection: _add_one(connection, f"confirmed image {api}"))

    async def prices(self) -> dict[str, float]:
        """Return the prices that records have shown, by name of the model."""
        rows = await self.database.rows("SELECT name, value FROM flux_async.fact WHERE name LIKE 'price %%'")
        return {row["name"].removeprefix("price "): row["value"] for row in rows}

    async def record_price(self, model: str, credits_: float) -> None:
        """Store the price of a model that was measured."""
        await self._record_fact(f"price {model}", credits_)
        await self.record_measured(model)

    async def record_measured(self, model: str) -> None:
        """Store when the price of a model was measured, or found to be shown by nothing."""
        await self._record_fact(f"measured {model}", self.database.clock.wall())

    async def measured_since(self, model: str, since: float) -> tuple[bool, float | None]:
        """Return whether the price of a model was measured after a time, and the price if one is known."""
        rows = await self.database.rows(
            "SELECT name, value FROM flux_async.fact WHERE name = ANY(%(names)s)",
            names=[f"price {model}", f"measured {model}"],
        )
        facts = {row["name"]: row["value"] for row in rows}
        return facts.get(f"measured {model}", 0.0) > since, facts.get(f"price {model}")

    async def _record_fact(self, name: str, value: float) -> None:
        await self.database.execute(
            "INSERT INTO flux_async.fact VALUES (%(name)s, %(value)s) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            name=name,
            value=value,
        )


async def notify(connection: AsyncConnection, number: int, task_id: str) -> None:
    """Tell the worker that has a job, with the commit, that there is news of a task."""
    await query(
        connection, "SELECT pg_notify(%(channel)s, %(text)s)", channel=CHANNEL, text=f"{number} {task_id}"
    )


async def _add_one(connection: AsyncConnection, name: str) -> None:
    await connection.exec_driver_sql(
        "INSERT INTO flux_async.fact VALUES (%(name)s, 1) "
        "ON CONFLICT (name) DO UPDATE SET value = flux_async.fact.value + 1",
        {"name": name},
    )


_: type[JobStore] = PostgresStore
