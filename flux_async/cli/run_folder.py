"""File names for results: readable, and safe on every system."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shlex
import tempfile
import unicodedata
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, Self, TypeVar
from urllib.parse import unquote, urlsplit

import attrs

from flux_async import ConfigurationError, Job
from flux_async.api.models_table import Model
from flux_async.cli.advice import command
from flux_async.cli.results import (
    FILE_NAME,
    IMAGES,
    ResultFile,
    ResultRow,
    Status,
    row_of,
)
from flux_async.job_state import JobState, Problem
from flux_async.journal.guard import find_rescued
from flux_async.journal.reader import JournalReader
from flux_async.journal.store import Journal, StoredJob
from flux_async.journal.submit_log import log_of

MAX_STEM = 60
_FALLBACK = "image"
_KEY_DIGITS = 12
_DIGEST = re.compile(r"[0-9a-f]{64}")


def stem_of(image: str) -> str:
    """Return the last part of the path, without its ending, in ASCII letters, digits, ``-`` and ``_``.

    ``https://host/a/Été%20(2).final.png?x=1`` becomes ``Ete-2-final``. No dot is left, so no system takes a
    part of it for a reserved name or an ending, and no separator, so it cannot lead out of its folder.
    """
    try:
        path = unquote(urlsplit(image).path) if "://" in image else image
        last = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    except ValueError:
        return _FALLBACK
    bare = last.rpartition(".")[0] or last
    plain = unicodedata.normalize("NFKD", bare).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", plain)[:MAX_STEM].strip("-_") or _FALLBACK


def file_stem(image: str, key: str) -> str:
    """Return ``<stem>-<12 digits>``: the digits stand for the key, and tell pictures of one name apart."""
    digits = key if _DIGEST.fullmatch(key) else hashlib.sha256(key.encode()).hexdigest()
    return f"{stem_of(image)}-{digits[:_KEY_DIGITS]}"


# --- what a run is about --------------------------------------------------------------------------------


_IN_MEMORY = 1 << 20
_PAGE = 100


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
    """A file that holds the same as an earlier one of the run: the job of that one, and its own path."""

    number: int
    path: str


class RowsBesides:
    """What has a row and is no job of its own: refused inputs and files that are equal to an earlier one.

    Each is kept with the number of jobs that were asked for before it, in a temporary file.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self.refused: int = 0
        self.equal: int = 0

    def refuse(self, place: int, row: ResultRow) -> None:
        """Keep the row of a refused input."""
        self._keep([place, row.as_json()])
        self.refused += 1

    def add_equal(self, place: int, file: EqualFile) -> None:
        """Keep a file that is equal to an earlier one."""
        self._keep([place, list(file)])
        self.equal += 1

    def __iter__(self) -> Iterator[tuple[int, ResultRow | EqualFile]]:
        if self._file is not None:
            self._file.seek(0)
        for line in self._file or ():
            place, kept = json.loads(line)
            yield place, ResultRow.from_json(kept) if isinstance(kept, str) else EqualFile(*kept)

    def _keep(self, entry: list[object]) -> None:
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - see close
        self._file.write(json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        """Forget the rows; their number stays."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


@attrs.define(kw_only=True, eq=False)
class Selection:
    """What a run is about.

    Attributes:
        jobs: The jobs asked for, in the order of the input.
        to_do: Those of them that have not ended.
        missing: Those that are done, but whose image is not here.
        besides: Inputs that never became a job, and files equal to an earlier one.
        needs: Images to be paid for, by model.
        kept: How many of the jobs ended in an earlier run.
        paid: How many of the jobs an earlier run has paid for and not finished.
        doubles: Inputs that were given before.
        paid_again: Images that are paid for although they were submitted under another signature.
        similar: Images whose address differs only in its query from one that was submitted.
        is_complete: Whether all inputs have been read.
    """

    jobs: Numbers = attrs.field(factory=Numbers)
    to_do: array[int] = attrs.field(factory=lambda: array("q"))
    missing: array[int] = attrs.field(factory=lambda: array("q"))
    besides: RowsBesides = attrs.field(factory=RowsBesides)
    needs: Counter[Model] = attrs.field(factory=Counter)
    kept: int = 0
    paid: int = 0
    doubles: int = 0
    paid_again: int = 0
    similar: int = 0
    is_complete: bool = False
    _equal: set[EqualFile] = attrs.field(factory=set, init=False)
    _released: int = attrs.field(default=0, init=False)
    _is_open: bool = attrs.field(default=False, init=False)
    _news: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    @property
    def asked(self) -> int:
        """How many different inputs there are so far."""
        return len(self.jobs) + self.besides.refused + self.besides.equal

    def add_equal_file(self, number: int, path: str, first: str) -> bool:
        """Give a file a row of its own that is equal to a job's; return False where it is that file again."""
        file = EqualFile(number, path)
        if path == first or file in self._equal:
            return False
        self._equal.add(file)
        self.besides.add_equal(len(self.jobs), file)
        return True

    def release(self) -> None:
        """Let what has been read so far be worked off."""
        self._released, self._is_open = len(self.to_do), True
        self._notify()

    def complete(self) -> None:
        """Note that nothing more will be read; what has not been released stays as it is."""
        self.is_complete = True
        self._notify()

    async def opened(self) -> bool:
        """Wait until something may be worked off; False where all has been read and nothing may."""
        while not self._is_open and not self.is_complete:
            await self._news.wait()
        return self._is_open

    async def released(self, start: int) -> array[int]:
        """Wait for jobs to do beyond the first ``start``; return some, or none where there are no more."""
        while self._released <= start and not self.is_complete:
            await self._news.wait()
        return self.to_do[start : min(self._released, start + _PAGE)]

    async def missing_beyond(self, start: int) -> array[int]:
        """Wait for missing images beyond the first ``start``; return some, or none where that is all."""
        while len(self.missing) <= start and not self.is_complete:
            await self._news.wait()
        return self.missing[start : start + _PAGE]

    def _notify(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


@attrs.define(eq=False)
class Feed(AsyncIterator[Job]):
    """The jobs of a selection that have not ended, as a batch takes them.

    Attributes:
        selection: The selection.
        wanted: Reads jobs by their numbers.
    """

    selection: Selection
    wanted: Callable[[Iterable[int]], Iterator[Job]]
    _taken: int = attrs.field(default=0, init=False)
    _page: Iterator[Job] = attrs.field(factory=lambda: iter(()), init=False)

    async def __anext__(self) -> Job:
        while True:
            for job in self._page:
                return job
            numbers = await self.selection.released(self._taken)
            if not numbers:
                raise StopAsyncIteration
            self._taken += len(numbers)
            self._page = self.wanted(numbers)


# --- the folder -----------------------------------------------------------------------------------------


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
