"""A batch that is misused, interrupted or sent false answers: nothing is lost, nothing is paid twice."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flux_async import (
    EditRequest,
    Failed,
    FluxClient,
    InDoubt,
    InsufficientCreditsError,
    InvalidInput,
    Job,
    JobKey,
    Journal,
    JournalBusyError,
    JournalDisplaced,
    JournalError,
    Limits,
    Succeeded,
    run_batch,
)
from flux_async.batch.file_names import FileNames, is_safe_name, safe_name
from flux_async.errors import Scope
from flux_async.job_state import JobState, SubmitIntended, apply
from flux_async.journal import schema
from flux_async.transport import Unknown

URLS = [f"https://example.com/{number}.jpg" for number in range(40)]


async def collect(client: FluxClient, images: Any, **options: Any) -> list[Any]:
    """Run a batch to its end."""
    async with run_batch(client, images, **options) as batch:
        return [outcome async for outcome in batch]


async def test_a_refused_second_run_does_not_drop_the_first_ones_locks(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """A refused run never touches the file, so an observer cannot take the journal for closed."""
    journal = tmp_path / "run.sqlite3"
    async with run_batch(client, URLS, journal=journal) as batch:
        await batch.__anext__()
        with pytest.raises(JournalBusyError):
            await collect(client, URLS, journal=journal)
        onlooker = await asyncio.create_subprocess_exec(  # its close would unlink the log of a closed journal
            "python", "-c", f"import sqlite3; sqlite3.connect({str(journal)!r}).execute('select 1 from job')"
        )
        await onlooker.wait()
        assert (tmp_path / "run.sqlite3-wal").exists()


async def test_one_open_journal_has_one_run(client: Any, vendor: Any, tmp_path: Path) -> None:
    """A second run on the same object is refused; after the first it may come."""
    async with Journal(tmp_path / "run.sqlite3", clock=client.session.clock) as journal:
        async with run_batch(client, URLS, journal=journal) as batch:
            await batch.__anext__()
            with pytest.raises(JournalBusyError):
                await collect(client, URLS, journal=journal)
        assert await collect(client, URLS, journal=journal)


async def test_removing_the_lock_file_does_not_unlock_the_journal(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """The journal itself is locked, too."""
    journal = tmp_path / "run.sqlite3"
    async with run_batch(client, URLS, journal=journal):
        (tmp_path / "run.sqlite3.lock").unlink()
        with pytest.raises(JournalBusyError, match="lock file was removed"):
            await collect(client, URLS, journal=journal)


async def test_a_journal_that_could_not_be_opened_is_not_kept_from_others(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """A run that fails to open it releases it."""
    journal = tmp_path / "run.sqlite3"
    journal.write_bytes(b"no database at all, and long enough to be read as one")
    for _ in range(2):
        with pytest.raises(JournalError, match="is not a journal"):
            await collect(client, URLS, journal=journal)
    journal.unlink()
    assert len(await collect(client, URLS[:2], journal=journal)) == 2


@pytest.mark.parametrize("for_good", [False, True])
async def test_a_journal_locked_by_another_program_halts_the_run_and_the_figures_are_right(
    client: Any, vendor: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    """What was not submitted is not counted as spent; an answer that cannot be written is with the client."""
    monkeypatch.setattr(schema, "BUSY_S", 0.02)
    journal = tmp_path / "run.sqlite3"
    lock = sqlite3.connect(journal, isolation_level=None)
    tasks = iter(f"t{number}" for number in range(100))

    def submitted(_: Any) -> Any:
        task = next(tasks)
        if task == "t3":  # another program takes the lock while this answer is on its way
            lock.execute("BEGIN IMMEDIATE")
        return make.answer({"taskId": task})

    vendor.script["generate"] = [submitted]
    with closing(lock):
        batch = run_batch(client, URLS, journal=journal)
        with pytest.raises(JournalError, match="Another program keeps the journal locked") as halted:
            async with batch:
                async for _ in batch:
                    if lock.in_transaction and not for_good:
                        lock.execute("ROLLBACK")
    charged = vendor.count("generate")
    assert halted.value.scope is Scope.STOP
    assert 4 <= charged < len(URLS)
    assert batch.progress.credits == 5 * charged
    paid = {f"t{number}" for number in range(charged)}
    async with Journal(journal, clock=client.session.clock) as reopened:
        known = {stored.job.task_id for state in JobState for stored in await reopened.jobs(state)}
    assert known | {unclaimed.task_id for unclaimed in client.unclaimed} >= paid


def test_another_program_may_lock_the_journal_for_some_seconds() -> None:
    """Backups and scanners do."""
    assert schema.BUSY_S == 30
    with closing(schema.connect()) as connection:
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (30_000,)


async def test_a_journal_that_loses_its_folder_ends_the_batch(
    client: Any, vendor: Any, make: Any, tmp_path: Path
) -> None:
    """No request leaves after it was moved; the error names the new path, where the batch can resume."""
    folder, moved = tmp_path / "out", tmp_path / "moved"
    tasks = iter(f"t{number}" for number in range(100))

    def submitted(_: Any) -> Any:
        task = next(tasks)
        if task == "t5":
            folder.rename(moved)
        return make.answer({"taskId": task})

    vendor.script["generate"] = [submitted]
    with pytest.raises(JournalDisplaced, match=f"was moved to {moved}") as ended:
        await collect(client, URLS, journal=folder / "run.sqlite3")
    assert ended.value.scope is Scope.STOP
    charged = vendor.count("generate")
    assert charged <= 5 + Limits().concurrent_submits
    assert not folder.exists()
    await collect(client, URLS, journal=moved / "run.sqlite3")
    assert vendor.count("generate") == len(URLS)


async def test_a_symbolic_link_to_a_journal_in_use_is_refused(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """It is the same journal."""
    (tmp_path / "link.sqlite3").symlink_to(tmp_path / "run.sqlite3")
    async with run_batch(client, URLS, journal=tmp_path / "run.sqlite3"):
        with pytest.raises(JournalBusyError):
            await collect(client, URLS, journal=tmp_path / "link.sqlite3")


async def test_without_a_journal_paid_tasks_are_left_with_the_client(client: Any, vendor: Any) -> None:
    """After leaving a batch in memory, ``client.unclaimed`` has every paid task that had no outcome."""
    reported = set()
    async with run_batch(client, URLS) as batch:
        async for outcome in batch:
            reported.add(outcome.image.task_id)
            if len(reported) == 3:
                break
    paid = {f"t{number}" for number in range(vendor.count("generate"))}
    assert paid == reported | {unclaimed.task_id for unclaimed in client.unclaimed}


async def test_a_halt_loses_no_outcome_of_many(client: Any, vendor: Any, make: Any) -> None:
    """``remove_text_many`` returns what was paid for, and the halt for the rest."""
    task = vendor.script["generate"][0]
    vendor.script["generate"] = [*[task] * 12, make.answer(None, 402)]
    outcomes = await client.remove_text_many(URLS)
    assert Counter(type(outcome) for outcome in outcomes) == {Succeeded: 12, Failed: 28}
    assert all(
        isinstance(outcome.error, InsufficientCreditsError)
        for outcome in outcomes
        if isinstance(outcome, Failed)
    )


async def test_a_job_that_has_ended_is_not_run_again(
    transport: Any, vendor: Any, make: Any, clock: Any, tmp_path: Path
) -> None:
    """The same job twice in the input, all slots taken: one submit, one outcome."""
    journal, task = tmp_path / "run.sqlite3", vendor.script["generate"][0]
    vendor.script["generate"] = [task, Unknown("dropped"), task]
    limits = Limits(in_flight=1)
    async with FluxClient(make.key, transport=transport, clock=clock, limits=limits) as client:
        await collect(client, URLS[:3], journal=journal)
        many = [URLS[1], *URLS[3:20], URLS[1], *URLS[20:30], URLS[1]]
        outcomes = await collect(client, many, journal=journal, in_doubt="resubmit")
    keys = Counter(outcome.job.key for outcome in outcomes)
    assert set(keys.values()) == {1}
    assert vendor.count("generate") == 3 + 1 + 27


async def test_a_stale_write_is_refused(tmp_path: Path) -> None:
    """The journal does not let an old view of a job overwrite a newer one."""
    async with Journal(tmp_path / "run.sqlite3") as journal:
        (stored,) = await journal.add([(JobKey("k"), "{}")])
        event = SubmitIntended(api="kontext", at=1.0)
        job = apply(stored.job, event)
        await journal.record(stored.number, job, event, before=stored.job)
        with pytest.raises(JournalError, match="another state by now"):
            await journal.record(stored.number, job, event, before=stored.job)


async def test_a_task_named_in_a_contradiction_is_kept(
    client: Any, vendor: Any, make: Any, tmp_path: Path
) -> None:
    """A refusal that names a task leaves the job in doubt, with the id on disk and in the outcome."""
    vendor.script["generate"] = [make.answer({"taskId": "PAID1"}, 422)]
    (outcome,) = await collect(client, URLS[:1], journal=tmp_path / "run.sqlite3")
    assert isinstance(outcome, InDoubt)
    (again,) = await collect(client, URLS[:1], journal=tmp_path / "run.sqlite3")
    assert (outcome.error.task_id, again.error.task_id) == ("PAID1", "PAID1")


async def test_leaving_is_not_cut_short(client: Any, vendor: Any, tmp_path: Path) -> None:
    """However often it is cancelled, the block is left when the POSTs are recorded and all is closed."""
    journal = tmp_path / "run.sqlite3"

    async def body() -> None:
        async with run_batch(client, URLS, journal=journal) as batch:
            async for _ in batch:
                pass

    task = asyncio.get_running_loop().create_task(body())
    while vendor.count("generate") < 4:
        await asyncio.sleep(0)
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    async with Journal(journal, clock=client.session.clock) as closed:
        counts = await closed.counts()
    assert JobState.SUBMITTING not in counts
    submitted = sum(counts.get(state, 0) for state in (JobState.SUBMITTED, JobState.GENERATED, JobState.DONE))
    assert submitted == vendor.count("generate")


@pytest.mark.parametrize(
    "key", ["../../escaped", "/etc/passwd", "..", "a/../../b", "\N{SNOWMAN}" * 100, "con: ?*"]
)
def test_a_key_becomes_a_name_inside_the_folder(key: str) -> None:
    """Whatever the key, its file is named safely, and differently from other keys'."""
    name = safe_name(key)
    assert is_safe_name(name)
    assert "/" not in name
    assert name != safe_name(key + "x")
    assert safe_name("plain-key_1.2") == "plain-key_1.2"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a//b", "a\\b", "x" * 181, "a\nb", None, 7])
