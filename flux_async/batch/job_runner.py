"""Drive one job: the only place where decisions meet I/O.

::

    while not isinstance(step := next_step(job), Settle):
        event = await perform(step)
        job = apply(job, event)
        await journal.record(job, event)      # returns after the commit

The intent, the POST and its answer run where no cancellation reaches them: once the intent is on disk, the
answer follows it there.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from flux_async.advice import fill, python_words
from flux_async.api.common import check_task_id
from flux_async.api.stored_requests import with_input
from flux_async.api.webhooks import CallbackEndpoint
from flux_async.batch.download_retries import DownloadRetries
from flux_async.batch.echo_check import Found, check_echo
from flux_async.batch.event_log import log_event
from flux_async.batch.input_files import InputPlace
from flux_async.batch.witness import Witness
from flux_async.client import FluxClient, as_paid
from flux_async.errors import (
    Charge,
    ConfigurationError,
    DownloadError,
    FluxError,
    InvalidInput,
    JobConflictError,
    JournalError,
    RequestNotSent,
    Scope,
    TaskFailed,
    TaskMismatch,
    shown,
)
from flux_async.files.image_writer import SavedFile
from flux_async.files.sink import SavedResult
from flux_async.job_state import (
    AwaitCallback,
    AwaitTask,
    Begin,
    EchoContradicted,
    Event,
    Fetch,
    JobSnapshot,
    JobState,
    Problem,
    ResubmitGranted,
    ResultLost,
    Saved,
    Settle,
    Step,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    SubmitUnknown,
    TaskEnded,
    TaskEndedRetryable,
    TaskFound,
    TaskSucceeded,
    apply,
    next_step,
)
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Echo, Failed, ImageResult, InDoubt, Job, JobKey, Outcome, Succeeded, TaskId
from flux_async.policy.downloads import DownloadAgain, NoDownload, expired
from flux_async.policy.generation_times import kind_of
from flux_async.policy.retry import RetryPolicy
from flux_async.poller import WaitOptions
from flux_async.session import Call, Session

logger: logging.Logger = logging.getLogger("flux_async")

FOREVER_S = 10.0**9
"""A submit waits for its turn as long as it takes; what bounds it is the run."""

_LONGEST_OWN_WAIT_S = 120.0
_PATIENCE = 12
_UNINVITED_S = 120.0
"""For so long a run looks for the task of a doubt that nobody has asked it about."""


class Unfinished(Exception):  # no error: the job stays as it is, and this run has an outcome for it
    """The run can do no more for this job now; the journal keeps it to be taken up again."""

    def __init__(self, error: FluxError) -> None:
        super().__init__(str(error))
        self.error = error


@attrs.frozen(kw_only=True)
class Parking:
    """How long a job in doubt waits for its callback, in monotonic seconds.

    Attributes:
        until: When to ask once more.
        ends: When no callback can come any more.
    """

    until: float
    ends: float


class FetchLater(Exception):  # no error: as above
    """The download of the result failed, and is tried again after a while."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s


class Parked(Exception):  # no error: as above
    """The job is in doubt, and a callback may still settle it."""

    def __init__(self, parking: Parking) -> None:
        super().__init__(parking)
        self.parking = parking


