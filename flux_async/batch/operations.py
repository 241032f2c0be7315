"""Operations on a journal that only the user can order: ``retry``, ``adopt``, ``rekey``, ``fetch_missing``.

A run never does these by itself. Each takes the journal's path, or a journal that is open and not being run;
``fetch_missing`` may also work beside a run of the same open journal. Nothing here submits a request: what
``retry`` grants is submitted, and charged, by the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
from array import array
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs

from flux_async.api.error_codes import PollMeaning, poll_meaning
from flux_async.api.models_table import RETENTION_S, AnyModel
from flux_async.api.parsing import check_task_id
from flux_async.api.stored_requests import read_model
from flux_async.batch.downloads import FailedDownload, kept_s
from flux_async.batch.file_names import FileNames
from flux_async.batch.in_doubt import adoptable_echo
from flux_async.batch.inputs import each
from flux_async.batch.job_runner import outcome_of
from flux_async.batch.options import BatchClient, check_client, check_flag, check_folder, check_functions
from flux_async.batch.run_context import concerns_all
from flux_async.batch.runner import PATIENCE_S
from flux_async.errors import (
    DownloadError,
    FluxError,
    InvalidInput,
    JournalError,
    NotFoundError,
    Scope,
    shown,
)
from flux_async.files.sink import FolderSink
from flux_async.job_state import (
    Event,
    JobSnapshot,
    JobState,
    Problem,
    ResubmitGranted,
    ResultLost,
    RetryGranted,
    Saved,
    TaskFound,
    apply,
    verdict_of,
)
from flux_async.journal.ownership import PaidTask
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Echo, Failed, ImageResult, Job, JobKey, Outcome, TaskId, TaskRecord
from flux_async.policy import check_function, check_positive
from flux_async.policy.downloads import NoDownload, expired
from flux_async.policy.polling import PollPolicy

_MOST_TASKS = 3
_MOST_WAITING = 1_000
"""Images that are downloaded, or wait for another try, at once."""
_VISIBLE_WITHIN_S = PollPolicy().not_found_grace_s
_MOST_NAMED = 10
_ON_OUTCOME = "Write `async def on_outcome(outcome)`."
_NOTHING_CHANGED = "Nothing was changed."
_NOTHING_TO_RETRY = "Give failed=True, in_doubt=True, text_left=True or damaged=True."


# --- retry ------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Retried:
    """Jobs that the next run of a journal takes up.

    Attributes:
        submits: Images that are submitted again, by model. Each of them is charged.
        to_submit: The jobs of these, as their numbers in the journal.
        to_fetch: Jobs that are paid and have no image yet, as their numbers: fetched free of charge.
    """

    submits: Mapping[AnyModel, int]
    to_submit: Sequence[int]
    to_fetch: Sequence[int]


async def retry(
    client: BatchClient,
    journal: str | os.PathLike[str] | Journal,
    *,
    failed: bool = False,
    in_doubt: bool = False,
    text_left: bool = False,
    damaged: bool = False,
    dry_run: bool = False,
) -> Retried:
    """Let the next run submit jobs again that failed, are in doubt, or have no good image; return which.

    A job in doubt whose task was found is not submitted again: it is fetched.

    Args:
        client: Of the account that the journal belongs to.
        journal: The journal's file, or an open journal.
        failed: Submit jobs again that failed: each for one more charge.
        in_doubt: Submit jobs in doubt again. Their first submit may have been charged, too.
        text_left: Submit jobs again whose verdict is ``text_left``: each for one more charge.
        damaged: The same for the verdicts ``damaged`` and ``cropped``.
        dry_run: Return the same, and leave these jobs as they are.

    Raises:
        InvalidInput: Nothing to retry is given, or an argument has a wrong type.
        JournalBusyError: A run is using the journal.
        JournalError: There is no journal, or it cannot be used.
    """
    check_client(client)
    given = (failed, in_doubt, text_left, damaged, dry_run)
    for name, flag in zip(("failed", "in_doubt", "text_left", "damaged", "dry_run"), given, strict=True):
        check_flag(flag, name)
    verdicts = ["text_left"] * text_left + ["damaged", "cropped"] * damaged
    states = [JobState.FAILED] * failed + [JobState.IN_DOUBT] * in_doubt + [JobState.DONE] * bool(verdicts)
    if not states:
        raise InvalidInput("There is nothing to retry.", advice=_NOTHING_TO_RETRY)
    submits, to_submit, to_fetch = Counter[AnyModel](), array("q"), array("q")
    at = client.session.clock.wall()
    async with _opened(client, journal) as opened:
        with opened.one_run():
            await opened.recover()
            for state in states:
                async for stored in opened.iter_jobs(state):
                    if state is JobState.DONE and verdict_of(stored.job) not in verdicts:
                        continue
                    if state is JobState.IN_DOUBT and await opened.offers_to(stored.number):
                        to_fetch.append(stored.number)
                        continue
                    to_submit.append(stored.number)
                    submits[read_model(stored.request)] += 1
                    if not dry_run:
                        is_doubt = state is JobState.IN_DOUBT
                        grant = ResubmitGranted(at=at) if is_doubt else RetryGranted(at=at)
                        await _record(opened, stored, grant)
            for state in (JobState.GENERATED, JobState.SUBMITTED):
                async for stored in opened.iter_jobs(state):
                    to_fetch.append(stored.number)
    return Retried(submits=submits, to_submit=to_submit, to_fetch=to_fetch)


# --- adopt ------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Adopted:
    """The task that a job in doubt now has.

    Attributes:
        key: The job.
        record: The task's record.
        echo: What the record shows of the job's request. ``UNRECOGNISED`` means another request than was
            sent; the task was taken because the API named it for this job. Compare the result with the image.
    """

    key: JobKey
    record: TaskRecord
    echo: Echo


async def adopt(
    client: BatchClient, journal: str | os.PathLike[str] | Journal, job: JobKey | str, task_id: TaskId | str
) -> Adopted:
    """Record that a task is that of a job in doubt; the next run fetches its image without a charge.

    The task's record is compared with the job's request first, as a run compares it.

    Args:
        client: Of the account that paid.
        journal: The journal's file, or an open journal.
        job: The key of the job.
        task_id: The task.

    Raises:
        InvalidInput: The task belongs to another job or was made from another request, or the job is not in
            doubt; nothing was changed.
        NotFoundError: The vendor has no such task; nothing was changed.
        JournalBusyError: A run is using the journal.
        JournalError: There is no journal, or it cannot be used.
    """
    task = check_task_id(task_id)
    async with _opened(client, journal) as opened:
        with opened.one_run():
            await opened.recover()
            stored = await _job_in_doubt(opened, job)
            owner = await opened.owner_of(task)
            if owner not in {None, stored.job.key}:
                raise InvalidInput(f"Task {task} belongs to job {owner}.", advice=_NOTHING_CHANGED)
            record = await _record_of_doubt(client, opened, stored, task)
            echo = await adoptable_echo(opened, stored, record)
            at = client.session.clock.wall()
            await _record(opened, stored, TaskFound(at=at, task_id=task, api=record.api, echo=echo))
    return Adopted(key=stored.job.key, record=record, echo=echo)


async def _record_of_doubt(
    client: BatchClient, journal: Journal, stored: StoredJob, task: TaskId
) -> TaskRecord:
    """Return a task's record from an API that the job was submitted to; the client's, if none is known."""
    apis = await journal.apis_of(stored.number)
    for api in apis[:-1]:
        with contextlib.suppress(NotFoundError):
            return await client.record(task, api=api)
    try:
        return await client.record(task, api=apis[-1] if apis else None)
    except NotFoundError as error:
        hint = "" if apis else " {other_api}"
        error.advice = f"{_NOTHING_CHANGED} Check the task id at kie.ai/logs.{hint}"
        raise


async def _job_in_doubt(journal: Journal, key: str) -> StoredJob:
    _check_key(key)
    stored = await journal.job(key)
    if stored is None:
        raise InvalidInput(f"The journal has no job {key}.", advice=_NOTHING_CHANGED)
    if stored.job.state is not JobState.IN_DOUBT:
        raise InvalidInput(f"Job {key} is {stored.job.state}, not in doubt.", advice=_NOTHING_CHANGED)
    return stored


# --- rekey ------------------------------------------------------------------------------------------------


class RekeyEvidence(enum.StrEnum):
    """Why a journal may go on with a key."""

    SAME_KEY = "same_key"
    """The journal belongs to this key already."""
    NOTHING_PAID = "nothing_paid"
    """Nothing was paid with the old key."""
    TASK_SEEN = "task_seen"
    """The key can read a task of this journal: it is of the same account."""
    CALLER = "caller"
    """The vendor's answers prove nothing; the caller states that the account is the same."""


