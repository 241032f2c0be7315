"""What stderr shows of a run: live lines in a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TypeVar

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flux_async import Limits
from flux_async.batch.progress import BatchProgress
from flux_async.cli.credits import in_credits
from flux_async.cli.results import FILE_NAME, ResultRow, Status
from flux_async.cli.run_folder import Totals
from flux_async.cli.terminal import CannotPrint, Output, printable
from flux_async.job_state import NO_CHECKS, WantedChecks


@attrs.frozen(kw_only=True)
class RunView:
    """A run at one moment.

    Attributes:
        batch: The batch's own progress.
        asked: Different images among the inputs, refused ones included.
        kept: How many of them an earlier run settled.
        refused: How many of them cannot be a request.
        limits: The limits of the run.
        in_window: Submits of this run in the last window.
        is_read: Whether all inputs have been read.
        checks: The checks that the run makes.
    """

    batch: BatchProgress
    asked: int
    kept: int = 0
    refused: int = 0
    limits: Limits = attrs.field(factory=Limits)
    in_window: int = 0
    is_read: bool = True
    checks: WantedChecks = NO_CHECKS

    @property
    def total(self) -> int:
        """All images, those that an earlier run left unfinished included."""
        return max(self.asked, self.kept + self.refused + self.batch.seen)

    @property
    def settled_now(self) -> int:
        """Images that this run has settled."""
        return self.batch.succeeded + self.batch.failed + self.batch.in_doubt

    @property
    def settled(self) -> int:
        """Images for which this run will do nothing more."""
        return self.kept + self.refused + self.settled_now

    @property
    def failed(self) -> int:
        """Images that failed in this run, refused ones included."""
        return self.refused + self.batch.failed

    @property
    def in_flight(self) -> int:
        """Tasks at the vendor, and images being downloaded."""
        return self.batch.generating + self.batch.fetching

    @property
    def checked(self) -> int:
        """Images of which this run has made all checks, or could not or need not make them."""
        batch = self.batch
        made = sum(batch.verdicts.values()) if self.checks.verify else batch.preserved + batch.not_preserved
        return made + batch.not_checked + batch.skipped

    @property
    def only_awaits_callbacks(self) -> bool:
        """Whether the run only waits for callbacks of submits in doubt."""
        waiting = self.batch.waiting
        return self.is_read and waiting > 0 and self.in_flight == 0 and self.settled + waiting >= self.total

    @property
    def only_retries_downloads(self) -> bool:
        """Whether the run only retries downloads that failed."""
        retrying = self.batch.retrying
        return self.is_read and 0 < retrying == self.in_flight and self.settled + retrying >= self.total

    @property
    def per_minute(self) -> float:
        """Images settled by this run, per minute: 30 in 90 s is 20."""
        return 60.0 * self.settled_now / self.batch.elapsed_s if self.batch.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the present rate, or None while there is none: 40 left at 20 a minute is 120 s.

        Jobs in doubt that wait for their callback do not count: they end with the callback, not at this rate.
        """
        if self.per_minute <= 0 or not self.is_read:
            return None
        return 60.0 * max(0, self.total - self.settled - self.batch.waiting) / self.per_minute


@attrs.define
class WindowUse:
    """Counts the submits of the last window."""

    window_s: float
    _seen: int = attrs.field(default=0, init=False)
    _times: deque[float] = attrs.field(factory=deque, init=False)

    def count(self, submits: int, now: float) -> int:
        """Return how many of ``submits`` were made in the window that ends ``now``."""
        self._times.extend([now] * (submits - self._seen))
        self._seen = max(self._seen, submits)
        while self._times and self._times[0] <= now - self.window_s:
            self._times.popleft()
        return len(self._times)


# --- the display ----------------------------------------------------------------------------------------


logger: logging.Logger = logging.getLogger("flux_async.cli")

V = TypeVar("V")

_LIVE_EVERY_S = 0.1
_PLAIN_EVERY_S = 10.0
_BAR_WIDTH = 24
MOST_NOTES = 20
"""Messages of one kind that are printed; the others are counted."""
_NARROW = 60
"""Terminals with fewer columns get no bars."""
_MINUTE = 60
_HOUR = 3600
_COLOURS = {Status.FAILED: "red", Status.IN_DOUBT: "yellow"}


