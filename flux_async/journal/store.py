"""What is on disk, and when is it safe?

The journal keeps, for every job, what was asked for and where it stands, and beside it a log of everything
that happened. State and log are written in one transaction. A method returns after the commit;
``synchronous=FULL`` in WAL mode means that a commit survives the loss of power, not only of the process.

``Journal(":memory:")`` runs the same code without a file: nothing survives the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio.to_thread
import attrs

from flux_async.api.stored_requests import store_request
from flux_async.clock import Clock, SystemClock, hold_of
from flux_async.errors import (
    JournalBusyError,
    JournalDisplaced,
    JournalError,
    WrongEventLoop,
    shown,
)
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
from flux_async.journal.adding import Added, Adding, EarlierRuns, as_new
from flux_async.journal.guard import JournalGuard, open_file
from flux_async.journal.inbox import InboxEntry, InboxWatch
from flux_async.journal.lock import JournalLock
from flux_async.journal.ownership import PaidTask, Sender
from flux_async.journal.rows import StoredJob, put_in_doubt, select_jobs, write_event
from flux_async.journal.schema import connect, make_folder, read_meta, write_meta
from flux_async.journal.submit_log import LoggedSubmit
from flux_async.journal.writer import Reserve, Writer
from flux_async.models import CallbackEvent, EditRequest, Job, JobKey, LocalImage, TaskId

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Journal", "StoredJob"]

logger: logging.Logger = logging.getLogger("flux_async")

T = TypeVar("T")

_PAID_AGAIN = (
    "%d jobs are about images that this journal has submitted under another signature of their address: they "
    "will be paid for again. Give jobs keys of their own to make them the same jobs"
)
_SIMILAR = (
    "%d jobs have addresses that differ only in the query from ones that an earlier run of this journal has "
    "submitted: they will be paid for. If they are the same images, give jobs keys of their own"
)

_ANSWERS = (SubmitAccepted, SubmitRefused, SubmitRejected, SubmitUnknown)


class Journal:
    """The durable record of a batch.

    Args:
        path: The file, or ``":memory:"``.
        clock: The reader of time.
    """

    def __init__(self, path: str | os.PathLike[str] = ":memory:", *, clock: Clock | None = None) -> None:
        # Resolved, so that one file has one lock file, whatever the links that lead to it.
        try:
            self._path = None if path == ":memory:" else Path(path).resolve()
        except (OSError, TypeError, ValueError) as error:
            raise JournalError(f"{shown(path)} is no path for a journal: {error}.") from None
        self._clock = clock or SystemClock()
        self._running = False
        self._writer: Writer | None = None
        self._lock: JournalLock | None = None
        self._reserve: Reserve | None = None if self._path is None else Reserve(self._path)
        self._watch: InboxWatch | None = None
        self._guard: JournalGuard | None = None
        self._earlier = EarlierRuns()
        self.mail: asyncio.Event = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Journal {self._path or ':memory:'}>"

    async def open(self, *, account: str = "", accept_lost_records: bool = False) -> Self:
        """Take the lease and open the file; a new one is made.

        Args:
            account: Fingerprint of the account whose tasks it holds. Another one's journal is
                refused, unless nothing was paid in it.
            accept_lost_records: Open it also where it lacks records of submits: the jobs that they may belong
                to are put in doubt first, those that it does not know when they are given again.

        Raises:
            JournalBusyError: Somebody else is running it.
            JournalRecordsLost: It lacks records of submits, which may be paid.
            JournalVersionError: It has an unsupported version.
            JournalError: It is damaged, somebody else's, or cannot be written; it was left as it is.
        """
        if self._writer is not None:
            raise JournalError("The journal is open already.", advice="Open it once, and close it.")
        if self._path is not None:
            make_folder(self._path)
            # The lease comes first: a look at the file of a run in this process would drop its locks.
            self._lock = JournalLock.take(self._path, at=self._clock.wall())
        try:
            make_room = (lambda: False) if self._reserve is None else self._reserve.release_step
            connect = partial(self._connect, accept_lost_records=accept_lost_records)
            self._guard = None if self._path is None else JournalGuard(self._path)
            hold = hold_of(self._clock)
            self._writer = Writer(connect, asyncio.get_running_loop(), make_room, self._guard, hold)
            await self._writer.start()
            await self._do(lambda c: ownership.check_account(c, account))
            newest = "SELECT max(number) FROM job"
            self._earlier = EarlierRuns(newest=await self._do(lambda c: c.execute(newest).fetchone()[0]) or 0)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def aclose(self) -> None:
        """Write what is waiting, close the file, let go of the lease."""
        writer, self._writer = self._writer, None
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        try:
            if writer is not None:
                await writer.stop()
        finally:
            lease, self._lock = self._lock, None
            if lease is not None:
                if self._reserve is not None:
                    self._reserve.release()
                lease.release()

    async def __aenter__(self) -> Self:
        return self if self._writer is not None else await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def is_durable(self) -> bool:
        """Whether it outlives the process."""
        return self._path is not None

    async def account(self) -> str:
        """Return the fingerprint of the account it belongs to; empty where it belongs to none yet."""
        return await self._do(lambda c: read_meta(c, "account")) or ""

    async def rekey(self, account: str) -> None:
        """Give the journal to another key, by its client's fingerprint, without any check.

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
        """Be the one run of this open journal.

        Raises:
            JournalBusyError: There is one already.
        """
        if self._running:
            raise JournalBusyError("This journal is being run already.")
        self._running = True
        self._earlier = EarlierRuns(newest=self._earlier.newest)  # what the last run was given counts no more
        try:
            yield
        finally:
            self._running = False

    async def hold_room(self) -> None:
        """Make sure that answers to submits can be written where the disk fills up.

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
    def commits(self) -> int:
        """Transactions so far; fewer than writes where several were waiting at once."""
        return 0 if self._writer is None else self._writer.commits

    # --- writing ------------------------------------------------------------------------------------------

    async def add(
        self,
        entries: Sequence[tuple[JobKey, str]],
        *,
        sources: Mapping[JobKey, LocalImage] | None = None,
        is_chosen: Callable[[int], bool] = lambda _: False,
    ) -> list[StoredJob]:
        """Add jobs that are not there yet; return them all, each once, in order of arrival.

        Adding the same again does nothing, so giving a batch its list a second time resumes it. An address
        that was only signed anew takes the place of the older one, while its job waits for a submit. A new
        job of an image that was submitted under another signature is added, and the log warns of it; also of
        one whose address differs only in its query from one that an earlier run has submitted.

        Args:
            entries: Keys and requests.
            sources: Where the files of some of them are now.
            is_chosen: Says by its number whether a run has a job in hand, whose address then stays.

        Raises:
            JobConflictError: A key is there with another request; nothing of ``entries`` was added.
        """
        sources = sources or {}

        def add(connection: sqlite3.Connection) -> list[StoredJob]:
            adding = self._adding(connection, is_chosen, pays_again=True, pays_similar=True)
            found: dict[int, StoredJob] = {}
            added = adding.add(entries, sources)
            for (key, request), (number, stored, conflict, *_) in zip(entries, added, strict=True):
                if conflict is not None:
                    raise conflict
                if number is not None and number not in found:
                    found[number] = stored or as_new(number, key, request, sources.get(key))
            if again := sum(one.paid_as is not None for one in added):
                logger.warning(_PAID_AGAIN, again)
            if similar := sum(one.similar is not None for one in added):
                logger.warning(_SIMILAR, similar)
            return [found[number] for number in sorted(found)]

        return await self._do(add)

    async def take_in(
        self,
        entries: Sequence[tuple[JobKey, str]],
        *,
        sources: Mapping[JobKey, LocalImage],
        is_chosen: Callable[[int], bool],
        pays_again: bool,
        pays_similar: bool = True,
    ) -> list[Added]:
        """Add jobs as :meth:`add` does, and say of each entry what became of it; one that conflicts is alone.

        Args:
            entries: Keys and requests.
            sources: Where the files of some of them are now.
            is_chosen: Says by its number whether a job is part of the run already.
            pays_again: Whether to add a job whose image was submitted under another signature.
            pays_similar: Whether to add one whose address differs only in its query from one that an earlier
                run has submitted.
        """

        def add(connection: sqlite3.Connection) -> list[Added]:
            adding = self._adding(connection, is_chosen, pays_again=pays_again, pays_similar=pays_similar)
            return adding.add(entries, sources)

        return await self._do(add)

    async def add_jobs(
        self, jobs: Sequence[Job], *, is_chosen: Callable[[int], bool] = lambda _: False
    ) -> list[StoredJob]:
        """Add jobs as :meth:`add` does: from its return on they are kept, whoever runs the journal.

        A running batch learns of them from its inputs, a later one from :meth:`pending_jobs`. The address of
        a callback is left out: it belongs to an attempt, not to the job.
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
        return await self.add(entries, sources=sources, is_chosen=is_chosen)

    async def take_names(self, names: Mapping[int, str]) -> dict[int, JobKey]:
        """Give jobs, by their numbers, their file names; return those whose names others have, with whose."""
        return await self._do(lambda c: ownership.take_names(c, names))

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
        """Write the job as ``event`` left it, and the event. Returns after the commit.

        Args:
            number: The job's number.
            job: The job after the event.
            event: What happened.
            before: The job as it was; the write is refused where the journal has it otherwise by now.
            then: The job after an event that followed at once, and that event: both are written, or none.

        Raises:
            JournalDisplaced: The journal is no longer at its path; what it holds, this write included, is
                where the error says.
        """

        def write(connection: sqlite3.Connection) -> LoggedSubmit | None:
            place = write_event(connection, number, job, event, before)
            if then is not None:
                write_event(connection, number, *then, job)
            return LoggedSubmit(place, float(event.at), job.key) if submits else None

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
        """Write down that an intent was not followed by its request, where the intent was committed."""
        event = SubmitRefused(at=self._clock.wall(), problem=Problem.of(error))

        def write(connection: sqlite3.Connection) -> None:
            sql = "SELECT 1 FROM job WHERE number = ? AND state = ? AND attempts = ?"
            if connection.execute(sql, (number, job.state, job.attempts)).fetchone() is not None:
                write_event(connection, number, apply(job, event), event, job)

        with contextlib.suppress(JournalError):  # then it is in doubt
            await self._do(write, critical=True)

    async def recover(self) -> None:
        """Put in doubt what a process that has died left half submitted; a run does so first of all."""
        while left := await self.jobs(JobState.SUBMITTING):
            for stored in left:
                event = recover(stored.job, self._clock.wall())
                if event is not None:
                    await self.record(stored.number, apply(stored.job, event), event, before=stored.job)

    async def keep_times(self, text: str) -> None:
        """Keep what was learned of how long tasks take, in place of what was kept before."""
        await self._do(lambda c: write_meta(c, "generation_times", text))

    async def times(self) -> str | None:
        """Return what an earlier run learned of how long tasks take, if it did."""
        return await self._do(lambda c: read_meta(c, "generation_times"))

    async def record_halt(self, *, ended_in_it: bool) -> None:
        """Keep whether the last run was halted by answers that made no sense."""
        await self._do(lambda c: write_meta(c, "circuit_breaker", "halted" if ended_in_it else None))

    async def ended_in_halt(self) -> bool:
        """Return whether the last run was halted so, and no submit has been accepted since."""
        return await self._do(lambda c: read_meta(c, "circuit_breaker")) is not None

    # --- callbacks ----------------------------------------------------------------------------------------

    async def receive(self, event: CallbackEvent) -> None:
        """Keep a callback that names an attempt of this journal; set ``mail`` after the commit."""
        if event.attempt_id is None:
            return
        at = self._clock.wall()
        try:
            await self._do(lambda c: inbox.put(c, event, at))
        except WrongEventLoop:
            raise
        except BaseException:
            self.mail.set()  # a caller who was cancelled has written it all the same
            raise
        self.mail.set()

    async def callbacks_after(self, number: int) -> tuple[list[InboxEntry], int]:
        """Return the callbacks beyond ``number`` whose jobs wait for something, and the newest number."""
        return await self._do(lambda c: inbox.unsettled_after(c, number))

    async def callbacks_for(self, job: int) -> list[InboxEntry]:
        """Return the callbacks that name attempts of a job whose task is not known, by the job's number."""
        return await self._do(lambda c: inbox.entries_for(c, job))

    async def newest_callback(self) -> int:
        """Return the number of the newest callback, also of one that another process has received."""
        if self._path is None:
            return 0
        if self._watch is None:
            self._watch = InboxWatch(self._path)
        return await anyio.to_thread.run_sync(self._watch.newest)

    async def attempt(self, job: int, number: int) -> tuple[float, str | None]:
        """Return when an attempt was intended (seconds since the epoch), and its callback id."""
        sql = "SELECT intended_at, callback_id FROM attempt WHERE job = ? AND number = ?"
        row = await self._do(lambda c: c.execute(sql, (job, number)).fetchone())
        return row[0], row[1]

    async def owner_of(self, task_id: TaskId) -> JobKey | None:
        """Return the job that a task belongs to, or once belonged to."""
        return await self._do(lambda c: ownership.owner_of(c, task_id))

    async def input_url(self, job: int, number: int) -> str | None:
        """Return where an attempt told the vendor to fetch its picture, where that was uploaded."""
        sql = "SELECT input_url FROM attempt WHERE job = ? AND number = ?"
        row = await self._do(lambda c: c.execute(sql, (job, number)).fetchone())
        return None if row is None else row[0]

    async def input_urls(self, job: int) -> list[str | None]:
        """Return where the submits of a job, by its number, told the vendor to fetch its image.

        None stands for the address in the request. The latest comes first.
        """
        return await self._do(lambda c: ownership.input_urls(c, job))

    async def job_that_sent(
        self, told: Mapping[str, Any], *, besides: int, verbatim: bool = False, by_image: bool = False
    ) -> Sender | None:
        """Return another job than ``besides``, a number, whose submit a record's ``paramJson`` shows.

        With ``verbatim`` the request must be the same character by character, in all that is shown. With
        ``by_image`` it is enough that the image is the same.
        """
        return await self._do(
            lambda c: ownership.job_that_sent(c, told, besides=besides, verbatim=verbatim, by_image=by_image)
        )

    async def offers_to(self, job: int) -> list[TaskId]:
        """Return tasks that no job has and whose records show the request of a job, by its number."""
        return await self._do(lambda c: ownership.offers_to(c, job))

    async def candidates(self, job: int) -> list[TaskId]:
        """Return tasks that may be those of a job's submits, by its number: what odd answers named."""
        return await self._do(lambda c: ownership.candidates(c, job))

    async def confirmed_echoes(self) -> tuple[int, int]:
        """Return how many records have shown the request as it was sent, and how many the image."""
        return await self._do(ownership.confirmed_echoes)

    async def count_image_echo(self) -> None:
        """Write down that a record has shown the image as it was sent."""
        await self._do(ownership.count_image_echo)

    # --- reading ------------------------------------------------------------------------------------------

    async def jobs(
        self, state: JobState, *, after: int = 0, limit: int = 100, submitted_before: float | None = None
    ) -> list[StoredJob]:
        """Return up to ``limit`` jobs in ``state``, in order of arrival, beyond number ``after``.

        ``submitted_before`` (seconds since the epoch) leaves out those whose task is younger.
        """
        where, values = "state = ? AND number > ?", [state, after]
        if submitted_before is not None:
            where, values = f"{where} AND submitted_at < ?", [*values, submitted_before]
        return await self._do(lambda c: select_jobs(c, f"{where} ORDER BY number LIMIT ?", *values, limit))

    async def iter_jobs(
        self, state: JobState, *, submitted_before: float | None = None
    ) -> AsyncIterator[StoredJob]:
        """Yield the jobs in ``state``, in order of arrival; a job may move to another state meanwhile."""
        after = 0
        while page := await self.jobs(state, after=after, submitted_before=submitted_before):
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
        """Return when submits were intended since ``at`` (seconds since the epoch), oldest first."""
        sql = "SELECT intended_at FROM attempt WHERE intended_at >= ? ORDER BY intended_at"
        return [row[0] for row in await self._do(lambda c: c.execute(sql, (at,)).fetchall())]

    # --- how ----------------------------------------------------------------------------------------------

    def _adding(
        self,
        connection: sqlite3.Connection,
        is_chosen: Callable[[int], bool],
        *,
        pays_again: bool,
        pays_similar: bool,
    ) -> Adding:
        at = self._clock.wall()
        return Adding(
            connection=connection,
            at=at,
            is_chosen=is_chosen,
            pays_again=pays_again,
            pays_similar=pays_similar,
            earlier=self._earlier,
            put_in_doubt=lambda key, submitted_at: put_in_doubt(connection, key, submitted_at, at),
        )

    async def _do(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        critical: bool = False,
        submits: JobKey | None = None,
    ) -> T:
        if self._writer is None:
            raise JournalError("The journal is not open.", advice="Use it as `async with`, or call open().")
        return await self._writer.do(work, critical=critical, submits=submits)

    def _connect(self, *, accept_lost_records: bool) -> sqlite3.Connection:
        if self._path is None:
            return connect()
        accept_lost_at = self._clock.wall() if accept_lost_records else None
        return open_file(self._path, checks_pages=True, accept_lost_at=accept_lost_at)
