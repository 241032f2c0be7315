"""The journal on a real file: its content after each write, its locks, and files that it leaves alone."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux_async import CustomModel, GenerateRequest
from flux_async.api.stored_requests import store_request
from flux_async.errors import (
    Charge,
    JobConflictError,
    JournalBusyError,
    JournalError,
    JournalVersionError,
    Scope,
)
from flux_async.job_state import (
    Event,
    JobSnapshot,
    JobState,
    ResubmitGranted,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitUnknown,
    TaskSucceeded,
    apply,
)
from flux_async.journal.reader import JournalReader, Spending
from flux_async.journal.schema import SCHEMA_VERSION
from flux_async.journal.store import Journal
from flux_async.journal.writer import RESERVE_SIZE, RESERVE_STEP, Reserve, Writer
from flux_async.models import JobKey, TaskId
from journal_records import PROBLEM, URL, happened, line_of, rows

WAIT_S = 60


def entries(count: int, first: int = 0) -> list[tuple[JobKey, str]]:
    return [(JobKey(f"k{n}"), f'{{"n":{n}}}') for n in range(first, first + count)]


def life(task: str = "t") -> tuple[Event, ...]:
    """Return the events of a job that succeeds."""
    return (
        SubmitIntended(api="kontext", at=10.0),
        SubmitAccepted(at=11.0, task_id=TaskId(task)),
        TaskSucceeded(at=12.0, result_url=URL, origin_url=URL, generation_s=7.5),
        Saved(at=13.0, file="a.jpg"),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


# --- writing and reading ----------------------------------------------------------------------------------


async def test_every_field_of_a_job_is_read_back(path: Path) -> None:
    """A journal that is opened later has all recorded fields, and an event for each change."""
    async with Journal(path) as journal:
        done, in_doubt, pending = await journal.add(entries(3))
        first = await happened(journal, done, *life())
        second = await happened(
            journal, in_doubt, SubmitIntended(api="kontext", at=20.0), SubmitUnknown(at=21.0, problem=PROBLEM)
        )
    async with Journal(path) as journal:
        back = await journal.job("k0")
        assert back is not None
        assert back.job == first
        assert (back.number, back.request) == (done.number, '{"n":0}')
        assert [stored.job for stored in await journal.jobs(JobState.IN_DOUBT)] == [second]
        assert await journal.jobs(JobState.PENDING) == [pending]
        assert await journal.job("unheard-of") is None
        assert await journal.counts() == {JobState.DONE: 1, JobState.IN_DOUBT: 1, JobState.PENDING: 1}
        assert await journal.submits_since(15.0) == [20.0]
        assert await journal.submits_since(0.0) == [10.0, 20.0]
    log = rows(path, "SELECT type FROM event WHERE job = 1 ORDER BY number")
    assert log == [("SubmitIntended",), ("SubmitAccepted",), ("TaskSucceeded",), ("Saved",)]


async def test_the_same_list_again_adds_nothing(path: Path) -> None:
    """Adding known jobs returns them in their state; a key given twice is one job."""
    async with Journal(path) as journal:
        first = await journal.add(entries(3))
        job = await happened(journal, first[1], *life())
        again = await journal.add([*entries(4), *entries(2)])
    assert [stored.number for stored in again] == [1, 2, 3, 4]
    assert again[1].job == job
    assert rows(path, "SELECT count(*) FROM job") == [(4,)]


async def test_another_request_under_a_known_key_adds_nothing(path: Path) -> None:
    """A conflicting key refuses its own list and no other."""
    async with Journal(path) as journal:
        await journal.add(entries(1))
        wrong = [*entries(2, first=5), (JobKey("k0"), '{"n":"other"}')]

        async def refused() -> None:
            with pytest.raises(JobConflictError, match="'k0'"):
                await journal.add(wrong)

        async with asyncio.TaskGroup() as group:
            group.create_task(refused())
            group.create_task(journal.add(entries(1, first=9)))
    assert rows(path, "SELECT key FROM job ORDER BY number") == [("k0",), ("k9",)]


async def test_a_corrected_price_of_a_model_is_no_conflict(path: Path) -> None:
    """Price and limits of a model of the caller's own are not submitted; another extra is."""

    def stored(**changes: Any) -> str:
        fields = {"id": "lab/x", "credits": 3, "image_field": "image", "needs_image": False, **changes}
        return store_request(GenerateRequest(prompt="A lighthouse", model=CustomModel(**fields)))

    key = JobKey("poster")
    async with Journal(path) as journal:
        (job,) = await journal.add([(key, stored())])
    async with Journal(path) as journal:
        (again,) = await journal.add([(key, stored(credits=8, max_prompt=500))])
        assert again == attrs.evolve(job, request=stored(credits=8, max_prompt=500))
        with pytest.raises(JobConflictError, match="customModel differs"):
            await journal.add([(key, stored(extras={"quality": "high"}))])
        await happened(
            journal, again, SubmitIntended(at=1, api="jobs"), SubmitAccepted(at=2, task_id=TaskId("t"))
        )
        with JournalReader(path) as reader:
            assert reader.spending() == [Spending(model="lab/x", tasks=1, perhaps=0, price=8)]
    assert rows(path, "SELECT count(*) FROM event WHERE type = 'AddressRenewed'") == [(0,)]


