"""A process that submits jobs and saves results, beside others that do the same.

Rules:

1. A workflow of DBOS says only that there is work to do for a job; what to do says the job's state. So
   running a workflow again, or twice, does no harm.
2. Work on one job happens once at a time in a process.

Its submits are in ``job_submitter.py``, the rest of a job in ``task_watcher.py``; what these share is in
``worker_jobs.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio.to_thread
from dbos import DBOS, DBOSConfig
from dbos import error as dbos_errors

from flux_async.api.models_table import Prices
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.check_stage import Checker
from flux_async.batch.options import price_list
from flux_async.batch.run_control import RunControl
from flux_async.client import FluxClient
from flux_async.engine import workflows
from flux_async.engine.accounts import Accounts
from flux_async.engine.engine import Engine
from flux_async.engine.housekeeping import BALANCE_S, check_credits, queue_jobs, tidy, watch_tasks_left
from flux_async.engine.job_submitter import JobSubmitter
from flux_async.engine.liveness import Liveness, hand_over
from flux_async.engine.queues import SUBMIT_QUEUE, has_submitted, has_waiting, watch_queue
from flux_async.engine.store import NEW_JOBS, PostgresStore
from flux_async.engine.task_watcher import TaskWatcher
from flux_async.engine.worker_checks import WorkerChecks
from flux_async.engine.worker_jobs import Account, WorkerJobs, WorkerSettings
from flux_async.errors import ConfigurationError, FluxError, InvalidInput, JournalError
from flux_async.files.sink import Sink
from flux_async.job_state import Problem
from flux_async.policy import check_not_negative
from flux_async.policy.rate_limit import Limits
from flux_async.verification.preserve import PreserveFormat

logger: logging.Logger = logging.getLogger("flux_async.engine")

WORKER_LIMITS = Limits(submits=10_000, window_s=10.0, in_flight=10_000)
"""Limits of a worker's clients: the database limits the submits of an account."""

