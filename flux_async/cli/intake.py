"""Puts what was given into the journal, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import anyio.to_thread
import attrs
from anyio.lowlevel import checkpoint

from flux_async import EditRequest, FluxError, InvalidInput, Job, JobConflictError, JobKey, LocalImage
from flux_async.cli.advice import error_text
from flux_async.cli.given import Given
from flux_async.cli.results import ResultRow, refused_row
from flux_async.cli.run_folder import RunFolder, Selection, in_chunks
from flux_async.journal.store import StoredJob
from flux_async.lifecycle import FINAL, JobState
from flux_async.protocol.wire import store_request

_CHUNK = 500
_PAID = frozenset({JobState.SUBMITTED, JobState.GENERATED})


@attrs.define(kw_only=True, eq=False)
class Intake:
    """Takes inputs in, a few at a time.

    Attributes:
        folder: Whose journal receives them.
        make_job: Makes a job of an input, or raises :class:`InvalidInput`.
        download: Whether a picture that is not here is missing.
        on_kept: Told the row of every job that ended in an earlier run.
        on_refused: Told the row of every input that is no request, and what to say of it.
        on_taken: Told how many inputs there are so far.
    """

    folder: RunFolder
    make_job: Callable[[Given], Job]
    download: bool
    on_kept: Callable[[ResultRow], None]
    on_refused: Callable[[ResultRow, str], None]
    on_taken: Callable[[int], None] = lambda _: None
    selection: Selection = attrs.field(factory=Selection, init=False)

    async def take(self, inputs: Iterable[Given]) -> Selection:
        """Take in everything; what an earlier run was given is taken up, not doubled."""
        self.on_taken(0)
        for chunk in in_chunks(inputs, _CHUNK):
            await checkpoint()
            made = [(given, await self._made(given)) for given in chunk]
            stored = await self._add_all([job for _, job in made if isinstance(job, Job)])
            for given, job in made:
                found = stored[id(job)] if isinstance(job, Job) else job
                if isinstance(found, FluxError):
                    self._refuse(given, found)
                else:
                    self._choose(found)
            self.on_taken(self.selection.asked)
        return self.selection

    def choose(self, jobs: Iterable[StoredJob]) -> Selection:
        """Take jobs that the journal has already."""
        for stored in jobs:
            self._choose(stored)
        return self.selection

    async def _made(self, given: Given) -> Job | InvalidInput:
        if not given.is_file:
            return self._job(given)
        return await anyio.to_thread.run_sync(self._job, given)  # it reads the file

    def _job(self, given: Given) -> Job | InvalidInput:
        if given.refusal is not None:
            return InvalidInput(f"This row cannot be used: {given.refusal}.")
        try:
            return self.make_job(given)
        except InvalidInput as refusal:
            return refusal

    async def _add_all(self, jobs: list[Job]) -> dict[int, StoredJob | FluxError]:
        """Add a chunk at once; where one of it conflicts, each by itself."""
        try:
            stored = {found.job.key: found for found in await self._add(jobs)}
            return {id(job): stored[job.key] for job in jobs}
        except JobConflictError:
            return {id(job): await self._add_one(job) for job in jobs}

    async def _add_one(self, job: Job) -> StoredJob | FluxError:
        try:
            return (await self._add([job]))[0]
        except JobConflictError as conflict:
            return conflict

    async def _add(self, jobs: list[Job]) -> list[StoredJob]:
        entries = [(job.key, store_request(job.request)) for job in jobs]
        return await self.folder.journal.add(entries, sources=dict(_sources(jobs)))

    def _choose(self, stored: StoredJob) -> None:
        chosen = self.selection
        if stored.number in chosen.jobs:
            chosen.doubles += 1
            return
        chosen.jobs[stored.number] = None
        if stored.job.state not in FINAL:
            chosen.to_do.append(stored.number)
            chosen.paid += stored.job.state in _PAID
        elif stored.job.state is JobState.DONE and self.download and not self.folder.has_picture(stored):
            chosen.missing.append(stored.number)
        else:
            chosen.kept += 1
            self.on_kept(self.folder.row(stored))

    def _refuse(self, given: Given, error: FluxError) -> None:
        row = refused_row(given.image, given.name, error)
        self.selection.refused.append((len(self.selection.jobs), row))
        words = error_text(error)
        self.on_refused(row, words if words.startswith(given.place) else f"{given.place}: {words}")


def _sources(jobs: list[Job]) -> Iterator[tuple[JobKey, LocalImage]]:
    for job in jobs:
        image = job.request.input_image if isinstance(job.request, EditRequest) else ""
        if isinstance(image, LocalImage):
            yield job.key, image
