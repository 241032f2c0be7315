"""The jobs of the engine in PostgreSQL: what two workers of one job may write."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import attrs
import pytest

from flux_async import (
    AuthenticationError,
    EditRequest,
    InvalidInput,
    Job,
    JobConflictError,
    JobKey,
    JournalError,
    Limits,
    TaskId,
    TooManyUnknownAnswers,
)
from flux_async.clock import SystemClock

pytest.importorskip("dbos", reason="the extra engine is not installed")
from flux_async.engine import Engine
from flux_async.engine.accounts import Accounts
from flux_async.engine.database import Database
from flux_async.engine.queues import WATCH
from flux_async.engine.store import COLUMNS, PostgresStore, stored_job
from flux_async.job_state import (
    Composed,
    EchoContradicted,
    Event,
    JobState,
    Problem,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitRejected,
    SubmitUnknown,
    TaskSucceeded,
    Verified,
    apply,
)
from flux_async.journal.store import StoredJob

LOST = Problem(type="ConnectionLost", message="The process ended.")


class Jobs:
    """Two jobs of one image, and the stores of two workers."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.database = engine, engine.database
        self.first, self.second = (
            PostgresStore(database=engine.database, account="account", executor=name) for name in ("w1", "w2")
        )

    async def job(self, key: str) -> StoredJob:
        """Return a job as it is."""
        sql = f"SELECT {COLUMNS} FROM flux_async.job WHERE key = %(key)s"
        row = await self.database.row(sql, key=key)
        assert row is not None
        return stored_job(row)

    async def record(self, store: PostgresStore, stored: StoredJob, event: Event) -> None:
        """Write an event of a job as a worker has seen it."""
        await store.record(stored.number, apply(stored.job, event), event, before=stored.job)

    async def submitting(self, key: str, store: PostgresStore, at: float = 1.0) -> StoredJob:
        """Write an intent, and return the job."""
        await self.record(store, await self.job(key), SubmitIntended(at=at, api="kontext"))
        return await self.job(key)


@pytest.fixture
async def jobs(fresh_dsn: str) -> AsyncIterator[Jobs]:
    """Jobs ``a`` and ``b``, and two workers that are alive."""
    async with Engine(fresh_dsn) as engine:
        request = EditRequest.text_removal("https://example.com/a.jpg")
        given = [Job(request=request, key=JobKey(key)) for key in ("a", "b")]
        await engine.submit(given, batch="posters")
        await engine.database.execute(
            "INSERT INTO flux_async.worker (executor, started_at) VALUES ('w1', 0), ('w2', 0)"
        )
        yield Jobs(engine)


async def test_of_two_workers_with_one_job_one_submits(jobs: Jobs) -> None:
    """The second finds the job moved, and writes no intent."""
    seen = await jobs.job("a")
    await jobs.submitting("a", jobs.first)
    with pytest.raises(JournalError, match="another worker has it"):
        await jobs.record(jobs.second, seen, SubmitIntended(at=2.0, api="kontext"))


async def test_a_worker_that_was_declared_dead_writes_no_intent(jobs: Jobs) -> None:
    """Whatever it believes about its lock."""
    await jobs.database.execute("UPDATE flux_async.worker SET is_dead = true WHERE executor = 'w1'")
    with pytest.raises(JournalError, match="declared dead"):
        await jobs.submitting("a", jobs.first)
    assert (await jobs.job("a")).job.state is JobState.PENDING


