"""Many images at once: submit, wait, download, each in its own coroutine, never more than agreed.

Everything is kept in memory and in ``results.jsonl``. Each image's row moves
``pending → pending with a task id → pending with a result URL → succeeded``, or ends in ``failed`` or
``in_doubt``; so whenever the run is cut short, its row says how to go on without paying again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from flux_async import (
    Charge,
    ConnectionLost,
    EditRequest,
    FluxClient,
    FluxError,
    ImageResult,
    InvalidInput,
    Job,
    TaskFailed,
    UnclaimedTask,
)
from flux_async.cli.exits import halts
from flux_async.cli.planning import Item, Step
from flux_async.cli.progress import Phase, Progress, Tally
from flux_async.cli.results import ErrorNote, ResultBook, ResultRow, ResultsError, Status
from flux_async.clock import Clock

logger: logging.Logger = logging.getLogger("flux_async.cli")

V = TypeVar("V")

IMAGES = "images"
DOWNLOADS = 8

_PATIENCE_S = 86_400.0
"""A submit waits for the pace as long as it takes; each POST has a limit of its own."""
_TICK_S = 0.5

_PHASES = {Status.SUCCEEDED: Phase.SUCCEEDED, Status.FAILED: Phase.FAILED, Status.IN_DOUBT: Phase.IN_DOUBT}


@attrs.frozen(kw_only=True)
class FanoutOptions:
    """How a run goes about it.

    Attributes:
        in_flight: Tasks submitted and not finished, at most.
        submits_in_air: Images at the submit step, at most.
        timeout_s: Seconds an accepted task may take.
        download: Whether results are brought to disk.
    """

    in_flight: int = 100
    submits_in_air: int = 6
    timeout_s: float = 300.0
    download: bool = True


@attrs.define(kw_only=True, eq=False)
class Fanout:
    """One run over the items of a plan.

    Attributes:
        client: Does the work.
        items: What is to be done.
        book: Where the rows are kept.
        options: Its bounds.
        clock: The reader of time.
        on_progress: Told how far the run is, at every change and twice a second.
        on_row: Told every row when it is settled.
        halted_by: The error after which nothing more was submitted.
    """

    client: FluxClient
    items: tuple[Item, ...]
    book: ResultBook
    options: FanoutOptions
    clock: Clock
    on_progress: Callable[[Progress], None]
    on_row: Callable[[ResultRow], None]
    halted_by: FluxError | None = attrs.field(default=None, init=False)
    _tally: Tally = attrs.field(factory=Tally, init=False)
    _in_air: set[str] = attrs.field(factory=set, init=False)
    _began: float = attrs.field(init=False)
    _places: anyio.Semaphore = attrs.field(init=False)
    _gate: anyio.Semaphore = attrs.field(init=False)
    _downloads: anyio.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._began = self.clock.monotonic()
        self._places = anyio.Semaphore(self.options.in_flight)
        self._gate = anyio.Semaphore(1)  # widened when a submit is accepted: a dead key costs one
        self._downloads = anyio.Semaphore(DOWNLOADS)
        for item in self.items:
            self.book.rows[item.key] = item.row
            self._tally.move(item.key, Phase.QUEUED)

    async def run(self) -> None:
        """Do all of it. Cancelled, it stops at once; then :meth:`note_in_air` and :meth:`take_in` tidy up."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._tick)
            async with anyio.create_task_group() as jobs:
                for item in self.items:
                    await self._start(item, jobs)
            group.cancel_scope.cancel()
        self._report()

    # --- after an interruption ----------------------------------------------------------------------------

    @property
    def in_air(self) -> int:
        """How many submits may be on the wire."""
        return len(self._in_air)

    def note_in_air(self) -> None:
        """Mark the images whose submit may be on the wire as in doubt, until its answer is known."""
        doubt = ConnectionLost("The run was interrupted before the submit was answered.")
        for key in self._in_air:
            self._put(_in_doubt(self.book.rows[key], doubt, self._now()))

    def take_in(self, loose: Iterable[UnclaimedTask]) -> None:
        """Settle those images, given the submits that came home after their coroutine had gone."""
        came = {str(Job(request=task.request).key): task for task in loose}
        before = {item.key: item.row for item in self.items}
        for key in tuple(self._in_air):
            task = came.get(key)
            if task is None:  # it never left, or was refused at no charge
                self._put(before[key])
            elif task.task_id is not None:
                self._put(_accepted(before[key], task.task_id, self._now()))
            elif task.error is not None:
                self._put(_in_doubt(before[key], task.error, self._now()))
        self._in_air.clear()

    # --- one image ----------------------------------------------------------------------------------------

    async def _start(self, item: Item, jobs: TaskGroup) -> None:
        """Set an image going as soon as there is a place for it."""
        await checkpoint()
        if item.step is Step.KEEP:
            self._tally.kept += 1
            self._show(item.row)
        elif isinstance(item.request, InvalidInput) and item.step is Step.REFUSE:
            self._tally.kept += 1
            self._settle(_failed(item.row, item.request, Charge.NO, self._now()))
        elif item.step is Step.DOWNLOAD:
            jobs.start_soon(self._bring_home, item)
        else:
            await self._places.acquire()
            jobs.start_soon(self._drive, item)

    async def _drive(self, item: Item) -> None:
        """Take one image from where it stands to the end; its place is free again before the download."""
        try:
            if item.step is Step.SUBMIT and isinstance(item.request, EditRequest):
                await self._submit(item, item.request)
            if self._row(item).status is Status.PENDING and self._row(item).task_id:
                await self._wait(item)
        finally:
            self._places.release()
        if self._row(item).status is Status.PENDING and self._row(item).result_url:
            await self._bring_home(item)

    async def _submit(self, item: Item, request: EditRequest) -> None:
        async with self._gate:
            if self.halted_by is not None:
                return
            self._in_air.add(item.key)  # left there by a cancellation: take_in() learns what became of it
            self._move(item, Phase.SUBMITTING)
            try:
                task_id = await self.client.submit(request, timeout=_PATIENCE_S)
            except FluxError as error:
                self._in_air.discard(item.key)
                self._not_submitted(item, error)
                return
            self._in_air.discard(item.key)
        if self._tally.submitted == 0:
            for _ in range(self.options.submits_in_air - 1):
                self._gate.release()
        self._tally.submitted += 1
        self._keep(_accepted(item.row, task_id, self._now()))

    def _not_submitted(self, item: Item, error: FluxError) -> None:
        """Settle an image without a task; what stops everybody leaves it as it was."""
        if halts(error):
            self._halt(error)
            self._move(item, Phase.QUEUED)
        elif error.charge is Charge.NO:
            row = attrs.evolve(item.row, attempts=item.row.attempts + 1)
            self._settle(_failed(row, error, Charge.NO, self._now()))
        else:
            self._settle(_in_doubt(item.row, error, self._now()))

    async def _wait(self, item: Item) -> None:
        row = self._row(item)
        self._move(item, Phase.GENERATING)
        try:
            image = await self.client.wait(row.task_id or "", timeout=self.options.timeout_s)
        except FluxError as error:
            if halts(error):
                self._halt(error)
                self._move(item, Phase.QUEUED)
                return
            charge = error.charge if isinstance(error, TaskFailed) else Charge.YES
            self._settle(_failed(row, error, charge, self._now()))
        else:
            self._put(_generated(row, image))

    async def _bring_home(self, item: Item) -> None:
        row, file = self._row(item), None
        self._move(item, Phase.DOWNLOADING)
        if self.options.download:
            try:
                async with self._downloads:
                    file = await self.client.download(
                        row.result_url or "", self._target(item), match_suffix=True
                    )
            except FluxError as error:
                self._settle(_failed(row, error, Charge.YES, self._now()))
                return
        self._settle(_succeeded(row, file and file.relative_to(self.book.folder), self._now()))

    def _target(self, item: Item) -> Path:
        return self.book.folder / IMAGES / f"{item.stem}.png"

    # --- what is known ------------------------------------------------------------------------------------

    def _row(self, item: Item) -> ResultRow:
        return self.book.rows[item.key]

    def _put(self, row: ResultRow) -> None:
        self.book.rows[row.key] = row

    def _keep(self, row: ResultRow) -> None:
        """Remember a row on disk; a disk that refuses ends the spending, not the images in flight."""
        try:
            self.book.append(row)
        except ResultsError as error:
            self._halt(error)

    def _settle(self, row: ResultRow) -> None:
        self._keep(row)
        self._show(row)

    def _show(self, row: ResultRow) -> None:
        self._tally.move(row.key, _PHASES[row.status])
        _tell(self.on_row, row)
        self._report()

    def _move(self, item: Item, phase: Phase) -> None:
        self._tally.move(item.key, phase)
        self._report()

    def _halt(self, error: FluxError) -> None:
        self.halted_by = self.halted_by or error

    def _report(self) -> None:
        _tell(self.on_progress, self._tally.progress(self.clock.monotonic() - self._began))

    async def _tick(self) -> None:
        while True:
            self._report()
            await self.clock.sleep(_TICK_S)

    def _now(self) -> str:
        return utc_text(self.clock.wall())