@attrs.frozen(kw_only=True)
class Rekeyed:
    """A journal that goes on with another key.

    Attributes:
        evidence: Why it may.
        task_id: The task that was read, where one was.
    """

    evidence: RekeyEvidence
    task_id: TaskId | None = None


async def rekey(
    client: BatchClient, journal: str | os.PathLike[str] | Journal, *, same_account: bool = False
) -> Rekeyed:
    """Let a journal go on with the client's key, which is a new one of the account that it was made with.

    The balance is read first, so that a key which is refused changes nothing. Then up to three tasks of the
    journal are read with the key: a record proves that the key is of the account that paid. "No such task",
    for a task that must exist, proves the contrary. Anything else proves nothing.

    Args:
        client: Made with the new key.
        journal: The journal's file, or a journal that was opened without an account.
        same_account: The caller states that the account is the same. It counts where the vendor's answers
            prove nothing.

    Raises:
        AuthenticationError: The key was refused.
        JournalBusyError: A run is using the journal.
        JournalError: The key is of another account; or its account is not proven, and ``same_account`` is
            False.
    """
    check_flag(same_account, "same_account")
    async with _opened(client, journal, checks_account=False) as opened:
        with opened.one_run():
            try:
                await client.credits()
                found = await _evidence(client, opened, same_account=same_account)
            except FluxError as error:  # its advice may be to call this function
                error.advice = error.advice_template.replace("{new_key}", _NOTHING_CHANGED)
                raise
            await opened.rekey(client.fingerprint)
    return found


