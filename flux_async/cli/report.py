"""The command report, and the page that a run writes at its end; needs the extra ``report``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from flux_async.cli.advice import (
    ABOUT_NOT_PRESERVED,
    ABOUT_REFUSED,
    ABOUT_RUNNING,
    ABOUT_UNRECOGNISED,
    ABOUT_UNSURE,
    about_failed,
    about_in_doubt,
    about_pending,
    about_verdict,
)
from flux_async.cli.display import message_console
from flux_async.cli.report_rows import RowReader
from flux_async.cli.results import ResultsError
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.status import costs_of_retry, credits_in, warning_of_lost_records
from flux_async.cli.terminal import Exit, Output
from flux_async.journal.lock import lock_owner_of
from flux_async.journal.reader import JournalReader, read_at_rest
from flux_async.report.contact_sheet import Pair, draw_contact_sheet
from flux_async.report.holes import Holes
from flux_async.report.page import NextStep, ReportHead, write_page
from flux_async.report.rows import Filter, Kind, ReportRow
from flux_async.report.thumbnails import Thumbnails

CONTACT_SHEET = "contact_sheet.png"

_WATCH_S = 10.0
_SOON_MADE = 200
_ON_SHEET = 60


@attrs.frozen(kw_only=True)
class Report:
    """What a page says, and what has to be made for it: small copies, and outlines of what was changed."""

    head: ReportHead
    rows: Sequence[ReportRow]
    without_copy: Sequence[Path]
    without_hole: Sequence[tuple[Path, Path]]

    def make_missing(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Make the copies and find the changes that are missing; stop where ``is_over``."""
        copies = Thumbnails(self.head.folder)
        copies.make(self.without_copy, is_over=is_over)
        Holes(copies).make(self.without_hole, is_over=is_over)


def show_report(
    folder: Path, *, watch: bool, contact_sheet: bool, sleep: Callable[[float], None] = time.sleep
) -> Exit:
    """Write the report of a folder and print its path. A run in it is not disturbed.

    Args:
        folder: The folder of a run.
        watch: Write the page anew every ten seconds until the run in the folder ends.
        contact_sheet: Also draw some of the images on one sheet, and print its path.
        sleep: Waits for a number of seconds.

    Raises:
        JournalError: The folder has no journal, or it cannot be read.
        ResultsError: A file cannot be written.
    """
    write_report(folder)  # the page is there at once; small copies take a moment
    try:
        make_all_copies(read_report(folder))
        while watch and lock_owner_of(folder / JOURNAL) is not None:
            write_report(folder, reload_s=_WATCH_S, copies_s=_WATCH_S)
            sleep(_WATCH_S)
    finally:
        page = write_report(folder)
    Output().line(str(page))
    if contact_sheet:
        Output().line(str(write_contact_sheet(folder)))
    return Exit.SUCCEEDED


def write_report(
    folder: Path,
    reader: JournalReader | None = None,
    *,
    copies_s: float = 0.0,
    reload_s: float | None = None,
) -> Path:
    """Write the page of a folder and return its path.

    Args:
        folder: The folder of a run.
        reader: Reads its journal, for the process that runs the folder itself.
        copies_s: Seconds to spend on small copies of images first.
        reload_s: Seconds after which the page reloads itself.

    Raises:
        JournalError: The folder has no journal, or it cannot be read.
        ResultsError: The page cannot be written.
    """
    report = read_report(folder, reader, reload_s=reload_s)
    try:
        if copies_s > 0 and (report.without_copy or report.without_hole):
            until = time.monotonic() + copies_s
            report.make_missing(lambda: time.monotonic() > until)
            report = read_report(folder, reader, reload_s=reload_s)
        return write_page(report.head, report.rows)
    except OSError as error:
        raise unwritable(folder, error) from None