async def test_a_bad_name_costs_nothing(client: Any, vendor: Any, tmp_path: Path, name: Any) -> None:
    """A name that leads out of the folder, or is none, fails its job before the submit."""
    (outcome,) = await collect(client, URLS[:1], directory=tmp_path, name_file=lambda job: name)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, InvalidInput)
    assert vendor.count("generate") == 0


SAME_NAMES = [("a", "a"), ("a", "A"), ("Été/x", "E\u0301te\u0301/X"), ("a.png", "a.JPG"), ("a", "a.webp")]


@pytest.mark.parametrize("names", SAME_NAMES)
async def test_a_name_that_another_job_has_is_refused_before_it_is_paid(
    client: Any, vendor: Any, tmp_path: Path, names: tuple[str, str]
) -> None:
    """Also where only some disks take the two names for one; the error names both, and no run pays."""
    jobs = [Job(key=JobKey(f"k{n}"), request=EditRequest.text_removal(URLS[n])) for n in range(3)]
    named = dict(zip(("k0", "k1", "k2"), (*names, "other"), strict=True))
    options: dict[str, Any] = {
        "journal": tmp_path / "run.sqlite3",
        "directory": tmp_path / "images",
        "name_file": lambda job: named[job.key],
    }
    for expected in (2, 2):
        outcomes = {outcome.job.key: outcome for outcome in await collect(client, jobs, **options)}
        error = outcomes["k1"].error
        assert isinstance(error, InvalidInput)
        assert "for job k1, and job k0 has that file name" in str(error)
        assert vendor.count("generate") == expected
    named["k1"] = "a name of its own"
    outcomes = {outcome.job.key: outcome for outcome in await collect(client, jobs, **options)}
    assert not isinstance(outcomes["k1"].error, InvalidInput)
    assert vendor.count("generate") == 3