async def _evidence(client: BatchClient, journal: Journal, *, same_account: bool) -> Rekeyed:
    if await journal.account() in {"", client.fingerprint}:
        return Rekeyed(evidence=RekeyEvidence.SAME_KEY)
    if not await journal.may_have_paid():
        return Rekeyed(evidence=RekeyEvidence.NOTHING_PAID)
    now = client.session.clock.wall()
    hidden: list[PaidTask] = []
    for task in await journal.paid_tasks(since=now - max(RETENTION_S.values()), limit=_MOST_TASKS):
        if await _can_read(client, task):
            return Rekeyed(evidence=RekeyEvidence.TASK_SEEN, task_id=task.task_id)
        hidden.append(task)
    _refuse_another_account(hidden, now)
    if not same_account:
        raise JournalError(
            f"Nothing shows that this key is of the account that paid: {_why_not(hidden)}.",
            advice=f"{_NOTHING_CHANGED} If it is of the same account, {{sure}}.",
        )
    return Rekeyed(evidence=RekeyEvidence.CALLER)


async def _can_read(client: BatchClient, task: PaidTask) -> bool:
    """Return whether the key can read a task; False where the vendor says that there is none."""
    try:
        await client.record(task.task_id, api=task.api)
    except FluxError as error:
        if poll_meaning(error) is PollMeaning.NOT_VISIBLE:
            return False
        if error.scope is not Scope.STOP:
            error.advice = f"{_NOTHING_CHANGED} Try again later."
        raise
    return True


def _refuse_another_account(hidden: list[PaidTask], now: float) -> None:
    """Raise where a task that must exist is none for this key."""
    for task in hidden:
        if task.is_live and now - task.submitted_at > _VISIBLE_WITHIN_S:
            raise JournalError(
                f"This key is of another account: for it there is no task {task.task_id}, which was paid and "
                "whose result is not fetched yet.",
                advice=f"{_NOTHING_CHANGED} Use a key of the account that paid.",
                task_id=task.task_id,
            )


def _why_not(hidden: list[PaidTask]) -> str:
    if not hidden:
        return "the journal has no task of the last 14 days to read"
    return f"for this key there is no task {hidden[0].task_id}, which may be too new, or expired"


# --- fetch_missing ----------------------------------------------------------------------------------------


@attrs.define
class FetchReport:
    """What :func:`fetch_missing` did.

    Attributes:
        fetched: Images that were downloaded.
        missing: Images that are still not there; each was reported with its error.
    """

    fetched: int = 0
    missing: int = 0


