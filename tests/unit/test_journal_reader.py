"""A journal is read without changing it, while another process runs it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flux_async import EditRequest, JournalError
from flux_async.api.models_table import ModelName
from flux_async.api.stored_requests import store_request
from flux_async.cli.advice import Cost
from flux_async.cli.run_folder import JOURNAL
from flux_async.cli.status import costs_of_retry, credits_in, show_status
from flux_async.errors import JournalVersionError, Scope
from flux_async.job_state import (
    Event,
    JobState,
    Problem,
    ResubmitGranted,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitRefused,
    SubmitRejected,
    SubmitUnknown,
    TaskEndedRetryable,
    TaskFound,
    TaskSucceeded,
    Verified,
)
from flux_async.journal.lock import LockOwner, lock_owner_of
from flux_async.journal.lost_records import find_lost_records
from flux_async.journal.reader import JournalReader, Spending, read_at_rest
from flux_async.journal.schema import APPLICATION_ID, damage, opening_error
from flux_async.journal.store import Journal, StoredJob
from flux_async.models import CallbackEvent, JobKey, TaskId
from journal_records import happened

PROBLEM = Problem(type="ConnectionLost", message="gone")


async def add(journal: Journal, count: int, model: ModelName = "flux-kontext-pro") -> list[StoredJob]:
    return await journal.add(
        [
            (
                JobKey(f"{model[-3:]}-{number}"),
                store_request(EditRequest.text_removal(f"http://h/{number}", model=model)),
            )
            for number in range(count)
        ]
    )


def succeeded(at: float, seconds: float) -> TaskSucceeded:
    return TaskSucceeded(at=at, result_url="http://h/r", generation_s=seconds)


async def test_figures_are_read_during_a_run(tmp_path: Path) -> None:
    """Counts, spending, durations and jobs in doubt are read on a connection that cannot write."""
    path = tmp_path / "j.sqlite3"
    async with Journal(path) as journal:
        pro, found, in_doubt, _ = await add(journal, 4)
        (big,) = await add(journal, 1, "flux-kontext-max")
        with JournalReader(path) as reader:
            assert reader.last_activity() is None
            assert reader.generation_s(0.5) is None
            for number, job in enumerate((pro, big)):
                task = TaskId(f"t{number}")
                submit = SubmitIntended(api="kontext", at=1), SubmitAccepted(at=2, task_id=task)
                await happened(journal, job, *submit, succeeded(3, number))
            unknown = (SubmitIntended(api="kontext", at=4), SubmitUnknown(at=5, problem=PROBLEM))
            await happened(journal, found, *unknown, TaskFound(api="kontext", at=6, task_id=TaskId("t9")))
            await happened(
                journal, in_doubt, *unknown, ResubmitGranted(at=7), SubmitIntended(api="kontext", at=8)
            )

            assert sum(reader.counts().values()) == 5
            assert reader.counts()[JobState.GENERATED] == 2
            assert reader.last_activity() == 8
            assert sorted(reader.spending(), key=lambda s: s.model) == [
                Spending(model="flux-kontext-max", tasks=1, perhaps=0),
                Spending(model="flux-kontext-pro", tasks=2, perhaps=1),
            ]
            assert (reader.generation_s(0.5), reader.generation_s(0.95)) == (0, 1)
            assert reader.intended_at(in_doubt.number) == 8
            assert reader.owner_of("t9") == found.job.key
            assert reader.owner_of("t8") is None


async def test_what_tasks_cost_is_read_by_model(tmp_path: Path) -> None:
    """Measured costs are summed, a task that was refunded and its successor included; a price is kept."""
    path = tmp_path / "j.sqlite3"
    async with Journal(path) as journal:
        first, second = await add(journal, 2)
        begun = SubmitIntended(api="kontext", at=1), SubmitAccepted(at=2, task_id=TaskId("t0"))
        refunded = TaskEndedRetryable(at=3, problem=PROBLEM, credits=0.0)
        again = SubmitIntended(api="kontext", at=4), SubmitAccepted(at=5, task_id=TaskId("t1"))
        image = TaskSucceeded(at=6, result_url="http://h/r", credits=5.5)
        await happened(journal, first, *begun, refunded, *again, image)
        await happened(
            journal, second, SubmitIntended(api="kontext", at=7), SubmitAccepted(at=8, task_id=TaskId("t2"))
        )
        await journal.record_price("flux-kontext-pro", 6.0)
        await journal.record_price("flux-kontext-pro", 5.5)
        assert await journal.prices() == {"flux-kontext-pro": 5.5}
        with JournalReader(path) as reader:
            (spent,) = reader.spending()
            (job,) = reader.named(first.job.key)
    assert spent == Spending(model="flux-kontext-pro", tasks=3, perhaps=0, measured=2, credits=5.5, price=5.5)
    assert job.job.credits == 5.5
    assert credits_in([spent]) == {"spent": 11.0, "measured": 5.5, "perhaps": 0.0}
    listed = Spending(model="flux-kontext-max", tasks=1, perhaps=2)
    assert credits_in([listed]) == {"spent": 10.0, "measured": 0.0, "perhaps": 20.0}


async def test_costs_of_a_retry_count_by_model_and_by_what_is_wrong(tmp_path: Path) -> None:
    """With the price that a run has measured, else the listed one; nothing else is paid again."""
    path = tmp_path / "j.sqlite3"
    async with Journal(path) as journal:
        pro, most = await add(journal, 5), await add(journal, 1, "flux-kontext-max")
        kinds = ("text_left", "damaged", "cropped", "clean", "text_left")
        for number, (stored, kind) in enumerate(zip([*pro[:4], *most], kinds, strict=True)):
            begun = SubmitIntended(api="kontext", at=1), SubmitAccepted(at=2, task_id=TaskId(f"t{number}"))
            saved = Saved(at=4, file=f"{number}.png", sha256="0" * 64)
            await happened(
                journal, stored, *begun, succeeded(3, 1.0), saved, Verified(at=5, verdict={"kind": kind})
            )
        rejected = SubmitRejected(at=2, problem=PROBLEM)
        await happened(journal, pro[4], SubmitIntended(api="kontext", at=1), rejected)
        await journal.record_price("flux-kontext-pro", 4.0)
        with JournalReader(path) as reader:
            costs = costs_of_retry(reader)
    assert costs == {"failed": Cost(1, 4.0), "text_left": Cost(2, 14.0), "damaged": Cost(2, 8.0)}


async def test_a_reader_opens_the_journal_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself refuses to write for it, whatever the query."""
    opened: list[str] = []
    connect = sqlite3.connect

    def recorded(address: str, **options: Any) -> sqlite3.Connection:
        opened.append(address)
        return connect(address, **options)

    async with Journal(tmp_path / JOURNAL):
        monkeypatch.setattr(sqlite3, "connect", recorded)
        with JournalReader(tmp_path / JOURNAL) as reader:
            assert sum(reader.counts().values()) == 0
    assert opened
    assert all("mode=ro" in address for address in opened)


