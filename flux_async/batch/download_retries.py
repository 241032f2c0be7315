"""Downloads of paid results that failed and are tried again: how many at once, and for how long.

A job whose download failed sleeps in its own coroutine. It holds no slot for tasks in flight and none of the
session's downloads meanwhile. Few are tried again at once, so that a file host that is down leaves room for
the results of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import AsyncIterator, Iterator

import attrs

from flux_async.api.stored_requests import read_image
from flux_async.batch.active_job import ActiveJobs
from flux_async.batch.progress import ProgressReporter
from flux_async.errors import DownloadError
from flux_async.journal.store import StoredJob
from flux_async.models import without_query
from flux_async.policy.downloads import DownloadAgain, NoDownload, after_failed_download, unfetched
from flux_async.session import Session
from flux_async.submitter import log

MOST_AT_ONCE = 4
"""Downloads tried again at once; the session makes eight in all."""
MOST_BEYOND_PATIENCE = 1000
"""With more downloads waiting, those that have had their time are given up even while the run is busy."""
_LATE_S = 30.0


@attrs.define(kw_only=True, eq=False)
class FailedDownload:
    """What is known of one download that failed.

    Attributes:
        ends: When it has had its time, in monotonic seconds.
        error: How the last try ended.
        tries: Tries made.
        next_at: When it is tried again.
    """

    ends: float
    error: DownloadError
    tries: int = 0
    next_at: float = 0.0

    def last_word(self, stored: StoredJob) -> DownloadError:
        """Return the error with which the download ends for this run."""
        name, submitted_at = name_of(stored), stored.job.submitted_at
        return unfetched(self.error, name, tries=self.tries, submitted_at=submitted_at)


@attrs.define(kw_only=True, eq=False)
class DownloadRetries:
    """The downloads of one run that are tried again.

    A run goes on trying while it has other work; once it has none, each download has had ``patience_s``
    seconds from its first failure.

    Attributes:
        session: Has the clock and the source of jitter.
        patience_s: Seconds from the first failure for which a download is tried again.
        jobs: Know whether the run has other work.
        progress: Counts the downloads that are tried again.
    """

    session: Session
    patience_s: float
    jobs: ActiveJobs
    progress: ProgressReporter
    _slots: asyncio.Semaphore = attrs.field(
        factory=lambda: asyncio.Semaphore(MOST_AT_ONCE), init=False, repr=False
    )

    @contextlib.contextmanager
    def count(self) -> Iterator[None]:
        """Hold from the first failure of a download to its end."""
        self.progress.retrying += 1
        try:
            with self.jobs.idle():
                yield
        finally:
            self.progress.retrying -= 1

    def begin(self, error: DownloadError) -> FailedDownload:
        """Return what is known of a download that has failed for the first time."""
        return FailedDownload(ends=self.session.clock.monotonic() + self.patience_s, error=error)

    def after(self, failed: FailedDownload, stored: StoredJob, error: DownloadError) -> float | NoDownload:
        """Return in how many seconds a download is tried again, or why it is not."""
        clock, job = self.session.clock, stored.job
        failed.tries += 1
        failed.error = copy.copy(error)  # without its traceback, which keeps much more alive
        left = failed.ends - clock.monotonic()
        what = after_failed_download(
            error,
            tries=failed.tries,
            age_s=None if job.submitted_at is None else clock.wall() - job.submitted_at,
            left_s=self.patience_s if left <= 0 and self._may_go_on() else left,
            draw=self.session.rng.random(),
        )
        if not isinstance(what, DownloadAgain):
            return what
        words = "job %s: download of task %s tried again in %.1f s: %s"
        log(logging.INFO, words, job.key[:12], job.task_id, what.delay_s, error.message)
        failed.next_at = clock.monotonic() + what.delay_s
        return what.delay_s

    @contextlib.asynccontextmanager
    async def slot(self, failed: FailedDownload) -> AsyncIterator[bool]:
        """Wait for a slot and hold it; False where the download has had its time before there was one."""
        async with self._slots:
            late = self.session.clock.monotonic() > max(failed.ends, failed.next_at + _LATE_S)
            yield not late or self._may_go_on()

    def _may_go_on(self) -> bool:
        return self.jobs.are_busy and self.progress.retrying <= MOST_BEYOND_PATIENCE


def name_of(stored: StoredJob) -> str:
    """Return what messages call the image of a job: the last part of its address or path, else its key."""
    image = without_query(stored.source or read_image(stored.request))
    return image.rstrip("/").rpartition("/")[2] or stored.job.key
