"""A process that submits jobs and saves results, beside others that do the same.

Rules:

1. A submit: wait for a permit of the account, write the intent, POST at once, write the answer; that is
   :func:`flux_async.batch.submitting.submit`. Few wait at once, so that a crash leaves few in doubt.
2. A submit that finds the intent of a process that died is in doubt; it is never made again here.
3. Everything after the submit happens in a queue of its own, which nothing limits: tasks of a dead worker are
   polled again at once.
4. A workflow of DBOS says only that there is work to do for a job; what to do says the job's state. So
   running a workflow again, or twice, does no harm.
5. Work on one job happens once at a time in a process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio.to_thread
import attrs
from dbos import DBOS, DBOSConfig
from dbos import error as dbos_errors

from flux_async.api.models_table import AnyModel, Prices
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.api_errors import RateLimitedError
from flux_async.batch.active_job import ActiveJob, JobSlots, Leave
from flux_async.batch.file_names import FileNames, safe_name
from flux_async.batch.job_runner import run_job
from flux_async.batch.options import BatchClient, RunOptions, price_list
from flux_async.batch.progress import ProgressReporter, Tally
from flux_async.batch.run_context import RunContext
from flux_async.batch.run_control import Budget, RunControl
from flux_async.batch.submitting import submit
from flux_async.client import FluxClient
from flux_async.engine import workflows
from flux_async.engine.accounts import Accounts
from flux_async.engine.database import Row
from flux_async.engine.engine import Engine
from flux_async.engine.housekeeping import BALANCE_S, check_credits, delete_old_workflows, queue_jobs
from flux_async.engine.liveness import Liveness, hand_over
from flux_async.engine.queues import (
    SUBMIT_QUEUE,
    enqueue_watch,
    has_waiting,
    watch_queue,
)
from flux_async.engine.store import COLUMNS, NEW_JOBS, PostgresStore, stored_job
from flux_async.errors import (
    ConfigurationError,
    FluxError,
    InvalidInput,
    JournalError,
    UnexpectedPrice,
)
from flux_async.files.sink import Sink
from flux_async.job_state import FINAL, JobState, Problem, apply, recover
from flux_async.models import Failed, InDoubtPolicy, TaskId
from flux_async.policy import check_not_negative
from flux_async.policy.price import PriceGuard
from flux_async.policy.rate_limit import Limits
from flux_async.policy.retry import RetryPolicy

logger: logging.Logger = logging.getLogger("flux_async.engine")

WORKER_LIMITS = Limits(submits=10_000, window_s=10.0, in_flight=10_000)
"""Limits of a worker's clients: the database limits the submits of an account."""

SUBMITS_PER_KEY = 6
"""Submits that one worker has claimed at once."""
_WATCHED = 10_000
_QUEUE_POLL_S = 1.0
_HALTED_S, _FENCED_S = 5.0, 0.5
_FIRST_AGAIN_S, _LONGEST_AGAIN_S = 15.0, 900.0
_PATIENCE_S = 600.0
_FIRST_REQUEST_S = 10.0
_THREADS = 32
_NOT_SUBMITTED = frozenset({JobState.PENDING, JobState.SUBMITTING})


@attrs.define(eq=False)
class _Account:
    """One key of a worker.

    Attributes:
        client: Its client.
        store: The jobs, as its submits see them.
        control: Stops its submits.
        runs: What the jobs of each batch share.
    """

    client: BatchClient
    store: PostgresStore
    control: RunControl
    runs: dict[str, RunContext] = attrs.field(factory=dict)


