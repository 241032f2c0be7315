"""The page about a batch of the engine: `batch report NAME -o DIR`; needs the extra ``report``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import attrs

from flux_async.batch.file_names import safe_name
from flux_async.cli.advice import ABOUT_UNRECOGNISED, about_batch, shell_command
from flux_async.cli.engine_batches import of_batch, result_row
from flux_async.cli.report import Report, make_all_copies, unwritable
from flux_async.cli.report_rows import NEED_ATTENTION, RowMaker, originals_in
from flux_async.cli.status import credits_in
from flux_async.cli.terminal import Exit, Output
from flux_async.engine import BatchRow, EngineBatch
from flux_async.journal.reader import Spending
from flux_async.report.page import MOST_ROWS, NextStep, ReportHead, write_page
from flux_async.report.rows import Filter


@attrs.frozen(kw_only=True)
class _Found:
    """A batch as its page shows it: up to 10,000 jobs, first those that need a look."""

    jobs: Sequence[BatchRow]
    images: int
    spending: Sequence[Spending]

    @classmethod
    async def of(cls, batch: EngineBatch) -> _Found:
        """Read a batch."""
        status = await batch.status()
        found: dict[int, BatchRow] = {}
        for rows in (batch.rows(*NEED_ATTENTION), batch.rows()):
            await _add(found, rows)
        return cls(
            jobs=[found.pop(number) for number in sorted(found)],
            images=sum((status.pending, status.in_flight, status.succeeded, status.failed, status.in_doubt)),
            spending=await batch.spending(),
        )

    def report(self, name: str, folder: Path) -> Report:
        """Return the report, with the copies of images that are in the folder now."""
        maker = RowMaker(
            folder=folder,
            is_running=True,
            originals=originals_in(folder),
            prices={one.model: one.price for one in self.spending if one.price is not None},
        )
        rows = [maker.row(found.stored, result_row(found)) for found in self.jobs]
        credits_ = credits_in(self.spending)
        head = ReportHead(
            folder=folder,
            written_at=time.time(),
            images=self.images,
            credits=credits_["spent"],
            credits_in_doubt=credits_["perhaps"],
            next_steps={
                Filter(kind): NextStep(words=step.words, command=step.command)
                for kind, step in (about_batch(name) | {"unrecognised": ABOUT_UNRECOGNISED}).items()
            },
            whole_list=shell_command("batch", "results", name, "--json"),
        )
        return Report(head=head, rows=rows, without_copy=maker.without_copy, without_hole=maker.without_hole)


async def _add(found: dict[int, BatchRow], rows: AsyncIterator[BatchRow]) -> None:
    async for row in rows:
        if len(found) >= MOST_ROWS:
            return
        found.setdefault(row.stored.number, row)


def write_batch_page(dsn: str, name: str, directory: Path) -> Exit:
    """Write the page of a batch and print its path.

    Args:
        dsn: The database.
        name: The batch.
        directory: The folder of results that its workers have, or any other: then the page has the
            addresses of the images at the vendor, and of those in an object store.

    Raises:
        ResultsError: It cannot be written.
    """
    found = of_batch(dsn, name, _Found.of)
    folder = directory.absolute() / safe_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            make_all_copies(found.report(name, folder))
        finally:
            report = found.report(name, folder)
            page = write_page(report.head, report.rows)
    except OSError as error:
        raise unwritable(folder, error) from None
    Output().line(str(page))
    return Exit.SUCCEEDED
