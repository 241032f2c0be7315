"""Waits for the tasks of one worker and saves their images.

Everything after the submit happens in a queue of its own, which nothing limits: tasks of a dead worker are
polled again at once.
"""

from __future__ import annotations

import asyncio
import logging

import attrs

from flux_async.batch.active_job import ActiveJob
from flux_async.batch.job_runner import run_job
from flux_async.batch.run_context import RunContext
from flux_async.engine.database import Row
from flux_async.engine.price_turns import check_price
from flux_async.engine.worker_jobs import Account, WorkerJobs
from flux_async.errors import DownloadError, FluxError, UnexpectedPrice
from flux_async.job_state import FINAL, JobState
from flux_async.models import Failed, TaskId

logger: logging.Logger = logging.getLogger("flux_async.engine")

_FIRST_AGAIN_S, _LONGEST_AGAIN_S = 15.0, 900.0
_SETTLED = FINAL | {JobState.IN_DOUBT}
_NOT_SUBMITTED = frozenset({JobState.PENDING, JobState.SUBMITTING})


@attrs.define(eq=False)
class TaskWatcher:
    """Watches the tasks of submitted jobs.

    Attributes:
        jobs: The jobs of the worker.
    """

    jobs: WorkerJobs
    _active: dict[int, tuple[ActiveJob, Account]] = attrs.field(factory=dict, init=False)

    async def watch(self, number: int) -> None:
        """Wait for the task of a job and save its image; or, in doubt, for a callback that names its task."""
        again_s = _FIRST_AGAIN_S
        async with self.jobs.alone(number):
            while not self.jobs.is_stopping:
                if self.jobs.waits_for_another(number):
                    await self.jobs.database.clock.sleep(_FIRST_AGAIN_S)
                    continue
                row = await self.jobs.row(number)
                is_left = row is not None and row["settled"] is None
                if row is None or not is_left or row["state"] in _NOT_SUBMITTED:
                    self.jobs.is_saved(number)
                    return  # one that is pending again is given to DBOS again
                if (account := self.jobs.accounts.get(row["account"])) is None:
                    logger.error("job %s was submitted with another key than this worker has", row["key"])
                elif await self._watch_once(row, account):
                    continue
                await self.jobs.database.clock.sleep(again_s)
                again_s = _FIRST_AGAIN_S if self.jobs.unsaved else min(2 * again_s, _LONGEST_AGAIN_S)
            raise asyncio.CancelledError

    async def _watch_once(self, row: Row, account: Account) -> bool:
        """Work on a job after its submit; return whether something has come of it."""
        run = await self.jobs.run_of(account, row["batch"])
        job = self.jobs.active_job(row, run)
        self._active[job.number] = job, account
        try:
            with self.jobs.work_on(job, run):
                self.jobs.announce(job, run)
                return await self._run(job, run, account)
        except DownloadError as error:  # of all results: the disk or the store refuses them
            self.jobs.not_saved(job.number, error)
            return False
        except FluxError as error:
            logger.warning("job %s waits: %s", row["key"], error.message)
            return False
        finally:
            del self._active[job.number]

    async def _run(self, job: ActiveJob, run: RunContext, account: Account) -> bool:
        """Take the steps of a job after its submit; return whether something has come of it.

        Raises:
            FluxError: They cannot be taken now.
        """
        task_id = job.state.task_id
        if run.options.callbacks is not None and task_id and await account.store.has_callback(task_id):
            self.notify(job.number, task_id)  # it came while no worker had the job
        was_done = job.state.state is JobState.DONE  # and was to be checked by a worker that has ended
        outcome = await run_job(job, run, submits=False)
        is_unusable = isinstance(outcome, Failed) and outcome.job is None
        if outcome is not None and (is_unusable or job.state.state in _SETTLED):
            is_open = was_done or (run.checks is not None and job.state.state is JobState.DONE)
            await self.jobs.settle(job, run, outcome, is_open=is_open)
            if job.state.state is JobState.DONE and job.state.credits:
                await self._saw_price(account, job, job.state.credits)
            return True
        return job.state.state is JobState.PENDING

    async def _saw_price(self, account: Account, job: ActiveJob, credits_: float) -> None:
        """Keep the price that a record has shown, and halt the submits of the account if it is unexpected."""
        model, guards = job.model, [run.budget.guard for run in account.runs.values()]
        if guards[0].measured(model) == credits_:
            return
        for guard in guards:
            guard.saw_figure(model, credits_)
        await account.store.record_price(str(model), credits_)
        try:
            check_price(guards[0], model)
        except UnexpectedPrice as error:
            await self.jobs.halt(account, error)

    def notify(self, number: int, task_id: str) -> None:
        """Poll the task of a job at once, because a callback came for it."""
        if number in self._active:
            job, account = self._active[number]
            job.wakeup.set()
            account.client.poller.notify(TaskId(task_id), job=job.state.key, trace=job.stored.trace)