class Worker:
    """Works on the jobs of a database: ``async with Worker(engine, client, sink): …``.

    It launches DBOS, or uses the one that the application has launched. Its clients are made with
    ``limits=WORKER_LIMITS``: the account's rate is kept by the database, for all workers together.

    Args:
        engine: The database.
        clients: A client for each key; the worker does not close them.
        sink_of: Returns the destination of a batch's results, by the name of its folder; None leaves results
            at the vendor.
        rate: Submits that an account may make, of which ``submits`` and ``window_s`` count; it applies to all
            workers of the account from now on.
        prices: Credits per image, by model, where they are not those of ``Model.row.credits``.
        min_credits: Submits of an account pause while its balance is below this.
        callbacks: Where the vendor reports ends: a :class:`flux_async.WebhookReceiver` whose journal is an
            engine of the same database, in any process.

    Raises:
        ConfigurationError: The database does not answer, or DBOS runs with the executor id ``local``.
    """

    def __init__(
        self,
        engine: Engine,
        clients: FluxClient | Sequence[FluxClient],
        sink_of: Callable[[str], Sink] | None,
        *,
        rate: Limits | None = None,
        prices: Prices | None = None,
        min_credits: float | None = None,
        callbacks: CallbackEndpoint | None = None,
    ) -> None:
        self._expected, self._given = price_list(prices), frozenset(prices or ())
        self._min_credits = None if min_credits is None else check_not_negative(min_credits, "min_credits")
        self._engine, self._sink_of, self._callbacks = engine, sink_of, callbacks
        self._clients = [clients] if isinstance(clients, FluxClient) else list(clients)
        if not self._clients:
            raise InvalidInput("A worker needs a client.")
        self._rate = Limits() if rate is None else rate
        self._accounts: dict[str, _Account] = {}
        self._limiter = Accounts(engine.database)
        self._turn, self._locks = asyncio.Lock(), dict[int, tuple[asyncio.Lock, int]]()
        self._active: dict[int, ActiveJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_new = asyncio.Event()
        self._executor, self._owns_dbos, self._is_stopping = "", False, False
        self._liveness: Liveness | None = None
        self._closing, self._calls = AsyncExitStack(), AsyncExitStack()

    @property
    def executor(self) -> str:
        """The worker's name."""
        return self._executor

    # --- starting and stopping ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        database, self._loop = self._engine.database, asyncio.get_running_loop()
        await database.open()
        self._executor = await _executor_of_application()
        self._owns_dbos = not self._executor
        if self._owns_dbos:
            self._executor = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        if self._executor == "local":
            raise ConfigurationError(
                "DBOS runs with the executor id 'local', which every process has.",
                advice="Give DBOS an executor_id that is unique to this process.",
            )
        async with AsyncExitStack() as opened:
            for client in self._clients:
                await self._open_account(client)
            await self._hold_lock(opened)
            self._start_beside(opened, partial(queue_jobs, database, self._has_new))
            self._start_beside(opened, partial(delete_old_workflows, database))
            if (least := self._min_credits) is not None:
                await check_credits(self._limiter, self._clients, least)
                self._start_beside(opened, partial(self._watch_credits, least))
            if self._owns_dbos:
                self._launch()
                opened.push_async_callback(_destroy)
            workflows.enter(self)
            opened.callback(workflows.leave, self)
            await self._register_queues()
            opened.push_async_callback(self._stop)
            self._closing = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def _open_account(self, client: FluxClient) -> None:
        database, account = self._engine.database, client.fingerprint
        with suppress(FluxError):  # so that the first submit is as quick as the others
            await client.credits(timeout=_FIRST_REQUEST_S)
        await self._limiter.register(account, self._rate)
        for row in await database.rows(
            "SELECT name, value FROM flux_async.fact WHERE name LIKE 'confirmed%%'"
        ):
            api, sent = row["name"].rpartition(" ")[2], client.session.submitter.sent
            (sent.confirmed_images if "image" in row["name"] else sent.confirmed)[api] = int(row["value"])
        store = PostgresStore(database=database, account=account, executor=self._executor)
        self._accounts[account] = _Account(client, store, RunControl(session=client.session))

    async def _hold_lock(self, opened: AsyncExitStack) -> None:
        """Take the lock of this worker's name; it is held until the worker has stopped."""
        held = asyncio.Event()
        liveness = Liveness(database=self._engine.database, executor=self._executor, on_news=self._has_news)
        self._liveness = liveness
        self._start_beside(opened, partial(liveness.run, held.set))
        await held.wait()

    def _start_beside(self, opened: AsyncExitStack, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run work until the worker has stopped."""
        task = asyncio.get_running_loop().create_task(work())

        async def end() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        opened.push_async_callback(end)

    async def _watch_credits(self, least: float) -> None:
        while True:
            await self._engine.database.clock.sleep(BALANCE_S)
            await check_credits(self._limiter, self._clients, least)

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": "flux_async",
            "system_database_url": self._engine.database.sqlalchemy_url,
            "executor_id": self._executor,
            "application_version": "1",  # work of an earlier release is not left behind
            "log_level": "ERROR",  # while the server restarts it warns in pages
            "max_executor_threads": _THREADS,
        }
        DBOS(config=config)
        DBOS.listen_queues([SUBMIT_QUEUE, *map(watch_queue, self._accounts)])
        DBOS.launch()

    async def _register_queues(self) -> None:
        submits = SUBMITS_PER_KEY * len(self._accounts)
        watches = [(watch_queue(name), _WATCHED) for name in self._accounts]
        for name, most in [(SUBMIT_QUEUE, submits), *watches]:
            await DBOS.register_queue_async(
                name, worker_concurrency=most, polling_interval_sec=_QUEUE_POLL_S, on_conflict="always_update"
            )

    async def _stop(self) -> None:
        """End all work: submits in flight are answered and recorded, the rest goes to other workers."""
        self._is_stopping = True
        for account in self._accounts.values():
            account.control.stop()
        for account in self._accounts.values():
            for run in account.runs.values():
                await run.budget.all_posts_recorded()
        if self._owns_dbos:
            await _destroy()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._calls.aclose()
        await hand_over(self._engine.database, self._executor)
        await self._engine.database.execute(
            "DELETE FROM flux_async.worker WHERE executor = %(executor)s", executor=self._executor
        )

    async def is_idle(self) -> bool:
        """Return whether there is no work in the queues, for this or any other worker."""
        if await has_waiting(self._engine.database):
            return False
        found = await self._engine.database.client.list_workflows_async(
            status=["PENDING", "ENQUEUED"],
            queue_name=[SUBMIT_QUEUE, *map(watch_queue, self._accounts)],
            limit=1,
            load_input=False,
            load_output=False,
        )
        return not found

    def start(self, work: Callable[[int], Coroutine[Any, Any, None]], number: int) -> asyncio.Future[None]:
        """Run work on a job on the worker's event loop, whichever DBOS has, until the worker stops."""
        if asyncio.get_running_loop() is not self._loop:
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._work(work, number), self._loop))
        return asyncio.get_running_loop().create_task(self._work(work, number))

    async def _work(self, work: Callable[[int], Coroutine[Any, Any, None]], number: int) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._tasks.add(task)
        try:
            while True:
                try:
                    return await work(number)
                except JournalError as error:
                    logger.warning("work on job %d waits: %s", number, error.message)
                except Exception:  # the job must not be forgotten
                    logger.exception("work on job %d failed unexpectedly", number)
                await self._engine.database.clock.sleep(_FIRST_AGAIN_S)
        finally:
            self._tasks.discard(task)

    # --- submits ------------------------------------------------------------------------------------------

    async def submit(self, number: int) -> None:
        """Submit a job once, however often that needs to be tried, and enqueue the wait for its task."""
        async with self._alone(number):
            while not self._is_stopping:
                row = await self._row(number)
                stored = None if row is None else stored_job(row)
                if row is None or stored is None or stored.job.state in FINAL or row["settled"] is not None:
                    return
                match stored.job.state:
                    case JobState.PENDING if row["is_cancelled"]:
                        await self._park(number)
                        return
                    case JobState.PENDING:
                        await self._submit_once(row)
                    case JobState.SUBMITTING:
                        await self._put_in_doubt(row)
                    case _:
                        await enqueue_watch(
                            self._engine.database.client, row["batch"], stored, row["account"]
                        )
                        return
            raise asyncio.CancelledError  # the workflow stays begun, and is handed over

    @asynccontextmanager
    async def _alone(self, number: int) -> AsyncIterator[None]:
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

    async def _park(self, number: int) -> None:
        """Leave a job of a cancelled batch until it is resumed."""
        await self._engine.database.execute(
            "UPDATE flux_async.job SET is_queued = NULL WHERE number = %(number)s AND state = 'pending'",
            number=number,
        )

    async def _put_in_doubt(self, row: Row) -> None:
        """Record that the process that has written an intent has ended before it wrote the answer."""
        stored = stored_job(row)
        event = recover(stored.job, self._engine.database.clock.wall())
        if event is not None:
            store = PostgresStore(
                database=self._engine.database, account=row["account"], executor=self._executor
            )
            with suppress(JournalError):  # the answer came after all
                await store.record(stored.number, apply(stored.job, event), event, before=stored.job)

    async def _submit_once(self, row: Row) -> None:
        """Try to submit a job with the first permit; it may stay pending."""
        for account in self._accounts.values():
            await self._run_of(account, row["batch"])  # nothing is made between the permit and the POST
        permitted = await self._permitted()
        if permitted is None:
            return
        account, due = permitted
        run = await self._run_of(account, row["batch"])
        job = self._active_job(row, run)
        try:
            run.input_of(job)
            _check_price(run.budget.guard, job.model)
            run.budget.guard.give_up(job.model)  # others use the account, too: the balance proves nothing
            run.call.halts = account.client.session.submitter.halts
            left = await submit(job, run, 0.0)
        except InvalidInput as error:
            left = Leave(error)
        except JournalError as error:
            logger.warning("job %s was not submitted: %s", job.state.key, error.message)
            await self._engine.database.clock.sleep(_FENCED_S)
            return
        except FluxError as error:
            await self._halted(account, error)
            return
        finally:
            job.slots.give_back()
            run.prices.release(job)
        if isinstance(left, Leave) and left.error is not None:
            await self._settle(job.number, Problem.of(left.error))
        if job.posted_at is not None:
            await self._limiter.was_late(account.client.fingerprint, job.posted_at - due)
        if (pause_s := _pause_s(account)) > 0:
            is_rate_limited = isinstance(job.last_error, RateLimitedError)
            await self._limiter.pause(account.client.fingerprint, pause_s, is_rate_limited=is_rate_limited)

    async def _permitted(self) -> tuple[_Account, float] | None:
        """Wait for a permit of any account, and return when it was due; None if there is none for now."""
        clock = self._engine.database.clock
        async with self._turn:  # one permit at a time: see accounts.py
            if self._liveness is None or not self._liveness.is_held:
                await clock.sleep(_FENCED_S)
                return None
            pauses = {name: _pause_s(account) for name, account in self._accounts.items()}
            open_now = [name for name, pause_s in pauses.items() if not pause_s]
            permit = await self._limiter.permit(open_now)
            if permit is None:
                await clock.sleep(_HALTED_S if open_now else min(pauses.values()))
                return None
            due = clock.monotonic() + permit.wait_s
            await clock.sleep(permit.wait_s)
            if permit.wait_s and await self._limiter.is_paused(permit.account):
                return None
        return self._accounts[permit.account], due

    async def _saw_price(self, account: _Account, job: ActiveJob, credits_: float) -> None:
        """Keep the price that a record has shown, and halt the submits of the account if it is unexpected."""
        model, guards = job.model, [run.budget.guard for run in account.runs.values()]
        if guards[0].measured(model) is not None:
            return
        for guard in guards:
            guard.saw_figure(model, credits_)
        await account.store.record_price(str(model), credits_)
        try:
            _check_price(guards[0], model)
        except UnexpectedPrice as error:
            await self._halted(account, error)

    async def _halted(self, account: _Account, error: FluxError) -> None:
        """Halt the submits of an account for all workers: its key, its balance or its answers are wrong."""
        logger.error("the submits of account %s are halted: %s", account.client.fingerprint, error)
        await self._limiter.halt(account.client.fingerprint, Problem.of(error))
        account.client.session.submitter.breaker.release()

    # --- tasks --------------------------------------------------------------------------------------------

    async def watch(self, number: int) -> None:
        """Wait for the task of a job and save its image; or, in doubt, for a callback that names its task."""
        again_s = _FIRST_AGAIN_S
        async with self._alone(number):
            while not self._is_stopping:
                row = await self._row(number)
                is_left = row is not None and row["settled"] is None
                if row is None or not is_left or row["state"] in _NOT_SUBMITTED:
                    return  # one that is pending again is given to DBOS again
                if (account := self._accounts.get(row["account"])) is None:
                    logger.error("job %s was submitted with another key than this worker has", row["key"])
                elif await self._watch_once(row, account):
                    continue
                await self._engine.database.clock.sleep(again_s)
                again_s = min(2 * again_s, _LONGEST_AGAIN_S)
            raise asyncio.CancelledError

    async def _watch_once(self, row: Row, account: _Account) -> bool:
        """Work on a job after its submit; return whether something has come of it."""
        run = await self._run_of(account, row["batch"])
        job = self._active[row["number"]] = self._active_job(row, run)
        try:
            run.budget.guard.give_up(job.model)
            outcome = await run_job(job, run, submits=False)
        except FluxError as error:
            logger.warning("job %s waits: %s", row["key"], error.message)
            return False
        finally:
            job.slots.give_back()
            del self._active[row["number"]]
        if isinstance(outcome, Failed) and outcome.job is None:
            await self._settle(job.number, Problem.of(outcome.error))
            return True
        if job.state.state is JobState.IN_DOUBT:
            await self._settle(job.number)
        if job.state.state is JobState.DONE and job.state.credits:
            await self._saw_price(account, job, job.state.credits)
        return job.state.state in {*FINAL, JobState.IN_DOUBT, JobState.PENDING}

    def _has_news(self, number: int, task_id: str) -> None:
        """Look at once for the task of a job, because a callback came for it."""
        if number == NEW_JOBS:
            self._has_new.set()
        job = self._active.get(number)
        if job is None:
            return
        job.wakeup.set()
        for account in self._accounts.values():
            account.client.poller.notify(TaskId(task_id))

    # --- one job ------------------------------------------------------------------------------------------

    async def _row(self, number: int) -> Row | None:
        return await self._engine.database.row(
            f"SELECT {COLUMNS}, job.priority, job.settled, batch.is_cancelled, attempt.account "
            "FROM flux_async.job JOIN flux_async.batch ON batch.name = job.batch "
            "LEFT JOIN flux_async.attempt ON attempt.job = job.number AND attempt.number = job.attempts "
            "WHERE job.number = %(number)s",
            number=number,
        )

    async def _settle(self, number: int, obstacle: Problem | None = None) -> None:
        """Report a job as it is: nothing more is done for it."""
        problem = None if obstacle is None else json.dumps(attrs.asdict(obstacle))
        await self._engine.database.execute(
            "UPDATE flux_async.job SET settled = nextval('flux_async.settled'), obstacle = %(problem)s "
            "WHERE number = %(number)s AND settled IS NULL",
            number=number,
            problem=problem,
        )

    def _active_job(self, row: Row, run: RunContext) -> ActiveJob:
        job = ActiveJob(stored=stored_job(row), slots=JobSlots(run.slots), callback_may_come=True)
        job.was_resubmitted = row["attempts"] > 1  # once, or an outage would cost without end
        return job

    async def _run_of(self, account: _Account, batch: str) -> RunContext:
        """Return what the jobs of one batch and one account share."""
        if batch in account.runs:
            return account.runs[batch]
        row = await self._engine.database.row(
            "SELECT options FROM flux_async.batch WHERE name = %(batch)s", batch=batch
        )
        assert row is not None  # noqa: S101 - it has this job
        prices = await account.store.prices()
        if batch not in account.runs:
            run = account.runs[batch] = self._new_run(account, batch, row["options"])
            run.budget.guard.load(prices)
            await self._calls.enter_async_context(run.call)
        return account.runs[batch]

    def _new_run(self, account: _Account, batch: str, options: dict[str, Any]) -> RunContext:
        session, tally = account.client.session, Tally()
        run = RunContext(
            client=account.client,
            journal=account.store,
            options=RunOptions(
                sink=None if self._sink_of is None else self._sink_of(safe_name(batch)),
                directory=None,
                originals=None,
                timeout_s=options["timeout_s"],
                retry=RetryPolicy(max_paid_attempts=options["max_paid_attempts"]),
                patience_s=_PATIENCE_S,
                callbacks=self._callbacks,
                in_doubt=InDoubtPolicy(options["in_doubt"]),
                via_upload=False,
            ),
            names=FileNames(journal=account.store, name_file=None, place=batch),
            control=account.control,
            budget=Budget(
                control=account.control,
                tally=tally,
                guard=PriceGuard(expected=self._expected, given=self._given),
                max_credits=None,
            ),
            progress=ProgressReporter(session=session, tally=tally, observer=None),
        )
        run.call = session.call()
        return run


def _check_price(guard: PriceGuard, model: AnyModel) -> None:
    """Refuse a submit with a model whose records show another price than expected.

    Raises:
        UnexpectedPrice: They do.
    """
    if (price := guard.unexpected(model)) is not None:
        expected = guard.expected[model]
        words = f"An image with {model} cost {price:.10g} credits, not {expected:.10g}."
        raise UnexpectedPrice(words, model=str(model), price=price, expected=expected)


def _pause_s(account: _Account) -> float:
    """Return the seconds for which the vendor, or the lack of a connection, delays submits of an account."""
    session = account.client.session
    return session.submitter.pause.delay(session.clock.monotonic()) if session.submitter.pause.is_on else 0.0


async def _destroy() -> None:
    """End DBOS. It has made its own threads those of the event loop, which would have none afterwards."""
    await anyio.to_thread.run_sync(DBOS.destroy)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())


async def _executor_of_application() -> str:
    """Return the executor id of the DBOS that this process has launched; empty if it has none."""
    try:
        await DBOS.retrieve_queue_async(SUBMIT_QUEUE)
    except dbos_errors.DBOSException:
        return ""
    return str(DBOS.executor_id)