async def test_a_possible_duplicate_charge_is_returned_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixty tasks, each named by an unsigned and by a signed callback; two jobs change later."""
    async with Journal(tmp_path / JOURNAL) as journal:

        async def submitted_again(job: StoredJob) -> None:
            first, again = (
                SubmitIntended(api="kontext", at=1, callback_id=f"{job.number:032x}"),
                SubmitIntended(api="kontext", at=4),
            )
            answer: Event = SubmitAccepted(at=5, task_id=TaskId(f"known{job.number}"))
            if job.number > 60:
                answer = SubmitRefused(at=5, problem=PROBLEM, not_before=9.0)
            unknown = SubmitUnknown(at=2, problem=PROBLEM)
            await happened(journal, job, first, unknown, ResubmitGranted(at=3), again, answer)
            for signed in (False, True):
                task, attempt = TaskId(f"t{job.number}"), first.callback_id
                await journal.receive(
                    CallbackEvent(task_id=task, code=200, attempt_id=attempt, signed=signed)
                )

        async with asyncio.TaskGroup() as group:
            for job in await add(journal, 62):
                group.create_task(submitted_again(job))
    with JournalReader(tmp_path / JOURNAL) as reader:
        charges = reader.possible_duplicate_charges()
    assert sorted((one.stored.number, one.task_id, one.signed) for one in charges) == [
        (number, f"t{number}", True) for number in range(1, 61)
    ]
    show_status(tmp_path, as_json=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "perhaps paid twice" in line]
    assert len(lines) == 51
    assert lines[-1] == "perhaps paid twice: 10 more: add --json"


async def test_jobs_are_found_by_state_by_number_and_by_name(tmp_path: Path) -> None:
    """All pages are read; numbers come back in the order asked for; a name may be cut short."""
    path = tmp_path / "j.sqlite3"
    async with Journal(path) as journal:
        await add(journal, 1201)
    with JournalReader(path) as reader:
        assert [stored.number for stored in reader.jobs()] == list(range(1, 1202))
        assert len(list(reader.jobs(JobState.PENDING, JobState.DONE))) == 1201
        assert list(reader.jobs(JobState.DONE)) == []
        assert [stored.number for stored in reader.by_number([7, 3, 9999])] == [7, 3]
        assert [stored.job.key for stored in reader.named("pro-7")] == ["pro-7"]
        assert len(reader.named("pro-")) == 2
        assert [stored.job.key for stored in reader.named("pro-1200")] == ["pro-1200"]
        assert reader.named("x") == []


async def test_the_lock_owner_is_the_process_that_runs_the_journal(tmp_path: Path) -> None:
    """The owner is returned during the run; the lock file of a dead process has none."""
    path = tmp_path / "j.sqlite3"
    assert lock_owner_of(path) is None
    async with Journal(path):
        owner = lock_owner_of(path)
        assert isinstance(owner, LockOwner)
        assert owner.pid == os.getpid()
    assert lock_owner_of(path) is None
    lock = path.with_name("j.sqlite3.lock")
    for left in (json.dumps({"pid": 2**30, "since": 1}), "{", "[]", ""):
        lock.write_text(left)
        assert lock_owner_of(path) is None


def test_what_is_no_journal_is_an_error(tmp_path: Path) -> None:
    """A missing file, other files and databases, and an unsupported version have errors of their own."""
    path = tmp_path / "j.sqlite3"
    with pytest.raises(JournalError, match="no journal"):
        JournalReader(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("text " * 1000)
    with pytest.raises(JournalError, match="cannot be read"):
        JournalReader(path)
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE x (y)").connection.close()
    with pytest.raises(JournalError, match="is not a journal"):
        JournalReader(path)
    other = sqlite3.connect(path)
    other.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 99;")
    other.close()
    with pytest.raises(JournalVersionError, match="version 99: this release supports 3 to 4"):
        JournalReader(path)


def _error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    "code",
    [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_FSYNC],
)
async def test_a_full_or_failing_disk_is_never_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The message names the disk and what to do, and does not advise to restore a copy."""
    path = tmp_path / JOURNAL
    async with Journal(path):
        pass

    def failing(*_args: object, **_options: object) -> sqlite3.Connection:
        raise _error(code)

    monkeypatch.setattr(sqlite3, "connect", failing)
    actions: list[Callable[[], object]] = [lambda: find_lost_records(path), lambda: JournalReader(path)]
    for action in actions:
        with pytest.raises(JournalError, match="the disk is failing or full. Its records are unch") as caught:
            action()
        assert caught.value.scope is Scope.STOP
        assert "Make room" in str(caught.value)
    with pytest.raises(JournalError, match="the disk is failing or full"):
        await Journal(path).open()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_BUSY, "keeps the journal locked"),
        (sqlite3.SQLITE_CANTOPEN, "could not be opened"),
        (sqlite3.SQLITE_CORRUPT, "is damaged"),
        (sqlite3.SQLITE_NOTADB, "is damaged"),
    ],
)
def test_only_what_sqlite_reports_as_damage_is_damage(code: int, words: str) -> None:
    """A lock and missing permissions are no damage."""
    assert words in str(opening_error(_error(code), Path("j.sqlite3")))