async def test_of_two_workers_with_one_image_one_records_its_checks(jobs: Jobs) -> None:
    """The job settles after them. What was found about another file, or too late, is not recorded."""
    first, second = (attrs.evolve(store, has_checks=True) for store in (jobs.first, jobs.second))
    stored = await jobs.submitting("a", first)
    for event in (
        SubmitAccepted(at=2.0, task_id=TaskId("task")),
        TaskSucceeded(at=3.0, result_url="https://example.com/r.jpg"),
        Saved(at=4.0, file="vendor/a.jpg", sha256="0" * 64),
    ):
        await jobs.record(first, stored, event)
        stored = await jobs.job("a")
    composed = Composed(at=5.0, file="a.png", sha256="1" * 64, vendor_file="vendor/a.jpg")
    await jobs.record(first, stored, composed)
    for late in (composed, Verified(at=6.0, verdict={"kind": "damaged"})):
        with pytest.raises(JournalError, match="another worker has it"):
            await jobs.record(second, stored, late)
    found = {"kind": "clean", "recoloured": math.nan}  # of an image that is all text
    await jobs.record(first, seen := await jobs.job("a"), Verified(at=6.0, verdict=found))
    unsettled = "SELECT FROM flux_async.job WHERE key = 'a' AND settled IS NULL"
    assert await jobs.database.row(unsettled) is not None
    await jobs.database.execute("UPDATE flux_async.job SET settled = 1 WHERE key = 'a'")
    with pytest.raises(JournalError, match="another worker has it"):
        await jobs.record(second, seen, Verified(at=7.0, verdict={"kind": "damaged"}))
    checked = (await jobs.job("a")).job.checked
    assert checked is not None
    assert (checked.vendor_file, checked.verdict) == ("vendor/a.jpg", {"kind": "clean", "recoloured": None})


async def test_a_cancelled_batch_takes_no_intent(jobs: Jobs) -> None:
    """Also of a job that a worker has claimed before."""
    await jobs.database.execute("UPDATE flux_async.batch SET is_cancelled = true")
    with pytest.raises(JournalError, match="cancelled"):
        await jobs.submitting("a", jobs.first)


async def test_a_task_belongs_to_one_job(jobs: Jobs) -> None:
    """The answer to another submit that names it is refused."""
    accepted = SubmitAccepted(at=2.0, task_id=TaskId("task"))
    await jobs.record(jobs.first, await jobs.submitting("a", jobs.first), accepted)
    other = await jobs.submitting("b", jobs.second)
    with pytest.raises(JobConflictError, match="belongs to job a"):
        await jobs.record(jobs.second, other, accepted)
    assert (await jobs.job("b")).job.state is JobState.SUBMITTING


async def test_an_answer_that_comes_after_its_worker_was_declared_dead_is_kept(jobs: Jobs) -> None:
    """The job was in doubt by then; its task is known now."""
    submitting = await jobs.submitting("a", jobs.first)
    await jobs.record(jobs.second, submitting, SubmitUnknown(at=2.0, problem=LOST))
    await jobs.record(jobs.first, submitting, SubmitAccepted(at=3.0, task_id=TaskId("task")))
    job = (await jobs.job("a")).job
    assert (job.state, job.task_id) == (JobState.SUBMITTED, "task")


async def test_a_retry_takes_up_what_failed_and_what_no_worker_waits_for(jobs: Jobs) -> None:
    """A trial run changes nothing; a job in doubt that workers still wait for is left to them."""
    batch = jobs.engine.batch("posters")
    failed = await jobs.submitting("a", jobs.first)
    await jobs.record(jobs.first, failed, SubmitRejected(at=2.0, problem=LOST))
    in_doubt = await jobs.submitting("b", jobs.first)
    await jobs.record(jobs.first, in_doubt, SubmitUnknown(at=2.0, problem=LOST))
    assert (await batch.retry(failed=True, in_doubt=True, dry_run=True)).submits.total() == 1
    assert (await jobs.job("a")).job.state is JobState.FAILED
    assert list((await batch.retry(failed=True, in_doubt=True)).to_submit) == [failed.number]
    assert (await jobs.job("a")).job.state is JobState.PENDING
    await jobs.database.execute("UPDATE flux_async.job SET settled = 9 WHERE key = 'b'")
    assert not (await batch.retry(failed=True)).to_submit
    assert list((await batch.retry(in_doubt=True)).to_submit) == [in_doubt.number]
    assert (await batch.status()).pending == 2
    waiting = "SELECT FROM flux_async.job WHERE NOT is_queued AND settled IS NULL"
    assert len(await jobs.database.rows(waiting)) == 2
    assert [(one.tasks, one.perhaps) for one in await batch.spending()] == [(0, 1)]
    await batch.cancel()
    with pytest.raises(InvalidInput, match="is cancelled"):
        await batch.retry(failed=True)


