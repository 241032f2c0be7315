"""Gives every job of a batch its own file name, so that no result overwrites another.

If a caller's function returns one name twice, the second job is refused before anything is paid for it. A job
that is paid already, under a name that changed since, is named after its key instead.
"""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import attrs

from flux_async.batch.job_store import JobStore
from flux_async.batch.result_files import RESERVED
from flux_async.errors import InvalidInput, shown
from flux_async.files.image_writer import IMAGE_ENDINGS
from flux_async.job_state import JobState
from flux_async.journal.store import StoredJob
from flux_async.models import Job, JobKey

logger: logging.Logger = logging.getLogger("flux_async")


_PLAIN = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,98}[a-z0-9_-])?")
_REFUSED_SOMEWHERE = frozenset('<>:"|?*\\')
_DEVICE = re.compile(
    r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])", re.IGNORECASE
)
_LONGEST_NAME = 180


def folded_name(name: str) -> str:
    """Return a name as the least exact disk compares it: ``Été.PNG`` and ``été`` are one, in any encoding."""
    path = PurePosixPath(name)
    if path.suffix.lower() in IMAGE_ENDINGS:  # it is replaced by the ending of the content
        name = str(path.with_suffix(""))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def safe_name(key: str) -> str:
    """Return a file name for a key: the key itself if it is one, else a part of it and its digest.

    No two keys have the same name, also on disks that ignore case, and also after the ending follows the
    content: ``a.png`` and ``a.jpg`` would both become ``a.jpg``.
    """
    has_ending = PurePosixPath(key).suffix in IMAGE_ENDINGS
    if _PLAIN.fullmatch(key) and not has_ending and not _is_device(key):
        return key
    words = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[:60]
    return f"{words or 'job'}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def is_safe_name(name: object) -> bool:
    """Whether ``name`` is the name of a file inside its folder, on every system.

    Names that only some systems refuse (``a:b``, ``con.txt``, a dot or a space at the end) are refused on all
    of them: folders are copied between systems.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.encode()) <= _LONGEST_NAME:
        return False
    parts = name.split("/")
    return all(_is_safe_part(part) for part in parts)


def _is_safe_part(part: str) -> bool:
    return bool(part) and part[-1] not in ". " and not _REFUSED_SOMEWHERE & set(part) and not _is_device(part)


def _is_device(part: str) -> bool:
    """Whether a name is a device on Windows, whatever its ending: ``NUL``, ``aux.txt``."""
    return bool(_DEVICE.fullmatch(part.partition(".")[0].rstrip()))


@attrs.define(kw_only=True, eq=False)
class FileNames:
    """The file names of one batch.

    Attributes:
        journal: Holds the names.
        name_file: The caller's function, or None: the name is made from the job's key, which is unique.
        place: Where the files go, for messages; None if the batch saves none.
        reserved: Folders in which no file may be named.
    """

    journal: JobStore
    name_file: Callable[[Job], str] | None
    place: str | None
    reserved: tuple[str, ...] = ()

    def check(self, job: Job) -> str:
        """Return the name of a job's file.

        Raises:
            InvalidInput: It is invalid, or the caller's function failed.
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
        for folder in self.reserved:
            if folded_name(name).startswith(f"{folder}/"):
                raise InvalidInput(f"{shown(name)} lies in {folder}/, which holds {RESERVED[folder]}.")
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

    async def name(self, stored: StoredJob) -> str:
        """Return the unique name of the image of a paid job, without ending."""
        job = stored.as_job()
        name = self.check(job)
        if self.name_file is not None:
            taken = await self.journal.take_names({stored.number: folded_name(name)})
            if stored.number in taken:
                name = safe_name(job.key)
                words = "job %s has the file name of job %s; its image goes to %s"
                logger.warning(words, job.key, taken[stored.number], name)
        return name
