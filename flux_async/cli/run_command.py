"""The command remove-text, from its options to its exit code; retry and the demo run the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias

import anyio
import anyio.to_thread
import attrs

from flux_async import (
    Echo,
    EditRequest,
    Failed,
    FluxClient,
    FluxError,
    InDoubt,
    Job,
    JournalError,
    MissingExtra,
    Outcome,
    TooManyUnknownAnswers,
    UnexpectedPrice,
    fetch_missing,
)
from flux_async.batch.check_run import run_checks
from flux_async.batch.check_stage import Checker, require_extra
from flux_async.batch.progress import BatchProgress
from flux_async.batch.runner import BatchRun, run_batch
from flux_async.cli.advice import AfterRun, Cost, error_text, while_writing
from flux_async.cli.credits import Ask, Questions, Spending, in_credits
from flux_async.cli.destination import check_destination
from flux_async.cli.display import RunDisplay, RunView, WindowUse, notify, summary_table
from flux_async.cli.input_reader import InputReader
from flux_async.cli.input_rows import InputRow
from flux_async.cli.parquet import write_results
from flux_async.cli.results import ResultsError, Status, is_address, utc_text
from flux_async.cli.run_folder import RunFolder, Selection, Totals, file_stem
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.status import costs_of_retry, tasks_not_recorded, unfinished_tasks
from flux_async.cli.terminal import Exit, Output, halts
from flux_async.clock import Clock, SystemClock
from flux_async.errors import shown
from flux_async.job_state import NO_CHECKS, JobState, Problem
from flux_async.journal.reader import JournalReader

_TICK_S = 0.5
_REPORT_S = 5.0
_SOON_S = 2 * 86_400.0
"""Seconds that a run spends on small copies of its images at its end; `flux-async report` makes the rest."""

Select: TypeAlias = Callable[[InputReader, Spending], Awaitable[object]]
"""Selects the jobs of a run, and records them in its journal."""


def run_remove_text(options: RunOptions, inputs: Iterable[InputRow], *, as_json: bool) -> Exit:
    """Remove the text from the inputs and return the exit code."""
    return run_selected(options, lambda reader, _: reader.read(inputs), as_json=as_json)


def run_selected(options: RunOptions, select: Select, *, as_json: bool) -> Exit:
    """Run the jobs that ``select`` selects, with the key and the address of the environment.

    Raises:
        MissingExtra: The checks of the options cannot be made; nothing was sent or changed.
    """
    require_extra(options.checks)
    display = RunDisplay(
        output=Output(),
        as_json=as_json,
        show_path=lambda file: file if is_address(file) else str(options.folder / file),
    )

    async def command(interruption: Interruption) -> Exit:
        return await RunCommand(
            options=options,
            select=select,
            make_client=lambda: FluxClient(
                limits=options.limits, transport=options.transport, api=options.api
            ),
            display=display,
            interruption=interruption,
        ).run()

    return run_interruptible(command)


@attrs.define(kw_only=True, eq=False)
class RunCommand:
    """One run.

    Three parts work at once: the inputs are read, images that are done and not in the folder are fetched, and
    the batch submits what has been read.

    Attributes:
        options: Its options.
        select: Selects its jobs.
        make_client: Makes the client, inside the event loop.
        display: Shows its progress and outcomes.
        interruption: Whether a signal asked it to end.
        is_resumable: Whether the same command would resume it.
        vendor_speed: How many of the vendor's seconds pass in a real one; a sandbox may run faster.
        clock: The reader of time.
        checks: Makes the checks; left out, worker processes of the run's own.
        ask: Asks the user; left out, at the terminal, where the options say that there is a user.
    """

    options: RunOptions
    select: Select
    make_client: Callable[[], FluxClient]
    display: RunDisplay
    interruption: Interruption
    is_resumable: bool = True
    vendor_speed: float = 1.0
    clock: Clock = attrs.field(factory=SystemClock)
    checks: Checker | None = None
    ask: Ask | None = None
    _selection: Selection = attrs.field(factory=Selection, init=False)
    _starts: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _reader: InputReader | None = attrs.field(default=None, init=False)
    _spending: Spending | None = attrs.field(default=None, init=False)
    _batch: BatchRun | None = attrs.field(default=None, init=False)
    _progress: BatchProgress = attrs.field(factory=BatchProgress, init=False)
    _window: WindowUse = attrs.field(init=False)
    _fetching: anyio.CancelScope = attrs.field(factory=anyio.CancelScope, init=False)
    _all_fetched: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _fetched: int = attrs.field(default=0, init=False)
    _moved_away: int = attrs.field(default=0, init=False)
    _halted_by: FluxError | None = attrs.field(default=None, init=False)
    _is_asking: bool = attrs.field(default=False, init=False)
    _announced: set[str] = attrs.field(factory=set, init=False)
    _socket: socket.socket | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._window = WindowUse(self.options.limits.window_s)

    async def run(self) -> Exit:
        """Run, write the results and return the exit code.

        Raises:
            ConfigurationError: There is no key, or the folder cannot be used; nothing was sent.
            JournalError: Another process runs the folder, or its journal cannot be used; nothing was sent.
        """
        began = self.clock.monotonic()
        with self._listener():
            async with self.make_client() as client:
                account = "" if self.options.only_checks else client.fingerprint
                folder = await self._open_folder(account)
                try:
                    await self._work(client, folder)
                finally:
                    with anyio.CancelScope(shield=True):
                        try:
                            code = await self._end(client, folder, began)
                        finally:
                            self._selection.extra.close()
                            await folder.aclose()
        return code

    async def _open_folder(self, account: str) -> RunFolder:
        options = self.options
        folder = await RunFolder.open(options.folder, account=account, destination=options.destination)
        try:
            await check_destination(folder.sink, options.checks, download=options.download)
        except BaseException:
            await folder.aclose()
            raise
        return folder

    @contextlib.contextmanager
    def _listener(self) -> Iterator[None]:
        """Hold the port for callbacks, where there is one."""
        if self.options.listen is None:
            yield
            return
        try:
            from flux_async.cli.webhook_server import bind  # noqa: PLC0415 - needs an extra
        except ImportError as missing:
            raise MissingExtra.for_extra("--listen", "webhook") from missing
        self._socket = bind(self.options.listen)
        with self._socket:
            yield

    # --- the work, which a signal cancels -----------------------------------------------------------------

    async def _work(self, client: FluxClient, folder: RunFolder) -> None:
        self.interruption.on_first = self._interrupted
        with self.interruption.scope():
            self.display.start()
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._tick)
                    async with anyio.create_task_group() as parts:
                        for part in (self._select, self._fetch_missing, self._run_batch):
                            parts.start_soon(self._attempt, part, client, folder)
                    group.cancel_scope.cancel()
            finally:
                self.display.stop()

    async def _attempt(
        self, part: Callable[[FluxClient, RunFolder], Awaitable[None]], client: FluxClient, folder: RunFolder
    ) -> None:
        """Do a part of the work. An error of the library ends the submits; outcomes are still recorded."""
        try:
            await part(client, folder)
        except FluxError as error:
            self._halt(error)
        except BaseExceptionGroup as group:
            self._halt(_only_error_of(group))

    async def _select(self, client: FluxClient, folder: RunFolder) -> None:
        ask = self.ask or (Questions(show=self._show_question).ask if self.options.asks else None)
        self._spending = spending = Spending(
            client=client,
            options=self.options,
            ask=None if ask is None else partial(self._ask, ask),
            note=self.display.note,
            clock=self.clock,
        )
        self._reader = reader = InputReader(
            client=client,
            folder=folder,
            options=self.options,
            spending=spending,
            display=self.display,
            clock=self.clock,
        )
        reader.is_halted = self._halted_by is not None
        self._selection = reader.selection
        self._starts.set()
        try:
            await self.select(reader, spending)
        finally:
            reader.selection.complete()

    async def _ask(self, ask: Ask, words: str) -> bool:
        """Ask the user without the live lines."""
        self.display.stop()
        self._is_asking = True
        try:
            return await ask(words)
        finally:
            self._is_asking = False
            if not self.interruption.happened:
                self.display.start()

    async def _fetch_missing(self, client: FluxClient, folder: RunFolder) -> None:
        await self._starts.wait()
        if folder.sink is not None or self.options.only_checks or not await self._selection.opened():
            self._all_fetched.set()
            return

        async def settled(outcome: Outcome) -> None:
            self._fetched += 1
            await self._settled(folder, outcome)

        try:
            with self._fetching:
                await fetch_missing(
                    client,
                    folder.journal,
                    folder.images,
                    jobs=folder.missing_keys(self._selection),
                    name_file=_name_file,
                    patience=self.options.patience_s,
                    on_outcome=settled,
                )
        finally:
            self._all_fetched.set()

    async def _feed(self, folder: RunFolder) -> AsyncIterator[Job]:
        """Yield the jobs of the batch; images that are fetched again are checked after the last of them."""
        async for job in folder.feed(self._selection):
            yield job
        if self.options.checks != NO_CHECKS:
            await self._all_fetched.wait()

    async def _run_batch(self, client: FluxClient, folder: RunFolder) -> None:
        await self._starts.wait()
        if not await self._selection.opened() or self._halted_by is not None:
            return
        batch = (
            self._checks_of(client, folder) if self.options.only_checks else self._batch_of(client, folder)
        )
        try:
            async with self._receiving_callbacks(client, folder), batch as self._batch:
                if self._halted_by is not None:
                    batch.stop()
                async for outcome in batch:
                    await self._settled(folder, outcome)
        finally:
            self._progress, self._batch = batch.progress, None

    def _checks_of(self, client: FluxClient, folder: RunFolder) -> BatchRun:
        return run_checks(
            client,
            folder.journal,
            folder.images,
            preserve=self.options.checks.preserve,
            verify=self.options.checks.verify,
            preserve_format=self.options.preserve_format,
            originals=folder.originals,
            name_file=_name_file,
            checks=self.checks,
            on_progress=self._progressed,
        )

    def _batch_of(self, client: FluxClient, folder: RunFolder) -> BatchRun:
        options = self.options
        return run_batch(
            client,
            self._feed(folder),
            journal=folder.journal,
            directory=folder.images if options.download and folder.sink is None else None,
            sink=folder.sink,
            originals=folder.originals if options.keeps_originals else None,
            name_file=_name_file,
            in_doubt=options.in_doubt,
            max_credits=options.max_credits,
            prices=options.prices,
            timeout=options.timeout_s,
            patience=options.patience_s,
            callbacks=options.callbacks,
            via_upload=options.via_upload,
            skip_textless=options.checks.skip_textless,
            preserve=options.checks.preserve,
            verify=options.checks.verify,
            preserve_format=options.preserve_format,
            until_clean=options.checks.until_clean,
            escalate=options.checks.escalate,
            checks=self.checks,
            on_progress=self._progressed,
        )

    def _receiving_callbacks(
        self, client: FluxClient, folder: RunFolder
    ) -> AbstractAsyncContextManager[None]:
        if self._socket is None or self.options.callbacks is None:
            return contextlib.nullcontext()
        from flux_async.cli.webhook_server import listening  # noqa: PLC0415 - as above

        return listening(self._socket, self.options.callbacks, folder.journal, client)

    async def _settled(self, folder: RunFolder, outcome: Outcome) -> None:
        """Record and show one outcome. Where the results cannot be written, nothing more is submitted."""
        if outcome.job is None:
            return
        error = outcome.error if isinstance(outcome, Failed | InDoubt) else None
        try:
            row = await folder.settled(outcome.job.key, None if error is None else Problem.of(error))
        except ResultsError as unwritable:
            self._halt(unwritable)
            return
        if row is not None:
            is_here = row.error is None or row.file is not None
            self._moved_away += row.status is Status.SUCCEEDED and not is_here
            notify(self.display.settled, row)
        if error is not None and halts(error):
            self._halt(error)

    def _halt(self, error: FluxError) -> None:
        self._halted_by = self._halted_by or error
        self._fetching.cancel()
        if self._batch is not None:
            self._batch.stop()
        if self._reader is not None:
            self._reader.halt()

    # --- messages -----------------------------------------------------------------------------------------

    def _show_question(self, words: str) -> None:
        self.display.note(words, "bold")

    def _progressed(self, progress: BatchProgress) -> None:
        self._progress = progress
        if self._is_asking:
            return
        selection = self._selection
        view = RunView(
            batch=progress,
            asked=selection.asked,
            kept=selection.kept + selection.extra.equal + self._fetched,
            refused=selection.extra.refused,
            is_read=selection.is_complete,
            limits=self.options.limits,
            checks=self.options.checks,
            in_window=self._window.count(progress.submits, self.clock.monotonic()),
        )
        notify(self.display.progressed, view)
        if view.only_retries_downloads:
            images = "image" if progress.retrying == 1 else "images"
            self._announce(
                "downloads",
                f"{progress.retrying} paid {images} could not be downloaded yet: tried again, free, for up "
                f"to {self.options.patience_s:.0f} s. Ctrl-C leaves the rest for the next run.",
            )
        if view.only_awaits_callbacks and self.options.callbacks is not None:
            minutes = self.options.callbacks.wait_for_doubts_s(self.options.timeout_s) / 60
            self._announce(
                "callbacks",
                f"Submits in doubt that wait for their callbacks: {progress.waiting}, each for up to "
                f"{minutes:.0f} minutes. Ctrl-C leaves them for the next run.",
            )

    def _announce(self, subject: str, words: str) -> None:
        """Print a message about something that the run waits for, once."""
        if subject not in self._announced:
            self._announced.add(subject)
            self.display.note(words, "yellow")

    async def _tick(self) -> None:
        while True:
            if self._batch is not None:
                self._progressed(self._batch.progress)
            await self.clock.sleep(_TICK_S)

    def _interrupted(self) -> None:
        self.display.stop()
        self.display.note(
            "Stopping. Waiting for requests in progress … Press Ctrl-C again to end at once.", "yellow"
        )

    # --- the end, which no signal cancels -----------------------------------------------------------------

    async def _end(self, client: FluxClient, folder: RunFolder, began: float) -> Exit:
        """Write the results, print the summary and return the exit code."""
        totals = None
        if self._spending is not None and self._progress.submits and not self.interruption.happened:
            await self._spending.read_after()
        if (displaced := await folder.journal.displacement()) is not None:
            # No results are written beside a journal that is gone, and no advice is given for its folder.
            self._halted_by = displaced
            self.display.note(f"Halted: {error_text(displaced, self.options.folder)}", "red")
            self._note_all(unfinished_tasks(folder.reader))
        else:
            totals = await self._rewrite_results(folder)
        if totals is not None:
            self._summarise(folder, totals, self.clock.monotonic() - began)
            if self.options.report:
                await anyio.to_thread.run_sync(self._write_report, folder.reader)
        elif displaced is None and self.is_resumable:
            left = AfterRun(folder=self.options.folder, repeats=self.options.repeats, interrupted=True)
            self._note_all(left.lines())
        self._note_all(tasks_not_recorded(client.unclaimed))
        if self.display.lost is not None:
            where = f" They are in {folder.results.path}." if totals is not None else ""
            self.display.note(f"Results could not be printed: {self.display.lost}.{where}", "red")
        if self.interruption.happened:
            return Exit.INTERRUPTED
        if self._halted_by is not None or totals is None:
            return Exit.HALTED
        is_whole = totals.all_succeeded and self.display.lost is None
        if self.options.only_checks and not totals.all_good:
            is_whole = False
        return Exit.SUCCEEDED if is_whole else Exit.SOME_FAILED

    async def _rewrite_results(self, folder: RunFolder) -> Totals | None:
        """Rewrite the results; return None where that failed."""
        if self.interruption.happened and (words := while_writing(len(self._selection.jobs))) is not None:
            self.display.note(words, "yellow")
        self.interruption.before_exit.append(folder.results.remove_parts)
        on_row, on_equal = (partial(notify, show) for show in (self.display.unfinished, self.display.settled))

        def rewrite() -> Totals:
            totals = folder.rewrite(self._selection, on_row, on_equal)
            if self.options.results == "parquet":
                write_results(folder.results)
            return totals

        try:
            return await anyio.to_thread.run_sync(rewrite)
        except FluxError as error:
            self._halted_by = self._halted_by or error
            self.display.note(f"Error: {error_text(error, self.options.folder)}", "red")
            return None

    def _note_all(self, lines: Iterable[str], style: str = "red") -> None:
        for line in lines:
            self.display.note(line, style)

    def _summarise(self, folder: RunFolder, totals: Totals, elapsed_s: float) -> None:
        spending = self._spending
        p50, p95 = (folder.reader.generation_s(share) for share in (0.5, 0.95))
        table = summary_table(
            totals,
            spent=self._progress.credits,
            measured=self._progress.measured,
            refundable=self._progress.refundable,
            saved=self._progress.saved_credits,
            balance=(None, None) if spending is None else (spending.before, spending.after),
            elapsed_s=elapsed_s,
            generation_s=(
                None if p50 is None else p50 / self.vendor_speed,
                None if p95 is None else p95 / self.vendor_speed,
            ),
        )
        self.display.console.show(table)
        self.display.count_unprinted()
        if self._halted_by is not None:
            self.display.note(f"Halted: {error_text(self._halted_by, self.options.folder)}", "red")
        if self.is_resumable:
            self._note_all(self._left_over(totals, folder).lines(), "yellow")

    def _write_report(self, reader: JournalReader) -> None:
        """Write the report where its extra is installed; no error of it concerns the run."""
        try:
            from flux_async.cli.report import write_report  # noqa: PLC0415 - needs an extra
        except ImportError:
            return
        seconds = 0.0 if self.interruption.happened else _REPORT_S
        try:
            page = write_report(self.options.folder, reader, copies_s=seconds)
        except Exception as error:  # noqa: BLE001 - see above
            self.display.note(f"The report could not be written: {shown(error)}.", "yellow")
        else:
            self.display.note(f"Report: {page}")

    def _left_over(self, totals: Totals, folder: RunFolder) -> AfterRun:
        resumable, doubts = totals.can_be_resumed, totals.statuses[Status.IN_DOUBT] - totals.found_tasks
        failed = totals.statuses[Status.FAILED] - resumable - self._selection.extra.refused
        costs = costs_of_retry(folder.reader) if totals.verdicts else {}
        return AfterRun(
            folder=self.options.folder,
            repeats=self.options.repeats,
            unfinished=totals.statuses[Status.PENDING] + resumable,
            interrupted=self.interruption.happened,
            failed=max(0, failed),
            moved_away=self._moved_away,
            doubts=doubts,
            found_tasks=totals.found_tasks,
            unrecognised=folder.reader.echoes()[Echo.UNRECOGNISED],
            only_doubt=self._only_doubt(folder) if doubts == 1 else None,
            answers_made_no_sense=isinstance(self._halted_by, TooManyUnknownAnswers),
            price=_price_in(self._halted_by),
            not_checked=totals.not_checked,
            checks=self.options.check_flags,
            text_left=costs.get("text_left", Cost()),
            damaged=costs.get("damaged", Cost()),
            fetch_by=self._deadline(folder.reader),
            left_at_jobs=not self.options.download and "jobs" in folder.reader.apis(),
        )

    def _deadline(self, reader: JournalReader) -> str | None:
        """Return when the vendor may delete the first result that is not fetched, if that is within days."""
        fetch_by = reader.fetch_by()
        is_soon = fetch_by is not None and fetch_by - self.clock.wall() < _SOON_S
        return utc_text(fetch_by) if is_soon else None

    def _only_doubt(self, folder: RunFolder) -> tuple[str, str | None] | None:
        """Return the key of the first image in doubt whose task was not found, and a task that may be its."""
        in_doubt, reader = {JobState.IN_DOUBT, JobState.SUBMITTING}, folder.reader
        for stored in folder.jobs_of(self._selection.jobs):
            if stored.job.state in in_doubt and reader.found_task(stored.number) is None:
                return stored.job.key, next(iter(reader.candidates(stored.number)), None)
        return None


def _price_in(error: FluxError | None) -> str | None:
    """Return the value of ``--price`` that accepts the price at which a run halted."""
    if not isinstance(error, UnexpectedPrice):
        return None
    return f"{error.model}={in_credits(error.price)}"


def _name_file(job: Job) -> str:
    image = str(job.request.input_image) if isinstance(job.request, EditRequest) else ""
    return file_stem(image, job.key)


def _only_error_of(group: BaseExceptionGroup[BaseException]) -> FluxError:
    """Return the first library error in ``group``; where there are others, raise the group."""
    ours, others = group.split(FluxError)
    if others is not None or ours is None:
        raise group
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, FluxError) else JournalError(str(first))