class MessageConsole(Console):
    """Standard error. When its pipe is closed it becomes quiet, and the run goes on."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Become quiet instead of ending the process."""
        self.quiet = True

    @property
    def shows_live(self) -> bool:
        """Whether lines can be redrawn."""
        return sys.stderr is not None and sys.stderr.isatty() and not self.is_dumb_terminal

    def note(self, text: str, style: str = "") -> None:
        """Print one message on one line, with control characters escaped."""
        self.show(Text(printable(text), style=style), soft_wrap=True)

    def show(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        """Print; a terminal that is gone is ignored."""
        with contextlib.suppress(OSError):
            self.print(what, soft_wrap=soft_wrap)

    def busy(self, words: str) -> AbstractContextManager[object]:
        """Show a spinner in a terminal."""
        return self.status(Text(words)) if self.shows_live else nullcontext()


@cache
def message_console() -> MessageConsole:
    """Return the console that all messages of this process go through, above the live lines."""
    return MessageConsole()


def notify(listener: Callable[[V], None], value: V) -> None:
    """Call a method of a display; its errors must not end a run that costs money."""
    try:
        listener(value)
    except Exception:  # whatever a terminal raises
        logger.debug("a listener failed", exc_info=True)


@attrs.define(eq=False)
class RunDisplay:
    """The display of one run.

    Attributes:
        output: Receives the results.
        as_json: Whether every row is printed as JSON, instead of the path or URL of those that succeeded.
        prints_results: Whether results are printed at all.
        console: Receives the messages.
        show_path: Returns the printed form of a file's path in the folder.
        lost: Why results could not be printed to stdout, or None.
    """

    output: Output
    as_json: bool = False
    prints_results: bool = True
    console: MessageConsole = attrs.field(factory=message_console)
    show_path: Callable[[str], str] = str
    lost: str | None = attrs.field(default=None, init=False)
    _live: Live | None = attrs.field(default=None, init=False)
    _shown_at: float | None = attrs.field(default=None, init=False)
    _refused: int = attrs.field(default=0, init=False)
    _suspected: int = attrs.field(default=0, init=False)

    def start(self) -> None:
        """Start the live lines, where there are any."""
        if self.console.shows_live:
            self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()

    def stop(self) -> None:
        """Clear the live lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str, style: str = "") -> None:
        """Print one message, above the live lines."""
        self.console.note(text, style)

    def progressed(self, view: RunView) -> None:
        """Show progress, at most ten times a second."""
        now = self.console.get_time()
        every = _LIVE_EVERY_S if self._live else _PLAIN_EVERY_S
        if self._shown_at is None and not self._live:
            self._shown_at = now  # the first plain line comes after the first interval
        if self._shown_at is not None and now - self._shown_at < every:
            return
        self._shown_at = now
        if self._live is not None:
            self._live.update(live_lines(view, self.console.width), refresh=True)
        else:
            self.note(plain_line(view))

    def settled(self, row: ResultRow) -> None:
        """Print one outcome: the result to stdout, an error to stderr."""
        if row.status is Status.PENDING:
            pass  # its JSON line is printed at the end, with those that the run did not settle
        elif self.as_json:
            self._result(row.as_json())
        elif row.status is Status.SUCCEEDED and (row.error is None or row.file is not None):
            self._result(self.show_path(row.file) if row.file else row.result_url or "")
        if row.error is not None:
            status = row.status.replace("_", " ")
            if row.status is Status.SUCCEEDED and row.file is None:
                status = "not in the folder"
            self.note(f"{status}: {row.image}: {row.error.message}", _COLOURS.get(row.status, "yellow"))

    def refused(self, row: ResultRow, words: str) -> None:
        """Print why an input was refused; of many, the first."""
        if self.as_json:
            self._result(row.as_json())
        self._refused += 1
        if self._refused <= MOST_NOTES:
            self.note(words, _COLOURS[Status.FAILED])

    def suspected(self, words: str) -> None:
        """Print that an input looks mistyped; of many, the first."""
        self._suspected += 1
        if self._suspected <= MOST_NOTES:
            self.note(words, "yellow")

    def count_unprinted(self, *, are_in_results: bool = True) -> None:
        """Print how many inputs were refused, or looked mistyped, beyond those that were printed."""
        if (more := self._refused - MOST_NOTES) > 0:
            where = f": all {self._refused} are in {FILE_NAME}" if are_in_results else ""
            self.note(f"{more} more could not be used{where}.", "red")
        if (more := self._suspected - MOST_NOTES) > 0:
            self.note(f"{more} more look mistyped.", "yellow")

    def unfinished(self, row: ResultRow) -> None:
        """Print, as JSON, a row that the run did not settle, so that every image has its line."""
        if self.as_json and row.status is Status.PENDING:
            self._result(row.as_json())

    def _result(self, line: str) -> None:
        """Print to stdout; where that is this same terminal, without the live lines."""
        if not self.prints_results or self.lost is not None:
            return
        shares_terminal = self._live is not None and self.output.is_terminal
        if shares_terminal:
            self.stop()
        try:
            self.output.line(line)
        except CannotPrint as failure:  # the run goes on: its files hold the results
            self.lost = failure.reason
        if shares_terminal:
            self.start()  # the old one would move up by its own height and draw over the line


def plain_line(view: RunView) -> str:
    """Return progress as text: ``12 of 40 done · … · 21/min · 1:20 left``."""
    parts = [_done(view), *_counts(view)]
    if view.eta_s is not None:
        parts.append(f"{duration(view.eta_s)} left")
    pause = _pause(view)
    return " · ".join([*parts, pause] if pause else parts)


def _done(view: RunView) -> str:
    """Return how many of the images known so far are done: ``12 of 500+ done`` while more are read."""
    return f"{view.settled} of {view.total}{'' if view.is_read else '+'} done"


def _pause(view: RunView) -> str:
    """Return why submits pause, and for how long; empty where they do not."""
    batch = view.batch
    if batch.pause_left_s <= 0:
        return ""
    return f"submits pause for {duration(batch.pause_left_s)}: {batch.pause_reason}"


def _counts(view: RunView) -> list[str]:
    batch = view.batch
    parts = [f"{batch.submits} submitted", f"{view.in_flight} in flight", f"{view.failed} failed"]
    if batch.in_doubt:
        parts.append(f"{batch.in_doubt} in doubt")
    if batch.retrying:
        parts.append(f"{batch.retrying} downloads tried again")
    parts += [f"{count} {name}" for name, count in _being_checked(view) if count]
    parts += _findings(batch)
    if batch.waiting:
        parts.append(f"{batch.waiting} wait for a callback")
    if view.per_minute > 0:
        parts.append(f"{view.per_minute:.0f}/min")
    return parts


def _being_checked(view: RunView) -> tuple[tuple[str, int], ...]:
    batch = view.batch
    return (
        ("being checked for text", batch.checking_text),
        ("being composed", batch.preserving),
        ("being verified", batch.verifying),
    )


def _findings(batch: BatchProgress) -> list[str]:
    """Return what the checks have found: ``12 clean``, ``1 text left``, ``2 not composed``."""
    found = [(verdict.replace("_", " "), count) for verdict, count in sorted(batch.verdicts.items())]
    found += [("not composed", batch.not_preserved), ("not checked", batch.not_checked)]
    found += [
        ("submitted without a check for text", batch.not_checked_for_text),
        ("tried again", batch.tried_again),
    ]
    words = [f"{count} {name}" for name, count in found if count]
    if batch.skipped:
        words.append(f"{batch.skipped} without text, {in_credits(batch.saved_credits)} credits saved")
    return words


def live_lines(view: RunView, width: int) -> RenderableType:
    """Return progress as bars (overall, tasks in flight, use of the rate limit, checks) above the counts.

    A narrow terminal gets no bars, and the counts take as many lines as they need.
    """
    limits = view.limits
    has_bars = width >= _NARROW
    lines = Table.grid(padding=(0, 1))
    lines.add_column(no_wrap=True)
    if has_bars:
        lines.add_column(width=_BAR_WIDTH)
    lines.add_column()
    left = "" if view.eta_s is None else f", {duration(view.eta_s)} left"
    bars = [
        ("overall", view.settled, view.total, f"{_done(view)}{left}"),
        ("in flight", view.in_flight, limits.in_flight, f"{view.in_flight} of {limits.in_flight}"),
        (
            "rate limit",
            view.in_window,
            limits.submits,
            f"{view.in_window} of {limits.submits} submits in {limits.window_s:g} s",
        ),
    ]
    if view.checks.preserve or view.checks.verify:
        most = view.total - view.kept - view.refused
        bars.append(("checks", view.checked, most, f"{view.checked} of {most}"))
    for name, value, most, words in bars:
        bar = ProgressBar(total=max(1, most), completed=min(value, most), width=_BAR_WIDTH)
        lines.add_row(*([name, bar] if has_bars else [name]), Text(words))
    pause = _pause(view)
    paused = [Text(printable(pause), style="yellow")] if pause else []
    return Group(lines, Text(" · ".join(_counts(view))), *paused)


def duration(seconds: float) -> str:
    """Return a length of time as ``m:ss`` or ``h:mm:ss``."""
    whole = max(0, round(seconds))
    hours, minutes = whole // _HOUR, whole % _HOUR // _MINUTE
    return f"{hours}:{minutes:02}:{whole % _MINUTE:02}" if hours else f"{minutes}:{whole % _MINUTE:02}"


def summary_table(
    totals: Totals,
    *,
    spent: float,
    measured: float = 0.0,
    refundable: float = 0.0,
    saved: float = 0.0,
    balance: tuple[float | None, float | None] = (None, None),
    elapsed_s: float,
    generation_s: tuple[float | None, float | None],
) -> Table:
    """Return the table that closes a run.

    Args:
        totals: The status of the images of this run.
        spent: Credits that this run spent.
        measured: The part of them that was measured; the rest is by price.
        refundable: The part of them that went to failed tasks, which the vendor usually refunds.
        saved: Credits that this run did not spend on images without text.
        balance: The account's credits before and after, where they could be read.
        elapsed_s: Seconds that the run took.
        generation_s: Median and 95th percentile of the vendor's own durations, in this folder.
    """
    counts = totals.statuses
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("succeeded", str(counts[Status.SUCCEEDED]), style="green")
    table.add_row("failed", str(counts[Status.FAILED]), style="red" if counts[Status.FAILED] else "")
    for name, count in totals.failures.most_common():
        table.add_row(f"  {name}", str(count), style="dim")
    for verdict, count in totals.verdicts.most_common():
        table.add_row(f"  {verdict.replace('_', ' ')}", str(count), style="dim")
    for words, count in (
        ("composed with their originals", totals.preserved),
        ("not composed: the vendor's image", totals.not_preserved),
        ("not checked", totals.not_checked),
    ):
        if count:
            table.add_row(f"  {words}", str(count), style="dim")
    for status in (Status.IN_DOUBT, Status.PENDING):
        words = status.replace("_", " ")
        table.add_row(words, str(counts[status]), style="yellow" if counts[status] else "")
    table.add_row("credits spent", in_credits(spent))
    for words, amount, style in (
        ("  of which measured", measured, "dim"),
        ("  for failed tasks, usually refunded", refundable, "dim"),
        ("credits saved on images without text", saved, "green"),
    ):
        if amount:
            table.add_row(words, in_credits(amount), style=style)
    if None not in balance:
        table.add_row(
            "account before / after",
            " / ".join(in_credits(amount) for amount in balance if amount is not None),
        )
    table.add_row("time", duration(elapsed_s))
    if None not in generation_s:
        table.add_row("generation p50 / p95", " / ".join(f"{seconds:g} s" for seconds in generation_s))
    return table


# --- the log --------------------------------------------------------------------------------------------


_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _ConsoleHandler(logging.Handler):
    """Prints each line above the progress display, which other writers would draw over."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        try:
            message_console().note(self.format(record))
        except Exception:  # noqa: BLE001 - as every handler of the standard library does
            self.handleError(record)


def show_log(verbosity: int) -> None:
    """Show the log: at verbosity 0 warnings, at 1 money and settlement, at 2 polls as well."""
    handler = _ConsoleHandler()
    level = _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("flux_async")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
    if not verbosity:  # the outcome of each image is printed anyway
        logging.getLogger("flux_async.jobs").setLevel(logging.ERROR)
