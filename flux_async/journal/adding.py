"""Adds jobs to a journal: new ones, ones that are there already, and ones that are there under another key.

A key names one job. The same key with another request is a conflict, with one exception: file stores sign the
address of an image anew each day. Such a job is the same job. While it waits for a submit, the newer address
replaces the older one, as an event; a submitted job keeps its address.

Without a key of the caller's own, a job is named by its request, with the address. A new signature then makes
a new job for an image that has been paid for; see :attr:`Added.paid_as`. If the rest of the query differs
(``?id=17``, ``?id=18``), only the caller knows whether it is another image; see :attr:`Added.similar`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from flux_async.api.stored_requests import read_request, without_terms
from flux_async.errors import InvalidInput, JobConflictError
from flux_async.images import LocalImage
from flux_async.job_state import JobSnapshot, JobState
from flux_async.journal.lost_records import has_lost_submits, take_lost_submit
from flux_async.journal.rows import StoredJob, put_in_doubt, select_jobs
from flux_async.models import JobKey, digest_key
from flux_async.policy.image_urls import bare_url, is_resigned, unsigned_url

if TYPE_CHECKING:
    import sqlite3

logger: logging.Logger = logging.getLogger("flux_async")

_PAID_AGAIN = (
    "%d jobs are about images that this journal has submitted under another signature of their address: they "
    "will be paid for again. Give jobs keys of their own to make them the same jobs"
)
_SIMILAR = (
    "%d jobs have addresses that differ only in the query from ones that an earlier run of this journal has "
    "submitted: they will be paid for. If they are the same images, give jobs keys of their own"
)
_IMAGE = "inputImage"
_IMAGE_BEGINS = f'"{_IMAGE}":"'
_UNSUBMITTED = frozenset({JobState.PENDING, JobState.FAILED})
_AT_ONCE = 1000
_NEW = "trace, added_at, priority, key, request, address, bare_address"


class Added(NamedTuple):
    """The result of adding one entry.

    Attributes:
        number: The job's number; None if the entry was not added.
        stored: The job if it was there before, or is in doubt; None if it is new.
        conflict: The error if the entry's key has another request.
        paid_as: A job that was submitted for the same image, perhaps under another signature.
        similar: A job of an earlier run that was submitted for an address that differs only in its query.
    """

    number: int | None
    stored: StoredJob | None = None
    conflict: JobConflictError | None = None
    paid_as: StoredJob | None = None
    similar: StoredJob | None = None


class Addresses(NamedTuple):
    """Digests of the address of a request's image, by which other jobs of the image are found.

    Attributes:
        unsigned: Of the address without its signature; None if the request has no address.
        bare: Of the address without its query; None if no query is left without the signature.
    """

    unsigned: int | None = None
    bare: int | None = None


@attrs.define(kw_only=True)
class EarlierRuns:
    """Finds the jobs of earlier runs whose addresses differ only in their query.

    Attributes:
        newest: The number of their newest job.
    """

    newest: int = 0
    _skipped: dict[int, int] = attrs.field(factory=dict, init=False)

    def jobs_at(
        self,
        bare: int,
        page: Callable[[int, int], list[StoredJob]],
        is_irrelevant: Callable[[StoredJob], bool],
    ) -> Iterator[StoredJob]:
        """Yield the jobs whose address without its query has this digest.

        Irrelevant jobs at the front are skipped once for all: otherwise each of ten thousand rows at one
        address would read all rows before it.

        Args:
            bare: The digest.
            page: Returns the first jobs with such an address after a number.
            is_irrelevant: Returns whether a job is left out, from now on.
        """
        at_front, after = True, self._skipped.get(bare, 0)
        while after < self.newest and (found := page(bare, after)):
            for stored in found:
                after = stored.number
                if after > self.newest:
                    return
                if not is_irrelevant(stored):
                    at_front = False
                    yield stored
                elif at_front:
                    self._skipped[bare] = after


@attrs.define(kw_only=True)
class Adding:
    """Adds entries in one transaction.

    Attributes:
        connection: The journal.
        at: Seconds since the epoch.
        earlier: The jobs of earlier runs.
        is_chosen: Returns by its number whether a job is part of the run already: its address stays.
        pays_again: Whether an image that was submitted, perhaps under another signature, becomes a new job.
        pays_similar: Whether an address that differs only in its query from a submitted one becomes a new
            job.
        trace: The context of the trace of new jobs.
        priority: Priority of new jobs.
        similar_page: Returns the jobs at an address without its query, after a number; None reads the
            journal.
    """

    connection: sqlite3.Connection
    at: float
    earlier: EarlierRuns
    is_chosen: Callable[[int], bool]
    pays_again: bool = True
    pays_similar: bool = True
    trace: str | None = None
    priority: int = 0
    similar_page: Callable[[int, int], list[StoredJob]] | None = None
    _here: set[int] = attrs.field(factory=set, init=False)
    _has_lost_submits: bool = attrs.field(default=False, init=False)

    def add(self, entries: Sequence[tuple[JobKey, str]], sources: Mapping[JobKey, LocalImage]) -> list[Added]:
        """Add the entries that are not there yet; return the result of each, in order."""
        self._has_lost_submits = has_lost_submits(self.connection)
        added: list[Added] = []
        for at in range(0, len(entries), _AT_ONCE):
            some = entries[at : at + _AT_ONCE]
            if (first := self._add_if_all_new(some, sources)) is not None:
                added.extend(map(Added, range(first, first + len(some))))
            else:
                added.extend(self._add(key, request, sources.get(key)) for key, request in some)
        return added

    def add_all(
        self, entries: Sequence[tuple[JobKey, str]], sources: Mapping[JobKey, LocalImage]
    ) -> list[StoredJob]:
        """Add the entries that are not there yet; return all jobs, each once, in order of arrival.

        Raises:
            JobConflictError: An entry's key has another request.
        """
        jobs: dict[int, StoredJob] = {}
        added = self.add(entries, sources)
        for (key, request), (number, stored, conflict, *_) in zip(entries, added, strict=True):
            if conflict is not None:
                raise conflict
            if number is not None and number not in jobs:
                jobs[number] = stored or self._new_job(number, key, request, sources.get(key))
        if again := sum(one.paid_as is not None for one in added):
            logger.warning(_PAID_AGAIN, again)
        if similar := sum(one.similar is not None for one in added):
            logger.warning(_SIMILAR, similar)
        return [jobs[number] for number in sorted(jobs)]

    def _new_job(self, number: int, key: JobKey, request: str, source: LocalImage | None) -> StoredJob:
        path, folder = (None, None) if source is None else (source.path, source.folder)
        return StoredJob(
            number=number,
            request=request,
            job=JobSnapshot(key=key),
            source=path,
            source_folder=folder,
            trace=self.trace,
            added_at=self.at,
            priority=self.priority,
        )

    # --- new jobs -----------------------------------------------------------------------------------------

    def _add_if_all_new(
        self, entries: Sequence[tuple[JobKey, str]], sources: Mapping[JobKey, LocalImage]
    ) -> int | None:
        """Add entries whose keys and images are all new; return the first one's number, or None if not so.

        Nearly all chunks of a long list are so, and are added faster together.
        """
        if sources or self._has_lost_submits or self.similar_page is not None:
            return None
        rows = [(key, request, *addresses_of(request)) for key, request in entries]
        images = {number for row in rows for number in row[2:] if number is not None}
        unsigned = {row[2] for row in rows}
        if len({row[0] for row in rows}) < len(rows) or None in unsigned or len(unsigned) < len(rows):
            return None
        if self._has_any("key", [row[0] for row in rows]) or self._has_any("address", images):
            return None
        if self.earlier.newest and self._has_any("bare_address", images):
            return None
        first = int(self.connection.execute("SELECT coalesce(max(number), 0) + 1 FROM job").fetchone()[0])
        common = (self.trace, self.at, self.priority)
        self.connection.executemany(
            f"INSERT INTO job (number, {_NEW}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((number, *common, *row) for number, row in enumerate(rows, start=first)),
        )
        self._here.update(range(first, first + len(rows)))
        return first

    def _has_any(self, column: str, values: Collection[object]) -> bool:
        marks = ",".join("?" * len(values))
        sql = f"SELECT 1 FROM job WHERE {column} IN ({marks}) LIMIT 1"
        return self.connection.execute(sql, tuple(values)).fetchone() is not None

    def _add(self, key: JobKey, request: str, source: LocalImage | None) -> Added:
        addresses = addresses_of(request)
        cursor = self.connection.execute(
            f"INSERT OR IGNORE INTO job ({_NEW}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.trace, self.at, self.priority, key, request, *addresses),
        )
        if not cursor.rowcount:
            return self._add_known(key, request, source)
        number = int(cursor.lastrowid or 0)
        if source is not None:
            self._write_source(key, source)
        paid_as, similar = self._submitted_as(number, key, request, addresses)
        if (paid_as is not None and not self.pays_again) or (similar is not None and not self.pays_similar):
            self.connection.execute("DELETE FROM job WHERE number = ?", (number,))
            return Added(None, paid_as=paid_as, similar=similar)
        self._here.add(number)
        stored = None
        if self._has_lost_submits and (submitted_at := take_lost_submit(self.connection, key)) is not None:
            put_in_doubt(self.connection, key, submitted_at, self.at)
            (stored,) = select_jobs(self.connection, "key = ?", key)
        return Added(number, stored, paid_as=paid_as, similar=similar)

    def _write_source(self, key: JobKey, source: LocalImage) -> None:
        sql = "UPDATE job SET source = ?, source_folder = ? WHERE key = ?"
        self.connection.execute(sql, (_storable(source.path), _storable(source.folder), key))

    # --- jobs that are there already ----------------------------------------------------------------------

    def _add_known(self, key: JobKey, request: str, source: LocalImage | None) -> Added:
        """Return the result for a job that was there; its first entry in a run renews source and address."""
        (stored,) = select_jobs(self.connection, "key = ?", key)
        number = stored.number
        is_given = number in self._here or self.is_chosen(number)
        if source is not None and not is_given:
            self._write_source(key, source)
            (stored,) = select_jobs(self.connection, "key = ?", key)
        self._here.add(number)
        if stored.request == request:
            return Added(number, stored)
        conflict = _conflict_of(stored, request, is_given=is_given)
        if conflict is not None:
            return Added(None, conflict=conflict)
        if not is_given and stored.job.state in _UNSUBMITTED:
            stored = self._renew(stored, request)
        return Added(number, stored)

    def _renew(self, stored: StoredJob, request: str) -> StoredJob:
        """Replace the request of a job by one with another signature, or with another price of its model.

        Its earlier submits keep the address that they have sent.
        """
        old, number = _fields(stored.request).get(_IMAGE), stored.number
        if old == _fields(request).get(_IMAGE):
            self.connection.execute("UPDATE job SET request = ? WHERE number = ?", (request, number))
            return attrs.evolve(stored, request=request)
        self.connection.execute(
            "UPDATE attempt SET input_url = ? WHERE job = ? AND input_url IS NULL", (old, number)
        )
        self.connection.execute(
            "UPDATE job SET request = ?, address = ?, bare_address = ? WHERE number = ?",
            (request, *addresses_of(request), number),
        )
        self.connection.execute(
            "INSERT INTO event (job, at, type, detail) VALUES (?, ?, 'AddressRenewed', ?)",
            (number, self.at, json.dumps({"before": old}, separators=(",", ":"))),
        )
        return attrs.evolve(stored, request=request)

    # --- other jobs of the same image ---------------------------------------------------------------------

    def _submitted_as(
        self, number: int, key: JobKey, request: str, addresses: Addresses
    ) -> tuple[StoredJob | None, StoredJob | None]:
        """Return a job of the same image, or else one whose address differs only in its query."""
        if addresses.unsigned is None:
            return None, None
        paid_as = self._paid_as(number, key, request, addresses.unsigned)
        if paid_as is not None or not self.earlier.newest:
            return paid_as, None
        return None, self._similar(number, key, request, addresses.unsigned, addresses.bare)

    def _paid_as(self, number: int, key: JobKey, request: str, address: int) -> StoredJob | None:
        """Return a job of the same image, perhaps under another signature, that was submitted or will be."""
        for other in select_jobs(self.connection, "address = ? AND number <> ?", address, number):
            is_paid = other.job.state not in _UNSUBMITTED
            is_wanted = other.number in self._here or self.is_chosen(other.number)
            if (is_paid or is_wanted) and _conflict_of(other, request) is None:
                if _is_named(key, request) and _is_named(other.job.key, other.request):
                    continue  # two keys of the caller's own are two jobs
                return other
        return None

    def _similar(
        self, number: int, key: JobKey, request: str, unsigned: int, bare: int | None
    ) -> StoredJob | None:
        """Return a submitted job of an earlier run whose address differs only in its query."""
        page = self.similar_page or self._page
        found = self.earlier.jobs_at(unsigned if bare is None else bare, page, self._is_irrelevant)
        if bare is not None:
            plain = select_jobs(self.connection, "address = ? AND number <> ?", bare, number)
            found = chain((other for other in plain if not self._is_irrelevant(other)), found)
        for other in found:
            if _differs_only_in_query(other.request, request):
                return None if _is_named(key, request) else other
        return None

    def _page(self, bare: int, after: int) -> list[StoredJob]:
        where = "bare_address = ? AND number > ? ORDER BY number LIMIT 50"
        return select_jobs(self.connection, where, bare, after)

    def _is_irrelevant(self, other: StoredJob) -> bool:
        """Return whether a job was not submitted, or is part of this run and so given beside the new one."""
        number = other.number
        is_given = number > self.earlier.newest or number in self._here or self.is_chosen(number)
        return is_given or other.job.state in _UNSUBMITTED


def addresses_of(request: str) -> Addresses:
    """Return the digests of the address in a stored request; a file of this machine has none."""
    image = _image_of(request)
    if not isinstance(image, str) or image[:4].lower() != "http":
        return Addresses()
    unsigned = unsigned_url(image)
    return Addresses(_digest(unsigned), _digest(bare_url(image)) if "?" in unsigned else None)


def _image_of(request: str) -> object:
    """Return the image of a stored request without parsing the other fields: half a million rows have one."""
    start = request.find(_IMAGE_BEGINS)  # not inside of a string, where its quotes would be escaped
    end = request.find('"', start + len(_IMAGE_BEGINS))
    if start >= 0 and end >= 0 and "\\" not in (image := request[start + len(_IMAGE_BEGINS) : end]):
        return image
    return _fields(request).get(_IMAGE) if f'"{_IMAGE}"' in request else None


def _digest(text: str) -> int:
    short = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(short, "big", signed=True)


def _differs_only_in_query(request: str, other: str) -> bool:
    one, two = _fields(request), _fields(other)
    images = [str(fields.pop(_IMAGE, "")) for fields in (one, two)]
    return one == two and bare_url(images[0]) == bare_url(images[1])


def _conflict_of(stored: StoredJob, request: str, *, is_given: bool = False) -> JobConflictError | None:
    """Return the error if a request differs from a job's, or None if only a signature differs.

    Args:
        stored: The job.
        request: The request.
        is_given: Whether the job is part of the same run.
    """
    old, new = without_terms(_fields(stored.request)), without_terms(_fields(request))
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not different or (different == [_IMAGE] and is_resigned(str(old[_IMAGE]), str(new[_IMAGE]))):
        return None
    owner = "This run was given" if is_given else "The journal holds"
    return JobConflictError(
        f"{owner} another request under the key {stored.job.key!r}: "
        f"{' and '.join(different)} {'differ' if len(different) > 1 else 'differs'}."
    )


def _is_named(key: JobKey, request: str) -> bool:
    """Return whether a key is the caller's own, not the digest of the request."""
    try:
        return digest_key(read_request(request)) != key
    except InvalidInput:  # another release wrote it
        return True


def _fields(request: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(request)
    return fields


def _storable(path: str | None) -> bytes | None:
    """Return a path as bytes: file names may be invalid Unicode, which is refused as text by SQLite."""
    return None if path is None else os.fsencode(path)