def test_a_page_that_could_not_be_read_is_no_damage() -> None:
    """The check of all pages reports it with the code of an I/O error."""
    found = "Tree 4 page 7: unable to get the page. error code="
    assert "failing or full" in str(damage(f"{found}{sqlite3.SQLITE_IOERR_READ}", Path("j.sqlite3")))
    assert "is damaged" in str(damage(f"{found}{sqlite3.SQLITE_CORRUPT}", Path("j.sqlite3")))


# --- a journal at rest ------------------------------------------------------------------------------------


async def test_reading_at_rest_leaves_no_file(tmp_path: Path) -> None:
    """Neither after a reading nor after an error; an error of a file at rest is raised at once."""
    path = tmp_path / JOURNAL
    async with Journal(path) as journal:
        await journal.add([(JobKey("k"), "{}")])
    before = sorted(tmp_path.iterdir())
    assert read_at_rest(path, JournalReader.newest) == 1
    show_status(tmp_path, as_json=True)
    assert sorted(tmp_path.iterdir()) == before
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(JournalError):
        read_at_rest(path, JournalReader.newest)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("fails", [False, True])
async def test_a_run_that_begins_during_a_reading_at_rest_is_read_again(tmp_path: Path, fails: bool) -> None:
    """The second reading uses SQLite's locks, so that its result is of one moment."""
    path, results = tmp_path / JOURNAL, []
    async with Journal(path) as journal:
        await journal.add([(JobKey("k"), "{}")])

    async def run() -> None:
        async with Journal(path) as journal:
            await journal.add([(JobKey("k2"), "{}")])

    def read(reader: JournalReader) -> int:
        results.append(reader.newest())
        if len(results) == 1:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, run()).result()
            if fails:
                raise JournalError("The journal cannot be read.")
        return results[-1]

    assert read_at_rest(path, read) == 2
    assert results == [1, 2]


async def test_a_journal_in_use_is_read_with_locks(tmp_path: Path) -> None:
    """Its newest records are in the ``-wal`` file, which an immutable file does not have."""
    path = tmp_path / JOURNAL
    async with Journal(path) as journal:
        await journal.add([(JobKey("k"), "{}")])
        assert read_at_rest(path, JournalReader.newest) == 1