@attrs.frozen(kw_only=True)
class Terms:
    """What all jobs of a run have in common.

    Attributes:
        client: Asks the vendor.
        journal: Keeps what happens.
        call: The run, as a call on the account.
        timeout_s: Seconds a task may take from its acceptance.
        retry: When a submit is made again, and how often a task is paid for.
        patience_s: Seconds the run waits for a service that is away for now before it halts.
        folder: The folder that images go to, where the run has one.
        save: Downloads a job's image and saves it in the run's sink, or None to leave it at the vendor.
        fetch: Brings a result to disk, within the run's bound of downloads.
        on_event: Told of every move of a job.
        still_spends: Whether the run still submits.
        still_waits: Whether it still waits for callbacks.
        reserve: Lets one more submit go, or not.
        give_back: Told that a submit that was let go was not made.
        spending: Told how many POSTs more or less are in the air.
        grant: Whether a job in doubt, by its number, may be submitted again.
        is_invited: Whether a job is one of the run's own inputs.
        waits: Held while a job waits for its task.
        offer: Told of a job whose task was found by another job's poll.
        retries: The downloads that failed and may be tried again.
        original: Where the vendor's copy of the input goes, without ending, or None to leave it there.
        callbacks: Where the vendor reports ends, or None where it is not asked to.
        doubt_wait_s: Seconds after a submit for which its callback may settle it, where it is in doubt.
        resubmits: Whether the caller lets submits in doubt be made again, once that is over.
        via_upload: Whether pictures that have an address go to the upload host first, too.
    """

    client: FluxClient
    journal: Journal
    call: Call
    timeout_s: float
    retry: RetryPolicy
    patience_s: float
    folder: Path | None
    save: Callable[[ImageResult, StoredJob], Awaitable[SavedResult]] | None
    fetch: Callable[[ImageResult | str, Path], Awaitable[SavedFile]]
    on_event: Callable[[StoredJob, JobState, JobSnapshot, Event], None]
    still_spends: Callable[[], bool]
    still_waits: Callable[[], bool]
    reserve: Callable[[StoredJob], bool]
    give_back: Callable[[StoredJob], None]
    spending: Callable[[int], None]
    grant: Callable[[int], bool]
    is_invited: Callable[[JobKey], bool]
    waits: Callable[[int], AbstractContextManager[None]]
    offer: Callable[[JobKey], None]
    retries: Callable[[], DownloadRetries]
    original: Callable[[StoredJob], Awaitable[Path]] | None = None
    callbacks: CallbackEndpoint | None = None
    doubt_wait_s: float = 0.0
    resubmits: bool = False
    via_upload: bool = False


