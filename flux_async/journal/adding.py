"""Adds jobs to a journal: what is new, what is there already, and what is there under another name.

A key names one thing. The same key with another request is a conflict, but for one difference: stores sign
the address of a file anew each day. Such a job is the same job. Where it waits for a submit, the newer
address replaces the older, and the log says so; what has been submitted stays as it was asked for.

Without a key of the caller's own, a job is named by its request, address included. A new signature then makes
a new job of an image that has been paid for; see :attr:`Added.paid_as`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from flux_async.api.stored_requests import read_request
from flux_async.errors import InvalidInput, JobConflictError
from flux_async.job_state import JobSnapshot, JobState
from flux_async.journal.lost_records import has_unknown, take_unknown
from flux_async.journal.rows import COLUMNS, StoredJob, stored_job
from flux_async.models import JobKey, LocalImage, digest_key
from flux_async.policy.signed_urls import is_resigned, unsigned_url

if TYPE_CHECKING:
    import sqlite3

RENEWED = "AddressRenewed"
"""The event of the log when a job's address was replaced."""

_IMAGE = "inputImage"
_UNSUBMITTED = frozenset({JobState.PENDING, JobState.FAILED})
_INSERT = "INSERT OR IGNORE INTO job (key, request, unsigned_url) VALUES (?, ?, ?)"
_PUT_SOURCE = "UPDATE job SET source = ?, source_folder = ? WHERE key = ?"
_BY_KEY = f"SELECT {COLUMNS} FROM job WHERE key = ?"  # noqa: S608
_BY_UNSIGNED = f"SELECT {COLUMNS} FROM job WHERE unsigned_url = ? AND number <> ?"  # noqa: S608


class Added(NamedTuple):
    """What became of one entry.

    Attributes:
        number: The job's number; None where the entry was not added.
        stored: The job as it was there before, or is in doubt; None where it is new.
        conflict: Why the entry was not added, where its key names something else.
        paid_as: A job that was submitted for the same image under another signature.
    """

    number: int | None
    stored: StoredJob | None = None
    conflict: JobConflictError | None = None
    paid_as: StoredJob | None = None


@attrs.define(kw_only=True)
class Adding:
    """Adds entries in one transaction.

    Attributes:
        connection: The journal.
        at: Seconds since the epoch.
        is_chosen: Says by its number whether a job is part of the run already: its address stays.
        pays_again: Whether an image that was submitted under another signature becomes a new job.
        put_in_doubt: Puts a job in doubt that was perhaps submitted at a time, by its key.
    """

    connection: sqlite3.Connection
    at: float
    is_chosen: Callable[[int], bool]
    pays_again: bool
    put_in_doubt: Callable[[JobKey, float], object]
    _here: set[int] = attrs.field(factory=set, init=False)
    _lost_any: bool = attrs.field(default=False, init=False)

    def add(self, entries: Sequence[tuple[JobKey, str]], sources: Mapping[JobKey, LocalImage]) -> list[Added]:
        """Add what is not there yet; return what became of each entry, in order."""
        self._lost_any = has_unknown(self.connection)
        return [self._add(key, request, sources.get(key)) for key, request in entries]

    def _add(self, key: JobKey, request: str, source: LocalImage | None) -> Added:
        unsigned = unsigned_of(request)
        cursor = self.connection.execute(_INSERT, (key, request, unsigned))
        if not cursor.rowcount:
            return self._known(self._with_source(key, source), request)
        number = int(cursor.lastrowid or 0)
        if source is not None:
            self._put_source(key, source)
        paid_as = None if unsigned is None else self._paid_as(number, key, request, unsigned)
        if paid_as is not None and not self.pays_again:
            self.connection.execute("DELETE FROM job WHERE number = ?", (number,))
            return Added(None, paid_as=paid_as)
        self._here.add(number)
        return Added(number, self._in_doubt(key) if self._lost_any else None, paid_as=paid_as)

    def _with_source(self, key: JobKey, source: LocalImage | None) -> StoredJob:
        """Return a job that was there before; the first time in a run, with the file as it is given now."""
        stored = stored_job(self.connection.execute(_BY_KEY, (key,)).fetchone())
        if source is None or stored.number in self._here or self.is_chosen(stored.number):
            return stored
        self._put_source(key, source)
        return stored_job(self.connection.execute(_BY_KEY, (key,)).fetchone())

    def _put_source(self, key: JobKey, source: LocalImage) -> None:
        where = _storable(source.path), _storable(source.folder)
        self.connection.execute(_PUT_SOURCE, (*where, key))

    def _in_doubt(self, key: JobKey) -> StoredJob | None:
        """Return a new job, in doubt, where the journal had it before and lost the record of its submit."""
        submitted_at = take_unknown(self.connection, key)
        if submitted_at is None:
            return None
        self.put_in_doubt(key, submitted_at)
        return stored_job(self.connection.execute(_BY_KEY, (key,)).fetchone())

    def _known(self, stored: StoredJob, request: str) -> Added:
        is_first, number = stored.number not in self._here, stored.number
        self._here.add(number)
        if stored.request == request:
            return Added(number, stored)
        conflict = conflict_of(stored, request)
        if conflict is not None:
            return Added(None, conflict=conflict)
        if is_first and stored.job.state in _UNSUBMITTED and not self.is_chosen(number):
            stored = self._renew(stored, request)
        return Added(number, stored)

    def _renew(self, stored: StoredJob, request: str) -> StoredJob:
        """Give a job its newer address; what was submitted earlier keeps the one that it was sent with."""
        old, number = _fields(stored.request)[_IMAGE], stored.number
        self.connection.execute(
            "UPDATE attempt SET input_url = ? WHERE job = ? AND input_url IS NULL", (old, number)
        )
        self.connection.execute(
            "UPDATE job SET request = ?, unsigned_url = ? WHERE number = ?",
            (request, unsigned_of(request), number),
        )
        self.connection.execute(
            "INSERT INTO event (job, at, type, detail) VALUES (?, ?, ?, ?)",
            (number, self.at, RENEWED, json.dumps({"before": old}, separators=(",", ":"))),
        )
        return attrs.evolve(stored, request=request)

    def _paid_as(self, number: int, key: JobKey, request: str, unsigned: str) -> StoredJob | None:
        """Return a job of the same request under another signature that was submitted, or is to be."""
        for row in self.connection.execute(_BY_UNSIGNED, (unsigned, number)):
            other = stored_job(row)
            is_paid = other.job.state not in _UNSUBMITTED
            is_wanted = other.number in self._here or self.is_chosen(other.number)
            if (is_paid or is_wanted) and conflict_of(other, request) is None:
                if is_named(key, request) and is_named(other.job.key, other.request):
                    continue  # two keys of the caller's own: two things, as he says
                return other
        return None


def unsigned_of(request: str) -> str | None:
    """Return the address of a stored request without its signature, or None where it has none."""
    image = _fields(request).get(_IMAGE) if "?" in request else None
    return unsigned_url(image) if isinstance(image, str) else None


def conflict_of(stored: StoredJob, request: str) -> JobConflictError | None:
    """Return what a request contradicts of a job, or None where only a signature differs."""
    old, new = _fields(stored.request), _fields(request)
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not different or (different == [_IMAGE] and is_resigned(str(old[_IMAGE]), str(new[_IMAGE]))):
        return None
    return JobConflictError(
        f"The journal holds another request under the key {stored.job.key!r}: "
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