async def test_many_writers_share_a_commit(path: Path) -> None:
    """Writes that wait at the same time share a commit, and each returns after it."""
    async with Journal(path) as journal:
        jobs = await journal.add(entries(200))
        before = journal.commits
        async with asyncio.TaskGroup() as group:
            for stored in jobs:
                group.create_task(happened(journal, stored, *life(f"t{stored.number}")))
        commits = journal.commits - before
    assert rows(path, "SELECT count(*) FROM event") == [(800,)]
    assert commits < 200


async def test_a_failing_write_does_not_fail_the_others(path: Path) -> None:
    """A write that fails in a shared commit fails alone; the others are written."""
    async with Journal(path) as journal:
        good, _ = await journal.add(entries(2))
        unknown = good.job
        async with asyncio.TaskGroup() as group:
            written = group.create_task(happened(journal, good, SubmitIntended(api="kontext", at=1.0)))

            async def wrong() -> None:
                with pytest.raises(JournalError, match="does not hold"):
                    await journal.record(99, unknown, SubmitIntended(api="kontext", at=1.0))

            group.create_task(wrong())
        assert written.result().state is JobState.SUBMITTING
    assert rows(path, "SELECT state FROM job WHERE number = 1") == [("submitting",)]


async def test_the_database_refuses_a_second_live_attempt(path: Path) -> None:
    """A job cannot have two live attempts, whatever the code above the database does."""
    async with Journal(path) as journal:
        (stored,) = await journal.add(entries(1))
        job = await happened(journal, stored, SubmitIntended(api="kontext", at=1.0))
        forged = JobSnapshot(key=job.key, state=JobState.SUBMITTING, attempts=2, charge=Charge.MAYBE)
        with pytest.raises(JournalError, match="UNIQUE"):
            await journal.record(stored.number, forged, SubmitIntended(api="kontext", at=2.0))
        (still,) = await journal.jobs(JobState.SUBMITTING)
        assert still.job == job
        granted = await happened(
            journal, still, SubmitUnknown(at=3.0, problem=PROBLEM), ResubmitGranted(at=4.0)
        )
        await journal.record(
            stored.number,
            apply(granted, SubmitIntended(api="kontext", at=5.0)),
            SubmitIntended(api="kontext", at=5.0),
        )
    assert rows(path, "SELECT number, state FROM attempt") == [(1, "over"), (2, "submitting")]


async def test_a_write_for_a_stale_state_is_refused(path: Path) -> None:
    """A caller with an outdated state writes neither state nor event."""
    async with Journal(path) as journal:
        (stored,) = await journal.add(entries(1))
        await happened(journal, stored, *life())
        event = SubmitIntended(api="kontext", at=50.0)
        with pytest.raises(JournalError, match="another state by now"):
            await journal.record(stored.number, apply(stored.job, event), event, before=stored.job)
        assert await journal.counts() == {JobState.DONE: 1}
    assert rows(path, "SELECT count(*) FROM event") == [(4,)]


