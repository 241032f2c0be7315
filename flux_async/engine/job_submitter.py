"""Submits the jobs of one worker: the image, a permit of an account, the intent, the POST, the answer.

Rules:

1. A submit: upload the image, wait for a permit of the account, write the intent, POST at once, write the
   answer; that is :func:`flux_async.batch.submitting.submit`. Few wait at once, so that a crash leaves few in
   doubt.
2. A submit that finds the intent of a process that died is in doubt; it is never made again here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import attrs

from flux_async.api_errors import RateLimitedError
from flux_async.batch.active_job import ActiveJob, Leave
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.run_context import RunContext
from flux_async.batch.submitting import submit, upload_input
from flux_async.engine.database import Row
from flux_async.engine.price_turns import PriceTurns
from flux_async.engine.queues import enqueue_watch
from flux_async.engine.store import PostgresStore, stored_job
from flux_async.engine.worker_jobs import Account, WorkerJobs
from flux_async.errors import FluxError, InvalidInput, JournalError
from flux_async.job_state import FINAL, JobState, apply, recover
from flux_async.models import Failed

logger: logging.Logger = logging.getLogger("flux_async.engine")

_HALTED_S, _FENCED_S, _MEASURING_S = 5.0, 0.5, 0.1


@attrs.define(eq=False)
class JobSubmitter:
    """Submits the jobs that DBOS starts, each once.

    Attributes:
        jobs: The jobs of the worker.
        is_alive: Whether the worker certainly held its lock a moment ago; without it nothing is submitted.
    """

    jobs: WorkerJobs
    is_alive: Callable[[], bool]
    _turn: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _prices: PriceTurns = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._prices = PriceTurns(self.jobs)

    async def submit(self, number: int) -> None:
        """Submit a job once, however often that needs to be tried, and enqueue the wait for its task."""
        prepared: ActiveJob | None = None
        async with self.jobs.alone(number):
            while not self.jobs.is_stopping:
                row = await self.jobs.row(number)
                stored = None if row is None else stored_job(row)
                if row is None or stored is None or stored.job.state in FINAL or row["settled"] is not None:
                    return
                match stored.job.state:
                    case JobState.PENDING if row["is_cancelled"]:
                        await self._park(number)
                        return
                    case JobState.PENDING:
                        prepared = await self._submit_once(row, prepared)
                    case JobState.SUBMITTING:
                        await self._put_in_doubt(row)
                    case _:
                        await enqueue_watch(self.jobs.database.client, row, stored.job.task_id)
                        return
            raise asyncio.CancelledError  # the workflow stays begun, and is handed over

    async def _park(self, number: int) -> None:
        """Leave a job of a cancelled batch until it is resumed."""
        await self.jobs.database.execute(
            "UPDATE flux_async.job SET is_queued = NULL WHERE number = %(number)s AND state = 'pending'",
            number=number,
        )

    async def _put_in_doubt(self, row: Row) -> None:
        """Record that the process that has written an intent has ended before it wrote the answer."""
        stored = stored_job(row)
        event = recover(stored.job, self.jobs.database.clock.wall())
        if event is not None:
            store = PostgresStore(
                database=self.jobs.database, account=row["account"], executor=self.jobs.executor
            )
            with suppress(JournalError):  # the answer came after all
                await store.record(stored.number, apply(stored.job, event), event, before=stored.job)

    async def _submit_once(self, row: Row, prepared: ActiveJob | None) -> ActiveJob | None:
        """Try to submit a job with the first permit; it may stay pending. Return it for the next try."""
        for account in self.jobs.accounts.values():
            await self.jobs.run_of(account, row["batch"])  # nothing is made between the permit and the POST
        if prepared is None or prepared.input is None or not prepared.input.is_ready:
            prepared = await self._prepared(row)
        permitted = None if prepared is None else await self._permitted()
        if prepared is None or permitted is None:
            return prepared
        account, due, idle_s = permitted
        run = await self.jobs.run_of(account, row["batch"])
        job = self.jobs.active_job(row, run)
        job.input, job.stored = prepared.input, attrs.evolve(job.stored, trace=prepared.stored.trace)
        with self.jobs.work_on(job, run):
            if not job.state.attempts:
                self.jobs.announce(job, run)
            await self._submit_with(account, run, job, idle_s)
        if job.posted_at is not None:
            await self.jobs.limiter.was_late(account.client.fingerprint, job.posted_at - due)
        if (pause_s := account.pause_s()) > 0:
            is_rate_limited = isinstance(job.last_error, RateLimitedError)
            await self.jobs.limiter.pause(
                account.client.fingerprint, pause_s, is_rate_limited=is_rate_limited
            )
        return prepared

    async def _prepared(self, row: Row) -> ActiveJob | None:
        """Return a job whose image is uploaded, with any key, if it must be; None if that has failed."""
        for account in sorted(self.jobs.accounts.values(), key=lambda each: each.halted_at):
            run = await self.jobs.run_of(account, row["batch"])
            job = self.jobs.active_job(row, run)
            with self.jobs.work_on(job, run):
                try:
                    left = None if run.input_of(job).is_ready else await upload_input(job, run)
                except InvalidInput as error:
                    left = Leave(error)
                except FluxError as error:
                    await self.jobs.halt(account, error)
                    continue
                if left is not None and left.error is not None:
                    await self.jobs.settle(job, run, Failed(job=None, error=left.error))
                return job if left is None else None
        await self.jobs.database.clock.sleep(_HALTED_S)
        return None

    async def _submit_with(self, account: Account, run: RunContext, job: ActiveJob, idle_s: float) -> None:
        """Submit a job with the key whose permit was taken."""
        left: Leave | None = None
        try:
            async with self._prices.turn(account, run, job, idle_s) as may_submit:
                run.call.halts = account.client.session.submitter.halts
                if may_submit:
                    left = await submit(job, run, 0.0)
        except InvalidInput as error:
            left = Leave(error)
        except JournalError as error:
            logger.warning("job %s was not submitted: %s", job.state.key, error.message)
            await self.jobs.database.clock.sleep(_FENCED_S)
            return
        except FluxError as error:
            await self.jobs.halt(account, error)
            return
        finally:
            run.prices.release(job)
        if isinstance(left, Leave) and left.error is not None:
            await self.jobs.settle(job, run, Failed(job=None, error=left.error))
        elif job.state.state in FINAL:
            await self.jobs.settle(job, run, outcome_of(job.state, job.stored.as_job(), job.last_error, None))

    async def _permitted(self) -> tuple[Account, float, float] | None:
        """Wait for a permit of any account; None if there is none for now.

        Return the account, when the permit was due, and the seconds since the permit before it.
        """
        clock = self.jobs.database.clock
        async with self._turn:  # one permit at a time: see accounts.py
            if not self.is_alive() or self.jobs.unsaved is not None:
                await clock.sleep(_FENCED_S)
                return None
            pauses = {name: account.pause_s() for name, account in self.jobs.accounts.items()}
            open_now = [name for name, pause_s in pauses.items() if not pause_s]
            permit = await self.jobs.limiter.permit(open_now)
            if permit is None:
                is_brief = await self.jobs.limiter.is_measuring(open_now)
                halted_s = _MEASURING_S if is_brief else _HALTED_S
                await clock.sleep(halted_s if open_now else min(pauses.values()))
                return None
            due = clock.monotonic() + permit.wait_s
            await clock.sleep(permit.wait_s)
            if permit.wait_s and await self.jobs.limiter.is_paused(permit.account):
                return None
        return self.jobs.accounts[permit.account], due, permit.idle_s
