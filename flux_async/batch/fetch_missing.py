"""``fetch_missing``: downloads images of finished jobs that are not in their folder; nothing is charged."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable

import attrs

from flux_async.batch.downloads import FailedDownload, kept_s
from flux_async.batch.file_names import FileNames
from flux_async.batch.inputs import each
from flux_async.batch.job_runner import image_of, outcome_of
from flux_async.batch.open_journal import check_key, open_journal, record_event
from flux_async.batch.options import BatchClient, check_folder, check_functions
from flux_async.batch.originals import copy_again
from flux_async.batch.result_files import result_name
from flux_async.batch.run_context import concerns_all
from flux_async.batch.runner import PATIENCE_S
from flux_async.errors import DownloadError, FluxError, InvalidInput, Scope, shown
from flux_async.files.sink import FolderSink
from flux_async.job_state import Event, JobSnapshot, JobState, Problem, ResultLost, Saved
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Failed, Job, JobKey, Outcome
from flux_async.policy import check_function, check_positive
from flux_async.policy.downloads import NoDownload, expired

_MOST_WAITING = 1_000
"""Images that are downloaded, or wait for another try, at once."""
_MOST_NAMED = 10
_ON_OUTCOME = "Write `async def on_outcome(outcome)`."


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

    They were left at the vendor, or moved away since; the copy of an original without text is made again. A
    download that fails is tried again for ``patience`` seconds. A job whose image was delivered once stays
    done, whatever the file host answers.

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
    async with open_journal(client, journal) as opened:
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
        try:
            name = await self.names.name(stored)
            image = image_of(job)
            if image is None:
                saved = await copy_again(self.client, stored, self.sink.folder, name)
            else:
                name = result_name(name, job)
                saved = await self.client.save(image, self.sink, job=stored.as_job(), name=name)
        except FluxError as error:
            if isinstance(error, DownloadError) and error.scope is not Scope.STOP and job.task_id is not None:
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
        await self._report(stored, await record_event(self.journal, stored, event), error)

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


# --- arguments --------------------------------------------------------------------------------------------


async def _by_key(
    journal: Journal, keys: Iterable[JobKey] | AsyncIterable[JobKey], unknown: list[str]
) -> AsyncIterator[StoredJob]:
    """Yield the jobs with these keys; add those that the journal does not have to ``unknown``."""
    async for key in each(keys):
        check_key(key)
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


def _refuse_unknown(keys: list[str], advice: str) -> None:
    if keys:
        first, rest = ", ".join(map(shown, keys[:_MOST_NAMED])), len(keys) - _MOST_NAMED
        more = f" and {rest} more" if rest > 0 else ""
        raise InvalidInput(f"The journal has no job {first}{more}.", advice=advice)
