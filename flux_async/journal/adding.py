"""Adds jobs to a journal: what is new, what is there already, and what is there under another name.

A key names one thing. The same key with another request is a conflict, but for one difference: stores sign
the address of a file anew each day. Such a job is the same job. Where it waits for a submit, the newer
address replaces the older, and the log says so; what has been submitted stays as it was asked for.

Without a key of the caller's own, a job is named by its request, address included. A new signature then makes
a new job of an image that has been paid for; see :attr:`Added.paid_as`. Where the rest of the query differs
(``?id=17``, ``?id=18``), nobody but the caller knows whether it is another image; see :attr:`Added.similar`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from flux_async.api.stored_requests import read_request
from flux_async.errors import InvalidInput, JobConflictError
from flux_async.job_state import JobSnapshot, JobState
from flux_async.journal.lost_records import has_lost_submits, take_lost_submit
from flux_async.journal.rows import StoredJob, select_jobs
from flux_async.models import JobKey, LocalImage, digest_key
from flux_async.policy.image_urls import bare_url, is_resigned, unsigned_url

if TYPE_CHECKING:
    import sqlite3

RENEWED = "AddressRenewed"
"""The event of the log when a job's address was replaced."""

_IMAGE = "inputImage"
_IMAGE_BEGINS = f'"{_IMAGE}":"'
_UNSUBMITTED = frozenset({JobState.PENDING, JobState.FAILED})
_INSERT = "INSERT OR IGNORE INTO job (key, request, address, bare_address) VALUES (?, ?, ?, ?)"
_INSERT_AT = "INSERT INTO job (number, key, request, address, bare_address) VALUES (?, ?, ?, ?, ?)"
_AT_ONCE = 1000
_PUT_SOURCE = "UPDATE job SET source = ?, source_folder = ? WHERE key = ?"


class Added(NamedTuple):
    """What became of one entry.

    Attributes:
        number: The job's number; None where the entry was not added.
        stored: The job as it was there before, or is in doubt; None where it is new.
        conflict: Why the entry was not added, where its key names something else.
        paid_as: A job that was submitted for the same image, perhaps under another signature.
        similar: A job of an earlier run that was submitted for an address that differs only in its query.
    """

    number: int | None
    stored: StoredJob | None = None
    conflict: JobConflictError | None = None
    paid_as: StoredJob | None = None
    similar: StoredJob | None = None


class Addresses(NamedTuple):
    """Digests of the address of a request's image, which find other jobs of the image; None without one.

    Attributes:
        unsigned: Of the address without its signature.
        bare: Of the address without its query, where a query is left without the signature.
    """

    unsigned: int | None = None
    bare: int | None = None


@attrs.define(kw_only=True)
class EarlierRuns:
    """The jobs of earlier runs, looked through for addresses that differ only in their query.

    Attributes:
        newest: The number of their newest job.
    """

    newest: int = 0
    _seen: dict[int, int] = attrs.field(factory=dict, init=False)

    def at(
        self,
        bare: int,
        page: Callable[[int, int], list[StoredJob]],
        is_of_no_interest: Callable[[StoredJob], bool],
    ) -> Iterator[StoredJob]:
        """Yield the jobs whose address without its query has this digest.

        Those of no interest at the front are passed once for all: each of ten thousand rows at one address
        would go through all rows before it.

        Args:
            bare: The digest.
            page: Returns the first jobs with such an address behind a number.
            is_of_no_interest: Says which are left out, from now on.
        """
        at_front, after = True, self._seen.get(bare, 0)
        while after < self.newest and (found := page(bare, after)):
            for stored in found:
                after = stored.number
                if after > self.newest:
                    return
                if not is_of_no_interest(stored):
                    at_front = False
                    yield stored
                elif at_front:
                    self._seen[bare] = after


