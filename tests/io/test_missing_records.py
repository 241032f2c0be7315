"""A journal that lost records of submits is not resumed silently: nothing is paid twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flux_async.errors import JournalError, JournalRecordsLost, Scope
from flux_async.job_state import (
    JobState,
    Problem,
    RetryGranted,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    TaskEnded,
    TaskEndedRetryable,
    TaskSucceeded,
    apply,
)
from flux_async.journal.inbox import Inbox
from flux_async.journal.store import Journal, StoredJob
from flux_async.journal.submit_log import LoggedSubmit, SubmitLog, last_of, log_of, read_log
from flux_async.models import JobKey, TaskId
from journal_records import happened, line_of

WAIT_S = 60

_SUBMITTER = """
import asyncio, sys
from flux_async.journal.store import Journal
from flux_async.job_state import SubmitAccepted, SubmitIntended, apply
from flux_async.models import JobKey

async def main():
    async with Journal(sys.argv[1]) as journal:
        stored = await journal.add([(JobKey(f"k{n}"), "{}") for n in range(int(sys.argv[2]))])
        print("added", flush=True)
        for n in range(int(sys.argv[3])):
            job = stored[n].job
            submitted = SubmitIntended(at=100.0 + n, api="kontext")
            for event in (submitted, SubmitAccepted(at=100.5 + n, task_id=f"t{n}")):
                job = apply(job, event)
                await journal.record(stored[n].number, job, event)
            print(n, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "run.sqlite3"


def killed_after(path: Path, jobs: int, submits: int) -> None:
    """Add jobs and submit the first of them in another process, and kill it with SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", _SUBMITTER, str(path), str(jobs), str(submits)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert line_of(process) == "added"
            for n in range(submits):
                assert line_of(process) == f"{n}"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(WAIT_S)


def entries(count: int) -> list[tuple[JobKey, str]]:
    return [(JobKey(f"k{n}"), "{}") for n in range(count)]


async def states(journal: Journal, count: int) -> dict[str, JobState]:
    """Add the jobs, like a run with the same list, and return their states."""
    await journal.add(entries(count))
    found = [await journal.job(f"k{n}") for n in range(count)]
    return {stored.job.key: stored.job.state for stored in found if stored is not None}


def without(path: Path, *ends: str) -> None:
    """Replace the folder by a copy that left files behind."""
    for end in ends:
        path.with_name(path.name + end).unlink()


def cut_wal(path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    os.truncate(wal, wal.stat().st_size // 2)


async def test_a_killed_run_with_all_its_files_is_resumed(path: Path) -> None:
    """The log of submits shows that the journal is complete."""
    killed_after(path, 30, 12)
    without(path, "-shm")  # SQLite makes it anew
    async with Journal(path) as journal:
        assert list((await states(journal, 30)).values()).count(JobState.SUBMITTED) == 12


async def test_a_run_killed_before_its_first_submit_is_resumed(path: Path) -> None:
    """Its log has no submit, and shows that it is complete."""
    killed_after(path, 5, 0)
    async with Journal(path) as journal:
        assert set((await states(journal, 5)).values()) == {JobState.PENDING}


async def test_a_killed_run_whose_wal_a_receiver_has_closed_is_resumed(path: Path) -> None:
    """The last program that closes a journal moves the -wal file's records into it: none is missing."""
    killed_after(path, 30, 12)
    async with Inbox(path):
        pass
    assert not path.with_name(f"{path.name}-wal").exists()
    async with Journal(path) as journal:
        assert list((await states(journal, 30)).values()).count(JobState.SUBMITTED) == 12


async def test_images_of_a_journal_without_the_files_of_its_first_run_are_in_doubt(path: Path) -> None:
    """Neither the journal nor its emptied log names them: every unknown job may be paid."""
    killed_after(path, 8, 8)
    without(path, "-wal")
    log_of(path).write_bytes(b"")
    with pytest.raises(JournalRecordsLost, match=r"\.submits is empty, cut or older"):
        await Journal(path).open()
    async with await Journal(path).open(accept_lost_records=True) as journal:
        assert set((await states(journal, 8)).values()) == {JobState.IN_DOUBT}


@pytest.mark.parametrize("damage", [cut_wal, lambda path: without(path, "-wal")], ids=["cut", "lost"])
async def test_a_missing_or_cut_wal_is_refused_and_then_in_doubt(
    path: Path, damage: Callable[[Path], None]
) -> None:
    """The refusal changes nothing; when the loss is accepted, submitted jobs are in doubt, others pending."""
    killed_after(path, 30, 12)
    damage(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(JournalRecordsLost, match=r"lacks records of submits, which may be paid"):
            await Journal(path).open()
    with pytest.raises(JournalRecordsLost):
        await Inbox(path).open()
    assert path.read_bytes() == before
    async with await Journal(path).open(accept_lost_records=True) as journal:
        found = await states(journal, 30)
    unsafe = {JobState.PENDING, JobState.FAILED}
    assert not unsafe & {found[f"k{n}"] for n in range(12)}
    assert found["k11"] is JobState.IN_DOUBT
    assert {found[f"k{n}"] for n in range(12, 30)} == {JobState.PENDING}
    async with Journal(path) as journal:
        assert await states(journal, 30) == found


async def test_a_wal_that_is_put_back_makes_the_journal_complete(path: Path) -> None:
    """Nothing was written between loss and repair: all records are there again."""
    killed_after(path, 30, 12)
    kept = path.with_name("kept")
    shutil.copy(path.with_name(path.name + "-wal"), kept)
    without(path, "-wal")
    with pytest.raises(JournalRecordsLost):
        await Journal(path).open()
    kept.rename(path.with_name(path.name + "-wal"))
    async with Journal(path) as journal:
        assert (await journal.counts())[JobState.SUBMITTED] == 12


async def test_a_journal_alone_that_was_in_use_is_refused(path: Path, tmp_path: Path) -> None:
    """Only the database was copied, without -wal and log: any pending job may have been submitted."""
    async with Journal(path) as journal:
        await journal.add(entries(30))
    killed_after(path, 30, 12)
    alone = tmp_path / "copy.sqlite3"
    shutil.copy(path, alone)
    with pytest.raises(JournalRecordsLost, match=r"copy\.sqlite3\.submits is not beside it"):
        await Journal(alone).open()
    async with await Journal(alone).open(accept_lost_records=True) as journal:
        assert set((await states(journal, 30)).values()) == {JobState.IN_DOUBT}


async def test_a_closed_journal_alone_is_complete(path: Path, tmp_path: Path) -> None:
    """After a run that ended by itself a copy of the database is enough."""
    async with Journal(path) as journal:
        (first, *_) = await journal.add(entries(3))
        await happened(
            journal, first, SubmitIntended(api="kontext", at=1.0), SubmitAccepted(at=2.0, task_id=TaskId("t"))
        )
    alone = tmp_path / "copy.sqlite3"
    shutil.copy(path, alone)
    async with Journal(alone) as journal:
        assert (await journal.counts())[JobState.SUBMITTED] == 1
    assert [submit.key for submit in read_log(log_of(alone))] == ["k0"]


async def test_an_older_copy_of_the_journal_is_refused(path: Path, tmp_path: Path) -> None:
    """A restored backup lacks later records; so does a copy beside which other runs were made."""
    backup = tmp_path / "backup.sqlite3"
    async with Journal(path) as journal:
        await journal.add(entries(4))
    shutil.copy(path, backup)
    submit = (SubmitIntended(api="kontext", at=1.0), SubmitAccepted(at=2.0, task_id=TaskId("t")))
    async with Journal(path) as journal:
        await happened(journal, (await journal.add(entries(1)))[0], *submit)
    shutil.copy(path, tmp_path / "newer.sqlite3")
    shutil.copy(backup, path)
    with pytest.raises(JournalRecordsLost):
        await Journal(path).open()
    async with await Journal(path).open(accept_lost_records=True) as journal:
        assert (await states(journal, 4))["k0"] is JobState.IN_DOUBT
        (second,) = [stored for stored in await journal.add(entries(2)) if stored.job.key == "k1"]
        await happened(
            journal,
            second,
            SubmitIntended(api="kontext", at=3.0),
            SubmitAccepted(at=4.0, task_id=TaskId("u")),
        )
    shutil.copy(tmp_path / "newer.sqlite3", path)
    with pytest.raises(JournalRecordsLost):
        await Journal(path).open()


async def test_a_journal_that_is_copied_while_it_is_run(path: Path, tmp_path: Path) -> None:
    """With all files of one moment the copy is complete; with files older than the log it is refused."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    async with Journal(path) as journal:
        jobs = await journal.add(entries(6))

        async def submit(stored: StoredJob) -> None:
            task = TaskId(f"t{stored.number}")
            await happened(
                journal, stored, SubmitIntended(api="kontext", at=1.0), SubmitAccepted(at=2.0, task_id=task)
            )

        for stored in jobs[:3]:
            await submit(stored)
        shutil.copytree(path.parent, whole)
        shutil.copytree(path.parent, torn)
        for stored in jobs[3:]:
            await submit(stored)
        shutil.copy(log_of(path), torn)
    async with Journal(whole / path.name) as copy:
        assert (await copy.counts())[JobState.SUBMITTED] == 3
    with pytest.raises(JournalRecordsLost):
        await Journal(torn / path.name).open()


async def test_a_deleted_journal_beside_its_log_is_refused(path: Path) -> None:
    """Jobs that the journal lacks are in doubt when they are added again."""
    killed_after(path, 5, 3)
    without(path, "", "-wal", "-shm")
    with pytest.raises(JournalRecordsLost):
        await Journal(path).open()
    async with await Journal(path).open(accept_lost_records=True) as journal:
        assert await journal.counts() == {}
        found = await states(journal, 5)
        assert [state for _, state in sorted(found.items())] == [JobState.IN_DOUBT] * 3 + [
            JobState.PENDING
        ] * 2
        in_doubt = (await journal.jobs(JobState.IN_DOUBT))[0]
        assert await journal.attempt(in_doubt.number, 1) == (100.0, None)
        assert in_doubt.job.problem is not None
        assert "lost the record of a submit" in in_doubt.job.problem.message


@pytest.mark.parametrize("is_paid", [True, False])
async def test_no_new_journal_is_made_at_the_path_of_a_saved_one_with_paid_work(
    path: Path, is_paid: bool
) -> None:
    """The error names the saved one; if that has no submit, or was moved away, a new one is made."""
    saved = path.parent.with_name("out-rescued-ab12cd") / path.name
    async with Journal(saved) as journal:
        first, *_ = await journal.add(entries(2))
        if is_paid:
            await happened(
                journal,
                first,
                SubmitIntended(api="kontext", at=1.0),
                SubmitAccepted(at=2.0, task_id=TaskId("t")),
            )
    if is_paid:
        for opening in (Journal(path).open(), Inbox(path).open()):
            with pytest.raises(JournalError, match=r"saved as .*out-rescued-ab12cd") as refused:
                await opening
            assert str(saved) in refused.value.advice
        assert path.stat().st_size == 0
        saved.parent.rename(path.parent.with_name("elsewhere"))
    async with Journal(path) as journal:
        assert await journal.counts() == {}


async def test_an_unrecorded_resubmit_after_a_failure_is_in_doubt_too(path: Path, tmp_path: Path) -> None:
    """A resubmit in the lost part is not submitted once more; an existing result stays."""
    problem = Problem(type="TaskFailed", message="no")
    async with Journal(path) as journal:
        failed, retried, done, _ = await journal.add(entries(4))
        for stored in (failed, retried, done):
            task = TaskId(f"t{stored.number}")
            await happened(
                journal, stored, SubmitIntended(api="kontext", at=1.0), SubmitAccepted(at=2.0, task_id=task)
            )
        found = {stored.job.key: stored for stored in await journal.jobs(JobState.SUBMITTED)}
        await happened(journal, found[JobKey("k0")], TaskEnded(at=3.0, problem=problem))
        ended = (TaskSucceeded(at=3.0, result_url="https://files.example/r.jpg"), Saved(at=4.0))
        await happened(journal, found[JobKey("k2")], *ended)
    shutil.copy(path, tmp_path / "backup")
    async with Journal(path) as journal:
        (again,) = await journal.jobs(JobState.FAILED)
        await happened(journal, again, RetryGranted(at=5.0), SubmitIntended(api="kontext", at=6.0))
        (once_more,) = await journal.jobs(JobState.SUBMITTED)
        await happened(
            journal,
            once_more,
            TaskEndedRetryable(at=7.0, problem=problem),
            SubmitIntended(api="kontext", at=8.0),
        )
    shutil.copy(tmp_path / "backup", path)
    async with await Journal(path).open(accept_lost_records=True) as journal:
        found_states = await states(journal, 4)
    assert found_states == {
        "k0": JobState.IN_DOUBT,
        "k1": JobState.IN_DOUBT,
        "k2": JobState.DONE,
        "k3": JobState.PENDING,
    }


async def test_a_closed_journal_without_a_log_gets_one(path: Path) -> None:
    """It is opened, and its submits are logged."""
    async with Journal(path) as journal:
        first, *_ = await journal.add(entries(3))
        await happened(
            journal, first, SubmitIntended(api="kontext", at=1.0), SubmitAccepted(at=2.0, task_id=TaskId("t"))
        )
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM meta WHERE name = 'submit_log'")
    without(path, ".submits")
    async with Journal(path):
        assert [submit.key for submit in read_log(log_of(path))] == ["k0"]


# --- the log itself ---------------------------------------------------------------------------------------


def test_the_log_survives_a_line_that_was_cut(tmp_path: Path) -> None:
    """A line that a loss of power has cut is ignored, and the next line is a line of its own."""
    path = tmp_path / "log"
    first, second = LoggedSubmit(1, 10.5, JobKey('a b\n"é')), LoggedSubmit(2, 11.0, JobKey("c"))
    log = SubmitLog(path)
    log.make_room([first.key])
    log.append([first])
    log.close()
    with path.open("r+b") as file:
        file.seek(len(first.line))
        file.write(b'2 11.0 "c')
    assert last_of(path) == first
    log = SubmitLog(path)
    log.append([second])
    log.close()
    assert list(read_log(path)) == [first, second]
    assert last_of(path) == second
    with path.open("ab") as file:
        file.write(b"\n" * 100_000 + b"\0" * 100_000)
    assert last_of(path) == second


def test_the_last_line_of_a_long_log_is_found(tmp_path: Path) -> None:
    """Lines longer than a block, and many of them."""
    log = SubmitLog(tmp_path / "log")
    submits = [LoggedSubmit(n, float(n), JobKey("k" * (n * 997 % 40_000))) for n in range(1, 60)]
    for submit in submits:
        log.append([submit])
        assert last_of(tmp_path / "log") == submit
    log.close()
    assert list(read_log(tmp_path / "log")) == submits
    assert last_of(tmp_path / "none") is None


async def test_a_submit_that_cannot_be_logged_is_not_sent(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the line cannot be written, the job is as it was before the intent."""
    async with Journal(path) as journal:
        first, _ = await journal.add(entries(2))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(SubmitLog, "make_room", full)
        event = SubmitIntended(api="kontext", at=1.0)
        with pytest.raises(JournalError, match="No space left") as refused:
            await journal.record(first.number, apply(first.job, event), event)
        assert refused.value.scope is Scope.STOP
        assert await journal.counts() == {JobState.PENDING: 2}
        monkeypatch.undo()
        monkeypatch.setattr(SubmitLog, "append", full)
        with pytest.raises(JournalError, match="No space left"):
            await journal.record(first.number, apply(first.job, event), event)
        assert await journal.counts() == {JobState.PENDING: 2}
        monkeypatch.undo()
        (back, _) = await journal.jobs(JobState.PENDING)
        await happened(
            journal, back, SubmitIntended(api="kontext", at=2.0), SubmitAccepted(at=3.0, task_id=TaskId("t"))
        )
    assert [(submit.key, submit.at) for submit in read_log(log_of(path))] == [("k0", 2.0)]


# --- the files of a journal that was killed, in all combinations ----------------------------------------

MAIN = {"whole": "killed", "older": "closed", "missing": None}
WAL = {"whole": "killed", "cut": "killed", "missing": None}
LOG = {
    "whole": "killed",
    "of the run before": "closed",
    "half": "killed",
    "without submits": "killed",
    "empty": "",
    "missing": None,
}


def put(kept: Path, name: str, kind: str, source: str | None, to: Path) -> None:
    """Put one file in place, in an earlier state or damaged."""
    if source is not None:
        to.write_bytes((kept / source / name).read_bytes() if source else b"")
    if kind == "cut":
        os.truncate(to, to.stat().st_size // 2)
    if kind in {"half", "without submits"}:
        lines = to.read_bytes().rstrip(b"\n").splitlines(keepends=True)
        to.write_bytes(b"".join(lines[: -6 if kind == "half" else -12]))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a journal after a run that closed it with 2 submits, and one that was killed."""
    folder = tmp_path_factory.mktemp("kept")
    path = folder / "work" / "run.sqlite3"

    async def first_run() -> None:
        async with Journal(path) as journal:
            for number, stored in enumerate(await journal.add([(JobKey("a"), "{}"), (JobKey("b"), "{}")])):
                task = TaskId(f"first{number}")
                await happened(
                    journal,
                    stored,
                    SubmitIntended(api="kontext", at=1.0),
                    SubmitAccepted(at=2.0, task_id=task),
                )

    asyncio.run(first_run())
    shutil.copytree(path.parent, folder / "closed")
    killed_after(path, 30, 12)
    shutil.copytree(path.parent, folder / "killed")
    return folder


@pytest.mark.parametrize("log", LOG)
@pytest.mark.parametrize("wal", WAL)
@pytest.mark.parametrize("main", MAIN)
def test_only_files_that_fit_together_are_accepted(
    kept: Path, tmp_path: Path, main: str, wal: str, log: str
) -> None:
    """Others are refused without a change; after accepting the loss no submitted image is submitted again."""
    path = tmp_path / "out" / "run.sqlite3"
    path.parent.mkdir()
    put(kept, path.name, main, MAIN[main], path)
    put(kept, f"{path.name}-wal", wal, WAL[wal], path.with_name(f"{path.name}-wal"))
    put(kept, f"{path.name}.submits", log, LOG[log], log_of(path))
    is_fresh = main == wal == log == "missing"
    is_whole = main in {"whole", "older"} and wal == log == "whole"  # the -wal file has all later records
    # An older, closed journal is complete by itself if no trace of a later run is left.
    is_older = main == "older" and wal == "missing" and log not in {"whole", "half"}
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if "shm" not in file.name}

    async def open_it(*, accept: bool) -> dict[str, JobState]:
        async with await Journal(path).open(accept_lost_records=accept) as journal:
            await journal.recover()
            return await states(journal, 30)

    if is_fresh or is_whole or is_older:
        found = asyncio.run(open_it(accept=False))
        assert is_whole == (found["k11"] is JobState.SUBMITTED)
        return
    with pytest.raises(JournalRecordsLost):
        asyncio.run(open_it(accept=False))
    assert before.items() <= {file.name: file.read_bytes() for file in path.parent.iterdir()}.items()
    found = asyncio.run(open_it(accept=True))
    if not (main == "missing" and log == "of the run before"):  # the log does not name its submits
        assert not {JobState.PENDING, JobState.FAILED} & {found[f"k{number}"] for number in range(12)}
    assert asyncio.run(open_it(accept=False)) == found