async def fetch_missing(
    client: BatchClient,
    journal: str | os.PathLike[str] | Journal,
    directory: str | os.PathLike[str],
    *,
    jobs: Iterable[JobKey] | AsyncIterable[JobKey] | None = None,
    name_file: Callable[[Job], str] | None = None,
    patience: float = PATIENCE_S,
    on_outcome: Callable[[Outcome], Awaitable[None]] | None = None,
) -> FetchReport:
    """Download the images of finished jobs that are not in ``directory``; nothing is charged.

    They were left at the vendor, or moved away since. A download that fails is tried again for ``patience``
    seconds. A job whose image was delivered once stays done, whatever the file host answers.

    Args:
        client: Of the account that paid.
        journal: The journal's file, or an open journal, which a batch may be running.
        directory: Receives the images.
        jobs: The keys of the jobs; left out, all jobs of the journal that are done. A list is checked before
            anything is fetched; an asynchronous stream is read as the downloads go on.
        name_file: Names a job's file, as for :func:`flux_async.run_batch`.
        patience: Seconds from its first failure for which a download is tried again.
        on_outcome: An async function; receives ``Succeeded`` or ``Failed`` for each image that was missing.

    Raises:
        InvalidInput: An argument has a wrong type, or the journal does not have a job of ``jobs``.
        FluxError: It concerns all images, such as a full disk.
        JournalError: There is no journal, or it cannot be used.
    """
    folder, patience_s = check_folder(directory, "directory"), check_positive(patience, "patience")
    check_functions(name_file)
    _check_keys(jobs)
    _check_on_outcome(on_outcome)
    async with _opened(client, journal) as opened:
        fetching = _Fetching(
            client=client,
            journal=opened,
            sink=FolderSink(folder),
            names=FileNames(journal=opened, name_file=name_file, place=os.fspath(folder)),
            patience_s=patience_s,
            on_outcome=on_outcome,
        )
        unknown: list[str] = []
        if isinstance(jobs, Iterable):
            jobs = list(jobs)
            async for _ in _by_key(opened, jobs, unknown):
                pass
            _refuse_unknown(unknown, "Correct the keys; nothing was fetched.")
        done = opened.iter_jobs(JobState.DONE) if jobs is None else _by_key(opened, jobs, unknown)
        try:
            await fetching.run(done)
        except BaseExceptionGroup as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]  # several images met the same error
            raise first from None
    _refuse_unknown(unknown, "The images of the other jobs were fetched.")
    return fetching.report


@attrs.define(kw_only=True, eq=False)
class _Fetching:
    """One call of :func:`fetch_missing`.

    Attributes:
        failing_since: When the first download failed after the last that succeeded, in monotonic seconds. A
            host that is away for ``patience_s`` seconds is not waited for once more by each image.
    """

    client: BatchClient
    journal: Journal
    sink: FolderSink
    names: FileNames
    patience_s: float
    on_outcome: Callable[[Outcome], Awaitable[None]] | None
    report: FetchReport = attrs.field(factory=FetchReport, init=False)
    failing_since: float | None = attrs.field(default=None, init=False)

    async def run(self, jobs: AsyncIterable[StoredJob]) -> None:
        room = asyncio.Semaphore(_MOST_WAITING)
        async with asyncio.TaskGroup() as group:
            async for stored in jobs:
                if self._is_missing(stored.job):
                    await room.acquire()
                    group.create_task(self._fetch(stored)).add_done_callback(lambda _: room.release())

    def _is_missing(self, job: JobSnapshot) -> bool:
        is_there = job.file is not None and (self.sink.folder / job.file).is_file()
        return job.state is JobState.DONE and not is_there

    async def _fetch(self, stored: StoredJob) -> None:
        """Download one image in as many tries as there is patience for."""
        clock = self.client.session.clock
        failed: FailedDownload | None = None
        while (error := await self._try(stored)) is not None:
            now = clock.monotonic()
            self.failing_since = now if self.failing_since is None else self.failing_since
            failed = failed or FailedDownload(ends=self.failing_since + self.patience_s, error=error)
            failed.error, failed.tries = error, failed.tries + 1
            what = failed.next_try(self.client.session, stored.job, failed.ends - now)
            if isinstance(what, NoDownload):
                await self._give_up(stored, failed, what)
                return
            await clock.sleep(what.delay_s)

    async def _try(self, stored: StoredJob) -> DownloadError | None:
        """Try one download; return the error where another try may be made.

        Raises:
            FluxError: It concerns all images.
        """
        job = stored.job
        image = ImageResult(
            task_id=TaskId(job.task_id or ""),
            result_url=job.result_url or "",
            origin_url=job.origin_url,
            api=job.api or "kontext",
        )
        try:
            name = await self.names.name(stored)
            saved = await self.client.save(image, self.sink, job=stored.as_job(), name=name)
        except FluxError as error:
            if isinstance(error, DownloadError) and error.scope is not Scope.STOP:
                return error
            await self._report(stored, job, error)
            if concerns_all(error):
                raise
            return None
        at = self.client.session.clock.wall()
        self.failing_since = None
        await self._settle(stored, Saved(at=at, file=saved.reference, sha256=saved.sha256), None)
        return None

    async def _give_up(self, stored: StoredJob, failed: FailedDownload, what: NoDownload) -> None:
        """Settle an image that does not come. One that was delivered before is never recorded as lost."""
        if what is NoDownload.FOR_NOW:
            await self._report(stored, stored.job, failed.final_error(stored))
            return
        gone = expired(failed.error, kept_s(stored.job))
        if stored.job.file is None:
            at = self.client.session.clock.wall()
            await self._settle(stored, ResultLost(at=at, problem=Problem.of(gone)), gone)
            return
        gone.advice = "An earlier run delivered the image; nothing is paid again."
        await self._report(stored, stored.job, gone)

    async def _settle(self, stored: StoredJob, event: Event, error: FluxError | None) -> None:
        await self._report(stored, await _record(self.journal, stored, event), error)

    async def _report(self, stored: StoredJob, job: JobSnapshot, error: FluxError | None) -> None:
        if error is None:
            self.report.fetched += 1
        else:
            self.report.missing += 1
            error.in_memory = not self.journal.is_durable
        if self.on_outcome is None:
            return
        if error is None:
            await self._notify(self.on_outcome, outcome_of(job, stored.as_job(), None, self.sink.folder))
            return
        given: Job | None = None
        with contextlib.suppress(InvalidInput):  # a request of another release
            given = stored.as_job()
        await self._notify(self.on_outcome, Failed(job=given, error=error))

    async def _notify(self, on_outcome: Callable[[Outcome], Awaitable[None]], outcome: Outcome) -> None:
        result = on_outcome(outcome)
        if not isinstance(result, Awaitable):
            raise InvalidInput("on_outcome must be an async function.", advice=_ON_OUTCOME)
        await result


