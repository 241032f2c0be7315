"""The command remove-text from its options to its exit code; retry and the demo run the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias, TypeVar

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
    InDoubtPolicy,
    Job,
    JournalError,
    MissingExtra,
    Outcome,
    TooManyUnknownAnswers,
)
from flux_async.batch.operations import fetch_missing
from flux_async.batch.progress import BatchProgress
from flux_async.batch.runner import BatchRun, run_batch
from flux_async.cli.advice import AfterRun, error_text, while_writing
from flux_async.cli.credits import Balance, Questions, Spending
from flux_async.cli.display import RunDisplay, RunView, WindowUse, summary_table
from flux_async.cli.input_reader import Intake
from flux_async.cli.input_rows import InputRow
from flux_async.cli.results import ResultsError, Status
from flux_async.cli.run_folder import Feed, RunFolder, Selection, Totals, file_stem
from flux_async.cli.run_options import RunOptions
from flux_async.cli.signals import Interruption, run_interruptible
from flux_async.cli.status import tasks_not_recorded, tasks_under_way
from flux_async.cli.terminal import Exit, Output, halts
from flux_async.clock import Clock, SystemClock
from flux_async.job_state import JobState, Problem
from flux_async.models import JobKey
from flux_async.policy.image_urls import suspicion

logger: logging.Logger = logging.getLogger("flux_async.cli")

V = TypeVar("V")

_TICK_S = 0.5


Select: TypeAlias = Callable[[Intake, Spending], Awaitable[object]]
"""Says, and writes into the journal, what a run is about."""


def run_remove_text(order: RunOptions, inputs: Iterable[InputRow], *, as_json: bool) -> Exit:
    """Run the command, with the key and the address of the environment, and return its exit code."""
    return run_selected(order, lambda intake, _: intake.take(inputs), as_json=as_json)


def run_selected(order: RunOptions, select: Select, *, as_json: bool) -> Exit:
    """Run what ``select`` chooses."""
    display = RunDisplay(output=Output(), as_json=as_json, show_path=lambda file: str(order.folder / file))

    async def command(interruption: Interruption) -> Exit:
        return await RemoveText(
            order=order,
            select=select,
            make_client=lambda: FluxClient(limits=order.limits, transport=order.transport),
            display=display,
            interruption=interruption,
        ).run()

    return run_interruptible(command)


@attrs.define(kw_only=True, eq=False)
class RemoveText:
    """One run.

    Attributes:
        order: How it goes about it.
        select: Says what it is about.
        make_client: Makes the client, inside the event loop.
        display: What a person sees.
        interruption: Whether he wants it to end.
        resumable: Whether the same command would take up what is left.
        vendor_speed: How many of the vendor's seconds pass in a real one; a sandbox may run faster.
        clock: The reader of time.
        person: Answers questions; left out, whoever is at the terminal, where the order says there is one.
    """

    order: RunOptions
    select: Select
    make_client: Callable[[], FluxClient]
    display: RunDisplay
    interruption: Interruption
    resumable: bool = True
    vendor_speed: float = 1.0
    clock: Clock = attrs.field(factory=SystemClock)
    person: Callable[[str], Awaitable[bool]] | None = None
    _selection: Selection = attrs.field(factory=Selection, init=False)
    _batch: BatchRun | None = attrs.field(default=None, init=False)
    _progress: BatchProgress = attrs.field(factory=BatchProgress, init=False)
    _fetching: anyio.CancelScope = attrs.field(factory=anyio.CancelScope, init=False)
    _fetched: int = attrs.field(default=0, init=False)
    _moved_away: int = attrs.field(default=0, init=False)
    _window: WindowUse = attrs.field(init=False)
    _starts: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _intake: Intake | None = attrs.field(default=None, init=False)
    _spending: Spending | None = attrs.field(default=None, init=False)
    _is_asking: bool = attrs.field(default=False, init=False)
    _halted_by: FluxError | None = attrs.field(default=None, init=False)
    _said_what_is_awaited: bool = attrs.field(default=False, init=False)
    _said_what_is_retried: bool = attrs.field(default=False, init=False)
    _socket: socket.socket | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._window = WindowUse(self.order.limits.window_s)

    async def run(self) -> Exit:
        """Do it, write the results, say how it went.

        Raises:
            ConfigurationError: No key, or a folder that cannot be used; nothing was sent.
            JournalError: Somebody else runs the folder, or its journal cannot be used; nothing was sent.
        """
        began = self.clock.monotonic()
        with self._listener():
            return await self._run(began)

    @contextlib.contextmanager
    def _listener(self) -> Iterator[None]:
        """Hold the port of the callbacks."""
        if self.order.listen is None:
            yield
            return
        try:
            from flux_async.cli.webhook_server import bind  # noqa: PLC0415 - needs an extra
        except ImportError as missing:
            raise MissingExtra.for_extra("--listen", "webhook") from missing
        self._socket = bind(self.order.listen)
        with self._socket:
            yield

    async def _run(self, began: float) -> Exit:
        async with self.make_client() as client:
            folder = await RunFolder.open(self.order.folder, account=client.fingerprint)
            try:
                await self._work(client, folder)
            finally:
                with anyio.CancelScope(shield=True):
                    try:
                        code = await self._end(client, folder, began)
                    finally:
                        self._selection.besides.close()
                        await folder.aclose()
        return code

    # --- the work, which may be cut short -----------------------------------------------------------------

    async def _work(self, client: FluxClient, folder: RunFolder) -> None:
        self.interruption.on_first = self._stopping
        with self.interruption.scope():
            self.display.start()
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._tick)
                    async with anyio.create_task_group() as parts:
                        for part in (self._choose, self._bring_what_is_missing, self._run_batch):
                            parts.start_soon(self._attempt, part, client, folder)
                    group.cancel_scope.cancel()
            finally:
                self.display.stop()

    async def _attempt(
        self,
        part: Callable[[FluxClient, RunFolder], Awaitable[None]],
        client: FluxClient,
        folder: RunFolder,
    ) -> None:
        """Do a part of the work; an error of ours in it ends the spending, not the bookkeeping."""
        try:
            await part(client, folder)
        except FluxError as error:
            self._halt(error)
        except BaseExceptionGroup as group:
            self._halt(_only_error_of(group))

    async def _choose(self, client: FluxClient, folder: RunFolder) -> None:
        """Read the inputs; what has been read is worked off meanwhile."""
        spending = self._spending_of(client)
        self._intake = intake = self._make_intake(client, folder, spending)
        self._selection = intake.selection
        self._starts.set()
        try:
            await self.select(intake, spending)
        finally:
            intake.selection.complete()

    def _spending_of(self, client: FluxClient) -> Spending:
        order = self.order
        ask = self.person or (Questions(show=self._show_question).ask if order.asks else None)
        self._spending = Spending(
            client=client,
            prices=order.prices,
            max_credits=order.max_credits,
            confirm_above=order.confirm_above,
            ask=None if ask is None else partial(self._ask, ask),
            is_agreed=order.yes,
            note=self.display.note,
            clock=self.clock,
        )
        return self._spending

    def _make_intake(self, client: FluxClient, folder: RunFolder, spending: Spending) -> Intake:
        def make_job(given: InputRow) -> Job:
            job = self.order.job_for(given)
            client.check_reachable(job.request)
            if not given.is_file and (suspect := suspicion(given.image)) is not None:
                what, meant = suspect
                words = f"{given.place}: {given.image} looks mistyped: {what}."
                self.display.suspected(f"{words} Perhaps {meant} is meant." if meant else words)
            return job

        async def may_submit(selection: Selection, *, is_last: bool) -> bool:
            if self._halted_by is not None:
                return False
            if is_last:
                self._say_what_is_kept(selection)
            return await spending.may_submit(selection, is_last=is_last)

        return Intake(
            folder=folder,
            make_job=make_job,
            download=self.order.download,
            resubmits=self.order.in_doubt is InDoubtPolicy.RESUBMIT,
            on_kept=partial(_tell, self.display.settled),
            on_refused=self.display.refused,
            may_submit=may_submit,
            may_pay_again=spending.may_pay_again,
            may_pay_similar=spending.may_pay_similar,
            clock=self.clock,
        )

    async def _ask(self, ask: Callable[[str], Awaitable[bool]], words: str) -> bool:
        """Ask with the live lines out of the way."""
        self.display.stop()
        self._is_asking = True
        try:
            return await ask(words)
        finally:
            self._is_asking = False
            if not self.interruption.happened:
                self.display.start()

    async def _run_batch(self, client: FluxClient, folder: RunFolder) -> None:
        await self._starts.wait()
        if not await self._selection.opened() or self._halted_by is not None:
            return
        order = self.order
        batch = run_batch(
            client,
            Feed(self._selection, folder.wanted),
            journal=folder.journal,
            directory=folder.images if order.download else None,
            originals=folder.originals if order.keep_originals else None,
            name_file=_name_of,
            in_doubt=order.in_doubt,
            max_credits=order.max_credits,
            prices=order.prices,
            timeout=order.timeout_s,
            patience=order.patience_s,
            callbacks=order.callbacks,
            via_upload=order.via_upload,
            on_progress=self._progressed,
        )
        try:
            async with self._told(client, folder), batch as self._batch:
                if self._halted_by is not None:
                    batch.stop()
                async for outcome in batch:
                    await self._settled(folder, outcome)
        finally:
            self._progress, self._batch = batch.progress, None

    def _told(self, client: FluxClient, folder: RunFolder) -> AbstractAsyncContextManager[None]:
        """Receive callbacks where this run is to."""
        if self._socket is None or self.order.callbacks is None:
            return contextlib.nullcontext()
        from flux_async.cli.webhook_server import listening  # noqa: PLC0415 - as above

        return listening(self._socket, self.order.callbacks, folder.journal, client)

    async def _settled(self, folder: RunFolder, outcome: Outcome) -> None:
        """Write down and show one outcome; trouble with the results ends the spending, not the rest."""
        if outcome.job is None:
            return
        error = outcome.error if isinstance(outcome, Failed | InDoubt) else None
        try:
            row = await folder.settled(outcome.job.key, None if error is None else Problem.of(error))
        except ResultsError as trouble:
            self._halt(trouble)
            return
        if row is not None:
            self._moved_away += row.status is Status.SUCCEEDED and row.error is not None
            _tell(self.display.settled, row)
        if error is not None and halts(error):
            self._halt(error)

    def _halt(self, error: FluxError) -> None:
        self._halted_by = self._halted_by or error
        self._fetching.cancel()
        if self._batch is not None:
            self._batch.stop()
        if self._intake is not None:
            self._intake.stop()

    # --- images that are done, and not here ---------------------------------------------------------------

    async def _bring_what_is_missing(self, client: FluxClient, folder: RunFolder) -> None:
        await self._starts.wait()
        if not await self._selection.opened() or self._halted_by is not None:
            return

        async def settled(outcome: Outcome) -> None:
            self._fetched += 1
            await self._settled(folder, outcome)

        with self._fetching:
            await fetch_missing(
                client,
                folder.journal,
                folder.images,
                jobs=self._missing_keys(folder),
                name_file=_name_of,
                patience=self.order.patience_s,
                on_outcome=settled,
            )

    async def _missing_keys(self, folder: RunFolder) -> AsyncIterator[JobKey]:
        taken = 0
        while numbers := await self._selection.missing_beyond(taken):
            taken += len(numbers)
            for stored in folder.jobs_of(numbers):
                yield stored.job.key

    # --- what a person sees -------------------------------------------------------------------------------

    def _say_what_is_kept(self, selection: Selection) -> None:
        say = self.display.note
        if selection.doubles:
            say(f"{selection.doubles} {'duplicate' if selection.doubles == 1 else 'duplicates'} left out.")
        if equal := selection.besides.equal:
            say(f"{equal} {'file holds' if equal == 1 else 'files hold'} the same as another one: paid once.")
        if selection.kept:
            say(f"{selection.kept} of {selection.asked} ended in an earlier run.")
        if selection.paid:
            say(f"{selection.paid} of {selection.asked} paid by an earlier run: taken up without a submit.")
        if selection.missing:
            say(f"{len(selection.missing)} of {selection.asked} done before, but not here: downloaded again.")
        if selection.paid_again:
            say(
                f"{selection.paid_again} of {selection.asked} paid for again under another signature.",
                "yellow",
            )
        if selection.similar:
            say(
                f"{selection.similar} of {selection.asked} differ only in the query of the address from "
                "images that this folder submitted earlier: paid for as other images.",
                "yellow",
            )

    def _show_question(self, words: str) -> None:
        self.display.note(words, "bold")

    def _progressed(self, progress: BatchProgress) -> None:
        self._progress = progress
        if self._is_asking:
            return
        chosen = self._selection
        view = RunView(
            batch=progress,
            asked=chosen.asked,
            kept=chosen.kept + chosen.besides.equal + self._fetched,
            refused=chosen.besides.refused,
            is_read=chosen.is_complete,
            limits=self.order.limits,
            in_window=self._window.count(progress.submits, self.clock.monotonic()),
        )
        _tell(self.display.progressed, view)
        if view.only_retries_downloads and not self._said_what_is_retried:
            self._said_what_is_retried = True
            images = "image" if progress.retrying == 1 else "images"
            self.display.note(
                f"{progress.retrying} paid {images} could not be downloaded yet: tried again, free, for "
                f"up to {self.order.patience_s:.0f} s. Ctrl-C leaves the rest for the next run.",
                "yellow",
            )
        callbacks = self.order.callbacks
        if view.only_awaits_callbacks and callbacks is not None and not self._said_what_is_awaited:
            self._said_what_is_awaited = True
            minutes = callbacks.wait_for_doubts_s(self.order.timeout_s) / 60
            self.display.note(
                f"{progress.waiting} submits in doubt wait for their callbacks, each for up to "
                f"{minutes:.0f} minutes. Ctrl-C leaves them for the next run.",
                "yellow",
            )

    async def _tick(self) -> None:
        while True:
            if self._batch is not None:
                self._progressed(self._batch.progress)
            await self.clock.sleep(_TICK_S)

    def _stopping(self) -> None:
        self.display.stop()
        self.display.note(
            "Stopping: submits on their way come home first. Press Ctrl-C again to end at once.", "yellow"
        )

    # --- the end, which may not ---------------------------------------------------------------------------

    async def _end(self, client: FluxClient, folder: RunFolder, began: float) -> Exit:
        """Write everything down, say how it went, return the exit code."""
        totals, balance = None, self._balance
        if self._progress.submits and not self.interruption.happened:
            await balance.look_after(client)
        if (displaced := await folder.journal.displacement()) is not None:
            # No results are written beside a journal that is not there, and no advice given for that place.
            self._halted_by = displaced
            self.display.note(f"Halted: {error_text(displaced, self.order.folder)}", "red")
            self._note_all(tasks_under_way(folder.reader))
        else:
            totals = await self._rewrite_results(folder)
        if totals is not None:
            self._conclude(folder, totals, self.clock.monotonic() - began)
        elif displaced is None and self.resumable:
            left = AfterRun(folder=self.order.folder, repeats=self.order.repeats, interrupted=True)
            self._note_all(left.lines())
        self._note_all(tasks_not_recorded(client.unclaimed))
        if self.interruption.happened:
            return Exit.INTERRUPTED
        if self._halted_by is not None or totals is None:
            return Exit.HALTED
        return Exit.SUCCEEDED if totals.all_succeeded else Exit.SOME_FAILED

    async def _rewrite_results(self, folder: RunFolder) -> Totals | None:
        """Write results.jsonl anew; return None where that failed."""
        if self.interruption.happened and (words := while_writing(len(self._selection.jobs))) is not None:
            self.display.note(words, "yellow")
        self.interruption.last_words.append(folder.results.remove_parts)
        on_row, on_equal = (partial(_tell, show) for show in (self.display.unfinished, self.display.settled))
        try:
            return await anyio.to_thread.run_sync(folder.rewrite, self._selection, on_row, on_equal)
        except FluxError as error:
            self._halted_by = self._halted_by or error
            self.display.note(f"Error: {error_text(error, self.order.folder)}", "red")
            return None

    def _note_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.display.note(line, "red")

    @property
    def _balance(self) -> Balance:
        return Balance() if self._spending is None else self._spending.balance

    def _conclude(self, folder: RunFolder, totals: Totals, elapsed_s: float) -> None:
        table = summary_table(
            totals,
            spent=self._progress.credits,
            refundable=self._progress.refundable,
            balance=(self._balance.before, self._balance.after),
            elapsed_s=elapsed_s,
            generation_s=(self._generation_s(folder, 0.5), self._generation_s(folder, 0.95)),
        )
        self.display.console.show(table)
        self.display.count_what_was_not_printed()
        if self._halted_by is not None:
            self.display.note(f"Halted: {error_text(self._halted_by, self.order.folder)}", "red")
        if self.resumable:
            for words in self._left_over(totals, folder).lines():
                self.display.note(words, "yellow")

    def _generation_s(self, folder: RunFolder, share: float) -> float | None:
        """Return the real seconds that ``share`` of the tasks did not exceed."""
        seconds = folder.reader.generation_s(share)
        return None if seconds is None else seconds / self.vendor_speed

    def _left_over(self, totals: Totals, folder: RunFolder) -> AfterRun:
        resumable, doubts = totals.can_be_resumed, totals.statuses[Status.IN_DOUBT] - totals.found_tasks
        failed = totals.statuses[Status.FAILED] - resumable - self._selection.besides.refused
        return AfterRun(
            folder=self.order.folder,
            repeats=self.order.repeats,
            unfinished=totals.statuses[Status.PENDING] + resumable,
            interrupted=self.interruption.happened,
            failed=max(0, failed),
            moved_away=self._moved_away,
            doubts=doubts,
            found_tasks=totals.found_tasks,
            unrecognised=folder.reader.echoes()[Echo.UNRECOGNISED],
            only_doubt=self._only_doubt(folder) if doubts == 1 else None,
            answers_made_no_sense=isinstance(self._halted_by, TooManyUnknownAnswers),
        )

    def _only_doubt(self, folder: RunFolder) -> tuple[str, str | None] | None:
        """Return the key of the first image in doubt whose task was not found, and a task that may be its."""
        unknown, reader = {JobState.IN_DOUBT, JobState.SUBMITTING}, folder.reader
        for stored in folder.jobs_of(self._selection.jobs):
            if stored.job.state in unknown and reader.found_task(stored.number) is None:
                return stored.job.key, next(iter(reader.candidates(stored.number)), None)
        return None


def _tell(listener: Callable[[V], None], value: V) -> None:
    """Call somebody whose trouble is not ours."""
    try:
        listener(value)
    except Exception:  # a display must never break a run that costs money
        logger.debug("a listener failed", exc_info=True)


def _name_of(job: Job) -> str:
    image = str(job.request.input_image) if isinstance(job.request, EditRequest) else ""
    return file_stem(image, job.key)


def _only_error_of(group: BaseExceptionGroup[BaseException]) -> FluxError:
    """Return the first error of ours in ``group``; where there is anything else in it, raise it all."""
    ours, others = group.split(FluxError)
    if others is not None or ours is None:
        raise group
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, FluxError) else JournalError(str(first))