@attrs.define(kw_only=True)
class Adding:
    """Adds entries in one transaction.

    Attributes:
        connection: The journal.
        at: Seconds since the epoch.
        is_chosen: Says by its number whether a job is part of the run already: its address stays.
        pays_again: Whether an image that was submitted, perhaps under another signature, becomes a new job.
        pays_similar: Whether an address becomes one that differs in its query from one that was submitted.
        earlier: The jobs of earlier runs.
        similar_page: Returns those at an address without its query, behind a number; None reads the journal.
        put_in_doubt: Puts a job in doubt that was perhaps submitted at a time, by its key.
    """

    connection: sqlite3.Connection
    at: float
    is_chosen: Callable[[int], bool]
    pays_again: bool
    pays_similar: bool
    earlier: EarlierRuns
    put_in_doubt: Callable[[JobKey, float], object]
    similar_page: Callable[[int, int], list[StoredJob]] | None = None
    _here: set[int] = attrs.field(factory=set, init=False)
    _lost_any: bool = attrs.field(default=False, init=False)

    def add(self, entries: Sequence[tuple[JobKey, str]], sources: Mapping[JobKey, LocalImage]) -> list[Added]:
        """Add what is not there yet; return what became of each entry, in order."""
        self._lost_any = has_lost_submits(self.connection)
        added: list[Added] = []
        for at in range(0, len(entries), _AT_ONCE):
            some = entries[at : at + _AT_ONCE]
            if (first := self._add_if_all_new(some, sources)) is not None:
                added.extend(map(Added, range(first, first + len(some))))
            else:
                added.extend(self._add(key, request, sources.get(key)) for key, request in some)
        return added

    def _add_if_all_new(
        self, entries: Sequence[tuple[JobKey, str]], sources: Mapping[JobKey, LocalImage]
    ) -> int | None:
        """Add entries whose keys and images are all new; return the first one's number, or None if not so.

        Nearly all chunks of a long list are so. Added together, each takes less time.
        """
        if sources or self._lost_any or self.similar_page is not None:
            return None
        rows = [(key, request, *addresses_of(request)) for key, request in entries]
        images = {number for row in rows for number in row[2:] if number is not None}
        plain = {row[2] for row in rows}
        if len({row[0] for row in rows}) < len(rows) or None in plain or len(plain) < len(rows):
            return None
        if self._has_any("key", [row[0] for row in rows]) or self._has_any("address", images):
            return None
        if self.earlier.newest and self._has_any("bare_address", images):
            return None
        first = int(self.connection.execute("SELECT coalesce(max(number), 0) + 1 FROM job").fetchone()[0])
        self.connection.executemany(_INSERT_AT, ((at, *row) for at, row in enumerate(rows, start=first)))
        self._here.update(range(first, first + len(rows)))
        return first

    def _has_any(self, column: str, values: Collection[object]) -> bool:
        marks = ",".join("?" * len(values))
        sql = f"SELECT 1 FROM job WHERE {column} IN ({marks}) LIMIT 1"
        return self.connection.execute(sql, tuple(values)).fetchone() is not None

    def _add(self, key: JobKey, request: str, source: LocalImage | None) -> Added:
        addresses = addresses_of(request)
        cursor = self.connection.execute(_INSERT, (key, request, *addresses))
        if not cursor.rowcount:
            return self._known(self._with_source(key, source), request)
        number = int(cursor.lastrowid or 0)
        if source is not None:
            self._put_source(key, source)
        paid_as, similar = self._submitted_as(number, key, request, addresses)
        if (paid_as is not None and not self.pays_again) or (similar is not None and not self.pays_similar):
            self.connection.execute("DELETE FROM job WHERE number = ?", (number,))
            return Added(None, paid_as=paid_as, similar=similar)
        self._here.add(number)
        stored = self._in_doubt(key) if self._lost_any else None
        return Added(number, stored, paid_as=paid_as, similar=similar)

    def _with_source(self, key: JobKey, source: LocalImage | None) -> StoredJob:
        """Return a job that was there before; the first time in a run, with the file as it is given now."""
        stored = select_jobs(self.connection, "key = ?", key)[0]
        if source is None or stored.number in self._here or self.is_chosen(stored.number):
            return stored
        self._put_source(key, source)
        return select_jobs(self.connection, "key = ?", key)[0]

    def _put_source(self, key: JobKey, source: LocalImage) -> None:
        where = _storable(source.path), _storable(source.folder)
        self.connection.execute(_PUT_SOURCE, (*where, key))

    def _in_doubt(self, key: JobKey) -> StoredJob | None:
        """Return a new job, in doubt, where the journal had it before and lost the record of its submit."""
        submitted_at = take_lost_submit(self.connection, key)
        if submitted_at is None:
            return None
        self.put_in_doubt(key, submitted_at)
        return select_jobs(self.connection, "key = ?", key)[0]

    def _known(self, stored: StoredJob, request: str) -> Added:
        is_first, number = stored.number not in self._here, stored.number
        self._here.add(number)
        if stored.request == request:
            return Added(number, stored)
        is_given = not is_first or self.is_chosen(number)
        conflict = conflict_of(stored, request, is_given=is_given)
        if conflict is not None:
            return Added(None, conflict=conflict)
        if not is_given and stored.job.state in _UNSUBMITTED:
            stored = self._renew(stored, request)
        return Added(number, stored)

    def _renew(self, stored: StoredJob, request: str) -> StoredJob:
        """Give a job its newer address; what was submitted earlier keeps the one that it was sent with."""
        old, number = _fields(stored.request)[_IMAGE], stored.number
        self.connection.execute(
            "UPDATE attempt SET input_url = ? WHERE job = ? AND input_url IS NULL", (old, number)
        )
        self.connection.execute(
            "UPDATE job SET request = ?, address = ?, bare_address = ? WHERE number = ?",
            (request, *addresses_of(request), number),
        )
        self.connection.execute(
            "INSERT INTO event (job, at, type, detail) VALUES (?, ?, ?, ?)",
            (number, self.at, RENEWED, json.dumps({"before": old}, separators=(",", ":"))),
        )
        return attrs.evolve(stored, request=request)

    def _submitted_as(
        self, number: int, key: JobKey, request: str, addresses: Addresses
    ) -> tuple[StoredJob | None, StoredJob | None]:
        """Return a job of the same image, or else one whose address differs only in its query."""
        if addresses.unsigned is None:
            return None, None
        paid_as = self._paid_as(number, key, request, addresses.unsigned)
        if paid_as is not None or not self.earlier.newest:
            return paid_as, None
        return None, self._similar(number, key, request, addresses)

    def _paid_as(self, number: int, key: JobKey, request: str, address: int) -> StoredJob | None:
        """Return a job of the same image, perhaps under another signature, that was submitted or is to be."""
        for other in select_jobs(self.connection, "address = ? AND number <> ?", address, number):
            is_paid = other.job.state not in _UNSUBMITTED
            is_wanted = other.number in self._here or self.is_chosen(other.number)
            if (is_paid or is_wanted) and conflict_of(other, request) is None:
                if is_named(key, request) and is_named(other.job.key, other.request):
                    continue  # two keys of the caller's own: two things, as he says
                return other
        return None

    def _similar(self, number: int, key: JobKey, request: str, addresses: Addresses) -> StoredJob | None:
        """Return a submitted job of an earlier run whose address differs only in its query."""
        bare = addresses.unsigned if addresses.bare is None else addresses.bare
        if bare is None:
            return None
        found = self.earlier.at(bare, self.similar_page or self._with_bare_address, self._is_of_no_interest)
        if addresses.bare is not None:
            plain = select_jobs(self.connection, "address = ? AND number <> ?", bare, number)
            found = chain((other for other in plain if not self._is_of_no_interest(other)), found)
        for other in found:
            if _differs_only_in_query(other.request, request):
                return None if is_named(key, request) else other
        return None

    def _with_bare_address(self, bare: int, after: int) -> list[StoredJob]:
        return select_jobs(
            self.connection, "bare_address = ? AND number > ? ORDER BY number LIMIT 50", bare, after
        )

    def _is_of_no_interest(self, other: StoredJob) -> bool:
        """Whether a job was not submitted, or is part of this run: its row stands beside the new one."""
        number = other.number
        is_given = number > self.earlier.newest or number in self._here or self.is_chosen(number)
        return is_given or other.job.state in _UNSUBMITTED


