"""Callbacks on disk: writing them from any process, their limits, and files that are left alone."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flux_async import (
    CallbackEvent,
    JobKey,
    Journal,
    JournalError,
    JournalVersionError,
    TaskId,
    WrongEventLoop,
)
from flux_async.job_state import (
    Event,
    ResubmitGranted,
    Saved,
    SubmitAccepted,
    SubmitIntended,
    SubmitUnknown,
    TaskSucceeded,
    apply,
)
from flux_async.journal.guard import open_file
from flux_async.journal.inbox import Inbox
from flux_async.journal.schema import APPLICATION_ID, SCHEMA_VERSION
from flux_async.journal.store import StoredJob
from journal_records import PROBLEM, URL, happened, line_of, rows

WAIT_S = 60
INBOX = "SELECT callback_id, task_id, signed, code, deliveries FROM inbox"


def attempt_id(number: int) -> str:
    return f"{number:032x}"


def event(
    task: str, attempt: str | None = attempt_id(1), *, signed: bool = True, code: int = 200
) -> CallbackEvent:
    return CallbackEvent(task_id=TaskId(task), code=code, attempt_id=attempt, signed=signed)


async def submitting(journal: Journal, count: int = 1) -> list[StoredJob]:
    """Add jobs and start an attempt of each; the attempt's id is made from the job's number."""
    added = await journal.add([(JobKey(f"k{n}"), "{}") for n in range(1, count + 1)])
    for stored in added:
        intent = SubmitIntended(
            api="kontext", at=1.0, callback_id=attempt_id(stored.number), trace=f"00-{stored.job.key}"
        )
        await happened(journal, stored, intent)
    return added


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


# --- beside a run -----------------------------------------------------------------------------------------

_RUNNER = """
import asyncio, sys
from flux_async import JobKey, Journal
from flux_async.job_state import SubmitIntended, apply

async def main():
    async with Journal(sys.argv[1]) as journal:
        (stored,) = await journal.add([(JobKey("k1"), "{}")])
        intent = SubmitIntended(api="kontext", at=1.0, callback_id=f"{1:032x}")
        await journal.record(stored.number, apply(stored.job, intent), intent)
        print("open", flush=True)
        while not await journal.newest_callback():
            await asyncio.sleep(0.01)
        (entry,) = await journal.callbacks_for(stored.number)
        print(entry.task_id, flush=True)