SUBMITS_PER_KEY = 6
"""Submits that one worker has claimed at once."""
_WATCHED = 10_000
_QUEUE_POLL_S = 1.0
_AGAIN_S = 15.0
_FIRST_REQUEST_S = 10.0
_THREADS = 32


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
        verify: Verify each result, as :func:`flux_async.run_batch` does; a job settles after it. It needs
            ``sink_of`` to return a :class:`flux_async.FolderSink`. Give all workers of a database the same
            checks: each makes those that it was given.
        preserve: Compose each result with its original, before ``verify``; needs the same. Originals are
            downloaded into the folder ``originals`` in that of the batch.
        preserve_format: Format of composed images.
        checks: Worker processes that others share, an :class:`flux_async.ImageChecks`; left out, the worker
            has its own.

    Raises:
        InvalidInput: An option has a wrong type, or ``verify`` or ``preserve`` has no folder.
        MissingExtra: ``verify`` or ``preserve`` needs an extra that is not installed.
        ConfigurationError: The database does not answer, DBOS runs with the executor id ``local``, or the
            process has a worker already.
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
        verify: bool = False,
        preserve: bool = False,
        preserve_format: PreserveFormat = "png",
        checks: Checker | None = None,
    ) -> None:
        made = WorkerChecks.of(verify=verify, preserve=preserve, format=preserve_format, checker=checks)
        if made is not None:
            made.stage(None if sink_of is None else sink_of("batch"))  # refuses what is no folder
        self._settings = WorkerSettings(
            sink_of=sink_of,
            callbacks=callbacks,
            expected=price_list(prices),
            given=frozenset(prices or ()),
            checks=made,
        )
        self._min_credits = None if min_credits is None else check_not_negative(min_credits, "min_credits")
        self._engine = engine
        self._clients = [clients] if isinstance(clients, FluxClient) else list(clients)
        if not self._clients:
            raise InvalidInput("A worker needs a client.")
        self._rate = Limits() if rate is None else rate
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_new = asyncio.Event()
        self._owns_dbos = False
        self._closing = AsyncExitStack()

    @property
    def executor(self) -> str:
        """The worker's name."""
        return self._jobs.executor

    async def __aenter__(self) -> Self:
        workflows.check_free()
        database, self._loop = self._engine.database, asyncio.get_running_loop()
        await database.open()
        limiter, executor = Accounts(database), await self._name()
        self._jobs = WorkerJobs(
            database=database, executor=executor, settings=self._settings, limiter=limiter
        )
        self._watcher = TaskWatcher(self._jobs)
        async with AsyncExitStack() as opened:
            for client in self._clients:
                await self._open_account(client)
            liveness = await self._hold_lock(opened)
            self._submitter = JobSubmitter(self._jobs, lambda: liveness.is_held)
            self._start_beside(opened, partial(queue_jobs, database, self._has_new))
            self._start_beside(opened, partial(watch_tasks_left, database))
            self._start_beside(opened, partial(tidy, database))
            if (least := self._min_credits) is not None:
                await check_credits(limiter, self._clients, least)
                self._start_beside(opened, partial(self._watch_credits, least))
            if self._owns_dbos:
                self._launch()
                opened.push_async_callback(_destroy)
            workflows.enter(self)
            opened.callback(workflows.leave, self)
            await self._register_queues()
            if (checks := self._settings.checks) is not None:
                opened.push_async_callback(checks.aclose)
            opened.push_async_callback(self._stop)
            self._closing = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def _name(self) -> str:
        """Return a name that no other process has: the executor id of DBOS.

        Raises:
            ConfigurationError: The application has launched DBOS without one.
        """
        executor = await _executor_of_application()
        self._owns_dbos = not executor
        if executor == "local":
            raise ConfigurationError(
                "DBOS runs with the executor id 'local', which every process has.",
                advice="Give DBOS an executor_id that is unique to this process.",
            )
        return executor or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    async def _open_account(self, client: FluxClient) -> None:
        database, account = self._engine.database, client.fingerprint
        with suppress(FluxError):  # so that the first submit is as quick as the others
            await client.credits(timeout=_FIRST_REQUEST_S)
        await self._jobs.limiter.register(account, self._rate)
        for row in await database.rows(
            "SELECT name, value FROM flux_async.fact WHERE name LIKE 'confirmed%%'"
        ):
            api, sent = row["name"].rpartition(" ")[2], client.session.submitter.sent
            (sent.confirmed_images if "image" in row["name"] else sent.confirmed)[api] = int(row["value"])
        store = PostgresStore(
            database=database,
            account=account,
            executor=self._jobs.executor,
            has_checks=self._settings.checks is not None,
        )
        self._jobs.accounts[account] = Account(client, store, RunControl(session=client.session))

    async def _hold_lock(self, opened: AsyncExitStack) -> Liveness:
        """Take the lock of this worker's name; it is held until the worker has stopped."""
        held = asyncio.Event()
        liveness = Liveness(
            database=self._engine.database, executor=self._jobs.executor, on_news=self._notify
        )
        self._start_beside(opened, partial(liveness.run, held.set))
        await held.wait()
        return liveness

    def _notify(self, number: int, task_id: str) -> None:
        """Read the database at once for new jobs, or poll the task of a job."""
        if number == NEW_JOBS:
            self._has_new.set()
        else:
            self._watcher.notify(number, task_id)

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
            await check_credits(self._jobs.limiter, self._clients, least)

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": "flux_async",
            "system_database_url": self._engine.database.sqlalchemy_url,
            "executor_id": self._jobs.executor,
            "application_version": "1",  # work of an earlier release is not left behind
            "log_level": "ERROR",  # while the server restarts it warns in pages
            "max_executor_threads": _THREADS,
        }
        DBOS(config=config)
        DBOS.listen_queues([SUBMIT_QUEUE, *map(watch_queue, self._jobs.accounts)])
        DBOS.launch()

    async def _register_queues(self) -> None:
        submits = SUBMITS_PER_KEY * len(self._jobs.accounts)
        watches = [(watch_queue(name), _WATCHED) for name in self._jobs.accounts]
        for name, most in [(SUBMIT_QUEUE, submits), *watches]:
            await DBOS.register_queue_async(
                name, worker_concurrency=most, polling_interval_sec=_QUEUE_POLL_S, on_conflict="always_update"
            )

    async def _stop(self) -> None:
        """End all work: submits in flight are answered and recorded, the rest goes to other workers."""
        self._jobs.is_stopping = True
        for account in self._jobs.accounts.values():
            account.control.stop()
        for account in self._jobs.accounts.values():
            for run in account.runs.values():
                await run.budget.all_posts_recorded()
        if self._owns_dbos:
            await _destroy()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._jobs.calls.aclose()
        await hand_over(self._engine.database, self._jobs.executor)
        await self._engine.database.execute(
            "DELETE FROM flux_async.worker WHERE executor = %(executor)s", executor=self._jobs.executor
        )

    async def is_idle(self) -> bool:
        """Return whether there is no work left with these keys, for this or any other worker."""
        database = self._engine.database
        if await has_waiting(database) or await has_submitted(database, list(self._jobs.accounts)):
            return False
        found = await database.client.list_workflows_async(
            status=["PENDING", "ENQUEUED"],
            queue_name=[SUBMIT_QUEUE, *map(watch_queue, self._jobs.accounts)],
            limit=1,
            load_input=False,
            load_output=False,
        )
        return not found

    async def halted(self) -> Problem | None:
        """Return why no submit can be made now: results cannot be saved, or no key can pay.

        None while one can, or while tasks of other submits with these keys have no outcome yet.
        """
        if (unsaved := self._jobs.unsaved) is not None:
            return Problem.of(unsaved.error)
        if await has_submitted(self._engine.database, list(self._jobs.accounts)):
            return None
        problems = [await self._jobs.limiter.halted(name) for name in self._jobs.accounts]
        return problems[0] if all(problems) else None

    def submit(self, number: int) -> asyncio.Future[None]:
        """Submit a job, by its number; for the workflow of DBOS."""
        return self._start(self._submitter.submit, number)

    def watch(self, number: int) -> asyncio.Future[None]:
        """Wait for the task of a job, by its number, and save its image; for the workflow of DBOS."""
        return self._start(self._watcher.watch, number)

    def _start(self, work: Callable[[int], Coroutine[Any, Any, None]], number: int) -> asyncio.Future[None]:
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
                await self._engine.database.clock.sleep(_AGAIN_S)
        finally:
            self._tasks.discard(task)


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
