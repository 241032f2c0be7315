"""The journal of a run: every job, its state and its events, on disk.

State and event are written in one transaction. A method returns after the commit; ``synchronous=FULL`` in WAL
mode means that a commit survives a loss of power, not only the end of the process.

``Journal(":memory:")`` runs the same code without a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio.to_thread
import attrs

from flux_async.api.models_table import ApiName
from flux_async.api.stored_requests import store_request
from flux_async.clock import Clock, SystemClock, hold_of
from flux_async.errors import (
    JournalBusyError,
    JournalDisplaced,
    JournalError,
    WrongEventLoop,
)
from flux_async.images import LocalImage
from flux_async.job_state import (
    Event,
    JobSnapshot,
    JobState,
    Problem,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    SubmitUnknown,
    apply,
    recover,
)
from flux_async.journal import inbox, ownership
from flux_async.journal.adding import Added, Adding, EarlierRuns
from flux_async.journal.guard import JournalGuard, open_file
from flux_async.journal.inbox import InboxEntry
from flux_async.journal.lock import JournalLock
from flux_async.journal.ownership import KnownTask, PaidTask, Sender
from flux_async.journal.rows import StoredJob, select_jobs, write_event
from flux_async.journal.schema import (
    connect,
    connect_read_only,
    make_folder,
    read_meta,
    read_prices,
    resolve,
    write_meta,
    write_price,
)
from flux_async.journal.submit_log import LoggedSubmit
from flux_async.journal.writer import Reserve, Writer
from flux_async.models import CallbackEvent, EditRequest, Job, JobKey, TaskId

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Journal", "StoredJob"]

T = TypeVar("T")

_ANSWERS = (SubmitAccepted, SubmitRefused, SubmitRejected, SubmitUnknown)


class Journal:
    """The durable record of a batch.

    Args:
        path: The file, or ``":memory:"``.
        clock: The reader of time.
    """

    def __init__(self, path: str | os.PathLike[str] = ":memory:", *, clock: Clock | None = None) -> None:
        self._path = None if path == ":memory:" else resolve(path)
        self._clock = clock or SystemClock()
        self._running = False
        self._writer: Writer | None = None
        self._lock: JournalLock | None = None
        self._reserve: Reserve | None = None if self._path is None else Reserve(self._path)
        self._reading: sqlite3.Connection | None = None
        self._guard: JournalGuard | None = None
        self._earlier = EarlierRuns()
        self._waiting: dict[object, float] = {}
        self.callback_arrived: asyncio.Event = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Journal {self._path or ':memory:'}>"

    async def open(
        self, *, account: str = "", accept_lost_records: bool = False, may_be_new: bool = True
    ) -> Self:
        """Lock the journal and open the file; a new one is made if ``may_be_new``.

        Args:
            account: Fingerprint of the account whose tasks it holds. The journal of another one is refused,
                unless nothing was paid in it.
            accept_lost_records: Open it also if it lacks records of submits: the jobs that they may belong to
                are put in doubt first, jobs that are not in the journal when they are added again.
            may_be_new: False refuses a path that holds no journal, and an empty file.

        Raises:
            JournalBusyError: Another run uses it.
            JournalRecordsLost: It lacks records of submits, which may be paid.
            JournalVersionError: It has an unsupported version.
            JournalError: It is damaged, another program's, or cannot be written; it was left as it is.
        """
        if self._writer is not None:
            raise JournalError("The journal is open already.", advice="Open it once, and close it.")
        if self._path is not None:
            make_folder(self._path, may_be_new=may_be_new)
            self._lock = JournalLock.take(self._path, at=self._clock.wall())
        try:
            make_room = (lambda: False) if self._reserve is None else self._reserve.release_step
            connect = partial(self._connect, accept_lost_records=accept_lost_records, may_be_new=may_be_new)
            self._guard = None if self._path is None else JournalGuard(self._path)
            hold = hold_of(self._clock)
            self._writer = Writer(connect, asyncio.get_running_loop(), make_room, self._guard, hold)
            await self._writer.start()
            await self._do(lambda c: ownership.check_account(c, account))
            (newest,) = await self._do(lambda c: c.execute("SELECT max(number) FROM job").fetchone())
            self._earlier = EarlierRuns(newest=newest or 0)
        except BaseException:
            if self._lock is not None:
                self._lock.leaves_no_file = True
            await self.aclose()
            raise
        return self

    async def aclose(self) -> None:
        """Finish the waiting writes, close the file, release the lock."""
        writer, self._writer = self._writer, None
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
        try:
            if writer is not None:
                await writer.stop()
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                if self._reserve is not None:
                    self._reserve.release()
                lock.release()

    async def __aenter__(self) -> Self:
        return self if self._writer is not None else await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def is_durable(self) -> bool:
        """Whether it is a file."""
        return self._path is not None

    async def account(self) -> str:
        """Return the fingerprint of the account it belongs to; empty if it belongs to none yet."""
        return await self._do(lambda c: read_meta(c, "account")) or ""

    async def rekey(self, account: str) -> None:
        """Set the account, by the fingerprint of its client, without any check.

        :func:`flux_async.rekey` checks first that the key is of the same account.
        """
        await self._do(lambda c: write_meta(c, "account", account))

    async def may_have_paid(self) -> bool:
        """Return whether a submit of this journal was charged, or may have been."""
        return await self._do(ownership.may_have_paid)

    async def paid_tasks(self, *, since: float, limit: int) -> list[PaidTask]:
        """Return tasks submitted since a time (seconds since the epoch): live ones first, then the newest."""
        return await self._do(lambda c: ownership.paid_tasks(c, since, limit))

    @contextlib.contextmanager
    def one_run(self) -> Iterator[None]:
        """Mark this open journal as being run.

        Raises:
            JournalBusyError: It is being run already.
        """
        if self._running:
            raise JournalBusyError("This journal is being run already.")
        self._running = True
        self._earlier = EarlierRuns(newest=self._earlier.newest)  # this run was given no jobs yet
        try:
            yield
        finally:
            self._running = False

    async def reserve_room(self) -> None:
        """Make sure that answers to submits can be written if the disk fills up.

        Raises:
            JournalError: It is full already.
        """
        if self._reserve is not None:
            await anyio.to_thread.run_sync(self._reserve.hold)

    async def displacement(self) -> JournalDisplaced | None:
        """Return the error of a journal that is no longer at its path, or None."""
        with contextlib.suppress(JournalError):  # a locked or full disk: what was noticed before counts
            await self._do(lambda _: None)
        return None if self._guard is None else self._guard.displaced

    @property
    def lag_s(self) -> float:
        """Seconds for which the oldest request has been waiting for its commit; 0 without one."""
        oldest = next(iter(self._waiting.values()), None)
        return 0.0 if oldest is None else self._clock.monotonic() - oldest

    @property
    def commits(self) -> int:
        """Transactions so far; fewer than writes if several were waiting at once."""
        return 0 if self._writer is None else self._writer.commits

    # --- writing ------------------------------------------------------------------------------------------

    async def add(
        self,
        entries: Sequence[tuple[JobKey, str]],
        *,
        sources: Mapping[JobKey, LocalImage] | None = None,
        is_chosen: Callable[[int], bool] = lambda _: False,
        trace: str | None = None,
        priority: int = 0,
    ) -> list[StoredJob]:
        """Add jobs that are not there yet; return all of them, each once, in order of arrival.

        Adding the same jobs again does nothing, so that a batch resumes when it is given its list again. An
        address with a new signature replaces the older one while its job waits for a submit. A new job of an
        image that was submitted under another signature is added and logged as a warning, also one whose
        address differs only in its query from one that an earlier run has submitted.

        Args:
            entries: Keys and requests.
            sources: The current files of local images.
            is_chosen: Returns by its number whether a run works on a job: its address stays.
            trace: The context of the trace of new jobs; without it they have one from their first submit on.
            priority: Priority of new jobs.

        Raises:
            JobConflictError: A key is there with another request; nothing of ``entries`` was added.
        """
        adding = partial(Adding, at=self._clock.wall(), earlier=self._earlier, is_chosen=is_chosen)
        adding = partial(adding, trace=trace, priority=priority)
        return await self._do(lambda c: adding(connection=c).add_all(entries, sources or {}))

    async def add_entries(
        self,
        entries: Sequence[tuple[JobKey, str]],
        *,
        sources: Mapping[JobKey, LocalImage],
        is_chosen: Callable[[int], bool],
        pays_again: bool,
        pays_similar: bool = True,
    ) -> list[Added]:
        """Add jobs as :meth:`add` does and return the result of each entry; a conflict is such a result.

        ``pays_again`` and ``pays_similar`` allow jobs that may be charged again; see :class:`Adding`.
        """
        adding = partial(Adding, at=self._clock.wall(), earlier=self._earlier, is_chosen=is_chosen)
        adding = partial(adding, pays_again=pays_again, pays_similar=pays_similar)
        return await self._do(lambda c: adding(connection=c).add(entries, sources))

    async def add_jobs(
        self,
        jobs: Sequence[Job],
        *,
        is_chosen: Callable[[int], bool] = lambda _: False,
        trace: str | None = None,
        priority: int = 0,
    ) -> list[StoredJob]:
        """Add jobs as :meth:`add` does; from its return on they are on disk.

        A running batch receives them from its inputs, a later one from :meth:`pending_jobs`. The callback
        address is left out: it belongs to an attempt, not to the job.
        """
        entries, sources = [], dict[JobKey, LocalImage]()
        for job in jobs:
            request = job.request
            if request.callback_url is not None:
                request = attrs.evolve(request, callback_url=None)
            entries.append((job.key, store_request(request)))
            image = job.request.input_image if isinstance(job.request, EditRequest) else ""
            if isinstance(image, LocalImage) and image.path is not None:
                sources[job.key] = image
        return await self.add(entries, sources=sources, is_chosen=is_chosen, trace=trace, priority=priority)

    async def take_names(self, names: Mapping[int, str]) -> dict[int, JobKey]:
        """Assign file names to jobs by number; return the jobs whose names are taken, and by which job."""
        return await self._do(lambda c: ownership.take_names(c, names))

    async def queue(self) -> list[tuple[int, int, JobKey]]:
        """Return priority, number and key of the pending jobs, the first to be submitted first."""
        sql = "SELECT priority, number, key FROM job WHERE state = ? ORDER BY priority DESC, number"
        return await self._do(lambda c: c.execute(sql, (JobState.PENDING,)).fetchall())

    async def pending_jobs(self) -> AsyncIterator[Job]:
        """Yield the jobs that wait for their first submit, or for another, in order of arrival."""
        async for stored in self.iter_jobs(JobState.PENDING):
            yield stored.as_job()

    async def record(
        self,
        number: int,
        job: JobSnapshot,
        event: Event,
        *,
        before: JobSnapshot | None = None,
        then: tuple[JobSnapshot, Event] | None = None,
    ) -> None:
        """Write an event and the job after it; returns after the commit.

        Args:
            number: The job's number.
            job: The job after the event.
            event: The event.
            before: The job before the event; the write is refused if the journal has another state by now.
            then: The job after a second event, and that event: both are written, or none.

        Raises:
            JournalDisplaced: The journal is no longer at its path; the error says where its records are,
                with this one.
        """

        def write(connection: sqlite3.Connection) -> LoggedSubmit | None:
            written = write_event(connection, number, job, event, before)
            if then is not None:
                write_event(connection, number, *then, job)
            return LoggedSubmit(written, float(event.at), job.key) if submits else None

        submits = isinstance(event, SubmitIntended)
        is_answer = isinstance(event, _ANSWERS)
        try:
            await self._do(write, critical=is_answer, submits=job.key if submits else None)
        except JournalError as error:
            if submits:
                await self._take_back(number, job, error)
            raise
        if self._guard is not None and self._guard.displaced is not None and not is_answer:
            raise copy(self._guard.displaced)

    async def _take_back(self, number: int, job: JobSnapshot, error: JournalError) -> None:
        """Record that a request was not sent, if its intent was committed."""
        event = SubmitRefused(at=self._clock.wall(), problem=Problem.of(error))

        def write(connection: sqlite3.Connection) -> None:
            sql = "SELECT 1 FROM job WHERE number = ? AND state = ? AND attempts = ?"
            if connection.execute(sql, (number, job.state, job.attempts)).fetchone() is not None:
                write_event(connection, number, apply(job, event), event, job)

        with contextlib.suppress(JournalError):  # then it is in doubt
            await self._do(write, critical=True)

    async def recover(self) -> None:
        """Put jobs in doubt whose submit the end of a process interrupted; a run does so first of all."""
        while left := await self.jobs(JobState.SUBMITTING):
            for stored in left:
                event = recover(stored.job, self._clock.wall())
                if event is not None:
                    await self.record(stored.number, apply(stored.job, event), event, before=stored.job)

    async def record_generation_times(self, text: str) -> None:
        """Store the learned generation times, in place of earlier ones."""
        await self._do(lambda c: write_meta(c, "generation_times", text))

    async def generation_times(self) -> str | None:
        """Return the generation times that an earlier run has learned, if any."""
        return await self._do(lambda c: read_meta(c, "generation_times"))

    async def record_price(self, model: str, credits_: float) -> None:
        """Store the price of a model, by its name, that a run has measured."""
        await self._do(lambda c: write_price(c, model, credits_))

    async def prices(self) -> dict[str, float]:
        """Return the prices that earlier runs have measured, by name of the model."""
        return await self._do(read_prices)

    async def record_halt(self, *, ended_in_it: bool) -> None:
        """Store whether the last run was halted by answers that made no sense."""
        await self._do(lambda c: write_meta(c, "circuit_breaker", "halted" if ended_in_it else None))

    async def ended_in_halt(self) -> bool:
        """Return whether the last run was halted so and no submit has been accepted since."""
        return await self._do(lambda c: read_meta(c, "circuit_breaker")) is not None

    # --- callbacks ----------------------------------------------------------------------------------------

    async def receive(self, event: CallbackEvent) -> None:
        """Store a callback that names an attempt of this journal; set ``callback_arrived`` after it."""
        if event.attempt_id is None:
            return
        at = self._clock.wall()
        try:
            await self._do(lambda c: inbox.store_callback(c, event, at))
        except WrongEventLoop:
            raise
        except BaseException:
            self.callback_arrived.set()  # a cancelled caller has written it all the same
            raise
        self.callback_arrived.set()

    async def callbacks_after(self, number: int) -> tuple[list[InboxEntry], int]:
        """Return the callbacks after ``number`` whose jobs wait for something, and the newest number."""
        return await self._do(lambda c: inbox.unsettled_after(c, number))

    async def callbacks_for(self, job: int) -> list[InboxEntry]:
        """Return the callbacks that name attempts of a job whose task is unknown, by the job's number."""
        return await self._do(lambda c: inbox.entries_for(c, job))

    async def newest_callback(self) -> int:
        """Return the number of the newest callback, also if another process has received it."""
        if self._path is None:
            return 0
        return await anyio.to_thread.run_sync(self._read_newest_callback, self._path)

    def _read_newest_callback(self, path: Path) -> int:
        """Read the number on a connection of its own, as the writer would start a transaction."""
        import sqlite3

        try:
            if self._reading is None:
                self._reading = connect_read_only(path)
            return int(self._reading.execute("SELECT max(number) FROM inbox").fetchone()[0] or 0)
        except sqlite3.Error:
            return 0  # it cannot be read now

    async def attempt(self, job: int, number: int) -> tuple[float, str | None]:
        """Return the time of an attempt's intent (seconds since the epoch), and its callback id."""
        sql = "SELECT intended_at, callback_id FROM attempt WHERE job = ? AND number = ?"
        row = await self._do(lambda c: c.execute(sql, (job, number)).fetchone())
        return row[0], row[1]

    async def owner_of(self, task_id: TaskId) -> JobKey | None:
        """Return the job that a task belongs to, or once belonged to."""
        return await self._do(lambda c: ownership.owner_of(c, task_id))

    async def input_urls(self, job: int) -> list[str | None]:
        """Return the image URLs that the submits of a job, by its number, have sent, the latest first.

        None stands for the address in the request.
        """
        return await self._do(lambda c: ownership.input_urls(c, job))

    async def job_that_sent(
        self, shown: Mapping[str, Any], *, besides: int, verbatim: bool = False, by_image: bool = False
    ) -> Sender | None:
        """Return another job than ``besides``, a number, whose submit a record's ``paramJson`` shows.

        With ``verbatim`` the request must be the same character by character, in all that is shown. With
        ``by_image`` it is enough that the image is the same.
        """
        find = partial(ownership.job_that_sent, besides=besides, verbatim=verbatim, by_image=by_image)
        return await self._do(lambda c: find(c, shown))

    async def offers_to(self, job: int) -> list[KnownTask]:
        """Return tasks that belong to no job and whose records show the request of a job, by its number."""
        return await self._do(lambda c: ownership.offers_to(c, job))

    async def candidates(self, job: int) -> list[TaskId]:
        """Return the tasks that may be a job's, by its number: the ids in odd answers to its submits."""
        return await self._do(lambda c: ownership.candidates(c, job))

    async def apis_of(self, job: int) -> list[ApiName]:
        """Return the APIs that a job, by its number, was submitted to, the latest first."""
        return await self._do(lambda c: ownership.apis_of(c, job))

    async def confirmed_echoes(self, api: ApiName) -> tuple[int, int]:
        """Return how many records of an API have shown the request as it was sent, and how many the image."""
        return await self._do(lambda c: ownership.confirmed_echoes(c, api))

    async def count_image_echo(self, api: ApiName) -> None:
        """Count a record of an API that has shown the image as it was sent."""
        await self._do(lambda c: ownership.count_image_echo(c, api))

    # --- reading ------------------------------------------------------------------------------------------

    async def jobs(
        self,
        state: JobState,
        *,
        after: int = 0,
        limit: int = 100,
        older: tuple[ApiName, float] | None = None,
        only_undecided: bool = False,
    ) -> list[StoredJob]:
        """Return up to ``limit`` jobs in ``state``, in order of arrival, after number ``after``.

        ``older`` leaves out all but the tasks of an API from before a time (seconds since the epoch),
        ``only_undecided`` all but the jobs with an earlier result that is kept.
        """
        where, values = "state = ? AND number > ?", [state, after]
        if older is not None:
            where, values = f"{where} AND api = ? AND submitted_at < ?", [*values, *older]
        if only_undecided:
            where = f"{where} AND kept IS NOT NULL"
        return await self._do(lambda c: select_jobs(c, f"{where} ORDER BY number LIMIT ?", *values, limit))

    async def iter_jobs(
        self,
        state: JobState,
        *,
        older: tuple[ApiName, float] | None = None,
        only_undecided: bool = False,
    ) -> AsyncIterator[StoredJob]:
        """Yield the jobs in ``state``, in order of arrival; a job may move to another state meanwhile."""
        after = 0
        while page := await self.jobs(state, after=after, older=older, only_undecided=only_undecided):
            for stored in page:
                yield stored
            after = page[-1].number

    async def job(self, key: str) -> StoredJob | None:
        """Return one job, or None."""
        found = await self._do(lambda c: select_jobs(c, "key = ?", key))
        return found[0] if found else None

    async def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        rows = await self._do(
            lambda c: c.execute("SELECT state, count(*) FROM job GROUP BY state").fetchall()
        )
        return {JobState(state): count for state, count in rows}

    async def submits_since(self, at: float) -> list[float]:
        """Return the times of intents since ``at`` (seconds since the epoch), oldest first."""
        sql = "SELECT intended_at FROM attempt WHERE intended_at >= ? ORDER BY intended_at"
        return [row[0] for row in await self._do(lambda c: c.execute(sql, (at,)).fetchall())]

    # --- how ----------------------------------------------------------------------------------------------

    async def _do(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        critical: bool = False,
        submits: JobKey | None = None,
    ) -> T:
        if self._writer is None:
            raise JournalError("The journal is not open.", advice="Use it as `async with`, or call open().")
        waits = object()
        self._waiting[waits] = self._clock.monotonic()
        try:
            return await self._writer.do(work, critical=critical, submits=submits)
        finally:
            del self._waiting[waits]

    def _connect(self, *, accept_lost_records: bool, may_be_new: bool) -> sqlite3.Connection:
        if self._path is None:
            return connect()
        accept_lost_at = self._clock.wall() if accept_lost_records else None
        return open_file(self._path, checks_pages=True, accept_lost_at=accept_lost_at, may_be_new=may_be_new)