asyncio.run(main())
"""


@contextmanager
def child(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_beside_a_run_in_another_process(path: Path) -> None:
    """A run in another process reads the callback from the file."""
    with child(_RUNNER, str(path)) as run:
        assert line_of(run) == "open"
        async with Inbox(path) as inbox:
            await inbox.receive(event("t"))
        assert await asyncio.to_thread(line_of, run) == "t"


async def test_beside_a_run_in_this_process(path: Path) -> None:
    """An inbox and the journal of a run share a file also within one process."""
    async with Journal(path) as journal, Inbox(path) as inbox:
        (stored,) = await submitting(journal)
        assert await journal.newest_callback() == 0
        await inbox.receive(event("t"))
        assert await journal.newest_callback() == 1
        assert not journal.callback_arrived.is_set()
        await journal.receive(event("u"))
        assert journal.callback_arrived.is_set()
        await inbox.aclose()
        assert [entry.task_id for entry in await journal.callbacks_for(stored.number)] == ["t", "u"]
        with pytest.raises(JournalError, match="being run"):
            await Journal(path).open()
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_on_another_event_loop(path: Path) -> None:
    """Using a journal or an inbox on another loop is an error with advice; nothing is written."""
    async with Journal(path) as journal:
        await submitting(journal)
        async with Inbox(path) as inbox:
            for keeper in (journal, inbox):
                with pytest.raises(WrongEventLoop, match="path"):
                    await asyncio.to_thread(asyncio.run, keeper.receive(event("t")))
        assert not journal.callback_arrived.is_set()
        assert await journal.newest_callback() == 0


async def test_before_there_is_a_journal(path: Path) -> None:
    """An inbox makes the file with its folder; a run then opens it, and later callbacks are stored."""
    path = path.with_name("new") / path.name
    async with Inbox(path) as inbox:
        await inbox.receive(event("early"))
        async with Journal(path) as journal:
            (stored,) = await submitting(journal)
            await inbox.receive(event("t"))
            assert [entry.task_id for entry in await journal.callbacks_for(stored.number)] == ["t"]
    async with Journal(path) as journal:
        assert [entry.task_id for entry in await journal.callbacks_for(stored.number)] == ["t"]
    assert rows(path, INBOX) == [(attempt_id(1), "t", 1, 200, 1)]


async def test_many_receivers_at_once(path: Path) -> None:
    """Receivers in several threads and loops write into one file, and every delivery is counted."""
    async with Journal(path) as journal:
        await submitting(journal, 5)

        async def deliver() -> None:
            async with Inbox(path) as inbox, asyncio.TaskGroup() as group:
                for number in range(1, 6):
                    group.create_task(inbox.receive(event("t", attempt_id(number))))

        threads = [threading.Thread(target=asyncio.run, args=(deliver(),)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert rows(path, "SELECT task_id, deliveries FROM inbox") == [("t", 6)] * 5


# --- stored callbacks -------------------------------------------------------------------------------------


async def test_only_callbacks_that_name_an_attempt_are_stored(path: Path) -> None:
    """A callback without an attempt, or with an unknown one, leaves nothing; it is no error."""
    async with Journal(path) as journal, Inbox(path) as inbox:
        await submitting(journal)
        for keeper in (journal, inbox):
            await keeper.receive(event("t", None))
            await keeper.receive(event("t", attempt_id(2)))
            await keeper.receive(event("t", "' OR 1=1 --"))
    assert rows(path, INBOX) == []


async def test_repeated_deliveries_are_counted(path: Path) -> None:
    """Equal deliveries are one entry, with their number and the code of the first."""
    async with Journal(path) as journal, Inbox(path) as inbox:
        await submitting(journal)
        await inbox.receive(event("t", code=501))
        await inbox.receive(event("t", code=200))
        await journal.receive(event("t"))
        await inbox.receive(event("t", signed=False))
    assert rows(path, INBOX) == [(attempt_id(1), "t", 1, 501, 3), (attempt_id(1), "t", 0, 200, 1)]


async def test_tasks_of_an_attempt_are_bounded(path: Path) -> None:
    """Eight tasks can be named for an attempt; unsigned callbacks do not displace signed ones."""
    async with Journal(path) as journal, Inbox(path) as inbox:
        await submitting(journal, 2)
        for number in range(20):
            await inbox.receive(event(f"forged{number}", signed=False))
        for number in range(20):
            await inbox.receive(event(f"t{number}"))
        await inbox.receive(event("t7"))
        await inbox.receive(event("t8"))
        await inbox.receive(event("other", attempt_id(2)))
    assert rows(path, "SELECT signed, count(*), sum(deliveries) FROM inbox GROUP BY 1") == [
        (0, 8, 8),
        (1, 9, 10),
    ]
    assert rows(path, "SELECT task_id FROM inbox WHERE callback_id LIKE '%2'") == [("other",)]


async def test_a_run_reads_callbacks_of_waiting_jobs(path: Path) -> None:
    """Callbacks are read in order of arrival, of jobs that wait for something; or those of one job."""
    async with Journal(path) as journal:
        _, submitted, in_doubt, done, again = await submitting(journal, 5)

        async def go_on(stored: StoredJob, *events: Event) -> None:
            job = (await journal.job(stored.job.key) or stored).job
            for one in events:
                job = apply(job, one)
                await journal.record(stored.number, job, one)

        accepted = SubmitAccepted(at=2.0, task_id=TaskId("t"))
        unknown = SubmitUnknown(at=2.0, problem=PROBLEM)
        succeeded = TaskSucceeded(at=3.0, result_url=URL, origin_url=URL, generation_s=1.0)
        await go_on(submitted, accepted)
        await go_on(in_doubt, unknown)
        await go_on(done, SubmitAccepted(at=2.0, task_id=TaskId("u")), succeeded, Saved(at=4.0, file="a.jpg"))
        await go_on(
            again,
            unknown,
            ResubmitGranted(at=3.0),
            SubmitIntended(api="kontext", at=4.0, callback_id=attempt_id(99)),
        )
        for number in (5, 4, 3, 2, 1, 99):
            await journal.receive(event(f"t{number}", attempt_id(number), signed=number != 3))
        await journal.receive(event("t4", attempt_id(4)))

        entries, newest = await journal.callbacks_after(0)
        assert newest == 6
        assert await journal.newest_callback() == 6
        assert [(entry.number, entry.task_id, entry.callback_id) for entry in entries] == [
            (number, f"t{n}", attempt_id(n)) for number, n in ((1, 5), (3, 3), (4, 2), (5, 1), (6, 99))
        ]
        assert (entries[1].job, entries[1].signed, entries[2].signed) == ("k3", False, True)
        assert entries[0].at <= entries[1].at
        assert {entry.trace for entry in entries} == {f"00-{entry.job}" for entry in entries}
        later, newest = await journal.callbacks_after(4)
        assert ([entry.number for entry in later], newest) == ([5, 6], 6)
        assert await journal.callbacks_after(6) == ([], 6)
        assert [entry.task_id for entry in await journal.callbacks_for(again.number)] == ["t5", "t99"]
        assert await journal.callbacks_for(done.number) == [], "its task is known"
        assert await journal.callbacks_for(12345) == []


async def test_a_journal_in_memory_has_an_inbox() -> None:
    """A journal without a file stores callbacks, too; no other process can add one."""
    async with Journal() as journal:
        (stored,) = await submitting(journal)
        await journal.receive(event("t"))
        assert [entry.task_id for entry in await journal.callbacks_for(stored.number)] == ["t"]
        assert await journal.newest_callback() == 0


async def test_newest_callback_of_a_file_that_is_gone(path: Path) -> None:
    """If the file cannot be read now there is no newest callback; it is no error."""
    async with Journal(path) as journal:
        await submitting(journal)
        await journal.receive(event("t"))
        assert await journal.newest_callback() == 1
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("ALTER TABLE inbox RENAME TO elsewhere")
        assert await journal.newest_callback() == 0


# --- opening and closing ----------------------------------------------------------------------------------


async def test_an_inbox_must_be_open(path: Path) -> None:
    """It is opened once, closed any number of times, and opened again; use while closed is an error."""
    inbox = Inbox(path)
    assert repr(inbox) == f"<Inbox of {path}>"
    with pytest.raises(JournalError, match="not open"):
        await inbox.receive(event("t"))
    async with inbox:
        with pytest.raises(JournalError, match="open already"):
            await inbox.open()
    await inbox.aclose()
    with pytest.raises(JournalError, match="not open"):
        await inbox.receive(event("t"))
    async with inbox:
        await inbox.receive(event("t"))


async def test_cancelled_while_opening(path: Path) -> None:
    """A caller that is cancelled during opening leaves no thread and no connection behind."""
    before = set(threading.enumerate())
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(Inbox(path).open())
        await asyncio.sleep(0)
        opening.cancel()
    assert opening.cancelled()
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert "flux-async journal" not in left
    assert not path.with_name(path.name + "-wal").exists()


@pytest.mark.parametrize("where", [5, None, "a\0b", ":memory:"])
def test_invalid_paths_are_refused(where: Any) -> None:
    """A path that cannot be a file is refused when the inbox is made."""
    with pytest.raises(JournalError):
        Inbox(where)


@pytest.mark.parametrize("place", ["folder", "under a file"])
async def test_a_path_that_cannot_hold_a_file_is_a_journal_error(tmp_path: Path, place: str) -> None:
    """Not a bare OSError."""
    (tmp_path / "file").write_text("x")
    where = tmp_path if place == "folder" else tmp_path / "file" / "run.sqlite3"
    with pytest.raises(JournalError):
        await Inbox(where).open()


# --- new journals -----------------------------------------------------------------------------------------


_OPENERS = """
import os, sqlite3, sys
from pathlib import Path
from flux_async.journal.guard import open_file

