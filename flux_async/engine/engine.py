"""Puts jobs into the database; any process may do so, without a key."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, TypeAlias

import attrs
from sqlalchemy.ext.asyncio import AsyncConnection

from flux_async.api.stored_requests import IMAGE_FIELD, read_image, store_request, without_terms
from flux_async.batch.inputs import Input, check_images, each, read_job
from flux_async.batch.options import in_doubt_policy
from flux_async.engine.batch import EngineBatch
from flux_async.engine.database import Database, query
from flux_async.engine.queues import enqueue_another_watch
from flux_async.engine.staging import Staging
from flux_async.engine.store import COLUMNS, NEW_JOBS, notify, subject
from flux_async.errors import InvalidInput, JobConflictError, shown
from flux_async.events import EventStream, Observer, stream_of
from flux_async.images import LocalImage
from flux_async.job_state import JobState
from flux_async.models import (
    CallbackEvent,
    EditRequest,
    InDoubtPolicy,
    Job,
    JobKey,
    digest_key,
)
from flux_async.policy import check_positive, check_whole_number
from flux_async.policy.image_urls import is_resigned, unsigned_url

Refusal: TypeAlias = InvalidInput | JobConflictError
Added: TypeAlias = int | Refusal | None
"""The number of a new job, why it was refused, or None: it is there already."""

_CHUNK = 2000
_LONGEST_NAME, LOWEST_PRIORITY = 100, 10_000
_NAME = re.compile(rf"[\w.-]{{1,{_LONGEST_NAME}}}")
_MOST_CALLBACKS = 8


class Engine:
    """Jobs in a PostgreSQL database, which :class:`flux_async.engine.Worker` processes work on.

    It connects with the first call, and makes its tables if there are none. It is also an inbox: give it to a
    :class:`flux_async.WebhookReceiver` in place of a journal, in any process.

    Args:
        dsn: The database, ``postgresql://user@host:5432/name``.
        observers: Asked for the trace of each new job, as those of a client are: with
            :class:`flux_async.OpenTelemetry` the work on a job joins the trace in which it was submitted.

    Raises:
        ConfigurationError: ``dsn`` is no address of PostgreSQL, or nothing answers there (at the first call).
    """

    def __init__(self, dsn: str, *, observers: Iterable[Observer] = ()) -> None:
        self._database, self._events = Database(dsn), stream_of(observers)

    def __repr__(self) -> str:
        return f"<Engine on {self._database}>"

    async def __aenter__(self) -> Self:
        await self._database.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._database.aclose()

    @property
    def database(self) -> Database:
        """The database."""
        return self._database

    # --- submitting ---------------------------------------------------------------------------------------

    async def submit(
        self,
        jobs: Iterable[Input] | AsyncIterable[Input],
        *,
        batch: str,
        priority: int = 100,
        in_doubt: InDoubtPolicy | Literal["hold", "resubmit"] = InDoubtPolicy.HOLD,
        timeout: float = 300.0,
        max_paid_attempts: int = 1,
        staging: str | None = None,
    ) -> EngineBatch:
        """Add jobs to a batch and return it; workers submit them.

        The same jobs again change nothing, and resume a batch that was cancelled. A job without a key of its
        own is named by its request, without the signature of its address: a renewed signature is no new job.
        The same image in another batch is another job, and is paid for again.

        Args:
            jobs: Addresses, requests or jobs, read lazily and added 2,000 at a time; files of this machine
                with ``staging`` only.
            batch: The name of the batch: up to 100 letters, digits, ``-``, ``_`` or ``.``.
            priority: Jobs with a lower number are submitted first; interactive work below 100.
            in_doubt: What to do with submits whose answer never came, once no callback can come any more.
            timeout: Seconds that a task may take before it is looked for less often.
            max_paid_attempts: Tasks that may be paid for one job.
            staging: An address in an object store, ``s3://bucket/prefix``, into which files of this machine
                are copied for the workers. Nothing deletes the copies.

        Raises:
            InvalidInput: An input is no request, or names a file of this machine and there is no ``staging``.
            JobConflictError: A key is given with another request than before.
            ConfigurationError: The database does not answer.

            What preceded a job that is refused is enqueued, and perhaps some that follow it.
        """
        check_images(jobs)
        check_whole_number(priority, "priority", 1, LOWEST_PRIORITY)
        opened = await self.open_batch(
            batch, in_doubt=in_doubt, timeout=timeout, max_paid_attempts=max_paid_attempts
        )
        place, chunk = None if staging is None else Staging(staging), list[Job]()
        async for given in each(jobs):
            chunk.append(await read_job(given))
            if len(chunk) == _CHUNK:
                _raise_refusal(await self.add(batch, chunk, priority, staging=place))
                chunk = []
        _raise_refusal(await self.add(batch, chunk, priority, staging=place))
        return opened

    def batch(self, name: str) -> EngineBatch:
        """Return a batch that was submitted before, perhaps by another process."""
        return EngineBatch(_check_name(name), self._database)

    async def open_batch(
        self,
        name: str,
        *,
        in_doubt: InDoubtPolicy | Literal["hold", "resubmit"] = InDoubtPolicy.HOLD,
        timeout: float = 300.0,
        max_paid_attempts: int = 1,
    ) -> EngineBatch:
        """Make a batch without jobs, or resume it; :meth:`submit` documents the options.

        Raises:
            InvalidInput: An option is out of range.
            ConfigurationError: The database does not answer.
        """
        _check_name(name)
        options = {
            "in_doubt": in_doubt_policy(in_doubt).value,
            "timeout_s": check_positive(timeout, "timeout"),
            "max_paid_attempts": int(check_positive(max_paid_attempts, "max_paid_attempts")),
        }
        await self._database.open()
        cancelled = await self._database.row(
            "SELECT FROM flux_async.batch WHERE name = %(batch)s AND is_cancelled", batch=name
        )
        await self._database.execute(
            "INSERT INTO flux_async.batch (name, options, created_at) "
            "VALUES (%(batch)s, %(options)s, extract(epoch FROM now())) "
            "ON CONFLICT (name) DO UPDATE SET options = excluded.options, is_cancelled = false",
            batch=name,
            options=json.dumps(options),
        )
        if cancelled is not None:
            await self._database.execute(
                "UPDATE flux_async.job SET is_queued = false "
                "WHERE batch = %(batch)s AND is_queued IS NULL AND state = 'pending'",
                batch=name,
            )
        return EngineBatch(name, self._database)

    async def add(
        self,
        batch: str,
        jobs: Sequence[Job],
        priority: int,
        *,
        events: EventStream | None = None,
        staging: Staging | None = None,
    ) -> list[Added]:
        """Add jobs to an open batch in one transaction, notify a worker; return what became of each.

        Args:
            batch: The batch.
            jobs: The jobs.
            priority: As of :meth:`submit`.
            events: Gives the new ones their traces; left out, the observers of the engine do.
            staging: Where files of this machine are copied.
        """
        staged, sources = (jobs, {}) if staging is None else await staging.stage(jobs)
        requests = dict[JobKey, str]()
        entries = [_entry(batch, job, requests) for job in staged]
        at, stream = self._database.clock.wall(), self._events if events is None else events

        async def work(connection: AsyncConnection) -> dict[JobKey, Added]:
            added: dict[JobKey, Added] = {}
            for row in await query(
                connection,
                "INSERT INTO flux_async.job (batch, key, request, source, subject, priority, added_at) "
                "SELECT %(batch)s, key, request, source, subject, %(priority)s, %(at)s FROM "
                "unnest(%(keys)s::text[], %(requests)s::text[], %(sources)s::text[], %(subjects)s::uuid[]) "
                "AS given (key, request, source, subject) "
                "ON CONFLICT (batch, key) DO NOTHING RETURNING key, number",
                batch=batch,
                priority=priority,
                at=at,
                keys=list(requests),
                requests=list(requests.values()),
                sources=[sources.get(key) for key in requests],
                subjects=[subject(_subject_of(request)) for request in requests.values()],
            ):
                added[row["key"]] = row["number"]
            if stream.has_traces and added:
                traces = [stream.trace_context(at) for _ in added]
                await _keep_traces(connection, list(added.values()), traces)
            await notify(connection, NEW_JOBS, "")
            known = {key: request for key, request in requests.items() if key not in added}
            return added | await _conflicts(connection, batch, known)

        added = await self._database.transaction(work) if requests else {}
        return [added.get(entry) if isinstance(entry, str) else entry for entry in entries]

    # --- callbacks ----------------------------------------------------------------------------------------

    async def receive(self, event: CallbackEvent) -> None:
        """Store a callback and wake the worker that waits for it; returns after the commit."""
        if event.attempt_id is None:
            return
        await self._database.open()

        async def work(connection: AsyncConnection) -> None:
            await connection.exec_driver_sql(
                "INSERT INTO flux_async.inbox (callback_id, task_id, signed, at) "
                "SELECT callback_id, %(task)s, %(signed)s, extract(epoch FROM clock_timestamp()) "
                "FROM flux_async.attempt WHERE callback_id = %(id)s AND "
                "(SELECT count(*) FROM flux_async.inbox WHERE callback_id = %(id)s AND signed = %(signed)s) "
                "< %(most)s ON CONFLICT DO NOTHING",
                {
                    "id": event.attempt_id,
                    "task": event.task_id,
                    "signed": event.signed,
                    "most": _MOST_CALLBACKS,
                },
            )
            rows = await query(
                connection,
                f"SELECT {COLUMNS}, attempt.account, job.settled FROM flux_async.attempt "
                "JOIN flux_async.job ON job.number = attempt.job WHERE callback_id = %(id)s",
                id=event.attempt_id,
            )
            if not rows:
                return
            await notify(connection, rows[0]["number"], event.task_id)
            if rows[0]["settled"] is None or rows[0]["state"] != JobState.IN_DOUBT.value:
                return  # a worker waits for it, or none has to
            reopen = "UPDATE flux_async.job SET settled = NULL WHERE number = %(number)s"
            await connection.exec_driver_sql(reopen, {"number": rows[0]["number"]})
            await enqueue_another_watch(self._database.client, connection, rows[0])

        await self._database.transaction(work)


def _check_name(batch: object) -> str:
    """Return the name of a batch, which becomes part of addresses and folders.

    Raises:
        InvalidInput: It is none.
    """
    if not isinstance(batch, str) or not _NAME.fullmatch(batch) or not batch.strip("."):
        words = f"use up to {_LONGEST_NAME} letters, digits, '-', '_' or '.'"
        raise InvalidInput(f"{shown(batch)} is no name for a batch: {words}.")
    return batch


def portable(job: Job) -> Job:
    """Return a job that any worker can submit, named without the signature of its address."""
    request = attrs.evolve(job.request, callback_url=None)
    image = request.input_image if isinstance(request, EditRequest) else None
    if isinstance(image, LocalImage):
        raise InvalidInput(
            f"{image} has no http(s) address, and workers cannot read it.",
            advice="Give staging=, the address of a store that it is copied into. It was not enqueued.",
        )
    if not isinstance(request, EditRequest) or image is None or job.key != digest_key(job.request):
        return attrs.evolve(job, request=request)
    return Job(request=request, key=digest_key(attrs.evolve(request, input_image=unsigned_url(image))))


def _raise_refusal(added: Sequence[Added]) -> None:
    for one in added:
        if isinstance(one, InvalidInput | JobConflictError):
            raise one


def _entry(batch: str, job: Job | InvalidInput, requests: dict[JobKey, str]) -> JobKey | Refusal:
    """Return the key of a job whose request is put into ``requests``, or why it is refused."""
    try:
        job = portable(job) if isinstance(job, Job) else job
    except InvalidInput as refusal:
        return refusal
    if isinstance(job, InvalidInput):
        return job
    request = store_request(job.request)
    if not _is_same(requests.get(job.key, request), request):
        return _conflict(batch, job.key)
    requests[job.key] = request
    return job.key


async def _conflicts(
    connection: AsyncConnection, batch: str, given: Mapping[JobKey, str]
) -> dict[JobKey, Added]:
    """Return the keys that have another request than before; take over a renewed signature."""
    known = await query(
        connection,
        "SELECT number, key, request FROM flux_async.job WHERE batch = %(batch)s AND key = ANY(%(keys)s)",
        batch=batch,
        keys=list(given),
    )
    conflicts: dict[JobKey, Added] = {}
    for row in known:
        new = given[row["key"]]
        if not _is_same(row["request"], new):
            conflicts[row["key"]] = _conflict(batch, row["key"])
        elif row["request"] != new:
            await connection.exec_driver_sql(
                "UPDATE flux_async.job SET request = %(request)s "
                "WHERE number = %(number)s AND state = 'pending'",
                {"request": new, "number": row["number"]},
            )
    return conflicts


def _conflict(batch: str, key: JobKey) -> JobConflictError:
    return JobConflictError(f"Job {key} of batch {batch} has another request. This one was not added.")


async def _keep_traces(
    connection: AsyncConnection, numbers: Sequence[object], traces: Sequence[str | None]
) -> None:
    """Give new jobs their traces; after their adding, because one that is known already keeps its own."""
    await connection.exec_driver_sql(
        "UPDATE flux_async.job SET trace = given.trace "
        "FROM unnest(%(numbers)s::bigint[], %(traces)s::text[]) AS given (number, trace) "
        "WHERE job.number = given.number",
        {"numbers": list(numbers), "traces": list(traces)},
    )


def _subject_of(request: str) -> str:
    return read_image(request) or str(json.loads(request)["prompt"])


def _is_same(one: str, other: str) -> bool:
    """Whether two requests ask for the same: only a signature, or what the model costs, may differ."""
    if one == other:
        return True
    old, new = without_terms(json.loads(one)), without_terms(json.loads(other))
    different = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
    return not different or (
        different == [IMAGE_FIELD] and is_resigned(str(old[IMAGE_FIELD]), str(new[IMAGE_FIELD]))
    )