async def test_what_was_never_submitted_is_retried_without_being_asked_for(jobs: Jobs) -> None:
    """Its image could not be read then; nothing was paid for it."""
    await jobs.database.execute(
        "UPDATE flux_async.job SET settled = 1, is_queued = true, obstacle = %(problem)s WHERE key = 'a'",
        problem='{"type": "InvalidInput", "message": "It cannot be read."}',
    )
    batch = jobs.engine.batch("posters")
    assert (await batch.status()).failed == 1
    assert (await batch.retry()).submits.total() == 1
    assert (await batch.status()).pending == 2


async def test_text_of_the_vendor_that_postgresql_cannot_hold_is_replaced(jobs: Jobs) -> None:
    """A NUL character and half a surrogate pair in a message: the job moves all the same."""
    stored = await jobs.submitting("a", jobs.first)
    problem = Problem(type="ApiError", message="no \0 such \ud800 image")
    await jobs.record(jobs.first, stored, SubmitRejected(at=2.0, problem=problem))
    failed = (await jobs.job("a")).job
    assert failed.problem is not None
    assert failed.problem.message == "no \ufffd such \ufffd image"


async def test_a_value_that_the_server_refuses_is_no_outage(fresh_dsn: str) -> None:
    """The error comes at once: the same statement would fail again."""

    class NoWaiting(SystemClock):
        async def sleep(self, seconds: float) -> None:
            raise AssertionError(f"waits {seconds} s")

    database = Database(fresh_dsn, clock=NoWaiting())
    await database.open()
    try:
        for sql, values in (
            ("SELECT %(key)s::text", {"key": "a\0"}),
            ("SELECT wrong", {}),
            ("SELECT 1/0", {}),
        ):
            with pytest.raises(JournalError, match="failed"):
                await database.row(sql, **values)
    finally:
        await database.aclose()


async def test_a_write_whose_commit_had_succeeded_is_not_made_twice(jobs: Jobs) -> None:
    """As after a connection that broke between commit and answer."""
    seen = await jobs.job("a")
    intent = SubmitIntended(at=1.0, api="kontext")
    for _ in range(2):
        await jobs.record(jobs.first, seen, intent)
    submitting = await jobs.job("a")
    for _ in range(2):
        await jobs.record(jobs.first, submitting, SubmitAccepted(at=2.0, task_id=TaskId("task")))
    assert (await jobs.job("a")).job.attempts == 1


async def test_a_task_that_is_offered_to_a_job_in_doubt_is_work_for_a_worker(jobs: Jobs) -> None:
    """Its record shows that job's request; the job was settled in doubt."""
    lost = await jobs.submitting("b", jobs.second)
    await jobs.record(jobs.second, lost, SubmitUnknown(at=2.0, problem=LOST))
    await jobs.database.execute("UPDATE flux_async.job SET settled = 1 WHERE key = 'b'")
    await jobs.record(
        jobs.first,
        await jobs.submitting("a", jobs.first),
        SubmitAccepted(at=2.0, task_id=TaskId("task")),
    )
    another = EchoContradicted(at=3.0, problem=LOST, task_id=TaskId("task"), belongs_to=JobKey("posters:b"))
    await jobs.record(jobs.first, await jobs.job("a"), another)
    (watch,) = await jobs.database.client.list_workflows_async(
        name=WATCH, workflow_id_prefix="watch:posters:b:"
    )
    assert watch.status == "ENQUEUED"
    assert (
        await jobs.database.row("SELECT FROM flux_async.job WHERE key = 'b' AND settled IS NULL") is not None
    )


async def test_a_halt_by_unknown_answers_outlives_the_start_of_a_worker(jobs: Jobs) -> None:
    """A supervisor that starts workers again pays for no further submits in doubt; other halts end."""
    accounts = Accounts(jobs.database)
    await accounts.register("a", Limits())
    for error, is_left in ((AuthenticationError("No."), False), (TooManyUnknownAnswers("Five."), True)):
        await accounts.halt("a", Problem.of(error))
        await accounts.register("a", Limits())
        problem = await accounts.halted("a")
        assert (problem is not None) is is_left
        assert (await accounts.permit(["a"]) is None) is is_left
