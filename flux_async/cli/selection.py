"""What a run is about: grows while its inputs are read, and is worked off meanwhile.

A million inputs fit into memory: a job is held as its number in the journal, in eight bytes and a bit, and
what was refused waits in a temporary file for its line in the results.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import IO, NamedTuple

import attrs

from flux_async import Job
from flux_async.api.models_table import Model
from flux_async.cli.results import ResultRow

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
