"""The folder of a run: its journal, its images, its results, and which jobs the run is about.

Lists may be long: a job of the run is a number in the journal, of a few bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import json
import re
import shlex
import tempfile
import unicodedata
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import IO, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import attrs

from flux_async import ConfigurationError, Job, JobKey
from flux_async.api.models_table import AnyModel
from flux_async.cli.advice import command
from flux_async.cli.destination import settle_destination
from flux_async.cli.results import FILE_NAME, IMAGES, ResultFile, ResultRow, Status, row_of
from flux_async.files.object_store import ObjectStoreSink
from flux_async.job_state import JobState, Problem
from flux_async.journal.guard import find_rescued
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import Journal, StoredJob
from flux_async.journal.submit_log import log_of

JOURNAL = "journal.sqlite3"
ORIGINALS = "originals"
MAX_STEM = 60
_KEY_DIGITS = 12
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IN_MEMORY = 1 << 20
_PAGE = 100


# --- names of files ---------------------------------------------------------------------------------------


def stem_of(image: str) -> str:
    """Return the last part of a path or URL, without its ending, in ASCII letters, digits, ``-`` and ``_``.

    ``https://host/a/Été%20(2).final.png?x=1`` becomes ``Ete-2-final``. Without dots no system takes a part of
    it for a reserved name or an ending; without separators it cannot lead out of its folder.
    """
    try:
        path = unquote(urlsplit(image).path) if "://" in image else image
        last = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    except ValueError:
        return "image"
    bare = last.rpartition(".")[0] or last
    plain = unicodedata.normalize("NFKD", bare).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", plain)[:MAX_STEM].strip("-_") or "image"


def file_stem(image: str, key: str) -> str:
    """Return ``<stem>-<12 digits>``; the digits are of the key, so that images of one name differ."""
    digits = key if _DIGEST.fullmatch(key) else hashlib.sha256(key.encode()).hexdigest()
    return f"{stem_of(image)}-{digits[:_KEY_DIGITS]}"


# --- the jobs of a run ------------------------------------------------------------------------------------


class Bits:
    """A set of small numbers, a bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, number: int) -> bool:
        """Add a number; return whether it is new."""
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        is_new = not self._bits[byte] & bit
        self._bits[byte] |= bit
        return is_new

    def __contains__(self, number: int) -> bool:
        byte = number >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & 1 << (number & 7))


class Numbers:
    """Job numbers, each once, in the order in which they were added."""

    def __init__(self) -> None:
        self._order = array("q")
        self._known = Bits()

    def add(self, number: int) -> bool:
        """Add a number; return whether it is new."""
        if not self._known.add(number):
            return False
        self._order.append(number)
        return True

    def __contains__(self, number: int) -> bool:
        return number in self._known

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


class EqualFile(NamedTuple):
    """A file with the same content as an earlier input: the job of that one, and its own path."""

    number: int
    path: str


class ExtraRows:
    """Rows of inputs that are no jobs of their own: refused inputs, and files equal to an earlier one.

    Each is kept with its position among the jobs, in a temporary file.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self.refused: int = 0
        self.equal: int = 0

    def add_refused(self, position: int, row: ResultRow) -> None:
        """Add the row of a refused input."""
        self._write([position, row.as_json()])
        self.refused += 1

    def add_equal(self, position: int, file: EqualFile) -> None:
        """Add a file that is equal to an earlier one."""
        self._write([position, list(file)])
        self.equal += 1

    def __iter__(self) -> Iterator[tuple[int, ResultRow | EqualFile]]:
        if self._file is not None:
            self._file.seek(0)
        for line in self._file or ():
            position, entry = json.loads(line)
            yield position, ResultRow.from_json(entry) if isinstance(entry, str) else EqualFile(*entry)

    def _write(self, entry: list[object]) -> None:
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - see close
        self._file.write(json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        """Drop the rows; the counts stay."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


