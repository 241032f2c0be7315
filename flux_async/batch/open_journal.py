"""The journal that an operation of the user works on: a path, or a journal that is open and not being run."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flux_async.batch.job_store import JobStore
from flux_async.batch.options import BatchClient, check_client
from flux_async.errors import InvalidInput, shown
from flux_async.job_state import Event, JobSnapshot, apply
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import check_job_key


@asynccontextmanager
async def open_journal(
    client: BatchClient, journal: str | os.PathLike[str] | Journal, *, checks_account: bool = True
) -> AsyncIterator[Journal]:
    """Hold an open journal. One that is given as a path is opened here, and closed afterwards.

    Raises:
        InvalidInput: One of them has a wrong type.
        JournalError: There is none at the path, or an empty file: no journal is made.
    """
    check_client(client)
    if not isinstance(journal, str | os.PathLike | Journal):
        raise InvalidInput(f"journal must be the path of a journal, or a Journal, not {shown(journal)}.")
    if isinstance(journal, Journal):
        yield journal
        return
    made, account = Journal(journal, clock=client.session.clock), client.fingerprint if checks_account else ""
    async with await made.open(account=account, may_be_new=False) as opened:
        yield opened


def check_key(key: object) -> None:
    """Refuse a key that no job can have.

    Raises:
        InvalidInput: It is none.
    """
    if not isinstance(key, str):
        raise InvalidInput(
            f"The key of a job must be a str, not {shown(key)}.", advice="Give outcome.job.key."
        )
    check_job_key(key)


async def record_event(journal: JobStore, stored: StoredJob, event: Event) -> JobSnapshot:
    """Record one event of a job that no run works on, and return the job after it."""
    after = apply(stored.job, event)
    await journal.record(stored.number, after, event, before=stored.job)
    return after
