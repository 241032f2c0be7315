"""Gives every job of a batch a file name of its own, so that no result overwrites another.

A caller's function may return one name twice. The second job is then refused before anything is paid for it.
A job that is paid already, by an earlier release or under a name that changed since, gets a name after its
key instead.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import attrs

from flux_async.batch.inputs import is_safe_name, safe_name
from flux_async.errors import InvalidInput, shown
from flux_async.files.image_writer import PICTURE_ENDINGS
from flux_async.job_state import JobState
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import Job, JobKey

logger: logging.Logger = logging.getLogger("flux_async")


def folded_name(name: str) -> str:
    """Return a name as the least exact disk compares it: ``Été.PNG`` and ``été`` in any encoding are one."""
    path = PurePosixPath(name)
    if path.suffix.lower() in PICTURE_ENDINGS:  # it gives way to the ending that the content calls for
        name = str(path.with_suffix(""))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


@attrs.define(kw_only=True, eq=False)
class FileNames:
    """The file names of one batch.

    Attributes:
        journal: Holds the names.
        name_file: The caller's function, or None: a name after the job's key, which no other key has.
        place: Where the files go, for messages; None where the batch saves none.
    """

    journal: Journal
    name_file: Callable[[Job], str] | None
    place: str | None

    def check(self, job: Job) -> str:
        """Return the name of a job's file.

        Raises:
            InvalidInput: It is none, or the caller's function failed.
        """
        if self.place is None:
            return ""
        if self.name_file is None:
            return safe_name(job.key)
        try:
            name = self.name_file(job)
        except Exception as error:  # noqa: BLE001 - the caller's own function
            raise InvalidInput(f"name_file failed for job {job.key}: {shown(error)}.") from None
        if not is_safe_name(name):
            raise InvalidInput(f"{shown(name)} is no name for a file in {self.place}.")
        return name

    async def refused(
        self, jobs: Sequence[StoredJob], names: Mapping[JobKey, str]
    ) -> dict[int, InvalidInput]:
        """Give jobs their checked names; return, by number, those that must not be submitted under theirs."""
        if self.place is None or self.name_file is None:
            return {}
        taken = await self.journal.take_names(
            {stored.number: folded_name(names[stored.job.key]) for stored in jobs}
        )
        return {
            stored.number: InvalidInput(
                f"name_file returns {shown(names[stored.job.key])} for job {stored.job.key}, and job "
                f"{taken[stored.number]} has that file name.",
                advice="Return another name for each job; nothing was charged for this one.",
            )
            for stored in jobs
            if stored.number in taken and stored.job.state is JobState.PENDING
        }

    async def destination(self, folder: Path, stored: StoredJob) -> Path:
        """Return where an image of a job that is paid goes in a folder, without ending."""
        return folder / await self.name(stored)

    async def name(self, stored: StoredJob) -> str:
        """Return the name of the image of a job that is paid, without ending: no other job has it."""
        job = _job_of(stored)
        name = self.check(job)
        if self.name_file is not None:
            taken = await self.journal.take_names({stored.number: folded_name(name)})
            if stored.number in taken:
                name = safe_name(job.key)
                words = "job %s has the file name of job %s; its image goes to %s"
                logger.warning(words, job.key, taken[stored.number], name)
        return name


def _job_of(stored: StoredJob) -> Job:
    return Job(key=stored.job.key, request=stored.read())
