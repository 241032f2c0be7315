"""Reads, for all callers of one process, how the jobs of a service in the database stand.

One coroutine reads once a second what waits, what is halted, and the jobs that callers follow; health checks
answer from what it has read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from flux_async.batch.answers import ServiceSnapshot, Waiters
from flux_async.clock import Wakeup
from flux_async.engine.accounts import Accounts
from flux_async.engine.database import Database, in_words
from flux_async.engine.row_events import RowEvents
from flux_async.errors import JobCancelled, JournalError, QueueFull
from flux_async.events import EventStream, FluxEvent, JobAdded, RequestEnded, Settled, Submitted
from flux_async.job_state import Problem
from flux_async.snapshots import ClientSnapshot
from flux_async.telemetry.feed import EventFeed

logger: logging.Logger = logging.getLogger("flux_async.engine")

READ_S = 1.0
"""Seconds between two reads."""
AWAY_S = 5.0
"""Seconds without an answer after which the database counts as away."""
_TOGETHER_S, _LONGEST_READ_S = 0.05, 30.0
_COUNTS = (
    "SELECT (SELECT count(*) FROM (SELECT FROM flux_async.job WHERE batch = name AND state = 'pending' "
    "AND settled IS NULL LIMIT %(most)s) AS waiting) AS waiting, "
    "(SELECT count(*) FROM flux_async.job WHERE batch = name AND settled IS NULL AND state IN "
    "('submitting', 'submitted', 'generated', 'in_doubt')) AS active, is_cancelled "
    "FROM flux_async.batch WHERE name = %(batch)s"
)


@attrs.frozen(eq=False)
class _FromWorker:
    """Hands a feed the events of this process's own worker, but for those that come from the rows."""

    feed: EventFeed

    def wants(self, kind: type[FluxEvent]) -> bool:
        """Return whether the worker's events of a class go to the feed."""
        return kind not in {JobAdded, Settled, RequestEnded}

    def __call__(self, event: FluxEvent, /) -> None:
        """Hand an event over."""
        self.feed(event)


@attrs.frozen(eq=False)
class _OfWorker:
    """Takes note of what this process's own worker has reported itself."""

    reader: ServiceReader

    def wants(self, kind: type[FluxEvent]) -> bool:
        """Return whether events of a class are taken note of."""
        return kind in {Submitted, Settled}

    def __call__(self, event: FluxEvent, /) -> None:
        """Take note of a task; have the rows read at once for an outcome."""
        if isinstance(event, Settled):
            self.reader.has_outcome()
        elif event.task_id is not None:
            self.reader.rows.has_reported(event.task_id)


@attrs.define(kw_only=True, eq=False)
class ServiceReader:
    """What one process knows of the jobs of a service.

    Attributes:
        database: Where they are.
        batch: The batch that they belong to.
        account: The account of this process's worker; None if it has none.
        most_waiting: Jobs that may wait for their submit.
        events: What this process's worker does.
        rows: Makes events from the rows.
        waiters: Callers that wait for outcomes.
    """

    database: Database
    batch: str
    account: str | None
    most_waiting: int
    events: EventStream
    rows: RowEvents
    waiters: Waiters
    _news: Wakeup = attrs.field(factory=Wakeup, init=False, repr=False)
    _of_worker: _OfWorker = attrs.field(init=False, repr=False)
    _feeds: dict[EventFeed, _FromWorker] = attrs.field(factory=dict, init=False, repr=False)
    _reading: asyncio.Task[None] | None = attrs.field(default=None, init=False, repr=False)
    _since: float | None = attrs.field(default=None, init=False)
    _waiting: int = attrs.field(default=0, init=False)
    _active: int = attrs.field(default=0, init=False)
    _halted: Problem | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._of_worker = _OfWorker(self)

    async def open(self) -> None:
        """Read once, and from then on once a second."""
        await self._read()
        self.events.attach(self._of_worker)
        self._reading = asyncio.get_running_loop().create_task(self._keep_reading())

    async def aclose(self) -> None:
        """Read no more."""
        self.events.detach(self._of_worker)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    @contextmanager
    def room(self) -> Iterator[None]:
        """Hold while a job is added.

        Raises:
            QueueFull: Too many are waiting, by the last count and what was added since.
        """
        if self._waiting >= self.most_waiting:
            raise QueueFull(f"{self.most_waiting} jobs wait for their submit already.", retry_after_s=READ_S)
        self._waiting += 1
        try:
            yield
        except BaseException:
            self._waiting -= 1
            raise

    def has_outcome(self) -> None:
        """Read soon, if a caller may wait for an outcome of this process's worker."""
        if self._feeds or self.waiters.keys:
            self._news.set()

    def report(self, event: FluxEvent) -> None:
        """Hand an event to all feeds of this process."""
        for feed in self._feeds:
            feed(event)

    async def _keep_reading(self) -> None:
        """Read once a second, and soon after this process's own worker has an outcome, until cancelled."""
        clock = self.database.clock
        while True:
            await self._news.wait(clock, READ_S)
            await clock.sleep(_TOGETHER_S)
            try:
                async with asyncio.timeout(_LONGEST_READ_S):  # the server's host may be gone without a word
                    await self._read()
            except Exception as error:  # noqa: BLE001 - of two database libraries; it must go on
                logger.warning("the service cannot read %s: %s", self.database, in_words(error))

    async def _read(self) -> None:
        database = self.database
        self._since = database.clock.monotonic() if self._since is None else self._since
        counts = await database.row(_COUNTS, batch=self.batch, most=self.most_waiting)
        if counts is not None:
            self._waiting, self._active = counts["waiting"], counts["active"]
        self._halted = await Accounts(database).halted(self.account)
        if counts is not None and counts["is_cancelled"]:
            self._halted = Problem.of(JobCancelled(f"Batch {self.batch} is cancelled; a restart resumes it."))
        keys = {*self.waiters.keys, *(feed.job for feed in self._feeds if feed.job is not None)}
        follows_all = any(feed.job is None for feed in self._feeds)
        happened, ended = await self.rows.read(keys, follows_all=follows_all)
        for event in happened:
            self.report(event)
        for key in ended:
            self.waiters.wake(key)
        self._since = None

    def attach(self, feed: EventFeed) -> None:
        """Hand a feed the events of this process's worker, and those of other processes from the rows."""
        self._feeds[feed] = _FromWorker(feed)
        self.events.attach(self._feeds[feed])
        self._news.set()

    def detach(self, feed: EventFeed) -> None:
        """Hand them to it no more."""
        self.events.detach(self._feeds.pop(feed))

    def snapshot(self, client: ClientSnapshot, *, is_open: bool) -> ServiceSnapshot:
        """Return what waits and is active in all processes, as it was read a moment ago."""
        halted, now = self._halted, self.database.clock.monotonic()
        lag_s = 0.0 if self._since is None else now - self._since
        if lag_s > AWAY_S:
            words = f"{self.database} has not answered for {lag_s:.0f} s."
            halted = Problem.of(JournalError(words))
        return ServiceSnapshot(
            client=client,
            is_open=is_open,
            waiting=self._waiting,
            most_waiting=self.most_waiting,
            active=self._active,
            journal_lag_s=lag_s,
            halted=None if halted is None else halted.type,
            reason=None if halted is None else halted.message,
            progress=None,
        )
