"""Operator commands on a journal: retry, adopt, fetch images that are missing."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from flux_async import (
    DiskFull,
    EditRequest,
    Failed,
    FetchReport,
    FluxClient,
    InvalidInput,
    Job,
    JobKey,
    Journal,
    JournalBusyError,
    JournalError,
    Model,
    NotFoundError,
    Outcome,
    Succeeded,
    TaskId,
    adopt,
    fetch_missing,
    rekey,
    retry,
    run_batch,
)
from flux_async.job_state import Saved, SubmitAccepted, SubmitIntended, TaskSucceeded
from flux_async.transport import Unknown
from tests.support.file_host import JPEG, FileAnswer
from tests.support.journal_records import happened

pytestmark = pytest.mark.both_apis

URLS = [f"https://pictures.example/{number}.jpg" for number in range(6)]
MINUTE_S = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite3"


async def run(client: FluxClient, path: Path, images: list[Any], **options: Any) -> list[Any]:
    async with run_batch(client, images, journal=path, **options) as batch:
        return [outcome async for outcome in batch]


def job_of(url: str, key: str) -> Job:
    return Job(request=EditRequest.text_removal(url), key=JobKey(key))


async def states(client: FluxClient, path: Path) -> dict[str, int]:
    async with Journal(path, clock=client.session.clock) as journal:
        return {state.value: count for state, count in (await journal.counts()).items()}


# --- retry ------------------------------------------------------------------------------------------------


async def test_a_job_that_failed_is_submitted_again_by_the_next_run(
    client: FluxClient, transport: Any, make: Any, path: Path
) -> None:
    """A dry run returns the same and changes nothing; without a retry the next run submits nothing."""
    transport.script["generate"] = [make.answer({"taskId": "t1"}), make.answer({"taskId": "t2"})]
    transport.script["record-info"] = [make.record(2), make.record(1, "t2")]
    [outcome] = await run(client, path, URLS[:1])
    assert isinstance(outcome, Failed)
    planned = await retry(client, path, failed=True, dry_run=True)
    assert await run(client, path, URLS[:1]) == []
    retried = await retry(client, path, failed=True)
    assert dict(retried.submits) == dict(planned.submits) == {Model.PRO: 1}
    assert list(retried.to_submit) == list(planned.to_submit) == [1]
    [outcome] = await run(client, path, URLS[:1])
    assert isinstance(outcome, Succeeded)
    assert transport.count("generate") == 2


async def test_a_job_in_doubt_is_resubmitted_only_on_request(
    client: FluxClient, transport: Any, make: Any, path: Path
) -> None:
    """A retry of failed jobs leaves jobs in doubt out; paid ones are listed as free."""
    transport.script["generate"] = [make.answer({"taskId": "t1"}), Unknown("cut off")]
    transport.script["record-info"] = [make.record(0)]
    await run(client, path, URLS[:2], timeout=5.0)
    retried = await retry(client, path, failed=True)
    assert (dict(retried.submits), list(retried.to_submit), list(retried.to_fetch)) == ({}, [], [1])
    assert await states(client, path) == {"submitted": 1, "in_doubt": 1}
    retried = await retry(client, path, in_doubt=True)
    assert (dict(retried.submits), list(retried.to_submit)) == ({Model.PRO: 1}, [2])
    assert await states(client, path) == {"submitted": 1, "pending": 1}


async def test_a_retry_of_nothing_is_refused(client: FluxClient, path: Path) -> None:
    """It would be mistaken for a resumed run."""
    with pytest.raises(InvalidInput, match="failed=True"):
        await retry(client, path)


@pytest.mark.parametrize("operation", ["retry", "adopt", "fetch_missing"])
async def test_a_journal_that_is_missing_is_not_made_and_one_in_use_is_refused(
    client: FluxClient, path: Path, tmp_path: Path, operation: str
) -> None:
    """A mistyped path is reported; a run in this or another process is not disturbed."""
    operations: dict[str, Callable[[], Any]] = {
        "retry": lambda: retry(client, path, failed=True),
        "adopt": lambda: adopt(client, path, "poster", "t1"),
        "fetch_missing": lambda: fetch_missing(client, path, tmp_path),
    }
    with pytest.raises(JournalError, match="There is no journal"):
        await operations[operation]()
    assert not path.exists()
    async with Journal(path, clock=client.session.clock):
        with pytest.raises(JournalBusyError):
            await operations[operation]()


def _empty_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")


def _other_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")


@pytest.mark.parametrize(
    "make_file",
    [
        Path.touch,
        _empty_database,
        _other_database,
        lambda path: path.write_text("a list of images\n" * 400),
        lambda path: path.write_text("short"),
    ],
    ids=["empty file", "empty database", "other database", "text", "short text"],
)
@pytest.mark.parametrize("operation", ["retry", "adopt", "rekey", "fetch_missing"])
async def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    client: FluxClient, path: Path, tmp_path: Path, operation: str, make_file: Callable[[Path], Any]
) -> None:
    """It does not become a journal, and no file is left beside it."""
    make_file(path)
    content = path.read_bytes()
    calls: dict[str, Callable[[], Any]] = {
        "retry": lambda: retry(client, path, failed=True),
        "adopt": lambda: adopt(client, path, "poster", "t1"),
        "rekey": lambda: rekey(client, path, same_account=True),
        "fetch_missing": lambda: fetch_missing(client, path, tmp_path / "clean"),
    }
    with pytest.raises(JournalError, match="not a journal"):
        await calls[operation]()
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


async def test_a_batch_leaves_no_file_beside_one_that_is_no_journal(client: FluxClient, path: Path) -> None:
    """An empty file is a new journal for a batch; a text is refused, and its lock file removed."""
    path.write_text("a list of images\n" * 400)
    with pytest.raises(JournalError, match="not a journal"):
        await run(client, path, URLS[:1])
    assert list(path.parent.iterdir()) == [path]
    path.write_text("")
    assert len(await run(client, path, URLS[:1])) == 1


# --- adopt ------------------------------------------------------------------------------------------------


@pytest.fixture
async def with_doubts(client: FluxClient, transport: Any, make: Any, path: Path) -> Path:
    """A journal in which ``poster`` is in doubt and ``cover`` has the task t1."""
    transport.script["generate"] = [make.answer({"taskId": "t1"}), Unknown("cut off")]
    for url, key in ((URLS[0], "cover"), (URLS[1], "poster")):
        await run(client, path, [job_of(url, key)])
    return path


async def test_an_adopted_task_is_fetched_by_the_next_run_without_a_submit(
    client: FluxClient, transport: Any, make: Any, with_doubts: Path
) -> None:
    """Its record shows nothing of the request, which is no sign of a mistake."""
    transport.script["record-info"] = [make.record(1, "t2")]
    adopted = await adopt(client, with_doubts, "poster", "t2")
    assert (adopted.key, adopted.record.task_id, adopted.echo) == ("poster", "t2", "absent")
    [outcome] = await run(client, with_doubts, [job_of(URLS[1], "poster")])
    assert isinstance(outcome, Succeeded)
    assert outcome.image.task_id == "t2"
    assert transport.count("generate") == 2


@pytest.mark.parametrize(
    ("job", "task", "kind", "words"),
    [
        ("poster", "t1", InvalidInput, "Task t1 belongs to job cover"),
        ("cover", "t2", InvalidInput, "Job cover is done, not in doubt"),
        ("postre", "t2", InvalidInput, "There is no job postre"),
        ("poster", "t9", NotFoundError, "Check the task id"),
    ],
)
async def test_a_task_is_not_adopted_where_it_does_not_belong(
    client: FluxClient,
    transport: Any,
    make: Any,
    with_doubts: Path,
    job: str,
    task: str,
    kind: type[Exception],
    words: str,
) -> None:
    """Every refusal states that nothing was changed, and nothing is."""
    transport.script["record-info"] = [make.answer(None, 404, msg="no such task")]
    with pytest.raises(kind, match=words) as refused:
        await adopt(client, with_doubts, job, task)
    assert "Nothing was changed." in str(refused.value)
    assert await states(client, with_doubts) == {"done": 1, "in_doubt": 1}


# --- fetch_missing ----------------------------------------------------------------------------------------


@attrs.define(eq=False)
class FileHost:
    """Serves results, or refuses them."""

    clock: Any
    is_away: Callable[[str, float], bool] = lambda _url, _at: False
    tries: int = 0

    @asynccontextmanager
    async def open(self, url: str) -> Any:
        """FileAnswer one request."""
        self.tries += 1
        yield FileAnswer(503, body=b"") if self.is_away(url, self.clock.now) else FileAnswer()


@pytest.fixture
def host(transport: Any, make: Any, vendor: Any, clock: Any) -> FileHost:
    """A file host; the vendor has no fresh links."""
    transport.script["download-url"] = [make.answer(None, 422, msg="url is wrong")]
    made = FileHost(clock)
    transport.files = made.open
    return made


class Collected(list[Outcome]):
    """Outcomes in the order in which they were reported."""

    async def add(self, outcome: Outcome) -> None:
        """Receive one."""
        self.append(outcome)


async def test_images_that_were_moved_away_or_never_fetched_are_downloaded(
    client: FluxClient, host: FileHost, transport: Any, path: Path, tmp_path: Path
) -> None:
    """Those that are there are not; nothing is submitted, and a second call finds nothing missing."""
    clean = tmp_path / "clean"
    there, moved = await run(client, path, URLS[:2], directory=clean)
    [left] = await run(client, path, URLS[2:3])
    moved.file.unlink()
    submits, tries = transport.count("generate"), host.tries
    outcomes = Collected()
    report = await fetch_missing(client, path, clean, on_outcome=outcomes.add)
    assert report == FetchReport(fetched=2, missing=0)
    assert {outcome.job.key for outcome in outcomes if outcome.job} == {moved.job.key, left.job.key}
    for outcome in outcomes:
        assert isinstance(outcome, Succeeded)
        assert outcome.file is not None
        assert outcome.file.read_bytes() == JPEG
    assert there.file.exists()
    assert moved.file.exists()
    assert host.tries == tries + 2
    assert transport.count("generate") == submits
    assert await fetch_missing(client, path, clean) == FetchReport()


async def test_a_result_that_does_not_come_is_reported_and_stays_paid(
    client: FluxClient, host: FileHost, path: Path, tmp_path: Path
) -> None:
    """Beside others that do come; the next call fetches it."""
    await run(client, path, URLS[:3])
    host.is_away = lambda url, _: "t1" in url
    outcomes = Collected()
    report = await fetch_missing(client, path, tmp_path, patience=MINUTE_S, on_outcome=outcomes.add)
    assert report == FetchReport(fetched=2, missing=1)
    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert "The result is paid and stays available until" in str(failed.error)
    host.is_away = lambda _url, _at: False
    assert await fetch_missing(client, path, tmp_path) == FetchReport(fetched=1)


async def test_a_request_of_another_release_fails_alone(
    client: FluxClient, host: FileHost, path: Path, tmp_path: Path
) -> None:
    """Its fields are unknown here, so that it has no job; the others are fetched."""
    [done] = await run(client, path, URLS[:1])
    made = Journal(path, clock=client.session.clock)
    async with await made.open(account=client.fingerprint) as journal:
        request = '{"prompt": "p", "inputImage": "https://pictures.example/x.jpg", "newField": 1}'
        [stored] = await journal.add([(JobKey("other"), request)])
        at = client.session.clock.wall()
        await happened(
            journal,
            stored,
            SubmitIntended(api="kontext", at=at),
            SubmitAccepted(at=at, task_id=TaskId("t9")),
            TaskSucceeded(at=at, result_url="https://files.example/t9.jpg"),
            Saved(at=at),
        )
        outcomes = Collected()
        report = await fetch_missing(client, journal, tmp_path / "clean", on_outcome=outcomes.add)
    assert report == FetchReport(fetched=1, missing=1)
    assert {type(outcome): outcome.job for outcome in outcomes} == {Succeeded: done.job, Failed: None}


async def test_an_outage_of_the_file_host_is_waited_for_once_and_not_by_every_image(
    client: FluxClient, host: FileHost, path: Path, tmp_path: Path, clock: Any
) -> None:
    """Images that are asked for after it has been away for the whole patience get one try each."""
    outcomes = await run(client, path, URLS)
    keys = [outcome.job.key for outcome in outcomes]
    host.is_away = lambda _url, _at: True

    async def jobs() -> Any:
        for key in keys[:3]:
            yield key
        await clock.sleep(2 * MINUTE_S)
        for key in keys[3:]:
            yield key

    began = clock.now
    report = await fetch_missing(client, path, tmp_path, jobs=jobs(), patience=MINUTE_S)
    assert report == FetchReport(missing=len(URLS))
    assert clock.now - began < 2.5 * MINUTE_S


async def test_a_full_disk_ends_it_and_an_open_journal_stays_open(
    client: FluxClient, host: FileHost, transport: Any, path: Path, tmp_path: Path
) -> None:
    """Every image would meet it."""
    await run(client, path, URLS[:3])
    assert host.tries == 0

    @asynccontextmanager
    async def full(_url: str) -> Any:
        raise DiskFull("No space left.")
        yield

    transport.files = full
    async with await Journal(path, clock=client.session.clock).open(account=client.fingerprint) as journal:
        with pytest.raises(DiskFull):
            await fetch_missing(client, journal, tmp_path)
    assert await states(client, path) == {"done": 3}


# --- arguments of a wrong type ----------------------------------------------------------------------------


def _sync(outcome: Outcome) -> None:
    """Forget ``async``."""


WRONG: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "no journal": ("journal must be the path", lambda client, _: retry(client, None, failed=True)),  # type: ignore[arg-type]
    "no client": ("must be a FluxClient", lambda _, path: retry("x", path, failed=True)),  # type: ignore[arg-type]
    "a flag": ("failed must be True or False", lambda client, path: retry(client, path, failed="yes")),  # type: ignore[arg-type]
    "a dry run": ("dry_run must be", lambda client, path: retry(client, path, failed=True, dry_run=1)),  # type: ignore[arg-type]
    "same account": ("same_account must", lambda client, path: rekey(client, path, same_account="no")),  # type: ignore[arg-type]
    "adopt what is no text": ("valid Unicode", lambda client, path: adopt(client, path, "\ud800", "t1")),
    "adopt a number": ("must be a str", lambda client, path: adopt(client, path, 5, "t1")),  # type: ignore[arg-type]
    "no folder": ("directory must be", lambda client, path: fetch_missing(client, path, None)),  # type: ignore[arg-type]
    "no keys": (
        "must be a str.*outcome.job.key",
        lambda client, path: fetch_missing(client, path, path.parent / "clean", jobs=[object()]),  # type: ignore[list-item]
    ),
    "one key": (
        "jobs must be a list",
        lambda client, path: fetch_missing(client, path, path.parent / "clean", jobs="poster"),  # type: ignore[arg-type]
    ),
    "sync on_outcome": (
        "async def on_outcome",
        lambda client, path: fetch_missing(client, path, path.parent / "clean", on_outcome=_sync),  # type: ignore[arg-type]
    ),
    "name_file": (
        "name_file must be a function",
        lambda client, path: fetch_missing(client, path, path.parent / "clean", name_file="x"),  # type: ignore[arg-type]
    ),
    "batch of no client": ("must be a FluxClient", lambda _, path: run(None, path, URLS)),  # type: ignore[arg-type]
    "batch directory": ("directory must be", lambda client, path: run(client, path, URLS, directory=3)),
    "batch on_progress": ("on_progress must", lambda client, path: run(client, path, URLS, on_progress=3)),
    "batch via_upload": ("via_upload must", lambda client, path: run(client, path, URLS, via_upload="no")),
}


@pytest.mark.parametrize(("message", "call"), WRONG.values(), ids=WRONG)
async def test_an_argument_of_a_wrong_type_is_refused_before_anything_is_sent(
    client: FluxClient,
    host: FileHost,
    transport: Any,
    path: Path,
    tmp_path: Path,
    message: str,
    call: Callable[[Any, Any], Any],
) -> None:
    """The message says what to give; no request is made and no file is saved."""
    await run(client, path, URLS[:1])
    submits, tries = transport.count("generate"), host.tries
    with pytest.raises(InvalidInput, match=message):
        await call(client, path)
    assert (transport.count("generate"), host.tries) == (submits, tries)
    assert not (tmp_path / "clean").exists()


async def test_a_lambda_that_returns_no_awaitable_is_explained(
    client: FluxClient, host: FileHost, path: Path, tmp_path: Path
) -> None:
    """Only its first call shows that; one that returns an awaitable is accepted."""
    await run(client, path, URLS[:1])
    outcomes = Collected()
    await fetch_missing(client, path, tmp_path / "a", on_outcome=lambda one: outcomes.add(attrs.evolve(one)))
    assert len(outcomes) == 1
    (tmp_path / "a" / str(outcomes[0].reference)).unlink()  # type: ignore[union-attr]
    with pytest.raises(InvalidInput, match="async def on_outcome"):
        await fetch_missing(client, path, tmp_path / "a", on_outcome=lambda _: None)  # type: ignore[arg-type, return-value]


async def test_keys_that_the_journal_does_not_have_are_named(
    client: FluxClient, host: FileHost, path: Path, tmp_path: Path
) -> None:
    """A list is refused before anything is fetched; of a stream, the others are fetched first."""
    [done] = await run(client, path, URLS[:1])
    keys = [done.job.key, JobKey("tpyo"), *(JobKey(f"unknown{n}") for n in range(11))]
    with pytest.raises(InvalidInput, match=r"no job 'tpyo', 'unknown0'.* and 2 more.*nothing was fetched"):
        await fetch_missing(client, path, tmp_path / "clean", jobs=keys)
    assert not (tmp_path / "clean").exists()

    async def stream() -> Any:
        for key in reversed(keys[:2]):
            yield key

    with pytest.raises(InvalidInput, match=r"no job 'tpyo'\. The images of the other jobs were fetched"):
        await fetch_missing(client, path, tmp_path / "clean", jobs=stream())
    assert len(list((tmp_path / "clean").iterdir())) == 1
    assert await fetch_missing(client, path, tmp_path / "again", jobs=keys[:1]) == FetchReport(fetched=1)


async def test_outcomes_lost_by_a_cancelled_iteration_are_read_from_the_journal(
    client: FluxClient, host: FileHost, transport: Any, path: Path, tmp_path: Path
) -> None:
    """They were ready and not yielded; ``remove_text_many`` returns them without another charge."""
    options: dict[str, Any] = {"journal": path, "directory": tmp_path / "clean"}
    async with run_batch(client, URLS[:3], **options) as batch:
        await anext(batch)
        while batch.progress.succeeded < len(URLS[:3]):  # all are ready
            await asyncio.sleep(0)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(batch)
    outcomes = await client.remove_text_many(URLS[:3], **options)
    assert [type(outcome) for outcome in outcomes] == [Succeeded] * 3
    assert transport.count("generate") == 3