# --- what they share --------------------------------------------------------------------------------------


@asynccontextmanager
async def _opened(
    client: BatchClient, journal: str | os.PathLike[str] | Journal, *, checks_account: bool = True
) -> AsyncIterator[Journal]:
    """Hold an open journal. One that is given as a path is opened here, and closed afterwards.

    Raises:
        InvalidInput: One of them has a wrong type.
        JournalError: There is none at the path, or an empty file: no journal is made.
    """
    check_client(client)
    if not isinstance(journal, str | os.PathLike | Journal):
        raise InvalidInput(f"journal must be the path of a journal, or a Journal, not {shown(journal)}.")
    if isinstance(journal, Journal):
        yield journal
        return
    made, account = Journal(journal, clock=client.session.clock), client.fingerprint if checks_account else ""
    async with await made.open(account=account, may_be_new=False) as opened:
        yield opened


async def _by_key(
    journal: Journal, keys: Iterable[JobKey] | AsyncIterable[JobKey], unknown: list[str]
) -> AsyncIterator[StoredJob]:
    """Yield the jobs with these keys; add those that the journal does not have to ``unknown``."""
    async for key in each(keys):
        _check_key(key)
        stored = await journal.job(key)
        if stored is None:
            unknown.append(key)
        else:
            yield stored


def _check_on_outcome(function: object) -> None:
    if function is not None:
        words = f"on_outcome must be an async function of one argument, not {shown(function)}"
        check_function(function, words, takes=1, is_async=True, advice=_ON_OUTCOME)


def _check_keys(keys: object) -> None:
    if keys is not None and (isinstance(keys, str) or not isinstance(keys, Iterable | AsyncIterable)):
        raise InvalidInput(f"jobs must be a list or a stream of keys, not {shown(keys)}.")


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise InvalidInput(
            f"The key of a job must be a str, not {shown(key)}.", advice="Give outcome.job.key."
        )


def _refuse_unknown(keys: list[str], advice: str) -> None:
    if keys:
        first, rest = ", ".join(map(shown, keys[:_MOST_NAMED])), len(keys) - _MOST_NAMED
        more = f" and {rest} more" if rest > 0 else ""
        raise InvalidInput(f"The journal has no job {first}{more}.", advice=advice)


async def _record(journal: Journal, stored: StoredJob, event: Event) -> JobSnapshot:
    """Record one event of a job that no run works on, and return the job after it."""
    after = apply(stored.job, event)
    await journal.record(stored.number, after, event, before=stored.job)
    return after