def utc_text(seconds: float) -> str:
    """Return a wall-clock time as ISO 8601 in UTC: ``2026-08-01T12:00:00.250Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _tell(listener: Callable[[V], None], value: V) -> None:
    """Call somebody whose trouble is not ours."""
    try:
        listener(value)
    except Exception:  # a display must never break a run that costs money
        logger.debug("a listener failed", exc_info=True)


def _accepted(row: ResultRow, task_id: str, now: str) -> ResultRow:
    return attrs.evolve(row, task_id=task_id, charge=Charge.YES, attempts=row.attempts + 1, submitted_at=now)


def _generated(row: ResultRow, image: ImageResult) -> ResultRow:
    return attrs.evolve(row, result_url=image.result_url)


def _succeeded(row: ResultRow, file: Path | None, now: str) -> ResultRow:
    path = file.as_posix() if file else None
    return attrs.evolve(row, status=Status.SUCCEEDED, file=path, charge=Charge.YES, finished_at=now)


def _failed(row: ResultRow, error: FluxError, charge: Charge, now: str) -> ResultRow:
    note = ErrorNote.of(error)
    return attrs.evolve(row, status=Status.FAILED, charge=charge, error=note, finished_at=now)


def _in_doubt(row: ResultRow, error: FluxError, now: str) -> ResultRow:
    return attrs.evolve(
        row,
        status=Status.IN_DOUBT,
        charge=Charge.MAYBE,
        error=ErrorNote.of(error),
        attempts=row.attempts + 1,
        submitted_at=now,
        finished_at=now,
    )
