"""A journal of the version before this one: read as it is, brought to this version by the first run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flux_async.job_state import JobState
from flux_async.journal.reader import JournalReader, read_at_rest
from flux_async.journal.schema import APPLICATION_ID, SCHEMA_VERSION, connect
from flux_async.journal.store import Journal
from flux_async.models import JobKey
from journal_records import URL, rows

SCHEMA = Path(__file__).parents[1] / "samples" / "journals" / "version_3.sql"
REQUEST = '{"prompt":"p","inputImage":"https://example.com/a.jpg","model":"flux-kontext-pro"}'
DONE = ("k", REQUEST, "done", 1, "yes", "t1", "kontext", URL, "a.jpg", 2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of version 3 with one job that is done and one that waits, and no log of submits."""
    path = tmp_path / "run.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA.read_text(encoding="utf-8"))
        connection.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 3;")
        connection.execute(
            "INSERT INTO job "
            "(key, request, state, attempts, charge, task_id, api, result_url, file, finished_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            DONE,
        )
        connection.execute("INSERT INTO job (key, request) VALUES ('waits', ?)", (REQUEST,))
        connection.execute(
            "INSERT INTO attempt (job, number, state, intended_at, api, model, task_id) "
            "VALUES (1, 1, 'over', 1.0, 'kontext', 'flux-kontext-pro', 't1')"
        )
        connection.execute(
            "INSERT INTO event (job, at, type, detail) VALUES (1, 1.5, 'SubmitAccepted', '{}')"
        )
        connection.commit()
    return path


def shape(path: Path) -> list[tuple[str, str]]:
    """Return the tables and indexes of a journal, and the names and types of its columns."""
    with closing(sqlite3.connect(path)) as connection:
        objects = connection.execute("SELECT type || ' ' || name, tbl_name FROM sqlite_master").fetchall()
        tables = [name for kind, name in objects if kind.startswith("table ")]
        columns = [
            (table, f"{row[1]} {row[2]} {row[3]} {row[4]}")
            for table in tables
            for row in connection.execute(f"PRAGMA table_info({table})")
        ]
    return sorted([*objects, *columns])


async def test_the_first_run_brings_it_to_this_version_with_all_that_it_holds(
    path: Path, tmp_path: Path
) -> None:
    """It has the tables, columns and indexes of a new one; no foreign key leads nowhere."""
    async with await Journal(path).open():
        pass
    async with await Journal(tmp_path / "new.sqlite3").open():
        pass
    assert shape(path) == shape(tmp_path / "new.sqlite3")
    assert rows(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    assert rows(path, "PRAGMA foreign_key_check") == []
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    async with await Journal(path).open() as journal:
        done, waits = await journal.job("k"), await journal.job("waits")
        assert done is not None
        assert waits is not None
        assert (done.job.state, done.job.task_id, done.job.file) == (JobState.DONE, "t1", "a.jpg")
        assert waits.job.state is JobState.PENDING
        assert await journal.owner_of(done.job.task_id or "") == JobKey("k")


def test_it_is_read_without_a_change(path: Path) -> None:
    """The status and the report show it, also before a run; foreign keys are as they were."""
    before = path.read_bytes()
    found = read_at_rest(path, lambda reader: (reader.counts()[JobState.DONE], reader.spending()))
    assert (found[0], found[1][0].tasks) == (1, 1)
    with JournalReader(path) as reader:
        assert [stored.job.key for stored in reader.jobs()] == ["k", "waits"]
        assert reader.owner_of("t1") == "k"
    assert path.read_bytes() == before


def test_a_step_that_fails_changes_nothing(path: Path) -> None:
    """Here a table is in its way; the next try makes the step."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE new_job (x)")
    with pytest.raises(sqlite3.OperationalError, match="new_job"):
        connect(path)
    assert rows(path, "PRAGMA user_version") == [(3,)]
    assert rows(path, "SELECT count(*) FROM job") == [(2,)]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE new_job")
    with closing(connect(path)) as connection:
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT INTO event (job, at, type, detail) VALUES (99, 1, 'x', '{}')")


def test_a_job_is_done_with_a_result_or_with_a_copy_and_no_task(path: Path) -> None:
    """Anything else is refused by the database, whatever the code above it does."""
    with closing(connect(path)) as connection:
        connection.execute("UPDATE job SET state = 'done', file = 'a.png' WHERE key = 'waits'")
        for change in ("file = NULL", "task_id = 't2'", "state = 'generated'"):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(f"UPDATE job SET {change} WHERE key = 'waits'")