@attrs.define(kw_only=True, eq=False)
class Driver:
    """Takes one job as far as this run can.

    Attributes:
        terms: What all jobs of the run have in common.
        stored: The job as the journal had it.
        doubt_ends: When its doubt is over, where that is known.
        is_fresh: Whether this run has asked for the address of its result.
        job: Where it stands.
        parked: How long it waits for its callback, where it does.
        was_left_alone: Whether it is in doubt, and nobody has asked about it.
        fetch_in_s: Seconds after which its download is to be tried again, where it is.
    """

    terms: Terms
    stored: StoredJob
    doubt_ends: float | None = None
    is_fresh: bool = False
    job: JobSnapshot = attrs.field(init=False)
    parked: Parking | None = attrs.field(default=None, init=False)
    was_left_alone: bool = attrs.field(default=False, init=False)
    fetch_in_s: float | None = attrs.field(default=None, init=False)
    _callback_may_come: bool = attrs.field(default=False, init=False)
    _posted_at: float | None = attrs.field(default=None, init=False)
    _left: bool = attrs.field(default=False, init=False)
    _last_error: FluxError | None = attrs.field(default=None, init=False)
    _known_input: InputPlace | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.job = self.stored.job
        self._callback_may_come = self.terms.callbacks is not None or self.job.state is JobState.IN_DOUBT

    async def run(self) -> Outcome | None:
        """Drive the job until it settles, or this run can do no more for it now.

        None leaves it as it is: to another run, or, where it is ``parked``, to a later hour of this one.
        """
        try:
            return await self._run()
        except Parked as rest:
            self.parked = rest.parking
            return None
        except FetchLater as later:
            self.fetch_in_s = later.delay_s
            return None
        except Unfinished as stop:
            return Failed(job=self._as_job(), error=stop.error)
        except InvalidInput as error:  # a request that another release wrote
            return Failed(job=None, error=error)
        except BaseException:
            self._left = True
            self.leave_task()
            raise

    def given_up(self) -> Outcome:
        """Return the outcome of a job whose download has had its time in this run."""
        return Failed(job=self._as_job(), error=self.terms.retries().last_word(self.stored))

    def leave_task(self) -> None:
        """Where no journal outlives the process, tell of a paid task whose outcome nobody will receive."""
        paid = self.job.task_id is not None and self.job.state is not JobState.FAILED
        if paid and not self.terms.journal.is_durable:
            self._session.leave(self._as_job().request, TaskId(self.job.task_id or ""))

    async def _run(self) -> Outcome | None:
        _ = self._input  # one of another release is told before anything is spent
        while not isinstance(step := await self._next_step(), Settle):
            match step:
                case Begin():
                    if not await self._submit(step):
                        return None
                case AwaitTask(task_id=task_id) | Fetch(task_id=task_id) if self._must_look(step):
                    await self._take_in(task_id, await self._await_task(task_id))
                case AwaitCallback():
                    if not await self._settle_doubt():
                        return None
                case Fetch():
                    await self._happened(await self._fetch(step))
                case _:
                    raise AssertionError(step)  # Submit never outlives _submit, nor a restart
        return self._outcome()

    async def _next_step(self) -> Step:
        """Return what follows. A job in doubt first takes its task, if another job's poll has found it."""
        step = next_step(self.job, callback_may_come=self._callback_may_come)
        if not isinstance(step, Settle) or step.state is not JobState.IN_DOUBT:
            return step
        for task_id in await self.terms.journal.offers_to(self.stored.number):
            if await self._found(task_id):
                return next_step(self.job)
        return step

    async def _happened(self, event: Event, then: Event | None = None) -> None:
        """The turn of the loop: legal, on disk, known. What follows at once is on disk together with it."""
        before, job = self.job, apply(self.job, event)
        follows = None if then is None else (apply(job, then), then)
        await self.terms.journal.record(self.stored.number, job, event, before=before, then=follows)
        self.job = job
        self.terms.on_event(self.stored, before.state, job, event)
        log_event(self.stored, job, event)
        if isinstance(event, EchoContradicted) and event.belongs_to is not None:
            self.terms.offer(event.belongs_to)
        if follows is not None:
            self.job = follows[0]
            self.terms.on_event(self.stored, job.state, *follows)
            log_event(self.stored, *follows)

    # --- submitting ---------------------------------------------------------------------------------------

    async def _submit(self, step: Begin) -> bool:
        """Spend on this job, if the run still does."""
        session, clock = self._session, self._session.clock
        wait = min(step.not_before - clock.wall(), _LONGEST_OWN_WAIT_S)  # the wall clock may have jumped back
        if wait > 0:
            await clock.sleep(wait)
        deadline = clock.monotonic() + FOREVER_S
        await self._place_input()
        while not await session.admit(
            deadline=deadline, call=self.terms.call, wanted=self._may_submit, waits_out_pauses=True
        ):
            if not self.terms.still_spends():
                return False
            await self._place_input()  # it has grown old while it waited
        admitted = False
        try:
            if await self._found_before_posting():
                return True
            admitted = self.terms.reserve(self.stored)
        finally:
            if not admitted:
                session.leave_air()
        if not admitted:
            return False
        self.terms.spending(1)
        await session.spend(self._spend(), call=self.terms.call, when_abandoned=lambda _: None)
        error = self._last_error
        if self.job.state is JobState.PENDING and error is not None and error.scope is Scope.STOP:
            raise error
        return True

    async def _place_input(self) -> None:
        """Put the picture where the vendor can fetch it: before the intent, from which on nothing waits."""
        session = self._session
        while self.terms.still_spends():
            wait = session.upload_pause.delay(session.clock.monotonic())
            if wait > 0 and not self._input.is_ready:
                await session.changed.wait(session.clock, wait)
                continue
            try:
                await self._input.prepare()
            except RequestNotSent:  # the run halts when that lasts
                continue
            except FluxError as error:
                raise self._unless_for_all(error) from None
            return

    def _may_submit(self) -> bool:
        return self.terms.still_spends() and self._input.is_ready

    async def _spend(self) -> None:
        """Intent, POST, answer: each on disk before the next, and nobody can come in between."""
        now = self._session.clock.wall
        try:
            url = self._input.url
            callback_id, callback_url = self._address()
            try:
                await self._happened(SubmitIntended(at=now(), callback_id=callback_id, input_url=url))
            except BaseException:
                self.terms.give_back(self.stored)  # no request leaves without its intent
                raise
            self._posted_at = self._session.clock.monotonic()
            body = with_input(self.stored.request, url)
            answer = await self._session.post(body, callback_url)
            await self._keep(answer, self._answered(answer, now()))
        finally:
            self.terms.spending(-1)
        if self._left:
            self.leave_task()

    async def _keep(self, answer: TaskId | FluxError, event: Event) -> None:
        """Write the answer down. It has been paid for, so a journal that is busy is asked again and again."""
        for _ in range(_PATIENCE):
            try:
                return await self._happened(event)
            except JobConflictError as error:  # another submit of the journal has this task
                if not isinstance(event, SubmitAccepted):
                    raise
                answer = self._session.saw_mismatch(_named_twice(event.task_id, error))
                event = self._answered(answer, event.at)
            except JournalError as error:
                last = error
                await self._session.clock.sleep(1.0)
        if not isinstance(answer, FluxError):
            self._session.leave(self._as_job().request, answer)
        raise last

    def _answered(self, answer: TaskId | FluxError, at: float) -> Event:
        if not isinstance(answer, FluxError):
            return SubmitAccepted(at=at, task_id=answer)
        self._last_error, problem = answer, Problem.of(answer)
        if answer.charge is not Charge.NO:
            refused = answer.refused_task_id if isinstance(answer, TaskMismatch) else None
            return SubmitUnknown(
                at=at,
                problem=problem,
                task_id=answer.task_id,
                answer=answer.answer or None,
                refused_task_id=refused,
            )
        if answer.scope is Scope.THIS_JOB and not isinstance(answer, RequestNotSent):
            return SubmitRejected(at=at, problem=problem)
        # All submits pause already, and the run halts when that lasts: it is never one job's failure.
        return SubmitRefused(at=at, problem=problem)

    def _address(self) -> tuple[str | None, str | None]:
        """Return an id for this attempt that nobody can guess, and the address that carries it."""
        if self.terms.callbacks is None:
            return None, None
        callback_id = secrets.token_hex(16)
        return callback_id, self.terms.callbacks.address_for(callback_id)

    # --- in doubt -----------------------------------------------------------------------------------------

    async def _settle_doubt(self) -> bool:
        """See whether a callback has told of the task; where none can come any more, ask the caller's policy.

        Raises:
            Parked: A callback may still come.
        """
        now = self._session.clock.monotonic()
        task_id, again_s = await self._witness().find_task()
        if task_id is not None and await self._found(task_id):
            return True
        if not self.terms.is_invited(self.job.key):
            ends = now + _UNINVITED_S if self.doubt_ends is None else self.doubt_ends
            if again_s is not None and now < ends and self.terms.still_waits():
                raise Parked(Parking(until=min(ends, now + again_s), ends=ends))
            self.was_left_alone = True
            return False
        ends = await self._end_of_doubt(now)
        if now < ends and self.terms.still_waits():
            raise Parked(Parking(until=ends if again_s is None else min(ends, now + again_s), ends=ends))
        self._callback_may_come = False
        if again_s is not None:
            logger.warning(
                "job %s stays in doubt and is not submitted again: a callback named a task for it, and "
                "record-info does not tell now whether it is the one",
                self.job.key,
            )
        elif self.terms.resubmits and self.terms.still_spends() and self.terms.grant(self.stored.number):
            await self._happened(ResubmitGranted(at=self._session.clock.wall()))
            self._callback_may_come = self.terms.callbacks is not None
        return True

    async def _end_of_doubt(self, now: float) -> float:
        """Return when no callback can come any more, in monotonic seconds; now, where nobody listens.

        Only the first time, and only for a submit of an earlier process, is the wall clock asked.
        """
        intended_at, callback_id = await self.terms.journal.attempt(self.stored.number, self.job.attempts)
        if callback_id is None or self.terms.callbacks is None:
            return now
        wait = self.terms.doubt_wait_s
        if self._posted_at is not None:
            return self._posted_at + wait
        if self.doubt_ends is not None:
            return self.doubt_ends
        return now + min(wait, intended_at + wait - self._session.clock.wall())

    async def _found(self, task_id: TaskId) -> bool:
        """Write down the task that a callback or its record has named; False where another job was faster."""
        try:
            # The record of an offered task may show this job's image alone: it is compared once more.
            is_offer = task_id in await self.terms.journal.offers_to(self.stored.number)
            echo = None if is_offer else Echo.CONFIRMED
            found = TaskFound(at=self._session.clock.wall(), task_id=task_id, echo=echo)
            await self._happened(found)
        except JobConflictError:
            return False
        return True

    async def _found_before_posting(self) -> bool:
        """A submit is about to be paid for: has a callback told of the task of an earlier one meanwhile?"""
        if not self.job.attempts:
            return False
        task_id, _ = await self._witness().find_task()
        return task_id is not None and await self._found(task_id)

    def _witness(self) -> Witness:
        keys = () if self.terms.callbacks is None else self.terms.callbacks.keys
        return Witness(client=self.terms.client, journal=self.terms.journal, stored=self.stored, keys=keys)

    # --- watching -----------------------------------------------------------------------------------------

    async def _await_task(self, task_id: TaskId) -> Found:
        """Wait for the task's end. What only a submit needs is forgotten meanwhile, save an upload."""
        client, clock, timeout_s = self.terms.client, self._session.clock, self.terms.timeout_s
        options = WaitOptions(
            policy=client.polling,
            timeout_s=timeout_s,
            deadline=clock.monotonic() + timeout_s,
            kind=kind_of(self._input.request),
            age=self._age(),
            expects_callback=await self._expects_callback(),
            waits_out_outages=True,
        )
        if self._input.url is None:
            self._known_input = None
        with self.terms.waits(self.stored.number):
            try:
                return await client.poller.wait(check_task_id(task_id), options)
            except Exception as error:  # noqa: BLE001 - also that of a caller's clock
                return error

    async def _checked(self, task_id: TaskId, found: Found) -> tuple[Event, Event | None]:
        """Return what a wait has found, or that it was for another submit's task."""
        echo = self.job.echo
        if echo is None:
            session, journal, url = self._session, self.terms.journal, self._input.url
            try:
                echo = await check_echo(session, journal, self.stored, found, input_url=url)
            except TaskMismatch as error:
                return self._contradicted(task_id, error), None
        return self._seen(task_id, found, echo)

    def _contradicted(self, task_id: TaskId, error: TaskMismatch) -> Event:
        self._last_error = error
        at, problem = self._session.clock.wall(), Problem.of(error)
        return EchoContradicted(at=at, problem=problem, task_id=task_id, belongs_to=error.belongs_to)

    def _seen(self, task_id: TaskId, found: Found, echo: Echo | None) -> tuple[Event, Event | None]:
        """Say what a wait has found, and what follows: a picture that is not fetched is where it belongs."""
        if isinstance(found, TaskFailed):
            return self._failed(found), None
        if isinstance(found, FluxError):
            raise self._unless_for_all(as_paid(found, task_id)) from None
        if isinstance(found, Exception):
            raise found
        now = self._session.clock.wall()
        fetches = self.terms.save is not None or self.terms.original is not None
        return _picture(found, now, echo), None if fetches else Saved(at=now)

    async def _take_in(self, task_id: TaskId, found: Found) -> None:
        """Record what a wait has found. A result whose record cannot be read now keeps its known address."""
        self.is_fresh = True
        if self.job.state is JobState.GENERATED and _is_unread(found):
            return
        await self._happened(*await self._checked(task_id, found))

    def _must_look(self, step: Step) -> bool:
        """Whether the task has to be waited for first, also for the sake of an address that may be old."""
        return isinstance(step, AwaitTask) or (self.terms.save is not None and not self.is_fresh)

    async def _expects_callback(self) -> bool:
        if self.terms.callbacks is None or self._posted_at is not None:
            return self.terms.callbacks is not None
        _, callback_id = await self.terms.journal.attempt(self.stored.number, self.job.attempts)
        return callback_id is not None

    def _age(self) -> float | None:
        """Seconds since the task was accepted, as far as the journal knows."""
        submitted_at = self.job.submitted_at
        return None if submitted_at is None else max(0.0, self._session.clock.wall() - submitted_at)

    def _unless_for_all(self, error: FluxError) -> BaseException:
        """An error of this job alone is its outcome in this run; one that concerns everybody ends the run."""
        for_all = error.scope is Scope.STOP or isinstance(error, ConfigurationError)
        return error if for_all else Unfinished(error)

    def _failed(self, error: TaskFailed) -> Event:
        at, problem = self._session.clock.wall(), Problem.of(error)
        self._last_error = error
        again = self.job.paid_failures + 1 < self.terms.retry.max_paid_attempts
        if again and self.job.state is JobState.SUBMITTED:
            return TaskEndedRetryable(at=at, problem=problem)
        return TaskEnded(at=at, problem=problem, charge=error.charge)

    # --- fetching -----------------------------------------------------------------------------------------

    async def _fetch(self, step: Fetch) -> Event:
        clock = self._session.clock
        if self.terms.save is None:
            await self._fetch_original()
            return Saved(at=clock.wall())
        image = ImageResult(task_id=step.task_id, result_url=step.result_url, origin_url=self.job.origin_url)
        try:
            await self._fetch_original()
            saved = await self.terms.save(image, self.stored)
        except DownloadError as error:
            return self._unfetched(error)
        except FluxError as error:
            raise self._unless_for_all(error) from None
        except Exception as error:  # noqa: BLE001 - a transport of the caller's own
            return self._unfetched(DownloadError(f"The download failed: {shown(error)}."))
        return Saved(at=clock.wall(), file=saved.reference, sha256=saved.sha256)

    def _unfetched(self, error: DownloadError) -> Event:
        """Return the end of a result that is gone for good; any other is fetched later.

        Raises:
            FetchLater: In this run.
            Unfinished: In another.
        """
        if error.scope is Scope.STOP:
            raise error
        stored, retries = attrs.evolve(self.stored, job=self.job), self.terms.retries()
        what = retries.failed(stored, error)
        if isinstance(what, DownloadAgain):
            raise FetchLater(what.delay_s)
        if what is NoDownload.FOR_NOW:
            raise Unfinished(retries.last_word(stored))
        self._last_error = expired(error)
        return ResultLost(at=self._session.clock.wall(), problem=Problem.of(self._last_error))

    async def _fetch_original(self) -> None:
        """Bring the input home as the vendor keeps it, for ten minutes; without it the result is as good."""
        url = self.job.origin_url
        if self.terms.original is None or url is None or self.stored.number in self.terms.retries():
            return
        try:
            await self.terms.fetch(url, await self.terms.original(self.stored))
        except FluxError as error:
            if error.scope is Scope.STOP:
                raise
            logger.warning("the original of job %s is not here: %s", self.job.key, error.message)

    # --- the end ------------------------------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        return self.terms.client.session

    @property
    def _input(self) -> InputPlace:
        if self._known_input is None:
            self._known_input = InputPlace(
                client=self.terms.client, request=self.stored.read(), via_upload=self.terms.via_upload
            )
        return self._known_input

    def _as_job(self) -> Job:
        return Job(key=self.job.key, request=self.stored.read())

    def _outcome(self) -> Outcome:
        return outcome_of(self.job, self._as_job(), self._last_error, self.terms.folder)


