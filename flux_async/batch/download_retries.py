"""Tries again the downloads of paid results that failed: queued by job with the time of their next try.

A waiting download holds no coroutine, no slot for tasks in flight and none of the account's downloads. Few
are tried at once, so that a file host that is down leaves room for the results of others.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from collections.abc import Callable

import attrs

from flux_async.api.stored_requests import read_image
from flux_async.errors import DownloadError
from flux_async.journal.store import StoredJob
from flux_async.models import JobKey, without_query
from flux_async.policy.downloads import DownloadAgain, NoDownload, after_failed_download, unfetched
from flux_async.session import Session, log
from flux_async.timing import Alarm

MOST_AT_ONCE = 4
"""Downloads tried again at once; the account makes eight in all."""

MOST_BEYOND_PATIENCE = 1000
"""With more downloads waiting, those that have had their time are given up even while the run is busy."""

_LATE_S = 30.0


@attrs.define(kw_only=True, eq=False)
class FailedDownload:
    """What is known of one download that failed.

    Attributes:
        key: The job.
        name: What the image is called.
        ends: When it has had its time, in monotonic seconds.
        next_at: When it is tried again.
        error: How the last try ended.
        tries: Tries made.
        given_up: Whether no other try is made in this run.
    """

    key: JobKey
    name: str
    ends: float
    error: DownloadError
    tries: int = 0
    next_at: float = 0.0
    given_up: bool = False


@attrs.define(kw_only=True, eq=False)
class DownloadRetries:
    """The downloads of one run that are tried again.

    A run goes on trying while it has other work; once it has none, each download has had ``patience_s``
    seconds from its first failure.

    Attributes:
        account: Has the clock and the source of jitter.
        patience_s: Seconds from the first failure for which a download is tried again.
        group: Runs the one coroutine that sleeps for all.
        start: Tries a download again, by the number of its job, and calls :meth:`tried` in the end.
        is_busy: Whether the run has other work.
    """

    session: Session
    patience_s: float
    group: asyncio.TaskGroup
    start: Callable[[int, FailedDownload], None]
    is_busy: Callable[[], bool]
    _failed: dict[int, FailedDownload] = attrs.field(factory=dict, init=False, repr=False)
    _alarm: Alarm[int] = attrs.field(init=False, repr=False)
    _due: deque[int] = attrs.field(factory=deque, init=False, repr=False)
    _trying: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._alarm = Alarm(
            self.session.clock,
            self.group.create_task,
            call=self._is_due,
            fail=lambda number, _: self._give_up(number),
        )

    def __len__(self) -> int:
        return len(self._failed)

    def __contains__(self, number: object) -> bool:
        return number in self._failed

    def failed(self, stored: StoredJob, error: DownloadError) -> DownloadAgain | NoDownload:
        """Decide what follows a failed try; what is tried again is to be queued by :meth:`wait`."""
        clock, job = self.session.clock, stored.job
        failed = self._failed.get(stored.number)
        if failed is None:
            ends = clock.monotonic() + self.patience_s
            failed = FailedDownload(key=job.key, name=name_of(stored), ends=ends, error=error)
            self._failed[stored.number] = failed
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
        if isinstance(what, DownloadAgain):
            words = "job %s: download of task %s tried again in %.1f s: %s"
            log(logging.INFO, words, job.key[:12], job.task_id, what.delay_s, error.message)
        return what

    def last_word(self, stored: StoredJob) -> DownloadError:
        """Return the error with which a download ends for this run."""
        failed = self._failed[stored.number]
        return unfetched(failed.error, failed.name, tries=failed.tries, submitted_at=stored.job.submitted_at)

    def wait(self, number: int, delay_s: float) -> None:
        """Try a download again after ``delay_s`` seconds."""
        at = self._failed[number].next_at = self.session.clock.monotonic() + delay_s
        self._alarm.set(number, at)

    def forget(self, number: int) -> None:
        """A job needs no other try."""
        self._failed.pop(number, None)

    def tried(self) -> None:
        """One try has ended: there is room for another."""
        self._trying -= 1
        if self._due:
            self._try(self._due.popleft())

    def _may_go_on(self) -> bool:
        return self.is_busy() and len(self._failed) <= MOST_BEYOND_PATIENCE

    def _is_due(self, number: int) -> None:
        if self._trying < MOST_AT_ONCE:
            self._try(number)
        else:
            self._due.append(number)

    def _try(self, number: int) -> None:
        """Start one try; a download that waited in the queue past its time is given up instead."""
        failed = self._failed[number]
        late = self.session.clock.monotonic() > max(failed.ends, failed.next_at + _LATE_S)
        failed.given_up = failed.given_up or (late and not self._may_go_on())
        self._trying += 1
        self.start(number, failed)

    def _give_up(self, number: int) -> None:
        self._failed[number].given_up = True
        self._try(number)


def name_of(stored: StoredJob) -> str:
    """Return what messages call the image of a job: the last part of its address or path, else its key."""
    image = without_query(stored.source or read_image(stored.request))
    return image.rstrip("/").rpartition("/")[2] or stored.job.key
