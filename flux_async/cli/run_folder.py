"""The folder of a run: its journal, its pictures, its results."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

import attrs

from flux_async import ConfigurationError, Job
from flux_async.cli.advice import command
from flux_async.cli.results import (
    FILE_NAME,
    IMAGES,
    ResultFile,
    ResultRow,
    Status,
    row_of,
)
from flux_async.cli.selection import Bits, EqualFile, Selection
from flux_async.job_state import JobState, Problem
from flux_async.journal.guard import find_rescued
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import Journal, StoredJob
from flux_async.journal.submit_log import log_of

JOURNAL = "journal.sqlite3"
ORIGINALS = "originals"
_CHUNK = 100

T = TypeVar("T")


@attrs.define
class Totals:
    """How the images that were asked for stand.

    Attributes:
        statuses: How many are how.
        failures: Failures by the class of their error.
        can_be_resumed: Failures of this run only, which the same command tries again.
        found_tasks: Images in doubt whose task has been found since, by the poll of another image.
    """

    statuses: Counter[Status] = attrs.field(factory=Counter)
    failures: Counter[str] = attrs.field(factory=Counter)
    can_be_resumed: int = 0
    found_tasks: int = 0

    def count(self, row: ResultRow) -> None:
        """Count one image."""
        self.statuses[row.status] += 1
        if row.status is Status.FAILED and row.error is not None:
            self.failures[row.error.type] += 1

    @property
    def all_succeeded(self) -> bool:
        """Whether nothing is left to wish for."""
        return self.statuses.total() == self.statuses[Status.SUCCEEDED]


@attrs.define(kw_only=True, eq=False)
class RunFolder:
    """A folder, opened for a run: nobody else runs it until it is closed.

    Attributes:
        path: The folder.
        journal: Its memory.
        reader: A second look at the journal, for what the run need not wait for.
        results: What others read.
        obstacles: What this run could not get past, by job, where the job itself has not ended.
        settled_here: The numbers of the jobs whose outcome this run has written down.
    """

    path: Path
    journal: Journal
    reader: JournalReader
    results: ResultFile
    obstacles: dict[int, Problem] = attrs.field(factory=dict)
    settled_here: Bits = attrs.field(factory=Bits)

    @classmethod
    async def open(cls, path: Path, *, account: str) -> Self:
        """Take the folder; make it if it is not there.

        Raises:
            ConfigurationError: It cannot be used.
            JournalError: Somebody else runs it, it is another account's, or its journal is damaged.
        """
        _prepare(path)
        journal = await Journal(path / JOURNAL).open(account=account)
        try:
            reader = JournalReader(path / JOURNAL)
        except BaseException:
            await journal.aclose()
            raise
        results = ResultFile(path)
        results.remove_parts()
        return cls(path=path, journal=journal, reader=reader, results=results)

    async def aclose(self) -> None:
        """Let go of it."""
        self.reader.close()
        await self.journal.aclose()

    # --- jobs ---------------------------------------------------------------------------------------------

    def jobs_of(self, numbers: Iterable[int]) -> Iterator[StoredJob]:
        """Yield jobs by their numbers, a few read at a time."""
        for chunk in in_chunks(numbers, _CHUNK):
            yield from self.reader.by_number(chunk)

    def wanted(self, numbers: Iterable[int]) -> Iterator[Job]:
        """Yield the same as a batch takes them."""
        for stored in self.jobs_of(numbers):
            yield stored.as_job()

    def row(self, stored: StoredJob) -> ResultRow:
        """Return how a job stands, by the journal and by what this run met."""
        obstacle = self.obstacles.get(stored.number)
        return row_of(stored, obstacle, self.path)

    async def settled(self, key: str, problem: Problem | None) -> ResultRow | None:
        """Write down the outcome of one job and return its row.

        Args:
            key: The job.
            problem: Why it has no picture, where it has none.
        """
        stored = await self.journal.job(key)
        if stored is None:
            return None
        if problem is not None and stored.job.state not in {JobState.FAILED, JobState.IN_DOUBT}:
            self.obstacles[stored.number] = problem
        self.settled_here.add(stored.number)
        row = self.row(stored)
        self.results.append(row)
        return row

    # --- pictures -----------------------------------------------------------------------------------------

    @property
    def images(self) -> Path:
        """Where pictures go."""
        return self.path / IMAGES

    @property
    def originals(self) -> Path:
        """Where the inputs go as the vendor kept them."""
        return self.path / ORIGINALS

    def has_picture(self, stored: StoredJob) -> bool:
        """Say whether the picture of a job that is done is here."""
        return stored.job.file is not None and (self.images / stored.job.file).is_file()

    # --- the end ------------------------------------------------------------------------------------------

    def rewrite(
        self,
        selection: Selection,
        on_row: Callable[[ResultRow], None],
        on_equal: Callable[[ResultRow], None] = lambda _: None,
    ) -> Totals:
        """Write all results anew, those asked for first, and count those asked for.

        Args:
            selection: What was asked for.
            on_row: Receives the row of each of these.
            on_equal: Receives the rows of files that were no job of their own.

        Raises:
            ResultsError: The disk refused it.
            JournalError: The journal cannot be read.
        """
        totals = Totals()

        def rows() -> Iterator[ResultRow]:
            for row in self._asked_for(selection, totals, on_equal):
                totals.count(row)
                on_row(row)
                yield row
            if len(selection.jobs) < sum(self.reader.counts().values()):
                for stored in self.reader.jobs():
                    if stored.number not in selection.jobs:
                        yield self.row(stored)

        self.results.rewrite(rows())
        return totals

    def _asked_for(
        self, selection: Selection, totals: Totals, on_equal: Callable[[ResultRow], None]
    ) -> Iterator[ResultRow]:
        besides = iter(selection.besides)
        place, one = next(besides, (None, None))
        for number, stored in enumerate(self.jobs_of(selection.jobs)):
            while one is not None and place == number:
                yield self._besides(one, totals, on_equal)
                place, one = next(besides, (None, None))
            yield self._counted(stored, totals)
        if one is not None:
            yield self._besides(one, totals, on_equal)
        for _, one in besides:
            yield self._besides(one, totals, on_equal)

    def _besides(
        self, one: ResultRow | EqualFile, totals: Totals, on_equal: Callable[[ResultRow], None]
    ) -> ResultRow:
        if isinstance(one, ResultRow):
            return one
        (stored,) = self.reader.by_number([one.number])
        row = attrs.evolve(self._counted(stored, totals), image=one.path)
        on_equal(row)
        return row

    def _counted(self, stored: StoredJob, totals: Totals) -> ResultRow:
        row = self.row(stored)
        totals.can_be_resumed += row.status is Status.FAILED and stored.job.state is not JobState.FAILED
        if row.status is Status.IN_DOUBT:
            totals.found_tasks += self.reader.found_task(stored.number) is not None
        return row


def in_chunks(values: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """Yield ``values`` in lists of at most ``size``."""
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk


def shown_path(path: Path) -> Path:
    """Return a path as a person would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _prepare(path: Path) -> None:
    try:
        if (rescued := find_rescued((path / JOURNAL).resolve())) is not None:
            folder = shown_path(rescued.parent)
            raise ConfigurationError(
                f"{path} holds no journal: it was deleted during a run, and its records were saved in "
                f"{folder}. A new run here would pay for the same images again; nothing was sent.",
                advice=f"Go on there with {command('retry', folder)}, or with the same command and "
                f"`-o {shlex.quote(str(folder))}`, which also submits the rest of its list.",
            )
        path.mkdir(parents=True, exist_ok=True)
        for within in (path / IMAGES, path / ORIGINALS):
            if within.exists() and not within.is_dir():
                raise ConfigurationError(
                    f"{within} is no folder, and pictures are to go there.",
                    advice="Move it away and run the same command again; nothing was sent.",
                )
        results, journal = path / FILE_NAME, path / JOURNAL
        has_journal = journal.exists() and (journal.stat().st_size or log_of(journal).exists())
        if results.exists() and results.stat().st_size and not has_journal:
            raise ConfigurationError(
                f"{path} holds {FILE_NAME} but no {JOURNAL}, or an empty one: what it says was "
                "paid would be paid again.",
                advice=f"It was left as it is and nothing was sent: put {JOURNAL} back. Another folder would "
                "pay for all of it again.",
            )
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be used: {error.strerror or error}.",
            advice="Check its permissions and the disk, then run the same command again; nothing was sent.",
        ) from None