def addresses_of(request: str) -> Addresses:
    """Return the digests of the address of a stored request; a file of this machine has none."""
    image = _image_of(request)
    if not isinstance(image, str) or image[:4].lower() != "http":
        return Addresses()
    unsigned = unsigned_url(image)
    return Addresses(_digest(unsigned), _digest(bare_url(image)) if "?" in unsigned else None)


def _image_of(request: str) -> object:
    """Return a field of a stored request without reading the others: half a million rows have one."""
    start = request.find(_IMAGE_BEGINS)  # in no string: its quotes would be escaped there
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


def conflict_of(stored: StoredJob, request: str, *, is_given: bool = False) -> JobConflictError | None:
    """Return what a request contradicts of a job, or None where only a signature differs.

    Args:
        stored: The job.
        request: The request.
        is_given: Whether the job is part of the same run.
    """
    old, new = _fields(stored.request), _fields(request)
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not different or (different == [_IMAGE] and is_resigned(str(old[_IMAGE]), str(new[_IMAGE]))):
        return None
    whose = "This run was given" if is_given else "The journal holds"
    return JobConflictError(
        f"{whose} another request under the key {stored.job.key!r}: "
        f"{' and '.join(different)} {'differ' if len(different) > 1 else 'differs'}."
    )


def is_named(key: JobKey, request: str) -> bool:
    """Whether a key is the caller's own, not the digest of the request."""
    try:
        return digest_key(read_request(request)) != key
    except InvalidInput:  # another release wrote it
        return True


def as_new(number: int, key: JobKey, request: str, source: LocalImage | None) -> StoredJob:
    """Return a job as it is when it has just been added."""
    return StoredJob(
        number=number,
        request=request,
        job=JobSnapshot(key=key),
        source=None if source is None else source.path,
        source_folder=None if source is None else source.folder,
    )


def _fields(request: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(request)
    return fields


def _storable(path: str | None) -> bytes | None:
    """Names of files may be no Unicode, which SQLite's text would not take."""
    return None if path is None else os.fsencode(path)