def outcome_of(snapshot: JobSnapshot, job: Job, error: FluxError | None, directory: Path | None) -> Outcome:
    """Return the outcome of a settled job; ``error`` is the one this process met, if it did."""
    if snapshot.state is JobState.DONE and snapshot.task_id is not None and snapshot.result_url is not None:
        image = ImageResult(
            task_id=snapshot.task_id,
            result_url=snapshot.result_url,
            origin_url=snapshot.origin_url,
            echo=snapshot.echo,
        )
        file = directory / snapshot.file if directory is not None and snapshot.file else None
        return Succeeded(job=job, image=image, file=file, reference=snapshot.file)
    error = error or _remembered(snapshot)
    return (InDoubt if snapshot.state is JobState.IN_DOUBT else Failed)(job=job, error=error)


def _named_twice(task_id: TaskId, conflict: JobConflictError) -> TaskMismatch:
    return TaskMismatch(
        f"The API answered the submit with a task that is not its own. {conflict.message} "
        "The submit was probably charged, and its own task is not known.",
        refused_task_id=task_id,
    )


def _is_unread(found: Found) -> bool:
    """Whether a record could not be read, which says nothing of its task."""
    if not isinstance(found, FluxError) or found.scope is Scope.STOP:
        return False
    return not isinstance(found, TaskFailed | ConfigurationError)


def _remembered(snapshot: JobSnapshot) -> FluxError:
    """An error that an earlier process met, as far as the journal tells it."""
    words = f"Job {snapshot.key} is {snapshot.state}."
    if snapshot.problem is not None:
        told = fill(snapshot.problem.message, python_words(snapshot.task_id))
        words = f"{snapshot.problem.type}: {told}"
    return FluxError(words, advice="", charge=snapshot.charge, task_id=snapshot.task_id)


def _picture(image: ImageResult, at: float, echo: Echo | None) -> TaskSucceeded:
    seconds = image.record.generation_s if image.record is not None else None
    return TaskSucceeded(
        at=at, result_url=image.result_url, origin_url=image.origin_url, generation_s=seconds, echo=echo
    )
