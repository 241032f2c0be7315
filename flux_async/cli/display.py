"""What a person sees of a run, on stderr: a live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flux_async.cli.credits import in_credits
from flux_async.cli.output import Output
from flux_async.cli.printable import printable
from flux_async.cli.progress import RunView
from flux_async.cli.results import FILE_NAME, ResultRow, Status
from flux_async.cli.run_folder import Totals

_LIVE_EVERY_S = 0.1
_PLAIN_EVERY_S = 10.0
_BAR_WIDTH = 24
MOST_NOTES = 20
"""Rows of one kind of trouble that are printed; the others are counted."""
_NARROW = 60
"""Below so many columns there is no room for bars."""
_MINUTE = 60
_HOUR = 3600
_COLOURS = {Status.FAILED: "red", Status.IN_DOUBT: "yellow"}


class MessageConsole(Console):
    """Standard error. When nobody reads it any more it falls silent; the run goes on."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Fall silent instead of ending the process."""
        self.quiet = True

    @property
    def shows_live(self) -> bool:
        """Whether a line can be drawn again and again."""
        return sys.stderr is not None and sys.stderr.isatty() and not self.is_dumb_terminal

    def note(self, text: str, style: str = "") -> None:
        """Print one message, however long and whatever is in it, on one line."""
        self.show(Text(printable(text), style=style), soft_wrap=True)

    def show(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        """Print; a terminal that has gone away is no reason to fail."""
        with contextlib.suppress(OSError):
            self.print(what, soft_wrap=soft_wrap)

    def busy(self, words: str) -> AbstractContextManager[object]:
        """Show in a terminal that something is going on."""
        return self.status(Text(words)) if self.shows_live else nullcontext()


@cache
def message_console() -> MessageConsole:
    """Return the one console of this process: what it prints goes above the live lines."""
    return MessageConsole()


@attrs.define(eq=False)
class RunDisplay:
    """The display of one remove-text run.

    Args:
        output: Where the results go.
        as_json: Print every row as JSON instead of the path or URL of those that succeeded.
        prints_results: Whether results are printed at all.
        console: Where the messages go.
        show_path: Makes of a file's path in the folder what is printed.
    """

    output: Output
    as_json: bool = False
    prints_results: bool = True
    console: MessageConsole = attrs.field(factory=message_console)
    show_path: Callable[[str], str] = str
    _live: Live | None = attrs.field(default=None, init=False)
    _shown_at: float | None = attrs.field(default=None, init=False)
    _refused: int = attrs.field(default=0, init=False)
    _suspected: int = attrs.field(default=0, init=False)

    def start(self) -> None:
        """Begin the live line, where there is one."""
        if self.console.shows_live:
            self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()

    def stop(self) -> None:
        """Clear the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str, style: str = "") -> None:
        """Print one message, above the live line."""
        self.console.note(text, style)

    def progressed(self, view: RunView) -> None:
        """Show how far the run is, not more often than the eye can follow."""
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
        """Print one outcome: the result to stdout, what went wrong to stderr."""
        if row.status is Status.PENDING:
            pass  # its JSON line comes at the end, with those the run did not settle
        elif self.as_json:
            self._result(row.as_json())
        elif row.status is Status.SUCCEEDED and row.error is None:
            self._result(self.show_path(row.file) if row.file else row.result_url or "")
        if row.error is not None:
            status = "not in the folder" if row.status is Status.SUCCEEDED else row.status.replace("_", " ")
            self.note(f"{status}: {row.image}: {row.error.message}", _COLOURS.get(row.status, "yellow"))

    def refused(self, row: ResultRow, words: str) -> None:
        """Print that an input is no request, and where it stands; of many, the first."""
        if self.as_json:
            self._result(row.as_json())
        self._refused += 1
        if self._refused <= MOST_NOTES:
            self.note(words, _COLOURS[Status.FAILED])

    def suspected(self, words: str) -> None:
        """Print that an input looks mistyped and is taken all the same; of many, the first."""
        self._suspected += 1
        if self._suspected <= MOST_NOTES:
            self.note(words, "yellow")

    def count_what_was_not_printed(self, *, are_in_results: bool = True) -> None:
        """Print how many rows were refused, or looked mistyped, beyond those that were printed."""
        if (more := self._refused - MOST_NOTES) > 0:
            where = f": all {self._refused} are in {FILE_NAME}" if are_in_results else ""
            self.note(f"{more} more could not be used{where}.", "red")
        if (more := self._suspected - MOST_NOTES) > 0:
            self.note(f"{more} more look mistyped.", "yellow")

    def unfinished(self, row: ResultRow) -> None:
        """Print, as JSON, a row the run did not settle, so that every image has its line."""
        if self.as_json and row.status is Status.PENDING:
            self._result(row.as_json())

    def _result(self, line: str) -> None:
        """Print to stdout; where that is this same terminal, make way for it."""
        if not self.prints_results:
            return
        if self._live is None or not self.output.is_terminal:
            self.output.line(line)
            return
        self.stop()
        self.output.line(line)
        self.start()  # anew: the old one would go up its own height and draw over the line


def plain_line(view: RunView) -> str:
    """Return progress in words: ``12 of 40 done · … · 21/min · 1:20 left``."""
    parts = [_done(view), *_counts(view)]
    if view.eta_s is not None:
        parts.append(f"{duration(view.eta_s)} left")
    pause = _pause(view)
    return " · ".join([*parts, pause] if pause else parts)


def _done(view: RunView) -> str:
    """Return how many of the images known so far are done: ``12 of 500+ done`` while more are read."""
    return f"{view.settled} of {view.total}{'' if view.is_read else '+'} done"


def _pause(view: RunView) -> str:
    """Return why no submit leaves now, and for how long; empty where submits leave."""
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
    if batch.waiting:
        parts.append(f"{batch.waiting} wait for a callback")
    if view.per_minute > 0:
        parts.append(f"{view.per_minute:.0f}/min")
    return parts


def live_lines(view: RunView, width: int) -> RenderableType:
    """Return progress as three bars (overall, tasks in flight, use of the rate limit) above the counts.

    Nothing of it is cut off: a narrow terminal gets no bars, and the counts take as many lines as they need.
    """
    limits = view.limits
    has_bars = width >= _NARROW
    lines = Table.grid(padding=(0, 1))
    lines.add_column(no_wrap=True)
    if has_bars:
        lines.add_column(width=_BAR_WIDTH)
    lines.add_column()
    left = "" if view.eta_s is None else f", {duration(view.eta_s)} left"
    for name, value, most, words in (
        ("overall", view.settled, view.total, f"{_done(view)}{left}"),
        ("in flight", view.in_flight, limits.in_flight, f"{view.in_flight} of {limits.in_flight}"),
        (
            "rate limit",
            view.in_window,
            limits.submits,
            f"{view.in_window} of {limits.submits} submits in {limits.window_s:g} s",
        ),
    ):
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
    refundable: float = 0.0,
    balance: tuple[float | None, float | None] = (None, None),
    elapsed_s: float,
    generation_s: tuple[float | None, float | None],
) -> Table:
    """Return the table that closes a run.

    Args:
        totals: How the images that were asked for stand.
        spent: What this run spent, by the price list.
        refundable: The part of it that went to failed tasks, which the vendor usually returns.
        balance: What the account had before and after, as far as it is known.
        elapsed_s: Seconds it took.
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
    for status in (Status.IN_DOUBT, Status.PENDING):
        words = status.replace("_", " ")
        table.add_row(words, str(counts[status]), style="yellow" if counts[status] else "")
    table.add_row("credits spent", in_credits(spent))
    if refundable:
        table.add_row("  for failed tasks, usually refunded", in_credits(refundable), style="dim")
    if None not in balance:
        table.add_row(
            "account before / after",
            " / ".join(in_credits(amount) for amount in balance if amount is not None),
        )
    table.add_row("time", duration(elapsed_s))
    if None not in generation_s:
        table.add_row("generation p50 / p95", " / ".join(f"{seconds:g} s" for seconds in generation_s))
    return table
