"""Downloads images of finished jobs that are not in the folder: left at the vendor, or moved away since.

This runs beside the batch. A download that fails is tried again for as long as the run is patient; an image
that was delivered once stays succeeded, whatever the file host answers.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Sequence

import anyio
import attrs

from flux_async import DownloadError, FluxClient, FluxError, ImageResult
from flux_async.batch.download_retries import name_of
from flux_async.cli.exits import halts
from flux_async.cli.results import ResultRow
from flux_async.cli.run_folder import RunFolder
from flux_async.clock import Clock
from flux_async.job_state import Problem, ResultLost, Saved, apply
from flux_async.journal.store import StoredJob
from flux_async.models import TaskId
from flux_async.policy.downloads import (
    DownloadAgain,
    NoDownload,
    after_failed_download,
    expired,
    unfetched,
)

_AT_ONCE = 4
_LONGEST_NAP_S = 0.5


@attrs.define(kw_only=True, eq=False)
class MissingImages:
    """Brings the images that are not in the folder.

    Attributes:
        client: Downloads them.
        folder: Receives them.
        clock: The reader of time.
        patience_s: Seconds from its first failure for which a download is tried again.
        on_row: Receives the row of each image that was fetched or given up.
        on_halt: Receives an error that concerns all of them.
        is_halted: Whether the run has been halted.
    """

    client: FluxClient
    folder: RunFolder
    clock: Clock
    patience_s: float
    on_row: Callable[[ResultRow], None]
    on_halt: Callable[[FluxError], None]
    is_halted: Callable[[], bool]
    _queue: list[tuple[float, int]] = attrs.field(factory=list, init=False, repr=False)  # a heap, by time
    _tries: dict[int, int] = attrs.field(factory=dict, init=False, repr=False)
    _ends: dict[int, float] = attrs.field(factory=dict, init=False, repr=False)
    _trying: int = attrs.field(default=0, init=False)
    _is_fed: bool = attrs.field(default=False, init=False)
    settled: int = attrs.field(default=0, init=False)
    moved_away: int = attrs.field(default=0, init=False)

    async def bring(self, missing_beyond: Callable[[int], Awaitable[Sequence[int]]]) -> None:
        """Fetch images, a few at a time, until each is here or has had its time.

        Args:
            missing_beyond: Returns the jobs of those that follow the first so many, and none at the end.
        """
        taken = 0
        async with anyio.create_task_group() as group:
            while (numbers := await missing_beyond(taken)) and not self.is_halted():
                for number in numbers:
                    heapq.heappush(self._queue, (0.0, number))
                if not taken:
                    for _ in range(_AT_ONCE):
                        group.start_soon(self._work)
                taken += len(numbers)
            self._is_fed = True

    async def _work(self) -> None:
        """Take what is due, one after another, until nothing is left."""
        while (self._queue or self._trying or not self._is_fed) and not self.is_halted():
            wait = self._queue[0][0] - self.clock.monotonic() if self._queue else _LONGEST_NAP_S
            if wait > 0:
                await self.clock.sleep(min(wait, _LONGEST_NAP_S))
                continue
            _, number = heapq.heappop(self._queue)
            self._trying += 1
            try:
                for stored in self.folder.jobs_of([number]):
                    await self._try(stored)
            finally:
                self._trying -= 1

    async def _try(self, stored: StoredJob) -> None:
        job = stored.job
        image = ImageResult(
            task_id=TaskId(job.task_id or ""), result_url=job.result_url or "", origin_url=job.origin_url
        )
        event: Saved | ResultLost | None = None
        problem: Problem | None = None
        try:
            saved = await self.client.download(
                image, self.folder.target(stored), match_suffix=True, retry=False
            )
            event = Saved(at=self.clock.wall(), file=saved.path.name, sha256=saved.sha256)
        except DownloadError as error:
            what = self._after(stored, error)
            if isinstance(what, DownloadAgain):
                heapq.heappush(self._queue, (self.clock.monotonic() + what.delay_s, stored.number))
                return
            event, problem = self._end(stored, error, what)
        except FluxError as error:
            problem = Problem.of(error)
            self.on_halt(error)
        await self._settle(stored, event, problem)

    def _after(self, stored: StoredJob, error: DownloadError) -> DownloadAgain | NoDownload:
        number, submitted_at = stored.number, stored.job.submitted_at
        tries = self._tries[number] = self._tries.get(number, 0) + 1
        ends = self._ends.setdefault(number, self.clock.monotonic() + self.patience_s)
        return after_failed_download(
            error,
            tries=tries,
            age_s=None if submitted_at is None else self.clock.wall() - submitted_at,
            left_s=ends - self.clock.monotonic(),
            draw=self.client.session.rng.random(),
        )

    def _end(
        self, stored: StoredJob, error: DownloadError, what: NoDownload
    ) -> tuple[ResultLost | None, Problem | None]:
        """Return what becomes of an image that does not come: one that was delivered before is never lost."""
        job, at = stored.job, self.clock.wall()
        if halts(error):
            self.on_halt(error)
        for_good = what is NoDownload.FOR_GOOD
        if for_good and job.file is None:
            return ResultLost(at=at, problem=Problem.of(expired(error))), None
        if for_good:
            gone = expired(error)
            gone.advice = "An earlier run delivered the image; nothing is paid again."
            return None, Problem.of(gone)
        tries = self._tries[stored.number]
        last = unfetched(error, name_of(stored), tries=tries, submitted_at=job.submitted_at)
        return None, Problem.of(last)

    async def _settle(
        self, stored: StoredJob, event: Saved | ResultLost | None, problem: Problem | None
    ) -> None:
        """Write down how the download of one image ended."""
        try:
            if event is not None:
                after = apply(stored.job, event)
                await self.folder.journal.record(stored.number, after, event, before=stored.job)
            if problem is not None:
                self.folder.obstacles[stored.number] = problem
                self.moved_away += stored.job.file is not None
            row = await self.folder.settled(stored.job.key, problem)
        except FluxError as error:
            self.on_halt(error)
            return
        self.settled += 1
        if row is not None:
            self.on_row(row)