async def test_the_result_of_a_paid_job_never_replaces_that_of_another(tmp_path: Path) -> None:
    """Two jobs of an earlier release were paid under one name: the second is named after its key."""
    async with Journal(tmp_path / "run.sqlite3") as journal:
        jobs = [Job(key=JobKey(f"k{n}"), request=EditRequest.text_removal(URLS[n])) for n in range(2)]
        first, second = await journal.add_jobs(jobs)
        names = FileNames(journal=journal, name_file=lambda _: "same", place="clean")
        assert await names.name(second) == "same"
        assert await names.name(first) == "k0"
        assert await names.name(second) == "same"


async def test_results_and_originals_do_not_share_a_folder(client: Any, tmp_path: Path) -> None:
    """They have the same names."""
    with pytest.raises(InvalidInput, match="one folder"):
        run_batch(client, URLS, directory=tmp_path, originals=tmp_path / "x" / "..")


async def test_a_naming_function_that_raises_fails_its_job_only(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """Not the run."""

    def name_file(job: Job) -> str:
        raise KeyError(job.key)

    outcomes = await collect(client, URLS[:3], directory=tmp_path, name_file=name_file)
    assert [type(outcome.error) for outcome in outcomes] == [InvalidInput] * 3


async def test_a_task_that_reports_failure_on_resume_fails_its_job_only(
    client: Any, vendor: Any, make: Any, tmp_path: Path
) -> None:
    """A task that had its image and now reports failure ends its job; the others go on."""
    journal = tmp_path / "run.sqlite3"
    outcomes = await collect(client, URLS[:1], journal=journal, directory=tmp_path / "images")
    assert isinstance(outcomes[0], Failed), "the scripted transport has no files"
    poll = vendor.script["record-info"][0]
    vendor.script["record-info"] = [
        lambda request: make.record(3, "t0") if request.query["taskId"] == "t0" else poll(request)
    ]
    outcomes = await collect(client, URLS[:2], journal=journal, directory=tmp_path / "images")
    assert sorted(type(outcome.error).__name__ for outcome in outcomes) == ["DownloadError", "TaskFailed"]


async def test_a_request_of_another_release_fails_its_job_only(
    client: Any, vendor: Any, make: Any, tmp_path: Path
) -> None:
    """A stored request that cannot be read is one failure, and costs nothing."""
    journal = tmp_path / "run.sqlite3"
    vendor.script["record-info"] = [make.record(0)]
    await collect(client, URLS[:1], journal=journal, timeout=5)
    with sqlite3.connect(journal) as connection:
        connection.execute("UPDATE job SET request = '{\"newField\":1}'")
    connection.close()
    (outcome,) = await collect(client, [], journal=journal)
    assert isinstance(outcome, Failed)
    assert outcome.job is None


async def test_the_bound_of_tasks_in_flight_is_the_accounts(
    transport: Any, vendor: Any, make: Any, clock: Any
) -> None:
    """Three batches on one client have together as many tasks as it allows."""
    most, running = 0, 0
    task, poll = vendor.script["generate"][0], vendor.script["record-info"][0]

    def started(request: Any) -> Any:
        nonlocal most, running
        running += 1
        most = max(most, running)
        return task(request)

    def polled(request: Any) -> Any:
        nonlocal running
        seen = poll(request)
        running -= b'"successFlag": 1' in seen.response.body
        return seen

    vendor.script["generate"], vendor.script["record-info"] = [started], [polled]
    client = FluxClient(make.key, transport=transport, clock=clock, limits=Limits(in_flight=2))
    async with client, asyncio.TaskGroup() as group:
        for part in range(3):
            group.create_task(collect(client, URLS[part * 5 : part * 5 + 5]))
    assert most <= 2


async def test_a_live_source_is_served_one_by_one(client: Any, vendor: Any) -> None:
    """An input is submitted when it comes, not when a hundred of them have."""
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def source() -> AsyncIterator[str]:
        for _ in range(3):
            yield await queue.get()

    async with asyncio.timeout(60), run_batch(client, source()) as batch:
        for url in URLS[:3]:
            queue.put_nowait(url)
            assert (await batch.__anext__()).job.request.input_image == url


async def test_a_halt_is_raised_while_the_source_is_silent(client: Any, vendor: Any, make: Any) -> None:
    """A source that never ends does not hide an empty balance, nor keep ``stop`` from ending the batch."""

    async def source() -> AsyncIterator[str]:
        yield URLS[0]
        await asyncio.Event().wait()

    task = vendor.script["generate"][0]
    vendor.script["generate"] = [make.answer(None, 402)]
    with pytest.raises(InsufficientCreditsError):
        async with asyncio.timeout(60):
            await collect(client, source())
    vendor.script["generate"] = [task]
    async with asyncio.timeout(60), run_batch(client, source()) as batch:
        await batch.__anext__()
        batch.stop()
        assert [outcome async for outcome in batch] == []


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"timeout": "5"},
        {"timeout": math.nan},
        {"max_credits": math.nan},
        {"max_credits": "50"},
        {"max_credits": 0},
        {"retry": 3},
        {"in_doubt": None},
    ],
    ids=str,
)
def test_options_are_checked_before_anything_is_opened(client: Any, options: dict[str, Any]) -> None:
    """A bad option is refused at the call."""
    with pytest.raises(InvalidInput):
        run_batch(client, URLS, **options)