def read_report(
    folder: Path, reader: JournalReader | None = None, *, reload_s: float | None = None
) -> Report:
    """Return the report of a folder; the arguments are those of :func:`write_report`."""
    owner = None if reader is not None else lock_owner_of(folder / JOURNAL)

    def read(journal: JournalReader) -> Report:
        source = RowReader.of(folder, journal, is_running=owner is not None)
        rows = source.read()
        return Report(
            head=_head(source, rows, reload_s),
            rows=rows,
            without_copy=source.maker.without_copy,
            without_hole=source.maker.without_hole,
        )

    return read_at_rest(folder / JOURNAL, read) if reader is None else read(reader)


def _head(source: RowReader, rows: Sequence[ReportRow], reload_s: float | None) -> ReportHead:
    spending = credits_in(source.journal.spending())
    return ReportHead(
        folder=source.maker.folder,
        written_at=time.time(),
        images=source.images,
        credits=spending["spent"],
        credits_in_doubt=spending["perhaps"],
        is_running=source.maker.is_running,
        reload_s=None if reload_s is None else round(reload_s),
        warning=warning_of_lost_records(source.maker.folder),
        next_steps=_next_steps(source, rows),
    )


def _next_steps(source: RowReader, rows: Sequence[ReportRow]) -> Mapping[Filter, NextStep]:
    """Return the advice by filter, with commands only where no run uses the folder."""
    costs = costs_of_retry(source.journal)
    advice = {
        Filter.FAILED: about_failed(source.maker.folder, costs["failed"]),
        Filter.IN_DOUBT: about_in_doubt(source.maker.folder),
        Filter.PENDING: about_pending(source.maker.folder),
        Filter.REFUSED: ABOUT_REFUSED,
        Filter.UNRECOGNISED: ABOUT_UNRECOGNISED,
        Filter.UNSURE: ABOUT_UNSURE,
        Filter.NOT_PRESERVED: ABOUT_NOT_PRESERVED,
        Filter.TEXT_LEFT: about_verdict(source.maker.folder, "--text-left", costs["text_left"]),
        Filter.DAMAGED: about_verdict(source.maker.folder, "--damaged", costs["damaged"]),
    }
    if any(row.kind is Kind.PENDING for row in rows):
        advice[Filter.ALL] = advice[Filter.PENDING]
    if source.maker.is_running:
        advice = {name: ABOUT_RUNNING if step.command else step for name, step in advice.items()}
    return {name: NextStep(words=step.words, command=step.command) for name, step in advice.items()}


def make_all_copies(report: Report) -> None:
    """Make all small copies that are missing; say so where it takes a moment.

    Raises:
        ResultsError: One cannot be written.
    """
    if len(report.without_copy) > _SOON_MADE:
        message_console().note(
            f"Making small copies of {len(report.without_copy):,} images. Ctrl-C leaves the rest for the "
            "next time: the page is complete without them, and slower."
        )
    try:
        report.make_missing()
    except OSError as error:
        raise unwritable(report.head.folder, error) from None


def write_contact_sheet(folder: Path) -> Path:
    """Draw up to 60 images of a folder before and after, first those that need a look; return the path.

    Raises:
        JournalError: The folder has no journal, or it cannot be read.
        ResultsError: The sheet cannot be written.
    """
    rows = read_report(folder).rows
    chosen = sorted(rows, key=lambda row: Filter.ATTENTION not in row.filters)[:_ON_SHEET]
    path = folder.absolute() / CONTACT_SHEET
    try:
        draw_contact_sheet(list(map(_pair, chosen)), path)
    except OSError as error:
        raise unwritable(folder, error) from None
    return path


def _pair(row: ReportRow) -> Pair:
    before, after = row.original, row.preserved or row.vendor
    return Pair(
        title=row.title,
        before=None if before is None else before.smallest,
        after=None if after is None else after.smallest,
        remark=row.error_type or row.stage or "",
    )


def unwritable(folder: Path, error: OSError) -> ResultsError:
    """Return the error of a report that cannot be written."""
    return ResultsError(f"The report in {folder} cannot be written: {error.strerror or error}.")