async def test_two_events_at_once_are_written_together_or_not_at_all(path: Path) -> None:
    """One commit holds both; if the first is refused, so is the second."""
    intended, accepted, succeeded, saved = life()
    async with Journal(path) as journal:
        (stored,) = await journal.add(entries(1))
        job = await happened(journal, stored, intended, accepted)
        generated = apply(job, succeeded)
        both = {"before": job, "then": (apply(generated, saved), saved)}
        before = journal.commits
        await journal.record(stored.number, generated, succeeded, **both)
        assert journal.commits == before + 1
        with pytest.raises(JournalError):
            await journal.record(stored.number, generated, succeeded, **both)
        found = await journal.job("k0")
        assert found is not None
        assert found.job == apply(generated, saved)
    names = [name for (name,) in rows(path, "SELECT type FROM event ORDER BY number")]
    assert names == ["SubmitIntended", "SubmitAccepted", "TaskSucceeded", "Saved"]


async def test_a_cancelled_writer_has_written(path: Path) -> None:
    """Cancelling a caller does not undo its write."""
    async with Journal(path) as journal:
        (stored,) = await journal.add(entries(1))
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(happened(journal, stored, SubmitIntended(api="kontext", at=1.0)))
            await asyncio.sleep(0)
            writing.cancel()
        assert writing.cancelled()
    assert rows(path, "SELECT state FROM job") == [("submitting",)]


async def test_a_journal_in_memory_works_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``:memory:`` stores the same and leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    async with Journal() as journal:
        (stored,) = await journal.add(entries(1))
        job = await happened(journal, stored, *life())
        assert [found.job for found in await journal.jobs(JobState.DONE)] == [job]
        forged = JobSnapshot(key=job.key, state=JobState.SUBMITTING, attempts=1)
        with pytest.raises(JournalError):
            await journal.record(stored.number, forged, SubmitIntended(api="kontext", at=2.0))
    assert list(tmp_path.iterdir()) == []


async def test_the_queue_has_the_highest_priority_first(path: Path) -> None:
    """Jobs of one priority keep the order of their arrival; trace and priority survive the process."""
    async with Journal(path) as journal:
        await journal.add([(JobKey("first"), "{}"), (JobKey("second"), "{}")])
        await journal.add([(JobKey("urgent"), "{}")], trace="00-trace", priority=5)
        await journal.add([(JobKey("urgent"), "{}")], trace="00-other", priority=7)  # it is there already
    async with Journal(path) as journal:
        assert [key for _, _, key in await journal.queue()] == ["urgent", "first", "second"]
        urgent = await journal.job("urgent")
        assert urgent is not None
        assert (urgent.trace, urgent.priority) == ("00-trace", 5)


async def test_jobs_come_in_pages(path: Path) -> None:
    """A page has at most its limit of jobs and starts after the given number."""
    async with Journal(path) as journal:
        await journal.add(entries(5))
        page = await journal.jobs(JobState.PENDING, after=2, limit=2)
    assert [stored.number for stored in page] == [3, 4]


async def test_an_open_journal_is_not_opened_again(path: Path) -> None:
    """Opening an open journal is an error, and it stays open."""
    async with Journal(path) as journal:
        with pytest.raises(JournalError, match="open already"):
            await journal.open()
        assert await journal.counts() == {}


async def test_one_open_journal_runs_one_batch_at_a_time() -> None:
    """A second run of an open journal is refused until the first ends."""
    async with Journal() as journal:
        with journal.one_run(), pytest.raises(JournalBusyError), journal.one_run():
            pass
        with journal.one_run():
            pass


async def test_a_closed_journal_raises(path: Path) -> None:
    """The error of a journal that is not open names how to open it; closing twice does nothing."""
    journal = Journal(path)
    with pytest.raises(JournalError, match="not open"):
        await journal.counts()
    await journal.open()
    await journal.aclose()
    await journal.aclose()
    with pytest.raises(JournalError, match="not open"):
        await journal.counts()


# --- kill -9 ----------------------------------------------------------------------------------------------