@attrs.define(kw_only=True, eq=False)
class Selection:
    """The jobs that a run is about; it grows while the inputs are read.

    Attributes:
        jobs: All jobs, in the order of the input.
        to_do: Those of them that have not ended.
        missing: Those that are done and whose image is not in the folder.
        extra: Inputs that are no jobs of their own.
        needs: Images to be paid for, by model.
        further: The most further attempts that a run until clean may pay for, by model.
        kept: How many of the jobs ended in an earlier run.
        paid: How many of the jobs an earlier run has paid for and not finished.
        unchecked: How many of the jobs are done, and not checked as this run does.
        improvable: How many of the jobs are done, and are submitted again for a better image.
        duplicates: Inputs that were given before.
        paid_again: Images that are paid for although they were submitted under another signature.
        similar: Images whose URL differs only in its query from one that was submitted.
        is_complete: Whether all inputs have been read.
    """

    jobs: Numbers = attrs.field(factory=Numbers)
    to_do: array[int] = attrs.field(factory=lambda: array("q"))
    missing: array[int] = attrs.field(factory=lambda: array("q"))
    extra: ExtraRows = attrs.field(factory=ExtraRows)
    needs: Counter[AnyModel] = attrs.field(factory=Counter)
    further: Counter[AnyModel] = attrs.field(factory=Counter)
    kept: int = 0
    paid: int = 0
    unchecked: int = 0
    improvable: int = 0
    duplicates: int = 0
    paid_again: int = 0
    similar: int = 0
    is_complete: bool = False
    _equal: set[EqualFile] = attrs.field(factory=set, init=False)
    _released: int = attrs.field(default=0, init=False)
    _is_open: bool = attrs.field(default=False, init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    @property
    def asked(self) -> int:
        """How many different inputs there are so far."""
        return len(self.jobs) + self.extra.refused + self.extra.equal

    def in_words(self) -> Iterator[tuple[str, str]]:
        """Yield messages about inputs that are not simply submitted, each with its colour."""
        asked, equal = self.asked, self.extra.equal
        if self.duplicates:
            yield f"{self.duplicates} {'duplicate' if self.duplicates == 1 else 'duplicates'} left out.", ""
        if equal:
            yield (
                f"{equal} {'file holds' if equal == 1 else 'files hold'} the same as another one: paid once.",
                "",
            )
        if self.kept:
            yield f"{self.kept} of {asked} ended in an earlier run.", ""
        if self.paid:
            yield f"{self.paid} of {asked} paid by an earlier run: taken up without a submit.", ""
        if self.missing:
            yield f"{len(self.missing)} of {asked} done before, but not here: downloaded again.", ""
        if self.unchecked:
            free = "" if self.further else ": nothing is paid for them"
            yield f"{self.unchecked} of {asked} done before, and checked now{free}.", ""
        if self.improvable:
            yield f"{self.improvable} of {asked} done before with text left or damage: paid for again.", ""
        if self.paid_again:
            yield f"{self.paid_again} of {asked} paid for again under another signature.", "yellow"
        if self.similar:
            words = (
                f"{self.similar} of {asked} differ only in the query of the address from images that this "
                "folder submitted earlier: paid for as other images."
            )
            yield words, "yellow"

    def add_equal_file(self, number: int, path: str, first: str) -> bool:
        """Add a file that is equal to that of a job; return False for the same file again."""
        file = EqualFile(number, path)
        if path == first or file in self._equal:
            return False
        self._equal.add(file)
        self.extra.add_equal(len(self.jobs), file)
        return True

    def release(self) -> None:
        """Let the run work on the jobs that have been read so far."""
        self._released, self._is_open = len(self.to_do), True
        self._notify()

    def complete(self) -> None:
        """Record that nothing more will be read; jobs that were not released stay as they are."""
        self.is_complete = True
        self._notify()

    async def opened(self) -> bool:
        """Wait until jobs were released; False where all has been read and none were."""
        await self._wait_until(lambda: self._is_open)
        return self._is_open

    def released(self) -> AsyncIterator[Sequence[int]]:
        """Yield the numbers of released jobs in :attr:`to_do` page by page, waiting for more."""
        return self._pages(self.to_do, lambda: self._released)

    def iter_missing(self) -> AsyncIterator[Sequence[int]]:
        """Yield the numbers of :attr:`missing` page by page, waiting for more."""
        return self._pages(self.missing, lambda: len(self.missing))

    async def _pages(
        self, numbers: Sequence[int], available: Callable[[], int]
    ) -> AsyncIterator[Sequence[int]]:
        start = 0
        while True:
            await self._wait_until(lambda: available() > start)  # noqa: B023 - called at once
            if not (page := numbers[start : min(available(), start + _PAGE)]):
                return
            start += len(page)
            yield page

    async def _wait_until(self, is_true: Callable[[], bool]) -> None:
        while not is_true() and not self.is_complete:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


# --- the folder -------------------------------------------------------------------------------------------


@attrs.define
class Totals:
    """The results of the images of a run.

    Attributes:
        statuses: Images by status.
        failures: Failures by the class of their error.
        can_be_resumed: Failures of this run only, which the same command tries again.
        found_tasks: Images in doubt whose task has been found since, by the poll of another image.
        verdicts: Verified images by verdict.
        preserved: Images that are composed with their originals.
        not_preserved: Images that could not be.
        not_checked: Images of which a check could not be made.
    """

    statuses: Counter[Status] = attrs.field(factory=Counter)
    failures: Counter[str] = attrs.field(factory=Counter)
    can_be_resumed: int = 0
    found_tasks: int = 0
    verdicts: Counter[str] = attrs.field(factory=Counter)
    preserved: int = 0
    not_preserved: int = 0
    not_checked: int = 0

    def add(self, row: ResultRow) -> None:
        """Count a row."""
        self.statuses[row.status] += 1
        if row.status is Status.FAILED and row.error is not None:
            self.failures[row.error.type] += 1
        if row.verdict is not None:
            self.verdicts[row.verdict] += 1
        self.preserved += row.vendor_file is not None and row.not_preserved is None
        self.not_preserved += row.not_preserved is not None
        self.not_checked += row.not_checked is not None

    @property
    def all_good(self) -> bool:
        """Whether the checks found nothing to look at."""
        are_clean = self.verdicts.total() == self.verdicts["clean"] + self.verdicts["no_text"]
        return are_clean and not self.not_preserved and not self.not_checked

    @property
    def all_succeeded(self) -> bool:
        """Whether every image succeeded."""
        return self.statuses.total() == self.statuses[Status.SUCCEEDED]


@attrs.define(kw_only=True, eq=False)
class RunFolder:
    """A folder, opened for a run: no other process runs it until it is closed.

    Attributes:
        path: The folder.
        journal: Its journal.
        reader: A read-only connection to the journal, which does not wait for the run's writes.
        results: Its ``results.jsonl``.
        sink: Receives the images, if they do not go into the folder.
        obstacles: Errors of this run, by the number of a job that has not ended.
        settled_here: The numbers of the jobs whose outcome this run has recorded.
    """

    path: Path
    journal: Journal
    reader: JournalReader
    results: ResultFile
    sink: ObjectStoreSink | None = None
    obstacles: dict[int, Problem] = attrs.field(factory=dict)
    settled_here: Bits = attrs.field(factory=Bits)

    @classmethod
    async def open(cls, path: Path, *, account: str, destination: str | None = None) -> Self:
        """Open the folder; it is made where it is missing.

        Args:
            path: The folder.
            account: The fingerprint of the key.
            destination: The address that its images go to, where the command names one.

        Raises:
            ConfigurationError: It cannot be used.
            JournalError: Another process runs it, it is another account's, or its journal is damaged.
        """
        _prepare(path)
        journal = await Journal(path / JOURNAL).open(account=account)
        try:
            reader = JournalReader(path / JOURNAL)
            sink = settle_destination(path, destination, has_jobs=any(reader.counts().values()))
        except BaseException:
            await journal.aclose()
            raise
        results = ResultFile(path)
        results.remove_parts()
        return cls(path=path, journal=journal, reader=reader, results=results, sink=sink)

    async def aclose(self) -> None:
        """Close the journal."""
        self.reader.close()
        await self.journal.aclose()

    @property
    def images(self) -> Path:
        """Receives the results."""
        return self.path / IMAGES

    @property
    def originals(self) -> Path:
        """Receives the inputs, as the vendor kept them."""
        return self.path / ORIGINALS

    # --- jobs ---------------------------------------------------------------------------------------------

    def jobs_of(self, numbers: Iterable[int]) -> Iterator[StoredJob]:
        """Yield jobs by their numbers, page by page."""
        rest = iter(numbers)
        while page := list(islice(rest, _PAGE)):
            yield from self.reader.by_number(page)

    async def feed(self, selection: Selection) -> AsyncIterator[Job]:
        """Yield the released jobs of a selection that have not ended, as a batch takes them."""
        async for page in selection.released():
            for stored in self.jobs_of(page):
                yield stored.as_job()

    async def missing_keys(self, selection: Selection) -> AsyncIterator[JobKey]:
        """Yield the keys of jobs whose image is not in the folder."""
        async for page in selection.iter_missing():
            for stored in self.jobs_of(page):
                yield stored.job.key

    def has_image(self, stored: StoredJob) -> bool:
        """Return whether the image of a job that is done is in the folder, or was saved in the store."""
        file = stored.job.file
        return file is not None and (self.sink is not None or (self.images / file).is_file())

    def row(self, stored: StoredJob) -> ResultRow:
        """Return the row of a job, from the journal and from the errors of this run."""
        return row_of(stored, self.obstacles.get(stored.number), self.path)

    async def settled(self, key: str, problem: Problem | None) -> ResultRow | None:
        """Append the row of one outcome to the results and return it.

        Args:
            key: The job.
            problem: Why its image is not in the folder, or None.
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

    # --- the end ------------------------------------------------------------------------------------------

    def rewrite(
        self,
        selection: Selection,
        on_row: Callable[[ResultRow], None],
        on_equal: Callable[[ResultRow], None] = lambda _: None,
    ) -> Totals:
        """Rewrite all results, those of this run first, and count those of this run.

        Args:
            selection: The jobs of this run.
            on_row: Receives the row of each of these.
            on_equal: Receives the rows of files that are equal to an earlier one.

        Raises:
            ResultsError: They cannot be written.
            JournalError: The journal cannot be read.
        """
        totals = Totals()

        def rows() -> Iterator[ResultRow]:
            for row in self._rows_of(selection, totals, on_equal):
                totals.add(row)
                on_row(row)
                yield row
            if len(selection.jobs) < sum(self.reader.counts().values()):
                for stored in self.reader.jobs():
                    if stored.number not in selection.jobs:
                        yield self.row(stored)

        self.results.rewrite(rows())
        return totals

    def _rows_of(
        self, selection: Selection, totals: Totals, on_equal: Callable[[ResultRow], None]
    ) -> Iterator[ResultRow]:
        """Yield the rows of all inputs, in their order."""
        jobs = ((position, 1, job) for position, job in enumerate(self.jobs_of(selection.jobs)))
        extra = ((position, 0, entry) for position, entry in selection.extra)
        entries: Iterable[tuple[int, int, StoredJob | ResultRow | EqualFile]]
        entries = heapq.merge(jobs, extra, key=itemgetter(0, 1))
        for _, _, entry in entries:
            if isinstance(entry, ResultRow):
                yield entry
            elif isinstance(entry, EqualFile):
                (stored,) = self.reader.by_number([entry.number])
                row = attrs.evolve(self._counted(stored, totals), image=entry.path)
                on_equal(row)
                yield row
            else:
                yield self._counted(entry, totals)

    def _counted(self, stored: StoredJob, totals: Totals) -> ResultRow:
        row = self.row(stored)
        totals.can_be_resumed += row.status is Status.FAILED and stored.job.state is not JobState.FAILED
        if row.status is Status.IN_DOUBT:
            totals.found_tasks += self.reader.found_task(stored.number) is not None
        return row


def _prepare(path: Path) -> None:
    """Make the folder; refuse one where a run would pay again for what another journal holds."""
    try:
        if (rescued := find_rescued((path / JOURNAL).resolve())) is not None:
            folder = _as_typed(rescued.parent)
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
                    f"{within} is no folder, and images are to be saved in it.",
                    advice="Move it away and run the same command again; nothing was sent.",
                )
        results, journal = path / FILE_NAME, path / JOURNAL
        has_journal = journal.exists() and (journal.stat().st_size or log_of(journal).exists())
        if results.exists() and results.stat().st_size and not has_journal:
            raise ConfigurationError(
                f"{path} holds {FILE_NAME} but no {JOURNAL}, or an empty one: a new run would pay again for "
                "what it lists as paid.",
                advice=f"It was left as it is and nothing was sent: put {JOURNAL} back. Another folder would "
                "pay for all of it again.",
            )
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be used: {error.strerror or error}.",
            advice="Check its permissions and the disk, then run the same command again; nothing was sent.",
        ) from None


def _as_typed(path: Path) -> Path:
    """Return a path relative to the working directory, where it lies in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
