"""What adding jobs to a journal would do, found out without touching it.

The same code adds the jobs to a temporary database, which SQLite keeps in memory or in a file without a name;
what the journal has under the same key or address is copied there first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from flux_async.journal.adding import Added, Adding, Addresses, EarlierRuns, addresses_of
from flux_async.journal.reader import JournalReader
from flux_async.journal.rows import StoredJob
from flux_async.journal.schema import open_temporary
from flux_async.models import JobKey

_COPY = (
    "INSERT OR IGNORE INTO job "
    "(number, key, request, address, bare_address, state, task_id, result_url, file, charge) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_MARK = "INSERT INTO job (number, key, request) VALUES (?, ?, '{}')"


class JournalPreview:
    """Says of entries what would become of them; use it as ``with``.

    Args:
        reader: The journal, or None where there is none yet.
    """

    def __init__(self, reader: JournalReader | None) -> None:
        self._reader = reader
        self._connection = open_temporary()
        self._first_new = 1 if reader is None else reader.newest() + 1
        self._earlier = EarlierRuns(newest=self._first_new - 1)
        self._connection.execute("BEGIN")  # and never committed
        # Numbers of new jobs begin behind this one.
        mark = f"\0{os.urandom(8).hex()}"
        self._connection.execute(_MARK, (self._first_new, mark))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def add(self, key: JobKey, request: str, *, pays_again: bool, is_given: Callable[[int], bool]) -> Added:
        """Return what would become of an entry; of the same one again, that it is there already.

        Args:
            key: The entry's.
            request: What it asks for.
            pays_again: Whether an image that was submitted under another signature becomes a new job.
            is_given: Says by its number whether a job was an entry before.
        """
        if self._reader is not None:
            for stored in _related(self._reader, key, addresses_of(request)):
                self._copy(stored)
        adding = Adding(
            connection=self._connection,
            at=0.0,
            is_chosen=is_given,
            pays_again=pays_again,
            pays_similar=True,
            earlier=self._earlier,
            similar_page=None if self._reader is None else self._reader.with_bare_address,
            put_in_doubt=lambda _key, _at: None,
        )
        (added,) = adding.add([(key, request)], {})
        return added

    def _copy(self, stored: StoredJob) -> None:
        job = stored.job
        values = (stored.number, job.key, stored.request, *addresses_of(stored.request), job.state.value)
        self._connection.execute(_COPY, (*values, job.task_id, job.result_url, job.file, job.charge.value))


def _related(reader: JournalReader, key: JobKey, addresses: Addresses) -> Iterator[StoredJob]:
    """Yield the jobs that decide what becomes of an entry."""
    known = reader.with_key(key)
    if known is not None:
        yield known
        return
    if addresses.unsigned is None:
        return
    yield from reader.with_address(addresses.unsigned)
    if addresses.bare is not None:
        yield from reader.with_address(addresses.bare)
