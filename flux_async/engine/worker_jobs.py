"""What the submits and the tasks of one worker share: its accounts, its runs, and the rows of its jobs."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import attrs

from flux_async.api.models_table import AnyModel
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch import job_events
from flux_async.batch.active_job import ActiveJob, JobSlots
from flux_async.batch.file_names import FileNames, safe_name
from flux_async.batch.options import BatchClient, RunOptions
from flux_async.batch.progress import ProgressReporter, Tally
from flux_async.batch.run_context import RunContext
from flux_async.batch.run_control import Budget, RunControl
from flux_async.engine.accounts import Accounts
from flux_async.engine.database import Database, Row, to_json
from flux_async.engine.store import COLUMNS, PostgresStore, stored_job
from flux_async.engine.worker_checks import WorkerChecks
from flux_async.errors import DownloadError, FluxError
from flux_async.events import JobAdded
from flux_async.files.sink import Sink
from flux_async.job_state import FINAL, NO_CHECKS, Problem
from flux_async.models import Failed, InDoubtPolicy, Outcome
from flux_async.policy.price import PriceGuard
from flux_async.policy.rate_limit import HALT_S
from flux_async.policy.retry import RetryPolicy

logger: logging.Logger = logging.getLogger("flux_async.engine")

_PATIENCE_S = 600.0
_MOST_CHECKED = 10_000


@attrs.define(eq=False)
class Account:
    """One key of a worker.

    Attributes:
        client: Its client.
        store: The jobs, as its submits see them.
        control: Stops its submits.
        runs: What the jobs of each batch share.
        halted_at: When its key, its balance or its answers were last wrong, in monotonic seconds.
    """

    client: BatchClient
    store: PostgresStore
    control: RunControl
    runs: dict[str, RunContext] = attrs.field(factory=dict)
    halted_at: float = -math.inf

    def pause_s(self) -> float:
        """Return the seconds for which the vendor, or the lack of a connection, delays its submits."""
        session = self.client.session
        pause = session.submitter.pause
        return pause.delay(session.clock.monotonic()) if pause.is_on else 0.0


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """What a worker was given for all its jobs.

    Attributes:
        sink_of: Returns the destination of a batch's results, by the name of its folder.
        callbacks: Where the vendor reports ends.
        expected: Credits per image, by model.
        given: Models whose price the caller has named.
        checks: The checks of results, or None.
    """

    sink_of: Callable[[str], Sink] | None
    callbacks: CallbackEndpoint | None
    expected: Mapping[AnyModel, float]
    given: AbstractSet[AnyModel]
    checks: WorkerChecks | None


@attrs.frozen
class Unsaved:
    """A result that was refused, as the next one would be: it is tried again, and submits and others wait.

    Attributes:
        number: Its job.
        error: Why.
    """

    number: int
    error: DownloadError


@attrs.define(eq=False, kw_only=True)
class WorkerJobs:
    """What the submits and the watches of one worker share.

    Attributes:
        database: Where the jobs are.
        executor: The worker.
        settings: What it was given.
        accounts: Its accounts, by fingerprint.
        limiter: The permits of all accounts.
        calls: Closes what the runs of :meth:`run_of` hold.
        is_stopping: Whether no further work is begun.
        unsaved: The result that the disk or the store refused last, until it takes one.
    """

    database: Database
    executor: str
    settings: WorkerSettings
    limiter: Accounts
    accounts: dict[str, Account] = attrs.field(factory=dict)
    calls: AsyncExitStack = attrs.field(factory=AsyncExitStack)
    is_stopping: bool = False
    unsaved: Unsaved | None = attrs.field(default=None, init=False)
    _locks: dict[int, tuple[asyncio.Lock, int]] = attrs.field(factory=dict, init=False)

    @asynccontextmanager
    async def alone(self, number: int) -> AsyncIterator[None]:
        """Hold while a workflow works on a job; another of the same job waits."""
        lock, users = self._locks.get(number, (asyncio.Lock(), 0))
        self._locks[number] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(number)
            if users > 1:
                self._locks[number] = lock, users - 1

    async def row(self, number: int) -> Row | None:
        """Return a job with what its batch and its latest submit say of it."""
        return await self.database.row(
            f"SELECT {COLUMNS}, job.settled, batch.is_cancelled, attempt.account "
            "FROM flux_async.job JOIN flux_async.batch ON batch.name = job.batch "
            "LEFT JOIN flux_async.attempt ON attempt.job = job.number AND attempt.number = job.attempts "
            "WHERE job.number = %(number)s",
            number=number,
        )

    async def settle(
        self, job: ActiveJob, run: RunContext, outcome: Outcome, *, is_open: bool = False
    ) -> None:
        """Record and report the outcome of a job, unless it was moved meanwhile: its work ends.

        Args:
            job: The job.
            run: What the jobs of its batch share.
            outcome: The outcome.
            is_open: Whether the database has none of it, though its state is final: it was to be checked.
        """
        if is_open or job.state.state not in FINAL:
            problem = Problem.of(outcome.error) if isinstance(outcome, Failed) else None
            changed = await self.database.execute(
                "UPDATE flux_async.job SET settled = nextval('flux_async.settled'), obstacle = %(problem)s "
                "WHERE number = %(number)s AND settled IS NULL "
                "AND state = %(state)s AND attempts = %(attempts)s",
                number=job.number,
                state=job.state.state.value,
                attempts=job.state.attempts,
                problem=None if problem is None else to_json(attrs.asdict(problem)),
            )
            if not changed:
                return
        run.emit(job_events.settled(job.stored, outcome, run.now()))

    def active_job(self, row: Row, run: RunContext) -> ActiveJob:
        """Return the job of a row, to be worked on in a run."""
        stored = stored_job(row)
        checks = run.checks_of(stored)
        job = ActiveJob(stored=stored, slots=JobSlots(run.slots), checks=checks, callback_may_come=True)
        job.was_resubmitted = row["attempts"] > 1  # once, or an outage would cost without end
        return job

    @contextmanager
    def work_on(self, job: ActiveJob, run: RunContext) -> Iterator[None]:
        """Hold while a coroutine works on a job: it has its trace, and gives its slots back at the end."""
        job.stored = run.with_trace(job.stored)
        with run.session.events.job(job.state.key, job.stored.trace):
            try:
                yield
            finally:
                job.slots.give_back()

    def announce(self, job: ActiveJob, run: RunContext) -> None:
        """Report that the worker has taken a job on."""
        if run.session.events.wants(JobAdded):
            run.emit(job_events.added(job.stored, run.now()))

    async def run_of(self, account: Account, batch: str) -> RunContext:
        """Return what the jobs of one batch and one account share."""
        if batch in account.runs:
            return account.runs[batch]
        row = await self.database.row(
            "SELECT options FROM flux_async.batch WHERE name = %(batch)s", batch=batch
        )
        assert row is not None  # noqa: S101 - it has this job
        prices = await account.store.prices()
        if batch not in account.runs:
            run = account.runs[batch] = self._new_run(account, batch, row["options"])
            run.budget.guard.load(prices)
            await self.calls.enter_async_context(run.call)
        return account.runs[batch]

    def _new_run(self, account: Account, batch: str, options: dict[str, Any]) -> RunContext:
        session, tally, checks = account.client.session, Tally(), self.settings.checks
        sink = None if self.settings.sink_of is None else self.settings.sink_of(safe_name(batch))
        run = RunContext(
            client=account.client,
            journal=account.store,
            options=RunOptions(
                sink=sink,
                directory=None,
                originals=None,
                timeout_s=options["timeout_s"],
                retry=RetryPolicy(max_paid_attempts=options["max_paid_attempts"]),
                patience_s=_PATIENCE_S,
                callbacks=self.settings.callbacks,
                in_doubt=InDoubtPolicy(options["in_doubt"]),
                via_upload=False,
                checks=NO_CHECKS if checks is None else checks.wanted,
            ),
            names=FileNames(journal=account.store, name_file=None, place=batch),
            control=account.control,
            budget=Budget(
                control=account.control,
                tally=tally,
                guard=PriceGuard(expected=self.settings.expected, given=self.settings.given),
                max_credits=None,
            ),
            progress=ProgressReporter(session=session, tally=tally, observer=None),
            checks=None if checks is None else checks.stage(sink),
        )
        run.slots.active = asyncio.Semaphore(_MOST_CHECKED)  # images to be checked delay no submit
        run.call = session.call()
        return run

    async def halt(self, account: Account, error: FluxError) -> None:
        """Halt the submits of an account for all workers: its key, its balance or its answers are wrong.

        Submits that were in flight together find it together: it is logged once.
        """
        now, before = self.database.clock.monotonic(), account.halted_at
        account.halted_at = now
        if now - before >= HALT_S:
            logger.error(
                "the submits of account %s are halted: %s", account.client.fingerprint, error.message
            )
        await self.limiter.halt(account.client.fingerprint, Problem.of(error))
        account.client.session.submitter.breaker.release()

    # --- results that cannot be saved ---------------------------------------------------------------------

    def not_saved(self, number: int, error: DownloadError) -> None:
        """Halt the submits of this worker: the disk or the store has refused the result of a job."""
        if self.unsaved is None:
            logger.error("nothing is submitted until results can be saved: %s", error.message)
            self.unsaved = Unsaved(number, error)

    def waits_for_another(self, number: int) -> bool:
        """Return whether a job waits until the result that was refused first is saved."""
        return self.unsaved is not None and self.unsaved.number != number

    def is_saved(self, number: int) -> None:
        """Let submits go on if the job was the one whose result was refused."""
        if self.unsaved is not None and self.unsaved.number == number:
            self.unsaved = None
            logger.warning("results can be saved again: submits go on")