def test_one_url_is_not_a_list_of_letters(client: Any) -> None:
    """A string given for the images is refused."""
    with pytest.raises(InvalidInput, match="images"):
        run_batch(client, URLS[0])  # type: ignore[arg-type]


async def test_a_source_that_raises_ends_the_batch_with_its_own_error(client: Any, vendor: Any) -> None:
    """The error arrives as it is, not in a group."""

    async def source() -> AsyncIterator[str]:
        yield URLS[0]
        raise LookupError("the list is gone")

    with pytest.raises(LookupError):
        await collect(client, source())


async def test_an_error_of_the_consumer_passes_unchanged(client: Any, vendor: Any) -> None:
    """An exception of the block's body is raised as it is, whatever happened to the batch."""

    async def source() -> AsyncIterator[str]:
        yield URLS[0]
        raise LookupError

    with pytest.raises(KeyError):
        async with run_batch(client, source()):
            await asyncio.sleep(0.01)
            raise KeyError


async def test_an_abandoned_generator_cancels_only_its_batch(client: Any, vendor: Any) -> None:
    """An abandoned generator around a batch ends it, and leaves the code around it alone (PEP 789)."""

    async def cleaned() -> AsyncIterator[Any]:
        async with run_batch(client, URLS) as batch:
            async for outcome in batch:
                yield outcome

    generator = cleaned()
    async for _ in generator:
        break
    await asyncio.sleep(0)
    await generator.aclose()
    await asyncio.sleep(0.001)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_closed_client_ends_the_batch(client: Any, vendor: Any) -> None:
    """With one clear error."""
    with pytest.raises(Exception, match="closed") as caught:
        async with run_batch(client, URLS) as batch:
            await batch.__anext__()
            await client.aclose()
            async for _ in batch:
                pass
    assert not isinstance(caught.value, BaseExceptionGroup)


