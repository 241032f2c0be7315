"""Reads the inputs of a run into its journal, while the run submits what has been read.

Three coroutines of work, each at its own speed: a thread reads rows and makes requests of them, the journal
adds them a chunk at a time, and the batch takes them from the journal as submits are allowed. Nothing of a
chunk is submitted before ``may_submit`` has agreed to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import CancelledError
from functools import partial
from typing import NamedTuple, TypeAlias

import anyio.from_thread
import anyio.to_thread
import attrs
import click
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from flux_async import ConfigurationError, EditRequest, FluxError, InvalidInput, Job, LocalImage, Model
from flux_async.api.stored_requests import read_model, store_request
from flux_async.cli.advice import error_text
from flux_async.cli.input_rows import InputRow
from flux_async.cli.inputs import Inputs
from flux_async.cli.list_files import InputStopped
from flux_async.cli.results import ResultRow, refused_row
from flux_async.cli.run_folder import RunFolder, Selection
from flux_async.clock import Clock, SystemClock
from flux_async.job_state import FINAL, JobState
from flux_async.journal.adding import Added
from flux_async.journal.store import StoredJob
from flux_async.models import JobKey

_FIRST, _CHUNK = 1000, 4000
"""Rows added in one commit; submits begin after the first. A key is a digest, so each row changes another
page of the index: 4,000 rows a commit write half the bytes of 1,000 (100,000 rows: 0.36 and 0.79 GB)."""
_PASS_ON_S = 0.2
"""Files are read whole: what has been read is passed on after so long, however little it is."""

_PAID = frozenset({JobState.SUBMITTED, JobState.GENERATED})


class Row(NamedTuple):
    """An input that has been read: a request with its key, or why it is none."""

    given: InputRow
    key: JobKey
    request: str
    model: Model | None
    image: LocalImage | None
    refusal: InvalidInput | None


_Chunk: TypeAlias = "tuple[list[Row], bool]"
"""Rows, and whether they are the last."""


async def _always(_selection: Selection, *, is_last: bool) -> bool:  # noqa: ARG001 - a callback's form
    return True


async def _never(_count: int, _place: str, _other: StoredJob) -> bool:
    return False


@attrs.define(kw_only=True, eq=False)
class Intake:
    """Takes inputs in.

    Attributes:
        folder: Whose journal receives them.
        make_job: Makes a job of an input, or raises :class:`InvalidInput`; called in a thread.
        download: Whether an image that is not here is missing.
        resubmits: Whether jobs in doubt are submitted again.
        on_kept: Receives the row of every job that ended in an earlier run.
        on_refused: Receives the row of every input that is no request, and what to say of it.
        may_submit: Says whether what has been read so far may be submitted; ``is_last`` after all of it.
        may_pay_again: Says whether images are to be paid for that were submitted under another signature: how
            many there are in this chunk, and the first one's place and earlier job. Asked once.
        may_pay_similar: Says the same of images whose address differs only in its query from a submitted one.
        clock: The reader of time.
    """

    folder: RunFolder
    make_job: Callable[[InputRow], Job]
    download: bool
    on_kept: Callable[[ResultRow], None]
    on_refused: Callable[[ResultRow, str], None]
    resubmits: bool = False
    may_submit: Callable[..., Awaitable[bool]] = _always
    may_pay_again: Callable[[int, str, StoredJob], Awaitable[bool]] = _never
    may_pay_similar: Callable[[int, str, StoredJob], Awaitable[bool]] = _never
    clock: Clock = attrs.field(factory=SystemClock)
    selection: Selection = attrs.field(factory=Selection, init=False)
    _inputs: Inputs | None = attrs.field(default=None, init=False)
    _pays_again: bool | None = attrs.field(default=None, init=False)
    _pays_similar: bool | None = attrs.field(default=None, init=False)
    _broke: click.ClickException | None = attrs.field(default=None, init=False)

    async def take(self, inputs: Iterable[InputRow]) -> Selection:
        """Take in everything; what an earlier run was given is taken up, not doubled.

        Raises:
            ConfigurationError: The rest of a list cannot be read; what came before it has been taken in.
        """
        self._inputs = given = inputs if isinstance(inputs, Inputs) else Inputs(iter(inputs))
        send, receive = anyio.create_memory_object_stream[_Chunk](1)
        async with anyio.create_task_group() as group:
            group.start_soon(self._read, given, send)
            await self._take_all(given, receive)
        if self._broke is not None:
            raise ConfigurationError(
                self._broke.message, advice="Mend the list and run the same command again."
            )
        return self.selection

    async def choose(self, jobs: Iterable[StoredJob]) -> Selection:
        """Take jobs that the journal has already."""
        for stored in jobs:
            if self.selection.jobs.add(stored.number):
                self._choose(stored)
        if await self.may_submit(self.selection, is_last=True):
            self.selection.release()
        return self.selection

    def stop(self) -> None:
        """Wait for no more inputs; what is in files is read to its end."""
        if self._inputs is not None:
            self._inputs.live.stop()

    async def _take_all(self, given: Inputs, receive: MemoryObjectReceiveStream[_Chunk]) -> None:
        with receive:
            try:
                async for rows, is_last in receive:
                    await self._take(rows)
                    if await self.may_submit(self.selection, is_last=is_last):
                        self.selection.release()
            finally:
                given.live.stop()

    # --- in the thread ------------------------------------------------------------------------------------

    async def _read(self, given: Inputs, send: MemoryObjectSendStream[_Chunk]) -> None:
        with send:
            await anyio.to_thread.run_sync(self._read_rows, given, send)

    def _read_rows(self, given: Inputs, send: MemoryObjectSendStream[_Chunk]) -> None:
        rows: list[Row] = []
        passed_on, size = self.clock.monotonic(), _FIRST

        def pass_on(*, is_last: bool) -> None:
            nonlocal rows, passed_on, size
            if rows or is_last:
                anyio.from_thread.run(send.send, (rows, is_last))
                rows, passed_on, size = [], self.clock.monotonic(), _CHUNK

        given.live.on_wait = partial(pass_on, is_last=False)
        try:
            try:
                for one in given:
                    rows.append(read_row(one, self.make_job))
                    is_slow = one.is_file and self.clock.monotonic() - passed_on > _PASS_ON_S
                    if len(rows) >= size or is_slow:
                        pass_on(is_last=False)
            except click.ClickException as trouble:
                self._broke = trouble
            except InputStopped:
                pass
            pass_on(is_last=True)
        except (anyio.BrokenResourceError, CancelledError):
            return  # nobody takes them any more

    # --- a chunk ------------------------------------------------------------------------------------------

    async def _take(self, rows: list[Row]) -> None:
        good = [row for row in rows if row.refusal is None]
        added = await self._add(good)
        if await self._is_agreed(good, added):
            repeats = [number for number, one in enumerate(added) if one.number is None and not one.conflict]
            paid = await self._add([good[number] for number in repeats])
            for number, one in zip(repeats, paid, strict=True):
                added[number] = one
        found = iter(added)
        for row in rows:
            if row.refusal is None:
                self._sort(row, next(found))
            else:
                self._refuse(row.given, row.refusal)

    async def _is_agreed(self, rows: list[Row], added: list[Added]) -> bool:
        """Ask what has not been asked; return whether anything was agreed to now."""
        again = [(row, one.paid_as) for row, one in zip(rows, added, strict=True) if one.paid_as is not None]
        similar = [
            (row, one.similar) for row, one in zip(rows, added, strict=True) if one.similar is not None
        ]
        is_new = False
        if again and self._pays_again is None:
            row, other = again[0]
            is_new = self._pays_again = await self.may_pay_again(len(again), row.given.place, other)
        if similar and self._pays_similar is None:
            row, other = similar[0]
            agreed = await self.may_pay_similar(len(similar), row.given.place, other)
            self._pays_similar, is_new = agreed, agreed or is_new
        return is_new

    async def _add(self, rows: list[Row]) -> list[Added]:
        return await self.folder.journal.add_entries(
            [(row.key, row.request) for row in rows],
            sources={
                row.key: row.image for row in reversed(rows) if row.image is not None
            },  # the first counts
            is_chosen=self.selection.jobs.__contains__,
            pays_again=self._pays_again is True,
            pays_similar=self._pays_similar is True,
        )

    def _sort(self, row: Row, added: Added) -> None:
        chosen = self.selection
        if added.number is None:
            self._refuse(row.given, added.conflict or not_paid_for(added))
        elif not chosen.jobs.add(added.number):
            first = None if added.stored is None or row.image is None else added.stored.source
            if first is None or not chosen.add_equal_file(added.number, row.given.image, first):
                chosen.doubles += 1
        elif added.stored is not None:
            self._choose(added.stored)
        else:
            chosen.to_do.append(added.number)
            chosen.needs[row.model or Model.PRO] += 1
        if added.number is not None:
            chosen.paid_again += added.paid_as is not None
            chosen.similar += added.similar is not None

    def _choose(self, stored: StoredJob) -> None:
        """Sort a job that an earlier run was given."""
        chosen, state = self.selection, stored.job.state
        if stored.number in self.folder.settled_here:
            return  # this run took it up before it came to this row
        if state not in FINAL:
            chosen.to_do.append(stored.number)
            is_doubt = state is JobState.IN_DOUBT
            is_found = is_doubt and self.folder.reader.found_task(stored.number) is not None
            chosen.paid += is_found or state in _PAID
            if state is JobState.PENDING or (is_doubt and not is_found and self.resubmits):
                chosen.needs[read_model(stored.request)] += 1
        elif state is JobState.DONE and self.download and not self.folder.has_picture(stored):
            chosen.missing.append(stored.number)
        else:
            chosen.kept += 1
            self.on_kept(self.folder.row(stored))

    def _refuse(self, given: InputRow, error: FluxError) -> None:
        row = refused_row(given.image, given.name, error)
        self.selection.besides.refuse(len(self.selection.jobs), row)
        words = error_text(error)
        self.on_refused(row, words if words.startswith(given.place) else f"{given.place}: {words}")


def read_row(given: InputRow, make_job: Callable[[InputRow], Job]) -> Row:
    """Make a request of an input, or say why it is none."""
    try:
        if given.refusal is not None:
            raise InvalidInput(f"This row cannot be used: {given.refusal}.")  # noqa: TRY301 - one way out
        job = make_job(given)
    except InvalidInput as refusal:
        return Row(given, JobKey(""), "", None, None, refusal)
    request = job.request
    image = request.input_image if isinstance(request, EditRequest) else None
    source = image if isinstance(image, LocalImage) else None
    return Row(given, job.key, store_request(request), request.model, source, None)


def not_paid_for(added: Added) -> FluxError:
    """Return why an input is refused that this folder has submitted before, or perhaps has."""
    if added.paid_as is not None:
        return InvalidInput(
            f"The same image is job {added.paid_as.job.key} of this folder, perhaps under another signature. "
            "It was not paid for again.",
            advice="Give the row that key in a column 'key', or pay for it again with --yes.",
        )
    key = "" if added.similar is None else added.similar.job.key
    return InvalidInput(
        f"The address differs only in its query from that of job {key} of this folder, which was submitted; "
        "this one was not, as you answered.",
        advice="If it is another image, give the row a key of its own in a column 'key', or add --yes.",
    )
