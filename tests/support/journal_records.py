"""What the tests of the journal share: events of a job, rows of the file, lines of a child process."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from flux_async.job_state import Event, JobSnapshot, Problem, apply
from flux_async.journal.store import Journal, StoredJob

URL = "https://files.example/t.jpg"
PROBLEM = Problem(type="ServerError", code=500, message="The API answered 500.")


async def happened(journal: Journal, stored: StoredJob, *events: Event) -> JobSnapshot:
    """Record ``events`` of a job, each on disk before the next; return the job after them."""
    job = stored.job
    for event in events:
        before, job = job, apply(job, event)
        await journal.record(stored.number, job, event, before=before)
    return job


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
