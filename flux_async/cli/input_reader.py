"""Reads the inputs of a run into its journal, while the run submits what has been read.

Reading, adding and submitting each go at their own speed: a thread reads rows and makes requests of them, the
journal adds them a chunk at a time, and the batch takes them from the journal as submits are allowed. Nothing
of a chunk is submitted before its cost was agreed to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

import anyio.from_thread
import anyio.to_thread
import attrs
import click
from anyio.streams.memory import MemoryObjectSendStream

from flux_async import (
    ConfigurationError,
    EditRequest,
    FluxClient,
    FluxError,
    InDoubtPolicy,
    InvalidInput,
    Job,
    LocalImage,
    Model,
)
from flux_async.api.models_table import AnyModel
from flux_async.api.stored_requests import read_model, store_request
from flux_async.cli.advice import error_text
from flux_async.cli.credits import Spending
from flux_async.cli.display import RunDisplay, notify
from flux_async.cli.input_rows import InputRow
from flux_async.cli.inputs import Inputs
from flux_async.cli.list_files import InputStopped
from flux_async.cli.results import refused_row
from flux_async.cli.run_folder import RunFolder, Selection
from flux_async.cli.run_options import RunOptions
from flux_async.clock import Clock
from flux_async.job_state import FINAL, JobState, next_attempt, next_check
from flux_async.journal.adding import Added
from flux_async.journal.store import StoredJob
from flux_async.models import JobKey
from flux_async.policy.image_urls import suspicion

T = TypeVar("T")

_FIRST, _CHUNK = 500, 2000
"""Rows added in one commit; submits begin after the first. A key is a digest, so each row changes another
page of the index: 2,000 rows a commit write three quarters of the bytes of 1,000. With 4,000 the commits of
the first submit wait 3 s behind them, in place of 1.2 s (200,000 rows)."""
_PASS_ON_S = 0.2
"""Reading files is slow: the rows read so far are passed on after this time, however few they are."""


class Row(NamedTuple):
    """An input that has been read: a request with its key, or the reason why it is none."""

    given: InputRow
    key: JobKey
    request: str
    model: AnyModel | None
    image: LocalImage | None
    refusal: InvalidInput | None


@attrs.define(kw_only=True, eq=False)
class InputReader:
    """Reads inputs into the journal of a folder, and selects the jobs of the run.

    Attributes:
        client: Refuses images that the vendor can certainly not fetch.
        folder: Its journal receives the jobs.
        options: The options of the run.
        spending: Decides what may be submitted and paid for.
        display: Shows refused inputs, and jobs that ended in an earlier run.
        clock: The reader of time.
        selection: The jobs of the run.
        is_halted: Whether nothing more is submitted.
    """

    client: FluxClient
    folder: RunFolder
    options: RunOptions
    spending: Spending
    display: RunDisplay
    clock: Clock
    selection: Selection = attrs.field(factory=Selection, init=False)
    is_halted: bool = attrs.field(default=False, init=False)
    _inputs: Inputs | None = attrs.field(default=None, init=False)
    _pays_again: bool | None = attrs.field(default=None, init=False)
    _pays_similar: bool | None = attrs.field(default=None, init=False)

    async def read(self, inputs: Iterable[InputRow]) -> Selection:
        """Read all inputs. A job that an earlier run was given is selected, not added again.

        Raises:
            ConfigurationError: The rest of a list cannot be read; the inputs before it have been read.
        """
        self._inputs = given = inputs if isinstance(inputs, Inputs) else Inputs(iter(inputs))
        reading = ReadingThread(given, lambda one: read_row(one, self._make_job), self.clock)
        await reading.each_chunk(self._take)
        return self.selection

    async def _take(self, rows: list[Row], *, is_last: bool) -> None:
        await self._add_chunk(rows)
        await self._release(is_last=is_last)

    async def select(self, jobs: Iterable[StoredJob]) -> Selection:
        """Select jobs that are in the journal already."""
        for stored in jobs:
            if self.selection.jobs.add(stored.number):
                self._select(stored)
        await self._release(is_last=True)
        return self.selection

    async def _release(self, *, is_last: bool) -> None:
        """Let the run submit what has been read so far, unless it is halted or the user has not agreed."""
        if self.is_halted:
            return
        if is_last:
            for words, style in self.selection.in_words():
                self.display.note(words, style)
        if await self.spending.may_submit(self.selection, is_last=is_last):
            self.selection.release()

    def halt(self) -> None:
        """Submit nothing more, and stop waiting for pipes and terminals; files are read to their end."""
        self.is_halted = True
        if self._inputs is not None:
            self._inputs.live.stop()

    def _make_job(self, given: InputRow) -> Job:
        job = self.options.job_for(given)
        self.client.check_reachable(job.request)
        if not given.is_file and (suspect := suspicion(given.image)) is not None:
            what, meant = suspect
            words = f"{given.place}: {given.image} looks mistyped: {what}."
            self.display.suspected(f"{words} Perhaps {meant} is meant." if meant else words)
        return job

    # --- a chunk ------------------------------------------------------------------------------------------

    async def _add_chunk(self, rows: list[Row]) -> None:
        good = [row for row in rows if row.refusal is None]
        added = await self._add(good)
        if await self._ask_about(good, added):
            repeats = [number for number, one in enumerate(added) if one.number is None and not one.conflict]
            paid = await self._add([good[number] for number in repeats])
            for number, one in zip(repeats, paid, strict=True):
                added[number] = one
        results = iter(added)
        for row in rows:
            if row.refusal is None:
                self._select_added(row, next(results))
            else:
                self._refuse(row.given, row.refusal)

    async def _ask_about(self, rows: list[Row], added: list[Added]) -> bool:
        """Ask the questions that these rows raise, each once; return whether an answer was yes."""
        again = [(row, one.paid_as) for row, one in zip(rows, added, strict=True) if one.paid_as is not None]
        similar = [
            (row, one.similar) for row, one in zip(rows, added, strict=True) if one.similar is not None
        ]
        is_agreed = False
        if again and self._pays_again is None:
            row, other = again[0]
            is_agreed = self._pays_again = await self.spending.may_pay_again(
                len(again), row.given.place, other
            )
        if similar and self._pays_similar is None:
            row, other = similar[0]
            self._pays_similar = await self.spending.may_pay_similar(len(similar), row.given.place, other)
            is_agreed = is_agreed or self._pays_similar
        return is_agreed

    async def _add(self, rows: list[Row]) -> list[Added]:
        first_wins = {row.key: row.image for row in reversed(rows) if row.image is not None}
        return await self.folder.journal.add_entries(
            [(row.key, row.request) for row in rows],
            sources=first_wins,
            is_chosen=self.selection.jobs.__contains__,
            pays_again=self._pays_again is True,
            pays_similar=self._pays_similar is True,
        )

    def _select_added(self, row: Row, added: Added) -> None:
        selection = self.selection
        if added.number is None:
            self._refuse(row.given, added.conflict or not_paid_for(added))
            return
        if not selection.jobs.add(added.number):
            first = None if added.stored is None or row.image is None else added.stored.source
            if first is None or not selection.add_equal_file(added.number, row.given.image, first):
                selection.duplicates += 1
        elif added.stored is not None:
            self._select(added.stored)
        else:
            selection.to_do.append(added.number)
            model = row.model or Model.PRO
            selection.needs[model] += 1
            self.add_further(model, 0)
        selection.paid_again += added.paid_as is not None
        selection.similar += added.similar is not None

    def _select(self, stored: StoredJob) -> None:
        """Select a job that an earlier run was given, by its state."""
        selection, state = self.selection, stored.job.state
        if stored.number in self.folder.settled_here:
            return  # this run has settled it before it read this row
        if state not in FINAL:
            selection.to_do.append(stored.number)
            is_doubt = state is JobState.IN_DOUBT
            resubmits = self.options.in_doubt is InDoubtPolicy.RESUBMIT
            is_found = is_doubt and self.folder.reader.found_task(stored.number) is not None
            selection.paid += is_found or state in {JobState.SUBMITTED, JobState.GENERATED}
            if state is JobState.PENDING or (is_doubt and not is_found and resubmits):
                selection.needs[stored.model] += 1
            self.add_further(read_model(stored.request), stored.job.redone)
        elif state is JobState.DONE and self.options.download and not self.folder.has_image(stored):
            selection.missing.append(stored.number)
        elif next_check(stored.job, self.options.checks) is not None:
            selection.unchecked += 1
            if self.options.checks.until_clean > 1:
                selection.to_do.append(stored.number)
                self.add_further(read_model(stored.request), stored.job.redone)
        elif next_attempt(stored.job, self.options.checks) is not None:
            selection.improvable += 1
            selection.to_do.append(stored.number)
            self.add_further(read_model(stored.request), stored.job.redone)
        else:
            selection.kept += 1
            notify(self.display.settled, self.folder.row(stored))

    def add_further(self, own: AnyModel, redone: int) -> None:
        """Count the attempts that an image may still have for a better result."""
        self.selection.further.update(model or own for model in self.options.checks.models_left(redone))

    def _refuse(self, given: InputRow, error: FluxError) -> None:
        row = refused_row(given.image, given.name, error)
        self.selection.extra.add_refused(len(self.selection.jobs), row)
        self.display.refused(row, refusal_text(given, error))


class Work(Protocol[T]):
    """Receives what was read, and whether it is the end."""

    async def __call__(self, rows: list[T], *, is_last: bool) -> None:
        """Take a chunk."""


@attrs.define(eq=False)
class ReadingThread(Generic[T]):
    """Reads inputs in a thread, a chunk at a time; what a pipe holds is passed on before it is waited for.

    Attributes:
        inputs: The inputs.
        make: Makes of each what is passed on.
        clock: The reader of time.
    """

    inputs: Inputs
    make: Callable[[InputRow], T]
    clock: Clock
    _list_error: click.ClickException | None = attrs.field(default=None, init=False)

    async def each_chunk(self, work: Work[T]) -> None:
        """Read all inputs, and give them to ``work``.

        Raises:
            ConfigurationError: The rest of a list cannot be read; the inputs before it have been read.
        """
        failure: FluxError | None = None
        send, receive = anyio.create_memory_object_stream[tuple[list[T], bool]](1)
        async with anyio.create_task_group() as group:
            group.start_soon(self._read, send)
            with receive:
                try:
                    async for rows, is_last in receive:
                        await work(rows, is_last=is_last)
                except FluxError as error:
                    failure = error  # raised below, or the group would wrap it
                finally:
                    self.inputs.live.stop()
        if failure is not None:
            raise failure
        if self._list_error is not None:
            raise ConfigurationError(
                self._list_error.message, advice="Mend the list and run the same command again."
            )

    async def _read(self, send: MemoryObjectSendStream[tuple[list[T], bool]]) -> None:
        with send:
            await anyio.to_thread.run_sync(self._read_in_thread, send)

    def _read_in_thread(self, send: MemoryObjectSendStream[tuple[list[T], bool]]) -> None:
        rows: list[T] = []
        passed_on, size = self.clock.monotonic(), _FIRST

        def pass_on(*, is_last: bool) -> None:
            nonlocal rows, passed_on, size
            if rows or is_last:
                anyio.from_thread.run(send.send, (rows, is_last))
                rows, passed_on, size = [], self.clock.monotonic(), _CHUNK

        self.inputs.live.on_wait = partial(pass_on, is_last=False)
        try:
            try:
                for one in self.inputs:
                    rows.append(self.make(one))
                    is_slow = one.is_file and self.clock.monotonic() - passed_on > _PASS_ON_S
                    if len(rows) >= size or is_slow:
                        pass_on(is_last=False)
            except click.ClickException as error:
                self._list_error = error
            except InputStopped:
                pass
            pass_on(is_last=True)
        except (anyio.BrokenResourceError, CancelledError):
            return  # the run has ended


def read_row(given: InputRow, make_job: Callable[[InputRow], Job]) -> Row:
    """Return the request of an input, or why it is none."""
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


def refusal_text(given: InputRow, error: FluxError) -> str:
    """Return the message about a refused input, which begins with its place."""
    words = error_text(error)
    return words if words.startswith(given.place) else f"{given.place}: {words}"


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