@pytest.mark.parametrize("place", ["folder", "file/run.sqlite3", "a\0b", "x" * 300])
async def test_a_path_that_is_no_journal_is_an_error(
    client: Any, vendor: Any, tmp_path: Path, place: str
) -> None:
    """Folders, files in the way, impossible names: one clear error, nothing spent."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(JournalError):
        await collect(client, URLS, journal=f"{tmp_path}/{place}")
    assert vendor.count("generate") == 0


async def test_a_run_that_died_before_its_schema_leaves_a_usable_file(
    client: Any, vendor: Any, tmp_path: Path
) -> None:
    """An empty database in write-ahead mode is a journal that has not begun."""
    journal = tmp_path / "run.sqlite3"
    with sqlite3.connect(journal) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert len(await collect(client, URLS[:2], journal=journal)) == 2


async def test_another_accounts_journal_is_refused(
    transport: Any, vendor: Any, clock: Any, tmp_path: Path
) -> None:
    """Tasks can be read with their own key only."""
    journal = tmp_path / "run.sqlite3"
    for key, refused in (("k-first-0123456789", False), ("k-second-0123456789", True)):
        async with FluxClient(key, transport=transport, clock=clock) as client:
            if refused:
                with pytest.raises(JournalError, match="another key"):
                    await collect(client, URLS[:2], journal=journal)
            else:
                await collect(client, [EditRequest.text_removal(URLS[0])], journal=journal)