_RECORDER = """
import asyncio, sys
from flux_async.journal.reader import JournalReader, Spending
from flux_async.journal.schema import SCHEMA_VERSION
from flux_async.journal.store import Journal
from flux_async.job_state import SubmitIntended, apply
from flux_async.models import JobKey

async def main():
    async with Journal(sys.argv[1]) as journal:
        print("open", flush=True)
        if len(sys.argv) > 2:
            for n in range(int(sys.argv[2])):
                (stored,) = await journal.add([(JobKey(f"k{n}"), "{}")])
                event = SubmitIntended(api="kontext", at=float(n))
                await journal.record(stored.number, apply(stored.job, event), event)
                print("recorded", n, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Open the journal in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", _RECORDER, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert line_of(process) == "open"
            yield process
        finally:
            process.kill()


async def test_what_was_reported_survives_sigkill(path: Path) -> None:
    """A process killed right after it printed 'recorded N' has N on disk, and the file is sound."""
    last = 7
    with child(str(path), "1000") as process:
        while line_of(process) != f"recorded {last}":
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
    async with Journal(path) as journal:
        kept = await journal.jobs(JobState.SUBMITTING)
        assert {f"k{n}" for n in range(last + 1)} <= {stored.job.key for stored in kept}
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_the_lock_names_its_owner_and_ends_with_it(path: Path) -> None:
    """The error names the owner's pid; when the owner is killed the journal can be opened."""
    with child(str(path)) as process:
        before = path.read_bytes()
        with pytest.raises(JournalBusyError, match=rf"process {process.pid}\b"):
            await Journal(path).open()
        assert path.read_bytes() == before
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
    async with Journal(path) as journal:
        assert await journal.counts() == {}


async def test_the_lock_holds_without_its_lock_file(path: Path) -> None:
    """After its lock file was deleted a run still keeps others out."""
    with child(str(path)):
        path.with_name(path.name + ".lock").unlink()
        with pytest.raises(JournalBusyError):
            await Journal(path).open()


async def test_the_lock_holds_within_a_process(path: Path) -> None:
    """The journal cannot be opened twice in one process either; closing releases it."""
    async with Journal(path):
        with pytest.raises(JournalBusyError, match=rf"process {os.getpid()}\b"):
            await Journal(path).open()
        with pytest.raises(JournalBusyError):
            await Journal(path.parent / "." / path.name).open()
    async with Journal(path):
        pass


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder and a home folder of the test's own; the first is returned."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


async def test_locks_leave_no_file_behind(path: Path, temporary: Path) -> None:
    """The locks named after path and inode are removed with the lock, if they are its own."""
    private = temporary / f"flux-async-{os.getuid()}"
    async with Journal(path):
        locks = list(private.iterdir())
        assert len(locks) == 2
    assert list(private.iterdir()) == []
    async with Journal(path):
        for lock in locks:
            lock.unlink()
            lock.write_text("made by another process since")
    assert sorted(private.iterdir()) == sorted(locks)


async def test_the_folder_of_locks_is_private(path: Path, temporary: Path) -> None:
    """Only this user can write to it."""
    async with Journal(path):
        assert [(temporary / f"flux-async-{os.getuid()}").stat().st_mode & 0o777] == [0o700]


def _writable_by_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def _a_file(folder: Path) -> None:
    folder.touch()