for path in sys.argv[2:]:
    waiting, gate = os.pipe()
    several = []
    for _ in range(int(sys.argv[1])):
        several.append(os.fork())
        if not several[-1]:
            os.close(gate)
            os.read(waiting, 1)
            try:
                open_file(Path(path)).close()
            except Exception as error:
                os.write(1, repr(error).encode())
            os._exit(0)
    os.close(gate)
    os.close(waiting)
    for pid in several:
        os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("make", [None, Path.touch], ids=["new", "empty"])
def test_many_processes_open_at_once(tmp_path: Path, make: Callable[[Path], None] | None) -> None:
    """However many processes open a new journal at once, one makes it and each of them can use it."""
    paths = [tmp_path / f"{turn}.sqlite3" for turn in range(20)]
    for path in paths if make else ():
        make(path)
    command = [sys.executable, "-c", _OPENERS, "6", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * WAIT_S, check=False)
    assert (done.stdout, done.stderr) == ("", "")
    for path in paths:
        assert rows(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
        assert rows(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)] == [(4,)]
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]


# --- files that are left alone ----------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("image,key\nhttps://example/1.jpg,a\n")


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE bookmarks (url TEXT); INSERT INTO bookmarks VALUES ('x');")


def _foreign_with_a_log(path: Path) -> None:
    """Make the database of a program that was killed: its last writes are only in the -wal file."""
    work = path.with_name("work.sqlite3")
    with closing(sqlite3.connect(work)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript("CREATE TABLE bookmarks (url TEXT); INSERT INTO bookmarks VALUES ('x');")
        for suffix in ("", "-wal"):
            shutil.copy(f"{work}{suffix}", f"{path}{suffix}")


def _with_version(version: int, path: Path) -> None:
    open_file(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


_older, _newer = partial(_with_version, 1), partial(_with_version, SCHEMA_VERSION + 1)


def _scrambled_header(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\x00" + bytes(range(256)) * 40)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (_text, JournalError, "is not a journal"),
        (_foreign, JournalError, "another program's database"),
        (_foreign_with_a_log, JournalError, "another program's database"),
        (_older, JournalVersionError, "unsupported journal version 1: this release supports 3"),
        (_newer, JournalVersionError, "unsupported journal version 5: this release supports 3 to 4"),
        (_scrambled_header, JournalError, "damaged"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_strange_files_are_left_alone(
    path: Path, spoil: Callable[[Path], None], error: type[JournalError], words: str
) -> None:
    """A file that is not a journal is refused with a reason, and not one byte of it changes."""
    spoil(path)
    log = path.with_name(path.name + "-wal")
    before = path.read_bytes(), log.exists() and log.read_bytes()
    with pytest.raises(error, match=words) as refused:
        await Inbox(path).open()
    assert str(path) in str(refused.value)
    assert (path.read_bytes(), before[1] and log.read_bytes()) == before


# --- disks ------------------------------------------------------------------------------------------------

# Everything is imported before the rights are given up.
_WRITER = """
import asyncio, concurrent.futures.thread, os, resource, sqlite3, sys
from flux_async import CallbackEvent, JournalError
from flux_async.journal.guard import open_file
from flux_async.journal.inbox import Inbox

async def main(path, how):
    if how == "read-only" and os.getuid() == 0:  # root may write anywhere
        os.setgid(65534)
        os.setuid(65534)
    try:
        async with Inbox(path) as inbox:
            if how == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path), resource.RLIM_INFINITY))
            for number in range(10_000):
                event = CallbackEvent(task_id="t" * 200, attempt_id=f"{number % 500 + 1:032x}", signed=True)
                await inbox.receive(event)
            print("all kept")
    except JournalError as error:
        print("JournalError:", error)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["full", "read-only file", "read-only folder"])
def test_disks_that_cannot_be_written(open_folder: Path, how: str) -> None:
    """If the disk is full or read-only, storing a callback is a JournalError."""
    path = open_folder / "run.sqlite3"

    async def make() -> None:
        async with Journal(path) as journal:
            await submitting(journal, 500)

    asyncio.run(make())
    path.chmod(0o444 if how == "read-only file" else 0o666)
    open_folder.chmod(0o555 if how == "read-only folder" else 0o777)
    command = [sys.executable, "-c", _WRITER, str(path), how.partition(" ")[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stdout.startswith("JournalError: "), (done.stdout, done.stderr)
    open_folder.chmod(0o777)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
