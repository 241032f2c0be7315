"""The command remove-text from its options to its exit code; the demo runs the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import attrs

from flux_async import EditRequest, FluxClient, FluxError, Limits
from flux_async.cli.display import RunDisplay, summary_table
from flux_async.cli.exits import Exit
from flux_async.cli.fanout import Fanout, FanoutOptions
from flux_async.cli.interruption import Interruption, run_interruptible
from flux_async.cli.output import Output
from flux_async.cli.planning import Item, Step, next_step, plan
from flux_async.cli.results import ResultBook, ResultRow, ResultsError, Status
from flux_async.clock import Clock, SystemClock

_BALANCE_S = 5.0
_ANY_URL = "https://example.com/"


@attrs.frozen(kw_only=True)
class RemoveTextOrder:
    """What is to be done.

    Attributes:
        images: The addresses as given.
        folder: Where images and results go.
        limits: The account's pace, and how many tasks at once.
        timeout_s: Seconds an accepted task may take.
        download: Whether results are brought to disk.
        request_options: Fields of :class:`EditRequest` for every image.

    Raises:
        InvalidInput: An option is out of range.
    """

    images: tuple[str, ...]
    folder: Path
    limits: Limits = attrs.field(factory=Limits)
    timeout_s: float = 300.0
    download: bool = True
    request_options: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.request_for(_ANY_URL)  # an option that is wrong for one image is wrong for all

    def request_for(self, image: str) -> EditRequest:
        """Return what is submitted for one image."""
        return EditRequest.text_removal(image, **self.request_options)


def run_remove_text(order: RemoveTextOrder, *, as_json: bool) -> Exit:
    """Run the command, with the key and the address of the environment, and return its exit code."""
    display = RunDisplay(output=Output(), as_json=as_json, show_path=lambda file: str(order.folder / file))

    async def command(interruption: Interruption) -> Exit:
        run = RemoveText(
            order=order,
            make_client=lambda: FluxClient(limits=order.limits),
            display=display,
            interruption=interruption,
        )
        return (await run.run()).code

    return run_interruptible(command)


@attrs.frozen(kw_only=True)
class RunReport:
    """How a run ended: its exit code, and a row for every image in the order of the input."""

    code: Exit
    rows: list[ResultRow]


@attrs.define(kw_only=True, eq=False)
class RemoveText:
    """One run of the command.

    Attributes:
        order: What is to be done.
        make_client: Makes the client, inside the event loop.
        display: What a person sees.
        interruption: Whether he wants it to end.
        resumable: Whether the same command would take up what is left.
        clock: The reader of time.
    """

    order: RemoveTextOrder
    make_client: Callable[[], FluxClient]
    display: RunDisplay
    interruption: Interruption
    resumable: bool = True
    clock: Clock = attrs.field(factory=SystemClock)
    _balances: list[float | None] = attrs.field(factory=list, init=False)

    async def run(self) -> RunReport:
        """Do it, write the results, say how it went.

        Raises:
            ConfigurationError: No key, or a folder that cannot be used; nothing was sent.
        """
        client, began = self.make_client(), self.clock.monotonic()
        async with client:
            book = ResultBook.open(self.order.folder)
            fanout = self._prepare(client, book)
            try:
                await self._work(client, fanout)
            finally:
                with anyio.CancelScope(shield=True):
                    code = await self._end(client, fanout)
        return self._conclude(fanout, code, self.clock.monotonic() - began)

    def _prepare(self, client: FluxClient, book: ResultBook) -> Fanout:
        order = self.order
        items = plan(order.images, book.rows, order.request_for, folder=order.folder, download=order.download)
        if len(items) < len(order.images):
            self.display.note(f"{len(order.images) - len(items)} duplicates left out.")
        self._say_what_is_kept(items)
        return Fanout(
            client=client,
            items=tuple(items),
            book=book,
            options=FanoutOptions(
                in_flight=order.limits.in_flight,
                submits_in_air=order.limits.submits_in_air,
                timeout_s=order.timeout_s,
                download=order.download,
            ),
            clock=self.clock,
            on_progress=self.display.progressed,
            on_row=self.display.settled,
        )

    def _say_what_is_kept(self, items: list[Item]) -> None:
        done = sum(item.row.status is Status.SUCCEEDED for item in items if item.step is Step.KEEP)
        taken_up = sum(item.step in {Step.WAIT, Step.DOWNLOAD} for item in items)
        if done:
            self.display.note(f"{done} of {len(items)} done by an earlier run.")
        if taken_up:
            self.display.note(
                f"{taken_up} of {len(items)} paid by an earlier run: taken up without a submit."
            )

    async def _work(self, client: FluxClient, fanout: Fanout) -> None:
        """What may be cut short."""
        self.interruption.on_first = lambda: self._stopping(fanout)
        spends = any(item.step is Step.SUBMIT for item in fanout.items)
        with self.interruption.scope():
            try:
                if spends:
                    self._balances.append(await _balance(client))
                self.display.start()
                await fanout.run()
            finally:
                self.display.stop()
            if spends and fanout.halted_by is None:
                self._balances.append(await _balance(client))

    async def _end(self, client: FluxClient, fanout: Fanout) -> Exit:
        """What must not be cut short: submits come home, and everything is written down."""
        order = [item.key for item in fanout.items]
        if fanout.in_air:
            fanout.note_in_air()  # a second signal, or worse, finds these in doubt and not forgotten
            self._write(fanout, order)
        await client.aclose()
        fanout.take_in(client.unclaimed)
        written = self._write(fanout, order)
        if self.interruption.happened:
            return Exit.INTERRUPTED
        if fanout.halted_by is not None or not written:
            return Exit.HALTED
        rows = (fanout.book.rows[key] for key in order)
        return Exit.SUCCEEDED if all(row.status is Status.SUCCEEDED for row in rows) else Exit.SOME_FAILED

    def _write(self, fanout: Fanout, order: list[str]) -> bool:
        try:
            fanout.book.rewrite(order)
        except ResultsError as error:
            self.display.note(f"Error: {error}", "red")
            return False
        return True

    def _stopping(self, fanout: Fanout) -> None:
        self.display.stop()
        waiting = (
            f" {fanout.in_air} submits may be on their way and come home first." if fanout.in_air else ""
        )
        self.display.note(f"Stopping.{waiting} Press Ctrl-C again to end at once.", "yellow")

    def _conclude(self, fanout: Fanout, code: Exit, elapsed_s: float) -> RunReport:
        rows = [fanout.book.rows[item.key] for item in fanout.items]
        before, after = (*self._balances, None, None)[:2]
        for row in rows:
            self.display.unfinished(row)
        table = summary_table(rows, elapsed_s=elapsed_s, credits_before=before, credits_after=after)
        self.display.console.show(table)
        if fanout.halted_by is not None:
            self.display.note(f"Halted: {fanout.halted_by}", "red")
        if self.resumable:
            for words in _advice(rows, fanout.book, interrupted=code is Exit.INTERRUPTED):
                self.display.note(words, "yellow")
        return RunReport(code=code, rows=rows)


async def _balance(client: FluxClient) -> float | None:
    """Return the balance if it can be had quickly."""
    with anyio.move_on_after(_BALANCE_S):
        try:
            return await client.credits()
        except FluxError:
            return None
    return None


def _advice(rows: list[ResultRow], book: ResultBook, *, interrupted: bool) -> list[str]:
    """Return what a person may want to do next."""
    steps = Counter((row.status, next_step(row, has_file=True, download=True)) for row in rows)
    pending = sum(count for (status, _), count in steps.items() if status is Status.PENDING)
    paid = sum(count for (_, step), count in steps.items() if step in {Step.WAIT, Step.DOWNLOAD})
    kept, doubtful = steps[Status.FAILED, Step.KEEP], steps[Status.IN_DOUBT, Step.KEEP]
    words = []
    if pending or paid or interrupted:
        taken_up = f" The {paid} with a task that is paid go on without another submit." if paid else ""
        words.append(f"Run the same command again to resume.{taken_up} Nothing is paid twice.")
    if kept:
        words.append(
            f"Failed and perhaps charged: {kept}. They are not submitted again by themselves; to have that, "
            f"remove their lines from {book.path}."
        )
    if doubtful:
        words.append(
            f"In doubt: {doubtful}. Look for them at kie.ai/logs; to submit one again, remove its line "
            f"from {book.path}."
        )
    return words