def _a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def _of_another_user(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    try:
        os.chown(folder, 12345, 12345)
    except PermissionError:
        pytest.skip("only root can give a folder away")


@pytest.mark.parametrize("prepared", [_writable_by_others, _a_file, _a_link, _of_another_user])
async def test_a_lock_folder_that_others_prepared_is_not_used(
    path: Path, tmp_path: Path, temporary: Path, prepared: Callable[[Path], None]
) -> None:
    """Another user's folder of that name neither blocks a run nor leaves it without locks."""
    prepared(temporary / f"flux-async-{os.getuid()}")
    async with Journal(path):
        (locks,) = (tmp_path / "home" / ".cache" / "flux-async").iterdir()
        assert len(list(locks.iterdir())) == 2
        path.with_name(path.name + ".lock").unlink()
        with pytest.raises(JournalBusyError, match=rf"process {os.getpid()}, though"):
            await Journal(path).open()


async def test_without_a_private_folder_for_locks_nothing_is_opened(
    path: Path, tmp_path: Path, temporary: Path
) -> None:
    """The error names the folders; the journal is not opened without its locks."""
    _writable_by_others(temporary / f"flux-async-{os.getuid()}")
    (tmp_path / "home").touch()
    with pytest.raises(JournalError, match="private to this user: tried .*temporary.* and .*home"):
        await Journal(path).open()
    assert not path.exists()


async def test_a_new_folder_at_the_path_of_a_moved_one_is_refused_during_the_run(tmp_path: Path) -> None:
    """While a run lasts, no other one starts at the former path of its folder."""
    folder = tmp_path / "out"
    async with Journal(folder / "run.sqlite3"):
        folder.rename(tmp_path / "moved")
        with pytest.raises(JournalBusyError, match=rf"process {os.getpid()}, though .* folder moved"):
            await Journal(folder / "run.sqlite3").open()
        with pytest.raises(JournalBusyError, match=rf"process {os.getpid()}\."):
            await Journal(tmp_path / "moved" / "run.sqlite3").open()
    async with Journal(folder / "run.sqlite3"):
        pass


_TAKER = """
import os, sys
from pathlib import Path
from typing import Any
from flux_async.errors import JournalBusyError
from flux_async.journal.lock import JournalLock

journal, marker, turns = Path(sys.argv[1]), Path(sys.argv[2]), 0
while turns < 100:
    try:
        lock = JournalLock.take(journal, at=0.0)
    except JournalBusyError:
        continue
    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    marker.unlink()
    lock.release()
    turns += 1
"""


def test_a_lock_never_has_two_owners(path: Path, tmp_path: Path) -> None:
    """Three processes take and release it a hundred times each, by three names of one file."""
    path.touch()
    names = [path, *(tmp_path / f"link{n}.sqlite3" for n in range(2))]
    for name in names[1:]:
        os.link(path, name)
    takers = [
        subprocess.Popen([sys.executable, "-c", _TAKER, str(name), str(tmp_path / "marker")])
        for name in names
    ]
    try:
        assert [taker.wait(WAIT_S) for taker in takers] == [0, 0, 0]
    finally:
        for taker in takers:
            taker.kill()


# --- files that are left alone ----------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("image,key\nhttps://example/1.jpg,a\n")


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE bookmarks (url TEXT); INSERT INTO bookmarks VALUES ('x');")


def _with_version(version: int, path: Path) -> None:
    asyncio.run(_make(path))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA user_version = {version}; PRAGMA journal_mode = DELETE;")


_older, _newer = partial(_with_version, 1), partial(_with_version, SCHEMA_VERSION + 1)


def _corrupt(path: Path) -> None:
    asyncio.run(_make(path))
    content = bytearray(path.read_bytes())
    page = 4096
    for offset in range(page, len(content), page):
        content[offset : offset + 200] = b"\xff" * 200
    path.write_bytes(content)


def _cut(path: Path) -> None:
    asyncio.run(_make(path))
    path.write_bytes(path.read_bytes()[:5000])


def _scrambled_header(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\x00" + bytes(range(256)) * 40)


async def _make(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.add(entries(200))


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (_text, JournalError, "is not a journal"),
        (_foreign, JournalError, "another program's database"),
        (_older, JournalVersionError, "unsupported journal version 1: this release supports 3"),
        (_newer, JournalVersionError, "unsupported journal version 5: this release supports 3 to 4"),
        (_corrupt, JournalError, "damaged"),
        (_cut, JournalError, "damaged"),
        (_scrambled_header, JournalError, "damaged"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_strange_files_are_left_alone(
    path: Path, spoil: Callable[[Path], None], error: type[JournalError], words: str
) -> None:
    """A file that is not a sound journal is refused with a reason, and not one byte of it changes."""
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(error, match=words) as refused:
        asyncio.run(Journal(path).open())
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["folder", "under a file"])
async def test_a_path_that_cannot_hold_a_file_is_a_journal_error(tmp_path: Path, place: str) -> None:
    """Not a bare OSError."""
    (tmp_path / "file").write_text("x")
    where = tmp_path if place == "folder" else tmp_path / "file" / "run.sqlite3"
    with pytest.raises(JournalError):
        await Journal(where).open()


_OPENER = """
import asyncio, concurrent.futures.thread, fcntl, os, sqlite3, sys
from flux_async.journal.reader import JournalReader, Spending
from flux_async.journal.schema import SCHEMA_VERSION
from flux_async.journal.store import Journal
from flux_async.errors import JournalError
if os.getuid() == 0:  # root may write anywhere
    os.setgid(65534)
    os.setuid(65534)
try:
    asyncio.run(Journal(sys.argv[1]).open())
except JournalError as error:
    print(error)
"""


@pytest.mark.parametrize("only", ["file", "folder"])
def test_a_read_only_journal_is_refused(only: str) -> None:
    """A journal that cannot be written, or is in a read-only folder, is refused and not touched."""
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        path = folder / "run.sqlite3"
        asyncio.run(_make(path))
        before = path.read_bytes()
        path.chmod(0o444 if only == "file" else 0o666)
        folder.chmod(0o777 if only == "file" else 0o555)
        done = subprocess.run(
            [sys.executable, "-c", _OPENER, str(path)],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert re.search("not writable|Permission denied", done.stdout), done.stderr
        assert path.read_bytes() == before
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


async def test_another_key_is_refused(path: Path) -> None:
    """Tasks are not polled with the key of another account; the same key opens the journal."""
    async with await Journal(path).open(account="ours") as journal:
        (stored,) = await journal.add(entries(1))
        await happened(journal, stored, *life())
    with pytest.raises(JournalError, match="another key"):
        await Journal(path).open(account="theirs")
    async with await Journal(path).open(account="ours"):
        pass


async def test_the_first_key_is_stored(path: Path) -> None:
    """A journal made without an account belongs to the first one that uses it."""
    async with Journal(path):
        pass
    async with await Journal(path).open(account="ours") as journal:
        (stored,) = await journal.add(entries(1))
        await happened(journal, stored, *life())
    with pytest.raises(JournalError, match="another key"):
        await Journal(path).open(account="theirs")


# --- a full disk ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB, if the machine allows to make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.getuid() != 0 or mount is None:
        pytest.skip("needs root to mount a small tmpfs")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], check=False)
    if made.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_leaves_a_sound_journal(small_disk: Path) -> None:
    """A write to a full disk raises JournalError; all earlier writes are kept."""
    path = small_disk / "run.sqlite3"
    added = asyncio.run(_fill(path))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    asyncio.run(_check_filled(path, added))
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def _fill(path: Path) -> int:
    added = 0
    async with Journal(path) as journal:
        with pytest.raises(JournalError, match=r"full\. Make room") as caught:
            for _ in range(1000):
                await journal.add([(JobKey(f"k{added}"), "x" * 2000)])
                added += 1
        assert caught.value.scope is Scope.STOP
        assert await journal.counts() == {JobState.PENDING: added}
    return added


async def _check_filled(path: Path, added: int) -> None:
    async with Journal(path) as journal:
        assert await journal.counts() == {JobState.PENDING: added}
        await journal.add([(JobKey("one more"), "x" * 2000)])


_CALLS = (
    (os, "open"),
    (os, "ftruncate"),
    (os, "pwrite"),
    (os, "fsync"),
    (os, "fdatasync"),
    (fcntl, "flock"),
    (Path, "stat"),
    (Path, "mkdir"),
)


def _fail_call(patch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Let call number ``at`` of the calls that open a journal fail, as on a full disk; return the calls."""
    made: list[str] = []

    def failing(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def replaced(*args: object, **options: object) -> object:
            made.append(name)
            if len(made) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **options)

        return replaced

    for owner, name in _CALLS:
        if hasattr(owner, name):
            patch.setattr(owner, name, failing(name, getattr(owner, name)))
    return made


async def _open_with_failing_call(path: Path, at: int) -> tuple[int, JournalError | None]:
    """Open and close a journal while a call fails; return the number of calls and the error."""
    with pytest.MonkeyPatch.context() as patch:
        made = _fail_call(patch, at)
        try:
            await (await Journal(path).open()).aclose()
        except JournalError as error:
            return len(made), error
    return len(made), None


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_full_disk_while_opening_is_a_journal_error_and_holds_no_lock(
    tmp_path: Path, temporary: Path, is_new: bool
) -> None:
    """Whichever call fails: the error says so, no file stays open, and the journal opens afterwards."""
    errors: list[JournalError] = []
    at = calls = 0
    while calls >= at:  # the call was made
        at += 1
        path = tmp_path / str(at) / "run.sqlite3"
        if not is_new:
            await _make(path)
        before = sorted(Path("/dev/fd").iterdir())
        calls, error = await _open_with_failing_call(path, at)
        errors.extend([] if error is None else [error])
        assert sorted(Path("/dev/fd").iterdir()) == before, error
        async with Journal(path):
            pass
    assert len(errors) > 10
    for error in errors:
        assert re.search(r"No space left on device.*Make room", str(error))
        assert error.scope is Scope.STOP


# --- room for answers -------------------------------------------------------------------------------------


async def test_answers_are_written_to_a_disk_that_is_full(tmp_path: Path) -> None:
    """Room is made for answers to paid submits only; each write returns or raises."""
    room: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        made = sqlite3.connect(tmp_path / "x.sqlite3", isolation_level=None)
        made.execute("CREATE TABLE t (x)")
        made.execute("PRAGMA max_page_count = 2")  # as full as a disk can be
        room.append(made)
        return made

    def make_room() -> bool:
        pages = 2 + len(steps)
        room[0].execute(f"PRAGMA max_page_count = {pages}")
        steps.append(pages)
        return pages < 9

    def insert(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (?)", (b"x" * 3000,))

    async def write(*, critical: bool) -> None:
        try:
            await writer.do(insert, critical=critical)
        except JournalError:
            results.append((critical, False))
        else:
            results.append((critical, True))

    steps: list[int] = []
    results: list[tuple[bool, bool]] = []
    writer = Writer(connect, asyncio.get_running_loop(), make_room)
    await writer.start()
    try:
        async with asyncio.TaskGroup() as group:
            for critical in (False, True, True, False):
                group.create_task(write(critical=critical))
        assert sorted(results) == [(False, False), (False, False), (True, True), (True, True)]
        assert 1 < len(steps) < 7, "no more than needed"
        steps.extend(range(9))
        with pytest.raises(JournalError, match="full"):
            for _ in range(20):
                await writer.do(insert, critical=True)
    finally:
        await writer.stop()
    (written,) = rows(tmp_path / "x.sqlite3", "SELECT count(*) FROM t")[0]
    assert written >= 2


def test_a_reserve_allocates_blocks_and_releases_them_in_steps(tmp_path: Path) -> None:
    """It is filled up again after an earlier run has used some of it, and leaves no file behind."""
    file, reserve = tmp_path / "j.reserve", Reserve(tmp_path / "j")
    assert not reserve.release_step()
    for _ in range(2):
        reserve.hold()
        assert file.stat().st_size == RESERVE_SIZE
        assert file.stat().st_blocks * 512 >= RESERVE_SIZE
        assert reserve.release_step()
    assert sum(iter(reserve.release_step, False)) == RESERVE_SIZE // RESERVE_STEP - 1
    assert file.stat().st_size == 0
    reserve.release()
    reserve.release()
    assert list(tmp_path.iterdir()) == []


async def test_a_reserve_lasts_as_long_as_the_journal_is_open(path: Path) -> None:
    """Only a run needs it."""
    file = path.with_name("run.sqlite3.reserve")
    async with Journal(path) as journal:
        assert not file.exists()
        await journal.reserve_room()
        assert file.exists()
    assert not file.exists()
    async with Journal() as journal:
        await journal.reserve_room()


def test_no_space_for_a_reserve_is_an_error(small_disk: Path) -> None:
    """The part that could be allocated is released."""
    (small_disk / "ballast").write_bytes(bytes(200 * 1024))
    with pytest.raises(JournalError, match=r"no room .* Make room"):
        Reserve(small_disk / "j").hold()
    assert [entry.name for entry in small_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("has_call", [False, True])
def test_a_reserve_without_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_call: bool) -> None:
    """If the system or the disk does not support the call, the file is written."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    if has_call:
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    Reserve(tmp_path / "j").hold()
    assert (tmp_path / "j.reserve").stat().st_blocks * 512 >= RESERVE_SIZE
